"""Variable-length sequences: reading files, the bundled data sets, and cutting batches.

Names are resolved on first use (PEP 562): `lstm_compile.data.schema` must import without torch.
"""

from typing import TYPE_CHECKING

from lstm_compile.lazy import lazy_names

if TYPE_CHECKING:
    from lstm_compile.data.batches import bucketed_batches as bucketed_batches
    from lstm_compile.data.batches import ordered_batches as ordered_batches
    from lstm_compile.data.batches import stratified_split as stratified_split
    from lstm_compile.data.bundled import BUNDLED as BUNDLED
    from lstm_compile.data.readers import load_dataset as load_dataset
    from lstm_compile.data.readers import read_sequences as read_sequences
    from lstm_compile.data.schema import Schema as Schema
    from lstm_compile.data.sequences import Sequences as Sequences
    from lstm_compile.data.sequences import fingerprint as fingerprint
    from lstm_compile.data.sequences import gather as gather
    from lstm_compile.data.tables.columns import TableOptions as TableOptions
    from lstm_compile.model.batch import Batch as Batch

_HOMES = {
    "BUNDLED": "bundled",
    "Batch": "sequences",
    "Schema": "schema",
    "Sequences": "sequences",
    "TableOptions": "tables.columns",
    "bucketed_batches": "batches",
    "fingerprint": "sequences",
    "gather": "sequences",
    "load_dataset": "readers",
    "ordered_batches": "batches",
    "read_sequences": "readers",
    "stratified_split": "batches",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
