"""What the user may choose for a conversion."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from converter.checkpoint.base import Checkpoint
from converter.decoder import DecoderSpec, Experts
from converter.errors import OptionError
from converter.text.named_templates import chat_template_of
from converter.tflite.kv_cache import CacheType, Target
from converter.tflite.lookup import MOST_DRAFTS
from converter.user_text import read_user_text
from converter.weights.adapters import WeightedAdapter
from converter.weights.row_format import Clip

if TYPE_CHECKING:
    from converter.weights.passages import CalibrationText

# The engine takes the longest that fits into what is left of a prompt, again and again, and pads
# the last: with no rung between 8 and 64, 62 tokens were eight calls.
PREFILL_LADDER = (8, 16, 32, 64, 128, 256, 512, 1024)
# Of a model with experts, every length has a branch for each of them in each layer, which the
# runtime loads one by one and gives memory for its rows, twice. So there are two lengths, and the
# longer one is what so many bytes have room for.
_LONGEST_OF_EXPERTS = 128
_ROWS_OF_EXPERTS = 1 << 30
DEFAULT_CACHE_LENGTH = 1280
DEFAULT_DRAFTS = 3
# What `--kv-cache-max-len auto` fills where nobody says more: about half of a phone with 6 GB. No
# machine is asked, so that the same command makes the same bytes everywhere.
DEFAULT_MEMORY = 3_000_000_000
_LARGEST_TEMPLATE = 1 << 20  # bytes; published ones are below 30,000


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in place of the source's own.

    Attributes:
        text: in Jinja; "" for none, so that the model completes text.
        file: where it was read.
    """

    text: str
    file: str | None = None


@dataclass(frozen=True)
class DrafterSource:
    """A drafter that was trained with the model.

    Attributes:
        name: as the user knows it.
    """

    checkpoint: Checkpoint
    name: str


def ladder_of(spec: DecoderSpec) -> tuple[int, ...]:
    """The prefill lengths that suit a network."""
    blocks = (layer.feed_forward for layer in spec.layers)
    experts = sum(block.count for block in blocks if isinstance(block, Experts))
    if not experts:
        return PREFILL_LADDER
    room = _ROWS_OF_EXPERTS // (experts * spec.hidden_size * 2 * 4)
    longest = [n for n in PREFILL_LADDER if n <= min(room, _LONGEST_OF_EXPERTS)]
    return tuple(sorted({PREFILL_LADDER[0], *longest[-1:]}))


def is_placeholder(size: int) -> bool:
    """Whether the engine takes a size in a graph for a placeholder: a prime above 10.

    It then replaces that size, and all its multiples, by a rounder one (docs/runtime.md). A graph
    of ours does not load afterwards, or has a shorter context.
    """
    return size > 10 and all(size % divisor for divisor in range(2, math.isqrt(size) + 1))


@dataclass(frozen=True)
class ConvertOptions:
    """What the user may choose.

    Attributes:
        quantize: name of a scheme, and rules for parts (`parse_quantization`); None for the scheme
            that suits the model's size and the target (`default_scheme`).
        clip: how the scales of int4 blocks are chosen.
        calibrate: a text by which columns of int4 make up for each other's errors, and inputs of
            int8 are equalised.
        bits: that a weight may take on average, scales included; what `quantize` has in int4 is
            int8 where that saves most, up to so many. None for what `quantize` says.
        prefill_lengths: tokens per prefill signature, ascending; None for what suits the model.
        cache_length: slots in the KV cache; None for the default, or the model's own limit where
            that is lower.
        memory: bytes that the result may take when it runs, engine and tokenizer included; None for
            any. Where `cache_length` is None, it is then the largest that fits.
        target: what the graph is made for.
        kv_cache: what keys and values are held as; None for float32.
        drafts: the most tokens that are drafted at once; 0 for no drafts.
        drafter: what drafts them; None for prompt lookup.
        lora: LoRA adapters to merge, in this order.
        chat_template: one that the user chose; None for the source's own.
        threads: workers that stream weights; the result does not depend on it.
    """

    quantize: str | None = None
    clip: Clip = Clip.MSE
    calibrate: CalibrationText | None = None
    bits: float | None = None
    prefill_lengths: Sequence[int] | None = None
    cache_length: int | None = None
    memory: int | None = None
    target: Target = Target.CPU
    kv_cache: CacheType | None = None
    drafts: int = 0
    drafter: DrafterSource | None = None
    lora: Sequence[WeightedAdapter] = ()
    chat_template: ChatTemplate | None = None
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)


def read_chat_template(text: str) -> ChatTemplate:
    """What `--chat-template` names: a file with a template, or `none`.

    A chat_template.json or tokenizer_config.json is a file with one, too.

    Raises:
        OptionError: there is no such file, or it cannot be a template.
        SourceError: the template in a JSON file is none.
    """
    if text == "none":
        return ChatTemplate("")
    what, fix = f"--chat-template {text}", "pass a file with a Jinja template, or none"
    template = read_user_text(text, what, _LARGEST_TEMPLATE, fix)
    settings = _json_object(template)
    if settings is not None:
        found = chat_template_of(settings.get("chat_template"), text)
        if found is None:
            raise OptionError(what, "it is JSON, and has no chat_template", fix)
        template = found
    return ChatTemplate(template, os.path.abspath(text))


def _json_object(text: str) -> dict[str, Any] | None:
    """`text` as a JSON object; None where it is none, as a Jinja template is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse_draft(text: str) -> tuple[str, int]:
    """What `--draft` names, `none`, `lookup` or a drafter, and at most how many tokens at once.

    `:N` behind it says how many; of `none` there are 0.

    Raises:
        OptionError: it cannot be any of these.
    """
    if text == "none":
        return text, 0
    drafter, colon, count = text.rpartition(":")
    if colon and (count.isdecimal() or drafter == "lookup"):
        drafts = int(count) if count.isdecimal() else 0
    else:
        drafter, drafts = text, DEFAULT_DRAFTS
    is_place = drafter not in ("", "none") and ("/" in drafter or os.path.exists(drafter))
    if (drafter == "lookup" or is_place) and 0 < drafts <= MOST_DRAFTS:
        return drafter, drafts
    raise OptionError(
        f"--draft {text}",
        "is no kind of drafts",
        "say none, lookup, or a drafter's folder or Hugging Face id; and :N behind it for at most "
        f"N drafts at once, N from 1 to {MOST_DRAFTS}",
    )


def drafter_name(options: ConvertOptions) -> str:
    """How `--draft` names what drafts."""
    return "lookup" if options.drafter is None else options.drafter.name


def spelled_draft(options: ConvertOptions) -> str:
    """The same, and how many tokens."""
    return f"{drafter_name(options)}:{options.drafts}" if options.drafts else "none"


def parse_prefill_lengths(text: str) -> tuple[int, ...]:
    """`256` -> the ladder up to 256 and 256 itself; `32,100` -> exactly these.

    Raises:
        OptionError: not positive integers, or one of them twice.
    """
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if 0 in numbers:
        wrong = text.split(",")[numbers.index(0)]
        raise OptionError(
            f"--prefill-seq-len {text}",
            f"{wrong!r} is not a positive integer",
            "give one length or a comma list, like 64,256",
        )
    if "," not in text:
        return tuple(sorted({*(n for n in PREFILL_LADDER if n < numbers[0]), numbers[0]}))
    if len(set(numbers)) < len(numbers):
        raise OptionError(f"--prefill-seq-len {text}", "names a length twice", "name each once")
    return tuple(sorted(numbers))
