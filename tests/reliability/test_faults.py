"""Each fault once, of those that `reliability.faults` makes by the dozen."""

from __future__ import annotations

from pathlib import Path

from reliability.faults import measure
from reliability.trials import LOSSES


def test_faults_cost_no_file(tmp_path: Path) -> None:
    found, missing = measure(tmp_path, times=1)
    # Five need mounts and four a compiler, which are not everywhere.
    absent = sum(5 if name.startswith("mounts") else 4 for name in missing)
    assert len(found) + absent == 24
    for name, counts in found.items():
        assert counts.get("old", 0) + counts.get("new", 0) == 1, name
        assert not set(LOSSES) & counts.keys(), name
    # What certainly comes in time has its effect.
    assert found["quota on the size of a file"] == {"old": 1}
    assert found["four conversions at once"] == {"new": 1}
