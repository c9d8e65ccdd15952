"""The TFLite writer, held against the real interpreter and against literal bytes."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from converter.tflite.graph import DType, Model, Weight
from converter.tflite.writer import WEIGHT_ALIGNMENT, Layout, write

# One subgraph, `y = x + x`, of two floats.
GOLDEN = bytes.fromhex(
    "1c00000054464c3314001c001800140010000c00080000000000040014000000300000007401000010000000"
    "7c000000140000000300000006000000676f6c64656e00000100000004000000acfeffff0100000010000000"
    "00000a0010000c00080004000a000000700000000800000020000000010000000c00000008000c0008000400"
    "0800000001000000c8000000010000000c000000000006000800040006000000e40000000100000014000000"
    "00000e001800140010000c00080004000e000000140000001c000000600000001c0000002000000006000000"
    "646f75626c65000001000000180000000100000000000000020000006400000044000000e6ffffff00000000"
    "2c00000020000000180000000b00000000000e001800040008000c001400100088ffffff0100000001000000"
    "020000000000000000000000ceffffff4c0000000000000008000000000100000100000079000000eaffffff"
    "300000000000000020000000000100000000160014000400100008000c000000000000000000110001000000"
    "7800000001000000020000000100000008000000040004000400000000000000000000000000000000000000"
    "0000000000000000"
)


def _fill(layout: Layout, data: dict[str, np.ndarray]) -> bytes:
    content = bytearray(layout.nbytes)
    content[: len(layout.flatbuffer)] = layout.flatbuffer
    for name, array in data.items():
        offset = layout.offsets[name]
        content[offset : offset + array.nbytes] = array.tobytes()
    return bytes(content)


def _lookup_model(dtype: DType, itemsize: int, signatures: tuple[int, ...] = (2, 3)) -> Model:
    """Per signature: rows of a table, and the scores of these rows against the table."""
    model = Model("test")
    weight = Weight("table", (10, 8), dtype, quantized=dtype is DType.INT8)
    for length in signatures:
        graph = model.add_graph(f"lookup_{length}")
        ids = graph.add_input("ids", (length,), DType.INT32)
        table = graph.weight(weight)
        if dtype is DType.FLOAT16:
            table = graph.make_dequantize("table_float32", table)
        rows = graph.make_embedding_lookup("rows", ids, table)
        graph.add_output("rows", rows)
        graph.add_output("scores", graph.make_fully_connected("scores", rows, table))
    return model


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.INT8])
def test_external_weights_are_read_by_every_signature(dtype: DType) -> None:
    table = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    itemsize = {DType.FLOAT32: 4, DType.FLOAT16: 2, DType.INT8: 1}[dtype]
    layout = write(_lookup_model(dtype, itemsize))
    if dtype is DType.INT8:
        scales = np.abs(table).max(axis=1) / 127
        layout.scales("table")[:] = scales
        stored = np.rint(table / scales[:, None]).astype(np.int8)
        table = stored * scales[:, None]
    else:
        stored = table.astype(np.float16 if dtype is DType.FLOAT16 else np.float32)
        table = stored.astype(np.float32)
    interpreter = Interpreter(model_content=_fill(layout, {"table": stored}))
    for length in (2, 3):
        ids = np.array([7, 0, 9][:length], np.int32)
        result = interpreter.get_signature_runner(f"lookup_{length}")(ids=ids)
        np.testing.assert_array_equal(result["rows"], table[ids])
        # int8 kernels quantise the activations, too: to one part in 127 of the largest.
        tolerance = 0.05 if dtype is DType.INT8 else 1e-5
        np.testing.assert_allclose(result["scores"], table[ids] @ table.T, atol=tolerance)


def test_weights_are_aligned_and_follow_the_flatbuffer() -> None:
    model = Model("test")
    graph = model.add_graph("sum")
    total = graph.weight(Weight("a", (3,), DType.FLOAT32))
    for name in ("b", "c"):
        weight = graph.weight(Weight(name, (3,), DType.FLOAT32))
        total = graph.make_add(f"plus_{name}", total, weight)
    graph.add_output("sum", total)
    layout = write(model)
    assert list(layout.offsets) == ["a", "b", "c"]
    assert all(offset % WEIGHT_ALIGNMENT == 0 for offset in layout.offsets.values())
    assert layout.offsets["a"] == len(layout.flatbuffer)
    assert layout.nbytes == layout.offsets["c"] + WEIGHT_ALIGNMENT
    data = {name: np.full(3, value, np.float32) for name, value in (("a", 1), ("b", 2), ("c", 4))}
    runner = Interpreter(model_content=_fill(layout, data)).get_signature_runner("sum")
    np.testing.assert_array_equal(runner()["sum"], [7, 7, 7])


def test_another_signature_repeats_neither_weights_nor_scales() -> None:
    """A signature costs its own activations; the table's ten scales and its tensor exist once."""
    one = len(write(_lookup_model(DType.INT8, 1, (2,))).flatbuffer)
    two = len(write(_lookup_model(DType.INT8, 1, (2, 3))).flatbuffer)
    rows = 10
    assert two - one < 700
    big = Model("test")
    for length in range(1, 9):
        graph = big.add_graph(f"s{length}")
        ids = graph.add_input("ids", (length,), DType.INT32)
        table = graph.weight(Weight("t", (50_000, rows), DType.INT8, quantized=True))
        graph.add_output("rows", graph.make_embedding_lookup("rows", ids, table))
    scales, zero_points = 4 * 50_000, 8 * 50_000
    assert len(write(big).flatbuffer) < scales + zero_points + 10_000


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (write(_lookup_model(DType.INT8, 1)).flatbuffer for _ in range(2))
    assert first == second


def test_golden_bytes_of_the_smallest_model() -> None:
    """If this changes, every converted file changes: make sure that it is meant."""
    model = Model("golden")
    graph = model.add_graph("double")
    x = graph.add_input("x", (2,), DType.FLOAT32)
    graph.add_output("y", graph.make_add("y", x, x))
    flatbuffer = bytes(write(model).flatbuffer)
    assert flatbuffer[4:8] == b"TFL3"
    assert flatbuffer == GOLDEN
    runner = Interpreter(model_content=flatbuffer).get_signature_runner("double")
    np.testing.assert_array_equal(runner(x=np.array([1, 2], np.float32))["y"], [2, 4])
