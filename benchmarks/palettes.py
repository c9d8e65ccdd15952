"""Palettes: time, and how far their squared error is above the least, beside coremltools' k-means.

    venv/bin/python -m benchmarks.palettes                # two minutes
    venv/bin/python -m benchmarks.palettes --bits 4

Ours packs whole matrices in one thread, the best of five; times are those of a core. The others
take a few groups of them: the least error is that of exact dynamic programming, coremltools' own;
in its palettes it does that for groups of 10,000 weights and more, and scikit-learn's k-means for
smaller ones. All errors are those of tables rounded to float16, but for the least. Needs
coremltools and scikit-learn. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measure import commit, guarded, machine, note
from converter.checkpoint.gguf import open_gguf
from converter.version import __version__
from converter.weights.palettes import Palette
from tests.conftest import real_model

_BITS = (4, 6, 8)
_GROUPS = (8, 64, 0)  # rows
_COMPARED = 3  # groups of a matrix
_ROUNDS = 5
_MATRICES = {
    "SmolLM2 135M, layer 3, up": ("smollm2-135m-instruct-q4_1.gguf", "blk.3.ffn_up.weight"),
    "SmolLM2 135M, layer 20, q": ("smollm2-135m-instruct-q4_1.gguf", "blk.20.attn_q.weight"),
    "Gemma 3 270M, layer 5, down": ("gemma3-270m-q4_k_m.gguf", "blk.5.ffn_down.weight"),
    "Gemma 3 270M, layer 10, q": ("gemma3-270m-q4_k_m.gguf", "blk.10.attn_q.weight"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", action="append", type=int, choices=_BITS, help="may be repeated")
    args = parser.parse_args()
    rows = []
    for name, matrix in matrices():
        for bits in args.bits or _BITS:
            for group in _GROUPS:
                note(f"{name}: {bits} bits, {group or 'all'} rows")
                rows.append({"matrix": name, **measure(matrix, Palette(bits, group))})
    print(table(rows))
    document = {
        "benchmark": "palettes",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("numpy", "coremltools", "scikit-learn"),
        "rows": rows,
    }
    print(json.dumps(document))


def matrices() -> Iterator[tuple[str, np.ndarray]]:
    """Names and values, float32, that float16 holds."""
    random = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32) * 0.02
    bf16 = random.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    yield "normal numbers in BF16", bf16.view(np.float32)
    for name, (file, tensor) in _MATRICES.items():
        with open_gguf(real_model(file)) as checkpoint:
            rows = checkpoint.read_rows(tensor, 0, checkpoint.tensors[tensor].shape[0])
            yield name, rows.astype(np.float16).astype(np.float32)


def measure(matrix: np.ndarray, palette: Palette) -> dict[str, Any]:
    """Nanoseconds of a core per weight and errors above the least, ours and coremltools'."""
    from coremltools._deps import kmeans1d
    from coremltools.models.neural_network.quantization_utils import (
        _get_kmeans_lookup_table_and_weight as their_kmeans,
    )

    seconds = []
    for _ in range(_ROUNDS):
        begin = time.process_time()
        packed, tables = palette.pack(matrix)
        seconds.append(time.process_time() - begin)
    groups = matrix.reshape(len(tables), -1)
    indices = unpacked(packed, palette.bits).reshape(groups.shape)
    least, ours, theirs = 0.0, 0.0, 0.0
    exact_seconds, their_seconds, compared = 0.0, 0.0, groups[:_COMPARED]
    for values, table, index in zip(compared, tables, indices, strict=False):
        ours += squared_error(values, table[index])
        begin = time.process_time()
        distinct, counts = np.unique(values, return_counts=True)
        found = kmeans1d.cluster(distinct, 1 << palette.bits, weights=counts)
        exact_seconds += time.process_time() - begin
        best = (distinct - np.array(found.centroids)[found.clusters]) ** 2
        least += float((counts * best).sum())
        begin = time.process_time()
        centres, chosen = their_kmeans(palette.bits, values.astype(np.float16)[None])
        their_seconds += time.process_time() - begin
        theirs += squared_error(values, centres.reshape(-1).astype(np.float16)[chosen])
    return {
        "bits": palette.bits,
        "group": palette.group,
        "columns": matrix.shape[1],
        "ns_per_weight": min(seconds) / matrix.size * 1e9,
        "excess": ours / least - 1,
        "exact_ns_per_weight": exact_seconds / compared.size * 1e9,
        "coremltools_ns_per_weight": their_seconds / compared.size * 1e9,
        "coremltools_excess": theirs / least - 1,
    }


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Indices of so many bits, `(n,)`; matrices end with a byte."""
    planes = np.unpackbits(packed, bitorder="little").reshape(-1, bits)
    return np.packbits(planes, axis=1, bitorder="little")[:, 0]


def squared_error(values: np.ndarray, read: np.ndarray) -> float:
    return float(((values.astype(np.float64) - read.reshape(-1)) ** 2).sum())


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':28} bits group  ns/weight  excess  coremltools: ns/weight  excess  exact: ns"]
    for row in rows:
        lines.append(
            f"{row['matrix']:28} {row['bits']:4} {row['group'] or 'all':>5} "
            f"{row['ns_per_weight']:10.1f} {row['excess']:7.3%} "
            f"{row['coremltools_ns_per_weight']:23.0f} {row['coremltools_excess']:7.2%} "
            f"{row['exact_ns_per_weight']:10.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    guarded(main)
