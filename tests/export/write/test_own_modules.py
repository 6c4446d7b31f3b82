"""Modules of one's own that hold an `LSTM` and return its state: exported, asked and quantised."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lstm_compile import GRU, LSTM, Recurrent
from lstm_compile.errors import InputError
from lstm_compile.export import translation_table
from lstm_compile.export.proof.runtimes import RUNTIMES, IsolatedRuntime

# torch.onnx's own: it copies with a deprecated test, and dislikes one name for equal sizes
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*axis name. batch:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*different number of inputs:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size:UserWarning"),
]
SHAPES = [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}]
CASES = [(4, 20, (20, 7, 3, 15)), (3, 9, (9, 1, 0)), (1, 6, (4,)), (2, 5, (0, 0))]


class Own(nn.Module):
    """Output and state of an LSTM, from zeros or from a state that is given."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = LSTM(8, 32, batch_first=True, **options)

    def forward(self, x, lengths, *state):
        output, (h, c) = self.lstm(x, state or None, lengths)
        return output, h, c


def exported(module, *state, profile="portable"):
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    dynamic = [{0: batch, 1: time}, {0: batch}, *([({1: batch},) * 2] if state else [])]
    program = torch.onnx.export(
        module.eval(),
        (torch.zeros(3, 5, 8), torch.tensor([5, 2, 0]), *state),
        dynamo=True,
        verbose=False,
        dynamic_shapes=tuple(dynamic),
        custom_translation_table=translation_table(profile),
    )
    return program.model_proto


def ask(model, runtime, feeds):
    """The answers of a runtime to each of some inputs."""
    names = ([v.name for v in part] for part in (model.graph.input, model.graph.output))
    inputs, outputs = names
    session = IsolatedRuntime(runtime, model.SerializeToString(), inputs, outputs)
    try:
        return [session(dict(zip(inputs, feed, strict=True))) for feed in feeds]
    finally:
        session.close()


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_every_runtime_gives_the_state(options):
    module = Own(**options)
    model = exported(module)
    feeds = [(torch.randn(batch, time, 8), torch.tensor(rows)) for batch, time, rows in CASES]
    arrays = [[value.numpy() for value in feed] for feed in feeds]
    for name in (name for name, runtime in RUNTIMES.items() if runtime.installed):
        if name == "tract" and options.get("bidirectional"):
            continue  # it stops at a subtraction of lengths, as it does for other files
        for feed, found in zip(feeds, ask(model, name, arrays), strict=True):
            for one, other in zip(found, module(*feed), strict=True):
                expected = other.detach().numpy()
                np.testing.assert_allclose(one.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("value", [1e5, -1e30, float("inf"), float("nan")])
def test_a_row_without_steps_hands_its_state_on(value):
    module = Own()
    with pytest.warns(UserWarning, match=r"weights of 8 bits would be useless.*table\('ort'\)"):
        model = exported(module, torch.zeros(1, 3, 32), torch.zeros(1, 3, 32))
    state = torch.randn(2, 1, 3, 32)
    state[:, :, 2] = value
    feed = torch.randn(3, 5, 8), torch.tensor([5, 2, 0]), *state
    arrays = [[part.numpy() for part in feed]]
    for name in ("onnxruntime", "onnx"):
        ((output, h, c),) = ask(model, name, arrays)
        np.testing.assert_array_equal(h[:, 2], state[0, :, 2])
        np.testing.assert_array_equal(c[:, 2], state[1, :, 2])
        for one, other in zip((output[:2], h[:, :2], c[:, :2]), module(*feed), strict=True):
            expected = other.detach().numpy()
            expected = expected[:2] if one.shape == expected[:2].shape else expected[:, :2]
            np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.parametrize("profile", ["portable", "ort"])
def test_weights_of_eight_bits_are_as_good_as_those_of_nn_lstm(profile, tmp_path):
    """`reduce_range`, as processors without VNNI saturate products of 8 bits.

    The module begins from zeros, and with profile `ort` from a state that is given.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    module = Own()
    theirs = nn.LSTM(8, 32, batch_first=True)
    theirs.load_state_dict(module.lstm.state_dict())
    given = () if profile == "portable" else tuple(torch.randn(2, 1, 3, 32).tanh())
    onnx.save(exported(module, *given, profile=profile), tmp_path / "ours.onnx")
    program = torch.onnx.export(
        theirs.eval(), (torch.zeros(3, 5, 8),), tmp_path / "theirs.onnx", dynamo=False
    )
    assert program is None
    quantised = []
    for name in ("ours", "theirs"):
        target = tmp_path / f"{name}.int8.onnx"
        quantize_dynamic(tmp_path / f"{name}.onnx", target, reduce_range=True)
        quantised.append(onnx.load(target))
    ours, theirs_int8 = quantised
    assert "DynamicQuantizeLSTM" in {node.op_type for node in ours.graph.node}
    x = torch.randn(3, 5, 8)
    expected = [value.detach().numpy() for value in module(x, torch.tensor([5, 5, 5]))]
    (reference,) = ask(theirs_int8, "onnxruntime", [[x.numpy()]])
    bound = max(float(np.abs(a - b).max()) for a, b in zip(reference, expected, strict=True))
    assert bound < 0.02
    for rows in ([5, 5, 5], [5, 2, 1], [3, 0, 5]):
        lengths = torch.tensor(rows)
        feed = [x, lengths, *given]
        (found,) = ask(ours, "onnxruntime", [[value.numpy() for value in feed]])
        for one, other in zip(found, module(*feed), strict=True):
            assert np.abs(one - other.detach().numpy()).max() < 2 * bound


def test_there_is_no_other_profile():
    with pytest.raises(InputError, match="profile must be one of portable, ort; got 'onnx'"):
        translation_table("onnx")


class OwnCell(nn.Module):
    """Output and state of a GRU or of any other cell."""

    def __init__(self, cell, **options):
        super().__init__()
        torch.manual_seed(0)
        kind = GRU if cell == "gru" else partial(Recurrent, cell)
        self.layers = kind(8, 32, **options)
        self.is_gru = cell == "gru"

    def forward(self, x, lengths, *state):
        given = (state[0] if self.is_gru else state) if state else None
        output, after = self.layers(x, given, lengths)
        return output, *([after] if self.is_gru else after)


@pytest.mark.parametrize(
    ("given", "has_lengths", "batch_first"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, True)],
)
@pytest.mark.parametrize("cell", ["gru", "peephole-lstm", "slstm"])
def test_modules_of_any_cell_export(cell, given, has_lengths, batch_first):
    options = {"batch_first": batch_first, "bidirectional": has_lengths, "backend": "reference"}
    module = OwnCell(cell, **options).eval()
    layers, parts = 1 + has_lengths, {"gru": 1, "peephole-lstm": 2, "slstm": 4}[cell]
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")

    def inputs(rows, steps, lengths):
        x = torch.randn(rows, steps, 8)
        state = [torch.rand(layers, rows, 32) for _ in range(parts * given)]
        return (x if batch_first else x.transpose(0, 1), lengths if has_lengths else None, *state)

    axes = {0: batch, 1: time} if batch_first else {0: time, 1: batch}
    dynamic = axes, {0: batch} if has_lengths else None, ({1: batch},) * parts
    program = torch.onnx.export(
        module,
        inputs(3, 5, torch.tensor([5, 2, 0])),
        dynamo=True,
        verbose=False,
        dynamic_shapes=dynamic if given else dynamic[:2],
        custom_translation_table=translation_table(),
    )
    feed = inputs(4, 20, torch.tensor([20, 7, 1, 0]))
    arrays = [value.numpy() for value in feed if value is not None]
    (found,) = ask(program.model_proto, "onnxruntime", [arrays])
    for one, other in zip(found, module(*feed), strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), atol=1e-5)
