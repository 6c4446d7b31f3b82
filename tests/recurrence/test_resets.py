"""States that are set back inside a sequence, against sequences that are cut by hand."""

from typing import NamedTuple

import pytest
import torch
from cases import (
    BACKENDS,
    DOUBLE,
    HALF,
    SINGLE,
    TOLERANCES,
    assert_values,
    compiled_alone,
    make_data,
    of,
    padding_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_compile import LSTM, LSTMState, ModelConfig, forward, init_params, lstm
from lstm_compile.errors import InputError
from lstm_compile.export import translation_table
from lstm_compile.recurrence.dispatch import OperatorInputs
from lstm_compile.recurrence.operator import recurrence
from lstm_compile.recurrence.resets import cut_rows
from lstm_compile.recurrence.rows import Rows, pack_rows

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
own_module_warnings = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


class Drawn(NamedTuple):
    """A batch with its resets; leaves are x, the weights and both states."""

    x: torch.Tensor
    lengths: torch.Tensor | None
    resets: torch.Tensor
    params: dict
    state: tuple
    reset_state: tuple | None
    loss_weights: tuple

    def leaves(self):
        return [self.x, *self.params.values(), *self.state, *(self.reset_state or ())]

    def to(self, dtype, device="cpu"):
        def leaf(tensor):
            return tensor.detach().to(device, dtype, copy=True).requires_grad_()

        return self._replace(
            x=leaf(self.x),
            params={name: leaf(value) for name, value in self.params.items()},
            state=tuple(map(leaf, self.state)),
            reset_state=self.reset_state and tuple(map(leaf, self.reset_state)),
        )


def draw(resets, lengths=None, num_layers=2, reset_state=False, filler=None):
    resets = torch.as_tensor(resets, dtype=torch.bool)
    batch, time = resets.shape
    lengths = None if lengths is None else tuple(lengths)
    data = make_data(of(batch=batch, time=time, num_layers=num_layers, lengths=lengths), DOUBLE)
    x = data.x.detach()
    if lengths is not None and filler is not None:
        x[padding_of(data.lengths, time)] = filler
    other = tuple(torch.randn_like(part) for part in data.state) if reset_state else None
    drawn = Drawn(x, data.lengths, resets, data.params, data.state, other, data.loss_weights)
    return drawn.to(DOUBLE)


def run(data, backend, chunk=2, **options):
    output, (h, c) = lstm(
        data.params, data.x, data.lengths, data.state, resets=data.resets,
        reset_state=data.reset_state, backend=backend, chunk=chunk, **options,
    )  # fmt: skip
    return output, h, c


def cut_by_hand(data, **options):
    """Each row alone, each of its segments a call of its own without resets."""
    outputs, states = [], []
    for row in range(len(data.x)):
        length = data.x.shape[1] if data.lengths is None else int(data.lengths[row])
        begins = [step for step in range(length) if step and data.resets[row, step]]
        state = tuple(part[:, row : row + 1] for part in data.state)
        again = tuple(part[:, row : row + 1] for part in data.reset_state or data.state)
        if length and data.resets[row, 0]:
            state = again
        output = [data.x.new_zeros(1, 0, 5)]
        for begin, end in zip([0, *begins], [*begins, length], strict=True):
            steps = data.x[row : row + 1, begin:end]
            start = again if begin else state
            y, final = lstm(data.params, steps, None, start, backend="reference", **options)
            output.append(y)
        padding = data.x.new_zeros(1, data.x.shape[1] - length, 5)
        outputs.append(torch.cat([*output, padding], 1))
        states.append(final)
    h, c = (torch.cat(parts, 1) for parts in zip(*states, strict=True))
    return torch.cat(outputs), h, c


def gradients(data, results):
    loss = sum(
        (value * weight.to(value)).sum()
        for value, weight in zip(results, data.loss_weights, strict=True)
    )
    return torch.autograd.grad(loss, data.leaves(), allow_unused=True, materialize_grads=True)


def assert_as_by_hand(data, backend, dtype, device="cpu", **options):
    expected = cut_by_hand(data, **options)
    expected_gradients = gradients(data, expected)
    data = data.to(dtype, device)
    found = run(data, backend, **options)
    bound = TOLERANCES[dtype]
    for name, one, other in zip("yhc", found, expected, strict=True):
        assert_values(name, one, other, bound.value)
    for one, other in zip(gradients(data, found), expected_gradients, strict=True):
        assert one.isfinite().all()
        assert_values("gradient", one, other, bound.gradient * max(1, other.abs().max().item()))
    return found


ROWS = [
    # 1 marks a step before which the state is set back
    pytest.param([[0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], None, id="here and there"),
    pytest.param([[0, 1, 1, 0, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 1]], (5, 3, 4), id="ragged"),
    pytest.param([[1] * 6] * 4, (6, 0, 1, 3), id="everywhere"),
    pytest.param([[1] * 3] * 2, None, id="everywhere, full"),
    pytest.param([[1, 0, 0, 0], [0, 0, 0, 0]], (4, 2), id="at the first step"),
    pytest.param([[0, 0, 0, 1], [1, 1, 1, 1]], (3, 0), id="in the padding"),
    pytest.param([[0, 0, 0]] * 2, None, id="nowhere"),
    pytest.param([[1]], None, id="one step"),
    pytest.param([[1], [0], [1]], (1, 1, 0), id="one step, ragged"),
    pytest.param([[0, 0, 1, 0, 0, 0, 1, 0, 0]], None, id="one row"),
    pytest.param([[0, 0, 1, 0, 0, 1]] * 3, None, id="segments of one length"),
    pytest.param([[0, 1, 0]] * 2, (0, 0), id="empty rows"),
]


@pytest.mark.parametrize("reset_state", [False, True])
@pytest.mark.parametrize("dtype", [slow(SINGLE), DOUBLE])
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize(("resets", "lengths"), ROWS)
def test_a_row_with_resets_is_its_segments(resets, lengths, backend, dtype, reset_state):
    data = draw(resets, lengths, reset_state=reset_state, filler=float("nan"))
    output, *_ = assert_as_by_hand(data, backend, dtype)
    if lengths is not None:
        assert (output[padding_of(data.lengths, data.x.shape[1])] == 0).all()


@pytest.mark.cuda
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize(("resets", "lengths"), ROWS)
def test_a_row_with_resets_is_its_segments_on_cuda(resets, lengths, backend, where, cuda):
    data = draw(resets, lengths, reset_state=True)
    expected = cut_by_hand(data)
    there = data.to(SINGLE, cuda)
    device = cuda if where == "cuda" else "cpu"
    there = there._replace(
        resets=data.resets.to(device),
        lengths=None if lengths is None else data.lengths.to(device),
    )
    for name, one, other in zip("yhc", run(there, backend), expected, strict=True):
        assert_values(name, one, other, TOLERANCES[SINGLE].value)


@st.composite
def batches(draw_from):
    batch, time = draw_from(st.integers(1, 5)), draw_from(st.integers(1, 9))
    row = st.lists(st.booleans(), min_size=time, max_size=time)
    resets = draw_from(st.lists(row, min_size=batch, max_size=batch))
    lengths = draw_from(st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    return resets, lengths, draw_from(st.integers(1, 3)), draw_from(st.booleans())


@pytest.mark.parametrize("backend", [slow("reference"), slow("vendor"), "compiled"])
def test_any_batch_with_resets_is_its_segments(backend):
    @few
    @given(batches())
    def check(drawn):
        resets, lengths, num_layers, reset_state = drawn
        data = draw(resets, lengths, num_layers, reset_state, filler=float("inf"))
        assert_as_by_hand(data, backend, DOUBLE)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_are_the_initial_state_where_none_is_given(backend):
    data = draw([[0, 1, 0, 1], [0, 0, 1, 0]])
    zeros = tuple(torch.zeros_like(part) for part in data.state)
    expected = run(data._replace(state=zeros), backend)
    output, (h, c) = lstm(data.params, data.x, resets=data.resets, backend=backend, chunk=2)
    for one, other in zip((output, h, c), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_without_effect_change_nothing(backend):
    data = draw([[0] * 5] * 3, (5, 2, 0))
    expected = run(data, backend)
    for resets in ([[1, 0, 0, 0, 0]] * 3, [[0] * 5, [0, 0, 1, 1, 1], [1] * 5]):
        found = run(data._replace(resets=torch.tensor(resets, dtype=torch.bool)), backend)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
    plain, _ = lstm(data.params, data.x, data.lengths, data.state, backend=backend, chunk=2)
    torch.testing.assert_close(expected[0], plain)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_no_rows_and_no_steps(backend, shape):
    data = draw(torch.ones(shape), None if shape[0] else (), reset_state=True)
    output, h, c = run(data, backend)
    assert output.shape == (*shape, 5)
    assert torch.equal(h, data.state[0])
    assert torch.equal(c, data.state[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_are_set_back_under_dropout_too(backend):
    """All dropped, the second layer sees zeros, and is still set back."""
    data = draw([[0, 1, 0, 0, 1], [0, 0, 0, 1, 0]], (5, 4), reset_state=True)
    assert_as_by_hand(data, backend, DOUBLE, dropout=1.0, training=True)
    torch.manual_seed(0)
    some = run(data, backend, dropout=0.5, training=True)[0]
    assert not torch.allclose(some, run(data, backend)[0])


@pytest.mark.parametrize("backend", ["reference", "vendor", slow("compiled")])
def test_under_autocast(backend):
    data = draw([[0, 1, 0, 0, 1], [0, 0, 0, 1, 0]], (5, 4), reset_state=True)
    expected = run(data, "reference")
    with torch.autocast("cpu", dtype=HALF):
        found = run(data.to(SINGLE), backend)
    for name, one, other in zip("yhc", found, expected, strict=True):
        assert one.dtype == HALF
        assert_values(name, one, other, TOLERANCES[HALF].value)


# traced and transformed ---------------------------------------------------------------------------


def function_of(data, backend):
    def function(params, x, resets, state, reset_state):
        return lstm(
            params, x, data.lengths, state, resets=resets, reset_state=reset_state,
            backend=backend, chunk=2,
        )  # fmt: skip

    return function


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_fullgraph(backend):
    data = draw([[0, 1, 0, 0, 1], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]], (5, 4, 0), reset_state=True)
    expected = run(data, "reference")
    wanted = gradients(data, expected)
    data = data.to(SINGLE)
    compiled = compiled_alone(function_of(data, backend))
    output, (h, c) = compiled(data.params, data.x, data.resets, data.state, data.reset_state)
    found = gradients(data, (output, h, c))
    for one, other in zip((output, h, c), expected, strict=True):
        assert_values("value", one, other, 1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert_values("gradient", one, other, 1e-4 * max(1, other.abs().max().item()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_func_grad_and_vmap(backend):
    data = draw([[0, 1, 0, 0, 1], [0, 0, 0, 1, 0]], (5, 4))
    plain = {name: value.detach() for name, value in data.params.items()}

    def loss(params, x, resets, backend=backend):
        output, state = lstm(params, x, data.lengths, resets=resets, backend=backend, chunk=2)
        return output.square().sum() + state.c.sum()

    leaves = list(data.params.values())
    expected = torch.autograd.grad(loss(data.params, data.x, data.resets, "reference"), leaves)
    found = torch.func.grad(loss)(plain, data.x.detach(), data.resets)
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    both = torch.stack([data.resets, ~data.resets])
    losses = torch.func.vmap(loss, in_dims=(None, None, 0))(plain, data.x.detach(), both)
    for one, resets in zip(losses, both, strict=True):
        torch.testing.assert_close(one, loss(plain, data.x.detach(), resets, "reference"))


class Stepped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = LSTM(3, 4, batch_first=True)

    def forward(self, x, resets):
        return self.lstm(x, resets=resets)[0]


def test_an_exported_program_takes_any_resets():
    module = Stepped()
    batch, time = torch.export.Dim("batch", min=1), torch.export.Dim("time", min=1)
    axes = {0: batch, 1: time}
    program = torch.export.export(
        module,
        (torch.randn(3, 5, 3), torch.zeros(3, 5, dtype=torch.bool)),
        dynamic_shapes={"x": axes, "resets": axes},
    ).module()
    for shape in ((3, 5), (1, 1), (4, 9)):
        torch.manual_seed(0)
        x, resets = torch.randn(*shape, 3), torch.rand(shape) < 0.4
        torch.testing.assert_close(program(x, resets), module(x, resets))


@own_module_warnings
def test_onnx_refuses_resets():
    with pytest.raises(Exception, match=r"resets have no form in ONNX.*step by step"):
        torch.onnx.export(
            Stepped().eval(),
            (torch.randn(3, 5, 3), torch.zeros(3, 5, dtype=torch.bool)),
            dynamo=True,
            verbose=False,
            custom_translation_table=translation_table(),
        )


# the module ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_module_takes_resets_in_the_layout_of_its_input(batch_first):
    torch.manual_seed(0)
    module = LSTM(3, 5, 2, batch_first=batch_first)
    x, resets = torch.randn(4, 6, 3), torch.rand(4, 6) < 0.3
    hx, other = ([torch.randn(2, 4, 5) for _ in "hc"] for _ in range(2))
    lengths = torch.tensor([6, 0, 4, 5])
    expected, state = lstm(
        dict(module.named_parameters()), x, lengths, hx, resets=resets, reset_state=other
    )
    given = (x, resets) if batch_first else (x.transpose(0, 1), resets.t())
    output, found = module(given[0], hx, lengths, resets=given[1], reset_state=other)
    assert torch.equal(output if batch_first else output.transpose(0, 1), expected)
    assert torch.equal(found.h, state.h)


def test_the_module_takes_resets_of_one_sequence():
    torch.manual_seed(0)
    module = LSTM(3, 5)
    x, hx = torch.randn(6, 3), [torch.randn(1, 5) for _ in "hc"]
    resets = torch.tensor([False, False, True, False, True, False])
    output, state = module(x, hx, resets=resets)
    pieces = [module(part, hx) for part in x.split([2, 2, 2])]
    torch.testing.assert_close(output, torch.cat([piece for piece, _ in pieces]))
    torch.testing.assert_close(state.c, pieces[-1][1].c)


# models -------------------------------------------------------------------------------------------


def tagger(task="tag", **changes):
    config = ModelConfig(
        task=task, input_size=3, output_size=4, bidirectional=False, hidden_size=5, **changes
    )
    return init_params(config, 0), config


def test_a_model_goes_on_from_a_state_and_is_set_back_to_zeros():
    params, config = tagger()
    torch.manual_seed(0)
    x, state = torch.randn(2, 6, 3), LSTMState(*torch.randn(2, 2, 2, 5))
    resets = torch.tensor([[0, 0, 1, 0, 0, 0], [0] * 6], dtype=torch.bool)
    logits, after = forward(params, config, x, None, state, resets=resets)
    first, _ = forward(params, config, x[:, :2], None, state)
    second, expected = forward(params, config, x[:1, 2:])
    other, _ = forward(params, config, x, None, state)
    torch.testing.assert_close(logits[:, :2], first)
    torch.testing.assert_close(logits[:1, 2:], second)
    torch.testing.assert_close(logits[1], other[1])
    torch.testing.assert_close(after.h[:, :1], expected.h)


def test_models_that_answer_once_a_sequence_refuse():
    params, config = tagger("classify")
    with pytest.raises(InputError, match="for tasks tag, regress-steps, lm, not classify"):
        forward(params, config, torch.randn(2, 6, 3), resets=torch.zeros(2, 6) > 0)


# what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resets", "message"),
    [
        (torch.zeros(5, 3, dtype=torch.bool), r"shape \(batch, time\) = \(3, 5\), got \(5, 3\)"),
        (torch.zeros(3, 5), r"resets must be bool, got torch.float32; use resets.bool\(\)"),
    ],
)
def test_resets_that_do_not_fit(resets, message):
    data = draw(torch.zeros(3, 5))
    with pytest.raises(InputError, match=message):
        lstm(data.params, data.x, resets=resets)


def test_a_reset_state_that_does_not_fit():
    data = draw(torch.zeros(3, 5))
    state = data.state[0], data.state[1][:1]
    with pytest.raises(InputError, match=r"reset_state.c must have shape"):
        lstm(data.params, data.x, resets=data.resets, reset_state=state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bidirectional_models_refuse(backend):
    module, x = LSTM(3, 5, bidirectional=True, backend=backend), torch.randn(4, 2, 3)
    with pytest.raises(InputError, match="resets need a model of one direction"):
        module(x, resets=torch.zeros(4, 2, dtype=torch.bool))
    weights = [value for name, value in module.named_parameters() if name.endswith("l0")][:3]
    h, c = torch.zeros(2, 2, 4, 5)
    with pytest.raises(InputError, match="resets need a model of one direction"):
        recurrence(OperatorInputs(x, None, torch.ones(2, 4) > 0, *weights, h, c, True, backend, 2))


def test_the_module_refuses_resets_of_another_layout_and_of_packed_input():
    module, x = LSTM(3, 5), torch.randn(4, 2, 3)
    with pytest.raises(InputError, match=r"\(time, batch\) = \(4, 2\) without batch_first, got"):
        module(x, resets=torch.zeros(2, 4, dtype=torch.bool))
    packed = pack_padded_sequence(x, torch.tensor([4, 2]))
    with pytest.raises(InputError, match="resets cannot be combined with a PackedSequence"):
        module(packed, resets=torch.zeros(4, 2, dtype=torch.bool))


# segments -----------------------------------------------------------------------------------------


def test_segments_of_a_batch():
    resets = torch.tensor([[0, 0, 1, 0], [1, 1, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)
    found = cut_rows(torch.tensor([4, 3, 0]), resets)
    assert found.lengths.tolist() == [2, 2, 1, 2, 0]
    assert found.rows.tolist() == [0, 0, 1, 1, 2]
    assert found.starts.tolist() == [0, 2, 0, 1, 0]
    assert found.last.tolist() == [1, 3, 4]
    assert found.origin.tolist() == [0, 3, 4, 4, 2]
    assert resets.tolist()[1] == [True, True, False, True]  # nothing that comes in is changed


@few
@given(batches(), st.integers(1, 4))
def test_packing_undoes_itself(drawn, chunk):
    resets, lengths, *_ = drawn
    resets = torch.tensor(resets)
    batch, time = resets.shape
    lengths = torch.tensor([time] * batch if lengths is None else lengths)
    if not lengths.max():
        return
    segments = cut_rows(lengths, resets)
    shortest, longest = int(segments.lengths.min()), int(segments.lengths.max())
    rows = Rows(
        segments.lengths, shortest, longest, (batch, time), torch.device("cpu"), segments=segments
    )
    packing = pack_rows(
        rows, lambda active: [(start, chunk) for start in range(0, len(active), chunk)], min_rows=2
    )
    x = torch.arange(1.0, batch * time + 1).view(batch, time, 1)
    x[padding_of(lengths, time)] = float("nan")
    expected = x.nan_to_num(0.0)
    packed = packing.pack(x)
    assert packed.sum() == expected.sum()
    assert torch.equal(packing.unpack(packed), expected)
