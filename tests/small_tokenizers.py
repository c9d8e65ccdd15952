"""Small tokenizers: as GGUF metadata, in a folder, and the texts to try them with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

from converter.checkpoint.base import Checkpoint
from converter.checkpoint.gguf import open_gguf
from converter.text.bundle_tokenizer import BundleTokenizer
from converter.text.tokenizer import load_tokenizer

GEMMA_SPECIAL = [
    "<start_of_turn>user\nHi 1<end_of_turn>\n<start_of_turn>model\n",
    "x<unused0>[multimodal]<mask><start_of_image>",
]

PIECES = ["<unk>", "<s>", "</s>", "<|user|>", "  ", "▁", "a", "b", "ab", "▁ab"]
PIECE_TYPES = [2, 3, 3, 3, 4, 1, 1, 1, 1, 1]
SMALL_PIECES: dict[str, Any] = {
    "ggml.model": "llama",
    "ggml.tokens": [*PIECES, *(f"<0x{byte:02X}>" for byte in range(256))],
    "ggml.token_type": PIECE_TYPES + [6] * 256,
    "ggml.scores": [0.0] * 5 + [-9.0, -9.0, -9.0, -1.0, -2.0] + [0.0] * 256,
}

BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
SMALL_BPE: dict[str, Any] = {
    "ggml.model": "gpt2",
    "ggml.pre": "gpt-2",
    "ggml.tokens": [*BYTES, "ab", "Ġab", "<|bos|>", "<|im_end|>"],
    "ggml.token_type": [1] * 258 + [3, 4],
    "ggml.merges": ["a b", "Ġ ab"],
    "ggml.bos_token_id": 258,
}


def train_pieces(**options: Any) -> Any:
    """A SentencePiece model of 310 pieces, parsed: like Llama 2's unless options say otherwise."""
    out = io.BytesIO()
    corpus = ["hello there my friend", "the quick brown fox jumps over the lazy dog", "hi user"] * 9
    settings: dict[str, Any] = {
        "vocab_size": 310,
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "pad_id": -1,
    }
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=out, **settings | options
    )
    return sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())


class Folder(Checkpoint):
    """A folder without weights."""

    format = "safetensors"

    def __init__(self, path: Path, config: Any = None, generation_config: Any = None) -> None:
        self.path = path
        self.config = config or {}
        self.generation_config = generation_config or {}
        self.tensors = {}

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError

    @property
    def files(self) -> list[Path]:
        return []

    def check_unchanged(self) -> None: ...

    def close(self) -> None: ...


def write_tokenizer_gguf(path: Path, tokenizer: dict[str, Any], arch: str = "llama") -> Path:
    """A GGUF that is all tokenizer: `tokenizer` holds what follows `tokenizer.`."""
    writer = GGUFWriter(path, arch)
    for key in ("block_count", "embedding_length", "attention.head_count"):
        writer.add_uint32(f"{arch}.{key}", 1)
    for key, value in tokenizer.items():
        name = f"tokenizer.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.add_tensor("token_embd.weight", np.zeros((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def from_gguf(path: Path) -> BundleTokenizer:
    with open_gguf(path) as checkpoint:
        return load_tokenizer(checkpoint)


def published_template(folder: Path) -> str:
    """The chat template in a folder's tokenizer_config.json."""
    template = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    assert isinstance(template, str)
    return template
