"""A drafter that was trained with the model, beside its network: read, matched, planned.

    the model's embedding --x first projection--> what the drafter makes of each token
    the assistant's own tensors ----------------> its layers, head and second projection

It becomes a section of its own behind the network's, whose weights are streamed as the network's
are (`WeightStream`), in the formats that `--quantize` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.base import Checkpoint, TensorInfo, ThreadBuffer, room_for
from converter.checkpoint.quantized.base import StoredCheckpoint
from converter.decoder import DecoderSpec
from converter.errors import OptionError, SourceError, UnsupportedError
from converter.families.gemma4 import Gemma4
from converter.families.gemma4_assistant import Gemma4Assistant
from converter.families.tensors import WeightSource
from converter.network import Network, check_shapes
from converter.options import DrafterSource
from converter.tflite.assistant import (
    CENTROIDS,
    HIDDEN,
    PROJECTED,
    TOKENS,
    Assistant,
    Clusters,
    build_assistant,
)
from converter.tflite.graph import Weight
from converter.tflite.kv_cache import CacheType
from converter.tflite.writer import Layout, write
from converter.weights.quantization import Format, Quantization
from converter.weights.stream import PlannedWeight
from converter.weights.weight_rows import read_weight

ASSISTANTS = ("gemma4_assistant", "gemma4_unified_assistant")
_BEFORE, _AFTER = "pre_projection.weight", "post_projection.weight"
_CENTROIDS, _ORDER = "masked_embedding.centroids.weight", "masked_embedding.token_ordering"
_AGAIN = "fetch or copy it again"
_INSTEAD = "name an assistant of Gemma 4, or say --draft lookup"


@dataclass(frozen=True)
class DrafterPlan:
    """The drafter's section.

    Attributes:
        weights: with places that count from the section's beginning; none where it looks tokens up.
        model: its graph.
        width: of an embedding, E (`lookup`).
    """

    weights: tuple[PlannedWeight, ...]
    model: Layout
    width: int

    def placed(self, offset: int) -> tuple[PlannedWeight, ...]:
        """The weights, where the section begins so many bytes from the start of the file."""
        return tuple(
            dataclasses.replace(
                weight,
                offset=weight.offset + offset,
                scales_offset=None
                if weight.scales_offset is None
                else weight.scales_offset + offset,
            )
            for weight in self.weights
        )


@dataclass(frozen=True)
class Drafter:
    """A drafter for a network, whose tensors fit.

    Attributes:
        name: as the user knows it.
        tensors: what is read of it.
        sources: where each weight is in there.
        formats: in which each is stored.
        stored: each weight as it is stored, in the order of use.
    """

    name: str
    assistant: Assistant
    tensors: AssistantTensors
    sources: Mapping[str, WeightSource]
    formats: Mapping[str, Format]
    stored: Mapping[str, Weight]

    @property
    def nbytes(self) -> int:
        """Of all weights."""
        return sum(stored.streamed_nbytes for stored in self.stored.values())

    def plan(
        self, slots: int, rings: bool, cache_type: CacheType, stops: Sequence[int]
    ) -> DrafterPlan:
        """Emit its graph and give its weights their places; see `build_assistant`."""
        model = write(
            build_assistant(
                self.assistant, slots, self.stored.__getitem__, rings, cache_type, stops
            )
        )

        def planned(path: str, stored: Weight) -> PlannedWeight:
            source = self.sources[path]
            stored_as = "zeros" if source.is_absent else self.tensors.tensors[source.tensor].dtype
            form = self.formats[path]
            return PlannedWeight.placed(path, source, stored_as, None, form, stored, model)

        weights = tuple(planned(*weight) for weight in self.stored.items())
        return DrafterPlan(weights, model, self.assistant.width)


class AssistantTensors(Checkpoint):
    """An assistant's tensors, and the two that its first projection becomes.

    The projection is of a token's embedding and the network's last hidden row, side by side: what
    it makes of the one is a table for all tokens (`TOKENS`), of the other a matrix (`HIDDEN`).
    """

    def __init__(self, own: Checkpoint, network: Network, spec: DecoderSpec, hidden: int) -> None:
        """
        Args:
            hidden: the assistant's own width.
        """
        self.path, self.format, self.config = own.path, own.format, own.config
        self.generation_config = own.generation_config
        self._own, self._network = own, network
        self._table = spec.vocab_size, spec.hidden_size
        self._scale = np.float32(spec.embedding_scale or 1)
        self._floats = ThreadBuffer(np.float32)
        both = own.read_rows(_BEFORE, 0, hidden)
        self._of_token = np.ascontiguousarray(both[:, : spec.hidden_size].T) * self._scale
        self._of_hidden = np.ascontiguousarray(both[:, spec.hidden_size :])
        before = own.tensors[_BEFORE]
        made = ((TOKENS, (spec.vocab_size, hidden)), (HIDDEN, self._of_hidden.shape))
        self.tensors = {
            **own.tensors,
            **{name: TensorInfo(name, shape, before.dtype, before.nbytes) for name, shape in made},
        }

    @property
    def files(self) -> Sequence[Path]:
        return self._own.files

    def read_rows(
        self,
        name: str,
        start: int,
        stop: int,
        buffer: np.ndarray | None = None,
        keep_bf16: bool = False,
    ) -> np.ndarray:
        if name == HIDDEN:
            return self._of_hidden[start:stop].copy()
        if name != TOKENS:
            return self._own.read_rows(name, start, stop, buffer, keep_bf16)
        network = self._network
        rows = read_weight(
            network.checkpoint,
            network.sources["embedding"],
            self._table,
            network.updates.get("embedding", ()),
            start,
            stop,
            self._floats,
        )
        made = room_for(len(rows) * self._of_token.shape[1], buffer).reshape(len(rows), -1)
        return np.matmul(rows, self._of_token, out=made)

    def check_unchanged(self) -> None:
        self._own.check_unchanged()

    def close(self) -> None:
        self._own.close()


def check_drafter_config(config: Mapping[str, Any], fmt: str = "safetensors") -> Gemma4Assistant:
    """Read the config of what `--draft` names.

    Raises:
        SourceError, UnsupportedError: it is none that can be used.
    """
    kind = str(config.get("model_type"))
    classes = config.get("architectures")
    named = " ".join(map(str, classes)) if isinstance(classes, list) else ""
    what = f"--draft: model_type {kind}"
    if fmt == "gguf":
        raise UnsupportedError(
            "--draft", "a GGUF of a drafter is not read", "name its Hugging Face folder or id"
        )
    if "eagle" in f"{kind} {named}".lower():
        raise UnsupportedError(
            f"{what} ({named})",
            "an EAGLE head has keys and values of its own, which nobody keeps for it",
            _INSTEAD,
        )
    if kind not in ASSISTANTS:
        raise UnsupportedError(what, "it is no drafter that can be used", _INSTEAD)
    family = Gemma4Assistant.from_config(config)
    assert isinstance(family, Gemma4Assistant)
    return family


def read_drafter(
    source: DrafterSource, network: Network, spec: DecoderSpec, quantization: Quantization
) -> Drafter:
    """Match an assistant with the network that it drafts for.

    Args:
        spec: the network's, in the context that it is converted for.

    Raises:
        OptionError: the network has no drafters of its own.
        SourceError, UnsupportedError: the assistant was made for another model, or is damaged.
    """
    checkpoint, what = source.checkpoint, f"--draft {source.name}"
    family = check_drafter_config(checkpoint.config, checkpoint.format)
    if not isinstance(network.family, Gemma4):
        raise OptionError(
            what,
            f"it was made for Gemma 4, and {network.name} is of the family {network.family.name}",
            "leave it out, or say --draft lookup",
        )
    own = family.over(spec, what)
    for said, of_drafter, of_model in (
        ("hidden size", family.backbone_hidden_size, spec.hidden_size),
        ("vocabulary", own.vocab_size, spec.vocab_size),
    ):
        if of_drafter != of_model:
            raise UnsupportedError(
                what,
                f"it was made for a {said} of {of_drafter}, and {network.name} has {of_model}",
                "name the assistant that was made for this model",
            )
    stored: dict[str, tuple[int, ...]] = {_BEFORE: (own.hidden_size, 2 * spec.hidden_size)}
    if family.use_ordered_embeddings:
        stored[_ORDER] = (own.vocab_size,)
    for tensor in (*stored, _AFTER, *((_CENTROIDS,) if family.use_ordered_embeddings else ())):
        found, wanted = checkpoint.tensors.get(tensor), stored.get(tensor)
        if found is None:
            raise SourceError(f"{what}: {tensor}", "it is not there", _AGAIN)
        if wanted is not None and found.shape != wanted:
            why = f"it is {list(found.shape)}, and must be {list(wanted)}"
            raise SourceError(f"{what}: {tensor}", why, _AGAIN)
    tensors = AssistantTensors(checkpoint, network, spec, own.hidden_size)
    assistant = Assistant(own, spec.hidden_size, _clusters(checkpoint, what, family))
    sources = family.weight_sources(list(checkpoint.tensors), checkpoint.format)
    beside = {PROJECTED: _AFTER, CENTROIDS: _CENTROIDS, TOKENS: TOKENS, HIDDEN: HIDDEN}
    sources |= {path: WeightSource(tensor) for path, tensor in beside.items()}
    shapes = dict(assistant.weight_shapes())
    sources = {path: sources[path] for path in shapes}
    check_shapes(tensors, what, sources, shapes)
    # A table is one to `--quantize`, whichever it is.
    formats = {
        path: quantization.format_of("embedding" if path == TOKENS else path, shape)
        for path, shape in shapes.items()
    }
    try:
        weights = {path: formats[path].weight(path, shape) for path, shape in shapes.items()}
    except UnsupportedError as error:
        raise UnsupportedError(f"{what}: {error.what}", error.why, error.fix) from error
    return Drafter(source.name, assistant, tensors, sources, formats, weights)


def _clusters(checkpoint: Checkpoint, what: str, family: Gemma4Assistant) -> Clusters | None:
    if not family.use_ordered_embeddings:
        return None
    assert isinstance(checkpoint, StoredCheckpoint)
    order = checkpoint.read_stored(_ORDER).reshape(-1)
    count, active = family.num_centroids, family.centroid_intermediate_top_k
    if active > count or not np.array_equal(np.sort(order), np.arange(family.vocab_size)):
        raise SourceError(
            f"{what}: {_ORDER}",
            f"it is no order of {family.vocab_size} tokens, or has fewer than {active} clusters",
            _AGAIN,
        )
    return Clusters(active, order.reshape(count, -1).astype(np.int32))
