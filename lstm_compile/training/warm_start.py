"""The weights that training starts from: fresh ones, fitted scalers, or those of another model."""

from operator import attrgetter
from typing import NamedTuple

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.series.windows import Windows
from lstm_compile.data.stream import Stream
from lstm_compile.errors import InputError
from lstm_compile.model.checkpoint import Model, load_model
from lstm_compile.model.embeddings import codes_kept
from lstm_compile.model.model import ENCODER, Params, init_params, param_shapes
from lstm_compile.model.scaling import fit_scaler
from lstm_compile.tasks.series_scaler import fit_series_scaler


class WarmStart(NamedTuple):
    """The tensors that are taken from another model, and those that start afresh."""

    source: str
    taken: Params
    fresh: tuple[str, ...]  # names of the new model's other tensors

    def line(self) -> str:
        """One line for people."""
        count = len(self.taken) + len(self.fresh)
        fresh = f"; fresh are {', '.join(self.fresh)}" if self.fresh else ""
        return f"{self.source}: {len(self.taken)} of {count} tensors taken{fresh}"


def initial_params(
    config: ModelConfig, seed: int, data: Examples | Stream | Corpus, warm: WarmStart | None = None
) -> Params:
    """Fresh weights, and scalers fitted on the valid steps of `data`; `warm` replaces both.

    The data are those of training and nothing else, on the CPU.
    """
    fitted = {}
    if isinstance(data, Windows):
        fitted = {"scaler": fit_series_scaler(data, config)}
    elif isinstance(data, Sequences) and not data.vocabulary:
        fitted = {"scaler": fit_scaler(data.x, config.scaling)}
    elif isinstance(data, Stream):
        fitted = {"scaler": fit_scaler(data.moments, config.scaling)}
    if "scaler" in fitted:
        fitted["scaler"] = codes_kept(fitted["scaler"], config)
    if isinstance(data, Sequences | Stream) and config.traits.has_target_scaler:
        fitted["target_scaler"] = fit_scaler(data.y, config.target_scaling)
    statistics = {
        f"{name}.{part}": value
        for name, scaler in fitted.items()
        for part, value in scaler._asdict().items()
    }
    return {**init_params(config, seed), **statistics, **(warm.taken if warm else {})}


def warm_start(source: str, config: ModelConfig, schema: Schema, freeze: str = "none") -> WarmStart:
    """Every tensor of the model at `source` whose name and shape fit the new model.

    Some tensors start afresh though their shapes fit, unless their meaning is the same too: the
    head and the target scaler need the same classes or targets, the Transformer blocks the same
    number of heads, and the scaler the same features and kind of scaling. A scaler that fits is
    taken and not fitted anew, as the encoder has learned with it. `freeze` `encoder` requires every
    tensor of the recurrent stack.

    Raises:
        InputError: no such model, no tensor of its recurrent stack fits, or one to freeze does not.
    """
    model = load_model(source)
    expected = param_shapes(config)
    barred = _barred(model, config, schema)
    taken = {
        name: model.params[name]
        for name, shape in expected.items()
        if name in model.params and model.params[name].shape == shape
        if not name.startswith(barred)
    }
    fresh = tuple(name for name in expected if name not in taken)
    _check_encoder(source, model.config, config, fresh, freeze)
    return WarmStart(source, taken, fresh)


def _barred(model: Model, config: ModelConfig, schema: Schema) -> tuple[str, ...]:
    """How the names of tensors start that mean something else in the new model."""
    old, names = model.config, model.schema
    entering = attrgetter("scaling", "log1p", "season")
    outputs = (names.classes, names.targets, old.target_scaling if names.targets else None)
    new = (schema.classes, schema.targets, config.target_scaling if schema.targets else None)
    is_same = {
        "scaler.": (names.features, *entering(old)) == (schema.features, *entering(config)),
        "categories.": names.categories == schema.categories,
        "embedding.": names.vocabulary == schema.vocabulary,
        "head.": names.vocabulary == schema.vocabulary and outputs == new,
        "target_scaler.": outputs == new,
        "cell.": old.cell == config.cell,
        "transformer.": old.heads == config.heads,
    }
    return tuple(start for start, same in is_same.items() if not same)


def _check_encoder(
    source: str, old: ModelConfig, new: ModelConfig, fresh: tuple[str, ...], freeze: str
) -> None:
    encoder = [name for name in param_shapes(new) if name.startswith(ENCODER)]
    lacking = [name for name in encoder if name in fresh]
    if len(lacking) == len(encoder) or (lacking and freeze == "encoder"):
        which = f"to freeze the encoder all of it must fit, but {', '.join(lacking)} do not"
        if len(lacking) == len(encoder):
            name = "LSTM" if old.cell == "lstm" else f"cell {old.cell!r}"
            which = f"no tensor of its {name} fits"
        raise InputError(
            f"{source}: {which} this model: it has {_sizes(old)}; this one {_sizes(new)}; "
            "give both the same sizes"
        )


def _sizes(config: ModelConfig) -> str:
    return (
        f"{config.input_size} features, --hidden-size {config.hidden_size}, --num-layers "
        f"{config.num_layers}, {'' if config.bidirectional else 'not '}bidirectional, "
        f"{'' if config.bias else 'no '}bias, cell {config.cell}"
    )
