"""Describe data, a run folder, a `.safetensors` or an `.onnx` file.

Loads no torch, and onnx only for an `.onnx` file.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstm_compile.data.bundled import BUNDLED, SERIES
from lstm_compile.data.profile import profile
from lstm_compile.data.schema import bare_name
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.folders import is_text
from lstm_compile.data.tables.read import locate, read_table
from lstm_compile.data.tables.roles import NAMES, FilledGaps, Roles
from lstm_compile.data.tables.table import Table
from lstm_compile.data.text_files import count_characters, find_texts, refuse_columns
from lstm_compile.errors import InputError
from lstm_compile.files import from_json
from lstm_compile.model import header
from lstm_compile.model.run_folder import MODEL_FILE
from lstm_compile.tasks import find_task

if TYPE_CHECKING:
    from lstm_compile.data.series.series_table import SeriesTable
    from lstm_compile.export.names import Tensors

MOST_CLASSES = 20  # whole numbers with more values are no classes
Training = Callable[[], Any]


def inspect_source(
    name: str,
    options: TableOptions | None = None,
    training: Training | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """Describe a source, as `--json` prints it.

    Args:
        name: a bundled data set (its training part), a file of sequences, text, a run folder, a
            `.safetensors` or an `.onnx` file.
        options: the columns of a long table.
        training: gives the settings of a run on text, a `TrainingConfig`.
        task: what data are read for; None takes what fits them.

    Returns:
        `kind` (`data`, `series`, `text`, `run`, `safetensors` or `onnx`), and the values that the
        function for that kind returns.

    Raises:
        InputError: there is no such source, or it cannot be read.
    """
    path = Path(name)
    if name in BUNDLED:
        return inspect_data(name, options, task)
    if (path / MODEL_FILE).exists():
        return {"kind": "run", **header.inspect_run(path)}
    if path.suffix == ".safetensors":
        return {"kind": "safetensors", **header.inspect_safetensors(path)}
    if path.suffix == ".onnx":
        return {"kind": "onnx", **inspect_onnx(path)}
    reads_text = find_task(task).is_text if task else is_text(name)
    if not reads_text:
        return inspect_data(name, options, task)
    refuse_columns(name, options)
    return inspect_text(name, training)


def inspect_series(path: str, options: TableOptions) -> dict[str, Any]:
    """Describe series to forecast; they may have gaps.

    Returns:
        `kind` (`series`), `path`, `series` (how many), `rows`, `step`, `from` and `to`, `lengths`
        (min, median, max), `missing` (how many values each column lacks), `targets`, `features`,
        `season` (steps) and `columns` (one line).

    Raises:
        InputError: it cannot be read.
    """
    return _described_series(path, _series_table(path, options))


def _series_table(path: str, options: TableOptions) -> "SeriesTable":
    from lstm_compile.data.series.reader import read_series  # loads pyarrow

    # rows of several series must not become one, so equal times are an error, as in training
    return read_series(path, replace(options, gaps=options.gaps or "forward"))


def _described_series(path: str, table: "SeriesTable") -> dict[str, Any]:
    import numpy as np

    stamps = [str(stamp) for stamp in table.stamps(np.sort(table.ticks)[[0, -1]])]
    steps = table.lengths
    spread = {"min": int(steps.min()), "median": float(np.median(steps)), "max": int(steps.max())}
    counts = dict(zip(table.roles.values, table.missing.sum(0).tolist(), strict=True))
    return {
        "kind": "series",
        "path": path,
        "series": len(table.lengths),
        "rows": len(table.x),
        "step": table.info.clock.name,
        "season": table.info.clock.season,
        "from": stamps[0],
        "to": stamps[1],
        "lengths": spread,
        "missing": {name: count for name, count in counts.items() if count},
        "targets": list(table.schema.targets),
        "features": list(table.schema.features),
        "columns": table.roles.description,
    }


def inspect_text(path: str, training: Training | None = None) -> dict[str, Any]:
    """Describe text (a file, a folder or a glob), as language models read it.

    Returns:
        `kind` (`text`), `path`, `documents`, `bytes`, `characters`, `vocabulary` (how often each
        character occurs, the most frequent first); and with `training` what `train` would do:
        `characters` to train on and to validate, `steps` an epoch and `epochs`.

    Raises:
        InputError: no such file, an empty one, or text that is not UTF-8.
    """
    files = find_texts(path)
    counts = count_characters(files)
    return {
        "kind": "text",
        "path": path,
        "documents": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "characters": counts.total(),
        "vocabulary": dict(counts.most_common()),
        **({"training": _plan(counts.total(), training())} if training else {}),
    }


def _plan(characters: int, training: Any) -> dict[str, int]:
    validated = math.ceil(training.validation * characters)
    trained = characters - validated
    steps = max(1, -(-trained // (training.batch_size * training.unroll)))
    return {"train": trained, "validation": validated, "steps": steps, "epochs": training.epochs}


def inspect_data(
    name: str, options: TableOptions | None = None, task: str | None = None
) -> dict[str, Any]:
    """Describe a data set; it may have gaps.

    Without a task, a table is of series to forecast if it has no id, or if its target is a number
    that changes within an id and its times are dates.

    Returns:
        `kind` (`data`), `path`, `part` (of a bundled one), `columns` (of a long table: `id`,
        `time`, `target` as lists of names, which roles were `inferred`, and what was `left_out`
        with its kind), `unlabelled` (why no label could be read, else None), and the fields of
        `Profile`; for series to forecast what `inspect_series` returns.

    Raises:
        InputError: it cannot be read.
    """
    path, asked = locate(name, "train"), options or TableOptions()
    is_series = find_task(task).is_series if task else name in SERIES or asked.series_flags
    if is_series:
        return inspect_series(str(path), asked)
    try:
        table, unlabelled = _read(path, asked, task)
    except InputError as error:
        found = None if task else _series_in(path, asked)
        if found is None:
            raise error from None
        return _described_series(str(path), found)
    if unlabelled and not task and (found := _series_in(path, asked)):
        return _described_series(str(path), found)
    missing = {}
    if isinstance(table.roles, FilledGaps):
        missing = {**table.roles.counts}
    elif table.roles is not None:
        from lstm_compile.data.tables.long import count_missing  # loads pyarrow

        missing = count_missing(path, table.roles)
    return {
        "kind": "data",
        "path": str(path),
        "part": "train" if name in BUNDLED else None,
        "columns": _columns(table.roles) if isinstance(table.roles, Roles) else None,
        "unlabelled": unlabelled,
        **profile(table, missing).to_dict(),
    }


def _series_in(path: Path, options: TableOptions) -> "SeriesTable | None":
    """The table as series to forecast, if it seems to hold them, else None."""
    try:
        table = _series_table(str(path), options)
    except InputError:
        return None
    if table.ids is None:  # a table without ids is one series
        return table
    targets = table.schema.targets
    is_target = bool(options.target) or {bare_name(name).lower() for name in targets} <= {
        *NAMES["target"]
    }
    values = table.x[:, : len(targets)]
    are_numbers = bool((values % 1).any()) or len(set(values.ravel().tolist())) > MOST_CLASSES
    return table if is_target and are_numbers and table.info.clock.kind != "number" else None


def _columns(roles: Roles) -> dict[str, Any]:
    return {
        "id": [] if roles.id is None else [roles.id],
        "time": [] if roles.time is None else [roles.time],
        "target": list(roles.target),
        "inferred": list(roles.inferred),
        "left_out": dict(roles.left_out),
    }


def _read(path: Path, options: TableOptions, task: str | None) -> tuple[Table, str | None]:
    """The table, its gaps filled, and why it was read without labels, or None."""
    if options.missing in (None, "error"):
        options = replace(options, missing="zero")
    wanted = find_task(task) if task else None
    labels = {} if wanted is None else {n: getattr(wanted, n) for n in ("per_step", "has_classes")}
    try:
        return read_table(ReadRequest(path, options, **labels)), None
    except InputError as error:
        try:
            return read_table(ReadRequest(path, options, labelled=False)), str(error)
        except InputError:
            raise error from None  # the error that training would raise


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Describe an ONNX file of this package, once it is checked.

    Returns:
        `path`, `bytes`, the metadata (see `metadata.schema.json`), `opset`, `ir_version`, `inputs`
        and `outputs` (types and shapes), `parameters` and `nodes` (by operator).

    Raises:
        InputError: `read_onnx` refuses the file, or its metadata are not of this package.
    """
    import onnx

    from lstm_compile.export import names
    from lstm_compile.export.proof.onnx_file import read_onnx

    file = read_onnx(path)
    model = onnx.load_model_from_string(file.data)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    known = ("_scale", "_zero_point")  # belong to int8 weights; constants have no dot
    weights = {n: shape for n, shape in shapes.items() if "." in n and not n.endswith(known)}
    return {
        "path": str(path),
        "bytes": len(file.data),
        **{key: file.metadata.get(key) for key in names.PLAIN_KEYS},
        **_form(path, file.metadata),
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        **header.described(path, file.metadata),
        "inputs": _tensors(file.interface.inputs),
        "outputs": _tensors(file.interface.outputs),
        "parameters": header.count_parameters(weights),
        "nodes": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    }


def _form(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """State and quantisation from the metadata, where there are any."""
    from lstm_compile.export import names

    present = [key for key in names.FORM_KEYS if key in metadata]
    found = {key: from_json(metadata[key], f"{path}: metadata `{key}`") for key in present}
    state = found.get(names.STATE_KEY, {"tensors": {}}).get("tensors")
    quantized = found.get(names.QUANTIZATION_KEY, {"weights": "", "error": 0.0})
    fits = (
        isinstance(state, dict)
        and all(isinstance(pair, dict) for pair in state.values())
        and all("from" in pair and _is_number(pair.get("initial")) for pair in state.values())
        and "weights" in quantized
        and _is_number(quantized.get("error"))
    )
    if not fits:
        raise InputError(f"{path}: metadata of its form are damaged; export it again")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _tensors(found: "Tensors") -> dict[str, Any]:
    """Types, by ONNX's names, and shapes."""
    types = {
        name: {"float32": "float"}.get(kind, kind.lower()) for name, (kind, _) in found.items()
    }
    return {name: {"type": types[name], "shape": shape} for name, (_, shape) in found.items()}
