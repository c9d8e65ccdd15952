"""A stand-in for adb's server and the devices behind it: no phone is at hand where tests run.

The real `adb` program talks to it as to its own server (packages/modules/adb in Android's sources:
SERVICES.TXT, SYNC.TXT, shell_protocol.h). A device is a folder of this machine, which stands for
its `/data/local/tmp`; its shell is this machine's, with Android's own tools first on its PATH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = "/data/local/tmp"
_VERSION = 41  # of the protocol, since 2018; a client of another one would start its own server
_STDOUT, _STDERR, _EXIT = 1, 2, 3


@dataclass
class Phone:
    """A device.

    Attributes:
        folder: where its files are.
        state: what `adb devices` says of it.
        properties: what getprop says.
        features: what its adbd can do.
        unplugged_after: bytes of the next push; None leaves it plugged in.
        flips: whether the next push arrives with another byte.
        stalls: a push waits until this is set.
        received: the paths that were pushed, in order.
    """

    folder: Path
    state: str = "device"
    properties: dict[str, str] = field(
        default_factory=lambda: {
            "ro.product.manufacturer": "Google",
            "ro.product.model": "Pixel 8",
            "ro.soc.manufacturer": "Google",
            "ro.soc.model": "Tensor G3",
            "ro.build.version.release": "14",
            "ro.product.cpu.abi": "arm64-v8a",
        }
    )
    features: str = "shell_v2,cmd"
    unplugged_after: int | None = None
    flips: bool = False
    stalls: threading.Event | None = None
    received: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.temporary.mkdir(parents=True)
        self.tool("getprop", 'grep "^$1=" "$(dirname "$0")/../properties" | cut -d= -f2-')
        lines = (f"{name}={value}\n" for name, value in self.properties.items())
        (self.folder / "properties").write_text("".join(lines))

    @property
    def temporary(self) -> Path:
        """Its `/data/local/tmp`."""
        return self.folder / "tmp"

    def tool(self, name: str, script: str) -> None:
        """A program that comes before this machine's own."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def here(self, text: str) -> str:
        """A path or command of the device, as one of this machine."""
        return text.replace(TEMPORARY, str(self.temporary))


class AdbServer(socketserver.ThreadingTCPServer):
    """Listens on a free port of this machine, while it is open as a context manager."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, phones: dict[str, Phone]) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.phones = phones

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def __enter__(self) -> AdbServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    """One request of a client; of those to a device, the first says which it is."""

    server: AdbServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            phone = None
            while True:
                request = self._read(int(self._read(4), 16)).decode()
                scope, _, rest = request.partition(":")
                if scope == "host":
                    phone = self._host(rest)
                    if phone is None:
                        return
                elif scope == "host-serial":
                    serial, _, query = rest.partition(":")
                    assert query == "features", query
                    phone = self._chosen(serial)
                    if phone is not None:
                        self._answer(phone.features)
                    return
                else:
                    assert phone is not None, request
                    self._okay()
                    if scope == "sync":
                        self._sync(phone)
                    else:
                        assert scope.startswith("shell,v2,"), request
                        self._shell(phone, rest)
                    return

    def _host(self, query: str) -> Phone | None:
        """Answer what the server knows; the device, where one is chosen."""
        if query == "version":
            self._answer(f"{_VERSION:04x}")
        elif query == "devices":
            phones = self.server.phones.items()
            self._answer("".join(f"{serial}\t{phone.state}\n" for serial, phone in phones))
        elif query.startswith(("tport:serial:", "transport:")):
            phone = self._chosen(query.rpartition(":")[2])
            if phone is not None:
                self._okay()
                if query.startswith("tport"):
                    self.request.sendall(struct.pack("<Q", 1))  # the transport's number
            return phone
        else:
            self._fail(f"unknown host service {query}")
        return None

    def _chosen(self, serial: str) -> Phone | None:
        """The device with a serial number; None, and an answer, where it takes no commands."""
        phone = self.server.phones.get(serial)
        if phone is None:
            self._fail(f"device '{serial}' not found")
        elif phone.state != "device":
            self._fail(f"device {phone.state}")
            return None
        return phone

    def _shell(self, phone: Phone, command: str) -> None:
        """Run a command, its output and errors in packets of their own, then its exit code."""
        process = subprocess.Popen(
            ["/bin/sh", "-c", phone.here(command)],
            cwd="/",
            env=os.environ | {"PATH": f"{phone.folder / 'bin'}:/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        lock = threading.Lock()

        def pass_on(stream: Any, kind: int) -> None:
            while data := stream.read1(1 << 16):
                with lock, contextlib.suppress(OSError):
                    self.request.sendall(struct.pack("<BI", kind, len(data)) + data)

        def hang_up() -> None:
            """As adbd does with a command whose client is gone."""
            with contextlib.suppress(OSError):
                while self.request.recv(1 << 12):
                    pass
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)

        threading.Thread(target=hang_up, daemon=True).start()
        readers = [
            threading.Thread(target=pass_on, args=pair)
            for pair in ((process.stdout, _STDOUT), (process.stderr, _STDERR))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        code = process.wait()
        code = 128 - code if code < 0 else code
        self.request.sendall(struct.pack("<BIB", _EXIT, 1, code))

    def _sync(self, phone: Phone) -> None:
        """Files, one after another: each request is four letters, a length and a text."""
        while True:
            kind, length = struct.unpack("<4sI", self._read(8))
            text = self._read(length).decode()
            if kind == b"STAT":
                try:
                    found = Path(phone.here(text)).stat()
                    facts = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
                except FileNotFoundError:
                    facts = (0, 0, 0)
                self.request.sendall(struct.pack("<4s3I", b"STAT", *facts))
            elif kind == b"SEND":
                self._receive(phone, text)
            else:
                assert kind == b"QUIT", kind
                return

    def _receive(self, phone: Phone, text: str) -> None:
        path, _, mode = text.rpartition(",")
        phone.received.append(path)
        nbytes = 0
        try:
            file: BinaryIO | None = open(phone.here(path), "wb")  # noqa: SIM115
        except OSError as error:
            file, why = None, f"couldn't create file: {error.strerror}"
            self.request.sendall(struct.pack("<4sI", b"FAIL", len(why)) + why.encode())
        with file or contextlib.nullcontext():
            while True:
                kind, length = struct.unpack("<4sI", self._read(8))
                if kind == b"DONE":  # the length is the time of the last change
                    break
                if kind == b"QUIT":  # it has read the answer
                    raise ConnectionError
                assert kind == b"DATA", kind
                data = self._read(length)
                if file is None:
                    continue
                if phone.flips:
                    data, phone.flips = bytes([data[0] ^ 1]) + data[1:], False
                file.write(data)
                nbytes += length
                if phone.stalls is not None:
                    phone.stalls.wait(60)
                if phone.unplugged_after is not None and nbytes > phone.unplugged_after:
                    phone.unplugged_after, phone.state = None, "offline"
                    self.request.shutdown(socket.SHUT_RDWR)
                    raise ConnectionError("unplugged")
        if file is not None:
            os.chmod(phone.here(path), int(mode) & 0o777)
            self.request.sendall(struct.pack("<4sI", b"OKAY", 0))

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self.request.recv(count - len(parts))
            if not part:
                raise ConnectionError
            parts += part
        return bytes(parts)

    def _okay(self) -> None:
        self.request.sendall(b"OKAY")

    def _answer(self, text: str) -> None:
        self.request.sendall(f"OKAY{len(text):04x}{text}".encode())

    def _fail(self, why: str) -> None:
        self.request.sendall(f"FAIL{len(why):04x}{why}".encode())


def real_adb() -> str:
    """Android's own program. A test never skips: without it, it fails and says so."""
    found = shutil.which("adb")
    if found is None:
        raise RuntimeError("adb is not installed: apt install adb, or Android's platform-tools")
    return found
