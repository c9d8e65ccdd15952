"""Whether float16, in which Core ML computes, can carry a network; and if not, what scale it can.

A text goes through the network in float32 (`converter.weights.peaks`), and what it reaches is held
against what float16 holds. Where the residual stream grows too large, the network may be built with
all that is added to it times alpha: norms take the factor out again, so that the function is the
same. What stands inside a block keeps its size, and no scale helps there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from converter.checkpoint.base import Checkpoint
from converter.coreml.words import check_words, trace_of_scale
from converter.decoder import DecoderSpec
from converter.errors import SourceError
from converter.network import Network
from converter.text import background
from converter.text.bundle_tokenizer import BundleTokenizer
from converter.text.template_renderers import TemplateFailureError, render_as_source
from converter.text.tokenizer import load_tokenizer
from converter.weights.peaks import Peaks, find_peaks

FLOAT16_MAX = 65504.0
# What one text may reach, so that another one has room.
SAFE_PEAK = 50000.0
# Beyond it, slices as rotary embeddings make them saturate on M1 and M2 (ANEForge's table).
SLICE_MAX = 4094.0

# Words, signs, numbers, code and other scripts: sinks are found at the first token, and some at
# line ends and marks.
TEXT = (
    "Why is the sky blue, and the sunset red? Answer in 3 short points.\n\n"
    "Then correct this:\n```python\ndef add(a, b):\n    return a - b  # 2 + 2 = 4\n```\n"
    "Danke! \u4f60\u597d, \u043c\u0438\u0440 \U0001f600"
)


class Verdict(StrEnum):
    """What float16 makes of a network."""

    FITS = "fits"
    FITS_SCALED = "fits_scaled"
    TOO_LARGE = "too_large"


@dataclass(frozen=True)
class Largest:
    """A peak, and where it is, in words."""

    value: float
    where: str


@dataclass(frozen=True)
class PreflightReport:
    """What a text found in a network.

    Attributes:
        tokens: of the text.
        is_chat: whether it went through the chat template; else it was read as it is.
        spec: the network.
    """

    model: str
    tokens: int
    is_chat: bool
    spec: DecoderSpec
    peaks: Peaks

    @property
    def scaled(self) -> Largest:
        """The largest number that a scale makes smaller: of the residual stream, and what it adds.

        Without norms after them, blocks are scaled in their last matrices.
        """
        places = ["added", "residual"]
        if not self.spec.placement.has_post_norms:
            places += ["attention", "feed_forward"]
        return self._largest(places, {"embedding": self.peaks.embedding})

    @property
    def others(self) -> Largest:
        """The largest number that stays as it is."""
        places = ["normed", "projected", "rotated", "scores", "inner"]
        if self.spec.placement.has_post_norms:
            places += ["attention", "feed_forward"]
        return self._largest(places, {"last": self.peaks.last, "logits": self.peaks.logits})

    @property
    def verdict(self) -> Verdict:
        if self.others.value > SAFE_PEAK or self.peaks.weight > FLOAT16_MAX:
            return Verdict.TOO_LARGE
        if self.scaled.value <= SAFE_PEAK:
            return Verdict.FITS
        return Verdict.FITS_SCALED if trace_of_scale(self.spec) is None else Verdict.TOO_LARGE

    @property
    def reason(self) -> str:
        """Why it is not `FITS`, in words."""
        if self.peaks.weight > FLOAT16_MAX:
            return f"{self.peaks.weight_path} holds {self.peaks.weight:,.0f}"
        found = self.others if self.others.value > SAFE_PEAK else self.scaled
        return f"{found.where} reaches {found.value:,.0f}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know beside."""
        rotated = max(layer.rotated for layer in self.peaks.layers)
        if rotated <= SLICE_MAX:
            return ()
        return (
            f"queries and keys reach {rotated:,.0f}: beyond {SLICE_MAX:,.0f}, the Neural Engine of "
            "M1 and M2 is said to cut them where they are rotated",
        )

    def as_json(self) -> dict[str, Any]:
        """The whole report in plain types."""
        return {
            "model": self.model,
            "verdict": self.verdict.value,
            "reason": None if self.verdict is Verdict.FITS else self.reason,
            "fp16_scale": fp16_scale_for(self),
            "float16_max": FLOAT16_MAX,
            "safe_peak": SAFE_PEAK,
            "scaled": asdict(self.scaled),
            "others": asdict(self.others),
            "tokens": self.tokens,
            "is_chat": self.is_chat,
            "notes": list(self.notes),
            "peaks": self.peaks.as_json(),
        }

    def _largest(self, places: Sequence[str], others: dict[str, float]) -> Largest:
        found = [
            Largest(getattr(layer, place), f"{PLACES[place]} of layer {i}")
            for i, layer in enumerate(self.peaks.layers)
            for place in places
        ]
        found += [Largest(value, PLACES[place]) for place, value in others.items()]
        return max(found, key=lambda one: one.value)


# How `LayerPeaks` and `Peaks` call a place, and how a sentence does.
PLACES = {
    "embedding": "the embedding",
    "residual": "the residual stream",
    "added": "what is added to the residual stream",
    "attention": "the output of the attention",
    "feed_forward": "the output of the feed-forward block",
    "normed": "what blocks are fed with",
    "projected": "a query, key or value",
    "rotated": "a normalised query or key",
    "scores": "a score of the attention",
    "inner": "the inside of the feed-forward block",
    "last": "what the head is fed with",
    "logits": "a logit",
}


def preflight(
    network: Network,
    spec: DecoderSpec,
    threads: int,
    progress: Callable[[int], None] = lambda _: None,
) -> PreflightReport:
    """Send a text through a network, and say whether float16 can carry it.

    It is a fixed text as the user's turn of the model's own chat template; of a model that has none
    it is read as it is, behind the start token where the model's tokenizer puts one.

    Args:
        spec: of the context that is meant.
        threads: the result does not depend on them but for the last bits.
        progress: is told how many values more were read, of those of all weights.

    Raises:
        SourceError, UnsupportedError: see `converter.weights.peaks.find_peaks`,
            `converter.text.tokenizer.load_tokenizer` and `converter.coreml.words.check_words`.
    """
    # In a process of its own: tokenizers are the larger part of the memory, and are strangers'.
    read = partial(_tokens, network.checkpoint, network.name, spec)
    tokens, is_chat = background.start(read, network.name)()
    check_words(spec, len(tokens))
    peaks = find_peaks(
        spec,
        network.checkpoint,
        network.name,
        network.sources,
        network.updates,
        tokens,
        threads,
        progress,
    )
    return PreflightReport(network.name, len(tokens), is_chat, spec, peaks)


def fp16_scale_for(report: PreflightReport) -> float | None:
    """The factor under which float16 carries a network; None where it needs none, or none helps.

    A power of two, which rounds nothing: the largest that leaves the residual stream `SAFE_PEAK`.
    """
    if report.verdict is not Verdict.FITS_SCALED:
        return None
    return 2.0 ** math.floor(math.log2(SAFE_PEAK / report.scaled.value))


def _tokens(checkpoint: Checkpoint, name: str, spec: DecoderSpec) -> tuple[list[int], bool]:
    """The text's tokens, and whether they are a chat."""
    tokenizer = load_tokenizer(checkpoint)
    chat = _chat(tokenizer)
    if chat is not None:
        tokens = tokenizer.encode(chat)
    else:
        tokens = tokenizer.encode(TEXT)
        if tokenizer.adds_bos and tokenizer.bos_token_id is not None:
            tokens.insert(0, tokenizer.bos_token_id)
    if max(tokens) >= spec.vocab_size:
        raise SourceError(
            f"{name}: tokenizer",
            f"gives token {max(tokens)}, the embedding has only {spec.vocab_size} rows",
            "use the tokenizer that belongs to this checkpoint",
        )
    return tokens, chat is not None


def _chat(tokenizer: BundleTokenizer) -> str | None:
    """The text as a user's turn; None where no template takes it so."""
    if tokenizer.chat_template is None:
        return None
    try:
        return render_as_source(
            tokenizer.chat_template,
            [{"role": "user", "content": TEXT}],
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
        )
    except TemplateFailureError:  # one that wants more of a message, as a translator's
        return None
