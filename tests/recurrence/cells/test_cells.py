"""Cells: their equations, their gradients, and what follows from a step alone."""

import numpy as np
import pytest
import torch
from cell_cases import SHIPPED, STEPS, coupled, make
from marks import slow

from lstm_compile.errors import InputError
from lstm_compile.recurrence import cell_chunks
from lstm_compile.recurrence.any_cell import find_cell, masked_step, register_cell
from lstm_compile.recurrence.recurrent import recurrent


@pytest.mark.parametrize("name", SHIPPED)
def test_a_cell_is_its_equations(name):
    params, x = make(name), torch.randn(2, 9, 3, dtype=torch.float64)
    lengths = torch.tensor([9, 4])
    y, state = recurrent(name, params, x, lengths, backend="reference")
    plain = {key.removesuffix("_l0"): value.detach().numpy() for key, value in params.items()}
    for row, length in enumerate(lengths.tolist()):
        parts = [np.zeros(4) for _ in state]
        for step in range(length):
            parts = STEPS[name](plain, x[row, step].numpy(), *parts)
            np.testing.assert_allclose(y[row, step].detach(), parts[0], rtol=0, atol=1e-12)
        assert not y[row, length:].any()
        for found, expected in zip(state, parts, strict=True):
            np.testing.assert_allclose(found[0, row].detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_cells_of_torch_have_its_weights(name):
    params, x = make(name, layers=2, directions=2), torch.randn(2, 6, 3, dtype=torch.float64)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name]
    theirs = module(3, 4, 2, batch_first=True, bidirectional=True).double()
    theirs.load_state_dict(params)
    y, _ = recurrent(name, params, x, backend="reference")
    torch.testing.assert_close(y, theirs(x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SHIPPED)
def test_gradients_are_right(name):
    params, x = make(name, (2, 3)), torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        y, state = recurrent(
            name, dict(zip(params, values, strict=True)), x, [4, 2], backend="reference"
        )
        return y, *state

    assert torch.autograd.gradcheck(run, (x, *params.values()))


def run_both(cell, *, layers, directions, resets):
    """Outputs and gradients of both backends on ragged rows with NaN in the padding."""
    params = make(cell, (3, 6), layers=layers, directions=directions, dtype=torch.float32)
    x, lengths = torch.randn(4, 19, 3), torch.tensor([19, 0, 7, 12])
    x[2, 7:] = float("nan")
    x.requires_grad_()
    sizes = find_cell(cell).parts(6).values()
    state = [0.1 + torch.rand(layers * directions, 4, size) for size in sizes]
    leaves = [x, *(part.requires_grad_() for part in state), *params.values()]
    for backend in ("reference", "compiled"):
        y, final = recurrent(
            cell, params, x, lengths, state, resets=resets, backend=backend, chunk=2
        )
        loss = y.square().mean() + sum(part.sin().mean() for part in final)
        yield [y, *final, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("name", [slow(name) for name in SHIPPED])
@pytest.mark.parametrize("form", ["both ways", "resets"])
def test_compiled_chunks_are_the_loop(name, form):
    torch.manual_seed(0)
    resets = torch.rand(4, 19) < 0.1 if form == "resets" else None
    directions = 1 if form == "resets" else 2
    expected, found = run_both(name, layers=2, directions=directions, resets=resets)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_ones_own_cell_compiles():
    torch.manual_seed(0)
    expected, found = run_both(coupled(), layers=1, directions=2, resets=None)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


BAD = {
    "raised": (lambda p, s, state: 1 / 0, "its step raised: found ZeroDivisionError: division by"),
    "nothing": (lambda p, s, state: None, "its step returned: found NoneType, expected a pair"),
    "few": (lambda p, s, state: (state[0], state[:2]), "found 2 parts of the state, expected 3"),
    "shape": (
        lambda p, s, state: (state[0], (state[0], state[1][:, :1], state[2])),
        r"part 1: found \(2, 1\) torch.float64, expected \(2, 4\) torch.float64",
    ),
    "dtype": (
        lambda p, s, state: (state[0], (*state[:2], state[2].float())),
        "part 2: found .* torch.float32, expected",
    ),
    "output": (lambda p, s, state: (3.0, state), "the output of its step: found float, expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_step_that_breaks_its_word_is_named(case):
    step, message = BAD[case]
    cell = coupled(case, step)
    with pytest.raises(InputError, match=f"cell '{case}': .*{message}"):
        recurrent(cell, make(cell), torch.zeros(2, 3, 3).double(), backend="reference")


def test_names_are_taken_once():
    cell = register_cell(coupled("coupled by name"))
    assert find_cell("coupled by name") is register_cell(cell)
    for name in ("coupled by name", "lstm"):
        with pytest.raises(InputError, match="exists already; choose another name"):
            register_cell(coupled(name))
    with pytest.raises(InputError, match="there is no cell 'gruu'; known are lstm, gru"):
        find_cell("gruu")


def test_rows_that_have_ended_take_no_gradient():
    cell, params = find_cell("lstm"), make("lstm")
    weights = {key.removesuffix("_l0"): value for key, value in params.items()}
    state = [torch.full((1, 4), float("nan"), dtype=torch.float64, requires_grad=True)] * 2
    _, new = masked_step(cell, weights, torch.zeros(1, 16).double(), torch.tensor([[False]]), state)
    gradients = torch.autograd.grad(sum(p.sum() for p in new), [state[0], *params.values()],
                                    allow_unused=True)  # fmt: skip
    assert torch.equal(gradients[0], torch.full((1, 4), 2.0).double())
    assert not any(g is not None and g.isnan().any() for g in gradients)


@pytest.mark.slow
def test_fifty_random_shapes_take_three_graphs(monkeypatch):
    compiled, compile_graph = [], cell_chunks.compile_graph
    monkeypatch.setattr(
        cell_chunks, "compile_graph", lambda *a: compiled.append(1) or compile_graph(*a)
    )
    cell, draw = coupled("fifty"), np.random.default_rng(0)
    params = make(cell, (3, 6), layers=2, directions=2, dtype=torch.float32)
    for _ in range(50):
        batch, time = draw.integers(1, 9), draw.integers(1, 40)
        lengths = draw.integers(0, time + 1, batch)
        x = torch.randn(batch, time, 3)
        y, _ = recurrent(cell, params, x, lengths, backend="compiled", chunk=2)
        y.sum().backward()
    assert len(compiled) == 3
