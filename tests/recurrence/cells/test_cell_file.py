import hashlib
import re
from dataclasses import replace

import pytest
import torch
from own_cells import COUPLED, forget_cells, write_cell

from lstm_compile.errors import InputError
from lstm_compile.recurrence.any_cell import find_cell, register_cell
from lstm_compile.recurrence.cell_file import parts_and_sha256, read_cell
from lstm_compile.recurrence.cell_trial import try_cell

SHIPPED = ("lstm", "gru", "layernorm-lstm", "peephole-lstm", "slstm")


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    forget_cells(monkeypatch)


def refused(action, *words):
    with pytest.raises(InputError) as info:
        action()
    message = str(info.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# ---- a file


def test_a_file_gives_a_cell_that_is_then_known(tmp_path):
    spec = write_cell(tmp_path)
    cell = read_cell(spec)
    assert find_cell("coupled") is cell is read_cell(spec) is read_cell("coupled")
    digest = hashlib.sha256(COUPLED.encode()).hexdigest()
    assert parts_and_sha256("coupled", 8) == ({"h": 8, "c": 8, "n": 5}, digest)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_cell_is_known_by_its_name(name):
    assert read_cell(name).name == name


def test_a_file_may_hold_dataclasses_and_several_cells(tmp_path):
    text = "from __future__ import annotations\nimport dataclasses\n" + COUPLED
    text += "@dataclasses.dataclass\nclass Sizes:\n    n: int = 5\n"
    text += "OTHER = dataclasses.replace(COUPLED, name='other')\n"
    spec = write_cell(tmp_path, text)
    names = [read_cell(spec).name, read_cell(spec.replace(":COUPLED", ":OTHER")).name]
    assert names == ["coupled", "other"]


def test_the_same_text_in_another_file_is_the_same_cell(tmp_path):
    assert read_cell(write_cell(tmp_path)) is read_cell(write_cell(tmp_path, name="copy.py"))


def test_a_name_that_exists_is_refused(tmp_path):
    read_cell(write_cell(tmp_path))
    for text in (COUPLED + "# changed\n", COUPLED.replace('"coupled"', '"gru"')):
        name = "gru" if '"gru"' in text else "coupled"
        spec = write_cell(tmp_path, text)
        refused(lambda spec=spec: read_cell(spec), f"a cell '{name}' exists already", spec)


def test_an_unknown_name_lists_those_that_are_known():
    refused(lambda: read_cell("grru"), "'grru'", *SHIPPED, "--cell FILE.py:NAME")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def (", (", line 1: not valid Python",)),
        ("x = 1\nx = 1 / 0\n", (", line 2: raised while it ran", "ZeroDivisionError")),
        ("import no_such_module\n", ("line 1", "No module named 'no_such_module'")),
        ("import sys\nsys.exit(3)\n", ("line 2", "SystemExit")),
        ("x = 3\n", ("no variable 'COUPLED'", "there is no Cell in it")),
        (COUPLED + "MINE = COUPLED\ndel COUPLED\n", ("no variable 'COUPLED'", "are MINE")),
        (COUPLED + "COUPLED = 3\n", ("COUPLED is of type int", "lstm_compile.Cell")),
        ("x = '\0'\n", ("not valid Python",)),
    ],
)
def test_a_faulty_file_is_one_line(tmp_path, text, words):
    refused(lambda: read_cell(write_cell(tmp_path, text)), "coupled.py", *words)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    refused(lambda: read_cell(f"{tmp_path}/no.py:X"), "no.py", "No such file")
    refused(lambda: read_cell(f"{tmp_path}:X"), str(tmp_path), "Is a directory")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    refused(lambda: read_cell(f"{tmp_path / 'latin.py'}:X"), "not a Python file in UTF-8")
    refused(lambda: read_cell(write_cell(tmp_path).removesuffix(":COUPLED")), "are COUPLED")


def test_a_file_that_failed_may_be_mended(tmp_path):
    with pytest.raises(InputError):
        read_cell(write_cell(tmp_path, "1 / 0"))
    assert read_cell(write_cell(tmp_path)).name == "coupled"


# ---- the trial


@pytest.mark.parametrize("name", SHIPPED)
def test_cells_that_ship_pass(name):
    try_cell(find_cell(name))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(h, c, n)", "(h, c)", "its step returned: found 2 parts of the state, expected 3"),
        ("return h, (h, c, n)", "return h", "found Tensor, expected a pair"),
        ("(h, c, n)\n", "(h, c, n[:, :4])\n", "state part 2: found (2, 4) torch.float32"),
        ("(h, c, n)\n", "(h, c.double(), n)\n", "state part 1: found (2, 96) torch.float64"),
        ("return h, (h", "return h[:, :9], (h", "output of its step: found (2, 9), expected (2"),
        ("return h, (h", "return c @ c.mT @ h, (h", "a row that depends on other rows"),
        ("tanh(z)\n", "tanh(z - z.mean(0))\n", "a row that depends on other rows"),
        ("tanh(z)\n", "tanh(z).bernoulli(0.5)\n", "two answers to the same input"),
        ("    h = tanh", "    state[1].add_(1)\n    h = tanh", "changed in place"),
        ("    h = tanh", "    c = c if c.sum() > 0 else -c\n    h = tanh", "cannot be traced"),
        ("tanh(z)\n", "tanh(z) / state[2].sum(-1, True)\n", "found NaN or infinity"),
        ('state[0], params["weight_hh"]', 'state[0], params["weight"]', "KeyError: 'weight'"),
        ('c, params["weight_hn"]', 'c, params["weight_hn"].detach()', "'weight_hn': found no grad"),
        ('hidden, "n": 5}', 'hidden, "n": 0}', "whole sizes above 0"),
        ('"n": 5}', '"n h": 5}', "plain names"),
        ('{"h": hidden, "c"', '{"h": 7, "c"', "first part 'h': found 7, expected hidden_size, 96"),
        ('{"h": hidden, "c": hidden, "n": 5}', "{}", "its parts: found {}"),
        ('"bias": (2 * hidden,)', '"bias": 2 * hidden', "'bias': 192, expected a plain name"),
        ('Cell("coupled"', 'Cell("my cell"', "its name: found 'my cell'"),
        (
            'linear(x, params["weight_ih"]',
            'linear(x, params["no"]',
            "its project raised: found Key",
        ),
        (" step)", " step, lambda *_: None)", "its initial 'weight_ih': found values not set"),
        (
            " step)",
            " step, lambda name, value, _: value.normal_())",
            "initial values: found others for the same generator",
        ),
    ],
)
def test_a_cell_that_is_not_what_it_says_is_one_line(tmp_path, old, new, message):
    assert old in COUPLED
    refused(lambda: read_cell(write_cell(tmp_path, COUPLED.replace(old, new))), message)


def test_a_trial_leaves_the_random_numbers_alone(tmp_path):
    before = torch.get_rng_state()
    cell = read_cell(write_cell(tmp_path))
    try_cell(replace(cell, name="again"))
    assert torch.get_rng_state().equal(before)


def test_a_cell_from_python_has_no_sha256(tmp_path):
    cell = replace(read_cell(write_cell(tmp_path)), name="mine")
    register_cell(cell)
    assert parts_and_sha256("mine", 4)[1] == ""
    with pytest.raises(InputError, match=re.escape("cell 'mine' exists already")):
        register_cell(replace(cell, parts=lambda hidden: {"h": hidden}))
