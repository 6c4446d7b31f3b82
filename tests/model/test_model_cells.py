"""Models of other cells than lstm: their config, their file, their answers."""

import json
import re
from dataclasses import replace

import pytest
import torch
from own_cells import COUPLED, forget_cells, write_cell

from lstm_compile import ModelConfig, forward, init_params, load_model, register_cell, save_model
from lstm_compile.errors import InputError
from lstm_compile.model.model import param_shapes, trainable
from lstm_compile.recurrence.cell_file import read_cell

SMALL = {"task": "classify", "input_size": 3, "output_size": 2, "hidden_size": 8}


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    forget_cells(monkeypatch)


@pytest.fixture
def config(tmp_path):
    return ModelConfig(**SMALL, cell=read_cell(write_cell(tmp_path)).name)


def saved(folder, config):
    save_model(folder / "m.safetensors", init_params(config, 0), config)
    return folder / "m.safetensors"


# ---- the config


def test_the_json_of_an_lstm_says_nothing_of_cells():
    assert not [key for key in ModelConfig(**SMALL).to_dict() if "cell" in key]
    assert ModelConfig(**SMALL).state_parts == {"h": 8, "c": 8}


@pytest.mark.parametrize(
    ("name", "parts"),
    [("gru", "h"), ("layernorm-lstm", "hc"), ("peephole-lstm", "hc"), ("slstm", "hcnm")],
)
def test_a_config_knows_the_parts_of_shipped_cells(name, parts):
    config = ModelConfig(**SMALL, cell=name)
    assert config.state_parts == dict.fromkeys(parts, 8)
    assert config.cell_sha256 == ""
    assert ModelConfig.from_json(config.to_json()) == config


def test_the_config_of_a_file_needs_no_code(config, monkeypatch):
    text = config.to_json()
    assert json.loads(text)["cell_parts"] == [["h", 8], ["c", 8], ["n", 5]]
    forget_cells(monkeypatch)
    again = ModelConfig.from_json(text)
    assert again == config
    assert again.state_parts == {"h": 8, "c": 8, "n": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "grru"}, "cell 'grru' is not known here; known are lstm, gru"),
        ({"cell": 3}, "cell must be of type str, got 3"),
        ({"cell": "gru", "bias": False}, "bias is for cell lstm"),
        ({"cell_parts": (("h", 8),)}, "cell_parts and cell_sha256 are for other cells than lstm"),
        ({"cell": "x", "cell_parts": (("h", "8"),)}, "cell_parts must be of type int, got '8'"),
        ({"cell": "x", "cell_parts": (("h",),)}, "cell_parts must be a list of 2, got ('h',)"),
        ({"cell": "x", "cell_parts": (("h", 8), ("n", 0))}, "part 'n' must be at least 1, got 0"),
        ({"cell": "x", "cell_parts": (("h", 8), ("h", 8))}, "must have different names"),
    ],
)
def test_a_wrong_cell_is_refused(changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ModelConfig(**{**SMALL, **changes})


def test_another_hidden_size_gives_other_parts(config):
    assert replace(config, hidden_size=4).state_parts == {"h": 4, "c": 4, "n": 5}


# ---- the model


def test_a_cell_that_fails_in_the_sizes_of_a_model_is_one_line(config):
    cell = replace(read_cell("coupled"), name="halves", shapes=lambda _, h: {"w": (h // 2, 1)})
    register_cell(cell)
    with pytest.raises(InputError, match="cell 'halves': its shapes: found 'w': "):
        param_shapes(ModelConfig(**{**SMALL, "hidden_size": 1}, cell="halves"))


def test_parameters_carry_the_names_of_the_cell(config):
    shapes = param_shapes(config)
    assert shapes["cell.weight_ih_l0"] == (16, 3)
    assert shapes["cell.weight_ih_l1_reverse"] == (16, 16)
    assert shapes["cell.weight_hn_l1"] == (5, 8)
    assert not [name for name in shapes if name.startswith("lstm.")]
    params = init_params(config, 0)
    assert {name: tuple(value.shape) for name, value in params.items()} == shapes
    assert not [name for name in trainable(params, "encoder") if name.startswith("cell.")]
    again = init_params(config, 0)
    assert all(again[name].equal(value) for name, value in params.items())


@pytest.mark.parametrize("layers", [0, 1])
def test_a_model_goes_on_from_a_state_of_three_parts(tmp_path, layers):
    read_cell(write_cell(tmp_path))
    sizes = {"task": "tag", "input_size": 3, "output_size": 2, "hidden_size": 8}
    config = ModelConfig(**sizes, cell="coupled", bidirectional=False, transformer_layers=layers)
    params, x = init_params(config, 0), torch.randn(2, 6, 3)
    lengths = torch.tensor([6, 4])
    whole, final = forward(params, config, x, lengths, backend="reference")
    assert [part.shape for part in final] == [(2, 2, 8), (2, 2, 8), (2, 2, 5)]
    _, state = forward(params, config, x[:, :2], backend="reference")
    rest, last = forward(params, config, x[:, 2:], lengths - 2, state, backend="reference")
    for one, other in zip(final, last, strict=True):
        torch.testing.assert_close(one, other)
    if not layers:  # a block sees the steps of one call
        torch.testing.assert_close(rest, whole[:, 2:])


# ---- the file


def test_a_saved_model_answers_as_before(tmp_path, config):
    path, x = saved(tmp_path, config), torch.randn(2, 5, 3)
    model = load_model(path)
    assert model.config == config
    expected = forward(init_params(config, 0), config, x, backend="reference")[0]
    assert forward(model.params, model.config, x, backend="reference")[0].equal(expected)
    assert b"sigmoid" not in path.read_bytes()


def test_a_model_of_an_unknown_cell_says_which_one_it_needs(tmp_path, config, monkeypatch):
    path = saved(tmp_path, config)
    forget_cells(monkeypatch)
    message = (
        f"{path}: its cell 'coupled' is not known here; give --cell FILE.py:NAME with the file it "
        f"was trained with (sha256 {config.cell_sha256[:12]}...)"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        load_model(path)


def test_a_model_refuses_another_text_of_its_cell(tmp_path, config, monkeypatch):
    path = saved(tmp_path, config)
    forget_cells(monkeypatch)
    read_cell(write_cell(tmp_path, COUPLED.replace("0.9", "0.8")))
    with pytest.raises(InputError, match="from a file with another text"):
        load_model(path)


def test_a_cell_from_python_must_have_the_same_parts(tmp_path, config, monkeypatch):
    path, cell = saved(tmp_path, config), read_cell("coupled")
    forget_cells(monkeypatch)
    register_cell(cell)
    assert load_model(path).config == config
    forget_cells(monkeypatch)
    register_cell(replace(cell, parts=lambda hidden: {"h": hidden, "c": hidden, "n": 4}))
    message = "has the state h 8, c 8, n 5, and the one known here h 8, c 8, n 4 with hidden_size 8"
    with pytest.raises(InputError, match=message):
        load_model(path)
