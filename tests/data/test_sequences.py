import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_compile.data import (
    Sequences,
    bucketed_batches,
    fingerprint,
    gather,
    ordered_batches,
    stratified_split,
)
from lstm_compile.errors import InputError

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=12)


def make(lengths, features=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    x = torch.randn(sum(lengths), features, generator=generator)
    y = torch.randint(3, (len(lengths),), generator=generator)
    names = tuple(f"feature_{i}" for i in range(features))
    return Sequences(x, offsets, y, names, ("a", "b", "c"), ())


def rows(sequences, index):
    """The plain definition: sequence `index` cut out of the flat tensor."""
    return sequences.x[sequences.offsets[index] : sequences.offsets[index + 1]]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def sequences_and_indices(draw):
    lengths = draw(LENGTHS)
    indices = draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9))
    return make(lengths), torch.tensor(indices, dtype=torch.int64)


@settings(deadline=None)
@given(sequences_and_indices())
def test_select_keeps_the_order_given(case):
    sequences, indices = case
    selected = sequences.select(indices)
    assert len(selected) == len(indices)
    assert selected.offsets.dtype == torch.int64
    assert selected.y.equal(sequences.y[indices])
    assert selected.schema == sequences.schema
    for position, index in enumerate(indices):
        assert rows(selected, position).equal(rows(sequences, index))


@settings(deadline=None)
@given(sequences_and_indices(), st.integers(0, 3))
def test_gather_pads_with_exact_zeros(case, extra):
    sequences, indices = case
    longest = max([1, *sequences.lengths[indices].tolist()])
    time = longest + extra if extra else None
    batch = gather(sequences, indices, time)
    assert batch.x.shape == (len(indices), longest + extra, 2)
    assert batch.lengths.equal(sequences.lengths[indices])
    assert batch.y.equal(sequences.y[indices])
    for x, length, index in zip(batch.x, batch.lengths, indices, strict=True):
        assert x[:length].equal(rows(sequences, index))
        assert x[length:].eq(0).all()


def test_gather_pads_with_zeros_whatever_the_rest_holds():
    sequences = make([2, 0, 3])
    sequences.x[0] = float("inf")  # the row that a careless padding index would point to
    assert gather(sequences, torch.tensor([1, 2])).x[0].eq(0).all()


def test_gather_of_float_targets_and_of_a_data_set_without_steps():
    empty = make([0, 0, 0])
    with_targets = Sequences(empty.x, empty.offsets, torch.randn(3, 2), ("u", "v"), (), ("s", "t"))
    batch = gather(with_targets, torch.tensor([2, 0]))
    assert with_targets.task == "regress"
    assert batch.x.equal(torch.zeros(2, 1, 2))
    assert batch.y.equal(with_targets.y[[2, 0]])


def test_gather_compiles_into_one_graph_when_the_time_is_given():
    sequences, indices = make([2, 5, 3]), torch.tensor([2, 0])
    compiled = torch.compile(gather, fullgraph=True, backend="eager")
    assert compiled(sequences, indices, 4).x.equal(gather(sequences, indices, 4).x)


def test_to_moves_every_tensor():
    moved = make([2, 1]).to("meta")
    assert {moved.x.device.type, moved.offsets.device.type, moved.y.device.type} == {"meta"}


def test_fingerprint_sees_every_part():
    base = make([2, 1])
    others = [
        make([1, 2]),
        make([2, 1], seed=1),
        make([3]),
        Sequences(base.x, base.offsets, base.y.flip(0) + 1, base.features, base.classes, ()),
        Sequences(base.x, base.offsets, base.y, ("u", "v"), base.classes, ()),
        Sequences(base.x, base.offsets, base.y, base.features, ("a", "bc"), ()),
        Sequences(base.x, base.offsets, base.y, base.features, (), base.classes),
        Sequences(base.x.reshape(6, 1), base.offsets, base.y, base.features, base.classes, ()),
    ]
    prints = {fingerprint(item) for item in [base, *others]}
    assert len(prints) == len(others) + 1
    assert fingerprint(base) == fingerprint(make([2, 1]))
    assert len(fingerprint(base)) == 64


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=200), st.integers(1, 40), st.integers(0, 9))
def test_batches_hold_every_index_once(lengths, batch_size, seed):
    lengths = torch.tensor(lengths, dtype=torch.int64)
    bucketed = bucketed_batches(lengths, batch_size, seeded(seed))
    for batches in (bucketed, ordered_batches(lengths, batch_size)):
        everything = sorted(index for batch in batches for index in batch.tolist())
        assert everything == list(range(len(lengths)))
        sizes = sorted((len(batch) for batch in batches), reverse=True)
        assert all(size == batch_size for size in sizes[:-1])
        assert all(batch.dtype == torch.int64 for batch in batches)


def test_ordered_batches_rise_in_length():
    assert [b.tolist() for b in ordered_batches(torch.tensor([5, 1, 5, 2, 1]), 2)] == [
        [1, 4],
        [3, 0],
        [2],
    ]


def test_bucketed_batches_depend_on_the_generator_alone():
    lengths = torch.randint(1, 100, (500,), generator=seeded(0))

    def draw(generator):
        return torch.cat(bucketed_batches(lengths, 8, generator))

    generator = seeded(1)
    first, second = draw(generator), draw(generator)
    assert not first.equal(second)
    assert first.equal(draw(seeded(1)))


def test_bucketed_batches_pad_little_and_meet_in_new_batches_each_epoch():
    lengths = torch.randint(1, 100, (2000,), generator=seeded(0))
    batches = bucketed_batches(lengths, 16, seeded(1))
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert lengths.sum() / padded > 0.9  # about 0.53 for random batches
    again = bucketed_batches(lengths, 16, seeded(2))
    companions = {frozenset(batch.tolist()) for batch in batches + again}
    assert len(companions) == len(batches) + len(again)
    first = [int(lengths[batch].max()) for batch in batches]
    assert first not in (sorted(first), sorted(first, reverse=True))


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_split_of_classes(codes, fraction):
    y = torch.tensor(codes)
    if y.bincount().max() == 1:
        with pytest.raises(InputError, match="needs a class with at least 2 sequences, found none"):
            stratified_split(y, fraction, seeded(0))
        return
    training, validation = stratified_split(y, fraction, seeded(0))
    assert sorted(training.tolist() + validation.tolist()) == list(range(len(y)))
    assert training.equal(training.sort().values)
    assert validation.equal(validation.sort().values)
    for code, members in enumerate(y.bincount().tolist()):
        kept = int((y[validation] == code).sum())
        wanted = min(max(round(members * fraction), 1), members - 1) if members else 0
        assert kept == wanted


def test_split_of_targets_is_random_and_reproducible():
    y = torch.randn(10, 2, generator=seeded(0))
    training, validation = stratified_split(y, 0.3, seeded(1))
    assert (len(training), len(validation)) == (7, 3)
    assert validation.equal(stratified_split(y, 0.3, seeded(1))[1])
    assert not validation.equal(stratified_split(y, 0.3, seeded(2))[1])
    assert [len(part) for part in stratified_split(y[:2], 0.01, seeded(0))] == [1, 1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_split_refuses_a_fraction_out_of_range(fraction):
    with pytest.raises(InputError, match="validation fraction must be between 0 and 1, got"):
        stratified_split(torch.tensor([0, 0]), fraction, seeded(0))


def test_batches_and_split_refuse_what_they_cannot_do():
    with pytest.raises(InputError, match="a validation split needs at least 2 sequences, found 1"):
        stratified_split(torch.tensor([0]), 0.5, seeded(0))
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        bucketed_batches(torch.tensor([1, 2]), 0, seeded(0))
    with pytest.raises(InputError, match="batch_size must be at least 1, got -1"):
        ordered_batches(torch.tensor([1, 2]), -1)
