"""`GRU` beside nn.GRU, and `Recurrent` with any cell: layouts, states, lengths, errors."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstm_compile
from lstm_compile.errors import InputError

BACKENDS = ["auto", "vendor", "reference", pytest.param("compiled", marks=pytest.mark.slow)]
LENGTHS = torch.tensor([7, 3, 1, 5])


def pair(**options: bool | int | float) -> tuple[lstm_compile.GRU, nn.GRU]:
    """Both modules with the same weights, drawn from one seed."""
    torch.manual_seed(0)
    theirs = nn.GRU(3, 8, **options)
    torch.manual_seed(0)
    return lstm_compile.GRU(3, 8, **options, chunk=2), theirs


def gradients(module: nn.Module, *outputs: torch.Tensor) -> list[torch.Tensor]:
    """Those of all parameters, of the sum of squares."""
    total = sum((one.double() ** 2).sum() for one in outputs)
    return list(torch.autograd.grad(total, list(module.parameters())))


def test_one_seed_gives_both_the_same_weights() -> None:
    ours, theirs = pair(num_layers=2, bidirectional=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_rows_give_nn_grus_answers_and_gradients(backend: str, bidirectional: bool) -> None:
    ours, theirs = pair(num_layers=2, bidirectional=bidirectional)
    x, h = torch.randn(7, 4, 3), torch.randn(4 if bidirectional else 2, 4, 8)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    expected, last = theirs(packed, h)
    found, state = ours(packed, h, backend=backend)
    assert torch.allclose(found.data, expected.data, atol=1e-6)
    assert torch.allclose(state, last, atol=1e-6)
    for one, other in zip(
        gradients(ours, found.data, state), gradients(theirs, expected.data, last), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_states_of_empty_rows_have_no_effect(backend: str) -> None:
    ours, theirs = pair(batch_first=True)
    lengths = torch.tensor([7, 0, 1, 5])
    x, h = torch.randn(4, 7, 3), torch.randn(1, 4, 8)
    x[torch.arange(7) >= lengths[:, None]] = float("nan")
    h[:, 1] = float("nan")
    h.requires_grad_()
    y, state = ours(x, h, lengths=lengths, backend=backend)
    packed = pack_padded_sequence(x[[0, 2, 3]], lengths[[0, 2, 3]], True, enforce_sorted=False)
    expected, last = theirs(packed, h[:, [0, 2, 3]].contiguous())
    expected, _ = pad_packed_sequence(expected, True)
    assert torch.allclose(y[[0, 2, 3]], expected, atol=1e-6)
    assert not y[1].any()
    assert state[0, 1].isnan().all()
    assert torch.allclose(state[:, [0, 2, 3]], last, atol=1e-6)
    assert all(part.isfinite().all() for part in gradients(ours, y, state[:, [0, 2, 3]]))
    (of_state,) = torch.autograd.grad(ours(x, h, lengths=lengths, backend=backend)[1].sum(), h)
    assert torch.equal(of_state[0, 1], torch.ones(8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_begins_a_row_anew(backend: str) -> None:
    ours, _ = pair(batch_first=True)
    x, resets = torch.randn(2, 6, 3), torch.zeros(2, 6, dtype=torch.bool)
    resets[0, 4] = True
    y, state = ours(x, resets=resets, backend=backend)
    again, last = ours(x[:1, 4:], backend=backend)
    assert torch.allclose(y[:1, 4:], again, atol=1e-6)
    assert torch.allclose(state[:, :1], last, atol=1e-6)


def test_other_forms_are_nn_grus() -> None:
    x = torch.randn(7, 4, 3)
    for options in ({"bias": False}, {"batch_first": True}, {"num_layers": 2}):
        ours, theirs = pair(**options)
        ours.load_state_dict(theirs.state_dict())
        for given in (x, x[:, 0]):
            for one, other in zip(ours(given), theirs(given), strict=True):
                assert torch.allclose(one, other, atol=1e-6)
        assert repr(ours) == repr(theirs)
        assert len(ours.all_weights) == len(theirs.all_weights)


def test_autocast_and_traces_give_nn_grus_answers() -> None:
    ours, theirs = pair()
    x = torch.randn(5, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(x)[0], theirs(x)[0]
    # nn.GRU on the CPU answers in float32 there, nn.LSTM and both of ours in bfloat16
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected.float(), atol=2e-2)
    with warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(ours, (x,))
    longer = torch.randn(9, 2, 3)
    assert torch.allclose(traced(longer)[0], theirs(longer)[0], atol=1e-6)
    exported = torch.export.export(ours, (x,)).module()
    assert torch.allclose(exported(x)[0], theirs(x)[0], atol=1e-6)


@pytest.mark.parametrize("cell", ["gru", "layernorm-lstm", "slstm"])
def test_torch_compile_takes_any_cell_whole(cell: str) -> None:
    module = lstm_compile.Recurrent(cell, 3, 8, 2, bidirectional=True, backend="reference")
    x, lengths = torch.randn(7, 4, 3), torch.tensor([7, 0, 1, 5])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    found, expected = compiled(x, lengths=lengths), module(x, lengths=lengths)
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    pairs = zip(gradients(module, found[0]), gradients(module, expected[0]), strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_the_parts_of_a_state_have_the_layout_of_the_input() -> None:
    module = lstm_compile.Recurrent("slstm", 3, 8, 2, backend="reference")
    x = torch.randn(7, 4, 3)
    _, state = module(x)
    assert [part.shape for part in state] == [(2, 4, 8)] * 4
    y, last = module(x, state)
    assert torch.allclose(module(torch.cat([x, x]))[0][7:], y, atol=1e-5)
    _, alone = module(x[:, 0], tuple(part[:, 0] for part in state))
    assert all(torch.allclose(a, b[:, 0], atol=1e-6) for a, b in zip(alone, last, strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x: m(x, x), r"state must be the tensors \(h, c, n, m\), got Tensor"),
        (lambda m, x: m(x, (x,)), r"must be the tensors \(h, c, n, m\), got \['Tensor'\]"),
        (lambda m, x: m(x, (x,) * 4), r"state.h must be floating \(1, 4, 8\)"),
        (lambda m, x: m(x[..., :2]), r"x must have shape \(batch, time, 3\)"),
        (lambda m, x: m(x.double()), "x is torch.float64 but the weights are torch.float32"),
        (lambda m, x: m(x, backend="vendor"), "no vendor has a kernel of cell 'slstm'"),
        (lambda m, x: m(x, lengths=[8, 1, 1, 1]), "lengths must"),
        (lambda *_: lstm_compile.Recurrent("rnn", 3, 8), "there is no cell 'rnn'; known are"),
        (lambda _, x: lstm_compile.GRU(3, 8)(x, (x,)), "state must be a tensor h"),
    ],
)
def test_bad_input_is_one_line(call: object, words: str) -> None:
    module = lstm_compile.Recurrent("slstm", 3, 8, backend="reference")
    with pytest.raises(InputError, match=words) as caught:
        call(module, torch.randn(7, 4, 3))
    assert "\n" not in str(caught.value)
