"""Tokens beside a vocabulary, and vocabularies in parts: tokens are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.text.tokenizer import load_tokenizer
from tests.small_tokenizers import Folder, train_pieces
from tests.tiny_models import write_tokenizer

TEXT = "a <|im_start|>Hello, the quick 12345  fox's\n\n <|im_end|>é<|x|>🙂 [PAD]</s><|endoftext|>"
END = {"eos_token": "<|im_end|>"}
BESIDE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "eos_token": (END, {}),
    "eos_token and pad_token": (END | {"pad_token": "[PAD]"}, {}),
    "an object": (
        {
            "eos_token": {
                "__type": "AddedToken",
                "content": "<|im_end|>",
                "normalized": False,
            }
        },
        {},
    ),
    "additional_special_tokens": ({"additional_special_tokens": ["<|x|>", "<|im_start|>"]}, {}),
    "special_tokens_map.json": ({"bos_token": "<s>"}, {"special_tokens_map.json": END}),
    "added_tokens.json": ({}, {"added_tokens.json": {"<|im_end|>": 301, "<|x|>": 300}}),
    "added_tokens_decoder": (
        {
            "added_tokens_decoder": {
                "261": {"content": "<|im_end|>", "special": True, "rstrip": True},
                "260": {"content": "<|x|>", "special": False},
            }
        },
        {},
    ),
}


def write(folder: Path, settings: dict[str, Any], files: dict[str, Any], model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def compare(folder: Path, rows: int, model_type: str = "llama") -> None:
    from transformers import AutoTokenizer

    source = AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(Folder(folder, {"vocab_size": rows, "model_type": model_type}))
    assert ours.encode(TEXT) == source.encode(TEXT, add_special_tokens=False)
    assert ours.eos_token == source.eos_token
    assert source.eos_token_id is None or source.eos_token_id in ours.eos_token_ids


@pytest.mark.parametrize("case", BESIDE)
def test_tokens_that_a_tokenizer_json_lacks_are_added(tmp_path: Path, case: str) -> None:
    settings, files = BESIDE[case]
    write_tokenizer(tmp_path)
    write(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast"} | settings, files, "llama")
    compare(tmp_path, 320)


@pytest.mark.parametrize("rows", [258, 259])
def test_an_end_token_that_is_added_needs_a_row(tmp_path: Path, rows: int) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path, END, {}, "llama")
    folder = Folder(tmp_path, {"vocab_size": rows})
    if rows == 259:
        assert load_tokenizer(folder).eos_token_ids == (258,)
        return
    with pytest.raises(UnsupportedError) as caught:
        load_tokenizer(folder)
    assert caught.value.why == (
        "eos_token '<|im_end|>' is not in the tokenizer, and the embedding of 258 rows has none "
        "for it"
    )


# ---- vocab.json and merges.txt ------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Hello there 12345 12345", "the quick fox's"] * 5, trainer)
    tokenizer.model.save(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("case", BESIDE)
@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [
        ("llama", "GPT2Tokenizer"),
        ("llama", "GPT2TokenizerFast"),
        ("llama", "Qwen2Tokenizer"),
        ("llama", "CodeGenTokenizer"),
        ("qwen2", "Qwen2TokenizerFast"),
        ("qwen2", "GPT2Tokenizer"),
        ("qwen2", None),
        ("qwen3_moe", None),
    ],
)
def test_a_vocabulary_in_parts(
    parts: Path, model_type: str, tokenizer_class: str | None, case: str
) -> None:
    settings, files = BESIDE[case]
    settings = {"eos_token": "<|endoftext|>"} | settings
    if tokenizer_class:
        settings["tokenizer_class"] = tokenizer_class
    if "special_tokens_map.json" in files:
        del settings["eos_token"]
    write(parts, settings, files, model_type)
    compare(parts, 320, model_type)


REFUSED = [
    ({"tokenizer_class": "BartTokenizer"}, {}, "'BartTokenizer' does not say how its text is cut"),
    ({}, {}, "tokenizer_class None does not say"),
    ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, {}, "puts a blank before"),
    ({"tokenizer_class": "GPT2Tokenizer"}, {"vocab.json": {"a": 1}}, "from 0 up"),
    ({"tokenizer_class": "GPT2Tokenizer"}, {"vocab.json": {"a": "0"}}, "from 0 up"),
    ({"tokenizer_class": "GPT2Tokenizer"}, {"vocab.json": {"a": 0}}, "not of tokens"),
    ({"tokenizer_class": "GPT2Tokenizer"}, {"vocab.json": [1]}, "is not a JSON object"),
]


@pytest.mark.parametrize(("settings", "files", "why"), REFUSED)
def test_a_vocabulary_in_parts_that_is_refused(
    parts: Path, settings: dict[str, Any], files: dict[str, Any], why: str
) -> None:
    write(parts, settings, files, "llama")
    with pytest.raises(LiteRTLMError, match=why):
        load_tokenizer(Folder(parts, {"model_type": "llama", "vocab_size": 320}))


def test_half_a_vocabulary_is_none(parts: Path) -> None:
    (parts / "merges.txt").unlink()
    with pytest.raises(SourceError, match=r"looked for tokenizer\.json"):
        load_tokenizer(Folder(parts))


# ---- Unigram ------------------------------------------------------------------------------------


def unigram(folder: Path, **settings: Any) -> Any:
    pieces = train_pieces(model_type="unigram")
    (folder / "tokenizer.model").write_bytes(pieces.SerializeToString())
    write(folder, {"bos_token": "<s>", "eos_token": "</s>"} | settings, {}, "llama")
    return Folder(folder, {"vocab_size": 400})


def test_a_unigram_model_of_a_base_model_is_read(tmp_path: Path) -> None:
    assert load_tokenizer(unigram(tmp_path)).kind == "SP_Tokenizer"


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"eos_token": "<|im_end|>"}, r"the tokens <\|im_end\|> beside it"),
        ({"chat_template": "{{ bos_token }}{{ messages[0].content }}</s>"}, "a chat template"),
    ],
)
def test_a_unigram_model_is_refused_where_it_would_be_read_wrongly(
    tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"Unigram model, in which {what} cannot be read"):
        load_tokenizer(unigram(tmp_path, **settings))
