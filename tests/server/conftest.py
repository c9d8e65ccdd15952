"""A server as a user starts it, with a real model."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

CLI = Path(__file__).resolve().parent.parent.parent / "litert-lm-cli"


@dataclass
class Served:
    """A running server.

    Attributes:
        model: the name of its first model.
    """

    port: int
    model: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[int]:
        """Its own, and all that it has started."""
        found, parents = [], [self.process.pid]
        while parents:
            found += parents
            parents = [child for parent in parents for child in _children(parent)]
        return found

    def workers(self) -> list[int]:
        """The processes that hold an engine."""
        return sorted(pid for pid in self.processes() if b"server.worker" in _command(pid))

    def chat(self, *messages: str, **options: object) -> httpx.Response:
        """Ask; messages are the user's and the assistant's in turn."""
        roles = ("user", "assistant")
        listed = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
        body = {"model": self.model, "messages": listed, "temperature": 0, **options}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(n) for task in tasks for n in (task / "children").read_text().split()]
    except FileNotFoundError:  # it has ended
        return []


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def serving(
    folder: Path, *arguments: str | Path, model: str = "", port: int = 0, **env: str
) -> Iterator[Served]:
    """A server with these arguments, until the block ends."""
    port, log = port or free_port(), folder / "serve.log"
    command = [str(CLI), "serve", *map(str, arguments), "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output, env={**os.environ, **env})
    served = Served(port, model, process, log)
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{served.url}/health").status_code == 200:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def served(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """SmolLM2, loaded at the first request."""
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, smollm2_bundle, model=smollm2_bundle.stem) as server:
        yield server
