"""`LSTM` in other processes: workers, shards, and packages that are loaded elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lstm_compile import LSTM

pytestmark = pytest.mark.slow


def run(code, folder, *args):
    """The output of a program, written to a file so that spawned processes can import it."""
    program = folder / "program.py"
    program.write_text(code)
    command = [sys.executable, str(program), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


WORKERS = """
import sys, torch
from torch.utils.data import DataLoader, Dataset
from lstm_compile import LSTM

class Rows(Dataset):
    def __init__(self, module):
        self.module, self.x = module, torch.randn(8, 5, 4)
    def __len__(self):
        return len(self.x)
    def __getitem__(self, row):
        with torch.no_grad():
            return self.module(self.x[row : row + 1], lengths=[row % 6])[0][0]

if __name__ == "__main__":
    torch.set_num_threads(2)
    rows = Rows(LSTM(4, 6, batch_first=True))
    expected = torch.stack([rows[row] for row in range(8)])
    loader = DataLoader(rows, 4, num_workers=2, multiprocessing_context=sys.argv[1])
    assert torch.allclose(torch.cat(list(loader)), expected, atol=1e-6)
    print("same")
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_run_it(start, tmp_path):
    if start == "fork" and sys.platform != "linux":
        pytest.skip("other systems start processes anew")
    assert run(WORKERS, tmp_path, start) == "same"


SHARDS = """
import sys, torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from lstm_compile import LSTM

class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.lstm, self.head = kind(4, 6, 2, batch_first=True), nn.Linear(6, 2)
    def forward(self, x):
        return self.head(self.lstm(x)[0])

def fsdp1(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))

def fsdp2(model):
    return fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))

def trained(kind, way, rank):
    torch.manual_seed(0)
    model = way(Model(kind))
    steps = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    for _ in range(3):
        steps.zero_grad()
        model(torch.randn(4, 5, 4)[rank::2]).square().mean().backward()
        steps.step()
    return model(torch.ones(2, 5, 4)).detach()

def work(rank, store):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{store}")
    for way in (DistributedDataParallel, fsdp1, fsdp2):
        expected, found = (trained(kind, way, rank) for kind in (nn.LSTM, LSTM))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
    print("same")
"""


def test_two_processes_that_share_the_weights_train_it(tmp_path):
    assert run(SHARDS, tmp_path, tmp_path / "store") == "same"


LOADS = """
import sys, lstm_compile, torch
x, lengths = torch.load(sys.argv[2])
output, state = torch._inductor.aoti_load_package(sys.argv[1])(x, lengths)
torch.save((output, *state), sys.argv[3])
"""


class Ragged(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = LSTM(4, 6, bidirectional=True, batch_first=True)

    def forward(self, x, lengths):
        return self.inner(x, lengths=lengths)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_package_of_aotinductor_is_loaded_elsewhere(tmp_path):
    batch, time = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("time", min=2, max=64)
    module = Ragged().eval()
    example = torch.randn(3, 5, 4), torch.tensor([5, 2, 0])
    with torch.no_grad():
        program = torch.export.export(
            module, example, dynamic_shapes=({0: batch, 1: time}, {0: batch})
        )
        package = tmp_path / "package.pt2"
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        x, lengths = torch.randn(4, 9, 4), torch.tensor([9, 2, 0, 4])
        output, state = module(x, lengths)
    torch.save((x, lengths), tmp_path / "inputs.pt")
    run(LOADS, tmp_path, package, tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    found = torch.load(tmp_path / "outputs.pt")
    torch.testing.assert_close(found, (output, *state), rtol=1e-6, atol=1e-6)


def test_the_cases_of_the_recurrence_under_another_default_device():
    file = Path(__file__).with_name("test_recurrence.py")
    options = ["-q", "-n0", "-x", "-p", "other_device", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:]
