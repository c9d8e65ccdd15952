"""Chat templates by name: a model may have one for tools beside the one for all else."""

from __future__ import annotations

from typing import Any

from converter.errors import SourceError

DEFAULT, TOOL_USE = "default", "tool_use"


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
