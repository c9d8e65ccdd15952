"""A file onto a device, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from pathlib import Path

from converter.errors import DeviceError, LiteRTLMError
from device.adb import Device

# By the length of what the device's program prints: Android has had sha256sum since 9.
_HASHES = {64: "sha256", 32: "md5"}
_SECONDS_TO_CLEAN_UP = 10.0


def deliver(device: Device, file: Path, path: str, *, program: bool = False, show: bool) -> bool:
    """Copy a file to `path` on a device, unless an identical one is there.

    It lies under another name until it has arrived and its hash is right.

    Args:
        program: make it executable.
        show: let adb show its progress.

    Returns:
        Whether it had to be copied.

    Raises:
        DeviceError: it has no room there, cannot be written, or arrived damaged.
    """
    quoted, part = shlex.quote(path), shlex.quote(f"{path}.part")
    nbytes = file.stat().st_size
    if device.shell(f"stat -c %s {quoted} 2> /dev/null || true").strip() == str(nbytes) and (
        _is_identical(device, file, path)
    ):
        return False
    folder = path.rpartition("/")[0]
    device.shell(f"mkdir -p {shlex.quote(folder)} && rm -f {part}")
    _check_room(device, folder, nbytes)
    try:
        device.push(file, f"{path}.part", show)
        if not _is_identical(device, file, f"{path}.part"):
            raise DeviceError(
                f"{device.serial}:{path}", "it arrived damaged", "try another cable or USB port"
            )
        # NAME_MTIME_SIZE.xnnpack_cache and the like, which the engine made of an older file.
        mode = f"chmod 755 {part} && " if program else ""
        device.shell(f"{mode}rm -f {quoted}*cache* && mv -f {part} {quoted}")
    except BaseException:
        with contextlib.suppress(LiteRTLMError):  # it may be gone
            device.shell(f"rm -f {part}", _SECONDS_TO_CLEAN_UP)
        raise
    return True


def _is_identical(device: Device, file: Path, path: str) -> bool:
    quoted = shlex.quote(path)
    # Minutes, on a slow card.
    said = device.shell(f"sha256sum {quoted} 2> /dev/null || md5sum {quoted}", seconds=None)
    theirs = said.split(maxsplit=1)[0].lstrip("\\")  # which marks an escaped name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, _HASHES[len(theirs)]).hexdigest() == theirs


def _check_room(device: Device, folder: str, nbytes: int) -> None:
    """Raise DeviceError unless a file of so many bytes fits beside what is there."""
    # Filesystem, blocks of 1024 bytes, used, available, use%, mounted on
    available = device.shell(f"df -k {shlex.quote(folder)}").splitlines()[-1].split()[-3]
    free = int(available) * 1024
    if free < nbytes:
        raise DeviceError(
            f"{device.serial}:{folder}",
            f"needs {nbytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free",
            "free some, or choose another folder with --to",
        )
