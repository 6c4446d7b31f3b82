"""HTML pages and their charts, which need nothing beside them: no script, no network.

All values are escaped. A chart is an `svg` element.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lstm_compile import formatting

Point = tuple[float, float]
WIDTH, WIDE, HEIGHT = 420, 768, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 48, 38  # margins around the curves
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # colour-blind people can distinguish them: Wong 2011
LETTER = 6.5  # width
BAR = 22  # height
STYLE = {"left": LEFT, "letter": LETTER, "colours": COLOURS}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lstm_compile.training"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "place": "{:.1f}".format,
        "number": "{:.6g}".format,
        "metric": lambda value, name: formatting.metric(name, value),
    }
    return environment


def render(template: str, **values: Any) -> Markup:
    """The text of a file in `templates`, filled with values."""
    return Markup(_environment().get_template(template).render(values))


def render_page(template: str, **values: Any) -> bytes:
    """A whole page in UTF-8."""
    # names may hold half of a surrogate pair
    return render(template, **values).encode(errors="backslashreplace")


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
    """Curves with axes, ticks and a legend; empty without any point.

    `title` says what the values are, `across` what the whole numbers on the horizontal axis are.
    `marked` is one of these, shown as the best. Values that are not finite are left out. Curves
    named in `dotted` are drawn as dots without a line. The width is in pixels.
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
    """Horizontal bars from 0, the first at the top; `across` says what the values above 0 are."""
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
