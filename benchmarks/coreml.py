"""Core ML: every example of ANEMLL's documents with our command, its time, memory and packages.

    venv/bin/python -m benchmarks.coreml                      # all: half an hour, 36 GB of disk
    venv/bin/python -m benchmarks.coreml --only qwen3-0.6b    # a minute

Each shape is a random checkpoint of a published model's (`benchmarks.checkpoints`), made, measured
and deleted before the next one. An example is what the document says, word for word, but for the
command's name, `--model` and `--output`; all examples of a shape run in turn. ANEMLL itself needs a
Mac for what it makes, so no peer stands beside these figures. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.convert import CLI, folder_bytes, make_source, need_disk
from benchmarks.measure import Run, commit, guarded, in_turn, machine, medians, note, run
from converter.registry import family_of
from converter.version import __version__


@dataclass(frozen=True)
class Example:
    """A command of a document.

    Attributes:
        written: its options, as they stand there.
        documents: where; `ours` is this project's, the others are in ANEMLL's `docs`.
    """

    written: str
    documents: str


_SCRIPT, _GUIDE = "convert_model.md", "model_conversion_guide_for_AI_agents.md"
_OURS = "ours"
_DEEPSEEK = "--chunk 8 --lut2 6 --lut3 6 --prefix DeepSeek"
_GEMMA3 = (
    "--context 4096 --batch 64 --lut1 8,4 --lut2 6,4 --lut3 6,4 --chunk auto --max-chunk-mb 950 "
    "--argmax --fp16-scale auto --prefix gemma3"
)
EXAMPLES: dict[str, tuple[Example, ...]] = {
    "qwen3-0.6b": (
        Example("", _OURS),
        Example("--lut1 none --lut2 none --lut3 none", _OURS),
        Example("--lut2 4 --lut3 4", _OURS),
        Example("--lut2 4 --lut3 4 --argmax --monolithic", _OURS),
        Example("--lut1 6 --lut2 6 --lut3 6 --context 512 --batch 64 --chunk 1", _GUIDE),
        Example("--context 512 --batch 64", "mlx_dequantization.md"),
        Example("--prefix qwen", "qwen3.md"),
    ),
    "llama-3.2-1b": (
        Example("", f"{_SCRIPT}, convert.md"),
        Example("--only 2", _SCRIPT),
        Example("--chunk 1", _SCRIPT),
        Example("--context 1024 --lut2 6 --lut3 6", _SCRIPT),
        Example("--context 1024 --batch 64 --lut2 6 --lut3 6 --chunk 2", _SCRIPT),
        Example("--context 512 --batch 64 --lut2 4 --lut3 4 --chunk 2", _SCRIPT),
        Example(
            '--context 1024 --batch 64 --lut1 "" --lut2 "" --lut3 "" --chunk 2',
            _SCRIPT,
        ),
        Example("--restart 5", f"{_SCRIPT}, convert.md"),
        Example("--only 6", f"{_SCRIPT}, convert.md"),
        Example("--chunk 1 --lut2 6 --lut3 6", "convert.md"),
        Example("--context 1024", "convert.md"),
        Example("--skip-check", "convert.md"),
    ),
    "llama-3.2-3b": (Example("--chunk 2 --lut2 6 --lut3 6", "convert.md"),),
    "gemma3-1b": (Example(_GEMMA3, _OURS),),
    "gemma3-4b": (Example(_GEMMA3, _OURS),),
    "qwen3-4b": (
        Example("--lut1 6 --lut2 6 --lut3 6 --context 512 --batch 64 --chunk 2", _GUIDE),
        Example("--lut1 none --lut2 none --lut3 none --chunk auto", _OURS),
    ),
    "deepseek-r1-8b": (
        Example(f"--context 1024 --batch 64 {_DEEPSEEK}", f"{_SCRIPT}, ConvertingDeepSeek.md"),
        Example(_DEEPSEEK, "convert.md"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--rounds", type=int, default=1, help="of each example (default: 1)")
    parser.add_argument("--work", type=Path, help="folder with room for the largest checkpoint")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    for shape in args.only:
        with tempfile.TemporaryDirectory(dir=args.work, prefix="coreml-") as work:
            figures[shape] = measure(shape, Path(work), args.rounds)
        note(json.dumps({shape: figures[shape]}))  # what was measured outlives a run cut off
    print(table(figures))
    document = {
        "benchmark": "coreml",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("numpy", "tokenizers"),
        "rounds": args.rounds,
        "shapes": figures,
    }
    print(json.dumps(document))


def measure(shape: str, work: Path, rounds: int) -> dict[str, Any]:
    """Every example of a shape, on a checkpoint that is made in `work`."""
    parameters = sum(math.prod(dims) for _, dims in family_of(SHAPES[shape]).spec().weight_shapes())
    need_disk(work, 2 * parameters * 2.2)
    folder, out = work / shape, work / "packages"
    make_source("shape", shape, folder)
    packages: dict[str, dict[str, Any]] = {}

    def convert(example: Example) -> Run:
        options = shlex.split(example.written)
        command: list[str | Path] = [CLI, "convert", folder, "--target", "coreml", *options]
        try:
            ended = run([*command, "--output-dir", out, "--quiet"])
            packages[example.written] = sizes(out)
            return ended
        finally:
            shutil.rmtree(out, ignore_errors=True)

    found: dict[str, Any] = {
        "parameters": parameters,
        "source_bytes": folder_bytes(folder),
        "examples": [],
    }
    for example in EXAMPLES[shape]:
        note(f"{shape}: {example.written or 'no options'}")
        said: dict[str, Any] = {"written": example.written, "documents": example.documents}
        try:
            runs = in_turn({"": partial(convert, example)}, rounds, warm_up=False)[""]
            said |= {**medians(runs), **packages[example.written]}
        except subprocess.CalledProcessError as error:
            said["failed"] = error.stderr.strip().splitlines()[-1]
        found["examples"].append(said)
    return found


def sizes(out: Path) -> dict[str, Any]:
    """Bytes of all packages, of each that holds layers, and of embeddings and head."""
    nbytes = {
        package.name: sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
        for package in sorted(out.glob("*.mlpackage"))
    }
    chunks = [size for name, size in nbytes.items() if "_chunk_" in name or "_monolithic_" in name]
    return {"packages_bytes": sum(nbytes.values()), "chunks_bytes": chunks, "packages": nbytes}


def table(figures: dict[str, Any]) -> str:
    """Of Markdown: documents are read beside the figures."""
    lines = [
        "| Shape | Options | Documented in | Time | Of cores | Peak memory | Packages | Chunks |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for shape, found in figures.items():
        for row in found["examples"]:
            options = f"`{row['written']}`" if row["written"] else "none"
            begin = f"| {shape} | {options} | {row['documents']} |"
            if "failed" in row:
                lines.append(f"{begin} failed: {row['failed']} | | | | |")
                continue
            lines.append(
                f"{begin} {row['seconds']:.1f} s | {row['core_seconds']:.1f} s | "
                f"{row['peak_mib']:.0f} MiB | "
                f"{row['packages_bytes'] / 1e6:.0f} MB | {_counted(row['chunks_bytes'])} |"
            )
    return "\n".join(lines)


def _counted(chunks: Iterable[int]) -> str:
    """Sizes of packages with layers, in MiB, as `--max-chunk-mb` counts them."""
    mib = [-(-size >> 20) for size in chunks]
    return f"{len(mib)} of {' or '.join(map(str, sorted(set(mib))))} MiB"


if __name__ == "__main__":
    guarded(main)
