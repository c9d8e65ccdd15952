"""`litert-lm-cli upload`: a package onto the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.request import Request

if TYPE_CHECKING:
    from publish.package import Package


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "upload",
        help="send a package to the Hugging Face hub",
        description="Send what package made to the Hugging Face hub (HF_ENDPOINT: a mirror). The "
        "repository is made where there is none; files that are there already are not sent again. "
        "The access token is HF_TOKEN, a file HF_TOKEN, or the login of the hf tool. Prints the "
        "address of the repository.",
    )
    parser.add_argument("repo", metavar="ORG/NAME", help="the repository")
    parser.add_argument(
        "package",
        nargs="?",
        default=".",
        metavar="DIR|MODEL",
        help="a package (default: the current folder); or whatever package takes, which is "
        "packaged on the way",
    )
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--revision", metavar="REV", help="a branch, made if missing")
    parser.add_argument(
        "--offline", action="store_true", help="of MODEL: use what is on this disk, and no network"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def main(args: argparse.Namespace) -> None:
    from publish.names import check_repo_id

    request = Request(args.package, offline=args.offline, quiet=args.quiet, asks=True)
    repo_id = check_repo_id(args.repo)
    with ExitStack() as stack:
        package = _package(request, repo_id, stack)
        from cli.fetch import say
        from cli.inspect import size
        from cli.progress import byte_progress
        from publish.package import edited_texts, fill_in
        from publish.upload import upload

        package = fill_in(package, repo_id)
        for name in edited_texts(package):
            say(request, f"{name} was edited since it was packaged, and goes as it is now")
        total = sum((package.folder / name).stat().st_size for name in package.files)
        say(request, f"{repo_id}: {len(package.files)} files, {size(total)}")
        with byte_progress(total, args.quiet, what="Sending") as progress:
            done = upload(package, repo_id, args.private, args.revision, progress)
        for note in done.notes:
            say(request, note)
        say(request, f"{done.url} is at commit {done.commit[:12]}")
    print(done.url)
    sys.stdout.flush()


def _package(request: Request, repo_id: str, stack: ExitStack) -> Package:
    """The package that is named, or one made of the model that is named."""
    from publish.package import is_package, open_package, write_package

    folder = Path(request.model)
    is_model = (folder / "config.json").exists()
    if is_package(folder) or request.model == "." or (folder.is_dir() and not is_model):
        return open_package(folder)
    from cli.obtain import obtain
    from converter.output.scratch import scratch_folder

    output = obtain(request)
    scratch = stack.enter_context(scratch_folder(f".{output.stem}-upload-", output.parent))
    return write_package(output, scratch / output.stem, repo_id)
