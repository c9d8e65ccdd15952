"""`litert-lm-cli serve`: models as a local service."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from cli.convert import MODEL_HELP, add_conversion_options
from cli.limits import LIMITS
from cli.request import Request, of_arguments
from cli.run import add_keep_packed
from converter.errors import OptionError, SourceError

_KEY = "LITERT_LM_API_KEY"
_UNITS = {"s": 1, "m": 60, "h": 3600}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve",
        help="offer models to programs, in OpenAI's and Ollama's words",
        description="Offer models as a local service. Without MODEL, those in models/ are offered. "
        "One is loaded at a time, at its first request.",
    )
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help=f"a .litertlm file, {MODEL_HELP}"
    )
    service = parser.add_argument_group("service")
    service.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where it listens (default: 127.0.0.1)",
    )
    service.add_argument("--port", type=int, default=9379, metavar="N", help="default: 9379")
    service.add_argument(
        "--api-key", metavar="KEY", help=f"what clients have to know (or {_KEY}, which ps hides)"
    )
    service.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="pages that may ask"
    )
    service.add_argument(
        "--max-queue", type=int, default=32, metavar="N", help="how many requests may wait"
    )
    service.add_argument(
        "--keep-alive", default="5m", metavar="TIME", help="30s, 5m, 2h; -1 keeps a model loaded"
    )
    service.add_argument(
        "--threads",
        type=LIMITS["threads"],
        metavar="N",
        help="that a model's engines share (default: the cores, four at most)",
    )
    add_keep_packed(service)
    add_conversion_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    keep_alive = seconds_of(args.keep_alive)
    if args.max_queue < 0:
        raise OptionError(
            f"--max-queue {args.max_queue}", "is no number of requests", "choose 0 or more"
        )
    if not 0 < args.port < 1 << 16:
        raise OptionError(f"--port {args.port}", "is no port", "choose one from 1 to 65535")
    key = args.api_key or os.environ.get(_KEY) or None
    if args.host not in ("127.0.0.1", "localhost", "::1") and key is None:
        raise OptionError(
            f"--host {args.host}",
            "others could ask without a key",
            f"give one with --api-key or {_KEY}",
        )
    offered, called = _offered(args)
    if args.keep_packed:
        from runner.packed_weights import check_keeping

        for path in offered.values():
            check_keeping(path)
    from server.run import serve

    serve(
        offered,
        called,
        host=args.host,
        port=args.port,
        key=key,
        origins=args.cors,
        queue=args.max_queue,
        keep_alive=keep_alive,
        threads=args.threads,
        keep_packed=args.keep_packed,
        quiet=args.quiet,
    )


def seconds_of(text: str) -> float | None:
    """`5m` -> 300; None for `-1`, which is for ever.

    Raises:
        OptionError: it is no time.
    """
    if text.strip() == "-1":
        return None
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise OptionError(f"--keep-alive {text}", "is no time", "write 30s, 5m or 2h, or -1")
    return seconds


def _offered(args: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """The models by name, and the names under which they were asked for."""
    from converter.checkpoint.sources import models_by_name, models_dir

    if not args.models:
        found = models_by_name(models_dir())
        if not found:
            raise SourceError(
                "models/", "holds no .litertlm file yet", "name a model: litert-lm-cli serve demo"
            )
        return found, {}
    from cli.obtain import obtain

    offered, called = {}, {}
    for model in args.models:
        one = argparse.Namespace(**{**vars(args), "model": model})
        path = obtain(of_arguments(Request, one, asks=True))
        offered[path.stem] = path
        called[model] = path.stem
    return offered, called
