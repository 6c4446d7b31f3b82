"""The steps of an epoch: batches drawn, augmented, stepped on, the weights averaged."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.feed import feed
from lstm_compile.data.lanes import carried, chunks, on_device, places_at, steps_of
from lstm_compile.data.stream import Stream
from lstm_compile.model.batch import Batch
from lstm_compile.model.model import Params, scaler_of
from lstm_compile.recurrence.cell import LSTMState
from lstm_compile.tasks.losses import balanced_weights, row_weight
from lstm_compile.training.augment import augment
from lstm_compile.training.epoch_batches import Pass, pass_in_memory
from lstm_compile.training.failures import Taken, attempted, halves, listed, look_at
from lstm_compile.training.processes import ALONE, Team
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.state import TrainState, global_random
from lstm_compile.training.step import (
    StepResult,
    average_update,
    learning_rate_at,
    train_step,
)
from lstm_compile.training.streamed_batches import Streamed, blank

UNREAD = {"cpu": 1, "cuda": 32}  # steps after which a device is asked whether all was finite


class Course(NamedTuple):
    """What no step changes.

    Attributes:
        config: the architecture.
        training: how to train.
        train: on the device of the parameters or on the CPU.
        weights: of the classes in the loss; None: all alike.
        rows: int64 (len(train),), what messages call the rows of `train`; None: 0, 1, ...
        note: called with what a person should know.
        team: who takes the rows of a batch.
    """

    config: ModelConfig
    training: TrainingConfig
    train: Examples | Stream | Corpus
    weights: Tensor | None
    rows: Tensor | None
    note: Callable[[str], None]
    team: Team = ALONE

    @property
    def steps(self) -> int:
        """Of an epoch; of text, where documents are long."""
        if isinstance(self.train, Corpus):
            return steps_of(self.train, self.training.batch_size, self.training.unroll)
        count = min(len(self.train), self.training.epoch_size or len(self.train))
        return ceil(ceil(count / self.training.batch_size) / self.training.accumulate)

    def rate_of(self, step: int, factor: float) -> float:
        """The learning rate of step 0, 1, ..."""
        total = self.training.epochs * self.steps
        return factor * learning_rate_at(min(step, total - 1), total, self.training)


class Feed(NamedTuple):
    """What one step takes.

    Attributes:
        batches: on the device.
        places: int64, the rows of `train`; None of a text.
        weight: of the step's loss in the mean of an epoch.
        fresh: bool (lanes,), of a text, the lanes that begin anew, those of other processes too.
        is_spare: whether other processes take all rows, and these are for their shape alone.
    """

    batches: list[Batch]
    places: Tensor | None
    weight: float = 1.0
    fresh: Tensor | None = None
    is_spare: bool = False


def steps(course: Course, state: TrainState, factor: float = 1.0) -> Iterator[TrainState]:
    """The state after each step that is left of an epoch, and last the start of the next.

    Args:
        course: what is trained on, and how.
        state: where to go on.
        factor: on the learning rate, what `plateau_factor` gives.

    Raises:
        RunError: losses or gradients that are not finite, or memory that does not suffice; the
            message names the batch.
    """
    generator, unread = torch.Generator(), list[Taken]()
    generator.set_state(state.order)
    look = partial(look_at, unread, allowed=course.training.skip_nonfinite, note=course.note)
    feeds = _lanes if isinstance(course.train, Corpus) else _rows
    for given in feeds(course, state, generator):
        begun = state if state.position else state._replace(sums=torch.zeros_like(state.sums))
        where = partial(_where, course, state.epoch, state.position, given.places)
        state, loss, is_finite = attempted(
            partial(_advanced, course, begun, given, factor),
            where,
            partial(_tried, course, state),
            halves(len(given.batches[0].lengths)),
        )
        unread.append(Taken(where, loss, is_finite))
        if len(unread) == UNREAD[state.sums.device.type]:
            look(state.skipped)
        yield state
    look(state.skipped)
    following = generator.get_state()
    yield state._replace(epoch=state.epoch + 1, position=0, carried=None, order=following)


def _where(course: Course, epoch: int, position: int, places: Tensor | None) -> tuple[str, str]:
    """The batch at a position, and what is in it, as a person reads them."""
    if isinstance(course.train, Corpus):
        lanes, time = course.training.batch_size, course.training.unroll
        stands = listed(places_at(course.train, lanes, time, position))
        what = f"lanes at characters {stands} of the training text"
    else:
        assert places is not None
        names = places if course.rows is None else course.rows[places]
        what = f"sequences {listed(names)} of the training data"
    return f"epoch {epoch}, batch {position + 1} of {course.steps}", f"{what}, counted from 0"


def _tried(course: Course, state: TrainState, size: int) -> None:
    """A step on the `size` longest rows, or on as many lanes; nothing comes of it."""
    config, training, train = course.config, course.training, course.train
    device = state.sums.device
    if isinstance(train, Corpus):
        batch = on_device(next(chunks(train, size, training.unroll)).batch, device)
    else:
        lengths = train.lengths.cpu()
        longest = lengths.topk(size).indices
        if isinstance(train, Stream):
            batch = on_device(blank(train, longest), device)
        else:
            ((batch,),) = feed(train, lengths, [[longest]], device)
    train_step(state.params, state.optimizer, batch, 0.0, config, training, course.weights)


def _rows(course: Course, state: TrainState, generator: torch.Generator) -> Iterator[Feed]:
    training, whole = course.training, _pass_of(course, generator, state.sums.device)
    groups = _groups(whole.batches, training)[state.position :]
    scaler = scaler_of(state.params, "scaler")
    own = [_own(whole, group) for group in groups]
    for batches, indices, mine in zip(whole.feed(own), groups, own, strict=True):
        drawn = [augment(each, scaler, training, torch.default_generator) for each in batches]
        is_spare = mine[0] is indices[0] and course.team.size > 1
        yield Feed(drawn, torch.cat(indices), is_spare=is_spare)


def _pass_of(course: Course, generator: torch.Generator, device: torch.device) -> Pass:
    assert not isinstance(course.train, Corpus)
    if isinstance(course.train, Stream):
        return Streamed(course.train, course.training, generator, course.team, device)
    return pass_in_memory(course.train, course.training, generator, course.team, device)


def _own(whole: Pass, group: list[Tensor]) -> list[Tensor]:
    """What this process takes of each batch; the first one as it is, where that is nothing."""
    shares = [whole.share(indices) for indices in group]
    return [share for share in shares if len(share)] or group[:1]


def _lanes(course: Course, state: TrainState, _: torch.Generator) -> Iterator[Feed]:
    assert isinstance(course.train, Corpus)
    lanes, time = course.training.batch_size, course.training.unroll
    own = course.team.lanes(lanes)
    for batch, fresh in chunks(course.train, lanes, time, state.position):
        weight = float(row_weight(batch.y))
        rows = Batch._make(part[own] if isinstance(part, Tensor) else part for part in batch)
        yield Feed([on_device(rows, state.sums.device)], None, weight, fresh)


def _advanced(
    course: Course, state: TrainState, given: Feed, factor: float
) -> tuple[TrainState, Tensor, Tensor]:
    """The state after one step; its loss, and whether that and the gradients were finite."""
    config, training = course.config, course.training
    lanes, before = course.team.lanes(training.batch_size), carried(state.carried, given.fresh)
    own = before and LSTMState(*(part[:, lanes] for part in before))
    batch, *more = given.batches
    rate = course.rate_of(state.optimizer.step, factor)
    with torch.autograd.set_detect_anomaly(training.detect_anomaly):
        result = train_step(
            state.params, state.optimizer, batch, rate, config, training, course.weights, more,
            own, course.team, given.is_spare,
        )  # fmt: skip
    average, is_finite = state.average, result.is_finite
    if training.ema:
        average = average_update(average, result.params, result.optimizer.step, training.ema)
    after = TrainState(
        result.params,
        result.optimizer,
        average,
        None if given.fresh is None else _kept(course, result, before),
        state.epoch,
        state.position + 1,
        state.order,
        global_random(state.sums.device),
        state.sums + _weighed(result.loss, given.weight).where(is_finite, 0.0),
        state.skipped + ~is_finite,
    )
    return after, result.loss, is_finite


def _weighed(loss: Tensor, weight: float) -> Tensor:
    """Loss and weight, float64 (2,)."""
    factor = torch.full((), weight, dtype=torch.float64, device=loss.device)
    return torch.stack([loss * factor, factor])


def _kept(course: Course, result: StepResult, before: LSTMState | None) -> LSTMState:
    """What the next chunk begins from; after a step that was skipped, what that began from."""
    is_finite = result.is_finite
    found = course.team.whole_state(result.state, course.training.batch_size)
    before = before or LSTMState(*(torch.zeros_like(part) for part in found))
    return LSTMState(*(torch.where(is_finite, *pair) for pair in zip(found, before, strict=True)))


def _groups(batches: list[Tensor], training: TrainingConfig) -> list[list[Tensor]]:
    """The batches of each step."""
    size = training.accumulate
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def class_weights_of(
    params: Params, config: ModelConfig, training: TrainingConfig, train: Examples | Stream | Corpus
) -> Tensor | None:
    """Weights of the classes in the loss, from the data that are trained on; None: all alike."""
    if training.class_weight == "none" or isinstance(train, Corpus):
        return None
    return balanced_weights(train.y, config.output_size).to(params["head.bias"].device)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The global generators seeded, and after it as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would seed every CUDA device, those that fork_rng leaves alone as well
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
