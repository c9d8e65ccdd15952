"""`litert-lm-cli verify`: is a file still what its receipt says?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="hold a .litertlm file against its receipt",
        description="Hash every section of a .litertlm file and compare with the receipt beside "
        "it: prints MATCH, or what differs, and exits with 1 then.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a .litertlm file")
    parser.add_argument(
        "--receipt", type=Path, metavar="R", help="default: the .json of the same name beside it"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from cli.inspect import printable
    from converter.errors import SourceError
    from converter.receipt import differences, read_receipt, receipt_path, settle

    if not args.file.is_file():
        raise SourceError(str(args.file), "there is no such file", "pass a .litertlm file")
    if args.receipt is None:
        settle(args.file)
    path = args.receipt or receipt_path(args.file)
    changed = differences(read_receipt(path), args.file)
    if not changed:
        print("MATCH")
        return
    for line in changed:
        print(printable(f"DIFFERS {line}"))
    raise SourceError(
        str(args.file),
        f"it is not what {path} says ({len(changed)} of its parts)",
        f"make it again: litert-lm-cli convert --from-receipt {path} --force "
        f"--output-dir {args.file.parent}",
    )
