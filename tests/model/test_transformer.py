"""Transformer blocks after the LSTM stack: alone, in models of every task, in ONNX files."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from cases import compiled_alone
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_cases import SMALL, save_npz, two_classes

from lstm_compile import ModelConfig, forward, init_params
from lstm_compile.cli.app import app
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.lanes import carried, chunks
from lstm_compile.data.schema import Vocabulary
from lstm_compile.errors import InputError
from lstm_compile.evaluation.perplexity import score_text
from lstm_compile.export import export_onnx, export_streaming, verify_onnx
from lstm_compile.export.use.generate import Sampling, generate
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import Model, numbered_schema, save_model
from lstm_compile.model.encoder import block_shapes, rotations, transform
from lstm_compile.model.header import count_parameters
from lstm_compile.model.model import param_shapes, predict, trainable
from lstm_compile.tasks.metrics import text_metrics
from lstm_compile.training.warm_start import warm_start

NAN = float("nan")
FAST = ["eager", "onnxruntime", "openvino"]
TEXT = {"input_size": 1, "vocabulary_size": 7}
TASKS = {
    "classify": {"output_size": 4},
    "classify, forward, last": {"output_size": 4, "bidirectional": False, "pooling": "last"},
    "classify tokens": {"output_size": 4, "embedding_size": 3, **TEXT},
    "regress": {"task": "regress", "output_size": 2, "heads": 3, "num_layers": 1},
    "forecast": {"task": "forecast", "output_size": 2, "horizon": 3, "context": 6},
    "tag": {"task": "tag", "output_size": 4},
    "tag, forward": {"task": "tag", "output_size": 4, "bidirectional": False},
    "lm": {"task": "lm", "output_size": 7, "bidirectional": False, "embedding_size": 3, **TEXT},
}
every_task = pytest.mark.parametrize("name", TASKS)


def make_model(name="classify", **changes):
    """Weights far from where they start, so that attention is sharp and scalers do something."""
    fields = {"task": "classify", "input_size": 3, "hidden_size": 6, "transformer_layers": 2}
    config = ModelConfig(**{**fields, "heads": 2, **TASKS[name], **changes})
    generator = torch.Generator().manual_seed(0)
    params = {
        key: value + 0.3 * torch.randn(value.shape, generator=generator)
        for key, value in init_params(config, 0).items()
    }
    for key in params:
        if key.endswith("scaler.scale"):
            params[key] = params[key].abs() + 0.5
    return Model(params, config, numbered_schema(config), {})


def inputs(config, lengths, time, seed=0, padding=NAN):
    """Numbers, or tokens, with `padding`, or a token that there is not, behind each row's end."""
    generator = torch.Generator().manual_seed(seed)
    outside = torch.arange(time) >= lengths[:, None]
    if config.vocabulary_size:
        x = torch.randint(0, config.vocabulary_size, (len(lengths), time), generator=generator)
        return x.masked_fill(outside, 12345 if padding else 0)
    x = torch.randn(len(lengths), time, config.input_size, generator=generator)
    return x.masked_fill(outside[..., None], padding)


def blocks(width, count=1, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{index}.{name}": torch.randn(shape, generator=generator, dtype=dtype) * 0.5
        for index in range(count)
        for name, shape in block_shapes(width).items()
    }


def draw(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# the block ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 2, 1]])
def test_without_positions_a_block_is_torchs_own(monkeypatch, causal, lengths):
    layer = nn.TransformerEncoderLayer(
        12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == block_shapes(
        12
    )
    params, x = blocks(12), draw(3, 5, 12)
    layer.load_state_dict({name.removeprefix("0."): value for name, value in params.items()})
    lengths = None if lengths is None else torch.tensor(lengths)
    padding = None if lengths is None else torch.arange(5) >= lengths[:, None]
    later = torch.ones(5, 5).triu(1).bool() if causal else None
    expected = layer.train()(x, later, padding)
    if padding is not None:
        expected = expected.masked_fill(padding[..., None], 0.0)
    still = torch.ones(5, 2).double(), torch.zeros(5, 2).double()
    monkeypatch.setattr("lstm_compile.model.encoder.rotations", lambda *_: still)
    found = transform(params, x, lengths, heads=3, causal=causal)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_scores_depend_on_how_far_steps_are_apart(size):
    from lstm_compile.model.encoder import _turned

    rotation = rotations(40, size, draw(1))
    q, k = (_turned(draw(size, seed=seed).expand(40, size), rotation) for seed in (1, 2))
    scores = q @ k.T
    torch.testing.assert_close(scores[3:, 3:], scores[:-3, :-3], atol=1e-12, rtol=0)
    torch.testing.assert_close(q.norm(dim=1), q.norm(dim=1)[0].expand(40))  # a rotation
    if size > 1:
        assert (scores[0, 1:] - scores[0, :-1]).abs().min() > 1e-6


def test_pairs_turn_by_the_angles_of_the_paper():
    from lstm_compile.model.encoder import _turned

    x = draw(9, 8)
    angle = torch.arange(9).double()[:, None] * 10_000.0 ** (-torch.arange(4).double() / 4)
    turned = torch.complex(x[:, :4], x[:, 4:]) * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat([turned.real, turned.imag], 1)
    torch.testing.assert_close(_turned(x, rotations(9, 8, x)), expected)


def test_gradients_are_those_of_finite_differences():
    params = blocks(4, count=2)
    names, x, lengths = list(params), draw(3, 4, 4), torch.tensor([4, 0, 2])
    x[torch.arange(4) >= lengths[:, None]] = 0.0

    def run(x, *values):
        return transform(dict(zip(names, values, strict=True)), x, lengths, heads=2, causal=False)

    leaves = [value.requires_grad_() for value in (x, *params.values())]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_bfloat16_counts_steps_beyond_256():
    half, whole = (rotations(600, 4, draw(1, dtype=dtype))[0] for dtype in (torch.bfloat16, None))
    assert (half.float() - whole).abs().max() < 0.005


def test_a_fresh_hybrid_answers_as_its_lstm_alone():
    plain = ModelConfig(task="tag", input_size=3, output_size=4)
    config = ModelConfig(task="tag", input_size=3, output_size=4, transformer_layers=2)
    params, again = init_params(config, 5), init_params(config, 5)
    assert all(params[name].equal(again[name]) for name in params)
    alone = {name: value for name, value in params.items() if name in param_shapes(plain)}
    x = draw(2, 9, 3, dtype=torch.float32)
    assert forward(params, config, x)[0].equal(forward(alone, plain, x)[0])
    for part in params["transformer.1.self_attn.in_proj_weight"].chunk(3):
        bound = (6 / (128 + 128)) ** 0.5
        assert 0.98 * bound < part.abs().max() <= bound


@pytest.mark.parametrize("name", ["tag, forward", "lm"])
def test_blocks_see_nothing_across_resets(name):
    """A row that holds three sequences answers what the three answer as rows of their own."""
    model = make_model(name)
    lengths = torch.tensor([11, 6])
    x = inputs(model.config, lengths, 11, padding=0)
    resets = torch.zeros(2, 11, dtype=torch.bool)
    resets[0, [4, 5]] = resets[1, 0] = True
    answer, _ = forward(model.params, model.config, x, lengths, resets=resets)
    for start, end in ((0, 4), (4, 5), (5, 11)):
        alone, _ = forward(model.params, model.config, x[:1, start:end])
        torch.testing.assert_close(answer[:1, start:end], alone, atol=1e-5, rtol=1e-5)
    alone, _ = forward(model.params, model.config, x[1:, :6])
    torch.testing.assert_close(answer[1:, :6], alone, atol=1e-5, rtol=1e-5)


# in a model ---------------------------------------------------------------------------------------


@every_task
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    more=st.integers(0, 4),
    padding=st.sampled_from([NAN, float("inf"), -1e30, 0.0]),
    seed=st.integers(0, 99),
)
def test_a_row_alone_is_the_row_in_a_batch(name, lengths, more, padding, seed):
    params, config, *_ = double(name)
    lengths = torch.tensor(lengths)
    x = inputs(config, lengths, int(lengths.max()) + more, seed, padding)
    x = x.double() if x.is_floating_point() else x
    together = predict(params, config, x, lengths)
    assert together.isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        alone = predict(params, config, x[row : row + 1, :length], lengths[row : row + 1])[0]
        same = together[row, :length] if config.task in ("tag", "lm") else together[row]
        torch.testing.assert_close(alone, same, atol=1e-11, rtol=0)
        if config.task in ("tag", "lm"):
            assert (together[row, length:] == 0).all()


@cache
def double(name):
    params, *rest = make_model(name)
    return ({key: value.double() for key, value in params.items()}, *rest)


@every_task
def test_padding_changes_no_gradient(name):
    params, config, *_ = double(name)
    lengths = torch.tensor([7, 3, 0])

    def gradients(padding, time):
        leaves = {key: value.clone().requires_grad_() for key, value in trainable(params).items()}
        x = inputs(config, lengths, 7, padding=padding)[:, :7]
        if time > 7:
            more = torch.full((3, time - 7, *x.shape[2:]), 5, dtype=x.dtype)
            x = torch.cat([x, more], 1)
        x = x.double() if x.is_floating_point() else x
        y, _ = forward({**params, **leaves}, config, x, lengths)
        found = torch.autograd.grad(y.square().sum(), list(leaves.values()), allow_unused=True)
        return dict(zip(leaves, found, strict=True))

    plain, ragged = gradients(0.0, 7), gradients(NAN, 11)
    for key, value in plain.items():
        if value is not None:
            torch.testing.assert_close(ragged[key], value, atol=1e-10, rtol=1e-8)
    moved = [key for key in plain if key.startswith("transformer.")]
    assert all(plain[key].abs().max() > 0 for key in moved if "in_proj_bias" not in key)


@pytest.mark.parametrize("name", ["tag, forward", "lm"])
def test_no_step_sees_what_comes_after_it(name):
    params, config, *_ = make_model(name)
    x = inputs(config, torch.tensor([8, 8]), 8)
    other = inputs(config, torch.tensor([8, 8]), 8, seed=1)
    changed = torch.cat([x[:, :5], other[:, 5:]], 1)
    before, after = (predict(params, config, each) for each in (x, changed))
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=0)
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


def test_blocks_of_a_bidirectional_model_look_both_ways():
    params, x = blocks(12, dtype=torch.float32), draw(1, 6, 12, dtype=torch.float32)
    changed = x.clone()
    changed[:, 5] += 1.0
    for causal in (True, False):
        before, after = (transform(params, v, heads=2, causal=causal) for v in (x, changed))
        assert bool((before[:, 0] == after[:, 0]).all()) == causal


def test_a_row_of_length_zero_predicts_from_the_bias_alone():
    params, config, *_ = make_model()
    x = torch.full((2, 4, 3), NAN)
    logits, _ = forward(params, config, x, torch.tensor([0, 0]))
    assert logits.equal(params["head.bias"].expand(2, -1))
    assert forward(params, config, x[:, :0], torch.tensor([0, 0]))[0].equal(logits)
    assert forward(params, config, x[:0], torch.zeros(0, dtype=torch.int64))[0].shape == (0, 4)


def test_full_lengths_and_no_lengths_are_the_same():
    params, config, *_ = make_model()
    params = {key: value.double() for key, value in params.items()}
    x = inputs(config, torch.tensor([6, 6]), 6).double()
    full = forward(params, config, x, torch.tensor([6, 6]))[0]
    torch.testing.assert_close(forward(params, config, x)[0], full, atol=1e-12, rtol=0)


def test_dropout_acts_in_training_only():
    params, config, *_ = make_model(dropout=0.5, head_dropout=0.0, num_layers=1)
    x = inputs(config, torch.tensor([6, 6]), 6)
    torch.manual_seed(0)
    first, second = (forward(params, config, x, training=True)[0] for _ in "ab")
    assert not first.equal(second)
    assert forward(params, config, x)[0].equal(forward(params, config, x)[0])


def test_far_beyond_any_trained_length_answers_stay_sound():
    params, config, *_ = make_model("tag, forward")
    x = inputs(config, torch.tensor([3000]), 3000)
    assert predict(params, config, x).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classify", "lm"])
def test_one_graph_without_a_break_gives_the_same_values_and_gradients(name):
    params, config, *_ = make_model(name, num_layers=1, transformer_layers=1)
    params = {k: v.requires_grad_(k in trainable(params)) for k, v in params.items()}
    lengths = torch.tensor([5, 2, 0])
    x = inputs(config, lengths, 5)

    def run(params, x, lengths):
        return forward(params, config, x, lengths, backend="vendor")[0]

    learned = [value for value in params.values() if value.requires_grad]
    found, expected = (f(params, x, lengths) for f in (compiled_alone(run), run))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    pairs = [torch.autograd.grad(y.square().sum(), learned) for y in (found, expected)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of torch's vmap
def test_functional_transforms_reach_the_blocks():
    params, config, *_ = make_model(num_layers=1, transformer_layers=1)
    x = inputs(config, torch.tensor([5] * 6), 5).view(2, 3, 5, 3)

    def loss(params, x):
        return forward(params, config, x, backend="vendor")[0].square().sum()

    both = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for index in range(2):
        one = torch.func.grad(loss)(params, x[index])
        for name, value in one.items():
            torch.testing.assert_close(both[name][index], value, atol=1e-4, rtol=1e-4)


def test_bfloat16_autocast_comes_close():
    params, config, *_ = make_model()
    x, lengths = inputs(config, torch.tensor([6, 2]), 6), torch.tensor([6, 2])
    with torch.autocast("cpu", torch.bfloat16):
        rough = forward(params, config, x, lengths)[0]
    exact = forward(params, config, x, lengths)[0]
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()


# config -------------------------------------------------------------------------------------------


def test_a_model_without_blocks_says_nothing_of_them():
    plain = ModelConfig(task="classify", input_size=3, output_size=4)
    assert not {"transformer_layers", "heads"} & set(plain.to_dict())
    hybrid = ModelConfig(task="classify", input_size=3, output_size=4, transformer_layers=1)
    assert hybrid.to_dict()["heads"] == 4
    assert ModelConfig.from_json(hybrid.to_json()) == hybrid


@pytest.mark.parametrize(("hidden", "heads"), [(64, 4), (5, 2), (6, 4), (7, 2)])
def test_heads_left_out_are_what_fits(hidden, heads):
    config = ModelConfig(
        task="tag", input_size=3, output_size=4, hidden_size=hidden, transformer_layers=1
    )
    assert config.heads == heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_layers": 1, "heads": 5}, r"heads must divide the width 12 \(hidden_size"),
        ({"heads": 4}, "heads are for Transformer blocks; got heads 4, transformer_layers 0; set"),
        ({"transformer_layers": -1}, "transformer_layers must be at least 0, got -1"),
        ({"transformer_layers": 65}, "transformer_layers must be at most 64, got 65"),
        ({"transformer_layers": 1, "heads": -2}, "heads must be at least 0, got -2"),
        ({"transformer_layers": 1.0}, "transformer_layers must be of type int, got 1.0"),
    ],
)
def test_what_makes_no_blocks_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(task="classify", input_size=3, output_size=4, hidden_size=6, **changes)


# text ---------------------------------------------------------------------------------------------


VERSE = "the cat sat on the mat, and the rat sat on the cat.\n" * 12


def text_model(window):
    vocabulary = Vocabulary("char", tuple(sorted(set(VERSE))))
    size = len(vocabulary)
    model = make_model("lm", vocabulary_size=size, output_size=size)
    schema = replace(model.schema, vocabulary=vocabulary)
    return model._replace(schema=schema, training={"unroll": window})


def test_text_is_scored_by_windows_that_hand_the_state_on():
    params, config, schema, _ = text_model(16)
    tokens = torch.tensor(schema.vocabulary.encode(VERSE), dtype=torch.uint8)
    corpus = Corpus(tokens, torch.tensor([0, len(tokens)]), schema.vocabulary)
    found = text_metrics(score_text(params, config, corpus, time=16))["loss"]
    state, total, count = None, 0.0, 0
    for batch, fresh in chunks(corpus, 16, 16):
        before = carried(state, fresh)
        logits, state = forward(params, config, batch.x, batch.lengths, before)
        cost = nn.functional.cross_entropy(logits.mT, batch.y, ignore_index=-100, reduction="sum")
        total, count = total + float(cost), count + int(batch.lengths.sum())
    assert found == pytest.approx(total / count, abs=1e-6)
    assert abs(found - text_metrics(score_text(params, config, corpus))["loss"]) > 1e-4


def test_generated_text_is_that_of_windows_read_from_the_start(tmp_path):
    model = text_model(8)
    save_model(tmp_path / "model.safetensors", *model)
    prompts, how = ["the cat sat on", "a"], Sampling(temperature=0.0)
    texts = list(prompts)
    for piece in generate(tmp_path, prompts, 30, how):
        texts[piece.prompt] += piece.text
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = torch.tensor(model.schema.vocabulary.encode(text))
        state, guesses = None, []
        for part in tokens.split(8):
            logits, state = forward(model.params, model.config, part[None], None, state)
            guesses += logits[0].argmax(-1).tolist()
        assert guesses[len(prompt) - 1 : -1] == tokens[len(prompt) :].tolist()


# files --------------------------------------------------------------------------------------------


@cache
def exported(name):
    return to_onnx(make_model(name)).SerializeToString()


@pytest.mark.slow
@every_task
def test_runtimes_agree_with_the_reference(name, tmp_path):
    (tmp_path / "m.onnx").write_bytes(exported(name))
    report = verify_onnx(make_model(name), tmp_path / "m.onnx", FAST)
    assert report.passed, "\n".join(report.lines())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_chunks_agree_too(tmp_path):
    report = export_onnx(make_model(), tmp_path / "model.onnx")
    assert {"eager", "compiled"} <= {row.runtime for row in report.parity.rows}


@pytest.mark.slow
@every_task
def test_the_graph_is_portable_and_its_weights_have_their_names(name):
    model, graph = make_model(name), onnx.load_model_from_string(exported(name)).graph
    operators = {node.op_type for node in graph.node}
    banned = {"If", "Loop", "Scan", "IsNaN", "Split", "Attention", "Trilu", "Clip", "CastLike"}
    assert not operators & banned
    count = model.config.transformer_layers
    ops = [node.op_type for node in graph.node]
    assert [ops.count(op) for op in ("LayerNormalization", "Erf")] == [2 * count, count]
    found = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert {key for key in model.params if key.startswith("transformer.")} <= set(found)
    weights = {key: shape for key, shape in found.items() if "." in key}
    shapes = {key: list(value.shape) for key, value in model.params.items()}
    assert count_parameters(weights) == count_parameters(shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classify", "tag, forward", "lm"])
def test_tract_agrees_too(name, tmp_path):
    tract = pytest.importorskip("tract")
    model, path = make_model(name), tmp_path / "m.onnx"
    path.write_bytes(exported(name))
    runnable = tract.onnx().load(path).into_model().into_runnable()
    for given_lengths, time in (([7, 3, 0], 7), ([1], 1), ([40, 11], 40)):
        lengths = torch.tensor(given_lengths)
        x = inputs(model.config, lengths, time, padding=0.0)
        expected = predict(model.params, model.config, x, lengths)
        found = runnable.run([x.numpy(), lengths.numpy()])[0].to_numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_more_than_600_steps_stay_within_the_long_tolerance():
    model = make_model("classify")
    x, lengths = draw(2, 600, 3, dtype=torch.float32), torch.tensor([600, 590])
    params = {name: value.double() for name, value in model.params.items()}
    expected = predict(params, model.config, x.double(), lengths, backend="reference")
    found = predict(model.params, model.config, x, lengths)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cells", ["node", "plain"])
def test_streaming_is_refused_with_the_reason(cells, tmp_path):
    message = r"cannot run step by step: its Transformer blocks look back .* --transformer-layers 0"
    with pytest.raises(InputError, match=message):
        export_streaming(make_model("lm"), tmp_path / "s.onnx", cells)
    assert not list(tmp_path.iterdir())


def test_a_warm_start_takes_blocks_of_as_many_heads(tmp_path):
    model = make_model()
    save_model(tmp_path / "model.safetensors", *model)
    names = [name for name in model.params if name.startswith("transformer.")]
    same = warm_start(str(tmp_path), model.config, model.schema)
    assert set(names) <= set(same.taken)
    other = make_model(heads=4)
    assert not set(names) & set(warm_start(str(tmp_path), other.config, other.schema).taken)


def test_the_command_line_trains_shows_and_exports(tmp_path, monkeypatch):
    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return result.exit_code, result.output

    monkeypatch.chdir(tmp_path)
    data = save_npz(tmp_path, two_classes())
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    flags += ["--epochs=2", "--transformer-layers=1", "--device=cpu"]
    code, output = invoke("train", data, *flags, "--heads", 3, "--output", "run")
    assert code == 0, output
    assert "transformer_layers = 1\nheads = 3\n" in (tmp_path / "run/config.toml").read_text()
    code, output = invoke("inspect", "run")
    assert "1 layers of 6, both directions, 1 Transformer blocks of 3 heads, pooling" in output
    code, output = invoke("inspect", "run", "--json")
    params = json.loads(output)["tensors"]
    assert json.loads(output)["parameters"] == count_parameters(params)
    assert params["transformer.0.linear1.weight"] == [48, 12]
    code, output = invoke("train", data, *flags, "--heads", 5, "--output", "other")
    assert (code, output.count("\n")) == (2, 1)
    assert "heads must divide the width 12" in output
    code, output = invoke("export", "run", "--onnx", "--streaming")
    assert (code, output.count("\n")) == (2, 1)
    assert "cannot run step by step" in output
