"""`litert-lm-cli rm`: remove a model from models/."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "rm",
        help="remove a model from models/",
        description="Remove a model from models/: what was converted, and what was downloaded for "
        "it. Files elsewhere are not touched.",
    )
    parser.add_argument("name", metavar="MODEL", help="its name in list, or demo")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--keep-checkpoint",
        action="store_true",
        help="keep what was downloaded, so that it can be converted again",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from cli.inspect import printable, size
    from converter.checkpoint.model_store import find_model, freed_bytes, remove
    from converter.checkpoint.sources import models_dir
    from converter.errors import OptionError

    model = find_model(args.name, models_dir())
    paths = [path for path in model.parts if not args.keep_checkpoint or path != model.checkpoint]
    name, freed = printable(model.name), size(freed_bytes(paths))
    if not paths:
        print(f"nothing to remove: all there is of {name} is its checkpoint", file=sys.stderr)
        return
    if not args.yes:
        print(f"{name}: this frees {freed}", file=sys.stderr)
        for path in paths:
            print(f"  {printable(str(path))}", file=sys.stderr)
        if sys.stdin is None or not sys.stdin.isatty():
            raise OptionError(f"rm {args.name}", "nobody is there to be asked", "add --yes")
        print("Remove it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was removed", file=sys.stderr)
            return
    remove(model, paths)
    print(f"removed {name}: {freed} are free again", file=sys.stderr)
