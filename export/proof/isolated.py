"""A runtime in its own process, so that it may crash, hang or print.

Inputs and answers go through pipes as NumPy archives, each after its size in 8 bytes.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lstm_compile.errors import headline
from lstm_compile.export.proof.runtimes import RUNTIMES, Arrays, File

LIMIT = 120.0  # seconds for one answer, and for loading
SIZE = 8  # bytes of a message's size
PROGRAM = "from lstm_compile.export.proof.isolated import serve; serve()"


class NoAnswerError(Exception):
    """A runtime gave no answer; the message says why."""


class IsolatedRuntime:
    """A runtime that has loaded a file: call it with inputs by name, `close` it at the end.

    `inputs` and `outputs` are the names in the file's order; an answer may take `limit` seconds.

    Raises:
        NoAnswerError: the file cannot be loaded, or not in time.
    """

    def __init__(
        self,
        runtime: str,
        data: bytes,
        inputs: Sequence[str],
        outputs: Sequence[str],
        limit: float = LIMIT,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lstm-compile-")
        self._limit, self._failed = limit, ""
        path = Path(self._folder.name, "model.onnx")
        path.write_bytes(data)
        self._log = Path(self._folder.name, "log").open("wb")  # noqa: SIM115 (`close` closes it)
        arguments = json.dumps([runtime, str(path), [*inputs], [*outputs]])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._folder.name,
            env={**os.environ, "PYTHONPATH": _search_path(), "OMP_NUM_THREADS": "1"},
        )
        try:
            self._exchange(lambda: None)
        except NoAnswerError:
            self.close()
            raise

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """The outputs in the order of `outputs`.

        Raises:
            NoAnswerError: no answer; after the process has ended, every call raises this.
        """
        if self._failed:
            raise NoAnswerError(self._failed)
        assert self._process.stdin is not None
        pipe = self._process.stdin
        found = self._exchange(lambda: _send(pipe, inputs))
        return [found[name] for name in sorted(found)]

    def close(self) -> None:
        """End the process, and remove what it wrote."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
        self._folder.cleanup()

    def _exchange(self, ask: Callable[[], None]) -> dict[str, npt.NDArray[Any]]:
        timer = Timer(self._limit, self._process.kill)
        timer.start()
        try:
            ask()
            assert self._process.stdout is not None
            found = _receive(self._process.stdout)
        except (OSError, EOFError) as error:
            self._failed = self._ending(timer.finished.is_set())
            raise NoAnswerError(self._failed) from error
        finally:
            timer.cancel()
        if "error" in found:
            raise NoAnswerError(str(found["error"]))
        return found

    def _ending(self, late: bool) -> str:
        """Why the process ended."""
        code = self._process.wait()
        if late:
            return f"no answer within {self._limit:g} s"
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        lines = Path(self._log.name).read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended ({how}) {last[:200]}".strip()


def _search_path() -> str:
    """Where this process finds modules; the new process must find the same."""
    return os.pathsep.join(os.path.abspath(part) for part in sys.path)


def serve() -> None:
    """Load the file that the arguments name, and answer the inputs on standard input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what runtimes print goes to the log
    runtime, path, inputs, outputs = json.loads(sys.argv[1])
    file = File(Path(path), tuple(inputs), tuple(outputs), Path(path).parent)
    try:
        run = RUNTIMES[runtime].open(file)
    except BaseException as error:  # a panic in Rust is no Exception
        _send(answers, {"error": np.array(headline(error))})
        return
    _send(answers, {})
    while True:
        try:
            asked = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            found = {f"{index:03}": np.asarray(value) for index, value in enumerate(run(asked))}
        except BaseException as error:  # as above
            found = {"error": np.array(headline(error))}
        _send(answers, found)


def _send(pipe: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **dict(arrays))
    pipe.write(packed.tell().to_bytes(SIZE, "big") + packed.getvalue())
    pipe.flush()


def _receive(pipe: IO[bytes]) -> dict[str, npt.NDArray[Any]]:
    size = int.from_bytes(_exactly(pipe, SIZE), "big")
    with np.load(io.BytesIO(_exactly(pipe, size)), allow_pickle=False) as packed:
        return dict(packed)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
