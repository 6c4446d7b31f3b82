"""`--cell` in every command: a cell of one's own from a file of fifteen lines."""

import shlex

import pytest
from cli_cases import QUICK, assert_refused, invoke, invoke_small, snapshot, write_npz
from own_cells import COUPLED, forget_cells, write_cell

PLAIN = ["--backend", "reference"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "data.npz")
    write_cell(tmp_path)
    forget_cells(monkeypatch)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the cell, and what the command printed."""
    folder = tmp_path_factory.mktemp("cells")
    with pytest.MonkeyPatch.context() as patch:
        forget_cells(patch)
        data, spec = write_npz(folder / "data.npz"), write_cell(folder)
        run = folder / "run"
        result = invoke("train", data, "--output", run, "--cell", spec, *QUICK, *PLAIN)
    assert result.exit_code == 0, result.output
    return run, spec, result.stdout


def ok(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train_says_the_next_command_with_the_cell(trained):
    run, spec, printed = trained
    command = f"lstm-compile export {run} --onnx --cell {spec}"
    assert printed.splitlines()[-1].split(maxsplit=1) == ["next", command]
    assert 'cell = "coupled"' in (run / "config.toml").read_text()
    for file in run.iterdir():
        assert b"def step" not in file.read_bytes()


def test_evaluate_and_predict_take_the_cell(trained, here, monkeypatch):
    run, spec, _ = trained
    monkeypatch.setattr("lstm_compile.recurrence.recurrent.can_compile", lambda _: False)
    assert f"--cell {spec}" in ok("evaluate", run, "data.npz", "--cell", spec)
    forget_cells(monkeypatch)
    ok("predict", run, "data.npz", "--output", "p.csv", "--cell", spec)
    assert len((here / "p.csv").read_text().splitlines()) == 61


def test_inspect_needs_no_cell(trained):
    assert "cell coupled" in ok("inspect", trained[0])
    assert "--cell FILE.py:NAME" in ok("inspect", trained[0])


@pytest.mark.parametrize(
    "words", [["evaluate"], ["predict", "--output", "p.csv"], ["export", "--onnx"], ["verify"]]
)
def test_a_command_without_the_cell_says_which_one(trained, here, words):
    name, *flags = words
    run, before = trained[0], snapshot(here)
    data = ["data.npz"] if name in ("evaluate", "predict") else []
    result = invoke(name, run, *data, *flags)
    message = f"{run / 'model.safetensors'}: its cell 'coupled' is not known here; give --cell"
    assert_refused(result, message, before, here)


def test_another_text_of_the_cell_is_refused(trained, here):
    (here / "coupled.py").write_text(COUPLED.replace("0.9", "0.8"))
    before = snapshot(here)
    result = invoke("evaluate", trained[0], "data.npz", "--cell", "coupled.py:COUPLED")
    assert_refused(result, "another text", before, here)


def test_the_text_that_generate_writes_is_that_of_the_state(here, monkeypatch):
    (here / "some.txt").write_text("ab ba abba\n" * 60)
    spec = "coupled.py:COUPLED"
    more = ["--output", "lm", "--unroll", "8", "--batch-size", "4", *PLAIN]
    assert invoke_small("train", "some.txt", "--cell", spec, *more).exit_code == 0
    forget_cells(monkeypatch)
    monkeypatch.setattr("lstm_compile.recurrence.recurrent.can_compile", lambda _: False)
    text = ok("generate", "lm", "--prompt", "ab", "--length", 9, "--cell", spec)
    assert text.startswith("ab")
    assert len(text) == 12


# ---- resume and config files


def stopped(monkeypatch):
    """A run that Ctrl-C has ended after its first epoch, in a process that knows no cell."""
    from lstm_compile.training import run as runs

    def stop(*args):
        original(*args)
        raise KeyboardInterrupt

    original = runs.run_files.save_best
    with monkeypatch.context() as patch:
        patch.setattr(runs.run_files, "save_best", stop)
        result = invoke_small(
            "train", "data.npz", "--cell", "coupled.py:COUPLED", "--output", "run", *PLAIN
        )
    assert "stopped" in result.output
    forget_cells(monkeypatch)
    return result.stdout


def test_a_run_is_resumed_with_its_cell(here, monkeypatch):
    printed = stopped(monkeypatch)
    (line,) = [each for each in printed.splitlines() if each.startswith("resume")]
    words = shlex.split(line)[2:]
    assert words == ["train", "--resume", "run", "--cell", "coupled.py:COUPLED"]
    assert "all epochs done" in ok(*words)


def test_a_run_is_not_resumed_without_its_cell(here, monkeypatch):
    stopped(monkeypatch)
    before = snapshot(here)
    result = invoke("train", "--resume", "run")
    assert_refused(result, "cell 'coupled' is not known here", before, here)
    result = invoke("train", "--resume", "run", "--cell", "gru")
    assert_refused(result, "a run with cell 'coupled', --cell gives 'gru'", before, here)
    (here / "coupled.py").write_text(COUPLED + "# changed\n")
    before = snapshot(here)
    result = invoke("train", "--resume", "run", "--cell", "coupled.py:COUPLED")
    assert_refused(result, "has another text now", before, here)


def test_a_config_file_names_a_cell_but_no_file(here):
    (here / "c.toml").write_text('[model]\ncell = "coupled.py:COUPLED"\n')
    before = snapshot(here)
    result = invoke("train", "data.npz", "--config", "c.toml")
    assert_refused(result, "a file is run only if the command line names it", before, here)
    (here / "c.toml").write_text('[model]\ncell = "gru"\n')
    assert '\ncell = "gru"\n' in ok("config", "data.npz", "--config", "c.toml")
    printed = ok("config", "data.npz", "--cell", "coupled.py:COUPLED")
    assert '\ncell = "coupled"\n' in printed
    (here / "c.toml").write_text(printed)
    result = invoke_small(
        "train", "data.npz", "--config", "c.toml", "--cell", "coupled.py:COUPLED", *PLAIN
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.py:X", "absent.py: no cell can be read from it (No such file or directory)"),
        ("coupled.py:X", "coupled.py: no variable 'X'; Cells in it are COUPLED"),
        ("coupled.py", "coupled.py: name a variable"),
        ("broken.py:X", "broken.py, line 1: not valid Python"),
        ("grru", "cell 'grru' is not known here; known are lstm, gru"),
    ],
)
@pytest.mark.parametrize("command", ["train", "tune", "config"])
def test_a_wrong_cell_is_one_line(here, command, spec, message):
    (here / "broken.py").write_text("def (")
    before = snapshot(here)
    assert_refused(invoke(command, "data.npz", "--cell", spec), message, before, here)


def test_tune_tries_cells(here):
    (here / "space.toml").write_text('cell = ["lstm", "coupled"]\n')
    words = ["--space", "space.toml", "--cell", "coupled.py:COUPLED", "--trials", 4, *PLAIN]
    printed = invoke_small("tune", "data.npz", *words)
    assert printed.exit_code == 0, printed.output
    assert "cell: lstm, coupled" in printed.stdout
    assert "4 complete" in printed.stdout


def test_a_study_is_not_joined_with_another_text_of_the_cell(here, monkeypatch):
    words = ["--cell", "coupled.py:COUPLED", "--trials", 1, *PLAIN]
    (here / "space.toml").write_text("hidden_size = [4, 6]\n")
    flags = ["--space", "space.toml", "--epochs", 1, "--num-layers", 1]
    assert invoke("tune", "data.npz", *flags, *words).exit_code == 0
    forget_cells(monkeypatch)
    (here / "coupled.py").write_text(COUPLED + "# changed\n")
    result = invoke("tune", "data.npz", *flags, *words)
    assert result.exit_code == 2
    assert "holds a study of other data, settings or space" in result.stderr


def test_a_vendor_without_a_kernel_is_refused(here):
    before = snapshot(here)
    words = ["--cell", "coupled.py:COUPLED", "--backend", "vendor", "--output", "."]
    result = invoke_small("train", "data.npz", *words, "--json")
    assert_refused_late(result, "no vendor has a kernel of cell 'coupled'")
    assert snapshot(here) == before


def assert_refused_late(result, message):
    """One line, after those that say what is learned."""
    assert (result.exit_code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_gru_trains_by_the_kernel_of_the_vendor(here):
    result = invoke_small("train", "data.npz", "--cell", "gru")
    assert result.exit_code == 0, result.output
    assert "vendor, which has a kernel of cell gru" in result.stdout
    assert "--cell" not in result.stdout
