"""Interleaved timing: on a busy machine, ratios of times hold where times do not."""

import gc
import random
import time
from collections.abc import Callable, Mapping
from itertools import chain
from statistics import median
from typing import NamedTuple

import numpy as np

from lstm_compile.bench.problem import Step

BLOCK = 0.01  # seconds that one turn takes at least, unless MOST_CALLS are done
MOST_CALLS = 20
FEWEST, SLOWEST_FEWEST = 5, 2  # rounds, whatever they cost
SLOW = 8.0  # times the fastest


class Timing(NamedTuple):
    """Seconds of each call."""

    first: float  # of the first call, with all compiling, loading and calibrating
    rounds: list[list[float]]

    @property
    def median(self) -> float:
        """Of all calls but the first."""
        return median(chain.from_iterable(self.rounds))

    @property
    def p95(self) -> float:
        """The 95th percentile of the same."""
        return float(np.quantile([*chain.from_iterable(self.rounds)], 0.95))

    @property
    def compiling(self) -> float:
        """Seconds that the first call took longer than later ones."""
        return max(0.0, self.first - self.median)

    def ratio(self, rival: "Timing") -> float:
        """The own time over the `rival`'s: the median over the rounds in which both ran."""
        pairs = zip(self.rounds, rival.rounds, strict=False)
        return median(median(mine) / median(its) for mine, its in pairs)


def interleave(
    steps: Mapping[str, Step],
    repeats: int,
    seconds: float,
    seed: int,
    synchronize: Callable[[], object] = lambda: None,
    after_first: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time the steps in rounds, each round in a random order.

    There are at most `repeats` rounds, in about so many `seconds` for all steps; in any case each
    step runs in at least 5 rounds, or in 2 if it is much slower than the fastest. `synchronize`
    waits for the device, as a part of every call. `after_first` is called when every step has run
    once, and compiled what it compiles.
    """

    def clock(step: Step) -> float:
        began = time.perf_counter()
        step()
        synchronize()
        return time.perf_counter() - began

    def estimate(step: Step) -> float:
        once = clock(step)
        return once if once > BLOCK else min(once, clock(step), clock(step))

    timings = {name: Timing(clock(step), []) for name, step in steps.items()}
    after_first()
    plans = _plans({name: estimate(step) for name, step in steps.items()}, repeats, seconds)
    order = random.Random(seed)
    gc.collect()
    for number in range(max(rounds for rounds, _ in plans.values())):
        names = [name for name, (rounds, _) in plans.items() if number < rounds]
        order.shuffle(names)
        for name in names:
            timings[name].rounds.append([clock(steps[name]) for _ in range(plans[name][1])])
    return timings


def _plans(
    estimates: Mapping[str, float], repeats: int, seconds: float
) -> dict[str, tuple[int, int]]:
    """In how many rounds each step runs, and how often in each of them."""
    share, fastest = seconds / len(estimates), min(estimates.values())
    plans = {}
    for name, estimate in estimates.items():
        calls = min(MOST_CALLS, max(1, round(BLOCK / estimate)))
        fewest = SLOWEST_FEWEST if estimate > SLOW * fastest else FEWEST
        rounds = max(fewest, int(share / (calls * estimate)))
        plans[name] = min(repeats, rounds), calls
    return plans
