"""Text from a trained model, character by character, from PyTorch or from the streaming file."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_compile.data.schema import Vocabulary
from lstm_compile.errors import InputError
from lstm_compile.export.runtime import Streams
from lstm_compile.export.use.open_model import ExportedModel, OpenModel, TorchModel, open_model
from lstm_compile.export.use.sampling import Sampling, draw_token

Logits = Callable[[Any, Sequence[int]], Any]  # tokens (rows, time) of rows -> (rows, vocabulary)
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
    """Go on with prompts; pieces come as they are made, the prompts themselves are not among them.

    Each prompt has random numbers of its own, so that its text does not depend on the others.

    Args:
        source: a run folder, a `.safetensors` or a streaming `.onnx` file; the last loads no torch.
        prompts: of one character at least.
        length: characters to add; bytes for the vocabulary `byte`.
        how: how tokens are drawn.
        stop: text after which a prompt is done; empty for none.

    Raises:
        InputError: no such model, one of another task, or a prompt that it cannot read.
    """
    how.check()
    if length < 0:
        raise InputError(f"length must be at least 0, got {length}")
    model = open_model(Path(source))
    vocabulary, logits = _vocabulary(model), _logits_of(model)
    tokens = [_encoded(vocabulary, index, prompt) for index, prompt in enumerate(prompts)]
    return _pieces(vocabulary, logits, tokens, length, how, stop)


def _encoded(vocabulary: Vocabulary, index: int, prompt: str) -> Any:
    if not prompt:
        raise InputError(
            f"prompt {index} is empty; expected one character at least, such as a line break"
        )
    return vocabulary.encode(prompt, f"prompt {index}")


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
    """What a token adds to a text; bytes that are no UTF-8 become U+FFFD."""
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
    """Each call goes on from the states after the call before."""
    import torch

    from lstm_compile.model.model import forward
    from lstm_compile.recurrence.cell import LSTMState

    states: dict[int, LSTMState] = {}

    def logits(tokens: Any, rows: Sequence[int]) -> Any:
        before = None
        if all(row in states for row in rows):
            parts = zip(*(states[row] for row in rows), strict=True)
            before = LSTMState(*(torch.cat(part, 1) for part in parts))
        with torch.inference_mode():
            found, after = forward(
                model.params, model.config, torch.from_numpy(tokens), None, before
            )
        for index, row in enumerate(rows):
            states[row] = LSTMState(*(part[:, index : index + 1] for part in after))
        return found[:, -1].numpy()

    return logits


def _by_window(model: TorchModel) -> Logits:
    """Each call reads anew what Transformer blocks see: the window that is not yet full.

    A full window hands its state on to the next, as in training.
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
            given = zip(rows, torch.from_numpy(tokens), strict=True)
            return np.stack([answer(row, part) for row, part in given])

    return logits


def _vocabulary(model: OpenModel) -> Vocabulary:
    if not model.config.traits.is_text or model.schema.vocabulary is None:
        raise InputError(
            f"{model.source}: its task is {model.config.task}, and text comes from task lm; train "
            "one with lstm-compile train TEXT.txt --task lm"
        )
    return model.schema.vocabulary
