"""Tokenizers as files: transformers reads them, and gets the source's ids and prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.gguf import open_gguf
from converter.errors import UnsupportedError
from converter.text.tokenizer import load_tokenizer
from converter.text.tokenizer_files import class_of, pad_token_id, tokenizer_files
from tests.small_tokenizers import (
    SMALL_BPE,
    SMALL_PIECES,
    Folder,
    train_pieces,
    write_tokenizer_gguf,
)
from tests.tiny_models import write_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
OTHER = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
MESSAGES = [{"role": "user", "content": "ab ab"}]


def read(files: Mapping[str, bytes | Path], folder: Path) -> Any:
    """As ANEMLL's chats do."""
    from transformers import AutoTokenizer

    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content_of(content))
    return AutoTokenizer.from_pretrained(folder, use_fast=False)


def content_of(file: bytes | Path) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else file


def of_folder(folder: Path, chosen: str | None = None) -> dict[str, bytes | Path]:
    checkpoint = Folder(folder)
    return tokenizer_files(checkpoint, load_tokenizer(checkpoint, chat_template=chosen), chosen)


def of_gguf(path: Path, tokenizer: dict[str, Any]) -> dict[str, bytes | Path]:
    with open_gguf(write_tokenizer_gguf(path, tokenizer)) as checkpoint:
        return tokenizer_files(checkpoint, load_tokenizer(checkpoint))


def settings_in(files: Mapping[str, bytes | Path]) -> Any:
    return json.loads(content_of(files["tokenizer_config.json"]))


def template_in(files: Mapping[str, bytes | Path]) -> str | None:
    found: str | None = settings_in(files).get("chat_template")
    return found


def test_a_folders_files_are_copied(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for name in ("special_tokens_map.json", "generation_config.json", "model.json"):
        (tmp_path / name).write_text("{}")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"more": "é"}))

    files = of_folder(tmp_path)

    assert sorted(files) == [
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert files["tokenizer.json"] == tmp_path / "tokenizer.json"
    assert settings_in(files) == settings | {"more": "é"}
    assert class_of(files) == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_the_template_stands_in_tokenizer_config(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_tokenizer(source)
    text = json.dumps({"chat_template": TEMPLATE}) if name.endswith("json") else TEMPLATE
    (source / name).write_text(text)

    files = of_folder(source)

    assert template_in(files) == TEMPLATE
    assert read(files, tmp_path / "out").apply_chat_template(MESSAGES, tokenize=False) == (
        "<s><|user|>ab ab"
    )


@pytest.mark.parametrize(("chosen", "kept"), [(OTHER, OTHER), ("", None)])
def test_a_chosen_template_takes_the_sources_place(
    tmp_path: Path, chosen: str, kept: str | None
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_tokenizer(source)
    (source / "chat_template.jinja").write_text(TEMPLATE)

    files = of_folder(source, chosen)

    assert template_in(files) == kept
    assert read(files, tmp_path / "out").chat_template == kept


def test_a_lone_sentencepiece_model_gets_a_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_pieces().SerializeToString())

    files = of_folder(tmp_path)

    tokenizer = read(files, tmp_path / "out")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("hello there")["input_ids"])
    assert "".join(pieces).replace("<s>", "") == "▁hello▁there"


def test_a_unigram_model_without_a_tokenizer_json_is_refused(tmp_path: Path) -> None:
    model = train_pieces(model_type="unigram")
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())

    with pytest.raises(UnsupportedError, match="it is a Unigram model without"):
        of_folder(tmp_path)


@pytest.mark.parametrize(
    ("small", "user", "words"),
    [
        (SMALL_BPE, "<|im_end|>", ["ab", "Ġab"]),
        (SMALL_PIECES, "<|user|>", ["▁ab", "▁ab"]),
    ],
)
def test_a_gguf_gives_all_that_transformers_needs(
    tmp_path: Path, small: dict[str, Any], user: str, words: list[str]
) -> None:
    template = TEMPLATE.replace("<|user|>", user)
    starts = {"ggml.add_bos_token": True, "ggml.bos_token_id": small.get("ggml.bos_token_id", 1)}
    files = of_gguf(tmp_path / "m.gguf", small | starts | {"chat_template": template})

    tokenizer = read(files, tmp_path / "out")

    bos = small["ggml.tokens"][starts["ggml.bos_token_id"]]
    assert tokenizer.bos_token == bos
    ids = tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == [bos, user, *words]
    # Text without a template gets the start token, as llama.cpp gives it.
    assert tokenizer("ab")["input_ids"][0] == starts["ggml.bos_token_id"]


def test_a_gguf_without_a_template_has_none(tmp_path: Path) -> None:
    files = of_gguf(tmp_path / "m.gguf", SMALL_PIECES)

    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]
    tokenizer = read(files, tmp_path / "out")
    assert tokenizer.chat_template is None
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab")["input_ids"]) == ["<s>", "▁ab"]


def test_a_gguf_that_names_no_end_gets_its_end_of_turn(tmp_path: Path) -> None:
    tokenizer = read(of_gguf(tmp_path / "m.gguf", SMALL_BPE), tmp_path / "out")

    assert tokenizer.eos_token == "<|im_end|>"


def test_the_pad_token_is_the_sources(tmp_path: Path) -> None:
    assert pad_token_id(Folder(tmp_path, {"pad_token_id": None}, {"pad_token_id": 7})) == 7
    assert pad_token_id(Folder(tmp_path, {"pad_token_id": 0}, {"pad_token_id": 7})) == 0
    assert pad_token_id(Folder(tmp_path, {"pad_token_id": -1})) is None
    path = write_tokenizer_gguf(tmp_path / "m.gguf", SMALL_PIECES | {"ggml.padding_token_id": 3})
    with open_gguf(path) as checkpoint:
        assert pad_token_id(checkpoint) == 3
