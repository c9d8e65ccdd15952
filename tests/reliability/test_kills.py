"""A few of the kills that `reliability.kills` makes by the hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from reliability.kills import measure


def test_a_killed_conversion_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "LITERT_LM_MODELS"):
        monkeypatch.setenv(name, "")  # set by `measure`, and taken back after this test
    found = measure(tmp_path, kills=2, tiny=True)
    assert len(found) == 5
    assert sum(counts.get("killed", 0) for counts in found.values()) > 0
    for counts in found.values():
        assert counts.get("old", 0) + counts.get("new", 0) == 2
        assert not {"mixture", "wrong receipt", "left behind"} & counts.keys()
