import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lstm_compile
import lstm_compile.data
import lstm_compile.export
from lstm_compile.cli.app import COMMANDS
from lstm_compile.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "lstm_compile": "lstm_compile",
    "export": "lstm_compile/export",
    "cli": "lstm_compile/cli",
}


def run(*command, cwd=ROOT):
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def modules_after(code, *args):
    """What is imported once `code` has run in a fresh interpreter."""
    lines = ["import json, sys", f"sys.argv = {['lstm-compile', *args]!r}"]
    lines += ["try:", *(f"    {line}" for line in code.splitlines())]
    lines += ["except SystemExit as stop:", "    assert not stop.code, stop.code"]
    lines += ["print(json.dumps(sorted(sys.modules)), file=sys.stderr)"]
    done = run(sys.executable, "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


# ---- the wheel


def copy_of_the_repository(folder):
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built, without a network, from what git knows."""
    source = copy_of_the_repository(tmp_path_factory.mktemp("source"))
    target = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = run(sys.executable, "-m", "pip", "wheel", *options, "-w", target, ".", cwd=source)
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


@pytest.mark.parametrize("floor", FLOORS)
def test_the_wheel_holds_every_module(wheel, floor):
    expected = {
        f"{FLOORS[floor]}/{path.relative_to(ROOT / floor).as_posix()}"
        for path in (ROOT / floor).rglob("*.py")
    }
    assert len(expected) > 5
    assert expected <= wheel


def test_the_wheel_holds_no_module_that_is_not_there(wheel):
    count = sum(len(list((ROOT / floor).rglob("*.py"))) for floor in FLOORS)
    assert len([name for name in wheel if name.endswith(".py")]) == count


def test_the_wheel_holds_the_data_and_the_type_marker(wheel):
    bundled = (ROOT / "lstm_compile/data/bundled").iterdir()
    expected = {path.relative_to(ROOT).as_posix() for path in bundled}
    assert len(expected) == 7
    templates = list((ROOT / "lstm_compile/training/templates").iterdir())
    assert len(templates) == 5
    expected |= {path.relative_to(ROOT).as_posix() for path in templates}
    assert expected | {"lstm_compile/py.typed"} <= wheel


def test_the_wheel_has_one_top_level_name(wheel):
    tops = {name.split("/")[0] for name in wheel}
    (other,) = tops - {"lstm_compile"}
    assert other.startswith("lstm_compile-")
    assert other.endswith(".dist-info")
    assert f"{other}/licenses/LICENSE" in wheel


# ---- the checkout


def test_the_program_runs_in_the_root_of_the_checkout():
    done = run(sys.executable, "-m", "lstm_compile", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lstm-compile, version ")


@pytest.mark.slow
def test_pytest_runs_in_the_root_of_the_checkout():
    done = run(
        sys.executable, "-m", "pytest", "tests/data/test_sequences.py", "-q", "-k", "moves_every"
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


# ---- names and imports


@pytest.mark.parametrize("package", [lstm_compile, lstm_compile.data, lstm_compile.export])
def test_every_public_name_resolves(package):
    assert package.__all__ == sorted(package._HOMES) == dir(package)
    for name, home in package._HOMES.items():
        module = importlib.import_module(f"{package.__name__}.{home}")
        assert getattr(package, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        package.absent  # noqa: B018


@pytest.mark.parametrize(
    "module",
    [
        "lstm_compile",
        "lstm_compile.config",
        "lstm_compile.data.schema",
        "lstm_compile.model.run_folder",
        "lstm_compile.tasks",
        "lstm_compile.training.settings",
        "lstm_compile.export",
        "lstm_compile.export.names",
        "lstm_compile.cli",
        "lstm_compile.cli.app",
    ],
)
def test_importing_loads_no_torch(module):
    assert not {"torch", "onnx", "onnxruntime"} & modules_after(f"import {module}")


def test_the_records_of_tasks_load_neither_torch_nor_numpy():
    code = "from lstm_compile.tasks import TASKS, find_task\nall(map(find_task, TASKS))"
    found = modules_after(code)
    assert "lstm_compile.tasks.lm" in found
    assert not {"torch", "numpy"} & found


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)])
def test_asking_for_help_loads_no_torch(args):
    loaded = modules_after("from lstm_compile.cli import main\nmain()", *args)
    assert "lstm_compile.cli.app" in loaded
    assert not {"torch", "onnx", "onnxruntime", "numpy"} & loaded


def test_the_lower_floors_know_nothing_of_the_upper_ones():
    banned = {
        "lstm_compile": ("onnx", "onnxruntime", "onnxscript", "click", "rich", "lstm_compile.cli"),
        "export": ("click", "rich", "lstm_compile.cli"),
    }
    for floor, names in banned.items():
        for path in (ROOT / floor).rglob("*.py"):
            if path.name == "__main__.py":
                continue
            for line in path.read_text().splitlines():
                words = line.split()
                if words[:1] in (["import"], ["from"]):
                    for name in names:
                        found = words[1] == name or words[1].startswith(f"{name}.")
                        assert not found, f"{path}: {line}"


# rooms from the lowest to the highest; `data` stands beside the model
ROOMS = ("recurrence", "model", "data", "tasks", "evaluation", "training", "tuning")
# every room may read the table of tasks; files of models hold names of columns
EVERYWHERE = ("lstm_compile.tasks",)
UP = {"model": ("lstm_compile.data.schema",)}


def imported(path):
    """The names of all modules that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def room_of(module):
    return module.split(".")[1] if module.startswith("lstm_compile.") else ""


@pytest.mark.parametrize("room", [*ROOMS, "bench"])
def test_rooms_import_nothing_from_above(room):
    below = ("recurrence", "bench") if room == "bench" else ROOMS[: ROOMS.index(room) + 1]
    for path in (ROOT / "lstm_compile" / room).rglob("*.py"):
        for module in imported(path):
            is_free = module in EVERYWHERE or module in UP.get(room, ())
            is_below = room_of(module) in below or room_of(module) not in (*ROOMS, "bench")
            assert is_free or is_below, f"{path}: {module}"


def test_export_imports_nothing_of_training_and_tuning():
    for path in (ROOT / "export").rglob("*.py"):
        for module in imported(path):
            assert room_of(module) not in ("training", "tuning"), f"{path}: {module}"


def test_the_configuration_reads_the_tables_of_tasks_and_cells_alone():
    found = {m for m in imported(ROOT / "lstm_compile/config.py") if m.startswith("lstm_compile")}
    tables = {"lstm_compile.tasks", "lstm_compile.recurrence.cell_file"}
    assert found == {"lstm_compile.errors", "lstm_compile.files", *tables}


def test_the_config_of_a_model_loads_no_torch_unless_a_new_cell_is_asked_for():
    sizes = "task='classify', input_size=2, output_size=2"
    code = f"from lstm_compile import ModelConfig\nModelConfig({sizes})\n"
    code += f"ModelConfig({sizes}, cell='mine', cell_parts=(('h', 64),)).state_parts"
    assert "torch" not in modules_after(code)


def test_using_a_model_loads_no_tables_no_training_and_no_evaluation():
    banned = ("lstm_compile.data.tables", "lstm_compile.training", "lstm_compile.evaluation")
    found = modules_after("from lstm_compile import forward, load_model")
    assert "lstm_compile.model.model" in found
    assert not [module for module in found if module.startswith(banned)]


def test_few_modules_lie_at_the_root():
    assert {path.stem for path in (ROOT / "lstm_compile").glob("*.py")} == {
        "__init__", "__main__", "config", "devices", "errors", "files", "formatting", "lazy"
    }  # fmt: skip


def nodes(kind):
    """All syntax nodes of a kind in the code of the package, with their files."""
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, kind):
                    yield path.relative_to(ROOT).as_posix(), node


def test_no_class_name_means_two_things():
    names = [node.name for _, node in nodes(ast.ClassDef)]
    assert sorted(names) == sorted(set(names))


def test_arguments_that_travel_together_are_a_value():
    """The few with more than eight parameters are public, or counted by torch.compile."""
    wide = set()
    for path, node in nodes(ast.FunctionDef):
        arguments = node.args
        if len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]) > 8:
            wide.add(f"{path}:{node.name}")
    assert wide <= {
        "lstm_compile/model/model.py:forward",
        "lstm_compile/recurrence/calibrate.py:calibrate",
        "lstm_compile/recurrence/derivatives.py:forward",
        "lstm_compile/recurrence/function.py:lstm",
        "lstm_compile/recurrence/module.py:__init__",
        "lstm_compile/recurrence/recurrent.py:recurrent",
        "lstm_compile/training/loop.py:fit",
        "lstm_compile/training/step.py:train_step",
    }


def test_only_tasks_know_the_names_of_tasks():
    for path, node in nodes(ast.Compare):
        words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
        known = words & set(TASKS) and not path.startswith("lstm_compile/tasks/")
        assert not known, f"{path}:{node.lineno}"


@pytest.mark.parametrize("line", ["import export", "from cli import app", "from . import cell"])
def test_the_lint_rule_refuses_generic_and_relative_imports(line):
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID", "--no-cache", "-"]
    done = subprocess.run(command, cwd=ROOT, input=f"{line}\n", capture_output=True, text=True)
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 1
    assert "TID25" in done.stdout


# ---- the tests


def test_no_test_module_is_imported():
    """What tests share lies in tests/support, so that each of their files can be read alone."""
    for path in (ROOT / "tests").rglob("*.py"):
        for line in path.read_text("utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert not words[1].startswith("test_"), f"{path}: {line}"


def test_folders_of_tests_are_those_of_the_package():
    tests = {path.parent for path in (ROOT / "tests").rglob("test_*.py")} - {ROOT / "tests"}
    found = {folder.relative_to(ROOT / "tests").as_posix() for folder in tests} - {"docs"}
    rooms = {path.parent for floor in FLOORS for path in (ROOT / floor).rglob("__init__.py")}
    names = {room.relative_to(ROOT).as_posix().removeprefix("lstm_compile/") for room in rooms}
    assert found == names - {"lstm_compile"}
    others = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("*.py"))}
    assert others - {name.split("/")[0] for name in found} == {"docs", "support"}


# ---- the README


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_shows_every_command(name):
    assert re.search(rf"(lstm-compile |`){name}\b", (ROOT / "README.md").read_text("utf-8"))


MAKERS = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint"}
MAKERS |= {"randn", "randperm", "tensor", "zeros"}


def test_every_tensor_names_its_device():
    """Else it would be made on the caller's default device, which need not be that of the data."""
    forgotten = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {f"torch.{name}" for name in MAKERS}
        and "device" not in {keyword.arg for keyword in node.keywords}
    ]
    assert forgotten == []
