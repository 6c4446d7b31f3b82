"""The columns that can be made of time stamps: their names. Loads no other library."""

FIRST_YEAR, LAST_YEAR = 1678, 2261  # whole years that int64 counts in nanoseconds
CALENDAR = ("hour", "weekday", "month")


def calendar_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of each of `names`, of `CALENDAR`: `hour_sin`, `hour_cos`, ..."""
    return tuple(f"{name}_{part}" for name in names for part in ("sin", "cos"))
