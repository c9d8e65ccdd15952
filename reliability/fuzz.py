"""Feed damaged input to every reader: nothing but a clean refusal, in bounded time and memory.

    venv/bin/python -m reliability.fuzz                       # a million inputs, half an hour
    venv/bin/python -m reliability.fuzz --inputs 2000         # of all readers together; in CI
    venv/bin/python -m reliability.fuzz --only gguf --keep    # and keep new kinds of refusal

An input is a sample that was accepted or refused before, changed: bytes, numbers, words of the
format, or values inside its JSON. One that is refused in words that were not seen before becomes a
sample, so that the search goes on from there; `--keep` writes it to the corpus in tests/. A failure
is any other exception than ours, more than ten seconds, or more than 2 GiB. The last line is one
JSON document.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import re
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.measure import guarded
from converter.errors import LiteRTLMError
from reliability.trials import conclude

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "reliability" / "corpus"
_LONGEST_SECONDS, _MOST_MEMORY = 10, 2 << 30
_LARGEST_SAMPLE = 1 << 16
_NUMBERS = (
    0,
    1,
    7,
    127,
    128,
    255,
    1 << 15,
    1 << 31,
    (1 << 32) - 1,
    1 << 60,
    1 << 63,
    (1 << 64) - 1,
)
_WORDS: tuple[bytes, ...] = (
    b"null", b"true", b"-1", b"1e999", b"NaN", b"9223372036854775808", b"[" * 2000,
    b'{"a":' * 2000, b'"', b"{}", b"[]", b"\\ud800", b"\x00", b"\xff\xfe", b"\x1b[2J",
    b"../../x", b"C:\\x",
    b"/etc/x",
    b"{% for i in range(99999999) %}", b"{{ ''.__class__.__mro__ }}", b"(a+)+$", b"(?=x){1000}",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 60, 1 << 70, 1e308, 0.5, "", "x" * 5000, "\x1b[2J", "../x", [], {},
)  # fmt: skip


@dataclass
class Reader:
    """What is fed, and how often.

    Attributes:
        read: takes one input.
        share: of all inputs, relative to the other readers: slow ones get fewer.
    """

    read: Callable[[bytes], object]
    share: int


@dataclass
class Result:
    """What came out: counts, and the inputs that were not refused cleanly."""

    inputs: int = 0
    accepted: int = 0
    refusals: int = 0  # kinds of them
    slowest_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def readers(work: Path) -> dict[str, Reader]:
    """All readers; those that open files do so in `work`."""
    from converter.checkpoint import gguf_header, safetensors
    from converter.checkpoint.files import PositionedFile
    from converter.litertlm.inspection import read_bundle
    from converter.receipt import read_receipt
    from converter.registry import family_of
    from converter.text import background
    from converter.text.chat_template import choose_template
    from converter.text.tokenizer_json import load_tokenizer_json

    def from_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = work / "input"

        def fed(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return fed

    def header(path: Path) -> object:
        with PositionedFile(path) as file:
            return list(safetensors.read_header(file))

    def bundle(path: Path) -> object:
        found = read_bundle(path)
        return found.metadata, found.model

    def template(data: bytes) -> object:
        source = data.decode("utf-8", "replace")  # it comes out of JSON, which is UTF-8
        # In a bounded copy of the process, as a conversion does it.
        return background.start(
            lambda: str(choose_template(source, family="x", bos_token="<s>", eos_token="</s>")), "x"
        )()

    return {
        "safetensors": Reader(from_file(header), 6),
        "index": Reader(from_file(safetensors.read_index), 6),
        "config": Reader(from_file(lambda p: family_of(safetensors.read_config(p)).spec()), 6),
        "gguf": Reader(lambda d: gguf_header.read_header(io.BytesIO(d), "x.gguf", len(d)), 6),
        "litertlm": Reader(from_file(bundle), 3),
        "receipt": Reader(from_file(read_receipt), 4),
        "tokenizer": Reader(
            lambda d: background.start(lambda: str(load_tokenizer_json(d, "x")), "x")(), 1
        ),
        "template": Reader(template, 1),
    }


def fuzz(name: str, inputs: int, seed: int, keep: bool = False) -> Result:
    """Feed one reader; to be called in a process of its own, whose memory it limits."""
    rng = random.Random(f"{name} {seed}")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, hard))
    signal.signal(signal.SIGALRM, _too_long)
    folder = CORPUS / name
    samples = [path.read_bytes() for path in sorted(folder.iterdir())]
    result, seen = Result(), set[str]()
    with tempfile.TemporaryDirectory(prefix="litert-lm-fuzz-", dir=_memory_disk()) as work:
        read = readers(Path(work))[name].read
        for index in range(inputs):
            data = samples[index] if index < len(samples) else changed(rng, samples)
            start = time.perf_counter()
            signal.alarm(_LONGEST_SECONDS)
            try:
                read(data)
                words = "accepted"
                result.accepted += 1
            except LiteRTLMError as error:
                words = re.sub(r"\d+|'.*?'|\".*?\"", "#", error.why)[:60]
            except BaseException as error:
                words = f"{type(error).__name__}: {error}"[:200]
                place = folder / f"failure-{len(result.failures)}"
                if keep:
                    place.write_bytes(data)
                result.failures.append(f"{words} for {data[:200]!r}")
            finally:
                signal.alarm(0)
            result.slowest_seconds = max(result.slowest_seconds, time.perf_counter() - start)
            result.inputs += 1
            if words not in seen and len(data) < _LARGEST_SAMPLE:
                seen.add(words)
                if index >= len(samples):
                    samples.append(data)
                    if keep and len(data) < 4096:
                        (folder / f"{len(samples):04}").write_bytes(data)
    result.refusals = len(seen - {"accepted"})
    return result


def changed(rng: random.Random, samples: list[bytes]) -> bytes:
    """One sample with one to four changes."""
    data = bytearray(rng.choice(samples))
    if rng.random() < 0.4:
        data = bytearray(_changed_json(rng, bytes(data)))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1:
            data[at:at] = rng.choice(_WORDS)
        elif kind == 2:
            del data[at : at + rng.choice((1, 4, 8, 64, 1 << 20))]
        elif kind == 3:
            size = rng.choice((1, 4, 8))
            value = rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            data[at : at + size] = value.to_bytes(size, "little")
        elif kind == 4:
            other = rng.choice(samples)
            data[at:] = other[rng.randint(0, len(other)) :]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice((1, 16, 256))] * rng.choice((1, 2, 100))
        elif data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
    return bytes(data[: _LARGEST_SAMPLE * 4])


def _changed_json(rng: random.Random, data: bytes) -> bytes:
    """The same with one value of its JSON replaced, where it has any."""
    start, end = data.find(b"{"), data.rfind(b"}") + 1
    try:
        whole = json.loads(data[start:end])
    except (ValueError, RecursionError):
        return data
    at = whole
    while isinstance(at, dict | list) and at:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = rng.choice(keys)
        if not isinstance(at[key], dict | list) or rng.random() < 0.3:
            at[key] = rng.choice(_VALUES)
            break
        at = at[key]
    found = json.dumps(whole).encode()
    if start == 8:  # safetensors: its length stands before it
        return len(found).to_bytes(8, "little") + found + data[end:]
    return data[:start] + found + data[end:]


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {_LONGEST_SECONDS} s")


def _memory_disk() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _job(arguments: tuple[str, int, int, bool]) -> tuple[str, Result]:
    return arguments[0], fuzz(*arguments)


def run_all(inputs: int, seed: int, only: str | None, keep: bool) -> dict[str, Result]:
    """All readers, each in a process of its own, two at a time."""
    shares = {name: reader.share for name, reader in readers(Path()).items()}
    chosen = {name: share for name, share in shares.items() if only in (None, name)}
    jobs = [
        (name, -(-inputs * share // sum(chosen.values())), seed, keep)
        for name, share in chosen.items()
    ]
    # Not a Pool: one whose worker dies waits for ever, and a worker there may have no children.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, max_tasks_per_child=1) as pool:
        return dict(pool.map(_job, jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(readers(Path())))
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    results = run_all(args.inputs, args.seed, args.only, args.keep)
    for name, found in results.items():
        print(
            f"{name:12} {found.inputs:8} inputs, {found.accepted:8} accepted, {found.refusals:4} "
            f"kinds of refusal, slowest {found.slowest_seconds:.2f} s, "
            f"{len(found.failures)} failures"
        )
        for failure in found.failures[:5]:
            print(f"  {failure}")
    failures = sum(len(found.failures) for found in results.values())
    conclude(
        "fuzz",
        ["numpy", "tokenizers", "jinja2", "minijinja"],
        failures,
        seed=args.seed,
        inputs=sum(found.inputs for found in results.values()),
        readers={
            name: vars(found) | {"failures": len(found.failures)} for name, found in results.items()
        },
    )


if __name__ == "__main__":
    guarded(main)
