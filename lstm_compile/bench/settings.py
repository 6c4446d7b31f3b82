"""How to measure. Loads no torch."""

from dataclasses import dataclass
from typing import Literal

from lstm_compile.bench.cases import MODES, Mode
from lstm_compile.config import option, validate

LARGEST_SEED = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Everything about a measurement that is not a case; each field is a flag of `bench`.

    Raises:
        InputError: a value is of the wrong type or out of range.
    """

    mode: Literal["both", "inference", "training"] = option("both", "What to measure.")
    repeats: int = option(30, "Most rounds, each in a random order of the backends.", 1, 100_000)
    seconds: float = option(8.0, "To spend on one case and mode, about.", 0.0, 1e6)
    memory: bool = option(False, "Measure peak memory too, each step in a process of its own.")
    device: str = option("auto", "cpu, cuda, cuda:N, or auto.")
    threads: int = option(0, "CPU threads; 0 takes as many as torch does.", 0, 1024)
    seed: int = option(0, "Seed of weights, batch, lengths and order.", 0, LARGEST_SEED)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes to measure."""
        return tuple(mode for mode in MODES if self.mode in ("both", mode))
