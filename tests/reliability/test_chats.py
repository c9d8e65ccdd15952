"""A few minutes' worth of what `reliability.chats` does for long."""

from __future__ import annotations

from pathlib import Path

from reliability.chats import LOSSES, measure


def test_chats_go_on(tmp_path: Path) -> None:
    found = measure(tmp_path, turns=3, interrupts=3, lengths=1)
    assert len(found) == 6
    for name, counts in found.items():
        assert counts["done"] >= 1, name
        assert not set(LOSSES) & counts.keys(), name
    assert found["prompts around the limit"]["filled to the last token"] == 1
