"""The one place that calls torch.compile."""

import os
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch


@cache
def compiled(function: FunctionType, *key: Any) -> Callable[..., Any]:
    """`function` compiled once per key, fullgraph.

    Dynamo counts recompiles per code object and gives up past a limit, so that many sizes through
    one function would end in eager code. Each key (sizes, dtype, device) gets its own code object.
    """
    name = "_".join([function.__name__, *(str(part).replace(".", "_") for part in key)])
    copy = FunctionType(
        function.__code__.replace(co_name=name),
        function.__globals__,
        name,
        function.__defaults__,
        function.__closure__,
    )
    return torch.compile(copy, fullgraph=True)


@cache
def can_compile(device_type: str) -> bool:
    """Whether Inductor finds what it generates code with: a C++ compiler, on CUDA Triton too.

    Warns once where it does not.
    """
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    missing = not any(shutil.which(name) for name in candidates if name)
    if device_type == "cuda":
        missing = missing or not torch.utils._triton.has_triton()
    if missing:
        warnings.warn(
            "no C++ compiler (or, on CUDA, no Triton) was found: backend='compiled' runs as "
            "backend='vendor'; install g++ or set CXX",
            stacklevel=2,
        )
    return not missing
