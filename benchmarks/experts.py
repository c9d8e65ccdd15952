"""Ways to compute a few of many experts: what each costs, beside a dense block of the active width.

    venv/bin/python -m benchmarks.experts             # 5 minutes; 16 GB of memory
    venv/bin/python -m benchmarks.experts --layers 4 --rounds 5

A graph of feed-forward blocks alone, with random int8 weights in the shape of Granite 3.1 1B-A400M,
runs in the ai-edge-litert interpreter; all variants in turn. First a decode, of one token:

    dense     one block, as wide as the experts that a token takes
    inline    as many small blocks as it takes, always the same: no choice, no branches
    branches  what the converter emits: an IF for each expert, a sum handed from one to the next
    tree      for each expert that is taken, a binary search of IFs over all
    table     experts are rows of one int8 table, gathered, and widened by that

Then prefills: every expert gets all rows, or its own ones, so many at once. For whole models in the
engine see `benchmarks.shapes`. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import commit, machine
from converter.decoder import Activation, Experts, FeedForward
from converter.tflite.blocks import Blocks
from converter.tflite.feed_forward import ExpertLayer, make_dense
from converter.tflite.graph import DType, Graph, Model, Tensor, Weight
from converter.tflite.kv_cache import Call
from converter.tflite.writer import write
from converter.version import __version__
from converter.weights.quantization import parse_quantization

HIDDEN, WIDTH, COUNT, ACTIVE = 1024, 512, 32, 8
THREADS = 2
INT8 = parse_quantization("dynamic_int8")
EXPERT = FeedForward(WIDTH, Activation.SILU)

# A layer's output, from its blocks, its path and its input.
Emit = Callable[[Blocks, str, Tensor, int], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    decode: dict[str, tuple[Emit, int]] = {
        "dense": (dense, COUNT),
        "inline": (inline, COUNT),
        "branches": (branches(1, 1), COUNT),
        "branches, twice as many": (branches(1, 1), 2 * COUNT),
        "tree": (tree, COUNT),
        "table": (table, COUNT),
    }
    figures: dict[str, Any] = {"decode": measure(decode, 1, args.layers, args.rounds)}
    for length in (8, 32, 128):
        prefill: dict[str, tuple[Emit, int]] = {
            "dense": (dense, COUNT),
            "all rows": (branches(length, length), COUNT),
        }
        for rows in (8, 16, 32, 64):
            if rows < length:
                prefill[f"{rows} at once"] = branches(0, rows), COUNT
                prefill[f"{rows} at once, twice as many"] = branches(0, rows), 2 * COUNT
        figures[f"prefill {length}"] = measure(prefill, length, args.layers, args.rounds)
    document = {
        "benchmark": "experts",
        "version": __version__,
        "commit": commit(),
        "machine": machine("ai-edge-litert"),
        "shape": {"hidden": HIDDEN, "width": WIDTH, "experts": COUNT, "active": ACTIVE},
        "layers": args.layers,
        "rounds": args.rounds,
        "milliseconds": figures,
    }
    print(json.dumps(document))


# Variants ---------------------------------------------------------------------------------------


def dense(blocks: Blocks, block: str, x: Tensor, _: int) -> Tensor:
    return make_dense(blocks, block, dataclasses.replace(EXPERT, width=ACTIVE * WIDTH), x)


def inline(blocks: Blocks, block: str, x: Tensor, _: int) -> Tensor:
    g, total = blocks.graph, None
    for e in range(ACTIVE):
        made = make_dense(blocks, f"{block}.experts.{e}", EXPERT, x)
        total = made if total is None else g.make_add(f"{block}/total/{e}", total, made)
    assert total is not None  # some are active
    return total


def branches(all_rows: int, rows_at_once: int) -> Emit:
    def emit(blocks: Blocks, block: str, x: Tensor, count: int) -> Tensor:
        experts = Experts(EXPERT, count, ACTIVE)
        return ExpertLayer(blocks, block, experts, all_rows, rows_at_once).make(x, x)

    return emit


def tree(blocks: Blocks, block: str, x: Tensor, count: int) -> Tensor:
    g = blocks.graph
    weights, chosen = route(blocks, block, x, count)

    def search(first: int, last: int) -> Graph:
        body = blocks.model.add_body(f"{block}/{first}:{last}")
        token = body.add_input("x", x.shape, DType.FLOAT32)
        number = body.add_input("number", (1,), DType.INT32)
        if last - first == 1:
            inside = Blocks(dataclasses.replace(blocks.call, graph=body), blocks.weight_of)
            body.add_output("y", make_dense(inside, f"{block}.experts.{first}", EXPERT, token))
            return body
        middle = (first + last) // 2
        below, above = search(first, middle), search(middle, last)
        is_above = body.make_greater_equal("is_above", number, body.constant("middle", [middle]))
        body.add_output("y", body.make_if("found", is_above, above, below, (token, number)))
        return body

    root, total = search(0, count), None
    always = g.constant("zero", [0])
    for k in range(ACTIVE):
        number = g.make_slice(f"{block}/number/{k}", chosen, (0, k), (1, 1))
        number = g.make_reshape(f"{block}/number/{k}/flat", number, (1,))
        yes = g.make_greater_equal(f"{block}/yes/{k}", number, always)
        made = g.make_if(f"{block}/made/{k}", yes, root, root, (x, number))
        weight = g.make_slice(f"{block}/weight/{k}", weights, (0, k), (1, 1))
        made = g.make_mul(f"{block}/weighted/{k}", made, weight)
        total = made if total is None else g.make_add(f"{block}/total/{k}", total, made)
    assert total is not None  # some are active
    return total


def table(blocks: Blocks, block: str, x: Tensor, count: int) -> Tensor:
    g = blocks.graph
    weights, chosen = route(blocks, block, x, count)
    numbers = g.make_reshape(f"{block}/numbers", chosen, (ACTIVE,))

    def rows(part: str, outputs: int, inputs: int) -> Tensor:
        stored = blocks.weight(f"{block}.{part}")
        found = g.make_embedding_lookup(f"{block}/{part}/rows", numbers, stored)
        return g.make_reshape(f"{block}/{part}/matrices", found, (ACTIVE, outputs, inputs))

    ones = g.constant("ones", np.ones((ACTIVE, 1, 1), np.float32))
    repeated = g.make_mul(f"{block}/x", g.make_reshape(f"{block}/x/3d", x, (1, 1, HIDDEN)), ones)
    gate, up = (
        g.make_batch_matmul(f"{block}/{part}", repeated, rows(f"table_{part}", WIDTH, HIDDEN))
        for part in ("gate", "up")
    )
    made = g.make_mul(f"{block}/gated", blocks.make_activation(block, Activation.SILU, gate), up)
    made = g.make_batch_matmul(f"{block}/down", made, rows("table_down", HIDDEN, WIDTH))
    made = g.make_reshape(f"{block}/made", made, (ACTIVE, HIDDEN))
    return g.make_batch_matmul(f"{block}/total", weights, made, transposed=False)


def route(blocks: Blocks, block: str, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the experts that are taken, (1, active)."""
    logits = blocks.make_part(block, "router", (), x)
    best, chosen = blocks.graph.make_top_k(f"{block}/best", logits, ACTIVE)
    return blocks.graph.make_softmax(f"{block}/weights", best), chosen


# Measuring --------------------------------------------------------------------------------------


def measure(
    variants: dict[str, tuple[Emit, int]], length: int, layers: int, rounds: int
) -> dict[str, float]:
    """Median milliseconds of a call of `length` tokens, all variants in turn."""
    from ai_edge_litert.interpreter import Interpreter

    runners, seconds = {}, {name: [0.0] * 0 for name in variants}
    with tempfile.TemporaryDirectory(prefix="experts-") as folder:
        for i, (name, (emit, count)) in enumerate(variants.items()):
            file = Path(folder, f"{i}.tflite")
            write_network(emit, length, count, layers, file)
            interpreter = Interpreter(model_path=str(file), num_threads=THREADS)
            runners[name] = interpreter.get_signature_runner("run"), interpreter
            file.unlink()  # it stays mapped
        for turn in range(-1, rounds):  # the first one is not counted
            x = np.random.default_rng(turn + 1).standard_normal((length, HIDDEN), np.float32)
            for name, (runner, _) in runners.items():
                begin = time.perf_counter()
                y = runner(x=x)["y"]
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - begin)
                if not np.isfinite(y).all():
                    sys.exit(f"{name} gives numbers that are none")
    found = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    for name, milliseconds in found.items():
        times = milliseconds / found["dense"]
        print(f"{length:4} tokens, {name:26} {milliseconds:8.1f} ms, {times:5.1f} x dense")
    return found


def write_network(emit: Emit, length: int, count: int, layers: int, file: Path) -> None:
    """A graph of such layers, each added to its input, with random weights."""
    model, block = Model("experts"), "layers.{}.mlp"
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        path = block.format(i)
        wide = dataclasses.replace(EXPERT, width=ACTIVE * WIDTH)
        shapes.update(wide.weight_shapes(path, HIDDEN))
        shapes.update(Experts(EXPERT, count, ACTIVE).weight_shapes(path, HIDDEN))
        for part in ("gate", "up", "down"):
            shapes[f"{path}.table_{part}"] = count, WIDTH * HIDDEN

    def weight_of(path: str) -> Weight:
        return INT8.format_of(path, shapes[path]).weight(path, shapes[path])

    g = model.add_graph("run")
    x = g.add_input("x", (length, HIDDEN), DType.FLOAT32)
    blocks = Blocks(Call(model, g, length, x, x, x, None), weight_of)
    for i in range(layers):
        x = g.make_add(f"sum/{i}", x, emit(blocks, block.format(i), x, count))
    g.add_output("y", x)
    layout = write(model)
    random = np.random.default_rng(0)
    bytes_of_int8 = random.integers(-127, 128, 1 << 20, np.int8).tobytes()
    for name, weight in model.weights.items():
        if weight.quantized:
            layout.scales(name)[:] = 2e-4
    with file.open("wb") as out:
        out.write(layout.flatbuffer)
        for name, weight in model.weights.items():
            out.seek(layout.offsets[name])
            if weight.quantized:
                for start in range(0, weight.nbytes, len(bytes_of_int8)):
                    out.write(bytes_of_int8[: weight.nbytes - start])
            else:
                # Of a router: no larger, or one expert would have all the weight.
                values = random.standard_normal(weight.shape, np.float32) / HIDDEN**0.5
                out.write(values.tobytes())
        out.truncate(layout.nbytes)


if __name__ == "__main__":
    main()
