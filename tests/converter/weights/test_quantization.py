"""Formats: a block worked out by hand, then the properties that the pipeline relies on."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from converter.decoder import (
    Activation,
    Attention,
    DecoderSpec,
    FeedForward,
    LayerSpec,
    Norm,
    NormKind,
    Rope,
)
from converter.errors import OptionError, UnsupportedError
from converter.tflite.graph import DType
from converter.tflite.kv_cache import Target
from converter.weights import quantization
from converter.weights.quantization import (
    FLOAT16,
    FLOAT32,
    INT4_BLOCK32,
    INT4_BLOCK128,
    INT6,
    INT8,
    INT8_TWO_TERMS,
    INT8_WEIGHT_ONLY,
    SCHEMES,
    Format,
    default_scheme,
    parse_quantization,
    split_int6,
)
from converter.weights.row_format import Clip, ValueRangeError
from tests.stored_weights import int4_values


def test_int8_by_hand() -> None:
    rows = np.array([[1.27, -0.5, 0.004, 0.006], [0.0, -2.54, 1.27, 0.03]], np.float32)
    packed, scales = INT8.pack(rows.copy())
    assert scales is not None
    np.testing.assert_allclose(scales, [0.01, 0.02], rtol=1e-6)
    # round half to even: 0.4 -> 0, 0.6 -> 1; 63.5 -> 64, 1.5 -> 2
    np.testing.assert_array_equal(packed, [[127, -50, 0, 1], [0, -127, 64, 2]])


def test_int8_error_is_at_most_half_a_step() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 300)).astype(np.float32)
    packed, scales = INT8.pack(rows.copy())
    assert scales is not None
    error = np.abs(packed * scales[:, None] - rows)
    assert (error <= scales[:, None] * 0.5001).all()
    assert packed.min() >= -127


def test_int6_by_hand() -> None:
    """A step is a 29th of the largest; 4 times an int4 and an int2, the lowest bits first."""
    packed, scales = INT6.pack(np.array([[2.9, -2.6, 0.1, -0.3]], np.float32))
    assert scales is not None
    np.testing.assert_allclose(scales, [0.4], rtol=1e-6)  # of the int4
    most, rest = split_int6(packed)
    # 29 = 4 * 7 + 1, -26 = 4 * -6 - 2, 1 = 4 * 0 + 1, -3 = 4 * -1 + 1
    assert most.tolist() == [[7 | 10 << 4, 0 | 15 << 4]]
    assert rest.tolist() == [[1 | 2 << 2 | 1 << 4 | 1 << 6]]
    np.testing.assert_allclose(INT6.widened(packed, scales), [[2.9, -2.6, 0.1, -0.3]], rtol=1e-6)


def test_every_integer_of_int6_has_two_parts() -> None:
    integers = np.arange(-34, 30, dtype=np.int8).reshape(2, 32)
    packed = quantization._pack_int6(integers)
    most, rest = split_int6(packed)
    assert (most.shape, rest.shape) == ((2, 16), (2, 8))
    scales = np.full(2, 4, np.float32)
    np.testing.assert_array_equal(INT6.widened(packed, scales), integers)


def test_int6_error_is_at_most_half_a_step_and_less_by_importance() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_t(4, (64, 300)).astype(np.float32)
    packed, scales = INT6.pack(rows.copy())
    assert scales is not None
    plain = INT6.widened(packed, scales)
    assert (np.abs(plain - rows) <= scales[:, None] / 4 * 0.5001).all()
    importance = random.lognormal(0, 1, 300).astype(np.float32)
    chosen = INT6.widened(*INT6.pack(rows.copy(), importance=importance))
    lost = [((found - rows) ** 2 * importance).sum(axis=1) for found in (plain, chosen)]
    assert (lost[1] <= lost[0] * 1.0001).all()
    assert lost[1].sum() < 0.9 * lost[0].sum()


def test_int6_wants_whole_bytes_and_no_gpu() -> None:
    with pytest.raises(UnsupportedError, match="has 6 columns, which the bytes of four int2 do"):
        INT6.weight("head", (8, 6))
    spec = tied_spec()
    parse_quantization("dynamic_int6").check(spec, Target.CPU)
    with pytest.raises(OptionError, match="a GPU's delegate knows no products with int2"):
        parse_quantization("fp16,ffn=dynamic_int6").check(spec, Target.GPU)


def test_int8_rows_do_not_depend_on_their_block() -> None:
    rows = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    whole, whole_scales = INT8.pack(rows.copy())
    for step in (1, 7, 40):
        blocks = [INT8.pack(rows[i : i + step].copy()) for i in range(0, 40, step)]
        np.testing.assert_array_equal(np.concatenate([packed for packed, _ in blocks]), whole)
        scales = [scale for _, scale in blocks if scale is not None]
        np.testing.assert_array_equal(np.concatenate(scales), whole_scales)


def test_int8_rows_of_zeros_and_of_subnormals_have_a_scale() -> None:
    """XNNPACK refuses a scale of zero."""
    rows = np.zeros((3, 4), np.float32)
    rows[1, 2] = np.finfo(np.float32).smallest_subnormal
    rows[2] = 1
    packed, scales = INT8.pack(rows)
    assert scales is not None
    assert (scales > 0).all()
    np.testing.assert_array_equal(packed[0], 0)
    np.testing.assert_array_equal(packed[2], 127)


@pytest.mark.parametrize("fmt", [FLOAT32, FLOAT16, INT8, INT4_BLOCK32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(fmt: Format, bad: float) -> None:
    rows = np.ones((2, 64), np.float32)
    rows[1, 3] = bad
    with pytest.raises(ValueRangeError, match="NaN or infinite"):
        fmt.pack(rows)


def test_float16_refuses_what_it_cannot_hold() -> None:
    rows = np.array([[1.0, -70000.0]], np.float32)
    with pytest.raises(ValueRangeError, match="7e\\+04, beyond float16's 65504"):
        FLOAT16.pack(rows)
    packed, scales = FLOAT16.pack(np.array([[1.0, -65504.0]], np.float32))
    assert scales is None
    assert packed.tolist() == [[1.0, -65504.0]]


def unpacked(fmt: Format, rows: np.ndarray, clip: Clip = Clip.MSE) -> np.ndarray:
    """What remains of rows in int4."""
    packed, scales = fmt.pack(rows.copy(), clip=clip)
    assert scales is not None
    assert fmt.block is not None
    return int4_values(packed) * np.repeat(scales.astype(np.float32), fmt.block, axis=1)


def test_int4_by_hand() -> None:
    """Without clipping: the largest magnitude is taken to 7."""
    block = np.zeros((1, 32), np.float32)
    block[0, :6] = [3.5, -1.0, 0.24, 0.26, -3.5, 0.75]
    packed, scales = INT4_BLOCK32.pack(block, clip=Clip.MAX)
    assert scales is not None
    assert scales.tolist() == [[0.5]]
    # round half to even: 1.5 -> 2
    assert int4_values(packed)[0, :6].tolist() == [7, -2, 0, 1, -7, 2]
    assert packed[0, :3].tolist() == [0xE7, 0x10, 0x29]


@pytest.mark.parametrize("fmt", [INT4_BLOCK32, INT4_BLOCK128])
def test_int4_scales_of_least_squared_error(fmt: Format) -> None:
    """Nearly as good as trying a thousand scales for every block."""
    assert fmt.block is not None
    rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    blocks = rows.reshape(-1, fmt.block)
    best = np.full(len(blocks), np.inf)
    for scale in np.linspace(0.05, 1, 1000):
        q = np.clip(np.rint(blocks / scale), -8, 7)
        best = np.minimum(best, ((q * scale - blocks) ** 2).sum(axis=1))

    def error(clip: Clip) -> float:
        return float(((unpacked(fmt, rows, clip) - rows) ** 2).sum())

    assert error(Clip.MSE) < 1.05 * best.sum()
    assert error(Clip.MSE) < 0.9 * error(Clip.MAX)


def test_int4_errs_where_it_costs_little() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    importance = np.where(np.arange(64) % 4 == 0, 10, 0.1).astype(np.float32)

    def error(weights: np.ndarray | None) -> float:
        packed, scales = INT4_BLOCK32.pack(rows.copy(), importance=weights)
        assert scales is not None
        found = int4_values(packed) * np.repeat(scales.astype(np.float32), 32, axis=1)
        return float(((found - rows) ** 2 @ importance).sum())

    assert error(importance) < 0.8 * error(None)


@pytest.mark.parametrize("largest", [5, 6, 7, -5, -6, -7, -8])
def test_int4_blocks_that_lie_on_a_grid_are_met_exactly(largest: int) -> None:
    """Those of a Q4_0 with a positive scale do: no second rounding."""
    random = np.random.default_rng(abs(largest))
    scales = random.uniform(1e-4, 0.5, (50, 4)).astype(np.float16)
    q = random.integers(-abs(largest) + 1, abs(largest), (50, 128)).astype(np.float32)
    q[:, ::32] = largest
    rows = q * np.repeat(scales.astype(np.float32), 32, axis=1)
    packed, found = INT4_BLOCK32.pack(rows.copy())
    np.testing.assert_array_equal(found, scales)
    np.testing.assert_array_equal(int4_values(packed), q)


def test_int4_blocks_of_zeros_and_of_tiny_values_have_a_scale() -> None:
    rows = np.zeros((4, 32), np.float32)
    rows[1] = np.finfo(np.float32).smallest_subnormal
    rows[2] = 1e-9
    rows[3] = -1
    packed, scales = INT4_BLOCK32.pack(rows)
    assert scales is not None
    assert (scales > 0).all()
    assert not packed[:3].any()
    np.testing.assert_array_equal(int4_values(packed)[3] * scales[3].astype(np.float32), -1)


def test_int4_refuses_a_scale_beyond_float16() -> None:
    with pytest.raises(ValueRangeError, match="beyond float16's 65504"):
        INT4_BLOCK32.pack(np.full((1, 32), 1e7, np.float32))


def test_int4_refuses_widths_that_blocks_do_not_divide() -> None:
    path = "layers.3.mlp.down"
    assert INT4_BLOCK32.weight(path, (4, 576)).scales is not None
    with pytest.raises(UnsupportedError) as error:
        INT4_BLOCK128.weight(path, (4, 576))
    assert str(error.value) == (
        "layers.3.mlp.down, has 576 columns, which blocks of 128 do not divide, choose another "
        "scheme for this part: --quantize ...,ffn=dynamic_int8"
    )


def test_sizes() -> None:
    assert INT8.weight("w", (3, 5)).nbytes == 15
    assert FLOAT16.weight("w", (3, 5)).nbytes == 30
    assert FLOAT32.weight("w", (5,)).nbytes == 20
    blocks = INT4_BLOCK32.weight("w", (3, 64))
    assert blocks.nbytes == 96
    assert blocks.scales is not None
    assert (blocks.scales.shape, blocks.scales.nbytes) == ((3, 2), 12)


@pytest.mark.parametrize("name", SCHEMES)
def test_vectors_stay_float32_in_every_scheme(name: str) -> None:
    quantization = parse_quantization(name)
    assert quantization.format_of("layers.0.mlp.norm", (16,)).dtype is DType.FLOAT32
    assert quantization.format_of("layers.0.mlp.up", (16, 16)) == SCHEMES[name].matrix


MATRIX = (64, 64)


def test_embeddings_stay_int8_in_int4_schemes_unless_they_are_named() -> None:
    for name in ("dynamic_int4", "dynamic_int4_block128"):
        assert parse_quantization(name).format_of("embedding", MATRIX) == INT8
        assert parse_quantization(name).format_of("head", MATRIX) == SCHEMES[name].matrix
        named = parse_quantization(f"dynamic_int8,embedding={name}")
        assert named.format_of("embedding", MATRIX) == SCHEMES[name].matrix


def test_single_matrices_have_formats_of_their_own() -> None:
    quantization = parse_quantization("dynamic_int4_mixed,layers.1.down=fp16,o=dynamic_int8")
    formats = {
        "embedding": INT8,
        "layers.0.attention.q": INT4_BLOCK32,
        "layers.0.attention.k": INT8,
        "layers.0.attention.v": INT8,
        "layers.0.attention.o": INT8,
        "layers.0.mlp.up": INT4_BLOCK32,
        "layers.0.mlp.down": INT8,
        "layers.0.mlp.experts.3.down": INT8,
        "layers.0.conv.out": INT4_BLOCK32,
        "layers.0.per_layer.up": INT4_BLOCK32,
        "layers.1.mlp.down": FLOAT16,
        "head": INT4_BLOCK32,
    }
    assert {path: quantization.format_of(path, MATRIX) for path in formats} == formats
    part = parse_quantization("dynamic_int8,ffn=dynamic_int4_mixed")
    assert part.format_of("layers.0.mlp.down", MATRIX) == INT4_BLOCK32


def test_parts_and_layers_have_formats_of_their_own() -> None:
    quantization = parse_quantization(
        "dynamic_int8,ffn=dynamic_int4,layers.1-2.ffn=fp16,layers.2.attention=int8,"
        "layers.3.attention=dynamic_int8_a16,head=fp32"
    )
    formats = {
        "embedding": INT8,
        "layers.0.attention.q": INT8,
        "layers.0.mlp.up": INT4_BLOCK32,
        "layers.1.mlp.gate": FLOAT16,
        "layers.2.mlp.down": FLOAT16,
        "layers.2.attention.o": INT8_WEIGHT_ONLY,
        "layers.3.attention.v": INT8_TWO_TERMS,
        "layers.3.mlp.up": INT4_BLOCK32,
        "head": FLOAT32,
    }
    assert {path: quantization.format_of(path, MATRIX) for path in formats} == formats


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "int3",
            "--quantize int3, no such scheme, choose one of: dynamic_int8, dynamic_int8_a16, "
            "dynamic_int6, dynamic_int6_a16, dynamic_int4, dynamic_int4_mixed, "
            "dynamic_int4_block128, int8, fp16, fp32",
        ),
        (
            "fp16,mlp=fp32",
            "--quantize ...,mlp=fp32, is not PART=SCHEME, parts are embedding, attention, ffn, "
            "per_layer, head, q, k, v, o, gate, up, down, with layers.A-B. before what layers have "
            "if wanted",
        ),
        ("fp16,ffn=", None),
        ("fp16,", None),
        (
            "fp16,layers.3-1.ffn=fp32",
            "--quantize ...,layers.3-1.ffn=fp32, names layers that are none, write "
            "layers.A-B.attention= or layers.A-B.ffn= with A not above B",
        ),
        ("fp16,layers.0-1.embedding=fp32", None),
        ("fp16,ffn=int3", None),
    ],
)
def test_what_is_no_quantization_is_refused(text: str, message: str | None) -> None:
    with pytest.raises(OptionError) as error:
        parse_quantization(text)
    assert message in (None, str(error.value))


def tied_spec() -> DecoderSpec:
    return DecoderSpec(
        vocab_size=8,
        hidden_size=8,
        norm=Norm(NormKind.RMS, 1e-6),
        layers=(LayerSpec(Attention(1, 1, 8, 1.0, Rope(1e4)), FeedForward(8, Activation.SILU)),)
        * 4,
        tied_head=True,
    )


def test_a_small_model_has_another_default() -> None:
    spec = tied_spec()
    columns, rest = spec.hidden_size, sum(math.prod(s) for p, s in spec.weight_shapes()) - 64
    rows = (199_999_999 - rest) // columns
    small, large = (dataclasses.replace(spec, vocab_size=rows + more) for more in (0, 1))
    assert sum(math.prod(shape) for _, shape in small.weight_shapes()) < 200_000_000
    assert default_scheme(small, Target.CPU) == "dynamic_int8_a16"
    assert default_scheme(large, Target.CPU) == "dynamic_int8"
    assert default_scheme(small, Target.GPU) == "dynamic_int8"  # it does not round activations


def test_rules_must_be_about_the_model() -> None:
    spec = tied_spec()
    parse_quantization("fp16,layers.0-3.ffn=fp32,embedding=dynamic_int8").check(spec, Target.CPU)
    with pytest.raises(OptionError, match="layers are 0 to 3, choose layers among them"):
        parse_quantization("fp16,layers.2-4.ffn=fp32").check(spec, Target.CPU)
    with pytest.raises(OptionError, match="head is its embedding table, say embedding= instead"):
        parse_quantization("fp16,head=fp32").check(spec, Target.CPU)
    parse_quantization("fp16,layers.1-2.down=int8,v=int8").check(spec, Target.CPU)
    plain = FeedForward(8, Activation.RELU2, is_gated=False)
    layers = tuple(dataclasses.replace(layer, feed_forward=plain) for layer in spec.layers)
    with pytest.raises(OptionError, match="this model has no matrix gate, leave it out"):
        parse_quantization("fp16,gate=fp32").check(
            dataclasses.replace(spec, layers=layers), Target.CPU
        )
