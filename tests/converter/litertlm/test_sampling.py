"""What a source says of sampling: which numbers go on, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from converter.errors import SourceError
from converter.litertlm.sampling import checked_sampling


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"temperature": None, "eos_token_id": 2}, {}),
        (
            {"do_sample": True, "temperature": 1, "top_p": 0.9, "top_k": 40, "min_p": 0.1},
            {"do_sample": True, "temperature": 1, "top_p": 0.9, "top_k": 40},
        ),
        ({"temperature": -1.0, "top_k": -1}, {"temperature": 0.0, "top_k": 0}),
    ],
)
def test_numbers_go_on(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert checked_sampling(config, "m") == expected


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("temperature", "0.6", "a number"),
        ("temperature", True, "a number"),
        ("temperature", float("nan"), "a number"),
        pytest.param("temperature", 10**400, "a number", id="huge"),
        ("top_p", [0.9], "a number"),
        ("top_k", 50.0, "a whole number"),
        ("top_k", 1 << 31, "a whole number"),
    ],
)
def test_anything_else_is_refused_by_name(key: str, value: Any, wanted: str) -> None:
    with pytest.raises(SourceError) as error:
        checked_sampling({key: value}, "m")
    assert error.value.what == "m: sampling"
    assert error.value.why == f"{key}={value!r:.60} is not {wanted} that sampling can use"
