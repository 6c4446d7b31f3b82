"""Backend `compiled`: a sequence as chunks of K unrolled steps under torch.compile.

A chunk is one graph for its hidden size, dtype and device, whatever the batch, time and input size
are: the batch is a dynamic dimension, time beyond the last whole chunk is masked padding, and the
products with the input weights stay outside.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_compile.cell import accumulator
from lstm_compile.chunks import backward_chunk, infer_chunk, record_chunk
from lstm_compile.compiling import compiled

Outputs = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

MIN_ROWS = 2  # a batch of 1 would specialise the graph's dynamic dimension


class Plan(NamedTuple):
    """One call's inputs as the chunks take them: time-major, padded to whole chunks."""

    x: Tensor  # (time, rows, D), zero in the padding
    mask: Tensor  # (time, rows, 1)
    h: Tensor  # (rows, H)
    c: Tensor  # (rows, H), in the accumulator's dtype
    weight: Tensor  # (H, 4H)
    chunk: int

    @property
    def starts(self) -> range:
        """The first step of each chunk."""
        return range(0, self.x.shape[0], self.chunk)


class Taped(NamedTuple):
    """What one chunk leaves for the backward."""

    h: Tensor  # (rows, H), the state it began with
    c: Tensor
    y: Tensor  # (K, rows, H)
    gates: Tensor  # (K, rows, 4H)
    cells: Tensor  # (K, rows, H)


def infer(
    x: Tensor,
    lengths: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    chunk: int,
) -> Outputs:
    """One layer, forward in time, saving nothing. Shapes as in `lstm_compile.recurrence`."""
    with _plain_mode(x.device.type):
        plan = _plan(x, lengths, weight_hh, h0, c0, chunk)
        run = _compiled(infer_chunk, plan, weight_hh)
        h, c, outputs = plan.h, plan.c, []
        for start in plan.starts:
            y, c = run(*_inputs(plan, start, weight_ih, bias), h, c, plan.weight)
            h = y[-1].clone()
            outputs.append(y)
        return _finish(plan, outputs, h, c, x)


def record(
    x: Tensor,
    lengths: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    chunk: int,
) -> tuple[Outputs, Callable[[Tensor, Tensor, Tensor], Gradients]]:
    """The same outputs as `infer`, and the function that pulls their gradients back."""
    with _plain_mode(x.device.type):
        plan = _plan(x, lengths, weight_hh, h0, c0, chunk)
        run = _compiled(record_chunk, plan, weight_hh)
        h, c, tape = plan.h, plan.c, []
        for start in plan.starts:
            y, gates, cells = run(*_inputs(plan, start, weight_ih, bias), h, c, plan.weight)
            tape.append(Taped(h, c, y, gates, cells))
            h, c = y[-1].clone(), cells[-1].clone()
        outputs = _finish(plan, [taped.y for taped in tape], h, c, x)

    def pull_back(grad_y: Tensor, grad_h: Tensor, grad_c: Tensor) -> Gradients:
        with _plain_mode(x.device.type):
            return _pull_back(plan, tape, weight_ih, weight_hh, grad_y, grad_h, grad_c)

    return outputs, pull_back


def _pull_back(
    plan: Plan,
    tape: list[Taped],
    weight_ih: Tensor,
    weight_hh: Tensor,
    grad_y: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
) -> Gradients:
    batch, time = grad_y.shape[:2]
    rows = plan.h.shape[0]
    run = _compiled(backward_chunk, plan, weight_hh)
    upstream = grad_y.transpose(0, 1)
    grad_h, grad_c = (_pad(g[None], 1, rows)[0].to(plan.c.dtype) for g in (grad_h, grad_c))
    grad_x = torch.zeros_like(plan.x)
    grad_ih, grad_hh = torch.zeros_like(weight_ih), torch.zeros_like(weight_hh)
    grad_bias = weight_ih.new_zeros(weight_ih.shape[0])
    for start, taped in zip(reversed(plan.starts), reversed(tape), strict=True):
        span = slice(start, start + plan.chunk)
        grad_gates, grad_h, grad_c = run(
            _pad(upstream[span], plan.chunk, rows),
            grad_h,
            grad_c,
            plan.mask[span].clone(),
            taped.gates,
            taped.cells,
            taped.c,
            plan.weight,
        )
        flat = grad_gates.flatten(0, 1)
        h_before = torch.cat([taped.h[None], taped.y[:-1]])
        grad_x[span] = grad_gates @ weight_ih
        grad_ih.addmm_(flat.t(), plan.x[span].flatten(0, 1))
        grad_hh.addmm_(flat.t(), h_before.flatten(0, 1))
        grad_bias += flat.sum(0)
    dtype = plan.x.dtype
    return (
        grad_x[:time, :batch].transpose(0, 1),
        grad_ih,
        grad_hh,
        grad_bias,
        grad_h[:batch].to(dtype),
        grad_c[:batch].to(dtype),
    )


@contextmanager
def _plain_mode(device_type: str) -> Iterator[None]:
    """The one global mode under which chunks run, since each other one would compile them again."""
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        torch.autograd.forward_ad._set_fwd_grad_enabled(False),
        torch.autocast(device_type, enabled=False),
    ):
        yield


def _compiled(function: Any, plan: Plan, weight_hh: Tensor) -> Callable[..., Any]:
    """The chunk's one graph, for any number of rows.

    Its inputs own their memory: Dynamo guards the offset of a view, and would compile again.
    """
    key = (weight_hh.shape[1], weight_hh.dtype, weight_hh.device, plan.chunk)
    run = compiled(function, *key)

    def call(*tensors: Tensor) -> Any:
        for tensor in tensors[:-1]:  # all but the weight: (..., rows, width)
            torch._dynamo.mark_dynamic(tensor, tensor.dim() - 2)
        return run(*tensors)

    return call


def _plan(
    x: Tensor, lengths: Tensor | None, weight_hh: Tensor, h0: Tensor, c0: Tensor, chunk: int
) -> Plan:
    batch, time = x.shape[:2]
    steps, rows = -(-time // chunk) * chunk, max(batch, MIN_ROWS)
    until = x.new_full((batch,), time, dtype=torch.int64) if lengths is None else lengths
    valid = torch.arange(steps, device=x.device)[:, None] < _pad(until[None], 1, rows)
    padded = _pad(x.transpose(0, 1), steps, rows)
    return Plan(
        padded if lengths is None else torch.where(valid[..., None], padded, 0.0),
        valid[..., None],
        _pad(h0[None], 1, rows)[0],
        _pad(c0[None], 1, rows)[0].to(accumulator(x.dtype)),
        weight_hh.t().clone(memory_format=torch.contiguous_format),
        chunk,
    )


def _pad(x: Tensor, time: int, rows: int) -> Tensor:
    """A fresh contiguous (time, rows, ...) tensor that begins with `x` and ends in zeros."""
    padded = x.new_zeros(time, rows, *x.shape[2:])
    padded[: x.shape[0], : x.shape[1]] = x
    return padded


def _inputs(plan: Plan, start: int, weight_ih: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    span = slice(start, start + plan.chunk)
    x = plan.x[span]
    projected = torch.addmm(bias, x.flatten(0, 1), weight_ih.t())
    return projected.view(*x.shape[:2], -1), plan.mask[span].clone()


def _finish(plan: Plan, outputs: list[Tensor], h: Tensor, c: Tensor, x: Tensor) -> Outputs:
    batch, time = x.shape[:2]
    y = torch.cat(outputs) if outputs else plan.h.new_empty(0, *plan.h.shape)
    y = torch.where(plan.mask, y, 0.0)[:time, :batch]
    return y.transpose(0, 1), h[:batch], c[:batch].to(x.dtype)
