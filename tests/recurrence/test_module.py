"""`LSTM` in the place of torch.nn.LSTM."""

import copy

import pytest
import torch
from cases import BACKENDS, SINGLE, TOLERANCES, compiled_alone
from marks import slow
from safetensors.torch import load, save
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_compile import LSTM, LSTMState
from lstm_compile.errors import InputError

BOUND = TOLERANCES[SINGLE]
SHAPES = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
    {"num_layers": 3, "batch_first": True},
]


def pair(seed=0, **options):
    """nn.LSTM and LSTM drawn from the same seed."""
    torch.manual_seed(seed)
    theirs = nn.LSTM(3, 5, **options)
    torch.manual_seed(seed)
    return theirs, LSTM(3, 5, **options, chunk=2)


def state_of(module, *batch):
    torch.manual_seed(1)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    return torch.randn(rows, *batch, module.hidden_size), torch.randn(
        rows, *batch, module.hidden_size
    )


def assert_near(found, expected, bound):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    error = (found - expected).abs().max().item() if found.numel() else 0.0
    assert error <= bound


def assert_alike(ours, theirs, found, expected):
    """Outputs, states and the parameters' gradients of two calls."""
    weights = []
    for module, (output, (h, c)) in ((ours, found), (theirs, expected)):
        if isinstance(output, PackedSequence):
            output = output.data
        torch.manual_seed(2)
        loss = sum((value * torch.randn(value.shape)).sum() for value in (output, h, c))
        module.zero_grad()
        loss.backward()
        weights.append((output, h, c))
    for one, other in zip(*weights, strict=True):
        assert_near(one, other, BOUND.value)
    for name, parameter in theirs.named_parameters():
        bound = BOUND.gradient * parameter.grad.abs().max().item()
        assert_near(ours.get_parameter(name).grad, parameter.grad, bound)


# PyTorch's own samples ----------------------------------------------------------------------------


def samples():
    pytest.importorskip("expecttest")
    common = pytest.importorskip("torch.testing._internal.common_modules")
    inputs = [
        sample
        for training in (True, False)
        for sample in common.module_inputs_torch_nn_LSTM(None, "cpu", torch.float32, True, training)
    ]
    return [
        sample
        for sample in inputs
        if not sample.constructor_input.kwargs.get("proj_size")
        and not (len(sample.constructor_input.args) > 7 and sample.constructor_input.args[7])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "vendor"])
def test_the_module_samples_of_pytorch(backend):
    found = samples()
    assert len(found) >= 8
    for sample in found:
        arguments, options = sample.constructor_input.args, sample.constructor_input.kwargs
        torch.manual_seed(0)
        theirs = nn.LSTM(*arguments, **options)
        torch.manual_seed(0)
        ours = LSTM(*arguments, **options, backend=backend)
        given = sample.forward_input
        dropout = theirs.dropout and theirs.training
        if dropout:
            theirs.eval()
            ours.eval()
        assert_alike(
            ours, theirs, ours(*given.args, **given.kwargs), theirs(*given.args, **given.kwargs)
        )


# constructor and state_dict -----------------------------------------------------------------------


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_one_seed_gives_both_the_same_weights(options):
    theirs, ours = pair(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_state_dicts_are_exchanged_both_ways(options):
    theirs, _ = pair(0, **options)
    _, ours = pair(1, **options)
    assert not torch.equal(ours.weight_hh_l0, theirs.weight_hh_l0)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3)
    assert_alike(ours, theirs, ours(x), theirs(x))
    other, _ = pair(2, **options)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(x)[0], theirs(x)[0])


def test_deep_copies_stand_alone():
    _, ours = pair(num_layers=2)
    twin = copy.deepcopy(ours)
    x = torch.randn(4, 2, 3)
    assert torch.equal(twin(x)[0], ours(x)[0])
    twin(x)[0].square().sum().backward()
    assert ours.weight_hh_l0.grad is None
    with torch.no_grad():
        twin.weight_hh_l0.mul_(2)
    assert not torch.equal(twin(x)[0], ours(x)[0])


def test_saved_without_pickle():
    _, ours = pair(num_layers=2, bidirectional=True)
    _, other = pair(1, num_layers=2, bidirectional=True)
    other.load_state_dict(load(save(ours.state_dict())))
    x = torch.randn(4, 2, 3)
    assert torch.equal(other(x)[0], ours(x)[0])


def test_dtype_and_device_reach_the_parameters():
    module = LSTM(3, 5, dtype=torch.float64, device="meta")
    assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.float64, "meta")}
    assert LSTM(3, 5).double()(torch.randn(4, 2, 3, dtype=torch.float64))[0].dtype == torch.float64


def test_repr():
    assert repr(LSTM(3, 5)) == "LSTM(3, 5)"
    full = LSTM(3, 5, 2, False, True, 0.5, True, backend="vendor")
    assert repr(full) == (
        "LSTM(3, 5, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, "
        "backend=vendor)"
    )


def test_flatten_parameters_does_nothing():
    _, ours = pair()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.flatten_parameters()
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


# forward ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_padded_input(options, with_state, backend):
    theirs, ours = pair(**options)
    x = torch.randn(4, 6, 3)
    hx = state_of(theirs, 4 if theirs.batch_first else 6) if with_state else None
    found = ours(x, hx, backend=backend)
    assert isinstance(found[1], LSTMState)
    assert_alike(ours, theirs, found, theirs(x, hx))


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_unbatched_input(options, with_state):
    theirs, ours = pair(**options)
    x = torch.randn(4, 3)
    hx = state_of(theirs) if with_state else None
    assert_alike(ours, theirs, ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("lengths", [(5, 3, 3, 1), (1, 5, 2, 4)], ids=str)
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_packed_input(options, lengths, with_state, backend):
    theirs, ours = pair(**options)
    enforce_sorted = sorted(lengths, reverse=True) == list(lengths)
    torch.manual_seed(3)
    packed = pack_padded_sequence(
        torch.randn(4, 5, 3), torch.tensor(lengths), batch_first=True, enforce_sorted=enforce_sorted
    )
    hx = state_of(theirs, 4) if with_state else None
    found, expected = ours(packed, hx, backend=backend), theirs(packed, hx)
    assert_alike(ours, theirs, found, expected)
    assert torch.equal(found[0].batch_sizes, expected[0].batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        one, other = getattr(found[0], name), getattr(expected[0], name)
        assert (one is None) == (other is None) == enforce_sorted
        assert one is None or torch.equal(one, other)
    unpacked, again = pad_packed_sequence(found[0], batch_first=True)
    assert again.tolist() == list(lengths)
    assert_near(unpacked, pad_packed_sequence(expected[0], batch_first=True)[0], BOUND.value)


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_are_what_packing_is(batch_first):
    theirs, ours = pair(num_layers=2, bidirectional=True, batch_first=batch_first)
    lengths = torch.tensor([1, 5, 2, 4])
    x = torch.randn(4, 5, 3)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, state = theirs(packed)
    expected, _ = pad_packed_sequence(output, batch_first=batch_first)
    given = x if batch_first else x.transpose(0, 1)
    assert_alike(ours, theirs, ours(given, None, lengths), (expected, state))


def test_batch_first_turns_input_and_output_only():
    _, ours = pair(num_layers=2)
    _, turned = pair(num_layers=2, batch_first=True)
    x, hx = torch.randn(4, 6, 3), state_of(ours, 6)
    output, state = ours(x, hx)
    other, other_state = turned(x.transpose(0, 1), hx)
    assert torch.equal(other.transpose(0, 1), output)
    assert torch.equal(other_state.h, state.h)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_what_can_be_viewed_of_nn_lstm_can_be_viewed_here(options, backend):
    theirs, ours = pair(**options)
    x = torch.randn(4, 6, 3)
    assert ours(x, backend=backend)[0].is_contiguous() >= theirs(x)[0].is_contiguous()
    assert ours(x, backend=backend)[1].h.is_contiguous()


def test_dropout_acts_in_training_only_and_between_layers_only():
    theirs, ours = pair(num_layers=2, dropout=0.5)
    x = torch.randn(4, 6, 3)
    torch.manual_seed(4)
    first, state = ours(x)
    torch.manual_seed(5)
    second, other = ours(x)
    assert not torch.equal(first, second)
    assert torch.equal(state.h[0], other.h[0])  # below the dropout nothing changes
    assert not torch.equal(state.h[1], other.h[1])
    assert (first != 0).all()  # what leaves the last layer is never dropped
    ours.eval()
    theirs.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])
    assert_alike(ours, theirs, ours(x), theirs(x))


def test_dropout_of_one_drops_all():
    _, ours = pair(num_layers=2, dropout=1.0, bias=False)
    assert (ours(torch.randn(4, 6, 3))[0] == 0).all()


@pytest.mark.parametrize("backend", [slow("reference"), slow("vendor"), "compiled"])
def test_compiled_fullgraph(backend):
    theirs, ours = pair(num_layers=2, bidirectional=True)
    x = torch.randn(4, 6, 3)
    ours.backend = backend
    compiled = compiled_alone(lambda x: ours(x), "aot_eager")
    assert_alike(ours, theirs, compiled(x), theirs(x))


def test_module_compile_is_fullgraph_too():
    theirs, ours = pair(batch_first=True)
    ours.compile(fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 6, 3)
    assert_alike(ours, theirs, ours(x), theirs(x))


def test_an_optimiser_trains_it():
    _, ours = pair(num_layers=2)
    optimiser = torch.optim.Adam(ours.parameters(), lr=0.05)
    x, target = torch.randn(4, 6, 3), torch.randn(4, 6, 5) / 4
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (ours(x)[0] - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"proj_size": 2},
            "proj_size=2 is not supported; use proj_size=0 and a Linear behind it",
        ),
        ({"hidden_size": 0}, "hidden_size and num_layers must be at least 1; got .* hidden_size=0"),
        ({"num_layers": 0}, "must be at least 1; got .* num_layers=0"),
        ({"dropout": 1.5}, r"a number in \[0, 1\]; got dropout=1.5"),
        ({"dropout": float("nan")}, r"a number in \[0, 1\]; got dropout=nan"),
    ],
)
def test_constructor_errors(options, message):
    with pytest.raises(InputError, match=message):
        LSTM(**{"input_size": 3, "hidden_size": 5, **options})


PACKED = pack_padded_sequence(torch.zeros(2, 2, 3), torch.tensor([2, 1]), batch_first=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (PACKED, None, torch.tensor([1, 2])),
            "lengths cannot be combined with a PackedSequence; leave it out",
        ),
        (
            (torch.zeros(4, 3), None, torch.tensor([4])),
            "lengths cannot be combined with unbatched input; leave it out",
        ),
        ((torch.zeros(3),), r"input must have 2 or 3 dimensions, got \(3,\)"),
        (
            (torch.zeros(4, 3), (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5))),
            r"state.h of unbatched input must have 2 dimensions, got \(1, 1, 5\)",
        ),
        ((torch.zeros(4, 2, 2),), r"x must have shape \(batch, time, 3\), got \(2, 4, 2\)"),
        (
            (torch.zeros(4, 2, 3), (torch.zeros(1, 4, 5), torch.zeros(1, 4, 5))),
            r"state.h must have shape .* = \(1, 2, 5\), got \(1, 4, 5\)",
        ),
        ((torch.zeros(4, 2, 3), None, torch.tensor([5, 1])), r"lengths must lie in \[0, 4\]"),
    ],
)
def test_forward_errors(arguments, message):
    _, ours = pair()
    with pytest.raises(InputError, match=message):
        ours(*arguments)
