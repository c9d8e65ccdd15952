"""Proves that a chat template renders in the runtime as it does for the source model.

The runtime renders with minijinja, hands `content` over as a list of parts, leaves `eos_token` and
`bos_token` empty, and feeds each new turn as what it adds to the text of the history. Many
published templates fail one of these, some silently. So nothing is believed: an ordered list of
candidates is rendered as the runtime would, over a fixed set of conversations, and compared with
what the source's own template gives in jinja2. The first candidate that agrees everywhere is used.

docs/chat-templates.md says how each fact about the renderer was seen.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.errors import UnsupportedError
from converter.text.template_renderers import (
    PROOF_TIME,
    Message,
    OutOfFuelError,
    TemplateFailureError,
    in_code,
    literal,
    none_means_none,
    render_as_runtime,
    render_as_source,
)

FAMILIES = Path(__file__).parents[1] / "families"
FAMILY_TEMPLATES: dict[str, tuple[str, ...]] = {
    "qwen3": ("qwen3.jinja", "chatml.jinja"),
    "qwen2": ("chatml.jinja", "deepseek_r1.jinja"),
    "llama": ("chatml.jinja", "llama3.jinja", "zephyr.jinja", "deepseek_r1.jinja"),
    "gemma3": ("gemma3.jinja",),
}


@dataclass(frozen=True)
class Candidate:
    name: str
    text: str


@dataclass(frozen=True)
class Rejection:
    candidate: str
    reason: str


@dataclass(frozen=True)
class TemplateReport:
    """The chosen template and what the proof showed about it."""

    chosen: str
    template: str
    rejected: tuple[Rejection, ...] = ()
    renders_compared: int = 0
    # The source begins with its bos token and the runtime's render does not.
    start_token_needed: bool = False
    thinking: bool = False  # enable_thinking changes the prompt
    tools: bool = False  # tools, tool calls and tool results render as in the source
    prints_date: bool = False  # the runtime fills in today's date at each turn
    refused: tuple[str, ...] = ()  # conversations that the source itself refuses
    exact_history: bool = True  # what the runtime feeds over several turns is the source's text
    after_assistant: str = ""  # what the source writes after an assistant's text
    source_prompt: str = ""  # one prompt as the source renders it, bos included
    runtime_prompt: str = ""  # the same prompt as the runtime renders it
    source_template: str | None = field(default=None, repr=False)


# --- What is rendered -------------------------------------------------------------------------

_ODD = '"It\'s" \\n {{ x }} {% if %} <b>&amp;</b> \u00e9\u4f60\U0001f600\n\ttab'


def _say(role: str, text: str) -> Message:
    return {"role": role, "content": text}


_TURNS = [
    _say("user", "What is in the box?"),
    _say("assistant", "A cat."),
    _say("user", "Alive?"),
    _say("assistant", "Look, and see."),
    _say("user", _ODD),
]
_SYSTEM = _say("system", "You answer briefly.")
CONVERSATIONS: dict[str, list[Message]] = {
    "one user message": _TURNS[:1],
    "odd characters": _TURNS[4:],
    "system and user": [_SYSTEM, *_TURNS[:1]],
    "three turns": _TURNS,
    "system and three turns": [_SYSTEM, *_TURNS],
}
# The runtime moves thoughts out of the history, but only where it knows the model's channel; the
# prefix rule must hold where it does not. Sources cut old thoughts, so the text is not compared.
_THOUGHTS: list[Message] = [
    *_TURNS[:1],
    _say("assistant", "<think>\nIt meows.\n</think>\n\nA cat."),
    *_TURNS[2:],
]
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "open_box",
            "description": "Opens a box.",
            "parameters": {"type": "object", "properties": {"box": {"type": "string"}}},
        },
    }
]
_CALL = {"type": "function", "function": {"name": "open_box", "arguments": {"box": "left"}}}
_TOOL_TURNS: list[Message] = [
    _say("user", "Open the left box."),
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "name": "open_box", "content": "a cat"},
]


def as_parts(messages: list[Message]) -> list[Message]:
    """Messages as the runtime hands them over: content is a list of typed parts.

    A message that only calls tools has no content at all.
    """

    def typed(message: Message) -> Message:
        if message["role"] == "tool":
            name = message.get("name", "")
            part = {"type": "tool_response", "name": name, "response": message["content"]}
        elif "tool_calls" in message:
            return {key: value for key, value in message.items() if key != "content"}
        else:
            part = {"type": "text", "text": message["content"]}
        return message | {"content": [part]}

    return [typed(message) for message in messages]


@dataclass(frozen=True)
class _Case:
    name: str
    messages: list[Message]
    extra: dict[str, Any]
    expected: str


@dataclass(frozen=True)
class _Reference:
    """What the source renders, and what it refuses to render."""

    bos: str
    cases: list[_Case]
    tool_case: _Case | None
    refused: tuple[str, ...]


def _render_reference(source: str, bos: str, eos: str) -> _Reference:
    """Render every conversation with the source's template."""

    def render(messages: list[Message], extra: dict[str, Any], tools: Any = None) -> str:
        tokens = {"bos_token": bos, "eos_token": eos}
        try:
            return render_as_source(source, messages, tools=tools, extra=extra, **tokens)
        except OutOfFuelError:
            raise
        except TemplateFailureError:  # some templates take typed parts only
            return render_as_source(source, as_parts(messages), tools=tools, extra=extra, **tokens)

    settings: list[dict[str, Any]] = [{}]
    if "enable_thinking" in source:
        settings += [{"enable_thinking": True}, {"enable_thinking": False}]
    cases, refused = [], []
    for name, messages in CONVERSATIONS.items():
        for extra in settings:
            label = name + "".join(f", {k} {v}" for k, v in extra.items())
            try:
                cases.append(_Case(label, messages, extra, render(messages, extra)))
            except OutOfFuelError:
                raise
            except TemplateFailureError as error:
                refused.append(f"{label}: {error}")
    tool_case = None
    if "tools" in source:
        with contextlib.suppress(TemplateFailureError):
            tool_case = _Case("tools", _TOOL_TURNS, {}, render(_TOOL_TURNS, {}, _TOOLS))
    return _Reference(bos, cases, tool_case, tuple(refused))


# --- The candidates ---------------------------------------------------------------------------


def _set_token(name: str, token: str) -> str:
    return f"{{%- set {name} = {literal(token)} -%}}"


def _candidates(source: str, family: str, bos: str, eos: str) -> Iterator[Candidate]:
    """The source's template, the same made to fit the runtime, then the family's own."""
    yield Candidate("source", source)
    flatten = (FAMILIES / "flatten.jinja").read_text(encoding="utf-8").strip()
    # The closing tag of the prelude must not eat the whitespace that the source begins with.
    flatten = flatten.removesuffix("-%}") + "%}\n"
    # jinja2 drops the newline that ends a template, the runtime prints it.
    adapted = in_code(source.removesuffix("\n"), none_means_none)
    eos_line = _set_token("eos_token", eos) if "eos_token" in source else ""
    yield Candidate("adapted source", eos_line + flatten + adapted)
    if bos and "bos_token" in source:
        # For templates that write bos in every turn: the text carries all of them.
        lines = eos_line + _set_token("bos_token", bos)
        yield Candidate("adapted source with its bos", lines + flatten + adapted)
    for file in FAMILY_TEMPLATES.get(family, ()):
        text = (FAMILIES / file).read_text(encoding="utf-8")
        tokens = _set_token("eos_token", eos) if "eos_token" in text else ""
        yield Candidate(file, tokens + text)


# --- The proof --------------------------------------------------------------------------------


def _difference(got: str, expected: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), None)  # noqa: B905
    if at is None:
        at = min(len(got), len(expected))
    start = max(at - 12, 0)
    return f"renders {got[start : at + 28]!r} where the source has {expected[start : at + 28]!r}"


def _check_prefixes(template: str, name: str, messages: list[Message], extra: Any) -> None:
    """The runtime feeds new[len(old):] and fails where old is not how new begins."""

    def render(count: int, prompt: bool) -> str:
        return render_as_runtime(
            template, as_parts(messages[:count]), add_generation_prompt=prompt, extra=extra
        )

    first = 2 if messages[0]["role"] == "system" else 1
    for count in range(first, len(messages)):
        history = render(count, False)
        asks = messages[count]["role"] == "user"
        for prompt in {asks, False}:
            longer = render(count + 1, prompt)
            if not longer.startswith(history):
                raise TemplateFailureError(
                    f"{name}: the history of {count} messages is not how the next turn begins: "
                    + _difference(longer, history).replace("the source", "the history")
                )


def _prove(template: str, reference: _Reference) -> tuple[int, bool]:
    """Number of renders compared, and whether all of them lack the source's leading bos."""
    if "is_appending_to_prefill" in template:
        raise TemplateFailureError(
            "it asks for the runtime's single-turn mode, which is not proved"
        )
    compared = 0
    lacks_bos: set[bool] = set()
    for case in reference.cases:
        for form in (case.messages, as_parts(case.messages)):
            try:
                got = render_as_runtime(
                    template, form, add_generation_prompt=True, extra=case.extra
                )
            except TemplateFailureError as error:
                raise TemplateFailureError(f"{case.name}: {error}") from error
            compared += 1
            if got == case.expected:
                lacks_bos.add(False)
            elif reference.bos and reference.bos + got == case.expected:
                lacks_bos.add(True)
            else:
                expected = case.expected
                if not got.startswith(reference.bos):  # that alone would not be a fault
                    expected = expected.removeprefix(reference.bos)
                raise TemplateFailureError(f"{case.name}: {_difference(got, expected)}")
        _check_prefixes(template, case.name, case.messages, case.extra)
    if len(lacks_bos) > 1:
        raise TemplateFailureError("it begins with the bos token in some conversations only")
    _check_prefixes(template, "thoughts in the history", _THOUGHTS, {})
    parts = [{"type": "text", "text": text} for text in ("first part", "second part")]
    both = render_as_runtime(
        template, [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    if not re.search("first part.*second part", both, re.DOTALL):
        raise TemplateFailureError("two parts in one message: it drops one of them")
    return compared, lacks_bos == {True}


def _proves_tools(template: str, reference: _Reference, bos: str) -> bool:
    case = reference.tool_case
    if case is None:
        return False
    try:
        for form in (case.messages, as_parts(case.messages)):
            got = render_as_runtime(template, form, add_generation_prompt=True, tools=_TOOLS)
            if bos + got != case.expected:
                return False
    except TemplateFailureError:
        return False
    return True


def _hold_back(template: str, tail: str) -> str:
    """Leave `tail` off a history that ends in an assistant's turn, so that the next turn begins
    with it.

    The runtime has fed the reply up to the token that ends it, and takes the rest of the turn for
    fed as well: the newline after <|im_end|> would be missing from every conversation.
    """
    return (
        "{%- set at_end = (messages | last).role == 'assistant' and not add_generation_prompt -%}"
        f"{{% set rendered %}}\n{template}{{%+ endset %}}"
        f"{{{{- rendered | rstrip({literal(tail)}) if at_end else rendered -}}}}"
    )


def _fed_text(template: str, messages: list[Message], turn_end: str) -> str:
    """Everything that is in the runtime's KV cache when it answers the last message."""
    fed, history = "", ""
    for count, message in enumerate(messages, start=1):
        parts = as_parts(messages[:count])
        if message["role"] == "user":
            prompt = render_as_runtime(template, parts, add_generation_prompt=True)
            fed += prompt[len(history) :]
        elif message["role"] == "assistant":
            fed += message["content"] + turn_end  # generated
            history = render_as_runtime(template, parts, add_generation_prompt=False)
    return fed


def _report(
    source: str | None,
    candidate: Candidate,
    reference: _Reference,
    rejected: tuple[Rejection, ...],
    compared: int,
    lacks_bos: bool,
) -> TemplateReport:
    """Finish the candidate that passed, and see what else it shows when it is rendered."""
    template = candidate.text

    def render(messages: list[Message], prompt: bool = True, **settings: Any) -> str:
        return render_as_runtime(
            template, as_parts(messages), add_generation_prompt=prompt, **settings
        )

    history = render(_TURNS[:2], prompt=False)
    after_assistant = history.rpartition(_TURNS[1]["content"])[2]
    turn_end = after_assistant.rstrip()
    if turn_end and turn_end != after_assistant:
        held = _hold_back(template, after_assistant[len(turn_end) :])
        with contextlib.suppress(TemplateFailureError):
            _prove(held, reference)
            template = held

    bos = reference.bos if lacks_bos else ""
    longest = [case for case in reference.cases if not case.extra][-1]
    case = reference.cases[0]
    on, off = (render(case.messages, extra={"enable_thinking": value}) for value in (True, False))
    prompt = render(case.messages)
    later = PROOF_TIME + datetime.timedelta(days=400)
    return TemplateReport(
        chosen=candidate.name,
        template=template,
        rejected=rejected,
        renders_compared=compared,
        start_token_needed=lacks_bos,
        thinking=on != off,
        tools=_proves_tools(template, reference, bos),
        prints_date=prompt != render(case.messages, now=later),
        refused=reference.refused,
        exact_history=bos + _fed_text(template, longest.messages, turn_end) == longest.expected,
        after_assistant=after_assistant,
        source_prompt=case.expected,
        runtime_prompt=prompt,
        source_template=source,
    )


def _completion_report() -> TemplateReport:
    """The template of base models, held to printing the messages' text and nothing else."""
    candidate = Candidate("completion", (FAMILIES / "completion.jinja").read_text("utf-8"))
    cases = [
        _Case(name, messages, {}, "".join(message["content"] for message in messages))
        for name, messages in CONVERSATIONS.items()
    ]
    reference = _Reference("", cases, None, ())
    compared, lacks_bos = _prove(candidate.text, reference)
    return _report(None, candidate, reference, (), compared, lacks_bos)


def _refuse_endless(source: str) -> None:
    """minijinja counts its steps and jinja2 does not, so minijinja goes first."""
    for messages in CONVERSATIONS.values():
        try:
            render_as_runtime(source, messages, add_generation_prompt=True)
        except OutOfFuelError:
            raise
        except TemplateFailureError:
            continue  # the proof will say so


def choose_template(
    source: str | None, *, family: str, bos_token: str | None, eos_token: str | None
) -> TemplateReport:
    """The first candidate that renders in the runtime as the source does in transformers.

    Without a source template the model is a base model, and gets the pass-through template.

    Raises:
        UnsupportedError: no candidate passes; the message says why each one failed.
    """
    if source is None or not source.strip():
        return _completion_report()
    bos, eos = bos_token or "", eos_token or ""
    try:
        _refuse_endless(source)
        reference = _render_reference(source, bos, eos)
    except OutOfFuelError as error:
        raise _unsupported(family, str(error)) from error
    if not reference.cases or reference.cases[0].messages != _TURNS[:1]:
        raise _unsupported(family, f"it does not render {reference.refused[0]}")
    rejected: list[Rejection] = []
    for candidate in _candidates(source, family, bos, eos):
        try:
            compared, lacks_bos = _prove(candidate.text, reference)
        except TemplateFailureError as error:
            rejected.append(Rejection(candidate.name, str(error)))
            continue
        return _report(source, candidate, reference, tuple(rejected), compared, lacks_bos)
    reasons = "; ".join(f"{rejection.candidate}: {rejection.reason}" for rejection in rejected)
    raise _unsupported(family, f"no candidate renders in the runtime as the source does: {reasons}")


def _unsupported(family: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{family}: chat template", why, "correct chat_template in the source folder"
    )
