"""What a model would be, from its config and the headers of its weights: not one weight is read.

Every figure is that of the plan which `convert` would carry out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from converter.base import ModelConverter, Plan
from converter.cache_budget import CacheFit
from converter.checkpoint.base import Checkpoint
from converter.errors import LiteRTLMError, SourceError
from converter.litertlm.inspection import summarise
from converter.litertlm.run_memory import RunMemory
from converter.options import DEFAULT_CACHE_LENGTH, ConvertOptions, spelled_draft
from converter.weights.quantization import SCHEMES

# Tokens of context whose memory is told, as far as the model goes.
CONTEXTS = (DEFAULT_CACHE_LENGTH, 4096, 8192, 32768)


@dataclass(frozen=True)
class SchemeSize:
    """A scheme of `--quantize`, and how large the network is in it.

    Attributes:
        bytes: of the network in the file; tokenizer and template come to it. None where the scheme
            is refused.
        refusal: why it is.
    """

    scheme: str
    bytes: int | None
    refusal: str | None = None


@dataclass(frozen=True)
class ContextMemory:
    """What the model needs in the engine with so many tokens of context (`--kv-cache-max-len`)."""

    kv_cache_length: int
    run_memory: RunMemory


@dataclass(frozen=True)
class CheckReport:
    """What `check` prints; the fields are the keys of its JSON.

    Attributes:
        family: that it is read as.
        parameters: values in its weights; a tied head counts once.
        context_length: tokens that the model was made for.
        scheme, target, kv_cache: that the memory is told for.
        memory_fit: what a budget of memory comes to; None without one.
        text_proved: whether tokenizer and chat template were there to be proved.
        notes: what a conversion would say beside.
    """

    model: str
    supported: bool
    family: str
    parameters: int
    context_length: int
    scheme: str
    target: str
    kv_cache: str
    draft: str
    sizes: tuple[SchemeSize, ...]
    memory: tuple[ContextMemory, ...]
    memory_fit: CacheFit | None
    text_proved: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole report in plain types."""
        return asdict(self)


class _UnreadConverter(ModelConverter):
    """Plans without the weights, which may not be there."""

    def _losses(self, *_: object) -> dict[str, float]:
        return {}  # any choice of this size does


class _NetworkConverter(_UnreadConverter):
    """Plans a network alone: its tokenizer may not be there."""

    def _describe(self, *_: object) -> Any:
        raise SourceError(self.name, "its tokenizer was not looked at", "convert it")

    def _read_passages(self, *_: object) -> None:
        return None


def check(
    checkpoint: Checkpoint, name: str, options: ConvertOptions, has_text: bool
) -> CheckReport:
    """Plan a conversion in every scheme and in several lengths of context.

    Args:
        has_text: whether tokenizer and chat template are there, and are to be proved.

    Raises:
        LiteRTLMError: what a conversion would be refused with.
    """
    notes: tuple[str, ...] = ()
    if has_text:
        notes = tuple(_UnreadConverter(checkpoint, name, options).plan().metadata.notes)
    plan = _NetworkConverter(checkpoint, name, options).plan()
    lengths = options.cache_length and (options.cache_length,)
    # It has been settled, and what follows is told of other schemes and lengths, too.
    options = replace(options, cache_length=plan.cache_length, memory=None)
    return CheckReport(
        model=name,
        supported=True,
        family=plan.family.name,
        parameters=sum(math.prod(weight.shape) for weight in plan.weights),
        context_length=plan.family.max_position_embeddings,
        scheme=plan.quantization.name,
        target=options.target.value,
        kv_cache=plan.cache_type.value,
        draft=spelled_draft(options),
        sizes=tuple(_sizes(checkpoint, name, options, plan)),
        memory=tuple(_memory(checkpoint, name, options, lengths or _contexts(plan))),
        memory_fit=plan.memory_fit,
        text_proved=has_text,
        notes=notes,
    )


def _contexts(plan: Plan) -> Iterable[int]:
    limit = plan.family.max_position_embeddings
    fitting = () if plan.memory_fit is None else (plan.cache_length,)
    return sorted({min(length, limit) for length in (*CONTEXTS, *fitting)})


def _sizes(
    checkpoint: Checkpoint, name: str, options: ConvertOptions, plan: Plan
) -> Iterable[SchemeSize]:
    plain = replace(options, calibrate=None, bits=None)  # a text changes no size
    planned = {
        scheme: replace(plain, quantize=scheme)
        for scheme in dict.fromkeys((plan.quantization.name, *SCHEMES))
    }
    if options.bits is not None:
        planned = {f"{plan.quantization.name} --bits {options.bits:g}": options, **planned}
    for scheme, chosen in planned.items():
        try:
            found = _NetworkConverter(checkpoint, name, chosen).plan()
            drafter = 0 if found.drafter is None else found.drafter.nbytes
        except LiteRTLMError as refusal:  # blocks that do not divide a row, for one
            yield SchemeSize(scheme, None, str(refusal))
        else:
            yield SchemeSize(scheme, found.model.nbytes + drafter)


def _memory(
    checkpoint: Checkpoint, name: str, options: ConvertOptions, lengths: Iterable[int]
) -> Iterable[ContextMemory]:
    for length in lengths:
        plan = _NetworkConverter(checkpoint, name, replace(options, cache_length=length)).plan()
        model = summarise(memoryview(plan.model.flatbuffer))
        yield ContextMemory(length, model.run_memory)
