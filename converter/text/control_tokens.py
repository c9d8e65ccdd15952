"""Which tokens are control tokens, and which of them end a turn: llama.cpp's rules.

Fine-tunes and exporters often lose the mark that makes a token a control token. llama.cpp knows
such tokens by their text, and so does this project, for GGUF files and folders alike.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

# Facts: special_eog_ids in llama.cpp's src/llama-vocab.cpp.
TURN_ENDS = frozenset(
    (
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>",
        "<|flush|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<EOT>",
        "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<turn|>", "<|tool_response>", "[e~[",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)  # fmt: skip
# Harmony and Solar end a message with <|end|>, and a turn with one of these.
_ENDS_BESIDE_END = (
    {"<|return|>", "<|call|>"},
    {"<|call|>", "<|flush|>"},
    {"<|calls|>", "<|flush|>"},
)
_MARKERS = re.compile(r"</?[^<>\s{}'\"]+>|\[/?[A-Z_]+\]|\[e~\[|\]~[a-z]+\]")


def turn_ends(tokens: Mapping[str, int]) -> set[int]:
    """The ids that end a turn, among tokens (text to id) that may be control tokens."""
    ends = {text for text in TURN_ENDS if text in tokens}
    if any(others <= ends for others in _ENDS_BESIDE_END):
        ends.discard("<|end|>")
    if "<eos>" in ends:  # Gemma, whose </s> is a tag of HTML
        ends.discard("</s>")
    return {tokens[text] for text in ends}


def looks_like_control(text: str) -> bool:
    """Whether a token is a control token by its text, however a file marks it.

    Facts: does_token_look_special in llama.cpp's converter.
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (len(text) > 4 and text.startswith("<|") and text.endswith("|>"))
        or (len(text) > 4 and text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def markers(template: str | None, tokens: Container[str]) -> set[str]:
    """The tokens that a chat template writes as marks around turns, such as `<start_of_turn>`.

    Args:
        template: a chat template; None for none.
        tokens: texts of the vocabulary.
    """
    return {text for text in _MARKERS.findall(template or "") if text in tokens}


def control_tokens(
    special: Mapping[str, int], added: Mapping[str, int], template: str | None
) -> dict[str, int]:
    """All control tokens of a tokenizer, text to id.

    Args:
        special: those that the source marks as such.
        added: other tokens that are matched whole wherever a text holds them.
        template: the source's chat template; what it writes as marks counts too.
    """
    known = {**added, **special}
    ends, written = turn_ends(known), markers(template, known)
    return {
        text: i
        for text, i in known.items()
        if text in special or i in ends or text in written or looks_like_control(text)
    }
