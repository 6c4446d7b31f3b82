"""Every backend against the float64 reference, the reference against nn.LSTM; properties."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from cases import (
    BACKENDS,
    BOTH,
    CASES,
    DOUBLE,
    HALF,
    PARITY,
    SINGLE,
    TOLERANCES,
    Case,
    assert_close,
    assert_values,
    differentiate,
    make_data,
    make_params,
    of,
    oracle,
    padding_of,
    run_case,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_compile import lstm
from lstm_compile.errors import InputError
from lstm_compile.recurrence.dispatch import OperatorInputs
from lstm_compile.recurrence.inductor import can_compile
from lstm_compile.recurrence.operator import recurrence


def test_the_table_covers_what_the_design_names():
    assert {1, 5, 7, 17, 33, 66} <= {case.hidden_size for case in CASES}
    assert {0, 1, 3} <= {case.batch for case in CASES}
    assert {0, 1, 5, 600} <= {case.time for case in CASES}
    assert any(case.lengths and 0 < case.time < case.chunk for case in CASES)
    assert any(case.chunk == 16 and case.time > 16 for case in CASES)
    assert {dtype for case in CASES for dtype in case.dtypes} == set(TOLERANCES)


@pytest.mark.parametrize(("case", "dtype", "backend"), PARITY)
def test_backend_meets_the_float64_reference(case, dtype, backend):
    data = make_data(case, dtype)
    found = run_case(case, backend, data)
    assert {value.dtype for value in (*found[:3], *found.gradients.values())} == {dtype}
    assert_close(found, oracle(case, dtype), case.tolerance(dtype))
    assert_padding_is_dead(data, found)
    assert_inference_meets(oracle(case, dtype), case, dtype, backend)
    if dtype == SINGLE and case in NN_CASES:
        assert_close(found, run_nn_lstm(case, make_data(case, dtype)), case.tolerance(dtype))


@pytest.mark.parametrize(("case", "dtype", "backend"), PARITY)
def test_backends_name_the_device_of_all_they_make(case, dtype, backend):
    data = make_data(case, dtype)
    with torch.device("meta"):  # stands in for any device that is not the data's
        found = run_case(case, backend, data)
    assert_close(found, oracle(case, dtype), case.tolerance(dtype))


def assert_padding_is_dead(data, found):
    if data.lengths is None:
        return
    padded = padding_of(data.lengths, data.x.shape[1])
    assert (found.output[padded] == 0).all()
    assert (found.gradients["x"][padded] == 0).all()


def assert_inference_meets(expected, case, dtype, backend):
    data = make_data(case, dtype)
    state = data.state if case.state else None
    with torch.inference_mode():
        output, (h, c) = lstm(
            data.params, data.x, data.lengths, state, backend=backend, chunk=case.chunk
        )
    bound = case.tolerance(dtype).value
    for name, value in (("output", output), ("h", h), ("c", c)):
        assert_values(name, value, getattr(expected, name), bound)


@pytest.mark.cuda
@pytest.mark.parametrize(("case", "dtype", "backend"), PARITY)
def test_backend_meets_the_float64_reference_on_cuda(case, dtype, backend, cuda):
    data = make_data(case, dtype).to(dtype, cuda)
    found = run_case(case, backend, data)
    assert found.output.device.type == "cuda"
    assert_close(found, oracle(case, dtype), case.tolerance(dtype))
    assert_padding_is_dead(data, found)


def run_nn_lstm(case, data):
    """torch.nn.LSTM on the same weights: padded if every row is full, packed if ragged."""
    module = torch.nn.LSTM(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bias=case.bias,
        batch_first=True,
        bidirectional=case.bidirectional,
        dtype=data.x.dtype,
    )
    state = data.state if case.state else None
    if data.lengths is None:
        inputs = data.x
    else:
        inputs = pack_padded_sequence(data.x, data.lengths, batch_first=True, enforce_sorted=False)
    output, (h, c) = torch.func.functional_call(module, data.params, (inputs, state))
    if data.lengths is not None:
        output, _ = pad_packed_sequence(output, batch_first=True, total_length=case.time)
    return differentiate(case, data, output, h, c)


# nn.LSTM takes neither an empty batch nor time, nor packs a row of length 0
NN_CASES = [
    case
    for case in CASES
    if case.batch and case.time and not (case.lengths and min(case.lengths) < 1)
]


@pytest.mark.parametrize(
    "case", [case if case.time <= 512 else slow(case) for case in NN_CASES], ids=lambda c: c.name
)
def test_the_float64_reference_is_nn_lstm(case):
    expected = run_nn_lstm(case, make_data(case, DOUBLE))
    assert_close(oracle(case, DOUBLE), expected, TOLERANCES[DOUBLE])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [None, (0, 1, 3)], ids=str)
def test_gradcheck(backend, lengths):
    case = of(time=3, input_size=2, num_layers=2, bidirectional=True, lengths=lengths)
    data = make_data(case, DOUBLE)
    names = list(data.params)

    def function(x, h, c, *weights):
        params = dict(zip(names, weights, strict=True))
        output, state = lstm(params, x, data.lengths, (h, c), backend=backend, chunk=2)
        return output, state.h, state.c

    leaves = (data.x, *data.state, *data.params.values())
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", [slow("reference"), "vendor", "compiled"])
@pytest.mark.parametrize("reverse", [slow(False), True])
def test_gradcheck_of_one_layer_in_full(backend, reverse):
    data = make_data(of(time=3, input_size=1, batch=2, lengths=(1, 3)), DOUBLE)
    leaves = (
        data.x,
        data.params["weight_ih_l0"],
        data.params["weight_hh_l0"],
        data.params["bias_ih_l0"],
        data.state[0][0].detach().requires_grad_(),
        data.state[1][0].detach().requires_grad_(),
    )

    def function(x, *others):
        return recurrence(OperatorInputs(x, data.lengths, None, *others, reverse, backend, 2))

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, (5, 2, 0)], ids=str)
def test_reverse_is_forward_on_reversed_rows(reverse, lengths, dtype):
    case = of(lengths=lengths)
    data = make_data(case, dtype)
    rows = [5] * 3 if lengths is None else lengths
    arguments = [data.params[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih")]
    state = data.state[0][0], data.state[1][0]
    options = reverse, "reference", 2
    y, h, c = recurrence(OperatorInputs(data.x, data.lengths, None, *arguments, *state, *options))
    for row, length in enumerate(rows):
        order = list(range(length))[:: -1 if reverse else 1]
        inputs = OperatorInputs(
            data.x[row : row + 1, order],
            None,
            None,
            *arguments,
            state[0][row : row + 1],
            state[1][row : row + 1],
            False,
            "reference",
            2,
        )
        one = recurrence(inputs)
        assert torch.allclose(y[row, order], one[0][0], atol=TOLERANCES[dtype].value)
        assert torch.allclose(h[row], one[1][0], atol=TOLERANCES[dtype].value)
        assert torch.allclose(c[row], one[2][0], atol=TOLERANCES[dtype].value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_changed_before_the_backward_are_refused(backend):
    data = make_data(of(), SINGLE)
    output, _ = lstm(data.params, data.x, backend=backend, chunk=2)
    with torch.no_grad():
        data.params["weight_hh_l0"].mul_(2)
    # PyTorch's own check of versions, in the words for a saved tensor or for a saved view of it
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        output.square().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_graph_can_be_used_twice(backend):
    data = make_data(of(lengths=(5, 0, 3)), SINGLE)
    output, _ = lstm(data.params, data.x, data.lengths, backend=backend, chunk=2)
    leaves = list(data.params.values())
    once = torch.autograd.grad(output.square().sum(), leaves, retain_graph=True)
    twice = torch.autograd.grad(output.square().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in once)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_asked_for_gets_a_gradient(backend):
    case = of(lengths=(5, 0, 3))
    data, expected = make_data(case, SINGLE), oracle(case, SINGLE)
    for leaf in (data.x, *data.params.values(), *data.state):
        leaf.requires_grad_(False)
    data.state[1].requires_grad_()
    output, (h, c) = lstm(data.params, data.x, data.lengths, data.state, backend=backend, chunk=2)
    results = zip((output, h, c), data.loss_weights, strict=True)
    sum((value * weight).sum() for value, weight in results).backward()
    gradient = expected.gradients["c0"]
    assert_values("c0", data.state[1].grad, gradient, 1e-4 * gradient.abs().max().item())
    assert data.x.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_unused_results_give_no_nan(backend):
    data = make_data(of(lengths=(5, 0, 3), padding=float("nan")), SINGLE)
    _, state = lstm(data.params, data.x, data.lengths, data.state, backend=backend, chunk=2)
    state.c.square().sum().backward()
    for leaf in (data.x, *data.params.values(), *data.state):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_grad_and_inference_mode_save_nothing(backend):
    data = make_data(of(lengths=(5, 0, 3)), SINGLE)
    trained, _ = lstm(data.params, data.x, data.lengths, backend=backend, chunk=2)
    with torch.no_grad():
        output, state = lstm(data.params, data.x, data.lengths, backend=backend, chunk=2)
    assert output.grad_fn is None
    assert state.h.grad_fn is None
    assert torch.allclose(output, trained, atol=1e-6)
    with torch.inference_mode():
        inferred, _ = lstm(data.params, data.x, data.lengths, backend=backend, chunk=2)
    assert torch.equal(inferred, output)


@pytest.mark.parametrize("backend", ["reference", "vendor", slow("compiled")])
def test_parameters_made_in_inference_mode(backend):
    data = make_data(of(hidden_size=1, lengths=(5, 0, 3)), SINGLE)
    expected = oracle(of(hidden_size=1, lengths=(5, 0, 3), state=False), SINGLE)
    with torch.inference_mode():
        params = {name: value.clone() for name, value in data.params.items()}
        output, _ = lstm(params, data.x.clone(), data.lengths, backend=backend, chunk=2)
    assert_values("output", output, expected.output, 1e-5)


@pytest.mark.parametrize("backend", ["reference", "vendor", slow("compiled")])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_autocast(backend, dtype):
    case = of(lengths=(5, 0, 3), num_layers=2, bidirectional=True)
    data = make_data(case, dtype)
    with torch.autocast("cpu", dtype=HALF):
        output, (h, c) = lstm(
            data.params, data.x, data.lengths, data.state, backend=backend, chunk=2
        )
    # as in PyTorch, float64 stays what it is
    assert output.dtype == h.dtype == c.dtype == (HALF if dtype == SINGLE else DOUBLE)
    found = differentiate(case, data, output, h, c)
    assert found.gradients["weight_hh_l0"].dtype == dtype
    assert_close(found, oracle(case, dtype), TOLERANCES[HALF if dtype == SINGLE else DOUBLE])


@pytest.mark.parametrize("backend", BACKENDS)
def test_noncontiguous_inputs(backend):
    case = of(lengths=(5, 0, 3))
    data, expected = make_data(case, SINGLE), oracle(case, SINGLE)
    x = data.x.transpose(0, 1).contiguous().transpose(0, 1)
    params = {
        name: value.t().contiguous().t() if value.dim() == 2 else value
        for name, value in data.params.items()
    }
    state = tuple(part.transpose(1, 2).contiguous().transpose(1, 2) for part in data.state)
    found = lstm(params, x, data.lengths, state, backend=backend, chunk=2)
    assert_close(differentiate(case, data, found[0], *found[1]), expected, TOLERANCES[SINGLE])


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_and_sliced_inputs(backend):
    torch.manual_seed(3)
    params = make_params(3, 5)
    x = torch.randn(1, 11, 6)[:, 1::2, ::2].expand(4, -1, -1)
    h, c = torch.randn(1, 1, 5).expand(1, 4, 5), torch.randn(1, 1, 5).expand(1, 4, 5)
    lengths = torch.tensor([2, 9, 4, 9, 0, 9, 5])[::2]
    found, state = lstm(params, x, lengths, (h, c), backend=backend, chunk=2)
    expected, expected_state = lstm(
        params, x.contiguous(), lengths, (h.contiguous(), c.contiguous()), backend="reference"
    )
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(state.h, expected_state.h, atol=1e-6)
    assert torch.allclose(state.c, expected_state.c, atol=1e-6)


def test_auto_is_a_backend_of_its_own_right():
    case = of(lengths=(5, 0, 3))
    assert_close(
        run_case(case, "auto", make_data(case, SINGLE)), oracle(case, SINGLE), TOLERANCES[SINGLE]
    )


def test_large_preactivations_stay_right():
    """Saturated gates and the vendor's freezing column must not meet in overflow."""
    case = of(lengths=(5, 1, 3), padding=float("nan"))
    data = make_data(case, SINGLE)
    with torch.no_grad():
        data.x.mul_(1e4)
        for value in data.params.values():
            value.mul_(30)
    expected = run_case(case, "reference", data.to(DOUBLE))
    for backend in BACKENDS:
        assert_values("h", run_case(case, backend, data.to(SINGLE)).h, expected.h, 1e-5)


# errors -------------------------------------------------------------------------------------------


def arguments(**changes):
    torch.manual_seed(0)
    given = {"params": make_params(3, 5, 2, True), "x": torch.randn(2, 4, 3)}
    return {**given, **changes}


def without(name):
    return {key: value for key, value in make_params(3, 5, 2, True).items() if key != name}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {}}, "params is empty; expected nn.LSTM's keys, such as weight_ih_l0"),
        (
            {"params": {"weight_hr_l0": torch.zeros(1)}},
            "'weight_hr_l0' is not a key of nn.LSTM; proj_size > 0 is not supported",
        ),
        ({"params": {"lstm.weight_ih_l0": torch.zeros(1)}}, "'lstm.weight_ih_l0' is not a key"),
        ({"params": without("weight_hh_l0")}, "'weight_hh_l0' is missing; found"),
        ({"params": without("bias_ih_l1_reverse")}, "'bias_ih_l1_reverse' is missing"),
        (
            {"params": {**make_params(3, 5), "bias_ih_l0": torch.zeros(5)}},
            r"'bias_ih_l0' must have shape \(20,\), got \(5,\)",
        ),
        ({"x": torch.zeros(2, 4, 2)}, r"x must have shape \(batch, time, 3\), got \(2, 4, 2\)"),
        ({"x": torch.zeros(4, 3)}, r"x must have shape \(batch, time, 3\), got \(4, 3\)"),
        (
            {"x": torch.zeros(2, 4, 3, dtype=torch.float64)},
            "x is torch.float64 but the weights are torch.float32; convert one",
        ),
        ({"lengths": torch.tensor([1])}, r"lengths must have shape \(2,\), got \(1,\)"),
        (
            {"lengths": torch.tensor([1.0, 2.0])},
            r"lengths must be int64, got torch.float32; use lengths.long\(\)",
        ),
        (
            {"lengths": torch.tensor([-1, 5])},
            r"lengths must lie in \[0, 4\], the time steps of x; got -1 to 5",
        ),
        (
            {"state": (torch.zeros(4, 2, 5), torch.zeros(4, 5))},
            r"state.c must have shape \(.*, batch, hidden_size\) = \(4, 2, 5\), got \(4, 5\)",
        ),
        (
            {"backend": "fastest"},
            "backend must be one of auto, reference, compiled, vendor; got 'fastest'",
        ),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_errors_name_what_is_wrong(changes, message):
    with pytest.raises(InputError, match=message):
        lstm(**arguments(**changes))


def test_dropout_acts_between_layers_in_training_only():
    given = arguments()
    plain, _ = lstm(**given)
    assert torch.equal(lstm(**given, dropout=0.5)[0], plain)
    torch.manual_seed(1)
    dropped, _ = lstm(**given, dropout=0.5, training=True)
    torch.manual_seed(1)
    again, _ = lstm(**given, dropout=0.5, training=True)
    assert torch.equal(dropped, again)
    assert not torch.allclose(dropped, plain)
    one_layer = {"params": make_params(3, 5), "x": given["x"]}
    assert torch.equal(lstm(**one_layer, dropout=0.5, training=True)[0], lstm(**one_layer)[0])


# properties ---------------------------------------------------------------------------------------


@st.composite
def drawn_cases(draw, hidden_sizes=(1, 5, 7)):
    batch, time = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    lengths = draw(st.none() | st.tuples(*[st.integers(0, time)] * batch))
    return Case(
        hidden_size=draw(st.sampled_from(hidden_sizes)),
        input_size=draw(st.integers(1, 4)),
        num_layers=draw(st.integers(1, 2)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch=batch,
        time=time,
        lengths=lengths,
        state=draw(st.booleans()),
    )


few = settings(max_examples=20, deadline=None, derandomize=True, database=None)


@few
@given(case=drawn_cases())
def test_vendor_is_reference(case):
    found = run_case(case, "vendor", make_data(case, DOUBLE))
    assert_close(found, run_case(case, "reference", make_data(case, DOUBLE)), TOLERANCES[DOUBLE])


@few
@given(case=drawn_cases((5,)), filler=st.sampled_from([float("nan"), float("inf"), -1e30]))
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stands_in_the_padding_changes_nothing(backend, case, filler):
    data = make_data(case, SINGLE)
    plain = run_case(case, backend, data)
    other = data.to(SINGLE)
    if other.lengths is not None:
        other.x.data[padding_of(other.lengths, case.time)] = filler
    filled = run_case(case, backend, other)
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], filled[:3], strict=True))
    assert all(
        torch.equal(plain.gradients[name], filled.gradients[name]) for name in plain.gradients
    )


@few
@given(case=drawn_cases((5,)), cut=st.integers(0, 9))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_in_two_parts_is_the_sequence(backend, case, cut):
    if case.bidirectional:  # the second direction begins at the end
        case = Case(**{**case.__dict__, "bidirectional": False})
    data, cut = make_data(case, SINGLE), min(cut, case.time)
    lengths = data.lengths
    first, second = (
        (None, None) if lengths is None else (lengths.clamp(max=cut), (lengths - cut).clamp(min=0))
    )
    whole, state = lstm(data.params, data.x, lengths, data.state, backend=backend, chunk=2)
    head, middle = lstm(data.params, data.x[:, :cut], first, data.state, backend=backend, chunk=2)
    tail, last = lstm(data.params, data.x[:, cut:], second, middle, backend=backend, chunk=2)
    assert torch.allclose(torch.cat([head, tail], 1), whole, atol=1e-5)
    assert torch.allclose(last.h, state.h, atol=1e-5)
    assert torch.allclose(last.c, state.c, atol=1e-5)


@few
@given(case=drawn_cases((5,)))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_rows_one_by_one(backend, case):
    data = make_data(case, SINGLE)
    together, state = lstm(data.params, data.x, data.lengths, data.state, backend=backend, chunk=2)
    for row in range(case.batch):
        # the row alone, without its padding
        length = case.time if case.lengths is None else case.lengths[row]
        alone, last = lstm(
            data.params,
            data.x[row : row + 1, :length],
            None,
            tuple(part[:, row : row + 1] for part in data.state),
            backend=backend,
            chunk=2,
        )
        assert torch.allclose(together[row, :length], alone[0], atol=1e-5)
        assert torch.allclose(state.h[:, row], last.h[:, 0], atol=1e-5)
        assert torch.allclose(state.c[:, row], last.c[:, 0], atol=1e-5)


# without a compiler -------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_a_compiler_compiled_warns_once_and_runs_as_vendor(tmp_path):
    program = """
        import warnings
        import torch
        from lstm_compile import LSTM
        torch.manual_seed(0)
        module, x = LSTM(3, 5, 2, bidirectional=True), torch.randn(4, 2, 3)
        lengths = torch.tensor([4, 1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = [module(x, None, lengths, backend="compiled")[0] for _ in range(3)]
        expected, _ = module(x, None, lengths, backend="vendor")
        assert all(torch.equal(one, expected) for one in found)
        found[0].square().sum().backward()
        print([str(warning.message) for warning in caught])
    """
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**environment, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no C++ compiler") == 1
    assert "backend='compiled' runs as backend='vendor'; install g++ or set CXX" in done.stdout


def test_this_machine_compiles():
    """Else every test of `compiled` here would test `vendor`."""
    assert can_compile("cpu")
