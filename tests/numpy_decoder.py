"""The network of a `DecoderSpec` in plain numpy: a second reading of every word, and no graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from converter.decoder import (
    PER_LAYER_TABLE,
    XIELU_BETA,
    Activation,
    Attention,
    DecoderSpec,
    FeedForward,
    Mixer,
    Norm,
    NormKind,
    Placement,
    Rope,
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
        share = spec.residual_scale or 1
        given = self.per_layer_input(tokens, x)
        for i, layer in enumerate(spec.layers):
            block, mlp = f"layers.{i}.{layer.mixer.block}", f"layers.{i}.mlp"
            if spec.placement is Placement.PARALLEL:
                fed = self.norm(f"{block}.norm", spec.norm, x)
                update = self.mix(i, layer.mixer, fed) + self.feed(mlp, layer.feed_forward, fed)
                x = x + share * update
            else:
                update = self.mix(i, layer.mixer, self.before(block, x))
                x = x + share * self.after(block, update)
                update = self.feed(mlp, layer.feed_forward, self.before(mlp, x))
                x = x + share * self.after(mlp, update)
            if spec.per_layer_input is not None:
                block = f"layers.{i}.per_layer"
                gate = self.project(block, "gate", (), x)
                gate = self.activate(block, spec.per_layer_input.activation, gate)
                update = self.project(block, "up", (), gate * given[i])
                x = x + self.norm(f"{block}.post_norm", spec.norm, update)
            if spec.has_layer_scales:
                x = x * self.weights[f"layers.{i}.scale"]
        x = self.norm("final_norm", spec.norm, x)
        x = x @ self.weights["embedding" if spec.tied_head else "head"].T
        x = (x + (self.weights["head.bias"] if spec.head_bias else 0)) * (spec.logits_scale or 1)
        return x if spec.logits_softcap is None else _softcap(x, spec.logits_softcap)

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

    def mix(self, index: int, mixer: Mixer, x: np.ndarray) -> np.ndarray:
        if isinstance(mixer, ShortConv):
            return self.convolve(f"layers.{index}.conv", mixer, x)
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
            context = context / (1 + np.exp(-x @ self.weights[f"{block}.gate"].T))
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

    def feed(self, block: str, mlp: FeedForward, x: np.ndarray) -> np.ndarray:
        up = self.project(block, "up", mlp.biases, x)
        if mlp.is_gated:
            gate = self.project(block, "gate", mlp.biases, x)
            up = self.activate(block, mlp.activation, gate) * up
        else:
            up = self.activate(block, mlp.activation, up)
        return self.project(block, "down", mlp.biases, up)

    def activate(self, block: str, activation: Activation, x: np.ndarray) -> np.ndarray:
        if activation is Activation.SILU:
            return x / (1 + np.exp(-x))
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


def _softcap(x: np.ndarray, cap: float) -> np.ndarray:
    return cap * np.tanh(x / cap)
