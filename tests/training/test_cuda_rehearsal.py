"""Trainings on a CUDA device that is not there: docs/cuda.md."""

from dataclasses import replace

import pytest
import torch
from forecast_cases import make_forecaster
from pretended_cuda import PretendedCuda
from series_cases import hourly, windows_of
from training_cases import QUICK, SMALL, means, setting, two_classes

from lstm_compile import ModelConfig, fit, init_params
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.feed import copied_ahead
from lstm_compile.data.schema import Vocabulary
from lstm_compile.model.batch import Batch
from lstm_compile.recurrence import inductor
from lstm_compile.training import epoch
from lstm_compile.training.step import train_step

BRIEF = replace(QUICK, epochs=2, backend="vendor", weight_decay=0.01)
TEXT = "the cat sat on the mat, and the rat sat on the cat.\n" * 12
# see tests/recurrence/test_cuda_rehearsal.py; of what a step could use
NOT_DETERMINISTIC = {
    "aten.nll_loss2d_forward", "aten.cumsum", "aten.median", "aten.kthvalue", "aten.bincount",
    "aten.put_", "aten.histc",
}  # fmt: skip


def labels(kind):
    """A label for each step: a class, or a number."""
    whole = two_classes(40)
    steps = whole.x[:, 0]
    y = (steps > 0).long() if kind == "tag" else steps[:, None].clone()
    classes, targets = (("down", "up"), ()) if kind == "tag" else ((), ("s",))
    return replace(whole, y=y, classes=classes, targets=targets, per_step=True)


def text_model(training):
    vocabulary = Vocabulary("char", tuple(sorted(set(TEXT))))
    tokens = torch.tensor(vocabulary.encode(TEXT), dtype=torch.uint8)
    size = len(vocabulary)
    config = ModelConfig(
        task="lm", input_size=1, output_size=size, vocabulary_size=size, bidirectional=False,
        embedding_size=5, **SMALL,
    )  # fmt: skip
    corpus = Corpus(tokens, torch.tensor([0, 300, len(TEXT)]), vocabulary)
    return init_params(config, 0), config, replace(training, unroll=9), corpus


def job(name, folder):
    """Weights, configuration, settings and data of a small training."""
    crops = replace(BRIEF, time_crop=0.5, noise=0.1, feature_dropout=0.2)
    if name == "lm":
        return text_model(BRIEF)
    if name.startswith("forecast"):
        windows = windows_of(hourly(folder / "t.csv", 90), (6, 5))
        known = {"scaling": "last", "season": 2, "quantiles": (0.1, 0.5, 0.9)}
        changes = {"decoder": "recursive"} if name.endswith("recursive") else known
        return *make_forecaster(targets=1, known_size=2, **changes), BRIEF, windows
    made = {
        "classify": lambda: (two_classes(40), {}, replace(BRIEF, class_weight="balanced")),
        "classify with crops": lambda: (two_classes(40), {}, replace(crops, accumulate=2)),
        "regress": lambda: (means(40, targets=2), {"pooling": "max"}, replace(crops, ema=0.9)),
        "regress-steps": lambda: (labels("regress-steps"), {}, crops),
        "tag": lambda: (labels("tag"), {"bidirectional": False}, crops),
        "transformer": lambda: (two_classes(40), {"transformer_layers": 1, "heads": 2}, BRIEF),
    }  # fmt: skip
    data, changes, training = made[name]()
    return *setting(data, **changes), training, data


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "name",
    [
        "classify", "classify with crops", "regress", "regress-steps", "tag", "transformer", "lm",
        "forecast", "forecast, recursive",
    ],
)  # fmt: skip
def test_every_task_trains_on_the_device_as_on_the_cpu(name, where, tmp_path, monkeypatch):
    params, config, training, data = job(name, tmp_path)
    expected = fit(params, config, training, data, data)
    reads, steps = [], []

    def watched(*args, **options):
        cuda.operators.clear()
        before, found = len(cuda.reads), train_step(*args, **options)
        reads.extend(cuda.reads[before:])
        steps.append(found)
        assert not cuda.operators & NOT_DETERMINISTIC
        return found

    monkeypatch.setattr(epoch, "train_step", watched)
    with PretendedCuda() as cuda:
        on_device = {name: value.to("cuda") for name, value in params.items()}
        moved = data if isinstance(data, Corpus) else data.to(where)
        found = fit(on_device, config, training, moved, moved)
    assert steps
    assert not reads  # nothing in a step waits for the device
    for one, other in zip(found.params.values(), expected.params.values(), strict=True):
        torch.testing.assert_close(one.inner, other, rtol=1e-3, atol=1e-4)


def test_batches_are_copied_from_pinned_memory_and_waited_for():
    device = torch.device("cuda")
    with PretendedCuda() as cuda:
        batches = [
            Batch(torch.full((2, 3, 1), float(n)), torch.tensor([3, 1]), torch.tensor([n, n]))
            for n in range(3)
        ]
        seen = []
        for number, (batch,) in enumerate(copied_ahead([[batch] for batch in batches], device)):
            seen.append(len(cuda.events))
            assert batch.x.device.type == batch.y.device.type == "cuda"
            assert batch.lengths.is_cpu
            assert batch.x.inner.equal(batches[number].x)
        assert not cuda.reads
    copy, use = ["pin_memory"] * 2, ["working wait"] + ["record_stream"] * 2
    event = ["copying record"]
    assert cuda.events == copy + event + (copy + use + event) * 2 + use
    assert seen == [8, 14, 18]  # the next batch is on its way before one is handed over


def test_the_compilers_of_cuda_can_be_looked_for_in_a_new_process(monkeypatch):
    """`import torch` alone loads no torch.utils._triton."""
    monkeypatch.delattr(torch.utils, "_triton", raising=False)
    monkeypatch.setattr(inductor, "has_triton", lambda: True)
    monkeypatch.setattr(inductor, "compiler", lambda: "g++")
    assert inductor.can_compile.__wrapped__("cuda")
