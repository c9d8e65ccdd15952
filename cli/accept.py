"""`convert --accept`: a result that is too far from its source never gets its name."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.progress import step_progress
from converter.errors import OptionError, OutputError

_OPTION = "--accept"
# What may be asked for, what it is called, and whether more of it is better.
_FIGURES = {
    "kl": ("KL divergence", False),
    "kl_median": ("KL divergence, median,", False),
    "kl_99": ("KL divergence at 99 %", False),
    "ppl": ("perplexity", False),
    "agree": ("share of the same likeliest token", True),
}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(\d+(?:\.\d+)?|\.\d+)(%?)\s*", re.ASCII)


@dataclass(frozen=True)
class Condition:
    """That a figure of `eval` is at most, or at least, so much."""

    figure: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a value passes; one that is no number does not."""
        is_more_better = _FIGURES[self.figure][1]
        return value >= self.bound if is_more_better else value <= self.bound

    def __str__(self) -> str:
        return f"{self.figure}{'>=' if _FIGURES[self.figure][1] else '<='}{self.bound:g}"


def parse_accept(text: str) -> tuple[Condition, ...]:
    """`kl<=0.08,agree>=0.85`, or `85%`: conditions that all must hold.

    Raises:
        OptionError: it is something else.
    """
    conditions: dict[str, Condition] = {}
    for part in text.split(","):
        match = _CONDITION.fullmatch(part)
        why = "is no condition"
        if match is not None:
            figure, sign, number, percent = match.groups()
            bound = float(number) / (100 if percent else 1)
            right_sign = ">=" if _FIGURES.get(figure, ("", False))[1] else "<="
            if figure not in _FIGURES:
                why = f"{figure} is no figure: there are {', '.join(_FIGURES)}"
            elif sign != right_sign:
                why = f"{figure} is better when it is {'more' if right_sign == '>=' else 'less'}"
            elif figure in conditions:
                why = f"{figure} is there twice"
            elif not math.isfinite(bound):
                why = f"{number} is too large"
            elif figure == "agree" and bound > 1:
                why = "agree is at most 1, or 100%"
            elif percent and figure != "agree":
                why = f"{figure} is no share"
            else:
                conditions[figure] = Condition(figure, bound)
                continue
        raise OptionError(f"{_OPTION} {part.strip() or text}", why, "as in kl<=0.08,agree>=0.85")
    return tuple(conditions.values())


def require_accepted(
    conditions: Sequence[Condition],
    bundle: Path,
    reference: Path,
    output: Path,
    consequence: str,
    quiet: bool = False,
) -> dict[str, float]:
    """What was measured of a bundle, by its conditions, where all of them hold.

    Args:
        bundle: where it lies now.
        reference: its source in float, a `.litertlm` file.
        output: its name for messages.
        consequence: what becomes of it where a condition fails, and what to do.
        quiet: say nothing of the progress.

    Raises:
        OutputError: one does not hold.
    """
    found = _measure({condition.figure for condition in conditions}, bundle, reference, quiet)
    for condition in conditions:
        value = found[condition.figure]
        if not condition.holds(value):
            name, is_more_better = _FIGURES[condition.figure]
            most = "at least" if is_more_better else "at most"
            why = f"its {name} is {value:.4g}, and {_OPTION} wants {most} {condition.bound:g}"
            raise OutputError(str(output), why, consequence)
    return {str(condition): found[condition.figure] for condition in conditions}


def _measure(figures: set[str], bundle: Path, reference: Path, quiet: bool) -> dict[str, float]:
    """What `eval --against` says, of the text that it takes by default."""
    from runner.distance import divergence_of
    from runner.engine import Model
    from runner.evaluation import (
        TEXT,
        compared_passages,
        graph_logits,
        measure_perplexity,
        reference_logits,
    )

    text, found = TEXT.read_text(encoding="utf-8"), {}
    with Model(bundle) as model:
        passages = compared_passages(model, text)
        if "ppl" in figures:
            found["ppl"] = measure_perplexity(
                model, text, step_progress("scoring", quiet)
            ).perplexity
    if figures != {"ppl"}:
        passages, theirs = reference_logits(reference, passages)
        tell, count = step_progress("comparing", quiet), sum(map(len, passages))
        divergence = divergence_of(
            graph_logits(bundle, *passages), theirs, lambda done: tell(done, count)
        )
        found |= {
            "kl": divergence.kl_mean,
            "kl_median": divergence.kl_median,
            "kl_99": divergence.kl_99,
            "agree": divergence.top1_agreement,
        }
    return found
