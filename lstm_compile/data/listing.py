"""Names in one-line messages."""

import difflib
from collections.abc import Sequence

SHOWN_NAMES = 12  # a one-line error lists no more


def numbered(word: str, count: int) -> tuple[str, ...]:
    """`word_0`, `word_1`, ... up to `count` names."""
    return tuple(f"{word}_{index}" for index in range(count))


def listing(names: Sequence[str]) -> str:
    """Join the names with commas on one line, cut after `SHOWN_NAMES`."""
    shown = (name if name.isprintable() else repr(name) for name in names[:SHOWN_NAMES])
    more = len(names) - SHOWN_NAMES
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def suggestion(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    if not close:
        return ""
    quotes = "; a flag takes a name with a comma in double quotes" if "," in close[0] else ""
    return f"; did you mean {close[0]!r}?{quotes}"
