import json
import os
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

import lstm_compile.export.use.doctor as doctor
from lstm_compile.cli.app import app
from lstm_compile.export.use.doctor import Check, Diagnosis, examine

ROOT = Path(__file__).resolve().parents[3]


def invoke(*args):
    return CliRunner().invoke(app, ["doctor", *args], prog_name="lstm-compile")


@pytest.fixture(scope="module")
def report():
    return examine()


@pytest.fixture
def found(report):
    return {check.name: check for check in report.checks}


@pytest.mark.slow
def test_all_is_well_here(report, found):
    assert report.passed
    required = [check for check in report.checks if check.required]
    assert all(check.passed and not check.mend for check in required)
    assert found["torch"].found == metadata.version("torch")
    assert {f"backend {name}" for name in doctor.BACKENDS} <= set(found)


@pytest.mark.slow
def test_backends_and_runtime_are_measured_and_not_merely_there(found):
    names = ["backend reference", "backend vendor", "onnx export"]
    for name in names:
        difference = float(found[name].found.rpartition(" ")[2])
        assert 0 < difference < 1e-6


@pytest.mark.slow
def test_whatever_is_not_there_comes_with_what_to_do(report):
    for check in report.checks:
        assert check.passed or check.mend


# ---- failures


def only(monkeypatch, *checks):
    monkeypatch.setattr(doctor, "_checks", lambda: iter(checks))
    return invoke(), json.loads(invoke("--json").stdout)


def broken():
    raise OSError("libcudnn.so.9:\ncannot open shared object file")


def test_a_broken_package_fails_its_own_check_alone(monkeypatch):
    fine = lambda: (True, "1.0", "unused")  # noqa: E731
    result, found = only(monkeypatch, ("torch", True, broken), ("numpy", True, fine))
    assert result.exit_code == 1
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith("[x] torch              OSError: libcudnn.so.9: cannot open shared")
    assert "reinstall what the message names" in first
    assert second == "[✓] numpy              1.0"
    assert result.stderr == "Error: does not work here: torch; the lines above say what to do\n"
    assert not found["passed"]
    assert [check["passed"] for check in found["checks"]] == [False, True]


def test_what_is_not_required_fails_nothing(monkeypatch):
    result, found = only(monkeypatch, ("optuna", False, lambda: (False, "not installed", "add it")))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "[-] optuna             not installed; add it"
    assert found["passed"]


def test_json_stands_alone_on_standard_output(monkeypatch):
    checks = iter([("python", True, doctor._python)])
    monkeypatch.setattr(doctor, "_checks", lambda: checks)
    result = invoke("--json")
    (line,) = result.stdout.splitlines()
    (check,) = json.loads(line)["checks"]
    assert set(check) == set(Check._fields)


@pytest.mark.parametrize(("version", "passed"), [("2.10.9", False), ("2.11", True), ("3", True)])
def test_old_versions_are_named(monkeypatch, version, passed):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: f"{version}+cpu")
    found = doctor._package(Requirement("torch>=2.11"))
    assert found[0] == passed
    assert found[2] == "pip install --upgrade 'torch>=2.11'"


def test_an_absent_package_is_named():
    passed, found, mend = doctor._package(Requirement("absent_package>=1"))
    assert not passed
    assert found == "cannot be imported (No module named 'absent_package')"
    assert mend == "pip install --upgrade 'absent_package>=1'"


def test_the_oldest_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(map(str, doctor.requirements())) == sorted(project["dependencies"])


def test_a_checkout_that_was_not_installed_is_examined_too(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(doctor.metadata, "requires", absent)
    monkeypatch.setattr(doctor.lstm_compile, "__file__", str(ROOT / "lstm_compile/__init__.py"))
    assert "torch>=2.11" in map(str, doctor.requirements())


def test_a_folder_that_cannot_be_written_to(tmp_path):
    passed, found, mend = doctor._writable(tmp_path / "absent", "TMPDIR")
    assert not passed
    assert found.endswith("absent: cannot be written to (No such file or directory)")
    assert mend == "choose TMPDIR"


def test_a_cache_folder_that_others_can_write_to(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "lstm-compile" / "inductor"
    folder.mkdir(parents=True)
    os.chmod(folder.parent, 0o777)
    passed, found, mend = doctor._cache()
    assert not passed
    assert "others can write to it (mode 777)" in found
    assert "chmod 700" in mend


def test_no_compiler(monkeypatch):
    monkeypatch.setattr("lstm_compile.recurrence.inductor.can_compile", lambda kind: False)
    monkeypatch.setattr("lstm_compile.recurrence.inductor.compiler", lambda: "")
    assert doctor._compiler()[:2] == (False, "none")
    assert doctor._backend("compiled")[0] is False


def test_a_wrong_backend_is_found(monkeypatch):
    right = doctor._answers
    monkeypatch.setattr(
        doctor,
        "_answers",
        lambda name, dtype: [part + (name == "vendor") * 1e-3 for part in right(name, dtype)],
    )
    passed, found, _ = doctor._backend("vendor")
    assert not passed
    assert found.startswith("max difference ")


def test_a_report_passes_without_what_is_optional():
    checks = [Check("a", True, True, ""), Check("b", False, False, "", "do it")]
    assert Diagnosis(checks).passed
    assert not Diagnosis([*checks, Check("c", False, True, "", "do it")]).passed
