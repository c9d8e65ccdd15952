"""Android devices behind the user's own `adb`: which are attached, and commands on one of them.

adb talks to its server on this computer, which it starts where none runs, and the server to the
devices. What is asked of them here is what Android has had since 7.0: commands whose output, errors
and exit code arrive apart (the feature `shell_v2`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from converter.errors import DeviceError, OptionError

_HOW_TO_GET_ADB = (
    "install Android's platform-tools (developer.android.com/tools/releases/platform-tools), or "
    "say where adb is with --adb"
)
_SECONDS = 60.0  # for what is answered at once
READY = "device"  # adb's word for a device that takes commands
# What adb says of the others: why they do not, and what to do.
_STATES = {
    "unauthorized": (
        "it does not trust this computer",
        "unlock it and allow USB debugging, then run this again",
    ),
    "authorizing": (
        "it has not said yet whether it trusts this computer",
        "unlock it and allow USB debugging, then run this again",
    ),
    "offline": ("adb says that it is offline", "plug it in again, or try adb reconnect offline"),
    "no permissions": (
        "this user may not open its USB port",
        "see developer.android.com/studio/run/device for the udev rules, then adb kill-server",
    ),
}


def find_adb(given: str | None) -> str:
    """The program: the one that was named, else on PATH, else in Android's SDK.

    Raises:
        OptionError: the one that was named is none.
        DeviceError: there is none.
    """
    if given is not None:
        found = shutil.which(given)
        if found is None:
            raise OptionError(f"--adb {given}", "there is no such program", _HOW_TO_GET_ADB)
        return found
    sdks = [os.environ.get(name) for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT")]
    folders = [None, *(str(Path(sdk) / "platform-tools") for sdk in sdks if sdk)]
    found = next((found for path in folders if (found := shutil.which("adb", path=path))), None)
    if found is None:
        raise DeviceError(
            "adb", "it is neither on PATH nor in $ANDROID_HOME/platform-tools", _HOW_TO_GET_ADB
        )
    return found


def choose(adb: str, serial: str | None) -> Device:
    """The device with a serial number, or the only one that is ready.

    Raises:
        DeviceError: there is none, there are several, or it takes no commands.
    """
    states = _attached(adb)
    if serial is not None:
        if serial not in states:
            others = f"attached: {', '.join(states)}" if states else "nothing is attached"
            raise DeviceError(serial, "no such device is attached", f"see adb devices ({others})")
        return _ready(adb, serial, states[serial])
    if not states:
        raise DeviceError(
            "adb",
            "no device is attached",
            "connect one by USB, with USB debugging on (Settings > Developer options)",
        )
    ready = [name for name, state in states.items() if state == READY]
    if len(ready) > 1:
        raise DeviceError(
            "adb", f"{len(ready)} devices are attached", f"add --serial {' or '.join(ready)}"
        )
    name = next(iter(ready or states))
    return _ready(adb, name, states[name])


def _attached(adb: str) -> dict[str, str]:
    """The states of all devices by their serial numbers."""
    done = _call([adb, "devices"], "adb", _SECONDS)
    if done.returncode:
        raise DeviceError("adb", _reason(done) or "it failed", "see what adb devices says")
    lines = (line.partition("\t") for line in done.stdout.splitlines())
    return {name: state.strip() for name, tab, state in lines if tab}


def _ready(adb: str, serial: str, state: str) -> Device:
    if state != READY:
        named = next((name for name in _STATES if state.startswith(name)), None)
        why, fix = (
            _STATES[named]
            if named
            else (f"it is in the state {state}", "start Android on it, then run this again")
        )
        raise DeviceError(serial, why, fix)
    device = Device(adb, serial)
    if "shell_v2" not in device.adb_command("features").split():
        raise DeviceError(serial, "its Android is older than 7.0", "take a newer device")
    return device


@dataclass(frozen=True)
class Device:
    """One that takes commands."""

    adb: str
    serial: str

    def property(self, name: str) -> str:
        """What Android says of itself, such as `ro.product.cpu.abi`; empty where it does not."""
        return self.shell(f"getprop {name}").strip()

    def shell(self, command: str, seconds: float | None = _SECONDS) -> str:
        """What a command of the device's shell prints.

        Raises:
            DeviceError: it failed, or the device is gone.
        """
        return self.adb_command("shell", command, seconds=seconds)

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """A command of the device's shell that may fail; raises where adb itself cannot run."""
        return _call(self.argv("shell", command), self.serial, _SECONDS)

    def push(self, file: Path, path: str, show: bool) -> None:
        """Copy a file to `path`, where a copy that breaks off may leave a part of it.

        Args:
            show: let adb show its progress on stderr, which is a terminal.

        Raises:
            DeviceError: it could not be copied.
        """
        stdout = sys.stderr.fileno() if show else subprocess.PIPE
        command = self.argv("push", str(file.absolute()), path)  # which looks like no option
        done = _call(command, self.serial, None, stdout=stdout)
        if done.returncode:
            raise DeviceError(
                f"{self.serial}:{path}",
                _reason(done) or "the copy broke off",
                "check the cable and run this again",
            )

    def adb_command(self, *arguments: str, seconds: float | None = _SECONDS) -> str:
        """What a command of adb's about this device prints; raises as `shell` does."""
        done = _call(self.argv(*arguments), self.serial, seconds)
        if done.returncode:
            raise DeviceError(
                self.serial,
                _reason(done) or f"{arguments[0]} ended with {done.returncode} and said nothing",
                "check that it is still attached: adb devices",
            )
        return done.stdout

    def argv(self, *arguments: str) -> list[str]:
        """How adb is called for this device."""
        return [self.adb, "-s", self.serial, *arguments]


def _call(
    command: list[str], what: str, seconds: float | None, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # adb shell would read ours
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            what, f"it has not answered for {seconds:.0f} s", "unlock it, or try adb reconnect"
        ) from None
    except OSError as error:
        raise DeviceError(command[0], f"{error.strerror}", _HOW_TO_GET_ADB) from error


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what went wrong, in adb's or the device's own words; empty without any."""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    # Of a copy, adb says it on stdout.
    said = said or [line for line in (done.stdout or "").splitlines() if line.startswith("adb: ")]
    return said[-1].removeprefix("adb: ").removeprefix("error: ") if said else ""
