"""The models folder: what is in it, and how a model leaves it.

models/{org}/{name}/{name}.litertlm    converted; models/local/{name} for what came from a disk
models/{org}/{name}/coreml/              converted to Core ML packages
models/{org}/{name}/checkpoint/        downloaded, to be converted again or continued
models/{org}/{name}/adapter/           a downloaded LoRA adapter; of a GGUF, in adapter/{file}/
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.files import unreadable
from converter.checkpoint.sources import DEMO_ID, PACKAGES, SUFFIX, shown
from converter.errors import OutputError, SourceError


@dataclass(frozen=True)
class StoredModel:
    """A model's folder.

    Attributes:
        name: `{org}/{name}`, or `local/{name}`.
        home: its folder.
        parts: the entries of the folder.
    """

    name: str
    home: Path
    parts: tuple[Path, ...]

    @property
    def checkpoint(self) -> Path:
        """Where what was downloaded lies, if anything was."""
        return self.home / "checkpoint"

    @property
    def bundles(self) -> list[Path]:
        """Its `.litertlm` files, of which conversions make one."""
        return [part for part in self.parts if part.suffix == SUFFIX and part.is_file()]

    @property
    def packages(self) -> Path:
        """Where its Core ML packages lie, if it has any."""
        return self.home / PACKAGES


def stored_models(folder: Path) -> list[StoredModel]:
    """Everything below the models folder, by name; links are not followed.

    Raises:
        SourceError: a folder cannot be read.
    """
    found = []
    for organisation in _folders(folder):
        for home in _folders(organisation):
            if parts := tuple(_entries(home)):
                found.append(StoredModel(f"{organisation.name}/{home.name}", home, parts))
    return found


def find_model(text: str, folder: Path) -> StoredModel:
    """The model that the user means: its name in `list`, its last part where one has it, or demo.

    Raises:
        SourceError: there is no such model, or there are several.
    """
    wanted = DEMO_ID if text == "demo" else text.strip().removesuffix("/")
    models = stored_models(folder)
    named = [m for m in models if m.name == wanted] or [m for m in models if m.home.name == wanted]
    if len(named) == 1:
        return named[0]
    if named:
        names = ", ".join(model.name for model in named)
        raise SourceError(shown(text), f"it may be one of {names}", "give the whole name")
    near = difflib.get_close_matches(wanted, [model.name for model in models], 3, cutoff=0.4)
    fix = f"did you mean {', '.join(near)}?" if near else "litert-lm-cli list shows what there is"
    raise SourceError(shown(text), f"there is no such model in {folder}", fix)


def freed_bytes(paths: Iterable[Path]) -> int:
    """What removing files and folders gives back; a file that has another name stays."""
    links: Counter[tuple[int, int]] = Counter()
    freed = 0
    for path in paths:
        found = [path]
        if path.is_dir() and not path.is_symlink():
            found = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
        for file in found:
            status = file.lstat()
            links[status.st_dev, status.st_ino] += 1
            if links[status.st_dev, status.st_ino] >= status.st_nlink:
                freed += status.st_size
    return freed


def remove(model: StoredModel, paths: Sequence[Path]) -> None:
    """Remove parts of a model, and folders that are empty then; of a link, the link.

    Raises:
        OutputError: something cannot be removed.
    """
    try:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        where = str(error.filename or model.home)
        raise OutputError(f"removing {model.name}", f"{where}: {why}", "remove it by hand") from (
            error
        )
    with contextlib.suppress(OSError):  # not empty
        model.home.rmdir()
        model.home.parent.rmdir()


def _folders(folder: Path) -> list[Path]:
    return [
        path
        for path in _entries(folder)
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
