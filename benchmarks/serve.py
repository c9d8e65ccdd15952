"""Servers of the same weights: ours, the official one and llama.cpp's, side by side.

    venv/bin/python -m benchmarks.serve            # SmolLM2-135M: twenty minutes
    venv/bin/python -m benchmarks.serve --quick    # fewer requests, one round
    venv/bin/python -m benchmarks.serve --only ours --only official

Each is started anew: seconds until it answers, and until it has answered a first chat. Then 1, 4
and 16 clients at once stream short answers, and chats of about a thousand tokens go on by one turn,
beside others of the same length that are not known yet. llama.cpp has the file as it is, in Q4_1,
and in Q8_0, which has as many bits as our int8. Memory is the proportional set size (PSS) of all
processes of a server, looked at ten times in a second: what two processes share counts once.
Servers take turns, round by round; medians. The last line is one JSON document.
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
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import commit, machine
from benchmarks.peers import LLAMA_CPP_SOURCE, llama_cpp_programs
from converter.version import __version__
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "litert-lm-cli"
CLIENTS = (1, 4, 16)
THREADS = 2
_CONTEXT = 2048
_SLOTS = 4  # of llama.cpp's server: its own choice here
_NEW_TOKENS, _MOST_TOKENS = 32, 200
_WORDS = "Tell me what a lighthouse is for, and who lives there. "
_COUNTRIES = ("France", "Spain", "Japan", "Egypt", "Peru")
_QUESTION = "And of Italy?"
_MODEL = "smollm2"


@dataclass(frozen=True)
class Server:
    """One that is running: where, and which processes are its own.

    Attributes:
        ready: seconds from its start until it answers.
    """

    http: httpx.Client
    model: str
    pid: int
    ready: float
    begin: float


@dataclass(frozen=True)
class Answered:
    """One answer: seconds to its first piece, its pieces, its text."""

    first: float
    pieces: int
    text: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", metavar="SERVER", help="one of them; may repeat")
    args = parser.parse_args()
    requests = 4 if args.quick else 16
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        work = Path(folder)
        source = real_model("smollm2-135m-instruct-q4_1.gguf")
        bundle = _converted(source, work)
        starts: dict[str, Callable[[], contextlib.AbstractContextManager[Server]]] = {
            "ours": lambda: _ours(bundle),
            "official": lambda: _official(bundle, work),
            "llama.cpp Q4_1": lambda: _llama_cpp(source),
            "llama.cpp Q8_0": lambda: _llama_cpp(_requantized(source, work)),
        }
        if unknown := set(args.only or ()) - starts.keys():
            parser.error(f"--only {', '.join(unknown)}: choose among {', '.join(starts)}")
        starts = {name: start for name, start in starts.items() if name in (args.only or starts)}
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
        "benchmark": "serve",
        "version": __version__,
        "commit": commit(),
        "machine": machine("litert-lm-api"),
        "llama.cpp": LLAMA_CPP_SOURCE,
        "requests": requests,
        "rounds": 1 if args.quick else args.rounds,
        "servers": figures,
    }
    print(json.dumps(document))


def _measure(server: Server, requests: int) -> dict[str, Any]:
    found: dict[str, Any] = {"ready_seconds": server.ready}
    with _Memory(server.pid) as memory:
        _ask(server, [_said("Hello.")])  # loads the model
        found["first_answer_seconds"] = time.perf_counter() - server.begin
        found["loaded_mib"] = memory.now() / 2**20
        for clients in CLIENTS:
            found[f"{clients} clients"] = _load(server, clients, max(requests, clients))
        found["1000 tokens"] = _turns(server)
    found["peak_mib"] = memory.peak / 2**20
    return found


def _load(server: Server, clients: int, count: int) -> dict[str, float]:
    """So many at once, each with a question of its own: llama.cpp keeps what it was told before."""
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        questions = [[_said(f"{clients}.{i}. {_WORDS * 4}")] for i in range(count)]
        answers = list(pool.map(lambda question: _ask(server, question), questions))
    seconds = time.perf_counter() - begin
    return {
        "requests_per_second": count / seconds,
        "tokens_per_second": sum(answer.pieces for answer in answers) / seconds,
        "first_token_seconds": statistics.median(answer.first for answer in answers),
    }


def _turns(server: Server) -> dict[str, float]:
    """Seconds to the first token of a second turn, and of one that is told with all before it.

    Only chats count whose first answer ended by itself: ours keeps no conversation that was cut.
    """
    known, unknown = [], []
    for country in _COUNTRIES:
        question = f"Of {country}: {_WORDS * 70}What is the capital of {country}?"
        first = _ask(server, [_said(question)], _MOST_TOKENS)
        if first.pieces >= _MOST_TOKENS:
            continue
        rest = [{"role": "assistant", "content": first.text}, _said(_QUESTION)]
        known.append(_ask(server, [_said(question), *rest]).first)
        unknown.append(_ask(server, [_said(f"Well, {question}"), *rest]).first)
    fresh, kept = statistics.median(unknown), statistics.median(known)
    return {
        "chats": len(known),
        "fresh_seconds": fresh,
        "second_turn_seconds": kept,
        "times_sooner": fresh / kept,
    }


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _ask(server: Server, messages: list[dict[str, str]], most: int = _NEW_TOKENS) -> Answered:
    """A streamed answer, cut after some tokens: whoever ignores max_tokens is left then."""
    begin = time.perf_counter()
    first, pieces, text = 0.0, 0, ""
    body = {"model": server.model, "messages": messages, "temperature": 0, "stream": True}
    body |= {"max_tokens": most}
    with _stream(server, body) as reply:
        for line in reply.iter_lines():
            _check(line)
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line[6:]).get("choices") or [{}]
            if piece := choices[0].get("delta", {}).get("content"):
                first = first or time.perf_counter() - begin
                pieces, text = pieces + 1, text + piece
            if pieces >= most:
                break
    return Answered(first or time.perf_counter() - begin, pieces, text)  # some answers are empty


@contextlib.contextmanager
def _stream(server: Server, body: dict[str, Any]) -> Iterator[httpx.Response]:
    """The official server resets some connections of many at once: it is asked again."""
    request = server.http.build_request("POST", "/v1/chat/completions", json=body)
    for _ in range(20):
        with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
            reply = server.http.send(request, stream=True)
            break
    reply.raise_for_status()
    with contextlib.closing(reply):
        yield reply


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


def _converted(source: Path, work: Path) -> Path:
    bundle = work / f"{_MODEL}.litertlm"
    command: list[str | Path] = [CLI, "convert", source, "--quantize", "dynamic_int8", "--quiet"]
    command += ["--kv-cache-max-len", str(_CONTEXT), "--output-dir", work]
    subprocess.run(command, check=True, capture_output=True)
    (work / f"{source.stem}.litertlm").rename(bundle)
    return bundle


def _requantized(source: Path, work: Path) -> Path:
    target = work / f"{_MODEL}-q8_0.gguf"
    if not target.exists():
        program = llama_cpp_programs() / "llama-quantize"
        command: list[str | Path] = [program, "--allow-requantize", source, target, "Q8_0"]
        subprocess.run(command, check=True, capture_output=True)
    return target


def _ours(bundle: Path) -> contextlib.AbstractContextManager[Server]:
    command = [str(CLI), "serve", str(bundle), "--threads", str(THREADS)]
    return running(command, bundle.stem)


@contextlib.contextmanager
def _official(bundle: Path, work: Path) -> Iterator[Server]:
    home = {"HOME": str(work)}
    client = str(ROOT / "venv/bin/litert-lm")
    imported = [client, "import", str(bundle), _MODEL]
    subprocess.run(imported, env={**os.environ, **home}, check=True, capture_output=True)
    with running([client, "serve"], _MODEL, **home) as server:
        yield server


def _llama_cpp(model: Path) -> contextlib.AbstractContextManager[Server]:
    command = [str(llama_cpp_programs() / "llama-server"), "--model", str(model)]
    command += ["--threads", str(THREADS), "--parallel", str(_SLOTS)]
    command += ["--ctx-size", str(_CONTEXT * _SLOTS)]
    return running(command, _MODEL)


@contextlib.contextmanager
def running(command: list[str], model: str, **environment: str) -> Iterator[Server]:
    port, quiet = _free_port(), subprocess.DEVNULL
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env={**os.environ, **environment},
        stdout=quiet,
        stderr=quiet,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        # One client for all: making one takes as long as some tokens. But a connection for each
        # request: some servers close them without a word.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=url, timeout=600, limits=limits) as http:
            for _ in range(6000):
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/v1/models").status_code == 200:
                        break
                time.sleep(0.01)
            ready = time.perf_counter() - begin
            yield Server(http, model, process.pid, ready, begin)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Memory:
    """Watches the memory of a process and of all that it started (Linux); a context manager.

    Attributes:
        peak: the most that was seen, in bytes.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._is_over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._watching.join()

    def now(self) -> int:
        """The proportional set size of all of them, in bytes."""
        total, parents = 0, [self._pid]
        while parents:
            children: list[int] = []
            for parent in parents:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    home = Path(f"/proc/{parent}")
                    for line in (home / "smaps_rollup").read_text().splitlines():
                        if line.startswith("Pss:"):
                            total += int(line.split()[1]) * 1024
                    for task in (home / "task").iterdir():
                        children += map(int, (task / "children").read_text().split())
            parents = children
        return total

    def _watch(self) -> None:
        while not self._is_over.wait(0.1):
            self.peak = max(self.peak, self.now())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
