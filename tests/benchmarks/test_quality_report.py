"""The table and the plot of `benchmarks.quality` say what the result says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from benchmarks.quality_report import svg, tables


def _figures(megabytes: float, kl: float, **more: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("chat", "right", "core_ms", "prefill", "decode"))
    near = {"kl_mean": kl, "kl_median": kl / 2, "kl_99": kl * 8, "top1_agreement": 0.75}
    perplexity = 30 * (1 + kl)
    return {"bytes": megabytes * 1e6, "perplexity": perplexity, **near, **nothing, **more}


@pytest.fixture
def document() -> dict[str, Any]:
    subjects = {
        "fp32": _figures(540, 0),
        "dynamic_int4": _figures(90, 0.16),
        "llama.cpp Q4_K_M, imatrix": _figures(105, 0.04),
    }
    model = {"title": "A <small> one", "subjects": subjects, "left_out": {"AWQ": "needs a GPU"}}
    return {"benchmark": "quality", "models": {"small": model}, "conversion": {}}


def test_a_table_has_the_columns_that_were_measured_and_the_largest_first(
    document: dict[str, Any],
) -> None:
    text = tables(document)
    assert text.splitlines()[0] == (
        "|  | size | perplexity | KL mean | median | 99 % | same likeliest token |"
    )
    assert "| `dynamic_int4` | 90.0 MB | 34.80 (+16.0%) | 0.160 | 0.080 | 1.28 | 75.0% |" in text
    names = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()[3:]]
    assert names == ["`fp32`", "llama.cpp Q4_K_M, imatrix", "`dynamic_int4`", "AWQ"]
    assert "| AWQ | needs a GPU |  |  |  |  |  |" in text


def test_columns_of_chats_and_speeds(document: dict[str, Any]) -> None:
    chat = {"kl_mean": 0.0123, "top1_agreement": 0.949}
    measured = {"chat": chat, "right": 41, "core_ms": 7.25, "prefill": 800.4, "decode": 60.04}
    document["models"]["small"]["subjects"]["dynamic_int8"] = _figures(137, 0.01, **measured)
    document["conversion"] = {"dynamic_int8": {"seconds": 1.8, "times": 1.0}}
    text = tables(document)
    assert " | the same in chats | right of 100 | core ms per token | prefill / decode |" in text
    assert "| 0.0123, 94.9% | 41 | 7.2 | 800 / 60.0 |" in text
    assert "| dynamic_int8 | 1.80 s | 1.0 x |" in text


def test_the_plot_names_every_point_but_float_and_what_is_beaten(document: dict[str, Any]) -> None:
    document["models"]["small"]["subjects"]["dynamic_int4 --clip max"] = _figures(91, 0.4)
    picture = ET.fromstring(svg(document))
    said = [element.text or "" for element in picture.iter()]
    assert "dynamic_int4: 90 MB, 0.1600" in said
    assert "Q4_K_M, imatrix: 105 MB, 0.0400" in said
    assert "dynamic_int4" in said
    assert "dynamic_int4 --clip max" not in said
    assert "dynamic_int4 --clip max: 91 MB, 0.4000" in said
    assert {"litert-lm-cli", "llama.cpp"} <= set(said)
    assert "A <small> one: KL divergence against size" in said
    assert not any(text.startswith("fp32") for text in said)
    places = {
        element.find("{*}title").text: (float(element.get("cx", 0)), float(element.get("cy", 0)))  # type: ignore[union-attr]
        for element in picture.iter("{http://www.w3.org/2000/svg}circle")
    }
    (small, far), (large, near) = (
        at for said, at in places.items() if said.startswith(("dynamic_int4:", "Q4_K_M"))
    )
    assert small < large
    assert far < near  # what is nearer to its source stands lower
