"""A plan as numbers: what a conversion would read, write and need. Nothing here reads a weight."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.base import CALIBRATION, ModelConverter, Plan
from converter.cache_budget import CacheFit
from converter.checkpoint.base import Checkpoint
from converter.errors import OutputError
from converter.litertlm.inspection import SignatureSummary, summarise
from converter.litertlm.run_memory import RunMemory
from converter.options import spelled_draft
from converter.text.bundle_tokenizer import SENTENCEPIECE_KIND
from converter.text.tokenizer_json import HF_KIND
from converter.weights.planned_weight import BLOCK_VALUES, PlannedWeight

# What a conversion keeps in memory, in bytes, as peaks of whole processes were measured (Linux
# x86-64, Python 3.11, tiny to 0.6B). Nothing of it follows the number of parameters.
_BASE = 56_000_000  # the interpreter and the libraries that every conversion imports
_PER_VALUE = 11  # of a thread's block: as stored 2, float32 4, reordered 4, packed 1
_PER_FLATBUFFER_BYTE = 2  # its builder, and the result
_PER_TABLE = 290  # of the graph: its tensors and operators as Python objects
# Of a text that calibrates: per token and column where it is widest, and where it goes through the
# network twice; and per pair of columns that make up for each other.
_PER_INPUT, _PER_PAIR_OF_INPUTS, _PER_SQUARE = 26, 48, 6
# Of a tokenizer, as it is proved: Gemma 3's tokenizer.json taken apart, its pieces from a GGUF; and
# the tokenizer.json that was made pieces of.
_PER_TOKENIZER_BYTE = {HF_KIND: 4, SENTENCEPIECE_KIND: 18}
_PER_JSON_BYTE = 7


@dataclass(frozen=True)
class TensorGroup:
    """The weights of one kind and element type: how many, and their bytes in the result."""

    kind: str
    dtype: str
    count: int
    bytes: int


@dataclass(frozen=True)
class PlanReport:
    """What `convert --dry-run` prints; the fields are the keys of its JSON.

    Attributes:
        source_bytes: what is read of the checkpoint's tensors.
        weights_bytes: what they are packed into, scales of rows not counted.
        output_bytes: size of the finished file.
        kv_cache: what keys and values are held as.
        memory_bytes: most memory that the conversion holds, about; independent of the weights.
        disk_needed_bytes: what must be free. An output that is replaced stays until the new one is
            complete.
        run_memory: what the result needs in the engine.
        memory_fit: what a budget of memory comes to; None without one.
    """

    model: str
    family: str
    scheme: str
    target: str
    calibration: str | None
    bits: str | None
    chat_template: str
    output: str
    output_exists: bool
    kv_cache_length: int
    kv_cache: str
    draft: str
    prefill_lengths: tuple[int, ...]
    signatures: list[SignatureSummary]
    tensors: list[TensorGroup]
    source_bytes: int
    weights_bytes: int
    output_bytes: int
    memory_bytes: int
    disk_needed_bytes: int
    disk_free_bytes: int
    threads: int
    run_memory: RunMemory
    memory_fit: CacheFit | None

    def as_json(self) -> dict[str, Any]:
        """The whole report in plain types."""
        return asdict(self)


def report(converter: ModelConverter, plan: Plan, output: Path) -> PlanReport:
    """Describe what `converter.write(plan, output)` would do."""
    threads = converter.options.threads
    model = summarise(memoryview(plan.model.flatbuffer))
    return PlanReport(
        model=converter.name,
        family=plan.family.name,
        scheme=plan.quantization.name,
        target=converter.options.target.value,
        calibration=plan.text().system.get(CALIBRATION),
        bits=plan.bits,
        chat_template=plan.text().system["chat template"],
        output=str(output),
        output_exists=output.exists(),
        kv_cache_length=plan.cache_length,
        kv_cache=plan.cache_type.value,
        draft=spelled_draft(converter.options),
        prefill_lengths=plan.prefill_lengths,
        signatures=model.signatures,
        tensors=tensor_groups(plan.weights),
        source_bytes=source_bytes(converter.checkpoint, plan.weights),
        weights_bytes=weights_bytes(plan),
        output_bytes=plan.bundle.nbytes,
        memory_bytes=_memory(converter, plan),
        disk_needed_bytes=disk_needed(converter, plan),
        disk_free_bytes=disk_free(output),
        threads=threads,
        run_memory=model.run_memory,
        memory_fit=plan.memory_fit,
    )


def source_bytes(checkpoint: Checkpoint, weights: Iterable[PlannedWeight]) -> int:
    """What is read of the checkpoint's tensors."""
    tensors = checkpoint.tensors
    names = {w.source.tensor for w in weights if not w.source.is_absent}
    return sum(tensors[name].nbytes for name in names)


def source_types(weights: Iterable[PlannedWeight]) -> dict[str, int]:
    """How many weights the source holds in which type or layout, named as `inspect` does."""
    return dict(Counter(weight.stored_as for weight in weights))


def weights_bytes(plan: Plan) -> int:
    """The bytes of all packed weights, which is what a conversion's progress adds up to."""
    drafter = 0 if plan.drafter is None else plan.drafter.nbytes
    return sum(weight.nbytes for weight in plan.weights) + drafter


def disk_needed(converter: ModelConverter, plan: Plan) -> int:
    """Bytes that must be free: all of the file, as it is complete before it replaces another."""
    return plan.bundle.nbytes + converter.scratch_bytes(plan)


def disk_free(output: Path) -> int:
    """Bytes free where `output` will be: in the nearest folder above it that exists.

    Raises:
        OutputError: there is none, or its disk does not say.
    """
    folder = next(filter(os.path.exists, output.parents), output.parent)
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        why = error.strerror or str(error)
        raise OutputError(str(output), why, "choose another folder with --output-dir") from error


def tensor_groups(weights: Iterable[PlannedWeight]) -> list[TensorGroup]:
    """The weights by kind and element type, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[int]] = {}
    for weight in weights:
        key = (_kind(weight.path), weight.format.dtype_name)
        groups.setdefault(key, []).append(weight.nbytes)
    return [
        TensorGroup(kind, dtype, len(sizes), sum(sizes)) for (kind, dtype), sizes in groups.items()
    ]


def _kind(path: str) -> str:
    """`layers.0.attention.q` -> `linear`; see `DecoderSpec.weight_shapes`."""
    name = path.rpartition(".")[2]
    if name in ("embedding", "head", "bias"):
        return name
    return "norm" if name.endswith("norm") else "linear"


def _memory(converter: ModelConverter, plan: Plan) -> int:
    """About the most memory that carrying out the plan takes, its helper process included."""
    block = min(BLOCK_VALUES, max(math.prod(weight.shape) for weight in plan.weights))
    return (
        _BASE
        + _PER_FLATBUFFER_BYTE * len(plan.model.flatbuffer)
        + _PER_TABLE * plan.model.tables
        + _tokenizer_memory(converter.checkpoint, plan)
        + _PER_VALUE * block * converter.options.threads
        + _calibration_memory(plan)
    )


def _calibration_memory(plan: Plan) -> int:
    """Of a text on its way, where it is widest, and of what is known of the inputs there."""
    if plan.passages is None:
        return 0
    compensated = [w.shape[-1] for w in plan.weights if w.compensated_block is not None]
    fed = max(w.shape[-1] for w in plan.weights if w.format.rounds_inputs)
    per_input = _PER_PAIR_OF_INPUTS if compensated else _PER_INPUT
    return _PER_SQUARE * max(compensated, default=0) ** 2 + per_input * plan.passages.size * fed


def _tokenizer_memory(checkpoint: Checkpoint, plan: Plan) -> int:
    for section, data in plan.sections:
        if section.kind in _PER_TOKENIZER_BYTE:
            assert data is not None
            json = checkpoint.path / "tokenizer.json"
            if section.kind == SENTENCEPIECE_KIND and json.is_file():
                return _PER_JSON_BYTE * json.stat().st_size
            # The size of a compressed one stands before it.
            packed = section.kind == HF_KIND
            nbytes = int.from_bytes(data[:8], "little") if packed else len(data)
            return _PER_TOKENIZER_BYTE[section.kind] * nbytes
    raise ValueError("a bundle without a tokenizer")
