"""Formats: a block worked out by hand, then the properties that the pipeline relies on."""

from __future__ import annotations

import numpy as np
import pytest

from converter.errors import OptionError
from converter.graph.tflite import DType
from converter.quantization import FLOAT16, FLOAT32, INT8, SCHEMES, ValueRangeError, get_scheme


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


@pytest.mark.parametrize("fmt", [FLOAT32, FLOAT16, INT8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(fmt: object, bad: float) -> None:
    rows = np.ones((2, 8), np.float32)
    rows[1, 3] = bad
    with pytest.raises(ValueRangeError, match="NaN or infinite"):
        fmt.pack(rows)  # type: ignore[attr-defined]


def test_float16_refuses_what_it_cannot_hold() -> None:
    rows = np.array([[1.0, -70000.0]], np.float32)
    with pytest.raises(ValueRangeError, match="7e\\+04, beyond float16's 65504"):
        FLOAT16.pack(rows)
    packed, scales = FLOAT16.pack(np.array([[1.0, -65504.0]], np.float32))
    assert scales is None
    assert packed.tolist() == [[1.0, -65504.0]]


def test_sizes() -> None:
    assert INT8.nbytes((3, 5)) == 15
    assert FLOAT16.nbytes((3, 5)) == 30
    assert FLOAT32.nbytes((5,)) == 20


def test_vectors_stay_float32_in_every_scheme() -> None:
    for scheme in SCHEMES.values():
        assert scheme.format_of((16,)).dtype is DType.FLOAT32
        assert scheme.format_of((16, 16)) == scheme.matrix


def test_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(OptionError) as error:
        get_scheme("int3")
    assert str(error.value) == (
        "--quantize int3, no such scheme, choose one of: dynamic_int8, fp16, fp32"
    )
