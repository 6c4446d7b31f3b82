"""Rows ordered by length, spans of active rows: packed and unpacked again, and reversed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_compile import lstm
from lstm_compile.recurrence import vendor
from lstm_compile.recurrence.compiled import chunks_of
from lstm_compile.recurrence.lengths import reverse_within_length, zero_padding
from lstm_compile.recurrence.rows import Rows, pack_rows, whole_rows

CPU = torch.device("cpu")


def in_chunks(of):
    return lambda active: chunks_of(active, of)


def rows_of(lengths, time):
    shape, device = (len(lengths), time), CPU
    return Rows(torch.tensor(lengths), min(lengths), max(lengths), shape, device, mirror=True)


def packing_of(lengths, time, chunk=3, min_rows=1):
    return pack_rows(rows_of(lengths, time), in_chunks(chunk), min_rows=min_rows)


@st.composite
def batches(draw):
    time = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(0, time), min_size=1, max_size=6).filter(any))
    return lengths, time, draw(st.integers(1, 5)), draw(st.integers(1, 3))


@settings(deadline=None)
@given(batches())
def test_unpack_undoes_pack_and_zeroes_the_padding(batch):
    lengths, time, chunk, min_rows = batch
    packing = packing_of(lengths, time, chunk, min_rows)
    x = torch.randn(len(lengths), time, 2)
    expected = zero_padding(x, torch.tensor(lengths))
    x[expected == 0] = float("nan")
    packed = packing.pack(x)
    assert packed.isfinite().all()
    assert torch.equal(packing.unpack(packed), expected)


@settings(deadline=None)
@given(batches())
def test_reverse_turns_each_row_within_its_length(batch):
    lengths, time, chunk, min_rows = batch
    packing, x = packing_of(lengths, time, chunk, min_rows), torch.randn(len(lengths), time, 2)
    found = packing.unpack(packing.reverse(packing.pack(x)))
    tensor = torch.tensor(lengths)
    assert torch.equal(found, zero_padding(reverse_within_length(x, tensor), tensor))


@settings(deadline=None)
@given(batches(), st.sampled_from([3, 12]))
def test_a_batch_left_in_its_order_does_the_same(batch, chunk):
    lengths, time, *_ = batch
    tensor = torch.tensor(lengths)
    longest = max(lengths)
    cut = [(start, min(chunk, longest - start)) for start in range(0, longest, chunk)]
    plan = whole_rows(rows_of(lengths, time), cut)
    x = torch.randn(len(lengths), time, 2)
    clean = zero_padding(x, tensor)
    x[clean == 0] = float("nan")
    packed, before = plan.pack(x), x.clone()
    turned = plan.reverse(packed)
    default = torch.randn(len(lengths), 2)
    last = plan.last(packed, default)
    assert packed.isfinite().all()
    assert int((~plan.padding).sum()) == sum(lengths)
    assert torch.equal(plan.unpack(packed), clean)
    expected = zero_padding(reverse_within_length(clean, tensor), tensor)
    assert torch.equal(plan.unpack(turned), expected)
    for row, length in enumerate(lengths):
        assert torch.equal(last[row], clean[row, length - 1] if length else default[row])
    assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))  # what came in is as it was


@pytest.mark.parametrize("wasted", [0.0, 1e9])
@pytest.mark.parametrize("directions", [1, 2])
def test_vendor_answers_alike_whether_rows_are_ordered_or_not(wasted, directions, monkeypatch):
    params = dict(torch.nn.LSTM(3, 5, 2, bidirectional=directions == 2).named_parameters())
    x, lengths = torch.randn(4, 9, 3), torch.tensor([0, 9, 4, 1])
    state = torch.randn(2, 2 * directions, 4, 5).unbind()
    expected, (h, c) = lstm(params, x, lengths, state, backend="reference")
    monkeypatch.setattr(vendor, "ORDERING_CALLS", wasted)
    y, found = lstm(params, x, lengths, state, backend="vendor")
    for left, right in ((y, expected), (found.h, h), (found.c, c)):
        assert torch.allclose(left, right, atol=1e-5)
    gradients = [
        torch.autograd.grad(out.square().sum(), list(params.values())) for out in (y, expected)
    ]
    for left, right in zip(*gradients, strict=True):
        assert torch.allclose(left, right, atol=1e-4)


@settings(deadline=None)
@given(batches())
def test_spans_hold_each_valid_step_once_and_no_ended_row(batch):
    lengths, time, chunk, min_rows = batch
    packing = packing_of(lengths, time, chunk, min_rows)
    assert int((~packing.padding).sum()) == sum(lengths)
    for span in packing.spans:
        active = sum(length > span.start for length in lengths)
        assert span.rows == max(active, min_rows)


@settings(deadline=None)
@given(batches())
def test_last_is_each_rows_last_valid_step(batch):
    lengths, time, chunk, min_rows = batch
    packing, x = packing_of(lengths, time, chunk, min_rows), torch.randn(len(lengths), time, 2)
    default = torch.randn(max(len(lengths), min_rows), 2)
    found = packing.last(packing.pack(x), default)
    for row, length in enumerate(lengths):
        expected = x[row, length - 1] if length else packing.restore(default)[row]
        assert torch.equal(found[row], expected)


def test_gradients_are_moved_back():
    packing = packing_of([4, 0, 2], 5)
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x):
        return packing.unpack(packing.reverse(packing.pack(x)).square())

    assert torch.autograd.gradcheck(there_and_back, x)


@pytest.mark.parametrize("hidden", [8, 64, 256])
def test_the_vendors_spans_cover_the_longest_row(hidden):
    for active in ([5], [3] * 7 + [1], list(range(64, 0, -1)), [128] * 512):
        spans = vendor.spans_of(active, 10, hidden)
        assert [start for start, _ in spans] == [
            sum(steps for _, steps in spans[:number]) for number in range(len(spans))
        ]
        assert sum(steps for _, steps in spans) == len(active)


def test_the_vendor_cuts_where_ended_rows_cost_more_than_a_call():
    assert len(vendor.spans_of(list(range(64, 0, -1)), 64, 256)) > 2
    assert len(vendor.spans_of([32] * 64, 64, 64)) == 1
    assert len(vendor.spans_of([2, 1, 1], 4, 8)) == 1
