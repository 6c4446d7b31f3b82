"""`run_bench` with ONNX Runtime as one more backend."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lstm_compile.bench.cases import BenchConfig, Case
from lstm_compile.bench.figures import BenchReport
from lstm_compile.bench.measure import OnCase, OnRows
from lstm_compile.bench.measure import run_bench as run_torch_bench
from lstm_compile.bench.problem import CONTESTANTS, Contestant, Forward, Problem
from lstm_compile.export.names import BATCH, INPUT, LENGTHS, TIME
from lstm_compile.export.runtime import open_session
from lstm_compile.export.write.graph import simplify
from lstm_compile.export.write.tables import translation_table
from lstm_compile.export.write.tracing import translated
from lstm_compile.recurrence.stack_module import StackModule


def run_bench(
    cases: Sequence[Case],
    config: BenchConfig,
    backends: Sequence[str] = (),
    on_case: OnCase = lambda case, mode: None,
    on_rows: OnRows = lambda rows: None,
) -> BenchReport:
    """As `lstm_compile.bench.measure.run_bench`, `onnxruntime` included."""
    return run_torch_bench(cases, config, ALL, backends, on_case, on_rows)


def onnxruntime_forward(problem: Problem) -> Forward:
    """The stack alone in the portable form, with lengths as an input.

    ONNX Runtime gets as many threads as torch has; inputs and outputs are NumPy arrays.
    """
    session = open_session(_portable(problem.own), threads=torch.get_num_threads())
    inputs = {INPUT: problem.x.numpy(), LENGTHS: problem.host_lengths.numpy()}
    return lambda: session.run(None, inputs)[0]


ALL: Mapping[str, Contestant] = {**CONTESTANTS, "onnxruntime": onnxruntime_forward}


class _Stack(nn.Module):
    def __init__(self, module: StackModule) -> None:
        super().__init__()
        self.stack = module

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        output: Tensor = self.stack(x, lengths=lengths)[0]
        return output


def _portable(module: StackModule) -> bytes:
    # sizes of 2 or more: torch.export takes a size of 1 for a constant
    example = (
        torch.zeros(3, 5, module.input_size, device="cpu"),
        torch.tensor([5, 2, 0], device="cpu"),
    )
    batch, time = (torch.export.Dim(name, min=1) for name in (BATCH, TIME))
    shapes = ({0: batch, 1: time}, {0: batch})
    graph = translated(_Stack(module), example, shapes, translation_table())
    return bytes(simplify(graph, []).SerializeToString())
