"""From logits to the next token: one sampler for every engine, in NumPy and float64."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_compile.errors import InputError


class Sampling(NamedTuple):
    """How a token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the most probable token.
        top_k: only so many of the most probable tokens; 0 is all.
        top_p: only the most probable tokens that together reach this probability.
        seed: of the random numbers.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Refuse what nothing can be drawn with.

        Raises:
            InputError: names the value.
        """
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be a number from 0 on, got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")


def draw_token(logits: NDArray[np.float32], uniform: float, how: Sampling) -> int:
    """The token at `uniform`, 0 to 1, of the distribution that `how` makes of logits (tokens,).

    Source: nucleus sampling, Holtzman et al. 2020, section 3.1.
    """
    exact = logits.astype(np.float64)
    if how.temperature == 0:
        return int(exact.argmax())
    order = np.argsort(-exact, kind="stable")[: how.top_k or None]
    scores = (exact[order] - exact.max()) / how.temperature
    shares = np.exp(scores) / np.exp(scores).sum()
    before = shares.cumsum() - shares
    shares = np.where(before < how.top_p, shares, 0.0)
    sums = shares.cumsum()
    return int(order[min(np.searchsorted(sums, uniform * sums[-1], "right"), len(order) - 1)])
