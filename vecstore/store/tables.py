"""Where in the map do values lie? Address tables, and what else a version of the file implies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecstore.lazy import keep

Addresses = dict[bytes, NDArray[np.uint64]]
T = TypeVar("T")
_Version = tuple[tuple[int, int], Addresses, dict[Any, Any]]


class Tables:
    """The address tables of the newest version of the file that this process has seen.

    A version is (map epoch, transaction id). A table is immutable once published; a version's
    dict of tables is shared by its snapshots. An older snapshot never sees a newer table: it
    keeps the dict that it was given when it began, or a fresh one. Beside the tables, a version
    has a cache for whatever the layers above derive from its content alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The version, its tables and its cache, replaced together: most reads need no lock.
        self._newest: _Version = ((-1, -1), {}, {})
        self._kept: dict[str, dict[bytes, Any]] = {}

    def of(self, version: tuple[int, int]) -> _Version:
        """The version with the tables and the cache for its snapshots."""
        newest = self._newest
        if newest[0] == version:
            return newest
        with self._lock:
            if version > self._newest[0]:
                self._newest = (version, {}, {})
            newest = self._newest
        return newest if newest[0] == version else (version, {}, {})

    def keep(self, kind: str, name: bytes, most: int, make: Callable[[], T]) -> T:
        """What the layers above keep from version to version; made if it is not there.

        Args:
            kind: What it is. The things of one kind do not push out those of another.
            name: Which one; a name that never comes again for something else.
            most: How many of the kind are kept; the oldest goes first.
            make: Makes it. Other threads may do the same at the same time.
        """
        kept = self._kept.setdefault(kind, {})
        found: T | None = kept.get(name)
        if found is None:
            found = keep(kept, name, make(), most)
        return found

    def kept(self, kind: str) -> list[bytes]:
        """The names of what is kept of a kind, the oldest first."""
        return list(self._kept.get(kind, ()))

    def advance(self, version: tuple[int, int], replaced: set[tuple[bytes, int]]) -> None:
        """Derive the tables of a commit: the former ones without the values that it replaced."""
        with self._lock:
            former, tables, _ = self._newest
            epoch, number = version
            if former == (epoch, number - 1):
                tables = dict(tables)
                for prefix in {prefix for prefix, _ in replaced} & tables.keys():
                    gone = np.array([n for p, n in replaced if p == prefix], np.intp)
                    table = tables[prefix].copy()
                    table[gone[gone < len(table)]] = 0
                    tables[prefix] = table
                self._newest = (version, tables, {})
