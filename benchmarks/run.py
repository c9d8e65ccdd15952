"""How fast models run: prefill and decode against the context used, ours and others side by side.

    venv/bin/python -m benchmarks.run | tee RESULT.txt    # all of it: an hour, and the first time
                                                          # two more for litert-torch's exports
    venv/bin/python -m benchmarks.run --quick             # a minute: ours against the plain graph
    venv/bin/python -m benchmarks.run --only gemma3-270m --peers llama.cpp --rounds 3

Every figure is a process of its own, with two threads; subjects take turns, and the best of the
rounds counts: what disturbs a shared machine only ever slows it down. The machine's read bandwidth
is measured between them, because reading the weights is the least that a decoded token costs. The
last line is one JSON document; `benchmarks.plot` makes the table and the plot of it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.checkpoints import SHAPES
from benchmarks.engine import THREADS
from benchmarks.measure import Run, commit, guarded, in_turn, machine, note, run
from benchmarks.run_report import tables
from benchmarks.sources import GEMMA3_270M, SMOLLM2_135M
from converter.options import DEFAULT_CACHE_LENGTH
from converter.registry import family_of
from converter.version import __version__
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "litert-lm-cli"
QUANTIZE = "dynamic_int8"
CACHE_LENGTH = 4096
LONG_CACHE_LENGTH = 32768
PEERS = ("litert-torch", "llama.cpp")
# Ours, as `convert` makes them.
OURS: dict[str, tuple[str, ...]] = {
    "ours": ("--quantize", QUANTIZE),
    "ours, int8 cache": ("--quantize", QUANTIZE, "--kv-cache", "int8"),
    "ours, int4": ("--quantize", "dynamic_int4"),
    "plain": ("--quantize", QUANTIZE, "--target", "gpu"),
}
# llama.cpp's types of weights, and options of its benchmark; its cache is f16 otherwise.
LLAMA_CPP: dict[str, tuple[str, tuple[str, ...]]] = {
    "llama.cpp": ("Q8_0", ()),
    "llama.cpp, q8_0 cache": ("Q8_0", ("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "1")),
    "llama.cpp, Q4_0": ("Q4_0", ()),
    "llama.cpp, Q4_K_M": ("Q4_K_M", ()),
}
# A prompt of 200 tokens is three calls with these and with ours; each rung makes its export longer.
LITERT_TORCH_LADDER = (8, 64, 128, 256, 512, 1024)
_PACKAGES = ("litert-lm-api", "ai-edge-litert")
_TIMEOUT = 1800.0
# What --quick must find at least, ours over the plain graph: about half of what it finds.
_QUICK = {"prefill": 1.5, "decode": 1.25}


@dataclass(frozen=True)
class Model:
    """What is run.

    Attributes:
        config: as in config.json.
        make: arguments of `benchmarks.sources` that make its folder.
        cases: prompt tokens and new tokens, with a KV cache of `CACHE_LENGTH`.
        gguf: the real GGUF of the same weights, where the folder was made from one.
        long_cases: prompt and new tokens with `LONG_CACHE_LENGTH`: the first one beside the default
            length, the others beside llama.cpp.
    """

    title: str
    config: dict[str, Any]
    make: tuple[str, ...]
    cases: tuple[tuple[int, int], ...]
    gguf: str | None = None
    long_cases: tuple[tuple[int, int], ...] = ()

    def only(self, prompts: str | None) -> Model:
        """The model with some of its cases."""
        if prompts is None:
            return self
        wanted = [int(count) for count in prompts.split(",")]
        return replace(
            self,
            cases=tuple(case for case in self.cases if case[0] in wanted),
            long_cases=tuple(case for case in self.long_cases if case[0] in wanted),
        )

    @property
    def bytes_per_token(self) -> int:
        """Of the weights that a decoded token reads, in int8 with a float32 scale per row."""
        spec = family_of(self.config).spec()
        matrices = [(path, s) for path, s in spec.weight_shapes() if len(s) == 2]
        if not spec.tied_head:  # one row of it is looked up
            matrices = [(path, s) for path, s in matrices if path != "embedding"]
        return sum(int(np.prod(shape)) + 4 * shape[0] for _, shape in matrices)


MODELS = {
    "gemma3-270m": Model(
        "Gemma 3 270M",
        GEMMA3_270M,
        ("gemma3-270m",),
        ((50, 64), (200, 200), (1000, 64), (3000, 64)),
        "gemma3-270m-q4_k_m.gguf",
        ((200, 64), (30000, 32)),
    ),
    "qwen3-0.6b": Model(
        "Qwen3-0.6B shape",
        SHAPES["qwen3-0.6b"],
        ("shape", "qwen3-0.6b"),
        ((50, 32), (200, 64), (1000, 32), (1800, 32)),
        long_cases=((200, 64),),
    ),
    "smollm2-135m": Model(
        "SmolLM2-135M",
        SMOLLM2_135M,
        ("smollm2-135m",),
        ((50, 64), (200, 200), (1000, 64), (3000, 64)),
        "smollm2-135m-instruct-q4_1.gguf",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only guard against getting slower")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--only", action="append", choices=MODELS, help="may be given again")
    parser.add_argument(
        "--prompts", metavar="N,N", help="only cases of so many prompt tokens (default: all)"
    )
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        type=lambda names: [name for name in names.split(",") if name],
        help="comma-separated (default: all)",
    )
    args = parser.parse_args()
    if args.quick:
        sys.exit(_quick())
    document: dict[str, Any] = {
        "benchmark": "run",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine(*_PACKAGES),
        "peers": {**peers.VERSIONS, "llama.cpp": peers.LLAMA_CPP_SOURCE},
        "job": {"quantize": QUANTIZE, "kv_cache_max_len": CACHE_LENGTH, "threads": THREADS},
        "rounds": args.rounds,
        "models": {},
    }
    for name in args.only or MODELS:
        with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
            bench = _Bench(name, MODELS[name].only(args.prompts), Path(work), args.rounds)
            document["models"][name] = bench.measure(args.peers)
    print(tables(document))
    print(json.dumps(document))


def _quick() -> int:
    """Exit code 1 where ours is hardly faster than the plain graph any more."""
    model = MODELS["smollm2-135m"]
    with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
        bench = _Bench("smollm2-135m", model, Path(work), rounds=3)
        assert model.gguf is not None
        bench.source = real_model(model.gguf)
        subjects = {name: engine_runs(bench.convert(name)) for name in ("ours", "plain")}
        [case] = bench.cases(((200, 64),), subjects)
    ours, plain = case["subjects"]["ours"], case["subjects"]["plain"]
    ratios = {rate: ours[rate] / plain[rate] for rate in _QUICK}
    said = [f"{rate} {ratios[rate]:.2f} x (at least {least} x)" for rate, least in _QUICK.items()]
    print(f"ours over the plain graph: {', '.join(said)}", file=sys.stderr)
    print(json.dumps({"benchmark": "run --quick", "machine": machine(*_PACKAGES), **ratios}))
    return int(any(ratios[rate] < least for rate, least in _QUICK.items()))


# Runs a model with so many prompt tokens and new tokens.
Measure = Callable[[int, int], Run]


class _Bench:
    """Everything about one model; what it needs is made in `work`."""

    def __init__(self, name: str, model: Model, work: Path, rounds: int) -> None:
        self.name = name
        self.model = model
        self.work = work
        self.rounds = rounds
        self.source = work / name
        self.bandwidths: list[float] = []

    def measure(self, wanted: Sequence[str]) -> dict[str, Any]:
        note(f"{self.model.title}: making its files")
        make_files(*self.model.make, self.source)
        subjects = {name: engine_runs(self.convert(name)) for name in OURS}
        left_out = {}
        for peer, make in (("litert-torch", self.litert_torch), ("llama.cpp", self.llama_cpp)):
            if peer in wanted:
                try:
                    subjects |= make()
                except peers.PeerUnavailableError as reason:
                    left_out[peer] = str(reason)
        result = {
            "title": self.model.title,
            "bytes_per_token": self.model.bytes_per_token,
            "left_out": left_out,
            "cases": self.cases(self.model.cases, subjects),
        }
        if self.model.long_cases:
            lengths = DEFAULT_CACHE_LENGTH, LONG_CACHE_LENGTH
            ours = {str(c): engine_runs(self.convert("ours", c)) for c in lengths}
            short, *rest = self.model.long_cases
            result["allocated"] = self.cases((short,), ours)[0]
            others = {"ours": ours[str(LONG_CACHE_LENGTH)]}
            if "llama.cpp" in subjects:
                others["llama.cpp"] = subjects["llama.cpp"]
            result["long_cases"] = self.cases(tuple(rest), others, rounds=1)
        result["read_gb_per_second"] = max(self.bandwidths)
        return result

    def cases(
        self,
        cases: Sequence[tuple[int, int]],
        subjects: dict[str, Measure],
        rounds: int | None = None,
    ) -> list[dict[str, Any]]:
        """All subjects in turn, for each case."""
        results = []
        for prompt, new in cases:
            note(f"{self.model.title}: {prompt} + {new} tokens, {', '.join(subjects)}")
            self.bandwidths += [_read_bandwidth() for _ in range(3)]
            runs = in_turn(
                {n: lambda m=m, p=prompt, d=new: m(p, d) for n, m in subjects.items()},  # type: ignore[misc]
                rounds or self.rounds,
                warm_up=False,  # the best counts
            )
            figures = {name: best(measured) for name, measured in runs.items()}
            results.append({"prompt": prompt, "new": new, "subjects": figures})
            # An hour's figures outlive a run that is cut off.
            print(json.dumps({self.name: results[-1]}), file=sys.stderr, flush=True)
        return results

    def convert(self, name: str, cache_length: int = CACHE_LENGTH) -> Path:
        """One of our bundles."""
        output = self.work / f"{name}-{cache_length}"
        options = [*OURS[name], "--kv-cache-max-len", str(cache_length)]
        run([CLI, "convert", self.source, "--output-dir", output, "--quiet", *options])
        [bundle] = output.glob("*.litertlm")
        return bundle

    def litert_torch(self) -> dict[str, Measure]:
        note(f"{self.model.title}: litert-torch's export, unless it is there")
        bundle = peers.litert_torch_bundle(
            self.name, self.source, LITERT_TORCH_LADDER, CACHE_LENGTH
        )
        return {"litert-torch": engine_runs(bundle)}

    def llama_cpp(self) -> dict[str, Measure]:
        return llama_cpp_runs(self.model, self.source, self.work, LLAMA_CPP)


def llama_cpp_runs(
    model: Model, folder: Path, work: Path, wanted: Mapping[str, tuple[str, Sequence[str]]]
) -> dict[str, Measure]:
    """Measures llama.cpp with a model, by types of weights and options of its benchmark.

    Args:
        folder: of the model, for which there may be no GGUF yet.
        work: a folder for files.

    Raises:
        PeerUnavailableError: it cannot be built here.
    """
    if model.gguf is None:
        source = work / "source.gguf"
        make_files("gguf", folder, source)
    else:
        source = real_model(model.gguf)
    programs = peers.llama_cpp_programs()
    measures = {}
    for name, (weights, options) in wanted.items():
        output = work / f"{weights}.gguf"
        if not output.exists():
            quantize: list[str | Path] = [
                programs / "llama-quantize",
                "--allow-requantize",
                source,
                output,
                weights,
            ]
            run([*quantize, str(THREADS)])
        bench: list[str | Path] = [
            programs / "llama-bench",
            "-m",
            output,
            "-t",
            str(THREADS),
            "-r",
            "1",
            *options,
        ]
        measures[name] = _llama_cpp_measure(bench)
    return measures


def _llama_cpp_measure(bench: Sequence[str | Path]) -> Measure:
    def measure(prompt: int, new: int) -> Run:
        # The second test decodes behind a prompt that it has prefilled, as the engine does.
        options = ["-oe", "jsonl", "-p", str(prompt), "-n", "0"]
        prefill = run([*bench, *options], timeout=_TIMEOUT)
        options = ["-oe", "jsonl", "-p", "0", "-n", str(new), "-d", str(prompt)]
        decode = run([*bench, *options], timeout=_TIMEOUT)
        rates = {"prefill": _llama_rate(prefill), "decode": _llama_rate(decode)}
        peak = max(prefill.peak_bytes, decode.peak_bytes)
        return Run(prefill.seconds + decode.seconds, peak, json.dumps(rates))

    return measure


def engine_runs(bundle: Path) -> Measure:
    """Measures a bundle in Google's engine."""

    def measure(prompt: int, new: int) -> Run:
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.engine", bundle]
        return run([*command, str(prompt), str(new)], {"PYTHONPATH": str(ROOT)}, timeout=_TIMEOUT)

    return measure


def best(runs: Sequence[Run]) -> dict[str, float]:
    """The best rates, the median ones, and the largest memory."""
    figures: dict[str, float] = {"peak_mib": max(one.peak_bytes for one in runs) / 2**20}
    said = [json.loads(one.said.strip().splitlines()[-1]) for one in runs]
    for rate in ("prefill", "decode"):
        figures[rate] = max(one[rate] for one in said)
        figures[f"{rate}_median"] = statistics.median(one[rate] for one in said)
    return figures


def _llama_rate(measured: Run) -> float:
    line = next(line for line in measured.said.splitlines() if line.startswith("{"))
    return float(json.loads(line)["avg_ts"])


def _read_bandwidth(nbytes: int = 1 << 28) -> float:
    """GB per second that two threads read from memory, each its own half.

    They look for a byte that is not there: the C library does so as fast as memory gives.
    """
    memory = np.zeros(nbytes, np.uint8)
    memory.fill(1)
    find = ctypes.CDLL(None).memchr
    find.argtypes, find.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    part = nbytes // THREADS
    threads = [
        threading.Thread(target=find, args=(memory.ctypes.data + i * part, 0, part))
        for i in range(THREADS)
    ]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return nbytes / (time.perf_counter() - begin) / 1e9


def make_files(*arguments: str | Path) -> None:
    """A model's files, by `benchmarks.sources`."""
    run([sys.executable, "-m", "benchmarks.sources", *arguments], {"PYTHONPATH": str(ROOT)})


if __name__ == "__main__":
    guarded(main)
