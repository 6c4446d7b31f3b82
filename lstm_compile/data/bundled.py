"""The data sets that come with the package, and their settings. Loads no numpy.

Their sources are in bundled/SOURCES.md.
"""

from pathlib import Path

BUNDLED = ("spoken-digits", "japanese-vowels", "airline")
SERIES = ("airline",)  # one table each, whose end is the test part
FOLDER = Path(__file__).resolve().parent / "bundled"
_SUFFIXES = {"spoken-digits": ".npz", "japanese-vowels": ".ts"}


def bundled_file(name: str, part: str) -> Path:
    """The file of one part of a bundled data set; series have one file for all parts."""
    stem = name.replace("-", "_")
    return FOLDER / (f"{stem}.csv" if name in SERIES else f"{stem}_{part}{_SUFFIXES[name]}")


def settings_of(data: str) -> str:
    """The settings of a bundled data set as TOML; empty text for other data."""
    file = FOLDER / f"{data}.toml"
    return file.read_text("utf-8") if data in BUNDLED and file.is_file() else ""
