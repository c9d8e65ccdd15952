"""Two small proxies on loopback: SOCKS5 (RFC 1928, RFC 1929) and plain HTTP."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    proxy: SocksServer

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # whoever asked may have gone


class SocksServer:
    """A running SOCKS5 server; use it as a context manager.

    Attributes:
        login: the user name and password that it wants, None for nobody's.
        asked: hosts as they were asked for: names where the client leaves resolving to the proxy.
    """

    def __init__(self, login: tuple[str, str] | None = None) -> None:
        self.login = login
        self.asked: list[str] = []
        self._server = _Server(("127.0.0.1", 0), _Socks)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> SocksServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Socks(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        proxy, client = self.server.proxy, self.request
        _, count = self._read(2)
        methods = self._read(count)
        wanted = 0 if proxy.login is None else 2
        if wanted not in methods:
            client.sendall(b"\x05\xff")
            return
        client.sendall(bytes([5, wanted]))
        if proxy.login is not None:
            self._read(1)
            given = tuple(self._read(self._read(1)[0]).decode() for _ in range(2))
            client.sendall(b"\x01\x00" if given == proxy.login else b"\x01\x01")
            if given != proxy.login:
                return
        _, _, _, kind = self._read(4)
        if kind == 1:
            host = socket.inet_ntoa(self._read(4))
        else:
            host = self._read(self._read(1)[0]).decode()
        (port,) = struct.unpack(">H", self._read(2))
        proxy.asked.append(host)
        with socket.create_connection((host, port)) as target:
            client.sendall(b"\x05\x00\x00\x01" + bytes(6))
            back = threading.Thread(target=_pump, args=(target, client), daemon=True)
            back.start()
            _pump(client, target)
            back.join()

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.request.recv(count - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class HttpProxy:
    """A running HTTP proxy for plain HTTP; use it as a context manager.

    Attributes:
        status: what it answers instead of asking, None to ask.
        asked: the addresses that it was asked for.
    """

    def __init__(self, status: int | None = None) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                if status is not None:
                    self.send_error(status)
                    return
                direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                try:
                    answer: Any = direct.open(self.path)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    body = answer.read()
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        if name.lower() not in ("transfer-encoding", "connection"):
                            self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HttpProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
