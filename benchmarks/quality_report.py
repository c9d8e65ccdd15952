"""Tables and a plot of what `benchmarks.quality` measured."""

from __future__ import annotations

from typing import Any

from benchmarks.drawing import (
    INK,
    LITERT_TORCH,
    LLAMA_CPP,
    OURS,
    SCATTER_HEIGHT,
    Series,
    legend,
    picture,
    scatter,
    table,
)

_HEAD = (
    "", "size", "perplexity", "KL mean", "median", "99 %", "same likeliest token",
    "the same in chats", "right of 100", "core ms per token", "prefill / decode",
)  # fmt: skip
# How names begin, and what is drawn of them.
_GROUPS = (
    ("llama.cpp", "llama.cpp", LLAMA_CPP),
    ("litert-torch", "litert-torch", LITERT_TORCH),
    ("GPTQ", "GPTQ, AWQ", INK),
    ("AWQ", "GPTQ, AWQ", INK),
    ("", "litert-lm-cli", OURS),
)
_NEAREST = 1e-4  # what is nearer is float
_WIDTH, _TOP, _ROW = 860, 84, SCATTER_HEIGHT + 120


def tables(document: dict[str, Any]) -> str:
    """All tables of a result, in Markdown: the largest files first.

    Columns in which nothing was measured are left out.
    """
    rows = []
    for model in document["models"].values():
        rows.append([f"**{model['title']}**", *[""] * (len(_HEAD) - 1)])
        float_one = next(iter(model["subjects"].values()))
        by_size = sorted(model["subjects"].items(), key=lambda each: -each[1]["bytes"])
        rows += [[_named(name), *_cells(found, float_one)] for name, found in by_size]
        rows += [[peer, why, *[""] * (len(_HEAD) - 2)] for peer, why in model["left_out"].items()]
    kept = [number for number in range(len(_HEAD)) if any(row[number] for row in rows)]
    quality = table([_HEAD[n] for n in kept], [[row[n] for n in kept] for row in rows])
    times = [
        [name, f"{found['seconds']:.2f} s", f"{found['times']:.1f} x"]
        for name, found in document["conversion"].items()
    ]
    conversion = table(["Qwen3-0.6B shape, BF16", "conversion", ""], times)
    return "\n\n".join(part for part in (quality, conversion) if part)


def _named(name: str) -> str:
    """Ours as code, being what is typed."""
    return name if name.startswith(tuple(begin for begin, *_ in _GROUPS if begin)) else f"`{name}`"


def _cells(found: dict[str, Any], float_one: dict[str, Any]) -> list[str]:
    chat, rates = "", ""
    if found["chat"] is not None:
        chat = f"{found['chat']['kl_mean']:.4f}, {found['chat']['top1_agreement']:.1%}"
    if found["prefill"] is not None:
        rates = f"{found['prefill']:.0f} / {found['decode']:.1f}"
    return [
        f"{found['bytes'] / 1e6:.1f} MB",
        f"{found['perplexity']:.2f} ({found['perplexity'] / float_one['perplexity'] - 1:+.1%})",
        f"{found['kl_mean']:.3f}",
        f"{found['kl_median']:.3f}",
        f"{found['kl_99']:.2f}",
        f"{found['top1_agreement']:.1%}",
        chat,
        "" if found["right"] is None else f"{found['right']}",
        "" if found["core_ms"] is None else f"{found['core_ms']:.1f}",
        rates,
    ]


def svg(document: dict[str, Any]) -> str:
    """Size against KL divergence, a panel for each model.

    Of ours those are named than which no other is both smaller and nearer.
    """
    parts: list[str] = []
    top, groups = _TOP, {}
    for model in document["models"].values():
        points = {}
        for name, found in model["subjects"].items():
            if found["kl_mean"] > _NEAREST:
                group, colour = next((g, c) for begin, g, c in _GROUPS if name.startswith(begin))
                groups[group] = Series(group, colour, False, [])
                label = name.removeprefix("llama.cpp ")
                points[label] = (found["bytes"] / 1e6, found["kl_mean"], colour)
        ours = {name: at for name, (*at, colour) in points.items() if colour == OURS}
        beaten = {
            name
            for name, at in ours.items()
            if any(o != at and o[0] <= at[0] and o[1] <= at[1] for o in ours.values())
        }
        parts += scatter((70, top), _WIDTH - 120, model["title"], points, beaten)
        top += _ROW
    head = legend(70, 24, list(groups.values()))
    return picture(_WIDTH, top - 30, "Size against KL divergence", [*head, *parts])
