"""Special tokens that a GGUF says it does not have: -1, often as a number without a sign."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import SourceError
from tests.small_tokenizers import SMALL_BPE, SMALL_PIECES, from_gguf, write_tokenizer_gguf

NONE = 0xFFFFFFFF


@pytest.mark.parametrize("role", ["bos", "eos", "padding", "unknown", "eot", "eom", "seperator"])
@pytest.mark.parametrize("tokenizer", [SMALL_BPE, SMALL_PIECES], ids=["bpe", "sentencepiece"])
def test_minus_one_is_none(tmp_path: Path, tokenizer: dict[str, object], role: str) -> None:
    plain = from_gguf(write_tokenizer_gguf(tmp_path / "a.gguf", tokenizer))
    keys = {**tokenizer, f"ggml.{role}_token_id": NONE, "ggml.add_bos_token": True}
    found = from_gguf(write_tokenizer_gguf(tmp_path / "b.gguf", keys))
    if role == "bos":
        assert (found.bos_token_id, found.bos_token, found.adds_bos) == (None, None, False)
    else:
        assert found.bos_token_id == plain.bos_token_id
    if role == "eos":
        assert found.eos_token is None
    else:
        assert found.eos_token_ids == plain.eos_token_ids
    assert found.encode("ab") == plain.encode("ab")


@pytest.mark.parametrize("token_id", [4000, NONE - 1])
def test_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path, token_id: int) -> None:
    keys = {**SMALL_BPE, "ggml.eos_token_id": token_id}
    with pytest.raises(SourceError, match=f"eos_token_id' is {token_id}, not a token's id"):
        from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys))


def test_ollama_lists_the_ends_of_a_text(tmp_path: Path) -> None:
    keys = {**SMALL_BPE, "ggml.eos_token_id": 259, "ggml.eos_token_ids": [259, 257, 4000]}
    tokenizer = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys))
    assert tokenizer.eos_token_ids == (257, 259)
    assert tokenizer.eos_token == "<|im_end|>"
