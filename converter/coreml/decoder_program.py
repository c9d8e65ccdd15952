"""From `DecoderSpec` to the functions of an ML Program, as ANEMLL's runtimes call them.

Between blocks x is (1, T, hidden), T tokens of this call; inside a projection (1, channels, 1, T),
which is how the Neural Engine likes a linear layer. Everything is float16. The interface (names,
shapes, states) is that of ANEMLL 0.3.5; where its network differs from the model, the model wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from converter.coreml.blob import DType
from converter.coreml.program import Function, Tensor
from converter.decoder import (
    QUICK_GELU_SLOPE,
    Activation,
    Attention,
    DecoderSpec,
    FeedForward,
    LayerSpec,
    Norm,
    NormKind,
    Placement,
    Rope,
)

# Gives a weight of the network as a value of a function, in the shape that is asked for. Its path
# is that of `DecoderSpec.weight_shapes`; of rows a to b of the head, tied or not, `head[a:b]`.
WeightOf = Callable[[Function, str, tuple[int, ...]], Tensor]
# A rotary embedding, and the width of the heads that it rotates.
Rotation = tuple[Rope, int]


@dataclass(frozen=True)
class StateSpec:
    """A cache of keys and values: (2 layers, kv, slots, head_dim); K of its layer l is row l.

    Attributes:
        layers: those that it holds, by number in the network.
        window: positions that they see; None where they see all.
    """

    name: str
    layers: tuple[int, ...]
    num_kv_heads: int
    slots: int
    head_dim: int
    window: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (2 * len(self.layers), self.num_kv_heads, self.slots, self.head_dim)

    def row(self, layer: int, is_value: bool) -> int:
        """Where a layer's keys or values are."""
        return self.layers.index(layer) + is_value * len(self.layers)


@dataclass(frozen=True)
class Interface:
    """What all functions of a model have in common.

    Attributes:
        context: columns of the mask, C.
        batch: tokens of a `prefill`.
        head_parts: rows of the head that each of its outputs has.
        argmax: whether the head gives the largest logit of each part in place of all.
        residual_scale: the residual stream is so many times what it is in the model, so that
            float16 can carry it. Whoever gives the weights scales what is added to the stream; the
            embedding, and the epsilon of norms that see the stream, are scaled here.
    """

    context: int
    batch: int
    states: tuple[StateSpec, ...]
    head_parts: tuple[int, ...]
    argmax: bool = False
    residual_scale: float = 1.0

    def state_of(self, layer: int) -> StateSpec:
        return next(state for state in self.states if layer in state.layers)


def states_of(spec: DecoderSpec, context: int, least_slots: int = 0) -> tuple[StateSpec, ...]:
    """One cache, or two where some layers see a window of the context alone."""
    windows = {_attention(layer).sliding_window for layer in spec.layers}
    windows = {None if w is None or w >= context else w for w in windows}
    by_window: dict[int | None, list[int]] = {}
    for i, layer in enumerate(spec.layers):
        window = _attention(layer).sliding_window
        by_window.setdefault(window if window in windows else None, []).append(i)
    states = []
    for window, layers in sorted(by_window.items(), key=lambda item: item[0] is None):
        mixer = _attention(spec.layers[layers[0]])
        kind = "0" if len(by_window) == 1 and window is None else ("global", "local")[bool(window)]
        states.append(
            StateSpec(
                f"model_model_kv_cache_{kind}",
                tuple(layers),
                mixer.num_kv_heads,
                window or max(context, least_slots),
                mixer.head_dim,
                window,
            )
        )
    return tuple(states)


@dataclass(frozen=True)
class Call:
    """One function over layers: how many tokens, and whether windows are full (`rotate`)."""

    name: str
    length: int
    is_prefill: bool
    rotates: bool = False


def calls(interface: Interface) -> tuple[Call, ...]:
    """The functions of every part with layers, the default first."""
    plain = (Call("infer", 1, False), Call("prefill", interface.batch, True))
    if all(state.window is None for state in interface.states):
        return plain
    return (
        *plain,
        Call("infer_rotate", 1, False, rotates=True),
        Call("prefill_rotate", interface.batch, True, rotates=True),
    )


def embeddings(spec: DecoderSpec, interface: Interface, weight_of: WeightOf) -> Function:
    """Tokens -> rows of the table, times the scales."""
    f = Function("main")
    tokens = f.add_input("input_ids", (1, None), DType.INT32)
    f.add_output("hidden_states", _embed(f, spec, interface, weight_of, tokens))
    return f


def layers(
    spec: DecoderSpec,
    interface: Interface,
    call: Call,
    weight_of: WeightOf,
    which: Sequence[int],
) -> Function:
    """Some consecutive layers as one function; the last ones end with the norm."""
    f = Function(call.name)
    x = f.add_input("hidden_states", (1, call.length, spec.hidden_size), DType.FLOAT16)
    _add_layers(f, spec, interface, call, weight_of, which, x)
    return f


def head(spec: DecoderSpec, interface: Interface, weight_of: WeightOf) -> Function:
    """One token's last hidden state -> logits in parts, or the largest of each."""
    f = Function("main")
    x = f.add_input("hidden_states", (1, 1, spec.hidden_size), DType.FLOAT16)
    _add_head(f, spec, interface, weight_of, x)
    return f


def monolithic(
    spec: DecoderSpec, interface: Interface, call: Call, weight_of: WeightOf
) -> Function:
    """Everything in one: tokens -> logits, or for `prefill` nothing but states."""
    f = Function(call.name)
    tokens = f.add_input("input_ids", (1, call.length), DType.INT32)
    x = _embed(f, spec, interface, weight_of, tokens)
    which = range(len(spec.layers))
    x = _Layers(f, spec, interface, call, weight_of).run(which, x)
    if call.is_prefill:
        f.add_output("output_hidden_states", x)
    else:
        _add_head(f, spec, interface, weight_of, x)
    return f


def _embed(
    f: Function, spec: DecoderSpec, interface: Interface, weight_of: WeightOf, tokens: Tensor
) -> Tensor:
    table = weight_of(f, "embedding", (spec.vocab_size, spec.hidden_size))
    x = f.make_gather(table, tokens)
    scale = (spec.embedding_scale or 1) * interface.residual_scale
    return x if scale == 1 else f.make_mul_constant(x, scale)


def _add_layers(
    f: Function,
    spec: DecoderSpec,
    interface: Interface,
    call: Call,
    weight_of: WeightOf,
    which: Sequence[int],
    x: Tensor,
) -> None:
    f.add_output("output_hidden_states", _Layers(f, spec, interface, call, weight_of).run(which, x))


def _add_head(
    f: Function, spec: DecoderSpec, interface: Interface, weight_of: WeightOf, x: Tensor
) -> None:
    columns = _to_channels(f, x)
    indices, values = [], []
    first = 0
    for i, size in enumerate(interface.head_parts):
        weight = weight_of(f, f"head[{first}:{first + size}]", (size, spec.hidden_size, 1, 1))
        bias = None
        if spec.head_bias:
            bias = weight_of(f, f"head.bias[{first}:{first + size}]", (size,))
        logits = f.make_conv(columns, weight, bias)  # (1, n, 1, 1)
        logits = f.make_transpose(f.make_squeeze(logits, 2), (0, 2, 1))
        if spec.logits_scale is not None:
            logits = f.make_mul_constant(logits, spec.logits_scale)
        if spec.logits_softcap is not None:
            logits = _softcap(f, logits, spec.logits_softcap)
        if interface.argmax:
            flat = f.make_reshape(logits, (1, size))
            indices.append(f.make_reduce("reduce_argmax", flat, 1))
            values.append(f.make_reduce("reduce_max", flat, 1))
        else:
            f.add_output(f"logits{i + 1}", logits)
        first += size
    if interface.argmax:
        count = len(interface.head_parts)
        f.add_output("argmax_idx", f.make_reshape(f.make_concat(indices, 0), (count,)))
        f.add_output("argmax_val", f.make_reshape(f.make_concat(values, 0), (count,)))


def _softcap(f: Function, x: Tensor, cap: float) -> Tensor:
    return f.make_mul_constant(f.make_unary("tanh", f.make_mul_constant(x, 1 / cap)), cap)


def _to_channels(f: Function, x: Tensor) -> Tensor:
    """(1, T, width) -> (1, width, 1, T)."""
    return f.make_expand_dims(f.make_transpose(x, (0, 2, 1)), 2)


def _from_channels(f: Function, x: Tensor) -> Tensor:
    """(1, width, 1, T) -> (1, T, width)."""
    return f.make_transpose(f.make_squeeze(x, 2), (0, 2, 1))


def _attention(layer: LayerSpec) -> Attention:
    assert isinstance(layer.mixer, Attention)
    return layer.mixer


@dataclass
class _Layers:
    """Layers of one function; what several of them share is made once."""

    f: Function
    spec: DecoderSpec
    interface: Interface
    call: Call
    weight_of: WeightOf
    states: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[Rotation, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def run(self, which: Sequence[int], x: Tensor) -> Tensor:
        """(1, T, hidden) -> the same, or (1, 1, hidden) after the last layer of a `prefill`."""
        f, call = self.f, self.call
        self.position_ids = f.add_input("position_ids", (call.length,), DType.INT32)
        self.mask = f.add_input(
            "causal_mask", (1, 1, call.length, self.interface.context), DType.FLOAT16
        )
        self.current_pos = f.add_input("current_pos", (1,), DType.INT32)
        for state in self.interface.states:
            self.states[state.name] = f.add_state(state.name, state.shape)
        self.end = f.make_binary("add", self.current_pos, np.int32(call.length))
        for i in which:
            x = self.make_layer(i, x)
        touched = {self.interface.state_of(i).name for i in which}
        for state in self.interface.states:
            if state.name not in touched:  # a state that a function does not use is an error
                f.read_state(self.states[state.name])
        if which[-1] < len(self.spec.layers) - 1:
            return x
        if call.is_prefill:
            # Nobody reads it: only states count. By its size runtimes know the last part.
            return f.make_slice(x, 1, 0, 1)
        return self.make_stream_norm(x, "final_norm")

    def make_layer(self, i: int, x: Tensor) -> Tensor:
        x = self.make_blocks(i, x)
        if self.spec.has_layer_scales:
            x = self.f.make_binary("mul", x, self.weight_of(self.f, f"layers.{i}.scale", (1,)))
        return x

    def make_blocks(self, i: int, x: Tensor) -> Tensor:
        spec, layer = self.spec, self.spec.layers[i]
        attention, mlp = f"layers.{i}.attention", f"layers.{i}.mlp"
        assert isinstance(layer.feed_forward, FeedForward)
        if spec.placement is Placement.PARALLEL:
            normed = self.before(x, attention)
            mixed = self.make_attention(i, attention, normed)
            fed = self.make_feed_forward(mlp, layer.feed_forward, normed)
            return self.make_sum(self.make_sum(x, mixed), fed)
        mixed = self.make_attention(i, attention, self.before(x, attention))
        x = self.make_sum(x, self.after(mixed, attention))
        fed = self.make_feed_forward(mlp, layer.feed_forward, self.before(x, mlp))
        return self.make_sum(x, self.after(fed, mlp))

    def before(self, x: Tensor, block: str) -> Tensor:
        norms = self.spec.placement.has_pre_norms
        return self.make_stream_norm(x, f"{block}.norm") if norms else x

    def after(self, x: Tensor, block: str) -> Tensor:
        norms = self.spec.placement.has_post_norms
        return self.make_norm(x, f"{block}.post_norm", self.spec.norm) if norms else x

    def make_sum(self, x: Tensor, added: Tensor) -> Tensor:
        scale = self.spec.residual_scale
        if scale is not None:
            added = self.f.make_mul_constant(added, scale)
        return self.f.make_binary("add", x, added)

    # Blocks ---------------------------------------------------------------------------------------

    def make_stream_norm(self, x: Tensor, path: str) -> Tensor:
        """Of the residual stream: the scale leaves no trace."""
        norm, scale = self.spec.norm, self.interface.residual_scale
        return self.make_norm(x, path, replace(norm, epsilon=norm.epsilon * scale**2))

    def make_norm(self, x: Tensor, path: str, norm: Norm) -> Tensor:
        """Over the last axis.

        The engine has a fast layer norm and no RMS norm: beside its negative, x has the mean 0, so
        that one is the other.
        """
        f, width = self.f, x.shape[-1]
        assert width is not None
        if norm.kind is NormKind.RMS:
            both = f.make_concat((x, f.make_mul_constant(x, -1)), -1)
            x = f.make_slice(f.make_layer_norm(both, norm.epsilon), -1, 0, width)
        else:
            x = f.make_layer_norm(x, norm.epsilon)
        if norm.has_weight:
            x = f.make_binary("mul", x, self.weight_of(f, path, (width,)))
        if norm.has_bias:
            x = f.make_binary("add", x, self.weight_of(f, f"{path}.bias", (width,)))
        return x

    def make_projection(
        self, block: str, part: str, biases: Sequence[str], x: Tensor, rows: int
    ) -> Tensor:
        """(1, in, 1, T) -> (1, rows, 1, T)."""
        path, columns = f"{block}.{part}", x.shape[1]
        assert columns is not None
        bias = self.weight_of(self.f, f"{path}.bias", (rows,)) if part in biases else None
        weight = self.weight_of(self.f, path, (rows, columns, 1, 1))
        return self.f.make_conv(x, weight, bias)

    def make_feed_forward(self, block: str, spec: FeedForward, x: Tensor) -> Tensor:
        """(1, T, hidden) -> the same."""
        f = self.f
        columns = _to_channels(f, x)
        up = self.make_projection(block, "up", spec.biases, columns, spec.width)
        if spec.is_gated:
            gate = self.make_projection(block, "gate", spec.biases, columns, spec.width)
            inner = f.make_binary("mul", self.make_activation(spec.activation, gate), up)
        else:
            inner = self.make_activation(spec.activation, up)
        hidden = self.spec.hidden_size
        down = self.make_projection(block, "down", spec.biases, inner, hidden)
        return _from_channels(f, down)

    def make_activation(self, activation: Activation, x: Tensor) -> Tensor:
        f = self.f
        if activation is Activation.SILU:
            return f.make_unary("silu", x)
        if activation is Activation.RELU2:
            return f.make_unary("square", f.make_unary("relu", x))
        if activation is Activation.QUICK_GELU:
            steep = f.make_unary("silu", f.make_mul_constant(x, QUICK_GELU_SLOPE))
            return f.make_mul_constant(steep, 1 / QUICK_GELU_SLOPE)
        assert activation in (Activation.GELU, Activation.GELU_TANH)
        mode = "TANH_APPROXIMATION" if activation is Activation.GELU_TANH else "EXACT"
        return f.make_unary("gelu", x, mode=mode)

    # Attention ------------------------------------------------------------------------------------

    def make_attention(self, i: int, block: str, x: Tensor) -> Tensor:
        """(1, T, hidden) -> the same, over the layer's cache."""
        f, length = self.f, self.call.length
        mixer, state = _attention(self.spec.layers[i]), self.interface.state_of(i)
        heads, kv, width = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim
        columns = _to_channels(f, x)
        q, _ = self.make_heads(block, "q", mixer, columns, heads)
        k, projected = self.make_heads(block, "k", mixer, columns, kv)
        if not mixer.keys_are_values:
            projected = self.make_projection(block, "v", mixer.biases, columns, kv * width)
        v = self.to_heads(projected, kv, width)
        if mixer.value_norm is not None:
            v = self.make_norm(v, f"{block}.v_norm", mixer.value_norm)
        scale = mixer.scale / (mixer.softcap or 1)
        if scale != 1:  # on queries, so that scores stay small
            q = f.make_mul_constant(q, scale)
        if state.window is not None and self.call.rotates:
            keys, mask = self.shifted(state, i, k, is_value=False)
            values, _ = self.shifted(state, i, v, is_value=True)
        else:
            keys, values = self.extended(state, i, k, v)
            seen = min(state.slots, self.interface.context)
            keys, values = f.make_slice(keys, 2, 0, seen), f.make_slice(values, 2, 0, seen)
            mask = f.make_slice(self.mask, 3, 0, seen)
        groups = heads // kv
        scores = f.make_matmul(q, self.repeated(keys, groups), transpose_y=True)
        if mixer.softcap is not None:
            scores = f.make_mul_constant(f.make_unary("tanh", scores), mixer.softcap)
        if mask is not None:
            scores = f.make_binary("add", scores, mask)
        context = f.make_matmul(f.make_softmax(scores), self.repeated(values, groups))
        flat = f.make_reshape(f.make_transpose(context, (0, 2, 1, 3)), (1, length, heads * width))
        columns = _to_channels(f, flat)
        hidden = self.spec.hidden_size
        out = self.make_projection(block, "o", mixer.biases, columns, hidden)
        return _from_channels(f, out)

    def make_heads(
        self, block: str, part: str, mixer: Attention, columns: Tensor, heads: int
    ) -> tuple[Tensor, Tensor]:
        """Queries or keys, normalised and rotated, (1, heads, T, d); and as they were before."""
        width, norm = mixer.head_dim, mixer.qk_norm
        x = projected = self.make_projection(block, part, mixer.biases, columns, heads * width)
        path = f"{block}.{part}_norm"
        if norm is not None and norm.is_full_width:
            x = self.make_norm(_from_channels(self.f, x), path, norm.norm)
            x = _to_channels(self.f, x)
        x = self.to_heads(x, heads, width)
        if norm is not None and not norm.is_full_width and not norm.after_rope:
            x = self.make_norm(x, path, norm.norm)
        if mixer.rope is not None:
            x = self.rotate(x, mixer.rope)
        if norm is not None and norm.after_rope:
            x = self.make_norm(x, path, norm.norm)
        return x, projected

    def to_heads(self, x: Tensor, heads: int, width: int) -> Tensor:
        """(1, heads d, 1, T) -> (1, heads, T, d)."""
        x = self.f.make_reshape(x, (1, heads, width, self.call.length))
        return self.f.make_transpose(x, (0, 1, 3, 2))

    def rotate(self, x: Tensor, rope: Rope) -> Tensor:
        """The rotary embedding of the first `rope.width` values of each head."""
        f, head_dim = self.f, x.shape[-1]
        assert head_dim is not None
        half = (rope.width or head_dim) // 2
        cos, sin = self.rope_rows(rope, head_dim)
        left, right = f.make_slice(x, -1, 0, half), f.make_slice(x, -1, half, 2 * half)
        parts = [
            f.make_binary("sub", f.make_binary("mul", left, cos), f.make_binary("mul", right, sin)),
            f.make_binary("add", f.make_binary("mul", right, cos), f.make_binary("mul", left, sin)),
        ]
        if 2 * half < head_dim:
            parts.append(f.make_slice(x, -1, 2 * half, head_dim))
        return f.make_concat(parts, -1)

    def rope_rows(self, rope: Rope, head_dim: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of this call's positions, (1, 1, T, width / 2)."""
        rotation = (rope, head_dim)
        if rotation not in self.rows:
            f, half = self.f, (rope.width or head_dim) // 2
            positions = self.position_ids if self.call.is_prefill else self.current_pos
            positions = f.make_cast(positions, DType.INT16)
            number = list(rope_tables(self.spec, 0)).index(rotation)
            found = []
            for part in ("cos", "sin"):
                path = f"rope.{number}.{part}"
                table = self.weight_of(f, path, (self.interface.context, half))
                row = f.make_gather(table, positions)
                found.append(f.make_reshape(row, (1, 1, self.call.length, half)))
            self.rows[rotation] = (found[0], found[1])
        return self.rows[rotation]

    def repeated(self, x: Tensor, groups: int) -> Tensor:
        """Each head of keys or values as often as queries share it: (1, heads, S, d).

        As many copies as ANEMLL makes, with the same operation: the engine is known to take it.
        """
        if groups == 1:
            return x
        f = self.f
        _, kv, slots, width = x.shape
        assert kv is not None
        assert slots is not None
        assert width is not None
        tiled = f.make_tile(f.make_reshape(x, (kv, 1, slots, width)), 1, groups)
        return f.make_reshape(tiled, (1, kv * groups, slots, width))

    # Cache ----------------------------------------------------------------------------------------

    def extended(self, state: StateSpec, i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values at the current position; all of them, (1, kv, slots, d)."""
        f, held = self.f, self.states[state.name]
        for is_value, update in enumerate((k, v)):
            row = state.row(i, bool(is_value))
            self.store(held, row, update, self.current_pos, self.end)
        cache = f.read_state(held)
        return (
            f.make_slice(cache, 0, state.row(i, False), state.row(i, False) + 1),
            f.make_slice(cache, 0, state.row(i, True), state.row(i, True) + 1),
        )

    def shifted(
        self, state: StateSpec, i: int, new: Tensor, is_value: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Move a full window on by this call's tokens.

        Returns:
            What this call sees, (1, kv, n, d): one token sees the new window, all of it; of several
            each sees its own part of the old window and the new tokens, as the mask says.
        """
        f, length, held = self.f, self.call.length, self.states[state.name]
        assert state.window is not None
        row = state.row(i, is_value)
        old = f.make_slice(f.read_state(held), 0, row, row + 1)
        both = f.make_concat((old, new), 2)
        window = f.make_slice(both, 2, length, length + state.window)
        begin, end = f.constant([0]), f.constant([state.window])
        self.store(held, row, window, begin, end)
        if length == 1:
            return window, None
        i_row = np.arange(length)[:, None]
        column = np.arange(state.window + length)[None, :]
        seen = (i_row < column) & (column <= i_row + state.window)
        mask = np.where(seen, 0, -np.inf).astype(np.float16)
        return both, f.constant(mask[None, None])

    def store(self, held: Tensor, row: int, update: Tensor, begin: Tensor, end: Tensor) -> None:
        """Put (1, kv, n, d) into one row of a state, from slot `begin` to `end`."""
        f = self.f
        zero = f.constant([0])
        begins = f.make_concat((f.constant([row]), zero, begin, zero), 0)
        ends = f.make_concat((f.constant([row + 1]), zero, end, zero), 0)
        cache = f.read_state(held)
        mask = (False, True, False, True)
        f.write_state(held, f.make_slice_update(cache, update, begins, ends, mask))


def rope_tables(
    spec: DecoderSpec, context: int
) -> Mapping[Rotation, tuple[np.ndarray, np.ndarray]]:
    """Cosines and sines of every rotary embedding, (context, width / 2): float64, rounded once."""
    found = {}
    for layer in spec.layers:
        mixer = _attention(layer)
        if mixer.rope is not None and (mixer.rope, mixer.head_dim) not in found:
            assert context <= (mixer.rope.positions or context), "a longer one was not chosen"
            frequencies = np.array(mixer.rope.inverse_frequencies(mixer.head_dim))
            angles = np.arange(context)[:, None] * frequencies
            factor = mixer.rope.attention_factor
            found[mixer.rope, mixer.head_dim] = (
                (np.cos(angles) * factor).astype(np.float16),
                (np.sin(angles) * factor).astype(np.float16),
            )
    return found


def head_parts(vocab_size: int, count: int) -> tuple[int, ...]:
    """Rows of each of `count` parts; the first ones have one more where they do not divide."""
    size, more = divmod(vocab_size, count)
    return tuple(size + (i < more) for i in range(count))


def chunks(num_layers: int, count: int) -> list[range]:
    """Layers of each of `count` parts; the first ones have one more where they do not divide."""
    sizes = head_parts(num_layers, count)
    starts = [sum(sizes[:i]) for i in range(count)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
