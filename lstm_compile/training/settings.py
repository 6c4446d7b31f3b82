"""How a model is trained. Loads no torch."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lstm_compile.config import Backend, check_tasks, option, validate
from lstm_compile.errors import InputError
from lstm_compile.tasks import all_losses

LARGEST = 3.4e38  # of float32; infinity would not train, and config.toml cannot hold it
LARGEST_SEED = (1 << 63) - 1  # the largest whole number of TOML
EXTENDABLE = ("epochs", "patience")  # decide where a run ends; one that goes on may change them
UNITS = ("steps", "epochs", "minutes")
LARGEST_DECAY = 0.99999  # of the moving average; 1 would keep the first weights for ever


class Interval(NamedTuple):
    """A time between two saves."""

    amount: float
    unit: str  # of UNITS


def parse_interval(text: str) -> Interval:
    """Read `100 steps`, `1 epoch` or `2.5 minutes`.

    Raises:
        InputError: another text, or a number that is not above 0.
    """
    number, _, unit = text.strip().partition(" ")
    unit = unit.strip().removesuffix("s") + "s"
    is_number = re.fullmatch(r"\d+(\.\d+)?" if unit == "minutes" else r"\d+", number)
    if unit not in UNITS or not is_number or not float(number):
        raise InputError(
            f"save_every must be a number above 0 and {', '.join(UNITS[:-1])} or {UNITS[-1]}, "
            f"such as '100 steps' or '5 minutes'; got {text!r}"
        )
    return Interval(float(number), unit)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All settings of a training run but those of the model; each field is a flag of `train`.

    Raises:
        InputError: a value is of the wrong type or out of range.
    """

    epochs: int = option(30, "Largest number of epochs.", 1)
    batch_size: int = option(32, "Sequences in a batch.", 1)
    epoch_size: int = option(
        0, "Sequences in an epoch, drawn at random for each; 0: all.", 0, only="has_features"
    )
    accumulate: int = option(
        1, "Batches in one step, whose gradients are averaged.", 1, only="has_features"
    )
    learning_rate: float = option(3e-3, "Peak learning rate.", 0.0, LARGEST)
    optimizer: Literal["adamw", "adam"] = option("adamw", "The optimizer.")
    weight_decay: float = option(
        0.01, "Weight decay: decoupled for adamw, L2 for adam; not of biases.", 0.0, LARGEST
    )
    schedule: Literal["cosine", "constant", "plateau"] = option(
        "cosine", "Learning rate after the warm-up; plateau: halved when validation stalls."
    )
    warmup: float = option(
        0.05, "Share of all steps in which the learning rate rises linearly.", 0.0, 1.0
    )
    loss: str = option(
        "auto", "The loss; auto: cross-entropy for classes, pinball for quantiles, else mse.",
        choices=all_losses,
    )  # fmt: skip
    label_smoothing: float = option(
        0.1, "Share of each class label that is spread over all classes.", 0.0, 1.0
    )
    class_weight: Literal["none", "balanced"] = option(
        "none", "Weights of classes in the loss; balanced: each class counts as much as the others."
    )
    clip_norm: float = option(
        1.0, "Largest norm of all gradients together; 0: no limit.", 0.0, LARGEST
    )
    ema: float = option(
        0.0, "Decay of the moving average of weights that is kept; 0: none.", 0.0, LARGEST_DECAY
    )
    noise: float = option(
        0.0, "Noise on training features, in units of their scale.", 0.0, LARGEST, only="is_whole"
    )
    time_crop: float = option(
        0.0, "Largest share of a training sequence's steps cut at random.", 0.0, 1.0,
        only="is_whole",
    )  # fmt: skip
    feature_dropout: float = option(
        0.0, "Probability that a training sequence loses a whole feature.", 0.0, 1.0,
        only="is_whole",
    )  # fmt: skip
    init: str = option("", "Run folder or model file whose weights training starts from.")
    freeze: Literal["none", "encoder"] = option(
        "none", "Part that keeps the weights of --init; encoder: the recurrent layers and scaler."
    )
    refit: bool = option(
        False, "After training, train again on validation data too, up to the best epoch."
    )
    skip_nonfinite: int = option(
        3, "How many batches may be skipped because loss or gradients are not finite.", 0
    )
    detect_anomaly: bool = option(False, "Find the operation whose gradient is not finite; slow.")
    save_every: str = option(
        "1 epoch", "How often the state is saved for --resume: steps, epochs or minutes."
    )
    patience: int = option(
        5, "Training stops after so many epochs without a better validation loss.", 1
    )
    validation: float = option(
        0.1, "Share of the training data to validate on; 0: none, run all epochs.", 0.0, 0.9
    )
    test_share: float = option(
        0.2, "Share of the last rows, or number of steps, to test.", 0.0, LARGEST, only="is_series"
    )
    stream: int = option(
        0, "Megabytes of Parquet files to hold in memory at a time; 0: all of them.", 0, 1 << 20,
        only="can_stream",
    )  # fmt: skip
    stride: int = option(1, "Steps between the origins of training windows.", 1, only="is_series")
    tokens: Literal["char", "byte"] = option("char", "What a text is made of.", only="reads_tokens")
    unroll: int = option(
        128, "Characters that gradients flow back through.", 1, 1 << 16, only="is_text"
    )
    seed: int = option(
        0, "Seed of weights, split, batches, dropout, augmentation; it holds for one backend.", 0,
        LARGEST_SEED,
    )  # fmt: skip
    device: str = option("auto", "cpu, cuda, cuda:N, or auto.")
    precision: Literal["fp32", "bf16"] = option(
        "fp32", "Precision of the forward pass in training; all else stays float32."
    )
    threads: int = option(0, "CPU threads; 0: all, or fewer for a small model.", 0, 1024)
    backend: Backend = option("auto", "What computes the recurrence.")
    chunk: int = option(8, "Steps that the compiled backend unrolls in one graph.", 1, 256)

    def __post_init__(self) -> None:
        validate(self)
        parse_interval(self.save_every)
        what = "refit" if self.refit else "schedule plateau" if self.schedule == "plateau" else ""
        if what and not self.validation:
            raise InputError(f"{what} needs a validation part; take validation above 0")
        if self.test_share > 1 and self.test_share % 1:
            raise InputError(
                f"test_share must be a share up to 1 or a whole number of steps, got "
                f"{self.test_share:g}"
            )

    def check_task(self, task: str) -> None:
        """Refuse settings that only another task has.

        Raises:
            InputError: names the field.
        """
        check_tasks(self, task)
