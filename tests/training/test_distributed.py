import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Timer

import pytest
import torch
from marks import slow
from resume_cases import CASES, assert_same_run, figures_of, forked, job_of
from training_cases import save_npz, two_classes

from lstm_compile import load_model
from lstm_compile.errors import InputError
from lstm_compile.training import epoch as epochs
from lstm_compile.training.processes import ProcessGroup, joined_processes
from lstm_compile.training.run import help_run, run

STILL = {"head_dropout": 0.0, "dropout": 0.0}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_team(size, action):
    """Do `action` in so many processes that meet; their exit codes."""
    port = free_port()

    def member(rank):
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        with joined_processes("cpu") as team:
            action(team)

    pids = [forked(lambda rank=rank: member(rank)) for rank in range(size)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def train_together(size, folder, name, output, **changes):
    path = CASES[name][0](folder)

    def member(team):
        job = job_of(folder, name, output, path=path, **changes)
        run(job) if team.is_first else help_run(job)

    assert in_team(size, member) == [0] * size


@pytest.fixture
def without_dropout(monkeypatch):
    for name, (data, task, model, training) in CASES.items():
        plain = {k: v for k, v in training.items() if k not in ("noise", "time_crop")}
        monkeypatch.setitem(CASES, name, (data, task, {**model, **STILL}, plain))


def assert_close_runs(found, expected):
    pairs = list(zip(figures_of(found), figures_of(expected), strict=True))
    for one, other in pairs:
        for name in ("train_loss", "validation_loss"):
            assert (one[name] is None) == (other[name] is None)
            if one[name] is not None:
                assert one[name] == pytest.approx(other[name], rel=1e-5)
        assert one["learning_rate"] == other["learning_rate"]
    params, others = load_model(found).params, load_model(expected).params
    for key, value in others.items():
        torch.testing.assert_close(params[key], value, rtol=1e-3, atol=1e-4)


# ---- shares


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_shares_are_every_row_once_and_as_long(size, count):
    lengths = torch.randint(1, 500, (100,), generator=torch.Generator().manual_seed(0))
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(1))[:count]
    shares = [ProcessGroup(rank, size).share(rows, lengths) for rank in range(size)]
    assert torch.cat(shares).sort().values.equal(rows.sort().values)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if count == 32:
        steps = [int(lengths[share].sum()) for share in shares]
        assert max(steps) - min(steps) <= int(lengths.max())


# ---- the same curve


@pytest.mark.parametrize("name", [name if name == "classify" else slow(name) for name in CASES])
def test_two_processes_give_the_curve_of_one(tmp_path, without_dropout, name):
    run(job_of(tmp_path, name, tmp_path / "one"))
    train_together(2, tmp_path, name, tmp_path / "two")
    assert_close_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_more_processes_than_rows_are_left_give_it_too(tmp_path, without_dropout):
    changes = {"batch_size": 5, "epochs": 2}  # 72 rows: the last batch has 2
    run(job_of(tmp_path, "classify", tmp_path / "one", **changes))
    train_together(3, tmp_path, "classify", tmp_path / "three", **changes)
    assert_close_runs(tmp_path / "three", tmp_path / "one")


@pytest.mark.parametrize(("before", "after"), [(2, 1), slow(1, 2), slow(2, 3)])
@pytest.mark.parametrize("name", ["classify", slow("lm")])
def test_a_run_is_resumed_by_another_number_of_processes(
    tmp_path, without_dropout, name, before, after
):
    path = CASES[name][0](tmp_path)
    run(job_of(tmp_path, name, tmp_path / "one", path=path))

    def cut_short(team):
        job = job_of(tmp_path, name, tmp_path / "cut", path=path)
        stop = [None] * 2

        def interrupt(epoch):
            stop.pop()
            if not stop:
                os._exit(3)

        run(job, interrupt) if team.is_first else help_run(job)

    codes = in_team(before, cut_short)
    assert codes[0] == 3
    assert all(codes)
    train_together(after, tmp_path, name, tmp_path / "cut", resume=True)
    assert_close_runs(tmp_path / "cut", tmp_path / "one")


def test_a_team_repeats_itself_bit_for_bit(tmp_path):
    train_together(2, tmp_path, "classify", tmp_path / "a")
    train_together(2, tmp_path, "classify", tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_batch_that_one_process_finds_not_finite_is_skipped_by_all(tmp_path, without_dropout):
    path, original, calls = CASES["classify"][0](tmp_path), epochs.train_step, count(1)

    def poisoned(params, optimizer, batch, *rest):
        if next(calls) in (2, 4, 9):
            batch = batch._replace(x=batch.x * float("inf"))
        return original(params, optimizer, batch, *rest)

    def member(team):
        job, told = job_of(tmp_path, "classify", tmp_path / "run", path=path), []
        epochs.train_step = original if team.is_first else poisoned
        run(job, note=told.append) if team.is_first else help_run(job)
        if team.is_first:
            (tmp_path / "notes").write_text("\n".join(told))

    assert in_team(2, member) == [0, 0]
    notes = (tmp_path / "notes").read_text().splitlines()
    assert [note.split(" is nan")[0] for note in notes] == [
        f"the loss of epoch {epoch}, batch {batch} of 5"
        for epoch, batch in ((1, 2), (1, 4), (2, 4))
    ]


def test_too_few_rows_for_all_processes_are_refused(tmp_path):
    def member(team):
        with pytest.raises(
            InputError, match="batch_size is that of all processes together: 1 rows"
        ):
            job_of(tmp_path, "classify", tmp_path / "run", batch_size=1)

    assert in_team(2, member) == [0, 0]


def test_a_process_that_is_restarted_goes_on_in_the_last_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = CASES["classify"][0](tmp_path)
    run(job_of(tmp_path, "classify", None, path=path))
    for number in (2, 10):
        shutil.copytree("runs/data-1", f"runs/data-{number}")
        Path(f"runs/data-{number}/model.safetensors").unlink()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    job = job_of(tmp_path, "classify", None, path=path)
    assert (job.folder, job.saved is not None) == (Path("runs/data-10"), True)


# ---- torchrun


@contextmanager
def torchrun(*args, restarts=0):
    """Two processes that train; killed where they have not ended after two minutes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, f"--max-restarts={restarts}", "-m", "lstm_compile", "train", *args]
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        watch = Timer(120, kill, [process])
        watch.start()
        try:
            yield process
        finally:
            watch.cancel()
            kill(process)


def kill(process):
    for pid in family(process.pid) if process.poll() is None else ():
        os.kill(pid, signal.SIGKILL)


def family(pid):
    """The process and all that it has started."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def children(pid):
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rsplit(")")[-1].split()[1]) == pid:
                yield int(path.name)
        except OSError:
            continue


def worker(parent, rank):
    """The process of that rank that `parent` has started."""
    wanted = f"RANK={rank}".encode()
    (pid,) = (
        pid
        for pid in children(parent)
        if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    return pid


@pytest.mark.slow
def test_a_killed_process_is_restarted_from_the_last_state(tmp_path):
    data = save_npz(tmp_path, two_classes(400))
    size = ["--hidden-size", 6, "--num-layers", 1, "--batch-size", 16, "--device", "cpu"]
    length = ["--epochs", 25, "--patience", 25, "--output", tmp_path / "run"]
    lines = []
    with torchrun(data, *size, *length, restarts=2) as process:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch 5:"):
                os.kill(worker(process.pid, 1), signal.SIGKILL)
        _, stderr = process.communicate()
    assert process.returncode == 0, "".join(lines) + stderr
    (resumed,) = [line for line in lines if line.startswith("resumed")]
    reached = int(re.search(r"epoch (\d+)", resumed)[1])
    assert reached >= 6
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 25
    assert load_model(tmp_path / "run").training["stopped"] == "epochs"


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_the_state(tmp_path):
    data = save_npz(tmp_path, two_classes(400))
    size = ["--hidden-size", 6, "--num-layers", 1, "--batch-size", 16, "--device", "cpu"]
    length = ["--epochs", 10**6, "--patience", 10**6, "--backend", "vendor"]
    output = ["--output", tmp_path / "run", "--save-every", "60 minutes"]
    with torchrun(data, *size, *length, *output) as process:
        for line in process.stdout:
            if line.startswith("epoch 3:"):
                process.terminate()
                break
        process.communicate()
    assert (tmp_path / "run" / "last.safetensors").exists()
