"""Text from a trained model, token by token, from PyTorch or from the streaming file."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.schema import Vocabulary
from lstm_compile.errors import InputError
from lstm_compile.export.runtime import Streams
from lstm_compile.export.use.open_model import ExportedModel, TorchModel, open_model

Logits = Callable[[Any, Sequence[int]], Any]  # tokens (rows, time) of rows -> (rows, vocabulary)


class Sampling(NamedTuple):
    """How the next token is sampled."""

    temperature: float = 1.0  # logits are divided by it; 0 takes the most probable token
    top_k: int = 0  # sample from so many of the most probable tokens; 0 means all
    top_p: float = 1.0  # nucleus sampling: the smallest set whose probability reaches this
    seed: int = 0  # of the random numbers

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            InputError: names the value.
        """
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be a number from 0 on, got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")


PLAIN = Sampling()


class Piece(NamedTuple):
    """The next text of one prompt."""

    prompt: int  # which, from 0
    text: str


def generate(
    source: str | Path,
    prompts: Sequence[str],
    length: int = 500,
    how: Sampling = PLAIN,
    stop: str = "",
) -> Iterator[Piece]:
    """Continue prompts; gives each new piece of text as soon as it is made.

    Each prompt has its own random numbers, so its text does not depend on the other prompts.

    Args:
        source: a run folder, a `.safetensors` or a streaming `.onnx` file; the last loads no torch.
        prompts: texts of at least one character.
        length: how many characters to add; bytes for the vocabulary `byte`.
        how: how tokens are sampled.
        stop: the text of a prompt ends after this; empty for none.

    Raises:
        InputError: no such model, not a language model, or a prompt that it cannot read.
    """
    how.check()
    if length < 0:
        raise InputError(f"length must be at least 0, got {length}")
    model = open_model(Path(source))
    vocabulary = model.schema.vocabulary
    if not model.config.traits.is_text or vocabulary is None:
        raise InputError(
            f"{model.source}: its task is {model.config.task}, and text comes from task lm; train "
            "one with lstm-compile train TEXT.txt --task lm"
        )
    logits = _logits_of(model)
    for index in [index for index, prompt in enumerate(prompts) if not prompt]:
        raise InputError(
            f"prompt {index} is empty; expected one character at least, such as a line break"
        )
    tokens = [vocabulary.encode(text, f"prompt {index}") for index, text in enumerate(prompts)]
    return _pieces(vocabulary, logits, tokens, length, how, stop)


def _pieces(
    vocabulary: Vocabulary,
    logits: Logits,
    prompts: Sequence[Any],
    length: int,
    how: Sampling,
    stop: str,
) -> Iterator[Piece]:
    randoms = [np.random.default_rng([how.seed, index]) for index in range(len(prompts))]
    writers = [_writer(vocabulary) for _ in prompts]
    texts = [""] * len(prompts)
    rows = list(range(len(prompts)))
    scores = {row: logits(prompts[row][None], [row])[0] for row in rows}
    for _ in range(length):
        drawn = {row: draw_token(scores[row], randoms[row].random(), how) for row in rows}
        for row, token in drawn.items():
            piece = writers[row](token)
            texts[row] = (texts[row] + piece)[-max(1, len(stop)) :]
            yield Piece(row, piece)
        rows = [row for row in rows if not stop or texts[row] != stop]
        if not rows:
            return
        found = logits(np.array([[drawn[row]] for row in rows]), rows)
        scores = dict(zip(rows, found, strict=True))


def _writer(vocabulary: Vocabulary) -> Callable[[int], str]:
    """Gives the text of each token; bytes that are not UTF-8 become U+FFFD."""
    if vocabulary.kind == "char":
        return lambda token: vocabulary.characters[token]
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return lambda token: decode(bytes([token]))


def _logits_of(model: TorchModel | ExportedModel) -> Logits:
    if isinstance(model, TorchModel):
        return _by_window(model) if model.config.transformer_layers else _by_state(model)
    streams = model.file
    if not isinstance(streams, Streams):
        raise InputError(
            f"{model.source}: takes whole sequences; name the run folder, or the file of export "
            "--onnx --streaming"
        )

    def logits(tokens: Any, rows: Sequence[int]) -> Any:
        return np.asarray(streams.push(rows, tokens))[:, -1]

    return logits


def _by_state(model: TorchModel) -> Logits:
    """Logits from the state of each row, which is kept between calls."""
    import torch

    from lstm_compile.model.model import forward

    states: dict[int, tuple[torch.Tensor, ...]] = {}

    def logits(tokens: Any, rows: Sequence[int]) -> Any:
        x, before = torch.from_numpy(tokens), None
        if all(row in states for row in rows):
            parts = zip(*(states[row] for row in rows), strict=True)
            before = tuple(torch.cat(part, 1) for part in parts)
        with torch.inference_mode():
            found, after = forward(model.params, model.config, x, None, before)
        for index, row in enumerate(rows):
            states[row] = tuple(part[:, index : index + 1] for part in after)
        return found[:, -1].numpy()

    return logits


def _by_window(model: TorchModel) -> Logits:
    """Logits from the window that Transformer blocks see, which each call reads again.

    The state is carried from a full window to the next, as in training.
    """
    import torch

    from lstm_compile.evaluation.perplexity import window_of
    from lstm_compile.model.model import forward

    size = window_of(model.config, model.training.get("unroll"))
    kept: dict[int, tuple[Any, Any]] = {}  # the state before a row's window, and its tokens

    def answer(row: int, tokens: Any) -> Any:
        state, window = kept.get(row, (None, tokens[:0]))
        for part in torch.cat([window, tokens]).split(size):
            before, window = state, part
            found, state = forward(model.params, model.config, part[None], None, before)
        kept[row] = before, window
        return found[0, -1].numpy()

    def logits(tokens: Any, rows: Sequence[int]) -> Any:
        with torch.inference_mode():
            parts = zip(rows, torch.from_numpy(tokens), strict=True)
            return np.stack([answer(row, part) for row, part in parts])

    return logits


def draw_token(logits: NDArray[np.float32], uniform: float, how: Sampling) -> int:
    """The token at `uniform`, 0 to 1, in the distribution that logits (tokens,) and `how` give.

    Source: nucleus sampling, Holtzman et al. 2020, section 3.1.
    """
    exact = logits.astype(np.float64)
    if how.temperature == 0:
        return int(exact.argmax())
    order = np.argsort(-exact, kind="stable")[: how.top_k or None]
    scores = (exact[order] - exact.max()) / how.temperature
    shares = np.exp(scores) / np.exp(scores).sum()
    before = shares.cumsum() - shares
    shares = np.where(before < how.top_p, shares, 0.0)
    sums = shares.cumsum()
    return int(order[min(np.searchsorted(sums, uniform * sums[-1], "right"), len(order) - 1)])
