"""`export_onnx`: one ONNX file of a model, written only if its answers agree with the model's."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from time import perf_counter
from typing import Any, NamedTuple

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from lstm_compile.config import ModelConfig
from lstm_compile.errors import InputError, RunError
from lstm_compile.export import names
from lstm_compile.export.proof.known_faults import Known, concerning
from lstm_compile.export.proof.parity import verify_onnx
from lstm_compile.export.proof.parity_report import ParityReport
from lstm_compile.export.proof.selftest import selftest
from lstm_compile.export.write.graph import Shown, simplify, to_portable
from lstm_compile.export.write.tables import model_table, ort_table
from lstm_compile.export.write.tracing import translated
from lstm_compile.export.write.translation import Table
from lstm_compile.files import write_atomically
from lstm_compile.model.batch import Given
from lstm_compile.model.checkpoint import Model, load_model
from lstm_compile.model.model import predict

ELEMENTS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
LARGEST = (1 << 31) - (1 << 20)  # protobuf's 2 GiB, less the graph


class ExportReport(NamedTuple):
    """What `export_onnx` wrote."""

    path: Path
    size: int  # bytes
    seconds: float
    parity: ParityReport
    beside: tuple[Path, ...]  # the files beside it
    known: list[Known]  # known faults of other runtimes that concern this file


class Export(NamedTuple):
    """A model, the file to write, and when the export began, by `perf_counter`."""

    model: Model
    path: Path
    began: float


def export_onnx(
    model: Model | str | Path,
    path: str | Path,
    runtimes: Sequence[str] | None = None,
    profile: names.Profile = "portable",
) -> ExportReport:
    """Write a model as one ONNX file, with its parity report and self-test beside it.

    The file is first compared under a temporary name. It gets its own name only if every runtime
    agrees.

    Args:
        model: the model, or the path of its run folder or safetensors file.
        path: the file to write; an earlier one is replaced.
        runtimes: which to compare, as in `verify_onnx`.
        profile: `portable` for every runtime, or `ort`, which is right in ONNX Runtime only.

    Raises:
        InputError: the model cannot be read, or the file cannot be written there.
        RunError: the model cannot be translated, or a runtime disagrees; nothing was written.
    """
    job = checked(model, path)
    example = selftest(job.model)
    return write_proven(job, to_onnx(job.model, profile, example), example, runtimes)


def checked(model: Model | str | Path, path: str | Path) -> Export:
    """Load the model, and check that a file can be written to the path.

    Raises:
        InputError: the model cannot be read, or the path is a folder, has no folder to write in, or
            does not end in .onnx.
    """
    began, path = perf_counter(), Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file, such as {path / names.ONNX_FILE}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix != ".onnx":
        raise InputError(f"{path}: the file must end in .onnx, found {path.suffix!r}")
    return Export(model if isinstance(model, Model) else load_model(model), path, began)


def write_proven(
    job: Export, graph: onnx.ModelProto, example: str, runtimes: Sequence[str] | None = None
) -> ExportReport:
    """Write a graph, and its parity report and self-test beside it, if `verify_onnx` passes it.

    Until it has passed, the file has a hidden name in the same folder.

    Raises:
        InputError: the files cannot be written there.
        RunError: the file did not pass; nothing was written.
    """
    model, path, began = job
    data = graph.SerializeToString(deterministic=True)
    candidate = path.with_name(f".{path.stem}.{token_hex(4)}.onnx")
    try:
        write_atomically(candidate, data)
        parity = verify_onnx(model, candidate, runtimes)
        if not parity.passed:
            failing = "\n".join(line for line in parity.lines() if line.startswith("[x]"))
            raise RunError(f"{path}: not written, the answers differ from the model's\n{failing}")
        properties = {entry.key: entry.value for entry in graph.metadata_props}
        is_main = properties["profile"] == "portable" and names.STATE_KEY not in properties
        stem = "" if is_main else f"{path.stem}."
        texts = {names.PARITY_FILE: parity.to_json(), names.SELFTEST_FILE: example}
        beside = {path.with_name(stem + name): text for name, text in texts.items()}
        for file, text in beside.items():
            write_atomically(file, text.encode())
        os.replace(candidate, path)
    finally:
        candidate.unlink(missing_ok=True)
    seconds, known = perf_counter() - began, concerning(graph.graph)
    return ExportReport(path, len(data), seconds, parity, tuple(beside), known)


class Form(NamedTuple):
    """The interface of a file, and the program that it is made from."""

    inputs: names.Tensors
    outputs: dict[str, names.Shape]  # by name; all are float32
    program: "Program"
    metadata: dict[str, str]
    table: Table  # of translations
    merged: bool = False  # whether one LSTM node runs both directions


def to_onnx(
    model: Model,
    profile: names.Profile = "portable",
    example: str | None = None,
    finite: bool = False,
) -> onnx.ModelProto:
    """The model as one ONNX graph, scaling included.

    The metadata hold the digest of `example`, its self-test, which is made if None. With `finite`
    the LSTM nodes of the `ort` form read zeros in the padding.

    Raises:
        RunError: the weights are more than one file holds.
    """
    output, shape = names.output_of(model.config)
    form = Form(
        inputs=names.inputs_of(model.config),
        outputs={output: shape},
        program=_Whole(model),
        metadata=metadata(model, example or selftest(model), profile),
        table=model_table() if profile == "portable" else ort_table(finite),
        merged=profile == "ort" and model.config.bidirectional and model.config.cell == "lstm",
    )
    return build(model, form)


def build(model: Model, form: Form) -> onnx.ModelProto:
    """The graph of a form, checked.

    Raises:
        RunError: the weights are more than one file holds.
    """
    size = sum(value.numel() for value in model.params.values()) * 4
    if size > LARGEST:
        raise RunError(f"ONNX export: {size} bytes of weights; one file holds at most {LARGEST}")
    graph = simplify(_translate(form), form.program.names, form.merged)
    value = helper.make_tensor_value_info
    shown = Shown(
        inputs=[value(name, ELEMENTS[kind], shape) for name, (kind, shape) in form.inputs.items()],
        outputs=[value(name, TensorProto.FLOAT, shape) for name, shape in form.outputs.items()],
        weights=form.program.names,
        reshaped=_reshaped(model),
        layers=layer_names(model.config, form.merged),
    )
    portable = to_portable(graph, shown, form.metadata)
    onnx.checker.check_model(portable, full_check=True)
    return portable


def layer_names(config: ModelConfig, merged: bool = False) -> list[str]:
    """A name for each layer and direction in order: `l0`, `l0_reverse`, `l1` ..."""
    suffixes = ("", "_reverse")[: 1 if merged else config.num_directions]
    return [f"l{layer}{suffix}" for layer in range(config.num_layers) for suffix in suffixes]


def metadata(model: Model, example: str, profile: names.Profile = "portable") -> dict[str, str]:
    """The file's metadata_props: `names.METADATA_KEYS`, values as JSON where they are not words."""
    return {
        "interface_version": names.INTERFACE_VERSION,
        "format": names.FORMAT,
        "profile": profile,
        "runtimes": names.RIGHT_IN[profile],
        "task": model.config.task,
        "inputs": json.dumps(list(names.inputs_of(model.config))),
        "outputs": json.dumps([model.config.traits.output]),
        "config": model.config.to_json(),
        "schema": model.schema.to_json(),
        "training": json.dumps(model.training, sort_keys=True),
        "selftest_sha256": hashlib.sha256(example.encode()).hexdigest(),
    }


def _reshaped(model: Model) -> dict[bytes, str]:
    """Names of the weights that constant folding reshapes, by the bytes they then have."""
    params = model.params
    found = {_bytes_of(value.t()): name for name, value in params.items() if value.dim() == 2}
    if "pooling.weight" in params:
        found[_bytes_of(params["pooling.weight"])] = "pooling.weight"
    if model.config.tie:
        found[_bytes_of(params["embedding.weight"].t())] = "head.weight"
    return found


def _bytes_of(tensor: Tensor) -> bytes:
    """A tensor's values as they are in a file."""
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()


class Program(nn.Module):
    """A model with its tensors as buffers, as torch.export needs them."""

    named = 2  # arguments of `forward` with a name; the others are one tuple

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = model.config
        # a buffer's name holds no dot: weight 'head.weight' is buffer 'head__weight'
        self.names = {name.replace(".", "__"): name for name in model.params}
        for buffer, name in self.names.items():
            self.register_buffer(buffer, model.params[name].detach().float().cpu())

    @property
    def params(self) -> dict[str, Tensor]:
        """The tensors by their names in the model."""
        return {name: self.get_buffer(buffer) for buffer, name in self.names.items()}

    def given(self, values: Sequence[Tensor]) -> Given:
        """The inputs beside `x`, in the order of the config."""
        return Given(**dict(zip(self.config.given, values, strict=True)))


class _Whole(Program):
    """`predict`, whole sequences at once."""

    def forward(self, x: Tensor, lengths: Tensor, *given: Tensor) -> Tensor:
        return predict(self.params, self.config, x, lengths, given=self.given(given))


def _translate(form: Form) -> Any:
    # sizes of 2 or more: torch.export takes a size of 1 for a constant
    sizes = {names.BATCH: 3, names.TIME: 5}
    dims = {name: torch.export.Dim(name, min=1) for name in sizes}
    inputs, dynamic = {}, {}
    for name, (kind, shape) in form.inputs.items():
        known = [sizes[size] if isinstance(size, str) else size for size in shape]
        value = 1 if kind == "float32" else 0  # codes count from 0
        inputs[name] = torch.full(known, value, dtype=getattr(torch, kind), device="cpu")
        dynamic[name] = {axis: dims[size] for axis, size in enumerate(shape) if size in dims}
    if names.LENGTHS in inputs:
        inputs[names.LENGTHS] = torch.tensor([5, 2, 0], device="cpu")
    named = form.program.named
    first, more = tuple(dynamic.values())[:named], tuple(dynamic.values())[named:]
    shapes = (*first, more) if more else first
    return translated(form.program, tuple(inputs.values()), shapes, form.table)
