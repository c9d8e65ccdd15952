"""The tables and the plot say what the result says: failures, gaps and missed targets too."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks.convert_report import svg, tables
from benchmarks.plot import read


def _figures(seconds: float, peak: float) -> dict[str, float]:
    extremes = {"seconds_min": seconds * 0.9, "seconds_max": seconds * 1.1}
    return {"rounds": 5, "seconds": seconds, **extremes, "peak_mib": peak}


def _source(seconds: float, peak: float, nbytes: int, files: int = 1) -> dict[str, Any]:
    return {
        "ours": _figures(seconds, peak),
        "floor": _figures(seconds / 2, 8),
        "synced_floor": _figures(seconds / 1.5, 8),
        "times_floor": 2.0,
        "times_synced_floor": 1.5,
        "seconds_per_gb": seconds / (nbytes / 1e9),
        "source_bytes": nbytes,
        "source_files": files,
        "output_bytes": nbytes // 2,
    }


@pytest.fixture
def document() -> dict[str, Any]:
    return {
        "machine": {"cores": 2, "processor": "A <fast> one"},
        "job": {"quantize": "dynamic_int8"},
        "peers": {"litert-torch": "0.9.4 (with torch)", "llama.cpp": "v0.5.0 (in npm)"},
        "rounds": 5,
        "models": {
            "gemma3-270m": {
                "title": "Gemma 3 270M",
                "parameters": 268e6,
                "sources": {
                    "safetensors": _source(1.0, 180, 536_000_000),
                    "gguf": _source(1.5, 150, 253_000_000),
                },
                "gguf_times_safetensors": 1.5,
                "peers": {
                    "litert-torch": {
                        **_figures(240, 6000),
                        "times_ours": 240.0,
                        "times_our_memory": 33.3,
                        "output_bytes": 300_000_000,
                    },
                    "llama.cpp": {"failed": "exit code 1: no | such file"},
                },
            },
            "qwen3-0.6b": {
                "title": "Qwen3-0.6B shape",
                "parameters": 596e6,
                "sources": {"safetensors": _source(2.0, 200, 1_192_000_000)},
                "peers": {},
            },
            "qwen3-4b": {
                "title": "Qwen3-4B shape",
                "parameters": 4022e6,
                "sources": {"safetensors": _source(20.0, 260, 8_044_000_000, files=2)},
                "peers": {"litert-torch": {"left_out": "needs about 56 GiB of memory"}},
                "engine": {"failed": "exit code 1: it did not load"},
            },
        },
        "commands": {"--help": _figures(0.1, 20), "inspect": _figures(0.4, 40)},
    }


def _row(text: str, *parts: str) -> str:
    [line] = [line for line in text.splitlines() if all(part in line for part in parts)]
    return line


def test_tables_show_figures_gaps_and_verdicts(document: dict[str, Any]) -> None:
    text = tables(document)
    assert _row(text, "Qwen3-4B shape, BF16 safetensors") == (
        "| Qwen3-4B shape, BF16 safetensors (8.04 GB in 2 files) | 20.0 s (18.0-22.0) | 2.0 x | "
        "1.5 x | 260 MiB | 2.49 s | 4.02 GB |"
    )
    assert "240 s | 240.0 x | 6000 MiB | 33.3 x" in _row(
        text, "270M | litert-torch 0.9.4, the same job"
    )
    assert "left out: needs about 56 GiB" in _row(text, "4B shape | litert-torch")
    assert "failed: exit code 1: no \\| such file" in _row(text, "llama.cpp")
    assert _row(text, "faster than litert-torch").endswith("| 150 x | 240 x | met |")
    assert _row(text, "Qwen3-4B shape: peak memory").endswith("| 260 MiB | **missed** |")
    assert _row(text, "4B over 0.6B").endswith("| +15 % | +30 % | **missed** |")
    assert _row(text, "loads and decodes").endswith("| **missed** |")
    assert _row(text, "| `--help` |").endswith("| met |")
    assert _row(text, "| `inspect` |").endswith("| **missed** |")


def test_every_table_row_has_as_many_cells_as_its_head(document: dict[str, Any]) -> None:
    for table in tables(document).split("\n\n"):
        rows = [line.replace("\\|", "").count("|") for line in table.splitlines()]
        assert len(set(rows)) == 1, table


def test_a_part_of_the_cases_makes_a_part_of_the_tables(document: dict[str, Any]) -> None:
    part = {**document, "models": {"qwen3-4b": {"title": "4B", "left_out": "no disk"}}}
    del part["commands"]
    assert "left out: no disk" in tables(part)
    assert "over 0.6B" not in tables(part)


def test_svg_is_valid_and_holds_every_point(document: dict[str, Any]) -> None:
    root = ET.fromstring(svg(document))
    shapes = "{http://www.w3.org/2000/svg}"
    circles = list(root.iter(f"{shapes}circle"))
    # Time: three of ours, three of the floor, one peer; memory: no floor.
    assert len(circles) == 7 + 4
    labels = [title.text for circle in circles for title in circle]
    assert "litert-torch: 240 s" in labels
    assert "litert-lm-cli: 260 MiB" in labels
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < float(root.attrib["width"])
        assert 0 < float(circle.attrib["cy"]) < float(root.attrib["height"])


def test_higher_figures_stand_higher(document: dict[str, Any]) -> None:
    slower = copy.deepcopy(document)
    slower["models"]["qwen3-4b"]["sources"]["safetensors"]["ours"]["seconds"] = 90.0

    def place(document: dict[str, Any], label: str) -> float:
        root = ET.fromstring(svg(document))
        shapes = "{http://www.w3.org/2000/svg}"
        [circle] = [c for c in root.iter(f"{shapes}circle") if c[0].text == label]
        return float(circle.attrib["cy"])

    assert place(slower, "litert-lm-cli: 90 s") < place(document, "litert-lm-cli: 20 s")


def test_reads_the_last_line(tmp_path: Path) -> None:
    file = tmp_path / "result.txt"
    file.write_text(f"| a table |\n\n{json.dumps({'rounds': 3})}\n")
    assert read(file) == {"rounds": 3}
