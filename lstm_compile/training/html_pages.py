"""HTML pages that need nothing beside them: no script, no network. All values are escaped."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lstm_compile import formatting


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
    environment.filters |= {"place": "{:.1f}".format, "number": "{:.6g}".format, "metric": _metric}
    return environment


def _metric(value: float, name: str) -> str:
    return formatting.metric(name, value)


def render(template: str, **values: Any) -> Markup:
    """The text of a file in `templates`, filled with values."""
    return Markup(_environment().get_template(template).render(values))


def render_page(template: str, **values: Any) -> bytes:
    """A whole page in UTF-8."""
    # names may hold half of a surrogate pair
    return render(template, **values).encode(errors="backslashreplace")
