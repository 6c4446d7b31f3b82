import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from marks import slow
from onnx import helper, numpy_helper

import lstm_compile
from lstm_compile.config import ModelConfig
from lstm_compile.errors import InputError, RunError
from lstm_compile.export import export_onnx, translation_table, verify_onnx
from lstm_compile.export.runtime import ask, open_session
from lstm_compile.export.write.onnx import layer_names, to_onnx
from lstm_compile.model.checkpoint import Model, numbered_schema, save_model
from lstm_compile.model.model import init_params, predict

FAST = ("onnxruntime", "openvino")
SMALL = {"task": "classify", "input_size": 3, "output_size": 4, "hidden_size": 5}
CONFIGS = [
    {"pooling": "attention"},
    {"pooling": "dot-attention", "scaling": "minmax"},
    {"pooling": "mean", "num_layers": 1, "scaling": "none"},
    {"pooling": "max", "num_layers": 3, "bidirectional": False},
    {"pooling": "last", "bias": False, "hidden_size": 33},
    {"pooling": "attention", "hidden_size": 1, "input_size": 1, "num_layers": 1},
    {"pooling": "dot-attention", "bidirectional": False, "num_layers": 1, "bias": False},
    {"pooling": "last", "bidirectional": False, "hidden_size": 1, "scaling": "minmax"},
    {"pooling": "mean", "task": "regress", "output_size": 1, "target_scaling": "none"},
    {"pooling": "max", "task": "regress", "target_scaling": "minmax", "num_layers": 1},
    {"pooling": "last", "task": "regress", "scaling": "none", "num_layers": 3},
    {"pooling": "attention", "task": "regress", "bidirectional": False, "hidden_size": 33},
]


def name_of(config):
    return "-".join(str(value) for value in config.values())


every_config = pytest.mark.parametrize(
    "config", [CONFIGS[0], *map(slow, CONFIGS[1:])], ids=name_of
)  # a second or more each, as often


def make_model(seed=0, **changes):
    config = ModelConfig(**SMALL | changes)
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in init_params(config, seed).items()
    }
    for name in params:
        if name.endswith("scaler.shift"):
            params[name] = 40.0 + 10 * params[name]
        if name.endswith("scaler.scale"):
            params[name] = 0.5 + 4 * torch.rand(params[name].shape, generator=generator)
    return Model(params, config, numbered_schema(config), {"seed": seed, "fingerprint": "abc"})


@cache
def exported_bytes(items):
    return to_onnx(make_model(**dict(items))).SerializeToString()


def exported(config):
    return onnx.load_model_from_string(exported_bytes(tuple(config.items())))


def expected_histogram(config):
    """What the portable form of one model consists of, part by part."""
    layers, directions = config.num_layers, config.num_directions
    ops = Counter(
        {"Shape": 2, "Squeeze": 1, "Range": 1, "Unsqueeze": 2, "Less": 1}  # sizes and masks
        | {"Concat": 1, "ConstantOfShape": 1, "Gemm": 1}  # initial state, head
    )
    for _ in range(layers * directions):
        ops.update({"LSTM": 1, "Transpose": 2, "Squeeze": 1, "Where": 1})
    if directions == 2:
        ops.update({"Sub": 2, "Where": 1, "Unsqueeze": 1})  # the reversal, once
        ops.update({"GatherND": 2 * layers, "Concat": layers})
    if config.scaling != "none":
        ops.update({"Sub": 1, "Div": 1})
    if config.task == "classify":
        ops.update({"Softmax": 1})
    elif config.target_scaling != "none":
        ops.update({"Mul": 1, "Add": 1})
    last = Counter({"Equal": 1, "Unsqueeze": 1, "Where": 1, "ReduceSum": 1})
    if directions == 1:
        last.update({"Sub": 1})  # length - 1, which the reversal has otherwise
    attention = Counter(
        {"MatMul": 2, "Squeeze": 2, "Div": 1, "Where": 1, "Softmax": 1, "Unsqueeze": 1}
    )
    return (
        ops
        + {
            "attention": attention,
            "dot-attention": attention + last + Counter({"Unsqueeze": 1}),
            "last": last,
            "mean": Counter({"ReduceSum": 1, "Cast": 1, "Max": 1, "Unsqueeze": 1, "Div": 1}),
            "max": Counter({"Where": 2, "ReduceMax": 1, "Greater": 1, "Unsqueeze": 1}),
        }[config.pooling]
    )


@every_config
def test_graph_consists_of_exactly_these_nodes(config):
    found = Counter(node.op_type for node in exported(config).graph.node)
    assert found == expected_histogram(ModelConfig(**SMALL | config))


@every_config
def test_interface_is_the_frozen_one(config):
    model, made = exported(config), make_model(**config)
    task = made.config.task
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    output = {"classify": "probabilities", "regress": "value"}[task]
    assert [describe(value) for value in (*model.graph.input, *model.graph.output)] == [
        ("x", onnx.TensorProto.FLOAT, ["batch", "time", made.config.input_size]),
        ("lengths", onnx.TensorProto.INT64, ["batch"]),
        (output, onnx.TensorProto.FLOAT, ["batch", made.config.output_size]),
    ]
    found = {prop.key: prop.value for prop in model.metadata_props}
    assert re.fullmatch("[0-9a-f]{64}", found.pop("selftest_sha256"))
    assert found == {
        "interface_version": "1",
        "format": "lstm_compile",
        "profile": "portable",
        "runtimes": "any",
        "task": task,
        "inputs": '["x", "lengths"]',
        "outputs": json.dumps([output]),
        "config": made.config.to_json(),
        "schema": made.schema.to_json(),
        "training": '{"fingerprint": "abc", "seed": 0}',
    }


def describe(value):
    sizes = [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
    return value.name, value.type.tensor_type.elem_type, sizes


@every_config
def test_graph_is_clean(config):
    model = exported(config)
    graph = model.graph
    assert [model.functions, model.doc_string, graph.doc_string, graph.value_info] == [
        [],
        "",
        "",
        [],
    ]
    assert not any(node.doc_string or node.metadata_props or node.domain for node in graph.node)
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    assert not any(tensor.external_data for tensor in graph.initializer)
    seen = [
        (node.op_type, *node.input, *sorted(str(a) for a in node.attribute)) for node in graph.node
    ]
    assert len(set(seen)) == len(seen)
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)


@every_config
def test_one_lstm_node_a_layer_and_direction(config):
    model = exported(config)
    nodes = [node for node in model.graph.node if node.op_type == "LSTM"]
    layers = layer_names(ModelConfig(**SMALL | config))
    assert [node.name for node in nodes] == [f"lstm.{layer}" for layer in layers]
    for node in nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["direction"] == b"forward"
        assert attributes["layout"] == 0
        assert list(node.output) == [f"{node.name}.{what}" for what in ("y", "h", "c")]
        assert node.input[4] == ""  # sequence_lens
        assert all(node.input[5:7])


@every_config
def test_weights_are_initializers_in_the_gate_order_i_o_f_c(config):
    graph, params = exported(config).graph, make_model(**config).params
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "LSTM"]
    for node, layer in zip(nodes, layer_names(ModelConfig(**SMALL | config)), strict=True):
        weight_ih, weight_hh, bias = (values[name] for name in node.input[1:4])
        np.testing.assert_array_equal(weight_ih[0], reorder(params[f"lstm.weight_ih_{layer}"]))
        np.testing.assert_array_equal(weight_hh[0], reorder(params[f"lstm.weight_hh_{layer}"]))
        total = torch.zeros(weight_hh.shape[1])
        if f"lstm.bias_ih_{layer}" in params:
            total = params[f"lstm.bias_ih_{layer}"] + params[f"lstm.bias_hh_{layer}"]
        np.testing.assert_array_equal(bias[0], np.concatenate([reorder(total), 0 * total]))
    for name in ("scaler.shift", "pooling.weight", "head.weight", "head.bias"):
        if name in values:
            np.testing.assert_array_equal(values[name].ravel(), params[name].ravel())
    assert {"head.weight", "head.bias"} <= set(values)


def reorder(weight):
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, o, f, g])


def test_weights_have_the_names_of_the_safetensors_file():
    names = [tensor.name for tensor in exported(CONFIGS[0]).graph.initializer]
    assert sorted(name for name in names if not name.startswith("constant")) == sorted(
        ["scaler.shift", "scaler.scale", "pooling.weight", "head.weight", "head.bias"]
        + [
            f"lstm.{what}_{layer}"
            for what in ("weight_ih", "weight_hh", "bias")
            for layer in ("l0", "l0_reverse", "l1", "l1_reverse")
        ]
    )


def test_initial_state_writes_its_value_out():
    # tract, MNN and OpenCV do not know the default of this attribute
    (node,) = (n for n in exported(CONFIGS[0]).graph.node if n.op_type == "ConstantOfShape")
    assert numpy_helper.to_array(node.attribute[0].t).tolist() == [0.0]


@pytest.mark.slow
def test_two_exports_of_one_model_are_the_same_bytes():
    first, second = (to_onnx(make_model()).SerializeToString(deterministic=True) for _ in "ab")
    assert first == second


@every_config
def test_runtimes_agree_with_the_reference(config, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported_bytes(tuple(config.items())))
    report = verify_onnx(make_model(**config), path, ("eager", *FAST))
    assert report.passed, "\n".join(report.lines())


@pytest.mark.slow
def test_sequences_of_600_steps_stay_within_the_long_tolerance():
    model = make_model()
    x, lengths = 40 + 4 * np.random.default_rng(0).standard_normal((2, 600, 3)), [600, 590]
    x, lengths = x.astype(np.float32), np.array(lengths)
    params = {name: value.double() for name, value in model.params.items()}
    given = torch.tensor(x).double(), torch.tensor(lengths)
    expected = predict(params, model.config, *given, backend="reference")
    found = ask(open_session(exported_bytes(())), x, lengths)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_export_writes_the_file_and_its_evidence(tmp_path):
    path = tmp_path / "digits.onnx"
    report = export_onnx(make_model(), path, FAST)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "digits.onnx",
        "parity.json",
        "selftest.json",
    ]
    assert report.path == path
    assert report.size == path.stat().st_size
    parity = json.loads((tmp_path / "parity.json").read_text())
    assert parity["passed"]
    assert parity["onnx_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {"torch", "onnx", "onnxruntime", "openvino"} <= set(parity["versions"])
    assert {row["runtime"] for row in parity["rows"]} == {"metadata", *FAST}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "regress"])
def test_any_host_can_run_the_selftest(tmp_path, task):
    export_onnx(make_model(task=task), tmp_path / "model.onnx", ("onnxruntime",))
    text = (tmp_path / "selftest.json").read_text()
    assert len(text) < 100_000
    selftest = json.loads(text)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    lengths = set()
    for case in selftest["cases"]:
        x, rows = np.array(case["x"], np.float32), np.array(case["lengths"], np.int64)
        found = session.run([selftest["output"]], {"x": x, "lengths": rows})[0]
        assert (np.abs(found - case["expected"]) <= selftest["tolerance"]).all()
        lengths |= set(case["lengths"])
    assert {0, 1} < lengths
    assert len({np.shape(case["x"])[:2] for case in selftest["cases"]}) > 3


@pytest.mark.slow
def test_selftest_of_many_features_stays_small(tmp_path):
    export_onnx(make_model(input_size=2000), tmp_path / "model.onnx", ("onnxruntime",))
    assert (tmp_path / "selftest.json").stat().st_size < 400_000


@pytest.mark.slow
def test_export_reads_a_run_folder(tmp_path):
    model = make_model(task="regress")
    save_model(tmp_path / "model.safetensors", *model)
    export_onnx(tmp_path, tmp_path / "model.onnx", ("onnxruntime",))
    assert verify_onnx(tmp_path / "model.safetensors", tmp_path / "model.onnx", FAST).passed


@pytest.mark.slow
def test_failed_parity_leaves_the_earlier_files_alone(tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(make_model(), path, ("onnxruntime",))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    broken = make_model()
    broken.params["lstm.weight_hh_l1"][3, 2] = float("nan")
    with pytest.raises(RunError, match=r"not written.*\n\[x\] onnxruntime .*B=1 T=1 full"):
        export_onnx(broken, path, ("onnxruntime",))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_failed_parity_leaves_no_file(tmp_path):
    broken = make_model()
    broken.params["head.bias"][0] = float("inf")
    with pytest.raises(RunError, match="not written"):
        export_onnx(broken, tmp_path / "model.onnx", ("onnxruntime",))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interruption_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lstm_compile.export.write.onnx.verify_onnx", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(make_model(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_export_refuses_a_target_that_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; name a file, such as .*model\.onnx"):
        export_onnx(make_model(), tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*missing; make it first"):
        export_onnx(make_model(), tmp_path / "missing" / "model.onnx")
    with pytest.raises(InputError, match=r"the file must end in \.onnx, found '\.txt'"):
        export_onnx(make_model(), tmp_path / "model.txt")
    assert not list(tmp_path.iterdir())


def test_export_refuses_what_one_file_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("lstm_compile.export.write.onnx.LARGEST", 1000)
    with pytest.raises(RunError, match="bytes of weights; one file holds at most 1000"):
        export_onnx(make_model(), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_backend_agrees_too(tmp_path):
    report = export_onnx(make_model(), tmp_path / "model.onnx")
    assert {"eager", "compiled", *FAST} <= {row.runtime for row in report.parity.rows}


def test_importing_the_package_and_its_runtime_loads_no_torch():
    code = (
        "import sys, lstm_compile.export, lstm_compile.export.runtime as r; "
        "assert 'torch' not in sys.modules, 'torch'; "
        "assert 'export_onnx' in dir(lstm_compile.export)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class OwnModule(torch.nn.Module):
    """A user's module: its own LSTM weights, states as inputs and outputs."""

    def __init__(self, bidirectional, ragged, keeps_state):
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 4, 2, bidirectional=bidirectional)
        self.ragged, self.keeps_state = ragged, keeps_state

    def forward(self, x, lengths, h, c):
        params = dict(self.lstm.named_parameters())
        rows = lengths if self.ragged else None
        output, state = lstm_compile.lstm(params, x, rows, (h, c))
        return (output, *state) if self.keeps_state else (output, state.h)


def export_own(module, directions):
    batch, time = torch.export.Dim("batch", min=1), torch.export.Dim("time", min=1)
    state = torch.zeros(2 * directions, 3, 4)
    program = torch.onnx.export(
        module.eval(),
        (torch.zeros(3, 5, 3), torch.tensor([5, 2, 0]), state, state.clone()),
        dynamo=True,
        verbose=False,
        input_names=["x", "lengths", "h", "c"],
        dynamic_shapes=({0: batch, 1: time}, {0: batch}, {1: batch}, {1: batch}),
        custom_translation_table=translation_table(),
    )
    return program.model_proto


# torch.onnx's own: it copies with a deprecated test, and dislikes one name for equal sizes
own_module_warnings = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:.*axis name. batch:UserWarning",
    "ignore:.*weights of 8 bits would be useless:UserWarning",
)


@pytest.mark.slow
@own_module_warnings
@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_own_module_exports_with_its_states(directions, ragged):
    torch.manual_seed(0)
    module = OwnModule(directions == 2, ragged, keeps_state=True)
    session = open_session(export_own(module, directions).SerializeToString())
    for batch, time in ((1, 1), (1, 4), (5, 9), (4, 200)):
        x = torch.randn(batch, time, 3)
        lengths = torch.randint(0, time + 1, (batch,))
        lengths[1:3] = torch.tensor([0, time])[: batch - 1]
        if ragged:
            x[~(torch.arange(time) < lengths[:, None])] = float("nan")
        h, c = torch.randn(2, 2 * directions, batch, 4)
        given = {"x": x, "lengths": lengths, "h": h, "c": c}
        wanted = {value.name for value in session.get_inputs()}
        found = session.run(None, {k: v.numpy() for k, v in given.items() if k in wanted})
        params = {name: w.detach().double() for name, w in module.lstm.named_parameters()}
        rows = lengths if ragged else None
        output, state = lstm_compile.lstm(
            params, x.double(), rows, (h.double(), c.double()), backend="reference"
        )
        for one, other in zip(found, (output, *state), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


@pytest.mark.slow
@own_module_warnings
@pytest.mark.parametrize(("keeps_state", "width"), [(True, 4), (False, 3)])
def test_cell_state_costs_an_input_column_only_where_it_is_read(keeps_state, width):
    model = export_own(OwnModule(False, True, keeps_state), 1)
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "LSTM")
    assert sizes[first.input[1]] == [1, 16, width]


@pytest.mark.slow
@own_module_warnings
def test_own_module_must_be_float32():
    module = OwnModule(False, True, keeps_state=True).double()
    state = torch.zeros(2, 3, 4).double()
    with pytest.raises(Exception, match=r"takes float32 modules, got DOUBLE; use module\.float"):
        torch.onnx.export(
            module.eval(),
            (torch.zeros(3, 5, 3).double(), torch.tensor([5, 2, 0]), state, state.clone()),
            dynamo=True,
            verbose=False,
            custom_translation_table=translation_table(),
        )
