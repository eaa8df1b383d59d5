"""How does a search get cheaper under a filter that is asked for again and again? By excerpts.

Lists are scanned whole, though a filter may let few of their rows through. Once that has cost as
much as it takes to copy the codes of these rows, they are copied, list by list and in the form that
lists have, and the copies are scanned from then on. So a filter that is asked for once costs
nothing more, and none ever twice what would have been best (the rent-or-buy rule of Karlin,
Manasse, Rudolph and Sleator: Competitive snoopy caching, 1988). Fine codes stay where they are.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref

import numpy as np

from vecstore import frames, plain
from vecstore.ann import compiled, engine
from vecstore.ann.engine import Budget, Crowding, Found, View
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.layout import HEADER, TILE_ROWS, State
from vecstore.rows import Words
from vecstore.store import Snapshot
from vecstore.vectors import Vectors

# What it takes to copy a row, in scanned rows (measured, see docs/architecture.md).
COPY = 30.0
# A list is scanned as it is where its excerpt would have more than such a share of its tiles.
SHARE = 0.75
# Bytes that all excerpts of one version of a file may take.
ROOM = 64 << 20
# Payloads lie as in the file, behind a header.
_ALIGNED = 64
# Of each row its name, and its place in the list.
_NAMED = 2 * 4 * TILE_ROWS


class Holders:
    """Who has excerpts of one version of the file; the first ones lose theirs for others."""

    def __init__(self) -> None:
        self._sizes: weakref.WeakKeyDictionary[FilteredJob, int] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def admit(self, job: FilteredJob, table: Words, size: int) -> None:
        """Let a job have excerpts of so many bytes, which is not too much for one."""
        with self._lock:
            # Two threads may have made the same.
            self._sizes.pop(job, None)
            left = ROOM - sum(self._sizes.values())
            for other, taken in list(self._sizes.items()):
                if left >= size:
                    break
                other.forget()
                del self._sizes[other]
                left += taken
            self._sizes[job] = size
            # Within the lock: what another one takes away now is there already.
            job.take(table)


class FilteredJob(engine.Job):
    """A search of an index under a filter, as `engine.Job`.

    Attributes:
        excerpts: uint64 (lists,), where the excerpts of lists are, 0 for a list without one; or
            (0,) as long as there are none.
    """

    def __init__(
        self,
        entry: Entry,
        state: State,
        seen: View,
        mask: Words,
        k: int,
        budget: Budget,
        crowding: Crowding,
    ) -> None:
        super().__init__(entry, state, seen, mask, k, budget, crowding)
        tiles, left = (-(-counts // TILE_ROWS) for counts in (crowding.sizes, crowding.allowed))
        there = left > 0
        self._chosen = np.flatnonzero(there & (left <= SHARE * tiles))
        self._rows = crowding.allowed[self._chosen]
        sizes = _ALIGNED + left[self._chosen] * (self.model.shape.tile_bytes + _NAMED)
        self._size = int(sizes.sum())
        self._starts = np.cumsum(sizes) - sizes
        spared = float((tiles - left)[self._chosen].sum()) / max(1, int(tiles[there].sum()))
        # So many scanned rows have cost as much as copying does.
        self._price = COPY * float(self._rows.sum()) / spared if spared > 0 else math.inf
        self._left = self._price

    def search_one(self, snapshot: Snapshot, query: Vectors) -> Found | None:
        """As `Calls.search_one`."""
        found = super().search_one(snapshot, query)
        if found is not None:
            self._note(snapshot, found)
        return found

    def _search(self, snapshot: Snapshot, queries: Vectors) -> Found:
        found = super()._search(snapshot, queries)
        self._note(snapshot, found)
        return found

    def _note(self, snapshot: Snapshot, found: Found) -> None:
        """Count what was scanned, and make excerpts when it is enough."""
        for stats in found.stats:
            self._left -= stats[plain.ROWS_SEEN]
        if self._left <= 0:
            # Not tried again with the next search, and not by other threads meanwhile.
            self._left = self._price
            # What was found is right, whatever is wrong with lists that were not looked at.
            with contextlib.suppress(CorruptionError, MemoryError):
                self._make(snapshot)

    def _make(self, snapshot: Snapshot) -> None:
        """Make excerpts, unless they are too large."""
        kernel, lists = compiled.ready("excerpt"), self.model.lists
        if kernel is None:
            return
        size = 8 * lists + self._size + _ALIGNED
        if size > ROOM:
            self._left = math.inf
            return
        with self.filling:
            sources = self.lists(snapshot, self._chosen)[self._chosen]
        # The table and what it leads to are one, so that calls keep both.
        memory = np.zeros(size, np.uint8)
        table = memory[: 8 * lists].view(np.uint64)
        begin = memory.ctypes.data + 8 * lists
        begin += -begin % _ALIGNED + _ALIGNED - HEADER.size
        table[self._chosen] = begin + self._starts
        frame = frames.partly(
            integers=self.learnt[0],
            mask=self.masks[1],
            lists=sources,
            tail=self._rows.astype(np.int64),
            excerpts=table[self._chosen],
        )
        kernel(frame.address, 0)
        holders: Holders = snapshot.cache.setdefault("excerpts", Holders())
        holders.admit(self, table, size)

    def take(self, table: Words) -> None:
        """Search with excerpts from now on."""
        self._left = math.inf
        self._replace(table)

    def forget(self) -> None:
        """Do without excerpts, until they are worth it again."""
        self._left = self._price
        self._replace(np.zeros(0, np.uint64))

    def _replace(self, table: Words) -> None:
        with self.filling:
            self.excerpts = table
            # Calls take over what is new with the next search.
            self.shared = None
            self.idle.clear()
