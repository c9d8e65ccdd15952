"""How far models are from a reference, position by position, and which of two is nearer.

Everything is told at each position of the same text, so that two models can be compared in pairs:
what makes one position harder than another is the same for both and falls out of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# Neighbouring positions are alike, so that whole runs of them are drawn.
_RUN, _RUNS = 16, 16
_DRAWS = 2000


@dataclass(frozen=True)
class Divergence:
    """How far one model's next-token distributions are from another's.

    Attributes:
        kl_mean, kl_max: KL divergence of the model from its reference in nats, over the positions.
        kl_median, kl_99: what half of the positions, and 99 % of them, do not exceed.
        top1_agreement: the share of positions at which both have the same likeliest token.
    """

    kl_mean: float
    kl_median: float
    kl_99: float
    kl_max: float
    top1_agreement: float
    positions: int


@dataclass(frozen=True)
class Course:
    """What a model makes of a text at each position.

    Attributes:
        likelihoods: log likelihood of the token that comes next, in nats; a passage's last
            position has none.
        divergences: KL divergence from the reference in nats; empty without one.
        agreements: whether the likeliest token is the reference's; empty without one.
    """

    likelihoods: np.ndarray
    divergences: np.ndarray
    agreements: np.ndarray

    def summary(self) -> Divergence:
        """Of a course that has a reference."""
        median, most = np.percentile(self.divergences, (50, 99))
        return Divergence(
            float(self.divergences.mean()),
            float(median),
            float(most),
            float(self.divergences.max()),
            float(self.agreements.mean()),
            len(self.divergences),
        )


def courses(
    models: Sequence[Iterable[np.ndarray]],
    reference: Iterable[np.ndarray] | None,
    passages: Sequence[Sequence[int]] = (),
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Course]:
    """Go through a text with several models at once, none of whose logits are kept.

    Args:
        models: of each the logits after each token of each passage, `(vocabulary,)`.
        reference: the same of what they are compared with.
        passages: the tokens; without them nothing is said of likelihoods.
    """
    next_tokens = [token for passage in passages for token in [*passage[1:], -1]]
    likelihoods: list[list[float]] = [[] for _ in models]
    divergences: list[list[float]] = [[] for _ in models]
    agreements: list[list[bool]] = [[] for _ in models]
    everything = zip(*models, *(() if reference is None else (reference,)), strict=True)
    for position, logits in enumerate(everything):
        progress(position)
        told = [log_softmax(each) for each in logits]
        for number, ours in enumerate(told[: len(models)]):
            if passages and next_tokens[position] >= 0:
                likelihoods[number].append(float(ours[next_tokens[position]]))
            if reference is not None:
                theirs = told[-1]
                divergences[number].append(float((np.exp(theirs) * (theirs - ours)).sum()))
                agreements[number].append(bool(ours.argmax() == theirs.argmax()))
    found = zip(likelihoods, divergences, agreements, strict=True)
    return [Course(*(np.array(values) for values in each)) for each in found]


def divergence_of(
    logits: Iterable[np.ndarray],
    reference: Iterable[np.ndarray],
    progress: Callable[[int], None] = lambda _done: None,
) -> Divergence:
    """Compare two models' logits, `(vocabulary,)`, at the same positions."""
    [course] = courses([logits], reference, progress=progress)
    return course.summary()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log likelihoods, float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


@dataclass(frozen=True)
class Difference:
    """How much larger a figure is with a second model than with a first one.

    Attributes:
        mean: over the positions.
        low, high: the interval that holds the difference of such texts, in 95 of 100 cases.
    """

    mean: float
    low: float
    high: float

    @property
    def shows(self) -> bool:
        """Whether the text shows a difference at all."""
        return not self.low <= 0 <= self.high


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Of a figure at the same positions, `(positions,)`; with at least two of them.

    The interval is a bootstrap's: whole runs of positions are drawn again and again, with a fixed
    seed. [Künsch, The jackknife and the bootstrap for general stationary observations, 1989]
    """
    differences = second - first
    length = max(1, min(_RUN, len(differences) // _RUNS))
    starts = range(0, len(differences), length)
    sums = np.array([differences[start : start + length].sum() for start in starts])
    counts = np.array([len(differences[start : start + length]) for start in starts])
    drawn = np.random.default_rng(0).integers(len(starts), size=(_DRAWS, len(starts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Difference(float(differences.mean()), float(low), float(high))


def sign_test(first_alone: int, second_alone: int) -> float:
    """How likely so unequal numbers are, or less equal ones, where both models are as good.

    McNemar's exact test, of what one model alone does rightly: 0 to 1.
    """
    together, least = first_alone + second_alone, min(first_alone, second_alone)
    tail = sum(math.comb(together, count) for count in range(least + 1)) / 2**together
    return min(1.0, 2 * tail)
