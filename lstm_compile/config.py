"""The config of a model: one frozen, checked description, stored in each of its files.

Loads no torch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import cached_property
from math import gcd
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lstm_compile.errors import InputError
from lstm_compile.files import from_json
from lstm_compile.tasks import Task, find_task, tasks_with

Pooling = Literal["last", "mean", "max", "attention", "dot-attention"]
Scaling = Literal["none", "standard", "minmax", "series", "last", "mean", "revin"]
TargetScaling = Literal["none", "standard", "minmax"]
Decoder = Literal["direct", "recursive"]
Backend = Literal["auto", "reference", "compiled", "vendor"]  # what computes the recurrence
# the recurrent cells that ship; each is a module of `lstm_compile.recurrence.cells`
CELLS = ("lstm", "gru", "layernorm-lstm", "peephole-lstm", "slstm")
WINDOW_SCALINGS = ("last", "mean", "revin")  # of each window, after `standard` of each feature

SERIES_SIZES = ("past_size", "known_size", "static_sizes")
CATEGORY_FIELDS = ("category_sizes", "has_other")
REGULARISERS = ("input_dropout", "hidden_dropout", "zoneout", "weight_drop")
CELL_FIELDS = ("cell", "cell_parts", "cell_sha256")
# what the data and the cell decide
DERIVED = (
    *("task", "input_size", "output_size", "vocabulary_size"), *SERIES_SIZES, *CATEGORY_FIELDS,
    *CELL_FIELDS[1:],
)  # fmt: skip
MAX_SIZE = 1 << 16
MAX_LAYERS = 64


def option(
    default: Any,
    text: str,
    low: float | None = None,
    high: float | None = None,
    unset: str = "inferred",
    only: str = "",
    choices: Callable[[], tuple[str, ...]] | None = None,
) -> Any:
    """A field that is also a flag of `train`: its default, help text and inclusive range.

    `unset` says what a default of None stands for. `only` names a property of `Task`: tasks without
    it do not know the field. `choices` gives the words that a text may be.
    """
    metadata = {"help": text, "low": low, "high": high, "unset": unset, "only": only}
    return field(default=default, metadata={**metadata, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a model, with nn.LSTM's names where it has them.

    The text of each option is also its help text in `train`.

    Raises:
        InputError: a value is of the wrong type or out of range.
    """

    task: str  # one of `lstm_compile.tasks.TASKS`
    # features of a step; 1 for tokens. For `forecast`: targets, past covariates, known covariates,
    # the indicator of gaps, in this order; columns of categories come last
    input_size: int
    output_size: int  # number of classes, targets or tokens
    hidden_size: int = option(64, "Width of one layer's state.", 1, MAX_SIZE)
    cell: str = option(
        "lstm", f"Recurrent cell: {', '.join(CELLS)}; as a flag also FILE.py:NAME, your own."
    )
    num_layers: int = option(2, "Stacked layers.", 1, MAX_LAYERS)
    bidirectional: bool = option(True, "Read each sequence in both directions.")
    bias: bool = option(True, "Give the LSTM its bias vectors.")
    # of a dropout: the probability of dropping a value, in training
    dropout: float = option(0.4, "Dropout between layers and in Transformer blocks.", 0.0, 1.0)
    head_dropout: float = option(0.4, "Dropout before the linear head.", 0.0, 1.0)
    # see `lstm_compile.recurrence.regularise.Regularisers`
    input_dropout: float = option(
        0.0, "Dropout of each layer's input, one mask a sequence (Gal and Ghahramani).", 0.0, 1.0
    )
    hidden_dropout: float = option(
        0.0, "Dropout of the state that W_hh reads, one mask a sequence.", 0.0, 1.0
    )
    zoneout: float = option(
        0.0, "Probability that a value of the state stays as it was, at each step.", 0.0, 1.0
    )
    weight_drop: float = option(0.0, "Dropout of the weights W_hh, one mask a batch.", 0.0, 1.0)
    # `last` valid step, `mean`, `max`, `attention` (learned scores), or `dot-attention` (scores are
    # dot products with the last valid step)
    pooling: Pooling = option("attention", "How the steps become one vector.", only="is_pooled")
    # `standard`: zero mean and unit deviation; `minmax`: the range [0, 1]. Only for `forecast`:
    # location and scale of each series, given as inputs (`series`); or `standard` and then, in each
    # window, minus the last value (`last`), minus the mean (`mean`), or minus the mean and divided
    # by the deviation (`revin`, Kim et al. 2022). Forecasts are scaled back the same way
    scaling: Scaling = option(
        "standard", "Scaling of the features; it is part of the model.", only="has_features"
    )
    target_scaling: TargetScaling = option(
        "standard", "Scaling of the targets of a regression; answers are scaled back."
    )
    # of a window: the linear path reads as many, the LSTM as many as it is given
    context: int = option(
        96, "Steps before the origin of a forecast.", 1, MAX_SIZE, only="is_series"
    )
    horizon: int = option(24, "Steps to forecast.", 1, MAX_SIZE, only="is_series")
    decoder: Decoder = option(
        "direct", "All steps at once, or one step that is fed back.", only="is_series"
    )
    # shares between 0 and 1, rising; empty for one number
    quantiles: tuple[float, ...] = option(
        (), "Quantiles to forecast, such as 0.1,0.5,0.9.", unset="one number", only="is_series"
    )
    # targets are scaled as sign(x) log(1 + |x|), and forecasts scaled back
    log1p: bool = option(
        False, "Forecast log(1 + x): for targets that grow by a factor.", only="is_series"
    )
    season: int = option(
        0,
        "Forecast the difference to the value this many steps before; 0: the value itself.",
        0,
        MAX_SIZE,
        only="is_series",
    )
    linear: bool = option(True, "Add a linear map from window to horizon.", only="is_series")
    embedding_size: int = option(
        64, "Length of the vector that stands for a character.", 1, MAX_SIZE, only="reads_tokens"
    )
    # `embedding_size` is then `hidden_size`
    tie: bool = option(False, "Let the head share the weights of the embedding.", only="is_text")
    # between the LSTM stack and pooling or head; causal if the LSTM is not bidirectional
    transformer_layers: int = option(0, "Transformer blocks after the LSTM stack.", 0, MAX_LAYERS)
    # a divisor of `width`; 0 becomes the greatest common divisor of 4 and `width`
    heads: int = option(
        0,
        "Attention heads of a Transformer block; 0: 4, or fewer if 4 does not divide the width.",
        0,
        MAX_SIZE,
    )
    vocabulary_size: int = 0  # number of tokens if the input is text; 0 if it is features
    past_size: int = 0  # number of covariates that are known up to the origin of a forecast
    known_size: int = 0  # number of covariates that are known in the horizon too
    static_sizes: tuple[int, ...] = ()  # number of categories of each static covariate
    # number of codes of each column of categories: the last features
    category_sizes: tuple[int, ...] = ()
    has_other: bool = False  # whether their code 0 stands for categories that training has not seen
    # the name and size of each part of the cell's state, () for `lstm`; filled in if it is empty
    cell_parts: tuple[tuple[str, int], ...] = ()
    # sha256 of the text of the cell's file; empty for a cell that ships or that Python registered
    cell_sha256: str = ""

    def __post_init__(self) -> None:
        for name in ("quantiles", "static_sizes", "category_sizes", "cell_parts"):
            object.__setattr__(self, name, as_tuple(getattr(self, name)))
        task = self.traits
        validate(self)
        for name in ("input_size", "output_size"):
            _check_range(name, getattr(self, name), 1, MAX_SIZE)
        check_tasks(self, self.task)
        self._check_tokens()
        self._settle_cell()
        self._settle_heads()
        if self.scaling in ("series", *WINDOW_SCALINGS) and not task.is_series:
            known = " or ".join(tasks_with(is_series=True))
            raise InputError(f"scaling {self.scaling} is for task {known}, not {self.task}")
        task.check(self)

    @cached_property
    def traits(self) -> Task:
        """The record of the task. It is found once: `torch.compile` traces no imports."""
        return find_task(self.task)

    def _check_tokens(self) -> None:
        if len(self.category_sizes) > self.input_size or not all(self.category_sizes):
            raise InputError(
                f"category_sizes must be above 0, one a feature at most, got {self.category_sizes}"
            )
        _check_range("vocabulary_size", self.vocabulary_size, 0, MAX_SIZE)
        if self.vocabulary_size and (self.input_size != 1 or not self.traits.reads_tokens):
            raise InputError(
                "a vocabulary takes input_size 1 and one of the tasks "
                f"{', '.join(tasks_with(reads_tokens=True))}"
            )
        if self.tie and self.embedding_size != self.hidden_size:
            raise InputError(
                f"tie needs embedding_size = hidden_size, got {self.embedding_size} and "
                f"{self.hidden_size}"
            )

    def _settle_cell(self) -> None:
        if self.cell == "lstm":
            if self.cell_parts or self.cell_sha256:
                raise InputError("cell_parts and cell_sha256 are for other cells than lstm")
            return
        if not self.bias:
            raise InputError(
                f"bias is for cell lstm, and cell {self.cell!r} says itself what it has; leave "
                "--no-bias out"
            )
        # a new model, or of another size; that of a file has its parts, and needs no code
        if not self.cell_parts or self.cell_parts[0][1] != self.hidden_size:
            from lstm_compile.recurrence.cell_file import parts_and_sha256

            parts, sha256 = parts_and_sha256(self.cell, self.hidden_size)
            object.__setattr__(self, "cell_parts", tuple(parts.items()))
            object.__setattr__(self, "cell_sha256", sha256)
        if len(self.state_parts) != len(self.cell_parts):
            raise InputError(f"cell_parts must have different names, got {self.cell_parts}")
        for name, size in self.cell_parts:
            _check_range(f"size of the cell's part {name!r}", size, 1, MAX_SIZE)

    def _settle_heads(self) -> None:
        if self.heads and not self.transformer_layers:
            raise InputError(
                f"heads are for Transformer blocks; got heads {self.heads}, transformer_layers 0; "
                "set transformer_layers to 1 or more"
            )
        if self.transformer_layers and not self.heads:
            object.__setattr__(self, "heads", gcd(4, self.width))
        if self.heads and self.width % self.heads:
            raise InputError(
                f"heads must divide the width {self.width} (hidden_size times directions), got "
                f"{self.heads}"
            )

    @property
    def level_size(self) -> int:
        """The first features, whose level may change: targets and past covariates."""
        return self.output_size + self.past_size

    @property
    def steps_out(self) -> int:
        """Steps that one call of the network forecasts."""
        return self.horizon if self.decoder == "direct" else 1

    @property
    def answer_sizes(self) -> tuple[int, ...]:
        """Sizes of one answer: of a step or row, or (steps, targets(, quantiles))."""
        if not self.traits.is_series:
            return (self.output_size,)
        quantiles = (len(self.quantiles),) if self.quantiles else ()
        return self.steps_out, self.output_size, *quantiles

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the inputs beside `x` and `lengths`."""
        names = ["known_future"] * (self.known_size > 0) + ["static"] * bool(self.static_sizes)
        names += ["series_location", "series_scale"] * (self.scaling == "series")
        return tuple(names)

    @property
    def state_parts(self) -> dict[str, int]:
        """The name and size of each part of the state of one layer and direction."""
        return dict(self.cell_parts) or dict.fromkeys(("h", "c"), self.hidden_size)

    @property
    def num_directions(self) -> int:
        """1, or 2 for a bidirectional model."""
        return 2 if self.bidirectional else 1

    @property
    def changes_step(self) -> bool:
        """Whether training runs another step than that of the cell."""
        return self.zoneout > 0 or self.hidden_dropout > 0

    @property
    def width(self) -> int:
        """Size of the LSTM stack's output at each step."""
        return self.hidden_size * self.num_directions

    def to_dict(self) -> dict[str, Any]:
        """All fields but those of other tasks and of parts that the model does not have."""
        others = {f.name for f in fields(self) if not is_known(f, self.traits)}
        others |= set() if self.traits.is_series else set(SERIES_SIZES)
        others |= set() if self.vocabulary_size else {"vocabulary_size", "embedding_size"}
        others |= set() if self.category_sizes or self.has_other else set(CATEGORY_FIELDS)
        others |= set(CELL_FIELDS) if self.cell == "lstm" else set()
        others |= set() if self.transformer_layers else {"transformer_layers", "heads"}
        others |= {name for name in REGULARISERS if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in others}

    def to_json(self) -> str:
        """What `to_dict` gives as a JSON object with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read what `to_json` wrote.

        Raises:
            InputError: not a JSON object, a missing or unknown key, or a value out of range.
        """
        return cls(**checked_keys(cls, text))


def names_file(cell: str) -> bool:
    """Whether a value of `--cell` is `FILE.py:NAME` and not the name of a cell."""
    return ":" in cell or cell.endswith(".py")


def as_tuple(value: Any) -> Any:
    """A list, as JSON and TOML have them, as a tuple, its items too; anything else unchanged."""
    if not isinstance(value, list):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def checked_keys(cls: type, text: str) -> dict[str, Any]:
    """The JSON object `text`, whose keys must be fields of the dataclass `cls`.

    Raises:
        InputError: not a JSON object, or an unknown or missing key.
    """
    values = from_json(text, cls.__name__)
    known = {f.name: f.default is MISSING for f in fields(cls)}  # whether there must be a value
    if unknown := sorted(set(values) - set(known)):
        raise InputError(f"{cls.__name__}: unknown keys {unknown}; known are {sorted(known)}")
    if missing := sorted(name for name in known if known[name] and name not in values):
        raise InputError(f"{cls.__name__}: missing keys {missing}")
    return values


def validate(config: Any) -> None:
    """Check each field of a dataclass against its annotation and range.

    Raises:
        InputError: names the field, what was found and what was expected.
    """
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        _check_type(f.name, value, hints[f.name])
        if choices := f.metadata.get("choices"):
            _check_choice(f.name, value, choices())
        _check_range(f.name, value, f.metadata.get("low"), f.metadata.get("high"))


def check_tasks(config: Any, task: str) -> None:
    """Refuse fields of a dataclass that are set and that `task` does not know.

    Raises:
        InputError: names the field and the tasks that know it.
    """
    for f in fields(config):
        if not is_known(f, find_task(task)) and getattr(config, f.name) != f.default:
            known = " or ".join(tasks_with(**{f.metadata["only"]: True}))
            raise InputError(f"{f.name} is for task {known}, the task is {task}")


def is_known(field: Field[Any], task: Task) -> bool:
    """Whether a task knows a field of a config."""
    trait = field.metadata.get("only")
    return not trait or bool(getattr(task, trait))


def _check_type(name: str, value: Any, hint: Any) -> None:
    choices = get_args(hint)
    if choices and all(isinstance(choice, str) for choice in choices):
        _check_choice(name, value, choices)
        return
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            raise InputError(f"{name} must be a list, got {value!r}")
        each = choices[:1] * len(value) if choices[-1] is Ellipsis else choices
        if len(each) != len(value):
            raise InputError(f"{name} must be a list of {len(each)}, got {value!r}")
        for item, kind in zip(value, each, strict=True):
            _check_type(name, item, kind)
        return
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name} must be of type {hint.__name__}, got {value!r}")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def _check_range(name: str, value: Any, low: float | None, high: float | None) -> None:
    # written as `not value >= low`, because NaN must fail too
    if low is not None and not value >= low:
        raise InputError(f"{name} must be at least {low}, got {value!r}")
    if high is not None and not value <= high:
        raise InputError(f"{name} must be at most {high}, got {value!r}")
