"""What each scheme costs and gives: size, perplexity, distance from the source in float, speed.

    venv/bin/python -m benchmarks.quality | tee RESULT.txt   # an hour, and the first time one more
                                                             # for litert-torch's exports
    venv/bin/python -m benchmarks.quality --only smollm2-135m --peers "" --text SHORT.txt
    venv/bin/python -m benchmarks.quality --only smollm2-135m --scheme dynamic_int8,ffn=fp16

Real weights: SmolLM2-135M-Instruct and Gemma 3 270M. The reference is the fp32 bundle of the same
source. llama.cpp's weights are measured in our fp32 graph, so what they lose to its own int8
activations is not counted against them. In chats (`benchmarks.answers`) the reference's own answers
are compared token by token. Speeds are taken at the end, in turn. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
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

from benchmarks import answers, peers
from benchmarks.engine import THREADS
from benchmarks.measure import Run, commit, guarded, in_turn, machine, note, run
from benchmarks.run import CACHE_LENGTH, LITERT_TORCH_LADDER, MODELS, best, engine_runs
from converter.version import __version__
from converter.weights.quantization import SCHEMES
from runner.engine import Model
from runner.evaluation import (
    TEXT,
    compared_tokens,
    graph_logits,
    measure_divergence,
    measure_perplexity,
)
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "litert-lm-cli"
REFERENCE = "fp32"
# Beside the schemes: parts, and what clipping is worth.
_VARIANTS = {
    "dynamic_int8,ffn=dynamic_int4": ("dynamic_int8,ffn=dynamic_int4", "mse"),
    "dynamic_int4,embedding=dynamic_int4": ("dynamic_int4,embedding=dynamic_int4", "mse"),
    "dynamic_int4 --clip max": ("dynamic_int4", "max"),
}
_SUBJECTS = {name: (name, "mse") for name in SCHEMES if name != REFERENCE} | _VARIANTS
_LLAMA_CPP = ("Q8_0", "Q4_0")
_PEERS = ("litert-torch", "llama.cpp")
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
            bench = _Bench(name, Path(work), text, args.positions)
            subjects = {scheme: (scheme, "mse") for scheme in args.scheme or ()}
            document["models"][name] = bench.measure(
                subjects or _SUBJECTS, [] if subjects else args.peers
            )
    document["conversion"] = {} if args.scheme else _conversion_times()
    print(table(document))
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


def table(document: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| | size | perplexity | KL divergence, mean | same likeliest token | the same in chats "
        "| right of 8 | core ms per token | prefill / decode |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in document["models"].values():
        lines.append(f"| **{model['title']}** | | | | | | | | |")
        for name, found in model["subjects"].items():
            rates = "" if found["prefill"] is None else f"{found['prefill']:.0f}"
            rates += "" if found["prefill"] is None else f" / {found['decode']:.1f}"
            lines.append(
                f"| {name} | {found['bytes'] / 1e6:.0f} MB | {found['perplexity']:.2f} "
                f"| {found['kl_mean']:.4f} | {found['top1_agreement']:.1%} | {_chat(found)} "
                f"| {found['core_ms']:.1f} | {rates} |"
            )
        for peer, why in model["left_out"].items():
            lines.append(f"| {peer} | {why} | | | | | | | |")
    if document["conversion"]:
        lines += ["", "| Qwen3-0.6B shape, BF16 | conversion | |", "|---|---|---|"]
    for name, found in document["conversion"].items():
        lines.append(f"| {name} | {found['seconds']:.2f} s | {found['times']:.1f} x |")
    return "\n".join(lines)


def _chat(found: dict[str, Any]) -> str:
    """Two cells: what a model's chats kept, and its right answers."""
    if found["chat"] is None:
        return "| "
    chat = found["chat"]
    agreement = f"{chat['kl_mean']:.4f}, {chat['top1_agreement']:.1%}"
    return f"{agreement} | {chat['right']}"


class _Bench:
    """One model; what it needs is made in `work`."""

    def __init__(self, name: str, work: Path, text: str, positions: int) -> None:
        self.name = name
        self.model = MODELS[name]
        self.work = work
        self.text = text
        self.positions = positions
        assert self.model.gguf is not None
        self.source = real_model(self.model.gguf)
        self.subjects: dict[str, dict[str, Any]] = {}
        self.running: dict[str, Path] = {}
        self.tokens: list[int] = []
        # Of the reference: what it says in chats, and its logits there and in the text.
        self.said: answers.Answers | None = None
        self.turns: list[answers.Turn] = []
        self.turn_logits: np.ndarray | None = None
        self.logits: np.ndarray | None = None
        self.reference = self.convert(self.source, REFERENCE, REFERENCE)

    def measure(
        self, subjects: dict[str, tuple[str, str]], wanted: Sequence[str]
    ) -> dict[str, Any]:
        """Figures of the reference, of other subjects (a scheme and `--clip`), and of peers."""
        left_out: dict[str, str] = {}
        self.figures(REFERENCE, self.reference)
        for label, (scheme, clip) in subjects.items():
            try:
                bundle = self.convert(self.source, scheme, label, "--clip", clip)
            except subprocess.CalledProcessError as error:  # blocks that do not divide its rows
                left_out[label] = str(error.stderr).strip()
                continue
            self.figures(label, bundle)
        for peer, measure in (("litert-torch", self.litert_torch), ("llama.cpp", self.llama_cpp)):
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
            if not self.tokens:  # the reference comes first
                self.tokens = compared_tokens(model, self.text)[: self.positions]
        if self.logits is None:
            self.logits = np.stack(list(graph_logits(bundle, self.tokens)))
        divergence = measure_divergence(bundle, self.logits, self.tokens)
        found: dict[str, Any] = {
            "bytes": bundle.stat().st_size,
            "perplexity": perplexity.perplexity,
            "tokens": perplexity.tokens,
            "kl_mean": divergence.kl_mean,
            "kl_max": divergence.kl_max,
            "top1_agreement": divergence.top1_agreement,
            "positions": divergence.positions,
            "chat": self.chat(bundle),
            "core_ms": answers.core_milliseconds(bundle),
            "prefill": None,
            "decode": None,
        }
        print(json.dumps({label: found}), file=sys.stderr, flush=True)
        self.subjects[label] = found
        if runs:
            self.running[label] = bundle
        return found

    def chat(self, bundle: Path) -> dict[str, Any] | None:
        """What a bundle says beside the reference, which comes first; None for a base model."""
        with Model(bundle, threads=THREADS) as model:
            if not model.is_chat:
                return None
            said = answers.answer(model)
            if self.said is None:
                self.said, self.turns = said, answers.turns(model, said)
        if self.turn_logits is None:
            self.turn_logits = np.stack(list(answers.turn_logits(bundle, self.turns)))
        found = answers.turn_divergence(bundle, self.turn_logits, self.turns)
        same = sum(ours == theirs for ours, theirs in zip(said.said, self.said.said, strict=True))
        return asdict(found) | {"right": said.right, "same": same, "asked": len(said.said)}

    def speeds(self) -> None:
        """All bundles in turn, the best of the rounds."""
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
        for kind in _LLAMA_CPP:
            gguf = self.work / f"{kind}.gguf"
            run([quantize, "--allow-requantize", self.source, gguf, kind, str(THREADS)])
            bundle = self.convert(gguf, REFERENCE, f"llama-{kind}")
            label = f"llama.cpp {kind} (its weights in our fp32 graph)"
            self.figures(label, bundle, runs=False)["bytes"] = gguf.stat().st_size
            bundle.unlink()


if __name__ == "__main__":
    guarded(main)
