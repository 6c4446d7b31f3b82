"""`lstm-compile generate`."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.options import PATH, cell_option, json_option
from lstm_compile.cli.working import working

EXAMPLES = (
    "generate runs/notes-1 --prompt 'Once upon' --length 200",
    "generate runs/notes-1 --temperature 0.7 --top-p 0.9 --seed 1",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model", required=False, type=PATH, metavar="[RUN|MODEL]")
@click.option("--prompt", multiple=True, default=["\n"], help="Text to continue; may be repeated.")
@click.option(
    "--length", type=click.IntRange(0), default=500, show_default=True, help="Characters to add."
)
@click.option(
    "--temperature", type=float, default=1.0, show_default=True,
    help="Below 1 more predictable, above 1 more varied; 0: always the most probable character.",
)  # fmt: skip
@click.option(
    "--top-k", type=click.IntRange(0), default=0, show_default=True,
    help="Sample from this many of the most probable characters; 0: all.",
)  # fmt: skip
@click.option(
    "--top-p", type=float, default=1.0, show_default=True,
    help="Nucleus sampling: the smallest set of characters whose probability reaches this.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same text."
)
@click.option("--stop", default="", help="Stop after this text.")
@cell_option
@json_option
def command(
    model: Path | None,
    prompt: tuple[str, ...],
    length: int,
    stop: str,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Write text with a model of task lm.

    RUN is a run folder, a .safetensors file, or a streaming .onnx file (written by `export --onnx
    --streaming`). Without RUN the newest run is taken. The same seed gives the same text from each.
    """
    with working(output.console(json_wanted=True), "loading"):
        from lstm_compile.export.use.generate import Sampling, generate
        from lstm_compile.model.run_folder import newest_run

        pieces = generate(model or newest_run(), prompt, length, Sampling(**sampling), stop)
        first = [*islice(pieces, 1)]  # the model is opened with it
    texts = list(prompt)
    shows = len(prompt) == 1 and not as_json  # several texts at once would mix
    if shows:
        click.echo(prompt[0], nl=False)
    for index, text in chain(first, pieces):
        texts[index] += text
        if shows:
            click.echo(text, nl=False)
    if as_json:
        return output.print_json({"texts": texts})
    click.echo("" if shows else "\n\n".join(texts))
    return None
