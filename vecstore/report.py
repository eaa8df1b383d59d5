"""Where are problems of a file noted?"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Report(Protocol):
    """Where problems are noted."""

    def add(self, where: str, what: str) -> None:
        """Note a problem."""

    def guard(self, where: str) -> AbstractContextManager[None]:
        """Note whatever damage stops the body of the with statement, and go on after it."""
