"""The network of a `DecoderSpec` in plain numpy: a second reading of every word, and no graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from converter.decoder import (
    PER_LAYER_TABLE,
    QUICK_GELU_SLOPE,
    XIELU_BETA,
    Activation,
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
    Placement,
    Rope,
    Router,
    ShortConv,
)

Weights = Mapping[str, np.ndarray]


def logits(spec: DecoderSpec, weights: Weights, tokens: Sequence[int]) -> np.ndarray:
    """Of every position, float64 `(len(tokens), vocabulary)`."""
    return _Decoder(spec, weights).run(np.asarray(tokens))


class _Decoder:
    def __init__(self, spec: DecoderSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        self.caches: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def run(self, tokens: np.ndarray) -> np.ndarray:
        spec = self.spec
        x = self.weights["embedding"].astype(np.float64)[tokens] * (spec.embedding_scale or 1)
        given = self.per_layer_input(tokens, x)
        if spec.altup is not None:
            x = self.begin(x)
        for i, layer in enumerate(spec.layers):
            if spec.altup is None:
                x = self.blocks(i, layer, x)
                if spec.per_layer_input is not None:
                    x = x + self.per_layer_update(i, given[i], x)
            else:
                x = self.stream_layer(i, layer, x, given[i] if given else None)
            if spec.has_layer_scales:
                x = x * self.weights[f"layers.{i}.scale"]
        if spec.altup is not None:
            x = self.end(x)
        x = self.norm("final_norm", spec.norm, x)
        x = x @ self.weights["embedding" if spec.tied_head else "head"].T
        x = (x + (self.weights["head.bias"] if spec.head_bias else 0)) * (spec.logits_scale or 1)
        return x if spec.logits_softcap is None else _softcap(x, spec.logits_softcap)

    def blocks(self, i: int, layer: LayerSpec, x: np.ndarray) -> np.ndarray:
        spec, share = self.spec, self.spec.residual_scale or 1
        block, mlp = f"layers.{i}.{layer.mixer.block}", f"layers.{i}.mlp"
        if spec.placement is Placement.PARALLEL:
            fed = self.norm(f"{block}.norm", spec.norm, x)
            update = self.mix(i, layer, fed) + self.feed(mlp, layer.feed_forward, fed, x)
            return x + share * update
        fed = self.before(block, x)
        x = x + share * self.after(block, self.mix(i, layer, fed))
        if spec.laurel_rank is not None:
            low = self.project(f"layers.{i}.laurel", "left", (), fed)
            update = self.project(f"layers.{i}.laurel", "right", (), low)
            update = self.norm(f"layers.{i}.laurel.post_norm", spec.norm, update)
            x = (x + fed + update) / math.sqrt(2)
        update = self.feed(mlp, layer.feed_forward, self.before(mlp, x), x)
        return x + share * self.after(mlp, update)

    def per_layer_update(self, i: int, given: np.ndarray, x: np.ndarray) -> np.ndarray:
        spec, block = self.spec, f"layers.{i}.per_layer"
        assert spec.per_layer_input is not None
        gate = self.project(block, "gate", (), x)
        gate = self.activate(block, spec.per_layer_input.activation, gate)
        update = self.project(block, "up", (), gate * given)
        return self.norm(f"{block}.post_norm", spec.norm, update)

    # Several streams, (streams, n, hidden)

    def begin(self, x: np.ndarray) -> np.ndarray:
        count, size = self.spec.altup.streams, np.sqrt((x**2).mean(-1, keepdims=True))
        others = [_as_long(x @ self.weights[f"altup_begin.{i}"].T, size) for i in range(count - 1)]
        return np.stack([x, *others])

    def end(self, x: np.ndarray) -> np.ndarray:
        size = np.sqrt((x[0] ** 2).mean(-1, keepdims=True))
        others = [
            _as_long(one @ self.weights[f"altup_end.{i}"].T, size) for i, one in enumerate(x[1:])
        ]
        return np.mean([x[0], *others], axis=0)

    def stream_layer(
        self, i: int, layer: LayerSpec, x: np.ndarray, given: np.ndarray | None
    ) -> np.ndarray:
        altup, block = self.spec.altup, f"layers.{i}.altup"
        count = altup.streams
        routed = self.routed(block, x[altup.active])
        factors = (routed @ self.weights[f"{block}.predict"].T).reshape(-1, count, count)
        x = x + np.einsum("njk,knh->jnh", factors, x)
        made = self.blocks(i, layer, x[altup.active])
        factors = 1 + self.routed(block, made) @ self.weights[f"{block}.correct"].T
        x = x + factors.T[:, :, None] * (made - x[altup.active])
        if given is not None:
            seen = x[altup.active]
            if altup.scales_output:
                seen = seen * self.weights[f"{block}.output_scale"]
            x = np.concatenate([x[:1], x[1:] + self.per_layer_update(i, given, seen)])
        return x

    def routed(self, block: str, x: np.ndarray) -> np.ndarray:
        normed = self.norm(f"{block}.router_norm", self.spec.norm, x)
        return np.tanh(normed / x.shape[-1] @ self.weights[f"{block}.router"].T)

    def per_layer_input(self, tokens: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
        """Each layer's part of the second embedding, `(n, width)`."""
        given = self.spec.per_layer_input
        parts: list[np.ndarray] = []
        if given is None:
            return parts
        table = self.weights[PER_LAYER_TABLE].astype(np.float64)
        rows = table[np.where(tokens < given.rows, tokens, 0)] * math.sqrt(given.width)
        for i, row in enumerate(np.split(rows, len(self.spec.layers), axis=-1)):
            context = self.project(f"layers.{i}.per_layer", "projection", (), x)
            context = context / math.sqrt(self.spec.hidden_size)
            context = self.norm("per_layer_norm", self.spec.norm, context)
            parts.append((row + context) / math.sqrt(2))
        return parts

    def before(self, block: str, x: np.ndarray) -> np.ndarray:
        has = self.spec.placement in (Placement.BEFORE, Placement.BOTH)
        return self.norm(f"{block}.norm", self.spec.norm, x) if has else x

    def after(self, block: str, x: np.ndarray) -> np.ndarray:
        has = self.spec.placement in (Placement.AFTER, Placement.BOTH)
        return self.norm(f"{block}.post_norm", self.spec.norm, x) if has else x

    def norm(self, path: str, norm: Norm, x: np.ndarray) -> np.ndarray:
        if norm.kind is NormKind.LAYER:
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.epsilon)
        x = x * self.weights[path] if norm.has_weight else x
        return x + self.weights[f"{path}.bias"] if norm.has_bias else x

    def project(self, block: str, part: str, biases: Sequence[str], x: np.ndarray) -> np.ndarray:
        x = x @ self.weights[f"{block}.{part}"].T
        return x + self.weights[f"{block}.{part}.bias"] if part in biases else x

    def mix(self, index: int, layer: LayerSpec, x: np.ndarray) -> np.ndarray:
        made = self.mix_one(index, layer.mixer, x)
        return made if layer.beside is None else made + self.mix_one(index, layer.beside, x)

    def mix_one(self, index: int, mixer: Mixer, x: np.ndarray) -> np.ndarray:
        if isinstance(mixer, Mamba2):
            return self.scan(f"layers.{index}.mamba", mixer, x)
        if isinstance(mixer, ShortConv):
            return self.convolve(f"layers.{index}.conv", mixer, x)
        if isinstance(mixer, GatedDeltaNet):
            return self.remember(f"layers.{index}.delta", mixer, x)
        return self.attend(index, mixer, x)

    def convolve(self, block: str, mixer: ShortConv, x: np.ndarray) -> np.ndarray:
        b, c, v = (self.project(block, part, mixer.biases, x) for part in "bcx")
        kernel = self.weights[f"{block}.kernel"][:, 0]
        bias = self.weights[f"{block}.kernel.bias"] if mixer.has_bias else 0
        sums = np.stack(
            [
                np.convolve(u, taps[::-1])[: len(x)]
                for u, taps in zip((b * v).T, kernel, strict=True)
            ]
        )
        return self.project(block, "out", mixer.biases, c * (sums.T + bias))

    def shift(self, block: str, seen: np.ndarray, bias: np.ndarray | int) -> np.ndarray:
        """A causal convolution along the tokens, channel by channel."""
        taps, n = self.weights[f"{block}.conv"][:, 0], len(seen)
        mixed = np.zeros_like(seen)
        for ago in range(min(taps.shape[1], n)):
            mixed[ago:] += seen[: n - ago] * taps[:, -1 - ago]
        return mixed + bias

    def scan(self, block: str, mixer: Mamba2, x: np.ndarray) -> np.ndarray:
        """A state space model, token by token and head by head."""
        n, weights = len(x), self.weights
        bias = weights[f"{block}.conv.bias"] if "conv" in mixer.biases else 0
        mixed = self.shift(block, self.project(block, "xbc", mixer.biases, x), bias)
        mixed = self.activate(block, mixer.activation, mixed)
        values, b, c = np.split(mixed, np.cumsum(mixer.widths)[:2], axis=1)
        values = values.reshape(n, mixer.num_heads, -1)
        b, c = (part.reshape(n, mixer.groups, -1) for part in (b, c))
        dt = self.project(block, "dt", mixer.biases, x) + weights[f"{block}.step"]
        step = np.clip(np.log1p(np.exp(dt)), *mixer.step_limits)
        out = values * weights[f"{block}.skip"][:, None]
        for head in range(mixer.num_heads):
            of = head // (mixer.num_heads // mixer.groups)
            memory = np.zeros((mixer.head_dim, mixer.state_dim))
            for i in range(n):
                memory = memory * np.exp(step[i, head] * weights[f"{block}.decay"][head])
                memory += step[i, head] * np.outer(values[i, head], b[i, of])
                out[i, head] += memory @ c[i, of]
        out = out.reshape(n, -1)
        silu = Activation.SILU
        gate = self.activate(block, silu, self.project(block, "gate", mixer.biases, x))
        out = out if mixer.gates_last else out * gate
        if mixer.norm is not None:
            parts = out.reshape(n, mixer.norm_groups, -1)
            size = np.sqrt((parts**2).mean(-1, keepdims=True) + mixer.norm.epsilon)
            out = (parts / size).reshape(n, -1) * weights[f"{block}.out_norm"]
        out = out * gate if mixer.gates_last else out
        return self.project(block, "o", mixer.biases, out)

    def remember(self, block: str, mixer: GatedDeltaNet, x: np.ndarray) -> np.ndarray:
        """The gated delta rule, token by token and head by head."""
        n, silu, weights = len(x), Activation.SILU, self.weights
        mixed = self.shift(block, self.project(block, "qkv", (), x), 0)
        mixed = self.activate(block, silu, mixed)
        keys = mixer.num_key_heads * mixer.key_dim
        q, k = (
            part.reshape(n, mixer.num_key_heads, mixer.key_dim)
            for part in (mixed[:, :keys], mixed[:, keys : 2 * keys])
        )
        v = mixed[:, 2 * keys :].reshape(n, mixer.num_value_heads, mixer.value_dim)
        a = self.project(block, "alpha", (), x) + weights[f"{block}.step"]
        decay = np.exp(weights[f"{block}.decay"] * np.log1p(np.exp(a)))
        beta = 1 / (1 + np.exp(-self.project(block, "beta", (), x)))
        gate = self.activate(block, silu, self.project(block, "z", (), x)).reshape(v.shape)
        out = np.zeros_like(v)
        group = mixer.num_value_heads // mixer.num_key_heads
        for head in range(mixer.num_value_heads):
            of = head % mixer.num_key_heads if mixer.is_tiled else head // group
            memory = np.zeros((mixer.key_dim, mixer.value_dim))
            for i in range(n):
                key, query = (
                    part[i, of] / np.sqrt((part[i, of] ** 2).sum() + 1e-6) for part in (k, q)
                )
                memory = memory * decay[i, head]
                memory += beta[i, head] * np.outer(key, v[i, head] - key @ memory)
                out[i, head] = query @ memory / math.sqrt(mixer.key_dim)
        out = self.norm(f"{block}.out_norm", mixer.norm, out) * gate
        return self.project(block, "o", (), out.reshape(n, -1))

    def attend(self, index: int, mixer: Attention, x: np.ndarray) -> np.ndarray:
        block, n, biases = f"layers.{index}.attention", len(x), mixer.biases
        q = self.heads(block, "q", mixer, x)
        if mixer.cache_of is None:
            part = "k" if mixer.keys_are_values else "v"
            v = self.project(block, part, biases, x).reshape(n, -1, mixer.head_dim)
            if mixer.value_norm is not None:
                v = self.norm(f"{block}.v_norm", mixer.value_norm, v)
            self.caches[index] = self.heads(block, "k", mixer, x), v
        k, v = self.caches[index if mixer.cache_of is None else mixer.cache_of]
        positions = np.arange(n)
        ago = positions[:, None] - positions
        sees = (ago >= 0) & (ago < (mixer.sliding_window or n))
        if mixer.position_scale is not None:
            steps = positions // mixer.position_scale.length
            q = q * (1 + mixer.position_scale.beta * np.log1p(steps))[:, None, None]
        contexts = []
        for head in range(mixer.num_heads):  # a group of them has one key-value head
            of = head // (mixer.num_heads // mixer.num_kv_heads)
            score = q[:, head] @ k[:, of].T * mixer.scale
            score = score if mixer.softcap is None else _softcap(score, mixer.softcap)
            share = np.exp(score) * sees
            sink = np.exp(self.weights[f"{block}.sinks"][head]) if mixer.has_sinks else 0
            contexts.append(share @ v[:, of] / (share.sum(-1, keepdims=True) + sink))
        context = np.concatenate(contexts, axis=-1)
        if mixer.is_gated:
            context = context / (1 + np.exp(-self.project(block, "gate", biases, x)))
        return self.project(block, "o", biases, context)

    def heads(self, block: str, part: str, mixer: Attention, x: np.ndarray) -> np.ndarray:
        """Queries or keys, `(n, heads, d)`."""
        n, norm, path = len(x), mixer.qk_norm, f"{block}.{part}_norm"
        x = self.project(block, part, mixer.biases, x)
        if norm is not None and norm.is_full_width:
            x = self.norm(path, norm.norm, x)
        x = x.reshape(n, -1, mixer.head_dim)
        if norm is not None and not norm.is_full_width and not norm.after_rope:
            x = self.norm(path, norm.norm, x)
        x = x if mixer.rope is None else _rotate(mixer.rope, x)
        return self.norm(path, norm.norm, x) if norm is not None and norm.after_rope else x

    def feed(
        self, block: str, mlp: FeedForward | Experts, x: np.ndarray, residual: np.ndarray
    ) -> np.ndarray:
        if isinstance(mlp, Experts):
            pairs = zip(x, residual, strict=True)
            return np.stack([self.route(block, mlp, *pair) for pair in pairs])
        return self.dense(block, mlp, x)

    def dense(self, block: str, mlp: FeedForward, x: np.ndarray) -> np.ndarray:
        up = self.project(block, "up", mlp.biases, x)
        if mlp.is_gated:
            gate = self.project(block, "gate", mlp.biases, x)
            if mlp.cutoff is not None:
                spread = gate.std(-1, keepdims=True)
                gate = np.maximum(gate - gate.mean(-1, keepdims=True) - mlp.cutoff * spread, 0)
            if mlp.limit is not None:
                gate, up = np.minimum(gate, mlp.limit), np.clip(up, -mlp.limit, mlp.limit)
            up = self.activate(block, mlp.activation, gate) * (up + mlp.up_offset)
        else:
            up = self.activate(block, mlp.activation, up)
        return self.project(block, "down", mlp.biases, up)

    def route(self, block: str, mlp: Experts, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """One token through those experts that it takes."""
        seen, own = x, mlp.own_norms
        if mlp.router_norm is not None:
            seen = self.norm(f"{block}.router_norm", mlp.router_norm, residual)
        score = self.project(block, "router", ("router",) if mlp.router_bias else (), seen)
        is_sigmoid = mlp.router is Router.SIGMOID
        score = 1 / (1 + np.exp(-score)) if is_sigmoid else np.exp(score) / np.exp(score).sum()
        order = score + (self.weights[f"{block}.choice"] if mlp.choice_bias else 0)
        chosen = np.argsort(order)[::-1][: mlp.active]
        share = score[chosen] * mlp.scale
        if mlp.renormalises:
            share = share / (score[chosen].sum() + mlp.epsilon)
        if mlp.has_scales:
            share = share * self.weights[f"{block}.scales"][chosen]
        fed = x if own is None else self.norm(f"{block}.experts.norm", own, residual)
        total = share @ np.stack(
            [self.dense(f"{block}.experts.{e}", mlp.expert, fed) for e in chosen]
        )
        if own is not None:
            total = self.norm(f"{block}.experts.post_norm", own, total)
        if mlp.shared is None:
            return total
        shared = self.dense(f"{block}.shared", mlp.shared, x)
        if mlp.shared_is_gated:
            shared = shared / (1 + np.exp(-(x @ self.weights[f"{block}.shared_gate"])))
        return total + (
            shared if own is None else self.norm(f"{block}.shared.post_norm", own, shared)
        )

    def activate(self, block: str, activation: Activation, x: np.ndarray) -> np.ndarray:
        if activation is Activation.SILU:
            return x / (1 + np.exp(-x))
        if activation is Activation.QUICK_GELU:
            return x / (1 + np.exp(-QUICK_GELU_SLOPE * x))
        if activation is Activation.RELU2:
            return np.where(x > 0, x, 0) ** 2
        if activation is Activation.GELU:
            erf = np.vectorize(math.erf)
            return x * (1 + erf(x / math.sqrt(2))) / 2
        if activation is Activation.GELU_TANH:
            return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        a_p = np.log1p(np.exp(self.weights[f"{block}.alpha_p"]))
        a_n = XIELU_BETA + np.log1p(np.exp(self.weights[f"{block}.alpha_n"]))
        below = a_n * (np.expm1(np.minimum(x, 0)) - x)
        return np.where(x > 0, a_p * x**2, below) + XIELU_BETA * x


def _rotate(rope: Rope, x: np.ndarray) -> np.ndarray:
    """(n, heads, d): value i of a head turns with value i + w/2, in a plane of its own."""
    d = x.shape[-1]
    width = rope.width or d
    half = width // 2
    turns = np.arange(len(x))[:, None, None] * np.asarray(rope.inverse_frequencies(d))
    plane = x[..., :half] + 1j * x[..., half:width]
    plane = plane * np.exp(1j * turns) * rope.attention_factor
    return np.concatenate([plane.real, plane.imag, x[..., width:]], axis=-1)


def _as_long(x: np.ndarray, size: np.ndarray) -> np.ndarray:
    """x with another root mean square."""
    return x * size / np.sqrt(np.maximum((x**2).mean(-1, keepdims=True), 1e-5))


def _softcap(x: np.ndarray, cap: float) -> np.ndarray:
    return cap * np.tanh(x / cap)
