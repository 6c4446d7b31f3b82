import contextlib
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from marks import slow
from resume_cases import CASES, assert_same_run, figures_of, forked, job_of
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves
from training_cases import QUICK, SMALL, prepared, save_npz, setting, two_classes

from lstm_compile import load_model
from lstm_compile.errors import InputError, RunError
from lstm_compile.training import epoch as epochs
from lstm_compile.training import step
from lstm_compile.training.loop import fit
from lstm_compile.training.prepare import RunFinishedError
from lstm_compile.training.resume import ProgressSaver, load_progress, save_progress, settings_of
from lstm_compile.training.run import run
from lstm_compile.training.run_files import locked
from lstm_compile.training.settings import TrainingConfig, parse_interval
from lstm_compile.training.step import init_adam


def interrupt_at(monkeypatch, step):
    """Ctrl-C within step `step`, counted from 1, once it has drawn its random numbers."""
    original, calls = epochs.train_step, count(1)

    def stopping(*args):
        result = original(*args)
        if next(calls) == step:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(epochs, "train_step", stopping)


def interrupted_run(folder, monkeypatch, name, step, output, **changes):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        try:
            outcome = run(job_of(folder, name, output, **changes))
        except KeyboardInterrupt:
            return "before an epoch"
    return outcome.fit.stopped


# ---- going on


def steps_done(folder):
    with safe_open(folder / "last.safetensors", framework="pt") as archive:
        return json.loads(archive.metadata()["progress"])["step"]


@pytest.mark.parametrize("name", [name if name == "augmented" else slow(name) for name in CASES])
def test_a_run_that_was_stopped_anywhere_ends_as_if_it_never_was(tmp_path, monkeypatch, name):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(job_of(tmp_path, name, whole))
    total = steps_done(whole)  # of the refit, where there is one
    for place in (2, total // 2, total + 2 if name == "refit" else total - 1):
        stopped = interrupted_run(tmp_path, monkeypatch, name, place, cut)
        assert stopped in ("interrupt", "before an epoch")
        run(job_of(tmp_path, name, cut, resume=True))
        assert_same_run(cut, whole)
        shutil.rmtree(cut)


@pytest.mark.slow
def test_a_run_may_be_stopped_again_and_again(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(job_of(tmp_path, "augmented", whole))
    done = []
    while not done or done[-1] is None:
        before = len(done)
        stopped = None
        with monkeypatch.context() as patch:
            interrupt_at(patch, 2)
            try:
                stopped = run(job_of(tmp_path, "augmented", cut, resume=before > 0)).fit.stopped
            except KeyboardInterrupt:
                stopped = "interrupt"
        done.append(None if stopped == "interrupt" else stopped)
    assert len(done) == 9  # 3 epochs of 3 steps; each try takes one, the last ends
    assert_same_run(cut, whole)


def test_what_is_saved_is_what_is_given_back(tmp_path):
    data = two_classes()
    params, config = setting(data)
    training, seen = replace(QUICK, ema=0.5), []
    fit(params, config, training, data, data, on_progress=seen.append)
    for progress in (seen[0], seen[7], seen[-1]):
        save_progress(
            tmp_path / "x", progress, {"config": {}, "training": {}} | about(config, training)
        )
        found, others = load_progress(tmp_path / "x", config, training).progress, progress
        assert found.epochs == others.epochs
        assert found.state.params.keys() == others.state.params.keys()
        assert list(found.state.params) == list(others.state.params)
        for one, other in zip(tree_leaves(found), tree_leaves(others), strict=True):
            assert one.equal(other) if isinstance(one, torch.Tensor) else one == other


def about(config, training):
    return settings_of(config, training)


def test_a_resumed_fit_is_the_same_in_python(tmp_path):
    data, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(data, head_dropout=0.4)
    seen = []
    whole = fit(params, config, QUICK, data, held_out, on_progress=seen.append)
    again = fit(params, config, QUICK, data, held_out, resume=seen[8])
    assert all(again.params[name].equal(value) for name, value in whole.params.items())
    assert [e._replace(seconds=0) for e in again.epochs] == [
        e._replace(seconds=0) for e in whole.epochs
    ]


def test_a_run_without_a_saved_state_begins_at_the_start(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(job_of(tmp_path, "classify", whole))
    run(job_of(tmp_path, "classify", cut))
    for name in ("last.safetensors", "model.safetensors", "metrics.jsonl"):
        (cut / name).unlink()
    run(job_of(tmp_path, "classify", cut, resume=True))
    assert_same_run(cut, whole)


# ---- how often


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("100 steps", 100, "steps"),
        ("1 step", 1, "steps"),
        ("2 epochs", 2, "epochs"),
        ("0.5 minutes", 0.5, "minutes"),
        ("1 minute", 1, "minutes"),
    ],
)
def test_intervals_have_units(text, amount, unit):
    assert parse_interval(text) == (amount, unit)


@pytest.mark.parametrize("text", ["", "5", "steps", "0 steps", "-1 steps", "1.5 epochs", "2 days"])
def test_other_intervals_are_refused(text):
    with pytest.raises(InputError, match="save_every must be a number above 0 and steps, epochs"):
        TrainingConfig(save_every=text)


@pytest.mark.parametrize(
    ("every", "expected"),
    [("1 epoch", [5, 10, 15]), ("2 epochs", [10]), ("4 steps", [4, 8, 12]), ("9 minutes", [])],
)
def test_the_state_is_saved_when_it_is_due(every, expected):
    data, saved = two_classes(), []
    params, config = setting(data)
    saver = ProgressSaver(lambda progress: saved.append(progress.state.optimizer.step), every, None)
    fit(params, config, QUICK, data, data, on_progress=saver.update)
    assert saved == expected


def test_the_end_of_training_is_saved_whenever_that_is(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(job_of(tmp_path, "classify", whole))

    def stop(*_):
        raise KeyboardInterrupt

    job = job_of(tmp_path, "classify", cut, save_every="90 minutes")
    with monkeypatch.context() as patch:
        patch.setattr("lstm_compile.training.run.evaluate_model", stop)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    monkeypatch.setattr(epochs, "train_step", stop)
    run(job_of(tmp_path, "classify", cut, resume=True, save_every="90 minutes"))
    assert_same_run(cut, whole)


def test_a_signal_within_a_save_waits_for_it(tmp_path):
    written, calls = [], count(1)

    def write(progress):
        if next(calls) == 1:
            raise KeyboardInterrupt
        written.append(progress)

    data = two_classes()
    params, config = setting(data)
    saver = ProgressSaver(write, "3 steps", None)
    found = fit(params, config, QUICK, data, data, on_progress=saver.update)
    assert found.stopped == "interrupt"
    assert [progress.state.optimizer.step for progress in written] == [3]


# ---- what cannot be resumed


def test_a_finished_run_is_not_resumed(tmp_path):
    run(job_of(tmp_path, "classify", tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(
        RunFinishedError, match=r"this run is finished \(best epoch \d, stopped by epochs"
    ):
        job_of(tmp_path, "classify", tmp_path / "run", resume=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    patch = pytest.MonkeyPatch()
    interrupted_run(folder, patch, "classify", 8, folder / "run")
    patch.undo()
    return folder


@pytest.fixture
def copied(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_other_data_are_refused(copied):
    save_npz(copied, two_classes(seed=3))
    data = CASES["classify"][0]
    job = pytest.raises(InputError, match="written with other data")
    with job, pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            CASES, "classify", (lambda _: str(copied / "data.npz"), *CASES["classify"][1:])
        )
        job_of(copied, "classify", copied / "run", resume=True)
    assert data is CASES["classify"][0]


@pytest.mark.parametrize("changes", [{"learning_rate": 0.5}, {"epochs": 9}, {"seed": 4}])
def test_other_settings_are_refused(copied, changes):
    (name,) = changes
    with pytest.raises(
        InputError, match=f"last.safetensors: written with {name} .* say {changes[name]}"
    ):
        job_of(copied, "classify", copied / "run", resume=True, **changes)


def test_another_version_or_thread_count_is_told(copied, monkeypatch):
    notes = []
    monkeypatch.setattr("lstm_compile.training.run_files.versions", lambda: {"torch": "9.9"})
    run(job_of(copied, "classify", copied / "run", resume=True), note=notes.append)
    assert len(notes) == 1
    assert "'torch': '9.9'}: the run goes on, but not bit for bit" in notes[0]


# ---- damage


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0x40
    path.write_bytes(content)


def garbled(path):
    path.write_bytes(b"\xff" + path.read_bytes()[1:])


DAMAGE = [cut_off, emptied, flipped, garbled]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_named(copied, damage):
    damage(copied / "run" / "last.safetensors")
    with pytest.raises(
        InputError, match=r"last\.safetensors: .*cannot be resumed from; start a new"
    ):
        job_of(copied, "classify", copied / "run", resume=True)
    assert load_model(copied / "run").training["epochs"] == 1


def test_no_byte_of_the_state_can_change_unseen(copied):
    last = copied / "run" / "last.safetensors"
    settings = job_of(copied, "classify", copied / "run", resume=True)
    content, draw = last.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        place = draw.randrange(len(content))
        damaged[place] ^= 1 << draw.randrange(8)
        last.write_bytes(damaged if draw.random() < 0.8 else content[:place])
        with pytest.raises(InputError, match=r"^[^\n]*last\.safetensors: [^\n]*$"):
            load_progress(last, settings.config, settings.training)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", *map(slow, ["metrics.jsonl", "baselines.safetensors", "report.html"])],
)
@pytest.mark.parametrize("damage", [cut_off, slow(emptied), slow(Path.unlink)])
def test_what_else_is_damaged_is_written_again(copied, name, damage, tmp_path_factory):
    damage(copied / "run" / name)
    whole = tmp_path_factory.mktemp("whole")
    run(job_of(copied, "classify", copied / "run", resume=True))
    run(job_of(whole, "classify", whole / "run"))
    params, others = load_model(copied / "run").params, load_model(whole / "run").params
    assert all(params[key].equal(others[key]) for key in others)
    assert figures_of(copied / "run") == figures_of(whole / "run")
    assert (copied / "run/report.html").read_text("utf-8").endswith("</html>\n")


def test_a_file_of_another_kind_or_version_is_named(copied):
    last = copied / "run" / "last.safetensors"
    last.write_bytes((copied / "run" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"format and format_version are \('lstm_compile', '1'\)"):
        job_of(copied, "classify", copied / "run", resume=True)


def test_a_limit_on_file_sizes_keeps_the_last_good_state(copied):
    folder = copied / "run"
    before = (folder / "last.safetensors").read_bytes()
    job = job_of(copied, "classify", folder, resume=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(
            InputError, match=r"last\.safetensors: cannot be written \(File too large"
        ):
            run(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "last.safetensors").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    run(job_of(copied, "classify", folder, resume=True))


def test_a_read_only_folder_is_named(copied):
    folder = copied / "run"
    before = (folder / "last.safetensors").read_bytes()
    job = job_of(copied, "classify", folder, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        if os.geteuid() == 0:  # rights do not bind root
            patch.setattr(os, "open", refused)
        folder.chmod(0o500)
        with pytest.raises(InputError, match=r"run\.lock: cannot be locked \(Permission denied\)"):
            run(job)
        folder.chmod(0o700)
    assert (folder / "last.safetensors").read_bytes() == before


def refused(path, *args, **options):
    raise PermissionError(13, "Permission denied")


# ---- one run a folder


def test_two_runs_do_not_write_to_one_folder(copied):
    job = job_of(copied, "classify", copied / "run", resume=True)
    message = rf"another run writes there \(process {os.getpid()}\)"
    with locked(copied / "run"), pytest.raises(InputError, match=message):
        run(job)
    run(job)
    assert not (copied / "run" / "run.lock").exists()


def test_the_lock_of_a_dead_process_is_none(tmp_path):
    pid = os.fork()
    if not pid:
        with locked(tmp_path):
            os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / "run.lock").read_text() == f"{pid}\n"
    with locked(tmp_path):
        assert (tmp_path / "run.lock").read_text() == f"{os.getpid()}\n"


def test_a_job_does_not_go_on_from_what_another_run_has_left_behind(copied):
    first, second = (job_of(copied, "classify", copied / "run", resume=True) for _ in range(2))
    run(first)
    with pytest.raises(InputError, match="another run wrote there meanwhile; try again"):
        run(second)


# ---- kill -9


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("call", [slow(1), 5, slow(9)])
def test_a_kill_within_a_write_loses_nothing(copied, name, call):
    """Before what was written is on the disk, and before it has its name."""
    folder = copied / "run"

    def die(*args, **options):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    calls, original = count(1), getattr(os, name)
    before = load_file(folder / "last.safetensors")
    job = job_of(copied, "classify", folder, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, die)
        pid = forked(lambda: run(job))
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert load_file(folder / "last.safetensors").keys() == before.keys()
    run(job_of(copied, "classify", folder, resume=True))
    assert load_model(folder).training["stopped"] == "epochs"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_thirty_of_thirty_kills_are_resumed_bit_for_bit(tmp_path):
    whole, kills, running = tmp_path / "whole", 0, 0
    run(job_of(tmp_path, "augmented", whole, epochs=6))
    draw = random.Random(0)

    def train(cut, go_on):
        with contextlib.suppress(RunFinishedError):  # killed after its last write
            run(job_of(tmp_path, "augmented", cut, resume=go_on, epochs=6))

    while kills < 30:
        cut, running = tmp_path / f"cut{running}", running + 1
        ended = False
        while not ended:
            is_begun = (cut / "config.toml").exists()
            pid = forked(lambda cut=cut, go_on=is_begun: train(cut, go_on))
            killer = threading.Timer(draw.uniform(0.02, 0.4), os.kill, (pid, signal.SIGKILL))
            killer.start()
            _, status = os.waitpid(pid, 0)
            killer.cancel()
            killer.join()
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
            kills += os.WIFSIGNALED(status)
            ended = not os.WIFSIGNALED(status)
        assert_same_run(cut, whole)
        assert not [path for path in cut.iterdir() if path.name.startswith(".")]


# ---- numbers


def poisoned(count_=20, *rows):
    """Sequences of which some hold a value that overflows."""
    data = two_classes(count_)
    for row in rows:
        data.x[data.offsets[row]] = math.inf
    return data


def test_a_batch_that_is_not_finite_is_skipped_with_its_rows():
    data, notes = poisoned(20, 7), []
    params, config = setting(data)
    training = replace(QUICK, batch_size=4, epochs=2, skip_nonfinite=2)
    rows = torch.arange(100, 120)
    found = fit(params, config, training, data, two_classes(9), rows=rows, note=notes.append)
    assert len(found.epochs) == 2
    assert all(math.isfinite(epoch.train_loss) for epoch in found.epochs)
    assert all(value.isfinite().all() for value in found.params.values())
    assert int(found.progress.state.skipped) == len(notes) == 2
    for number, note in enumerate(notes, 1):
        assert note.startswith(f"the loss of epoch {number}, batch ")
        assert note.endswith(f"counted from 0); skipped, {number} of at most 2")
        assert "107" in note.split("(sequences ")[1].split(" of the training data")[0].split(", ")


def test_one_more_stops_the_training():
    data, notes = poisoned(20, 7), []
    params, config = setting(data)
    training = replace(QUICK, batch_size=4, epochs=3, skip_nonfinite=1)
    message = r"the loss of epoch 2, batch \d of 5 is nan .*\(1 before it were skipped\)"
    with pytest.raises(RunError, match=message):
        fit(params, config, training, data, two_classes(9), note=notes.append)
    assert len(notes) == 1


def test_a_step_that_is_skipped_changes_nothing_but_the_count():
    data = poisoned(8, 2)
    params, config = setting(data)
    batch = data.gather(torch.arange(8))
    result = epochs.train_step(params, init_adam(params), batch, 0.1, config, QUICK)
    assert not result.is_finite
    assert all(result.params[name].equal(value) for name, value in params.items())
    assert not any(value.any() for value in result.optimizer.mean.values())
    assert result.optimizer.step == 1


def test_gradients_that_are_not_finite_are_told_from_losses(monkeypatch):
    data, notes = two_classes(), []
    params, config = setting(data)
    original, calls = step.norm_of, count(1)
    monkeypatch.setattr(
        step, "norm_of", lambda g: original(g) * (math.inf if next(calls) == 4 else 1)
    )
    found = fit(params, config, QUICK, data, data, note=notes.append)
    assert [note.split(" (")[0] for note in notes] == [
        "the gradients of epoch 1, batch 4 of 5 are not finite"
    ]
    assert len(found.epochs) == 3


def test_text_that_is_not_finite_names_where_the_lanes_stand(tmp_path, monkeypatch):
    original, calls, notes = step.norm_of, count(1), []
    monkeypatch.setattr(
        step, "norm_of", lambda g: original(g) * (math.nan if next(calls) == 3 else 1)
    )
    run(job_of(tmp_path, "lm", tmp_path / "run"), note=notes.append)
    (note,) = notes
    assert "epoch 1, batch 3 of " in note
    assert "(lanes at characters 32, " in note
    assert load_model(tmp_path / "run").params["head.weight"].isfinite().all()


def test_an_anomaly_names_the_operation_and_the_rows():
    data = two_classes(20)
    params, config = setting(data)
    params["head.weight"] = torch.full_like(params["head.weight"], math.nan)
    training = replace(QUICK, detect_anomaly=True)
    with (
        pytest.warns(UserWarning, match="Traceback of forward call that caused the error"),
        pytest.raises(RunError, match=r"the gradient of \w+Backward0? in epoch 1, batch 1 of 2 is"),
    ):
        fit(params, config, training, data, data)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize(
    ("largest", "advice"),
    [(5, "4 of the longest rows do fit: use --batch-size 4"), (0, "not even one row fits: lower")],
)
def test_too_little_memory_names_the_size_that_fits(monkeypatch, error, largest, advice):
    data = two_classes()
    params, config = setting(data)
    original = epochs.train_step

    def small(params, optimizer, batch, *rest):
        if len(batch.y) > largest:
            raise error
        return original(params, optimizer, batch, *rest)

    monkeypatch.setattr(epochs, "train_step", small)
    message = f"epoch 1, batch 1 of 5: not enough memory for 16 rows; {advice}"
    with pytest.raises(RunError, match=message):
        fit(params, config, QUICK, data, data)


@pytest.mark.slow
def test_a_real_shortage_of_memory_is_told(tmp_path):
    """The address space is cut after everything was loaded, so that the largest batch cannot be."""
    data = save_npz(tmp_path, two_classes(4000))
    job = prepared(
        data, {**SMALL, "hidden_size": 512}, replace(QUICK, batch_size=3600, backend="reference"),
        output=tmp_path / "run",
    )  # fmt: skip

    def short():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
        try:
            run(job)
        except RunError as error:
            (tmp_path / "message").write_text(str(error))

    assert os.waitpid(forked(short), 0)[1] == 0
    assert re.fullmatch(
        r"epoch 1, batch 1 of 1: not enough memory for 3600 rows; (\d+) of the longest rows do "
        r"fit: use --batch-size \1",
        (tmp_path / "message").read_text(),
    )
