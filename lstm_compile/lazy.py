"""Names that are imported on first use, so that a package loads no torch before it needs it."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
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


def import_with_torch(module: str) -> None:
    """Import a module now if torch is imported, else as soon as the program imports torch.

    Nothing happens where a module of this package is what imports torch.
    """
    if "torch" in sys.modules:
        import_module(module)
    else:
        sys.meta_path.insert(0, _TorchFinder(module))


class _TorchFinder(MetaPathFinder):
    """Finds torch once, as the other finders do, and has its loader import a module after it."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002 (finders have them)
        """The spec of torch, None for all else."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        loader: Any = spec and spec.loader
        if loader and not _is_importing():
            load = loader.exec_module

            def load_both(torch: Any) -> None:
                load(torch)
                import_module(self.module)

            loader.exec_module = load_both
        return spec


def _is_importing() -> bool:
    """Whether a module of this package is half imported."""
    own = [module for name, module in sys.modules.items() if name.startswith("lstm_compile")]
    return any(getattr(module.__spec__, "_initializing", False) for module in own)
