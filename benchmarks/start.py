"""What a user waits for before the first word: loading, the first prompt, prompts of any length.

    venv/bin/python -m benchmarks.start BUNDLE... [--cache temporary|kept|none] [--tokens 8,40,62]

Each bundle is loaded in processes of its own, in turn with the others; the best of the rounds
counts. The last line is one JSON document: seconds to load, peak memory, and for each number of
tokens the seconds to the first new token, the first time and later.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import litert_lm

from benchmarks.engine import THREADS
from benchmarks.measure import Run, commit, in_turn, machine, run

CACHES = ("temporary", "kept", "none")
_LATER = 4  # calls after the first


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--cache", choices=CACHES, default="temporary", help="of packed weights")
    parser.add_argument("--tokens", default="8,40,62,200", help="lengths of prompts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", metavar="CACHE_DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    tokens = [int(count) for count in args.tokens.split(",")]
    if args.one:
        print(json.dumps(_measure(args.bundles[0], args.one, tokens)), file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as kept:

        def measure(bundle: Path) -> Run:
            with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as temporary:
                folders = {"temporary": temporary, "kept": kept, "none": ":nocache"}
                command: list[str | Path] = [sys.executable, "-m", "benchmarks.start", bundle]
                command += ["--one", folders[args.cache], "--tokens", args.tokens]
                root = Path(__file__).resolve().parent.parent
                return run(command, {"PYTHONPATH": str(root)})

        runs = in_turn(
            {str(b): lambda b=b: measure(b) for b in args.bundles},  # type: ignore[misc]
            args.rounds,
        )
    results = {}
    for bundle, measured in runs.items():
        said = [json.loads(one.said.strip().splitlines()[-1]) for one in measured]
        results[bundle] = {
            "load": min(one["load"] for one in said),
            "peak_mib": max(one.peak_bytes for one in measured) / 2**20,
            "first": {str(n): min(one["first"][str(n)] for one in said) for n in tokens},
            "later": {str(n): min(one["later"][str(n)] for one in said) for n in tokens},
        }
        print(f"{bundle}: {results[bundle]}", file=sys.stderr)
    document = {"benchmark": "start", "commit": commit(), "cache": args.cache}
    print(json.dumps({**document, "machine": machine("litert-lm-api"), "bundles": results}))


def _measure(bundle: Path, cache_dir: str, tokens: list[int]) -> dict[str, Any]:
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    begin = time.perf_counter()
    backend = litert_lm.Backend.CPU(thread_count=THREADS)
    engine = litert_lm.Engine(str(bundle), backend=backend, cache_dir=cache_dir)
    result: dict[str, Any] = {"load": time.perf_counter() - begin, "first": {}, "later": {}}
    greedy = litert_lm.SamplerConfig(top_k=1, temperature=1.0)
    for count in tokens:
        text = " a" * count  # one token each, in the tokenizers seen
        times = []
        for _ in range(1 + _LATER):
            session = engine.create_session(
                apply_prompt_template=False, max_output_tokens=1, sampler_config=greedy
            )
            begin = time.perf_counter()
            session.run_prefill([text])
            session.run_decode()
            times.append(time.perf_counter() - begin)
            session.close()
        result["first"][str(count)] = times[0]
        result["later"][str(count)] = min(times[1:])
    engine.close()
    return result


if __name__ == "__main__":
    main()
