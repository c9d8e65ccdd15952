"""Reading a checkpoint's files: by position, and never more than was asked for.

Everything here is free of numpy and of any model format, so that asking "is this folder a model?"
costs nothing.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from converter.checkpoint.file_kinds import EMPTY, HEAD_BYTES, SAFETENSORS, what_it_is
from converter.checkpoint.gguf_names import all_parts
from converter.errors import LiteRTLMError, SourceError, UnsupportedError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# What a conversion can use besides config.json and the weights.
SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja",
)  # fmt: skip
# Of a LoRA adapter in the format of PEFT.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

# Device, number there, size in bytes and time of modification in ns.
FileState = tuple[int, int, int, int]

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


class PositionedFile:
    """A regular file read at absolute offsets, by any number of threads at once.

    Attributes:
        path: where it was opened.
        size: its length in bytes when it was opened.

    Raises:
        SourceError: it is missing, not a regular file, or may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A pipe or a device would block in open() or read on for ever.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise SourceError(str(path), "it is not a regular file", "pass a file on disk")
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        self._lock = threading.Lock()
        status = os.fstat(self._file.fileno())
        self.size = status.st_size
        self._state = _state(status)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` (writable, contiguous bytes) from `offset`.

        Raises:
            SourceError: the file ends before the buffer is full, or the disk reports an error.
        """
        view = memoryview(buffer)
        done = 0
        try:
            while done < len(view):
                count = self._read_some(offset + done, view[done:])
                if count == 0:
                    raise SourceError(
                        str(self.path),
                        f"the file ended early: wanted {len(view)} bytes at {offset}, got {done}",
                        "fetch or copy it again",
                    )
                done += count
        except OSError as error:
            raise unreadable(self.path, error) from error

    def read_at(self, offset: int, length: int) -> bytearray:
        """Return exactly `length` bytes from `offset`; raises as `read_into` does."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return buffer

    def stream(self) -> BinaryIO:
        """Return a buffered stream at the first byte, for one pass over a header.

        Use and close it before any other read: where positioned reads are missing, they move it.
        """
        stream = open(self._file.fileno(), "rb", buffering=1 << 20, closefd=False)  # noqa: SIM115
        stream.seek(0)
        return stream

    def check_unchanged(self) -> None:
        """Raise SourceError if it is another file now, or its size or time is another one."""
        check_states({self.path: self._state})

    def close(self) -> None:
        """Release the file; may be called twice."""
        self._file.close()

    def __enter__(self) -> PositionedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _read_some(self, offset: int, view: memoryview) -> int:
        """Read at least one byte into `view`, or return 0 at the end of the file."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:  # Windows: the file position is shared, so seek and read are one step
            self._file.seek(offset)
            return self._file.readinto(view) or 0


def status_of(path: Path) -> os.stat_result | None:
    """What the system says of a file or folder; None where there is none.

    `Path.exists` and its kin say no as well where a folder cannot be entered, or raise, as the
    version of Python has it.

    Raises:
        SourceError: whether there is one cannot be known.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def files_below(folder: Path) -> dict[Path, int]:
    """All files in a folder and its folders, with their bytes.

    Raises:
        SourceError: one of the folders cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename), error) from error

    found = {}
    for place, _, names in os.walk(folder, onerror=refuse):
        for path in (Path(place, name) for name in names):
            status = status_of(path)
            if status is not None and stat.S_ISREG(status.st_mode):
                found[path] = status.st_size
    return found


def read_file(path: Path) -> bytes:
    """A small file as a whole; raises as `PositionedFile` does, and for `something_else`."""
    with PositionedFile(path) as file:
        other = something_else(file)
        if other is not None:
            raise other
        return bytes(file.read_at(0, file.size))


def something_else(file: PositionedFile) -> SourceError | None:
    """What to say of a file that is a Git LFS pointer, a web page, ... under a model's name."""
    kind = what_it_is(bytes(file.read_at(0, min(file.size, HEAD_BYTES))))
    if kind in (None, SAFETENSORS, EMPTY):  # an empty file has a message of its own, or may stand
        return None
    return SourceError(str(file.path), f"it is {kind.what}", kind.fix)


def utf8_of(data: bytes) -> bytes:
    """A text file's bytes, without the byte order mark that some editors put before them.

    Raises:
        ValueError: it is UTF-16.
    """
    # JSON and templates begin with an ASCII character, which has a zero beside it in UTF-16.
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or 0 in data[:2]:
        raise ValueError("it is UTF-16 text, and has to be saved as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def refuse_dangling_links(folder: Path, names: Iterable[str]) -> None:
    """Raise SourceError where one of `names` in `folder` is a link to nothing."""
    for name in sorted(names):
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise _dangling(path)


def file_states(files: Iterable[Path]) -> dict[Path, FileState]:
    """What `check_states` compares.

    Raises:
        SourceError: a file is not there any more.
    """
    found = {}
    for path in files:
        try:
            found[path] = _state(os.stat(path))
        except OSError as error:
            raise unreadable(path, error) from error
    return found


def check_states(before: Mapping[Path, FileState]) -> None:
    """Raise SourceError where a path is another file now, or its size or time is another one."""
    for path, now in file_states(before).items():
        if now != before[path]:
            why, fix = "it changed while it was read", "wait until it is written, run again"
            raise SourceError(str(path), why, fix)


def _state(status: os.stat_result) -> FileState:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def unreadable(path: Path, error: OSError | ValueError) -> SourceError:
    """Say that `path` cannot be read. ValueError is Python's word for a name with a null byte."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return _dangling(path)
    why = getattr(error, "strerror", None) or str(error)
    return SourceError(str(path), why.lower(), "check the path and its permissions")


def _dangling(path: Path) -> SourceError:
    return SourceError(
        str(path),
        "it is a link to a file that is not there",
        "fetch the model again: a download that was not finished leaves such links",
    )


def is_plain_name(name: str) -> bool:
    """Tell whether `name` is a file name on every system: no folder, drive or control character."""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & set('/\\:*?"<>|')


def is_plain_path(path: str) -> bool:
    """Tell whether `path` stays below its folder on every system: plain names between slashes.

    Hidden ones are ours.
    """
    return all(is_plain_name(part) and not part.startswith(".") for part in path.split("/"))


def weight_files(names: Iterable[str]) -> list[str]:
    """Return the safetensors files that hold a model's weights, of all file names in its folder.

    `model.safetensors` alone where it exists, as transformers reads it; otherwise every file but
    the copies that some publishers add for other programs (`consolidated*`) and LoRA adapters; the
    index alone where the files are in folders below. Whether an index narrows the choice is for the
    caller, who can read it.
    """
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if SINGLE_NAME in found:
        return [SINGLE_NAME]
    shards = [name for name in found if not name.startswith(("consolidated", "adapter_"))]
    return shards or [name for name in names if name == INDEX_NAME]


# Folders that Core ML's files lie in, and what lies in a compiled one.
_CORE_ML = re.compile(r"\.(mlpackage|mlmodelc)(/|$)|^model\.mil$")


def why_not_a_model(what: str, names: Collection[str]) -> LiteRTLMError | None:
    """Return the error for a folder or repository that cannot be converted, None if it can.

    Args:
        what: the folder or repository, as the user knows it.
        names: the names of the files in it.
    """
    if weight_files(names):
        if "config.json" in names:
            return None
        return SourceError(what, "config.json is missing", "copy it from the original model")
    if any(map(_CORE_ML.search, names)) or {"Manifest.json", "Data"} <= set(names):
        return UnsupportedError(
            what,
            "it is a model as Core ML packages, for Apple's systems, which is neither run nor "
            "converted here",
            "finish it on a Mac with the compile.sh in its folder, or name the model that it was "
            "made of",
        )
    if "adapter_config.json" in names:
        return UnsupportedError(
            what,
            "it holds only a LoRA adapter (adapter_config.json), not a whole model",
            f"name the model that it was made for, and it is merged: convert MODEL --lora {what}",
        )
    pickles = sorted(name for name in names if name.endswith(_PICKLE_SUFFIXES))
    if pickles:
        return UnsupportedError(
            what,
            f"its weights are in PyTorch's pickle format ({pickles[0]}), which can run code when "
            "it is read",
            "load it with transformers where you trust it, write it with save_pretrained(FOLDER), "
            "which makes safetensors, and convert that folder",
        )
    missing = "*.safetensors is" if "config.json" in names else "config.json and *.safetensors are"
    return SourceError(
        what,
        f"{missing} missing",
        "pass a Hugging Face id, a folder with config.json and *.safetensors, or a .gguf file",
    )


def adapter_files(path: Path) -> list[Path]:
    """What is read of an adapter, as far as it is there: all parts of a GGUF, or PEFT's files."""
    if path.is_dir():
        files = [path / name for name in ADAPTER_FILES]
    else:
        files = [path.with_name(name) for name in all_parts(path.name)]
    return [file for file in files if file.is_file()]


def why_not_an_adapter(what: str, names: Collection[str]) -> LiteRTLMError | None:
    """Return the error for a folder or repository that is no adapter, None if it is one.

    Args:
        what: the folder or repository, as the user knows it.
        names: the names of the files and folders in it.
    """
    if all(name in names for name in ADAPTER_FILES):
        return None
    if "adapters.safetensors" in names:
        return UnsupportedError(
            what,
            "it is an adapter of mlx-lm (adapters.safetensors), not of peft",
            "fuse it into its base (mlx_lm.fuse --dequantize) and convert the result",
        )
    if "adapter_config.json" in names and "adapter_model.bin" in names:
        return UnsupportedError(
            what,
            "its weights are in PyTorch's pickle format (adapter_model.bin), which can run code "
            "when it is read",
            "load it with peft where you trust it, and write it with save_pretrained(FOLDER), "
            "which makes adapter_model.safetensors",
        )
    runs = [match for name in names if (match := re.fullmatch(r"checkpoint-(\d+)", name))]
    if runs:
        last = max(runs, key=lambda match: int(match[1]))[0]
        return SourceError(
            what,
            f"it is the folder of a training run, with {len(runs)} checkpoints in it",
            f"pass one of them, for example its {last}",
        )
    missing = " and no ".join(name for name in ADAPTER_FILES if name not in names)
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    fix = "pass a PEFT adapter's folder, or its id on the hub"
    if ggufs:
        fix = f"if its {ggufs[0]} is one, name that: FOLDER/FILE.gguf, or org/name:FILE.gguf"
    return SourceError(what, f"it has no {missing}", fix)
