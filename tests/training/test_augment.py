"""Noise, crops and dropped features."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from training_cases import QUICK, same, seeded, setting, two_classes

from lstm_compile.data import Sequences, gather
from lstm_compile.model.scaling import Scaler
from lstm_compile.training.augment import add_noise, augment, crop_time, drop_features
from lstm_compile.training.loop import fit, predict_all

SCALER = Scaler(torch.tensor([5.0, -3.0, 0.1]), torch.tensor([10.0, 0.5, 2.0]))

LENGTHS = [7, 0, 1, 2, 20, 0]


def batch_of(lengths=LENGTHS, seed=0):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    x = torch.randn(int(offsets[-1]), 3, generator=seeded(seed)) * SCALER.scale + SCALER.shift
    y = torch.arange(len(lengths)) % 2
    data = Sequences(x, offsets, y, ("u", "v", "w"), ("a", "b"), ())
    return gather(data, torch.arange(len(lengths)))


def is_padding(batch):
    return torch.arange(batch.x.shape[1]) >= batch.lengths[:, None]


AUGMENTATIONS = {
    "time_crop": lambda batch, generator: crop_time(batch, 0.6, generator),
    "noise": lambda batch, generator: add_noise(batch, 0.5, SCALER, generator),
    "feature_dropout": lambda batch, generator: drop_features(batch, 0.5, SCALER, generator),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_is_pure_and_keeps_padding_zero(name):
    batch = batch_of()
    copies = [part.clone() for part in batch[:3]]
    first, again, other = (AUGMENTATIONS[name](batch, seeded(s)) for s in (1, 1, 2))
    assert all(part.equal(copy) for part, copy in zip(batch[:3], copies, strict=True))
    assert all(one.equal(two) for one, two in zip(first[:3], again[:3], strict=True))
    assert not first.x.equal(other.x)
    assert not first.x.equal(batch.x)
    for result in (first, other):
        assert result.x[is_padding(result)].eq(0).all()
        assert (result.x.shape, result.x.dtype) == (batch.x.shape, batch.x.dtype)
        assert result.y.equal(batch.y)
        assert result.lengths.eq(0).equal(batch.lengths.eq(0))


@pytest.mark.parametrize("largest", [0.05, 0.25, 0.5, 1.0])
def test_a_crop_is_a_window_of_the_sequence(largest):
    sizes = [7, 0, 1, 2, 9, 0]
    batch = batch_of(sizes)
    kept, starts = [], set()
    for seed in range(600):
        result = crop_time(batch, largest, seeded(seed))
        kept.append(result.lengths)
        for row, length in enumerate(result.lengths.tolist()):
            whole = batch.x[row, : sizes[row]]
            windows = [
                start
                for start in range(sizes[row] - length + 1)
                if whole[start : start + length].equal(result.x[row, :length])
            ]
            assert windows
            starts |= {(row, windows[0])} if length else set()
    lengths = torch.tensor(sizes)
    least = (lengths - (lengths * largest).long()).maximum(lengths.clamp(max=1))
    assert torch.stack(kept).amin(0).equal(least)
    assert torch.stack(kept).amax(0).equal(lengths)
    expected = {(r, s) for r, n in enumerate(sizes) if n for s in range(n - int(least[r]) + 1)}
    assert starts == expected


def test_every_number_of_cut_steps_is_as_likely():
    batch = batch_of([10] * 4000)
    counts = torch.bincount(crop_time(batch, 0.4, seeded(0)).lengths, minlength=11)
    assert counts[:6].sum() == 0
    torch.testing.assert_close(counts[6:] / 4000, torch.full((5,), 0.2), rtol=0, atol=0.03)


def test_noise_is_in_units_of_the_scale():
    batch = batch_of([400, 300, 100])
    noise = (add_noise(batch, 0.3, SCALER, seeded(0)).x - batch.x)[~is_padding(batch)]
    torch.testing.assert_close(noise.std(0) / SCALER.scale, torch.full((3,), 0.3), rtol=0.1, atol=0)
    torch.testing.assert_close(noise.mean(0) / SCALER.scale, torch.zeros(3), rtol=0, atol=0.05)
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.15


def test_a_dropped_feature_is_the_shift_at_every_step():
    batch = batch_of([6] * 2000)
    result = drop_features(batch, 0.3, SCALER, seeded(0))
    is_shift = (result.x == SCALER.shift).all(1)
    is_kept = (result.x == batch.x).all(1)
    assert (is_shift ^ is_kept).all()
    torch.testing.assert_close(is_shift.double().mean(0), torch.full((3,), 0.3).double(),
                               rtol=0, atol=0.04)  # fmt: skip
    everything = drop_features(batch_of(), 1.0, SCALER, seeded(0))
    assert SCALER.apply(everything.x)[~is_padding(everything)].eq(0).all()


def test_what_is_off_draws_nothing():
    batch, generator = batch_of(), seeded(3)
    before = generator.get_state()
    assert augment(batch, SCALER, QUICK, generator) is batch
    assert generator.get_state().equal(before)


@pytest.mark.parametrize("changes", [{"noise": 0.3}, {"time_crop": 0.5}, {"feature_dropout": 0.4}])
def test_augmented_runs_repeat_bit_for_bit_and_differ_from_plain_ones(changes):
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train)
    training = replace(QUICK, **changes)
    first, again = (fit(params, config, training, train, held_out) for _ in range(2))
    assert same(first.params, again.params)
    assert not same(first.params, fit(params, config, QUICK, train, held_out).params)
    assert first.best.validation["accuracy"] > 0.8


def test_validation_is_not_augmented():
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train)
    training = replace(QUICK, noise=50.0, time_crop=1.0, feature_dropout=0.5)
    found = fit(params, config, training, train, held_out)
    loss = functional.cross_entropy(predict_all(found.params, config, held_out), held_out.y)
    assert found.best.validation_loss == pytest.approx(float(loss))


def test_sequences_without_steps_survive_augmented_training():
    train = two_classes(40)
    empty = replace(train, offsets=torch.cat([train.offsets, train.offsets[-1:].repeat(8)]),
                    y=torch.cat([train.y, torch.arange(8) % 2]))  # fmt: skip
    params, config = setting(empty)
    training = replace(QUICK, noise=0.2, time_crop=0.5, feature_dropout=0.2)
    found = fit(params, config, training, empty, two_classes(20, seed=5))
    assert all(value.isfinite().all() for value in found.params.values())
