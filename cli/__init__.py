"""The command line: one file a command, without logic. Loads torch only when there is work."""


def main() -> None:
    """Run `lstm-compile`."""
    from lstm_compile.cli.app import app

    app(prog_name="lstm-compile")
