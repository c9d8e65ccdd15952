"""Functions of operations: what coremltools' loader infers, and what its semantics give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.coreml.blob import DType
from converter.coreml.program import Function, Tensor
from converter.weights.palettes import Palette
from tests.coreml_checks import check_package
from tests.coreml_interpreter import Package
from tests.coreml_models import Weights, palettized, write_package

X = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float16).astype(np.float32)
VALUES = {
    "w": np.random.default_rng(1).normal(size=(16, 6)).astype(np.float16).astype(np.float32),
    "b": np.arange(16, dtype=np.float32),
}

Make = Callable[[Function, Tensor, Weights], Tensor]


def half(value: float) -> float:
    return float(np.float16(value))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def normalised(x: np.ndarray, epsilon: float) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def columns(f: Function, x: Tensor) -> Tensor:
    return f.make_expand_dims(x, 2)


# How an operation is made of x, (1, 6, 4), and what it gives.
OPERATIONS: dict[str, tuple[Make, np.ndarray]] = {
    "add": (lambda f, x, w: f.make_binary("add", x, x), X + X),
    "sub": (lambda f, x, w: f.make_binary("sub", x, np.float16(2)), X - 2),
    "broadcast": (
        lambda f, x, w: f.make_binary("mul", x, f.make_slice(x, 1, 0, 1)),
        X * X[:, :1],
    ),
    "constant factor": (lambda f, x, w: f.make_mul_constant(x, 0.1), X * half(0.1)),
    "silu": (lambda f, x, w: f.make_unary("silu", x), X / (1 + np.exp(-X))),
    "tanh": (lambda f, x, w: f.make_unary("tanh", x), np.tanh(X)),
    "relu": (lambda f, x, w: f.make_unary("relu", x), np.maximum(X, 0)),
    "softmax": (lambda f, x, w: f.make_softmax(x), softmax(X)),
    "layer norm": (lambda f, x, w: f.make_layer_norm(x, 0.5), normalised(X, 0.5)),
    "layer norm of zeros": (
        lambda f, x, w: f.make_layer_norm(f.make_mul_constant(x, 0), 1e-12),
        X * 0,
    ),
    "concat": (lambda f, x, w: f.make_concat((x, x), -1), np.concatenate([X, X], -1)),
    "slice": (lambda f, x, w: f.make_slice(x, 1, 2, 5), X[:, 2:5]),
    "reshape": (lambda f, x, w: f.make_reshape(x, (2, 3, 4)), X.reshape(2, 3, 4)),
    "transpose": (lambda f, x, w: f.make_transpose(x, (0, 2, 1)), X.transpose(0, 2, 1)),
    "expand": (lambda f, x, w: columns(f, x), X[:, :, None]),
    "squeeze": (lambda f, x, w: f.make_squeeze(columns(f, x), 2), X),
    "tile": (lambda f, x, w: f.make_tile(x, 1, 3), np.tile(X, (1, 3, 1))),
    "matmul": (
        lambda f, x, w: f.make_matmul(x, x, transpose_y=True),
        X @ X.transpose(0, 2, 1),
    ),
    "conv": (
        lambda f, x, w: f.make_conv(columns(f, x), w(f, "w", (16, 6, 1, 1))),
        np.einsum("oi,bit->bot", VALUES["w"], X)[:, :, None],
    ),
    "conv with bias": (
        lambda f, x, w: f.make_conv(columns(f, x), w(f, "w", (16, 6, 1, 1)), w(f, "b", (16,))),
        np.einsum("oi,bit->bot", VALUES["w"], X)[:, :, None] + VALUES["b"][:, None, None],
    ),
    "gather": (
        lambda f, x, w: f.make_gather(w(f, "w", (16, 6)), f.constant([3, 3, 15])),
        VALUES["w"][[3, 3, 15]],
    ),
    "maximum": (lambda f, x, w: f.make_reduce("reduce_max", x, 1), X.max(1, keepdims=True)),
    "where it is": (
        lambda f, x, w: f.make_reduce("reduce_argmax", x, -1),
        X.argmax(-1, keepdims=True),
    ),
    "update": (
        lambda f, x, w: f.make_slice_update(
            x,
            f.make_slice(x, 1, 0, 2),
            f.constant([0, 3, 0]),
            f.constant([1, 5, 0]),
            (False, False, True),
        ),
        np.concatenate([X[:, :3], X[:, :2], X[:, 5:]], 1),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name: str, tmp_path: Path) -> None:
    make, expected = OPERATIONS[name]
    f, weights = Function("main"), Weights(VALUES)
    f.add_output("y", make(f, f.add_input("x", X.shape, DType.FLOAT16), weights))
    package = write_package(tmp_path / "a.mlpackage", weights, [f])
    check_package(package)
    found = Package(package).run("main", {"x": X})["y"]
    assert found.shape == f.outputs[0].shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("group", [0, 4, 16])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_a_palettized_weight(bits: int, group: int, tmp_path: Path) -> None:
    """As a matrix of a convolution, and as rows that are looked up."""
    palette = Palette(bits, group)
    f, weights = Function("main"), Weights(VALUES, palette)
    x = columns(f, f.add_input("x", X.shape, DType.FLOAT16))
    f.add_output("y", f.make_conv(x, weights(f, "w", (16, 6, 1, 1))))
    f.add_output("z", f.make_gather(weights(f, "w", (16, 6)), f.constant([5, 9])))
    package = write_package(tmp_path / "a.mlpackage", weights, [f])
    check_package(package)
    found = Package(package).run("main", {"x": X})
    stored = palettized(VALUES, palette)["w"]
    assert len(np.unique(stored[: group or 16])) <= 1 << bits
    assert np.array_equal(found["z"], stored[[5, 9]])
    assert np.allclose(found["y"][:, :, 0], np.einsum("oi,bit->bot", stored, X), atol=1e-5)


def test_a_state_is_kept_between_calls_of_several_functions(tmp_path: Path) -> None:
    functions = []
    for name, factor in (("plus", 1), ("minus", -1)):
        f = Function(name)
        x = f.add_input("x", (2, 3), DType.FLOAT16)
        state = f.add_state("model.total", (2, 3))
        assert state.name == "model_total"
        f.write_state(
            state, f.make_binary("add", f.read_state(state), f.make_mul_constant(x, factor))
        )
        f.add_output("y", f.make_mul_constant(f.read_state(state), 10))
        functions.append(f)
    package = write_package(tmp_path / "a.mlpackage", Weights({}), functions)
    check_package(package)
    loaded = Package(package)
    states, x = loaded.new_states("plus"), np.ones((2, 3), np.float32)
    said = [loaded.run(name, {"x": x}, states)["y"][0, 0] for name in ("plus", "plus", "minus")]
    assert said == [10, 20, 10]


def test_equal_constants_and_weights_stand_once() -> None:
    f, weights = Function("main"), Weights(VALUES)
    assert f.constant([1, 2]) is f.constant(np.array([1, 2], np.int32))
    assert f.constant(True) is not f.constant(1)
    assert weights(f, "b", (16,)) is weights(f, "b", (16,))
    assert len(f.ops) == 4


def test_names_are_identifiers_and_of_one_value() -> None:
    f = Function("main")
    x = f.add_input("layers.0.x-y", (1,), DType.FLOAT16)
    assert x.name == "layers_0_x_y"
    assert f.make_unary("silu", x).name != f.make_unary("silu", x).name
    f.add_output("y", x)
    with pytest.raises(ValueError, match="two values are named y"):
        f.add_output("y", f.make_unary("silu", x))
