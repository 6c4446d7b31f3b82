"""Every name that an exported file shows to the outside, frozen under `INTERFACE_VERSION`.

Loads no torch.
"""

from lstm_compile.config import Task

INTERFACE_VERSION = "1"
OPSET_VERSION = 17
IR_VERSION = 8
FORMAT = "lstm_compile"
PROFILE = "portable"
PRODUCER = "lstm_compile"

INPUT = "x"  # float32 [batch, time, features], in the user's own units
LENGTHS = "lengths"  # int64 [batch]
BATCH = "batch"
TIME = "time"

# classify: float32 [batch, classes]; regress: float32 [batch, targets], in the user's own units
OUTPUTS: dict[Task, str] = {"classify": "probabilities", "regress": "value"}

METADATA_KEYS = (
    "interface_version",
    "format",
    "profile",
    "task",
    "config",
    "schema",
    "training",
)

ONNX_FILE = "model.onnx"
PARITY_FILE = "parity.json"
SELFTEST_FILE = "selftest.json"
