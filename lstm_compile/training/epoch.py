"""The steps of one epoch: draw a batch, augment it, take the step, average the weights.

The way of a batch: `InMemory` or `Streamed` chooses its rows and brings them to the device,
`augment` changes them, `train_step` learns from them, and `StepChecks` stops a training that
diverges.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.feed import feed
from lstm_compile.data.lanes import carried, chunks, on_device, places_at, steps_of
from lstm_compile.data.stream import Stream
from lstm_compile.model.batch import Batch
from lstm_compile.model.embeddings import codes_kept
from lstm_compile.model.model import scaler_of
from lstm_compile.tasks.losses import row_weight
from lstm_compile.training.augment import augment
from lstm_compile.training.epoch_batches import InMemory, Streamed, blank_batch
from lstm_compile.training.failures import StepChecks, explain_failure, list_rows
from lstm_compile.training.processes import ALONE, ProcessGroup
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.state import TrainState, random_states
from lstm_compile.training.step import StepResult, average_update, learning_rate_at, train_step


class TrainingContext(NamedTuple):
    """What stays the same in all steps of a training."""

    config: ModelConfig
    training: TrainingConfig
    train: Examples | Stream | Corpus  # on the device of the parameters or on the CPU
    validation: Examples | Corpus | None  # the same; None: nothing is validated
    class_weights: Tensor | None  # float32 (classes,), in the loss; None: all classes alike
    row_names: Tensor | None  # int64 (len(train),), the rows in messages; None: 0, 1, ...
    note: Callable[[str], None]  # called with a line that a person should see
    processes: ProcessGroup = ALONE  # they share the rows of each batch

    @property
    def steps_per_epoch(self) -> int:
        """How many steps an epoch has."""
        return steps_per_epoch(self.train, self.training)

    def learning_rate(self, step: int, factor: float) -> float:
        """The learning rate of step 0, 1, ... of the training."""
        total = self.training.epochs * self.steps_per_epoch
        return factor * learning_rate_at(min(step, total - 1), total, self.training)


def steps_per_epoch(train: Examples | Stream | Corpus, training: TrainingConfig) -> int:
    """How many steps an epoch has."""
    if isinstance(train, Corpus):
        return steps_of(train, training.batch_size, training.unroll)
    count = min(len(train), training.epoch_size or len(train))
    return ceil(ceil(count / training.batch_size) / training.accumulate)


class StepInput(NamedTuple):
    """What one step learns from."""

    batches: list[Batch]  # on the device
    rows: Tensor | None  # int64, the rows of `train` for all processes; None for a text
    weight: float = 1.0  # of the step's loss in the mean over the epoch
    restarts: Tensor | None = None  # bool (lanes,), the lanes of a text that begin anew
    is_spare: bool = False  # this process has no rows of its own: these count nothing


def steps(context: TrainingContext, state: TrainState, factor: float = 1.0) -> Iterator[TrainState]:
    """The state after each step that is left of an epoch, and last the start of the next epoch.

    `factor` is what `plateau_factor` gives.

    Raises:
        RunError: losses or gradients are not finite, or memory does not suffice; the message names
            the batch.
    """
    generator = torch.Generator()
    generator.set_state(state.order)
    checks = StepChecks(context.training.skip_nonfinite, context.note, state.sums.device)
    inputs = _lane_inputs if isinstance(context.train, Corpus) else _row_inputs
    for given in inputs(context, state, generator):
        if not state.position:
            state = state._replace(sums=torch.zeros_like(state.sums))
        place = partial(_place, context, state.epoch, state.position, given.rows)
        state, loss, is_finite = explain_failure(
            partial(_take_step, context, state, given, factor),
            place,
            partial(_try_step, context, state),
            len(given.batches[0].lengths),
        )
        checks.add(place, loss, is_finite, state.skipped)
        yield state
    checks.read(state.skipped)
    following = generator.get_state()
    yield state._replace(epoch=state.epoch + 1, position=0, carried=None, order=following)


def _row_inputs(
    context: TrainingContext, state: TrainState, generator: Generator
) -> Iterator[StepInput]:
    """The inputs of the steps that are left of an epoch of sequences or windows."""
    training, train = context.training, context.train
    assert not isinstance(train, Corpus)
    options = training, generator, context.processes, state.sums.device
    drawn = Streamed(train, *options) if isinstance(train, Stream) else InMemory(train, *options)
    size, batches = training.accumulate, drawn.batches
    starts = range(size * state.position, len(batches), size)
    groups = [batches[start : start + size] for start in starts]
    scaler = codes_kept(scaler_of(state.params, "scaler"), context.config, 0.0)
    shares = [_own_rows(drawn, group) for group in groups]
    for fed, group, own in zip(drawn.feed(shares), groups, shares, strict=True):
        augmented = [augment(batch, scaler, training, torch.default_generator) for batch in fed]
        is_spare = own[0] is group[0] and context.processes.size > 1
        yield StepInput(augmented, torch.cat(group), is_spare=is_spare)


def _own_rows(drawn: InMemory | Streamed, group: list[Tensor]) -> list[Tensor]:
    """The rows of each batch for this process; if there are none, the whole first batch."""
    shares = [drawn.share(rows) for rows in group]
    return [share for share in shares if len(share)] or group[:1]


def _lane_inputs(context: TrainingContext, state: TrainState, _: Generator) -> Iterator[StepInput]:
    """The inputs of the steps that are left of an epoch of text."""
    assert isinstance(context.train, Corpus)
    lanes, time = context.training.batch_size, context.training.unroll
    own = context.processes.every_nth(lanes)
    for batch, restarts in chunks(context.train, lanes, time, state.position):
        weight = float(row_weight(batch.y))
        rows = Batch._make(part[own] if isinstance(part, Tensor) else part for part in batch)
        yield StepInput([on_device(rows, state.sums.device)], None, weight, restarts)


def _take_step(
    context: TrainingContext, state: TrainState, given: StepInput, factor: float
) -> tuple[TrainState, Tensor, Tensor]:
    """The state after one step; its loss, and whether loss and gradients were finite."""
    config, training, processes = context.config, context.training, context.processes
    lanes, before = processes.every_nth(training.batch_size), carried(state.carried, given.restarts)
    own = before and tuple(part[:, lanes] for part in before)
    batch, *more = given.batches
    rate = context.learning_rate(state.optimizer.step, factor)
    with torch.autograd.set_detect_anomaly(training.detect_anomaly):
        result = train_step(
            state.params, state.optimizer, batch, rate, config, training, context.class_weights,
            more, own, processes, given.is_spare,
        )  # fmt: skip
    average, is_finite = state.average, result.is_finite
    weight = torch.full((), given.weight, dtype=torch.float64, device=result.loss.device)
    weighted = torch.stack([result.loss * weight, weight])
    if training.ema:
        average = average_update(average, result.params, result.optimizer.step, training.ema)
    after = state._replace(
        params=result.params,
        optimizer=result.optimizer,
        average=average,
        carried=None if given.restarts is None else _carried_state(context, result, before),
        position=state.position + 1,
        random=random_states(state.sums.device),
        sums=state.sums + weighted.where(is_finite, 0.0),
        skipped=state.skipped + ~is_finite,
    )
    return after, result.loss, is_finite


def _carried_state(
    context: TrainingContext, result: StepResult, before: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """The state that the next chunk begins from; a skipped step leaves it as it was."""
    found = context.processes.gather_states(result.state, context.training.batch_size)
    before = before or tuple(torch.zeros_like(part) for part in found)
    pairs = zip(found, before, strict=True)
    return tuple(torch.where(result.is_finite, *pair) for pair in pairs)


def _place(
    context: TrainingContext, epoch: int, position: int, rows: Tensor | None
) -> tuple[str, str]:
    """How messages call a batch, and what is in it."""
    if isinstance(context.train, Corpus):
        lanes, time = context.training.batch_size, context.training.unroll
        places = list_rows(places_at(context.train, lanes, time, position))
        what = f"lanes at characters {places} of the training text"
    else:
        assert rows is not None
        names = rows if context.row_names is None else context.row_names[rows]
        what = f"sequences {list_rows(names)} of the training data"
    batch = f"epoch {epoch}, batch {position + 1} of {context.steps_per_epoch}"
    return batch, f"{what}, counted from 0"


def _try_step(context: TrainingContext, state: TrainState, size: int) -> None:
    """Try a step on the `size` longest rows, or on as many lanes, and drop its result."""
    config, training, train = context.config, context.training, context.train
    device = state.sums.device
    if isinstance(train, Corpus):
        batch = on_device(next(chunks(train, size, training.unroll)).batch, device)
    else:
        lengths = train.lengths.cpu()
        longest = lengths.topk(size).indices
        if isinstance(train, Stream):
            batch = on_device(blank_batch(train, longest), device)
        else:
            ((batch,),) = feed(train, lengths, [[longest]], device)
    train_step(state.params, state.optimizer, batch, 0.0, config, training, context.class_weights)
