"""Products of inputs in two terms, in the real interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from converter.tflite.graph import DType, Model, Weight
from converter.tflite.two_terms import add_terms, make_terms
from converter.tflite.writer import write

RANDOM = np.random.default_rng(0)
COLUMNS, ROWS = 96, 40
WEIGHT = RANDOM.integers(-127, 128, (ROWS, COLUMNS), np.int8)
SCALES = RANDOM.uniform(0.001, 0.01, ROWS).astype(np.float32)


def products(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x @ weight.T as the engine's int8 kernels make it, plainly and in two terms."""
    model = Model("test")
    graph = model.add_graph("product")
    tensor = graph.add_input("x", x.shape, DType.FLOAT32)
    weight = graph.weight(Weight("w", WEIGHT.shape, DType.INT8, quantized=True))
    graph.add_output("plain", graph.make_fully_connected("plain", tensor, weight))
    terms = make_terms(graph, "terms", tensor)
    product = graph.make_fully_connected("terms/product", terms, weight)
    graph.add_output("both", add_terms(graph, "both", product))
    layout = write(model)
    layout.scales("w")[:] = SCALES
    content = bytearray(layout.nbytes)
    content[: len(layout.flatbuffer)] = layout.flatbuffer
    content[layout.offsets["w"] : layout.offsets["w"] + WEIGHT.nbytes] = WEIGHT.tobytes()
    found = Interpreter(model_content=bytes(content)).get_signature_runner("product")(x=x)
    return found["plain"], found["both"]


def rows(*found: np.ndarray) -> np.ndarray:
    return np.stack(found).astype(np.float32)


NORMAL = RANDOM.standard_normal(COLUMNS)
OUTLIER = NORMAL + 100 * (np.arange(COLUMNS) == 7)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_two_terms_are_a_hundred_times_nearer_than_one(n: int) -> None:
    x = RANDOM.standard_normal((n, COLUMNS)).astype(np.float32)
    x[:, 5] *= 40
    plain, both = products(x)
    exact = x.astype(np.float64) @ (WEIGHT * SCALES[:, None]).astype(np.float64).T
    once, twice = (np.abs(found - exact).mean() for found in (plain, both))
    assert twice < once / 100
    assert once > 1e-3 * np.abs(exact).mean()


@pytest.mark.parametrize(
    "x",
    [
        rows(NORMAL, OUTLIER, -OUTLIER),
        rows(np.abs(NORMAL), -np.abs(NORMAL)),
        rows(np.zeros(COLUMNS), NORMAL, np.full(COLUMNS, 1e-20)),
        rows(np.clip(NORMAL, -1, 1), np.sign(NORMAL), np.full(COLUMNS, -3.5)),
        rows(NORMAL * 1e-12, NORMAL * 1e12),
    ],
    ids=["outliers", "one sign", "zeros", "symmetric and constant", "scales"],
)
def test_every_row_is_rounded_on_its_own(x: np.ndarray) -> None:
    exact = x.astype(np.float64) @ (WEIGHT * SCALES[:, None]).astype(np.float64).T
    _, both = products(x)
    # Half a step of the finer term in every column, at worst; and float32's own error.
    reach = np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)
    weights = np.abs(WEIGHT * SCALES[:, None]).sum(axis=1)
    limit = (reach / 255 / 255)[:, None] * weights + 1e-6 * np.abs(x).max(1)[:, None] * weights
    assert (np.abs(both - exact) <= limit).all()
