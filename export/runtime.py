"""Run an exported file: this one file, numpy and onnxruntime; no torch, no lstm_compile.

Copy it into another program and write `from runtime import load`, or leave it where it is:

    model = load("model.onnx")
    answers = model.predict([a, b])  # arrays (time, features) of any lengths -> (2, outputs)
    names = model.labels(answers)  # where the answers are probabilities of classes
    steps = model.predict_steps([a, b])  # where there is an answer a step -> [(time, outputs), ...]
    ahead = model.forecast([a, b])  # where the model forecasts -> (2, horizon, targets)
    model.check("selftest.json")  # whether this program gets the same answers as PyTorch did
    model.warm_up(batch=8, time=64)  # the first answer of a size takes longer

    streams = open_streams("streaming.onnx")  # written by `lstm-compile export --onnx --streaming`
    answers = streams.push(["a", "b"], [x_a, x_b])  # each stream continues where it stopped

The file's own metadata and graph decide what is done. A task that this file knows by name must fit
them; another name decides nothing. Every name in `__all__` is stable under interface
version 1. Several threads may call any method at the same time.

This module checks what ONNX Runtime does not: a batch of 0 rows or steps ends the process there,
lengths out of range read other rows, and a NaN in one step silently becomes a NaN answer.
"""

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from threading import Condition
from time import perf_counter
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import onnxruntime

__all__ = ["ModelError", "OnnxModel", "Streams", "calendar", "load", "open_any", "open_streams"]

Floats = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int64]
Inputs = dict[str, npt.NDArray[Any]]  # arrays by the names of the file's inputs
Tensor = tuple[str, int, int | None]  # type, rank, and last size where it is fixed

INTERFACE_VERSION = "1"
FORMAT = "lstm_compile"
INPUT, TOKENS, LENGTHS = "x", "tokens", "lengths"
KNOWN_FUTURE, STATIC = "known_future", "static"
SERIES_LOCATION, SERIES_SCALE = "series_location", "series_scale"
DECODERS = ("direct", "recursive")
LARGEST_SIZE = 1 << 16
MOST_THREADS = 1024
BYTES = 256  # tokens of the vocabulary `byte`
BYTES_LIKE = (bytes, bytearray, memoryview)
STATE_KEY = "state"  # in the metadata of a streaming file
NEXT = "_next"  # output `h_next` is the input `h` of the next call
CONSTANT = 1e-6  # a deviation below this share of the mean is a rounding error
KINDS = "biuf"  # NumPy's letters for the types that are converted to float32
SHOWN = 12  # how many names an error lists at most
LARGEST = (1 << 31) - 1  # bytes of a file: protobuf's own limit
LONGEST_JSON = 8 << 20  # characters
MOST_BRACKETS = 1 << 17  # an empty list takes thirty times its own text in memory
LONGEST_ERROR = 1000  # characters
DOMAINS = (b"", b"ai.onnx")  # of operators
QUANTISED = (b"DynamicQuantizeLSTM", b"com.microsoft")  # the only operator of another domain
# fields of onnx.proto, by message; https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
MODEL = {7: "graph", 20: "training_info", 25: "functions"}
GRAPH = {1: "node", 5: "tensor", 15: "sparse_initializer"}
NODE = {4: "operator", 5: "attribute", 7: "domain"}
ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
TENSOR = {1: "dims", 13: "external_data", 14: "data_location"}
NUMBERS = ("dims", "data_location")
# for each known task: the name of its answers; whether its schema has classes, targets and series;
# and whether it has an answer a step. A file of any other task may have any of them.
KNOWN_TASKS = {
    "classify": ("probabilities", True, False, False, False),
    "regress": ("value", False, True, False, False),
    "forecast": ("forecast", False, True, True, False),
    "tag": ("step_probabilities", True, False, False, True),
    "lm": ("logits", False, False, False, True),
    "regress-steps": ("step_value", False, True, False, True),
}


class ModelError(ValueError):
    """A file that cannot be run, or an input that does not fit it; the message is one line."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST_ERROR:  # the text may quote a hostile file
            text = f"{text[: LONGEST_ERROR // 2]} ... {text[-LONGEST_ERROR // 2 :]}"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


class FileSchema(NamedTuple):
    """The names of features, and of either classes or targets, in the model's order.

    A forecasting model has `series`: `kind` and `step` of its clock, `known` and `calendar`
    covariates, `statics` with their `categories`, and whether the last feature is the `indicator`
    of filled steps. A model that reads text has a `vocabulary`: its `kind`, `char` or `byte`, and
    its `characters`.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    series: dict[str, Any] | None = None
    vocabulary: dict[str, Any] | None = None

    @property
    def outputs(self) -> int:
        """How many numbers an answer has: classes, targets or tokens."""
        tokens = len((self.vocabulary or {}).get("characters", ())) or BYTES
        return len(self.classes or self.targets) or tokens


@dataclass(frozen=True, eq=False)
class ExportedFile:
    """What every exported file tells about itself."""

    task: str  # what the model was trained for, such as `classify`
    schema: FileSchema  # the names of features and of classes or targets
    metadata: dict[str, str]  # the file's metadata_props: `config` and others are JSON
    session: Any  # the onnxruntime session, for what is not covered here
    stepwise: bool = False  # whether there is an answer for each step, not for each sequence

    @property
    def outputs(self) -> int:
        """How many numbers an answer has: classes, targets or tokens."""
        return self.schema.outputs

    @property
    def config(self) -> dict[str, Any]:
        """The architecture: `horizon`, `context`, `quantiles` and others."""
        config: dict[str, Any] = from_json(self.metadata, "config")
        return config

    @property
    def subtracted(self) -> npt.NDArray[Any]:
        """What `forecast` takes off each feature before float32, float64 (features,)."""
        levels = (self.schema.series or {}).get("subtracted", ())
        return np.array([*levels, *[0.0] * (len(self.schema.features) - len(levels))])

    @cached_property
    def categories(self) -> dict[str, Any]:
        """The `names` of categories, for the last features, and whether code 0 is any `other`."""
        found: dict[str, Any] = from_json(self.metadata, "schema").get("categories") or {}
        return found or {"names": [], "other": False}

    @property
    def category_sizes(self) -> list[int]:
        """How many codes each of the last features has; empty if all are numbers."""
        return [len(names) + bool(self.categories["other"]) for names in self.categories["names"]]

    def labels(self, probabilities: npt.ArrayLike) -> list[str]:
        """The most probable class of each row, or of each step.

        Args:
            probabilities: (rows, classes).

        Raises:
            ModelError: the file has no classes, or another shape.
        """
        found, classes, task = _array(probabilities, "labels"), self.schema.classes, self.task
        if not classes:
            raise ModelError(f"labels need a file with classes; the task of this file is {task}")
        if found.ndim != 2 or found.shape[1] != len(classes):
            raise ModelError(f"probabilities must be (rows, {len(classes)}), found {found.shape}")
        return [classes[code] for code in found.argmax(1)]

    def codes(self, categories: Sequence[Sequence[str]]) -> Floats:
        """The codes of categories, which follow the numbers of a sequence.

            x = np.concatenate([numbers, model.codes([["sunny"], ["rain"]])], 1)

        Args:
            categories: for each step the category of each of the last features.

        Returns:
            float32 (time, columns); 0 for an unknown category, if the model learned others.

        Raises:
            ModelError: an unknown category, or another number of them.
        """
        names, other = self.categories["names"], bool(self.categories["other"])
        rows = [_list(row, f"step {i}") for i, row in enumerate(_list(categories, "categories"))]
        if any(len(row) != len(names) for row in rows):
            raise ModelError(f"each step must have {len(names)} categories")
        found = np.zeros((len(rows), len(names)), np.float32)
        for step, row in enumerate(rows):
            for column, value in enumerate(row):
                found[step, column] = _code(value, names[column], f"step {step}", other)
        return found

    def _check_categories(self, x: npt.NDArray[Any], place: str) -> None:
        """Refuse numbers that are no codes among the last features of `x` (..., features)."""
        names, sizes = self.schema.features[::-1], self.category_sizes[::-1]
        for name, size, values in zip(names, sizes, x.T[::-1], strict=False):
            if not np.isin(values, np.arange(size)).all():
                raise ModelError(
                    f"{place}: {name!r} must be codes from 0 to {size - 1}, which `codes` gives"
                )

    def warm_up(self, batch: int = 1, time: int = 64) -> float:
        """Answer ones, in so many seconds: the first answer of a size takes longer than others.

        Raises:
            ModelError: sizes below 1.
        """
        sizes, inputs = {"batch": _count(batch, "batch"), "time": _count(time, "time")}, Inputs()
        if (steps := sizes["batch"] * sizes["time"]) > LARGEST:
            raise ModelError(f"warm_up takes at most {LARGEST} steps in all, got {steps}")
        for value in self.session.get_inputs():
            shape = [sizes.get(size, size) for size in value.shape]
            counts = value.type == "tensor(int64)"
            inputs[value.name] = np.zeros(shape, np.int64) if counts else np.ones(shape, np.float32)
        if LENGTHS in inputs:
            inputs[LENGTHS] += time
        if self.category_sizes:
            inputs[INPUT][..., -len(self.category_sizes) :] = 0
        began = perf_counter()
        _run(self.session, inputs)
        return perf_counter() - began

    def __reduce__(self) -> NoReturn:
        raise ModelError("an open file cannot be pickled; open it in each process, by its path")

    def check(self, selftest: str | PathLike[str] | bytes) -> float:
        """Run the self-test that was written beside the file in this program.

        Args:
            selftest: the path of `selftest.json` (of a streaming file `streaming.selftest.json`),
                or its bytes.

        Returns:
            The largest difference as a share of the tolerance, at most 1.

        Raises:
            ModelError: the self-test of another file, or an answer outside its tolerance.
        """
        data, worst = _bytes(selftest), 0.0
        if hashlib.sha256(data).hexdigest() != self.metadata.get("selftest_sha256"):
            raise ModelError("the self-test is not this file's; take the one written beside it")
        for place, found, expected, tolerance in self._test_answers(json.loads(data)):
            share = float((np.abs(found - np.array(expected)) / np.array(tolerance)).max())
            if not share <= 1:  # NaN too
                raise ModelError(
                    f"self-test, {place}: the difference is {share:.3g} times the tolerance"
                )
            worst = max(worst, share)
        return worst

    def _test_answers(self, test: dict[str, Any]) -> Iterator[tuple[str, Floats, Any, Any]]:
        """For each answer of a self-test its place, what is found and expected, the tolerance."""
        raise NotImplementedError


class OnnxModel(ExportedFile):
    """A sequence file, ready to answer; several threads may ask at the same time."""

    def forecast(
        self,
        histories: Sequence[npt.ArrayLike],
        known_future: npt.ArrayLike | None = None,
        static: Sequence[Sequence[str | int]] | None = None,
        batch_size: int = 256,
    ) -> Floats:
        """Forecast series of different lengths, one horizon ahead.

        Args:
            histories: arrays (time, features), in the units of the training data, the latest step
                last. The model reads the last `config["context"]` steps of longer ones; location
                and scale of a series, where the model takes them, come from all steps.
            known_future: (series, horizon, known), the covariates that are known in the horizon,
                calendar columns last (see `calendar`); where the model has any.
            static: the categories of each series, where the model has any. A number is the
                category that is written like it; where no category is a number, it is a code.
            batch_size: how many series are answered together.

        Returns:
            float32 (series, horizon, targets), or (series, horizon, targets, quantiles); float64
            where the model subtracts a level from its columns (`schema.series["subtracted"]`).

        Raises:
            ModelError: the file does not forecast, other columns, an unknown category, or a value
                that is no finite float32.
        """
        arrays, config = self._arrays("forecast", histories), self.config
        if not arrays:
            shape = (0, int(config["horizon"]), self.outputs)
            quantiles = (len(config["quantiles"]),) if config["quantiles"] else ()
            none: Floats = restored(np.zeros((*shape, *quantiles), np.float32), self.subtracted)
            return none
        x, lengths = pad([array[-int(config["context"]) :] for array in arrays])
        more = self._further_inputs(arrays, {KNOWN_FUTURE: known_future, STATIC: static})
        inputs: Inputs = {INPUT: x, LENGTHS: lengths, **more}
        answers, batch_size = [], _count(batch_size, "batch_size")
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            answers.append(self._forecast({n: value[rows] for n, value in inputs.items()}))
        forecasts: Floats = restored(finite(np.concatenate(answers), "series"), self.subtracted)
        return forecasts

    def forecast_padded(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """Forecast one padded batch; a model that gives one step is run again for each step.

        Args:
            inputs: all inputs of the file by name, `known_future` for the whole horizon and
                `static` as codes. Where `schema.series` has `subtracted`, these numbers are taken
                off all columns before, and are not in the answers.

        Returns:
            As `forecast` gives.

        Raises:
            ModelError: other inputs, other shapes, or a valid value that is not finite.
        """
        return finite(self._forecast(inputs))

    def _forecast(self, given: Mapping[str, npt.NDArray[Any]]) -> Floats:
        inputs = self._checked(given)
        if self.config["decoder"] != "recursive":
            return ask(self.session, **inputs)
        horizon, known = int(self.config["horizon"]), inputs.get(KNOWN_FUTURE)
        lengths, rows, parts = inputs[LENGTHS], np.arange(len(inputs[INPUT])), []
        x = np.pad(inputs[INPUT], ((0, 0), (0, horizon), (0, 0)))
        for ahead in range(horizon):
            time = x.shape[1] - horizon + ahead
            inputs |= {INPUT: x[:, :time], LENGTHS: lengths + ahead}
            if known is not None:
                inputs[KNOWN_FUTURE] = known[:, ahead : ahead + 1]
            parts.append(ask(self.session, **inputs))
            row = [parts[-1][:, 0], *([] if known is None else [known[:, ahead]])]
            step = np.concatenate(row, 1)
            x[rows, lengths + ahead] = 0  # the indicator of gaps, where there is one
            x[rows, lengths + ahead, : step.shape[1]] = step
        return np.concatenate(parts, 1)

    def _checked(self, given: Mapping[str, npt.NDArray[Any]]) -> Inputs:
        """The inputs of a padded batch, if they fit the file."""
        wanted = from_json(self.metadata, "inputs", list)
        if not isinstance(given, Mapping) or given.keys() != set(wanted):
            found = list(given) if isinstance(given, Mapping) else [type(given).__name__]
            raise ModelError(f"inputs must be named {_listing(wanted)}, found {_listing(found)}")
        inputs = {name: _array(value, name) for name, value in given.items()}
        x, lengths = inputs[INPUT], inputs[LENGTHS]
        columns = len(self.schema.features)
        if x.ndim != 3 or x.shape[2] != columns or x.dtype.kind not in KINDS:
            raise ModelError(
                f"x must be numbers (batch, time, {columns}), found {x.dtype} {x.shape}"
            )
        if lengths.shape != x.shape[:1] or lengths.dtype.kind not in "iu":
            raise ModelError(
                f"lengths must be whole numbers ({len(x)},), found {lengths.dtype} {lengths.shape}"
            )
        _check_lengths(lengths, x.shape[1])
        valid = np.arange(x.shape[1]) < lengths[:, None]
        if not np.isfinite(_floats(x[valid])).all():
            raise ModelError("x must be finite float32 numbers; fill the gaps first")
        self._check_categories(x[valid], "x")
        if KNOWN_FUTURE in inputs:
            inputs[KNOWN_FUTURE] = self._known(inputs[KNOWN_FUTURE], len(x))
        if STATIC in inputs:
            inputs[STATIC] = self._check_codes(inputs[STATIC], len(x))
        return inputs

    def _check_codes(self, codes: npt.NDArray[Any], rows: int) -> Lengths:
        assert self.schema.series is not None
        series = self.schema.series
        counts = [len(known) + bool(series.get("other")) for known in series["categories"]]
        if codes.shape != (rows, len(counts)) or codes.dtype.kind not in "iu":
            raise ModelError(
                f"static must be codes ({rows}, {len(counts)}), found {codes.dtype} {codes.shape}"
            )
        if ((codes < 0) | (codes >= counts)).any():
            raise ModelError(f"static must be codes below {', '.join(map(str, counts))}")
        return codes.astype(np.int64)

    def _further_inputs(self, histories: list[Floats], given: Mapping[str, Any]) -> Inputs:
        """The inputs of the file beside `x` and `lengths`, checked."""
        wanted = from_json(self.metadata, "inputs", list)[2:]
        names, found = ", ".join([INPUT, LENGTHS, *wanted]), Inputs()
        first = int(self.config["output_size"]) + int(self.config["past_size"])
        given = {name: value for name, value in given.items() if value is not None}
        for name in [name for name in given if name not in wanted]:
            raise ModelError(f"{name} is no input of this model; its inputs are {names}")
        if KNOWN_FUTURE in given:
            known = _array(given[KNOWN_FUTURE], KNOWN_FUTURE)
            levels = self.subtracted[first : first + int(self.config["known_size"])]
            if known.shape[-1:] == levels.shape and known.dtype.kind in KINDS:
                known = self._less_levels(known, KNOWN_FUTURE, levels)
            found[KNOWN_FUTURE] = self._known(known, len(histories))
        if STATIC in given:
            found[STATIC] = self._codes(given[STATIC], len(histories))
        if SERIES_SCALE in wanted:
            found |= series_levels(histories, first)
        for name in [name for name in wanted if name not in found]:
            raise ModelError(f"{name} is missing; the model's inputs are {names}")
        return found

    def _known(self, found: npt.NDArray[Any], rows: int) -> Floats:
        expected = (rows, int(self.config["horizon"]), int(self.config["known_size"]))
        if found.shape != expected or found.dtype.kind not in KINDS:
            raise ModelError(
                f"known_future must be numbers of shape {expected}, found {found.dtype} "
                f"{found.shape}"
            )
        array = _floats(found)
        if not np.isfinite(array).all():
            raise ModelError("known_future must be finite float32 numbers")
        return array

    def _codes(self, static: Sequence[Sequence[str | int]], rows: int) -> Lengths:
        assert self.schema.series is not None
        categories, other = self.schema.series["categories"], self.schema.series.get("other")
        given = [_list(row, f"static, row {i}") for i, row in enumerate(_list(static, STATIC))]
        if len(given) != rows or any(len(row) != len(categories) for row in given):
            raise ModelError(f"static must be {rows} rows of {len(categories)} categories")
        codes = np.zeros((rows, len(categories)), np.int64)
        for row, values in enumerate(given):
            for column, (value, known) in enumerate(zip(values, categories, strict=True)):
                codes[row, column] = _code(value, known, f"static, row {row}", bool(other))
        return codes

    def predict(
        self,
        sequences: Sequence[npt.ArrayLike],
        batch_size: int = 256,
        features: Sequence[str] | None = None,
    ) -> Floats:
        """Answer sequences of different lengths.

        Args:
            sequences: arrays (time, features) of numbers in the units of the training data; a time
                of 0 is allowed. For a model that reads text: texts, or tokens (time,).
            batch_size: how many sequences are padded to one length and answered together.
            features: the names of the columns, to be compared with `schema.features`.

        Returns:
            float32 (sequences, outputs), in the order of `sequences`: probabilities of
            `schema.classes`, or values of `schema.targets` in their units.

        Raises:
            ModelError: other columns, no array of numbers, or a value that is no finite float32.
        """
        arrays = self._arrays("predict", sequences, features)
        answers = np.zeros((len(arrays), self.outputs), np.float32)
        for rows, found in self._answered(arrays, batch_size):
            answers[rows] = found
        return finite(answers, "sequence")

    def predict_steps(
        self,
        sequences: Sequence[npt.ArrayLike],
        batch_size: int = 256,
        features: Sequence[str] | None = None,
    ) -> list[Floats]:
        """Answer every step of sequences of different lengths; the arguments are as for `predict`.

        Returns:
            One float32 (time, outputs) a sequence: probabilities of `schema.classes` or values of
            `schema.targets` step by step, or for a language model the logits of the next token.

        Raises:
            ModelError: the file has one answer a sequence, and as `predict`.
        """
        arrays = self._arrays("predict_steps", sequences, features)
        answers = [np.zeros((0, self.outputs), np.float32)] * len(arrays)
        for rows, found in self._answered(arrays, batch_size):
            for row, steps in zip(rows, found, strict=True):
                answers[row] = steps[: len(arrays[row])].copy()
        for row, answer in enumerate(answers):
            finite(answer[None], "sequence", row)
        return answers

    def _arrays(
        self,
        method: str,
        sequences: Sequence[npt.ArrayLike],
        features: Sequence[str] | None = None,
    ) -> list[Floats]:
        """The sequences as the file takes them, if the method and the columns are the file's."""
        right = "predict_steps" if self.stepwise else "predict"
        right = right if self.schema.series is None else "forecast"
        if method != right:
            raise ModelError(f"the task of this file is {self.task}: call model.{right}")
        expected = self.schema.features
        found = expected if features is None else tuple(_list(features, "features"))
        if not all(isinstance(name, str) for name in found) or found != expected:
            order = sorted(map(repr, found)) == sorted(map(repr, expected))
            raise ModelError(
                f"features are {'in another order' if order else 'others'}: found "
                f"{_listing(found)}; the model was trained on {_listing(expected)}; give its "
                "columns in its order"
            )
        given = _list(sequences, "sequences")
        return [self._array(index, sequence) for index, sequence in enumerate(given)]

    def _less_levels(self, found: npt.NDArray[Any], place: str, levels: npt.NDArray[Any]) -> Floats:
        """Numbers (..., columns) as float32, after the levels that the model subtracts."""
        if not levels.any():
            return _floats(found)
        if found.dtype.kind == "f" and found.dtype.itemsize < 8:
            raise ModelError(
                f"{place}: found {found.dtype}, expected float64, as the model subtracts "
                f"{max(levels, key=abs):.15g} first; {found.dtype} has rounded such numbers already"
            )
        return _floats(found - levels)

    def _answered(
        self, arrays: list[Floats], batch_size: int
    ) -> Iterator[tuple[npt.NDArray[np.intp], Floats]]:
        """Indices of arrays of similar lengths (which need little padding), and their answers."""
        batch_size = _count(batch_size, "batch_size")
        order = np.argsort([len(array) for array in arrays], kind="stable")
        for start in range(0, len(arrays), batch_size):
            rows = order[start : start + batch_size]
            yield rows, ask(self.session, *pad([arrays[row] for row in rows]))

    def predict_padded(self, x: npt.ArrayLike, lengths: npt.ArrayLike) -> Floats:
        """Answer one padded batch.

        Args:
            x: (batch, time, features) numbers, or tokens (batch, time); steps after a row's length
                are not read.
            lengths: (batch,) integers from 0 to time.

        Returns:
            float32 (batch, outputs), as `predict` gives; of a file with an answer a step
            (batch, time, outputs), 0 after each row's length.

        Raises:
            ModelError: other shapes, lengths out of range, or a valid value that is not finite.
        """
        x, lengths = _array(x, "x"), _array(lengths, "lengths")
        last = () if self.schema.vocabulary else (len(self.schema.features),)
        fits = x.ndim == 2 + len(last) and lengths.shape == x.shape[:1]
        if not fits or lengths.dtype.kind not in "iu":
            raise ModelError(
                f"expected x ({', '.join(map(str, ('batch', 'time', *last)))}) and integer lengths "
                f"(batch,), found {x.dtype} {x.shape} and {lengths.dtype} {lengths.shape}"
            )
        _check_lengths(lengths, x.shape[1])
        # row by row, so that errors and an empty batch mean the same as in `predict`
        rows = [row[:length] for row, length in zip(x, lengths, strict=True)]
        if not self.stepwise:
            return self.predict(rows, max(1, len(x)))
        answers = np.zeros((*x.shape[:2], self.outputs), np.float32)
        for answer, steps in zip(answers, self.predict_steps(rows, max(1, len(x))), strict=True):
            answer[: len(steps)] = steps
        return answers

    def _test_answers(self, test: dict[str, Any]) -> Iterator[tuple[str, Floats, Any, Any]]:
        x, lengths, *others = test["inputs"]
        for index, case in enumerate(test["cases"]):
            more = {name: np.array(case[name]) for name in others}
            found = ask(self.session, np.array(case[x]), np.array(case[lengths]), **more)
            yield f"case {index}", found, case["expected"], test["tolerance"]

    def _array(self, index: int, sequence: npt.ArrayLike) -> Floats:
        expected, place = len(self.schema.features), f"sequence {index}"
        if self.schema.vocabulary is not None:
            tokens: Floats = to_tokens(self.schema.vocabulary, sequence, place)
            return tokens
        found = _array(sequence, place)
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
        array = self._less_levels(found, place, self.subtracted)
        for step, feature in np.argwhere(~np.isfinite(array))[:1]:
            raise ModelError(
                f"{place}, step {step}, feature {self.schema.features[feature]!r}: expected a "
                f"finite float32 number, found {found[step, feature]}; fill the gap first"
            )
        self._check_categories(array, place)
        return array


def load(source: str | PathLike[str] | bytes, threads: int = 1) -> OnnxModel:
    """Open a file that `lstm-compile export` wrote.

    Args:
        source: its path or its bytes; nothing beside it is read.
        threads: how many answer one batch; more than 1 helps wide models only.

    Raises:
        ModelError: no such file, damaged, not of lstm_compile, or of another interface version.
    """
    file = open_any(source, threads)
    if isinstance(file, Streams):
        raise ModelError(f"{_name(source)}: this file streams: open it with `open_streams`")
    return file


def open_any(source: str | PathLike[str] | bytes, threads: int = 1) -> "OnnxModel | Streams":
    """Open an exported file of either kind, as `load` and `open_streams` do."""
    threads, data = _count(threads, "threads", MOST_THREADS), _bytes(source)
    try:
        check_graph(data)
        try:
            session = open_session(data, threads=threads)
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise _damaged(_reason(error)) from error
        return _described(session)
    except ModelError as error:
        raise ModelError(f"{_name(source)}: {error}") from error


def _name(source: str | PathLike[str] | bytes) -> str:
    return "model" if isinstance(source, BYTES_LIKE) else str(source)


def _bytes(source: str | PathLike[str] | bytes) -> bytes:
    return bytes(source) if isinstance(source, BYTES_LIKE) else read_bytes(source)


def _count(value: Any, what: str, most: int = LARGEST) -> int:
    """A whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ModelError(f"{what} must be a whole number of at least 1, got {value!r}")
    if value > most:
        raise ModelError(f"{what} must be at most {most}, got {value}")
    return int(value)


def _list(values: Any, what: str) -> list[Any]:
    """Several things; one text is none."""
    with suppress(Exception):  # not iterable, or whatever an iterator raises
        if not isinstance(values, str | bytes | Mapping):
            return list(values)
    raise ModelError(f"{what} must be a list, got {values!r:.80}")


def _array(values: Any, what: str) -> npt.NDArray[Any]:
    """One array without a mask."""
    parts = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise ModelError(f"{what}: masked values would be read as numbers; fill the gaps first")
    try:
        return np.asarray(values)
    except Exception as error:  # such as rows of different sizes, or a sequence's own error
        raise ModelError(f"{what}: not one array ({_reason(error)})") from error


def _floats(array: npt.NDArray[Any]) -> Floats:
    """As float32; too large a number becomes infinite, and is then refused."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _code(value: Any, known: list[str], place: str, other: bool = False) -> int:
    """The code of a category that is given by its text, or of a code where no text is a number.

    With `other`, texts that are not known have code 0, the others count from 1, and codes are
    not taken.
    """
    is_number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if (is_number or isinstance(value, str)) and str(value) in known:
        return known.index(str(value)) + other
    if other and (isinstance(value, str) or (is_number and any(map(_is_number, known)))):
        return 0
    if is_number and not other and 0 <= value < len(known) and not any(map(_is_number, known)):
        return int(value)
    raise ModelError(f"{place}: unknown category {value!r}; known are {_listing(known)}")


def check_graph(data: bytes) -> None:
    """Refuse a file with parts that no file of lstm_compile has, and that a hostile file could use.

    Such parts are tensors in other files (their path may be any), tensors that are smaller than
    they say, functions, operators of other domains, and graphs inside nodes, as a loop may never
    end; but a Scan ends with its input, so it may have a body, without graphs in that.
    onnxruntime itself checks the rest.

    Raises:
        ModelError: the file has such a part, or is no protobuf message.
    """
    if not isinstance(data, BYTES_LIKE):
        raise ModelError(f"a file's bytes are needed, got {type(data).__name__}")
    if not data or len(data) > LARGEST:
        raise _damaged(f"{len(data)} bytes")
    for _, graph in _walk(memoryview(data), MODEL, "graph"):
        for kind, part in _walk(graph, GRAPH, "node", "tensor"):
            _check_tensor(part) if kind == "tensor" else _check_node(part)


def _check_node(node: memoryview, in_body: bool = False) -> None:
    last = {"operator": b"", "domain": b""}  # the last one counts where a field is given twice
    bodies: list[memoryview] = []
    for name, value in _walk(node, NODE, *last, "attribute"):
        if name in last:
            last[name] = bytes(value)
            continue
        for kind, part in _walk(value, ATTRIBUTE, "tensor", "graph"):
            _check_tensor(part) if kind == "tensor" else bodies.append(part)
    if bodies and (in_body or last["operator"] != b"Scan"):
        raise ModelError("a graph has graph, which is refused; export it again")
    for body in bodies:
        for kind, part in _walk(body, GRAPH, "node", "tensor"):
            _check_tensor(part) if kind == "tensor" else _check_node(part, in_body=True)
    if last["domain"] not in DOMAINS and tuple(last.values()) != QUANTISED:
        raise ModelError("an operator is of another domain; export it again")


def _check_tensor(tensor: memoryview) -> None:
    count = 1
    for name, value in _walk(tensor, TENSOR, *TENSOR.values()):
        if name != "dims" and value:  # a path in a model file is an attack surface
            raise ModelError("a tensor lies in another file, which is refused; export it again")
        for size in _varints(value) if isinstance(value, memoryview) else [value]:
            count *= size
            if count > 2 * len(tensor):  # half a byte is the smallest number there is
                raise _damaged("a tensor is smaller than it says")


def _walk(
    message: memoryview, fields: Mapping[int, str], *wanted: str
) -> Iterator[tuple[str, Any]]:
    """The wanted fields of a message with their values; other fields of `fields` are refused."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind, name = key & 7, fields.get(key >> 3)
        value: Any = None
        if kind == 0:
            value, place = _varint(message, place)
        elif kind == 2:
            size, place = _varint(message, place)
            value, place = message[place : place + size], place + size
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise _damaged("no protobuf message")
        if place > len(message) or not key >> 3:
            raise _damaged("no protobuf message")
        if name is None or (kind != 2 and (kind or name not in NUMBERS)):  # as protobuf does
            continue
        if name in wanted:
            yield name, value
        else:
            raise ModelError(f"a graph has {name}, which is refused; export it again")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte, place = data[place], place + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise _damaged("no protobuf message")


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        number, place = _varint(data, place)
        yield number


def _damaged(why: str) -> ModelError:
    return ModelError(f"not a readable ONNX file ({why}); export or copy it again")


def open_session(data: bytes, providers: list[Any] | None = None, threads: int = 0) -> Any:
    """An onnxruntime session on a file's bytes, on the CPU unless `providers` say otherwise.

    `threads` is how many answer a batch; 0 means one a core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings are about its own optimisations
    # threads that spin while they wait slow down every other program on the machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        data,
        options,
        providers or ["CPUExecutionProvider"],
        enable_fallback=0,  # it prints
        # no file of lstm_compile has constants to fold; in a hostile file folding may never end
        disabled_optimizers=["ConstantFolding"],
    )


def ask(
    session: Any, x: npt.NDArray[Any], lengths: npt.NDArray[Any], **further: npt.NDArray[Any]
) -> Floats:
    """The answers (batch, ...) to `x` (batch, time, features) with `lengths` (batch,).

    `further` are the other inputs of the file, where it has any.

    Raises:
        ModelError: an empty batch or no step, which would end the process, or lengths that do not
            fit.
    """
    x, lengths = _array(x, "x"), _array(lengths, "lengths")
    if x.dtype.kind not in KINDS or lengths.dtype.kind not in "iu":
        raise ModelError(f"x and lengths must be numbers, found {x.dtype} and {lengths.dtype}")
    tokens = x.dtype.kind in "iu"
    if x.ndim != (2 if tokens else 3) or not x.shape[0] or not x.shape[1]:
        raise ModelError(
            f"x must have shape (batch, time{'' if tokens else ', features'}), batch and time at "
            f"least 1; got {x.shape}"
        )
    if lengths.shape != x.shape[:1]:
        raise ModelError(f"lengths must be {x.shape[0]} numbers, got shape {lengths.shape}")
    _check_lengths(lengths, x.shape[1])
    first = {TOKENS: x.astype(np.int64)} if tokens else {INPUT: x.astype(np.float32)}
    inputs: Inputs = {**first, LENGTHS: lengths.astype(np.int64)}
    for name, value in further.items():
        inputs[name] = value.astype(np.int64 if name == STATIC else np.float32)
    (answers,) = _run(session, inputs)
    return np.asarray(answers, np.float32)


def _run(session: Any, inputs: Inputs) -> list[npt.NDArray[Any]]:
    """The session's answers; its errors become one line."""
    try:
        return list(session.run(None, inputs))
    except Exception as error:  # as in `open_any`
        raise ModelError(f"onnxruntime cannot answer: {_reason(error)}") from error


class Streams(ExportedFile):
    """A streaming file and the states of many streams; see `open_streams`.

    A stream begins at the initial state with its first chunk, and continues until `reset`. Several
    threads may push at the same time: chunks of one stream are answered one after another, in the
    order in which they arrive; other streams do not wait. A call that raises changes no state.
    """

    def __init__(self, file: ExportedFile) -> None:
        super().__init__(**vars(file))
        inputs = {value.name: value.shape for value in file.session.get_inputs()}
        self._first = TOKENS if TOKENS in inputs else INPUT
        self._parts = tuple(_state_sizes(file.metadata))
        if surplus := [*inputs.keys() - {self._first, *self._parts}]:
            raise ModelError(f"streams take no {', '.join(surplus)}: run the file by its `session`")
        self._row, self._one_step = tuple(inputs[self._first][2:]), inputs[self._first][1] == 1
        self._dtype = np.dtype(np.int64 if self._first == TOKENS else np.float32)
        shapes = [inputs[part] for part in self._parts]
        if not isinstance(shapes[0][0], int) or any(s[0] != shapes[0][0] for s in shapes):
            raise ModelError(f"the state must have its number of layers, found {shapes}")
        self._layers, self._sizes = shapes[0][0], [shape[-1] for shape in shapes]
        self._cuts = np.cumsum(self._sizes)[:-1]
        self._initial = np.zeros((self._layers, sum(self._sizes)), np.float32)
        # all parts side by side, as `_initial`; replaced, not changed
        self._states: dict[Hashable, Floats] = {}
        self._busy: set[Hashable] = set()
        self._idle = Condition()  # is notified when streams are no longer busy

    def __len__(self) -> int:
        """How many streams have begun."""
        return len(self._states)

    def push(
        self, stream_ids: Sequence[Hashable], x: Floats | Sequence[Floats]
    ) -> Floats | list[Floats]:
        """Answer the next steps of some streams.

        Args:
            stream_ids: any hashable values, each once.
            x: float32 (streams, time, features), or for a model that reads text int64 tokens
                (streams, time); or a list of float32 (time, features) of any lengths from 1, where
                chunks of equal length are answered together.

        Returns:
            For an array one array: (streams, outputs) after the last step, or for a file with an
            answer a step (streams, time, outputs); for a list a list of its rows.

        Raises:
            ModelError: an id twice, another shape or dtype, no step, or a value that is not finite.
        """
        names = _ids(list(stream_ids) if isinstance(stream_ids, str) else stream_ids)
        if isinstance(x, np.ndarray) and (names or x.size):
            self._check(_array(x, "x"), len(names), "x")
            return self._answers(names, [(range(len(names)), x)])[0]
        chunks = _list(x, "x")
        if len(chunks) != len(names):
            raise ModelError(f"{len(names)} streams, but {len(chunks)} chunks")
        if not chunks:
            return []
        x = [_array(c, f"the chunk of stream {n!r}") for c, n in zip(chunks, names, strict=True)]
        for chunk, name in zip(x, names, strict=True):
            self._check(chunk[None], 1, f"the chunk of stream {name!r}")
        by_length: dict[int, list[int]] = {}
        for index, chunk in enumerate(x):
            by_length.setdefault(len(chunk), []).append(index)
        groups = [(rows, np.stack([x[row] for row in rows])) for rows in by_length.values()]
        answers: list[Floats] = [np.zeros(0, np.float32)] * len(x)
        for (rows, _), found in zip(groups, self._answers(names, groups), strict=True):
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
        return answers

    def reset(self, stream_ids: Iterable[Hashable] | None = None) -> None:
        """Forget the states of streams, so that they begin anew; None means all streams."""
        names = list(self._states) if stream_ids is None else _ids(stream_ids)
        with self._held(set(names)):
            for name in names:
                self._states.pop(name, None)

    def snapshot(self, stream_ids: Iterable[Hashable] | None = None) -> dict[str, Any]:
        """A copy of the states of streams that have begun; None means all of them.

        Returns:
            `ids`, a list, and the parts of the state by name, such as `h` and `c`, float32
            (layers, streams, size).

        Raises:
            ModelError: a stream that has not begun.
        """
        names = list(self._states) if stream_ids is None else _ids(stream_ids)
        with self._held(set(names)):
            if stream_ids is None:  # one of them may have been reset meanwhile
                names = [name for name in names if name in self._states]
            for name in names:
                if name not in self._states:
                    raise ModelError(f"stream {name!r} has not begun; push its first chunk")
            parts = self._gathered(names)
        copies = (part.copy() for part in parts)
        return {"ids": names, **dict(zip(self._parts, copies, strict=True))}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Set streams to the states of a snapshot, whether they have begun or not.

        Raises:
            ModelError: the snapshot does not fit this file.
        """
        wanted = ["ids", *self._parts]
        if not isinstance(snapshot, Mapping) or not {*wanted} <= snapshot.keys():
            *most, last = (f"`{name}`" for name in wanted)
            has = f"{', '.join(most)} and {last}"
            raise ModelError(f"a snapshot has {has}; take one with `snapshot`")
        names, parts = _ids(snapshot["ids"]), [_array(snapshot[p], p) for p in self._parts]
        for part, size in zip(parts, self._sizes, strict=True):
            expected = (self._layers, len(names), size)
            if part.shape != expected or part.dtype != np.float32:
                raise ModelError(
                    f"a snapshot of {len(names)} streams has float32 {expected}, found "
                    f"{part.dtype} {part.shape}"
                )
            if not np.isfinite(part).all():
                raise ModelError("a snapshot must be finite: other values would stay in the state")
        with self._held(set(names)):
            self._scatter(names, parts)

    def warm_up(self, batch: int = 1, time: int = 1) -> float:
        """As `ExportedFile.warm_up`; no stream begins."""
        return super().warm_up(batch, time)

    def _test_answers(self, test: dict[str, Any]) -> Iterator[tuple[str, Floats, Any, Any]]:
        for index, case in enumerate(test["cases"]):
            state = [np.array(case[name], np.float32) for name in test["state"]]
            for number, call in enumerate(case["calls"]):
                answer, *state = self._run(np.array(call[self._first], self._dtype), *state)
                yield f"case {index}, call {number}", answer, call["expected"], test["tolerance"]
            for found, name in zip(state, test["state"].values(), strict=True):
                yield f"case {index}, {name}", found, case[name], test["state_tolerance"]

    def _check(self, x: npt.NDArray[Any], count: int, what: str) -> None:
        shape = x.shape
        if len(shape) < 2 or shape[0] != count or not shape[1] or shape[2:] != self._row:
            sizes = ", ".join(map(str, (count, "1 or more", *self._row)))
            kinds = "streams, time, features" if self._row else "streams, time"
            raise ModelError(f"{what} must have shape ({kinds}) = ({sizes}), found {shape}")
        if x.dtype != self._dtype:
            kind = self._dtype.name
            raise ModelError(f"{what} must be {kind}, found {x.dtype}; use x.astype(np.{kind})")
        if not self._row:
            if not 0 <= x.min() <= x.max() < self.schema.outputs:
                raise ModelError(f"{what} must be tokens in [0, {self.schema.outputs - 1}]")
        elif not np.isfinite(x).all():
            raise ModelError(f"{what} must be finite: other values would stay in the state")
        else:
            self._check_categories(x, what)

    @contextmanager
    def _held(self, names: set[Hashable]) -> Iterator[None]:
        """Keep these streams for this thread."""
        with self._idle:
            self._idle.wait_for(lambda: self._busy.isdisjoint(names))
            self._busy |= names
        try:
            yield
        finally:
            with self._idle:
                self._busy -= names
                self._idle.notify_all()

    def _answers(
        self, names: Sequence[Hashable], groups: Sequence[tuple[Sequence[int], Floats]]
    ) -> list[Floats]:
        """The answers of each group; states change only after all groups have answers."""
        with self._held(set(names)):
            members = [[names[row] for row in rows] for rows, _ in groups]
            found = [
                self._run(x, *self._gathered(group))
                for group, (_, x) in zip(members, groups, strict=True)
            ]
            for answer, *state in found:
                for part in (answer, *(part.swapaxes(0, 1) for part in state)):
                    finite(part, "stream")
            for group, (_, *state) in zip(members, found, strict=True):
                self._scatter(group, state)
        return [answer for answer, *_ in found]

    def _gathered(self, names: Sequence[Hashable]) -> list[Floats]:
        """The parts of the state of streams, (layers, streams, size) each."""
        states = [self._states.get(name, self._initial) for name in names]
        side_by_side = np.stack(states, 1) if states else self._initial[:, None][:, :0]
        return np.split(side_by_side, self._cuts, -1)

    def _scatter(self, names: Sequence[Hashable], state: Sequence[Floats]) -> None:
        side_by_side = np.concatenate(state, -1)
        for row, name in enumerate(names):
            # a view would keep all others in memory
            self._states[name] = side_by_side[:, row].copy()

    def _run(self, x: Floats, *state: Floats) -> list[Floats]:
        answers, size = [], 1 if self._one_step else x.shape[1]
        for start in range(0, x.shape[1], size):
            given = dict(zip(self._parts, state, strict=True))
            found = _run(self.session, {self._first: x[:, start : start + size], **given})
            answer, state = found[0], (*found[1:],)
            answers.append(answer)
        if len(answers) == 1 or not self.stepwise:
            return [answers[-1], *state]
        return [np.concatenate(answers, 1), *state]


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def _ids(stream_ids: Any) -> list[Hashable]:
    """The ids of streams, each once."""
    names = _list(stream_ids, "stream ids")
    try:
        is_once = len(set(names)) == len(names)
    except TypeError as error:
        raise ModelError(f"stream ids must be texts or numbers ({error})") from error
    if any(name is None or name != name for name in names):
        raise ModelError("stream ids must be texts or numbers, got None or NaN")
    if not is_once:
        raise ModelError("a stream is named twice; give it one chunk a call")
    return names


def open_streams(source: str | PathLike[str] | bytes, threads: int = 1) -> Streams:
    """Open a file that `lstm-compile export --onnx --streaming` wrote; arguments as for `load`.

    Raises:
        ModelError: no such file, damaged, no streaming file, or of another interface version.
    """
    file = open_any(source, threads)
    if isinstance(file, OnnxModel):
        raise ModelError(f"{_name(source)}: this file does not stream: open it with `load`")
    return file


def to_tokens(vocabulary: Mapping[str, Any], text: Any, place: str = "text") -> Any:
    """The tokens int64 (time,) of a text; tokens themselves are checked and returned.

    Raises:
        ModelError: a character or a token that is not in the vocabulary.
    """
    characters = vocabulary["characters"]
    if isinstance(text, str) and vocabulary["kind"] == "byte":
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    if isinstance(text, str):
        codes = {character: code for code, character in enumerate(characters)}
        for index, character in enumerate(text):
            if character not in codes:
                raise ModelError(
                    f"{place}, character {index}: {character!r} is not in the vocabulary of "
                    f"{len(codes)} characters that the model was trained on"
                )
        return np.array([codes[character] for character in text], np.int64)
    found, size = _array(text, place), len(characters) or BYTES
    if found.ndim != 1 or (found.dtype.kind not in "iu" and len(found)):
        raise ModelError(
            f"{place}: expected text or whole numbers (time,), found {found.dtype} {found.shape}"
        )
    if len(found) and not 0 <= found.min() <= found.max() < size:
        raise ModelError(f"{place}: tokens must lie in [0, {size - 1}]")
    return found.astype(np.int64)


def calendar(stamps: npt.ArrayLike, names: Sequence[str]) -> Floats:
    """The calendar columns of stamps: sine and cosine of each of `names`.

    Args:
        stamps: datetime64 (stamps,), or texts that NumPy reads as such; as clocks show them in the
            zone `schema.series["zone"]`, if it is there.
        names: `hour`, `weekday` or `month`, as `schema.series["calendar"]` has them.

    Returns:
        float32 (stamps, 2 * names).
    """
    try:
        times = np.asarray(stamps, "M8[s]")
        if times.ndim != 1 or np.isnat(times).any():
            raise ValueError("a list of times is needed")
    except Exception as error:
        raise ModelError(f"stamps must be datetime64 or texts like it: {_reason(error)}") from error
    days, months = times.astype("M8[D]"), times.astype("M8[M]").astype(np.int64)
    shares = {
        "hour": (times - days) / np.timedelta64(1, "D"),
        "weekday": (days.astype(np.int64) + 3) % 7 / 7,  # day 0 was a Thursday
        "month": months % 12 / 12,
    }
    wanted = _list(names, "names")
    for name in wanted:
        if not isinstance(name, str) or name not in shares:
            raise ModelError(f"no calendar column {name!r}; known are {_listing([*shares])}")
    angles = [2 * np.pi * shares[name] for name in wanted]
    columns = [part for angle in angles for part in (np.sin(angle), np.cos(angle))]
    return np.stack(columns, -1).astype(np.float32) if columns else np.zeros((len(times), 0), "f4")


def read_bytes(path: str | PathLike[str]) -> bytes:
    """The bytes of a model's file.

    Raises:
        ModelError: no such file, no regular file, or one that is too large.
    """
    advice = "export it first: `lstm-compile export --onnx`"
    try:
        file = Path(path)
        if file.exists() and not file.is_file():  # reading a pipe may never end
            raise ModelError(f"{path}: cannot be read (no plain file); {advice}")
        if file.stat().st_size > LARGEST:
            raise ModelError(f"{path}: cannot be read (larger than {LARGEST} bytes); {advice}")
        return file.read_bytes()
    except ModelError:
        raise
    except (OSError, TypeError, ValueError) as error:  # no path, or one with a null byte
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read ({why}); {advice}") from error


def from_json(metadata: Mapping[str, str], key: str, kind: type = dict) -> Any:
    """The JSON object, or list, under a key of a file's metadata; the text is not trusted.

    Raises:
        ModelError: there is none, or it is too long, has too many parts, or is damaged.
    """
    text = metadata.get(key) if isinstance(metadata, Mapping) else None
    text = text if isinstance(text, str) else ""
    if len(text) <= LONGEST_JSON and text.count("[") + text.count("{") <= MOST_BRACKETS:
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, kind):
                return value
    raise ModelError(f"metadata `{key}` is damaged; export it again")


def _described(session: Any) -> OnnxModel | Streams:
    """Read the metadata of a file and check that its interface is as they describe it."""
    metadata = _metadata(session)
    if metadata.get("format") != FORMAT:
        raise ModelError("not exported by lstm-compile (its metadata have no such format)")
    if metadata.get("interface_version") != INTERFACE_VERSION:
        raise ModelError(
            f"interface_version is {metadata.get('interface_version')!r}, this program reads "
            f"{INTERFACE_VERSION!r}; export the model again or copy the newer runtime.py"
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if not inputs or not outputs:
        raise ModelError("the graph has no inputs or no outputs; export it again")
    task, schema, (answer, *_) = metadata.get("task", ""), _schema(metadata), outputs
    each_step = len(answer.shape) == 3 and answer.shape[1:2] == inputs[0].shape[1:2]
    file = ExportedFile(task, schema, metadata, session, each_step and schema.series is None)
    has = (bool(names) for names in (schema.classes, schema.targets, schema.series))
    kind = (answer.name, *has, file.stepwise)
    if KNOWN_TASKS.get(task, kind) != kind:
        raise ModelError(f"task {task!r} does not fit its schema; export it again")
    expected, values = _expected_interface(file), (*inputs, *outputs)
    found = {value.name: (value.type, len(value.shape), _fixed(value.shape)) for value in values}
    if found != expected or len(found) != len(values):
        raise ModelError(
            f"expected inputs and output (type, rank, last size) {expected}, found {found}; "
            "export it again"
        )
    return Streams(file) if STATE_KEY in metadata else OnnxModel(**vars(file))


def _metadata(session: Any) -> dict[str, str]:
    try:
        return dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise ModelError("its metadata are not UTF-8; export it again") from error


def _schema(metadata: Mapping[str, str]) -> FileSchema:
    values = from_json(metadata, "schema")
    try:
        lists = [[*values[name]] for name in ("features", "classes", "targets")]
        series, vocabulary = values.get("series"), values.get("vocabulary")
        categories = values.get("categories")
        if categories is not None:
            lists += [
                [str(bool(categories["other"]))],
                *([*names] for names in categories["names"]),
            ]
        if vocabulary is not None:
            lists.append([vocabulary["kind"], *vocabulary["characters"]])
        if series is not None:
            lists += [[*series[name]] for name in ("known", "calendar", "statics")]
            lists += [[*names] for names in series["categories"]]
            np.array([*series.get("subtracted", ())], float)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError("metadata `schema` is damaged; export it again") from error
    if not all(isinstance(name, str) for names in lists for name in names):
        raise ModelError("metadata `schema` must hold lists of strings; export it again")
    features, classes, targets, *_ = map(tuple, lists)
    return FileSchema(features, classes, targets, series, vocabulary)


def _expected_interface(file: ExportedFile) -> dict[str, Tensor]:
    """Inputs and outputs by name, as schema and metadata describe them."""
    schema, metadata, shape = file.schema, file.metadata, file.session.get_inputs()[0].shape
    is_streaming, answer = STATE_KEY in metadata, file.session.get_outputs()[0].name
    first: dict[str, Tensor] = {INPUT: ("tensor(float)", 3, len(schema.features))}
    if schema.vocabulary is not None:  # streaming files take one step, or any number of them
        first = {TOKENS: ("tensor(int64)", 2, _fixed(shape) if is_streaming else None)}
    expected = first | {answer: ("tensor(float)", 2 + file.stepwise, schema.outputs)}
    if is_streaming:
        for part, size in _state_sizes(metadata).items():
            expected |= dict.fromkeys((part, f"{part}{NEXT}"), ("tensor(float)", 3, size))
    else:
        expected[LENGTHS] = ("tensor(int64)", 1, None)
    if schema.series is not None:
        expected |= _forecast_interface(metadata, answer)
    return expected


def _forecast_interface(metadata: Mapping[str, str], answer: str) -> dict[str, Tensor]:
    config, inputs = from_json(metadata, "config"), from_json(metadata, "inputs", list)
    targets = _size(config, "output_size")
    levels = targets + _size(config, "past_size")
    for name in ("horizon", "context"):
        _size(config, name)
    first = 2 if STATE_KEY not in metadata else 1 + len(_state_sizes(metadata))
    try:
        quantiles = len(config["quantiles"])
        known: dict[str, Tensor] = {
            KNOWN_FUTURE: ("tensor(float)", 3, _size(config, "known_size")),
            STATIC: ("tensor(int64)", 2, len(config["static_sizes"])),
            SERIES_LOCATION: ("tensor(float)", 2, levels),
            SERIES_SCALE: ("tensor(float)", 2, levels),
        }
        if config["decoder"] not in DECODERS:
            raise ValueError
        rank, last = (4, quantiles) if quantiles else (3, targets)
        return {
            **{name: known[name] for name in inputs[first:]},
            answer: ("tensor(float)", rank, last),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("metadata `config` or `inputs` are damaged; export it again") from error


def _state_sizes(metadata: Mapping[str, str]) -> dict[str, int]:
    """The size of each part of the state; without `cell_parts` those of an LSTM."""
    config = from_json(metadata, "config")
    parts = config.get("cell_parts") or [[part, config.get("hidden_size")] for part in "hc"]
    try:
        sizes = {str(part): {"size": size} for part, size in parts}
    except (TypeError, ValueError) as error:
        raise ModelError("metadata `config`: cell_parts is damaged; export it again") from error
    return {part: _size(size, "size") for part, size in sizes.items()}


def _size(config: Mapping[str, Any], name: str) -> int:
    size = config.get(name)
    if type(size) is not int or not 0 <= size <= LARGEST_SIZE:
        raise ModelError(
            f"metadata `config`: {name} must be a whole number up to {LARGEST_SIZE}, found {size!r}"
        )
    return size


def _fixed(shape: list[Any]) -> int | None:
    """The last size, where it is the same for every input."""
    return shape[-1] if shape and isinstance(shape[-1], int) else None


def pad(arrays: list[Floats]) -> tuple[Floats, Lengths]:
    """Arrays (time, features) as one, with zeros after each row's end, and their lengths.

    Raises:
        ModelError: no array, or arrays of other shapes.
    """
    arrays = [_array(array, "arrays") for array in _list(arrays, "arrays")]
    if len({(a.shape[1:], a.dtype.kind) for a in arrays}) != 1 or not arrays[0].ndim:
        raise ModelError("arrays must be (time, features), all alike")
    lengths = np.array([len(array) for array in arrays], np.int64)
    first = arrays[0]
    x = np.zeros((len(arrays), max(1, int(lengths.max())), *first.shape[1:]), first.dtype)
    for row, array in zip(x, arrays, strict=True):
        row[: len(array)] = array
    return x, lengths


def restored(answers: Floats, levels: npt.ArrayLike) -> Any:
    """Forecasts (series, horizon, targets(, quantiles)) with the levels of their targets added."""
    levels = np.asarray(levels, np.float64)[: answers.shape[2]]
    if not levels.any():
        return answers
    return answers + levels.reshape(-1, *[1] * (answers.ndim - 3))


def location_and_scale(history: Floats) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Mean and standard deviation of each column; a deviation of 0, or of no steps, is 1."""
    if getattr(history, "ndim", 0) != 2 or history.dtype.kind not in KINDS:
        raise ModelError("a history must be an array of numbers (time, features)")
    if not len(history):
        return np.zeros(history.shape[1]), np.ones(history.shape[1])
    mean, deviation = history.mean(0, np.float64), history.std(0, np.float64)
    return mean, np.where(deviation <= CONSTANT * np.abs(mean), 1.0, deviation)


def series_levels(histories: Sequence[Floats], levels: int) -> Inputs:
    """Location and scale of the first `levels` columns of each history, as inputs of the file."""
    arrays = [_array(history, "histories") for history in _list(histories, "histories")]
    if not arrays or any(array.ndim != 2 for array in arrays):
        raise ModelError("histories must be arrays (time, features), at least one")
    pairs = [location_and_scale(array[:, : _count(levels, "levels")]) for array in arrays]
    location, scale = (np.stack(part).astype(np.float32) for part in zip(*pairs, strict=True))
    return {SERIES_LOCATION: location, SERIES_SCALE: scale}


def finite(answers: Floats, what: str = "row", first: int = 0) -> Floats:
    """The same answers (rows, ...); `what` and `first` name the rows in the message.

    Raises:
        ModelError: one is not finite.
    """
    if (answers := _array(answers, what)).dtype.kind not in KINDS:
        raise ModelError(f"{what}: the answers must be numbers, found {answers.dtype}")
    is_finite = np.isfinite(answers).all(tuple(range(1, answers.ndim)))
    for row in np.flatnonzero(~is_finite)[:1]:
        raise ModelError(
            f"{what} {row + first}: the answer is no finite number, as its values lie too far from "
            "those of the training data; check its units, or train on such values"
        )
    return answers


def _check_lengths(lengths: npt.NDArray[Any], time: int) -> None:
    for row in np.flatnonzero((lengths < 0) | (lengths > time))[:1]:
        raise ModelError(
            f"lengths must be numbers in [0, {time}], found {lengths[row]} in row {row}"
        )


def _listing(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
