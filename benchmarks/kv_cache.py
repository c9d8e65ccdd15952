"""What a KV cache in int8 and fp16 costs and gives beside one in fp32, side by side.

    venv/bin/python -m benchmarks.kv_cache | tee RESULT.txt          # twenty minutes
    venv/bin/python -m benchmarks.kv_cache --only smollm2-135m --rounds 3

Every figure is a process of its own, with two threads; types take turns, and beside them llama.cpp
with Q8_0 weights and caches in f16 and q8_0. Beside each one's best rates stands the median of its
ratios to our fp32 of the same round, which a busy machine disturbs least, and what `inspect` says
of the cache's memory. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import THREADS
from benchmarks.measure import Run, commit, guarded, in_turn, machine, note, run
from benchmarks.peers import LLAMA_CPP_SOURCE, PeerUnavailableError
from benchmarks.run import (
    CACHE_LENGTH,
    CLI,
    LLAMA_CPP,
    MODELS,
    QUANTIZE,
    Measure,
    best,
    engine_runs,
    llama_cpp_runs,
    make_files,
)
from converter.litertlm.inspection import read_bundle
from converter.tflite.kv_cache import CacheType
from converter.version import __version__

# Prompt tokens and new ones.
CASES = ((200, 32), (3000, 32))
_BESIDE = CacheType.FP32
_PEERS = {name: LLAMA_CPP[name] for name in ("llama.cpp", "llama.cpp, q8_0 cache")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: 7")
    parser.add_argument("--only", action="append", choices=MODELS, help="may be given again")
    parser.add_argument("--prompt", type=int, help="only the case of so many prompt tokens")
    parser.add_argument("--no-peers", action="store_true", help="leave llama.cpp out")
    args = parser.parse_args()
    document: dict[str, Any] = {
        "benchmark": "kv_cache",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("litert-lm-api"),
        "llama.cpp": LLAMA_CPP_SOURCE,
        "job": {"quantize": QUANTIZE, "kv_cache_max_len": CACHE_LENGTH, "threads": THREADS},
        "rounds": args.rounds,
        "models": {},
    }
    cases = [case for case in CASES if args.prompt in (None, case[0])]
    for name in args.only or MODELS:
        with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
            document["models"][name] = _measure(name, Path(work), cases, args)
    print("\n".join(_table(document["models"])))
    print(json.dumps(document))


def _measure(
    name: str, work: Path, cases: Sequence[tuple[int, int]], args: argparse.Namespace
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
    measures: dict[str, Measure] = {kind: engine_runs(file) for kind, file in bundles.items()}
    if not args.no_peers:
        try:
            measures |= llama_cpp_runs(model, source, work, _PEERS)
        except PeerUnavailableError as reason:
            result["left_out"] = str(reason)
    for prompt, new in cases:
        note(f"{model.title}: {prompt} + {new} tokens")
        runs = in_turn(
            {n: lambda m=m, p=prompt, d=new: m(p, d) for n, m in measures.items()},  # type: ignore[misc]
            args.rounds,
            warm_up=False,  # the best counts
        )
        figures = {kind: best(measured) | _ratios(runs, kind) for kind, measured in runs.items()}
        result["cases"].append({"prompt": prompt, "new": new, "types": figures})
        print(
            json.dumps({name: result["cases"][-1]}), file=sys.stderr, flush=True
        )  # outlives a cut
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
        fp32 = model["cache_bytes"][_BESIDE]
        for kind in model["cases"][0]["types"]:
            nbytes = model["cache_bytes"].get(kind)
            memory = f"{nbytes / 1e6:.0f} MB ({nbytes / fp32:.0%})" if nbytes else ""
            cells = [f"{model['title']}, {kind}", memory]
            for case in model["cases"]:
                figures = case["types"][kind]
                cells.append(f"{figures['prefill']:.0f} / {figures['decode']:.1f}")
                cells.append(f"{figures['prefill_ratio']:.2f} / {figures['decode_ratio']:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    guarded(main)
