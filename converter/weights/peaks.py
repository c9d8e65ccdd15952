"""One text through the network in float32: the largest number at every place on its way.

What computes in float16 can hold no number beyond 65504. Unlike calibration's, attention is whole
here: a few numbers of a few tokens, attention's sinks, are what grows. Every weight passes through
memory once, by blocks of rows that threads read and multiply; what stays is what the text became.

The words are those that `converter.coreml.words` lets pass, and the places are values of the graph
that `converter.coreml.decoder_program` makes of them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from converter.checkpoint.base import Checkpoint, ThreadBuffer
from converter.decoder import (
    Attention,
    DecoderSpec,
    FeedForward,
    LayerSpec,
    Norm,
    NormKind,
    Placement,
)
from converter.errors import SourceError, UnsupportedError
from converter.families.tensors import WeightSource
from converter.weights.activations import activate
from converter.weights.attention import mixed, rotated
from converter.weights.lora_update import Update
from converter.weights.planned_weight import BLOCK_VALUES
from converter.weights.weight_rows import read_weight, row_units
from converter.workers import Task, Workers


@dataclass
class LayerPeaks:
    """The largest absolute numbers in one layer.

    Attributes:
        normed: what both blocks are fed with.
        projected: queries, keys and values as their matrices give them, with their biases; and
            values as they are normalised then.
        rotated: queries and keys, before their rotary embedding and when they meet.
        scores: queries, scaled, times keys; before a softcap, the mask and the softmax.
        attention: what the attention's last matrix gives.
        inner: in the feed-forward block: of both matrices, of the activation, and their product.
        feed_forward: what its last matrix gives.
        added: what is added to the residual stream.
        residual: that, after each addition, and times the layer's own factor.
    """

    normed: float = 0.0
    projected: float = 0.0
    rotated: float = 0.0
    scores: float = 0.0
    attention: float = 0.0
    inner: float = 0.0
    feed_forward: float = 0.0
    added: float = 0.0
    residual: float = 0.0

    def see(self, place: str, *values: np.ndarray) -> None:
        """Values at a place, which this name has here."""
        setattr(self, place, max(getattr(self, place), *map(largest, values)))


@dataclass
class Peaks:
    """The largest absolute numbers in a network, with one text.

    Attributes:
        weight, weight_path: of all weights, whatever the text.
        embedding: the text's rows, scaled.
        last: what the head is fed with.
        logits: what the head gives, before a scale and a softcap.
    """

    layers: tuple[LayerPeaks, ...]
    embedding: float = 0.0
    last: float = 0.0
    logits: float = 0.0
    weight: float = 0.0
    weight_path: str = ""

    def as_json(self) -> dict[str, Any]:
        """All of it in plain types."""
        return asdict(self)


def largest(values: np.ndarray) -> float:
    """The largest absolute number of an array, without a copy of it; infinity where one is NaN."""
    peak = max(float(values.max()), -float(values.min()))
    return math.inf if math.isnan(peak) else peak


def find_peaks(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    name: str,
    sources: Mapping[str, WeightSource],
    updates: Mapping[str, Sequence[Update]],
    tokens: Sequence[int],
    threads: int,
    progress: Callable[[int], None],
) -> Peaks:
    """Send a text's tokens through the network.

    Args:
        spec: a network that `converter.coreml.words.check_words` lets pass.
        sources, updates: of each weight; see `converter.network.Network`.
        progress: is told how many values more were read, of those of all weights.

    Raises:
        SourceError: a weight is NaN or infinite, or cannot be read.
        UnsupportedError: the network has numbers that float32 cannot hold.
    """
    with Workers(threads) as workers:
        weights = _Weights(spec, checkpoint, name, sources, updates, workers, progress)
        peaks = _Pass(spec, weights).run(np.asarray(tokens))
        workers.finish()
    peaks.weight, peaks.weight_path = weights.peak, weights.peak_path
    numbers = [value for layer in peaks.layers for value in asdict(layer).values()]
    if not np.isfinite([*numbers, peaks.embedding, peaks.last, peaks.logits]).all():
        raise UnsupportedError(
            name, "its numbers grow beyond float32", "the checkpoint is damaged: fetch it again"
        )
    return peaks


class _Weights:
    """The weights of a network, each read once; and the largest number in them."""

    def __init__(
        self,
        spec: DecoderSpec,
        checkpoint: Checkpoint,
        name: str,
        sources: Mapping[str, WeightSource],
        updates: Mapping[str, Sequence[Update]],
        workers: Workers,
        progress: Callable[[int], None],
    ) -> None:
        self.peak, self.peak_path = 0.0, ""
        self._shapes = dict(spec.weight_shapes())
        self._checkpoint, self._name = checkpoint, name
        self._sources, self._updates = sources, updates
        self._workers, self._progress = workers, progress
        self._floats, self._counting = ThreadBuffer(np.float32), threading.Lock()

    def rows(self, path: str, indices: np.ndarray) -> np.ndarray:
        """Single rows of a table, `(n, columns)`."""
        return np.stack([self._read(path, i, i + 1)[0].copy() for i in indices.tolist()])

    def vector(self, path: str) -> np.ndarray:
        """A norm's weight or a bias, `(n,)`."""
        vector: np.ndarray = self._read(path, 0, 1)[0].copy()
        self._see(path, vector)
        return vector

    def look_at(self, path: str) -> None:
        """Read a matrix for its largest number alone, some time."""
        self._workers.do_later(self._tasks(path, lambda *_: None))

    def multiply(self, x: np.ndarray, *paths: str) -> list[np.ndarray]:
        """`x @ weight.T` for each: `(n, columns)` to `(n, rows)`."""
        products: list[np.ndarray] = []
        tasks: list[Task] = []
        for path in paths:
            product = np.empty((len(x), self._shapes[path][0]), np.float32)
            products.append(product)
            tasks += self._tasks(path, partial(_fill, x, product))
        self._workers.do(tasks)
        return products

    def largest_product(self, x: np.ndarray, path: str, bias: np.ndarray | None) -> float:
        """The largest number in `x @ weight.T + bias`, which is too large to be kept."""
        found: list[float] = []

        def see(rows: np.ndarray, start: int) -> None:
            product = x @ rows.T
            if bias is not None:
                product += bias[start : start + len(rows)]
            found.append(largest(product))

        self._workers.do(self._tasks(path, see))
        return max(found)

    def _tasks(self, path: str, use: Callable[[np.ndarray, int], None]) -> Iterator[Task]:
        count, columns = self._shapes[path]
        step = max(1, BLOCK_VALUES // columns)
        unit = math.lcm(*row_units(self._sources[path], self._updates.get(path, ())))
        step = -(-step // unit) * unit
        for start in range(0, count, step):
            yield partial(self._use_block, path, start, min(start + step, count), use)

    def _use_block(
        self, path: str, start: int, stop: int, use: Callable[[np.ndarray, int], None]
    ) -> None:
        rows = self._read(path, start, stop)
        self._see(path, rows)
        use(rows, start)

    def _read(self, path: str, start: int, stop: int) -> np.ndarray:
        updates = self._updates.get(path, ())
        source, shape = self._sources[path], self._shapes[path]
        return read_weight(self._checkpoint, source, shape, updates, start, stop, self._floats)

    def _see(self, path: str, values: np.ndarray) -> None:
        peak = largest(values)
        if not math.isfinite(peak):
            raise SourceError(
                f"{self._name}: {self._sources[path].tensor}",
                "holds NaN or infinite values",
                "the checkpoint is damaged: fetch or make it again",
            )
        with self._counting:
            # Whichever thread is first: of two that are equally large, the path decides.
            if (peak, path) > (self.peak, self.peak_path):
                self.peak, self.peak_path = peak, path
            self._progress(values.size)


def _fill(x: np.ndarray, product: np.ndarray, rows: np.ndarray, start: int) -> None:
    product[:, start : start + len(rows)] = x @ rows.T


class _Pass:
    """A text on its way: x is `(n, hidden)`, the residual stream."""

    def __init__(self, spec: DecoderSpec, weights: _Weights) -> None:
        self.spec, self.weights = spec, weights
        self.peaks = Peaks(tuple(LayerPeaks() for _ in spec.layers))

    def run(self, tokens: np.ndarray) -> Peaks:
        spec, weights, peaks = self.spec, self.weights, self.peaks
        if not spec.tied_head:
            weights.look_at("embedding")
        x = weights.rows("embedding", tokens) * np.float32(spec.embedding_scale or 1)
        peaks.embedding = largest(x)
        for i, (layer, seen) in enumerate(zip(spec.layers, peaks.layers, strict=True)):
            x = self.blocks(i, layer, x, seen)
            if spec.has_layer_scales:
                x = x * weights.vector(f"layers.{i}.scale")
                seen.see("residual", x)
        x = self.norm("final_norm", spec.norm, x)
        peaks.last = largest(x)
        bias = weights.vector("head.bias") if spec.head_bias else None
        head = "embedding" if spec.tied_head else "head"
        peaks.logits = weights.largest_product(x, head, bias)
        return peaks

    def blocks(self, i: int, layer: LayerSpec, x: np.ndarray, seen: LayerPeaks) -> np.ndarray:
        """One layer's attention and feed-forward block."""
        spec, mixer, feed_forward = self.spec, layer.mixer, layer.feed_forward
        assert isinstance(mixer, Attention)
        assert isinstance(feed_forward, FeedForward)
        attention, mlp = f"layers.{i}.attention", f"layers.{i}.mlp"
        fed = self.before(attention, x, seen)
        mixed = self.attend(attention, mixer, fed, seen)
        if spec.placement is Placement.PARALLEL:
            x = self.add(x, mixed, seen)
            return self.add(x, self.feed(mlp, feed_forward, fed, seen), seen)
        x = self.add(x, self.after(attention, mixed), seen)
        made = self.feed(mlp, feed_forward, self.before(mlp, x, seen), seen)
        return self.add(x, self.after(mlp, made), seen)

    def before(self, block: str, x: np.ndarray, seen: LayerPeaks) -> np.ndarray:
        if self.spec.placement.has_pre_norms:
            x = self.norm(f"{block}.norm", self.spec.norm, x)
        seen.see("normed", x)
        return x

    def after(self, block: str, x: np.ndarray) -> np.ndarray:
        norms = self.spec.placement.has_post_norms
        return self.norm(f"{block}.post_norm", self.spec.norm, x) if norms else x

    def add(self, x: np.ndarray, made: np.ndarray, seen: LayerPeaks) -> np.ndarray:
        made = made * np.float32(self.spec.residual_scale or 1)
        x = x + made
        seen.see("added", made)
        seen.see("residual", x)
        return x

    # Blocks ---------------------------------------------------------------------------------------

    def attend(self, block: str, mixer: Attention, x: np.ndarray, seen: LayerPeaks) -> np.ndarray:
        """(n, hidden) -> the same."""
        n, kv, width = len(x), mixer.num_kv_heads, mixer.head_dim
        parts = "qk" if mixer.keys_are_values else "qkv"
        q, k, *others = self.project(block, parts, mixer.biases, x)
        [v] = others or [k]
        seen.see("projected", q, k, v)
        q = self.heads(f"{block}.q_norm", mixer, q, seen)  # (heads, n, d)
        k = self.heads(f"{block}.k_norm", mixer, k, seen)  # (kv, n, d)
        v = v.reshape(n, kv, width).swapaxes(0, 1)
        if mixer.value_norm is not None:
            v = self.norm(f"{block}.v_norm", mixer.value_norm, v)
            seen.see("projected", v)
        context = mixed(mixer, q, k, v, partial(seen.see, "scores"))
        [made] = self.project(block, "o", mixer.biases, context)
        seen.see("attention", made)
        return made

    def heads(self, path: str, mixer: Attention, x: np.ndarray, seen: LayerPeaks) -> np.ndarray:
        """Queries or keys, normalised and rotated: (n, heads d) -> (heads, n, d)."""
        norm = mixer.qk_norm
        if norm is not None and norm.is_full_width:
            x = self.norm(path, norm.norm, x)
        x = x.reshape(len(x), -1, mixer.head_dim)
        if norm is not None and not norm.is_full_width and not norm.after_rope:
            x = self.norm(path, norm.norm, x)
        seen.see("rotated", x)
        x = x.swapaxes(0, 1)
        if mixer.rope is not None:
            x = rotated(mixer.rope, x)
        if norm is not None and norm.after_rope:
            x = self.norm(path, norm.norm, x)
        seen.see("rotated", x)
        return x

    def feed(self, block: str, mlp: FeedForward, x: np.ndarray, seen: LayerPeaks) -> np.ndarray:
        """(n, hidden) -> the same."""
        parts = ("gate", "up") if mlp.is_gated else ("up",)
        first, *gated = self.project(block, parts, mlp.biases, x)
        seen.see("inner", first, *gated)
        inner = activate(mlp.activation, first)
        seen.see("inner", inner)
        for up in gated:
            inner = inner * up
            seen.see("inner", inner)
        [made] = self.project(block, ("down",), mlp.biases, inner)
        seen.see("feed_forward", made)
        return made

    # Pieces ---------------------------------------------------------------------------------------

    def project(
        self, block: str, parts: Sequence[str], biases: Sequence[str], x: np.ndarray
    ) -> list[np.ndarray]:
        """x through matrices of a block, with their biases."""
        products = self.weights.multiply(x, *(f"{block}.{part}" for part in parts))
        for part, product in zip(parts, products, strict=True):
            if part in biases:
                product += self.weights.vector(f"{block}.{part}.bias")
        return products

    def norm(self, path: str, norm: Norm, x: np.ndarray) -> np.ndarray:
        """Over the last axis."""
        if norm.kind is NormKind.LAYER:
            x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(norm.epsilon))
        if norm.has_weight:
            x = x * self.weights.vector(path)
        return x + self.weights.vector(f"{path}.bias") if norm.has_bias else x
