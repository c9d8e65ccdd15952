"""The interpreter's operations, each beside coremltools' own definition."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from converter.coreml.blob import DType, indices
from converter.coreml.package import MODEL, WEIGHTS
from converter.coreml.program import Function, Tensor
from converter.coreml.schema import Model
from converter.errors import SourceError, UnsupportedError
from converter.weights.palettes import Palette
from runner import mlprogram
from runner.mlprogram import Package, unpack
from tests.coreml_interpreter import Package as Reference
from tests.coreml_models import Weights, write_package

STATE = (4, 2, 8, 3)
INPUTS = {
    "x": np.random.default_rng(0).normal(size=(1, 4, 6)).astype(np.float16),
    "y": np.random.default_rng(1).normal(size=(1, 4, 6)).astype(np.float16),
    "at": np.array([2], np.int32),
    "ids": np.array([[3, 0, 39]], np.int32),
}
VALUES = {
    "matrix": np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32),
    "vector": np.random.default_rng(3).normal(size=6).astype(np.float32),
    "bias": np.random.default_rng(4).normal(size=40).astype(np.float32),
}


def operations(f: Function, weight_of: Weights) -> Iterator[Tensor]:
    """Every operation that `Function` makes."""
    x = f.add_input("x", (1, 4, 6), DType.FLOAT16)
    y = f.add_input("y", (1, 4, 6), DType.FLOAT16)
    at = f.add_input("at", (1,), DType.INT32)
    ids = f.add_input("ids", (1, 3), DType.INT32)
    state = f.add_state("cache", STATE)
    for kind in ("add", "sub", "mul", "real_div", "maximum", "minimum"):
        yield f.make_binary(kind, x, y)
    yield f.make_binary("mul", x, weight_of(f, "vector", (6,)))
    yield f.make_mul_constant(x, 0.3)
    for kind in ("silu", "tanh", "sigmoid", "relu", "square"):
        yield f.make_unary(kind, x)
    for mode in ("EXACT", "TANH_APPROXIMATION"):
        yield f.make_unary("gelu", x, mode=mode)
    yield f.make_softmax(x)
    yield f.make_layer_norm(x, 1e-5)
    yield f.make_concat((x, y, x), -1)
    yield f.make_slice(x, -1, 2, 5)
    yield f.make_slice(x, 1, 1, 2)
    yield f.make_reshape(x, (1, 2, 2, 6))
    yield f.make_transpose(x, (0, 2, 1))
    yield f.make_squeeze(f.make_expand_dims(x, 2), 0)
    yield f.make_tile(x, 1, 3)
    yield f.make_gather(weight_of(f, "matrix", (40, 6)), ids)
    yield f.make_gather(weight_of(f, "matrix", (40, 6)), f.make_cast(at, DType.INT16))
    yield f.make_cast(
        f.make_cast(f.make_binary("add", at, np.int32(7)), DType.FLOAT16), DType.INT32
    )
    yield f.make_matmul(x, f.make_transpose(y, (0, 2, 1)))
    yield f.make_matmul(x, y, transpose_y=True)
    columns = f.make_expand_dims(f.make_transpose(x, (0, 2, 1)), 2)
    weight = weight_of(f, "matrix", (40, 6, 1, 1))
    yield f.make_conv(columns, weight)
    yield f.make_conv(columns, weight, weight_of(f, "bias", (40,)))
    yield f.make_reduce("reduce_max", x, 1)
    yield f.make_reduce("reduce_argmax", x, 2)
    update = f.make_reshape(f.make_slice(x, -1, 0, 3), (1, 2, 2, 3))
    yield from store(f, state, update, at)


def store(f: Function, state: Tensor, update: Tensor, at: Tensor) -> Iterator[Tensor]:
    """A cache is written to while what was read before is still of use, and once more."""
    before = f.read_state(state)
    row = f.make_slice(before, 0, 1, 2)
    end = f.make_binary("add", at, np.int32(2))
    for number in (1, 2):
        zero = f.constant([0])
        begins = f.make_concat((f.constant([number]), zero, at, zero), 0)
        ends = f.make_concat((f.constant([number + 1]), zero, end, zero), 0)
        cache = f.read_state(state)
        new = f.make_slice_update(cache, update, begins, ends, (False, True, False, True))
        f.write_state(state, new)
        if number == 2:
            yield new
    yield f.make_mul_constant(row, 2)
    yield f.make_mul_constant(f.read_state(state), 2)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    f, weights = Function("main"), Weights(VALUES)
    for i, tensor in enumerate(list(operations(f, weights))):
        f.add_output(f"out{i}", tensor)
    return write_package(tmp_path_factory.mktemp("all") / "all.mlpackage", weights, [f])


@pytest.mark.parametrize("rounds", [False, True])
def test_every_operation_gives_what_coremltools_gives(package: Path, rounds: bool) -> None:
    ours, reference = Package(package, rounds), Reference(package, rounds)
    states, expected_states = ours.new_states(), reference.new_states("main")
    for _ in range(2):  # the second time, the cache is not empty
        found = ours.run("main", INPUTS, states)
        expected = reference.run("main", INPUTS, expected_states)
        assert list(found) == list(expected)
        for name, values in found.items():
            assert values.shape == expected[name].shape
            assert values.dtype.kind == expected[name].dtype.kind
            # One step of float16 at most: where it rounds, coremltools sums in another order.
            np.testing.assert_allclose(values, expected[name], 1e-3 if rounds else 1e-5, 1e-6, name)
        np.testing.assert_array_equal(states["cache"], expected_states["cache"])


def test_rounding_is_numpys() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    edges = np.float32([65519.99, 65520, 65536, -65520, np.inf, -np.inf, np.nan, 0])
    with np.errstate(all="ignore"):
        ties = (halves[:-1] + halves[1:]) / 2
        values = np.concatenate([bits.view(np.float32), halves, ties, edges])
        expected = values.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(mlprogram._rounded(values), expected)


def test_no_operation_is_left_out(package: Path) -> None:
    used = {step.kind for step in Package(package).functions["main"]._steps}
    assert used == {
        *mlprogram._OPERATIONS,
        *("read_state", "copy_state", "update_state", "write_state"),
    }


def test_caches_are_written_where_they_are(package: Path) -> None:
    kinds = [step.kind for step in Package(package).functions["main"]._steps]
    # The first write; what the second one writes is an output, too.
    assert kinds.count("update_state") == 1
    assert kinds.count("slice_update") == 1
    assert kinds.count("copy_state") == 1  # what is read before both, and used after them


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("group", [0, 4])
def test_palettes(tmp_path: Path, bits: int, group: int) -> None:
    f, weights = Function("main"), Weights(VALUES, Palette(bits, group))
    ids = f.add_input("ids", (1, 3), DType.INT32)
    x = f.add_input("x", (1, 4, 6), DType.FLOAT16)
    f.add_output("rows", f.make_gather(weights(f, "matrix", (40, 6)), ids))
    columns = f.make_expand_dims(f.make_transpose(x, (0, 2, 1)), 2)
    f.add_output("product", f.make_conv(columns, weights(f, "matrix", (40, 6, 1, 1))))
    path = write_package(tmp_path / "a.mlpackage", weights, [f])
    found, expected = Package(path).run("main", INPUTS), Reference(path).run("main", INPUTS)
    np.testing.assert_array_equal(found["rows"], expected["rows"])
    np.testing.assert_allclose(found["product"], expected["product"], 1e-5, 1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_unpacking_from_anywhere(bits: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, 101)
    stream = np.packbits(
        (numbers[:, None] >> np.arange(bits) & 1).astype(np.uint8), bitorder="little"
    )
    for first, last in ((0, 101), (1, 100), (37, 38), (99, 101), (50, 50)):
        np.testing.assert_array_equal(unpack(stream, bits, first, last), numbers[first:last])


def test_functions_share_weights(tmp_path: Path) -> None:
    weights, functions = Weights(VALUES, Palette(4, 4)), []
    for name in ("infer", "prefill"):
        f = Function(name)
        x = f.add_input("x", (1, 6, 1, 1), DType.FLOAT16)
        f.add_output("y", f.make_conv(x, weights(f, "matrix", (40, 6, 1, 1))))
        functions.append(f)
    package = Package(write_package(tmp_path / "a.mlpackage", weights, functions))
    assert package.dense_bytes == 40 * 6 * 4
    inputs = {"x": np.ones((1, 6, 1, 1), np.float16)}
    first, second = (package.run(name, inputs)["y"] for name in ("infer", "prefill"))
    np.testing.assert_array_equal(first, second)
    assert len({id(f._constants["matrix"]) for f in package.functions.values()}) == 1


# Refusals -----------------------------------------------------------------------------------------


def _with(edit: Callable[[Function], None]) -> Callable[[Path], Path]:
    """A package with one more operation than an addition."""

    def write(path: Path) -> Path:
        f = Function("main")
        x = f.add_input("x", (1, 4, 6), DType.FLOAT16)
        f.add_output("y", f.make_binary("add", x, x))
        edit(f)
        return write_package(path, Weights({}), [f])

    return write


def _interleaved(f: Function) -> None:
    f._op("concat", (1, 4, 12), DType.FLOAT16, values=(f.inputs[0],) * 2, axis=-1, interleave=True)


def _looked_up(f: Function) -> None:
    f.make_gather(f.inputs[0], f.constant([0]))


def _strided(f: Function) -> None:
    x, bounds = f.inputs[0], {"begin": [0, 0, 0], "end": [1, 4, 6], "end_mask": [True] * 3}
    f._op("slice_by_index", (1, 2, 6), DType.FLOAT16, x=x, stride=[1, 2, 1], **bounds)


def _strange_tables(f: Function) -> None:
    weights = Weights({})
    shapes = ((indices(4), (8, 6)), (DType.FLOAT16, (2, 3, 16, 1)))
    records = [weights._place(dtype, shape, np.zeros(1)) for dtype, shape in shapes]
    f.palettized_weight("w", *records)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.make_unary("erf", f.inputs[0]), "has the operation erf, which"),
        (_interleaved, "has concat with another interleave than False, which"),
        (_looked_up, "has gather from what is computed, which"),
        (_strided, "has slice_by_index with stride, which"),
        (_strange_tables, r"has tables of the shape \[2, 3, 16, 1\], which"),
    ],
)
def test_what_is_not_known_is_refused(
    tmp_path: Path, edit: Callable[[Function], None], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Package(_with(edit)(tmp_path / "a.mlpackage"))


def _cut(path: Path) -> None:
    weights = path / WEIGHTS
    os.truncate(weights, weights.stat().st_size - 100)


def _blank(path: Path) -> None:
    (path / WEIGHTS).write_bytes(bytes((path / WEIGHTS).stat().st_size))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "values of float16 at "),
        (_blank, "values of float16 at "),
        (lambda path: (path / WEIGHTS).write_bytes(b""), "cannot be read as a file of weights"),
        (lambda path: (path / WEIGHTS).unlink(), "weight.bin, no such file or directory"),
        (lambda path: (path / MODEL).write_bytes(b"\xff" * 9), "cannot be read as a Core ML model"),
        (lambda path: (path / MODEL).unlink(), "model.mlmodel, no such file or directory"),
        (lambda path: (path / MODEL).write_bytes(_no_program()), "holds no ML Program"),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    f, weights = Function("main"), Weights(VALUES)
    x = f.add_input("x", (1, 4, 6), DType.FLOAT16)
    f.add_output("y", f.make_binary("mul", x, weights(f, "vector", (6,))))
    path = write_package(tmp_path / "a.mlpackage", weights, [f])
    damage(path)
    with pytest.raises(SourceError, match=message):
        Package(path)


def _no_program() -> bytes:
    content: bytes = Model(specificationVersion=9).SerializeToString()
    return content


def test_an_input_of_another_shape_is_refused(package: Path) -> None:
    inputs = INPUTS | {"x": np.zeros((1, 5, 6), np.float16)}
    with pytest.raises(ValueError, match=r"x is \(1, 5, 6\), the function takes \(1, 4, 6\)"):
        Package(package).run("main", inputs)
