"""Builds the bundle's LlmMetadata from a family's base text, the tokenizer and the chat template.

The base textproto says what only a person can know of a family (sampler, model type, channels).
Everything else is derived from the source and proved: a start token that the runtime adds while
the template writes it too, or an end of turn that stops nothing, spoils every answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from converter.errors import SourceError, UnsupportedError
from converter.text.chat_template import TEMPLATE_FIX, TemplateReport, choose_template
from converter.text.control_tokens import turn_ends
from converter.text.template_reference import as_parts
from converter.text.template_renderers import render_as_runtime

# With which FunctionGemma begins a call.
FUNCTION_GEMMA_CALL = "<start_function_call>"
# With which MiniCPM5, a Llama, begins an argument of a call.
MINICPM5_ARGUMENT = "<param name="

if TYPE_CHECKING:
    from converter.text.bundle_tokenizer import BundleTokenizer

# The oldest LiteRT-LM that runs our networks (docs/runtime.md); nobody enforces it yet.
OLDEST_ENGINE = "0.11.0"
# The only one in which drafts and compact caches were tried.
NEWEST_ENGINE = "0.18.1"


@dataclass(frozen=True)
class LlmMetadataResult:
    """
    Attributes:
        message: the LlmMetadata protobuf.
        notes: what a user should know about choices made here, one line each.
    """

    message: Any
    template: TemplateReport
    notes: tuple[str, ...]


def build_llm_metadata(
    base: str,
    tokenizer: BundleTokenizer,
    max_num_tokens: int,
    name: str,
    templates: Sequence[str] = (),
    generation_config: dict[str, Any] | None = None,
    template_fix: str = TEMPLATE_FIX,
) -> LlmMetadataResult:
    """Build the metadata of one model.

    Args:
        base: text of the family's base textproto.
        max_num_tokens: slots in the KV cache; the runtime stops there.
        name: the family's name.
        templates: its own chat templates, by their file names.
        generation_config: the source's generation_config.json, where it has one.
        template_fix: what to do about a chat template that cannot be used.

    Raises:
        UnsupportedError: no template renders rightly, or nothing would end a turn.
        SourceError: the tokenizer does not know a token that the template writes.
    """
    from google.protobuf import text_format

    from converter.litertlm.schemas import llm_metadata_pb2

    config = generation_config or {}
    message = llm_metadata_pb2.LlmMetadata()
    text_format.Parse(base, message)
    _drop_unseen_channels(message, tokenizer.chat_template or "")
    report = choose_template(
        tokenizer.chat_template,
        family=name,
        templates=templates,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        has_channel=any(_holds_thoughts(channel) for channel in message.channels),
        fix=template_fix,
    )
    if tokenizer.starts_with_blank and report.source_template is not None:
        report = _with_blank(report, tokenizer)
    _check_special_tokens(report, tokenizer, name)
    notes = [*tokenizer.notes, *_template_notes(report), *_turn_notes(report, tokenizer)]

    message.jinja_prompt_template = report.template
    message.max_num_tokens = max_num_tokens
    message.min_runtime_version = message.min_runtime_version or OLDEST_ENGINE
    message.ClearField("start_token")
    if _needs_start_token(report, tokenizer):
        message.start_token.token_ids.ids.append(tokenizer.bos_token_id)
    _check_tokens(report, tokenizer, list(message.start_token.token_ids.ids), name, template_fix)

    stops = _stop_tokens(report, tokenizer, name)
    for token in stops:
        message.stop_tokens.add().token_ids.ids.append(token)

    _set_sampler(message.sampler_params, config)
    _keep_what_the_template_shows(message, report)
    return LlmMetadataResult(message, report, tuple(notes))


def _template_notes(report: TemplateReport) -> list[str]:
    notes = []
    if report.rejected and not report.chosen.startswith("adapted source"):
        reason, _, _ = report.rejected[-1].reason.partition(": renders")  # without the two texts
        notes.append(
            f"chat template: the family's own ({report.chosen}) replaces the source's, "
            f"which fails in the engine ({reason})"
        )
    if report.refused:
        notes.append(f"chat template: the source refuses {report.refused[0]}")
    if not report.exact_history:
        notes.append(f"chat template: after the first turn the runtime {report.history_difference}")
    if report.translates:
        notes.append(
            "chat template: it translates a message whose content part has source_lang_code and "
            "target_lang_code; of any other the model reads your own words alone, so write the "
            "whole request"
        )
    if report.prints_date:
        notes.append("chat template: it prints the date, which the runtime fills in")
    if report.source_template is None:
        notes.append("chat template: there is none, so the bundle completes text")
    return notes


# --- Start token ------------------------------------------------------------------------------


def _needs_start_token(report: TemplateReport, tokenizer: BundleTokenizer) -> bool:
    if tokenizer.bos_token_id is None:
        return False
    return tokenizer.adds_bos if report.source_template is None else report.start_token_needed


def _with_blank(report: TemplateReport, tokenizer: BundleTokenizer) -> TemplateReport:
    """Begin prompts with the blank that the source puts before text, if text they begin with.

    Some begin with text only where there is a system message, or only where there is none.
    """
    with_system, without = (
        {
            _source_blank(case.expected, tokenizer)
            for case in report.cases
            if (case.messages[0]["role"] == "system") is has_system
        }
        for has_system in (True, False)
    )
    if " " in with_system and " " in without:
        condition = "true"
    elif " " in with_system:
        condition = "messages[0]['role'] == 'system'"
    elif " " in without:
        condition = "messages[0]['role'] != 'system'"
    else:
        return report
    # The newline behind it is trimmed.
    template = f"{{% if {condition} %}} {{% endif %}}\n" + report.template
    return replace(report, template=template)


def _source_blank(prompt: str, tokenizer: BundleTokenizer) -> str:
    """The blank that the source's tokenizer puts before a prompt and the bundle's does not."""
    begins_with_text = prompt[:1] != " " and _special_prefix(prompt, tokenizer) is None
    return " " * (tokenizer.starts_with_blank and begins_with_text)


def _check_special_tokens(report: TemplateReport, tokenizer: BundleTokenizer, name: str) -> None:
    """A special token that the template writes must be one token, or the model reads its letters.

    The start token is looked at too where the text carries it.
    """
    written = report.runtime_prompt + report.after_assistant
    for text, token in tokenizer.special_tokens.items():
        if text and text in written and tokenizer.outline(text) != [token]:
            raise SourceError(
                f"{name}: tokenizer",
                f"the chat template writes {text!r}, which this {tokenizer.kind} tokenizer "
                f"encodes as {tokenizer.outline(text)} and not as its token {token}",
                "use the tokenizer.json of the same model",
            )


def _check_tokens(
    report: TemplateReport, tokenizer: BundleTokenizer, start: list[int], name: str, fix: str
) -> None:
    """The runtime must read the source's tokens, in every conversation of the proof."""
    if report.source_template is None:
        return
    for case in report.cases:
        source = tokenizer.outline(_source_blank(case.expected, tokenizer) + case.expected)
        prompt = render_as_runtime(
            report.template, as_parts(case.messages), add_generation_prompt=True, extra=case.extra
        )
        runtime = start + tokenizer.outline(prompt)
        if source != runtime:
            at = _first_difference(source, runtime)
            raise UnsupportedError(
                f"{name}: chat template",
                f"{case.name}: the runtime would read the tokens {runtime[at : at + 4]} where the "
                f"source has {source[at : at + 4]}, after {at} that are equal",
                fix,
            )


def _first_difference(one: list[int], other: list[int]) -> int:
    """Where two unequal lists begin to differ."""
    pairs = enumerate(itertools.zip_longest(one, other))
    return next(i for i, (left, right) in pairs if left != right)


def _turn_notes(report: TemplateReport, tokenizer: BundleTokenizer) -> list[str]:
    """Whether turns read the same tokens apart, as the runtime encodes them, as in one text."""
    if report.source_template is None:
        return []
    messages = [case.messages for case in report.cases if not case.extra][-1]
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        parts = as_parts(messages[: i + 2])
        history = render_as_runtime(report.template, parts[:-1], add_generation_prompt=False)
        whole = render_as_runtime(report.template, parts, add_generation_prompt=True)
        in_one = tokenizer.outline(whole)
        apart = tokenizer.outline(history) + tokenizer.outline(whole[len(history) :])
        if in_one != apart:
            at = _first_difference(in_one, apart)
            return [
                "tokens: where a turn begins, the runtime reads other tokens than the source, as "
                f"it encodes each turn apart: {apart[at : at + 3]} where the source has "
                f"{in_one[at : at + 3]}"
            ]
    return []


# --- Stop tokens ------------------------------------------------------------------------------


def _stop_tokens(report: TemplateReport, tokenizer: BundleTokenizer, name: str) -> list[int]:
    """Every id that ends a turn, ascending: declared, known by its text, or seen in the render.

    Only control tokens are known by their text. An ordinary piece that is spelled alike is text
    that the model may want to write.
    """
    known = turn_ends(tokenizer.special_tokens)
    turn_end = _special_prefix(report.after_assistant.lstrip(), tokenizer)
    if turn_end is not None:
        known.add(turn_end)
    stops = {*tokenizer.eos_token_ids, *(known - {tokenizer.bos_token_id})}
    beyond = sorted(token for token in stops if not 0 <= token < tokenizer.vocab_size)
    if beyond:
        raise SourceError(
            f"{name}: end of turn",
            f"token {beyond[0]} is not in the vocabulary of {tokenizer.vocab_size}",
            "check eos_token_id in generation_config.json and in config.json",
        )
    if not stops:
        raise UnsupportedError(
            f"{name}: end of turn",
            "neither the tokenizer nor the chat template says which token ends a turn",
            "declare eos_token in tokenizer_config.json",
        )
    return sorted(stops)


def _special_prefix(text: str, tokenizer: BundleTokenizer) -> int | None:
    """The longest special token that `text` begins with."""
    found = [
        special for special in tokenizer.special_tokens if special and text.startswith(special)
    ]
    return tokenizer.special_tokens[max(found, key=len)] if found else None


# --- Sampler, channels ------------------------------------------------------------------------


def _set_sampler(sampler: Any, config: dict[str, Any]) -> None:
    """The source's own sampling, over the family's. Greedy is top-p over one token."""
    if config.get("do_sample") is False or config.get("temperature") == 0:
        sampler.type, sampler.k, sampler.temperature = sampler.TOP_P, 1, 1.0
        return
    for key, field in (("temperature", "temperature"), ("top_p", "p"), ("top_k", "k")):
        if config.get(key):  # a top_k of 0 means no limit, for which the runtime has no word
            setattr(sampler, field, config[key])


def _holds_thoughts(channel: Any) -> bool:
    """By its name: Qwen3.5's is not called a reasoning channel."""
    return bool(channel.channel_name == "thought")


def _drop_unseen_channels(message: Any, source: str) -> None:
    """A family's thoughts are claimed only where this model's template knows their marks."""
    channels = [
        channel
        for channel in message.channels
        if not _holds_thoughts(channel)
        or channel.start.strip() in source
        or channel.end.strip() in source
    ]
    del message.channels[:]
    message.channels.extend(channels)


def _keep_what_the_template_shows(message: Any, report: TemplateReport) -> None:
    """Switchable thoughts and tools too are claimed only where this model's template has them."""
    for channel in message.channels:
        # Where a prompt ends inside a thought, the runtime looks there for the mark as it is here.
        if _holds_thoughts(channel) and report.opens_thought:
            channel.start = report.opens_thought
    if not (message.supports_thinking and report.thinking):
        message.ClearField("supports_thinking")
    if message.llm_model_type.HasField("generic_model") and report.fences_calls:
        # Hermes and its kin, of any architecture: the runtime reads such calls as Qwen's.
        message.llm_model_type.qwen2p5.SetInParent()
        message.supports_function_calling = True
    if FUNCTION_GEMMA_CALL in report.template:
        # A Gemma 3 that was taught calls in words of its own. Declarations and results, which the
        # runtime would write in these words, too, are the template's here, as they are proven.
        message.llm_model_type.function_gemma.use_template_for_fc_format = True
        message.supports_function_calling = True
    if MINICPM5_ARGUMENT in report.template:
        message.llm_model_type.minicpm5.SetInParent()
        message.supports_function_calling = True
    if not (message.supports_function_calling and report.tools):
        message.ClearField("supports_function_calling")
