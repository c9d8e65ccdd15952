"""A folder that holds all that a model needs where it is published.

    NAME.litertlm           the bundle: the same file as where it was made, where links can be
    NAME.json               its receipt, without the names of local folders
    README.md               the card
    model_allowlist.json    for Google's AI Edge Gallery
    LICENSE, NOTICE, ...    as the source has them
    .litert-lm-package.json the manifest: size and SHA-256 of each of them; it stays here

Each file appears whole. The manifest comes last: until then it says that the folder is unfinished,
and whoever is interrupted packages again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.files import is_plain_name, unreadable
from converter.checkpoint.papers import CARD
from converter.errors import OptionError, OutputError, SourceError
from converter.litertlm.inspection import read_bundle
from converter.output.atomic_file import AtomicFile, link_or_copy, unfinished
from converter.receipt import differences, origins_of, read_receipt, receipt_path
from publish import gallery
from publish.card import card, description, texts_of
from publish.figures import figures_of
from publish.names import PLACEHOLDER

MANIFEST = ".litert-lm-package.json"
FORMAT = 1
_LARGEST = 1 << 20  # bytes of a manifest
_AGAIN = "package it again: litert-lm-cli package MODEL --to"


@dataclass(frozen=True)
class Sum:
    """What a file must be."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """A finished package.

    Attributes:
        files: every file but the manifest, by name; the bundle is the first.
    """

    folder: Path
    files: Mapping[str, Sum]

    @property
    def bundle(self) -> str:
        return next(iter(self.files))

    @property
    def texts(self) -> list[str]:
        """What its owner may edit: all but the bundle and its receipt."""
        return list(self.files)[2:]


def write_package(
    output: Path, folder: Path, repo_id: str | None = None, force: bool = False
) -> Package:
    """Make, or make anew, the package of a bundle.

    Args:
        output: a `.litertlm` file with its receipt.
        folder: new, empty, or a package.
        repo_id: where it will go; its texts have a placeholder for it otherwise.
        force: replace texts that were edited.

    Raises:
        SourceError: the bundle has no receipt, or is not what that says.
        OutputError: the folder holds something else, or cannot be written.
    """
    receipt = _receipt_of(output)
    before = _names_in(folder, force)
    bundle = read_bundle(output)
    sums = {output.name: _sum_of(output)}
    name = repo_id or PLACEHOLDER
    figures = figures_of(receipt, str(receipt_path(output)))
    said = gallery.allowlist(bundle, name, description(receipt))
    texts = {
        receipt_path(output).name: json.dumps(receipt, indent=2) + "\n",
        CARD: card(bundle, receipt, figures, sums[output.name].sha256, name),
        gallery.FILE: json.dumps(said, indent=2) + "\n",
    }
    for each in texts_of(receipt):
        texts |= each

    with _option_named():
        _write_manifest(folder, dict.fromkeys([*before, output.name, *texts]))
        link_or_copy(output, folder / output.name, lambda _: lambda: None)
        for file, text in texts.items():
            sums[file] = _write(folder / file, text)
        for file in before - sums.keys():
            (folder / file).unlink(missing_ok=True)
        _write_manifest(folder, sums)
    return Package(folder, sums)


def is_package(folder: Path) -> bool:
    """Whether a folder is one, finished or not."""
    return (folder / MANIFEST).is_file()


def open_package(folder: Path) -> Package:
    """A package as its manifest has it; `Package.files` is still to be held against the files.

    Raises:
        SourceError: it is none, or not whole.
    """
    if not is_package(folder):
        why = "it is no package" if folder.is_dir() else "there is no such folder"
        raise SourceError(str(folder), why, f"make one: litert-lm-cli package MODEL --to {folder}")
    sums = _read_manifest(folder)
    missing = [
        name for name, value in sums.items() if value is None or not (folder / name).is_file()
    ]
    if missing:
        raise SourceError(str(folder), f"it is not whole: {missing[0]}", f"{_AGAIN} {folder}")
    return Package(folder, {name: value for name, value in sums.items() if value is not None})


def edited_texts(package: Package) -> list[str]:
    """Names of texts that are there, but not as they were written: somebody edited them.

    Raises:
        SourceError: one cannot be read.
    """
    return [
        name
        for name in package.texts
        if (package.folder / name).exists()
        and _sum_of(package.folder / name) != package.files[name]
    ]


def fill_in(package: Package, repo_id: str) -> Package:
    """Name the repository in the texts, where their placeholder stands.

    Raises:
        OptionError: the texts name another one.
        OutputError: they cannot be written.
    """
    sums = dict(package.files)
    for name in (gallery.FILE, CARD):
        path = package.folder / name
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            raise unreadable(path, error) from error
        except UnicodeDecodeError as error:
            raise SourceError(str(path), "it cannot be read as UTF-8", "save it again") from error
        filled = text.replace(PLACEHOLDER, repo_id)
        if name == gallery.FILE:
            _require_repo(path, filled, repo_id)
        if filled != text:
            was_ours = _sum_of(path) == sums[name]
            written = _write(path, filled)
            if was_ours:
                sums[name] = written
    if sums != package.files:
        _write_manifest(package.folder, sums)
    return Package(package.folder, sums)


def _require_repo(path: Path, text: str, repo_id: str) -> None:
    """Raise OptionError where the Gallery would be sent to another repository."""
    try:
        named = [model["modelId"] for model in json.loads(text)["models"]]
    except (ValueError, LookupError, TypeError):
        named = []
    if named != [repo_id]:
        raise OptionError(
            repo_id,
            f"{path} names {', '.join(map(str, named)) or 'no repository'}",
            f"package it again with --repo {repo_id}",
        )


def _receipt_of(output: Path) -> dict[str, Any]:
    """The receipt of a bundle that is what it says, without names of folders of this machine."""
    path = receipt_path(output)
    if not path.is_file():
        raise SourceError(
            str(output),
            "no receipt is beside it, so a card could not say what it was made of",
            f"put its {path.name} there, or convert the model again",
        )
    receipt = read_receipt(path)
    if changed := differences(receipt, output):
        raise SourceError(
            str(output),
            f"it is not what {path.name} says ({changed[0]})",
            f"make it again: litert-lm-cli convert --from-receipt {path} --force "
            f"--output-dir {output.parent}",
        )
    options = receipt.get("options") or {}
    for origin in origins_of(receipt):
        if origin["kind"] not in ("hub", "demo"):
            origin["model"] = _last_part(origin["model"])
    if (template := options.get("chat_template")) and isinstance(template.get("file"), str):
        template["file"] = _last_part(template["file"])
    return receipt


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _names_in(folder: Path, force: bool) -> set[str]:
    """What stands in a folder and may be replaced.

    Raises:
        OutputError: something may not.
    """
    if not folder.exists():
        return set()
    try:
        there = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise OutputError(str(folder), why, "choose another folder with --to") from error
    known = _read_manifest(folder) if is_package(folder) else {}
    there -= {unfinished(folder / name).name for name in (MANIFEST, *known)}  # of a killed run
    if foreign := sorted(there - known.keys()):
        raise OutputError(
            str(folder),
            f"it holds {foreign[0]}, which is not of a package",
            "choose another folder with --to",
        )
    sums = {name: value for name, value in known.items() if value is not None}
    if not force and sums == known:  # an interrupted one has texts of both
        for name in edited_texts(Package(folder, sums)):
            raise OutputError(str(folder / name), "it was edited", "add --force to write it anew")
    return there


@contextmanager
def _option_named() -> Iterator[None]:
    """A file that cannot be written is helped by this command's option, not by convert's."""
    try:
        yield
    except OutputError as error:
        raise type(error)(
            error.what, error.why, error.fix.replace("--output-dir", "--to")
        ) from error


def _sum_of(path: Path) -> Sum:
    try:
        with open(path, "rb") as file:
            return Sum(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise SourceError(
            str(path), (error.strerror or str(error)).lower(), "check the disk, and run this again"
        ) from error


def _write(path: Path, text: str) -> Sum:
    content = text.encode()
    with AtomicFile(path) as file:
        file.write_at(0, content)
        file.commit()
    return Sum(len(content), hashlib.sha256(content).hexdigest())


def _write_manifest(folder: Path, sums: Mapping[str, Sum | None]) -> None:
    """Write what must be there; a file without a sum makes the package an unfinished one."""
    files = {
        name: None if value is None else {"size": value.size, "sha256": value.sha256}
        for name, value in sums.items()
    }
    _write(folder / MANIFEST, json.dumps({"package": FORMAT, "files": files}, indent=2) + "\n")


def _read_manifest(folder: Path) -> dict[str, Sum | None]:
    path = folder / MANIFEST
    try:
        with open(path, "rb") as file:
            said = json.loads(file.read(_LARGEST))
        if said["package"] != FORMAT or not all(map(is_plain_name, said["files"])):
            raise ValueError(said)
        return {
            name: None if value is None else Sum(int(value["size"]), str(value["sha256"]))
            for name, value in said["files"].items()
        }
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            str(path), "it is no manifest of a package", "remove the folder, and package again"
        ) from error
