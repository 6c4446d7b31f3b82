"""The last steps of padded rows, all ending at the same place.

In traced code this is one operator, which the ONNX translation writes as a GatherND within each
row. An index would become a node that few runtimes load.
"""

import torch
from torch import Tensor

_library = torch.library.Library("lstm_compile", "FRAGMENT")
_library.define(
    "last_steps(Tensor x, Tensor lengths, SymInt size) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def last_steps(x: Tensor, lengths: Tensor, size: int) -> Tensor:
    """The last `size` valid steps of each row.

    Args:
        x: (batch, time, features).
        lengths: (batch,) int64.
        size: steps wanted.

    Returns:
        (batch, size, features), the last valid step last; zeros in front of shorter rows.
    """
    if torch.compiler.is_compiling():
        return torch.ops.lstm_compile.last_steps(x, lengths, size)  # type: ignore[no-any-return]
    return _last_steps(x, lengths, size)


def _last_steps(x: Tensor, lengths: Tensor, size: int) -> Tensor:
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], size, x.shape[2])
    step = lengths[:, None] - size + torch.arange(size, device=x.device)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return torch.where((step >= 0)[..., None], x[rows, step.clamp(min=0)], 0.0)


torch.library.impl(_library, "last_steps", "CompositeExplicitAutograd")(_last_steps)
torch.library.register_fake(
    "lstm_compile::last_steps",
    lambda x, lengths, size: x.new_empty(x.shape[0], size, x.shape[2]),
    lib=_library,
)
