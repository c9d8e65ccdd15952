"""`litert-lm-cli list`: the converted models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from converter.errors import SourceError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "list",
        help="list the models in models/",
        description="List the models in models/: size, scheme and context length of what was "
        "converted, to a .litertlm file or to Core ML packages (coreml, and the bits of the tables "
        "of embedding, layers and head), and the size of what was downloaded for it. rm removes "
        "one.",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from cli.inspect import printable, size
    from converter.checkpoint.model_store import freed_bytes, stored_models
    from converter.checkpoint.sources import list_models, models_dir

    folder = models_dir()
    models = stored_models(folder)
    downloaded = {
        model.name: size(freed_bytes([model.checkpoint]))
        for model in models
        if model.checkpoint in model.parts
    }
    packages = [model.packages for model in models if model.packages in model.parts]
    rows = []
    # Of one model, the packages come after the file.
    for path in sorted([*list_models(folder), *packages], key=lambda path: path.parent):
        name = path.parent.relative_to(folder).as_posix()
        try:
            nbytes, scheme, context = (_of_packages if path in packages else _of_bundle)(path)
            found = (size(nbytes), printable(scheme), context)
        except SourceError as error:
            found = ("damaged", "-", "-")
            print(f"litert-lm-cli: {printable(str(error))}", file=sys.stderr)
        rows.append((printable(name), *found, downloaded.get(name, "-")))
    # Not converted, or to another folder.
    listed = {row[0] for row in rows}
    rows += [
        (printable(name), "-", "-", "-", nbytes)
        for name, nbytes in downloaded.items()
        if printable(name) not in listed
    ]
    if not rows:
        print("no models yet: try litert-lm-cli run demo", file=sys.stderr)
        return
    rows.insert(0, ("MODEL", "SIZE", "SCHEME", "CONTEXT", "CHECKPOINT"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _of_bundle(path: Path) -> tuple[int, str, str]:
    """Bytes, scheme and context."""
    from converter.litertlm.inspection import read_bundle

    bundle = read_bundle(path)
    scheme = str(bundle.system.get("quantization", "-"))
    return bundle.nbytes, scheme, str(bundle.metadata.max_num_tokens)


def _of_packages(path: Path) -> tuple[int, str, str]:
    from converter.coreml.inspection import folder_bytes, packages_of, read_meta

    meta = read_meta(path)
    packages_of(path, meta)  # or one is missing
    return folder_bytes(path), f"coreml {meta.scheme}", str(meta.context or "-")
