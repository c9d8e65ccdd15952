"""Convert hundreds of times, four at a time; nothing may be left, and nothing may grow.

    venv/bin/python -m reliability.stress                          # 500 and 50, ten minutes
    venv/bin/python -m reliability.stress --tiny 12 --real 0       # in CI

As processes of the command line: tiny models of two families, then a real one (SmolLM2-135M), in
two schemes. Then as often in one process, in four threads, where a leak would show. A loss is a
conversion that fails or gives other bytes than the first of its kind, anything that is left beside
the output or among temporary files, and open files, threads or memory that are more afterwards.
The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import guarded, note
from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.errors import LiteRTLMError
from converter.options import ConvertOptions
from reliability.trials import command, conclude, digest, start
from tests.conftest import real_model
from tests.tiny_models import make_model, write_tokenizer

_AT_A_TIME = 4
_SCHEMES = ("dynamic_int8", "dynamic_int4")
_WARM_UP = 24  # conversions after which a process has all that it keeps
# What may be more afterwards. Others use the machine, too; a process keeps some free memory.
# What malloc keeps goes up and down by some 20 MiB after that, and grows no more.
_TOLERANCE = {
    "open files of the system": 200,
    "memory of the system": 512 << 20,
    "open files": 0,
    "threads": 0,
    "memory": 32 << 20,
}


class Kind(NamedTuple):
    """What is converted, and how."""

    source: Path
    scheme: str


@dataclass
class Result:
    """What was seen of a series."""

    conversions: int = 0
    failed: int = 0
    other_bytes: int = 0
    left_behind: list[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)

    @property
    def grown(self) -> list[str]:
        """What is more than it may be."""
        return [k for k, n in self.before.items() if self.after[k] > n + _TOLERANCE[k]]

    @property
    def losses(self) -> int:
        """Of all kinds."""
        return self.failed + self.other_bytes + len(self.left_behind) + len(self.grown)


def measure(work: Path, tiny: int, real: int) -> dict[str, Result]:
    """All series: so many conversions of tiny models, and of a real one."""
    sources = []
    for family in ("llama", "gemma3_text"):
        make_model(family).save_pretrained(work / family)
        write_tokenizer(work / family)
        sources.append(work / family)
    kinds = {"tiny": [Kind(source, scheme) for source in sources for scheme in _SCHEMES]}
    if real:
        smollm2 = real_model("smollm2-135m-instruct-q4_1.gguf")
        kinds["real"] = [Kind(smollm2, scheme) for scheme in _SCHEMES]
    results = {}
    for name, count in (("tiny", tiny), ("real", real)):
        for how, convert, count_open in (
            ("processes", _by_command, _of_system),
            ("one process", _by_library, _of_process),
        ):
            if count:
                note(f"{name}, {how}")
                results[f"{name}, {how}"] = _series(work, kinds[name], count, convert, count_open)
    return results


def _series(
    work: Path,
    kinds: Sequence[Kind],
    count: int,
    convert: Callable[[Kind, Path], bool],
    count_open: Callable[[], dict[str, int]],
) -> Result:
    """Convert `count` times, four at a time."""
    result, lock = Result(), threading.Lock()
    out, temporary = work / "out", work / "temporary"
    for folder in (out, temporary):
        folder.mkdir()
    first: dict[Kind, str] = {}

    def one(number: int) -> None:
        kind = kinds[number % len(kinds)]
        folder = out / str(number)
        converted = convert(kind, folder)
        found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        bundles = {name for name in found if name.endswith(".litertlm")}
        receipts = {name.replace(".litertlm", ".json") for name in bundles}
        with lock:
            result.conversions += 1
            result.failed += not converted or len(bundles) != 1
            result.left_behind += found - bundles - receipts
            for name in bundles:
                there = digest(folder / name)
                result.other_bytes += first.setdefault(kind, there) != there
        shutil.rmtree(folder, ignore_errors=True)

    with _temporary_files_in(temporary), ThreadPoolExecutor(_AT_A_TIME) as pool:
        list(pool.map(one, range(_WARM_UP)))
        result.before = count_open()
        list(pool.map(one, range(_WARM_UP, max(count, _WARM_UP))))
        result.after = count_open()
    result.left_behind += [path.name for path in temporary.iterdir()]
    for folder in (out, temporary):
        shutil.rmtree(folder)
    return result


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Of this process, and of those that it starts."""
    before = os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _by_command(kind: Kind, folder: Path) -> bool:
    options = ["--quantize", kind.scheme, "--output-dir", str(folder), "--quiet"]
    return start(command("convert", str(kind.source), *options)).wait() == 0


def _by_library(kind: Kind, folder: Path) -> bool:
    try:
        with open_checkpoint(kind.source) as checkpoint:
            converter = ModelConverter(checkpoint, "model", ConvertOptions(quantize=kind.scheme))
            converter.convert(folder / "model.litertlm")
    except LiteRTLMError as error:
        note(str(error))
        return False
    return True


def _of_system() -> dict[str, int]:
    """Open files and used memory in bytes of the whole machine (Linux)."""
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    used = int(memory["MemTotal"].split()[0]) - int(memory["MemAvailable"].split()[0])
    return {
        "open files of the system": int(Path("/proc/sys/fs/file-nr").read_text().split()[0]),
        "memory of the system": used * 1024,
    }


def _of_process() -> dict[str, int]:
    """Open files, threads and resident memory in bytes of this process (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # give back what is free, which says nothing of leaks
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "memory": pages * resource.getpagesize(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", type=int, default=500, help="conversions of tiny models")
    parser.add_argument("--real", type=int, default=50, help="conversions of SmolLM2-135M")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="litert-lm-stress-") as folder:
        results = measure(Path(folder), args.tiny, args.real)
    for name, found in results.items():
        print(f"{name:24} {vars(found)}")
    losses = sum(found.losses for found in results.values())
    conversions = sum(found.conversions for found in results.values())
    series = {name: vars(found) for name, found in results.items()}
    conclude("stress", ["numpy"], losses, conversions=conversions, series=series)


if __name__ == "__main__":
    guarded(main)
