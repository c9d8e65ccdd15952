"""A dozen of the conversions that `reliability.stress` makes by the hundred."""

from __future__ import annotations

from pathlib import Path

from reliability.stress import measure


def test_conversions_at_once_leave_nothing(tmp_path: Path) -> None:
    found = measure(tmp_path, tiny=28, real=0)
    assert set(found) == {"tiny, processes", "tiny, one process"}
    for result in found.values():
        assert result.conversions == 28
        assert (result.failed, result.other_bytes, result.left_behind) == (0, 0, [])
    # Only of its own process, as others use this machine, and without what tests hold open.
    alone = found["tiny, one process"]
    assert alone.after["open files"] <= alone.before["open files"]
    assert alone.after["threads"] <= alone.before["threads"]
