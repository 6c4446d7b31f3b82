"""The command line: one file a command, no logic of its own. Loads torch only to do work."""


def main() -> None:
    """Run `lstm-compile`."""
    from lstm_compile.cli.app import app

    app(prog_name="lstm-compile")
