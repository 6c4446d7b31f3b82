"""What a step of a stream costs beside ONNX Runtime alone; writes benchmarks/streaming.json.

python benchmarks/streaming.py

One layer of 64, batch 1, one step a call, and 1,000 streams in one call. Rounds take turns, and a
figure is the median over the rounds of each round's median, so that others may use the machine too.
"""

import json
import platform
import statistics
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime

from lstm_compile import ModelConfig, init_params
from lstm_compile.export.runtime import Streams, open_streams
from lstm_compile.export.write.streaming import to_streaming
from lstm_compile.model.checkpoint import Model, numbered_schema

FEATURES, HIDDEN, STREAMS = 16, 64, 1000
ROUNDS, CALLS = 15, 500


def streams_of(cells: str) -> Streams:
    """A classifier of untrained weights as a streaming file, opened."""
    config = ModelConfig(
        task="classify", input_size=FEATURES, output_size=4, hidden_size=HIDDEN, num_layers=1,
        bidirectional=False, pooling="last",
    )  # fmt: skip
    model = Model(init_params(config, 0), config, numbered_schema(config), {})
    return open_streams(to_streaming(model, cells).SerializeToString())


def microseconds(call: Callable[[], object], calls: int) -> float:
    """The median of one call."""
    times = []
    for _ in range(calls):
        began = perf_counter()
        call()
        times.append(perf_counter() - began)
    return 1e6 * statistics.median(times)


def measure(cells: str) -> dict[str, float]:
    """All figures of one kind of cells, in microseconds, and the ratio of the throughputs."""
    streams, names = streams_of(cells), list(range(STREAMS))
    x = np.random.default_rng(0).standard_normal((STREAMS, 1, FEATURES)).astype(np.float32)
    state = np.zeros((1, 1, HIDDEN), np.float32)
    inputs = {"x": x[:1], "h": state, "c": state}

    turns = cycle(names)

    def push_the_next() -> None:
        name = next(turns)
        streams.push([name], x[name : name + 1])

    calls: dict[str, tuple[Callable[[], object], int]] = {
        "bare call": (lambda: streams.session.run(None, inputs), CALLS),
        "push of one stream": (lambda: streams.push(["one"], x[:1]), CALLS),
        "push of each of 1000": (push_the_next, STREAMS),
        "push of 1000 streams": (lambda: streams.push(names, x), 20),
    }
    rounds = [{name: microseconds(*call) for name, call in calls.items()} for _ in range(ROUNDS)]
    found = {name: statistics.median(each[name] for each in rounds) for name in calls}
    over = [each["push of one stream"] - each["bare call"] for each in rounds]
    ratios = [
        STREAMS * each["push of each of 1000"] / each["push of 1000 streams"] for each in rounds
    ]
    return {
        **{name: round(value, 1) for name, value in found.items()},
        "over the bare call": round(statistics.median(over), 1),
        "times the throughput": round(statistics.median(ratios), 1),
    }


def main() -> None:
    """Print the figures and write benchmarks/streaming.json."""
    results: dict[str, object] = {cells: measure(cells) for cells in ("node", "plain")}
    results["onnxruntime"], results["machine"] = onnxruntime.__version__, platform.machine()
    print(json.dumps(results, indent=1))
    path = Path(__file__).with_name("streaming.json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
