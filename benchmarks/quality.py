"""What each scheme costs and gives: size, perplexity, distance from the source in float, speed.

    venv/bin/python -m benchmarks.quality | tee RESULT.txt   # an hour, and the first time one more
                                                             # for litert-torch's exports
    venv/bin/python -m benchmarks.quality --only smollm2-135m --peers "" --text SHORT.txt
    venv/bin/python -m benchmarks.quality --only smollm2-135m --scheme dynamic_int8,ffn=fp16
    venv/bin/python -m benchmarks.quality --text-alone    # no chats, questions and speeds

Real weights: SmolLM2-135M-Instruct and Gemma 3 270M, in float and on no quantiser's grid
(`benchmarks.anchors`): there everybody begins. The reference is the fp32 bundle of them.
llama.cpp's weights are measured in our fp32 graph, so what they lose to its own int8
activations is not counted against them; its importance matrices are computed from the parts of the
mixed text that are not scored, by which llm-compressor's GPTQ and AWQ calibrate, too. In chats
(`benchmarks.answers`) the reference's own answers are compared token by token. Speeds are taken at
the end, in turn. The last line is one JSON document; `benchmarks.plot` makes the table and the plot
of it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import anchors, answers, peers
from benchmarks.engine import THREADS
from benchmarks.measure import Run, commit, guarded, in_turn, machine, note, run
from benchmarks.quality_report import tables
from benchmarks.run import CACHE_LENGTH, LITERT_TORCH_LADDER, MODELS, best, engine_runs
from converter.version import __version__
from converter.weights.quantization import SCHEMES
from runner.distance import divergence_of
from runner.engine import Model
from runner.evaluation import (
    PART,
    TEXT,
    TEXTS,
    compared_passages,
    graph_logits,
    measure_perplexity,
)
from runner.questions import ask, read_questions
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "litert-lm-cli"
REFERENCE = "fp32"
_CALIBRATED = (
    "dynamic_int8",
    "dynamic_int6",
    "dynamic_int6_a16",
    "dynamic_int4",
    "dynamic_int4_mixed",
    "dynamic_int4,embedding=dynamic_int4",
)
# With which files take at most dynamic_int4's bytes and Q4_K_M's, SmolLM2's and Gemma's; one with
# the embedding and the head in four bits.
_BUDGETS = (
    ("dynamic_int4,embedding=dynamic_int4", "5.2"),
    *(("dynamic_int4,embedding=dynamic_int6_a16", bits) for bits in ("5.2", "6.05", "6.4", "7.3")),
    ("dynamic_int4", "7.3"),
)
# Beside the schemes: parts, what clipping is worth, and what a text is.
_VARIANTS = {
    "dynamic_int8,ffn=dynamic_int4": ("dynamic_int8,ffn=dynamic_int4",),
    "dynamic_int4,embedding=dynamic_int4": ("dynamic_int4,embedding=dynamic_int4",),
    "dynamic_int4 --clip max": ("dynamic_int4", "--clip", "max"),
    **{f"{name} --calibrate self": (name, "--calibrate", "self") for name in _CALIBRATED},
    **{
        f"{scheme} --calibrate self --bits {bits}": (scheme, "--calibrate", "self", "--bits", bits)
        for scheme, bits in _BUDGETS
    },
}
_SUBJECTS: dict[str, tuple[str, ...]] = {
    name: (name,) for name in SCHEMES if name != REFERENCE
} | _VARIANTS
# llama.cpp's schemes, and whether importances are given.
_LLAMA_CPP = (
    ("Q8_0", False),
    ("Q4_0", False),
    ("IQ4_XS", False),
    ("IQ4_XS", True),
    ("IQ4_NL", True),
    ("Q4_K_M", False),
    ("Q4_K_M", True),
)
_PEERS = ("litert-torch", "llama.cpp", "llm-compressor")
_PROMPT, _NEW, _ROUNDS = 200, 64, 3
_TIMED = 5  # rounds of conversions


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [name for name, model in MODELS.items() if model.gguf]
    parser.add_argument("--only", action="append", choices=names, help="may be given again")
    parser.add_argument("--text", type=Path, default=TEXT, metavar="FILE")
    parser.add_argument(
        "--scheme", action="append", help="these alone, and no peers; may be given again"
    )
    parser.add_argument("--positions", type=int, default=512, metavar="N", help="default: 512")
    parser.add_argument(
        "--text-alone", action="store_true", help="leave out chats, questions and speeds"
    )
    parser.add_argument(
        "--peers",
        default=",".join(_PEERS),
        type=lambda names: [name for name in names.split(",") if name],
        help="comma-separated (default: all)",
    )
    args = parser.parse_args()
    document: dict[str, Any] = {
        "benchmark": "quality",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("litert-lm-api", "ai-edge-litert"),
        "peers": peers.VERSIONS,
        "text": args.text.name,
        "models": {},
    }
    text = args.text.read_text(encoding="utf-8")
    for name in args.only or names:
        with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
            bench = _Bench(name, Path(work), text, args.positions, args.text_alone)
            subjects: dict[str, tuple[str, ...]] = {
                scheme: (scheme,) for scheme in args.scheme or ()
            }
            document["models"][name] = bench.measure(
                subjects or _SUBJECTS, [] if subjects else args.peers
            )
    document["conversion"] = {} if args.scheme or args.text_alone else _conversion_times()
    print(tables(document))
    print(json.dumps(document))


def _conversion_times() -> dict[str, dict[str, float]]:
    """Seconds of a whole conversion of Qwen3-0.6B's shape, medians, and times dynamic_int8's."""
    schemes = ("dynamic_int8", "dynamic_int4", "dynamic_int4_block128")
    with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
        folder = Path(work) / "source"
        run([sys.executable, "-m", "benchmarks.sources", "shape", "qwen3-0.6b", folder])

        def convert(scheme: str) -> Run:
            output = Path(work) / scheme
            command: list[str | Path] = [CLI, "convert", folder, "--output-dir", output]
            return run([*command, "--quiet", "--force", "--quantize", scheme])

        runs = in_turn({s: lambda s=s: convert(s) for s in schemes}, _TIMED)  # type: ignore[misc]
    seconds = {s: statistics.median(one.seconds for one in found) for s, found in runs.items()}
    base = seconds["dynamic_int8"]
    return {s: {"seconds": taken, "times": taken / base} for s, taken in seconds.items()}


class _Bench:
    """One model; what it needs is made in `work`."""

    def __init__(self, name: str, work: Path, text: str, positions: int, text_alone: bool) -> None:
        self.name = name
        self.model = MODELS[name]
        self.work = work
        self.text = text
        self.positions = positions
        self.text_alone = text_alone
        assert self.model.gguf is not None
        self.source = work / f"{name}.gguf"
        anchors.write_off_grid(real_model(self.model.gguf), self.source)
        self.subjects: dict[str, dict[str, Any]] = {}
        self.running: dict[str, Path] = {}
        self.passages: list[list[int]] = []
        # Of the reference: what it says in chats, and its logits there and in the text.
        self.said: list[str] | None = None
        self.turns: list[answers.Turn] = []
        self.turn_logits: np.ndarray | None = None
        self.logits: np.ndarray | None = None
        self.reference = self.convert(self.source, REFERENCE, REFERENCE)

    def measure(
        self, subjects: dict[str, tuple[str, ...]], wanted: Sequence[str]
    ) -> dict[str, Any]:
        """Figures of the reference, of other subjects (a scheme and options), and of peers."""
        left_out: dict[str, str] = {}
        self.figures(REFERENCE, self.reference)
        for label, (scheme, *options) in subjects.items():
            try:
                bundle = self.convert(self.source, scheme, label, *options)
            except subprocess.CalledProcessError as error:  # its rows, or a budget, do not fit
                left_out[label] = str(error.stderr).strip()
                continue
            self.figures(label, bundle)
        others = (self.litert_torch, self.llama_cpp, self.llm_compressor)
        for peer, measure in zip(_PEERS, others, strict=True):
            if peer in wanted:
                try:
                    measure()
                except peers.PeerUnavailableError as reason:
                    left_out[peer] = str(reason)
        self.speeds()
        return {"title": self.model.title, "subjects": self.subjects, "left_out": left_out}

    def figures(self, label: str, bundle: Path, runs: bool = True) -> dict[str, Any]:
        """What a bundle kept of its model; its speed too, later, where it `runs` as it is."""
        note(f"{self.model.title}: {label}")
        with Model(bundle, threads=THREADS) as model:
            perplexity = measure_perplexity(model, self.text)
            if not self.passages:  # the reference comes first
                self.passages = compared_passages(model, self.text, self.positions)
        if self.logits is None:
            self.logits = np.stack(list(graph_logits(bundle, *self.passages)))
        divergence = divergence_of(graph_logits(bundle, *self.passages), self.logits)
        found: dict[str, Any] = {
            "bytes": bundle.stat().st_size,
            "perplexity": perplexity.perplexity,
            "tokens": perplexity.tokens,
            **asdict(divergence),
            "chat": None,
            "right": None,
            "core_ms": None,
            "prefill": None,
            "decode": None,
        }
        if not self.text_alone:
            found |= self.chat(bundle)
            found["core_ms"] = answers.core_milliseconds(bundle)
        print(json.dumps({label: found}), file=sys.stderr, flush=True)
        self.subjects[label] = found
        if runs:
            self.running[label] = bundle
        return found

    def chat(self, bundle: Path) -> dict[str, Any]:
        """What a bundle answers, and what it says beside the reference, which comes first."""
        with Model(bundle, threads=THREADS) as model:
            right = sum(ask(model, read_questions()))
            if not model.is_chat:
                return {"right": right}
            said = answers.answer(model)
            if self.said is None:
                self.said, self.turns = said, answers.turns(model, said)
        if self.turn_logits is None:
            self.turn_logits = np.stack(list(answers.turn_logits(bundle, self.turns)))
        found = answers.turn_divergence(bundle, self.turn_logits, self.turns)
        same = sum(ours == theirs for ours, theirs in zip(said, self.said, strict=True))
        return {"right": right, "chat": asdict(found) | {"same": same, "asked": len(said)}}

    def speeds(self) -> None:
        """All bundles in turn, the best of the rounds."""
        if self.text_alone:
            return
        note(f"{self.model.title}: speed of {len(self.running)}")
        timed = {label: engine_runs(bundle) for label, bundle in self.running.items()}
        calls = {n: lambda m=m: m(_PROMPT, _NEW) for n, m in timed.items()}
        for label, measured in in_turn(calls, _ROUNDS, warm_up=False).items():
            rates = best(measured)
            self.subjects[label] |= {rate: rates[rate] for rate in ("prefill", "decode")}

    def convert(self, source: Path, scheme: str, label: str, *options: str) -> Path:
        output = self.work / label.replace(" ", "_")
        command: list[str | Path] = [CLI, "convert", source, "--output-dir", output, "--quiet"]
        run([*command, "--quantize", scheme, *options])
        [bundle] = output.glob("*.litertlm")
        return bundle

    def litert_torch(self) -> None:
        folder = self.work / "folder"
        run([sys.executable, "-m", "benchmarks.sources", *self.model.make, folder])
        for recipe in (peers.LITERT_TORCH_INT8, peers.LITERT_TORCH_INT4):
            bundle = peers.litert_torch_bundle(
                self.name, folder, LITERT_TORCH_LADDER, CACHE_LENGTH, recipe
            )
            self.figures(f"litert-torch {recipe}", bundle)

    def llama_cpp(self) -> None:
        quantize = peers.llama_cpp_programs() / "llama-quantize"
        importances = self.importances()
        for kind, has_importances in _LLAMA_CPP:
            label = f"llama.cpp {kind}{', imatrix' if has_importances else ''}"
            gguf = self.work / "llama.gguf"
            options: list[str | Path] = ["--imatrix", importances] if has_importances else []
            run([quantize, *options, self.source, gguf, kind, str(THREADS)])
            bundle = self.convert(gguf, REFERENCE, "llama")
            self.figures(label, bundle, runs=False)["bytes"] = gguf.stat().st_size
            bundle.unlink()

    def llm_compressor(self) -> None:
        """GPTQ and AWQ; the matrices of layers alone, so that the embedding is larger than ours."""
        folder, chunks = self.calibration
        tokens = self.work / "tokens.json"
        tokens.write_text(json.dumps(chunks), encoding="utf-8")
        for method in ("GPTQ", "AWQ"):
            output = self.work / method
            run(peers.llm_compressor_command(folder, tokens, method, output))
            bundle = self.convert(output, REFERENCE, f"{method}-in-float")
            [weights] = output.glob("*.safetensors")
            label = f"{method}, blocks of 32"
            self.figures(label, bundle, runs=False)["bytes"] = weights.stat().st_size
            bundle.unlink()

    @functools.cached_property
    def calibration(self) -> tuple[Path, list[list[int]]]:
        """The model as transformers reads it, and tokens of the mixed text's parts not scored."""
        folder = self.work / "weights"
        run([sys.executable, "-m", "benchmarks.sources", *self.model.make, folder, self.source])
        _, *parts = TEXTS.read_text(encoding="utf-8").split(PART)
        return folder, anchors.calibration_tokens(folder, "".join(parts))

    def importances(self) -> Path:
        """An importance matrix from that text."""
        output = self.work / "imatrix.gguf"
        anchors.write_importances(*self.calibration, output)
        return output


if __name__ == "__main__":
    guarded(main)
