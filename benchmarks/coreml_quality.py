"""What each palette of a Core ML package costs: size, perplexity, distance from the source.

    venv/bin/python -m benchmarks.coreml_quality | tee RESULT.txt    # twenty minutes
    venv/bin/python -m benchmarks.coreml_quality --only smollm2-135m --lut 4,8 --text SHORT.txt

The same real weights, text and positions as in `benchmarks.quality`, and the same reference, so
that figures stand beside those of schemes. numpy runs the packages as ANEMLL's runtimes would, each
result rounded to float16 (`runner.mlprogram`): no figure is from a Neural Engine. Gemma 3's numbers
exceed float16, so that it is converted with `--fp16-scale auto`. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import THREADS
from benchmarks.measure import commit, guarded, machine, note, run
from benchmarks.run import MODELS
from converter.version import __version__
from runner import coreml_evaluation
from runner.coreml_model import CoreMLModel
from runner.engine import Model
from runner.evaluation import TEXT, compared_passages, graph_logits, measure_perplexity
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "litert-lm-cli"
# Of layers and head; the embedding stays float16, as it does by default.
_SUBJECTS = {
    "float16": ("none", "none"),
    "8 bits, groups of 8": ("8,8", "8,8"),
    "6 bits, groups of 8": ("6,8", "6,8"),
    "4 bits, groups of 8; head 6 bits (default)": ("4,8", "6,8"),
    "4 bits, groups of 4; head 6 bits": ("4,4", "6,8"),
    "4 bits, groups of 16; head 6 bits": ("4,16", "6,8"),
    "4 bits, groups of 8": ("4,8", "4,8"),
}
_OPTIONS = {"gemma3-270m": ("--fp16-scale", "auto")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [name for name, model in MODELS.items() if model.gguf]
    parser.add_argument("--only", action="append", choices=names, help="may be given again")
    parser.add_argument("--text", type=Path, default=TEXT, metavar="FILE")
    parser.add_argument(
        "--lut", action="append", metavar="BITS[,GROUP]", help="these alone; may be given again"
    )
    parser.add_argument("--positions", type=int, default=256, metavar="N", help="default: 256")
    args = parser.parse_args()
    subjects = {lut: (lut, lut) for lut in args.lut or ()} or _SUBJECTS
    document: dict[str, Any] = {
        "benchmark": "coreml_quality",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("numpy", "litert-lm-api", "ai-edge-litert"),
        "text": args.text.name,
        "models": {},
    }
    text = args.text.read_text(encoding="utf-8")
    for name in args.only or names:
        document["models"][name] = {
            "title": MODELS[name].title,
            "subjects": measure(name, text, args.positions, subjects),
        }
    print(table(document))
    print(json.dumps(document))


def table(document: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| | size | perplexity | KL divergence, mean | same likeliest token |",
        "|---|---|---|---|---|",
    ]
    for model in document["models"].values():
        lines.append(f"| **{model['title']}** | | | | |")
        lines += [
            f"| {label} | {found['bytes'] / 1e6:.0f} MB | {found['perplexity']:.2f} "
            f"| {found['kl_mean']:.4f} | {found['top1_agreement']:.1%} |"
            for label, found in model["subjects"].items()
        ]
    return "\n".join(lines)


def measure(
    name: str, text: str, positions: int, subjects: dict[str, tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """Figures of one model: of each subject, a palette for layers and one for the head."""
    assert MODELS[name].gguf is not None
    source = real_model(str(MODELS[name].gguf))
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
        bundle = _convert(source, Path(work) / "fp32", "--quantize", "fp32")
        [bundle] = bundle.glob("*.litertlm")
        with Model(bundle, threads=THREADS) as model:
            perplexity = measure_perplexity(model, text)
            [tokens] = compared_passages(model, text, positions)
        reference = np.stack(list(graph_logits(bundle, tokens)))
        found["fp32 (LiteRT)"] = {
            "bytes": bundle.stat().st_size,
            **asdict(perplexity),
            "kl_mean": 0.0,
            "kl_max": 0.0,
            "top1_agreement": 1.0,
            "positions": len(tokens),
        }
        bundle.unlink()
        for label, (layers, head) in subjects.items():
            note(f"{MODELS[name].title}: {label}")
            luts = ("--lut2", layers, "--lut3", head)
            options = ("--target", "coreml", *luts, *_OPTIONS.get(name, ()))
            folder = _convert(source, Path(work) / label.replace(" ", "_"), *options)
            packages = CoreMLModel(folder)
            divergence = coreml_evaluation.measure_divergence(packages, reference, tokens)
            perplexity = coreml_evaluation.measure_perplexity(packages, text)
            files = (path for path in folder.glob("*.mlpackage/**/*") if path.is_file())
            found[label] = {
                "bytes": sum(path.stat().st_size for path in files),
                **asdict(perplexity),
                **asdict(divergence),
            }
            print(json.dumps({label: found[label]}), file=sys.stderr, flush=True)
    return found


def _convert(source: Path, folder: Path, *options: str) -> Path:
    """The folder, filled."""
    run([CLI, "convert", source, "--output-dir", folder, "--quiet", *options])
    return folder


if __name__ == "__main__":
    guarded(main)
