"""What is let in: names, origins, keys, types and sizes."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import Served, serving

KEY = "correct horse"
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def guarded(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("guarded")
    with serving(
        folder, smollm2_bundle, "--cors", PAGE, model=smollm2_bundle.stem, LITERT_LM_API_KEY=KEY
    ) as server:
        yield server


def models(served: Served, **headers: str) -> httpx.Response:
    return httpx.get(f"{served.url}/v1/models", headers=headers)


@pytest.mark.parametrize("host", ["evil.example", "", "localhost.evil.example", "127.0.0.1.evil"])
def test_another_name_is_refused(served: Served, host: str) -> None:
    """A page whose name was made to point here (DNS rebinding) would be read."""
    answer = models(served, Host=host)
    assert answer.status_code in (400, 403)
    assert httpx.get(f"{served.url}/health", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:9379", "LocalHost"])
def test_own_names_are_taken(served: Served, host: str) -> None:
    assert models(served, Host=host).status_code == 200


def test_two_host_headers_are_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n"
            b"Connection: close\r\n\r\n"
        )
        status = connection.recv(64).split(b" ")[1]
    assert status in (b"400", b"403")


def test_a_page_elsewhere_may_not_ask(served: Served) -> None:
    answer = models(served, Origin="https://evil.example")
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_page_may(served: Served) -> None:
    assert models(served, Origin=served.url).status_code == 200


def test_a_page_that_is_allowed_reads(guarded: Served) -> None:
    answer = models(guarded, Origin=PAGE, Authorization=f"Bearer {KEY}")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    before = httpx.options(f"{guarded.url}/v1/chat/completions", headers=asked)
    assert before.status_code == 200
    assert "Authorization" in before.headers["access-control-allow-headers"]


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", KEY, "Basic " + KEY])
def test_a_wrong_key_is_told(guarded: Served, given: str | None) -> None:
    answer = models(guarded, **({"Authorization": given} if given else {}))
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_right_key_and_what_needs_none(guarded: Served) -> None:
    assert models(guarded, Authorization=f"Bearer {KEY}").status_code == 200
    assert models(guarded, **{"X-Api-Key": KEY}).status_code == 200
    assert httpx.get(f"{guarded.url}/health").status_code == 200
    assert httpx.get(f"{guarded.url}/metrics").status_code == 401


def test_curl_gives_the_key(guarded: Served) -> None:
    command = ["curl", "--silent", "--fail", f"{guarded.url}/v1/models"]
    with_key = [*command, "-H", f"Authorization: Bearer {KEY}"]
    said = subprocess.run(with_key, capture_output=True, text=True, timeout=30, check=True).stdout
    assert json.loads(said)["data"][0]["id"] == guarded.model
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 22


def test_a_key_is_not_in_the_log(guarded: Served) -> None:
    models(guarded, Authorization=f"Bearer {KEY}")
    assert KEY not in guarded.log.read_text()


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": FORM, "Sec-Fetch-Site": "cross-site"},
        {"Content-Type": FORM, "Referer": "http://evil.example/"},
        {"Content-Type": FORM, "Origin": "{own}"},
    ],
)
def test_what_a_form_could_send_is_refused(served: Served, headers: dict[str, str]) -> None:
    told = {name: value.replace("{own}", served.url) for name, value in headers.items()}
    answer = httpx.post(f"{served.url}/v1/chat/completions", content="{}", headers=told)
    assert answer.status_code == 415


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_form_of_a_page_elsewhere_is_refused(served: Served, origin: str) -> None:
    headers = {"Content-Type": FORM, "Origin": origin}
    answer = httpx.post(f"{served.url}/api/chat", content="{}", headers=headers)
    assert answer.status_code == 403


def test_curl_need_not_say_that_it_sends_json(served: Served) -> None:
    asked = json.dumps({"model": served.model, "prompt": ""})  # loads the model
    command = ["curl", "--silent", "--fail", f"{served.url}/api/generate", "-d", asked]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert json.loads(said)["done"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b'{"model": ' + b'{"a":' * 200 + b"1" + b"}" * 201, 400),
        (b" " * (5 << 20), 413),
    ],
)
def test_bodies_that_make_no_sense(served: Served, content: bytes, status: int) -> None:
    answer = httpx.post(
        f"{served.url}/v1/chat/completions",
        content=content,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_body_without_end_is_cut(served: Served) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * (1 << 20)

    answer: Any = None
    try:
        answer = httpx.post(
            f"{served.url}/v1/chat/completions",
            content=endless(),
            headers={"Content-Type": "application/json"},
        )
    except httpx.TransportError:
        return  # it hung up
    assert answer.status_code == 413


def test_a_model_is_a_name_and_no_path(served: Served) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "~/x", "https://x.example/m", ""):
        assert served.chat("hi", model=name).status_code == 404
