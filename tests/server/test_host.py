"""By which names a model is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.host import Host, Limits, NoSuchModelError

HOST = Host(
    {"smollm2": Path("smollm2.litertlm"), "qwen3-0.6b": Path("qwen3-0.6b.litertlm")},
    Limits(),
    {"demo": "smollm2", "qwen3:latest": "qwen3-0.6b", "./smollm2.litertlm": "smollm2"},
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("smollm2", "smollm2"),
        ("smollm2:latest", "smollm2"),
        ("demo", "smollm2"),
        ("demo:latest", "smollm2"),
        ("./smollm2.litertlm", "smollm2"),
        ("qwen3:latest", "qwen3-0.6b"),  # as Ollama has it, and serve was told it
    ],
)
def test_it_is_found(name: str, found: str) -> None:
    assert HOST.find(name) == found


@pytest.mark.parametrize("name", [None, "", "qwen3", "latest"])
def test_it_is_not_found(name: str | None) -> None:
    with pytest.raises(NoSuchModelError, match="there are: smollm2"):
        HOST.find(name)
