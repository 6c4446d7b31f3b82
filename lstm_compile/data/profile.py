"""Describes a data set, and reports what looks wrong in it. Loads no torch."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.schema import Vocabulary, numbered
from lstm_compile.data.tables.label_values import codes_of
from lstm_compile.data.tables.table import Table, own_schema, sorted_labels

BINS = 10
ALMOST_ONE = 0.999  # with a higher correlation a feature is taken for the target itself
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """The description of a data set; the fields are the keys of `inspect --json`."""

    sequences: int
    rows: int  # steps of all sequences
    features: list[str]  # in the file's order
    lengths: dict[str, float]  # `min`, `median`, `mean` and `max` steps; how many are `empty`
    histogram: list[dict[str, int]]  # `from`, `to` (steps, inclusive) and `sequences` of each bin
    missing: dict[str, int]  # empty cells, NaN and infinities of each feature that has any
    classes: dict[str, int]  # sequences of each class
    targets: dict[str, dict[str, float]]  # `min`, `mean`, `max` of each target
    constant: list[str]  # features with one value everywhere
    duplicate: list[list[str]]  # groups of features that are equal everywhere
    leaks: list[dict[str, str]]  # `feature` and `reason` where a feature seems to hold the answer
    vocabulary: dict[str, int] | None = None  # of text: how often each character occurs, sorted

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON can hold it."""
        values = asdict(self)
        return values if self.vocabulary else {k: v for k, v in values.items() if k != "vocabulary"}


def profile(table: Table, missing: dict[str, int] | None = None) -> Profile:
    """Describe a file's content; `missing` counts the gaps of each feature that were filled."""
    features = table.features or numbered("feature", table.width)
    vocabulary = table.vocabulary
    return Profile(
        sequences=len(table.lengths),
        rows=len(table.x),
        features=list(features),
        lengths=_lengths(table.lengths),
        histogram=_histogram(table.lengths),
        missing={name: count for name, count in (missing or {}).items() if count},
        classes=_classes(table),
        targets=_targets(table),
        constant=[] if vocabulary else _constant(table.x, features),
        duplicate=[] if vocabulary else _duplicate(table.x, features),
        leaks=[{"feature": features[column], "reason": reason} for column, reason in _leaks(table)],
        vocabulary=frequencies(np.bincount(table.x), vocabulary) if vocabulary else None,
    )


def frequencies(counts: NDArray[np.int64], vocabulary: Vocabulary) -> dict[str, int]:
    """How often each character of a vocabulary occurs, from the most frequent on.

    Bytes have hexadecimal numbers as names, like `0x41`.
    """
    order = [int(code) for code in np.argsort(-counts, kind="stable") if counts[code]]
    names = vocabulary.characters or [f"0x{code:02x}" for code in range(len(vocabulary))]
    return {names[code]: int(counts[code]) for code in order}


def _lengths(lengths: NDArray[np.int64]) -> dict[str, float]:
    if not len(lengths):
        return {"min": 0, "median": 0, "mean": 0, "max": 0, "empty": 0}
    return {
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "mean": round(float(lengths.mean()), 2),
        "max": int(lengths.max()),
        "empty": int((lengths == 0).sum()),
    }


def _histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """At most `BINS` bins of equal width."""
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // BINS)
    counts = np.bincount((lengths - low) // width)
    return [
        {"from": low + i * width, "to": low + (i + 1) * width - 1, "sequences": int(count)}
        for i, count in enumerate(counts)
    ]


def _classes(table: Table) -> dict[str, int]:
    if not isinstance(table.y, list):
        return {}
    names = sorted_labels(table.classes or table.y)
    codes = codes_of(table.y, names)
    counts = Counter(codes.get(label) for label in table.y)
    return {name: counts[code] for code, name in enumerate(names)}


def _targets(table: Table) -> dict[str, dict[str, float]]:
    if isinstance(table.y, list) or not table.y.size:
        return {}
    return {
        name: {"min": float(y.min()), "mean": float(y.mean()), "max": float(y.max())}
        for name, y in zip(own_schema(table).targets, table.y.T.astype(np.float64), strict=True)
    }


def _constant(x: NDArray[np.float32], features: tuple[str, ...]) -> list[str]:
    if len(x) < 2:
        return []
    return [features[i] for i in np.flatnonzero(x.min(0) == x.max(0))]


def _duplicate(x: NDArray[np.float32], features: tuple[str, ...]) -> list[list[str]]:
    groups: dict[bytes, list[str]] = {}
    for name, column in zip(features, x.T, strict=True):
        digest = hashlib.sha256((column + 0.0).tobytes()).digest()  # -0.0 is 0.0
        groups.setdefault(digest, []).append(name)
    return [names for names in groups.values() if len(names) > 1 and len(x)]


def _leaks(table: Table) -> Iterator[tuple[int, str]]:
    """Each column that seems to hold the answer, with the reason."""
    filled = np.flatnonzero(table.lengths)  # the sequences with steps
    starts = (table.lengths.cumsum() - table.lengths)[filled]
    if len(filled) < 3 or table.per_step or table.vocabulary:
        return
    if isinstance(table.y, list):
        yield from _class_leaks(table, [table.y[i] for i in filled], starts)
    elif table.y.size:
        yield from _target_leaks(table, table.y[filled].astype(np.float64), starts)


def _class_leaks(
    table: Table, labels: list[str], starts: NDArray[np.int64]
) -> Iterator[tuple[int, str]]:
    names = sorted_labels([*(table.classes or ()), *labels])
    known = codes_of(labels, names)
    codes = np.array([known[label] for label in labels])
    if not 1 < len(set(labels)) < len(labels):  # with one sequence a class, any feature predicts it
        return
    low, high = (reduce.reduceat(table.x, starts, axis=0) for reduce in (np.minimum, np.maximum))
    last = table.x[_last(table, starts)]
    for column in range(table.x.shape[1]):
        if _equals(last[:, column], labels, codes):
            yield column, "its last value is the class"
        elif (low[:, column] == high[:, column]).all() and _one_to_one(low[:, column], codes):
            yield column, "constant within each sequence, one value a class"


def _equals(values: NDArray[np.float32], labels: list[str], codes: NDArray[Any]) -> bool:
    try:
        numbers = np.array(labels, np.float32)
    except ValueError:
        numbers = codes
    return bool((values == codes).all() or (values == numbers).all())


def _one_to_one(values: NDArray[np.float32], codes: NDArray[Any]) -> bool:
    pairs = set(zip(values.tolist(), codes.tolist(), strict=True))
    return len(pairs) == len(set(codes.tolist())) == len(set(values.tolist()))


def _target_leaks(table: Table, y: Floats, starts: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    names = own_schema(table).targets
    for column, steps in enumerate(table.x.T):
        sums = np.add.reduceat(steps.astype(np.float64), starts)
        summaries = {
            "last value": steps[_last(table, starts)].astype(np.float64),
            "mean": sums / table.lengths[table.lengths > 0],
        }
        for index, target in enumerate(names):
            for name, values in summaries.items():
                value = _correlation(values, y[:, index])
                if abs(value) > ALMOST_ONE:
                    yield column, f"its {name} is target {target!r} (correlation {value:.4f})"
                    break


def _last(table: Table, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    return starts + table.lengths[table.lengths > 0] - 1


def _correlation(a: Floats, b: Floats) -> float:
    """Pearson's; 0 where one of them never changes."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size else 0.0
