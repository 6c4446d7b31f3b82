"""onnx's own test vectors of the LSTM and GRU nodes, answered by the cells."""

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnx.backend.test.case.node.gru
import onnx.backend.test.case.node.lstm
import pytest
import torch

from lstm_compile.recurrence.recurrent import recurrent

LSTM_GATES, GRU_GATES = [0, 2, 3, 1], [1, 0, 2]  # torch's order in ONNX's i, o, f, c and z, r, h


def reordered(value, gates):
    blocks = np.split(value, len(gates))
    return torch.tensor(np.concatenate([blocks[gate] for gate in gates]))


def vectors():
    for case in node_cases._NodeTestCases:  # those of the two modules imported above
        node = case.model.graph.node[0]
        if node.op_type in ("LSTM", "GRU"):
            yield pytest.param(node, *case.data_sets[0], id=case.name)


@pytest.mark.parametrize(("node", "inputs", "outputs"), [*vectors()])
def test_the_cells_give_onnx_answers(node, inputs, outputs):
    given = dict(zip([name for name in node.input if name], inputs, strict=True))
    x, w, r = (np.asarray(given[name]) for name in node.input[:3])
    fields = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    by_row = fields.get("layout", 0) == 1
    x = torch.tensor(x if by_row else x.swapaxes(0, 1))
    is_reverse = fields.get("direction") == b"reverse"
    x = x.flip(1) if is_reverse else x
    gates = GRU_GATES if node.op_type == "GRU" else LSTM_GATES
    suffixes = ("", "_reverse")[: len(w)]
    lengths = next((v for n, v in given.items() if n == "sequence_lens"), None)
    params = {}
    names = [*node.input, *[""] * (8 - len(node.input))]
    for d, suffix in enumerate(suffixes):
        size = r.shape[2]
        bias = np.asarray(given[names[3]])[d] if names[3] else np.zeros(2 * w.shape[1], "f")
        first, second = (reordered(part, gates) for part in np.split(bias, 2))
        layer = {"weight_ih": reordered(w[d], gates), "weight_hh": reordered(r[d], gates)}
        if names[7]:
            peepholes = reordered(np.asarray(given[names[7]])[d], [0, 2, 1])
            layer |= {"bias": first + second, "peephole": peepholes}
        else:
            layer |= {"bias_ih": first, "bias_hh": second}
        params |= {f"{name}_l0{suffix}": value for name, value in layer.items()}
        assert size == fields["hidden_size"]
    resets_first = node.op_type == "GRU" and not fields.get("linear_before_reset", 0)
    if resets_first and (x.shape[1] > 1 or bias[-size:].any()):
        pytest.skip("this node resets before its product; nn.GRU, and so the cell, after it")
    cell = "gru" if node.op_type == "GRU" else ("peephole-lstm" if names[7] else "lstm")
    lengths = None if lengths is None else torch.tensor(lengths).long()
    y, state = recurrent(cell, params, x, lengths, backend="reference")
    y = y.flip(1) if is_reverse else y
    found = {"Y": y, "Y_h": state[0], "Y_c": state[-1]}
    for name, expected in zip([n for n in node.output if n], outputs, strict=True):
        value = found[name]
        if name == "Y":
            value = value.unflatten(2, (len(suffixes), -1))
            value = value if by_row else value.permute(1, 2, 0, 3)
        elif by_row:
            value = value.transpose(0, 1)
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-5)
