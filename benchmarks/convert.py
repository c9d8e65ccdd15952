"""How long conversion takes and how much memory, against the cost of copying the bytes.

    venv/bin/python -m benchmarks.convert

The floor is the least that any converter must do: read the source once (cat to /dev/null) and
write the output once (cp). All are whole processes, started in turn, with a warm page cache; the
median of five rounds after a warm-up. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import make_checkpoint
from benchmarks.measure import in_turn, machine, medians, run
from converter.version import __version__
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent


def measure(source: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Ours and the floor for one source."""
    output = work / "out" / f"{source.stem if source.is_file() else source.name}.litertlm"

    def ours() -> Any:
        options: list[str | Path] = ["--output-dir", output.parent, "--force", "--quiet"]
        return run([ROOT / "litert-lm-cli", "convert", source, *options])

    def floor() -> Any:
        copy = work / "copy"
        files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
        script = 'out=$1 copy=$2; shift 2; cat "$@" > /dev/null; cp "$out" "$copy"'
        try:
            return run(["sh", "-c", script, "sh", output, copy, *files])
        finally:
            copy.unlink()

    results = in_turn({"ours": ours, "floor": floor}, rounds)
    figures = {name: medians(runs) for name, runs in results.items()}
    return {
        **figures,
        "times_floor": figures["ours"]["seconds"] / figures["floor"]["seconds"],
        "output_mb": output.stat().st_size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as folder:
        work = Path(folder)
        make_checkpoint("qwen3-0.6b", work / "qwen3-0.6b", real_model("qwen3-tokenizer"))
        sources = {
            "Qwen3-0.6B shape, BF16": work / "qwen3-0.6b",
            "Gemma 3 270M, Q4_K_M GGUF": real_model("gemma3-270m-q4_k_m.gguf"),
            "SmolLM2-135M, Q4_1 GGUF": real_model("smollm2-135m-instruct-q4_1.gguf"),
        }
        print("| to dynamic_int8 | time | peak memory | times the floor | output |")
        print("|---|---|---|---|---|")
        for name, source in sources.items():
            result = results[name] = measure(source, work, args.rounds)
            print(
                f"| {name} | {result['ours']['seconds']:.1f} s | "
                f"{result['ours']['peak_mib']:.0f} MiB | {result['times_floor']:.1f} x | "
                f"{result['output_mb']:.0f} MB |"
            )
    packages = ("numpy", "flatbuffers", "tokenizers", "litert-lm-builder", "gguf")
    document = {
        "benchmark": "convert",
        "litert_lm_cli": __version__,
        "machine": machine(*packages),
        "rounds": args.rounds,
        "results": results,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
