"""Calibration: what reaches each matrix.

A few random tokens go through the network while its weights are streamed. Attention is simplified
to the mean of all values so far, which needs no queries, keys or positions and was measured to
serve as well (benchmarks/README.md). What comes of it: `converter.weights.inputs`.

Every product is one of small integers, which is exact: neither threads nor blocks nor the processor
change a bit of it.

With a text (`--calibrate`) `text_calibration` takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from converter.decoder import (
    MLP_PROJECTIONS,
    PER_LAYER_TABLE,
    XIELU_BETA,
    Activation,
    AltUp,
    Attention,
    DecoderSpec,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LayerSpec,
    Mamba2,
    Mixer,
    Norm,
    NormKind,
    PerLayerInput,
    Placement,
    Router,
    ShortConv,
)
from converter.weights.activations import activate
from converter.weights.inputs import FLOOR, Inputs, Strength, learn_inputs
from converter.workers import Task

TOKENS = 32
# How strongly columns are scaled by a few random tokens (benchmarks.rounding).
_OF_FEW = Strength(0.25, FLOOR)


class Weights(Protocol):
    """What calibration asks of the stream of weights; paths are those of `DecoderSpec`."""

    def embed(self, tokens: np.ndarray, path: str) -> np.ndarray:
        """A table's rows of some tokens, `(n, width)`."""

    def vector(self, path: str) -> np.ndarray:
        """A norm or a bias as the checkpoint has it, `(n,)`."""

    def table(self, path: str) -> np.ndarray:
        """All of a small weight that has more axes, `(rows, columns)`."""

    def may_scale(self, *paths: str) -> bool:
        """Whether all of these matrices may be stored with scaled columns or rows."""

    def lack_inputs(self, *paths: str) -> bool:
        """Whether all of these matrices are more precise than what reaches them."""

    def store(self, inputs: Inputs, *paths: str) -> None:
        """Store matrices, some time."""

    def multiply(self, inputs: Inputs, x: np.ndarray, *paths: str) -> list[np.ndarray]:
        """Store matrices, and `x @ weight.T` for each: `(n, columns)` to `(n, rows)`.

        Where a moment is known, of the matrices as they are stored; where inputs are paired, of the
        second half of x and the matrices as they were.
        """

    def do(self, tasks: Iterable[Task]) -> None:
        """Do tasks, by threads."""

    def divide(self, path: str, factors: np.ndarray | None) -> None:
        """Store a norm's weight or a bias divided; or divide the rows of a matrix just stored."""


class Calibration:
    """A few tokens on their way through the network; their rows are `(n, width)`."""

    def __init__(self, spec: DecoderSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        # Spread over the vocabulary; the same ones each time.
        self.tokens = np.arange(1, TOKENS + 1) * 2654435761 % spec.vocab_size
        # Tokens up to each.
        self.seen = np.arange(1, TOKENS + 1, dtype=np.float32)[:, None]
        # The values that later layers look at, by the layer that made them.
        mixers = [mixer for layer in spec.layers for mixer in layer.mixers]
        attention = [mixer for mixer in mixers if isinstance(mixer, Attention)]
        self.lent = {mixer.cache_of for mixer in attention} - {None}
        self.values: dict[int, np.ndarray] = {}

    def run(self) -> None:
        spec, weights, tokens = self.spec, self.weights, self.tokens
        x = weights.embed(tokens, "embedding") * np.float32(spec.embedding_scale or 1)
        if spec.per_layer_input is not None:
            self.embedded = x
            known = np.where(tokens < spec.per_layer_input.rows, tokens, 0)
            self.rows = weights.embed(known, PER_LAYER_TABLE)
            self.rows *= np.float32(spec.per_layer_input.width**0.5)
        streams = _Streams(self, spec.altup) if spec.altup is not None else None
        if streams is not None:
            x = streams.begin(x)
        for index, layer in enumerate(spec.layers):
            if streams is not None:
                x = streams.layer(index, layer, x)
            else:
                x = self.blocks(index, layer, x)
                if spec.per_layer_input is not None:
                    x = x + self.per_layer_update(index, spec.per_layer_input, x)
            if spec.has_layer_scales:
                x = x * weights.vector(f"layers.{index}.scale")
        if streams is not None:
            x = streams.end(x)
        # A tied head's columns are the embedding's: they stay as they are.
        head = "embedding" if spec.tied_head else "head"
        y = self.normed("final_norm", x)
        can_scale = spec.norm.has_weight and not spec.tied_head
        inputs = self.inputs(y, [head] if can_scale else ())
        self.divide_norm("final_norm", inputs.factors)
        weights.store(inputs, head)

    def blocks(self, index: int, layer: LayerSpec, x: np.ndarray) -> np.ndarray:
        """A layer's mixer and feed-forward block, or one of them."""
        if layer.mixer is not None:
            x = self.mixer_block(index, layer, layer.mixer, x)
        if layer.feed_forward is None or self.spec.placement is Placement.PARALLEL:
            return x
        return self.feed_block(index, layer.feed_forward, x)

    def feed_block(
        self, index: int, feed_forward: FeedForward | Experts, x: np.ndarray
    ) -> np.ndarray:
        """A layer's feed-forward block, where it comes after the mixer's."""
        mlp = f"layers.{index}.mlp"
        y, inputs = self.fed(mlp, x, self.first_matrices(mlp, feed_forward))
        return self.add(x, self.after(mlp, self.feed(mlp, feed_forward, y, inputs, x)))

    def mixer_block(self, index: int, layer: LayerSpec, mixer: Mixer, x: np.ndarray) -> np.ndarray:
        """The mixer, and the feed-forward block where it is beside it."""
        spec, laurel = self.spec, f"layers.{index}.laurel"
        block, mlp = f"layers.{index}.{mixer.block}", f"layers.{index}.mlp"
        parallel = layer.feed_forward if spec.placement is Placement.PARALLEL else None
        first = [
            path
            for part in layer.mixers
            for path in self.first_matrices(f"layers.{index}.{part.block}", part)
        ]
        if spec.laurel_rank is not None:
            first.append(f"{laurel}.left")
        if parallel is not None:
            first += self.first_matrices(mlp, parallel)
        # What is also added to the residual stream stays as it is.
        y, inputs = self.fed(block, x, first, may_scale=spec.laurel_rank is None)
        update = self.mix(index, mixer, y, inputs)
        if layer.beside is not None:
            update = update + self.mix(index, layer.beside, y, inputs)
        if parallel is not None:
            return self.add(x, update + self.feed(mlp, parallel, y, inputs, x))
        x = self.add(x, self.after(block, update))
        if spec.laurel_rank is not None:
            [low] = self.weights.multiply(inputs, y, f"{laurel}.left")
            [wide] = self.weights.multiply(self.inputs(low), low, f"{laurel}.right")
            x = (x + y + self.normed(f"{laurel}.post_norm", wide)) * np.float32(2**-0.5)
        return x

    # A block's parts ------------------------------------------------------------------------------

    def first_matrices(self, block: str, part: Mixer | FeedForward | Experts) -> list[str]:
        """The matrices that a block's input meets, but for those of a router, which stay exact."""
        if isinstance(part, Experts):
            first = [] if part.own_norms is not None else self.first_of_experts(block, part)
            if part.shared is not None:
                first += self.first_matrices(f"{block}.shared", part.shared)
            return first
        if isinstance(part, FeedForward):
            names = ["gate", "up"] if part.is_gated else ["up"]
        elif isinstance(part, ShortConv):
            names = ["b", "c", "x"]
        elif isinstance(part, GatedDeltaNet):
            names = ["qkv", "z", "beta", "alpha"]
        elif isinstance(part, Mamba2):
            names = ["gate", "xbc", "dt"]
        else:
            names = ["q"]
            if part.cache_of is None:
                names += ["k"] if part.keys_are_values else ["k", "v"]
            names += ["gate"] if part.is_gated else []
        return [f"{block}.{name}" for name in names]

    def first_of_experts(self, block: str, experts: Experts) -> list[str]:
        blocks = (f"{block}.experts.{e}" for e in range(experts.count))
        return [path for b in blocks for path in self.first_matrices(b, experts.expert)]

    def fed(
        self, block: str, x: np.ndarray, first: Sequence[str], may_scale: bool = True
    ) -> tuple[np.ndarray, Inputs]:
        """What a block's first matrices are given, and what it says of their columns."""
        if not self.spec.placement.has_pre_norms:
            return x, self.inputs(x)
        return self.fed_by(block, x, first, self.spec.norm, may_scale)

    def fed_by(
        self, block: str, x: np.ndarray, first: Sequence[str], norm: Norm, may_scale: bool = True
    ) -> tuple[np.ndarray, Inputs]:
        """The same, with this norm before the block.

        Where it has a weight, columns may be scaled: the weight makes up for it.
        """
        y = self.normed(f"{block}.norm", x, norm)
        may_scale &= norm.has_weight
        inputs = self.inputs(y, first if may_scale else ())
        self.divide_norm(f"{block}.norm", inputs.factors)
        return y, inputs

    def mix(self, index: int, mixer: Mixer, y: np.ndarray, inputs: Inputs) -> np.ndarray:
        """What a layer's mixer makes of its input."""
        if isinstance(mixer, ShortConv):
            return self.convolve(f"layers.{index}.conv", mixer, y, inputs)
        if isinstance(mixer, GatedDeltaNet):
            return self.remember(f"layers.{index}.delta", mixer, y, inputs)
        if isinstance(mixer, Mamba2):
            return self.scan(f"layers.{index}.mamba", mixer, y, inputs)
        return self.attend(index, mixer, y, inputs)

    def convolve(self, block: str, mixer: ShortConv, y: np.ndarray, inputs: Inputs) -> np.ndarray:
        """A short convolution, as it is."""
        weights = self.weights
        b, c, v, kernel, out = (f"{block}.{part}" for part in ("b", "c", "x", "kernel", "out"))
        first, gate, values = (
            self.projected(path, mixer, product)
            for path, product in zip((b, c, v), weights.multiply(inputs, y, b, c, v), strict=True)
        )
        u = np.concatenate([np.zeros((mixer.kernel - 1, y.shape[1]), np.float32), first * values])
        by_token = weights.table(kernel).T
        context = self.projected(
            kernel, mixer, sum(by_token[i] * u[i : i + TOKENS] for i in range(mixer.kernel))
        )
        context = context * gate
        inputs = self.inputs(context, (c, out))
        weights.divide(c, inputs.factors)
        if mixer.has_bias:
            weights.divide(f"{c}.bias", inputs.factors)
        [product] = weights.multiply(inputs, context, out)
        return self.projected(out, mixer, product)

    def attend(self, index: int, mixer: Attention, y: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Attention, and what it says of its last matrix."""
        weights, block = self.weights, f"layers.{index}.attention"
        v, o = f"{block}.v", f"{block}.o"
        groups = mixer.num_heads // mixer.num_kv_heads
        context = self.mixed(index, mixer, y, inputs)
        if mixer.has_sinks:  # beside scores of 0
            sinks = np.exp(weights.vector(f"{block}.sinks"))
            context *= (self.seen / (self.seen + sinks)).repeat(mixer.head_dim, axis=1)
        if mixer.is_gated:
            [gate] = weights.multiply(inputs, y, f"{block}.gate")
            context *= 1 / (1 + np.exp(-self.projected(f"{block}.gate", mixer, gate)))
        is_own = mixer.cache_of is None and index not in self.lent
        is_own &= mixer.value_norm is None and not mixer.keys_are_values
        # Query heads that a value head feeds are scaled alike; gates and sinks tell them apart.
        is_shared = not mixer.is_gated and not mixer.has_sinks
        scaled = (v, o) if is_own and is_shared else ()
        inputs = self.inputs(context, scaled, (mixer.num_kv_heads, groups))
        if is_own:
            of_values = inputs.factors
            if of_values is not None:
                of_values = of_values.reshape(mixer.num_kv_heads, groups, -1)[:, 0].reshape(-1)
            weights.divide(v, of_values)
            if "v" in mixer.biases:
                weights.divide(f"{v}.bias", of_values)
        [product] = weights.multiply(inputs, context, o)
        return self.projected(o, mixer, product)

    def mixed(self, index: int, mixer: Attention, y: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Attention, simplified to the mean of all values so far, `(n, heads d)`."""
        weights, block = self.weights, f"layers.{index}.attention"
        q, k, v = (f"{block}.{part}" for part in "qkv")
        groups = mixer.num_heads // mixer.num_kv_heads
        weights.store(inputs, q)
        if mixer.cache_of is None:
            if mixer.keys_are_values:
                v = k
            else:
                weights.store(inputs, k)
            [values] = weights.multiply(inputs, y, v)
            values = self.projected(v, mixer, values)
            if mixer.value_norm is not None:
                by_head = values.reshape(TOKENS, -1, mixer.head_dim)
                by_head = self.normed(f"{block}.v_norm", by_head, mixer.value_norm)
                values = by_head.reshape(TOKENS, -1)
            values = values.cumsum(axis=0) / self.seen
            if index in self.lent:
                self.values[index] = values
        else:
            values = self.values[mixer.cache_of]
        heads = values.reshape(TOKENS, mixer.num_kv_heads, 1, mixer.head_dim)
        return heads.repeat(groups, axis=2).reshape(TOKENS, -1)

    def remember(
        self, block: str, mixer: GatedDeltaNet, y: np.ndarray, inputs: Inputs
    ) -> np.ndarray:
        """The delta net, as `GatedDeltaNet` says; the norm's weight is the same in every head."""
        weights, o = self.weights, f"{block}.o"
        parts = (f"{block}.{part}" for part in ("qkv", "z", "beta", "alpha"))
        qkv, z, strength, alpha = weights.multiply(inputs, y, *parts)
        mixed = activate(Activation.SILU, self.shifted(block, qkv))
        q, k, v = np.split(mixed, np.cumsum(mixer.widths)[:2], axis=1)
        q, k = (_unit(x.reshape(TOKENS, mixer.num_key_heads, -1)) for x in (q, k))
        q *= np.float32(mixer.key_dim**-0.5)
        times = mixer.num_value_heads // mixer.num_key_heads
        repeat = np.tile if mixer.is_tiled else np.repeat
        order = repeat(np.arange(mixer.num_key_heads), times)
        q, k, v = q[:, order], k[:, order], v.reshape(TOKENS, mixer.num_value_heads, -1)
        step = np.logaddexp(0, alpha + weights.vector(f"{block}.step"))
        decay = np.exp(step * weights.vector(f"{block}.decay"))[:, :, None, None]
        beta = (1 / (1 + np.exp(-strength)))[:, :, None]
        memory = np.zeros((mixer.num_value_heads, mixer.key_dim, mixer.value_dim), np.float32)
        out = np.empty_like(v)
        for i in range(TOKENS):
            memory *= decay[i]
            error = v[i] - np.einsum("hkv,hk->hv", memory, k[i])
            memory += k[i][:, :, None] * (beta[i] * error)[:, None]
            out[i] = np.einsum("hkv,hk->hv", memory, q[i])
        out = self.normed(f"{block}.out_norm", out, mixer.norm).reshape(TOKENS, -1)
        out *= activate(Activation.SILU, z)
        [product] = weights.multiply(self.inputs(out), out, o)
        return product

    def scan(self, block: str, mixer: Mamba2, y: np.ndarray, inputs: Inputs) -> np.ndarray:
        """The state space model, as `Mamba2` says."""
        weights, o = self.weights, f"{block}.o"
        paths = [f"{block}.{part}" for part in ("gate", "xbc", "dt")]
        gate, xbc, dt = (
            self.projected(path, mixer, product)
            for path, product in zip(paths, weights.multiply(inputs, y, *paths), strict=True)
        )
        mixed = self.projected(f"{block}.conv", mixer, self.shifted(block, xbc))
        mixed = activate(mixer.activation, mixed)
        x, b, c = np.split(mixed, np.cumsum(mixer.widths)[:2], axis=1)
        x = x.reshape(TOKENS, mixer.num_heads, mixer.head_dim)
        per_group = mixer.num_heads // mixer.groups
        b, c = (part.reshape(TOKENS, mixer.groups, -1).repeat(per_group, axis=1) for part in (b, c))
        step = np.logaddexp(0, dt + weights.vector(f"{block}.step"))
        step = np.clip(step, *mixer.step_limits).astype(np.float32)
        decay = np.exp(step * weights.vector(f"{block}.decay"))[:, :, None, None]
        memory = np.zeros((mixer.num_heads, mixer.head_dim, mixer.state_dim), np.float32)
        out = x * weights.vector(f"{block}.skip")[:, None]
        for i in range(TOKENS):
            memory = memory * decay[i] + (step[i][:, None] * x[i])[:, :, None] * b[i][:, None]
            out[i] += np.einsum("hps,hs->hp", memory, c[i])
        out, gate = out.reshape(TOKENS, -1), activate(Activation.SILU, gate)
        if mixer.gates_last:
            out = self.normed_in_parts(block, mixer, out) * gate
        else:
            out = self.normed_in_parts(block, mixer, out * gate)
        # What a norm's weight makes of a column, that of `o` may make up for.
        inputs = self.inputs(out, [o] if mixer.norm is not None else ())
        if mixer.norm is not None:
            weights.divide(f"{block}.out_norm", inputs.factors)
        [product] = weights.multiply(inputs, out, o)
        return self.projected(o, mixer, product)

    def normed_in_parts(self, block: str, mixer: Mamba2, x: np.ndarray) -> np.ndarray:
        if mixer.norm is None:
            return x
        parts = x.reshape(TOKENS, mixer.norm_groups, -1)
        normed = self.normed(block, parts, replace(mixer.norm, has_weight=False))
        return normed.reshape(x.shape) * self.weights.vector(f"{block}.out_norm")

    def shifted(self, block: str, x: np.ndarray) -> np.ndarray:
        """A causal convolution along the tokens, channel by channel."""
        taps = self.weights.table(f"{block}.conv")
        kernel = taps.shape[1]
        seen = np.concatenate([np.zeros((kernel - 1, len(taps)), np.float32), x])
        total: np.ndarray = sum(seen[i : i + TOKENS] * taps[:, i] for i in range(kernel))
        return total

    def feed(
        self,
        block: str,
        feed_forward: FeedForward | Experts,
        y: np.ndarray,
        inputs: Inputs,
        residual: np.ndarray,
    ) -> np.ndarray:
        """The feed-forward block, fed with y."""
        if isinstance(feed_forward, Experts):
            return self.route(block, feed_forward, y, inputs, residual)
        return self.feed_dense(block, feed_forward, y, inputs)

    def feed_dense(
        self, block: str, feed_forward: FeedForward, y: np.ndarray, inputs: Inputs
    ) -> np.ndarray:
        """One without experts, or one of them."""
        weights = self.weights
        gate, up, down = (f"{block}.{part}" for part in MLP_PROJECTIONS)
        if feed_forward.is_gated:
            y, ups = weights.multiply(inputs, y, gate, up)
            for start in range(0, len(y), TOKENS):  # the widest that there are
                some = slice(start, start + TOKENS)
                y[some] = self.gated(block, feed_forward, y[some], ups[some])
            del ups
        else:  # what stands inside an activation cannot be scaled
            [ups] = weights.multiply(inputs, y, up)
            y = self.activated(block, feed_forward, self.projected(up, feed_forward, ups))
        is_linear = feed_forward.is_linear_in_up
        inputs = self.inputs(y, (up, down) if is_linear else ())
        if feed_forward.is_gated:
            weights.divide(up, inputs.factors)
            if "up" in feed_forward.biases:
                weights.divide(f"{up}.bias", inputs.factors)
        [product] = weights.multiply(inputs, y, down)
        return self.projected(down, feed_forward, product)

    def gated(
        self, block: str, feed_forward: FeedForward, gates: np.ndarray, ups: np.ndarray
    ) -> np.ndarray:
        """What its last matrix is fed with, of some tokens."""
        gate, up, _ = (f"{block}.{part}" for part in MLP_PROJECTIONS)
        if feed_forward.cutoff is not None:
            level = gates.mean(axis=-1, keepdims=True)
            level += np.float32(feed_forward.cutoff) * gates.std(axis=-1, keepdims=True)
            gates = np.maximum(gates - level, 0)
        gates = self.projected(gate, feed_forward, gates)
        ups = self.projected(up, feed_forward, ups)
        limit = feed_forward.limit
        if limit is not None:
            gates, ups = np.minimum(gates, limit), np.clip(ups, -limit, limit)
        y = self.activated(block, feed_forward, gates)
        y *= ups + np.float32(feed_forward.up_offset)
        return y

    def route(
        self,
        block: str,
        experts: Experts,
        y: np.ndarray,
        inputs: Inputs,
        residual: np.ndarray,
    ) -> np.ndarray:
        """Experts, each with the tokens that take it; what none takes is stored as it is.

        Columns of all of them are scaled alike, as all have the same inputs.
        """
        weights, norm = self.weights, experts.own_norms
        shares = self.shares(block, experts, y, inputs, residual)
        shared = np.zeros_like(y)
        if experts.shared is not None:
            shared = self.feed_dense(f"{block}.shared", experts.shared, y, inputs)
            if experts.shared_is_gated:
                gate = y @ weights.vector(f"{block}.shared_gate")
                weights.store(Inputs(factors=inputs.factors), f"{block}.shared_gate")
                shared /= 1 + np.exp(-gate[:, None])
        if norm is not None:
            first = self.first_of_experts(block, experts)
            y, inputs = self.fed_by(f"{block}.experts", residual, first, norm)
        total = np.zeros_like(y)
        for e in range(experts.count):
            path, own = f"{block}.experts.{e}", np.flatnonzero(shares[:, e])
            if len(own):
                made = self.feed_dense(path, experts.expert, y[own], inputs)
                total[own] += shares[own, e : e + 1] * made
            else:
                weights.store(inputs, *self.first_matrices(path, experts.expert))
                weights.store(Inputs(), f"{path}.down")
        if norm is not None:
            total = self.normed(f"{block}.experts.post_norm", total, norm)
            if experts.shared is not None:
                shared = self.normed(f"{block}.shared.post_norm", shared, norm)
        return shared + total

    def shares(
        self,
        block: str,
        experts: Experts,
        y: np.ndarray,
        inputs: Inputs,
        residual: np.ndarray,
    ) -> np.ndarray:
        """The weight of every expert for every token, 0 where it is not taken: see `Experts`."""
        weights, router = self.weights, f"{block}.router"
        if experts.router_norm is not None:
            y = self.normed(f"{block}.router_norm", residual, experts.router_norm)
            inputs = self.inputs(y)
        logits = y @ weights.table(router).T
        weights.store(inputs, router)
        if experts.router_bias:
            logits = logits + weights.vector(f"{router}.bias")
        shares = _shares(experts, logits, weights, f"{block}.choice")
        return shares * weights.vector(f"{block}.scales") if experts.has_scales else shares

    def per_layer_update(self, index: int, given: PerLayerInput, x: np.ndarray) -> np.ndarray:
        """What a layer makes of its part of the second embedding."""
        weights, block = self.weights, f"layers.{index}.per_layer"
        inputs = self.inputs(self.embedded)
        [context] = weights.multiply(inputs, self.embedded, f"{block}.projection")
        context *= np.float32(self.spec.hidden_size**-0.5)
        part = self.rows[:, index * given.width : (index + 1) * given.width]
        part = (part + self.normed("per_layer_norm", context)) * np.float32(2**-0.5)
        [gate] = weights.multiply(self.inputs(x), x, f"{block}.gate")
        y = activate(given.activation, gate) * part
        [update] = weights.multiply(self.inputs(y), y, f"{block}.up")
        return self.normed(f"{block}.post_norm", update)

    def after(self, block: str, update: np.ndarray) -> np.ndarray:
        """A block's output, normalised where the family does so."""
        if not self.spec.placement.has_post_norms:
            return update
        return self.normed(f"{block}.post_norm", update)

    def add(self, x: np.ndarray, update: np.ndarray) -> np.ndarray:
        return x + update * np.float32(self.spec.residual_scale or 1)

    # Pieces ---------------------------------------------------------------------------------------

    def inputs(
        self, x: np.ndarray, scaled: Sequence[str] = (), shared: tuple[int, int] = (1, 1)
    ) -> Inputs:
        """What tokens say of a matrix's inputs; see `learn_inputs`.

        Args:
            scaled: the matrices whose columns, or rows, get factors, if all of them may.
        """
        may_scale = bool(scaled) and self.weights.may_scale(*scaled)
        return learn_inputs(x, self.strength(scaled) if may_scale else None, shared)

    def strength(self, _paths: Sequence[str]) -> Strength:
        """How strongly these matrices are scaled."""
        return _OF_FEW

    def projected(
        self, path: str, part: Attention | ShortConv | Mamba2 | FeedForward, product: np.ndarray
    ) -> np.ndarray:
        """A product with its bias."""
        if path.rpartition(".")[2] not in part.biases:
            return product
        return product + self.weights.vector(f"{path}.bias")

    def normed(self, path: str, x: np.ndarray, norm: Norm | None = None) -> np.ndarray:
        norm = norm or self.spec.norm
        if norm.kind is NormKind.LAYER:
            x = x - x.mean(axis=-1, keepdims=True)
        mean = (x * x).mean(axis=-1, keepdims=True)
        scaled: np.ndarray = x / np.sqrt(mean + np.float32(norm.epsilon))
        if norm.has_weight:
            scaled = scaled * self.weights.vector(path)
        return scaled + self.weights.vector(f"{path}.bias") if norm.has_bias else scaled

    def divide_norm(self, path: str, factors: np.ndarray | None) -> None:
        """Store a norm, divided by the factors of the columns that it feeds."""
        if self.spec.norm.has_weight:
            self.weights.divide(path, factors)
        if self.spec.norm.has_bias:
            self.weights.divide(f"{path}.bias", factors)

    def activated(self, block: str, feed_forward: FeedForward, x: np.ndarray) -> np.ndarray:
        if feed_forward.activation is not Activation.XIELU:
            return activate(feed_forward.activation, x)
        positive, negative = (
            np.logaddexp(0, self.weights.vector(f"{block}.alpha_{sign}")) for sign in "pn"
        )
        below = np.minimum(x, 0)
        curved = positive * np.maximum(x, 0) ** 2 + (negative + XIELU_BETA) * (
            np.expm1(below) - below
        )
        mixed: np.ndarray = (curved + XIELU_BETA * x).astype(np.float32)
        return mixed


class _Streams:
    """Residual streams, `(streams, n, hidden)`: see `converter.decoder.AltUp`."""

    def __init__(self, calibration: Calibration, altup: AltUp) -> None:
        self.calibration = calibration
        self.weights = calibration.weights
        self.altup = altup

    def begin(self, x: np.ndarray) -> np.ndarray:
        paths = [f"altup_begin.{i}" for i in range(self.altup.streams - 1)]
        others = self.weights.multiply(learn_inputs(x), x, *paths)
        return np.stack([x, *(_as_long(other, x) for other in others)])

    def end(self, x: np.ndarray) -> np.ndarray:
        total = x[0]
        for i, stream in enumerate(x[1:]):
            [other] = self.weights.multiply(learn_inputs(stream), stream, f"altup_end.{i}")
            total = total + _as_long(other, x[0])
        return total / np.float32(self.altup.streams)

    def layer(self, index: int, layer: LayerSpec, x: np.ndarray) -> np.ndarray:
        spec, active, block = self.calibration.spec, self.altup.active, f"layers.{index}.altup"
        count = self.altup.streams
        seen = self.router_inputs(block, x[active])
        routed = np.tanh(seen @ self.weights.table(f"{block}.router").T)
        [factors] = self.multiply(block, "predict", routed)
        x = x + np.einsum("njk,knh->jnh", factors.reshape(-1, count, count), x)
        made = self.calibration.blocks(index, layer, x[active])
        # The router meets both, and is stored by what is known of both.
        both = np.concatenate([seen, self.router_inputs(block, made)])
        [routed] = self.multiply(block, "router", both)
        [factors] = self.multiply(block, "correct", np.tanh(routed[len(seen) :]))
        x = x + (1 + factors.T[:, :, None]) * (made - x[active])
        if spec.per_layer_input is not None:
            seen = x[active]
            if self.altup.scales_output:
                seen = seen * self.weights.vector(f"{block}.output_scale")
            x[1:] += self.calibration.per_layer_update(index, spec.per_layer_input, seen)
        return x

    def router_inputs(self, block: str, x: np.ndarray) -> np.ndarray:
        return self.calibration.normed(f"{block}.router_norm", x) / np.float32(x.shape[1])

    def multiply(self, block: str, part: str, x: np.ndarray) -> list[np.ndarray]:
        return self.weights.multiply(learn_inputs(x), x, f"{block}.{part}")


def _shares(experts: Experts, logits: np.ndarray, weights: Weights, choice: str) -> np.ndarray:
    """The weight of every expert for every token, 0 where it is not taken: see `Experts`."""
    if experts.router is Router.SIGMOID:
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
    compared = scores + weights.vector(choice) if experts.choice_bias else logits
    least = np.sort(compared, axis=-1)[:, -experts.active, None]
    shares: np.ndarray = scores * (compared >= least)
    if experts.renormalises:
        shares = shares / (shares.sum(axis=-1, keepdims=True) + np.float32(experts.epsilon))
    return shares * np.float32(experts.scale)


def _as_long(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """x with the root mean square of another."""
    size, own = ((y * y).mean(axis=-1, keepdims=True) for y in (other, x))
    scaled: np.ndarray = x * np.sqrt(size / np.maximum(own, np.float32(1e-5)))
    return scaled


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    unit: np.ndarray = x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + np.float32(1e-6))
    return unit
