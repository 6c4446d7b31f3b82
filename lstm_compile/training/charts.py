"""Curves as SVG that stands in a page by itself."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

Point = tuple[float, float]
WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 48, 38  # around the curves
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # colour-blind people tell them apart: Wong 2011
LETTER = 6.5  # width


class Axis(NamedTuple):
    """Values on a line of the picture."""

    low: float
    high: float
    start: float  # where `low` stands, and `end` where `high` does
    end: float

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int, whole: bool = False) -> list[float]:
        """At most so many round values."""
        span = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(span))
        step = next((power * n for n in (1, 2, 5) if power * n >= span), power * 10)
        step = max(step, 1.0) if whole else step
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


def line_chart(
    title: str, curves: Mapping[str, Sequence[Point]], across: str, marked: float | None = None
) -> str:
    """Curves with axes, ticks and a legend.

    Args:
        title: what the values are.
        curves: the points of each by its name; what is not finite is left out.
        across: what the whole numbers are that the curves go over.
        marked: one of them, shown as the best.

    Returns:
        An `svg` element; empty where there is no point.
    """
    drawn = {name: [p for p in points if math.isfinite(p[1])] for name, points in curves.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return ""
    places, values = zip(*(point for points in drawn.values() for point in points), strict=True)
    x = Axis(*_span(places), LEFT, WIDTH - RIGHT)
    y = Axis(*_span(values), HEIGHT - BOTTOM, TOP)
    parts = [
        _text(title, LEFT, 16, 'font-weight="bold"'),
        *_frame(x, y, across),
        *_legend(list(drawn)),
        *([] if marked is None else _mark(x(marked), f"best: {across} {marked:g}")),
        *(
            _curve([(x(p), y(v)) for p, v in points], colour)
            for points, colour in zip(drawn.values(), COLOURS, strict=False)
        ),
    ]
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img"'
    style = f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12"'
    return f"{head} {style}>{''.join(parts)}</svg>"


def _span(values: Sequence[float]) -> tuple[float, float]:
    """A little more than from the least to the most."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 0.1
    return low - margin, high + margin


def _frame(x: Axis, y: Axis, across: str) -> Iterator[str]:
    for value in y.ticks(5):
        yield f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        yield _text(f"{value:.6g}", LEFT - 6, y(value) + 4, 'text-anchor="end"')
    for value in x.ticks(8, whole=True):
        yield f'<path d="M{x(value):.1f} {y.start}v4" stroke="#555"/>'
        yield _text(f"{value:g}", x(value), y.start + 17, 'text-anchor="middle"')
    yield f'<path d="M{LEFT} {TOP}V{y.start}H{WIDTH - RIGHT}" fill="none" stroke="#555"/>'
    yield _text(across, (x.start + x.end) / 2, HEIGHT - 5, 'text-anchor="middle"')


def _legend(names: Sequence[str]) -> Iterator[str]:
    place = float(LEFT)
    for name, colour in zip(names, COLOURS, strict=False):
        yield f'<path d="M{place:.1f} 32h16" stroke="{colour}" stroke-width="2"/>'
        yield _text(name, place + 20, 36)
        place += 34 + LETTER * len(name)


def _mark(place: float, text: str) -> Iterator[str]:
    line = f"M{place:.1f} {TOP}V{HEIGHT - BOTTOM}"
    yield f'<path d="{line}" stroke="#555" stroke-dasharray="4 3"/>'
    yield _text(text, WIDTH - RIGHT, 16, 'text-anchor="end"')


def _curve(points: Sequence[Point], colour: str) -> str:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in points)
    few = dots if len(points) <= 40 else ""
    return (
        f'<g fill="{colour}"><polyline points="{line}" fill="none" stroke="{colour}" '
        f'stroke-width="2"/>{few}</g>'
    )


def _text(text: str, x: float, y: float, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'
