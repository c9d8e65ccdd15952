"""`litert-lm-cli list`: the converted models."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "list",
        help="list the models in models/",
        description="List the models in models/: size, scheme and context length of what was "
        "converted, and the size of what was downloaded for it. rm removes one.",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from cli.inspect import printable, size
    from converter.checkpoint.model_store import freed_bytes, stored_models
    from converter.checkpoint.sources import list_models, models_dir
    from converter.errors import SourceError
    from converter.litertlm.inspection import read_bundle

    folder = models_dir()
    downloaded = {
        model.name: size(freed_bytes([model.checkpoint]))
        for model in stored_models(folder)
        if model.checkpoint in model.parts
    }
    rows = []
    for path in list_models(folder):
        name = path.parent.relative_to(folder).as_posix()
        try:
            bundle = read_bundle(path)
            scheme = printable(str(bundle.system.get("quantization", "-")))
            found = (size(bundle.nbytes), scheme, str(bundle.metadata.max_num_tokens))
        except SourceError as error:
            found = ("damaged", "-", "-")
            print(f"litert-lm-cli: {printable(str(error))}", file=sys.stderr)
        rows.append((printable(name), *found, downloaded.pop(name, "-")))
    # Not converted, or to another folder.
    rows += [(printable(name), "-", "-", "-", nbytes) for name, nbytes in downloaded.items()]
    if not rows:
        print("no models yet: try litert-lm-cli run demo", file=sys.stderr)
        return
    rows.insert(0, ("MODEL", "SIZE", "SCHEME", "CONTEXT", "CHECKPOINT"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
