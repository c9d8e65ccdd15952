"""`litert-lm-cli verify`: is an output still what its receipt says?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cli.outputs import FILE_HELP, output_of


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="hold a .litertlm file, or a folder of Core ML packages, against its receipt",
        description="Hash every section of a .litertlm file and compare with the receipt beside "
        "it; or every file of a folder of packages, with the receipt in it, except for what a Mac "
        "puts there (.mlmodelc, which compile.sh makes, and hidden files). Prints MATCH, or what "
        "differs, and exits with 1 then.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help=FILE_HELP)
    parser.add_argument(
        "--receipt",
        type=Path,
        metavar="R",
        help="default: the .json of the same name beside the file, or receipt.json in the folder",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from cli.inspect import printable
    from converter.checkpoint.files import status_of
    from converter.errors import SourceError
    from converter.receipt import IN_FOLDER, differences, read_receipt, receipt_path, settle

    if args.file.name == IN_FOLDER and args.receipt is None:
        args.file = args.file.parent
    args.file = output_of(args.file)
    is_folder = args.file.is_dir()
    has_none = status_of(receipt_path(args.file)) is None and args.receipt is None
    is_part = has_none and status_of(args.file.parent / IN_FOLDER) is not None
    if is_part or args.file.suffix == ".mlpackage":
        raise SourceError(
            str(args.file),
            "it is a part of a folder that has one receipt",
            f"verify that: litert-lm-cli verify {args.file.parent}",
        )
    if args.receipt is None and not is_folder:
        settle(args.file)
    path = args.receipt or receipt_path(args.file)
    receipt = read_receipt(path)
    changed = differences(receipt, args.file)
    if not changed:
        print("MATCH")
        return
    for line in changed:
        print(printable(f"DIFFERS {line}"))
    folder = args.file if is_folder else args.file.parent
    again = (
        f"make it again: litert-lm-cli convert --from-receipt {path} --force --output-dir {folder}"
    )
    raise SourceError(
        str(args.file),
        f"it is not what {path} says ({len(changed)} of its {'files' if is_folder else 'parts'})",
        _without_strange(receipt, folder, len(changed), again) if is_folder else again,
    )


def _without_strange(receipt: dict[str, Any], folder: Path, changed: int, again: str) -> str:
    """What to do where files may be too many: those are somebody's, and nothing removes them."""
    from converter.receipt import strange_files

    strange = strange_files(receipt, folder)
    if not strange:
        return again
    known = {part["name"].partition("/")[0] for part in receipt["output"]["parts"]}
    tops = [name.partition("/")[0] for name in strange]
    # A package of nothing else goes as a whole: runtimes would take what is left of it for one.
    entries = [name if top in known else top for name, top in zip(strange, tops, strict=True)]
    first, *others = dict.fromkeys(entries)
    more = f" and {len(others)} more" if others else ""
    move = f"move {folder / first}{more} elsewhere"
    return move if len(strange) == changed else f"{move}, then {again}"
