"""From start to end: the socket, the signals, and what is said meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import uvicorn

from converter.errors import OptionError
from server import page
from server.app import Service
from server.guard import Rules, hosts_of
from server.host import Host, Limits, usable_threads

_ENDING_SECONDS = 20.0
_OPEN_PATHS = frozenset(("/health", *page.PATHS))


def serve(
    offered: Mapping[str, Path],
    called: Mapping[str, str],
    host: str,
    port: int,
    key: str | None,
    origins: Sequence[str],
    queue: int,
    keep_alive: float | None,
    threads: int | None,
    keep_packed: bool,
    quiet: bool,
) -> None:
    """Serve until SIGINT or SIGTERM; then what is under way is finished, within a bound.

    Args:
        called: see `Host`.

    Raises:
        OptionError: the address cannot be had.
    """
    limits = Limits(queue, keep_alive, threads or usable_threads(), keep_packed=keep_packed)
    models = Host(offered, limits, called)
    rules = Rules(hosts_of(host), frozenset(origins), key, _OPEN_PATHS)
    service = Service(models, rules, log=not quiet)
    bound = _bound(host, port)
    config = uvicorn.Config(
        service.app(),
        log_level="critical",
        access_log=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(_ENDING_SECONDS),
        h11_max_incomplete_event_size=16 << 10,
        limit_concurrency=256,
        lifespan="off",
        server_header=False,
    )
    name = f"[{host}]" if ":" in host else host
    print(
        f"litert-lm-cli: {', '.join(offered)} on http://{name}:{port}", file=sys.stderr, flush=True
    )

    async def run() -> None:
        try:
            await _Server(config).serve(sockets=[bound])
        finally:
            await models.close(1.0)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal is a request to end; when that is done, there is nothing more to be said."""
        previous = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OptionError(
            f"--host {host} --port {port}", f"cannot be had ({error.strerror})", "choose others"
        ) from error
    return bound
