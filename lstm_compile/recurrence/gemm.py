"""Products with a weight matrix, by the fastest of PyTorch's kernels for them.

On the CPU, float32 products of PyTorch go to MKL, which on processors not made by Intel reaches
half the speed of oneDNN or less. Inductor itself emits the oneDNN operator for frozen weights.
"""

from functools import cache

import torch
from torch import Tensor

# Below this width much of the time goes into the call, and MKL has the shorter call: 60 µs against
# 93 for 32 rows at 128, one thread of an AMD EPYC; at 256 they are within a tenth of each other.
ONEDNN_WIDTH = 192

_library = torch.library.Library("lstm_compile", "FRAGMENT")
_library.define("product(Tensor x, Tensor weight) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@cache
def has_onednn() -> bool:
    """Whether PyTorch was built with oneDNN and has the operator that is used here."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (rows, width) times the transpose of `weight` (out, width), plus `bias` (out,).

    For eager code without gradients.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and has_onednn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())


def step_product(x: Tensor, weight: Tensor) -> Tensor:
    """`product` for the few rows of one step, in code that torch.compile traces."""
    if _pays(weight):
        return torch.ops.lstm_compile.product(x, weight)  # type: ignore[no-any-return]
    return x @ weight.t()


def add_step_product(base: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`base` (rows, out) plus the product of one step."""
    if _pays(weight):
        return base + step_product(x, weight)
    return torch.addmm(base, x, weight.t())


def _pays(weight: Tensor) -> bool:
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and min(weight.shape) >= ONEDNN_WIDTH


@torch.library.impl(_library, "product", "CPU")
def _product(x: Tensor, weight: Tensor) -> Tensor:
    return product(x, weight)


torch.library.register_fake(
    "lstm_compile::product",
    lambda x, weight: x.new_empty(x.shape[0], weight.shape[0]),
    lib=_library,
)
