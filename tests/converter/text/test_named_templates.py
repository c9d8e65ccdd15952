"""Templates by name, wherever a model keeps them: what transformers uses is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.errors import SourceError
from converter.text.named_templates import join_named
from converter.text.template_dialect import in_runtime_dialect
from converter.text.template_renderers import render_as_runtime, render_as_source
from converter.text.tokenizer import load_tokenizer
from tests.small_tokenizers import SMALL_BPE, Folder, from_gguf, write_tokenizer_gguf
from tests.tiny_models import write_tokenizer

PLAIN = "\n  {%- for m in messages %}{{ m.content }}{% endfor %}\n"
TOOLS = "  {{ tools | length }} tools{% for m in messages %}{{ m.content }}{% endfor %}\n\n"
BOTH = join_named({"default": PLAIN, "tool_use": TOOLS}, "x")
NAMED = [{"name": name, "template": text} for name, text in (("default", PLAIN), ("rag", "x"))]


@pytest.mark.parametrize("default", [PLAIN, "x", "\n\n x \n \n", "{% set x = 1 %}\n{{ x }}"])
@pytest.mark.parametrize("tools", [None, [], [{"name": "f"}]])
def test_tools_choose_their_template(default: str, tools: Any) -> None:
    both = join_named({"default": default, "tool_use": TOOLS}, "x")
    assert both is not None
    messages = [{"role": "user", "content": "hi"}]
    got, expected = (
        render_as_source(text, messages, tools=tools, bos_token="", eos_token="")
        for text in (both, TOOLS if tools else default)
    )
    assert got == expected


def template_of(
    folder: Path, config: Any = None, files: dict[str, str] | None = None
) -> str | None:
    """The template of a folder with this in tokenizer_config.json, and these files."""
    write_tokenizer(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": config}))
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return load_tokenizer(Folder(folder)).chat_template


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (None, {}, None),
        ("", {}, None),
        ([], {}, None),
        (PLAIN, {}, PLAIN),
        (NAMED, {}, PLAIN),
        ([*NAMED, {"name": "tool_use", "template": TOOLS}], {}, BOTH),
        ({"default": PLAIN, "tool_use": TOOLS}, {}, BOTH),
        (None, {"chat_template.json": json.dumps({"chat_template": PLAIN})}, PLAIN),
        (None, {"chat_template.json": json.dumps({"chat_template": NAMED})}, PLAIN),
        ("x", {"chat_template.jinja": PLAIN}, PLAIN),
        (
            "x",
            {"chat_template.jinja": PLAIN, "additional_chat_templates/tool_use.jinja": TOOLS},
            BOTH,
        ),
    ],
)
def test_in_a_folder(
    config: Any, files: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    assert template_of(tmp_path, config, files) == expected


@pytest.mark.parametrize(
    ("config", "files", "why"),
    [
        (NAMED[1:], {}, "has chat templates named rag, and none named default"),
        ("x", {"additional_chat_templates/tool_use.jinja": TOOLS}, "named tool_use, and none"),
        (5, {}, "is neither a text nor texts by name"),
        ([PLAIN], {}, "is neither a text nor texts by name"),
        ([{"name": "default"}], {}, "is neither a text nor texts by name"),
        ({"default": 5}, {}, "is neither a text nor texts by name"),
        ([{"name": [], "template": "x"}], {}, "is neither a text nor texts by name"),
    ],
)
def test_what_is_refused(config: Any, files: dict[str, str], why: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=why) as caught:
        template_of(tmp_path, config, files)
    assert "--chat-template FILE|none" in caught.value.fix
    assert load_tokenizer(Folder(tmp_path), chat_template="x").chat_template == "x"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"chat_template": PLAIN}, PLAIN),
        ({"chat_template": PLAIN, "chat_templates": ["rag"], "chat_template.rag": "x"}, PLAIN),
        (
            {
                "chat_template": PLAIN,
                "chat_templates": ["tool_use"],
                "chat_template.tool_use": TOOLS,
            },
            BOTH,
        ),
    ],
)
def test_in_a_gguf(keys: dict[str, Any], expected: str | None, tmp_path: Path) -> None:
    path = write_tokenizer_gguf(tmp_path / "t.gguf", SMALL_BPE | keys)
    assert from_gguf(path).chat_template == expected


def test_a_gguf_without_a_default(tmp_path: Path) -> None:
    keys = {"chat_templates": ["rag"], "chat_template.rag": "x"}
    path = write_tokenizer_gguf(tmp_path / "t.gguf", SMALL_BPE | keys)
    with pytest.raises(SourceError, match="named rag, and none named default"):
        from_gguf(path)


@pytest.mark.parametrize("spelling", [str, lambda text: {"__type": "AddedToken", "content": text}])
@pytest.mark.parametrize(
    "template",
    [
        "\n  {{ cls_token }}{{ pad_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{%- if not cls_token is defined %}{% set cls_token = 'x' %}{% endif %}{{ cls_token }}"
        "{% for m in messages %}{{ m['content'] + sep_token if sep_token else m['content'] }}"
        "{% endfor %}",
    ],
)
def test_a_template_knows_its_tokenizers_tokens(
    tmp_path: Path, spelling: Callable[[str], Any], template: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(tmp_path)
    settings = {"cls_token": spelling("<'cls'>"), "pad_token": spelling("<pad>")}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    source = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    expected = source.apply_chat_template(messages, tokenize=False)
    told = load_tokenizer(Folder(tmp_path)).chat_template
    assert told is not None
    got = render_as_runtime(in_runtime_dialect(told), messages, add_generation_prompt=False)
    assert got == expected
    assert render_as_source(told, messages, bos_token="<s>", eos_token="</s>") == expected
