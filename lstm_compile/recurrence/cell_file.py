"""Cells from files, and the cells that models ask for.

A file runs only if a person names it: `--cell FILE.py:NAME`. A model records the name of its cell,
the parts of the state and the sha256 of the file's text, never code.
"""

import hashlib
import shlex
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from lstm_compile.config import ModelConfig, names_file
from lstm_compile.errors import InputError, reason
from lstm_compile.recurrence.any_cell import Cell, find_cell, known_cells, register_cell
from lstm_compile.recurrence.cell_trial import parts_of, try_cell

FORM = "FILE.py:NAME"
SHOWN = 12  # digits of a sha256 in messages
_SHA256: dict[str, str] = {}  # of the cells from files, by their names
_SPECS: dict[str, str] = {}  # the values of `--cell` that named them


def read_cell(spec: str) -> Cell:
    """The cell that a value of `--cell` names; one from a file is tried and made known.

    The file is run. Reading the same text again gives the same cell.

    Raises:
        InputError: no cell has the name; no such file, a faulty one, or no such variable; or what
            it holds is no cell, a cell that `try_cell` refuses, or one whose name exists already.
    """
    if not names_file(spec):
        return _known(spec)
    path, _, variable = spec.rpartition(":") if not spec.endswith(".py") else (spec, "", "")
    text = _text_of(Path(path))
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = _variables(_run(path, text, digest))
    cell = found.get(variable)
    if not isinstance(cell, Cell):
        _refuse_variable(path, variable, found)
    if _SHA256.get(cell.name) == digest:
        return find_cell(cell.name)
    try:
        try_cell(cell)
        register_cell(cell)
    except InputError as error:
        raise InputError(f"{spec}: {error}") from error
    _SHA256[cell.name], _SPECS[cell.name] = digest, spec
    return cell


def flag_of(name: str) -> tuple[str, ...]:
    """The `--cell` that a command needs which reads a model of this cell, as words of a shell."""
    return ("--cell", shlex.quote(_SPECS[name])) if name in _SPECS else ()


def parts_and_sha256(name: str, hidden_size: int) -> tuple[dict[str, int], str]:
    """The parts of a cell's state, and the sha256 of its file, empty if it has none.

    Raises:
        InputError: no such cell is known here, or its parts make no sense.
    """
    return parts_of(_known(name), hidden_size), sha256_of(name)


def sha256_of(name: str) -> str:
    """The sha256 of the text of a cell's file; empty for a cell that comes from no file."""
    return _SHA256.get(name, "")


def cell_of(config: ModelConfig) -> Cell:
    """The cell of a model, which must be known here.

    Raises:
        InputError: it is not, its file has another text, or its state has other parts.
    """
    name, sha256 = config.cell, config.cell_sha256
    which = f" (sha256 {sha256[:SHOWN]}...)" if sha256 else ""
    give = f"give --cell {FORM} with the file it was trained with{which}"
    if name not in known_cells():
        raise InputError(f"its cell {name!r} is not known here; {give}")
    here = sha256_of(name)
    if here and sha256 and here != sha256:
        raise InputError(
            f"its cell {name!r} is known here from a file with another text (sha256 "
            f"{here[:SHOWN]}...); {give}"
        )
    parts = parts_of(find_cell(name), config.hidden_size)
    if list(parts.items()) != list(config.state_parts.items()):
        raise InputError(
            f"its cell {name!r} has the state {_shown(config.state_parts)}, and the one known here "
            f"{_shown(parts)} with hidden_size {config.hidden_size}; {give}"
        )
    return find_cell(name)


def _known(name: str) -> Cell:
    if name not in known_cells():
        raise InputError(
            f"cell {name!r} is not known here; known are {', '.join(known_cells())}; for a cell of "
            f"your own give --cell {FORM}"
        )
    return find_cell(name)


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: no cell can be read from it ({error.strerror}); give --cell {FORM}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a Python file in UTF-8 ({reason(error)})") from error


def _run(path: str, text: str, digest: str) -> ModuleType:
    """The module that the text gives; it has a name of its own, which dataclasses ask for."""
    name = f"cell_file_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        code = compile(text, path, "exec")
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte, in Python 3.11
        line, why = getattr(error, "lineno", None), getattr(error, "msg", reason(error))
        raise InputError(f"{_place(path, line)}: not valid Python ({why})") from error
    sys.modules[name] = module = ModuleType(name)
    module.__file__ = path
    try:
        exec(code, module.__dict__)  # a person named the file
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        trace = traceback.extract_tb(error.__traceback__)
        lines = [each.lineno for each in trace if each.filename == path]
        what = f"{type(error).__name__}: {reason(error)}"
        place = _place(path, lines[-1] if lines else None)
        raise InputError(f"{place}: raised while it ran ({what})") from error
    return module


def _place(path: str, line: int | None) -> str:
    return f"{path}, line {line}" if line else path


def _variables(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("__")}


def _refuse_variable(path: str, variable: str, found: dict[str, Any]) -> NoReturn:
    cells = [name for name, value in found.items() if isinstance(value, Cell)]
    there = f"Cells in it are {', '.join(cells)}" if cells else "there is no Cell in it"
    if not variable:
        raise InputError(f"{path}: name a variable, as in --cell {FORM}; {there}")
    if variable not in found:
        raise InputError(f"{path}: no variable {variable!r}; {there}")
    raise InputError(
        f"{path}: {variable} is of type {type(found[variable]).__name__}, expected a "
        f"lstm_compile.Cell; {there}"
    )


def _shown(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in parts.items())
