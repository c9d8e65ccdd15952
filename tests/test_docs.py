"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from converter.registry import FAMILIES
from docs.tables import PAGES as FILLED
from docs.tables import filled

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks/README.md"]


def test_tables_are_up_to_date() -> None:
    pages = [path.read_text("utf-8") for path in FILLED]
    assert [page.count("<!-- table: ") for page in pages] == [10, 1]
    assert list(map(filled, pages)) == pages, "run: venv/bin/python -m docs.tables"


def test_every_family_has_a_status() -> None:
    status = (ROOT / "CONVERSION_STATUS.md").read_text("utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in status] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_and_named_tests_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    named = re.findall(r"`((?:tests|docs|benchmarks)/[\w/.]+\.\w+)`", text)
    assert [name for name in links if not (page.parent / name).exists()] == []
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_sections_exist(page: Path) -> None:
    for name, section in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text("utf-8")):
        text = (page.parent / name if name else page).read_text("utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]
        assert section in anchors


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 80
