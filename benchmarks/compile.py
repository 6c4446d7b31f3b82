"""What compiling costs: cold, in a second process with the first one's cache, and in graphs.

python benchmarks/compile.py [DEVICE]
"""

import json
import os
import subprocess
import sys
import tempfile

# In processes of their own, with a cache folder of their own: neither this machine's cache nor
# another step's libraries are taken for fast compiling.
FIRST_STEP = """
import sys, time, torch
from lstm_compile import lstm
device, time_steps = sys.argv[1], 64
module = torch.nn.LSTM(32, 128).to(device)
x = torch.randn(32, time_steps, 32, device=device)
began = time.perf_counter()
lstm(dict(module.named_parameters()), x, backend="compiled")[0].sum().backward()
if device != "cpu":
    torch.cuda.synchronize()
print(time.perf_counter() - began)
"""

GRAPHS = """
import random, sys, torch
from torch._dynamo.utils import counters
from lstm_compile import lstm
device = sys.argv[1]
params = dict(torch.nn.LSTM(8, 16).to(device).named_parameters())
draw = random.Random(0)
shapes = [(1, 1), (1, 33), (7, 1)] + [(draw.randint(1, 40), draw.randint(1, 80)) for _ in range(47)]
graphs = []
for batch, time in shapes:
    x = torch.randn(batch, time, 8, device=device)
    lengths = torch.tensor([draw.randint(0, time) for _ in range(batch)], device=device)
    lstm(params, x, lengths, backend="compiled")[0].sum().backward()
    graphs.append(counters["stats"]["unique_graphs"])
print(graphs)
"""


def run(code: str, device: str, cache: str) -> object:
    """What the code prints, in a fresh process that keeps compiled code in `cache`."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-c", code, device]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main(device: str) -> None:
    """Print one JSON object: seconds of the first training step, and graphs of fifty shapes."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (run(FIRST_STEP, device, cache) for _ in range(2))
    with tempfile.TemporaryDirectory() as cache:
        graphs = run(GRAPHS, device, cache)
    last_new = max(index for index, count in enumerate([0, *graphs[:-1]]) if count < graphs[index])
    print(
        json.dumps(
            {
                "first_step_seconds": {"cold": cold, "warm": warm},
                "graphs": graphs[-1],
                "last_new_graph_at_shape": last_new + 1,
                "shapes": len(graphs),
            }
        )
    )


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["cpu"]))
