"""How long conversion takes and how much memory, against copying the bytes and against others.

    venv/bin/python -m benchmarks.convert           # all of it: half an hour
    venv/bin/python -m benchmarks.convert --quick   # without the other converters
    venv/bin/python -m benchmarks.convert --only qwen3-0.6b --rounds 9

The floor is the least that any converter must do: read the source once (cat to /dev/null) and
write the output once (cp). All are whole processes, started in turn, with a warm page cache; the
median of the rounds after a warm-up. The last line is one JSON document; `benchmarks.plot` makes
the table and plot of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.checkpoints import SHAPES
from benchmarks.convert_report import tables
from benchmarks.measure import Run, commit, in_turn, machine, medians, run
from benchmarks.sources import GEMMA3_270M
from converter.memory import free_memory
from converter.options import DEFAULT_CACHE_LENGTH, PREFILL_LADDER
from converter.registry import family_of
from converter.torch.reference import BYTES_PER_PARAMETER
from converter.version import __version__
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "litert-lm-cli"
QUANTIZE = "dynamic_int8"
_PACKAGES = ("numpy", "flatbuffers", "tokenizers", "litert-lm-builder", "litert-lm-api", "gguf")
_SLOW_PEER_ROUNDS = 1  # it takes minutes
_FAST_PEER_ROUNDS = 3
_COMMAND_ROUNDS = 15
_PEER_TIMEOUT = 3600.0
_PROMPT = "What is the capital of France?"


@dataclass(frozen=True)
class Model:
    """What is converted.

    Attributes:
        config: as in config.json.
        make: arguments of `benchmarks.sources` that make its folder.
        gguf: also read from this real GGUF.
        engine: also loaded and run.
    """

    title: str
    config: dict[str, Any]
    make: tuple[str, ...]
    gguf: str | None = None
    engine: bool = False

    @property
    def parameters(self) -> int:
        shapes = family_of(self.config).spec().weight_shapes()
        return sum(int(np.prod(shape)) for _, shape in shapes)


MODELS = {
    "gemma3-270m": Model(
        "Gemma 3 270M", GEMMA3_270M, ("gemma3-270m",), gguf="gemma3-270m-q4_k_m.gguf"
    ),
    "qwen3-0.6b": Model("Qwen3-0.6B shape", SHAPES["qwen3-0.6b"], ("shape", "qwen3-0.6b")),
    "qwen3-4b": Model("Qwen3-4B shape", SHAPES["qwen3-4b"], ("shape", "qwen3-4b"), engine=True),
}
COMMANDS = "commands"


class NoFiguresError(Exception):
    """A case gives no figures: it was left out, or failed; the message says why."""

    def __init__(self, why: str, how: str = "left_out") -> None:
        super().__init__(why)
        self.how = how


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave other converters out")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--only",
        action="append",
        choices=(*MODELS, COMMANDS),
        help="some cases; may be given again (default: all)",
    )
    args = parser.parse_args()
    # So that the measured process ends and the work folder goes, as they do after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = args.only or (*MODELS, COMMANDS)
    document: dict[str, Any] = {
        "benchmark": "convert",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine(*_PACKAGES),
        "peers": peers.VERSIONS,
        "job": {
            "quantize": QUANTIZE,
            "prefill_lengths": PREFILL_LADDER,
            "kv_cache_max_len": DEFAULT_CACHE_LENGTH,
        },
        "rounds": args.rounds,
        "models": {},
    }
    for name, model in MODELS.items():
        if name in wanted:
            with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as folder:
                document["models"][name] = {
                    "title": model.title,
                    "parameters": model.parameters,
                    **_measure(name, model, Path(folder), args.rounds, args.quick),
                }
            # An hour's figures outlive a run that is cut off.
            print(json.dumps({name: document["models"][name]}), file=sys.stderr, flush=True)
    if COMMANDS in wanted:
        with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as folder:
            document["commands"] = _measure_commands(Path(folder))
    print(tables(document))
    print(json.dumps(document))


def _measure(name: str, model: Model, work: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """Everything about one model; what it needs is made in `work`."""
    folder = work / name
    source_bytes = 2 * model.parameters
    try:
        need_disk(work, 2.5 * source_bytes)
        note(f"{model.title}: making the checkpoint")
        make_source(*model.make, folder)
        result = _measure_ours(folder, model, work / "out", rounds)
        if model.engine:
            note(f"{model.title}: loading it in the engine")
            result["engine"] = _try(lambda: _measure_engine(work / "out" / f"{name}.litertlm"))
        shutil.rmtree(work / "out")
        result["peers"] = {}
        for peer, measure in (("litert-torch", _litert_torch), ("llama.cpp", _llama_cpp)):
            if quick:
                result["peers"][peer] = {"left_out": "--quick"}
                continue
            note(f"{model.title}: {peer}")
            figures = _try(lambda measure=measure: measure(folder, model, work))  # type: ignore[misc]
            if "seconds" in figures:
                ours = result["sources"]["safetensors"]["ours"]
                figures["times_ours"] = figures["seconds"] / ours["seconds"]
                figures["times_our_memory"] = figures["peak_mib"] / ours["peak_mib"]
            result["peers"][peer] = figures
        return result
    except NoFiguresError as reason:
        return {reason.how: str(reason)}


def _measure_ours(folder: Path, model: Model, out: Path, rounds: int) -> dict[str, Any]:
    """Ours and the floor for each form of the source, all in turn."""
    sources = {"safetensors": folder}
    if model.gguf:
        sources["gguf"] = real_model(model.gguf)
    out.mkdir()
    outputs = {
        form: out / f"{source.stem if source.is_file() else source.name}.litertlm"
        for form, source in sources.items()
    }

    def ours(form: str) -> Run:
        outputs[form].unlink(missing_ok=True)
        return run([CLI, "convert", sources[form], "--output-dir", out, "--quiet", *_job()])

    def floor(form: str, script: str) -> Run:
        copy = out / "copy"
        try:
            return run(["sh", "-c", script, "sh", outputs[form], copy, *_files(sources[form])])
        finally:
            copy.unlink(missing_ok=True)

    copying = 'out=$1 copy=$2; shift 2; cat "$@" > /dev/null; cp "$out" "$copy"'
    subjects: dict[str, Callable[[], Run]] = {}
    for form in sources:
        subjects[f"{form} ours"] = lambda form=form: ours(form)  # type: ignore[misc]
        subjects[f"{form} floor"] = lambda form=form: floor(form, copying)  # type: ignore[misc]
        # Ours is on the disk when it returns; so is this copy.
        subjects[f"{form} synced_floor"] = lambda form=form: floor(  # type: ignore[misc]
            form, f'{copying}; sync "$copy"'
        )
    note(f"{model.title}: ours and the floor, {rounds} rounds")
    figures = {name: medians(runs) for name, runs in in_turn(subjects, rounds).items()}
    rows: dict[str, Any] = {}
    for form, source in sources.items():
        row = {kind: figures[f"{form} {kind}"] for kind in ("ours", "floor", "synced_floor")}
        source_bytes = sum(file.stat().st_size for file in _files(source))
        seconds = row["ours"]["seconds"]
        rows[form] = {
            **row,
            "times_floor": seconds / row["floor"]["seconds"],
            "times_synced_floor": seconds / row["synced_floor"]["seconds"],
            "seconds_per_gb": seconds / (source_bytes / 1e9),
            "source_bytes": source_bytes,
            "source_files": len(_files(source)),
            "output_bytes": outputs[form].stat().st_size,
        }
    result: dict[str, Any] = {"sources": rows}
    if "gguf" in rows:
        result["gguf_times_safetensors"] = (
            rows["gguf"]["ours"]["seconds"] / rows["safetensors"]["ours"]["seconds"]
        )
    return result


def _measure_engine(bundle: Path) -> dict[str, Any]:
    """Google's engine loads the file and decodes; with random weights, any text is right."""
    available = free_memory()
    needed = 2.2 * bundle.stat().st_size  # the file's pages, and the weights packed for the kernels
    if available is not None and available < needed:
        raise NoFiguresError(f"needs {_gib(needed)} of memory, {_gib(available)} are free")
    options = ["--prompt", _PROMPT, "--max-tokens", "8", "--stats"]
    result = run([CLI, "run", bundle, *options], timeout=_PEER_TIMEOUT)
    return {
        "file_bytes": bundle.stat().st_size,
        "seconds": result.seconds,
        "peak_mib": result.peak_bytes / 2**20,
        "said": result.said.strip().splitlines()[-1:],
    }


def _measure_commands(work: Path) -> dict[str, Any]:
    """What a user waits for when nothing is converted."""
    make_source("shape", "qwen3-0.6b", work / "qwen3-0.6b")
    note("--help and inspect")
    run([CLI, "convert", work / "qwen3-0.6b", "--output-dir", work, "--quiet", *_job()])
    subjects: dict[str, Callable[[], Run]] = {
        "--help": lambda: run([CLI, "--help"]),
        "inspect": lambda: run([CLI, "inspect", work / "qwen3-0.6b.litertlm"]),
    }
    return {name: medians(runs) for name, runs in in_turn(subjects, _COMMAND_ROUNDS).items()}


def _litert_torch(folder: Path, model: Model, work: Path) -> dict[str, Any]:
    needed = BYTES_PER_PARAMETER * model.parameters
    available = free_memory()
    if available is not None and available < needed:
        raise NoFiguresError(f"needs about {_gib(needed)} of memory, {_gib(available)} are free")
    output = work / "litert-torch"
    command = peers.litert_torch_command(folder, output, PREFILL_LADDER, DEFAULT_CACHE_LENGTH)
    runs = []
    for _ in range(_SLOW_PEER_ROUNDS):
        runs.append(run(command, {"HF_HUB_OFFLINE": "1"}, timeout=_PEER_TIMEOUT))
    bundles = list(output.glob("*.litertlm"))
    if len(bundles) != 1:
        raise NoFiguresError(f"it ended well, but wrote {len(bundles)} files", "failed")
    figures = {**medians(runs), "output_bytes": bundles[0].stat().st_size}
    shutil.rmtree(output)
    return figures


def _llama_cpp(folder: Path, model: Model, work: Path) -> dict[str, Any]:
    need_disk(work, 2 * folder_bytes(folder))
    source, output = work / "bf16.gguf", work / "q8_0.gguf"
    make_source("gguf", folder, source)

    def quantize() -> Run:
        output.unlink(missing_ok=True)
        return run(peers.llama_cpp_command(source, output), timeout=_PEER_TIMEOUT)

    runs = in_turn({"llama.cpp": quantize}, _FAST_PEER_ROUNDS)["llama.cpp"]
    figures = {**medians(runs), "output_bytes": output.stat().st_size}
    source.unlink()
    output.unlink()
    return figures


def _try(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures, or why there are none."""
    try:
        return measure()
    except NoFiguresError as reason:
        return {reason.how: str(reason)}
    except peers.PeerUnavailableError as reason:
        return {"left_out": str(reason)}
    except subprocess.TimeoutExpired as reason:
        return {"failed": f"took longer than {reason.timeout:.0f} s"}
    except subprocess.CalledProcessError as reason:
        said = (reason.stderr or "").strip().splitlines()[-1:] or ["no reason given"]
        return {"failed": f"exit code {reason.returncode}: {said[0]}"}


def _job() -> list[str]:
    lengths = ",".join(map(str, PREFILL_LADDER))
    cache = str(DEFAULT_CACHE_LENGTH)
    options = ["--quantize", QUANTIZE, "--prefill-seq-len", lengths, "--kv-cache-max-len", cache]
    return [*options, "--force"]


def make_source(*arguments: str | Path) -> None:
    """Make what is converted: see `benchmarks.sources`."""
    run([sys.executable, "-m", "benchmarks.sources", *arguments], {"PYTHONPATH": str(ROOT)})


def _files(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(source.glob("*.safetensors"))


def folder_bytes(folder: Path) -> int:
    """Size of a folder's weights."""
    return sum(file.stat().st_size for file in _files(folder))


def need_disk(work: Path, nbytes: float) -> None:
    """Raises NoFiguresError where there is not so much."""
    free = shutil.disk_usage(work).free
    if free < nbytes:
        raise NoFiguresError(f"needs {_gib(nbytes)} of disk, {_gib(free)} are free in {work}")


def _gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:.0f} GiB"


def note(text: str) -> None:
    """Say what is measured, and beside what."""
    free = free_memory()
    load = os.getloadavg()[0]
    memory = f", {_gib(free)} free" if free is not None else ""
    print(f"{text} (load {load:.1f}{memory})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
