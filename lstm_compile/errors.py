"""The errors a user can meet, each one line: what, where, found, expected, how to mend."""


class InputError(ValueError):
    """The caller's input is wrong: a file, an option, a shape. The command line exits with 2."""


class RunError(RuntimeError):
    """The work itself failed: training diverged, parity broke. The command line exits with 1."""
