"""What the engine shows of an answer while it comes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.options import ConvertOptions
from runner.engine import Model
from tests.small_tokenizers import train_pieces
from tests.tiny_models import make_checkpoint

WEIGHTS = "model.safetensors"


def recite(folder: Path, tokens: list[int]) -> None:
    """Weights of a model that says these tokens, each once, whatever it is asked."""
    weights = {name: np.zeros_like(array) for name, array in load_file(folder / WEIGHTS).items()}
    for name in weights:
        if "norm" in name:
            weights[name] += 1
    table, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    table += np.random.default_rng(0).choice([-1.0, 1.0], table.shape).astype(table.dtype)
    table[:, 0] = 4  # a part that all tokens have leads to the first
    head[tokens[0], 0] = 9
    for before, after in itertools.pairwise(tokens):
        head[after, 1:] = table[before, 1:]
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize("text", ["©\n🙂", "é\t🙂\n✓"])
def test_bytes_of_a_character_that_is_not_whole_hide_no_line_before(
    tmp_path: Path, text: str
) -> None:
    """See `tokenizer_json.with_breaks_apart`."""
    folder = tmp_path / "m"
    make_checkpoint("llama", folder)
    (folder / "tokenizer.json").unlink()
    pieces = train_pieces()
    (folder / "tokenizer.model").write_bytes(pieces.SerializeToString())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    settings["chat_template"] = "{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = {piece.piece: i for i, piece in enumerate(pieces.pieces)}
    tokens = [ids[f"<0x{byte:02X}>"] for byte in text.encode()]
    recite(folder, [*tokens, ids["</s>"]])
    with open_checkpoint(folder) as checkpoint:
        options = ConvertOptions(quantize="fp32", prefill_lengths=(8,), cache_length=256)
        ModelConverter(checkpoint, "m", options).convert(tmp_path / "m.litertlm")
    with Model(tmp_path / "m.litertlm") as model, model.engine.create_conversation() as chat:
        shown = [
            item["text"] for chunk in chat.send_message_async("hi") for item in chunk["content"]
        ]
    assert "".join(shown) == text
