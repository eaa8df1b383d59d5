"""Where in the map do values lie? Address tables, and what else a version of the file implies."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

Addresses = dict[bytes, NDArray[np.uint64]]


class Tables:
    """The address tables of the newest version of the file that this process has seen.

    A version is (map epoch, transaction id). A table is immutable once published; a version's
    dict of tables is shared by its snapshots. An older snapshot never sees a newer table: it
    keeps the dict that it was given when it began, or a fresh one. Beside the tables, a version
    has a cache for whatever the layers above derive from its content alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = (-1, -1)
        self._tables: Addresses = {}
        self._cache: dict[Any, Any] = {}
        # What the layers above keep from version to version, by names that never come again.
        self.kept: dict[bytes, Any] = {}

    def of(self, version: tuple[int, int]) -> tuple[Addresses, dict[Any, Any]]:
        """The tables and the cache for a snapshot of this version."""
        with self._lock:
            if version > self._version:
                self._version, self._tables, self._cache = version, {}, {}
            return (self._tables, self._cache) if version == self._version else ({}, {})

    def advance(self, version: tuple[int, int], replaced: set[tuple[bytes, int]]) -> None:
        """Derive the tables of a commit: the former ones without the values that it replaced."""
        with self._lock:
            epoch, number = version
            if self._version == (epoch, number - 1):
                tables = dict(self._tables)
                for prefix in {prefix for prefix, _ in replaced} & tables.keys():
                    gone = np.array([n for p, n in replaced if p == prefix], np.intp)
                    table = tables[prefix].copy()
                    table[gone[gone < len(table)]] = 0
                    tables[prefix] = table
                self._version, self._tables, self._cache = version, tables, {}
