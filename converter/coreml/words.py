"""Which networks `decoder_program` can write: every other one is refused by what it would lack.

A word of `DecoderSpec` that is neither written nor refused would change the numbers in silence, so
`tests/converter/coreml/test_words.py` tries each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from converter.decoder import (
    Activation,
    Attention,
    DecoderSpec,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LayerSpec,
    Mamba2,
    ShortConv,
)
from converter.errors import OptionError, UnsupportedError

_FIX = "convert it for LiteRT-LM: --target cpu"

# What has no operations here, as a part of a network.
_PARTS: Mapping[Any, str] = {
    ShortConv: "short convolutions",
    GatedDeltaNet: "a gated delta net",
    Mamba2: "Mamba layers",
    type(None): "layers of one block",
    Experts: "mixtures of experts",
    Activation.XIELU: "the activation xIELU",
}
# Fields that are not looked at, so that they must have their defaults.
_FIELDS: Mapping[type, Mapping[str, str]] = {
    DecoderSpec: {
        "per_layer_input": "an embedding for each layer",
        "laurel_rank": "paths of low rank beside attention",
        "altup": "several residual streams",
    },
    LayerSpec: {"beside": "two mixers in a layer"},
    Attention: {
        "is_gated": "gates on the output of attention",
        "has_sinks": "attention sinks",
        "cache_of": "layers that share a cache",
    },
    FeedForward: {
        "cutoff": "gates that are cut off",
        "limit": "gates that are limited",
        "up_offset": "an offset on what is gated",
    },
}


def check_words(spec: DecoderSpec, context: int, residual_scale: float = 1.0) -> None:
    """Refuse a network that the emitter cannot write, or not for these options.

    Args:
        spec: the network in this context: `DecoderSpec.for_context`.
        residual_scale: of `decoder_program.Interface`.

    Raises:
        UnsupportedError: it has parts that the emitter lacks, or is another one scaled so.
        OptionError: it has all, but not for this context.
    """
    lacking = list(dict.fromkeys((*unwritten(spec), *_unlike(spec, context))))
    if lacking:
        raise UnsupportedError(
            f"a network with {', '.join(lacking)}", "is not written as a Core ML package", _FIX
        )
    grows = [m.position_scale.length for m in _mixers(spec) if m.position_scale]
    if min(grows, default=context) < context:  # up to there the factor is 1
        raise OptionError(
            f"--context {context}",
            f"is where queries begin to grow with the position, from {min(grows)} on, "
            "which is not written as a Core ML package",
            f"choose --context {min(grows)} or less",
        )
    if residual_scale != 1:
        _check_scale(spec, residual_scale)


def trace_of_scale(spec: DecoderSpec) -> str | None:
    """Why a network with its residual stream scaled is another one; None where it is the same.

    That is where every block sees the stream under a norm, and what it adds is made by a weight.
    """
    if not spec.placement.has_pre_norms:
        return "is another network where blocks see it without a norm before them"
    if spec.placement.has_post_norms and not spec.norm.has_weight:
        return "is another network where norms without weights stand after blocks"
    return None


def _check_scale(spec: DecoderSpec, residual_scale: float) -> None:
    why = trace_of_scale(spec)
    if why is not None:
        what = f"a residual stream scaled by {residual_scale:g}"
        raise UnsupportedError(what, why, "leave out --fp16-scale")


def unwritten(spec: DecoderSpec) -> Iterator[str]:
    """What has no operations, part by part; nor can a text be sent through it in numpy."""
    yield from _changed(spec)
    for layer in spec.layers:
        yield from _changed(layer)
        for part, written in ((layer.mixer, Attention), (layer.feed_forward, FeedForward)):
            if isinstance(part, written):
                yield from _changed(part)
            else:
                yield _PARTS.get(type(part), "blocks of another kind")
        if isinstance(layer.feed_forward, FeedForward):
            activation = layer.feed_forward.activation
            if activation in _PARTS:
                yield _PARTS[activation]


def _changed(part: Any) -> Iterator[str]:
    """Fields of one part that are not at their defaults, though nothing looks at them."""
    words = _FIELDS.get(type(part), {})
    for field in dataclasses.fields(part):
        if field.name in words and getattr(part, field.name) != field.default:
            yield words[field.name]


def _unlike(spec: DecoderSpec, context: int) -> Iterator[str]:
    """What has operations, though not in this company."""
    mixers = _mixers(spec)
    shapes: dict[int | None, set[tuple[int, int]]] = {}  # by the cache that layers share
    for mixer in mixers:
        window = mixer.sliding_window
        cache = window if window is not None and window < context else None
        shapes.setdefault(cache, set()).add((mixer.num_kv_heads, mixer.head_dim))
    if max(map(len, shapes.values()), default=0) > 1:
        yield "keys and values of several shapes in one cache"
    if len(shapes.keys() - {None}) > 1:
        yield "windows of several lengths"
    if any(m.qk_norm and m.qk_norm.is_full_width and m.qk_norm.after_rope for m in mixers):
        yield "queries that are rotated, then normalised as one row"


def _mixers(spec: DecoderSpec) -> list[Attention]:
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]
