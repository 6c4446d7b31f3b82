"""`last.safetensors`: the whole state that a run resumes from, in one file without code."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.errors import InputError
from lstm_compile.files import from_json, write_atomically
from lstm_compile.formatting import counted
from lstm_compile.model.header import open_archive
from lstm_compile.model.model import Params, param_shapes, trainable
from lstm_compile.training.settings import EXTENDABLE, TrainingConfig, parse_interval
from lstm_compile.training.state import Epoch, Progress, TrainState
from lstm_compile.training.step import AdamState

FORMAT = "lstm_compile_state"
FORMAT_VERSION = "1"
LSTM_PARTS = ("h", "c")
CHOSEN_BY_RUN = {"backend": "auto", "threads": 0}  # these values leave the choice to the run
REMEDY = (
    "it cannot be resumed from; start a new run; --init takes the weights that can still be read"
)


class SavedRun(NamedTuple):
    """The content of one file."""

    progress: Progress  # on the CPU
    run_info: dict[str, Any]  # what the run was, see `run_files.run_info`


def is_extended(saved: SavedRun, training: TrainingConfig) -> bool:
    """Whether a run goes on with another end than it was saved with."""
    before = saved.run_info["training"]
    return any(before[name] != getattr(training, name) for name in EXTENDABLE)


def check_extension(saved: SavedRun, training: TrainingConfig) -> None:
    """Refuse an end that has passed already.

    Raises:
        InputError: no epoch would follow, or the run has been refitted.
    """
    epochs, best = saved.progress.epochs, saved.progress.best_epoch
    if saved.progress.refit_epochs is not None:
        raise InputError(
            "the refit has begun, and its weights have seen the validation data; start another run "
            "with more --epochs"
        )
    if len(epochs) >= training.epochs:
        raise InputError(
            f"has {counted(len(epochs), 'epochs')} already; give --epochs a larger number"
        )
    waited = len(epochs) - (best.epoch if best else 0)
    if waited >= training.patience:
        raise InputError(
            f"no better validation loss for {counted(waited, 'epochs')}, and patience is "
            f"{training.patience}; raise --patience too"
        )


class ProgressSaver:
    """Holds the latest progress of a run, and saves it as often as `every`, `save_every`, says.

    `last` is the progress that a resumed run begins with, which is saved already.
    """

    def __init__(self, write: Callable[[Progress], None], every: str, last: Progress | None):
        self.interval = parse_interval(every)
        self.progress = self._saved = last
        self._write = write
        self._saved_at = 0.0 if last is None else self._time_of(last)

    def update(self, progress: Progress) -> None:
        """Take the progress after a step or an epoch, and save it if that is due."""
        self.progress = progress
        if self._time_of(progress) - self._saved_at >= self.interval.amount:
            self.save()

    def save(self) -> None:
        """Save the latest progress unless that was done; Ctrl-C waits for the end of it."""
        progress = self.progress
        if progress is None or progress is self._saved:
            return
        try:
            self._write(progress)
        except KeyboardInterrupt:
            self._write(progress)
            raise
        self._saved, self._saved_at = progress, self._time_of(progress)

    def _time_of(self, progress: Progress) -> float:
        if self.interval.unit == "steps":  # those of a refit come after those of the fit
            return progress.state.optimizer.step + (1 << 40) * (progress.refit_epochs is not None)
        if self.interval.unit == "epochs":
            return float(len(progress.epochs) + len(progress.refit_epochs or ()))
        return progress.seconds / 60


def save_progress(path: Path, progress: Progress, run_info: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all; `run_info` is what `run_files.run_info` gives.

    Raises:
        InputError: the file cannot be written.
    """
    parts = dict(run_info["config"].get("cell_parts", ())) or LSTM_PARTS
    found = _tensors(progress, parts)
    tensors = {name: value.detach().cpu().contiguous() for name, value in found}
    texts = {"about": json.dumps(dict(run_info)), "progress": json.dumps(_numbers(progress))}
    kind = {"format": FORMAT, "format_version": FORMAT_VERSION}
    metadata = {**kind, **texts, "sha256": _digest(tensors, texts)}
    # the last weights may be the best ones, and safetensors refuses memory with two names
    own = {name: value.clone() for name, value in tensors.items()}
    write_atomically(path, save(own, metadata))


def load_progress(
    path: Path, config: ModelConfig, training: TrainingConfig, free: Collection[str] = ()
) -> SavedRun:
    """Read what `save_progress` wrote, for a run with these settings; those in `free` may differ.

    Raises:
        InputError: another kind of file, a damaged one, or one with other settings.
    """
    with open_archive(path, "pt", REMEDY) as archive:
        return _read(archive, config, training, free)


def _read(
    archive: Any, config: ModelConfig, training: TrainingConfig, free: Collection[str]
) -> SavedRun:
    metadata = archive.metadata() or {}
    found = metadata.get("format"), metadata.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"format and format_version are {found}, expected {(FORMAT, FORMAT_VERSION)}; resume "
            "with the version of this package that wrote it, or start a new run"
        )
    try:
        texts = {name: metadata[name] for name in ("about", "progress")}
        # cloned: the address of operands can change how products are rounded
        tensors = {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118
        if metadata["sha256"] != _digest(tensors, texts):
            raise InputError(f"damaged: its sha256 is not the one it was written with; {REMEDY}")
        run_info, numbers = (from_json(text, name) for name, text in texts.items())
        _check_settings(run_info, config, training, free)
        _check_shapes(tensors, config, training)
        return SavedRun(_progress(tensors, numbers, config), run_info)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"damaged: {type(error).__name__} {error}; {REMEDY}") from error


def _check_settings(
    run_info: Mapping[str, Any],
    config: ModelConfig,
    training: TrainingConfig,
    free: Collection[str],
) -> None:
    """Refuse settings that differ from those of the file: they would make another training."""
    now = settings_of(config, training)
    _check_cell(run_info["config"], now["config"])
    for title, values in now.items():
        for name, value in values.items():
            before = run_info[title].get(name)
            if before != value and CHOSEN_BY_RUN.get(name) != value and name not in free:
                raise InputError(
                    f"written with {name} {before!r}, config.toml and the data say {value!r}; "
                    "put it back, or start a new run"
                )


def _check_cell(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = [values.get("cell", "lstm") for values in (before, now)]
    texts = [values.get("cell_sha256", "") for values in (before, now)]
    if names[0] != names[1]:
        raise InputError(
            f"written with cell {names[0]!r}, found {names[1]!r}; resume with the same --cell, or "
            "start a new run"
        )
    if texts[0] != texts[1]:
        raise InputError(
            f"the file of cell {names[0]!r} has another text now (sha256 {texts[1][:12]}..., then "
            f"{texts[0][:12]}...); resume with --cell and the same file, or start a new run"
        )


def settings_of(config: ModelConfig, training: TrainingConfig) -> dict[str, dict[str, Any]]:
    """`config` and `training` as they are after a way through JSON."""
    both = {"config": config.to_dict(), "training": vars(training)}
    found: dict[str, dict[str, Any]] = json.loads(json.dumps(both))
    return found


def _check_shapes(tensors: Params, config: ModelConfig, training: TrainingConfig) -> None:
    shapes = param_shapes(config)
    kinds = ("mean", "square", "average") if training.ema else ("mean", "square")
    learned = list(trainable(dict.fromkeys(shapes, torch.empty(0, device="cpu")), training.freeze))
    expected = {
        **{f"{kind}.{name}": shapes[name] for kind in ("params", "best") for name in shapes},
        **{f"{kind}.{name}": shapes[name] for kind in kinds for name in learned},
        "order": tuple(torch.Generator().get_state().shape),
        "random.0": tuple(torch.get_rng_state().shape),
        "sums": (2,),
        "skipped": (),
    }
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wrong := [name for name, shape in expected.items() if found.get(name) != shape]:
        raise InputError(f"damaged: {', '.join(wrong[:4])} missing or of another shape; {REMEDY}")


def _tensors(progress: Progress, parts: Iterable[str]) -> list[tuple[str, Tensor]]:
    state = progress.state
    groups = {
        "params": state.params,
        "mean": state.optimizer.mean,
        "square": state.optimizer.square,
        "average": state.average,
        "best": progress.best,
        "carried": dict(zip(parts, state.carried or (), strict=bool(state.carried))),
        "random": {str(index): value for index, value in enumerate(state.random)},
    }
    found = [(f"{kind}.{name}", v) for kind, values in groups.items() for name, v in values.items()]
    return [*found, ("order", state.order), ("sums", state.sums), ("skipped", state.skipped)]


def _numbers(progress: Progress) -> dict[str, Any]:
    state, refit = progress.state, progress.refit_epochs
    return {
        "names": list(state.params),  # their order is that in which norms are summed
        "epoch": state.epoch,
        "position": state.position,
        "step": state.optimizer.step,
        "seconds": progress.seconds,
        "epochs": [epoch._asdict() for epoch in progress.epochs],
        "again": None if refit is None else [epoch._asdict() for epoch in refit],
    }


def _progress(tensors: Params, numbers: Mapping[str, Any], config: ModelConfig) -> Progress:
    def group(kind: str, names: Iterable[str] = numbers["names"]) -> Params:
        whole = [(name, f"{kind}.{name}") for name in names]
        return {name: tensors[key] for name, key in whole if key in tensors}

    carried = group("carried", config.state_parts)
    random = group("random", map(str, range(2)))
    state = TrainState(
        group("params"),
        AdamState(int(numbers["step"]), group("mean"), group("square")),
        group("average"),
        tuple(carried.values()) or None,
        int(numbers["epoch"]),
        int(numbers["position"]),
        tensors["order"],
        tuple(random.values()),
        tensors["sums"],
        tensors["skipped"],
    )
    refit = numbers["again"]
    return Progress(
        state,
        group("best"),
        tuple(Epoch(**epoch) for epoch in numbers["epochs"]),
        None if refit is None else tuple(Epoch(**epoch) for epoch in refit),
        float(numbers["seconds"]),
    )


def _digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    found = hashlib.sha256(json.dumps(texts).encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
