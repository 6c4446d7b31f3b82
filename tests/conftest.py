import functools
import getpass
import os
import shutil
import tempfile

import pytest

# Waiting OpenMP threads sleep. On a busy machine they made these tests up to ten times slower,
# spinning on the core that the thread they waited for had to run on. Read as torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# `train` and `bench`, run in this process, leave the user's cache folder alone
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="lstm-compile-tests-")
os.environ.setdefault(  # torch's own default
    "TORCHINDUCTOR_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}"),
)

import torch

from lstm_compile.devices import tf32

TRACING = {
    "test_forecast_export",
    "test_graphs",
    "test_operator",
    "test_profiles",
    "test_recurrence",
    "test_transformer",
}


@pytest.fixture(autouse=True, scope="session")
def _no_cache_is_left():
    yield
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def _operators_are_listed_once():
    """`torch.onnx.export` lists its operators at each call, which takes a quarter of its time."""
    from onnxscript._framework_apis import torch_2_5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_2_5, "get_torchlib_ops", functools.cache(torch_2_5.get_torchlib_ops))
        yield


@pytest.fixture(autouse=True)
def _no_silent_fallback():
    """Dynamo must raise where it would give up compiling and run eager code instead."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.fixture(autouse=True)
def _threads_are_given_back():
    """A chunk is compiled for a number of threads: with another one it would be compiled again."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cuda():
    """The device of a CUDA test, with TF32 off while it runs."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with tf32(False):
        yield "cuda"


def pytest_xdist_auto_num_workers(config):
    """Two processes for folders, since most tests work in one thread; none for a file or a test."""
    folders = all(os.path.isdir(arg) for arg in config.args)
    return min(2, os.cpu_count() or 1) if folders else 0


def pytest_collection_modifyitems(config, items):
    """Slow tests run with `-m slow`, or named by their id.

    Tests that live in torch's tracing run without coverage's, which slows them by two thirds.
    """
    for item in items:
        if item.path.stem in TRACING:
            item.add_marker(pytest.mark.no_cover)
    if "slow" in config.option.markexpr or any("::" in arg for arg in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
