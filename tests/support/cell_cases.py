"""Cells for tests: their equations in NumPy, parameters, and a cell that nobody ships."""

import numpy as np
import torch
from torch.nn.functional import linear

from lstm_compile.recurrence.any_cell import Cell, find_cell

SHIPPED = ("lstm", "gru", "layernorm-lstm", "peephole-lstm", "slstm")


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def _lstm(p, x, h, c):
    i, f, g, o = np.split(p["weight_ih"] @ x + p["weight_hh"] @ h + p["bias_ih"] + p["bias_hh"], 4)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def _gru(p, x, h):
    r, z, n = np.split(p["weight_ih"] @ x + p["bias_ih"], 3)
    of_r, of_z, of_n = np.split(p["weight_hh"] @ h + p["bias_hh"], 3)
    r, z = _sigmoid(r + of_r), _sigmoid(z + of_z)
    return ((1 - z) * np.tanh(n + r * of_n) + z * h,)


def _layernorm_lstm(p, x, h, c):
    gates = _norm(p["weight_ih"] @ x) * p["gain_ih"] + _norm(p["weight_hh"] @ h) * p["gain_hh"]
    i, f, g, o = np.split(gates + p["bias"], 4)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(_norm(c) * p["gain_c"] + p["bias_c"]), c


def _peephole_lstm(p, x, h, c):
    i, f, g, o = np.split(p["weight_ih"] @ x + p["weight_hh"] @ h + p["bias"], 4)
    p_i, p_f, p_o = np.split(p["peephole"], 3)
    new = _sigmoid(f + p_f * c) * c + _sigmoid(i + p_i * c) * np.tanh(g)
    return _sigmoid(o + p_o * new) * np.tanh(new), new


def _slstm(p, x, h, c, n, m):
    z, i, f, o = np.split(p["weight_ih"] @ x + p["weight_hh"] @ h + p["bias"], 4)
    # in plain exponentials: the stabiliser changes no answer
    scale = np.where(n == 0, 0.0, np.exp(m))
    c = _sigmoid(f) * c * scale + np.exp(i) * np.tanh(z)
    n = _sigmoid(f) * n * scale + np.exp(i)
    m = np.where(scale == 0, i, np.maximum(np.log(_sigmoid(f)) + m, i))
    return _sigmoid(o) * c / n, c / np.exp(m), n / np.exp(m), m


STEPS = dict(zip(SHIPPED, (_lstm, _gru, _layernorm_lstm, _peephole_lstm, _slstm), strict=True))


def make(cell, sizes=(3, 4), *, layers=1, directions=1, dtype=torch.float64, seed=0):
    """Parameters of a stack, all of them leaves."""
    cell, generator, params = find_cell(cell), torch.Generator().manual_seed(seed), {}
    width, hidden = sizes
    for layer in range(layers):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:directions]:
            for name, shape in cell.shapes(width, hidden).items():
                tensor = torch.empty(shape)
                cell.initialise(name, tensor, generator)
                tensor += 0.1 * torch.randn(shape, generator=generator)
                params[name + suffix] = tensor.to(dtype).requires_grad_()
        width = hidden * directions
    return params


def coupled(name="coupled", step=None):
    """A cell that nobody ships: coupled gates and a slow average as the third part of its state."""

    def shapes(input_size, hidden_size):
        gates = 2 * hidden_size
        return {"w": (gates, input_size), "weight_hh": (gates, hidden_size), "rate": (hidden_size,)}

    def own(p, share, state):
        h, c, slow_c = state
        f, g = (share + linear(h, p["weight_hh"])).chunk(2, -1)
        f = torch.sigmoid(f)
        c = f * c + (1 - f) * torch.tanh(g)
        slow_c = slow_c + torch.sigmoid(p["rate"]) * (c - slow_c)
        h = torch.tanh(c - slow_c)
        return h, (h, c, slow_c)

    def project(p, x):
        return linear(x, p["w"])

    def parts(size):
        return {"h": size, "c": size, "slow": size}

    return Cell(name, parts, shapes, project, step or own)
