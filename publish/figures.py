"""What was measured of a model, as its receipt keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from converter.errors import SourceError


@dataclass(frozen=True)
class Figures:
    """Quality and speed, and where they were measured.

    Attributes:
        perplexity: over `tokens` of `text`.
        prefill_rate, decode_rate: tokens per second, over so many tokens; the best of some runs.
        first_token_seconds: from a prompt of `prefill_tokens` to the first token.
        machine: its processor, cores and system.
        versions: of what has a part in the figures.
        date: in UTC, `2026-11-26`.
        against: the model that the rest compares with, in float; None where nothing was compared.
        kl_mean, kl_max, top1_agreement: see `runner.distance.Divergence`, over `positions`.
    """

    perplexity: float
    tokens: int
    text: str
    prefill_tokens: int
    prefill_rate: float
    decode_tokens: int
    decode_rate: float
    first_token_seconds: float
    machine: str
    versions: str
    date: str
    against: str | None = None
    kl_mean: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None
    positions: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain types, as `figures_of` takes them."""
        return asdict(self)


def figures_of(receipt: dict[str, Any], name: str) -> Figures | None:
    """What a receipt says was measured; None where nothing was.

    Args:
        name: the receipt's, for messages.

    Raises:
        SourceError: it says something else than figures.
    """
    said = receipt.get("eval")
    if said is None:
        return None
    kinds = get_type_hints(Figures)
    if not isinstance(said, dict) or {field.name for field in fields(Figures)} != said.keys():
        raise _damaged(name)
    for key, value in said.items():
        if type(value) not in (get_args(kinds[key]) or (kinds[key],)):
            raise _damaged(name)
    figures = Figures(**said)
    compared = (figures.kl_mean, figures.kl_max, figures.top1_agreement, figures.positions)
    if any((type(value) is NoneType) != (figures.against is None) for value in compared):
        raise _damaged(name)
    return figures


def _damaged(name: str) -> SourceError:
    return SourceError(name, "what it says was measured is damaged", "measure again: --eval")
