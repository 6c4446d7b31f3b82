"""`lstm-compile generate`."""

from pathlib import Path

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command


@click.command(cls=Command)
@click.argument("model", required=False, type=click.Path(path_type=Path), metavar="[RUN|MODEL]")
@click.option(
    "--prompt", multiple=True, default=["\n"], help="Text to go on with; may be repeated."
)
@click.option(
    "--length", type=click.IntRange(0), default=500, show_default=True, help="Characters to add."
)
@click.option(
    "--temperature", type=float, default=1.0, show_default=True,
    help="Below 1 safer, above 1 bolder; 0 takes the most probable character.",
)  # fmt: skip
@click.option(
    "--top-k", type=click.IntRange(0), default=0, show_default=True,
    help="Draw from so many of the most probable characters; 0: all.",
)  # fmt: skip
@click.option(
    "--top-p", type=float, default=1.0, show_default=True,
    help="Draw from the most probable characters that together are so probable.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same text."
)
@click.option("--stop", default="", help="Text that ends it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    model: Path | None,
    prompt: tuple[str, ...],
    length: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop: str,
    as_json: bool,
) -> None:
    """Write text with a model of task lm.

    RUN is a run folder, a .safetensors file or a streaming .onnx file (of `export --onnx
    --streaming`); left out, the newest run. The same seed gives the same text from each.
    """
    from lstm_compile.export.use.generate import Sampling, generate
    from lstm_compile.model.run_folder import newest_run

    how = Sampling(temperature, top_k, top_p, seed)
    pieces = generate(model or newest_run(), prompt, length, how, stop)
    texts = list(prompt)
    shows = len(prompt) == 1 and not as_json  # several at once would run into each other
    if shows:
        click.echo(prompt[0], nl=False)
    for index, text in pieces:
        texts[index] += text
        if shows:
            click.echo(text, nl=False)
    if as_json:
        return output.print_json({"texts": texts})
    click.echo("" if shows else "\n\n".join(texts))
    return None
