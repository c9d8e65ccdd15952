"""What the source's template makes of fixed conversations, which a candidate must make too."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from converter.text.template_renderers import (
    Message,
    OutOfFuelError,
    TemplateFailureError,
    render_as_source,
)

_ODD = '"It\'s" \\n {{ x }} {% if %} <b>&amp;</b> \u00e9\u4f60\U0001f600\n\ttab'


def _say(role: str, text: str) -> Message:
    return {"role": role, "content": text}


TURNS = [
    _say("user", "What is in the box?"),
    _say("assistant", "A cat."),
    _say("user", "Alive?"),
    _say("assistant", "Look, and see."),
    _say("user", _ODD),
]
_SYSTEM = _say("system", "You answer briefly.")
CONVERSATIONS: dict[str, list[Message]] = {
    "one user message": TURNS[:1],
    "odd characters": TURNS[4:],
    "system and user": [_SYSTEM, *TURNS[:1]],
    "three turns": TURNS,
    "system and three turns": [_SYSTEM, *TURNS],
}
# The case of a source that wants them.
TRANSLATION = "three turns, with languages"
_THOUGHT = "<think>\nIt meows.\n</think>"


def answers_after(before: str, messages: list[Message]) -> list[Message]:
    """The messages, with something before every answer."""
    return [
        message | {"content": before + message["content"]}
        if message["role"] == "assistant"
        else message
        for message in messages
    ]


# The runtime moves thoughts out of the history, but only where it knows the model's channel; the
# prefix rule must hold where it does not.
THOUGHTS = answers_after(f"{_THOUGHT}\n\n", TURNS)
TOOLS = [
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
TOOL_TURNS: list[Message] = [
    _say("user", "Open the left box."),
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "name": "open_box", "content": "a cat"},
]
_AS_DATA = re.compile("""['"]type['"]: ['"]tool_response['"]""")
AFTER_TOOLS = [*TOOL_TURNS, _say("assistant", "A cat is in it."), _say("user", "Close it.")]


def wants_languages(source: str) -> bool:
    """Whether a template is TranslateGemma's, by its marks."""
    return "source_lang_code" in source and "target_lang_code" in source


def with_languages(messages: list[Message]) -> list[Message]:
    """The messages, with a translation's two languages in the part of every question."""
    languages = {"source_lang_code": "en", "target_lang_code": "de_DE"}
    return [
        message | {"content": [{"type": "text", "text": message["content"], **languages}]}
        if message["role"] == "user"
        else message
        for message in messages
    ]


def as_parts(messages: list[Message]) -> list[Message]:
    """Messages as the runtime hands them over: content is a list of typed parts.

    A message that only calls tools has no content at all.
    """

    def typed(message: Message) -> Message:
        if isinstance(message.get("content", []), list):
            return message
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
class Case:
    name: str
    messages: list[Message]
    extra: dict[str, Any]
    expected: str


@dataclass(frozen=True)
class Reference:
    """What the source renders, and what it refuses to render.

    Attributes:
        thoughts: the last of `cases` without settings, with thoughts in its answers; None where
            the source knows none.
        trims_answers: the source drops the newlines between a thought and the answer.
    """

    bos: str
    cases: list[Case]
    tool_case: Case | None
    refused: tuple[str, ...]
    thoughts: Case | None = None
    trims_answers: bool = False

    @property
    def renders_a_chat(self) -> bool:
        """Whether it renders a user's message, and a translation if it was completed for that."""
        return (
            bool(self.cases)
            and self.cases[0].messages == TURNS[:1]
            and not any(refusal.startswith(TRANSLATION) for refusal in self.refused)
        )


def render_reference(source: str, bos: str, eos: str, translator: str = "") -> Reference:
    """Render every conversation with the source's template.

    Args:
        translator: the template of which `source` is a completion; it says what a translation is.
    """

    def render(
        messages: list[Message], extra: dict[str, Any], tools: Any = None, template: str = source
    ) -> str:
        def with_form(form: list[Message]) -> str:
            tokens = {"bos_token": bos, "eos_token": eos}
            return render_as_source(template, form, tools=tools, extra=extra, **tokens)

        try:
            text = with_form(messages)
        except OutOfFuelError:
            raise
        except TemplateFailureError:  # some templates take typed parts only
            return with_form(as_parts(messages))
        said = as_parts(messages)[-1]["content"][0].get("text", "").strip()
        if said not in text:  # and some print nothing of anything else
            with contextlib.suppress(TemplateFailureError):
                typed = with_form(as_parts(messages))
                return typed if said in typed else text
        return text

    settings: list[dict[str, Any]] = [{}]
    if "enable_thinking" in source:
        settings += [{"enable_thinking": True}, {"enable_thinking": False}]
    conversations = [(name, messages, source) for name, messages in CONVERSATIONS.items()]
    if translator:
        conversations.append((TRANSLATION, with_languages(TURNS), translator))
    cases, refused = [], []
    for name, messages, template in conversations:
        for extra in settings:
            label = name + "".join(f", {k} {v}" for k, v in extra.items())
            try:
                text = render(messages, extra, template=template)
                cases.append(Case(label, messages, extra, text))
            except OutOfFuelError:
                raise
            except TemplateFailureError as error:
                refused.append(f"{label}: {error}")
    tool_case = None
    if "tools" in source:
        for turns in (TOOL_TURNS, as_parts(TOOL_TURNS)):  # Gemma 4 takes a result as a part only
            with contextlib.suppress(TemplateFailureError):
                text = render(turns, {}, TOOLS)
                # Some print tools, calls or results only, or none of them; or a part as it is.
                printed = "Opens a box." in text and text.count("open_box") > 1 and "a cat" in text
                if printed and not _AS_DATA.search(text):
                    tool_case = Case("tools", turns, {}, text)
                    break
    thoughts, trims_answers = None, False
    plain = [case for case in cases if not case.extra]
    if "think>" in source and plain:
        with contextlib.suppress(TemplateFailureError):
            last = plain[-1]
            with_thoughts = render(answers_after(f"{_THOUGHT}\n\n", last.messages), {})
            thoughts = Case("thoughts", last.messages, {}, with_thoughts)
            trims_answers = with_thoughts == last.expected
    return Reference(bos, cases, tool_case, tuple(refused), thoughts, trims_answers)
