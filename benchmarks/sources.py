"""The same weights in another file: what a peer reads, beside what we read.

    python -m benchmarks.sources shape qwen3-0.6b FOLDER
    python -m benchmarks.sources gemma3-270m FOLDER
    python -m benchmarks.sources smollm2-135m FOLDER [FILE]
    python -m benchmarks.sources gguf FOLDER FILE

Gemma 3 270M and SmolLM2-135M-Instruct are in package registries as GGUF alone: `gemma3-270m` and
`smollm2-135m` widen that to BF16 safetensors, so that the same model can be read in both formats.
`gguf` writes a folder as a GGUF of BF16 weights, the input of llama.cpp's quantiser; it holds no
tokenizer, which that quantiser would only copy and llama-bench does not need.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.checkpoints import BYTES, SHAPES, TOKENIZERS, make_checkpoint
from converter.checkpoint.gguf import GGUFCheckpoint, open_gguf
from converter.checkpoint.safetensors import open_folder
from converter.registry import family_of
from converter.text.gguf_tokenizer import rebuild_tokenizer
from converter.weights.placed_rows import halves_from_pairs
from tests.conftest import real_model
from tests.tiny_models import write_tokenizer as write_small_tokenizer

# What Hugging Face's config.json says of this model; a GGUF says less.
GEMMA3_270M: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "_sliding_window_pattern": 6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
SMOLLM2_135M: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "bfloat16",
}
# Of a matrix at once, whole heads: memory stays far below that of what is measured.
_ROWS = 4096


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 to the nearest BF16, as its 16 bits."""
    bits: np.ndarray = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) >> 16).astype(np.uint16)


def widen_gguf(source: Path, config: dict[str, Any], tokenizer: Path, folder: Path) -> None:
    """Write a GGUF's weights as one BF16 safetensors file, under Hugging Face's names."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    family = family_of(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    with open_gguf(source) as checkpoint:
        sources = family.weight_sources(list(checkpoint.tensors), checkpoint.format)
        for path, stored in sources.items():
            shape = checkpoint.tensors[stored.tensor].shape
            end = position + 2 * int(np.prod(shape))
            header[f"model.{family.stored_name(path, 'safetensors')}"] = {
                "dtype": "BF16",
                "shape": list(shape),
                "data_offsets": [position, end],
            }
            position = end
        packed = json.dumps(header).encode()
        packed += b" " * (-len(packed) % 8)
        with (folder / "model.safetensors").open("wb") as out:
            out.write(len(packed).to_bytes(8, "little") + packed)
            for path, stored in sources.items():
                shape = checkpoint.tensors[stored.tensor].shape
                rows = shape[0] if len(shape) > 1 else 1
                less = family.source_of(path, "", "safetensors").add
                for start in range(0, rows, _ROWS):
                    values = checkpoint.read_rows(stored.tensor, start, min(start + _ROWS, rows))
                    if stored.interleaved:
                        values = halves_from_pairs(values, *stored.interleaved)
                    out.write(bfloat16(values - np.float32(less)).tobytes())


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer that a GGUF holds as Hugging Face's files."""
    with open_gguf(source) as checkpoint:
        assert isinstance(checkpoint, GGUFCheckpoint)
        tokenizer = rebuild_tokenizer(checkpoint)
    (folder / "tokenizer.json").write_bytes(tokenizer.data)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "chat_template": tokenizer.chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_gguf(folder: Path, file: Path) -> None:
    """Write a folder of safetensors as a GGUF: matrices in BF16, vectors in F32, as llama.cpp's
    own converter does."""
    with open_folder(folder) as checkpoint:
        family = family_of(checkpoint.config)
        spec = family.spec()
        sources = family.weight_sources(list(checkpoint.tensors), checkpoint.format)
        writer = gguf.GGUFWriter(file, family.name)
        writer.add_context_length(family.max_position_embeddings)
        writer.add_embedding_length(spec.hidden_size)
        writer.add_block_count(len(spec.layers))
        writer.add_feed_forward_length(family.intermediate_size)
        writer.add_head_count(family.num_attention_heads)
        writer.add_head_count_kv(family.kv_heads)
        writer.add_key_length(family.attention_head_dim)
        writer.add_value_length(family.attention_head_dim)
        writer.add_layer_norm_rms_eps(family.rms_norm_eps)
        writer.add_rope_freq_base(family.rope_theta)
        writer.add_vocab_size(spec.vocab_size)
        writer.add_tokenizer_model("no_vocab")
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
        for path, shape in spec.weight_shapes():
            width = 2 if len(shape) > 1 else 4
            kind = gguf.GGMLQuantizationType.BF16 if width == 2 else gguf.GGMLQuantizationType.F32
            writer.add_tensor_info(
                family.stored_name(path, "gguf"),
                shape,
                np.dtype(np.float16 if width == 2 else np.float32),
                width * int(np.prod(shape)),
                raw_dtype=kind,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for path, shape in spec.weight_shapes():
            stored = sources[path]
            rows = shape[0] if len(shape) > 1 else 1
            parts = []
            for start in range(0, rows, _ROWS):
                values = checkpoint.read_rows(stored.tensor, start, min(start + _ROWS, rows))
                values = values + np.float32(stored.add)
                parts.append(bfloat16(values) if len(shape) > 1 else values)
            writer.write_tensor_data(np.concatenate(parts))
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    shape = kinds.add_parser("shape", help="random weights in a real model's shape")
    shape.add_argument("shape", choices=SHAPES)
    shape.add_argument("folder", type=Path)
    gemma = kinds.add_parser("gemma3-270m", help="Gemma 3 270M as BF16 safetensors")
    gemma.add_argument("folder", type=Path)
    gemma.add_argument("file", type=Path, nargs="?", help="a GGUF with other weights of it")
    smollm2 = kinds.add_parser("smollm2-135m", help="SmolLM2-135M-Instruct as BF16 safetensors")
    smollm2.add_argument("folder", type=Path)
    smollm2.add_argument("file", type=Path, nargs="?", help="a GGUF with other weights of it")
    other = kinds.add_parser("gguf", help="a folder of safetensors as a BF16 GGUF")
    other.add_argument("folder", type=Path)
    other.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.kind == "shape":
        with tempfile.TemporaryDirectory() as small:
            write_small_tokenizer(Path(small))
            named = TOKENIZERS.get(args.shape, "qwen3-tokenizer")
            beside = Path(small) if named == BYTES else real_model(named)
            make_checkpoint(args.shape, args.folder, beside)
    elif args.kind == "gemma3-270m":
        model = args.file or real_model("gemma3-270m-q4_k_m.gguf")
        widen_gguf(model, GEMMA3_270M, real_model("gemma3-tokenizer"), args.folder)
    elif args.kind == "smollm2-135m":
        model = args.file or real_model("smollm2-135m-instruct-q4_1.gguf")
        with tempfile.TemporaryDirectory() as tokenizer:
            write_tokenizer(model, Path(tokenizer))
            widen_gguf(model, SMOLLM2_135M, Path(tokenizer), args.folder)
    else:
        write_gguf(args.folder, args.file)


if __name__ == "__main__":
    main()
