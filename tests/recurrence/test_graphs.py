"""How often the chunks are compiled: once, whatever comes; never again and never given up."""

import subprocess
import sys
import textwrap

import pytest
import torch
from cases import SINGLE, make_data, of
from marks import slow
from torch._dynamo.utils import counters

from lstm_compile import lstm

PER_CHUNK = 3  # inference, the forward that records, the backward


def graphs():
    return counters["stats"]["unique_graphs"]


def exercise(hidden_size, chunk, batch, time, ragged, *, training=True, x_grad=False, frozen=False):
    """One call, and its backward where there is one."""
    torch.manual_seed(batch * 7 + time)
    data = make_data(of(hidden_size=hidden_size, batch=batch, time=time), SINGLE)
    lengths = torch.randint(0, time + 1, (batch,)) if ragged else None
    x = data.x.detach().requires_grad_(x_grad)
    params = {n: v.detach().requires_grad_(not frozen) for n, v in data.params.items()}
    with torch.set_grad_enabled(training):
        output, state = lstm(params, x, lengths, backend="compiled", chunk=chunk)
    if output.requires_grad:
        (output.square().sum() + state.c.sum()).backward()
    return output


def warm_up(hidden_size, chunk):
    before = graphs()
    exercise(hidden_size, chunk, 4, 5, ragged=True)
    exercise(hidden_size, chunk, 4, 5, ragged=True, training=False)
    return graphs() - before


@pytest.mark.parametrize("hidden_size", [slow(1), 5, slow(7)])
def test_one_compile_serves_every_shape_and_mode(hidden_size):
    warm_up(hidden_size, 2)  # compiled here, or before in this process
    before = graphs()
    for batch in (0, 1, 2, 3, 8, hidden_size):
        for time in (0, 1, 2, 5, 16):
            for ragged in (False, True):
                exercise(hidden_size, 2, batch, time, ragged)
                exercise(hidden_size, 2, batch, time, ragged, training=False)
    exercise(hidden_size, 2, 3, 101, True)
    exercise(hidden_size, 2, 3, 5, True, x_grad=True)
    exercise(hidden_size, 2, 3, 5, True, x_grad=True, frozen=True)
    exercise(hidden_size, 2, 3, 5, True, frozen=True)
    with torch.inference_mode():
        exercise(hidden_size, 2, 3, 5, True, training=False)
        exercise(hidden_size, 2, 2, 1, False, training=False)
    assert graphs() == before


@pytest.mark.slow
def test_fifty_random_shapes_add_no_graph():
    warm_up(5, 2)
    before, generator = graphs(), torch.Generator().manual_seed(3)
    for number in range(50):
        batch, time = torch.randint(1, 40, (2,), generator=generator).tolist()
        exercise(5, 2, 1 if number % 7 == 0 else batch, 1 if number % 11 == 0 else time, True)
    exercise(5, 2, 3, 4096, False, training=False)
    assert graphs() == before


@pytest.mark.slow
def test_the_first_batch_may_be_as_large_as_any_other_size():
    """Rows are the one dynamic size: a size that happens to equal theirs at first is not theirs."""
    torch.manual_seed(0)
    params = dict(torch.nn.LSTM(2, 2).named_parameters())
    for batch in (2, 8, 3, 1):  # at first that of features, hidden size and chunk, then of gates
        x = torch.randn(batch, 3, 2)
        lengths = torch.randint(0, 4, (batch,))
        results = []
        for backend in ("compiled", "reference"):
            output, state = lstm(params, x, lengths, backend=backend, chunk=2)
            loss = output.square().sum() + state.c.sum()
            results.append([output, *state, *torch.autograd.grad(loss, [*params.values()])])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_no_mix_of_resets_adds_a_graph():
    warm_up(5, 2)
    before = graphs()
    torch.manual_seed(0)
    for batch, time in ((1, 1), (1, 9), (3, 1), (2, 8), (7, 33)):
        data = make_data(of(batch=batch, time=time, num_layers=2), SINGLE)
        lengths = torch.randint(0, time + 1, (batch,))
        for share in (0.0, 0.1, 0.5, 1.0):
            resets = torch.rand(batch, time) < share
            output, state = lstm(
                data.params, data.x, lengths, resets=resets, backend="compiled", chunk=2
            )
            (output.square().sum() + state.c.sum()).backward()
            with torch.no_grad():
                lstm(data.params, data.x, resets=resets, backend="compiled", chunk=2)
    assert graphs() == before


def test_threads_and_global_modes_compile_nothing():
    warm_up(5, 2)
    before = graphs()
    with torch.device("cpu"):
        exercise(5, 2, 3, 5, True)
    torch.use_deterministic_algorithms(True)
    try:
        exercise(5, 2, 3, 5, True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert graphs() == before


def test_one_compile_serves_transforms_and_outer_modes():
    warm_up(5, 2)
    data = make_data(of(lengths=(5, 0, 3), num_layers=2, bidirectional=True), SINGLE)
    params = {name: value.detach() for name, value in data.params.items()}

    def loss(params, x):
        return lstm(params, x, data.lengths, backend="compiled", chunk=2)[0].square().sum()

    before = graphs()
    torch.func.grad(loss)(params, data.x.detach())
    torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(
        params, torch.stack([data.x.detach()] * 2)
    )
    with torch.autograd.set_multithreading_enabled(False):
        loss(data.params, data.x).backward()
    with torch.autocast("cpu", enabled=False), torch.enable_grad():
        loss(data.params, data.x).backward()
    with torch.autograd.forward_ad.dual_level():  # a level without dual numbers
        loss(data.params, data.x).backward()
    assert graphs() == before


@pytest.mark.slow
def test_autocast_adds_the_graphs_of_its_own_dtype_once():
    def under_autocast(batch, time, **mode):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            exercise(5, 2, batch, time, True, **mode)

    under_autocast(4, 5)
    under_autocast(4, 5, training=False)
    before = graphs()
    for batch, time in ((1, 1), (2, 7), (3, 16), (8, 33)):
        under_autocast(batch, time)
        under_autocast(batch, time, training=False)
        under_autocast(batch, time, x_grad=True, frozen=True)
    with torch.inference_mode():
        under_autocast(3, 4, training=False)
    assert graphs() == before


@pytest.mark.slow
def test_a_new_hidden_size_is_three_graphs():
    assert warm_up(19, 2) == PER_CHUNK  # a size that no other test compiles
    assert warm_up(19, 2) == 0


def run_alone(program):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_default_chunk_compiles_once_for_1_to_2000_steps():
    """In a process of its own: the count begins at nothing."""
    program = """
        import torch
        from torch._dynamo.utils import counters
        from lstm_compile import LSTM
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch.manual_seed(0)
        module = LSTM(3, 33, batch_first=True, backend="compiled")

        def run(batch, time, ragged):
            x = torch.randn(batch, time, 3)
            lengths = torch.randint(0, time + 1, (batch,)) if ragged else None
            module(x, None, lengths)[0].square().sum().backward()
            with torch.inference_mode():
                module(x, None, lengths)

        run(4, 5, True)
        print(counters["stats"]["unique_graphs"])
        for batch in (1, 2, 3, 8):
            for time in (1, 2, 15, 16, 17, 100):
                run(batch, time, False)
                run(batch, time, True)
        run(2, 2000, True)
        print(counters["stats"]["unique_graphs"])
        print(sum(counters["graph_break"].values()))
    """
    assert run_alone(program).split() == [str(PER_CHUNK), str(PER_CHUNK), "0"]


@pytest.mark.slow
def test_a_dozen_sizes_in_one_process_compile_each_once():
    """Dynamo gives up on a code object past its eighth recompile; no two sizes share one."""
    limit = torch._dynamo.config.recompile_limit
    sizes = [(size % 4 + 1, size) for size in range(1, 13)]  # input, hidden
    assert len(sizes) > limit
    program = f"""
        import torch
        from torch._dynamo.utils import counters
        from lstm_compile import LSTM
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        for inputs, hidden in {sizes}:
            before = counters["stats"]["unique_graphs"]
            module = LSTM(inputs, hidden, chunk=1)
            x = torch.randn(3, 2, inputs)
            expected, _ = module(x, backend="reference")
            with torch.no_grad():
                for _ in range(2):
                    found, _ = module(x, backend="compiled")
            assert (found - expected).abs().max() < 1e-5
            print(counters["stats"]["unique_graphs"] - before)
    """
    assert run_alone(program).split() == ["1"] * len(sizes)


ASKED = """
import sys
from lstm_compile.recurrence import inductor
seen = []
start, inductor.Thread.start = inductor.Thread.start, lambda self: seen.append(set(sys.modules))
thread = inductor._find_instructions()
start(thread)
thread.join()
print(*set(sys.modules) - seen[0])
"""


@pytest.mark.slow
def test_nothing_is_imported_beside_the_tracing():
    """setuptools changes sys.meta_path as it is imported, and imports elsewhere then fail."""
    found = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, ""), found.stderr
