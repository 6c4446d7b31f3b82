import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from training_cases import QUICK, means, same, seeded, setting, two_classes

from lstm_compile import ModelConfig, TrainingConfig, fit, from_padded
from lstm_compile.data import feed as feeding
from lstm_compile.data import gather, load_dataset
from lstm_compile.data.feed import feed, within_reach
from lstm_compile.errors import InputError
from lstm_compile.model.model import forward
from lstm_compile.model.pooling import pool
from lstm_compile.recurrence import cache
from lstm_compile.training import step
from lstm_compile.training.loop import predict_all, refit
from lstm_compile.training.step import adam_update, average_update, init_adam, train_step
from lstm_compile.training.warm_start import initial_params

# ---- the step


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_layout_of_gradients_and_weights_does_not_matter(optimizer):
    training = TrainingConfig(optimizer=optimizer, weight_decay=0.1)
    params, gradients = ({"w": torch.randn(4, 6, generator=seeded(i))} for i in range(2))
    turned = [{"w": each["w"].t().contiguous().t()} for each in (params, gradients)]
    assert not turned[0]["w"].is_contiguous()
    found = adam_update(*turned, init_adam(turned[0]), 0.1, training)
    expected = adam_update(params, gradients, init_adam(params), 0.1, training)
    assert same(found[0], expected[0])
    assert same(found[1].square, expected[1].square)


def test_an_average_changes_nothing_that_came_in():
    average, params = ({"w": torch.randn(4, generator=seeded(i))} for i in range(2))
    before = average["w"].clone()
    found = average_update(average, params, 2, 0.9)
    share = (1 - 0.9) / (1 - 0.9**2)
    assert average["w"].equal(before)
    assert found["w"].equal(torch.lerp(before, params["w"], share))


@pytest.mark.parametrize("kind", ["last", "mean", "max", "attention", "dot-attention"])
def test_pooling_without_lengths_is_pooling_of_full_ones(kind):
    steps = torch.randn(3, 5, 4, generator=seeded(0))
    weight = torch.randn(4, generator=seeded(1)) if kind == "attention" else None
    full = pool(steps, torch.full((3,), 5), kind, weight)
    torch.testing.assert_close(pool(steps, None, kind, weight), full, rtol=1e-6, atol=1e-7)


def test_a_full_batch_is_stepped_on_without_lengths(monkeypatch):
    seen = []

    def spy(params, config, x, lengths, **options):
        seen.append(lengths is None)
        return forward(params, config, x, lengths, **options)

    monkeypatch.setattr(step, "forward", spy)
    data = from_padded(torch.randn(4, 5, 2), torch.tensor([0, 1, 0, 1]))
    params, config = setting(data)
    batch = gather(data, torch.arange(4))
    for lengths in (batch.lengths, torch.tensor([5, 5, 4, 5])):
        train_step(params, init_adam(params), batch._replace(lengths=lengths), 0.1, config, QUICK)
    assert seen == [True, False]


# ---- precision


def test_bf16_is_of_the_forward_pass_alone(monkeypatch):
    seen = []

    def spy(params, config, x, lengths, **options):
        prediction, state = forward(params, config, x, lengths, **options)
        seen.append((x.dtype, params["head.weight"].dtype, prediction.dtype))
        return prediction, state

    monkeypatch.setattr(step, "forward", spy)
    data = two_classes()
    params, config = setting(data)
    training = replace(QUICK, precision="bf16")
    batch = gather(data, torch.arange(8))
    result = train_step(params, init_adam(params), batch, 0.1, config, training)
    assert seen == [(torch.float32, torch.float32, torch.bfloat16)]
    kept = [*result.params.values(), *result.optimizer.mean.values(), result.loss]
    assert {value.dtype for value in kept} == {torch.float32}
    plain = train_step(params, init_adam(params), batch, 0.1, config, QUICK)
    torch.testing.assert_close(result.loss, plain.loss, rtol=0.02, atol=0)
    assert not result.loss.equal(plain.loss)


@pytest.mark.slow
def test_bf16_learns_as_well_on_real_data():
    train, test = (load_dataset("japanese-vowels", part) for part in ("train", "test"))
    config = ModelConfig(task="classify", input_size=12, output_size=9, hidden_size=32)
    scores = []
    for precision in ("fp32", "bf16"):
        training = TrainingConfig(epochs=10, learning_rate=0.01, precision=precision)
        found = fit(initial_params(config, 0, train), config, training, train)
        assert all(value.dtype == torch.float32 for value in found.params.values())
        prediction = predict_all(found.params, config, test)
        scores.append(float((prediction.argmax(1) == test.y).float().mean()))
    assert min(scores) > 0.94
    assert abs(scores[0] - scores[1]) < 0.03


@pytest.mark.parametrize("backend", ["vendor", "reference"])
def test_bf16_trains_on_targets_far_from_one(backend):
    data = means(count=40)
    params, config = setting(data)
    training = replace(QUICK, precision="bf16", backend=backend)
    losses = [epoch.train_loss for epoch in fit(params, config, training, data).epochs]
    assert losses[-1] < losses[0]


# ---- a program's own tensors


def test_padded_tensors_become_sequences():
    x, lengths = torch.randn(3, 4, 2), torch.tensor([4, 0, 2])
    x[2, 2:] = torch.nan
    data = from_padded(x, torch.tensor([1, 0, 2]), lengths)
    assert data.lengths.tolist() == [4, 0, 2]
    assert data.x.equal(torch.cat([x[0], x[2, :2]]))
    assert (data.features, data.classes) == (("feature_0", "feature_1"), ("0", "1", "2"))
    again = gather(data, torch.arange(3))
    assert again.x.equal(torch.nan_to_num(x).masked_fill(again.x == 0, 0.0))
    numbers = from_padded(x[:2], torch.randn(2, 3))
    assert (numbers.targets, numbers.lengths.tolist()) == (
        ("target_0", "target_1", "target_2"),
        [4, 4],
    )


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 1), "x must be floating, (sequences, time, features)"),
        (torch.zeros(0, 4, 2), torch.zeros(0, 1), "with a sequence at least"),
        (torch.zeros(3, 4, 2), torch.zeros(3), "floating targets (3, targets); got torch.float32"),
        (torch.zeros(3, 4, 2), torch.zeros(2, 1), "floating targets (3, targets); got torch"),
        (torch.zeros(2, 4, 2), torch.tensor([0, -1]), "must be int64 and count from 0"),
        (torch.zeros(2, 4, 2), torch.tensor([0, 1]).int(), "must be int64 and count from 0"),
        (torch.full((2, 4, 2), torch.nan), torch.zeros(2, 1), "x must be finite in every valid"),
        (torch.zeros(2, 4, 2), torch.full((2, 1), torch.inf), "targets in y must be finite"),
    ],
)
def test_tensors_that_are_no_sequences_are_refused(x, y, message):
    with pytest.raises(InputError, match=re.escape(message)):
        from_padded(x, y)


def test_without_validation_all_epochs_are_run_and_the_last_weights_kept():
    data = two_classes()
    params, config = setting(data)
    training = replace(QUICK, epochs=4, patience=1)
    reached = []
    found = fit(params, config, training, data, on_epoch=lambda _, params: reached.append(params))
    assert (len(found.epochs), found.stopped, found.best.epoch) == (4, "epochs", 4)
    assert same(found.params, reached[-1])
    assert found.epochs[0].validation == {}
    assert same(found.params, refit(params, config, training, data, found))


def test_training_takes_its_own_number_of_threads_and_gives_them_back():
    data = two_classes()
    params, config = setting(data)
    before, seen = torch.get_num_threads(), []
    training = replace(QUICK, epochs=1, threads=before + 1)
    fit(params, config, training, data, on_epoch=lambda *_: seen.append(torch.get_num_threads()))
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


# ---- batches for a device


def test_groups_of_batches_are_fed_in_order():
    data = two_classes()
    groups = [[torch.tensor([3, 1]), torch.tensor([5])], [torch.tensor([0])]]
    found = list(feed(data, data.lengths, groups, torch.device("cpu")))
    assert [len(group) for group in found] == [2, 1]
    for group, indices in zip(found, groups, strict=True):
        for batch, index in zip(group, indices, strict=True):
            expected = gather(data, index)
            assert all(a.equal(b) for a, b in zip(batch[:3], expected[:3], strict=True))
    assert within_reach(data, torch.device("cpu")).x is data.x


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_data_on_the_cpu_train_the_same_model_on_cuda(cuda, monkeypatch):
    data = two_classes()
    params, config = setting(data)
    there = {name: value.to(cuda) for name, value in params.items()}
    training = replace(QUICK, noise=0.1, class_weight="balanced")
    expected = fit(there, config, training, data.to(cuda), data.to(cuda))
    found = fit(there, config, training, data, data)
    assert same(found.params, expected.params)
    monkeypatch.setattr(feeding, "LARGEST_SHARE", 0.0)
    assert within_reach(data, torch.device(cuda)) is data


# ---- what is kept for the next process


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder that is not made yet, and no choice of the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(cache.INDUCTOR, raising=False)
    yield tmp_path / "cache" / "lstm-compile"
    os.environ.pop(cache.INDUCTOR, None)


def test_the_cache_folder_is_the_users_alone(home):
    assert cache.cache_dir() == home
    cache.use_local_cache()
    assert os.environ[cache.INDUCTOR] == str(home / "inductor")
    assert {path.stat().st_mode & 0o777 for path in (home, home / "inductor")} == {0o700}


def test_a_choice_of_the_user_goes_first(home, monkeypatch):
    monkeypatch.setenv(cache.INDUCTOR, "/somewhere")
    cache.use_local_cache()
    assert os.environ[cache.INDUCTOR] == "/somewhere"
    assert not home.exists()


@pytest.mark.parametrize("spoil", ["writable", "file", "foreign"])
def test_a_folder_that_is_not_ones_own_is_not_used(home, spoil, monkeypatch):
    home.parent.mkdir()
    if spoil == "file":
        home.write_text("")
    else:
        home.mkdir(mode=0o700)
    if spoil == "writable":
        home.chmod(0o770)
    if spoil == "foreign":
        monkeypatch.setattr(os, "getuid", lambda: -1)
    expected = {"writable": "mode 770", "file": "File exists", "foreign": "belongs to user"}[spoil]
    with pytest.warns(UserWarning, match=rf"not kept in .*{expected}.*TORCHINDUCTOR_CACHE_DIR"):
        cache.use_local_cache()
    assert cache.INDUCTOR not in os.environ


def test_a_relative_cache_folder_is_ignored(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache.cache_dir().is_absolute()


def test_nothing_compiled_takes_no_time_and_loads_nothing():
    code = (
        "import sys; from lstm_compile.recurrence.cache import compile_seconds as s; "
        "print(s(), 'torch' in sys.modules)"
    )
    assert run(code).split() == ["0.0", "False"]


TWICE = """
import json, torch
from lstm_compile.recurrence.cache import compile_seconds, use_local_cache
use_local_cache()
import lstm_compile
module = lstm_compile.LSTM(5, 9, backend="compiled", chunk=2)
module(torch.randn(6, 3, 5))[0].sum().backward()
from torch._dynamo.utils import counters
hits = [n for k, n in counters["aot_autograd"].items() if k == "autograd_cache_hit"]
print(json.dumps([compile_seconds(), sum(hits)]))
"""


def run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_a_second_process_loads_what_the_first_compiled(home):
    (cold, no_hits), (warm, hits) = (json.loads(run(TWICE)) for _ in range(2))
    assert (no_hits, hits) == (0, 2)  # forward and backward chunk
    assert warm < max(4.0, cold / 3)  # the second holds on a busy machine
