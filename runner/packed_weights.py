"""The engine's packed weights: gone once the model is loaded, or kept where the user says so.

XNNPACK rearranges the weights before it uses them. With a cache file it does so once and maps the
file; without one it keeps a copy for every signature, seven of them (docs/runtime.md has figures).
The file is nearly as large as the model, so it may not stay on the user's disk unasked: it is
unlinked as soon as it is mapped, and the mapping lives on. What a process leaves that is killed
before that, the next one removes.

Whoever asks for it (`--keep-packed`) finds it beside the model, in a hidden folder that every later
start uses. Its name holds a mark of what was packed, by what and for which processor: the engine
itself knows a file by its name, size and second of change.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from converter.errors import OptionError
from converter.output.scratch import scratch_folder

NO_CACHE = ":nocache"  # the engine's word for it
_PREFIX = ".litert-lm-weights-"
# Packed float16 weights are float32, twice the file's size; int8 ones are as large as in the file.
_ROOM = 2.2
# Of a model's file, spread over it: two of one size may have one time, unpacked from an archive.
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class PackedWeights:
    """A folder for them while engines load a model; a context manager.

    Args:
        model: a `.litertlm` file.
        keep: leave it for later starts where that can be, once `loaded` says that all is in it.
    """

    def __init__(self, model: Path, keep: bool = False) -> None:
        self._model = model
        self._keep = keep
        self._lasting: Path | None = None
        self._stack = contextlib.ExitStack()
        # The engine's `cache_dir`.
        self.folder = NO_CACHE
        # Whether it was left for later starts.
        self.has_kept = False

    def __enter__(self) -> PackedWeights:
        earlier = _kept_of(self._model)
        if self._keep or earlier:
            self._lasting = _lasting(self._model)
        for folder in earlier:
            if folder != self._lasting:  # of what this model was before
                shutil.rmtree(folder, ignore_errors=True)
        self.folder = str(self._lasting) if self._lasting in earlier else self._scratch()
        return self

    def loaded(self) -> None:
        """What was packed is whole."""
        if not self._keep or self._lasting is None:
            return
        if self.folder not in (NO_CACHE, str(self._lasting)):
            with contextlib.suppress(OSError):  # another process was quicker: this one's goes
                os.rename(self.folder, self._lasting)
                self.folder, self.has_kept = str(self._lasting), True

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _scratch(self) -> str:
        """A folder that goes, beside the model or where there is room."""
        # Windows cannot remove a mapped file: better more memory than a copy left behind.
        if os.name != "nt":
            for parent in (self._model.parent, Path(tempfile.gettempdir())):
                with contextlib.suppress(OSError):
                    if shutil.disk_usage(parent).free > _needed(self._model):
                        return str(self._stack.enter_context(scratch_folder(_PREFIX, parent)))
        return NO_CACHE


def check_keeping(model: Path) -> None:
    """Raise OptionError where packed weights cannot be kept beside a model."""
    folder, lacking = model.absolute().parent, ""
    if os.name == "nt":
        lacking = "Windows renames no file that is in use"
    elif _lasting(model) in _kept_of(model):
        return
    elif not os.access(folder, os.W_OK | os.X_OK):
        lacking = f"{folder} may not be written"
    elif (free := shutil.disk_usage(folder).free) <= (needed := _needed(model)):
        lacking = f"{free / 1e9:.1f} GB are free in {folder}, and it may take {needed / 1e9:.1f}"
    if lacking:
        raise OptionError("--keep-packed", lacking, "leave it out")


def _needed(model: Path) -> float:
    """Bytes of disk, at most."""
    return model.stat().st_size * _ROOM


def _lasting(model: Path) -> Path:
    """Where they are kept for this model as it is, this engine and this processor."""
    return model.with_name(_kept_name(model) + _mark(model))


def _kept_name(model: Path) -> str:
    """What the names of all folders begin with that were kept for a model."""
    return f".{model.name}.packed-"


def _kept_of(model: Path) -> list[Path]:
    """All of these folders that are this user's: who else writes there may not give us weights."""
    found = []
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        for path in model.parent.iterdir():
            if path.name.startswith(_kept_name(model)) and _is_own(path):
                found.append(path)
    return found


def _is_own(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and (os.name == "nt" or status.st_uid == os.getuid())


def _mark(model: Path) -> str:
    """Of this file's content and time, the engine and the processor: what packing depends on."""
    mark = hashlib.sha256(f"{_engine()} {_processor()}".encode())
    with model.open("rb") as file:
        status = os.fstat(file.fileno())
        mark.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        for i in range(_SAMPLES):
            file.seek(status.st_size * i // _SAMPLES)
            mark.update(file.read(_SAMPLE_BYTES))
    return mark.hexdigest()[:16]


def _engine() -> list[tuple[str, int, int]]:
    """Its libraries, which another version has with another size or time."""
    found = find_spec("litert_lm")
    assert found is not None
    assert found.origin is not None
    files = [(path.name, path.stat()) for path in Path(found.origin).parent.glob("lib*")]
    return sorted((name, status.st_size, status.st_mtime_ns) for name, status in files)


def _processor() -> str:
    """Its instruction sets, as far as the system tells them."""
    names = ("flags", "Features")  # on x86, on ARM
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.split(":")[0].strip() in names:
                return line
    return platform.machine()
