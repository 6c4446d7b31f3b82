"""Run an exported file: this one file, numpy and onnxruntime; no torch, no lstm_compile.

Copy it into another program and write `from runtime import load`, or leave it where it is:

    model = load("model.onnx")
    answers = model.predict([a, b])  # arrays (time, features) of any lengths -> (2, outputs)
    names = model.labels(answers)  # for task `classify`

It guards what ONNX Runtime lacks: a batch of 0 rows or steps ends the process there, lengths out
of range read other rows, and a NaN in one step becomes a NaN answer without a word.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

Floats = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int64]

INTERFACE_VERSION = "1"
FORMAT = "lstm_compile"
INPUT, LENGTHS = "x", "lengths"
OUTPUTS = {"classify": "probabilities", "regress": "value"}
KINDS = "biuf"  # NumPy's letters of the types that float32 can stand for
SHOWN = 12  # a one-line error lists no more names
# every tensor that lies in another file has this key, after its length or an overlong varint's end
EXTERNAL_DATA = re.compile(rb"[\x00\x08]location")


class ModelError(ValueError):
    """A file that cannot be run or an input that does not fit it, in one line."""


class Schema(NamedTuple):
    """The names of features, and of either classes or targets, in the model's order."""

    features: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """An exported file, ready to answer; as thread-safe as its onnxruntime session.

    Attributes:
        task: `classify` or `regress`.
        schema: names of features and of classes or targets.
        metadata: the file's metadata_props as they are: `config`, `training` and others in JSON.
        session: the onnxruntime session, for what is not covered here.
    """

    task: str
    schema: Schema
    metadata: dict[str, str]
    session: Any

    @property
    def outputs(self) -> int:
        """Numbers an answer has: classes, or targets."""
        return len(self.schema.classes or self.schema.targets)

    def predict(
        self,
        sequences: Sequence[npt.ArrayLike],
        batch_size: int = 256,
        features: Sequence[str] | None = None,
    ) -> Floats:
        """Answer sequences of different lengths.

        Args:
            sequences: arrays (time, features) of numbers in the units of the training data; a time
                of 0 is legal.
            batch_size: sequences that are padded to one length and answered together.
            features: the names of the columns, to be checked against `schema.features`.

        Returns:
            float32 (sequences, outputs), in the order of `sequences`: probabilities of
            `schema.classes`, or values of `schema.targets` in their units.

        Raises:
            ModelError: other columns, no array of numbers, or a value that is no finite float32.
        """
        if batch_size < 1:
            raise ModelError(f"batch_size must be at least 1, got {batch_size!r}")
        if features is not None:
            self._check_names(features)
        arrays = [self._array(index, sequence) for index, sequence in enumerate(sequences)]
        answers = np.zeros((len(arrays), self.outputs), np.float32)
        order = np.argsort([len(array) for array in arrays], kind="stable")  # little padding
        for start in range(0, len(arrays), batch_size):
            rows = order[start : start + batch_size]
            answers[rows] = ask(self.session, *_pad([arrays[row] for row in rows]))
        return answers

    def predict_padded(self, x: npt.ArrayLike, lengths: npt.ArrayLike) -> Floats:
        """Answer one padded batch.

        Args:
            x: (batch, time, features) numbers; what stands behind a row's length is not read.
            lengths: (batch,) integers from 0 to time.

        Returns:
            float32 (batch, outputs), as `predict` gives.

        Raises:
            ModelError: other shapes, lengths out of range, or a valid value that is not finite.
        """
        x, lengths = np.asarray(x), np.asarray(lengths)
        if x.ndim != 3 or lengths.shape != x.shape[:1] or lengths.dtype.kind not in "iu":
            raise ModelError(
                f"expected x (batch, time, {len(self.schema.features)}) and integer lengths "
                f"(batch,), found {x.dtype} {x.shape} and {lengths.dtype} {lengths.shape}"
            )
        _check_lengths(lengths, x.shape[1])
        # row by row, so that every error and an empty batch mean what they mean in `predict`
        return self.predict(
            [row[:length] for row, length in zip(x, lengths, strict=True)], max(1, len(x))
        )

    def labels(self, probabilities: npt.ArrayLike) -> list[str]:
        """The most probable class of each row of `probabilities` (rows, classes).

        Raises:
            ModelError: the task has no classes, or another shape.
        """
        found, classes = np.asarray(probabilities), self.schema.classes
        if not classes:
            raise ModelError(f"labels are of task classify; the task of this file is {self.task}")
        if found.ndim != 2 or found.shape[1] != len(classes):
            raise ModelError(f"probabilities must be (rows, {len(classes)}), found {found.shape}")
        return [classes[code] for code in found.argmax(1)]

    def _check_names(self, found: Sequence[str]) -> None:
        expected, found = self.schema.features, tuple(found)
        if found != expected:
            order = sorted(found) == sorted(expected)
            raise ModelError(
                f"features are {'in another order' if order else 'others'}: found "
                f"{_listing(found)}; the model was trained on {_listing(expected)}; give its "
                "columns in its order"
            )

    def _array(self, index: int, sequence: npt.ArrayLike) -> Floats:
        expected, place = len(self.schema.features), f"sequence {index}"
        try:
            found = np.asarray(sequence)
        except ValueError as error:  # rows of different sizes
            raise ModelError(f"{place}: not one array ({_one_line(error)})") from error
        if found.ndim != 2 or found.dtype.kind not in KINDS:
            raise ModelError(
                f"{place}: expected numbers of shape (time, {expected}), found {found.dtype} "
                f"{found.shape}"
            )
        if found.shape[1] != expected:
            raise ModelError(
                f"{place}: {found.shape[1]} features, but the model was trained on {expected}: "
                f"{_listing(self.schema.features)}"
            )
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is reported
            array = found.astype(np.float32)
        for step, feature in np.argwhere(~np.isfinite(array))[:1]:
            raise ModelError(
                f"{place}, step {step}, feature {self.schema.features[feature]!r}: expected a "
                f"finite float32 number, found {found[step, feature]}; fill the gap first"
            )
        return array


def load(source: str | PathLike[str] | bytes, threads: int = 1) -> OnnxModel:
    """Open a file that `lstm-compile export` wrote.

    Args:
        source: its path or its bytes; nothing beside it is read.
        threads: that answer one batch; more than 1 pays for wide models only.

    Raises:
        ModelError: no such file, damaged, not of lstm_compile, or of another interface version.
    """
    if threads < 1:
        raise ModelError(f"threads must be at least 1, got {threads!r}")
    data, name = (source, "model") if isinstance(source, bytes) else (_read(source), str(source))
    try:
        if EXTERNAL_DATA.search(data):  # a path in a model file is an attack surface
            raise ModelError("a tensor lies in another file, which is refused; export it again")
        session = open_session(data, threads=threads)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    except Exception as error:  # onnxruntime's errors share no base class of their own
        reason = f"{_one_line(error)}); export or copy it again"
        raise ModelError(f"{name}: not a readable ONNX file ({reason}") from error
    try:
        return _checked(session)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def open_session(data: bytes, providers: list[Any] | None = None, threads: int = 0) -> Any:
    """An onnxruntime session on a file's bytes, on the CPU unless `providers` say otherwise.

    `threads` answer a batch; 0 is one a core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings are about its own optimisations
    # threads that spin while they wait starve whatever else runs on the machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(data, options, providers or ["CPUExecutionProvider"])


def ask(session: Any, x: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Floats:
    """The answers (batch, outputs) to `x` (batch, time, features) with `lengths` (batch,).

    Raises:
        ModelError: an empty batch or no step, which end the onnxruntime process, or lengths that
            do not fit.
    """
    if x.ndim != 3 or not x.shape[0] or not x.shape[1]:
        raise ModelError(
            f"x must have shape (batch, time, features), batch and time at least 1; got {x.shape}"
        )
    if lengths.shape != x.shape[:1]:
        raise ModelError(f"lengths must be {x.shape[0]} numbers, got shape {lengths.shape}")
    _check_lengths(lengths, x.shape[1])
    inputs = {INPUT: x.astype(np.float32), LENGTHS: lengths.astype(np.int64)}
    (answers,) = session.run(None, inputs)
    return np.asarray(answers, np.float32)


def _read(path: str | PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = f"{error.strerror}); name a file of `lstm-compile export --onnx`"
        raise ModelError(f"{path}: cannot be read ({reason}") from error


def _checked(session: Any) -> OnnxModel:
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    if metadata.get("format") != FORMAT:
        raise ModelError("not exported by lstm-compile (its metadata have no such format)")
    if metadata.get("interface_version") != INTERFACE_VERSION:
        raise ModelError(
            f"interface_version is {metadata.get('interface_version')!r}, this program reads "
            f"{INTERFACE_VERSION!r}; export the model again or copy the newer runtime.py"
        )
    task, schema = metadata.get("task", ""), _schema(metadata.get("schema", ""))
    if task not in OUTPUTS or bool(schema.classes) != (task == "classify"):
        raise ModelError(f"task {task!r} does not fit its schema; export it again")
    _check_interface(session, task, schema)
    return OnnxModel(task, schema, metadata, session)


def _schema(text: str) -> Schema:
    try:
        values = json.loads(text)
        lists = [[*values[name]] for name in Schema._fields]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError("metadata `schema` is damaged; export it again") from error
    if not all(isinstance(name, str) for names in lists for name in names):
        raise ModelError("metadata `schema` must hold lists of strings; export it again")
    return Schema(*map(tuple, lists))


def _check_interface(session: Any, task: str, schema: Schema) -> None:
    expected = {
        INPUT: ("tensor(float)", 3, len(schema.features)),
        LENGTHS: ("tensor(int64)", 1, None),
        OUTPUTS[task]: ("tensor(float)", 2, len(schema.classes or schema.targets)),
    }
    found = {
        value.name: (value.type, len(value.shape), _fixed(value.shape))
        for value in (*session.get_inputs(), *session.get_outputs())
    }
    if found != expected:
        raise ModelError(
            f"expected inputs and output (type, rank, last size) {expected}, found {found}; "
            "export it again"
        )


def _fixed(shape: list[Any]) -> int | None:
    """The last size, where it is the same for every input."""
    return shape[-1] if shape and isinstance(shape[-1], int) else None


def _pad(arrays: list[Floats]) -> tuple[Floats, Lengths]:
    lengths = np.array([len(array) for array in arrays], np.int64)
    x = np.zeros((len(arrays), max(1, int(lengths.max())), arrays[0].shape[1]), np.float32)
    for row, array in zip(x, arrays, strict=True):
        row[: len(array)] = array
    return x, lengths


def _check_lengths(lengths: npt.NDArray[Any], time: int) -> None:
    for row in np.flatnonzero((lengths < 0) | (lengths > time))[:1]:
        raise ModelError(
            f"lengths must be numbers in [0, {time}], found {lengths[row]} in row {row}"
        )


def _listing(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
