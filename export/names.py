"""All names of the interface of an exported file, frozen under `INTERFACE_VERSION`.

Loads no torch.
"""

from typing import Literal

from lstm_compile.config import ModelConfig

INTERFACE_VERSION = "1"
OPSET_VERSION = 17
IR_VERSION = 8
FORMAT = "lstm_compile"
PRODUCER = "lstm_compile"

INPUT = "x"  # float32 [batch, time, features], in the user's own units
TOKENS = "tokens"  # int64 [batch, time], in place of `x`: codes of the vocabulary
LENGTHS = "lengths"  # int64 [batch]
KNOWN_FUTURE = "known_future"  # float32 [batch, horizon, known], in the user's own units
STATIC = "static"  # int64 [batch, statics], codes of categories
SERIES_LOCATION = "series_location"  # float32 [batch, levels], of each target and past covariate
SERIES_SCALE = "series_scale"  # float32 [batch, levels], above 0
NEXT = "_next"  # of the streaming file: output `h_next` is the input `h` of the next call
BATCH = "batch"
TIME = "time"

# the metadata_props; `metadata.schema.json` says what each holds
METADATA_KEYS = (
    "interface_version",
    "format",
    "profile",
    "runtimes",
    "task",
    "inputs",
    "outputs",
    "config",
    "schema",
    "training",
    "selftest_sha256",
)
PLAIN_KEYS = ("interface_version", "profile", "runtimes", "selftest_sha256")  # words
STATE_KEY = "state"  # in the metadata of a streaming file
QUANTIZATION_KEY = "quantization"  # in those of an int8 file
FORM_KEYS = (STATE_KEY, QUANTIZATION_KEY)  # JSON, where there are any

Profile = Literal["portable", "ort"]
# where rows of different lengths are answered rightly, as the metadata say it
RIGHT_IN: dict[Profile, str] = {"portable": "any", "ort": "onnxruntime"}
ONNX_FILE = "model.onnx"
STREAMING_FILE = "streaming.onnx"
ORT_FILE = "model-ort.onnx"
INT8_FILE = "model-int8.onnx"
PARITY_FILE = "parity.json"
SELFTEST_FILE = "selftest.json"


Shape = list[str | int]  # a dynamic size has a name
Tensors = dict[str, tuple[str, Shape]]  # element type and shape by name


def inputs_of(config: ModelConfig) -> Tensors:
    """Every input of a model's file."""
    levels = config.level_size
    tensors: Tensors = {
        INPUT: ("float32", [BATCH, TIME, config.input_size]),
        TOKENS: ("int64", [BATCH, TIME]),
        LENGTHS: ("int64", [BATCH]),
        KNOWN_FUTURE: ("float32", [BATCH, config.steps_out, config.known_size]),
        STATIC: ("int64", [BATCH, len(config.static_sizes)]),
        SERIES_LOCATION: ("float32", [BATCH, levels]),
        SERIES_SCALE: ("float32", [BATCH, levels]),
    }
    first = TOKENS if config.vocabulary_size else INPUT
    return {name: tensors[name] for name in (first, LENGTHS, *config.given)}


def streaming_inputs_of(config: ModelConfig) -> Tensors:
    """Every input of its streaming file."""
    (first, kind), _, *given = inputs_of(config).items()
    return {first: kind, **state_of(config), **dict(given)}


def state_of(config: ModelConfig) -> Tensors:
    """The parts of the state in a streaming file, such as `h` and `c` of an LSTM."""
    layers = config.num_layers * config.num_directions
    return {name: ("float32", [layers, BATCH, size]) for name, size in config.state_parts.items()}


def next_state_of(config: ModelConfig) -> Tensors:
    """The outputs that hold the state after a call."""
    return {f"{name}{NEXT}": kind for name, kind in state_of(config).items()}


def output_of(config: ModelConfig) -> tuple[str, Shape]:
    """Name and shape of the output of a model's file, float32; the name is that of its task.

    [batch, classes], or [batch, targets] in the user's own units; of an answer a step [batch, time,
    classes or vocabulary], 0 in the padding; of forecasts [batch, horizon, targets(, quantiles)].
    """
    time = [TIME] if config.traits.per_step else []
    return config.traits.output, [BATCH, *time, *config.answer_sizes]
