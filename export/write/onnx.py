"""`export_onnx`: one ONNX file of a model, written only if it is proven to agree with the model."""

import inspect
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from lstm_compile.export.proof.selftest import digest, selftest
from lstm_compile.export.write.graph import simplify
from lstm_compile.export.write.protobuf import TRACED_OPSET, Shown, to_portable
from lstm_compile.export.write.sequence_lens import ort_table
from lstm_compile.export.write.translation import Table, model_table
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
    beside: tuple[Path, ...]  # other files
    known: list[Known]  # what goes wrong with such a file in other runtimes


def export_onnx(
    model: Model | str | Path,
    path: str | Path,
    runtimes: Sequence[str] | None = None,
    profile: names.Profile = "portable",
) -> ExportReport:
    """Write a model as one ONNX file, with its parity report and self-test beside it.

    The file is checked and compared under a temporary name first; it takes its own name only if
    every runtime agrees.

    Args:
        model: the model, or the path of its run folder or safetensors file.
        path: the file to write; an earlier one is replaced.
        runtimes: which to compare, as in `verify_onnx`.
        profile: `portable` for every runtime, or `ort`, which only ONNX Runtime answers rightly.

    Raises:
        InputError: the model cannot be read, or the file cannot be written there.
        RunError: the model cannot be translated, or a runtime disagrees; nothing was written.
    """
    began = perf_counter()
    path = Path(path)
    check_target(path)
    model = model if isinstance(model, Model) else load_model(model)
    example = selftest(model)
    data = to_onnx(model, profile, example).SerializeToString(deterministic=True)
    with proven(path, data, lambda file: verify_onnx(model, file, runtimes)) as parity:
        stem = "" if profile == "portable" else f"{path.stem}."
        beside = write_beside(path.parent, stem, parity, example)
    return report_of(path, data, began, parity, beside)


def report_of(
    path: Path, data: bytes, began: float, parity: ParityReport, beside: tuple[Path, ...]
) -> ExportReport:
    """The report of a file that was written, begun at `began` of `perf_counter`."""
    known = concerning(onnx.load_model_from_string(data).graph)
    return ExportReport(path, len(data), perf_counter() - began, parity, beside, known)


def write_beside(folder: Path, stem: str, parity: ParityReport, example: str) -> tuple[Path, Path]:
    """Write the report and the self-test of a file, `stem` before their names.

    Raises:
        InputError: they cannot be written there.
    """
    report, test = (folder / f"{stem}{name}" for name in (names.PARITY_FILE, names.SELFTEST_FILE))
    write_atomically(report, parity.to_json().encode())
    write_atomically(test, example.encode())
    return report, test


@contextmanager
def proven(
    path: Path, data: bytes, verify: Callable[[Path], ParityReport]
) -> Iterator[ParityReport]:
    """Write a file if `verify` passes it under a temporary name; it takes its own name at the end.

    Raises:
        InputError: the file cannot be written there.
        RunError: it did not pass; nothing was written.
    """
    with _temporary(path) as candidate:
        write_atomically(candidate, data)
        parity = verify(candidate)
        if not parity.passed:
            failing = "\n".join(line for line in parity.lines() if line.startswith("[x]"))
            raise RunError(f"{path}: not written, the answers differ from the model's\n{failing}")
        yield parity
        os.replace(candidate, path)


def check_target(path: Path) -> None:
    """Refuse a path that no file can be written to.

    Raises:
        InputError: a folder, there is none to write in, or no name of an ONNX file.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file, such as {path / names.ONNX_FILE}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix != ".onnx":
        raise InputError(f"{path}: the file must end in .onnx, found {path.suffix!r}")


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` for a file that is gone afterwards, or renamed."""
    candidate = path.with_name(f".{path.stem}.{token_hex(4)}.onnx")
    try:
        yield candidate
    finally:
        candidate.unlink(missing_ok=True)


class Form(NamedTuple):
    """What a file shows to the outside, and the program behind it."""

    inputs: dict[str, tuple[str, list[str | int]]]  # element type and shape by name
    outputs: dict[str, list[str | int]]  # shape by name; all are float32
    program: "Program"
    metadata: dict[str, str]
    reshaped: dict[bytes, str]  # see `Shown.reshaped`
    table: Table  # of translations
    merged: bool = False  # whether one LSTM node runs both directions


def to_onnx(
    model: Model,
    profile: names.Profile = "portable",
    example: str | None = None,
    finite: bool = False,
) -> onnx.ModelProto:
    """The model as one ONNX graph, scaling included.

    Args:
        model: the model.
        profile: the form of its LSTM nodes.
        example: its self-test, for the metadata to hold its digest; made if None.
        finite: whether the `ort` form's LSTM nodes are given zeros in the padding.

    Raises:
        RunError: the weights are more than one file holds.
    """
    output, shape = names.output_of(model.config)
    form = Form(
        inputs=names.inputs_of(model.config),
        outputs={output: shape},
        program=_Whole(model),
        metadata=metadata(model, example or selftest(model), profile),
        reshaped=reshaped(model),
        table=model_table() if profile == "portable" else ort_table(finite),
        merged=profile == "ort" and model.config.bidirectional,
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
        reshaped=form.reshaped,
        layers=layer_names(model.config, form.merged),
    )
    portable = to_portable(graph, shown, form.metadata)
    onnx.checker.check_model(portable, full_check=True)
    return portable


def layer_names(config: ModelConfig, merged: bool = False) -> list[str]:
    """A name for each LSTM node in the order of computation: `l0`, `l0_reverse`, `l1` ..."""
    suffixes = ("", "_reverse")[: 1 if merged else config.num_directions]
    return [f"l{layer}{suffix}" for layer in range(config.num_layers) for suffix in suffixes]


def metadata(model: Model, example: str, profile: names.Profile = "portable") -> dict[str, str]:
    """The file's metadata_props: `names.METADATA_KEYS`, values as JSON where they are no words."""
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
        "selftest_sha256": digest(example),
    }


def reshaped(model: Model) -> dict[bytes, str]:
    """The weights that folding transposes or unsqueezes, so that their own names are lost."""
    params = model.params
    found = {bytes_of(value.t()): name for name, value in params.items() if value.dim() == 2}
    if "pooling.weight" in params:
        found[bytes_of(params["pooling.weight"])] = "pooling.weight"
    if model.config.tie:
        found[bytes_of(params["embedding.weight"].t())] = "head.weight"
    return found


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's values as a file has them."""
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()


class Program(nn.Module):
    """A model with its tensors as buffers, which is what torch.export takes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = model.config
        # a buffer's name holds no dot: weight 'head.weight' is buffer 'head__weight'
        self.names = {name.replace(".", "__"): name for name in model.params}
        for buffer, name in self.names.items():
            self.register_buffer(buffer, model.params[name].detach().float().cpu())

    @property
    def params(self) -> dict[str, Tensor]:
        """The tensors by the names of the model."""
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
        inputs[name] = torch.full(known, value, dtype=getattr(torch, kind))
        dynamic[name] = {axis: dims[size] for axis, size in enumerate(shape) if size in dims}
    if names.LENGTHS in inputs:
        inputs[names.LENGTHS] = torch.tensor([5, 2, 0])
    arguments = inspect.signature(form.program.forward).parameters.values()
    named = sum(p.kind is not p.VAR_POSITIONAL for p in arguments)
    first, more = tuple(dynamic.values())[:named], tuple(dynamic.values())[named:]
    shapes = (*first, *((more,) if more else ()))
    with quiet():
        exported = torch.export.export(
            form.program.eval(), tuple(inputs.values()), dynamic_shapes=shapes
        )
        translated = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            optimize=False,
            external_data=False,
            opset_version=TRACED_OPSET,
            custom_translation_table=dict(form.table),
        )
    assert translated is not None
    return translated.model


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torch.onnx says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
