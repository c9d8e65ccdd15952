"""Tables and a plot of what `benchmarks.run` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.drawing import (
    INK,
    LITERT_TORCH,
    LLAMA_CPP,
    OURS,
    PANEL_HEIGHT,
    Series,
    legend,
    panel,
    picture,
    table,
    text,
)

_SUBJECTS = {
    "ours": ("litert-lm-cli", OURS, False),
    "plain": ("litert-lm-cli --target gpu", INK, True),
    "litert-torch": ("litert-torch", LITERT_TORCH, False),
    "llama.cpp": ("llama.cpp Q8_0", LLAMA_CPP, False),
}
_NAMES = {subject: name for subject, (name, _, _) in _SUBJECTS.items()}
# What else is on the way to less memory, not in the plot.
_COMPACT = {
    "ours": "litert-lm-cli",
    "ours, int8 cache": "--kv-cache int8",
    "ours, int4": "--quantize dynamic_int4",
    "llama.cpp": "llama.cpp Q8_0",
    "llama.cpp, q8_0 cache": "Q8_0, q8_0 cache",
    "llama.cpp, Q4_0": "Q4_0",
    "llama.cpp, Q4_K_M": "Q4_K_M",
}
_RATES = ("prefill", "decode")
# Least ratio of ours to a peer's, (prefill, decode), where so many tokens are used.
_AT_LEAST: dict[str, dict[int, dict[str, tuple[float, float]]]] = {
    "gemma3-270m": {
        200: {"litert-torch": (4, 2), "llama.cpp": (2.5, 1.3)},
        3000: {"llama.cpp": (2.5, 1.2)},
    },
    "qwen3-0.6b": {200: {"litert-torch": (5, 3.3)}, 1800: {"litert-torch": (1.8, 1.6)}},
    "smollm2-135m": {200: {"litert-torch": (1, 1), "llama.cpp": (1, 1)}},
}
_SHARE_OF_BANDWIDTH = 0.65
_SHORT = 200  # tokens used in a short context
_SLOWER_WITH_LONG_CACHE = _MORE_WITH_LONG_CACHE = 0.10


def tables(document: dict[str, Any]) -> str:
    """All tables of a result, in Markdown."""
    parts = rates(document), rates(document, _COMPACT), targets(document)
    return "\n\n".join(part for part in parts if part)


def rates(document: dict[str, Any], names: Mapping[str, str] = _NAMES) -> str:
    """Tokens per second of some subjects, a row for each context."""
    rows = []
    for model in document["models"].values():
        for case in [*model["cases"], *model.get("long_cases", [])]:
            row = [model["title"], f"{case['prompt']} + {case['new']}"]
            for subject in names:
                figures = case["subjects"].get(subject)
                if figures:
                    row.append(f"{figures['prefill']:.0f} / {figures['decode']:.1f}")
                else:  # a peer that could not run says why
                    row.append(model.get("left_out", {}).get(subject, ""))
            rows.append(row)
    return table(["prefill / decode, tok/s", "prompt + new tokens", *names.values()], rows)


class _Target(NamedTuple):
    claim: str
    limit: str
    measured: str
    met: bool


def targets(document: dict[str, Any]) -> str:
    """What was promised, and whether it was kept."""
    found = [t for name, model in document["models"].items() for t in _targets(name, model)]
    rows = [[t.claim, t.limit, t.measured, "met" if t.met else "**missed**"] for t in found]
    return table(["target", "limit", "measured", ""], rows)


def _targets(name: str, model: dict[str, Any]) -> Iterator[_Target]:
    title = model["title"]
    for case in model["cases"]:
        subjects = case["subjects"]
        for peer, ratios in _AT_LEAST[name].get(case["prompt"], {}).items():
            if peer in subjects:
                for rate, least in zip(_RATES, ratios, strict=True):
                    ratio = subjects["ours"][rate] / subjects[peer][rate]
                    claim = f"{title}, {case['prompt']} used: {rate} over {peer}"
                    yield _Target(claim, f"{least} x", f"{ratio:.2f} x", ratio >= least)
        if case["prompt"] == _SHORT:
            limit = model["read_gb_per_second"] * 1e9 / model["bytes_per_token"]
            share = subjects["ours"]["decode"] / limit
            yield _Target(
                f"{title}: share of the bandwidth limit ({limit:.0f} tok/s) in decode",
                f"{_SHARE_OF_BANDWIDTH:.0%}",
                f"{share:.0%}",
                share >= _SHARE_OF_BANDWIDTH,
            )
    last = model["cases"][-1]
    ours, plain = (last["subjects"][subject]["peak_mib"] for subject in ("ours", "plain"))
    claim = f"{title}: memory with {last['prompt']} used, of the plain graph's"
    yield _Target(claim, f"{plain:.0f} MiB", f"{ours:.0f} MiB", ours <= plain)
    if "allocated" in model:
        short, long = (figures for _, figures in sorted(model["allocated"]["subjects"].items()))
        for rate in _RATES:
            slower = 1 - long[rate] / short[rate]
            claim = f"{title}: {rate} with a cache for 32768 instead of 1280 tokens"
            limit = f"{-_SLOWER_WITH_LONG_CACHE:.0%}"
            yield _Target(claim, limit, f"{-slower:+.0%}", slower <= _SLOWER_WITH_LONG_CACHE)
        more = long["peak_mib"] / short["peak_mib"] - 1
        claim = f"{title}: memory with a cache for 32768 instead of 1280 tokens"
        limit = f"{_MORE_WITH_LONG_CACHE:+.0%}"
        yield _Target(claim, limit, f"{more:+.0%}", more <= _MORE_WITH_LONG_CACHE)


_WIDTH, _TOP, _ROW = 860, 62, PANEL_HEIGHT + 100
_LEFTS = (70, 480)


def svg(document: dict[str, Any]) -> str:
    """Tokens per second against the context used, a row of panels for each model."""
    parts: list[str] = []
    top = _TOP
    for model in document["models"].values():
        for left, rate in zip(_LEFTS, _RATES, strict=True):
            title = f"{model['title']}: {rate}, tok/s"
            parts += panel((left, top), title, _series(model, rate), (_number, _number), base=2)
        top += _ROW
    names = [Series(*subject, points=[]) for subject in _SUBJECTS.values()]
    parts += legend(_LEFTS[0], top - 22, names)
    machine, job = document["machine"], document["job"]
    note = (
        f"against tokens of context in use; KV cache of {job['kv_cache_max_len']}, two threads on "
        f"{machine['cores']} cores, {machine['processor']}; best of {document['rounds']}"
    )
    parts.append(text(_LEFTS[0], top + 6, note, size=11))
    return picture(_WIDTH, top + 20, "Prefill and decode against the context used", parts)


def _series(model: dict[str, Any], rate: str) -> list[Series]:
    series = []
    for subject, (name, colour, dashed) in _SUBJECTS.items():
        points = [
            (float(case["prompt"]), case["subjects"][subject][rate])
            for case in model["cases"]
            if subject in case["subjects"]
        ]
        if points:
            series.append(Series(name, colour, dashed, points))
    return series


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2g}"
