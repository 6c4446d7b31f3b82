"""Rows of a test that run with the slow ones."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A row of a test's parameters that runs with the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow)
