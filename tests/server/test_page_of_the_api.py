"""docs/server.md says what the server does."""

from __future__ import annotations

import re
from pathlib import Path

from server.app import Service
from server.guard import Rules
from server.host import Host, Limits

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs/server.md").read_text("utf-8")


def test_every_route_is_in_the_table_and_every_one_there_is_a_route() -> None:
    service = Service(Host({}, Limits()), Rules(frozenset()))
    routes = {
        f"{'POST' if 'POST' in (route.methods or ()) else 'GET'} {route.path}"
        for route in service.routes()
    }
    told = set(re.findall(r"`((?:GET|POST) /[^`]*)`", PAGE))
    assert told == routes
