"""A few of the requests that `reliability.serve` makes by the thousand."""

from __future__ import annotations

import random
from pathlib import Path

from reliability.serve import KINDS, LOSSES, make_bundle, measure


def test_no_request_is_lost(tmp_path: Path) -> None:
    random.seed(0)
    found = measure(make_bundle(tmp_path), tmp_path, requests=40, quick=True)
    assert set(found["by_kind"]) == set(KINDS) - {"no body"}
    for kind, counts in found["by_kind"].items():
        assert not set(LOSSES) & counts.keys(), kind
    assert not found["server"]
    assert sum(sum(counts.values()) for counts in found["by_kind"].values()) == 40
    assert found["kills"] >= 2
    assert found["metrics"]["cached_tokens_total"] > 0
