import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_compile.errors import InputError
from lstm_compile.recurrence.lengths import (
    check_lengths,
    last_valid,
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
    default = torch.randn(x.shape[0], 2)
    assert torch.equal(reverse_within_length(x, full), reverse_within_length(x, None))
    assert torch.equal(zero_padding(x, full), zero_padding(x, None))
    assert torch.equal(last_valid(x, full, default), last_valid(x, None, default))


@few
@given(ragged())
def test_last_valid_by_rows(drawn):
    x, lengths = drawn
    default = torch.randn(x.shape[0], 2)
    found = last_valid(filled(x, lengths, float("nan")), lengths, default)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(found[row], x[row, length - 1] if length else default[row])


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
    default = torch.randn(3, 2, requires_grad=True)
    weight = torch.randn(3, 4, 2)
    last = last_valid(x, lengths, default)
    (zero_padding(x, lengths) * weight).sum().add((last * weight[:, 0]).sum()).backward()
    expected = torch.where(valid_mask(lengths, 4)[..., None], weight, 0.0)
    expected[1, 0] += weight[1, 0]
    expected[2, 3] += weight[2, 0]
    assert torch.allclose(x.grad, expected)
    assert torch.equal(default.grad, weight[:, 0] * torch.tensor([[1.0], [0.0], [0.0]]))


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
