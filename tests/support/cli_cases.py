"""Commands run in this process, and how a refused one ends."""

import numpy as np
from click.testing import CliRunner

from lstm_compile.cli.app import app

QUICK = [
    *("--epochs", "2", "--hidden-size", "6", "--num-layers", "1", "--batch-size", "16"),
    *("--learning-rate", "0.02", "--device", "cpu"),
]


def invoke(*args, **options):
    words = [str(arg) for arg in args]
    return CliRunner().invoke(app, words, prog_name="lstm-compile", **options)


def write_npz(path, count=60, features=2, seed=0, targets=0, labels=("no", "yes")):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, count)
    x = generator.standard_normal((lengths.sum(), features), dtype=np.float32)
    y = np.array(labels)[np.arange(count) % len(labels)]
    if targets:
        y = generator.standard_normal((count, targets), dtype=np.float32)
    np.savez(path, x=x, lengths=lengths, y=y)
    return path


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_refused(result, message, before, folder, *, code=2):
    """One line on standard error; click puts its usage hint above what it finds out itself."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert errors == lines[-1:]
    assert len(lines) == 1 or lines[0].startswith("Usage: lstm-compile")
    assert message in errors[0]
    assert "Traceback" not in result.output
    assert snapshot(folder) == before


def invoke_small(*args, **options):
    """A command of `train` with a small model and two epochs."""
    return invoke(*args, "--hidden-size", 6, "--num-layers", 1, "--epochs", 2, **options)
