"""Names that are imported on first use, so that a package loads no torch before it needs it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(place: str) -> Callable[..., Any]:
    """The function at `module:name`; its module, and torch, is imported at the first call."""

    def function(*args: Any, **named: Any) -> Any:
        module, _, name = place.partition(":")
        return getattr(import_module(module), name)(*args, **named)

    return function


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562), from each name's module within it."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find, lambda: sorted(homes)
