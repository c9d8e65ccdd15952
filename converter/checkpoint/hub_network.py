"""The way to the hub, as the environment describes it: proxies, exceptions, certificates, endpoint.

The HTTP client reads these variables too, but stops at many that other programs take (an IPv6
network in NO_PROXY, GNOME's `socks://`), and its errors do not say which variable was wrong. So
they are read here, once for each state of the environment, and every refusal names the variable.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.request import getproxies

import httpx
from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled

from converter.errors import SourceError

DEFAULT_ENDPOINT = "https://huggingface.co"
# The first that is set counts; the others are requests' and curl's.
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")

_lock = threading.Lock()
_used: Network | None = None


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable that names it."""

    variable: str
    url: httpx.URL

    def __str__(self) -> str:
        """Without the password that may stand in its address."""
        return f"the proxy {self.url.host}:{self.url.port or ''}".rstrip(":") + (
            f" that {self.variable} names"
        )


class ProxyFailed(httpx.TransportError):
    """A request that did not get through a proxy."""

    def __init__(self, proxy: Proxy, error: httpx.TransportError) -> None:
        super().__init__(str(error))
        self.proxy = proxy
        self.refused = isinstance(error, httpx.ProxyError)  # it answered, but not as was hoped


@dataclass(frozen=True)
class Network:
    """What the environment says.

    Attributes:
        proxies: by scheme of the address that is asked for: `http`, `https`, or `all`.
        exempt: what is asked directly, as NO_PROXY lists it.
        certificates: variable and path of a file (or folder) of certificates; None for certifi's.
    """

    proxies: tuple[tuple[str, Proxy], ...]
    exempt: tuple[str, ...]
    certificates: tuple[str, str] | None

    def proxy_for(self, url: httpx.URL) -> Proxy | None:
        """The proxy that an address is asked through, None where it is asked directly."""
        if is_exempt(url.host, url.port, self.exempt):
            return None
        proxies = dict(self.proxies)
        return proxies.get(url.scheme) or proxies.get("all")

    def context(self) -> ssl.SSLContext:
        """What an HTTPS connection believes.

        Raises:
            SourceError: the certificates that a variable names cannot be used.
        """
        if self.certificates is None:
            return httpx.create_ssl_context(trust_env=False)
        variable, name = self.certificates
        path = Path(name)
        try:
            if not path.exists():
                raise FileNotFoundError(2, "no such file or directory")
            if path.is_dir():
                return ssl.create_default_context(capath=name)
            return ssl.create_default_context(cafile=name)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            _refuse(variable, name, f"no certificates can be read there ({why.lower()})")


def use_environment() -> None:
    """Have huggingface_hub's client follow the environment as it is now.

    Raises:
        SourceError: a variable cannot be followed.
    """
    global _used
    network = read_network(os.environ)
    with _lock:
        if network != _used:
            context = network.context()
            set_client_factory(
                lambda: httpx.Client(
                    transport=_Route(network, context),
                    event_hooks={"request": [_refuse_when_offline]},
                    follow_redirects=True,
                    timeout=None,
                    trust_env=False,
                )
            )
            _used = network


def read_network(environment: Mapping[str, str]) -> Network:
    """What the environment says about proxies and certificates.

    Args:
        environment: variables of certificates, and what proxies' variables are called;
            their values, and the system's own settings, are read by `urllib`.

    Raises:
        SourceError: a proxy that cannot be used.
    """
    found = getproxies()
    proxies = []
    for scheme in ("http", "https", "all"):
        value = found.get(scheme, "").strip()
        if value:
            names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
            variable = next((name for name in names if environment.get(name)), names[1])
            proxies.append((scheme, _read_proxy(variable, value)))
    exempt = tuple(entry.strip() for entry in found.get("no", "").split(",") if entry.strip())
    named = ((name, environment[name]) for name in _CERTIFICATES if environment.get(name))
    folder = environment.get("SSL_CERT_DIR")
    certificates = next(named, ("SSL_CERT_DIR", folder) if folder else None)
    return Network(tuple(proxies), exempt, certificates)


def read_endpoint(environment: Mapping[str, str]) -> str:
    """The hub's address, HF_ENDPOINT or the default one, without a slash at its end.

    Raises:
        SourceError: it is no address.
    """
    value = environment.get("HF_ENDPOINT", "").strip()
    if not value:
        return DEFAULT_ENDPOINT
    if "://" not in value:
        _refuse("HF_ENDPOINT", value, "it has no scheme", f"write https://{value}")
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        _refuse("HF_ENDPOINT", value, f"it is no address ({str(error).lower()})")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        _refuse("HF_ENDPOINT", value, "it is not the address of a hub")
    return value.rstrip("/")


def is_exempt(host: str, port: int | None, entries: Sequence[str]) -> bool:
    """Whether NO_PROXY's entries name a host: `*`, a name and all below it, an address, a network,
    each but the first with or without a port."""
    host = host.lower().rstrip(".")
    for entry in entries:
        name, entry_port = _split_port(entry.partition("://")[2] or entry)
        if entry == "*":
            return True
        if entry_port is not None and entry_port != port:
            continue
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:  # one of them is a name
            below = name.lower().strip(".").removeprefix("*.")
            if below and (host == below or host.endswith(f".{below}")):
                return True
    return False


def _split_port(entry: str) -> tuple[str, int | None]:
    """`host:80`, `[::1]:80`, `[::1]`, `::1` and `fd00::/8` as name and port."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
    elif entry.count(":") == 1:
        name, _, port = entry.partition(":")
    else:
        name, port = entry, ""
    return name, int(port) if port.isdecimal() else None


def _read_proxy(variable: str, value: str) -> Proxy:
    if "://" not in value:
        value = f"http://{value}"
    scheme, _, rest = value.partition("://")
    if scheme.lower() == "socks":  # as GNOME writes it
        value = f"socks5://{rest}"
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        _refuse(variable, _without_password(value), f"it is no address ({str(error).lower()})")
    if url.scheme not in _PROXY_SCHEMES or not url.host:
        known = ", ".join(f"{scheme}://" for scheme in _PROXY_SCHEMES)
        _refuse(variable, _without_password(value), f"it is no proxy's address ({known}HOST:PORT)")
    return Proxy(variable, url)


def _without_password(value: str) -> str:
    scheme, _, rest = value.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _refuse(variable: str, value: str, why: str, fix: str = "correct it, or unset it") -> NoReturn:
    shown = "".join(c if c.isprintable() else "?" for c in value[:120])
    raise SourceError(f"{variable}={shown}", why, fix)


class _Route(httpx.BaseTransport):
    """Sends each request directly or through its proxy: a hub redirects to other hosts."""

    def __init__(self, network: Network, context: ssl.SSLContext) -> None:
        self._network = network
        self._direct = httpx.HTTPTransport(verify=context, trust_env=False)
        self._through = {
            proxy: httpx.HTTPTransport(
                verify=context,
                trust_env=False,
                proxy=httpx.Proxy(
                    proxy.url, ssl_context=context if proxy.url.scheme == "https" else None
                ),
            )
            for _, proxy in network.proxies
        }

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proxy = self._network.proxy_for(request.url)
        if proxy is None:
            return self._direct.handle_request(request)
        try:
            return self._through[proxy].handle_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise ProxyFailed(proxy, error) from error

    def close(self) -> None:
        for transport in (self._direct, *self._through.values()):
            transport.close()


def _refuse_when_offline(_: httpx.Request) -> None:
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE")
