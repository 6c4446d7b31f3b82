"""Small data sets that can be learned, and short runs on them: what the tests of training share."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from lstm_compile import ModelConfig, init_params
from lstm_compile.data import Sequences
from lstm_compile.evaluation.baselines import baseline_predictions
from lstm_compile.tasks import find_task
from lstm_compile.training import loop
from lstm_compile.training.prepare import JobRequest, prepare
from lstm_compile.training.run import run
from lstm_compile.training.settings import TrainingConfig

SMALL = {"hidden_size": 6, "num_layers": 1, "dropout": 0.0, "head_dropout": 0.0}
QUICK = TrainingConfig(
    epochs=3, batch_size=16, learning_rate=0.02, label_smoothing=0.0, device="cpu"
)
LONG = replace(QUICK, epochs=6, patience=6)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ragged(count, seed, longest=9):
    lengths = torch.randint(1, longest + 1, (count,), generator=seeded(seed))
    offsets = functional.pad(lengths.cumsum(0), (1, 0))
    x = torch.randn(int(offsets[-1]), 2, generator=seeded(seed + 1))
    return x, offsets, torch.arange(count).repeat_interleave(lengths)


def two_classes(count=80, seed=0):
    """The class is the sign of the first feature's mean, far from 0."""
    x, offsets, owner = ragged(count, seed)
    y = torch.randint(2, (count,), generator=seeded(seed + 2))
    x[:, 0] = x[:, 0] * 0.3 + (2.0 * y - 1)[owner]
    return Sequences(x, offsets, y, ("u", "v"), ("no", "yes"), ())


def means(count=80, seed=0, targets=1):
    """Targets are affine in the sequences' means; neither is anywhere near unit scale."""
    x, offsets, owner = ragged(count, seed)
    levels = torch.randn(count, 2, generator=seeded(seed + 2))
    x = (x * 0.3 + levels[owner]) * torch.tensor([500.0, 0.002]) + torch.tensor([-4000.0, 0.3])
    mean = torch.zeros(count, 2).index_add(0, owner, x) / offsets.diff()[:, None]
    y = torch.stack([mean[:, 0] * 300 + 1e6, mean[:, 1] * 0.01 - 5], 1)[:, :targets]
    return Sequences(x, offsets, y, ("u", "v"), (), ("s", "t")[:targets])


def setting(data, **changes):
    outputs = len(data.classes or data.targets)
    config = ModelConfig(task=data.task, input_size=2, output_size=outputs, **{**SMALL, **changes})
    return init_params(config, 0), config


def save_npz(folder, data, name="data"):
    y = np.array(data.classes)[data.y] if data.classes else data.y.numpy()
    path = folder / f"{name}.npz"
    np.savez(path, x=data.x.numpy(), lengths=data.lengths.numpy(), y=y)
    return str(path)


def prepared(data, model, training, *, output=None, resume=False, **options):
    request = JobRequest(data, model, training, **options)
    return prepare(request, output=output, resume=resume)


def do(data, output, training=QUICK, on_epoch=lambda epoch: None, test=None, **changes):
    job = prepared(data, {**SMALL, **changes}, training, test=test, output=output)
    return run(job, on_epoch)


def same(first, second):
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def paths_of(folder, data=None, test=None):
    data, test = data or two_classes(), test or two_classes(30, seed=5)
    return save_npz(folder, data), save_npz(folder, test, "test")


def scripted(monkeypatch, losses):
    """Validation losses as given, epoch by epoch."""
    script = iter(losses)
    monkeypatch.setattr(loop, "_validate", lambda *_: (next(script), {"accuracy": 0.0}))


def baseline_metrics(baselines, data):
    predictions, score = baseline_predictions(baselines, data), find_task(data.task).score
    return {name: score(prediction, data.y) for name, prediction in predictions.items()}
