import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_compile.errors import InputError
from lstm_compile.recurrence.lengths import (
    check_lengths,
    reverse_within_length,
    valid_mask,
    zero_padding,
)

few = settings(max_examples=30, deadline=None, derandomize=True, database=None)


@st.composite
def ragged(draw):
    """A filled (batch, time, features) tensor with its lengths, and what to put in the padding."""
    batch, time = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    lengths = draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    torch.manual_seed(draw(st.integers(0, 99)))
    return torch.randn(batch, time, 2), torch.tensor(lengths, dtype=torch.int64)


def filled(x, lengths, value):
    return torch.where(valid_mask(lengths, x.shape[1])[..., None], x, value)


def test_valid_mask():
    assert valid_mask(torch.tensor([0, 1, 3]), 3).tolist() == [
        [False, False, False],
        [True, False, False],
        [True, True, True],
    ]


@few
@given(ragged())
def test_reversal_by_rows(drawn):
    x, lengths = drawn
    for row, length in enumerate(lengths.tolist()):
        expected = torch.cat([x[row, :length].flip(0), x[row, length:]])
        assert torch.equal(reverse_within_length(x, lengths)[row], expected)


@few
@given(ragged())
def test_reversal_is_an_involution(drawn):
    x, lengths = drawn
    assert torch.equal(reverse_within_length(reverse_within_length(x, lengths), lengths), x)
    assert torch.equal(reverse_within_length(reverse_within_length(x, None), None), x)


@few
@given(ragged())
def test_full_lengths_are_no_lengths(drawn):
    x, lengths = drawn
    full = torch.full_like(lengths, x.shape[1])
    assert torch.equal(reverse_within_length(x, full), reverse_within_length(x, None))
    assert torch.equal(zero_padding(x, full), zero_padding(x, None))


@few
@given(ragged())
def test_zero_padding_by_rows(drawn):
    x, lengths = drawn
    found = zero_padding(filled(x, lengths, float("inf")), lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(found[row, :length], x[row, :length])
        assert (found[row, length:] == 0).all()


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 7.0])
def test_gradients_never_meet_the_padding(filler):
    torch.manual_seed(0)
    lengths = torch.tensor([0, 1, 4])
    x = filled(torch.randn(3, 4, 2), lengths, filler).requires_grad_()
    weight = torch.randn(3, 4, 2)
    (zero_padding(x, lengths) * weight).sum().backward()
    assert torch.equal(x.grad, torch.where(valid_mask(lengths, 4)[..., None], weight, 0.0))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([[1, 2]]), r"lengths must have shape \(2,\), got \(1, 2\)"),
        (torch.tensor([1.0, 2.0]), r"lengths must be int64, got torch.float32; use lengths.long"),
        (torch.tensor([0, 4]), r"lengths must lie in \[0, 3\], the time steps of x; got 0 to 4"),
        (torch.tensor([-2, 3]), r"lengths must lie in \[0, 3\], the time steps of x; got -2 to 3"),
    ],
)
def test_lengths_that_do_not_fit(lengths, message):
    with pytest.raises(InputError, match=message):
        check_lengths(lengths, 2, 3)


@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 3])])
def test_lengths_that_fit(lengths):
    check_lengths(lengths, 2, 3)


def test_an_empty_batch_fits():
    check_lengths(torch.zeros(0, dtype=torch.int64), 0, 3)
