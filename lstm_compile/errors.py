"""The errors a user can meet, each one line: what, where, found, expected, how to mend."""

LONGEST = 1000  # characters of an error


class InputError(ValueError):
    """The caller's input is wrong: a file, an option, a shape. The command line exits with 2."""

    def __str__(self) -> str:  # not as it is made: torch.compile traces that
        return one_line(super().__str__())


class RunError(RuntimeError):
    """The work itself failed: training diverged, parity broke. The command line exits with 1."""


def one_line(text: str) -> str:
    """A text cut in its middle, what cannot be printed escaped: it may quote a hostile file."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def headline(error: BaseException) -> str:
    """The class of an error and the line of its message that says most, cut."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()] or ["no message"]
    told = next((line for line in lines if "error: " in line), lines[0])  # as compilers write it
    return f"{type(error).__name__}: {told}"[:300]


def reason(error: BaseException) -> str:
    """What another library's error says, on one line, cut."""
    return " ".join(str(error).split())[:200] or type(error).__name__
