"""Text as tokens: bytes or characters of files, mapped into memory and never read at once."""

import hashlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lstm_compile.data.schema import Schema, Vocabulary
from lstm_compile.data.tables.roles import Roles
from lstm_compile.data.text_files import BLOCK, count_characters, find_texts, mark_size, texts_of
from lstm_compile.errors import InputError

Tokens = Literal["char", "byte"]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents, one after the other; document i is tokens[starts[i]:starts[i + 1]]."""

    tokens: Tensor  # uint8 or int32 (count,), codes of the vocabulary; a file mapped into memory
    starts: Tensor  # int64 (documents + 1,), rising from 0 to count
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def schema(self) -> Schema:
        """The names, as a trained model carries them."""
        return Schema(("text",), (), (), vocabulary=self.vocabulary)

    def digest(self) -> str:
        """The sha256 of tokens, documents and vocabulary, 64 hexadecimal digits."""
        digest = hashlib.sha256(self.schema.to_json().encode() + self.starts.numpy().tobytes())
        for block in self.tokens.split(BLOCK):
            digest.update(block.numpy().tobytes())
        return digest.hexdigest()

    @property
    def roles(self) -> Roles | None:
        """None: a text has no columns."""
        return None

    def part(self, start: int, stop: int) -> "Corpus":
        """The tokens from `start` to `stop`; a document that crosses a bound is cut there."""
        starts = (self.starts.clamp(start, stop) - start).unique()
        if len(starts) == 1:
            starts = torch.tensor([0, 0], device="cpu")
        return replace(self, tokens=self.tokens[start:stop], starts=starts)


def split_corpus(corpus: Corpus, share: float) -> tuple[Corpus, Corpus]:
    """Split off the last `share` of the tokens: those for training, those for validation.

    Raises:
        InputError: either would have fewer than two tokens.
    """
    cut = len(corpus) - math.ceil(share * len(corpus))
    if cut < 2 or len(corpus) - cut < 2:
        raise InputError(
            f"a text of {len(corpus)} tokens cannot be split into training and validation "
            f"({share:g} of it); expected two tokens at least in each, take a longer text or "
            "another --validation"
        )
    return corpus.part(0, cut), corpus.part(cut, len(corpus))


def read_corpus(
    path: str | PathLike[str], tokens: Tokens = "char", vocabulary: Vocabulary | None = None
) -> Corpus:
    """Read a text file, a folder of text files or a glob; each file is one document.

    Tokens are stored in an unnamed file in the folder for temporary files: one byte a token, or
    four if the vocabulary has more than 256. A single file read as bytes is mapped as it is.

    Args:
        path: the file; of a folder, the files that end in .txt, .text or .md are read, sorted.
        tokens: `char` makes a vocabulary of the characters that occur; `byte` takes UTF-8 as it is.
        vocabulary: of a trained model; it is used instead of a new one.

    Raises:
        InputError: no such file, an empty one, text that is not UTF-8 where characters are read,
            or a character that is not in the vocabulary.
    """
    files = find_texts(path)
    kind = vocabulary.kind if vocabulary else tokens
    if kind == "byte":
        vocabulary = Vocabulary("byte")
        # copy on write: torch takes no read-only memory
        mapped = [np.memmap(file, np.uint8, "c")[mark_size(file) :] for file in files]
        joined = mapped[0] if len(mapped) == 1 else _spooled(iter(mapped), np.uint8)
        counts = [len(part) for part in mapped]
    else:
        vocabulary = vocabulary or Vocabulary("char", tuple(sorted(count_characters(files))))
        counts = [0] * len(files)
        joined = _spooled(_codes(files, vocabulary, counts), vocabulary.code_type)
    starts = torch.tensor([0, *np.cumsum(counts).tolist()], device="cpu")
    return Corpus(torch.from_numpy(joined), starts, vocabulary)


def _codes(
    files: list[Path], vocabulary: Vocabulary, counts: list[int]
) -> Iterator[NDArray[np.int64]]:
    """The codes of all files, block by block; adds the number of each file's codes to `counts`."""
    for index, file in enumerate(files):
        for text in texts_of(file):
            codes = vocabulary.encode(text, str(file), counts[index])
            counts[index] += len(codes)
            yield codes


def _spooled(blocks: Iterator[NDArray[np.generic]], dtype: type[np.generic]) -> NDArray[np.generic]:
    """Blocks joined in a file, which is deleted with the array."""
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            file.write(block.astype(dtype).tobytes())
        file.flush()
        return np.memmap(file, dtype, "r+")
