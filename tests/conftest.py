import pytest
import torch

from lstm_compile.devices import cpu_threads


@pytest.fixture(autouse=True)
def _no_silent_fallback():
    """Dynamo must raise where it would give up compiling and run eager code instead."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Models of tests are so small that a second thread only waits."""
    with cpu_threads(1):
        yield


@pytest.fixture
def cuda():
    """The device of a CUDA test, with TF32 off while it runs."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield "cuda"
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
