"""What the engine shows of an answer while it comes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.options import ConvertOptions
from runner.engine import Model
from tests.reciting import recite
from tests.small_tokenizers import train_pieces
from tests.tiny_models import make_checkpoint


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
