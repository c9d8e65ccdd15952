"""What a long context costs before it is used: the same model with short and with long caches.

    venv/bin/python -m benchmarks.contexts                    # Qwen3-0.6B's shape, seven minutes
    venv/bin/python -m benchmarks.contexts --only smollm2-135m --lengths 1280,8192

The engine fills all caches of a chat with zeros before it begins; `run` and `serve` give back what
no token is in. Each length is loaded in processes of its own, in turn with the others, once as the
engine leaves it and once given back: a prompt of 200 tokens is read and 64 tokens are said in each
of three chats, which stay. Memory is the process's own (RssAnon), speed that of the second answer
of the first chat. Medians. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import litert_lm

from benchmarks.engine import THREADS
from benchmarks.measure import Run, commit, guarded, in_turn, machine, note, run
from benchmarks.run import CLI, LONG_CACHE_LENGTH, MODELS, QUANTIZE, ROOT, make_files
from converter.options import DEFAULT_CACHE_LENGTH
from converter.version import __version__
from runner import zero_pages

_PROMPT, _NEW, _CHATS = 200, 64, 3
_WAYS = ("as the engine leaves it", "given back")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=MODELS, default="qwen3-0.6b", help="default: %(default)s")
    lengths = f"{DEFAULT_CACHE_LENGTH},{LONG_CACHE_LENGTH}"
    parser.add_argument("--lengths", default=lengths, help="of caches, default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--one", nargs=2, metavar=("BUNDLE", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        bundle, way = args.one
        print(json.dumps(_measure(bundle, way == _WAYS[1])), file=sys.stderr)
        return
    subjects = {}
    with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as folder:
        work = Path(folder)
        source = work / args.only
        note(f"{MODELS[args.only].title}: making its files")
        make_files(*MODELS[args.only].make, source)
        for length in args.lengths.split(","):
            output = work / length
            options = ["--quantize", QUANTIZE, "--kv-cache-max-len", length]
            run([CLI, "convert", source, "--output-dir", output, "--quiet", *options])
            [bundle] = output.glob("*.litertlm")
            for way in _WAYS:
                subjects[f"{length}, {way}"] = partial(_process, bundle, way)
        runs = in_turn(subjects, args.rounds)
    results = {}
    for name, measured in runs.items():
        said = [json.loads(one.said.strip().splitlines()[-1]) for one in measured]
        results[name] = {key: statistics.median(one[key] for one in said) for key in said[0]}
        print(f"{name}: {results[name]}")
    document = {"benchmark": "contexts", "version": __version__, "commit": commit()}
    job = {"model": args.only, "prompt": _PROMPT, "new": _NEW, "rounds": args.rounds}
    print(json.dumps({**document, **job, "machine": machine("litert-lm-api"), "results": results}))


def _process(bundle: Path, way: str) -> Run:
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.contexts", "--one", bundle, way]
    return run(command, {"PYTHONPATH": str(ROOT)})


def _measure(bundle: str, gives_back: bool) -> dict[str, float]:
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    result: dict[str, float] = {}

    def settle(what: str) -> None:
        if gives_back:
            begin = time.perf_counter()
            zero_pages.give_back()
            result[f"giving back, {what}: ms"] = 1000 * (time.perf_counter() - begin)
        result[f"{what}: MiB"] = _own_memory()

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as cache:
        backend = litert_lm.Backend.CPU(thread_count=THREADS)
        engine = litert_lm.Engine(bundle, backend=backend, cache_dir=cache, enable_benchmark=True)
    result["load: s"] = time.perf_counter() - begin
    settle("loaded")
    settings: dict[str, Any] = {"apply_prompt_template": False, "max_output_tokens": _NEW}
    chats = []
    for number in range(_CHATS):
        chat = engine.create_session(**settings)
        chats.append(chat)
        begin = time.perf_counter()
        chat.run_prefill([" a" * _PROMPT])
        result[f"prompt of chat {number + 1}: s"] = time.perf_counter() - begin
        chat.run_decode()
        settle(f"chat {number + 1}")
        if number == 0:
            chat.run_prefill([" b"])
            chat.run_decode()
            info = chat.get_benchmark_info()
            result["decode: tokens/s"] = info.last_decode_tokens_per_second
    for chat in chats:
        chat.close()
    engine.close()
    return result


def _own_memory() -> float:
    """MiB of this process that are no file's (Linux)."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


if __name__ == "__main__":
    guarded(main)
