"""The templates that may go into a bundle: the source's, the same made to fit, the family's own.

Nothing here is believed: `chat_template` proves each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.text.template_dialect import INDENTED_JSON, in_runtime_dialect
from converter.text.template_renderers import (
    Message,
    TemplateFailureError,
    literal,
    render_as_runtime,
)

FAMILIES = Path(__file__).parents[1] / "families"
# A message that no conversation holds: a character for private use, which nothing trims or splits.
_NEXT = "\ue000"


@dataclass(frozen=True)
class Candidate:
    """A template by a name that the user is told.

    Attributes:
        failure: why it could not be made.
        is_familys: it is the family's own, and no form of the source's.
    """

    name: str
    text: str
    failure: str = ""
    is_familys: bool = False


@dataclass(frozen=True)
class Prompt:
    """One prompt as the source renders it.

    Attributes:
        extra: variables beside the messages, such as `enable_thinking`.
    """

    messages: list[Message]
    extra: dict[str, bool]
    expected: str


def candidates(
    source: str,
    families_own: Sequence[str],
    bos: str,
    eos: str,
    trims_answers: bool,
    prompts: list[Prompt],
) -> Iterator[Candidate]:
    """The source's template, the same made to fit the runtime, then the family's own.

    Args:
        families_own: names of files in `families`.
        trims_answers: the source drops the newlines between a thought and the answer.
        prompts: one message under every setting, the first without any, to see what the source's
            prompt ends with.
    """
    yield Candidate("source", source)
    yield from _adapted(source, bos, eos, trims_answers)
    for file in families_own:
        text = _family_file(file)
        tokens = _set("eos_token", eos) if "eos_token" in text else ""
        yield Candidate(file, tokens + text, is_familys=True)
        if opening := _opening(tokens + text, prompts, bos):
            name = f"{file} with the source's opening"
            yield Candidate(name, tokens + text + opening, is_familys=True)


def _adapted(source: str, bos: str, eos: str, trims_answers: bool) -> Iterator[Candidate]:
    name = "adapted source"
    try:
        adapted = in_runtime_dialect(source)
    except TemplateFailureError as error:
        yield Candidate(name, "", str(error))
        return
    if f"{INDENTED_JSON}(" in adapted:
        adapted = _family_file("indented_json.jinja") + adapted
    tokens = _set("eos_token", eos) if "eos_token" in source else ""
    # LFM2.5: what the cache keeps of an answer, the history is to show as long as it lasts.
    tokens += _set("keep_past_thinking", True) if "keep_past_thinking" in source else ""
    trims = _set("trims_answers", True) if trims_answers else ""
    flatten = trims + _family_file("flatten.jinja")
    yield Candidate(name, tokens + flatten + adapted)
    if bos and "bos_token" in source:
        # For templates that write bos in every turn: the text carries all of them.
        tokens += _set("bos_token", bos)
        yield Candidate(f"{name} with its bos", tokens + flatten + adapted)
    # For templates that read the parts of a message themselves.
    yield Candidate(f"{name} with parts", tokens + _family_file("as_parts.jinja") + adapted)


def with_plain_messages(source: str) -> str:
    """TranslateGemma's template, which refuses a message that does not name two languages, with
    Gemma 3's for such messages."""
    template = _family_file("translategemma.jinja")
    for mark, text in (("PUBLISHED", source), ("GEMMA3", _family_file("gemma3.jinja"))):
        template = template.replace(f"{{#- {mark} -#}}", text.rstrip("\n"))
    return template


def _family_file(name: str) -> str:
    return (FAMILIES / name).read_text(encoding="utf-8")


def _set(name: str, value: str | bool) -> str:
    return f"{{%- set {name} = {literal(value)} -%}}\n"


def _opening(template: str, prompts: list[Prompt], bos: str) -> str:
    """Code that ends a prompt as the source does, where that goes on after the template's end:
    with `<think>`, for an answer that begins inside a thought. Empty where it does not."""
    branches, found = "", False
    for prompt in reversed(prompts):  # the one without settings comes last, as `else`
        try:
            begin = render_as_runtime(
                template, prompt.messages, add_generation_prompt=True, extra=prompt.extra
            )
        except TemplateFailureError:
            return ""
        expected = prompt.expected.removeprefix(bos)
        if not expected.startswith(begin):
            return ""
        tests = [f"{key} is defined and {key} == {literal(v)}" for key, v in prompt.extra.items()]
        branches += f"{{%- elif {' and '.join(tests) or 'true'} -%}}\n"
        branches += f"{{{{- {literal(expected[len(begin) :])} -}}}}\n"
        found = found or expected != begin
    return f"{{%- if not add_generation_prompt -%}}\n{branches}{{%- endif -%}}\n" if found else ""


_NEXT_QUESTION = {"role": "user", "content": [{"type": "text", "text": _NEXT}]}
NEXT_RESULT: Message = {
    "role": "tool",
    "content": [{"type": "tool_response", "name": _NEXT, "response": _NEXT}],
}


def before_next(rendered: str) -> str:
    """What stands before the message that no conversation holds."""
    return rendered.partition(_NEXT)[0]


def held_back(template: str, turn_end: str, between: str, calls_tools: bool, call_end: str) -> str:
    """The template, whose history of an answered question ends where the next turn begins.

    The runtime feeds of each turn what it adds to the render of the history. So this render must be
    what the source writes of these messages when another one follows: without the newline after the
    token that ends an answer, which nobody has fed yet, and without what the source writes of the
    last answer alone, such as an empty thought. The next message is thus rendered too, and cut off.

    Args:
        turn_end: what ends an answer; "" where a token does that the template does not write.
        between: all that stands between an answer and the next question.
        calls_tools: an answer that calls tools is followed by a result instead of a question.
        call_end: what ends such an answer; "" where nothing does, and the history ends with it.
    """
    answer, asks = "true", literal(_NEXT_QUESTION)
    border, end = literal(turn_end or between), literal(turn_end)
    if calls_tools and call_end:
        asks = f"{literal(NEXT_RESULT)} if is_call else {asks}"
        border, end = (f"{literal(call_end)} if is_call else {mark}" for mark in (border, end))
    elif calls_tools:
        answer = "not (messages | last).tool_calls"
    return (
        "{%- set is_answered = not add_generation_prompt and messages"
        f" and (messages | last).role == 'assistant' and {answer} -%}}\n"
        "{%- set is_call = is_answered and (messages | last).tool_calls -%}\n"
        f"{{%- set answer_border = {border} -%}}\n"
        f"{{%- set answer_end = {end} -%}}\n"
        f"{{%- set messages = messages + [{asks}] if is_answered else messages -%}}\n"
        f"{{% set rendered %}}\n{template}{{%+ endset %}}\n"
        "{%- if is_answered -%}\n"
        f"{{%- set turns = rendered | split({literal(_NEXT)}) | first"
        " | split(answer_border) | list -%}\n"
        "{{- turns[:-1] | join(answer_border) ~ answer_end -}}\n"
        "{%- else -%}\n{{- rendered -}}\n{%- endif -%}\n"
    )
