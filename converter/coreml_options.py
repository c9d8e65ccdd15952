"""What the user may choose for a conversion to Core ML: ANEMLL's options, by its names."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from converter.coreml.limits import MOST_POSITIONS, check_batch, check_context, check_prefix
from converter.errors import OptionError
from converter.options import ChatTemplate
from converter.weights.adapters import WeightedAdapter
from converter.weights.palettes import Palette

AUTO_SCALE = 0.0  # `--fp16-scale auto`: what the preflight finds
LEAST_SCALE = 2.0**-10  # below, small numbers are lost at the other end of float16
_OFF = ("none", "no", "false", "")
_WHOLE_TENSOR = ("tensor", "t")


@dataclass(frozen=True)
class CoreMLOptions:
    """What the user may choose; defaults are ANEMLL's.

    Attributes:
        context: positions that a chat may have.
        batch: tokens that are read at once.
        lut_embeddings, lut_layers, lut_head: how the matrices of each part are stored; None for
            float16.
        chunks: packages that share the layers; None for as few as `max_chunk_mb` allows.
        max_chunk_mb: MiB that the largest of them may have, or the one that holds everything; None
            for `MAX_CHUNK_MB` where `chunks` is None, and for any number where it is not.
        prefix: what names of files begin with; None for what suits the model.
        argmax: the head names the likeliest token and nothing else, so that runtimes are greedy.
        fp16_scale: what the residual stream is multiplied by, so that float16 can carry it;
            1 for nothing, `AUTO_SCALE` for what the model needs. None: as `AUTO_SCALE` where norms
            stand after blocks, as in Gemma, and else as 1.
        split_rotate: the functions of full windows have files of their own.
        monolithic: everything is in one package.
        lora: LoRA adapters to merge, in this order.
        chat_template: one that the user chose; None for the source's own.
        threads: workers that stream weights; the result does not depend on it.
    """

    context: int = 512
    batch: int = 64
    lut_embeddings: Palette | None = None
    lut_layers: Palette | None = Palette(4, 8)  # noqa: RUF009 - it is frozen
    lut_head: Palette | None = Palette(6, 8)  # noqa: RUF009
    chunks: int | None = 2
    max_chunk_mb: int | None = None
    prefix: str | None = None
    argmax: bool = False
    fp16_scale: float | None = None
    split_rotate: bool = False
    monolithic: bool = False
    lora: Sequence[WeightedAdapter] = ()
    chat_template: ChatTemplate | None = None
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)

    def check(self) -> None:
        """Raise OptionError for what no model could be converted with."""
        check_context(self.context, MOST_POSITIONS, "any model")
        check_batch(self.batch, self.context)
        if self.prefix is not None:
            check_prefix(self.prefix)


def parse_lut(flag: str, text: str) -> Palette | None:
    """`6` or `6,4` -> indices of 6 bits, for groups of 8 or 4 rows; `none` -> no palette.

    A group of `0`, `tensor` or `t` is the whole tensor.

    Args:
        flag: the option, for messages.

    Raises:
        OptionError: it is none of these, or Core ML has no such palette.
    """
    if text.strip().lower() in _OFF:
        return None
    bits, comma, group = (part.strip().lower() for part in text.partition(","))
    if group in _WHOLE_TENSOR:
        group = "0"
    if not _is_number(bits) or (comma and not _is_number(group)):
        raise OptionError(
            f"{flag} {text}",
            "it is not BITS or BITS,GROUP",
            "give it like 4 or 6,16, or 6,tensor for one table per tensor, or none for float16",
        )
    try:
        return Palette(int(bits), int(group)) if comma else Palette(int(bits))
    except OptionError as error:
        raise OptionError(f"{flag} {text}", f"{error.what} {error.why}", error.fix) from error


def parse_chunks(text: str) -> int | None:
    """`2` -> 2, `auto` -> None: as few as fit.

    Raises:
        OptionError: it is neither.
    """
    text = text.strip().lower()
    if text == "auto":
        return None
    if not _is_number(text) or int(text) < 1:
        raise OptionError(
            f"--chunk {text}", "it is not a positive integer", "give a number of parts, or auto"
        )
    return int(text)


def parse_fp16_scale(text: str) -> float:
    """`0.5` -> 0.5, `auto` -> `AUTO_SCALE`, `none` -> 1.

    Raises:
        OptionError: it is none of these, or out of range.
    """
    text = text.strip().lower()
    if text == "auto":
        return AUTO_SCALE
    if text in _OFF:
        return 1.0
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not LEAST_SCALE <= scale <= 1:
        raise OptionError(
            f"--fp16-scale {text}",
            f"it is not a number from {LEAST_SCALE:g} to 1: beyond, float16 loses what it holds",
            "give it like 0.5, or auto, or none",
        )
    return scale


def _is_number(text: str) -> bool:
    """Whether it is a whole number that Python reads, of few digits."""
    return text.isascii() and text.isdecimal() and len(text) < 19
