"""Tables and a plot of what `benchmarks.convert` measured.

A figure that could not be taken stands there with its reason, and a target that was missed is
called missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.drawing import (
    INK,
    LITERT_TORCH,
    LLAMA_CPP,
    OURS,
    Series,
    legend,
    panel,
    picture,
    table,
    text,
)

_FORMS = {"safetensors": "BF16 safetensors", "gguf": "Q4_K_M GGUF"}
_JOBS = {
    "litert-torch": "the same job",
    "llama.cpp": "BF16 GGUF to Q8_0 (another job, for scale)",
}


# Tables -------------------------------------------------------------------------------------------


def tables(document: dict[str, Any]) -> str:
    """All tables of a result, in Markdown."""
    parts = [conversions(document), comparisons(document), commands(document), targets(document)]
    return "\n\n".join(part for part in parts if part)


def conversions(document: dict[str, Any]) -> str:
    """Ours and the floor, a row for each source."""
    rows = []
    for model in document["models"].values():
        if "left_out" in model:
            rows.append([model["title"], f"left out: {model['left_out']}", *[""] * 6])
        for form, source in model.get("sources", {}).items():
            files = source["source_files"]
            size = _gb(source["source_bytes"]) + (f" in {files} files" if files > 1 else "")
            rows.append(
                [
                    f"{model['title']}, {_FORMS[form]} ({size})",
                    _spread(source["ours"]),
                    f"{source['times_floor']:.1f} x",
                    f"{source['times_synced_floor']:.1f} x",
                    _mib(source["ours"]),
                    f"{source['seconds_per_gb']:.2f} s",
                    _gb(source["output_bytes"]),
                ]
            )
    head = [
        f"to {document['job']['quantize']}",
        "time",
        "times the floor",
        "times the floor, synced",
        "peak memory",
        "per GB of source",
        "output",
    ]
    return table(head, rows)


def comparisons(document: dict[str, Any]) -> str:
    """The others beside ours, from safetensors."""
    rows = []
    for model in document["models"].values():
        if "sources" not in model:
            continue
        ours = model["sources"]["safetensors"]
        mine = [model["title"], "ours", _seconds(ours["ours"]), "", _mib(ours["ours"]), ""]
        rows.append([*mine, _gb(ours["output_bytes"])])
        for peer, figures in model["peers"].items():
            version = document["peers"][peer].split()[0]
            row = [model["title"], f"{peer} {version}, {_JOBS[peer]}"]
            if "seconds" in figures:
                row += [
                    _seconds(figures),
                    f"{figures['times_ours']:.1f} x",
                    _mib(figures),
                    f"{figures['times_our_memory']:.1f} x",
                    _gb(figures["output_bytes"]),
                ]
            else:
                row += [_reason(figures), *[""] * 4]
            rows.append(row)
    return table(["model", "converter", "time", "ours x", "peak memory", "ours x", "output"], rows)


def commands(document: dict[str, Any]) -> str:
    """What needs no conversion, and the engine."""
    rows = [
        [f"`litert-lm-cli {name}`", f"{1000 * figures['seconds']:.0f} ms", _mib(figures)]
        for name, figures in document.get("commands", {}).items()
    ]
    for model in document["models"].values():
        if "engine" in model:
            engine = model["engine"]
            name = f"`litert-lm-cli run`, {model['title']}"
            if "seconds" in engine:
                said = " ".join(engine["said"])
                rows.append(
                    [
                        f"{name}, {_gb(engine['file_bytes'])}: {said}",
                        _seconds(engine),
                        _mib(engine),
                    ]
                )
            else:
                rows.append([name, _reason(engine), ""])
    return table(["whole command", "time", "peak memory"], rows)


def targets(document: dict[str, Any]) -> str:
    """What was promised, and whether it was kept."""
    rows = [
        [t.claim, t.limit, t.measured, "met" if t.met else "**missed**"] for t in _targets(document)
    ]
    return table(["target", "limit", "measured", ""], rows)


class _Target(NamedTuple):
    claim: str
    limit: str
    measured: str
    met: bool


def _targets(document: dict[str, Any]) -> Iterator[_Target]:
    """The targets that a result says something about."""
    models = document["models"]
    sources = {
        name: model["sources"]["safetensors"]
        for name, model in models.items()
        if "sources" in model
    }
    small, large = sources.get("qwen3-0.6b"), sources.get("qwen3-4b")
    if small:
        ratio = small["times_floor"]
        yield _Target("0.6B: times the floor", "3 x", f"{ratio:.2f} x", ratio <= 3)
    for name in sources:
        peer = models[name]["peers"].get("litert-torch", {})
        if "times_ours" in peer:
            ratio = peer["times_ours"]
            claim = f"{models[name]['title']}: faster than litert-torch"
            yield _Target(claim, "150 x", f"{ratio:.0f} x", ratio >= 150)
    for name, source in sources.items():
        peak = source["ours"]["peak_mib"]
        claim = f"{models[name]['title']}: peak memory"
        yield _Target(claim, "256 MiB", f"{peak:.0f} MiB", peak <= 256)
    if small and large:
        more = large["ours"]["peak_mib"] / small["ours"]["peak_mib"] - 1
        yield _Target("peak memory, 4B over 0.6B", "+15 %", f"{100 * more:+.0f} %", more <= 0.15)
        more = large["seconds_per_gb"] / small["seconds_per_gb"] - 1
        claim = "seconds per GB, 4B against 0.6B"
        yield _Target(claim, "within 25 %", f"{100 * more:+.0f} %", abs(more) <= 0.25)
    for model in models.values():
        if "gguf_times_safetensors" in model:
            ratio = model["gguf_times_safetensors"]
            claim = f"{model['title']}: GGUF against safetensors"
            yield _Target(claim, "3 x", f"{ratio:.2f} x", ratio <= 3)
        if "engine" in model:
            engine = model["engine"]
            loads = "seconds" in engine
            said = _seconds(engine) if loads else _reason(engine)
            yield _Target(f"{model['title']}: loads and decodes", "more than 2 GB", said, loads)
    for name, limit in (("--help", 150), ("inspect", 300)):
        if name in document.get("commands", {}):
            spent = 1000 * document["commands"][name]["seconds"]
            yield _Target(f"`{name}`", f"{limit} ms", f"{spent:.0f} ms", spent <= limit)


def _reason(figures: dict[str, Any]) -> str:
    return next(
        f"{k.replace('_', ' ')}: {figures[k]}" for k in ("left_out", "failed") if k in figures
    )


def _seconds(figures: dict[str, Any]) -> str:
    seconds = figures["seconds"]
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def _spread(figures: dict[str, Any]) -> str:
    return f"{_seconds(figures)} ({figures['seconds_min']:.1f}-{figures['seconds_max']:.1f})"


def _mib(figures: dict[str, Any]) -> str:
    return f"{figures['peak_mib']:.0f} MiB"


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"


# Plot ---------------------------------------------------------------------------------------------


_WIDTH, _HEIGHT = 860, 400
_CORNERS = ((70, 62), (480, 62))


def svg(document: dict[str, Any]) -> str:
    """Time and peak memory against the number of parameters, on logarithmic axes."""
    seconds, memory = _series(document, "seconds"), _series(document, "peak_mib")
    left = _CORNERS[0][0]
    parts = [
        *panel(_CORNERS[0], "Time to convert", seconds, (_count, _duration), base=10),
        *panel(_CORNERS[1], "Peak memory", memory, (_count, _memory), base=4),
        *legend(left, _HEIGHT - 44, seconds),
    ]
    for number, note in enumerate(_notes(document)):
        parts.append(text(left, _HEIGHT - 20 + 15 * number, note, size=11))
    return picture(_WIDTH, _HEIGHT, "Conversion: time and peak memory against model size", parts)


def _series(document: dict[str, Any], figure: str) -> list[Series]:
    ours, floor = [], []
    peers: dict[str, list[tuple[float, float]]] = {"litert-torch": [], "llama.cpp": []}
    for model in document["models"].values():
        if "sources" not in model:
            continue
        size = model["parameters"]
        source = model["sources"]["safetensors"]
        ours.append((size, source["ours"][figure]))
        if figure == "seconds":
            floor.append((size, source["floor"][figure]))
        for name, points in peers.items():
            figures = model["peers"].get(name, {})
            if figure in figures:
                points.append((size, figures[figure]))
    series = [
        Series("litert-torch", LITERT_TORCH, False, peers["litert-torch"]),
        Series("llama.cpp to Q8_0 (another job)", LLAMA_CPP, False, peers["llama.cpp"]),
        Series("litert-lm-cli", OURS, False, ours),
        Series("floor: read and copy", INK, True, floor),
    ]
    return [one for one in series if one.points]


def _notes(document: dict[str, Any]) -> Iterator[str]:
    machine = document["machine"]
    yield (
        f"{machine['cores']} cores, {machine['processor']}; "
        f"median of {document['rounds']} rounds, litert-torch once"
    )
    for model in document["models"].values():
        reason = model.get("peers", {}).get("litert-torch", {}).get("left_out")
        if reason and reason != "--quick":
            yield f"litert-torch, {model['title']}: {reason}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"


def _memory(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.2g} GiB"


def _count(parameters: float) -> str:
    return f"{parameters / 1e6:.0f}M" if parameters < 1e9 else f"{parameters / 1e9:.1f}B"
