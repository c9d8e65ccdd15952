"""What is converted, whatever it becomes: a checkpoint's network, and where its weights are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from converter.checkpoint.base import Checkpoint
from converter.decoder import DecoderSpec
from converter.errors import SourceError
from converter.families.base import Family
from converter.families.matching import OTHER_GGUF, grouped
from converter.families.tensors import WeightSource
from converter.registry import family_of
from converter.text.bundle_tokenizer import BundleTokenizer
from converter.weights.adapters import WeightedAdapter
from converter.weights.lora import merged_updates
from converter.weights.lora_update import Update
from converter.weights.tied_head import settle_head, untied


@dataclass(frozen=True)
class Network:
    """The decoder of a checkpoint.

    Attributes:
        sources: of each weight.
        updates: what adapters make of some.
        found: what a user should know about the weights, by what it concerns.
    """

    checkpoint: Checkpoint
    name: str
    family: Family
    sources: Mapping[str, WeightSource]
    updates: Mapping[str, tuple[Update, ...]]
    found: Mapping[str, str]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every weight, in the order in which they are used.

        Raises:
            SourceError: a tensor has another shape.
        """
        shapes = dict(self.family.spec().weight_shapes())
        check_shapes(self.checkpoint, self.name, self.sources, shapes)
        return shapes

    def spec(self, context: int) -> DecoderSpec:
        """The network in a context of so many positions."""
        return self.family.spec().for_context(context)

    def stored_as(self, path: str) -> tuple[str, int | None]:
        """A weight's type in the checkpoint, and its columns that share a scale on a grid of int4.

        The type is `zeros` where the checkpoint has no such tensor.
        """
        source = self.sources[path]
        if source.is_absent:
            return "zeros", None
        tensor = self.checkpoint.tensors[source.tensor]
        return tensor.dtype, tensor.int4_block


def read_network(
    checkpoint: Checkpoint, name: str, lora: Sequence[WeightedAdapter] = ()
) -> Network:
    """Read the config, and match the network's weights with the checkpoint's tensors.

    Raises:
        SourceError, UnsupportedError: see `converter.errors`.
    """
    stated = family_of(checkpoint.config, checkpoint.format)
    family = settle_head(stated, checkpoint)
    tensors = list(checkpoint.tensors)
    sources = family.weight_sources(tensors, checkpoint.format)
    found = _found(family.left_out(tensors, sources.values()), sources)
    if family is not stated:
        found["head"] = "kept apart from the embedding, to which the config ties it: they differ"
    updates = merged_updates(lora, family)
    if family.tie_word_embeddings and updates.get("embedding") != updates.get("head"):
        found["head"] = "kept apart from the embedding: an adapter changes one of them"
        family = untied(family)
        sources["head"] = sources["embedding"]
    return Network(checkpoint, name, family, sources, updates, found)


def check_shapes(
    checkpoint: Checkpoint,
    what: str,
    sources: Mapping[str, WeightSource],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Make sure that a checkpoint's tensors have the shapes that its config asks for.

    Args:
        what: the checkpoint, as the user knows it.
        sources: of each weight.
        shapes: of the weights.

    Raises:
        SourceError: some have not.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for path, source in sources.items():
        if not source.is_absent:  # several weights may share a tensor, one below the other
            rows = source.end(shapes[path][0])
            before = wanted.get(source.tensor, (0,))[0]
            wanted[source.tensor] = (max(before, rows), *shapes[path][1:])
    stored = {name: _as_matrix(checkpoint.tensors[name].shape) for name in wanted}
    for source in sources.values():
        if source.is_absent:
            continue
        name, shape = source.tensor, checkpoint.tensors[source.tensor].shape
        if source.is_flattened:
            stored[name] = (math.prod(shape),)
        elif source.is_transposed and len(shape) == 3:
            stored[name] = (shape[0] * shape[2], shape[1])
    said_by = "its metadata" if checkpoint.format == "gguf" else "config"
    wrong = [
        f"{name} is {list(shape)}, {said_by} says {list(wanted[name])}"
        for name, shape in stored.items()
        if shape != _as_matrix(wanted[name])
    ]
    if any(0 in shape for shape in stored.values()):
        fix = "save it whole: DeepSpeed ZeRO-3 leaves empty tensors, zero_to_fp32.py fills them"
    elif checkpoint.format == "gguf":
        fix = OTHER_GGUF
    else:
        fix = "check that config.json belongs to these weights"
    if wrong:
        raise SourceError(
            what, f"{len(wrong)} tensors have the wrong shape: {'; '.join(wrong[:5])}", fix
        )


def check_vocabulary(tokenizer: BundleTokenizer, spec: DecoderSpec, name: str) -> None:
    """Raise SourceError where a tokenizer has tokens that the network has no rows for."""
    if tokenizer.vocab_size > spec.vocab_size:
        raise SourceError(
            f"{name}: tokenizer",
            f"has {tokenizer.vocab_size} tokens, the embedding only {spec.vocab_size} rows",
            "use the tokenizer that belongs to this checkpoint",
        )


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A stack of matrices as one, and a convolution's (width, 1, kernel) as a GGUF has it."""
    return shape if len(shape) < 3 else (math.prod(shape[:-1]), shape[-1])


def _found(left_out: Sequence[str], sources: Mapping[str, WeightSource]) -> dict[str, str]:
    """What `inspect` and a note say about tensors that are not used, or not there."""
    found = {}
    if left_out:
        found["left out"] = f"{grouped(left_out)}: this network has no place for them"
    absent = Counter(path.split(".")[-2] for path, source in sources.items() if source.is_absent)
    if absent:
        layers = ", ".join(f"{projection} in {n} layers" for projection, n in absent.items())
        found["biases"] = f"zero where the checkpoint has none: {layers}"
    return found
