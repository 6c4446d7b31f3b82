"""The translations that torch.onnx needs in order to export models, and modules of one's own."""

import torch

from lstm_compile.errors import InputError
from lstm_compile.export.names import RIGHT_IN, Profile
from lstm_compile.export.write import sequence_lens, translation
from lstm_compile.export.write.cell_nodes import ANY_CELL, any_cell, ort_any_cell
from lstm_compile.export.write.functions import function_table, last_steps
from lstm_compile.export.write.translation import RECURRENCE, Table


def translation_table(profile: Profile = "portable") -> Table:
    """What torch.onnx needs in order to export modules that call `lstm_compile.lstm`.

    Pass it as `torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())`.
    Outputs and final states are those of `lstm_compile.lstm`, for any lengths. Profile `ort` is for
    ONNX Runtime alone: it is faster there, and its weights can always be quantised.

    Raises:
        InputError: no such profile.
    """
    if profile not in RIGHT_IN:
        raise InputError(f"profile must be one of {', '.join(RIGHT_IN)}; got {profile!r}")
    is_portable = profile == "portable"
    return {
        RECURRENCE: translation.recurrence if is_portable else sequence_lens.finite_recurrence,
        ANY_CELL: any_cell if is_portable else ort_any_cell,
        torch.ops.lstm_compile.last_steps.default: last_steps,
    }


def model_table() -> Table:
    """`translation_table`, and the other operators of this package's models."""
    return {**translation_table(), **function_table()}


def ort_table(finite: bool = False) -> Table:
    """As `model_table`, for ONNX Runtime alone.

    `finite` puts zeros into the padding: an int8 node takes its scale from all that it reads.
    """
    ours = sequence_lens.finite_recurrence if finite else sequence_lens.recurrence
    return {**model_table(), RECURRENCE: ours, ANY_CELL: ort_any_cell}
