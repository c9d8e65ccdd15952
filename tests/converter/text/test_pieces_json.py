"""SentencePiece chat models whose text gets a blank in front: tokens are those of the source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.errors import UnsupportedError
from converter.litertlm.metadata import build_llm_metadata
from converter.text.bundle_tokenizer import BundleTokenizer
from converter.text.template_renderers import render_as_runtime
from converter.text.tokenizer import load_tokenizer
from tests.small_tokenizers import Folder, from_gguf, train_pieces, write_tokenizer_gguf

END = "{% if add_generation_prompt %}[assistant] {% endif %}"
TEMPLATES = {
    "bos once": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{{ eos_token }}{% endfor %}" + END,
    "bos in each turn": "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} "
    "{% elif m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}",
    "system text first": "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "\n\n{% else %}{{ '</s>' if m['role'] == 'user' else '' }}[{{ m['role'] }}] {{ m['content'] }}"
    "{{ eos_token }}{% endif %}{% endfor %}" + END,
    "no bos": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "<s> written out": "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>"
    "{% endfor %}" + END,
}
TURNS = [
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "hi my friend"},
    {"role": "user", "content": "  the quick\n\tfox </s> é 🙂"},
    {"role": "assistant", "content": "it jumps"},
    {"role": "user", "content": "over the lazy dog?"},
]
SYSTEM = {"role": "system", "content": "be brief"}
BASE = "llm_model_type { generic_model {} }"


@pytest.fixture(scope="module")
def model() -> Any:
    return train_pieces()


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Callable[..., Path]:
    def make(template: str | None, added: dict[str, int] | None = None, **settings: Any) -> Path:
        (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
        } | settings
        if template is not None:
            settings["chat_template"] = template
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        if added is not None:
            (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        return tmp_path

    return make


def turns(count: int) -> list[dict[str, str]]:
    """So many turns; an even number begins with a system message."""
    return TURNS[:count] if count % 2 else [SYSTEM, *TURNS[: count - 1]]


def runtime_tokens(tokenizer: BundleTokenizer, count: int) -> list[int]:
    """What the engine reads of a history of `count` messages."""
    message = build_llm_metadata(BASE, tokenizer, 64, "llama").message
    prompt = render_as_runtime(
        message.jinja_prompt_template, turns(count), add_generation_prompt=True
    )
    return [*message.start_token.token_ids.ids, *tokenizer.encode(prompt)]


def source_tokens(count: int, *args: Any, template: str | None = None, **kwargs: Any) -> list[int]:
    from transformers import AutoTokenizer

    source = AutoTokenizer.from_pretrained(*args, **kwargs)
    source.eos_token = "</s>"  # of a small GGUF transformers takes <s> for it
    ids = source.apply_chat_template(
        turns(count), chat_template=template, add_generation_prompt=True, return_dict=False
    )
    return list(ids)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("style", TEMPLATES)
def test_a_lone_model_gives_the_tokens_of_transformers(
    folder: Callable[..., Path], style: str, legacy: bool, count: int
) -> None:
    path = folder(TEMPLATES[style], legacy=legacy)
    assert runtime_tokens(load_tokenizer(Folder(path)), count) == source_tokens(count, path)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("style", TEMPLATES)
def test_what_a_trainer_saved_gives_the_tokens_of_transformers(
    folder: Callable[..., Path], style: str, count: int
) -> None:
    """A tokenizer.json whose blank stands before a text's first word (Metaspace's `first`)."""
    from transformers import AutoTokenizer

    path = folder(TEMPLATES[style], legacy=False)
    AutoTokenizer.from_pretrained(path).save_pretrained(path)
    (path / "tokenizer.model").unlink()
    assert runtime_tokens(load_tokenizer(Folder(path)), count) == source_tokens(count, path)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("style", TEMPLATES)
def test_a_gguf_gives_the_tokens_of_transformers(
    model: Any, tmp_path: Path, style: str, count: int
) -> None:
    keys = {
        "ggml.model": "llama",
        "ggml.tokens": [piece.piece for piece in model.pieces],
        "ggml.token_type": [piece.type for piece in model.pieces],
        "ggml.scores": [piece.score for piece in model.pieces],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
        "ggml.add_bos_token": True,
        "chat_template": TEMPLATES[style],
    }
    path = write_tokenizer_gguf(tmp_path / "t.gguf", keys)
    expected = source_tokens(count, tmp_path, template=TEMPLATES[style], gguf_file="t.gguf")
    assert runtime_tokens(from_gguf(path), count) == expected


def test_tokens_of_added_tokens_json_are_added(folder: Callable[..., Path]) -> None:
    path = folder(None, {"<|im_start|>": 310, "<|im_end|>": 311}, eos_token="<|im_end|>")
    tokenizer = load_tokenizer(Folder(path, {"vocab_size": 312}))
    assert tokenizer.encode("<|im_start|><|im_end|>") == [310, 311]
    assert tokenizer.eos_token_ids == (311,)


def test_a_token_without_a_row_is_left_out(folder: Callable[..., Path]) -> None:
    path = folder(None, {"[PAD]": 310})
    tokenizer = load_tokenizer(Folder(path, {"vocab_size": 310}))
    assert (tokenizer.kind, tokenizer.vocab_size) == ("SP_Tokenizer", 310)


@pytest.mark.parametrize("added", [None, {"<|im_end|>": 310}])
def test_an_end_token_without_a_row(folder: Callable[..., Path], added: Any) -> None:
    path = folder(None, added, eos_token="<|im_end|>")
    assert load_tokenizer(Folder(path, {"vocab_size": 311})).eos_token_ids == (310,)
    with pytest.raises(UnsupportedError) as caught:
        load_tokenizer(Folder(path, {"vocab_size": 310}))
    assert caught.value.why == (
        "eos_token '<|im_end|>' is not in the tokenizer, and the embedding of 310 rows has none "
        "for it"
    )
