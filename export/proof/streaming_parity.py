"""`verify_streaming`: proof that a streaming file goes on where it stopped, however it is fed."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lstm_compile.devices import cpu_threads
from lstm_compile.errors import InputError
from lstm_compile.export import names
from lstm_compile.export.proof.engines import (
    CHUNK,
    EVERYWHERE,
    choose_runtimes,
    full_precision,
)
from lstm_compile.export.proof.inputs import ParityCase, draw
from lstm_compile.export.proof.isolated import Apart
from lstm_compile.export.proof.onnx_file import OnnxFile, read_onnx
from lstm_compile.export.proof.parity import (
    answer_units,
    device,
    metadata_row,
    one_line,
    rounding,
    tolerance,
    versions,
)
from lstm_compile.export.proof.parity_report import Comparison, ParityReport
from lstm_compile.export.runtime import Inputs, open_session
from lstm_compile.model.batch import Given
from lstm_compile.model.checkpoint import Model, load_model
from lstm_compile.model.model import predict_on
from lstm_compile.recurrence.cell import LSTMState
from lstm_compile.recurrence.operator import Backend

STEPS = 1000
BATCH = 3
TOLERANCE = 1e-5
EXACT = ("one step", "whole")  # cuts that are compared with the oracle
UNEVEN = (1, 2, 7, 40, 1, 130, 19)  # steps of the chunks, 200 in all, over and over
SEED = 20_240_301
RUNTIMES = ("eager", "compiled", "onnxruntime", "openvino")

Arrays = tuple[Any, ...]  # the answer, h and c after a chunk
Step = Callable[[Inputs], Arrays]  # `x`, `h`, `c` and what else the file takes


class Feeding(NamedTuple):
    """How steps are cut, and the state before the first of them."""

    cut: str
    sizes: list[int]  # steps of each call
    state: str  # "zero" or "random"

    def __str__(self) -> str:
        return f"{self.cut} {self.state}"


CUTS = {  # a single step shows the initial state, which 1,000 steps may forget
    "one step": [1],
    "whole": [STEPS],
    "steps": [1] * STEPS,
    "chunks": list(UNEVEN) * (STEPS // sum(UNEVEN)),
}


def feedings(one_step: bool) -> list[Feeding]:
    """Every way to feed; where `one_step` says so, those with single steps."""
    return [
        Feeding(cut, sizes, state)
        for state in ("zero", "random")
        for cut, sizes in CUTS.items()
        if set(sizes) == {1} or not one_step
    ]


def verify_streaming(
    model: Model | str | Path,
    path: str | Path,
    runtimes: Sequence[str] | None = None,
    everywhere: bool = False,
) -> ParityReport:
    """Compare a streaming file, and torch's own backends, with the model in float64.

    1,000 steps at once, and one alone, are compared with the oracle, within what `tolerance` gives;
    the same steps one by one and in uneven chunks with what the same runtime said of them at once,
    within 1e-5, from zero and from random states; what only `everywhere` asks is held to what
    `tolerance` gives there too. A file that takes single steps is compared with the oracle.

    Args:
        model: the model, or the path of its run folder or safetensors file.
        path: the file.
        runtimes: some of `RUNTIMES`; all that can run here if None.
        everywhere: compare every installed runtime that loads files.

    Returns:
        The largest difference of answers and states; a file of another model is a report that did
        not pass.

    Raises:
        InputError: the model or the file cannot be read, or the file is not one that streams.
    """
    model = model if isinstance(model, Model) else load_model(model)
    file = read_onnx(path)
    if names.STATE_KEY not in file.metadata:
        raise InputError(f"{path}: is no streaming file; write one with --streaming")
    among = EVERYWHERE if everywhere else RUNTIMES
    chosen, skipped = choose_runtimes(runtimes, among)
    with cpu_threads(1):
        rows = tuple(_rows(model, file, chosen))
    digest = hashlib.sha256(file.data).hexdigest()
    return ParityReport(rows, digest, versions(), device(), skipped)


def _rows(model: Model, file: OnnxFile, runtimes: Sequence[str]) -> Iterator[Comparison]:
    yield metadata_row(model, file)
    one_step = next(iter(file.interface.inputs.values()))[1][1] == 1
    cases = [(feeding, draw_stream(model, feeding)) for feeding in feedings(one_step)]
    expected = [_oracle(model, inputs) for _, inputs in cases]
    for runtime in runtimes:
        with ExitStack() as stack:
            try:
                step = stack.enter_context(_step_of(runtime, model, file))
            except Exception as error:  # a runtime's own refusal, of whatever class, is a finding
                yield Comparison(runtime, "load", TOLERANCE, float("nan"), one_line(error))
                continue
            yield from _fed(runtime, step, cases, expected, model)


def _fed(
    runtime: str,
    step: Step,
    cases: Sequence[tuple[Feeding, Inputs]],
    expected: Sequence[Arrays],
    model: Model,
) -> Iterator[Comparison]:
    whole: dict[str, Arrays] = {}  # answers to all steps at once, by the state before them
    for (feeding, inputs), values in zip(cases, expected, strict=True):
        try:
            found = _feed(step, feeding.sizes, inputs, model)
        except Exception as error:  # a runtime's own refusal, of whatever class, is a finding
            yield Comparison(runtime, str(feeding), TOLERANCE, float("nan"), one_line(error))
            continue
        same = values if feeding.cut in EXACT else whole.get(feeding.state, values)
        yield _compare(runtime, feeding, found, same, values, model)
        if feeding.cut == "whole":
            whole[feeding.state] = found


def draw_stream(model: Model, feeding: Feeding, batch: int = BATCH) -> Inputs:
    """Everything the file takes, `x` with all its steps."""
    inputs = draw(ParityCase(batch, sum(feeding.sizes), "full"), model)
    del inputs[names.LENGTHS]
    random = np.random.default_rng(SEED)
    shape = [size if isinstance(size, int) else batch for size in names.state_of(model.config)]
    drawn = random.standard_normal((2, *shape)) * (feeding.state == "random")
    return inputs | dict(zip(names.STATE, np.tanh(drawn).astype(np.float32), strict=True))


def _oracle(model: Model, inputs: Inputs) -> Arrays:
    params = {name: value.detach().cpu().double() for name, value in model.params.items()}
    return torch_step(model._replace(params=params), "reference")(inputs)


@contextmanager
def _step_of(runtime: str, model: Model, file: OnnxFile) -> Iterator[Step]:
    if runtime == "onnxruntime":
        session = open_session(file.data)
        yield lambda inputs: tuple(session.run(None, inputs))
    elif runtime in EVERYWHERE:
        outputs = (model.config.traits.output, *names.NEXT_STATE)
        with closing(Apart(runtime, file.data, list(file.interface.inputs), outputs)) as apart:
            yield lambda inputs: tuple(apart(inputs))
    else:
        yield torch_step(model, "compiled" if runtime == "compiled" else "vendor")


def torch_step(model: Model, backend: Backend) -> Step:
    """How torch answers a chunk: the answer, h and c after it."""
    some = next(iter(model.params.values()))

    def step(inputs: Inputs) -> Arrays:
        found = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in inputs.items()}
        found = {n: v.to(some) if v.is_floating_point() else v for n, v in found.items()}
        x, h, c = (found.pop(name) for name in (next(iter(inputs)), *names.STATE))
        with torch.no_grad(), full_precision():
            answer, state = predict_on(
                model.params, model.config, x, None, LSTMState(h, c),
                given=Given(**found), backend=backend, chunk=CHUNK,
            )  # fmt: skip
        return tuple(value.cpu().numpy() for value in (answer, *state))

    return step


def _compare(
    runtime: str, feeding: Feeding, found: Arrays, expected: Arrays, exact: Arrays, model: Model
) -> Comparison:
    # tanh and sigmoid of a runtime that only --runtimes asks may be approximations
    is_close = expected is not exact and runtime in RUNTIMES
    allowed = TOLERANCE if is_close else tolerance(sum(feeding.sizes))
    units = (answer_units(model, exact[0]), 1.0, 1.0)
    difference = max(
        float((np.maximum(np.abs(one - other) - rounding(other), 0.0) / unit).max())
        for one, other, unit in zip(found, expected, units, strict=True)
    )
    return Comparison(runtime, str(feeding), allowed, difference)


def _feed(step: Step, sizes: Sequence[int], inputs: Inputs, model: Model) -> Arrays:
    """The last answer, or those of all steps, and the last state."""
    first, start, answers = next(iter(inputs)), 0, []
    now = dict(inputs)
    for size in sizes:
        now[first] = inputs[first][:, start : start + size]
        answer, now["h"], now["c"] = step(now)
        answers.append(answer)
        start += size
    whole = np.concatenate(answers, 1) if model.config.traits.per_step else answers[-1]
    return whole, now["h"], now["c"]
