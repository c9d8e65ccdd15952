"""Models whose layers keep other state, or share it: what conversion and decode cost.

    venv/bin/python -m benchmarks.shapes                    # all: 20 minutes, 25 GB of disk
    venv/bin/python -m benchmarks.shapes --only lfm2-1.2b   # one, beside the plain decoder

Each is a random checkpoint in the shape of a published model (`benchmarks.checkpoints`). It is
converted, in turn with the least that any converter must do (read the source, write the output);
then the engine's own benchmark decodes behind prompts of several lengths. Qwen3-0.6B's shape is the
plain decoder beside them, whose attention grows with all that is in the context. The last line is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.convert import CLI, ROOT, folder_bytes, make_source, need_disk, note
from benchmarks.measure import Run, commit, in_turn, machine, medians, run
from converter.registry import family_of
from converter.version import __version__

PLAIN = "qwen3-0.6b"
# Schemes of each shape; the first is the default's.
SCHEMES = {"gemma4-e2b": ("dynamic_int8", "dynamic_int4_block128")}
CONTEXTS = (16, 1024, 3584)
CACHE = 4096
_NEW_TOKENS = 32
_COPY = 'out=$1 copy=$2; shift 2; cat "$@" > /dev/null; cp "$out" "$copy"'


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shapes = [PLAIN, *(name for name, shape in SHAPES.items() if _keeps_other_state(shape))]
    parser.add_argument("--only", nargs="*", choices=shapes, default=shapes)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder with room for the largest checkpoint")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    for shape in dict.fromkeys([PLAIN, *args.only]):
        with tempfile.TemporaryDirectory(dir=args.work, prefix="shapes-") as work:
            figures[shape] = _measure(shape, Path(work), args.rounds)
        _print(shape, figures[shape])
    document = {
        "benchmark": "shapes",
        "version": __version__,
        "commit": commit(),
        "machine": machine(),
        "rounds": args.rounds,
        "shapes": figures,
    }
    print(json.dumps(document))


def _keeps_other_state(shape: dict[str, Any]) -> bool:
    """Whether it is none of the plain decoders, which `benchmarks.convert` and `.coreml` have."""
    return shape["model_type"] not in ("qwen3", "llama", "gemma3", "gemma3_text")


def _measure(shape: str, work: Path, rounds: int) -> dict[str, Any]:
    spec = family_of(SHAPES[shape]).spec()
    parameters = sum(math.prod(dims) for _, dims in spec.weight_shapes())
    need_disk(work, 2 * parameters * 2.2)
    note(f"{shape}: {parameters / 1e9:.2f} G parameters")
    folder = work / shape
    make_source("shape", shape, folder)
    found: dict[str, Any] = {"parameters": parameters, "source_bytes": folder_bytes(folder)}
    for scheme in SCHEMES.get(shape, ("dynamic_int8",)):
        found[scheme] = _convert_and_decode(folder, scheme, work / "out", rounds)
    return found


def _convert_and_decode(folder: Path, scheme: str, out: Path, rounds: int) -> dict[str, Any]:
    out.mkdir()
    bundle, copy = out / f"{folder.name}.litertlm", out / "copy"
    options: list[str | Path] = ["--quantize", scheme, "--kv-cache-max-len", str(CACHE)]
    options += ["--output-dir", out]

    def ours() -> Run:
        bundle.unlink(missing_ok=True)
        return run([CLI, "convert", folder, "--quiet", *options])

    def floor() -> Run:
        weights = sorted(folder.glob("*.safetensors"))
        try:
            return run(["sh", "-c", _COPY, "sh", bundle, copy, *weights])
        finally:
            copy.unlink(missing_ok=True)

    turns = in_turn({"ours": ours, "floor": floor}, rounds)
    figures = {name: medians(runs) for name, runs in turns.items()}
    decode = {}
    for context in CONTEXTS:
        speeds = []
        for _ in range(rounds):
            engine = [sys.executable, "-m", "benchmarks.engine", str(bundle), str(context)]
            ended = run([*engine, str(_NEW_TOKENS)], {"PYTHONPATH": str(ROOT)})
            speeds.append(json.loads(ended.said.splitlines()[-1]))
        decode[context] = {
            key: statistics.median(speed[key] for speed in speeds) for key in ("prefill", "decode")
        }
    result = {
        **figures,
        "times_floor": figures["ours"]["seconds"] / figures["floor"]["seconds"],
        "output_bytes": bundle.stat().st_size,
        "tokens_per_second": decode,
    }
    shutil.rmtree(out)
    return result


def _print(shape: str, found: dict[str, Any]) -> None:
    for scheme, row in found.items():
        if not isinstance(row, dict):
            continue
        speeds = "  ".join(
            f"{context}: {speed['prefill']:.0f} / {speed['decode']:.1f}"
            for context, speed in row["tokens_per_second"].items()
        )
        print(
            f"{shape} {scheme}: {row['ours']['seconds']:.1f} s ({row['times_floor']:.1f} x the "
            f"floor), {row['ours']['peak_mib']:.0f} MiB, {row['output_bytes'] / 1e9:.2f} GB; "
            f"prefill / decode tokens per second behind {speeds}"
        )


if __name__ == "__main__":
    main()
