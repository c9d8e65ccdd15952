"""Which tensor of a checkpoint is which weight: names, fused parts, rows in another order.

What the tensors are that the network has no place for, `matching` tells.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import DecoderSpec
from converter.errors import SourceError, UnsupportedError
from converter.families.matching import (
    OTHER_GGUF,
    listed,
    plain_names,
    refuse_strangers,
    without_wrappers,
)

# Tensors that are no weights, though the network has what they say.
ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_KNOWN_OTHERWISE = ("lm_head.weight", *ROTARY_TENSORS)

# The head of transformers' *ForSequenceClassification and *ForTokenClassification.
_CLASSIFIER = "score.weight"

# Parts of a larger model in a GGUF that Ollama made: its vision tower, and what joins the two.
GGUF_VISION = ("v.", "mm.")

# Path in the network, name in safetensors (wrappers removed), name in a GGUF. `A|B`: the first that
# a checkpoint has. A bias is called as its weight is, but for the end. Weights that share a tensor
# stand in it one below the other, in the network's order: q, k and v in `qkv_proj`, gate and up in
# `gate_up_proj`.
Names = tuple[tuple[str, str, str], ...]

# The plain decoder.
NAMES: Names = (
    ("embedding", "embed_tokens.weight", "token_embd.weight"),
    ("layers.{i}.attention.norm", "layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"),
    ("layers.{i}.attention.q", "layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight"),
    ("layers.{i}.attention.k", "layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight"),
    ("layers.{i}.attention.v", "layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight"),
    ("layers.{i}.attention.q_norm", "layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight"),
    ("layers.{i}.attention.k_norm", "layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight"),
    ("layers.{i}.attention.o", "layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight"),
    ("layers.{i}.mlp.norm", "layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"),
    ("layers.{i}.mlp.gate", "layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
    ("layers.{i}.mlp.up", "layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight"),
    ("layers.{i}.mlp.down", "layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight"),
    ("final_norm", "norm.weight", "output_norm.weight"),
    ("head", "lm_head.weight", "output.weight"),
)  # fmt: skip


def with_names(names: Names, *rows: tuple[str, str, str]) -> Names:
    """A name table in which `rows` take the place of those of the same path."""
    replaced = {row[0] for row in rows}
    return (*(row for row in names if row[0] not in replaced), *rows)


@dataclass(frozen=True)
class WeightSource:
    """Where a weight of the network comes from, and what must be done to its rows.

    Attributes:
        tensor: name in the checkpoint.
        add: constant to add to every value (Gemma stores a norm's weight less 1).
        first_row: where it begins in a tensor that holds several weights; of two in turn, where
            their blocks do.
        interleaved: the first w of every head's d rows are rotated as pairs (0, 1), (2, 3), ... and
            have to be put as two halves; the numbers are d and w. None where rows are in order.
        is_absent: it is a bias that the checkpoint does not hold, and zero.
        turns: blocks of so many rows come in turn with those of another weight in the tensor.
        is_second: of two in turn, whether its blocks come second.
        is_transposed: the tensor has three dimensions, and what are rows here are its columns.
        is_log_of_negative: values v are stored as log(-v).
        factors: what rows are multiplied with, so many rows with each, one after the other; none
            where they stay as they are.
        is_flattened: it is a vector, and its tensor may be a matrix with the same values.
    """

    tensor: str
    add: float = 0.0
    first_row: int = 0
    interleaved: tuple[int, int] | None = None
    is_absent: bool = False
    turns: int | None = None
    is_second: bool = False
    is_transposed: bool = False
    is_log_of_negative: bool = False
    factors: tuple[tuple[int, float], ...] = ()
    is_flattened: bool = False

    def end(self, rows: int) -> int:
        """The row after the last of a weight with so many rows; of two in turn, of both."""
        return self.first_row + rows * (1 if self.turns is None else 2)


class StoredWeights(ABC):
    """The weights of a network as checkpoints hold them: what of a family is about their tensors."""

    name: ClassVar[str]
    names: ClassVar[Names] = NAMES
    # Parts of a checkpoint that are no part of the decoder and may be left out.
    ignored: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq", *ROTARY_TENSORS)

    tie_word_embeddings: bool

    @abstractmethod
    def spec(self) -> DecoderSpec:
        """The network that has the weights."""

    @abstractmethod
    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        """How a weight is stored in a checkpoint of format `fmt`; most are stored as they are."""

    def weight_sources(self, tensors: Sequence[str], fmt: str) -> dict[str, WeightSource]:
        """Match the network's weights with the tensors of a checkpoint.

        Args:
            tensors: every name in the checkpoint.
            fmt: its format, `safetensors` or `gguf`.

        Returns:
            Network path -> source, for every weight of `spec`.

        Raises:
            SourceError, UnsupportedError: tensors other than biases are missing, or there are some
                without which this is another network (see `matching`). All are listed.
        """
        table = self._table(fmt)
        head = table["head"][0]
        what = f"{self.name} checkpoint"
        available = plain_names(tensors, what)
        wanted = {path: _name_of(path, table, available) for path, _ in self.spec().weight_shapes()}
        if self.tie_word_embeddings and wanted["embedding"] not in available:
            wanted["embedding"] = head  # one table, and some save it under this name
        others = [
            tensor
            for plain, tensor in available.items()
            if plain not in wanted.values()
            and not self._is_ignored(plain, head)
            and not (fmt == "gguf" and plain.startswith(GGUF_VISION))
        ]
        refuse_strangers(what, others, {*wanted.values(), head}, fmt)
        # transformers starts a bias at zero; llama.cpp has none in layers that do not hold one.
        missing = [
            name
            for path, name in wanted.items()
            if name not in available and not path.endswith(".bias")
        ]
        if missing == [head] and _CLASSIFIER in available:
            raise UnsupportedError(
                what,
                f"has a classifier's head ({_CLASSIFIER}) and none that writes text",
                "convert the language model that it was made of",
            )
        if missing == [head]:
            raise SourceError(
                what,
                f"lacks 1 tensors: {missing[0]}",
                "if the head is the embedding, say so in config.json: tie_word_embeddings=true",
            )
        if missing:
            raise SourceError(
                what,
                f"lacks {len(missing)} tensors: {listed(missing)}",
                OTHER_GGUF
                if fmt == "gguf"
                else "download it again, or check that config.json belongs to it",
            )
        return {
            path: dataclasses.replace(source, tensor=available[source.tensor])
            if source.tensor in available
            else WeightSource(source.tensor, is_absent=True)
            for path, source in self._placed(wanted, fmt).items()
        }

    def places(self, names: Collection[str], fmt: str) -> dict[str, WeightSource]:
        """Where the network's weights stand in the tensors called `names` (without wrappers).

        Returns:
            Network path -> source, for those weights alone that are among them.
        """
        table = self._table(fmt)
        named = {path: _name_of(path, table, names) for path, _ in self.spec().weight_shapes()}
        placed = self._placed(named, fmt)
        return {path: source for path, source in placed.items() if source.tensor in names}

    def _placed(self, names: Mapping[str, str], fmt: str) -> dict[str, WeightSource]:
        """The source of every weight, by the name of its tensor; those of one share it in order."""
        sources, rows = {}, dict.fromkeys(names.values(), 0)
        for path, shape in self.spec().weight_shapes():
            source = self.source_of(path, names[path], fmt)
            first_row = rows[names[path]] - (shape[0] if source.is_second else 0)
            sources[path] = dataclasses.replace(source, first_row=first_row)
            rows[names[path]] += shape[0]
        return sources

    def stored_name(self, path: str, fmt: str) -> str:
        """What a weight's tensor is called, where there is a choice by the first of its names."""
        return _name_of(path, self._table(fmt), ())

    def _table(self, fmt: str) -> dict[str, tuple[str, ...]]:
        """Path pattern -> the names that it may have in a checkpoint of this format."""
        column = 2 if fmt == "gguf" else 1
        return {row[0]: tuple(row[column].split("|")) for row in self.names}

    def left_out(self, tensors: Sequence[str], used: Iterable[WeightSource]) -> tuple[str, ...]:
        """The tensors that `weight_sources` passed over, as transformers does.

        Not those that are known another way: a table that is tied, GGUF's rotary factors.
        """
        known = {source.tensor for source in used}
        return tuple(
            tensor
            for tensor in tensors
            if tensor not in known and without_wrappers(tensor) not in _KNOWN_OTHERWISE
        )

    def tied_tables(self, tensors: Iterable[str], fmt: str) -> tuple[str, str] | None:
        """The tensors of embedding and head, where the config ties them and both are there."""
        table = self._table(fmt)
        available = {without_wrappers(tensor): tensor for tensor in tensors}
        embedding, head = available.get(table["embedding"][0]), available.get(table["head"][0])
        if not self.tie_word_embeddings or embedding is None or head is None:
            return None
        return embedding, head

    def _is_ignored(self, plain: str, head: str) -> bool:
        is_tied_head = self.tie_word_embeddings and plain == head
        return is_tied_head or any(part in plain for part in self.ignored)


def _name_of(path: str, table: Mapping[str, Sequence[str]], available: Collection[str]) -> str:
    """`layers.3.mlp.up` -> the table's name for `layers.{i}.mlp.up` with 3 in it.

    An expert's number is `{e}`: `layers.3.mlp.experts.7.up`. The first that is available; the first where none is.
    """
    parts, numbers = path.split("."), {}
    for place, at in (("{i}", 1), ("{e}", 4)):
        if at < len(parts) and parts[at].isdigit():
            numbers[place], parts[at] = parts[at], place
    pattern = ".".join(parts)
    # A bias is called as its weight, but where the table knows better.
    weight = pattern if pattern in table else pattern.removesuffix(".bias")
    names = list(table[weight])
    for place, number in numbers.items():
        names = [name.replace(place, number) for name in names]
    if weight != pattern:
        names = [f"{name.removesuffix('.weight')}.bias" for name in names]
    return next((name for name in names if name in available), names[0])
