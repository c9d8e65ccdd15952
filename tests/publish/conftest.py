"""A tiny model, converted, with papers beside its source."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli.main import main
from tests.tiny_models import make_model, write_tokenizer

CARD = """---
license: other
license_name: tiny_license
license_link: LICENSE
base_model: org/base
---
# Tiny
"""
OPTIONS = ("--kv-cache-max-len", "256", "--prefill-seq-len", "8,64", "--quiet")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its card and its licence."""
    folder = tmp_path_factory.mktemp("publish") / "tiny"
    make_model("llama").save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "LICENSE").write_text("Do what you like.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def converted(source: Path) -> Path:
    """Its bundle, beside which its receipt is."""
    folder = source.parent / "converted"
    assert main(["convert", str(source), "--output-dir", str(folder), *OPTIONS]) == 0
    return folder / "tiny.litertlm"


@pytest.fixture
def output(converted: Path, tmp_path: Path) -> Path:
    """The bundle for a test of its own."""
    for path in (converted, converted.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / "tiny.litertlm"
