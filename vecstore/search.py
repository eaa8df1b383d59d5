"""How is a query answered? The read path: resolve, plan, find, hydrate.

Rows are found by comparing all that are allowed (`exact.py`) or through the index (`ann/`); in both
cases their scores are exact, in float64, and equal ones stand in the order of the records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from vecstore import catalog, fields, layout, planner, records, rows
from vecstore.ann import engine, index
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.exact import Exact, ExactBits
from vecstore.fields import Mask
from vecstore.filters import Filter
from vecstore.hits import Columns, Complete, Hits, Plan
from vecstore.layout import BLOCK_ROWS, State
from vecstore.planner import Recall
from vecstore.spec import Include
from vecstore.store import Reader, Snapshot
from vecstore.vectors import Bits, Vectors, unpack

# Scores of one slice of queries take at most this many bytes.
SCORES_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a search was asked for, checked.

    Attributes:
        k: How many hits, at least 1.
        where: Which records may be hits.
        min_score: The least score of a hit, or None.
        offset: How many of the best hits to pass over.
        after: (score, order) of the hit after which to go on, or None.
        include: What hits carry.
        recall: The share of the true neighbours wanted, or "exact".
        dims: How many leading numbers, or bits, are compared; None for all of them.
        threads: How many threads may share the queries of an approximate search.
    """

    k: int
    where: Filter | None
    min_score: float | None
    offset: int
    after: tuple[float, int] | None
    include: frozenset[Include]
    recall: Recall
    dims: int | None = None
    threads: int = 1


# Told each stage as it ends; after "search" too, how long each query's stages took.
Lap = Callable[..., object]


def _no_lap(stage: str, stats: list[list[int]] | None = None) -> None:
    """What is told where nobody watches."""


def run(
    reader: Reader,
    entry: Entry,
    queries: Vectors | Bits,
    request: Request,
    lap: Lap = _no_lap,
) -> list[Hits]:
    """Answer queries inside one transaction.

    They are float32 (m, dim) that the metric can compare, or uint8 (m, dim / 8) under hamming; with
    `request.dims` as short as that says.
    """
    search = _Search(reader, entry, request, lap)
    if search.plan.method == "none":
        return [Hits([], plan=search.plan, complete="exhausted") for _ in queries]
    if search.job is not None:
        return search.approximate(queries, search.job)
    return search.exact(queries)


@dataclass(frozen=True, slots=True)
class _Preparation:
    """All of a search that does not depend on its queries."""

    state: State
    mask: Mask
    plan: Plan
    job: engine.Job | None


# Preparations that one version of a collection remembers; the oldest goes first.
PREPARATIONS = 64


class _Search:
    """One call: what its queries share."""

    def __init__(self, reader: Reader, entry: Entry, request: Request, lap: Lap) -> None:
        self.reader, self.entry, self.request, self.lap = reader, entry, request, lap
        made = self._remembered() if isinstance(reader, Snapshot) else self._prepare()
        self.state, self.mask, self.plan, self.job = made.state, made.mask, made.plan, made.job

    def _remembered(self) -> _Preparation:
        """A preparation of this version of the file, made if it is the first of its kind."""
        request = self.request
        key = (
            request.offset + request.k,
            request.recall,
            request.after is None and request.dims is None,
            None if request.where is None else request.where.key(),
        )
        known: dict[Any, _Preparation] = self.reader.cache.setdefault(  # type: ignore[attr-defined]
            ("search", self.entry.number), {}
        )
        made = known.get(key)
        if made is None:
            made = self._prepare()
            # Other threads may do the same; a list is taken in one step.
            for oldest in list(known)[: len(known) + 1 - PREPARATIONS]:
                known.pop(oldest, None)
            known[key] = made
        return made

    def _prepare(self) -> _Preparation:
        request, entry = self.request, self.entry
        state = catalog.state(self.reader, entry.number)
        mask = fields.resolve(self.reader, entry.number, state, request.where)
        self.lap("resolve")
        view = self._view(state)
        plan, budget = planner.plan(
            rows=state.records,
            allowed=mask.count,
            filtered=request.where is not None,
            recall=request.recall,
            wanted=request.offset + request.k,
            budgets=None if view is None else view.index.budgets,
        )
        job = None
        if view is not None and budget is not None:
            wanted = min(request.offset + request.k, mask.count)
            job = engine.Job(entry, state, view, mask.words, wanted, budget)
        self.lap("plan")
        return _Preparation(state, mask, plan, job)

    def _view(self, state: State) -> engine.View | None:
        """The index as this search may use it."""
        request = self.request
        whole = request.after is None and request.dims is None and request.recall != "exact"
        if not whole or not isinstance(self.reader, Snapshot):
            return None
        found = index.load(self.reader, self.entry, state)
        return None if found is None else engine.view(self.reader, self.entry, state, found)

    def exact(self, queries: Vectors | Bits) -> list[Hits]:
        """Compare every allowed row."""
        request, found = self.request, []
        kind = ExactBits if self.entry.spec.metric == "hamming" else Exact
        step = max(1, SCORES_BYTES // (8 * BLOCK_ROWS * self.state.blocks))
        for at in range(0, len(queries), step):
            part = queries[at : at + step]
            search = kind(self.reader, self.entry, self.state, self.mask, part, request.dims)
            self.lap("scan")
            for number in range(len(part)):
                best = search.best(number, request.offset + request.k, request.after)
                scores, orders, places = (column.tolist() for column in best)
                self.lap("settle")
                found.append(self._hits(scores, orders, places, "exact"))
        return found

    def approximate(self, queries: Vectors | Bits, job: engine.Job) -> list[Hits]:
        """Look through the index."""
        assert isinstance(self.reader, Snapshot)
        # No index holds bits.
        vectors = cast(Vectors, queries)
        found = job.search(self.reader, vectors, threads=self.request.threads)
        self.lap("search", found.stats)
        answers = []
        for scores, orders, stats in zip(found.scores, found.orders, found.stats, strict=True):
            if len(set(orders)) < len(orders):
                # Checksums of lists are not verified on each search.
                raise CorruptionError(
                    f"lists: collection {self.entry.number} has a row in two lists, or two rows of"
                    " one record; db.check() says more"
                )
            answers.append(self._hits(scores, orders, None, "approximate", stats))
        return answers

    def _hits(
        self,
        scores: list[float],
        orders: list[int],
        places: list[int] | None,
        complete: Complete,
        counts: list[int] | None = None,
    ) -> Hits:
        """Hits of the best rows of one query, best first; `places` are the rows, where known."""
        request = self.request
        first, end = request.offset, request.offset + request.k
        if request.min_score is not None:
            end = min(end, sum(score >= request.min_score for score in scores))
        places = None if places is None else places[first:end]
        columns = self._hydrate(scores[first:end], orders[first:end], places)
        self.lap("hydrate")
        if len(columns["id"]) < request.k:
            complete = "exhausted"
        return Hits.of(columns, plan=self.plan, complete=complete, counts=counts)

    def _hydrate(self, scores: list[float], orders: list[int], places: list[int] | None) -> Columns:
        """Read the records of the best."""
        include, spec = self.request.include, self.entry.spec
        best = 1.0 if spec.metric == "cosine" else 0.0
        columns: Columns = {
            "score": scores,
            "distance": [best - score for score in scores],
            "order": orders,
        }
        if not include and places is None:
            columns["id"] = records.ids(self.reader, self.entry.number, self.entry.uid, orders)
            return columns
        rows_, values = records.verified(self.reader, self.entry.number, orders)
        if places is not None and places != rows_:
            wrong = next(i for i, row in enumerate(places) if row != rows_[i])
            (identity,) = layout.unpack_ids([values[wrong]])
            raise CorruptionError(
                f"records: row {places[wrong]} leads to id {identity!r}, whose row is"
                f" {rows_[wrong]}"
            )
        if "text" in include or "metadata" in include:
            bodies = list(map(layout.unpack_body, values))
            columns["id"] = [body[0] for body in bodies]
            if "text" in include:
                columns["text"] = [body[1] for body in bodies]
            if "metadata" in include:
                columns["metadata"] = [body[2] for body in bodies]
        else:
            columns["id"] = layout.unpack_ids(values)
        if "vector" in include:
            columns["vector"] = self._vectors(rows_)
        return columns

    def _vectors(self, places: list[int]) -> list[Any]:
        """The vectors of some rows."""
        entry, chosen = self.entry, np.array(places, np.intp)
        stored = rows.gather_packed(self.reader, entry.number, self.state, entry.form, chosen)
        return list(unpack(stored.packed, entry.spec))
