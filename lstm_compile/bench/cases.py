"""What is measured, and how: sizes, lengths, precision, rounds. Loads no torch."""

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from lstm_compile.config import option, validate
from lstm_compile.errors import InputError

Mode = Literal["inference", "training"]
Precision = Literal["fp32", "tf32", "bf16"]

MODES: tuple[Mode, ...] = get_args(Mode)
SIZES = (  # batch, time, input, hidden
    (1, 64, 16, 64),
    (32, 32, 10, 64),
    (32, 64, 32, 128),
    (64, 128, 64, 256),
    (128, 512, 64, 128),
)
WIDE = ((64, 128, 64, 512), (64, 128, 64, 1024))  # on CUDA, where they fit
LARGEST = 1 << 20
LARGEST_SEED = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """One stack and one batch; each field with a help text is a flag of `bench`.

    Raises:
        InputError: a value is of the wrong type or out of range.
    """

    batch: int = option(32, "Sequences of an own case.", 1, LARGEST)
    time: int = option(64, "Steps that its batch is padded to.", 1, LARGEST)
    input: int = option(32, "Its features a step.", 1, LARGEST)
    hidden: int = option(128, "Its width of one layer's state.", 1, LARGEST)
    layers: int = option(1, "Its stacked layers.", 1, 64)
    bidirectional: bool = option(False, "Whether it reads in both directions.")
    # the rival is nn.GRU for `gru`, nn.LSTM for all others
    cell: str = option("lstm", "Its cell: a name, or FILE.py:NAME for one of your own.")
    # `uniform` is 1 to time, the longest row made full
    lengths: str = option("uniform", "Its lengths: uniform, full, or a file with one a line.")
    # `fp32` (TF32 off), `tf32` (CUDA) or `bf16` (autocast; weights stay in fp32)
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        validate(self)

    @property
    def name(self) -> str:
        """All of it in one short line, `B32 T64 D32 H128 L1 forward uniform fp32`."""
        direction = "both" if self.bidirectional else "forward"
        sizes = f"B{self.batch} T{self.time} D{self.input} H{self.hidden} L{self.layers}"
        cell = "" if self.cell == "lstm" else f"{self.cell} "
        return f"{cell}{sizes} {direction} {Path(self.lengths).name} {self.precision}"

    @property
    def recurrent_steps(self) -> int:
        """Steps that run one after the other, over all layers and directions."""
        return self.time * self.layers * (2 if self.bidirectional else 1)


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


def grid(
    device_type: str, *, quick: bool = False, precision: Precision | None = None
) -> list[Case]:
    """The cases that are measured unless one is asked for, of all precisions or of one.

    On `cuda` there are wider layers and every precision. `quick` is a subset of about a minute.
    """
    if quick:
        return [Case(lengths=each, precision=precision or "fp32") for each in ("uniform", "full")]
    on_cuda = device_type == "cuda"
    default: tuple[Precision, ...] = get_args(Precision) if on_cuda else ("fp32",)
    precisions = (precision,) if precision else default
    sizes = (*SIZES, *WIDE) if on_cuda else SIZES
    kinds = product(sizes, (1, 2), (False, True), ("full", "uniform"), precisions)
    return [
        Case(
            batch=batch, time=time, input=width, hidden=hidden, layers=layers,
            bidirectional=bidirectional, lengths=lengths, precision=kind,
        )
        for (batch, time, width, hidden), layers, bidirectional, lengths, kind in kinds
    ]  # fmt: skip


def own_case(case: Case, fixed: Collection[str]) -> Case:
    """`case` with batch and time as its file of lengths has them, but for the `fixed` ones.

    Raises:
        InputError: the file cannot be read, or holds no lengths.
    """
    if case.lengths in ("full", "uniform"):
        return case
    lengths = read_lengths(case.lengths)
    batch = case.batch if "batch" in fixed else len(lengths)
    return replace(case, batch=batch, time=case.time if "time" in fixed else max(lengths))


def lengths_of(case: Case, seed: int) -> list[int]:
    """The length of each row.

    The longest of `uniform` is `time`, as batches are trimmed to their longest row. A file with one
    length for each row is taken in its order; else the rows' lengths are drawn from it.

    Raises:
        InputError: the case's file cannot be read, or a length in it is beyond `time`.
    """
    draw = random.Random(seed)
    if case.lengths == "full":
        return [case.time] * case.batch
    if case.lengths == "uniform":
        drawn = [draw.randint(1, case.time) for _ in range(case.batch)]
        drawn[drawn.index(max(drawn))] = case.time
        return drawn
    lengths = read_lengths(case.lengths)
    if max(lengths) > case.time:
        raise InputError(
            f"{case.lengths}: the longest length is {max(lengths)}, beyond --time {case.time}; "
            "give a larger --time"
        )
    return lengths if len(lengths) == case.batch else draw.choices(lengths, k=case.batch)


def read_lengths(path: str) -> list[int]:
    """The lengths in a text file, one whole number a line; blank lines are skipped.

    Raises:
        InputError: not a readable file, a line that is no whole number from 1, or no line.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"lengths must be uniform, full or a file with one length a line; {path!r} cannot be "
            f"read ({getattr(error, 'strerror', None) or 'not text'})"
        ) from error
    lengths = [_length(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not lengths:
        raise InputError(f"{path}: no lengths; expected one whole number a line")
    return lengths


def _length(path: str, number: int, line: str) -> int:
    text = line.strip()
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= LARGEST:
        raise InputError(
            f"{path}, line {number}: expected a whole number from 1 to {LARGEST}, found {text!r}"
        )
    return int(text)
