"""Models on a device that is not there: docs/cuda.md."""

import pytest
import torch
from forecast_cases import FORECASTERS, inputs, make_forecaster
from pretended_cuda import PretendedCuda
from torch.utils._pytree import tree_leaves, tree_map

from lstm_compile import ModelConfig, init_params
from lstm_compile.model.batch import Given
from lstm_compile.model.model import complete, forward

SEQUENCES = {
    "classify": {},
    "regress": {"pooling": "attention"},
    "regress-steps": {"bidirectional": False},
    "tag": {"bidirectional": False},
    "lm": {"bidirectional": False, "vocabulary_size": 4, "embedding_size": 3},
}
NAMES = [*SEQUENCES, "transformer", *(f"forecast, {name}" for name in FORECASTERS)]
TRACED = [*SEQUENCES, "transformer", "forecast, season, revin", "forecast, known, static"]


def case(name):
    """A configuration, then weights, x, lengths and what a forecast is given."""
    if name.startswith("forecast, "):
        params, config = make_forecaster(**FORECASTERS[name.removeprefix("forecast, ")])
        return config, params, *inputs(config, (6, 3))
    changes = SEQUENCES.get(name, {"transformer_layers": 1, "heads": 1})
    task = name if name in SEQUENCES else "classify"
    size = 1 if task == "lm" else 3
    config = ModelConfig(task=task, input_size=size, output_size=4, hidden_size=5, **changes)
    x = torch.randn(2, 6, 3) if task != "lm" else torch.randint(4, (2, 6))
    return config, init_params(config, 0), x, torch.tensor([6, 3]), Given()


def to(device, *parts):
    return tree_map(lambda part: part.to(device) if isinstance(part, torch.Tensor) else part, parts)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_answers_there_with_lengths_on_either_device(name, where):
    config, params, x, lengths, given = case(name)
    expected = complete(params, config, x, lengths, given=given)
    with PretendedCuda() as cuda:
        params, x, given = to("cuda", params, x, given)
        lengths = lengths.to(where)
        cuda.reads.clear()
        found = complete(params, config, x, lengths, given=given, backend="vendor")
        steps = config.horizon if config.decoder == "recursive" else 1
        assert len(cuda.reads) == (where == "cuda") * steps  # one for each call of the stack
    torch.testing.assert_close(found.inner, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRACED)
def test_a_trace_for_another_device_makes_nothing_on_the_cpu(name):
    """PyTorch refuses two devices in one operation of a trace; "meta" is another one too."""
    config, *parts = case(name)

    class Module(torch.nn.Module):
        def forward(self, params, x, lengths, given):
            return forward(params, config, x, lengths, given=given)[0]

    program = torch.export.export(Module(), tuple(to("meta", *parts)), strict=False)
    values = [leaf for node in program.graph.nodes for leaf in tree_leaves(node.meta.get("val"))]
    assert {value.device.type for value in values if isinstance(value, torch.Tensor)} == {"meta"}
