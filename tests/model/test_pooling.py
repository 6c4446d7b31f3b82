"""Pooling against a plain computation per row; scaling."""

import math
from typing import get_args

import pytest
import torch

from lstm_compile.config import Pooling, Scaling
from lstm_compile.model.pooling import pool
from lstm_compile.model.scaling import Scaler, fit_scaler
from lstm_compile.recurrence.lengths import valid_mask

KINDS = get_args(Pooling)
LENGTHS = [0, 1, 5, 3]
WIDTH = 4


def steps(dtype=torch.float64):
    """Zeros in the padding, as the LSTM stack leaves them; one row is negative throughout."""
    torch.manual_seed(0)
    x = torch.randn(len(LENGTHS), 5, WIDTH, dtype=dtype)
    x[3] = -x[3].abs() - 1
    return torch.where(valid_mask(torch.tensor(LENGTHS), 5)[..., None], x, 0.0)


def query(kind):
    torch.manual_seed(1)
    return torch.randn(WIDTH, dtype=torch.float64) if kind == "attention" else None


def attend(row, weights):
    scores = [sum(a * b for a, b in zip(step, weights, strict=True)) / 2 for step in row]  # sqrt(4)
    exponents = [math.exp(score) for score in scores]
    return [
        sum(e * step[column] for e, step in zip(exponents, row, strict=True)) / sum(exponents)
        for column in range(WIDTH)
    ]


def plain(row, kind, weights):
    """The pooled row by Python's own arithmetic; `row` is a list of valid steps."""
    if not row:
        return [0.0] * WIDTH
    columns = list(zip(*row, strict=True))
    if kind == "last":
        return row[-1]
    if kind == "mean":
        return [sum(column) / len(column) for column in columns]
    if kind == "max":
        return [max(column) for column in columns]
    return attend(row, row[-1] if kind == "dot-attention" else weights)


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_is_its_plain_computation(kind):
    x, weights = steps(), query(kind)
    found = pool(x, torch.tensor(LENGTHS), kind, weights)
    for row, length in enumerate(LENGTHS):
        by_hand = plain(
            x[row, :length].tolist(), kind, None if weights is None else weights.tolist()
        )
        assert found[row].tolist() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_length_zero_pools_to_zero(kind):
    found = pool(steps(), torch.tensor(LENGTHS), kind, query(kind))
    assert (found[0] == 0).all()
    assert (found[1:] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_pool_to_zero(kind):
    found = pool(steps()[:, :0], torch.zeros(4, dtype=torch.int64), kind, query(kind))
    assert torch.equal(found, torch.zeros(4, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_gets_no_gradient(kind):
    x, weights = steps().requires_grad_(), query(kind)
    lengths = torch.tensor(LENGTHS)
    pooled = pool(x, lengths, kind, weights)
    torch.manual_seed(2)
    (pooled * torch.randn_like(pooled)).sum().backward()
    valid = valid_mask(lengths, 5)
    assert x.grad.isfinite().all()
    assert x.grad[1:].abs().sum((1, 2)).min() > 0
    if kind not in ("mean", "attention", "dot-attention"):  # the LSTM's own mask stops those
        assert (x.grad[~valid] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [1, 4])
def test_more_padding_changes_nothing(kind, extra):
    x, lengths = steps(), torch.tensor(LENGTHS)
    longer = torch.nn.functional.pad(x, (0, 0, 0, extra))
    expected = pool(x, lengths, kind, query(kind))
    assert torch.allclose(pool(longer, lengths, kind, query(kind)), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_has_the_right_gradients(kind):
    lengths, weights = torch.tensor(LENGTHS), query(kind)
    valid = valid_mask(lengths, 5)[..., None]

    def function(x):
        return pool(torch.where(valid, x, 0.0), lengths, kind, weights)

    assert torch.autograd.gradcheck(function, steps().requires_grad_())


# scaling ------------------------------------------------------------------------------------------


def values():
    torch.manual_seed(0)
    return torch.randn(50, 3) * torch.tensor([1.0, 1e-3, 200.0]) + torch.tensor([0.0, 5.0, -1e4])


def test_standard_scaling_has_zero_mean_and_unit_deviation():
    scaled = fit_scaler(values(), "standard").apply(values()).double()
    assert scaled.mean(0).abs().max() < 1e-3
    assert (scaled.std(0, correction=0) - 1).abs().max() < 1e-3


def test_minmax_scaling_fills_zero_to_one():
    scaled = fit_scaler(values(), "minmax").apply(values())
    assert torch.equal(scaled.amin(0), torch.zeros(3))
    assert torch.allclose(scaled.amax(0), torch.ones(3), atol=1e-4)
    assert (scaled >= 0).all()


def test_no_scaling_is_the_identity():
    assert torch.equal(fit_scaler(values(), "none").apply(values()), values())


@pytest.mark.parametrize("kind", get_args(Scaling))
def test_invert_undoes_apply(kind):
    scaler = fit_scaler(values(), kind)
    assert torch.allclose(scaler.invert(scaler.apply(values())), values(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["standard", "minmax"])
@pytest.mark.parametrize("constant", [0.0, 3.0, 0.1, -1e7])
def test_a_constant_feature_is_left_alone_but_for_its_shift(kind, constant):
    x = values()
    x[:, 1] = constant
    scaler = fit_scaler(x, kind)
    assert scaler.scale[1] == 1
    assert scaler.apply(x)[:, 1].abs().max() <= 1e-6 * max(1.0, abs(constant))
    assert scaler.apply(x).isfinite().all()


@pytest.mark.parametrize("kind", get_args(Scaling))
def test_no_rows_give_the_identity(kind):
    scaler = fit_scaler(torch.zeros(0, 3), kind)
    assert torch.equal(scaler.shift, torch.zeros(3))
    assert torch.equal(scaler.scale, torch.ones(3))


def test_the_fit_sums_in_float64():
    x = torch.tensor([[1e8], [1e8 + 8], [1e8 + 16]])
    scaler = fit_scaler(x, "standard")
    assert scaler.shift.tolist() == [1e8 + 8]
    assert scaler.scale.item() == pytest.approx((128 / 3) ** 0.5)
    assert isinstance(scaler, Scaler)
    assert scaler.scale.dtype == torch.float32
