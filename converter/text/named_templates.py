"""Names: of chat templates, as a model may have one for tools beside the one for all else, and of
the tokens that a template asks for."""

from __future__ import annotations

from typing import Any

from converter.errors import SourceError
from converter.text.template_renderers import literal

DEFAULT, TOOL_USE = "default", "tool_use"
# What transformers tells a template of its tokenizer, beside `bos_token` and `eos_token`.
NAMED_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def chat_template_of(value: Any, where: str) -> str | None:
    """The template in a config's `chat_template`: text, a dict by name, or a list of
    `{"name": ..., "template": ...}`; None where there is none.

    Raises:
        SourceError: it is something else, or none of the names is `default`.
    """
    if not value:
        return None
    if isinstance(value, str):
        return value
    try:
        named = value if isinstance(value, dict) else {e["name"]: e["template"] for e in value}
    except (TypeError, KeyError):
        named = {"": None}
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise SourceError(
            where,
            "chat_template is neither a text nor texts by name",
            "correct it, or choose one with --chat-template FILE|none",
        )
    return join_named(named, where)


def join_named(named: dict[str, str], where: str) -> str | None:
    """One template that does what transformers does with several: `tool_use` where there are tools,
    else `default`. Other names are used by those who ask for them.

    Raises:
        SourceError: none is `default`.
    """
    if not named:
        return None
    if DEFAULT not in named:
        raise SourceError(
            where,
            f"has chat templates named {', '.join(sorted(named))}, and none named default",
            "choose one with --chat-template FILE|none",
        )
    if TOOL_USE not in named:
        return named[DEFAULT]
    # jinja2 drops the newline behind a tag and the one at a template's end, and spaces before a tag
    with_tools, without = (named[name].removesuffix("\n") for name in (TOOL_USE, DEFAULT))
    return f"{{% if tools %}}\n{with_tools}{{%+ else %}}\n{without}{{%+ endif %}}"


def with_named_tokens(template: str, tokens: dict[str, str | None]) -> str:
    """The template, told of those of its tokenizer's tokens that it asks for."""
    known = {name: text for name in NAMED_TOKENS if name in template and (text := tokens.get(name))}
    # jinja2 drops the newline behind a tag
    return "".join(f"{{% set {k} = {literal(v)} %}}\n" for k, v in known.items()) + template
