"""Every word of `converter.decoder`: written as it says, or the network is refused by name."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter import decoder
from converter.coreml import decoder_program
from converter.coreml.words import check_words
from converter.decoder import (
    Activation,
    AltUp,
    Attention,
    DecoderSpec,
    Experts,
    FeedForward,
    LayerSpec,
    Mamba2,
    Norm,
    NormKind,
    PerLayerInput,
    Placement,
    PositionScale,
    QKNorm,
    Rope,
    ShortConv,
)
from converter.errors import LiteRTLMError, OptionError, UnsupportedError
from tests.converter.tflite.test_words import PLAIN, WORDS, random_weights, some_tokens
from tests.coreml_models import Runtime, Weights, build, interface_of
from tests.numpy_decoder import logits

CONTEXT, BATCH = 64, 3

RMS = Norm(NormKind.RMS, 1e-6)
ROPE = Rope(10_000.0)
ATTENTION = Attention(4, 2, 8, 0.5, ROPE, qk_norm=QKNorm(RMS))
MLP = FeedForward(48, Activation.SILU)
LAYER = LayerSpec(ATTENTION, MLP)
SPEC = DecoderSpec(96, 32, RMS, (LAYER,), tied_head=True)

# A field's other value; of a rotary embedding beside another one, where it matters there alone.
OTHER: dict[type, dict[str, Any]] = {
    DecoderSpec: {
        "vocab_size": 100,
        "hidden_size": 40,
        "norm": replace(RMS, epsilon=0.5),
        "layers": (LAYER, LAYER),
        "tied_head": False,
        "placement": Placement.BOTH,
        "embedding_scale": 2.0,
        "residual_scale": 0.5,
        "logits_scale": 0.5,
        "logits_softcap": 3.0,
        "head_bias": True,
        "per_layer_input": PerLayerInput(8, 96, Activation.GELU),
        "has_layer_scales": True,
        "laurel_rank": 6,
        "altup": AltUp(2),
    },
    LayerSpec: {
        "mixer": ShortConv(3),
        "feed_forward": Experts(MLP, 6, 2),
        "beside": Mamba2(4, 12, 2, 8, 4),
    },
    Attention: {
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 16,
        "scale": 0.25,
        "rope": None,
        "sliding_window": 9,
        "biases": ("k",),
        "qk_norm": None,
        "softcap": 0.8,
        "position_scale": PositionScale(0.5, 4),
        "is_gated": True,
        "has_sinks": True,
        "cache_of": 0,
        "value_norm": RMS,
        "keys_are_values": True,
    },
    FeedForward: {
        "width": 64,
        "activation": Activation.GELU,
        "is_gated": False,
        "biases": ("up",),
        "cutoff": 0.5,
        "limit": 1.0,
        "up_offset": 1.0,
    },
    Norm: {"kind": NormKind.LAYER, "epsilon": 0.5, "has_weight": False, "has_bias": True},
    QKNorm: {"norm": replace(RMS, epsilon=0.5), "is_full_width": True, "after_rope": True},
    Rope: {
        "theta": 100.0,
        "factors": (2.0,),
        "attention_factor": 1.5,
        "positions": CONTEXT - 1,
        "width": 4,
        "longer": Rope(100.0),
    },
}
# Refused as wholes, whatever their fields say; a growth with the position has no effect up to its
# length, and is refused beyond.
WHOLES = {
    "ShortConv",
    "GatedDeltaNet",
    "Mamba2",
    "Experts",
    "PerLayerInput",
    "AltUp",
    "PositionScale",
}
FIELDS = [(kind, field) for kind, fields in OTHER.items() for field in fields]


def outcome(spec: DecoderSpec) -> tuple[Any, ...]:
    """What becomes of a network: why it is refused, or everything that is written."""
    spec = spec.for_context(CONTEXT)
    try:
        check_words(spec, CONTEXT)
        tables = decoder_program.rope_tables(spec, CONTEXT).values()
    except (LiteRTLMError, AssertionError) as error:
        return type(error), str(error)
    interface = interface_of(spec, CONTEXT, BATCH)
    values = random_weights(spec)
    for i, pair in enumerate(tables):
        values |= {f"rope.{i}.cos": pair[0], f"rope.{i}.sin": pair[1]}
    weights = Weights(values)
    written = []
    for call in decoder_program.calls(interface):
        function = decoder_program.monolithic(spec, interface, call, weights)
        for op in function.ops:
            written.append((op.kind, [(one.name, one.shape) for one in op.outputs]))
            if op.kind == "const":
                written.append(op.attributes["val"].SerializeToString())
    return *written, weights.content()


def changed(part: Any, kind: type, field: str) -> Any:
    """A network with another value of one field of each part of a kind."""
    if type(part) is kind:
        if (kind, field) == (Rope, "longer"):
            part = replace(part, positions=CONTEXT - 1)
        return replace(part, **{field: OTHER[kind][field]})
    if isinstance(part, tuple):
        return tuple(changed(one, kind, field) for one in part)
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    names = [one.name for one in dataclasses.fields(part)]
    return replace(part, **{name: changed(getattr(part, name), kind, field) for name in names})


def test_every_field_has_been_looked_at() -> None:
    """A word that is added to `converter.decoder` must be written or refused."""
    kinds = {
        name: kind
        for name, kind in inspect.getmembers(decoder, dataclasses.is_dataclass)
        if kind.__module__ == decoder.__name__
    }
    assert set(kinds) == WHOLES | {kind.__name__ for kind in OTHER}
    for kind, fields in OTHER.items():
        assert [field.name for field in dataclasses.fields(kind)] == list(fields), kind


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_no_field_is_dropped_in_silence(kind: type, field: str) -> None:
    other = changed(SPEC, kind, field)
    assert other != SPEC
    assert outcome(other) != outcome(SPEC)


@pytest.mark.parametrize(
    "specs",
    [
        [replace(SPEC, layers=(LayerSpec(ATTENTION, FeedForward(48, a)),)) for a in Activation],
        [replace(SPEC, placement=placement) for placement in Placement],
        [replace(SPEC, norm=Norm(kind, 1e-6)) for kind in NormKind],
    ],
    ids=["activations", "placements", "norms"],
)
def test_no_two_of_a_kind_are_written_alike(specs: list[DecoderSpec]) -> None:
    outcomes = [outcome(spec) for spec in specs]
    assert all(outcomes.count(one) == 1 for one in outcomes)


def attention(*mixers: Attention) -> DecoderSpec:
    return replace(SPEC, layers=tuple(LayerSpec(mixer, MLP) for mixer in mixers))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            attention(ATTENTION, replace(ATTENTION, is_gated=True, has_sinks=True)),
            "a network with gates on the output of attention, attention sinks, "
            "is not written as a Core ML package, convert it for LiteRT-LM: --target cpu",
        ),
        (
            attention(ATTENTION, replace(ATTENTION, head_dim=16)),
            "a network with keys and values of several shapes in one cache, ",
        ),
        (
            attention(*(replace(ATTENTION, sliding_window=n) for n in (9, 12))),
            "a network with windows of several lengths, ",
        ),
        (
            attention(replace(ATTENTION, position_scale=PositionScale(0.1, 32))),
            "--context 64, is where queries begin to grow with the position, from 32 on, ",
        ),
    ],
)
def test_what_is_refused_is_named(spec: DecoderSpec, message: str) -> None:
    with pytest.raises((UnsupportedError, OptionError)) as caught:
        check_words(spec, CONTEXT)
    assert str(caught.value).startswith(message)


def test_what_is_beyond_the_context_is_not_refused() -> None:
    """A window as long, two that are longer, and a growth that begins at its end."""
    grows = replace(ATTENTION, position_scale=PositionScale(0.5, CONTEXT))
    for mixers in (
        [replace(ATTENTION, sliding_window=CONTEXT)],
        [replace(ATTENTION, sliding_window=n) for n in (CONTEXT + 1, CONTEXT + 9)],
        [grows],
    ):
        spec = attention(*mixers)
        assert outcome(spec) == outcome(attention(*[ATTENTION] * len(mixers)))
    weights = random_weights(attention(grows))
    expected = logits(attention(ATTENTION), weights, range(CONTEXT))
    assert np.array_equal(logits(attention(grows), weights, range(CONTEXT)), expected)


def test_a_stream_is_not_scaled_where_it_leaves_a_trace() -> None:
    check_words(replace(SPEC, placement=Placement.BOTH), CONTEXT, residual_scale=0.5)
    check_words(replace(SPEC, placement=Placement.AFTER), CONTEXT)
    bare = replace(SPEC, placement=Placement.BOTH, norm=replace(RMS, has_weight=False))
    for spec in (replace(SPEC, placement=Placement.AFTER), bare):
        with pytest.raises(UnsupportedError, match="leave out --fp16-scale"):
            check_words(spec, CONTEXT, residual_scale=0.5)


TAKEN = [
    word for word, spec in WORDS.items() if outcome(spec)[0] not in (UnsupportedError, OptionError)
]


@pytest.mark.parametrize("word", TAKEN)
def test_a_word_is_what_it_says(word: str, tmp_path: Path) -> None:
    """Batches, past the window where there is one, and single tokens after them."""
    spec, tokens = WORDS[word], some_tokens(35)
    weights = {
        path: values.astype(np.float16).astype(np.float32)
        for path, values in random_weights(spec).items()
    }
    expected = logits(spec, weights, tokens)[30:]
    plain = logits(PLAIN, random_weights(PLAIN), tokens)[30:]
    parts = build(tmp_path, spec, weights, interface_of(spec, CONTEXT, BATCH), is_monolithic=True)
    worst = np.abs(Runtime(parts).run(tokens, prompt=30) - expected).max()
    effect = np.abs(expected - plain).max()
    print(
        f"max |difference| {worst:.2e}, standard deviation {expected.std():.2f}, word {effect:.2}"
    )
    assert worst < min(8e-3 * max(1, expected.std()), effect / 4)
