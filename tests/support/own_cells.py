"""A cell that no one ships, in a file, and how tests forget it again."""

from pathlib import Path

from lstm_compile.recurrence import any_cell, cell_file

# a forget gate that is coupled to the input gate, and a third part of the state, of another size
COUPLED = """\
from torch import sigmoid, tanh
from torch.nn.functional import linear
from lstm_compile import Cell

def shapes(inputs, hidden):
    return {"weight_ih": (2 * hidden, inputs), "weight_hh": (2 * hidden, hidden),
            "weight_hn": (5, hidden), "weight_nh": (hidden, 5), "bias": (2 * hidden,)}

def step(params, share, state):
    f, z = (share + linear(state[0], params["weight_hh"])).chunk(2, -1)
    c = sigmoid(f) * state[1] + (1 - sigmoid(f)) * tanh(z)
    n = 0.9 * state[2] + 0.1 * linear(c, params["weight_hn"])
    h = tanh(c + linear(n, params["weight_nh"]))
    return h, (h, c, n)

COUPLED = Cell("coupled", lambda hidden: {"h": hidden, "c": hidden, "n": 5}, shapes,
               lambda params, x: linear(x, params["weight_ih"], params["bias"]), step)
"""


def write_cell(folder: Path, text: str = COUPLED, name: str = "coupled.py") -> str:
    """The value of `--cell` for a file with this text, whose cell is called COUPLED."""
    (folder / name).write_text(text)
    return f"{folder / name}:COUPLED"


def forget_cells(monkeypatch) -> None:
    """As in a new process, no cell but those that ship is known until the test ends."""
    monkeypatch.setattr(any_cell, "_CELLS", {})
    monkeypatch.setattr(any_cell, "_TRACED", {})
    monkeypatch.setattr(cell_file, "_SHA256", {})
    monkeypatch.setattr(cell_file, "_SPECS", {})
