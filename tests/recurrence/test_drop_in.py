"""`LSTM` in code written for nn.LSTM: the same answer, or one refusal that says what to use.

Cases come from reports on nn.LSTM and from what PyTorch's own tests ask of its recurrent modules.
"""

import copy
import io
import itertools
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from cases import BACKENDS, compiled_alone
from drop_in_cases import HIDDEN, INPUT, pair
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from lstm_compile import LSTM, LSTMState, ModelConfig, TrainingConfig, fit, from_padded, lstm
from lstm_compile.errors import InputError
from lstm_compile.evaluation.predict import predict_all
from lstm_compile.recurrence import vendor
from lstm_compile.training.warm_start import initial_params

EAGER = ("reference", "vendor", "compiled")
BATCH, TIME = 3, 5
LENGTHS = (5, 2, 0)


def inputs(batch=BATCH, time=TIME):
    return torch.randn(batch, time, INPUT, generator=torch.Generator().manual_seed(1))


def loss(found):
    output, (h, c) = found
    return output.square().sum() + (h * 2).sum() + c.sin().sum()


def assert_alike(theirs, ours, x=None, hx=None):
    """Output, states and the gradients of all that can be trained."""
    x = inputs() if x is None else x
    results = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        found = module(given, hx)
        trained = [p for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss(found), [given, *trained], allow_unused=True)
        results.append((found[0], *found[1], *(g for g in gradients if g is not None)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ---- weights that are not registered parameters


def weight_drop(module):
    raw = module.weight_hh_l0
    del module._parameters["weight_hh_l0"]
    module.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.detach().clone()))
    module.register_forward_pre_hook(
        lambda m, _: setattr(m, "weight_hh_l0", m.weight_hh_l0_raw * 0.5) or None
    )
    module.weight_hh_l0 = module.weight_hh_l0_raw * 0.5


def as_buffer(module):
    weight = module.weight_ih_l0.detach().clone()
    del module.weight_ih_l0
    module.register_buffer("weight_ih_l0", weight)


def tied_directions(module):
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(module, f"{kind}_l0_reverse", getattr(module, f"{kind}_l0"))


def tied_layers(module):
    module.weight_hh_l1 = module.weight_hh_l0


def own_parts(module):
    module.register_parameter("scale", nn.Parameter(torch.ones(1)))
    module.extra = nn.Linear(2, 2)
    module.scale.requires_grad_(False)
    module.extra.requires_grad_(False)


CHANGES = {
    "weight_norm": ({}, lambda m: parametrizations.weight_norm(m, "weight_hh_l0")),
    "old weight_norm": ({}, lambda m: nn.utils.weight_norm(m, "weight_hh_l0")),
    "spectral_norm": ({}, lambda m: parametrizations.spectral_norm(m.eval(), "weight_hh_l0")),
    "orthogonal": ({}, lambda m: parametrizations.orthogonal(m, "weight_hh_l0")),
    "prune": ({}, lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5)),
    "prune, then removed": (
        {},
        lambda m: prune.remove(prune.l1_unstructured(m, "bias_ih_l0", 0.5), "bias_ih_l0"),
    ),
    "weight drop": ({}, weight_drop),
    "buffer": ({}, as_buffer),
    "tied directions": ({"bidirectional": True}, tied_directions),
    "tied layers": ({"num_layers": 2}, tied_layers),
    "parts of its own": ({}, own_parts),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("name", CHANGES)
def test_weights_are_whatever_the_attributes_say(name):
    options, change = CHANGES[name]
    theirs, ours = pair(**options)
    for module in (theirs, ours):
        torch.manual_seed(2)
        change(module)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_alike(theirs, ours)


def test_replicas_of_data_parallel_run():
    theirs, ours = pair(num_layers=2)
    replica = ours._replicate_for_data_parallel()
    for name, value in ours._parameters.items():
        setattr(replica, name, value * 1.0)  # plain tensors, as `replicate` sets them
    x = inputs()
    torch.testing.assert_close(replica(x)[0], theirs(x)[0])


FSDP = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from lstm_compile import LSTM
dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{sys.argv[1]}")
torch.manual_seed(0)
theirs = nn.LSTM(4, 6, batch_first=True)
ours = LSTM(4, 6, batch_first=True)
ours.load_state_dict(theirs.state_dict())
x = torch.randn(3, 5, 4)
for original in (True, False):
    sharded = FSDP(ours, device_id=torch.device("cpu"), use_orig_params=original)
    output = sharded(x)[0]
    output.sum().backward()
    assert torch.allclose(output, theirs(x)[0], atol=1e-6)
    ours = LSTM(4, 6, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
dist.destroy_process_group()
print("same")
"""


@pytest.mark.slow
def test_flat_parameters_of_fsdp_run(tmp_path):
    command = [sys.executable, "-c", FSDP, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_functional_call_takes_other_weights():
    theirs, ours = pair()
    other = {name: value.detach() * 2 for name, value in theirs.named_parameters()}
    x = inputs()
    expected = torch.func.functional_call(theirs, other, (x,))[0]
    torch.testing.assert_close(torch.func.functional_call(ours, other, (x,))[0], expected)


# ---- devices without numbers


def test_a_module_on_meta_gives_shapes():
    module = LSTM(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True, device="meta")
    x = torch.empty(BATCH, TIME, INPUT, device="meta", requires_grad=True)
    for lengths in (None, torch.tensor(LENGTHS), torch.tensor(LENGTHS, device="meta")):
        output, (h, c) = module(x, lengths=lengths)
        assert output.shape == (BATCH, TIME, 2 * HIDDEN)
        assert h.shape == c.shape == (4, BATCH, HIDDEN)
        assert output.is_meta
        output.sum().backward()
        assert module.weight_hh_l1.grad.shape == module.weight_hh_l1.shape


@pytest.mark.parametrize("given", [None, LENGTHS])
def test_fake_tensors_give_shapes(given):
    with FakeTensorMode():
        module = LSTM(INPUT, HIDDEN, batch_first=True)
        lengths = None if given is None else torch.tensor(given)
        output, state = module(torch.randn(BATCH, TIME, INPUT), lengths=lengths)
        output.sum().backward()
    assert output.shape == (BATCH, TIME, HIDDEN)
    assert state.c.shape == (1, BATCH, HIDDEN)
    assert module.weight_ih_l0.grad.shape == module.weight_ih_l0.shape


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_and_long_batches_under_another_default_device(backend, resets, monkeypatch):
    monkeypatch.setattr(vendor, "LARGEST_CALL", 4 * HIDDEN * BATCH * 8)  # so that time is cut
    module = LSTM(INPUT, HIDDEN, batch_first=True, chunk=2, backend=backend)
    x = inputs(time=30).requires_grad_()
    where = (torch.arange(30) % 7 == 3).expand(BATCH, 30).contiguous() if resets else None
    for lengths in (None, torch.tensor([30, 11, 0])):
        results = []
        for device in ("cpu", "meta"):
            with torch.device(device):
                output, state = module(x, lengths=lengths, resets=where)
                results += [(output, *state, *torch.autograd.grad(loss((output, state)), [x]))]
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_training_under_another_default_device(kind):
    x, lengths = torch.randn(24, TIME, 3), torch.arange(24) % TIME + 1
    y = x[:, 0, 0] if kind == "regress" else (x[:, 0, 0] > 0).long()
    y = y[:, None] if kind == "regress" else y
    size = 1 if kind == "regress" else 2
    config = ModelConfig(task=kind, input_size=3, output_size=size, hidden_size=HIDDEN)
    training = TrainingConfig(epochs=2, batch_size=8, backend="vendor", noise=0.1)
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            data = from_padded(x, y, lengths)
            start = initial_params(config, seed=0, data=data)
            found.append(fit(start, config, training, data, data).params)
            answers = predict_all(found[-1], config, data)[0]
            assert answers.device.type == "cpu"
    torch.testing.assert_close(*found, rtol=0, atol=0)


# ---- the state of rows that have ended


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [1e5, -1e30, float("inf"), float("nan")])
def test_a_row_without_steps_hands_its_state_on(backend, value):
    module = LSTM(INPUT, HIDDEN, batch_first=True, chunk=2, backend=backend)
    x, lengths = inputs(), torch.tensor(LENGTHS)
    start = [torch.randn(1, BATCH, HIDDEN) for _ in range(2)]
    for part in start:
        part[:, 2] = value
        part.requires_grad_()
    output, state = module(x, start, lengths=lengths)
    for given, found in zip(start, state, strict=True):
        torch.testing.assert_close(found[:, 2], given[:, 2], rtol=0, atol=0, equal_nan=True)
    total = state.h[:, 2].sum() + 3 * state.c[:, 2].sum() + output.sum()
    of_h, of_c, of_w = torch.autograd.grad(total, [*start, module.weight_hh_l0])
    assert torch.equal(of_h[:, 2], torch.ones(1, HIDDEN))
    assert torch.equal(of_c[:, 2], torch.full((1, HIDDEN), 3.0))
    clean = [part.detach().clone() for part in start]
    for part in clean:
        part[:, 2] = 0
    again = module(x, clean, lengths=lengths)[0]
    torch.testing.assert_close(output, again, rtol=0, atol=1e-6)
    (expected,) = torch.autograd.grad(again.sum(), [module.weight_hh_l0])
    torch.testing.assert_close(of_w, expected, rtol=1e-5, atol=1e-6)


# ---- lengths and states of other types


@pytest.mark.parametrize(
    "lengths",
    [
        list(LENGTHS),
        LENGTHS,
        np.array(LENGTHS),
        np.array(LENGTHS, np.uint16),
        np.array(LENGTHS, np.uint64),
        np.array(LENGTHS, ">i4"),
        np.array(LENGTHS, object),
        np.array(LENGTHS[::-1])[::-1],
        np.repeat(LENGTHS, 2)[::2],
        np.frombuffer(np.array(LENGTHS).tobytes(), np.int64),  # cannot be written to
        np.ma.array(LENGTHS),
        pd.Series(LENGTHS, index=[7, 8, 9]),
        pd.Series(LENGTHS, dtype="Int64"),
        pd.Index(LENGTHS),
        [np.int64(5), np.uint8(2), 0],
        [torch.tensor(5), torch.tensor(2), torch.tensor(0)],
        torch.tensor(LENGTHS, dtype=torch.int32),
        torch.tensor(LENGTHS, dtype=torch.uint8),
        torch.tensor(LENGTHS, dtype=torch.uint64),
        torch.tensor(LENGTHS).repeat_interleave(2)[::2],
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_lengths_of_any_whole_type(lengths):
    _, ours = pair()
    expected = ours(inputs(), lengths=torch.tensor(LENGTHS))[0]
    assert torch.equal(ours(inputs(), lengths=lengths)[0], expected)
    weights = dict(ours.named_parameters())
    assert torch.equal(lstm(weights, inputs(), lengths)[0], expected)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([5.0, 2.0, 0.0], r"lengths must be 3 whole numbers, got \[5.0, 2.0, 0.0\] \(list\)"),
        ([5, True, 0], r"must be 3 whole numbers, got \[5, True, 0\] \(list\)"),
        ([5, torch.tensor(True), 0], "must be 3 whole numbers, got .*tensor.True., 0"),
        ([5, [2], 0], "must be 3 whole numbers"),
        (["5", "2", "0"], "must be 3 whole numbers"),
        ([2**70, 2, 0], "must be 3 whole numbers"),
        ({5, 2, 0}, r"must be 3 whole numbers, got .* \(set\)"),
        (iter(LENGTHS), r"must be 3 whole numbers, got .* \(tuple_iterator\)"),
        (b"520", r"must be 3 whole numbers, got b'520' \(bytes\)"),
        (np.array([5.0, 2.0, 0.0]), r"must be 3 whole numbers, got .* \(float64\)"),
        (np.array([True, False, True]), r"must be 3 whole numbers, got .* \(bool\)"),
        (np.array([5, "a", 0], object), r"must be 3 whole numbers, got .* \(object\)"),
        (np.array(["2020"] * 3, "M8[s]"), r"must be 3 whole numbers, got .* \(datetime64\[s\]\)"),
        (np.ma.array(LENGTHS, mask=[0, 0, 1]), "must be 3 whole numbers, got masked_array"),
        (pd.Series([5, 2, None], dtype="Int64"), r"must be 3 whole numbers, got .* \(Int64\)"),
        (pd.Series([5.0, 2.0, 0.0]), r"must be 3 whole numbers, got 0 5.0 1 2.0 .* \(float64\)"),
        (pd.DataFrame({"n": LENGTHS}), r"lengths must have shape \(3,\), got \(3, 1\)"),
        (torch.tensor([5.0, 2.0, 0.0]), r"got torch.float32; use lengths.long\(\) if they count"),
        (torch.tensor([True, False, True]), "lengths must be int64, got torch.bool$"),
        (torch.tensor(LENGTHS).to_sparse(), r"must be dense, got torch.sparse_coo; use .*to_dense"),
        (
            torch.tensor(LENGTHS, device="meta"),
            "must hold numbers as x on cpu does, got Tensor on meta",
        ),
        ("522", "lengths must be 3 whole numbers, got '522'"),
        ([5, None, 1], "lengths must be 3 whole numbers, got"),
        ([5, 2], r"lengths must have shape \(3,\), got \(2,\)"),
        (7, r"lengths must have shape \(3,\), got \(\)"),
        ([5, 6, 1], r"lengths must lie in \[0, 5\], .* got 1 to 6"),
        ([5, -1, 1], r"lengths must lie in \[0, 5\], .* got -1 to 5"),
    ],
)
def test_other_lengths_are_refused(lengths, message):
    with pytest.raises(InputError, match=message) as caught:
        LSTM(INPUT, HIDDEN, batch_first=True)(inputs(), lengths=lengths)
    assert "\n" not in str(caught.value)


def test_lists_of_other_things_are_refused_in_compiled_code_too():
    module = LSTM(INPUT, HIDDEN, batch_first=True)
    for lengths in ([5.0, 2.0, 0.0], [5, True, 0]):
        with pytest.raises((InputError, torch._dynamo.exc.Unsupported)):
            compiled_alone(lambda x, rows=lengths: module(x, lengths=rows)[0], "eager")(inputs())
    for lengths in (list(LENGTHS), np.array(LENGTHS)):
        found = compiled_alone(lambda x, rows=lengths: module(x, lengths=rows)[0], "eager")
        expected = module(inputs(), lengths=torch.tensor(LENGTHS))[0]
        torch.testing.assert_close(found(inputs()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("resets", "message"),
    [
        (np.zeros((BATCH, TIME), bool), "resets must be a bool tensor, got ndarray"),
        ([[False] * TIME] * BATCH, "resets must be a bool tensor, got list"),
        (torch.zeros(BATCH, TIME), "resets must be bool, got torch.float32"),
        (torch.zeros(BATCH, TIME, dtype=torch.bool, device="meta"), "resets must hold numbers"),
    ],
    ids=["array", "list", "float", "meta"],
)
def test_other_resets_are_refused(resets, message):
    with pytest.raises(InputError, match=message):
        LSTM(INPUT, HIDDEN, batch_first=True)(inputs(), resets=resets)


def test_a_state_as_autocast_leaves_it_is_converted():
    _, ours = pair()
    with torch.autocast("cpu", torch.bfloat16):
        _, state = ours(inputs())
    assert state.h.dtype == torch.bfloat16
    exact = LSTMState(state.h.float(), state.c.float())
    assert torch.equal(ours(inputs(), state)[0], ours(inputs(), exact)[0])
    wide = (exact.h.double(), exact.c.double())
    assert torch.equal(ours(inputs(), wide)[0], ours(inputs(), exact)[0])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            torch.zeros(1, BATCH, HIDDEN, dtype=torch.int64),
            "must be floating on cpu, got torch.int",
        ),
        (torch.zeros(1, BATCH, HIDDEN, device="meta"), "must be floating on cpu, got .* on meta"),
        (torch.zeros(1, BATCH, HIDDEN + 1), "must have shape"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state, message):
    with pytest.raises(InputError, match=message):
        LSTM(INPUT, HIDDEN, batch_first=True)(inputs(), (state, state))


# ---- empty inputs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [None, (0, 0, 0)])
@pytest.mark.parametrize("time", [0, TIME])
def test_without_a_step_there_still_is_a_graph(time, lengths, backend):
    if time and lengths is None:
        return
    module = LSTM(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True, chunk=2, backend=backend)
    x, h0 = inputs(time=time).requires_grad_(), torch.randn(4, BATCH, HIDDEN, requires_grad=True)
    given = None if lengths is None else torch.tensor(lengths)
    output, state = module(x, (h0, h0 * 2), lengths=given)
    (output.sum() + state.h.sum() + state.c.sum()).backward()
    assert torch.equal(h0.grad, torch.full_like(h0, 3.0))
    assert not x.grad.any()
    assert not any(weight.grad.any() for weight in module.parameters())
    torch.testing.assert_close(state.h, h0)


# ---- many gradients at once


@pytest.mark.parametrize("backend", ["reference", "vendor"])
def test_batched_gradients_are_those_of_a_loop(backend):
    module = LSTM(INPUT, HIDDEN, batch_first=True, backend=backend)
    x, lengths = inputs(), torch.tensor(LENGTHS)

    def answer(x):
        return module(x, lengths=lengths)[0].sum((1, 2))

    function = torch.autograd.functional.jacobian
    torch.testing.assert_close(function(answer, x, vectorize=True), function(answer, x))
    y, eye = answer(x), torch.eye(BATCH)
    (found,) = torch.autograd.grad(y, module.weight_hh_l0, eye, True, is_grads_batched=True)
    rows = [torch.autograd.grad(y, module.weight_hh_l0, row, True)[0] for row in eye]
    torch.testing.assert_close(found, torch.stack(rows))


def test_compiled_chunks_refuse_batched_gradients_by_name():
    module = LSTM(INPUT, HIDDEN, batch_first=True, chunk=2, backend="compiled")
    y = module(inputs())[0].sum((1, 2))
    with pytest.raises(RuntimeError, match=r"takes no batched gradients .* use backend='vendor'"):
        torch.autograd.grad(y, module.weight_hh_l0, torch.eye(BATCH), is_grads_batched=True)
    with pytest.raises(RuntimeError, match="takes no batched gradients"):
        torch.autograd.functional.jacobian(lambda x: module(x)[0], inputs(), vectorize=True)


# ---- tracing, scripting, saving


class Ragged(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.inner = LSTM(INPUT, HIDDEN, batch_first=True, **options)

    def forward(self, x, lengths):
        output, state = self.inner(x, lengths=lengths)
        return output, state


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_a_trace_without_lengths_is_right_for_other_sizes(options):
    theirs, ours = pair(**options)
    traced = torch.jit.trace(ours, (inputs(),))
    x = inputs(batch=2, time=9)
    for found, expected in zip(
        itertools.chain(*map(flat, [traced(x)])),
        itertools.chain(*map(flat, [theirs(x)])),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def flat(found):
    output, (h, c) = found
    return output, h, c


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_with_lengths_is_refused():
    ragged = (inputs(), torch.tensor(LENGTHS))
    message = r"would keep the example's lengths .* torch.export, or .*dynamo=True"
    with pytest.raises(InputError, match=message):
        torch.jit.trace(Ragged(), ragged)
    with pytest.raises(InputError, match=message):
        torch.onnx.export(Ragged(), ragged, io.BytesIO(), dynamo=False)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size:UserWarning")
def test_the_old_exporter_of_onnx_is_right_without_lengths():
    import onnxruntime

    theirs, ours = pair()
    sink, axes = io.BytesIO(), {"x": {0: "batch", 1: "time"}}
    torch.onnx.export(
        ours.eval(), (inputs(),), sink, dynamo=False, input_names=["x"], dynamic_axes=axes
    )
    session = onnxruntime.InferenceSession(sink.getvalue())
    x = inputs(batch=3, time=9)
    found = session.run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, theirs(x)[0].detach().numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_is_refused():
    with pytest.raises(InputError, match=r"torch.jit.script cannot compile LSTM; use torch.export"):
        torch.jit.script(LSTM(INPUT, HIDDEN))


LOADS = """
import sys, lstm_compile, torch
program = torch.export.load(sys.argv[1]).module()
x, lengths = torch.load(sys.argv[2])
output, state = program(x, lengths)
torch.save((output, type(state).__name__, *state), sys.argv[3])
"""


@pytest.mark.slow
def test_a_saved_program_is_loaded_elsewhere(tmp_path):
    module, x = Ragged(), inputs()
    lengths = torch.tensor(LENGTHS)
    program = torch.export.export(module, (x, lengths))
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((x, lengths), tmp_path / "inputs.pt")
    paths = [str(tmp_path / name) for name in ("program.pt2", "inputs.pt", "outputs.pt")]
    done = subprocess.run([sys.executable, "-c", LOADS, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    output, kind, h, c = torch.load(tmp_path / "outputs.pt")
    expected, state = module(x, lengths)
    assert kind == "LSTMState"
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close((h, c), tuple(state))


@pytest.mark.parametrize("first", ["lstm_compile", "torch", "lstm_compile.recurrence.module"])
def test_programs_find_the_operator_in_whatever_order_is_imported(first):
    code = f"import {first}, lstm_compile, torch; torch.ops.lstm_compile.recurrence.default"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_whole(way):
    _, ours = pair(num_layers=2)
    ours(inputs())
    if way == "deepcopy":
        other = copy.deepcopy(ours)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(ours))
    else:
        sink = io.BytesIO()
        torch.save(ours, sink)
        sink.seek(0)
        other = torch.load(sink, weights_only=False)
    assert torch.equal(other(inputs())[0], ours(inputs())[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_quantisation_leaves_it_in_float():
    """As the documentation says: PyTorch's eager quantisation swaps nn.LSTM itself only."""
    module = nn.Sequential(LSTM(INPUT, HIDDEN, batch_first=True))
    quantised = torch.ao.quantization.quantize_dynamic(module, {nn.LSTM, nn.Linear})
    assert type(quantised[0]) is LSTM
    assert torch.equal(quantised(inputs())[0], module(inputs())[0])


# ---- forked processes


@pytest.mark.skipif(sys.platform != "linux", reason="other systems start processes anew")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_is_refused_where_it_would_hang(threads):
    code = f"""
import os, sys, torch
from lstm_compile import LSTM
torch.set_num_threads(2)
module, x = LSTM(4, 6, batch_first=True), torch.randn(3, 5, 4)
module(x)
child = os.fork()
if child == 0:
    torch.set_num_threads({threads})
    try:
        module(x)
        os._exit(0)
    except RuntimeError as error:
        os._exit(7 if "was forked after an LSTM ran in several threads" in str(error) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ("0" if threads == 1 else "7"), done.stderr


# ---- what PyTorch's own tests ask of its recurrent modules


def test_all_weights_are_in_the_order_of_nn_lstm():
    theirs, ours = pair(num_layers=2, bidirectional=True)
    for expected, found in zip(theirs.all_weights, ours.all_weights, strict=True):
        assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences(options, enforce_sorted):
    theirs, ours = pair(**options)
    lengths = [5, 3, 2] if enforce_sorted else [2, 5, 3]
    packed = pack_padded_sequence(inputs(), lengths, True, enforce_sorted)
    for hx in (None, (torch.randn(len(theirs.all_weights), BATCH, HIDDEN),) * 2):
        expected, state = theirs(packed, hx)
        found, own = ours(packed, hx)
        torch.testing.assert_close(found.data, expected.data)
        torch.testing.assert_close(tuple(own), state)
        assert torch.equal(pad_packed_sequence(found)[1], pad_packed_sequence(expected)[1])


def test_a_list_of_sequences():
    theirs, ours = pair()
    rows = [torch.randn(count, INPUT) for count in (4, 3, 3, 1)]
    found, expected = ours(pack_sequence(rows))[0], theirs(pack_sequence(rows))[0]
    torch.testing.assert_close(found.data, expected.data)


@pytest.mark.parametrize(
    "x",
    [torch.randn(BATCH, TIME, INPUT + 1), torch.randn(INPUT), torch.randn(1, 2, 3, INPUT)],
    ids=lambda x: str(tuple(x.shape)),
)
def test_inputs_that_nn_lstm_refuses_are_refused(x):
    theirs, ours = pair()
    with pytest.raises((RuntimeError, ValueError)):
        theirs(x)
    with pytest.raises(InputError):
        ours(x)


@pytest.mark.parametrize("shape", [(2, BATCH, HIDDEN), (1, BATCH + 1, HIDDEN), (BATCH, HIDDEN)])
def test_states_that_nn_lstm_refuses_are_refused(shape):
    theirs, ours = pair()
    hx = (torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(RuntimeError):
        theirs(inputs(), hx)
    with pytest.raises(InputError):
        ours(inputs(), hx)


@pytest.mark.parametrize("wrong", [{"hidden_size": 0}, {"num_layers": 0}, {"dropout": 1.5}])
def test_constructors_that_nn_lstm_refuses_are_refused(wrong):
    options = {"input_size": 3, "hidden_size": 4} | wrong
    with pytest.raises(ValueError, match=r"hidden_size|num_layers|dropout"):
        nn.LSTM(**options)
    with pytest.raises(InputError):
        LSTM(**options)


def test_state_dicts_are_loaded_strictly():
    theirs, ours = pair()
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({})
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(nn.LSTM(INPUT, HIDDEN + 1).state_dict())
    assert ours.load_state_dict(theirs.state_dict(), assign=True).missing_keys == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_modules_change_their_dtype(dtype):
    theirs, ours = (module.to(dtype) for module in pair())
    x = inputs().to(dtype)
    bound = 2e-2 if dtype is torch.bfloat16 else 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=bound, atol=bound)
    assert ours(x)[0].dtype == dtype


def test_forward_hooks_and_no_grad():
    _, ours = pair()
    seen = []
    ours.register_forward_hook(lambda module, given, found: seen.append(found[0].requires_grad))
    ours(inputs())
    with torch.no_grad():
        ours(inputs())
    ours.requires_grad_(False)
    ours(inputs())
    assert seen == [True, False, False]


def test_share_memory_and_zero_grad():
    theirs, ours = pair()
    assert ours.share_memory() is ours
    assert all(weight.is_shared() for weight in ours.parameters())
    loss(ours(inputs())).backward()
    ours.zero_grad()
    assert all(weight.grad is None for weight in ours.parameters())
    assert_alike(theirs, ours)


# ---- compiled code


@pytest.mark.parametrize("backend", ["reference", "vendor"])
@pytest.mark.parametrize("lengths", [[9, 9, 9], [7, 0, 5], [5, -1, 2]])
def test_compiled_code_refuses_lengths_out_of_range(backend, lengths):
    module = LSTM(INPUT, HIDDEN, batch_first=True, backend=backend)
    compiled = compiled_alone(lambda x, rows: module(x, lengths=rows)[0], "aot_eager")
    with pytest.raises(InputError, match=r"lengths must lie in \[0, 5\]"), torch.no_grad():
        compiled(inputs(), torch.tensor(lengths))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_of_the_reference_is_right_for_other_sizes():
    theirs, ours = pair()
    ours.backend = "reference"
    traced = torch.jit.trace(ours, (inputs(),))
    x = inputs(batch=2, time=9)
    torch.testing.assert_close(traced(x)[0], theirs(x)[0])


def test_no_rows_have_no_lengths():
    x = torch.randn(0, TIME, INPUT)
    for lengths in ([], np.array([]), torch.zeros(0, dtype=torch.int64)):
        assert LSTM(INPUT, HIDDEN, batch_first=True)(x, lengths=lengths)[0].shape == (0, 5, HIDDEN)
