"""A plan of packages as numbers, and what would become of a model. Nothing here reads a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.base import Checkpoint
from converter.coreml.chunks import MAX_CHUNK_MB, Figure, figures, layer_bytes
from converter.coreml_options import CoreMLOptions
from converter.coreml_pipeline import CoreMLConverter, CoreMLPlan
from converter.errors import LiteRTLMError, SourceError
from converter.report import TensorGroup, disk_free, source_bytes, tensor_groups
from converter.weights.palettes import Palette

# Palettes whose sizes `check` tells, for all parts; None is float16.
PALETTES = (None, Palette(8), Palette(6), Palette(4))


@dataclass(frozen=True)
class Package:
    """A package of a plan.

    Attributes:
        kind: `embeddings`, `layers`, `head` or `monolithic`.
        functions: their names, the default first.
    """

    name: str
    kind: str
    functions: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class State:
    """What runtimes keep between calls, float16."""

    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class CoreMLPlanReport:
    """What `convert --target coreml --dry-run` prints; the fields are the keys of its JSON.

    Attributes:
        lut: bits and group of each part's palette; None for float16.
        fp16_scale: what the residual stream is multiplied by; None where that is still to be
            measured.
        chunk_figures: ANEMLL's calculator: 1, 2, .. chunks, until the largest is within the limit.
        head_parts: rows of each output of the head.
        source_bytes: what is read of the checkpoint's tensors.
        weights_bytes: what they are packed into.
        output_bytes: of all packages, and the files beside them.
        notes: what is taken, and may be slow or surprise.
    """

    model: str
    family: str
    target: str
    output: str
    output_exists: bool
    prefix: str
    context: int
    batch: int
    lut: Mapping[str, tuple[int, int] | None]
    fp16_scale: float | None
    packages: tuple[Package, ...]
    states: tuple[State, ...]
    max_chunk_mb: int
    chunk_figures: tuple[Figure, ...]
    head_parts: tuple[int, ...]
    tensors: list[TensorGroup]
    source_bytes: int
    weights_bytes: int
    output_bytes: int
    disk_needed_bytes: int
    disk_free_bytes: int
    threads: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole report in plain types."""
        return asdict(self)


def report(converter: CoreMLConverter, plan: CoreMLPlan, output: Path) -> CoreMLPlanReport:
    """Describe what `converter.write(plan, output)` would do."""
    options, interface = converter.options, plan.interface
    texts = plan.texts().values()
    nbytes = plan.packages_nbytes + sum(
        text.stat().st_size if isinstance(text, Path) else len(text) for text in texts
    )
    lut = options.lut_layers
    bits = 16 if lut is None else lut.bits
    limit = options.max_chunk_mb or MAX_CHUNK_MB
    return CoreMLPlanReport(
        model=converter.name,
        family=plan.family.name,
        target="coreml",
        output=str(output),
        output_exists=output.is_dir() and any(output.iterdir()),
        prefix=plan.described.names.prefix,
        context=interface.context,
        batch=interface.batch,
        lut={
            "embeddings": _pair(options.lut_embeddings),
            "layers": _pair(lut),
            "head": _pair(options.lut_head),
        },
        fp16_scale=None if converter.measures_scale else plan.scale,
        packages=tuple(
            Package(part.name, part.kind, tuple(f.name for f in part.functions), part.nbytes)
            for part in plan.parts
        ),
        states=tuple(
            State(state.name, state.shape, 2 * math.prod(state.shape)) for state in interface.states
        ),
        max_chunk_mb=limit,
        chunk_figures=tuple(figures(layer_bytes(plan.spec), bits, limit)),
        head_parts=interface.head_parts,
        tensors=tensor_groups(plan.weights),
        source_bytes=source_bytes(converter.checkpoint, plan.weights),
        weights_bytes=plan.weights_nbytes,
        output_bytes=nbytes,
        disk_needed_bytes=nbytes,
        disk_free_bytes=disk_free(output),
        threads=options.threads,
        notes=plan.notes,
    )


def _pair(palette: Palette | None) -> tuple[int, int] | None:
    return None if palette is None else (palette.bits, palette.group)


@dataclass(frozen=True)
class PaletteSize:
    """All packages in a palette for all parts.

    Attributes:
        lut: its bits and group; None for float16.
        bytes: of the packages; None where it is refused.
        refusal: why it is.
    """

    lut: tuple[int, int] | None
    bytes: int | None
    refusal: str | None = None


@dataclass(frozen=True)
class CoreMLCheckReport:
    """What `check --target coreml` prints; the fields are the keys of its JSON.

    Attributes:
        parameters: values in its weights; a tied head counts once.
        context_length: tokens that the model was made for.
        bytes: of all packages as they were chosen.
        states_bytes: what runtimes keep in the context that was chosen.
        text_proved: whether the tokenizer was there to be proved.
    """

    model: str
    supported: bool
    family: str
    target: str
    parameters: int
    context_length: int
    context: int
    bytes: int
    states_bytes: int
    sizes: tuple[PaletteSize, ...]
    text_proved: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole report in plain types."""
        return asdict(self)


class _NetworkConverter(CoreMLConverter):
    """Plans packages alone: the tokenizer may not be there."""

    def _texts(self, *_: object) -> Any:
        raise SourceError(self.name, "its tokenizer was not looked at", "convert it")


def check(
    checkpoint: Checkpoint, name: str, options: CoreMLOptions, has_text: bool
) -> CoreMLCheckReport:
    """Plan packages as they were chosen, and in several palettes.

    Args:
        has_text: whether the tokenizer is there, and is to be proved.

    Raises:
        LiteRTLMError: what a conversion would be refused with.
    """
    converter = (CoreMLConverter if has_text else _NetworkConverter)(checkpoint, name, options)
    plan = converter.plan()
    if has_text:
        plan.texts()
    states = [2 * math.prod(state.shape) for state in plan.interface.states]
    return CoreMLCheckReport(
        model=name,
        supported=True,
        family=plan.family.name,
        target="coreml",
        parameters=sum(math.prod(shape) for shape in converter.network.shapes.values()),
        context_length=plan.family.max_position_embeddings,
        context=plan.interface.context,
        bytes=plan.packages_nbytes,
        states_bytes=sum(states),
        sizes=tuple(_size(checkpoint, name, options, palette) for palette in PALETTES),
        text_proved=has_text,
        notes=plan.notes,
    )


def _size(
    checkpoint: Checkpoint, name: str, options: CoreMLOptions, palette: Palette | None
) -> PaletteSize:
    chosen = replace(
        options, lut_embeddings=palette, lut_layers=palette, lut_head=palette, chunks=None
    )
    try:
        nbytes = _NetworkConverter(checkpoint, name, chosen).plan().packages_nbytes
    except LiteRTLMError as refusal:  # groups that do not divide, for one
        return PaletteSize(_pair(palette), None, str(refusal))
    return PaletteSize(_pair(palette), nbytes)
