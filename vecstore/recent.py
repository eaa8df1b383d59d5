"""Which queries were asked lately? A small sample in memory, to measure budgets with."""

from __future__ import annotations

import random
import threading

import numpy as np

from vecstore.lazy import keep
from vecstore.vectors import Bits, Vectors

SIZE = 256
# Once the sample is full, one query of so many replaces one of it.
EACH = 32
SEED = 20_240
# Squared lengths of queries that are kept.
SHORTEST, LONGEST = 1e-30, 1e30
# Samples of so many collections are kept.
COLLECTIONS = 64


class Recent:
    """A sample of the queries of a collection, in which older ones give way to newer ones.

    Threads share it. A query that is passed over costs no more than a subtraction; where threads
    do that at the same time, one is counted for two, which only shifts the sample.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(SEED)
        self._kept: list[Vectors] = []
        self._pass_over = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, queries: Vectors | Bits) -> None:
        """Take some of the queries, float32 (m, dim), into the sample."""
        if self._pass_over >= len(queries):
            self._pass_over -= len(queries)
            return
        with self._lock:
            at = max(0, self._pass_over)
            while at < len(queries):
                # A copy; another thread may have changed the caller's array since it was checked.
                query = queries[at].astype(np.float32)
                size = float(np.vdot(query, query))
                at += self._keep(query) if SHORTEST < size < LONGEST else 1
            self._pass_over = at - len(queries)

    def _keep(self, query: Vectors) -> int:
        """Take a query, and return after how many the next one is taken."""
        if len(self._kept) < SIZE:
            self._kept.append(query)
            return 1
        self._kept[int(self._random.random() * SIZE)] = query
        return EACH

    def queries(self) -> Vectors | None:
        """The sample, float32 (n, dim); None while it is empty."""
        with self._lock:
            return np.array(self._kept) if self._kept else None


class RecentOf:
    """The samples of the collections of a database, by their uids."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Recent] = {}

    def of(self, uid: bytes) -> Recent:
        """The sample of one collection."""
        found = self._kept.get(uid)
        if found is None:
            # Collections come and go.
            found = keep(self._kept, uid, Recent(), COLLECTIONS)
        return found
