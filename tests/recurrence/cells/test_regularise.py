"""Regularisers: exact in evaluation, and in training what loops with the same masks compute."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cell_cases import SHIPPED, STEPS, coupled, make

from lstm_compile.errors import InputError
from lstm_compile.recurrence.any_cell import find_cell
from lstm_compile.recurrence.function import lstm
from lstm_compile.recurrence.noisy_cell import Noise, noisy_cell, zoned_cell
from lstm_compile.recurrence.recurrent import recurrent
from lstm_compile.recurrence.regularise import NONE, Regularisers, train_by_layers, with_noise
from lstm_compile.recurrence.regularised_lstm import regularised_lstm

ALL = Regularisers(0.2, 0.3, 0.4, 0.1)


def batch(dtype=torch.float64, features=3):
    """Ragged rows with an empty one, and NaN in the padding."""
    x, lengths = torch.randn(4, 9, features, dtype=dtype), torch.tensor([9, 0, 4, 6])
    for row, length in enumerate(lengths):
        x[row, length:] = float("nan")
    return x, lengths


def loop(name, params, x, length, mix, factors=1.0):
    """One row of one layer in plain NumPy; `mix(step, part, old, new)` is a part after a step."""
    plain = {key.removesuffix("_l0"): value.detach().numpy() for key, value in params.items()}
    plain["weight_hh"] = plain["weight_hh"] * factors
    names, outputs = list(find_cell(name).parts(4)), []
    parts = [np.zeros(4) for _ in names]
    for step in range(length):
        new = STEPS[name](plain, x[step].numpy(), *parts)
        parts = [mix(step, n, a, b) for n, a, b in zip(names, parts, new, strict=True)]
        outputs.append(parts[0])
    return np.array(outputs).reshape(-1, 4), parts


def is_held(name, part):
    return name != "slstm" or part == "h"


@pytest.mark.parametrize("name", SHIPPED)
def test_dropouts_leave_evaluation_as_it_is(name):
    params, (x, lengths) = make(name, layers=2, directions=2), batch()
    expected, state = recurrent(name, params, x, lengths, backend="reference")
    found, final = recurrent(
        name, params, x, lengths, backend="reference", regularise=ALL._replace(zoneout=0.0)
    )
    assert torch.equal(found, expected)
    assert all(map(torch.equal, final, state))


@pytest.mark.parametrize("name", SHIPPED)
def test_zoneout_in_evaluation_is_the_expectation(name):
    params, (x, lengths) = make(name), batch()
    y, state = recurrent(name, params, x, lengths, backend="reference", regularise=ALL)

    def mix(_, part, old, new):
        return 0.4 * old + 0.6 * new if is_held(name, part) else new

    for row, length in enumerate(lengths.tolist()):
        outputs, parts = loop(name, params, x[row], length, mix)
        np.testing.assert_allclose(y[row, :length].detach(), outputs, rtol=0, atol=1e-12)
        for found, expected in zip(state, parts, strict=True):
            np.testing.assert_allclose(found[0, row].detach(), expected, rtol=0, atol=1e-12)
    again = recurrent(f"{name}, zoneout 0.4", params, x, lengths, backend="reference")[0]
    assert torch.equal(again, y)


@pytest.mark.parametrize("name", SHIPPED)
def test_training_is_a_loop_with_the_same_masks(name):
    params, (x, lengths) = make(name), batch()
    noisy, sizes = noisy_cell(find_cell(name), Noise(0.5, 0.5), 3, 4)
    stays = torch.rand(4, 9, sizes.fresh).round().double()
    factors = 2 * torch.rand(4, 1, sizes.locked).round().double()
    masked = torch.cat([x, stays, factors.expand(4, 9, -1)], -1)
    y, state = recurrent(noisy, params, masked, lengths, backend="reference")
    held = [part for part in find_cell(name).parts(4) if is_held(name, part)]
    for row, length in enumerate(lengths.tolist()):

        def mix(step, part, old, new, row=row):
            if part not in held:
                return new
            place = 4 * held.index(part)
            mask = stays[row, step, place : place + 4].numpy()
            return np.where(mask == 1, old, new)

        outputs, parts = loop(name, params, x[row], length, mix, factors[row].numpy())
        np.testing.assert_allclose(y[row, :length].detach(), outputs, rtol=0, atol=1e-12)
        for found, expected in zip(state, parts, strict=True):
            np.testing.assert_allclose(found[0, row].detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SHIPPED)
def test_gradients_in_training_are_right(name):
    params, x = make(name, (2, 3), directions=2), torch.randn(2, 4, 2, dtype=torch.float64)

    def run(x, *values):
        torch.manual_seed(3)
        y, state = recurrent(
            name, dict(zip(params, values, strict=True)), x, [4, 2], backend="reference",
            regularise=ALL, training=True,
        )  # fmt: skip
        return y, *state

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *params.values()))


def results(cell, backend, form):
    """Outputs and gradients of a stack in training, on ragged rows."""
    directions = 1 if form == "resets" else 2
    params = make(cell, (3, 6), layers=2, directions=directions, dtype=torch.float32)
    torch.manual_seed(1)
    x, lengths = batch(torch.float32)
    sizes = find_cell(cell).parts(6).values()
    state = [0.1 + torch.rand(2 * directions, 4, size) for size in sizes]
    resets = torch.rand(4, 9) < 0.2 if form == "resets" else None
    leaves = [x, *state, *params.values()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    y, final = recurrent(
        cell, params, x, lengths, state, resets=resets, regularise=ALL, dropout=0.3,
        training=True, backend=backend, chunk=2,
    )  # fmt: skip
    loss = y.square().mean() + sum(part.sin().mean() for part in final)
    return [y, *final, *torch.autograd.grad(loss, leaves)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [("lstm", "both ways"), ("gru", "resets"), ("slstm", "resets"), ("coupled", "both ways")],
)
def test_both_backends_draw_the_same(name, form):
    cell = coupled() if name == "coupled" else name
    expected, found = (results(cell, backend, form) for backend in ("reference", "compiled"))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_probabilities_are_those_asked_for():
    torch.manual_seed(0)
    x = torch.zeros(200, 50, 3)
    noisy, given = with_noise(find_cell("lstm"), ALL, x, 40)
    stays, factors = given[..., 3:83], given[..., 83:]
    assert abs(stays.mean() - 0.4) < 0.01
    assert abs(factors[:, 0].mean() - 1) < 0.02
    assert abs((factors[:, 0] == 0).double().mean() - 0.3) < 0.02
    assert torch.equal(factors, factors[:, :1].expand_as(factors))
    assert not torch.equal(stays[:, 0], stays[:, 1])
    assert noisy is with_noise(find_cell("lstm"), ALL, x, 40)[0]  # so that it is compiled once


def seen(regularise, layers=2, directions=2):
    """What each layer and direction is given in training."""
    calls, params = [], make("lstm", layers=layers, directions=directions)

    def run(weights, x, *_):
        calls.append((weights, x))
        return torch.ones(5, 4, 4, dtype=torch.float64), (torch.zeros(1, 5, 4),)

    ones = torch.ones(5, 4, 3, dtype=torch.float64)
    train_by_layers(run, params, ones, None, (None, None), regularise, 0.0)
    return params, calls


def test_each_layer_and_direction_has_its_own_masks():
    params, calls = seen(Regularisers(input_dropout=0.5, weight_drop=0.5))
    assert len(calls) == 4
    for _, x in calls:
        assert set(x.unique().tolist()) == {0.0, 2.0}
        assert torch.equal(x, x[:, :1].expand_as(x))
    for first, second in ((0, 1), (2, 3)):
        assert not torch.equal(calls[first][1], calls[second][1])
    names = [f"_l{layer}{suffix}" for layer in range(2) for suffix in ("", "_reverse")]
    masks = []
    for name, (weights, _) in zip(names, calls, strict=True):
        assert torch.equal(weights["weight_ih_l0"], params[f"weight_ih{name}"])
        masks.append(weights["weight_hh_l0"] / params[f"weight_hh{name}"])
        assert set(masks[-1].unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(masks[0], masks[1])


def test_none_draws_nothing_and_changes_nothing():
    params, (x, lengths) = make("lstm", layers=2, directions=2), batch()
    before = torch.get_rng_state()
    expected, _ = lstm(params, x, lengths)
    for training in (False, True):
        options = {"regularise": NONE, "training": training}
        found, _ = regularised_lstm(params, x, lengths, **options)
        assert torch.equal(found, expected)
        y, _ = recurrent("lstm", params, x, lengths, backend="reference", **options)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), before)


RUNS = {"lstm": regularised_lstm, "recurrent": partial(recurrent, "lstm")}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("regularise", [ALL, Regularisers(input_dropout=0.3, weight_drop=0.2)])
def test_an_lstm_keeps_its_backends_and_answers(regularise, bias):
    params, (x, lengths) = make("lstm", layers=2, directions=2), batch()
    if not bias:
        params = {k: v if "weight" in k else torch.zeros_like(v) for k, v in params.items()}
    own = {k: v for k, v in params.items() if bias or "weight" in k}
    state = [torch.randn(4, 4, 4, dtype=torch.float64) for _ in "hc"]
    for training in (True, False):
        answers = []
        for run, given in (
            (RUNS["lstm"], own),
            (RUNS["recurrent"], params),
        ):
            torch.manual_seed(5)
            options = {"regularise": regularise, "training": training, "dropout": 0.2}
            answers.append(run(given, x, lengths, state, backend="reference", **options))
        (a, h_c), (b, parts) = answers
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        for part, other in zip(h_c, parts, strict=True):
            torch.testing.assert_close(part, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", Regularisers._fields)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(name, value):
    with pytest.raises(InputError, match=rf"^{name} must be between 0 and 1, got {value}$"):
        recurrent("gru", make("gru"), batch()[0], regularise=Regularisers(**{name: value}))


@pytest.mark.parametrize("run", RUNS)
def test_resets_need_one_direction(run):
    params, (x, lengths) = make("lstm", directions=2), batch()
    options = {"resets": torch.zeros(4, 9, dtype=torch.bool), "training": True}
    options["regularise"] = Regularisers(input_dropout=0.5)
    with pytest.raises(InputError, match="resets need a model of one direction"):
        RUNS[run](params, x, lengths, **options)


def with_step(step):
    return replace(coupled(), step=step)


HIDDEN = {
    "no product": (
        with_step(lambda p, share, state: (state[0], state)),
        "hidden_dropout: found no product, expected a product of the state with a parameter",
    ),
    "another function": (
        with_step(lambda p, share, state: (torch.sub(state[0], p["weight_hh"][0]), state)),
        "hidden_dropout: found a weight_hh in torch.sub, expected a product",
    ),
    "another shape": (
        with_step(lambda p, share, state: ((p["weight_hh"] @ state[0].t()).t(), state)),
        r"hidden_dropout: found a product of a weight_hh with \(4, 3\), expected \(rows, 4\)",
    ),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_a_product_that_cannot_be_seen_is_refused(case):
    cell, message = HIDDEN[case]
    x = torch.zeros(3, 2, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=f"cell 'coupled': {message}"):
        recurrent(cell, make(cell), x, backend="reference", training=True,
                  regularise=Regularisers(hidden_dropout=0.5))  # fmt: skip


def test_ways_to_write_a_product():
    """Each of them reads the state times its factors."""

    def linear_of(product):
        def step(p, share, state):
            f, g = (share + product(p["weight_hh"], state[0])).chunk(2, -1)
            return torch.tanh(f * g), (torch.tanh(f * g), *state[1:])

        return with_step(step)

    products = [
        lambda w, h: torch.nn.functional.linear(h, w),
        lambda w, h: h @ w.t(),
        lambda w, h: h.matmul(w.T),
        lambda w, h: torch.mm(h, w.transpose(0, 1)),
        lambda w, h: torch.cat([h @ each.t() for each in w.chunk(2)], -1),
        lambda w, h: torch.einsum("bi,oi->bo", h, w),
        lambda w, h: torch.addmm(torch.zeros(8, dtype=h.dtype), h, w.t()),
    ]
    answers = []
    for product in products:
        torch.manual_seed(0)
        cell = linear_of(product)
        x = torch.ones(5, 6, 3, dtype=torch.float64)
        regularise = Regularisers(hidden_dropout=0.5)
        options = {"backend": "reference", "training": True, "regularise": regularise}
        answers.append(recurrent(cell, make(cell), x, **options)[0])
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=1e-12)
    assert answers[0][:, 2].unique(dim=0).shape[0] == 5  # rows differ by their masks alone


def test_zoned_cells_have_names():
    cell = zoned_cell(find_cell("gru"), 0.25)
    assert cell.name == "gru, zoneout 0.25"
    assert find_cell(cell.name) is cell
    with pytest.raises(InputError, match="there is no cell 'gru, zoneout x'"):
        find_cell("gru, zoneout x")
