"""One table: what programs do with an nn.LSTM, done to both modules.

The answers agree within 1e-6, or docs/drop-in.md names the difference.
"""

import copy
import io
import pickle
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import compiled_alone
from drop_in_cases import HIDDEN, INPUT, pair
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.optim import SGD, AdamW, RMSprop
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from lstm_compile import LSTM
from lstm_compile.errors import InputError

DOCS = (Path(__file__).parents[2] / "docs" / "drop-in.md").read_text(encoding="utf-8")


def inputs(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape or (3, 5, INPUT), generator=generator, dtype=dtype)


def packed():
    return pack_padded_sequence(inputs().requires_grad_(), [2, 5, 3], True, enforce_sorted=False)


# ---- what is done to a module; each gives what is compared


def gradients(module):
    return [weight.grad for weight in module.parameters()]


def steps_of(optimiser, **options):
    def use(module):
        steps = optimiser(module.parameters(), lr=0.01, **options)
        for _ in range(3):
            steps.zero_grad()
            module(inputs())[0].square().mean().backward()
            steps.step()
        return list(module.parameters())

    return use


def lbfgs(module):
    steps = torch.optim.LBFGS(module.parameters(), max_iter=2)

    def closure():
        steps.zero_grad()
        loss = module(inputs())[0].square().mean()
        loss.backward()
        return loss

    return steps.step(closure), list(module.parameters())


def clipped(module):
    module(inputs())[0].sum().backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), 0.5, foreach=True)
    nn.utils.clip_grad_value_(module.parameters(), 0.05)
    return norm, gradients(module)


def forward_hooks(module):
    seen = []
    module.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    module.register_forward_hook(lambda _m, _x, found: (found[0] + 1, found[1]))
    module.register_forward_hook(
        lambda _m, x, kwargs, found: seen.extend([x[0], len(kwargs), found[0]]), with_kwargs=True
    )
    return module(inputs())[0], seen


def backward_hooks(module):
    seen, x = [], inputs().requires_grad_()
    module.register_full_backward_pre_hook(lambda _, given: seen.append(given[0]))
    module.register_full_backward_hook(lambda _, of_input, of_output: seen.append(of_input[0]))
    output, (_, c) = module(x)
    (output.sum() + c.sum()).backward()
    return seen, x.grad


def hooks_of_weights(module):
    seen = []
    module.weight_hh_l0.register_hook(lambda gradient: gradient * 2)
    module.weight_ih_l0.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad))
    module(inputs())[0].sum().backward()
    return seen, gradients(module)


def hooks_of_state_dicts(module):
    seen = []
    module.register_state_dict_pre_hook(lambda *_: seen.append("before"))
    module.register_state_dict_post_hook(lambda *_: seen.append("after"))
    module.register_load_state_dict_pre_hook(lambda *_: seen.append("load"))
    module.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    module.load_state_dict(module.state_dict())
    return seen, module.state_dict()


def saved(module):
    sink = io.BytesIO()
    torch.save(module, sink)
    sink.seek(0)
    return torch.load(sink, weights_only=False)(inputs())


def saved_state(module):
    sink = io.BytesIO()
    torch.save(module(inputs())[1], sink)
    sink.seek(0)
    return tuple(torch.load(sink, weights_only=True))


def replicas(module):
    replica = module._replicate_for_data_parallel()
    for name, weight in module._parameters.items():
        setattr(replica, name, weight * 1.0)  # plain tensors, as `replicate` sets them
    loss = replica(inputs()[:2])[0].sum() + replica(inputs()[2:])[0].sum()
    loss.backward()
    return loss, gradients(module)


def other_weights(module):
    other = {name: weight.detach() * 2 for name, weight in module.named_parameters()}
    return functional_call(module, other, (inputs(),))


def per_sample_gradients(module):
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights, row):
        return functional_call(module, weights, (row[None],))[0].square().sum()

    return vmap(grad(loss), in_dims=(None, 0))(weights, inputs())


def checkpointed(module, reentrant):
    x = inputs().requires_grad_()
    checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant).sum().backward()
    return x.grad, gradients(module)


def saved_on_cpu(module):
    x = inputs().requires_grad_()
    with torch.autograd.graph.save_on_cpu():
        loss = module(x)[0].sum()
    loss.backward()
    return x.grad


def anomalies(module):
    with torch.autograd.detect_anomaly(check_nan=True):
        module(inputs())[0].sum().backward()
    return gradients(module)


def in_threads(module):
    found = []
    threads = [threading.Thread(target=lambda: found.append(module(inputs())[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def subclassed(module):
    class Doubled(type(module)):
        def forward(self, x, hx=None):
            output, state = super().forward(x, hx)
            return output * 2, state

    other = Doubled(INPUT, HIDDEN, batch_first=True)
    other.load_state_dict(module.state_dict())
    return other(inputs())


def in_fx(module):
    graph = torch.fx.symbolic_trace(nn.Sequential(module))
    return [node.op for node in graph.graph.nodes], graph(inputs())


def retained(module):
    x = inputs().requires_grad_()
    output = module(x)[0].sum()
    return [torch.autograd.grad(output, [x, *module.parameters()], retain_graph=True)] * 2


def emptied(module):
    other = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    torch.manual_seed(5)
    other.reset_parameters()
    return other(inputs())


def as_vector(module):
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 2, module.parameters())
    return module(inputs())


def own_methods(module):
    x, order = inputs(), torch.tensor([2, 0, 1])
    sizes = module.get_expected_hidden_size(x, None), module.get_expected_cell_size(x, None)
    state = tuple(torch.randn(size, generator=torch.Generator().manual_seed(2)) for size in sizes)
    module.check_forward_args(x, state, None)
    with pytest.raises(RuntimeError, match="Expected hidden"):
        module.check_forward_args(x, (state[0], state[1][:, :1]), None)
    with pytest.raises(RuntimeError, match="input must have 3 dimensions"):
        module.check_input(x[0], None)
    return module.mode, sizes, module.permute_hidden(state, order), module.all_weights


def states_follow_the_order(module):
    hx = inputs(1, 3, HIDDEN), inputs(1, 3, HIDDEN) / 2
    output, state = module(packed(), hx)
    return output.data, output.batch_sizes, tuple(state)


def gradients_of_packed(module):
    given = packed()
    data = given.data.detach().requires_grad_()
    again = PackedSequence(data, given.batch_sizes, given.sorted_indices, given.unsorted_indices)
    output, (h, c) = module(again)
    return torch.autograd.grad(output.data.square().sum() + h.sum() + c.sum(), data)


def gradients_of_state(module):
    hx = tuple(inputs(1, 3, HIDDEN).requires_grad_() for _ in range(2))
    output, (h, c) = module(inputs(), hx)
    return torch.autograd.grad(output.sum() + h.sum() + 2 * c.sum(), hx)


def frozen_in_part(module):
    module.weight_ih_l0.requires_grad_(False)
    module(inputs())[0].sum().backward()
    return [weight.grad for weight in module.parameters() if weight.requires_grad]


def replaced_weight(module):
    module.weight_hh_l0 = nn.Parameter(torch.eye(4 * HIDDEN)[:, :HIDDEN])
    return module(inputs())


def plain_weight(module):
    del module.weight_hh_l0
    module.weight_hh_l0 = torch.eye(4 * HIDDEN)[:, :HIDDEN]
    return [*module.state_dict()], module(inputs())


def cached_parametrization(module):
    parametrize.register_parametrization(module, "weight_hh_l0", nn.Tanh())
    with parametrize.cached():
        return module(inputs())


def spectral_norm(module):
    torch.manual_seed(3)
    nn.utils.parametrizations.spectral_norm(module, "weight_hh_l0")
    for _ in range(60):  # until its power iteration has settled
        module(inputs())
    return module.eval()(inputs())


def without_gradients(module):
    with torch.inference_mode():
        first = module(inputs())
    with torch.no_grad():
        second = module(inputs())
    return first, second, first[0].requires_grad


def chunks_with_state(module):
    first, state = module(inputs()[:, :2])
    second, state = module(inputs()[:, 2:], tuple(part.detach() for part in state))
    return torch.cat([first, second], 1), tuple(state)


def dropout_set_later(module):
    torch.manual_seed(4)
    deep = type(module)(INPUT, HIDDEN, 2, batch_first=True)
    deep.dropout = 1.0
    training = pickle.loads(pickle.dumps(deep))(inputs())
    return training, deep.eval()(inputs())


def rows_alone_or_packed(module):
    rows = [inputs(count, INPUT) for count in (6, 6, 3, 1)]
    together = module(pack_sequence(rows))[1]
    alone = [module(row) for row in rows]
    for row, (_, state) in enumerate(alone):
        for part, expected in zip(together, state, strict=True):
            torch.testing.assert_close(part[:, row], expected, rtol=1e-6, atol=1e-6)
    return alone, tuple(together)


def tied_by_hand(module):
    other = copy.deepcopy(module)
    other.weight_ih_l0.data.set_(module.weight_ih_l0.data)
    with torch.no_grad():
        module.weight_ih_l0.mul_(2)
    return module(inputs()), other(inputs())


SAME = {
    "call": lambda m: m(inputs()),
    "call without a batch": lambda m: m(inputs(5, INPUT)),
    "call with strides": lambda m: m(inputs(INPUT, 5, 3).permute(2, 1, 0)),
    "call with an expanded input": lambda m: m(inputs(1, 5, INPUT).expand(3, 5, INPUT)),
    "call on a batch of no rows": lambda m: m(inputs(0, 5, INPUT)),
    "hx as a list": lambda m: m(inputs(), [inputs(1, 3, HIDDEN)] * 2),
    "hx with strides": lambda m: m(inputs(), (inputs(1, HIDDEN, 3).mT,) * 2),
    "keywords": lambda m: m(input=inputs(), hx=None),
    "double": lambda m: m.double()(inputs(dtype=torch.float64)),
    "state goes on": chunks_with_state,
    "state keeps the order of packed rows": states_follow_the_order,
    "pack_sequence": lambda m: m(pack_sequence(list(inputs())))[0].data,
    "gradients of packed rows": gradients_of_packed,
    "gradients of the state": gradients_of_state,
    "gradients twice": retained,
    "frozen weights": frozen_in_part,
    "Adam, foreach": steps_of(AdamW, foreach=True),
    "Adam, fused": steps_of(AdamW, fused=True),
    "SGD, foreach": steps_of(SGD, momentum=0.9, foreach=True),
    "RMSprop, foreach": steps_of(RMSprop, foreach=True),
    "LBFGS": lbfgs,
    "clip_grad_norm_": clipped,
    "AveragedModel": lambda m: AveragedModel(m)(inputs()),
    "forward hooks": forward_hooks,
    "backward hooks": backward_hooks,
    "hooks of weights": hooks_of_weights,
    "hooks of state dicts": hooks_of_state_dicts,
    "deepcopy": lambda m: copy.deepcopy(m)(inputs()),
    "pickle": lambda m: pickle.loads(pickle.dumps(m))(inputs()),
    "torch.save of a module": saved,
    "torch.save of a state": saved_state,
    "DataParallel": replicas,
    "functional_call": other_weights,
    "per-sample gradients": per_sample_gradients,
    "checkpoint": lambda m: checkpointed(m, False),
    "checkpoint, reentrant": lambda m: checkpointed(m, True),
    "save_on_cpu": saved_on_cpu,
    "detect_anomaly": anomalies,
    "threads": in_threads,
    "subclass": subclassed,
    "torch.fx": in_fx,
    "to_empty": emptied,
    "parameters_to_vector": as_vector,
    "nn.LSTM's methods": own_methods,
    "a weight replaced": replaced_weight,
    "a weight without a parameter": plain_weight,
    "parametrize.cached": cached_parametrization,
    "spectral_norm": spectral_norm,
    "no_grad, inference_mode": without_gradients,
    "dropout set later": dropout_set_later,
    "rows alone or packed": rows_alone_or_packed,
    "weights that share memory": tied_by_hand,
    "extra_repr": lambda m: (m.extra_repr(), repr(nn.Sequential(m))),
    "names": lambda m: [[n for n, _ in m.named_parameters()], [n for n, _ in m.named_modules()]],
    "share_memory": lambda m: m.share_memory()(inputs()),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", SAME)
def test_the_same_answer(name):
    expected, found = (plain(SAME[name](module)) for module in pair())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def plain(answer):
    """States as plain tuples, packed rows and words as what can be compared."""
    if isinstance(answer, PackedSequence):
        answer = answer.data
    if isinstance(answer, torch.Tensor | int | float | bool | None):
        return answer if isinstance(answer, torch.Tensor) else torch.tensor(answer or 0)
    if isinstance(answer, str):
        return torch.tensor(list(answer.encode()))
    if isinstance(answer, dict):
        return {name: plain(value) for name, value in answer.items()}
    return [plain(value) for value in answer]


# ---- refused by both


REFUSED_CONSTRUCTORS = [
    *({"input_size": size} for size in (0, -1, 4.0, "4")),
    *({"hidden_size": size} for size in (0, -3, 6.0)),
    *({"num_layers": count} for count in (0, -1, 1.0)),
    *({"proj_size": size} for size in (-1, HIDDEN, HIDDEN + 1, None)),
    *({"dropout": share} for share in (-0.1, 1.5, True, "0.5", None, float("nan"))),
    *({"bias": flag} for flag in (1, None)),
    *({"batch_first": flag} for flag in (1, None)),
    {"dtype": torch.int64},
    {"device": "nowhere"},
]


@pytest.mark.parametrize("wrong", REFUSED_CONSTRUCTORS, ids=str)
def test_constructors_that_both_refuse(wrong):
    options = {"input_size": INPUT, "hidden_size": HIDDEN} | wrong
    for kind in (nn.LSTM, LSTM) if torch.__version__ >= "2.13" else (LSTM,):  # older check less
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            kind(**options)


@pytest.mark.parametrize("kind", [nn.LSTM, LSTM])
def test_dropout_of_one_layer_warns_at_the_callers_line(kind):
    with pytest.warns(UserWarning, match=r"dropout") as caught:
        kind(INPUT, HIDDEN, dropout=0.5)
    if kind is LSTM:
        assert caught[0].filename == __file__
        assert "dropout=0.5 does nothing with num_layers=1" in str(caught[0].message)


ZEROS = torch.zeros(1, 3, HIDDEN)
STATES = {
    "one tensor": (ZEROS, "got Tensor"),
    "h and c in one tensor": (torch.zeros(2, 1, 3, HIDDEN), "got Tensor"),
    "three parts": ((ZEROS,) * 3, r"got \['Tensor', 'Tensor', 'Tensor'\]"),
    "one part": ((ZEROS,), r"got \['Tensor'\]"),
    "no part": ((), "got tuple"),
    "h is None": ((None, ZEROS), r"got \['NoneType', 'Tensor'\]"),
    "both are None": ((None, None), r"got \['NoneType', 'NoneType'\]"),
    "arrays": ((ZEROS.numpy(),) * 2, r"got \['ndarray', 'ndarray'\]"),
    "a dict": ({"h": ZEROS, "c": ZEROS}, "got dict"),
}


@pytest.mark.parametrize("name", STATES)
def test_states_that_both_refuse(name):
    (theirs, ours), (hx, found) = pair(), STATES[name]
    with pytest.raises((RuntimeError, IndexError, AttributeError, KeyError, TypeError)):
        theirs(inputs(), hx)
    for x in (inputs(), packed(), inputs(5, INPUT)):
        with pytest.raises(InputError, match=rf"state must be \(h, c\), two tensors.* {found}"):
            ours(x, hx)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "input must be a tensor or PackedSequence, got NoneType"),
        (np.zeros((3, 5, INPUT), np.float32), "input must be a tensor .* got ndarray"),
        ((inputs(),), "input must be a tensor .* got tuple"),
        (inputs().to_sparse(), "x must be a dense tensor, got torch.sparse_coo"),
        (inputs().long(), "x is torch.int64 but the weights are torch.float32; convert one"),
        (inputs().double(), "x is torch.float64 but the weights are torch.float32"),
        (inputs().to("meta"), "x is on meta but the weights are on cpu"),
        (inputs(3, 5, INPUT + 1), r"x must have shape \(batch, time, 4\), got \(3, 5, 5\)"),
    ],
    ids=["None", "array", "tuple", "sparse", "int64", "double", "meta", "width"],
)
def test_inputs_that_both_refuse(x, message):
    theirs, ours = pair()
    with pytest.raises((RuntimeError, ValueError, AttributeError)):
        theirs(x)
    with pytest.raises(InputError, match=message):
        ours(x)


# ---- what differs, each with words that its row of the documentation holds


def one_of_many(kind):
    modules = [kind(INPUT, HIDDEN, batch_first=True) for _ in range(2)]
    base = copy.deepcopy(modules[0]).to("meta")
    weights, buffers = stack_module_state(modules)
    x = inputs()
    found = vmap(lambda w, b: functional_call(base, (w, b), (x,))[0])(weights, buffers)
    torch.testing.assert_close(found[1], modules[1](x)[0])


def compiled_whole(kind):
    module = kind(INPUT, HIDDEN, batch_first=True)
    found = compiled_alone(lambda x: module(x)[0], "aot_eager")(inputs())
    torch.testing.assert_close(found, module(inputs())[0])


def without_steps(kind):
    assert kind(INPUT, HIDDEN)(inputs(0, 3, INPUT))[0].shape == (0, 3, HIDDEN)


def gone_weight(kind):
    module = kind(INPUT, HIDDEN)
    del module.weight_hh_l0
    module(inputs())


def counted(kind):
    """How often a parametrized weight is computed in one forward."""

    class Counting(nn.Module):
        count = 0

        def forward(self, weight):
            self.count += 1
            return weight * 1.0

    module, counting = kind(INPUT, HIDDEN), Counting()
    parametrize.register_parametrization(module, "weight_hh_l0", counting)
    counting.count = 0
    module(inputs())
    assert counting.count == 1


def is_a_base(kind):
    assert isinstance(kind(INPUT, HIDDEN), nn.RNNBase)


def scripted(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(kind(INPUT, HIDDEN))


def projected(kind):
    kind(INPUT, HIDDEN, proj_size=2)


def skip_init(kind):
    nn.utils.skip_init(kind, INPUT, HIDDEN)


def a_state_of_three(kind):
    kind(INPUT, HIDDEN)(packed(), (ZEROS,) * 3)


def sized_by_numpy(kind):
    kind(np.int64(INPUT), np.int32(HIDDEN))


def gradient_penalty(kind):
    module, x = kind(INPUT, HIDDEN), inputs().requires_grad_()
    (first,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    first.square().sum().backward()


def fake_and_packed(kind):
    with FakeTensorMode(allow_non_fake_inputs=True):
        kind(INPUT, HIDDEN)(pack_sequence([torch.zeros(5, INPUT), torch.zeros(3, INPUT)]))


def packed_in_export(kind):
    class Packs(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = kind(INPUT, HIDDEN)

        def forward(self, x, lengths):
            return self.lstm(pack_padded_sequence(x, lengths))[0].data

    torch.export.export(Packs(), (inputs(5, 3, INPUT), torch.tensor([5, 3, 1])))


DIFFERENT = {
    "second derivatives": (gradient_penalty, None, RuntimeError),
    "a PackedSequence under FakeTensorMode": (fake_and_packed, Exception, Exception),
    "a PackedSequence in `torch.compile`": (packed_in_export, Exception, Exception),
    "`torch.func.stack_module_state`": (one_of_many, RuntimeError, None),
    "`torch.export`, `torch.compile(fullgraph=True)`": (compiled_whole, Exception, None),
    "no step (T = 0)": (without_steps, RuntimeError, None),
    "a parametrized weight": (counted, AssertionError, None),
    "`torch.nn.utils.skip_init`": (skip_init, RuntimeError, None),
    "sizes of NumPy's types": (sized_by_numpy, TypeError, None),
    "a weight that was deleted": (gone_weight, None, AttributeError),
    "`isinstance(module, nn.RNNBase)`": (is_a_base, None, AssertionError),
    "`torch.jit.script`": (scripted, None, InputError),
    "`proj_size` above 0": (projected, None, InputError),
    "`hx` of three parts": (a_state_of_three, None, InputError),
}


@pytest.mark.parametrize("row", DIFFERENT)
def test_the_documented_difference(row):
    use, *refusals = DIFFERENT[row]
    assert f"| {row}" in DOCS
    for kind, refusal in zip((nn.LSTM, LSTM), refusals, strict=True):
        if refusal is None:
            use(kind)
        else:
            with pytest.raises(refusal):
                use(kind)


def test_arguments_of_ones_own_in_torch_fx():
    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = LSTM(INPUT, HIDDEN, batch_first=True)

        def forward(self, x, lengths):
            output, state = self.inner(x, lengths=lengths)
            return output, state.c

    module, given = Ragged(), (inputs(), torch.tensor([5, 2, 0]))
    graph = torch.fx.symbolic_trace(module)
    assert list(graph(*given)[1].shape) == [1, 3, HIDDEN]
    torch.testing.assert_close(graph(*given), module(*given), rtol=0, atol=0)


def test_there_is_a_row_for_every_public_name_that_is_missing():
    theirs, ours = pair()
    missing = {name for name in set(dir(theirs)) - set(dir(ours)) if name[0] != "_"}
    assert missing == set()
