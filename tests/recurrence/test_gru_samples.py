"""PyTorch's own samples of nn.GRU, run through `GRU`."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from lstm_compile import GRU


def samples():
    pytest.importorskip("expecttest")
    common = pytest.importorskip("torch.testing._internal.common_modules")
    (info,) = [each for each in common.module_db if each.module_cls is nn.GRU]
    return [
        sample
        for training in (True, False)
        for sample in info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
        )
    ]


def results(module, sample):
    """Outputs, final state and gradients of the parameters and the input."""
    given = sample.forward_input
    x, *state = given.args
    leaf = x if isinstance(x, PackedSequence) else x.clone().requires_grad_()
    output, h = module(leaf, *state, **given.kwargs)
    output = output.data if isinstance(output, PackedSequence) else output
    torch.manual_seed(2)
    loss = sum((value * torch.randn(value.shape)).sum() for value in (output, h))
    leaves = [*module.parameters(), *([] if leaf is x else [leaf])]
    return [output, h, *torch.autograd.grad(loss, leaves)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "vendor", "auto"])
def test_the_module_samples_of_pytorch(backend):
    found = samples()
    assert len(found) >= 8
    for sample in found:
        arguments, options = sample.constructor_input.args, sample.constructor_input.kwargs
        torch.manual_seed(0)
        theirs = nn.GRU(*arguments, **options)
        torch.manual_seed(0)
        ours = GRU(*arguments, **options, backend=backend)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        if theirs.dropout:  # each draws its own
            theirs.eval()
            ours.eval()
        expected = results(theirs, sample)
        for one, other in zip(results(ours, sample), expected, strict=True):
            assert one.dtype == other.dtype
            scale = max(1.0, other.abs().max().item())
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale)
