"""`last.safetensors`: all that a run goes on from, in one file that holds no code."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.errors import InputError
from lstm_compile.files import from_json, write_atomically
from lstm_compile.model.header import open_archive
from lstm_compile.model.model import Params, param_shapes, trainable
from lstm_compile.recurrence.cell import LSTMState
from lstm_compile.training.settings import TrainingConfig, parse_interval
from lstm_compile.training.state import Epoch, Progress, TrainState
from lstm_compile.training.step import AdamState

FORMAT = "lstm_compile_state"
FORMAT_VERSION = "1"
SETTLED = {"backend": "auto", "threads": 0}  # what leaves to a run what it takes, once
MEND = "it cannot be resumed from; start a new run, from weights that are left with --init"


class Saved(NamedTuple):
    """What one file holds."""

    progress: Progress  # on the CPU
    about: dict[str, Any]  # what the run is, that goes on from it


class Keeper:
    """Holds the progress of a run, and writes it down when that is due."""

    def __init__(self, write: Callable[[Progress], None], every: str, last: Progress | None):
        self.interval = parse_interval(every)
        self.progress = self._is_written = last
        self._write = write
        self._written = 0.0 if last is None else self._now(last)

    def see(self, progress: Progress) -> None:
        """Take what a step or an epoch gave."""
        self.progress = progress
        if self._now(progress) - self._written >= self.interval.amount:
            self.write()

    def write(self) -> None:
        """Write down the last progress that was seen, if that was not done; Ctrl-C waits for it."""
        progress = self.progress
        if progress is None or progress is self._is_written:
            return
        try:
            self._write(progress)
        except KeyboardInterrupt:
            self._write(progress)
            raise
        self._is_written, self._written = progress, self._now(progress)

    def _now(self, progress: Progress) -> float:
        if self.interval.unit == "steps":  # those of a refit are counted on
            return progress.state.optimizer.step + (1 << 40) * (progress.again is not None)
        if self.interval.unit == "epochs":
            return float(len(progress.epochs) + len(progress.again or ()))
        return progress.seconds / 60


def save_progress(path: Path, progress: Progress, about: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all.

    Args:
        path: the file.
        progress: on any device.
        about: what the run is, anything JSON can hold; given back as it is.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(progress)}
    texts = {"about": json.dumps(dict(about)), "progress": json.dumps(_numbers(progress))}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **texts,
        "sha256": _digest(tensors, texts),
    }
    # the weights may be the best, and safetensors refuses memory that two names share
    own = {name: value.clone() for name, value in tensors.items()}
    write_atomically(path, save(own, metadata))


def load_progress(path: Path, config: ModelConfig, training: TrainingConfig) -> Saved:
    """Read what `save_progress` wrote for a run of these settings.

    Raises:
        InputError: not a file of this kind, damaged, or of other settings; says what is wrong.
    """
    with open_archive(path, "pt", MEND) as archive:
        try:
            return _read(archive, config, training)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _read(archive: Any, config: ModelConfig, training: TrainingConfig) -> Saved:
    metadata = archive.metadata() or {}
    found = metadata.get("format"), metadata.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"format and format_version are {found}, expected {(FORMAT, FORMAT_VERSION)}; resume "
            "with the version of this package that wrote it, or start a new run"
        )
    try:
        texts = {name: metadata[name] for name in ("about", "progress")}
        # cloned: where in memory operands begin can decide how products are rounded
        tensors = {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118
        if metadata["sha256"] != _digest(tensors, texts):
            raise InputError(f"damaged: its sha256 is not the one it was written with; {MEND}")
        about, numbers = (from_json(text, name) for name, text in texts.items())
        _check_settings(about, config, training)
        _check_shapes(tensors, config, training)
        return Saved(_progress(tensors, numbers), about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"damaged: {type(error).__name__} {error}; {MEND}") from error


def _check_settings(
    about: Mapping[str, Any], config: ModelConfig, training: TrainingConfig
) -> None:
    """The settings must be those it was written with, or what follows is another training."""
    now = settings_of(config, training)
    for title, values in now.items():
        for name, value in values.items():
            if about[title].get(name) != value and SETTLED.get(name) != value:
                raise InputError(
                    f"written with {name} {about[title].get(name)!r}, config.toml and the data say "
                    f"{value!r}; put it back, or start a new run"
                )


def settings_of(config: ModelConfig, training: TrainingConfig) -> dict[str, dict[str, Any]]:
    """`config` and `training` as JSON gives them back."""
    both = {"config": config.to_dict(), "training": vars(training)}
    found: dict[str, dict[str, Any]] = json.loads(json.dumps(both))
    return found


def _check_shapes(tensors: Params, config: ModelConfig, training: TrainingConfig) -> None:
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = [n for n, shape in _expected(config, training).items() if found.get(n) != shape]
    if wrong:
        raise InputError(f"damaged: {', '.join(wrong[:4])} missing or of another shape; {MEND}")


def _expected(config: ModelConfig, training: TrainingConfig) -> dict[str, tuple[int, ...]]:
    shapes = param_shapes(config)
    kinds = ("mean", "square", "average") if training.ema else ("mean", "square")
    learned = list(trainable(dict.fromkeys(shapes, torch.empty(0)), training.freeze))
    return {
        **{f"{kind}.{name}": shapes[name] for kind in ("params", "best") for name in shapes},
        **{f"{kind}.{name}": shapes[name] for kind in kinds for name in learned},
        "order": tuple(torch.Generator().get_state().shape),
        "random.0": tuple(torch.get_rng_state().shape),
        "sums": (2,),
        "skipped": (),
    }


def _tensors(progress: Progress) -> list[tuple[str, Tensor]]:
    state = progress.state
    groups = {
        "params": state.params,
        "mean": state.optimizer.mean,
        "square": state.optimizer.square,
        "average": state.average,
        "best": progress.best,
        "carried": {} if state.carried is None else state.carried._asdict(),
        "random": {str(index): value for index, value in enumerate(state.random)},
    }
    found = [(f"{kind}.{name}", v) for kind, values in groups.items() for name, v in values.items()]
    return [*found, ("order", state.order), ("sums", state.sums), ("skipped", state.skipped)]


def _numbers(progress: Progress) -> dict[str, Any]:
    state, again = progress.state, progress.again
    return {
        "names": list(state.params),  # norms are summed in their order
        "epoch": state.epoch,
        "position": state.position,
        "step": state.optimizer.step,
        "seconds": progress.seconds,
        "epochs": [epoch._asdict() for epoch in progress.epochs],
        "again": None if again is None else [epoch._asdict() for epoch in again],
    }


def _progress(tensors: Params, numbers: Mapping[str, Any]) -> Progress:
    def group(kind: str, names: Iterable[str] = numbers["names"]) -> Params:
        whole = [(name, f"{kind}.{name}") for name in names]
        return {name: tensors[key] for name, key in whole if key in tensors}

    carried = group("carried", LSTMState._fields)
    random = group("random", map(str, range(2)))
    state = TrainState(
        group("params"),
        AdamState(int(numbers["step"]), group("mean"), group("square")),
        group("average"),
        LSTMState(**carried) if carried else None,
        int(numbers["epoch"]),
        int(numbers["position"]),
        tensors["order"],
        tuple(random.values()),
        tensors["sums"],
        tensors["skipped"],
    )
    again = numbers["again"]
    return Progress(
        state,
        group("best"),
        tuple(Epoch(**epoch) for epoch in numbers["epochs"]),
        None if again is None else tuple(Epoch(**epoch) for epoch in again),
        float(numbers["seconds"]),
    )


def _digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    found = hashlib.sha256(json.dumps(texts).encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
