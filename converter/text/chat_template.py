"""Proves that a chat template renders in the runtime as it does for the source model.

The runtime renders with minijinja, hands `content` over as a list of parts, leaves `eos_token` and
`bos_token` empty, and feeds each new turn as what it adds to the text of the history. Many
published templates fail one of these, some silently. So nothing is believed: an ordered list of
candidates is rendered as the runtime would, over a fixed set of conversations, and compared with
what the source's own template gives in jinja2. The first candidate that agrees everywhere is used;
of several that do, one that also agrees on tools, and then on the turns that are fed later.

docs/chat-templates.md says how each fact about the renderer was seen.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from converter.errors import UnsupportedError
from converter.text.control_tokens import TURN_ENDS
from converter.text.template_reference import (
    AFTER_TOOLS,
    CONVERSATIONS,
    THOUGHTS,
    TOOL_TURNS,
    TOOLS,
    TRANSLATION,
    TURNS,
    Case,
    Reference,
    answers_after,
    as_parts,
    render_reference,
    wants_languages,
)
from converter.text.template_renderers import (
    PROOF_TIME,
    Message,
    OutOfFuelError,
    TemplateFailureError,
    render_as_runtime,
)

if TYPE_CHECKING:
    from converter.text.template_candidates import Candidate

TEMPLATE_FIX = (
    "correct chat_template in the source folder, or choose another with --chat-template FILE|none"
)


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
    fences_calls: bool = False  # it writes tool calls as JSON between <tool_call> and </tool_call>
    prints_date: bool = False  # the runtime fills in today's date at each turn
    translates: bool = False  # a question may name two languages, as in the source it must
    refused: tuple[str, ...] = ()  # conversations that the source itself refuses
    # Where what the runtime feeds over several turns is not the source's text.
    history_difference: str = ""
    after_assistant: str = ""  # what the source writes after an assistant's text
    opens_thought: str = ""  # what a prompt ends with, where the answer begins inside a thought
    cases: tuple[Case, ...] = field(default=(), repr=False)  # what the source renders, bos included
    runtime_prompt: str = ""  # the first of them as the runtime renders it
    source_template: str | None = field(default=None, repr=False)

    @property
    def exact_history(self) -> bool:
        return not self.history_difference


# --- The proof --------------------------------------------------------------------------------


def _common_length(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _difference(got: str, expected: str, verb: str = "renders") -> str:
    at = _common_length(got, expected)
    start = max(at - 12, 0)
    got, expected = got[start : at + 28], expected[start : at + 28]
    return f"{verb} {got!r} where the source has {expected!r}"


def _check_prefixes(
    template: str, name: str, messages: list[Message], extra: Any, tools: Any = None
) -> None:
    """The runtime feeds new[len(old):] and fails where old is not how new begins.

    `old` ends with an answer. `new` ends with the prompt for the next one; or, as the runtime feeds
    a turn again whose thoughts it takes out, with the answer to the question after it.
    """

    def render(count: int, prompt: bool) -> str:
        return render_as_runtime(
            template,
            as_parts(messages[:count]),
            add_generation_prompt=prompt,
            tools=tools,
            extra=extra,
        )

    answers = [i + 1 for i, message in enumerate(messages) if message["role"] == "assistant"]
    for count, following in itertools.zip_longest(answers, answers[1:]):
        history = render(count, False)
        longer_ones = [render(count + 1, True)] if count < len(messages) else []
        if following and messages[count]["role"] == "user":
            longer_ones.append(render(following, False))
        for longer in longer_ones:
            if not longer.startswith(history):
                raise TemplateFailureError(
                    f"{name}: the history of {count} messages is not how the next turn begins: "
                    + _difference(longer, history).replace("the source", "the history")
                )


def _prove(template: str, reference: Reference) -> tuple[int, bool]:
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
    _check_prefixes(template, "thoughts in the history", THOUGHTS, {})
    parts = [{"type": "text", "text": text} for text in ("first part", "second part")]
    both = render_as_runtime(
        template, [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    if not re.search("first part.*second part", both, re.DOTALL):
        raise TemplateFailureError("two parts in one message: it drops one of them")
    return compared, lacks_bos == {True}


def _proves_tools(template: str, reference: Reference, bos: str) -> bool:
    case = reference.tool_case
    if case is None:
        return False
    try:
        for form in (case.messages, as_parts(case.messages)):
            got = render_as_runtime(template, form, add_generation_prompt=True, tools=TOOLS)
            if bos + got != case.expected:
                return False
        _check_prefixes(template, case.name, AFTER_TOOLS, {}, TOOLS)
        called, answered = (
            render_as_runtime(
                template, as_parts(TOOL_TURNS[:n]), add_generation_prompt=n > 2, tools=TOOLS
            )
            for n in (2, 3)
        )
        if _ARGUMENT in answered[len(called) :]:
            return False  # the model's call would be fed again
    except TemplateFailureError:
        return False
    return True


_ARGUMENT = str(TOOL_TURNS[1]["tool_calls"][0]["function"]["arguments"]["box"])
_OPEN_MARK = re.compile(r"[<\[][^>\]]*$")


def _after_answer(template: str) -> tuple[str, str, str]:
    """What a template writes after the last answer; what of it ends the turn whatever follows, so
    that the model writes it; and what stands between an answer and the next question."""

    def after(messages: list[Message]) -> str:
        text = render_as_runtime(template, as_parts(messages), add_generation_prompt=False)
        return text.rpartition(TURNS[1]["content"])[2]

    at_end, between = after(TURNS[:2]), after(TURNS[:3])
    # Where two marks begin alike, `<|user|>` and `<|assistant|>`, neither ends the turn.
    turn_end = _OPEN_MARK.sub("", at_end[: _common_length(at_end, between)]).rstrip()
    return at_end, turn_end, between.partition(TURNS[2]["content"])[0]


def _call_end(template: str, turn_end: str) -> str:
    """What ends a turn that calls a tool: a token that the model stops at, the first behind the
    call; "" where the result follows at once."""
    from converter.text.template_candidates import NEXT_RESULT, before_next

    messages = [*as_parts(TOOL_TURNS[:2]), NEXT_RESULT]
    text = render_as_runtime(template, messages, add_generation_prompt=False, tools=TOOLS)
    behind = before_next(text).rpartition(_ARGUMENT)[2]
    marks = [mark for mark in {turn_end, *TURN_ENDS} if mark and mark in behind]
    return min(marks, key=behind.index, default="")


def _fit_turns(template: str, reference: Reference) -> tuple[str, int, bool]:
    """The template whose turns follow each other, and what `_prove` says of it."""
    from converter.text.template_candidates import held_back

    with contextlib.suppress(TemplateFailureError):
        _, turn_end, between = _after_answer(template)
        if between:
            calls_tools = reference.tool_case is not None
            call_end = _call_end(template, turn_end) if calls_tools else ""
            held = held_back(template, turn_end, between, calls_tools, call_end)
            return held, *_prove(held, reference)
    return template, *_prove(template, reference)


def _fed_text(template: str, messages: list[Message], turn_end: str) -> str:
    """Everything that is in the runtime's KV cache when it answers the last message.

    A model answers as the template writes its answers, where these begin as the prompt ends.
    """
    fed, history, prompt = "", "", ""
    for count, message in enumerate(messages, start=1):
        parts = as_parts(messages[:count])
        if message["role"] == "user":
            prompt = render_as_runtime(template, parts, add_generation_prompt=True)
            fed += prompt[len(history) :]
        elif message["role"] == "assistant":
            history = render_as_runtime(template, parts, add_generation_prompt=False)
            begun = history[len(prompt) :] if history.startswith(prompt) else ""
            fed += begun.partition(message["content"])[0] + message["content"] + turn_end
    return fed


def _history_difference(
    template: str, reference: Reference, bos: str, turn_end: str, has_channel: bool
) -> str:
    """Where the runtime's cache over several turns is not the source's text; "" where it is.

    Answers with thoughts are fed again without them, as the template renders them then; the
    newlines behind a thought stay. All else stays in the cache as it was fed and written.
    """
    longest = [case for case in reference.cases if not case.extra][-1]
    prompt = render_as_runtime(template, as_parts(TURNS[:1]), add_generation_prompt=True)
    pairs = []
    if not (_opened_thought(prompt) and has_channel):
        pairs.append((_fed_text(template, longest.messages, turn_end), longest.expected))
    if reference.thoughts is not None and has_channel:
        messages = as_parts(answers_after("\n\n", reference.thoughts.messages))
        again = render_as_runtime(template, messages, add_generation_prompt=True)
        pairs.append((again, reference.thoughts.expected))
    different = [(bos + got, said) for got, said in pairs if bos + got != said]
    return _difference(*different[0], verb="feeds") if different else ""


def _opened_thought(prompt: str) -> str:
    """The mark of a thought that a prompt leaves open, with the newline behind it; or ""."""
    found = re.search(r"<think>\n?(?!.*</think>)", prompt, re.DOTALL)
    return found[0] if found else ""


_FENCED_CALL = r'<tool_call>\s*{"name": "open_box", "arguments": {"box": "left"}}\s*</tool_call>'


def _report(
    source: str | None,
    candidate: Candidate,
    template: str,
    reference: Reference,
    rejected: tuple[Rejection, ...],
    compared: int,
    lacks_bos: bool,
    has_channel: bool,
) -> TemplateReport:
    """See what else the candidate that passed shows when it is rendered."""

    def render(messages: list[Message], **settings: Any) -> str:
        return render_as_runtime(
            template, as_parts(messages), add_generation_prompt=True, **settings
        )

    after_assistant, turn_end, _ = _after_answer(candidate.text)
    bos = reference.bos if lacks_bos else ""
    case = reference.cases[0]
    on, off = (render(case.messages, extra={"enable_thinking": value}) for value in (True, False))
    prompt = render(case.messages)
    tools = _proves_tools(template, reference, bos)
    calls = reference.tool_case.expected if tools and reference.tool_case else ""
    later = PROOF_TIME + datetime.timedelta(days=400)
    return TemplateReport(
        chosen=candidate.name,
        template=template,
        rejected=rejected,
        renders_compared=compared,
        start_token_needed=lacks_bos,
        thinking=on != off and any(case.extra for case in reference.cases),
        tools=tools,
        fences_calls=re.search(r'<tool_call>\s*{"name": "open_box".*</tool_call>', calls, re.DOTALL)
        is not None,
        prints_date=prompt != render(case.messages, now=later),
        translates=any(case.name == TRANSLATION for case in reference.cases),
        refused=reference.refused,
        history_difference=_history_difference(template, reference, bos, turn_end, has_channel),
        after_assistant=after_assistant,
        opens_thought=_opened_thought(prompt),
        cases=tuple(reference.cases),
        runtime_prompt=prompt,
        source_template=source,
    )


def _completion_report() -> TemplateReport:
    """The template of base models, held to printing the messages' text and nothing else."""
    from converter.text.template_candidates import FAMILIES, Candidate

    candidate = Candidate("completion", (FAMILIES / "completion.jinja").read_text("utf-8"))
    cases = [
        Case(name, messages, {}, "".join(message["content"] for message in messages))
        for name, messages in CONVERSATIONS.items()
    ]
    reference = Reference("", cases, None, ())
    compared, lacks_bos = _prove(candidate.text, reference)
    return _report(None, candidate, candidate.text, reference, (), compared, lacks_bos, False)


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
    source: str | None,
    *,
    family: str,
    templates: Sequence[str] = (),
    bos_token: str | None,
    eos_token: str | None,
    has_channel: bool = False,
    fix: str = TEMPLATE_FIX,
) -> TemplateReport:
    """The candidate that renders in the runtime as the source does in transformers.

    A form of the source that loses its tools, or feeds other turns, is used where no later one does
    better; the family's own is used where no form of the source passes. Without a source template
    the model is a base model, and gets the pass-through template.

    Args:
        templates: the family's own, by their file names.
        has_channel: the runtime will know the model's thoughts, and take them out of the history.
        fix: what to do about a template that cannot be used.

    Raises:
        UnsupportedError: no candidate passes; the message says why each one failed.
    """
    from converter.text.template_candidates import Prompt, candidates, with_plain_messages

    def unsupported(why: str) -> UnsupportedError:
        return UnsupportedError(f"{family}: chat template", why, fix)

    if source is None or not source.strip():
        return _completion_report()
    bos, eos = bos_token or "", eos_token or ""
    try:
        _refuse_endless(source)
        reference = render_reference(source, bos, eos)
        if not reference.renders_a_chat and wants_languages(source):
            published, source = source, with_plain_messages(source)
            reference = render_reference(source, bos, eos, published)
    except OutOfFuelError as error:
        raise unsupported(str(error)) from error
    if not reference.renders_a_chat:
        raise unsupported(f"it does not render {reference.refused[0]}")
    prompts = [
        Prompt(case.messages, case.extra, case.expected)
        for case in reference.cases
        if case.messages == TURNS[:1]
    ]
    if not any(TURNS[0]["content"] in prompt.expected for prompt in prompts):
        raise unsupported("it does not print the user's message")
    rejected: list[Rejection] = []
    passed: list[TemplateReport] = []
    for candidate in candidates(source, templates, bos, eos, reference.trims_answers, prompts):
        if passed and candidate.is_familys:
            break
        try:
            if candidate.failure:
                raise TemplateFailureError(candidate.failure)
            template, compared, lacks_bos = _fit_turns(candidate.text, reference)
        except TemplateFailureError as error:
            rejected.append(Rejection(candidate.name, str(error)))
            continue
        proof = template, reference, tuple(rejected), compared, lacks_bos
        report = _report(source, candidate, *proof, has_channel)
        passed.append(report)
        if reference.tool_case and not report.tools:
            rejected.append(Rejection(candidate.name, "it renders tools otherwise"))
        elif not report.exact_history:
            rejected.append(Rejection(candidate.name, report.history_difference))
        else:
            break
    if passed:
        return max(passed, key=lambda report: (report.tools, report.exact_history))
    reasons = "; ".join(f"{rejection.candidate}: {rejection.reason}" for rejection in rejected)
    raise unsupported(f"no candidate renders in the runtime as the source does: {reasons}")
