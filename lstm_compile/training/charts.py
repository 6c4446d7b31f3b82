"""Charts as `svg` elements that need nothing beside them."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lstm_compile.training.html_pages import render

Point = tuple[float, float]
WIDTH, WIDE, HEIGHT = 420, 768, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 48, 38  # margins around the curves
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # colour-blind people can distinguish them: Wong 2011
LETTER = 6.5  # width
BAR = 22  # height
STYLE = {"left": LEFT, "letter": LETTER, "colours": COLOURS}


class Axis(NamedTuple):
    """Values on a line of the picture."""

    low: float
    high: float
    start: float  # the place of `low`
    end: float  # the place of `high`

    def __call__(self, value: float) -> float:
        """The place of a value."""
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
    title: str,
    curves: Mapping[str, Sequence[Point]],
    across: str,
    marked: float | None = None,
    dotted: Collection[str] = (),
    width: int = WIDTH,
) -> str:
    """Curves with axes, ticks and a legend.

    Args:
        title: what the values are.
        curves: the points of each by its name; values that are not finite are left out.
        across: what the whole numbers on the horizontal axis are.
        marked: one of them, shown as the best.
        dotted: names of curves that are drawn as dots without a line.
        width: of the chart, in pixels.

    Returns:
        An `svg` element; empty without any point.
    """
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in curves.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    places, values = zip(*(point for points in finite.values() for point in points), strict=True)
    x = Axis(*_span(places), LEFT, width - RIGHT)
    y = Axis(*_span(values), HEIGHT - BOTTOM, TOP)
    return render(
        "chart.html", title=title, x=x, y=y, across=across, marked=marked, curves=finite,
        dotted=dotted, bars={}, width=width, height=HEIGHT, **STYLE,
    )  # fmt: skip


def bar_chart(title: str, bars: Mapping[str, float], across: str) -> str:
    """Horizontal bars from 0, the first at the top.

    Args:
        title: of the chart.
        bars: values above 0 by name.
        across: what the values are.

    Returns:
        An `svg` element.
    """
    left = LEFT + LETTER * max(map(len, bars))
    bottom = TOP + BAR * len(bars)
    x = Axis(0.0, 1.04 * max(bars.values()), left, WIDE - RIGHT)
    y = Axis(float(len(bars)), 0.0, bottom, TOP)
    return render(
        "chart.html", title=title, x=x, y=y, across=across, marked=None, curves={},
        dotted=(), bars=bars, width=WIDE, height=bottom + BOTTOM, **STYLE,
    )  # fmt: skip


def _span(values: Sequence[float]) -> tuple[float, float]:
    """A little more than from the least to the most."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 0.1
    return low - margin, high + margin
