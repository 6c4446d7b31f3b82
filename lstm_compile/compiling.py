"""The one place that calls torch.compile."""

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor


def compiled(function: FunctionType, *key: Any) -> Callable[..., Any]:
    """`function` of tensors and lists of tensors, compiled once per key, for any number of rows.

    Rows are the last dimension but one of every tensor except the last argument, and at least 2.
    All tensors are contiguous. What the key does not say must not matter: nothing else is checked
    at a call, so that no global state of PyTorch compiles a graph again.
    """
    return _compiled(function, *key, torch.get_num_threads())


def has_compiled(function: Callable[..., Any], *key: Any) -> bool:
    """Whether `compiled` was called with these in this process, and ran."""
    return (function, *key, torch.get_num_threads()) in _RAN


_RAN: set[Any] = set()


@cache
def _compiled(function: FunctionType, *key: Any) -> Callable[..., Any]:
    # Dynamo counts recompiles per code object and gives up past a limit, so that many sizes through
    # one function would end in eager code. Each key has its own.
    name = "_".join([function.__name__, *(str(part).replace(".", "_") for part in key)])
    copy = FunctionType(
        function.__code__.replace(co_name=name),
        function.__globals__,
        name,
        function.__defaults__,
        function.__closure__,
    )
    run = torch.compile(copy, fullgraph=True, options={"guard_filter_fn": _no_guards})

    def call(*arguments: Any) -> Any:
        if (function, *key) not in _RAN:
            _mark_rows(arguments[:-1])
            result = run(*arguments)
            _RAN.add((function, *key))
            return result
        return run(*arguments)

    return call


def _no_guards(guards: Sequence[Any]) -> list[bool]:
    return [False] * len(guards)


def _mark_rows(arguments: Sequence[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, Tensor):
            torch._dynamo.mark_dynamic(argument, argument.dim() - 2)
        else:
            _mark_rows(argument)


def compiler() -> str:
    """The path of the C++ compiler that Inductor takes; empty where there is none."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    return next(filter(None, (shutil.which(name) for name in candidates if name)), "")


@cache
def can_compile(device_type: str) -> bool:
    """Whether Inductor finds what it generates code with: a C++ compiler, on CUDA Triton too.

    Warns once where it does not.
    """
    missing = not compiler()
    if device_type == "cuda":
        missing = missing or not torch.utils._triton.has_triton()
    if missing:
        warnings.warn(
            "no C++ compiler (or, on CUDA, no Triton) was found: backend='compiled' runs as "
            "backend='vendor'; install g++ or set CXX",
            stacklevel=2,
        )
    return not missing
