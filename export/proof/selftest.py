"""`selftest.json`: a few inputs with their answers, by which any host can check its integration."""

import json
from itertools import accumulate
from typing import Any

import numpy as np

from lstm_compile.export import names
from lstm_compile.export.proof.engines import Array, eager_engine
from lstm_compile.export.proof.inputs import Feeding, ParityCase, random_inputs, random_stream
from lstm_compile.export.proof.parity import answer_units, rounding, tolerance
from lstm_compile.model.checkpoint import Model

PADDING = 777.0  # JSON has no NaN; far from the data, so that answers show where it was read
VALUES = 8000  # how many numbers all inputs have at most
TOLERANCE = tolerance(1)
CASES = [
    ParityCase(3, 4, "mixed"),  # lengths 4, 0 and another
    ParityCase(1, 1, "one"),
    ParityCase(2, 7, "one"),
    ParityCase(2, 9, "full"),
    ParityCase(5, 11, "mixed"),
]
STREAMED = (("steps", [1, 1, 1, 1], "zero"), ("chunks", [3, 1, 2], "random"))


def selftest(model: Model, allowed: float = TOLERANCE) -> str:
    """Inputs in the user's own units and eager PyTorch's answers to them, as one JSON object.

    `tolerance` has one number an output, in the unit of that output: `allowed` times
    `answer_units`. Models of very many features get fewer cases. The file's metadata hold the
    digest of this text.
    """
    engine, features = eager_engine(model), model.config.input_size
    totals = accumulate(case.batch * case.time * features for case in CASES)
    fitting = [case for case, total in zip(CASES, totals, strict=True) if total <= VALUES]
    inputs = [random_inputs(case, model, PADDING) for case in fitting or CASES[:1]]
    tensors = [{**given, "expected": engine(given)[0]} for given in inputs]
    cases = [{name: _shortest(value) for name, value in each.items()} for each in tensors]
    values = {
        "interface_version": names.INTERFACE_VERSION,
        "inputs": list(names.inputs_of(model.config)),
        "output": model.config.traits.output,
        "tolerance": _tolerances(model, [case["expected"] for case in cases], allowed),
        "cases": cases,
    }
    return json.dumps(values)  # where a number is not finite, the comparison fails before


def streaming_selftest(model: Model, one_step: bool) -> str:
    """The same for a streaming file: calls in order, and the state before and after them.

    Each case has the state (for an LSTM `h` and `c`) before its first call, `calls` with `x` (or
    `tokens`) and the answers `expected`, and the state (`h_next` and `c_next`) after its last call.
    Other inputs of the file stand beside the state, and are the same in every call.
    """
    cases = [
        _stream(model, Feeding(cut, [1] * sum(sizes) if one_step else sizes, state))
        for cut, sizes, state in STREAMED
    ]
    expected = [call["expected"] for case in cases for call in case["calls"]]
    values = {
        "interface_version": names.INTERFACE_VERSION,
        "inputs": list(names.streaming_inputs_of(model.config)),
        "output": model.config.traits.output,
        "state": {name: f"{name}{names.NEXT}" for name in model.config.state_parts},
        "tolerance": _tolerances(model, expected, TOLERANCE),
        "state_tolerance": TOLERANCE,
        "cases": cases,
    }
    return json.dumps(values)


def _stream(model: Model, feeding: Feeding) -> dict[str, Any]:
    engine, inputs = eager_engine(model), random_stream(model, feeding)
    first, others = next(iter(inputs)), dict(inputs)
    steps, calls = others.pop(first), []
    before = {name: _shortest(value) for name, value in others.items()}
    for end, size in zip(np.cumsum(feeding.sizes), feeding.sizes, strict=True):
        chunk = steps[:, end - size : end]
        answer, *state = engine({first: chunk, **others})
        others |= dict(zip(model.config.state_parts, state, strict=True))
        calls.append({first: _shortest(chunk), "expected": _shortest(answer)})
    after = {f"{name}{names.NEXT}": _shortest(others[name]) for name in model.config.state_parts}
    return {**before, "calls": calls, **after}


def _tolerances(model: Model, expected: list[Any], allowed: float) -> Any:
    stepwise, size = model.config.traits.per_step, model.config.output_size
    arrays = [np.array(answers, np.float64) for answers in expected]
    rows: Array = np.concatenate([a.reshape(-1, size) if stepwise else a for a in arrays])
    largest = np.abs(rows).max(0)
    reach = allowed * answer_units(model, largest[None]) + 2 * rounding(largest)
    return np.broadcast_to(reach, (1, *largest.shape))[0].tolist()


def _shortest(values: Array) -> Any:
    """Nested lists of numbers with no more digits than float32 has."""
    if values.dtype.kind == "i":
        return values.tolist()
    digits = [float(str(value)) for value in values.ravel()]
    return np.array(digits).reshape(values.shape).tolist()
