"""Known faults of other runtimes: one table, which `export` and docs/runtimes.md show.

Every fault was observed in the version that its row names. Loads no torch.
"""

from collections.abc import Callable
from typing import NamedTuple

from onnx import GraphProto, NodeProto, TensorProto

INT64 = TensorProto.INT64


class Known(NamedTuple):
    """One fault of a runtime."""

    runtime: str
    version: str  # in which it was observed
    part: str  # the node or attribute
    happens: str
    remedy: str
    concerns: Callable[[GraphProto], bool]  # whether a graph has such a part

    def __str__(self) -> str:
        return f"{self.runtime} {self.version}: {self.part}: {self.happens}; {self.remedy}"


def concerning(graph: GraphProto) -> list[Known]:
    """The faults that concern a graph."""
    return [row for row in TABLE if row.concerns(graph)]


def unloadable(graph: GraphProto) -> dict[str, Known]:
    """The faults for which a runtime does not load a graph, by its name in `runtimes.RUNTIMES`."""
    return {
        each.replace(" ", "").lower(): row
        for row in concerning(graph)
        for each in row.runtime.split(", ")
        if row.happens == NOT_LOADED
    }


def markdown() -> str:
    """The table as docs/runtimes.md has it."""
    head = ("runtime", "seen in", "node or attribute", "what happens", "what to do")
    head_row, *rows = (f"| {' | '.join(map(str, row[:5]))} |" for row in (head, *TABLE))
    return "\n".join([head_row, "|---" * 5 + "|", *rows])


def _has(
    *kinds: str, where: Callable[[NodeProto], bool] = lambda node: True
) -> Callable[[GraphProto], bool]:
    """Whether a graph has a node of one of these kinds for which `where` holds."""
    return lambda graph: any(node.op_type in kinds and where(node) for node in graph.node)


def _has_input(node: NodeProto, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


def _starts_at_zero(graph: GraphProto) -> bool:
    """Whether the graph makes its initial states itself."""
    inputs = {value.name for value in graph.input}
    makes = _has("LSTM", where=lambda n: not _has_input(n, 5) or n.input[5] not in inputs)
    return makes(graph) and inputs.isdisjoint(("h", "c"))


_peepholes = _has("LSTM", where=lambda node: _has_input(node, 7))
_given_lengths = _has("LSTM", where=lambda node: _has_input(node, 4))
_without_initial_states = _has("LSTM", where=lambda node: not _has_input(node, 5))
_unnamed_results = _has("LSTM", where=lambda node: len([*filter(None, node.output)]) < 3)
_batch_first = _has(
    "LSTM", where=lambda node: any(a.name == "layout" and a.i == 1 for a in node.attribute)
)
_max_of_one = _has("Max", "Min", where=lambda node: len(node.input) == 1)
_default_value_left_out = _has("ConstantOfShape", where=lambda node: not node.attribute)


def _bodies(graph: GraphProto) -> list[GraphProto]:
    """The bodies of the Scans."""
    scans = [node for node in graph.node if node.op_type == "Scan"]
    return [each.g for node in scans for each in node.attribute if each.name == "body"]


def _repeats_results(graph: GraphProto) -> bool:
    results = [[value.name for value in body.output] for body in _bodies(graph)]
    return any(len({*names}) < len(names) for names in results)


def _reads_results(graph: GraphProto) -> bool:
    bodies = _bodies(graph)
    return any(b.output[-1].name in n.input for b in bodies if b.output for n in b.node)


def _reads_computed(graph: GraphProto) -> bool:
    computed = {name for node in graph.node for name in node.output}
    return any(not computed.isdisjoint(n.input) for body in _bodies(graph) for n in body.node)


NOT_LOADED = "does not load"
SILENT = "rows of different lengths are answered wrongly without an error"
PORTABLE = "export with --profile portable"
LENGTHS = "LSTM with sequence_lens"

TABLE: tuple[Known, ...] = (
    Known("OpenVINO", "2026.4.1", LENGTHS, SILENT, PORTABLE, _given_lengths),
    Known("MNN", "3.6.1", LENGTHS, SILENT, PORTABLE, _given_lengths),
    Known("IREE", "3.13.0", LENGTHS, SILENT, PORTABLE, _given_lengths),
    Known("onnx reference", "1.23.2", LENGTHS, SILENT, PORTABLE, _given_lengths),
    Known(
        "OpenCV", "5.0.0.93", LENGTHS, "refused without initial states, wrong with them",
        PORTABLE, _given_lengths,
    ),
    Known("tract", "0.23.9", LENGTHS, NOT_LOADED, PORTABLE, _given_lengths),
    Known(
        "IREE", "3.13.0", "LSTM from zero states, dynamic batch and time",
        "takes a wrong initial cell state: wrong answers without an error",
        "set batch and time to numbers before the import, one module a size", _starts_at_zero,
    ),
    Known(
        "OpenVINO", "2026.4.1", "float32 on processors with bfloat16 units",
        "computes in bfloat16: errors near 1e-3", "set INFERENCE_PRECISION_HINT to f32",
        _has("LSTM", "MatMul", "Gemm"),
    ),
    Known(
        "MNN", "3.6.1", "int64 inputs", "has no int64", "give lengths, tokens and codes as int32",
        lambda graph: any(value.type.tensor_type.elem_type == INT64 for value in graph.input),
    ),
    Known(
        "ONNX Runtime", "1.32", "LSTM with a batch of 0 or no step", "ends the process",
        "do not send an empty batch (runtime.py does not)", _has("LSTM", "DynamicQuantizeLSTM"),
    ),
    Known(
        "ONNX Runtime", "1.32", "GatherND, in quant_pre_process",
        "stops at shapes that it cannot infer", "give it skip_symbolic_shape=True",
        _has("GatherND"),
    ),
    Known(
        "all but ONNX Runtime", "any", "DynamicQuantizeLSTM", NOT_LOADED,
        "export without --int8", _has("DynamicQuantizeLSTM"),
    ),
    Known(
        "ncnn, TVM", "0.27 (TVM)", "LSTM", NOT_LOADED, "export --streaming --cells plain",
        _has("LSTM"),
    ),
    Known(
        "tract", "0.23.9", "LSTM without initial states", "panics if the batch size is not fixed",
        "give initial_h and initial_c", _without_initial_states,
    ),
    Known(
        "MNN", "3.6.1", "LSTM with outputs that have no name", "its converter crashes",
        "name Y, Y_h and Y_c", _unnamed_results,
    ),
    Known(
        "MNN", "3.6.1", "Max of one input", "its converter crashes", "leave the node out",
        _max_of_one,
    ),
    Known(
        "tract, MNN, OpenCV", "0.23.9, 3.6.1, 5.0.0.93", "ConstantOfShape without value",
        NOT_LOADED, "write the default value out", _default_value_left_out,
    ),
    Known(
        "ONNX Runtime, OpenVINO", "1.32, 2026.4.1", "LSTM with layout 1",
        "refused; wrong without an error", "transpose to layout 0", _batch_first,
    ),
    Known(
        "tract, OpenCV, IREE", "0.23.9, 5.0.0.93, 3.13.0", "ReverseSequence",
        "does not load; wrong in IREE", "reverse with GatherND, batch_dims=1",
        _has("ReverseSequence"),
    ),
    Known(
        "ONNX Runtime", "1.32", "Loop, Scan", "2 to 20 times slower than LSTM nodes",
        "use LSTM nodes", _has("Loop", "Scan"),
    ),
    Known(
        "OpenVINO, IREE, OpenCV", "2026.4.1, 3.13.0, 5.0.0.93", "LSTM with P (peepholes)",
        "ignores P: wrong answers without an error", PORTABLE, _peepholes,
    ),
    Known("MNN", "3.6.1", "LSTM with P (peepholes)", NOT_LOADED, PORTABLE, _peepholes),
    Known(
        "OpenCV, MNN", "5.0.0.93, 3.6.1", "Scan", NOT_LOADED,
        "export --streaming --cells plain", _has("Scan"),
    ),
    Known(
        "IREE", "3.13.0", "GRU or Scan, dynamic batch and time",
        "cannot be compiled; answers of a wrong shape",
        "set batch and time to numbers before the import, one module a size", _has("GRU", "Scan"),
    ),
    Known(
        "OpenVINO", "2026.4.1", "Scan whose body reads what is computed outside", NOT_LOADED,
        "fold it into a constant, or compute it inside", _reads_computed,
    ),
    Known(
        "ONNX Runtime", "1.32", "Scan whose body gives one value twice",
        "wrong answers without an error", "let each result be a node of its own",
        _repeats_results,
    ),
    Known(
        "tract", "0.23.9", "Scan whose body reads what it gives for each step", NOT_LOADED,
        "let that be a node of its own", _reads_results,
    ),
)  # fmt: skip
