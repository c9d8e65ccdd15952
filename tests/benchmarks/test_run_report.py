"""The tables and the plot of `benchmarks.run` say what the result says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from benchmarks.run_report import svg, tables


def _figures(prefill: float, decode: float, peak: float = 500) -> dict[str, float]:
    return {"prefill": prefill, "decode": decode, "peak_mib": peak}


@pytest.fixture
def document() -> dict[str, Any]:
    short = {"ours": _figures(1800, 60), "plain": _figures(500, 30)}
    return {
        "machine": {"cores": 2, "processor": "A <fast> one"},
        "job": {"kv_cache_max_len": 4096},
        "rounds": 5,
        "models": {
            "gemma3-270m": {
                "title": "Gemma 3 270M",
                "bytes_per_token": 250_000_000,
                "read_gb_per_second": 25.0,
                "cases": [
                    {
                        "prompt": 200,
                        "new": 200,
                        "subjects": {
                            **short,
                            "litert-torch": _figures(500, 40),
                            "llama.cpp": _figures(700, 45),
                        },
                    },
                    {
                        "prompt": 3000,
                        "new": 64,
                        "subjects": {
                            "ours": _figures(1500, 50, 901),
                            "plain": _figures(600, 30, 900),
                        },
                    },
                ],
                "long_cases": [
                    {"prompt": 30000, "new": 32, "subjects": {"ours": _figures(300, 20)}}
                ],
                "allocated": {
                    "subjects": {"1280": _figures(1900, 64), "32768": _figures(1700, 63, 540)}
                },
            }
        },
    }


def test_tables_name_every_figure_and_what_was_missed(document: dict[str, Any]) -> None:
    text = tables(document)
    assert (
        "| Gemma 3 270M | 200 + 200 | 1800 / 60.0 | 500 / 30.0 | 500 / 40.0 | 700 / 45.0 |" in text
    )
    assert "| Gemma 3 270M | 3000 + 64 | 1500 / 50.0 | 600 / 30.0 |  |  |" in text
    assert "| Gemma 3 270M | 30000 + 32 | 300 / 20.0 |  |  |  |" in text
    rows = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines()}
    met = {claim for claim, line in rows.items() if line.endswith("| met |")}
    missed = {claim for claim, line in rows.items() if line.endswith("| **missed** |")}
    assert met == {
        "Gemma 3 270M, 200 used: prefill over llama.cpp",  # 2.57 of 2.5
        "Gemma 3 270M, 200 used: decode over llama.cpp",  # 1.33 of 1.3
        "Gemma 3 270M: decode with a cache for 32768 instead of 1280 tokens",  # -2 %
        "Gemma 3 270M: memory with a cache for 32768 instead of 1280 tokens",  # +8 %
    }
    assert missed == {
        "Gemma 3 270M, 200 used: prefill over litert-torch",  # 3.6 of 4
        "Gemma 3 270M, 200 used: decode over litert-torch",  # 1.5 of 2
        "Gemma 3 270M: share of the bandwidth limit (100 tok/s) in decode",  # 60 of 65 %
        "Gemma 3 270M: memory with 3000 used, of the plain graph's",
        "Gemma 3 270M: prefill with a cache for 32768 instead of 1280 tokens",  # -11 %
    }


def test_a_peer_that_could_not_run_says_why(document: dict[str, Any]) -> None:
    model = document["models"]["gemma3-270m"]
    del model["cases"][0]["subjects"]["llama.cpp"]
    model["left_out"] = {"llama.cpp": "install ninja"}
    assert "500 / 40.0 | install ninja |" in tables(document)


def test_the_plot_has_a_point_for_every_figure(document: dict[str, Any]) -> None:
    picture = ET.fromstring(svg(document))
    labels = [title.text for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert "litert-lm-cli: 1800" in labels
    assert "llama.cpp Q8_0: 45" in labels
    assert len(labels) == 1 + 2 * (4 + 2)
