"""Which hits are the best of each group? A search that asks for more until there are groups enough.

A group is the records with the same values of a field. One without any is a group of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vecstore import search
from vecstore.catalog import Entry
from vecstore.filters import F, values_of
from vecstore.hits import Complete, Hit, Hits
from vecstore.search import Request
from vecstore.spec import Include
from vecstore.store import Reader
from vecstore.values import TEXT, comparable
from vecstore.vectors import Bits, Vectors

# Hits asked for at first, for each group wanted; and so many times more where these are too few.
EACH, MORE = 2, 4


@dataclass(frozen=True, slots=True)
class Grouping:
    """How hits are grouped.

    Attributes:
        path: The field, or $id or $text.
        size: The most hits of a group.
    """

    path: str
    size: int

    @property
    def needs(self) -> Include:
        """What hits must carry to be told apart."""
        return "text" if self.path == TEXT else "metadata"

    def values(self, hit: Hit) -> list[Any]:
        """The values that a hit's record has in the field."""
        found = values_of(self.path)(hit)
        return [value for value in found if comparable(value) is not None]

    def key(self, hit: Hit) -> frozenset[Any]:
        """What hits of one group have in common."""
        found: frozenset[Any] = frozenset(map(comparable, self.values(hit)))
        return found or frozenset({("alone", hit.order)})


def run(
    reader: Reader,
    entry: Entry,
    queries: Vectors | Bits,
    request: Request,
    grouping: Grouping,
) -> list[Hits]:
    """Answer queries by the best hits of the best groups; k and offset count groups.

    Groups stand in the order of their best hits, and the hits of one stand together.
    """
    return [
        _Search(reader, entry, queries[number : number + 1], request, grouping).run()
        for number in range(len(queries))
    ]


class _Search:
    """The search of one query."""

    def __init__(
        self,
        reader: Reader,
        entry: Entry,
        query: Vectors | Bits,
        request: Request,
        grouping: Grouping,
    ) -> None:
        self._reader, self._entry, self._query = reader, entry, query
        self._request, self._grouping = request, grouping
        self._wanted = request.offset + request.k
        self._groups: dict[frozenset[Any], list[Hit]] = {}

    def run(self) -> Hits:
        """The hits."""
        asked = EACH * self._wanted
        while True:
            hits = self._ask(self._request, asked)
            self._groups = {}
            self._take(hits, self._wanted)
            exhausted = len(hits) < asked
            if exhausted or len(self._groups) >= self._wanted:
                break
            asked *= MORE
        if not exhausted:
            self._fill()
        complete: Complete = "approximate" if hits.plan.method == "index" else "exact"
        if len(self._groups) < self._wanted:
            complete = "exhausted"
        chosen = list(self._groups.values())[self._request.offset :]
        found = [self._shown(hit) for own in chosen for hit in own]
        return Hits(found, plan=hits.plan, complete=complete)

    def _ask(self, request: Request, count: int) -> Hits:
        include = request.include | {self._grouping.needs}
        asked = replace(request, k=count, offset=0, include=include)
        (hits,) = search.run(self._reader, self._entry, self._query, asked)
        return hits

    def _take(self, hits: Sequence[Hit], most: int) -> None:
        """Add hits to groups, of which there are to be so many at most."""
        for hit in hits:
            key = self._grouping.key(hit)
            if key not in self._groups and len(self._groups) < most:
                self._groups[key] = []
            own = self._groups.get(key)
            if own is not None and len(own) < self._grouping.size:
                own.append(hit)

    def _fill(self) -> None:
        """Look for more hits of those groups that have too few, among their records alone."""
        lacking = {
            key: own
            for key, own in self._groups.items()
            if len(own) < self._grouping.size and self._grouping.values(own[0])
        }
        if not lacking:
            return
        values = [value for own in lacking.values() for value in self._grouping.values(own[0])]
        theirs = F(self._grouping.path).is_in(values)
        former = self._request.where
        where = theirs if former is None else former & theirs
        # The key of what has been prepared depends on the filter.
        request = replace(self._request, where=where)
        asked = EACH * self._grouping.size * len(lacking)
        while True:
            for own in lacking.values():
                own.clear()
            hits = self._ask(request, asked)
            self._take([hit for hit in hits if self._grouping.key(hit) in lacking], 0)
            full = all(len(own) == self._grouping.size for own in lacking.values())
            if full or len(hits) < asked:
                return
            asked *= MORE

    def _shown(self, hit: Hit) -> Hit:
        """A hit without what was asked for only to tell groups apart."""
        needs = self._grouping.needs
        if needs in self._request.include:
            return hit
        return replace(hit, text=None) if needs == "text" else replace(hit, metadata=None)
