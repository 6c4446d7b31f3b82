"""The data sets that come with the package, and their settings. Loads no numpy."""

from pathlib import Path

BUNDLED = ("spoken-digits", "japanese-vowels", "airline")
SERIES = ("airline",)  # of them: one table whose end is the test part
FOLDER = Path(__file__).resolve().parent / "bundled"
_SUFFIXES = {"spoken-digits": ".npz", "japanese-vowels": ".ts"}


def file_of(name: str, part: str) -> Path:
    """The file of one part of a bundled data set; series have one file for all parts."""
    stem = name.replace("-", "_")
    return FOLDER / (f"{stem}.csv" if name in SERIES else f"{stem}_{part}{_SUFFIXES[name]}")


def settings_of(data: str) -> str:
    """What the settings of a bundled data set are, as TOML; empty for other data."""
    file = FOLDER / f"{data}.toml"
    return file.read_text("utf-8") if data in BUNDLED and file.is_file() else ""
