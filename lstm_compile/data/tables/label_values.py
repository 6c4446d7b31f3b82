"""What labels are: names of classes, or numbers to predict. Loads no torch."""

import re
from collections.abc import Collection, Iterable, Sequence
from math import nan
from typing import Any

import numpy as np

MANY_VALUES = 20  # more different whole numbers are numbers to predict and not classes
FEW_VALUES = 5  # so many are classes, however few labels there are
ROWS_A_CLASS = 10  # whole numbers that are rarer than this, on average, are numbers to predict
LARGEST = float(np.finfo(np.float32).max)
_WHOLE_NUMBER = re.compile(r"\s*[-+]?\d+\s*")
_SPELLINGS = re.compile(r"\s*(?:(true|false)|([-+]?\d+)(?:\.0*)?)\s*", re.IGNORECASE)


def are_whole(labels: Iterable[str]) -> bool:
    """Whether all labels are whole numbers, written without a point."""
    return all(map(_WHOLE_NUMBER.fullmatch, labels))


def is_number(label: Any) -> bool:
    """Whether a label is a finite float32 number."""
    try:
        return abs(float(label)) <= LARGEST  # false for NaN
    except ValueError:
        return False


def numbers_of(labels: Collection[Any]) -> list[float]:
    """The number that each label is, NaN if it is none.

    `true` is 1 and `false` 0, unless there are other numbers too.
    """
    found = [float(label) if is_number(label) else nan for label in labels]
    if not {number for number in found if number == number} <= {0, 1}:
        return found
    words = {"true": 1.0, "false": 0.0}
    pairs = zip(labels, found, strict=True)
    return [words.get(spelling(str(label)), number) for label, number in pairs]


def are_fractions(labels: Collection[str]) -> bool:
    """Whether all labels are numbers, and some of them are not whole."""
    return all(map(is_number, labels)) and any(float(label) % 1 for label in labels)


def are_many(labels: Collection[str], count: int) -> bool:
    """Whether there are too many different labels for classes, in a column of `count` labels."""
    return len(labels) > min(MANY_VALUES, max(FEW_VALUES, count / ROWS_A_CLASS))


def spelling(label: str) -> str:
    """What a label is written like: `True` like `true`, and `1.0` like `1`."""
    found = _SPELLINGS.fullmatch(label)
    return (found[1] or found[2]).lower() if found else label


def one_of_each(labels: Iterable[str]) -> list[str]:
    """The different labels, sorted; of several spellings of one label the first."""
    found = {spelling(label): label for label in sorted(set(labels), reverse=True)}
    return sorted(found.values())


def codes_of(labels: Iterable[str], classes: Sequence[str]) -> dict[str, int]:
    """The code of each label that is one of the classes, in its own spelling or in another."""
    exact = {name: code for code, name in enumerate(classes)}
    alike = {spelling(name): code for code, name in reversed([*enumerate(classes)])}
    found = ((label, exact.get(label, alike.get(spelling(label)))) for label in set(labels))
    return {label: code for label, code in found if code is not None}
