"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from converter.registry import FAMILIES
from docs.tables import PAGE, filled

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "README_MODELS.md", "CONVERSION_STATUS.md")]


def test_tables_are_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert page.count("<!-- table: ") == 6
    assert filled(page) == page, "run: venv/bin/python -m docs.tables"


def test_every_family_has_a_status() -> None:
    status = (ROOT / "CONVERSION_STATUS.md").read_text("utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in status] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_and_named_tests_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    named = re.findall(r"`((?:tests|docs|benchmarks)/[\w/.]+\.\w+)`", text)
    assert [name for name in [*links, *named] if not (ROOT / name).exists()] == []
