"""The two renderers: the runtime's, as LiteRT-LM 0.18 uses minijinja, and the source's, as
transformers uses jinja2. Both are bounded, because a template is a stranger's program.

docs/chat-templates.md says how each fact about the runtime's renderer was seen.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

# Honest templates stay far below these.
FUEL = 500_000
MAX_RENDER = 1 << 20
MAX_SECONDS = 5.0

# Any day will do for the comparison; a day below ten also shows padding.
PROOF_TIME = datetime.datetime(2024, 7, 5, 12, 0, tzinfo=datetime.UTC)

Message = dict[str, Any]


class TemplateFailureError(Exception):
    """A template could not be rendered, or rendered the wrong text; the message is one line."""


class OutOfFuelError(TemplateFailureError):
    """The template did not end within its allowance."""


def in_code(template: str, edit: Callable[[str], str]) -> str:
    """Apply `edit` to the template's code only: not to its text, not to its string literals."""
    pieces = _TAG.split(template)
    for i in range(1, len(pieces), 2):
        parts = _STRING.split(pieces[i])
        parts[::2] = [edit(part) for part in parts[::2]]
        pieces[i] = "".join(parts)
    return "".join(pieces)


def without_generation_marks(template: str) -> str:
    """The template with transformers' `generation` blocks, which mark the assistant's text and
    print what they hold, as blocks that jinja2 knows."""
    return _GENERATION.sub(
        lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", template
    )


def literal(value: Any) -> str:
    """A value as an expression, so that it enters as minijinja's own type, not as Python's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


# The runtime rewrites these Python idioms in the template's text before it compiles it, with the
# same expressions in the same order. They are blind to nesting, and so must we be.
_RUNTIME_REWRITES: tuple[tuple[str, str], ...] = (
    (r"\.startswith\((.*?)\)", r" is startingwith \1"),
    (r"\.endswith\((.*?)\)", r" is endingwith \1"),
    (r"\.replace\((.*?),(.*?)\)", r" | replace(\1,\2)"),
    (r"\.split\((.*?)\)\[0\]", r" | split(\1) | first"),
    (r"\.split\((.*?)\)\[-1\]", r" | split(\1) | last"),
    (r"\.split\((.*?)\)", r" | split(\1)"),
    (r"\.join\((.*?)\)", r" | join(\1)"),
    (r"\.lstrip\(\)", " | lstrip"),
    (r"\.lstrip\((.*?)\)", r" | lstrip(\1)"),
    (r"\.rstrip\(\)", " | rstrip"),
    (r"\.rstrip\((.*?)\)", r" | rstrip(\1)"),
    (r"\.strip\(\)", " | trim"),
    (r"\.strip\((.*?)\)", r" | trim(\1)"),
    (r"\.items\(\)", " | items"),
    (r"{% generation %}", ""),
    (r"{% endgeneration %}", ""),
)

# The PyPI binding adds these to minijinja; the runtime does not have them.
_ADDED_FILTERS = (
    "dateformat", "datetimeformat", "timeformat", "filesizeformat", "pluralize", "random",
    "striptags", "truncate", "wordcount", "wordwrap",
)  # fmt: skip
_ADDED_GLOBALS = ("cycler", "joiner", "lipsum", "now", "randrange")
_LOOP_CONTROL = re.compile(r"{%[-+]?\s*(break|continue)\b")
_IS_NOT_NONE = re.compile(r"\bis\s+not\s+none\b")
_IS_NONE = re.compile(r"\bis\s+none\b")
_GENERATION = re.compile(r"({%[-+]?\s*)(end)?generation(\s*[-+]?%})")
_TAG = re.compile(r"({[{%].*?[%}]})", re.DOTALL)
_STRING = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""", re.DOTALL)


def _none_means_undefined(code: str) -> str:
    """The runtime replaces the test `none` by one that is true of undefined values only."""
    return _IS_NONE.sub("is undefined", _IS_NOT_NONE.sub("is not undefined", code))


def _as_text(value: Any) -> str:
    """A filter's operand. An undefined value arrives as None, and counts as empty."""
    return "" if value is None else str(value)


def _runtime_tojson(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _runtime_environment(now: datetime.datetime) -> Any:
    import minijinja

    def raise_exception(message: str) -> str:
        raise ValueError(message)

    environment = minijinja.Environment(
        fuel=FUEL,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        pycompat=False,
        auto_escape_callback=lambda name: False,
        filters={
            "tojson": _runtime_tojson,
            "lstrip": lambda value, *chars: _as_text(value).lstrip(*chars),
            "rstrip": lambda value, *chars: _as_text(value).rstrip(*chars),
        },
        globals={"strftime_now": now.strftime, "raise_exception": raise_exception},
    )
    for name in _ADDED_FILTERS:
        environment.remove_filter(name)
    for name in _ADDED_GLOBALS:
        environment.remove_global(name)
    return environment


@lru_cache(maxsize=8)  # a proof renders each candidate dozens of times
def _as_the_runtime_reads(template: str) -> str:
    """The template after the rewrites that the runtime makes before it renders."""
    if control := _LOOP_CONTROL.search(template):
        raise TemplateFailureError(f"the runtime's renderer has no {{% {control[1]} %}}")
    for pattern, replacement in _RUNTIME_REWRITES:
        template = re.sub(pattern, replacement, template)
    return in_code(template, _none_means_undefined)


def render_as_runtime(
    template: str,
    messages: list[Message],
    *,
    add_generation_prompt: bool,
    tools: list[Any] | None = None,
    extra: dict[str, Any] | None = None,
    now: datetime.datetime = PROOF_TIME,
) -> str:
    """Render as LiteRT-LM 0.18 does. Raises TemplateFailureError with a one-line reason."""
    template = _as_the_runtime_reads(template)
    context: dict[str, Any] = {"messages": messages, "bos_token": "", "eos_token": ""}
    context |= {"add_generation_prompt": add_generation_prompt, "now": int(now.timestamp())}
    if tools is not None:
        context["tools"] = tools
    context |= extra or {}
    # Python objects would keep their methods (.get works on a dict), so the context is written
    # into the template; trim_blocks takes the newline away again.
    prelude = "".join(f"{{% set {name} = {literal(v)} %}}" for name, v in context.items()) + "\n"
    try:
        text = _runtime_environment(now).render_str(prelude + template)
    except Exception as error:  # minijinja's own, or one that a function above raised
        reason = str(error).partition("\n")[0] or repr(error)
        if "out of fuel" in reason:
            raise OutOfFuelError("it does not end") from error
        raise TemplateFailureError(re.sub(r" \(in .*?:\d+\)", "", reason)) from error
    if len(text) > MAX_RENDER:
        raise OutOfFuelError(f"it writes {len(text)} characters")
    return str(text)


def render_as_source(
    template: str,
    messages: list[Message],
    *,
    bos_token: str,
    eos_token: str,
    tools: list[Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> str:
    """Render a prompt as transformers does, in a sandbox. Raises TemplateFailureError."""
    deadline = time.monotonic() + MAX_SECONDS
    pieces: list[str] = []
    size = 0
    try:
        for piece in _compile_source(template).generate(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=True,
            bos_token=bos_token,
            eos_token=eos_token,
            **(extra or {}),
        ):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_RENDER or time.monotonic() > deadline:
                raise OutOfFuelError("it does not end")
    except OutOfFuelError:
        raise
    except Exception as error:  # whatever a stranger's template provokes is a failure of it
        raise TemplateFailureError(
            str(error).splitlines()[0] if str(error) else repr(error)
        ) from error
    return "".join(pieces)


@lru_cache(maxsize=8)  # compiling takes ten times as long as rendering
def _compile_source(template: str) -> Any:
    """The template as a jinja2 one, in a sandbox with the functions that transformers gives it."""
    import jinja2
    import jinja2.sandbox

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            for operand in (left, right):
                if not isinstance(operand, (int, float)) or abs(operand) > MAX_RENDER:
                    raise jinja2.sandbox.SecurityError(f"{operator} on {operand!r:.40}")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": PROOF_TIME.strftime,
    }
    return environment.from_string(without_generation_marks(template))
