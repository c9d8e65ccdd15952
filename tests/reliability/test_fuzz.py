"""A few thousand of the inputs that `reliability.fuzz` makes by the million."""

from __future__ import annotations

from reliability.fuzz import run_all


def test_every_reader_refuses_cleanly() -> None:
    results = run_all(5000, seed=1, only=None, keep=False)
    assert len(results) == 8
    for name, found in results.items():
        assert found.failures == [], name
        assert found.inputs > 100
        assert found.accepted + found.refusals > 1  # it is not one refusal of everything
