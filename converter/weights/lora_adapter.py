"""What an adapter changes: which of its tensors belongs to which weight of the network, and how.

An adapter's tensors are called after those of a checkpoint of its format, and lie as they do. The
family says where the network's weights stand in these (`Family.places`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from converter.checkpoint.base import Checkpoint
from converter.errors import SourceError, UnsupportedError
from converter.families.base import Family
from converter.families.matching import listed
from converter.families.tensors import WeightSource
from converter.weights.lora_update import Factor, LowRank, Update
from converter.weights.tied_head import untied

TABLES = ("embedding", "head")
MERGE = "merge it with peft's merge_and_unload and convert the result"
# What a tensor can be to a weight. Of an embedding the sides of the product have other names and
# shapes: see `_low_rank`.
LEFT = {"B": False, "embedding_A": True, "token_A": False}  # -> whether it is transposed
RIGHT = {"A": False, "embedding_B": True}
WHOLE, ROWS, MAGNITUDE = "whole", "rows", "magnitude"
# The layer of a decoder that a weight stands in, as Hugging Face, GGUFs and GPT-2 call it.
_LAYER = re.compile(r"(?:layers|blk|transformer\.h)\.(\d+)\.")


class Adapter(ABC):
    """An open adapter; see `lora.open_adapter`.

    Attributes:
        path: where it lies.
        weights: its tensors; their names and order are those of a checkpoint of this format.
    """

    path: Path
    weights: Checkpoint

    @abstractmethod
    def layout(self, family: Family) -> Family:
        """The family whose checkpoints of this format its tensors are called and ordered after.

        Raises:
            SourceError: it says that it is for another model.
        """

    @abstractmethod
    def part_of(self, tensor: str) -> tuple[str, str]:
        """The weight that a tensor belongs to, without wrappers, and what it is to that.

        That is a key of `LEFT` or `RIGHT`, WHOLE, ROWS or MAGNITUDE; ("", "") for anything else.
        """

    @abstractmethod
    def scaling(self, tensor: str, rank: int) -> float:
        """The factor on a product, by the name of one of its sides."""

    def token_rows(self, values: str) -> Sequence[int]:
        """Which rows of a table the rows of the tensor `values` are."""
        raise NotImplementedError

    @property
    def made_for(self) -> str:
        """Its base model, for messages."""
        return "its page names it"

    def updates(self, family: Family) -> dict[str, Update]:
        """The update of each weight that has one, by its path in the network.

        Where the family ties its head, `embedding` and `head` are what they are apart: only equal
        updates leave them one table.

        Raises:
            UnsupportedError: it changes something beside the decoder, or that cannot be merged.
            SourceError: it is for another model, or damaged.
        """
        apart = untied(self.layout(family))
        named: dict[str, dict[str, str]] = {}
        strange = []
        for tensor in sorted(self.weights.tensors):
            name, part = self.part_of(tensor)
            if not part or part in named.setdefault(name, {}):
                strange.append(tensor)
            else:
                named[name][part] = tensor
        sources = apart.places(named, self.weights.format)
        shapes = _shapes(apart, sources)
        of_name = {source.tensor: path for path, source in sources.items()}
        self._check_layers(sorted(named.keys() - of_name.keys()), apart)
        for name, parts in named.items():
            path = of_name.get(name)
            if path is None or sources[path].is_flattened:  # a vector that a matrix stands for
                strange += parts.values()
            else:
                strange += [tensor for part, tensor in parts.items() if not _has(path, part)]
        if strange:
            raise UnsupportedError(
                str(self.path),
                f"it changes what cannot be merged: {listed(sorted(strange), 5)}",
                MERGE,
            )
        found = {path: dict(named[source.tensor]) for path, source in sources.items()}
        if family.tie_word_embeddings:
            self.share(found, sources)
        return {
            path: self._update(parts, sources[path], shapes[sources[path].tensor])
            for path, parts in found.items()
        }

    def _check_layers(self, unknown: Sequence[str], family: Family) -> None:
        """Refuse an adapter of another decoder: it has weights in layers that this one has not.

        peft's own merge would leave them out. (What stands beside the layers may be a part of a
        larger model that the decoder sits in.)

        Args:
            unknown: the weights that it changes and the network does not have.
        """
        layers = {name: int(match[1]) for name in unknown if (match := _LAYER.match(name))}
        if not layers:
            return
        last, count = max(layers.values()), family.num_hidden_layers
        raise SourceError(
            str(self.path),
            f"it is for a model of {last + 1} layers or more, and this one has {count}"
            if last >= count
            else f"it changes weights that this {family.name} has not: {listed([*layers], 5)}",
            self._take_its_base,
        )

    @property
    def _take_its_base(self) -> str:
        return f"take the model that the adapter was made for: {self.made_for}"

    @abstractmethod
    def share(self, found: dict[str, dict[str, str]], sources: dict[str, WeightSource]) -> None:
        """Let what was saved of a tied table change both of its uses."""

    def _update(
        self, parts: Mapping[str, str], source: WeightSource, shape: tuple[int, ...]
    ) -> Update:
        whole, values = parts.get(WHOLE), parts.get(ROWS)
        if whole is not None and self.weights.tensors[whole].shape != shape:
            raise self._of_another(source, str(list(self.weights.tensors[whole].shape)), shape)
        has_pair = bool(parts.keys() & {*LEFT, *RIGHT, MAGNITUDE})
        return Update(
            self.weights,
            source,
            whole,
            self._low_rank(parts, source, shape) if has_pair else None,
            self._rows(values, shape) if values is not None else {},
            values,
        )

    def _low_rank(
        self, parts: Mapping[str, str], source: WeightSource, shape: tuple[int, ...]
    ) -> LowRank:
        left, right = (
            next((Factor(parts[part], sides[part]) for part in sides if part in parts), None)
            for sides in (LEFT, RIGHT)
        )
        if left is None or right is None:
            raise damaged(self.path, f"{next(iter(parts.values()))} has no counterpart")
        first, second = self._shape(left), self._shape(right)
        if len(first) == len(second) == 3:
            raise UnsupportedError(
                str(self.path),
                f"{left.tensor} is of several experts at once, which cannot be merged",
                MERGE,
            )
        if len(first) != 2 or len(second) != 2:
            raise damaged(self.path, f"{left.tensor} and its counterpart are no matrices")
        (rows, rank), (rank_of_right, columns) = first, second
        if (rows, columns) != shape or rank != rank_of_right or rank == 0:
            product = f"[{rows}, {rank}] x [{rank_of_right}, {columns}]"
            raise self._of_another(source, product, shape)
        magnitude = parts.get(MAGNITUDE)
        if magnitude is not None and self.weights.tensors[magnitude].shape != (rows,):
            raise damaged(self.path, f"{magnitude} is not [{rows}]")
        return LowRank(left, right, self.scaling(left.tensor, rank), magnitude)

    def _shape(self, factor: Factor) -> tuple[int, ...]:
        shape = self.weights.tensors[factor.tensor].shape
        return shape[::-1] if factor.transposed else shape

    def _rows(self, values: str, shape: tuple[int, ...]) -> dict[int, int]:
        """Which row of a table each row of the tensor `values` is."""
        stated, (vocabulary, width) = self.token_rows(values), shape
        if self.weights.tensors[values].shape != (len(stated), width):
            raise damaged(self.path, f"trainable_token_indices does not describe {values}")
        if not all(type(index) is int and 0 <= index < vocabulary for index in stated):
            raise damaged(self.path, f"trainable_token_indices names tokens beyond {vocabulary}")
        return {index: place for place, index in enumerate(stated)}

    def _of_another(self, source: WeightSource, found: str, shape: tuple[int, ...]) -> SourceError:
        return SourceError(
            str(self.path),
            f"its update of {source.tensor} is {found}, the model's is {list(shape)}",
            self._take_its_base,
        )


def damaged(path: Path, why: str) -> SourceError:
    return SourceError(str(path), why, "fetch or make the adapter again")


def _has(path: str, part: str) -> bool:
    """Whether a weight can have such a part: tokens have rows in tables alone."""
    if part in ("embedding_A", "embedding_B", "token_A"):
        return path == "embedding"
    if part in ("A", "B", MAGNITUDE):
        return path != "embedding"
    return path in TABLES if part == ROWS else True


def _shapes(family: Family, sources: Mapping[str, WeightSource]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors, each of which holds the weights that stand in it."""
    weights, found = dict(family.spec().weight_shapes()), dict[str, tuple[int, ...]]()
    for path, source in sources.items():
        rows, *columns = weights[path]
        found[source.tensor] = (source.end(rows), *columns)
    return found
