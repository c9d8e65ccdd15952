"""Servers of the same weights: ours and the official one, side by side.

    venv/bin/python -m benchmarks.serve            # SmolLM2-135M in int8: ten minutes
    venv/bin/python -m benchmarks.serve --quick    # fewer requests

1, 4 and 16 clients at once stream short answers; then a chat of about a thousand tokens goes on by
one turn. Servers take turns, round by round; medians. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import commit, machine
from converter.version import __version__
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "litert-lm-cli"
CLIENTS = (1, 4, 16)
THREADS = 2
_NEW_TOKENS = 32
_WORDS = "Tell me what a lighthouse is for, and who lives there. "
_QUESTION = "And of Italy?"
_MODEL = "smollm2"


@dataclass(frozen=True)
class Server:
    """One that is running: where, and which processes are its own."""

    url: str
    model: str
    pid: int


@dataclass(frozen=True)
class Answered:
    """One answer: seconds to its first piece and to its end, and its pieces."""

    first: float
    whole: float
    pieces: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    requests = 4 if args.quick else 16
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        work = Path(folder)
        bundle = _converted(work)
        starts: dict[str, Callable[[], contextlib.AbstractContextManager[Server]]] = {
            "ours": lambda: _ours(bundle),
            "official": lambda: _official(bundle, work),
        }
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in starts}
        for number in range(1 if args.quick else args.rounds):
            for name, start in starts.items():
                print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
                with start() as server:
                    rounds[name].append(_measure(server, requests))
    figures = {name: _medians(found) for name, found in rounds.items()}
    for name, row in figures.items():
        print(name, json.dumps(row))
    document = {
        "benchmark": "serve", "version": __version__, "commit": commit(), "machine": machine(),
        "requests": requests, "rounds": len(rounds["ours"]), "servers": figures,
    }  # fmt: skip
    print(json.dumps(document))


def _measure(server: Server, requests: int) -> dict[str, Any]:
    _ask(server, [_said("Hello.")])  # loads the model
    found: dict[str, Any] = {}
    for clients in CLIENTS:
        count = max(requests, clients)
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            questions = [[_said(f"{i}. {_WORDS * 4}")] for i in range(count)]
            answers = list(pool.map(lambda question: _ask(server, question), questions))
        seconds = time.perf_counter() - begin
        found[f"{clients} clients"] = {
            "requests_per_second": count / seconds,
            "tokens_per_second": sum(answer.pieces for answer in answers) / seconds,
            "first_token_seconds": statistics.median(answer.first for answer in answers),
        }
    # Answers that end by themselves: ours keeps no conversation that was cut.
    history = [_said(_WORDS * 70 + "What is the capital of France?")]
    first, text = _ask(server, history), "A house with a light, for ships."
    second = _ask(server, [*history, {"role": "assistant", "content": text}, _said(_QUESTION)])
    found["1000 tokens"] = {"first_turn": first.first, "another_second_turn": second.first}
    kept, said = _ask_whole(server, history)
    again = _ask(server, [*history, {"role": "assistant", "content": said}, _said(_QUESTION)])
    found["1000 tokens"] |= {"second_turn": again.first, "times_sooner": kept / again.first}
    found["peak_mib"] = _tree_peak(server.pid) / 2**20
    return found


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _body(server: Server, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    return {"model": server.model, "messages": messages, "temperature": 0, **more}


def _ask(server: Server, messages: list[dict[str, str]]) -> Answered:
    """A streamed answer, cut after some tokens: whoever ignores max_tokens is left then."""
    begin = time.perf_counter()
    first, pieces = 0.0, 0
    body = _body(server, messages, stream=True, max_tokens=_NEW_TOKENS)
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=600) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            _check(line)
            if not line.startswith("data: {") or '"content": ""' in line:
                continue
            if '"content"' in line:
                first = first or time.perf_counter() - begin
                pieces += 1
            if pieces >= _NEW_TOKENS:
                break
    whole = time.perf_counter() - begin
    return Answered(first or whole, whole, pieces)  # some answers are empty


def _ask_whole(server: Server, messages: list[dict[str, str]]) -> tuple[float, str]:
    """An answer that ends by itself: seconds to its first piece, and its text."""
    begin = time.perf_counter()
    first, text = 0.0, ""
    body = _body(server, messages, stream=True, max_tokens=200)
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=600) as reply:
        for line in reply.iter_lines():
            _check(line)
            if line.startswith("data: {"):
                choices = json.loads(line[6:]).get("choices") or [{}]
                piece = choices[0].get("delta", {}).get("content") or ""
                first = first or (time.perf_counter() - begin if piece else 0.0)
                text += piece
    return first or time.perf_counter() - begin, text


def _check(line: str) -> None:
    if line.startswith('data: {"error"'):
        raise RuntimeError(line)


def _medians(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The same keys, with the median of each."""
    return {
        key: _medians([one[key] for one in found])
        if isinstance(value, dict)
        else statistics.median(one[key] for one in found)
        for key, value in found[0].items()
    }


def _converted(work: Path) -> Path:
    source = real_model("smollm2-135m-instruct-q4_1.gguf")
    bundle = work / f"{_MODEL}.litertlm"
    command: list[str | Path] = [CLI, "convert", source, "--quantize", "dynamic_int8", "--quiet"]
    command += ["--kv-cache-max-len", "2048", "--output-dir", work]
    subprocess.run(command, check=True, capture_output=True)
    (work / f"{source.stem}.litertlm").rename(bundle)
    return bundle


@contextlib.contextmanager
def _ours(bundle: Path) -> Iterator[Server]:
    port = _free_port()
    command = [str(CLI), "serve", str(bundle), "--port", str(port), "--threads", str(THREADS)]
    with _running(command, {}, f"http://127.0.0.1:{port}") as pid:
        yield Server(f"http://127.0.0.1:{port}", bundle.stem, pid)


@contextlib.contextmanager
def _official(bundle: Path, work: Path) -> Iterator[Server]:
    port, home = _free_port(), {"HOME": str(work)}
    client = str(ROOT / "venv/bin/litert-lm")
    environment = {**os.environ, **home}
    imported = [client, "import", str(bundle), _MODEL]
    subprocess.run(imported, env=environment, check=True, capture_output=True)
    command = [client, "serve", "--port", str(port)]
    with _running(command, home, f"http://127.0.0.1:{port}") as pid:
        yield Server(f"http://127.0.0.1:{port}", _MODEL, pid)


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], url: str) -> Iterator[int]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=quiet, stderr=quiet
    )
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/v1/models", timeout=2)
                break
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tree_peak(pid: int) -> int:
    """The peaks of a process and of all that it started, added up, in bytes."""
    total, parents = 0, [pid]
    while parents:
        children: list[int] = []
        for parent in parents:
            with contextlib.suppress(FileNotFoundError):
                status = Path(f"/proc/{parent}/status").read_text()
                total += next(
                    int(line.split()[1]) * 1024
                    for line in status.splitlines()
                    if line.startswith("VmHWM")
                )
                for task in Path(f"/proc/{parent}/task").iterdir():
                    children += map(int, (task / "children").read_text().split())
        parents = children
    return total


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
