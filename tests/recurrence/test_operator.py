"""The one operator under torch.compile, torch.export and torch.func, and what it refuses."""

import threading
from dataclasses import replace

import pytest
import torch
from cases import (
    BACKENDS,
    DOUBLE,
    SINGLE,
    TOLERANCES,
    UNDER_COMPILE,
    assert_close,
    compiled_alone,
    make_data,
    of,
    oracle,
)
from marks import slow
from torch.autograd import forward_ad

from lstm_compile import lstm
from lstm_compile.errors import InputError

FIRST_ORDER = ("vendor", "compiled")
CASE = of(num_layers=2, bidirectional=True, lengths=(5, 0, 3), padding=float("nan"))
LAYERS = 4  # layers times directions of CASE


def case_under_compile(backend, **changes):
    """CASE; with fewer steps for the reference, where Dynamo follows each."""
    size = {"time": 2, "lengths": (2, 0, 1)} if backend == "reference" else {}
    return replace(CASE, **size, **changes)


def call(data, params=None, x=None, lengths=None, backend="vendor"):
    return lstm(
        data.params if params is None else params,
        data.x if x is None else x,
        data.lengths if lengths is None else lengths,
        data.state,
        backend=backend,
        chunk=2,
    )


def plain(data):
    """The same numbers as tensors that require no grad, and finite, for torch.func."""
    detached = [part.detach() for part in (data.x.nan_to_num(0.5), *data.state)]
    params = {name: value.detach() for name, value in data.params.items()}
    return data._replace(x=detached[0], state=tuple(detached[1:]), params=params)


def loss_of(data, output, state):
    results = zip((output, *state), data.loss_weights, strict=True)
    return sum((value * weight).sum() + value.pow(3).sum() for value, weight in results)


def weights_loss(data, backend):
    return lambda params, x: loss_of(data, *call(data, params, x, backend=backend))


def assert_same(found, expected, bound=1e-10):
    found, expected = torch.utils._pytree.tree_leaves((found, expected)), None
    half = len(found) // 2
    for one, other in zip(found[:half], found[half:], strict=True):
        assert one.shape == other.shape
        assert one.isfinite().all()
        assert (one - other).abs().max() <= bound * max(1.0, other.abs().max().item())
        assert other.abs().max() > 0


def gradients_by_autograd(data, backend="reference"):
    params = {name: value.clone().requires_grad_() for name, value in data.params.items()}
    x = data.x.clone().requires_grad_()
    loss = weights_loss(data, backend)(params, x)
    *gradients, grad_x = torch.autograd.grad(loss, [*params.values(), x])
    return dict(zip(params, gradients, strict=True)), grad_x


# torch.compile ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_fullgraph_meets_the_reference(backend):
    """Inductor, forward and backward, through whatever compiled code the backend itself calls."""
    data = make_data(CASE, SINGLE)

    def function(params, x, lengths, state):
        return lstm(params, x, lengths, state, backend=backend, chunk=2)

    output, (h, c) = compiled_alone(function)(data.params, data.x, data.lengths, data.state)
    leaves = {"x": data.x, **data.params, "h0": data.state[0], "c0": data.state[1]}
    results = zip((output, h, c), data.loss_weights, strict=True)
    sum((value * weight).sum() for value, weight in results).backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    found = oracle(CASE, SINGLE)._replace(output=output, h=h, c=c, gradients=gradients)
    assert_close(found, oracle(CASE, SINGLE), TOLERANCES[SINGLE])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("time", [slow(1), 3, slow(50)])
def test_an_outer_compile_meets_one_node_whatever_the_time(backend, time):
    graphs = []

    def keep(graph_module, _):
        graphs.append(graph_module)
        return graph_module

    data = plain(make_data(of(time=time, num_layers=2, bidirectional=True), SINGLE))
    compiled = compiled_alone(lambda x: call(data, x=x, backend=backend), keep)
    output, state = compiled(data.x)
    assert len(graphs) == 1
    nodes = [node for node in graphs[0].graph.nodes if "recurrence" in str(node.target)]
    assert len(nodes) == LAYERS
    expected, expected_state = call(data, backend="reference")
    assert torch.allclose(output, expected, atol=1e-5)
    assert torch.allclose(state.c, expected_state.c, atol=1e-5)


@pytest.mark.parametrize("backend", UNDER_COMPILE)
def test_an_outer_compile_takes_dynamic_batch_and_time(backend):
    data = plain(make_data(of(num_layers=2, bidirectional=True, state=False), SINGLE))
    graphs = []

    def counted(graph_module, inputs):
        graphs.append(graph_module)
        return torch._dynamo.lookup_backend("aot_eager")(graph_module, inputs)

    function = compiled_alone(
        lambda x, lengths: lstm(data.params, x, lengths, backend=backend, chunk=2), counted
    )
    for batch, time in ((3, 5), (2, 7), (4, 9), (6, 30)):
        torch.manual_seed(batch)
        x, lengths = torch.randn(batch, time, 3), torch.randint(0, time + 1, (batch,))
        torch._dynamo.mark_dynamic(x, (0, 1))
        torch._dynamo.mark_dynamic(lengths, 0)
        output, state = function(x, lengths)
        expected, expected_state = lstm(data.params, x, lengths, backend="reference")
        assert torch.allclose(output, expected, atol=1e-5)
        assert torch.allclose(state.h, expected_state.h, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("backend", UNDER_COMPILE)
def test_compile_under_no_grad_and_autocast(backend):
    data = plain(make_data(CASE, SINGLE))

    def function(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(data, x=x, backend=backend)[0]

    with torch.no_grad():
        output = compiled_alone(function, "aot_eager")(data.x)
    assert output.dtype == torch.bfloat16
    expected, _ = call(data, backend="reference")
    assert (output - expected).abs().max() <= TOLERANCES[torch.bfloat16].value


def test_errors_are_the_same_under_compile():
    data = plain(make_data(CASE, SINGLE))
    compiled = compiled_alone(lambda x: call(data, x=x), "eager")
    with pytest.raises((InputError, torch._dynamo.exc.Unsupported), match="x must have shape"):
        compiled(data.x[..., :2])


# torch.export -------------------------------------------------------------------------------------


class Stack(torch.nn.Module):
    def __init__(self, data, backend):
        super().__init__()
        self.backend = backend
        self.params = torch.nn.ParameterDict(data.params)

    def forward(self, x, lengths):
        return lstm(dict(self.params), x, lengths, backend=self.backend, chunk=2)


def export(data, backend):
    batch, time = torch.export.Dim("batch", min=1), torch.export.Dim("time", min=1)
    return torch.export.export(
        Stack(data, backend),
        (data.x, data.lengths),
        dynamic_shapes={"x": {0: batch, 1: time}, "lengths": {0: batch}},
    )


@pytest.mark.parametrize("backend", [slow("reference"), "vendor", "compiled"])
def test_an_exported_program_runs_at_any_batch_and_time(backend):
    data = plain(make_data(CASE, SINGLE))
    program = export(data, backend)
    nodes = [
        node
        for node in program.graph.nodes
        if node.target == torch.ops.lstm_compile.recurrence.default
    ]
    assert len(nodes) == LAYERS
    for batch, time in ((1, 1), (1, 9), (7, 1), (4, 33)):
        torch.manual_seed(batch)
        x, lengths = torch.randn(batch, time, 3), torch.randint(0, time + 1, (batch,))
        output, (h, c) = program.module()(x, lengths)
        expected, state = lstm(data.params, x, lengths, backend="reference")
        assert torch.allclose(output, expected, atol=1e-5)
        assert torch.allclose(h, state.h, atol=1e-5)
        assert torch.allclose(c, state.c, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_program_can_be_trained(backend):
    data = plain(make_data(CASE, SINGLE))
    module = export(data, backend).module()
    module(data.x, data.lengths)[0].square().sum().backward()
    params = {name: value.clone().requires_grad_() for name, value in data.params.items()}
    lstm(params, data.x, data.lengths, backend="reference")[0].square().sum().backward()
    found = {name.rpartition(".")[2]: p.grad for name, p in module.named_parameters()}
    assert found.keys() == params.keys()
    assert_same(found, {name: params[name].grad for name in found}, 1e-4)


# the operator itself ------------------------------------------------------------------------------


def operands(backend, lengths, reverse, requires_grad):
    data = make_data(of(lengths=lengths), DOUBLE)
    weights = [data.params[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih")]
    tensors = [data.x, *weights, data.state[0][0], data.state[1][0]]
    x, *others = [tensor.detach().requires_grad_(requires_grad) for tensor in tensors]
    return (x, data.lengths, None, *others, reverse, backend, 2)


@pytest.mark.parametrize("backend", ["reference", "vendor", slow("compiled")])
@pytest.mark.parametrize("lengths", [slow(None), (5, 0, 3)], ids=str)
def test_opcheck(backend, lengths):
    inputs = operands(backend, lengths, True, False)
    torch.library.opcheck(torch.ops.lstm_compile.recurrence.default, inputs)
    gradients = [torch.randn_like(value) for value in torch.ops.lstm_compile.recurrence(*inputs)]
    torch.library.opcheck(torch.ops.lstm_compile.recurrence_backward.default, (*gradients, *inputs))


@pytest.mark.parametrize("backend", [slow("reference"), "vendor", slow("compiled")])
def test_opcheck_with_gradients(backend):
    torch.library.opcheck(
        torch.ops.lstm_compile.recurrence.default, operands(backend, (5, 0, 3), False, True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operator_called_by_its_name_has_gradients(backend):
    inputs = operands(backend, (5, 0, 3), True, True)
    leaves = [value for value in inputs if isinstance(value, torch.Tensor) and value.is_leaf]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    found = torch.autograd.grad(
        sum(value.pow(2).sum() for value in torch.ops.lstm_compile.recurrence(*inputs)), leaves
    )
    twin = (*inputs[:-2], "reference", 2)
    expected = torch.autograd.grad(
        sum(value.pow(2).sum() for value in torch.ops.lstm_compile.recurrence(*twin)), leaves
    )
    assert_same(found, expected)


def test_the_operator_called_by_its_name_refuses_torch_func():
    inputs = operands("vendor", None, False, False)

    def function(x):
        return torch.ops.lstm_compile.recurrence(x, *inputs[1:])[0].sum()

    with pytest.raises(RuntimeError, match=r"call lstm_compile.lstm, not the operator"):
        torch.func.grad(function)(inputs[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_are_never_inputs(backend):
    """Neither of a row of length 0, nor without steps."""
    for time, lengths in ((0, None), (2, (0, 0, 0))):
        data = plain(make_data(of(time=time, lengths=lengths), SINGLE))
        weights = [data.params[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih")]
        h, c = data.state[0][0], data.state[1][0]
        _, *state = torch.ops.lstm_compile.recurrence(
            data.x, data.lengths, None, *weights, h, c, False, backend, 2
        )
        assert torch.equal(state[0], h)
        assert torch.equal(state[1], c)
        storages = {part.untyped_storage().data_ptr() for part in state}
        assert storages.isdisjoint({h.untyped_storage().data_ptr(), c.untyped_storage().data_ptr()})


# torch.func ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_func_grad_and_vjp(backend):
    data = plain(make_data(CASE, DOUBLE))
    expected = gradients_by_autograd(data)
    function = weights_loss(data, backend)
    assert_same(torch.func.grad(function, argnums=(0, 1))(data.params, data.x), expected)
    value, pull_back = torch.func.vjp(function, data.params, data.x)
    assert_same(pull_back(torch.tensor(2.0, dtype=DOUBLE))[1], 2 * expected[1])
    assert_same(value, weights_loss(data, "reference")(data.params, data.x))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_jacrev(backend):
    data = plain(make_data(of(bidirectional=True, lengths=(5, 0, 3)), DOUBLE))
    found = torch.func.jacrev(lambda x: call(data, x=x, backend=backend)[0])(data.x)
    expected = torch.autograd.functional.jacobian(
        lambda x: call(data, x=x, backend="reference")[0], data.x
    )
    assert_same(found, expected)


def stacked(data, count=3):
    torch.manual_seed(7)
    return {
        name: torch.stack([value + torch.randn_like(value) / 9 for _ in range(count)])
        for name, value in data.params.items()
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_over_weights(backend):
    data = plain(make_data(CASE, DOUBLE))
    models = stacked(data)
    found = torch.func.vmap(lambda params: call(data, params, backend=backend))(models)
    one_by_one = [
        call(data, {name: value[index] for name, value in models.items()}, backend="reference")
        for index in range(3)
    ]
    assert_same(found[0], torch.stack([output for output, _ in one_by_one]))
    assert_same(found[1].h, torch.stack([state.h for _, state in one_by_one]))
    assert_same(found[1].c, torch.stack([state.c for _, state in one_by_one]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x_dim", [0, 2])
def test_vmap_over_inputs_and_lengths(backend, x_dim):
    data = plain(make_data(CASE, DOUBLE))
    torch.manual_seed(7)
    xs, rows = torch.randn(4, 3, 5, 3, dtype=DOUBLE), torch.randint(0, 6, (4, 3))
    found = torch.func.vmap(
        lambda x, lengths: call(data, x=x, lengths=lengths, backend=backend)[0],
        in_dims=(x_dim, 0),
    )(xs.movedim(0, x_dim), rows)
    expected = [
        call(data, x=x, lengths=lengths, backend="reference")[0]
        for x, lengths in zip(xs, rows, strict=True)
    ]
    assert_same(found, torch.stack(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_of_grad(backend):
    """Gradients per model: an ensemble trained in one call."""
    data = plain(make_data(CASE, DOUBLE))
    models = stacked(data)
    found = torch.func.vmap(torch.func.grad(weights_loss(data, backend)), in_dims=(0, None))(
        models, data.x
    )
    for index in range(3):
        one = data._replace(params={name: value[index] for name, value in models.items()})
        expected, _ = gradients_by_autograd(one)
        assert_same({name: value[index] for name, value in found.items()}, expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_compile_of_func_grad(backend, bias):
    """Dynamo lost the backward of inputs that reach the operator untouched: zeros, no error."""
    data = plain(make_data(case_under_compile(backend, bias=bias), DOUBLE))
    function = weights_loss(data, backend)
    expected = gradients_by_autograd(data)
    for argnum in (0, 1):
        transformed = torch.func.grad(function, argnums=argnum)
        compiled = compiled_alone(transformed, "aot_eager")
        assert_same(compiled(data.params, data.x), expected[argnum])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_of_vmap(backend):
    data = plain(make_data(CASE, DOUBLE))
    models = stacked(data, 2)
    function = torch.func.vmap(lambda params: call(data, params, backend=backend)[0])
    found = compiled_alone(function, "aot_eager")(models)
    assert_same(found, function(models))


# second order and forward mode --------------------------------------------------------------------


def second_order(function):
    def inner(x):
        return torch.func.grad(function)(x).pow(2).sum()

    return torch.func.grad(inner)


def forward_mode(function):
    return lambda x: torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]


def x_loss(data, backend):
    return lambda x: weights_loss(data, backend)(data.params, x)


def create_graph(data, backend, wanted):
    """Second order in eager autograd, from one leaf to another."""
    leaves = {"x": data.x.clone().requires_grad_()}
    leaves |= {name: value.clone().requires_grad_() for name, value in data.params.items()}
    params = {name: leaf for name, leaf in leaves.items() if name != "x"}
    loss = weights_loss(data, backend)(params, leaves["x"])
    (gradient,) = torch.autograd.grad(loss, leaves["weight_ih_l0"], create_graph=True)
    return torch.autograd.grad(gradient.pow(2).sum(), leaves[wanted])[0]


REFUSAL = r"has first-order reverse-mode derivatives only; use backend='reference'"


# on the CPU oneDNN knows no float64: PyTorch's own operations compute it, second order included
REFUSING = [("vendor", SINGLE), ("compiled", SINGLE), ("compiled", DOUBLE)]
WANTED = ["x", "weight_ih_l0", "weight_hh_l1_reverse", "bias_hh_l0"]


@pytest.mark.parametrize("wanted", WANTED)
def test_second_order_of_the_vendor_in_float64_is_right(wanted):
    data = plain(make_data(CASE, DOUBLE))
    expected = create_graph(data, "reference", wanted)
    torch.testing.assert_close(create_graph(data, "vendor", wanted), expected)


@pytest.mark.parametrize(("backend", "dtype"), REFUSING)
@pytest.mark.parametrize("wanted", WANTED)
def test_second_order_in_eager_is_refused(backend, dtype, wanted):
    data = plain(make_data(CASE, dtype))
    with pytest.raises(RuntimeError, match=f"backend='{backend}' {REFUSAL}"):
        create_graph(data, backend, wanted)


@pytest.mark.parametrize(("backend", "dtype"), REFUSING)
def test_a_gradient_by_the_incoming_gradient_is_refused(backend, dtype):
    data = plain(make_data(CASE, dtype))
    x = data.x.clone().requires_grad_()
    output, _ = call(data, x=x, backend=backend)
    incoming = torch.randn_like(output).requires_grad_()
    (gradient,) = torch.autograd.grad(output, x, incoming, create_graph=True)
    with pytest.raises(RuntimeError, match=f"backend='{backend}' {REFUSAL}"):
        torch.autograd.grad(gradient.sum(), incoming)


@pytest.mark.parametrize("backend", FIRST_ORDER)
@pytest.mark.parametrize("dual", ["x", "weight_hh_l0", "bias_ih_l1_reverse"])
def test_forward_mode_in_eager_is_refused(backend, dual):
    data = plain(make_data(CASE, SINGLE))
    leaves = {"x": data.x, **data.params}
    with forward_ad.dual_level():
        leaves[dual] = forward_ad.make_dual(leaves[dual], torch.randn_like(leaves[dual]))
        x = leaves.pop("x")
        with pytest.raises(RuntimeError, match=f"backend='{backend}' {REFUSAL}"):
            call(data, leaves, x, backend=backend)


@pytest.mark.parametrize("backend", FIRST_ORDER)
@pytest.mark.parametrize("transform", [second_order, forward_mode, torch.func.hessian])
def test_second_order_and_forward_mode_in_torch_func_are_refused(backend, transform):
    data = plain(make_data(CASE, DOUBLE))
    with pytest.raises(RuntimeError, match=f"backend='{backend}' {REFUSAL}"):
        transform(x_loss(data, backend))(data.x)


@pytest.mark.parametrize("backend", ["vendor", slow("compiled")])
@pytest.mark.parametrize("transform", [second_order, forward_mode])
def test_second_order_and_forward_mode_under_compile_are_refused(backend, transform):
    data = plain(make_data(CASE, DOUBLE))
    compiled = compiled_alone(transform(x_loss(data, backend)), "aot_eager")
    with pytest.raises(RuntimeError, match=f"backend='{backend}' {REFUSAL}"):
        compiled(data.x)


@pytest.mark.parametrize("backend", ["vendor", slow("compiled")])
def test_vmap_of_grad_under_compile_is_refused(backend):
    data = plain(make_data(CASE, DOUBLE))
    function = torch.func.vmap(torch.func.grad(x_loss(data, backend)))
    compiled = compiled_alone(function, "aot_eager")
    with pytest.raises(RuntimeError, match=r"vmap outside torch\.compile"):
        compiled(torch.stack([data.x, data.x]))


TRACED = r"traced by torch.compile or torch.export has first-order reverse-mode derivatives only"


def penalty(data, backend):
    """The squared gradient by x: second order for whoever differentiates it by the weights."""
    gradient = torch.func.grad(weights_loss(data, backend), argnums=1)
    return lambda params, x: gradient(params, x).pow(2).sum()


def trained(data):
    return {name: value.clone().requires_grad_() for name, value in data.params.items()}


@pytest.mark.parametrize("backend", ["vendor", slow("compiled")])
@pytest.mark.parametrize("compiler", ["eager", slow("aot_eager")])
def test_a_gradient_penalty_under_compile_is_refused(backend, compiler):
    """One transform inside and one backward outside: Dynamo alone would cut the graph between."""
    data = plain(make_data(CASE, DOUBLE))
    loss = compiled_alone(penalty(data, backend), compiler)(trained(data), data.x)
    with pytest.raises(RuntimeError, match=TRACED):
        loss.backward()


@pytest.mark.slow
def test_a_gradient_penalty_under_compile_is_right_with_the_reference():
    data = plain(make_data(of(lengths=(5, 0, 3)), DOUBLE))
    function, weights = penalty(data, "reference"), trained(data)
    wanted = [weights["weight_ih_l0"], weights["weight_hh_l0"]]
    expected = torch.autograd.grad(function(weights, data.x), wanted)
    compiled = compiled_alone(function, "aot_eager")
    assert_same(torch.autograd.grad(compiled(weights, data.x), wanted), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_of_func_grad_by_parameters_that_require_grad(backend):
    """What is refused is the second order, not parameters that could ask for it."""
    data = plain(make_data(case_under_compile(backend), DOUBLE))
    function = compiled_alone(torch.func.grad(weights_loss(data, backend)), "aot_eager")
    found = function(trained(data), data.x)
    expected, _ = gradients_by_autograd(data)
    assert_same({name: value.detach() for name, value in found.items()}, expected)


@pytest.mark.parametrize("backend", UNDER_COMPILE)
def test_forward_mode_through_a_compiled_function_is_refused(backend):
    data = plain(make_data(CASE, DOUBLE))
    compiled = compiled_alone(x_loss(data, backend), "aot_eager")
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="first-order reverse-mode derivatives only"),
    ):
        compiled(forward_ad.make_dual(data.x, torch.ones_like(data.x)))


@pytest.mark.slow
@pytest.mark.parametrize("backend", UNDER_COMPILE)
def test_second_order_of_a_compiled_function_is_refused(backend):
    data = plain(make_data(CASE, DOUBLE))
    x = data.x.clone().requires_grad_()
    compiled = compiled_alone(x_loss(data, backend), "aot_eager")
    (gradient,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.pow(2).sum().backward()


@pytest.mark.parametrize("wanted", ["x", "weight_ih_l0", "weight_hh_l1_reverse"])
def test_the_reference_has_second_order(wanted):
    data = plain(make_data(CASE, DOUBLE))
    found = create_graph(data, "reference", wanted)

    def by_hand(leaf):  # the same gradient, written as one function of the leaf
        params = dict(data.params)
        x = leaf if wanted == "x" else data.x
        if wanted != "x":
            params[wanted] = leaf
        loss = weights_loss(data, "reference")
        gradient = torch.func.grad(lambda w: loss({**params, "weight_ih_l0": w}, x))
        return gradient(params["weight_ih_l0"]).pow(2).sum()

    leaf = data.x if wanted == "x" else data.params[wanted]
    torch.manual_seed(0)
    direction = torch.randn_like(leaf)
    if wanted == "x":
        direction[1] = 0  # a row of length 0
    step = 1e-5
    numeric = (by_hand(leaf + step * direction) - by_hand(leaf - step * direction)) / (2 * step)
    assert (found * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-6)


@pytest.mark.parametrize("compiler", [None, slow("aot_eager")])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_the_reference_has_every_mode_of_torch_func(compiler):
    data = plain(make_data(case_under_compile("reference"), DOUBLE))
    function = x_loss(data, "reference")

    def maybe_compiled(transformed):
        return compiled_alone(transformed, compiler) if compiler else transformed

    x = data.x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    assert_same(maybe_compiled(second_order(function))(data.x), second)
    tangent = maybe_compiled(forward_mode(function))(data.x)
    assert_same(tangent, first.detach().sum())


def test_the_reference_has_forward_mode():
    data = plain(make_data(CASE, DOUBLE))
    torch.manual_seed(0)
    direction = torch.randn_like(data.params["weight_hh_l0"])
    expected = (gradients_by_autograd(data)[0]["weight_hh_l0"] * direction).sum()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(data.params["weight_hh_l0"], direction)
        params = {**data.params, "weight_hh_l0": dual}
        loss = weights_loss(data, "reference")(params, data.x)
        assert_same(forward_ad.unpack_dual(loss).tangent, expected)


# threads ------------------------------------------------------------------------------------------


def in_thread(function):
    """The function's result from a thread of its own, its error raised here."""
    box = []

    def work():
        try:
            box.append(function())
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert box, "the thread did not finish"
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_here_backward_in_another_thread(backend):
    data = plain(make_data(CASE, SINGLE))
    params = {name: value.clone().requires_grad_() for name, value in data.params.items()}
    loss = weights_loss(data, backend)(params, data.x)
    found = in_thread(lambda: torch.autograd.grad(loss, list(params.values())))
    expected, _ = gradients_by_autograd(data)
    assert_same(found, tuple(expected.values()), 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_in_another_thread(backend):
    data = plain(make_data(CASE, SINGLE))
    found = in_thread(lambda: gradients_by_autograd(data, backend))
    assert_same(found, gradients_by_autograd(data), 1e-4)
