"""The recurrence on a CUDA device that is not there, and the rules of cuDNN: docs/cuda.md."""

import pytest
import torch
from cases import (
    BACKENDS,
    CASES,
    DOUBLE,
    HALF,
    SINGLE,
    Result,
    assert_close,
    assert_values,
    make_data,
    make_params,
    of,
    oracle,
    run_case,
)
from pretended_cuda import Pretended, PretendedCuda
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_compile import LSTM, lstm
from lstm_compile.recurrence import compiled, dispatch, function, operator
from lstm_compile.recurrence.stack import weight_shapes

RAGGED = of(lengths=(5, 2, 0), num_layers=2, bidirectional=True)


@pytest.fixture
def cuda(monkeypatch):
    """The device; chunks run as they are, since nothing here compiles for CUDA."""
    monkeypatch.setattr(dispatch, "can_compile", lambda device_type: True)
    monkeypatch.setattr(compiled, "compile_for", lambda chunk, *key: chunk)
    with PretendedCuda() as pretended:
        yield pretended


def there(data, where="cpu"):
    """A case's data on the device, its lengths on `where`."""
    lengths = data.lengths
    moved = data.to(data.x.dtype, "cuda")
    return moved if lengths is None else moved._replace(lengths=lengths.to(where))


def back(value):
    """Results on the CPU; it fails where they are not on the device."""
    assert type(value) is Pretended
    return value.detach().inner


CASES_THERE = [
    pytest.param(
        case, dtype, id=f"{case.name}-{dtype}", marks=[pytest.mark.slow] * (case.time > 512)
    )
    for case in CASES
    for dtype in case.dtypes
    if dtype != DOUBLE
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "dtype"), CASES_THERE)
def test_every_case_runs_on_the_device_alone(case, dtype, backend, cuda):
    expected = oracle(case, dtype)
    for where in ("cpu", "cuda")[: 1 if case.lengths is None else 2]:
        data = there(make_data(case, dtype), where)
        cuda.reads.clear()
        cuda.operators.clear()
        output, h, c, gradients = run_case(case, backend, data)
        # lengths on the device are read once, and nothing else ever is
        assert len(cuda.reads) == (where == "cuda" and backend != "reference"), cuda.reads
        found = back(output), back(h), back(c), {k: back(v) for k, v in gradients.items()}
        assert_close(Result(*found), expected, case.tolerance(dtype))
        assert not cuda.operators & NOT_DETERMINISTIC


# What raises an error after torch.use_deterministic_algorithms(True), of what could be used here.
# Source: docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
NOT_DETERMINISTIC = {
    "aten.nll_loss2d_forward", "aten.histc", "aten.kthvalue", "aten.median", "aten.cumsum",
    "aten.put_", "aten.put", "aten.reflection_pad1d", "aten.replication_pad1d", "aten.bincount",
    "aten._embedding_bag",
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_resets_and_their_states_run_there(backend, where, cuda):
    data = make_data(of(lengths=(5, 3, 0), num_layers=2), SINGLE)
    resets = torch.tensor([[0, 0, 1, 0, 1], [1, 1, 0, 0, 1], [0, 1, 0, 0, 0]]).bool()
    again = tuple(part.detach() + 1 for part in data.state)

    def run(data, resets, again):
        options = {"resets": resets, "reset_state": again, "backend": backend}
        y, state = lstm(data.params, data.x, data.lengths, data.state, **options)
        loss = y.sum() + state.h.sum() + state.c.sum()
        return y, *state, *torch.autograd.grad(loss, list(data.params.values()))

    expected = run(make_data(of(lengths=(5, 3, 0), num_layers=2), SINGLE), resets, again)
    moved = there(data, where), resets.to(where), tuple(part.to("cuda") for part in again)
    cuda.reads.clear()
    found = run(*moved)
    assert len(cuda.reads) == 2 * (where == "cuda" and backend != "reference")
    for one, other in zip(found, expected, strict=True):
        assert_values("", back(one), other, 1e-4)


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_a_packed_sequence_runs_there_and_its_lengths_stay_on_the_host(enforce_sorted, cuda):
    x, lengths = torch.randn(5, 3, 4), torch.tensor([5, 3, 1] if enforce_sorted else [1, 5, 3])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    module = LSTM(4, 6, 2, bidirectional=True)
    expected, state = module(packed)
    moved = [None if part is None else part.to("cuda") for part in packed[2:]]
    on_device = PackedSequence(packed.data.to("cuda"), packed.batch_sizes, *moved)
    copy = LSTM(4, 6, 2, bidirectional=True, device="cuda")
    copy.load_state_dict(module.state_dict())
    cuda.reads.clear()
    found, after = copy(on_device)
    assert not cuda.reads
    for one, other in zip((found.data, *after), (expected.data, *state), strict=True):
        assert_values("", back(one), other.detach(), 1e-5)


def test_traced_code_reads_lengths_once_for_all_operators(monkeypatch, cuda):
    expected = oracle(RAGGED, SINGLE)
    for module in (function, operator):  # the way of traced code, without a tracer
        monkeypatch.setattr(module, "is_abstract", lambda x: True)
    data = there(make_data(RAGGED, SINGLE), "cuda")
    cuda.reads.clear()
    found = run_case(RAGGED, "vendor", data)
    assert len(cuda.reads) == 1
    assert len(cuda.calls) == 8  # two layers of two directions, forward and backward
    assert_values("output", back(found.output), expected.output, 1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_trace_for_another_device_makes_nothing_on_the_cpu(bidirectional):
    """PyTorch refuses two devices in one operation of a trace; "meta" is another one too."""

    class Module(torch.nn.Module):
        def forward(self, params, x, lengths, resets):
            return lstm(params, x, lengths, resets=resets)

    shapes = weight_shapes(3, 5, 2, bidirectional=bidirectional, bias=True)
    with torch.device("meta"):
        params = {name: torch.empty(shape) for name, shape in shapes.items()}
        resets = None if bidirectional else torch.empty(2, 7, dtype=torch.bool)
        inputs = params, torch.empty(2, 7, 3), torch.empty(2, dtype=torch.int64), resets
    program = torch.export.export(Module(), inputs)
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert {value.device.type for value in values if isinstance(value, torch.Tensor)} == {"meta"}


def test_the_rehearsal_finds_what_it_is_for(cuda):
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="all tensors must be on one device"):
        x + torch.arange(3)
    for read in (lambda: x.sum().item(), lambda: bool(x[0] > 0), x.tolist, x.cpu, x.nonzero):
        cuda.reads.clear()
        read()
        assert len(cuda.reads) == 1
    assert x.new_zeros(2).device.type == torch.zeros(2, device=x.device).device.type == "cuda"


# ---- the rules of cuDNN, read from ATen/native/cudnn/RNN.cpp of PyTorch 2.11


def parts_of(call):
    """Inputs, states, weights and the rest of a call of torch.lstm."""
    at = next(place for place, part in enumerate(call) if isinstance(part, tuple))
    return call[:at], call[at], call[at + 1], call[at + 2 :]


def every_call(cuda):
    """The calls of the kernel for rows of one length and of several, in training and without."""
    before = len(cuda.calls)
    for changes in ({}, {"lengths": (5, 2, 0)}, {"lengths": (5, 2, 0), "bidirectional": True}):
        for bias in (True, False):
            case = of(num_layers=2, bias=bias, **changes)
            run_case(case, "vendor", there(make_data(case, SINGLE)))
            with torch.no_grad():
                data = there(make_data(case, SINGLE))
                lstm(data.params, data.x, data.lengths, data.state, backend="vendor")
    found = [parts_of(call) for call in cuda.calls[before:]]
    assert len(found) == 12
    return found


def test_the_weights_are_one_buffer_in_the_order_of_cudnn(cuda):
    """Else `try_get_weight_buf` finds none: cuDNN copies the weights at each call, and warns."""
    for _, _, weights, (has_biases, num_layers, *_) in every_call(cuda):
        plain = [weight.inner for weight in weights]
        storage = plain[0].untyped_storage()
        assert all(weight.untyped_storage().data_ptr() == storage.data_ptr() for weight in plain)
        place = 0
        for weight in sorted(plain, key=lambda weight: weight.dim() == 1):  # all matrices first
            assert weight.is_contiguous()
            assert weight.storage_offset() == place
            place += weight.numel()
        # the buffer has room for both biases of each layer and direction, even without any
        hidden_size, each = plain[1].shape[1], 4 if has_biases else 2
        biases = 8 * hidden_size * len(weights) // each
        matrices = sum(weight.numel() for weight in plain if weight.dim() > 1)
        assert storage.nbytes() == 4 * (matrices + biases)
        if not has_biases:
            assert not torch.empty(0).set_(storage)[matrices:].any()
        assert num_layers == 2


def test_the_states_are_contiguous_whatever_the_caller_gives(cuda):
    """Else: "rnn: hx is not contiguous"."""
    case = of(num_layers=2, lengths=(5, 2, 0))
    for lengths in (None, torch.tensor([5, 2, 0])):
        data = there(make_data(case, SINGLE))
        turned = [part.detach().transpose(0, 1).contiguous().transpose(0, 1) for part in data.state]
        assert not turned[0].is_contiguous()
        lstm(data.params, data.x, lengths, tuple(turned), backend="vendor")
    assert len(cuda.calls) == 2
    for _, states, *_ in [*map(parts_of, cuda.calls), *every_call(cuda)]:
        assert all(state.is_contiguous() for state in states)


def test_ragged_rows_go_packed_with_their_sizes_on_the_host(cuda):
    """Else: "batch_sizes tensor should be on CPU"; and cuDNN wants them to fall."""
    for inputs, (h0, _), _, options in every_call(cuda):
        if len(inputs) == 1:
            assert len(options) == 6  # the last is batch_first
            continue
        packed, sizes = inputs
        assert type(sizes) is torch.Tensor
        assert sizes.tolist() == [2, 2, 1, 1, 1]  # the row without a step takes no part
        assert packed.shape[0] == 7
        assert h0.shape[1] == 2


def test_it_is_told_of_training_where_gradients_are_wanted(cuda):
    """Else: "cudnn RNN backward can only be called in training mode"."""
    flags = [options[3] for *_, options in every_call(cuda)]
    assert flags == [True, False] * 6


@pytest.mark.parametrize("lengths", [None, (5, 2, 1)])
def test_dropout_is_drawn_by_pytorch_so_that_it_can_be_resumed(lengths, cuda):
    """The random numbers of cuDNN's dropout lie in a state of its own, which nobody can save."""
    case = of(num_layers=3, bidirectional=True, lengths=lengths)
    data, results = there(make_data(case, SINGLE)), []
    for _ in range(2):
        torch.manual_seed(3)
        y, state = lstm(data.params, data.x, data.lengths, dropout=0.5, training=True)
        results.append((y, *state))
    assert [parts_of(call)[3][2] for call in cuda.calls] == [0.0] * 6
    for one, other in zip(*results, strict=True):
        assert back(one).equal(back(other))
    free, _ = lstm(data.params, data.x, data.lengths)
    assert not back(free).allclose(back(results[0][0]))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE, HALF, torch.float16])
def test_all_that_cudnn_gets_has_one_dtype(dtype, cuda):
    params = {name: value.to("cuda") for name, value in make_params(3, 5, dtype=dtype).items()}
    x, state = torch.randn(2, 4, 3, device="cuda").to(dtype), torch.zeros(1, 2, 5, device="cuda")
    with torch.no_grad():
        lstm(params, x, [4, 2], (state, state), backend="vendor")
    (inputs, states, weights, _) = parts_of(cuda.calls[0])
    assert {part.dtype for part in (inputs[0], *states, *weights)} == {dtype}


def test_the_operators_stay_out_of_cuda_graphs():
    """They read lengths on the host, which a graph cannot hold."""
    for name in ("recurrence", "recurrence_backward"):
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.lstm_compile, name).default.tags
