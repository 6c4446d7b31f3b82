"""Scalers of features."""

import pytest
import torch

from lstm_compile.errors import InputError
from lstm_compile.model.scaling import Scaler, fit_scaler


def test_scalers_by_hand():
    values = torch.tensor([[1.0, 7.0, 1e6], [3.0, 7.0, 1e6 + 1], [5.0, 7.0, 1e6 + 2]])
    standard = fit_scaler(values, "standard")
    assert standard.shift.tolist() == [3.0, 7.0, 1e6 + 1]
    torch.testing.assert_close(standard.scale, torch.tensor([8 / 3, 1, 2 / 3]).sqrt())
    minmax = fit_scaler(values, "minmax")
    assert (minmax.shift.tolist(), minmax.scale.tolist()) == ([1.0, 7.0, 1e6], [4.0, 1.0, 2.0])
    none = fit_scaler(values, "none")
    assert (none.shift.tolist(), none.scale.tolist()) == ([0, 0, 0], [1, 1, 1])
    assert minmax.apply(values)[:, 0].tolist() == [0.0, 0.5, 1.0]
    torch.testing.assert_close(standard.invert(standard.apply(values)), values)


def test_values_that_span_more_than_float32_are_refused():
    values = torch.tensor([[1.0, -3e38], [2.0, 3e38]])
    with pytest.raises(InputError, match=r"scaling minmax: the values of a column span more than"):
        fit_scaler(values, "minmax")
    assert fit_scaler(values, "standard").scale[1] == pytest.approx(3e38)


@pytest.mark.parametrize("kind", ["none", "standard", "minmax"])
def test_a_scaler_of_no_rows_is_the_identity(kind):
    scaler = fit_scaler(torch.zeros(0, 2), kind)
    assert isinstance(scaler, Scaler)
    assert (scaler.shift.tolist(), scaler.scale.tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize("kind", ["standard", "minmax"])
@pytest.mark.parametrize("constant", [0.1, 1e30, -3e38, 1e-30])
def test_a_constant_feature_is_only_shifted(kind, constant):
    scaler = fit_scaler(torch.full((7, 1), constant), kind)
    assert scaler.scale.tolist() == [1.0]
    assert scaler.apply(torch.full((7, 1), constant)).eq(0).all()
