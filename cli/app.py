"""The group of commands; each is imported when it is called."""

from difflib import get_close_matches
from importlib import import_module

import click

import lstm_compile

COMMANDS = (
    "bench", "config", "doctor", "evaluate", "export", "generate", "inspect", "predict", "runs",
    "train", "tune", "verify",
)  # fmt: skip


SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --hidden_size is --hidden-size
}


class LazyGroup(click.Group):
    """A group whose commands are the modules of this package named in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command's module."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"lstm_compile.cli.{cmd_name}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with; suggest the nearest if there is none."""
        near = get_close_matches(args[0], COMMANDS, 1)
        if args[0] not in COMMANDS and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings=SETTINGS)
@click.version_option(lstm_compile.__version__)
def app() -> None:
    """Train LSTM sequence models, ship them as one ONNX file proven to agree."""
