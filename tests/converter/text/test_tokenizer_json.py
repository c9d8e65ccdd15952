"""A tokenizer.json taken apart: the same ids, special tokens and rules as the library gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from converter.errors import SourceError
from converter.text.tokenizer_json import TokenizerJson


def _added(text: str, token_id: int, special: bool = True) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": text, "special": special, **flags}


def _file(model: dict[str, Any], added: list[dict[str, Any]], **other: Any) -> bytes:
    return json.dumps({"version": "1.0", "added_tokens": added, "model": model, **other}).encode()


_BPE = {
    "type": "BPE",
    "vocab": {"a": 0, "b": 1, "ab": 2, "abab": 3, "<0x41>": 4},
    "merges": [["a", "b"], ["ab", "ab"]],
}
_UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["ab", -2.0]]}


def _real(data: bytes) -> Tokenizer:
    return Tokenizer.from_buffer(data)


@pytest.mark.parametrize("fixture", ["qwen3_tokenizer", "gemma3_tokenizer"])
def test_real_files(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    data = (folder / "tokenizer.json").read_bytes()
    taken, real = TokenizerJson(data, None, "x"), _real(data)
    assert taken.data == data
    assert taken.ids == real.get_vocab()
    assert taken.vocab_size == max(taken.ids.values()) + 1
    added = real.get_added_tokens_decoder()
    assert taken.special == {token.content: i for i, token in added.items() if token.special}
    text = "Hi, né 日本 🙂"
    for token in added.values():
        ids = taken.outline.encode(text + token.content, add_special_tokens=False).ids
        assert ids[-1] == real.token_to_id(token.content)
    assert taken.outline.get_vocab_size() < 0.2 * real.get_vocab_size()
    assert taken.spelling(text) == "".join(real.encode(text, add_special_tokens=False).tokens)


@pytest.mark.parametrize(
    "added",
    [
        [_added("<s>", 5), _added("</s>", 6)],
        [_added("<s>", 100), _added("</s>", 7)],  # the library gives other ids than are stated
        [_added("ab", 9), _added("</s>", 9)],  # a word of the vocabulary
        [_added("<s>", 5, special=False), _added("<s>", 5)],
    ],
)
@pytest.mark.parametrize("model", [_BPE, _UNIGRAM], ids=["bpe", "unigram"])
def test_added_tokens_are_numbered_as_the_library_does(
    model: dict[str, Any], added: list[dict[str, Any]]
) -> None:
    data = _file(model, added)
    taken, real = TokenizerJson(data, None, "x"), _real(data)
    assert taken.ids == real.get_vocab()
    for token in added:
        text = token["content"]
        assert taken.id(text) == taken.outline.token_to_id(text) == real.token_to_id(text)
        assert taken.text(real.token_to_id(text)) == text


@pytest.mark.parametrize(
    "model",
    [
        _UNIGRAM,
        {**_BPE, "end_of_word_suffix": "</w>"},
        {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    ],
)
def test_a_model_without_plain_letters_is_built_whole(model: dict[str, Any]) -> None:
    data = _file(model, [_added("<s>", 9)])
    assert TokenizerJson(data, None, "x").outline.get_vocab() == _real(data).get_vocab()


def test_the_unknown_token_is_kept() -> None:
    model = {**_BPE, "vocab": {**_BPE["vocab"], "unknown": 5}, "unk_token": "unknown"}
    taken = TokenizerJson(_file(model, []), None, "x")
    assert taken.outline.encode("ax").tokens == ["a", "unknown"]


def test_tokens_beyond_the_embedding_are_taken_out() -> None:
    data = _file(_BPE, [_added("<s>", 5), _added("<image>", 6)], truncation=None)
    taken = TokenizerJson(data, 6, "x")
    assert (taken.id("<s>"), taken.id("<image>"), taken.vocab_size) == (5, None, 6)
    assert taken.special == {"<s>": 5}
    assert _real(taken.data).token_to_id("<image>") is None
    assert taken.outline.token_to_id("<image>") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"model": 1}',
        b'{"model": {"type": "BPE"}}',
        _file({**_BPE, "vocab": {"a": "0"}}, []),
        _file({**_BPE, "vocab": ["a"]}, []),
        _file(_BPE, [{}]),
        _file(_BPE, [{"content": []}]),
        _file(_BPE, [{"content": "<s>", "id": 5}]),
        _file({**_BPE, "type": "nonsense"}, []),
        _file({"type": "nonsense"}, []),
    ],
)
def test_damaged_files(data: bytes) -> None:
    with pytest.raises(SourceError, match="the tokenizer does not load: "):
        TokenizerJson(data, None, "x")
