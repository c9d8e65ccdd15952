"""What a KV cache in int8 and fp16 costs and gives beside one in fp32, side by side.

    venv/bin/python -m benchmarks.kv_cache | tee RESULT.txt          # twenty minutes
    venv/bin/python -m benchmarks.kv_cache --only smollm2-135m --rounds 3

Every figure is a process of its own, with two threads; types take turns. Beside each type's best
rates stands the median of its ratios to the fp32 of the same round, which a busy machine disturbs
least, and what `inspect` says of the cache's memory. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import THREADS
from benchmarks.measure import Run, commit, guarded, in_turn, machine, note, run
from benchmarks.run import CACHE_LENGTH, CLI, MODELS, QUANTIZE, best, engine_runs, make_files
from converter.litertlm.inspection import read_bundle
from converter.tflite.kv_cache import CacheType
from converter.version import __version__

# Prompt tokens and new ones.
CASES = ((200, 32), (3000, 32))
_BESIDE = CacheType.FP32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: 7")
    parser.add_argument("--only", action="append", choices=MODELS, help="may be given again")
    parser.add_argument("--prompt", type=int, help="only the case of so many prompt tokens")
    args = parser.parse_args()
    document: dict[str, Any] = {
        "benchmark": "kv_cache",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("litert-lm-api"),
        "job": {"quantize": QUANTIZE, "kv_cache_max_len": CACHE_LENGTH, "threads": THREADS},
        "rounds": args.rounds,
        "models": {},
    }
    cases = [case for case in CASES if args.prompt in (None, case[0])]
    for name in args.only or MODELS:
        with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
            document["models"][name] = _measure(name, Path(work), cases, args.rounds)
    print("\n".join(_table(document["models"])))
    print(json.dumps(document))


def _measure(
    name: str, work: Path, cases: Sequence[tuple[int, int]], rounds: int
) -> dict[str, Any]:
    model, source = MODELS[name], work / name
    note(f"{model.title}: making its files")
    make_files(*model.make, source)
    bundles = {kind: _convert(source, work / kind, kind) for kind in CacheType}
    result: dict[str, Any] = {
        "title": model.title,
        "cache_bytes": {
            kind: read_bundle(bundle).model.run_memory.kv_cache_bytes
            for kind, bundle in bundles.items()
        },
        "cases": [],
    }
    measures = {kind: engine_runs(bundle) for kind, bundle in bundles.items()}
    for prompt, new in cases:
        note(f"{model.title}: {prompt} + {new} tokens")
        runs = in_turn(
            {n: lambda m=m, p=prompt, d=new: m(p, d) for n, m in measures.items()},  # type: ignore[misc]
            rounds,
            warm_up=False,  # the best counts
        )
        figures = {kind: best(measured) | _ratios(runs, kind) for kind, measured in runs.items()}
        result["cases"].append({"prompt": prompt, "new": new, "types": figures})
    return result


def _convert(source: Path, output: Path, kind: CacheType) -> Path:
    options = ["--kv-cache", kind, "--kv-cache-max-len", str(CACHE_LENGTH), "--quantize", QUANTIZE]
    run([CLI, "convert", source, "--output-dir", output, "--quiet", *options])
    [bundle] = output.glob("*.litertlm")
    return bundle


def _ratios(runs: Mapping[str, Sequence[Run]], kind: str) -> dict[str, float]:
    """Medians of a type's rates over fp32's in the same round."""
    said = {
        name: [json.loads(one.said.strip().splitlines()[-1]) for one in runs[name]]
        for name in (kind, _BESIDE)
    }
    return {
        f"{rate}_ratio": statistics.median(
            one[rate] / other[rate] for one, other in zip(said[kind], said[_BESIDE], strict=True)
        )
        for rate in ("prefill", "decode")
    }


def _table(models: Mapping[str, Any]) -> list[str]:
    first = next(iter(models.values()))
    used = [f"{case['prompt']} used: prefill / decode | times fp32" for case in first["cases"]]
    lines = [f"| {' | '.join(['', 'cache', *used])} |", "| --- " * (2 + 2 * len(used)) + "|"]
    for model in models.values():
        for kind, nbytes in model["cache_bytes"].items():
            share = nbytes / model["cache_bytes"][_BESIDE]
            cells = [f"{model['title']}, {kind}", f"{nbytes / 1e6:.0f} MB ({share:.0%})"]
            for case in model["cases"]:
                figures = case["types"][kind]
                cells.append(f"{figures['prefill']:.0f} / {figures['decode']:.1f}")
                cells.append(f"{figures['prefill_ratio']:.2f} / {figures['decode_ratio']:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    guarded(main)
