"""The way to the hub as the environment describes it, with real proxies on loopback."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import certifi
import httpx
import huggingface_hub.constants
import pytest

from converter.checkpoint import hub_errors
from converter.checkpoint.hub import download
from converter.checkpoint.hub_network import is_exempt, read_endpoint, read_network
from converter.errors import SourceError
from tests.hub_server import HubServer
from tests.proxy_servers import HttpProxy, SocksServer

_VARIABLES = [
    *(f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")),
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_TOKEN",
]  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with one model, `org/m`, and an environment that says nothing but where it is."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    # As in our own process: see cli.__main__.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "hub/org/m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def refusal(tmp_path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        download("org/m", tmp_path / "out", quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def dead() -> str:
    """An address at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


# Proxies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks", "SOCKS5"])
def test_through_socks(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    with SocksServer() as proxy:
        monkeypatch.setenv(variable, f"{scheme}://{proxy.address}/")
        monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("127.0.0.1", "localhost"))
        assert download("org/m", tmp_path / "out", quiet=True).commit == hub.commit("org/m")
    assert set(proxy.asked) == {"localhost"}


def test_socks_with_a_login(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SocksServer(login=("ada", "secret word")) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5://ada:wrong@{proxy.address}")
        said = refusal(tmp_path)
        assert f"the proxy {proxy.address} that ALL_PROXY names does not let" in said
        assert "wrong" not in said
        monkeypatch.setenv("ALL_PROXY", f"socks5://ada:secret%20word@{proxy.address}")
        download("org/m", tmp_path / "out", quiet=True)


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_through_an_http_proxy(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with HttpProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"{scheme}{proxy.address}")
        monkeypatch.setenv("http_proxy", f"{scheme}{proxy.address}")
        download("org/m", tmp_path / "out", quiet=True)
    assert len(proxy.asked) >= 3


@pytest.mark.parametrize("scheme", ["", "http://", "socks5://", "socks5h://"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"])
def test_a_proxy_that_does_not_answer_is_named(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    address = dead()
    monkeypatch.setenv(variable, f"{scheme}{address}")
    assert f"the proxy {address} that {variable} names does not answer" in refusal(tmp_path)


def test_a_dead_proxy_and_a_copy_that_is_here(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download("org/m", tmp_path / "out", quiet=True)
    monkeypatch.setenv("ALL_PROXY", dead())
    found = download("org/m", tmp_path / "out", quiet=True)
    assert found.notes == ("the hub cannot be reached: using org/m as it was fetched before",)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("proxy.example:port", "it is no address"),
        ("socks4://127.0.0.1:9", "it is no proxy's address"),
        ("ftp://127.0.0.1:9", "it is no proxy's address"),
        ("http://", "it is no proxy's address"),
        ("http://[::1", "it is no address"),
    ],
)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "https_proxy"])
def test_a_proxy_that_is_no_address_is_named(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    why: str,
) -> None:
    monkeypatch.setenv(variable, value)
    said = refusal(tmp_path)
    assert said.startswith(f"{variable}=")
    assert why in said


def test_a_password_is_not_repeated(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("http://ada:secret@proxy:port", f"http://ada:secret@{dead()}"):
        monkeypatch.setenv("ALL_PROXY", value)
        assert "secret" not in refusal(tmp_path)


@pytest.mark.parametrize(
    "exceptions",
    [
        "localhost,127.0.0.1,::1,fd07:b51a:cc66:f0::/64",
        "localhost,127.0.0.1,[::1]",
        "[fd00::/8],127.0.0.0/8",
        " 127.0.0.1 , , [::1]:80",
        "*",
        "http://127.0.0.1",
    ],
)
def test_exceptions_are_asked_directly(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exceptions: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"socks5://{dead()}")
    monkeypatch.setenv("NO_PROXY", exceptions)
    download("org/m", tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    ("host", "port", "entry", "expected"),
    [
        ("huggingface.co", None, "huggingface.co", True),
        ("cdn.huggingface.co", None, "huggingface.co", True),
        ("cdn.huggingface.co", None, ".huggingface.co", True),
        ("cdn.huggingface.co", None, "*.huggingface.co", True),
        ("HuggingFace.co", None, "huggingface.CO", True),
        ("nothuggingface.co", None, "huggingface.co", False),
        ("hub.corp", 8080, "hub.corp:8080", True),
        ("hub.corp", None, "hub.corp:8080", False),
        ("10.1.2.3", None, "10.0.0.0/8", True),
        ("11.1.2.3", None, "10.0.0.0/8", False),
        ("10.1.2.3", None, "10.1.2.3/8", True),
        ("::1", None, "[::1]", True),
        ("::1", 80, "[::1]:80", True),
        ("::1", 81, "[::1]:80", False),
        ("fd07:b51a:cc66:f0::7", None, "fd07:b51a:cc66:f0::/64", True),
        ("fd08::7", None, "fd07:b51a:cc66:f0::/64", False),
        ("127.0.0.1", None, "::1", False),
        ("a", None, "10.0.0.0/99", False),
        ("a", None, ".", False),
    ],
)
def test_what_an_exception_names(host: str, port: int | None, entry: str, expected: bool) -> None:
    assert is_exempt(host, port, ["nobody", entry]) is expected


# Certificates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_are_not_there_are_named(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "gone.pem"))
    assert refusal(tmp_path).startswith(f"{variable}={tmp_path}/gone.pem, no certificates can be")
    (tmp_path / "gone.pem").write_text("these are none")
    assert refusal(tmp_path).startswith(f"{variable}={tmp_path}/gone.pem, no certificates can be")


@pytest.mark.parametrize(
    "variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)
def test_certificates_are_read_where_a_variable_says(tmp_path: Path, variable: str) -> None:
    if variable == "SSL_CERT_DIR":
        assert read_network({variable: str(tmp_path)}).context().cert_store_stats()["x509"] == 0
    else:
        pem = Path(certifi.where()).read_text().split("-----END CERTIFICATE-----")[0]
        (tmp_path / "one.pem").write_text(pem + "-----END CERTIFICATE-----\n")
        context = read_network({variable: str(tmp_path / "one.pem")}).context()
        assert context.cert_store_stats()["x509"] == 1
    assert read_network({}).context().cert_store_stats()["x509"] > 50


def test_an_unknown_signature_says_what_a_company_has_to_set() -> None:
    said = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: x")
    request = hub_errors.Request("org/m", None, "https://huggingface.co", None)
    assert "set SSL_CERT_FILE" in str(hub_errors.explain(said, request))


# The hub's address, and who asks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "https://huggingface.co"),
        (" \n", "https://huggingface.co"),
        ("https://hf-mirror.com/", "https://hf-mirror.com"),
        (" https://hf-mirror.com\n", "https://hf-mirror.com"),
        ("https://corp/artifactory/api/huggingfaceml/x/", "https://corp/artifactory/api/huggingfaceml/x"),
    ],
)  # fmt: skip
def test_the_hubs_address(value: str, expected: str) -> None:
    assert read_endpoint({"HF_ENDPOINT": value}) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hf-mirror.com", "HF_ENDPOINT=hf-mirror.com, it has no scheme, write https://hf-mirror.com"),
        ("ftp://hf-mirror.com", "it is not the address of a hub"),
        ("https://", "it is not the address of a hub"),
        ("https://hf-mirror.com/?a=1", "it is not the address of a hub"),
        ("https://hf-mirror.com:port", "it is no address"),
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)
    said = refusal(tmp_path)
    assert said.startswith(f"HF_ENDPOINT={value}, ")
    assert message in said


@pytest.mark.parametrize(
    "written", ["{}\n", "Bearer {}", "bearer  {}\n", '"{}"', "'{}'\n", ' "Bearer {}" ']
)
def test_a_token_with_what_was_copied_along(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    hub.private.add("org/m")
    monkeypatch.setenv("HF_TOKEN", written.format(hub.token))
    download("org/m", tmp_path / "out", quiet=True)


def test_offline_by_the_hubs_own_variable(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read when imported
    assert "HF_HUB_OFFLINE forbids to use the network, unset it" in refusal(tmp_path)
    assert not hub.seen
