"""Tables for people and a plot, made from the JSON of `benchmarks.convert`.

    venv/bin/python -m benchmarks.convert | tee RESULT.txt
    venv/bin/python -m benchmarks.plot RESULT.txt docs/conversion.svg

Prints the tables and writes the plot. A figure that could not be taken stands there with its
reason, and a target that was missed is called missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

# Colours in the middle between GitHub's light and dark background: a picture cannot know which of
# them the reader has chosen.
_INK = "#737b86"
_OURS, _LITERT_TORCH, _LLAMA_CPP = "#2f81f7", "#d9652b", "#3f9a50"
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
    return _table(head, rows)


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
    return _table(["model", "converter", "time", "ours x", "peak memory", "ours x", "output"], rows)


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
    return _table(["whole command", "time", "peak memory"], rows)


def targets(document: dict[str, Any]) -> str:
    """What was promised, and whether it was kept."""
    rows = [
        [t.claim, t.limit, t.measured, "met" if t.met else "**missed**"] for t in _targets(document)
    ]
    return _table(["target", "limit", "measured", ""], rows)


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
        yield _Target("0.6B: times the floor", "2.5 x", f"{ratio:.2f} x", ratio <= 2.5)
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


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


class _Series(NamedTuple):
    name: str
    colour: str
    dashed: bool
    points: list[tuple[float, float]]  # (parameters, value)


_WIDTH, _HEIGHT = 860, 400
_PANEL_WIDTH, _PANEL_HEIGHT, _TOP = 300, 250, 62
_LEFTS = (70, 480)


def svg(document: dict[str, Any]) -> str:
    """Time and peak memory against the number of parameters, on logarithmic axes."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">',
        "<title>Conversion: time and peak memory against model size</title>",
    ]
    seconds = _series(document, "seconds")
    memory = _series(document, "peak_mib")
    out += _panel(_LEFTS[0], "Time to convert", seconds, _duration, base=10)
    out += _panel(_LEFTS[1], "Peak memory", memory, _memory, base=4)
    left = _LEFTS[0]
    for series in seconds:
        out.append(_line((left, _HEIGHT - 44), (left + 22, _HEIGHT - 44), series))
        out.append(_text(left + 28, _HEIGHT - 40, series.name))
        left += 46 + round(6.6 * len(series.name))
    for number, note in enumerate(_notes(document)):
        out.append(_text(_LEFTS[0], _HEIGHT - 20 + 15 * number, note, size=11))
    return "\n".join([*out, "</svg>", ""])


def _series(document: dict[str, Any], figure: str) -> list[_Series]:
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
        _Series("litert-torch", _LITERT_TORCH, False, peers["litert-torch"]),
        _Series("llama.cpp to Q8_0 (another job)", _LLAMA_CPP, False, peers["llama.cpp"]),
        _Series("litert-lm-cli", _OURS, False, ours),
        _Series("floor: read and copy", _INK, True, floor),
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


def _panel(
    left: int, title: str, series: list[_Series], unit: Callable[[float], str], base: int
) -> list[str]:
    points = [point for one in series for point in one.points]
    if not points:
        return []
    x = _Axis([size for size, _ in points], left, left + _PANEL_WIDTH, margin=1.35)
    bottom = _TOP + _PANEL_HEIGHT
    y = _Axis([value for _, value in points], bottom, _TOP, margin=1.6, base=base)
    out = [_text(left, _TOP - 22, title, size=15, weight=600)]
    for value in y.ticks:
        place = y(value)
        grid = f'stroke="{_INK}" stroke-opacity="0.25"'
        out.append(f'<path d="M{left} {place:.1f}H{left + _PANEL_WIDTH}" fill="none" {grid}/>')
        out.append(_text(left - 8, place + 4, unit(value), anchor="end"))
    for size in sorted({size for size, _ in points}):
        out.append(_text(x(size), bottom + 20, _count(size), anchor="middle"))
    out.append(f'<path d="M{left} {bottom}H{left + _PANEL_WIDTH}" fill="none" stroke="{_INK}"/>')
    for one in series:
        places = [(x(size), y(value)) for size, value in sorted(one.points)]
        for begin, end in itertools.pairwise(places):
            out.append(_line(begin, end, one))
        for (across, down), (_, value) in zip(places, sorted(one.points), strict=True):
            label = escape(f"{one.name}: {unit(value)}")
            out.append(
                f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{one.colour}">'
                f"<title>{label}</title></circle>"
            )
            if not one.dashed:
                out.append(
                    _text(across, down - 9, unit(value), anchor="middle", size=11, fill=one.colour)
                )
    return out


class _Axis:
    """A logarithmic axis: maps a value to its place; a tick at every power of `base`."""

    def __init__(
        self, values: Sequence[float], begin: float, end: float, margin: float, base: int = 10
    ) -> None:
        self._low = math.log10(min(values) / margin)
        self._high = math.log10(max(values) * margin)
        self._begin, self._end = begin, end
        first = math.ceil(self._low / math.log10(base))
        last = math.floor(self._high / math.log10(base))
        self.ticks = [float(base) ** power for power in range(first, last + 1)]

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)


def _line(begin: tuple[float, float], end: tuple[float, float], series: _Series) -> str:
    dashes = ' stroke-dasharray="4 4"' if series.dashed else ""
    return (
        f'<path d="M{begin[0]:.1f} {begin[1]:.1f}L{end[0]:.1f} {end[1]:.1f}" fill="none" '
        f'stroke="{series.colour}" stroke-width="2"{dashes}/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    size: int = 13,
    weight: int = 400,
    fill: str = _INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}">{escape(text)}</text>'
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"


def _memory(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.2g} GiB"


def _count(parameters: float) -> str:
    return f"{parameters / 1e6:.0f}M" if parameters < 1e9 else f"{parameters / 1e9:.1f}B"


# ------------------------------------------------------------------------------------------------


def read(file: Path) -> dict[str, Any]:
    """The result in the last line of what `benchmarks.convert` printed."""
    document: dict[str, Any] = json.loads(file.read_text("utf-8").strip().splitlines()[-1])
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path, help="what benchmarks.convert printed")
    parser.add_argument("svg", type=Path, help="the plot")
    args = parser.parse_args()
    document = read(args.result)
    args.svg.write_text(svg(document), encoding="utf-8")
    print(tables(document))


if __name__ == "__main__":
    main()
