"""Receipts: with every output, what it was made of and how, and the hash of every part of it.

An output is a `.litertlm` file, whose parts are its sections, or a folder of packages, whose parts
are its files. A folder's receipt is in it. `NAME.json` stands beside `NAME.litertlm`. It gets its
name after the file did; in between it waits under a name of its own, so that whoever is interrupted
leaves a pair that belongs together, or one that the next run completes.

Hashes are BLAKE3 (`b3sum` prints the same): they are made beside the disk's work, and SHA-256 would
take as long as a conversion. Those of the sources are begun first of all; what this file imports
only later is imported there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from converter.checkpoint.files import files_below, is_plain_name, status_of
from converter.checkpoint.papers import papers_of
from converter.errors import OutputError, SourceError
from converter.output.atomic_file import AtomicFile, sweep
from converter.version import __version__
from converter.workers import map_in_threads

FORMAT = 1
IN_FOLDER = "receipt.json"  # of a folder of packages
_LARGEST = 1 << 24  # bytes of a receipt
_FIX = "pass the .json beside a .litertlm file, or the receipt.json in a folder of packages"
_READ_SIZE = 1 << 18  # what the L2 cache holds
_SHARED_READ_SIZE = 1 << 22  # enough for all cores
_PACKAGES = ("numpy", "flatbuffers", "litert-lm-builder", "tokenizers", "sentencepiece", "gguf")


@dataclass(frozen=True)
class Origin:
    """Where a model is from.

    Attributes:
        kind: `hub`, `demo`, `folder` or `gguf`.
        model: the id on the hub, `demo`, or the absolute path.
        revision, commit: on the hub, what was asked for and what that was.
        file: the one file that was asked for.
    """

    kind: str
    model: str
    revision: str | None = None
    commit: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class Part:
    """A range of a `.litertlm` file: its header or a section, with the padding behind it.

    Of a folder it is a whole file, and `name` is its path there.
    """

    name: str
    offset: int
    size: int


def receipt_path(output: Path) -> Path:
    """Where the receipt of an output stands."""
    return output / IN_FOLDER if output.is_dir() else output.with_suffix(".json")


def hash_files(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and hash of every file, in their order.

    Raises:
        SourceError: one cannot be read.
    """
    return map_in_threads(_hash_file, paths, os.cpu_count() or 1)


def hash_parts(path: Path) -> list[dict[str, Any]]:
    """Name, offset, size and hash of every part of an output.

    Raises:
        SourceError: it cannot be read, or is none.
    """
    return [_hash_part(path, part) for part in parts_of(path)]


def hash_text(text: str) -> str:
    """The hash of a text in UTF-8."""
    from blake3 import blake3

    return str(blake3(text.encode("utf-8", "surrogatepass")).hexdigest())


def parts_of(path: Path) -> list[Part]:
    """Ranges that cover the whole file; of a folder of packages, all files that are its own.

    Its receipt is not, nor what a Mac puts beside packages: `.mlmodelc`, which compile.sh makes of
    them, and hidden files, like the `.DS_Store` of every folder that was looked at.
    """
    if path.is_dir():
        files = ((file.relative_to(path), size) for file, size in files_below(path).items())
        return sorted(
            (Part(name.as_posix(), 0, size) for name, size in files if _is_own(name)),
            key=attrgetter("name"),
        )
    from converter.litertlm.inspection import read_bundle

    bundle = read_bundle(path)
    starts = [
        ("header", 0),
        *sorted(((s.kind, s.offset) for s in bundle.sections), key=itemgetter(1)),
    ]
    ends = [offset for _, offset in starts[1:]] + [bundle.nbytes]
    return [Part(name, start, end - start) for (name, start), end in zip(starts, ends, strict=True)]


def _is_own(name: Path) -> bool:
    return name != Path(IN_FOLDER) and not any(
        part.startswith(".") or part.endswith(".mlmodelc") for part in name.parts
    )


def versions() -> dict[str, str]:
    """What the bytes of a result may depend on."""
    import importlib.metadata
    import platform

    return {
        "litert-lm-cli": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


class ReceiptWriter:
    """Writes a receipt under the name in which it waits, and then under its own.

    Raises:
        OutputError: it cannot be written, or another file has its name.
    """

    def __init__(self, output: Path) -> None:
        self._path = receipt_path(output)
        self._pending = pending_path(output)
        if self._path.exists() and not _is_receipt(self._path):
            raise OutputError(
                str(self._path),
                f"the receipt of {output.name} would replace it, and it is none",
                "move it, or choose another folder with --output-dir",
            )

    def prepare(self, receipt: dict[str, Any], _: Path) -> None:
        """Before the output has its name."""
        _write(self._pending, receipt)

    def finish(self) -> None:
        """After the output has its name."""
        with contextlib.suppress(FileNotFoundError):  # somebody who came later did it
            os.replace(self._pending, self._path)


class FolderReceiptWriter:
    """Writes the receipt of a folder into it.

    Raises:
        OutputError: it cannot be written.
    """

    def prepare(self, receipt: dict[str, Any], folder: Path) -> None:
        """Before the folder, which lies there now, has its name."""
        _write(folder / IN_FOLDER, receipt)

    def finish(self) -> None:
        """It has its name with the folder."""


def pending_path(output: Path) -> Path:
    """Where a receipt waits until its output has its name."""
    return output.with_name(f".{output.stem}.json.waiting")


def settle(output: Path) -> None:
    """Complete, or remove, what a run left that was stopped; not what one is writing now."""
    pending = pending_path(output)
    if not sweep(output) or not sweep(pending) or not pending.is_file():
        return
    with contextlib.suppress(SourceError, OSError):  # the disk fails: it waits for the next run
        is_its = output.is_file() and _is_receipt(pending)
        if is_its and not differences(read_receipt(pending), output):
            os.replace(pending, receipt_path(output))
        else:
            pending.unlink()


def add_to_receipt(output: Path, **found: dict[str, Any]) -> None:
    """Note in a receipt what was found out since: its `check`, its `eval`."""
    path = receipt_path(output)
    _write(path, read_receipt(path) | found)


def read_receipt(path: Path) -> dict[str, Any]:
    """A receipt, of which everything that is used later has its type.

    Raises:
        SourceError: it cannot be read, or is none.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
        receipt: Any = json.loads(content) if len(content) <= _LARGEST else None
        wrong = _wrong(receipt)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise SourceError(str(path), why, _FIX) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(str(path), "it is no JSON", _FIX) from error
    if wrong is not None:
        raise SourceError(str(path), f"it is no receipt: {wrong}", "convert the model again")
    found: dict[str, Any] = receipt
    return found


def differences(receipt: dict[str, Any], output: Path) -> list[str]:
    """What is different in a file from what its receipt says; a line each, none where nothing is.

    Raises:
        SourceError: the file cannot be read.
    """
    said = receipt["output"]
    if output.is_dir():
        return _changed_files(said["parts"], hash_parts(output))
    size = output.stat().st_size
    if size != said["size"]:
        return [f"the file: {size} bytes instead of {said['size']}, {_length(size, said)}"]
    try:
        found, lines = hash_parts(output), []
    except SourceError as error:  # its own header says nothing any more
        parts = [Part(part["name"], part["offset"], part["size"]) for part in said["parts"]]
        found, lines = [_hash_part(output, part) for part in parts], [f"the header: {error.why}"]
    return lines + _changed(said["parts"], found)


def strange_files(receipt: dict[str, Any], folder: Path) -> list[str]:
    """What lies in a folder of packages, and its receipt does not name."""
    said = {part["name"] for part in receipt["output"]["parts"]}
    return [part.name for part in parts_of(folder) if part.name not in said]


def why_not_replaced(folder: Path) -> str | None:
    """Why packages must not take the place of a folder: something in it is none of ours."""
    try:
        if status_of(receipt_path(folder)) is None:
            return "it is there, and has no receipt of packages"
        strange = strange_files(read_receipt(receipt_path(folder)), folder)
    except SourceError as error:
        return f"it is there, and {Path(error.what).name}: {error.why}"
    return f"it is there, and no conversion wrote its {strange[0]}" if strange else None


def _length(size: int, said: dict[str, Any]) -> str:
    if size > said["size"]:
        return "something was added at its end"
    cut = [part["name"] for part in said["parts"] if part["offset"] + part["size"] > size]
    return f"cut off, in or before {cut[0]}" if cut else "cut off"


def _changed_files(said: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[str]:
    before, now = ({part["name"]: part for part in parts} for parts in (said, found))
    lines = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            lines.append(f"{name}: it is missing")
        elif name not in before:
            lines.append(f"{name}: there was no such file")
        elif before[name]["size"] != now[name]["size"]:
            sizes = f"{now[name]['size']} bytes instead of {before[name]['size']}"
            lines.append(f"{name}: {sizes}")
        elif before[name]["blake3"] != now[name]["blake3"]:
            lines.append(f"{name}: it holds something else than when it was written")
    return lines


def _changed(said: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[str]:
    lines = [f"{part['name']}: it is missing" for part in said[len(found) :]]
    lines += [f"{part['name']}: there was no such section" for part in found[len(said) :]]
    for before, now in zip(said, found, strict=False):
        places = [
            f"{part['name']} of {part['size']} bytes at {part['offset']}" for part in (before, now)
        ]
        if places[0] != places[1]:
            lines.append(f"{before['name']}: there was {places[0]}, there is {places[1]}")
        elif before["blake3"] != now["blake3"]:
            end = before["offset"] + before["size"]
            lines.append(
                f"{before['name']}: bytes {before['offset']} to {end - 1} hold something else than "
                "when it was written"
            )
    return lines


def origins_of(receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that an output was made of: the model, adapters, a drafter."""
    options = receipt.get("options") or {}
    drafter = options.get("drafter")
    return [receipt["source"], *options.get("adapters", []), *([drafter] if drafter else [])]


def is_outdated(output: Path, source: Path) -> bool:
    """Whether a file that went into `output` has changed since, by its size or its time.

    Args:
        source: the folder or file that `output` is made of; where what else is, its receipt says.
    """
    try:
        receipt = read_receipt(receipt_path(output))
    except SourceError:
        return False
    try:  # a folder's own time is that of whatever was last put into it
        first = receipt["output"]["parts"][0]["name"]
        made = (output / first if output.is_dir() else output).stat().st_mtime_ns
    except (OSError, IndexError):
        return False
    beside = origins_of(receipt)[1:]
    local = [(Path(each["model"]), each["files"]) for each in beside if each["kind"] != "hub"]
    for place, files in [(source, receipt["source"]["files"]), *local]:
        is_folder = place.is_dir()
        for file in files:
            if is_folder:
                path = place / file["name"]
            else:  # one of several parts, or a file that may have another name now
                path = place.with_name(file["name"]) if len(files) > 1 else place
            with contextlib.suppress(OSError):  # one that is gone is no reason to convert again
                now = path.stat()
                if now.st_mtime_ns > made or (is_folder and now.st_size != file["size"]):
                    return True
    return False


def _hash_file(path: Path) -> dict[str, Any]:
    digest, size = _hash_range(path, 0, None)
    return {"name": path.name, "size": size, "blake3": digest}


def _hash_part(path: Path, part: Part) -> dict[str, Any]:
    file = path / part.name if path.is_dir() else path
    digest, _ = _hash_range(file, part.offset, part.size, all_cores=True)
    return {"name": part.name, "offset": part.offset, "size": part.size, "blake3": digest}


def _hash_range(
    path: Path, start: int, size: int | None, all_cores: bool = False
) -> tuple[str, int]:
    """The hash of a part of a file, to its end where no size is given; and its bytes."""
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO if all_cores else 1)
    read_size = _SHARED_READ_SIZE if all_cores else _READ_SIZE
    done, buffer = 0, memoryview(bytearray(read_size))
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while size is None or done < size:
                wanted = read_size if size is None else min(read_size, size - done)
                count = file.readinto(buffer[:wanted])
                if not count:
                    break
                hasher.update(buffer[:count])
                done += count
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise SourceError(str(path), why, "check the disk, and run this again") from error
    return hasher.hexdigest(), done


def _is_receipt(path: Path) -> bool:
    with contextlib.suppress(SourceError):
        read_receipt(path)
        return True
    return False


def _wrong(receipt: Any) -> str | None:
    """What keeps parsed JSON from being a receipt; None where nothing does."""
    if not isinstance(receipt, dict) or receipt.get("receipt") != FORMAT:
        return f"it has no key receipt with the value {FORMAT}"
    for group, key, kind in (
        ("output", "name", str), ("output", "size", int), ("output", "parts", list),
        ("source", "kind", str), ("source", "model", str), ("source", "files", list),
    ):  # fmt: skip
        if not isinstance(receipt.get(group), dict) or type(receipt[group].get(key)) is not kind:
            return f"{group} has no {key}"
    if not is_plain_name(receipt["output"]["name"]):  # it will be a file's
        return "the output's name is not a plain one"
    if not isinstance(receipt.get("options"), dict | None):
        return "options are no object"
    adapters: Any = (receipt.get("options") or {}).get("adapters", [])
    of_adapter: dict[str, type] = {"kind": str, "model": str, "weight": float, "files": list}
    if not isinstance(adapters, list) or not all(
        _has(adapter, of_adapter) and math.isfinite(adapter["weight"]) for adapter in adapters
    ):
        return "its adapters are damaged"
    drafter = (receipt.get("options") or {}).get("drafter")
    if drafter is not None and not _has(drafter, {"kind": str, "model": str, "files": list}):
        return "its drafter is damaged"
    origins = origins_of(receipt)
    if not all(isinstance(o.get(key), str | None) for o in origins for key in ("commit", "file")):
        return "a commit or a file's name is no text"
    if any("papers" in origin and papers_of(origin["papers"]) is None for origin in origins):
        return "what it says of a licence is damaged"
    wanted: Iterable[tuple[Any, dict[str, type]]] = [
        *((part, {"name": str, "offset": int, "size": int}) for part in receipt["output"]["parts"]),
        *((file, {"name": str, "size": int}) for origin in origins for file in origin["files"]),
    ]
    for entry, keys in wanted:
        if not _has(entry, keys | {"blake3": str}):
            return "a list of files or parts is damaged"
        if any(not 0 <= entry[key] < 1 << 63 for key, kind in keys.items() if kind is int):
            return "a size or an offset is impossible"
    return None


def _has(entry: Any, keys: dict[str, type]) -> bool:
    return isinstance(entry, dict) and all(type(entry.get(k)) is kind for k, kind in keys.items())


def _write(path: Path, receipt: dict[str, Any]) -> None:
    """Write at once, durably, or not at all."""
    with AtomicFile(path) as file:
        file.write_at(0, json.dumps(receipt, indent=2).encode() + b"\n")
        file.commit()
