"""Building a TFLite model: what is refused, and ops in the real interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from converter.tflite.graph import DType, Model, Weight
from converter.tflite.writer import write


def test_constants_are_shared_by_value_not_by_type() -> None:
    model = Model("test")
    graph = model.add_graph("g")
    one = graph.constant("one", 1.0)
    assert graph.constant("another_one", 1.0) == one
    assert graph.constant("int_one", [1]) != one
    assert graph.constant("zeros", np.zeros(2, np.float32)) != graph.constant(
        "int_zeros", np.zeros(2, np.int32)
    )


def test_mistakes_raise() -> None:
    model = Model("test")
    graph = model.add_graph("g")
    x = graph.add_input("x", (2, 3), DType.FLOAT32)
    with pytest.raises(ValueError, match="two tensors are named x"):
        graph.add_input("x", (2, 3), DType.FLOAT32)
    with pytest.raises(ValueError, match="cannot be reshaped"):
        graph.make_reshape("r", x, (4,))
    with pytest.raises(ValueError, match="does not fit the weight"):
        graph.make_fully_connected("fc", x, graph.weight(Weight("w", (5, 4), DType.FLOAT32)))
    with pytest.raises(ValueError, match="cannot be multiplied"):
        graph.make_batch_matmul("bmm", x, graph.constant("c", np.zeros((2, 2), np.float32)))
    with pytest.raises(ValueError, match="two different weights are named w"):
        model.add_graph("h").weight(Weight("w", (5, 4), DType.FLOAT16))


# Ops whose meaning is not plain from their use in the decoder ------------------------------------


def _run(model: Model, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    interpreter = Interpreter(model_content=bytes(write(model).flatbuffer))
    result: dict[str, np.ndarray] = interpreter.get_signature_runner("main")(**inputs)
    return result


def test_integer_ops() -> None:
    model = Model("test")
    g = model.add_graph("main")
    x = g.add_input("x", (4,), DType.INT32)
    five = g.constant("five", [5])
    g.add_output("floor_mod", g.make_floor_mod("floor_mod", x, five))
    g.add_output("maximum", g.make_maximum("maximum", x, five))
    g.add_output("minimum", g.make_minimum("minimum", x, five))
    g.add_output("reduce_max", g.make_reduce_max("reduce_max", x))
    result = _run(model, x=np.array([-1, 12, 5, -10], np.int32))
    assert result["floor_mod"].tolist() == [4, 2, 0, 0]
    assert result["maximum"].tolist() == [5, 12, 5, 5]
    assert result["minimum"].tolist() == [-1, 5, 5, -10]
    assert result["reduce_max"].tolist() == [12]


@pytest.mark.parametrize("axis", [1, 2])
def test_gather(axis: int) -> None:
    model = Model("test")
    g = model.add_graph("main")
    x = g.add_input("x", (2, 3, 4), DType.FLOAT32)
    indices = g.add_input("indices", (5,), DType.INT32)
    g.add_output("y", g.make_gather("y", x, indices, axis))
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    wanted = np.array([2, 0, 0, 1, 2], np.int32)
    result = _run(model, x=values, indices=wanted)["y"]
    np.testing.assert_array_equal(result, values.take(wanted, axis))


def test_pad() -> None:
    model = Model("test")
    g = model.add_graph("main")
    x = g.add_input("x", (1, 2), DType.FLOAT32)
    g.add_output("y", g.make_pad("y", x, (1, 2), -3.0))
    result = _run(model, x=np.array([[1, 2]], np.float32))
    assert result["y"].tolist() == [[1, 2, -3, -3], [-3, -3, -3, -3]]


def test_if_with_two_outputs() -> None:
    model = Model("test")
    g = model.add_graph("main")
    x, many = g.add_input("x", (2,), DType.INT32), g.add_input("many", (1,), DType.INT32)
    bodies = []
    for name in ("one", "other"):
        body = model.add_body(name)
        given = body.add_input("x", (2,), DType.INT32)
        factor = body.constant("factor", [3 if name == "one" else 5])
        body.add_output("times", body.make_mul("times", given, factor))
        body.add_output("plus", body.make_add("plus", given, factor))
        bodies.append(body)
    condition = g.make_greater_equal("condition", many, g.constant("ten", [10]))
    for name, tensor in g.make_ifs("made", condition, *bodies, (x,)).items():
        g.add_output(name, tensor)
    for many_, times, plus in ((10, [6, 9], [5, 6]), (9, [10, 15], [7, 8])):
        result = _run(model, x=np.array([2, 3], np.int32), many=np.array([many_], np.int32))
        assert (result["times"].tolist(), result["plus"].tolist()) == (times, plus)


def test_if_runs_one_body_and_bodies_are_no_signatures() -> None:
    model = Model("test")
    g = model.add_graph("main")
    x, y = g.add_input("x", (2,), DType.FLOAT32), g.add_input("y", (3,), DType.FLOAT32)
    n = g.add_input("n", (1,), DType.INT32)
    bodies = []
    for name, factor in (("many", 2.0), ("few", 3.0)):
        body = model.add_body(name)
        x_in = body.add_input("x", x.shape, DType.FLOAT32)
        body.add_input("y", y.shape, DType.FLOAT32)  # a body need not read what the other reads
        body.add_output("z", body.make_mul("z", x_in, body.constant("factor", factor)))
        bodies.append(body)
    many = g.make_greater_equal("is_many", n, g.constant("limit", [10]))
    g.add_output("z", g.make_if("z", many, bodies[0], bodies[1], (x, y)))
    values = {"x": np.array([1, 2], np.float32), "y": np.zeros(3, np.float32)}
    assert _run(model, **values, n=np.array([10], np.int32))["z"].tolist() == [2, 4]
    assert _run(model, **values, n=np.array([9], np.int32))["z"].tolist() == [3, 6]
    interpreter = Interpreter(model_content=bytes(write(model).flatbuffer))
    assert list(interpreter.get_signature_list()) == ["main"]
