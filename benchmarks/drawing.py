"""What the benchmarks' reports are made of: Markdown tables and SVG line charts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from html import escape
from typing import NamedTuple

# Colours in the middle between GitHub's light and dark background: a picture cannot know which of
# them the reader has chosen.
INK = "#737b86"
OURS, LITERT_TORCH, LLAMA_CPP = "#2f81f7", "#d9652b", "#3f9a50"

PANEL_WIDTH, PANEL_HEIGHT = 300, 250
SCATTER_HEIGHT = 420
_LETTER, _LINE = 5.2, 11  # of names of points


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


class Series(NamedTuple):
    name: str
    colour: str
    dashed: bool
    points: list[tuple[float, float]]  # (parameters, value)


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """An SVG file."""
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def legend(left: float, top: float, series: Sequence[Series]) -> list[str]:
    """The lines' names in a row."""
    out = []
    for one in series:
        out.append(_line((left, top), (left + 22, top), one))
        out.append(text(left + 28, top + 4, one.name))
        left += 46 + round(6.6 * len(one.name))
    return out


def panel(
    corner: tuple[int, int],
    title: str,
    series: Sequence[Series],
    units: tuple[Callable[[float], str], Callable[[float], str]],
    base: int,
) -> list[str]:
    """Lines on logarithmic axes.

    Args:
        corner: left and top.
        units: how values are written along the x and the y axis.
        base: a grid line at each of its powers.
    """
    (left, top), (x_unit, unit) = corner, units
    points = [point for one in series for point in one.points]
    if not points:
        return []
    x = _Axis([size for size, _ in points], left, left + PANEL_WIDTH, margin=1.35)
    bottom = top + PANEL_HEIGHT
    y = _Axis([value for _, value in points], bottom, top, margin=1.6, base=base)
    out = [text(left, top - 22, title, size=15, weight=600)]
    for value in y.ticks:
        place = y(value)
        grid = f'stroke="{INK}" stroke-opacity="0.25"'
        out.append(f'<path d="M{left} {place:.1f}H{left + PANEL_WIDTH}" fill="none" {grid}/>')
        out.append(text(left - 8, place + 4, unit(value), anchor="end"))
    for size in sorted({size for size, _ in points}):
        out.append(text(x(size), bottom + 20, x_unit(size), anchor="middle"))
    out.append(f'<path d="M{left} {bottom}H{left + PANEL_WIDTH}" fill="none" stroke="{INK}"/>')
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
                    text(across, down - 9, unit(value), anchor="middle", size=11, fill=one.colour)
                )
    return out


def scatter(
    corner: tuple[int, int],
    width: int,
    title: str,
    points: Mapping[str, tuple[float, float, str]],
    nameless: Container[str] = (),
) -> list[str]:
    """Named points on logarithmic axes: megabytes, KL divergence in nats, and a colour.

    Names that would lie over others move down, at the end of a line from their point. Those of
    `nameless` are shown where somebody points at them.
    """
    (left, top), bottom = corner, corner[1] + SCATTER_HEIGHT
    if not points:
        return []
    x = _Axis([size for size, _, _ in points.values()], left, left + width, margin=1.08, base=2)
    y = _Axis([value for _, value, _ in points.values()], bottom, top, margin=1.6)
    out = [text(left, top - 22, f"{title}: KL divergence against size", size=15, weight=600)]
    for value in y.ticks:
        place = y(value)
        grid = f'stroke="{INK}" stroke-opacity="0.25"'
        out.append(f'<path d="M{left} {place:.1f}H{left + width}" fill="none" {grid}/>')
        out.append(text(left - 8, place + 4, f"{value:g}", anchor="end"))
    out.append(f'<path d="M{left} {bottom}H{left + width}" fill="none" stroke="{INK}"/>')
    for size in sorted({round(size, -1) for size, _, _ in points.values()}):
        out.append(text(x(size), bottom + 20, f"{size:.0f}", anchor="middle", size=11))
    out.append(text(left + width, bottom + 38, "MB", anchor="end", size=11))
    taken: list[tuple[float, float, float]] = []  # from, to, and how far down
    for name, (size, value, colour) in sorted(points.items(), key=lambda one: -one[1][1]):
        across, down = x(size), y(value)
        out.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{colour}">'
            f"<title>{escape(name)}: {size:.0f} MB, {value:.4f}</title></circle>"
        )
        if name in nameless:
            continue
        is_right = across > left + 0.6 * width  # where a name has no room behind its point
        anchor, way = ("end", -1) if is_right else ("start", 1)
        beside, room = across + 7 * way, len(name) * _LETTER
        begin, end = sorted((beside, beside + room * way))
        place = down
        while any(begin < b and a < end and abs(place - at) < _LINE for a, b, at in taken):
            place += 1
        taken.append((begin, end, place))
        if place > down:
            line = f'stroke="{colour}" stroke-opacity="0.5"'
            out.append(f'<path d="M{across:.1f} {down:.1f}L{beside:.1f} {place:.1f}" {line}/>')
        out.append(text(beside, place + 4, name, anchor=anchor, size=10, fill=colour))
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


def _line(begin: tuple[float, float], end: tuple[float, float], series: Series) -> str:
    dashes = ' stroke-dasharray="4 4"' if series.dashed else ""
    return (
        f'<path d="M{begin[0]:.1f} {begin[1]:.1f}L{end[0]:.1f} {end[1]:.1f}" fill="none" '
        f'stroke="{series.colour}" stroke-width="2"{dashes}/>'
    )


def text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    size: int = 13,
    weight: int = 400,
    fill: str = INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}">{escape(text)}</text>'
    )
