"""How is a query answered? The read path: resolve, plan, find, hydrate.

Rows are found by comparing all that are allowed (`exact.py`) or through the index (`ann/`); in both
cases their scores are exact, in float64, and equal ones stand in the order of the records. The
index of binary vectors (`ann/lookup.py`) misses none; it may say that comparing all is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from vecstore import catalog, fields, plain, planner, record_layout, records, rows
from vecstore.ann import bits, buckets, chosen, engine, flat, index, lookup
from vecstore.ann.bits import BitComparison
from vecstore.ann.chosen import RowComparison
from vecstore.ann.excerpts import FilteredJob
from vecstore.ann.flat import Comparison
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.exact import Exact, ExactBits
from vecstore.fields import Expired, Mask
from vecstore.fields.expiry import NONE
from vecstore.filters import Filter
from vecstore.hits import Columns, Complete, Hits, Passage, Plan
from vecstore.layout import BLOCK_ROWS, State
from vecstore.lazy import keep
from vecstore.planner import Recall
from vecstore.record_layout import Part
from vecstore.spec import Id, Include
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
    # All that preparing depends on.
    key: tuple[object, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = None if self.where is None else self.where.key()
        key = (self.offset + self.k, self.recall, self.whole, where)
        object.__setattr__(self, "key", key)

    @property
    def whole(self) -> bool:
        """Whether whole vectors are compared, from the best hit on: what an index can answer."""
        return self.after is None and self.dims is None

    @property
    def compares(self) -> bool:
        """Whether all rows are to be compared, without an index."""
        return self.recall == "exact" or self.recall >= 1 or not self.whole


# Told each stage as it ends; after "search" too, how long each query's stages took.
Lap = Callable[..., object]


def run(
    reader: Reader,
    entry: Entry,
    queries: Vectors | Bits,
    request: Request,
    lap: Lap | None = None,
) -> list[Hits]:
    """Answer queries inside one transaction.

    They are float32 (m, dim) that the metric can compare, or uint8 (m, dim / 8) under hamming; with
    `request.dims` as short as that says.
    """
    made = _remembered(reader, entry, request, lap)
    if made.state.passages:
        return _best_of_each(reader, entry, queries, request, lap)
    return [
        _hits(reader, made, request, lap, ranked)
        for ranked in _find(reader, made, queries, request, lap)
    ]


# How a snapshot searches otherwise than by numpy's comparison of all rows.
Job = engine.Job | Comparison | BitComparison | RowComparison | lookup.Job


def run_usual(reader: Reader, entry: Entry, query: Vectors, request: Request) -> Hits | None:
    """Answer an array of one query whose numbers were not checked, if a kernel can.

    None where it is no use, or where the metric cannot compare the query.
    """
    if not isinstance(reader, Snapshot):
        return None
    made = _remembered(reader, entry, request, None)
    job = made.job
    usable = isinstance(job, engine.Job) or (isinstance(job, RowComparison) and job.ready(1))
    if not usable or made.state.passages:
        return None
    found = job.search_one(reader, query)  # type: ignore[union-attr]  # one of these two
    return None if found is None else _hits(reader, made, request, None, _ranked(made, found, 0))


class Ranked(NamedTuple):
    """The best rows of one query, best first.

    Attributes:
        scores: Exact scores.
        orders: The orders of the rows.
        places: The rows; None if an index found them.
        plan: How they were found.
        counts: What an index counted.
    """

    scores: list[float]
    orders: list[int]
    places: list[int] | None
    plan: Plan
    counts: list[int] | None = None


@dataclass(frozen=True, slots=True)
class _Preparation:
    """All of a search that does not depend on its queries."""

    entry: Entry
    state: State
    mask: Mask
    plan: Plan
    job: Job | None
    # The score of what has no distance, and ids by order.
    best: float
    known: dict[int, Id]
    # It is of no use once other records have expired.
    expired: Expired


# Preparations that one version of a file remembers; the oldest goes first.
PREPARATIONS = 64


def _remembered(reader: Reader, entry: Entry, request: Request, lap: Lap | None) -> _Preparation:
    """A preparation for this version of the file, made if it is the first of its kind."""
    if not isinstance(reader, Snapshot):
        return _prepare(reader, entry, request, lap)
    known: dict[Any, _Preparation] | None = reader.cache.get("search")
    if known is None:
        known = reader.cache.setdefault("search", {})
    key = (entry.number, request.key)
    made = known.get(key)
    if made is not None and not _holds(made.expired, reader):
        known.pop(key, None)
        made = None
    if made is None:
        fresh = _prepare(reader, entry, request, lap)
        made = keep(known, key, fresh, PREPARATIONS)
        if not _holds(made.expired, reader):
            # Another thread kept its own, of another moment.
            made = fresh
    return made


def _holds(expired: Expired, reader: Reader) -> bool:
    # Most collections never ask for the time.
    return expired is NONE or expired.since <= reader.now < expired.until


def _prepare(reader: Reader, entry: Entry, request: Request, lap: Lap | None) -> _Preparation:
    state = catalog.state(reader, entry.number)
    mask = fields.resolve(reader, entry, state, request.where)
    if lap is not None:
        lap("resolve")
    view = _view(reader, entry, request, state)
    found = _buckets(reader, entry, request, state)
    crowding = None
    if isinstance(reader, Snapshot) and view is not None and planner.FEW < mask.count < state.rows:
        crowding = engine.crowding(reader, entry, view, mask.words)
    plan, budget = planner.plan(
        rows=state.records,
        allowed=mask.count,
        filtered=request.where is not None or mask.count < state.rows,
        recall=request.recall,
        wanted=request.offset + request.k,
        budgets=None if view is None else view.index.budgets,
        buckets=found is not None,
        reachable=None if crowding is None else crowding.rows,
        dim=entry.spec.dim,
    )
    job: Job | None = None
    wanted = min(request.offset + request.k, mask.count)
    if view is not None and budget is not None and crowding is not None:
        job = FilteredJob(entry, state, view, mask.words, wanted, budget, crowding)
    elif view is not None and budget is not None:
        job = engine.Job(entry, state, view, mask.words, wanted, budget)
    elif found is not None and plan.method == "buckets":
        job = lookup.Job(reader, entry, state, found, mask, wanted)
    elif request.whole and entry.spec.metric == "hamming":
        job = bits.comparison(reader, entry, state, mask.words, wanted)
    elif not request.compares:
        # Bytes are not verified on each search; who wants to be sure has the vectors compared.
        job = flat.comparison(reader, entry, state, mask.words, wanted)
    if job is None and request.whole and plan.method in ("rows", "scan"):
        job = chosen.comparison(reader, entry, state, mask.words, wanted, indexed=view is not None)
    if lap is not None:
        lap("plan")
    best = 1.0 if entry.spec.metric == "cosine" else 0.0
    known = {} if job is None else records.remembered(reader, entry.uid)
    past = fields.expired(reader, entry, state)
    return _Preparation(entry, state, mask, plan, job, best, known, past)


def _view(reader: Reader, entry: Entry, request: Request, state: State) -> engine.View | None:
    """The index as this search may use it; it is not read for one that compares all."""
    if request.compares or not isinstance(reader, Snapshot):
        return None
    found = index.load(reader, entry, state)
    return None if found is None else engine.view(reader, entry, state, found)


def _buckets(
    reader: Reader, entry: Entry, request: Request, state: State
) -> buckets.Buckets | None:
    """The buckets of binary vectors as this search may use them; read as the index is."""
    if request.compares or not isinstance(reader, Snapshot):
        return None
    return buckets.load(reader, entry, state)


def _find(
    reader: Reader,
    made: _Preparation,
    queries: Vectors | Bits,
    request: Request,
    lap: Lap | None,
) -> list[Ranked]:
    """Find rows as was prepared; jobs are of snapshots alone, and each of its own vectors."""
    match made.job:
        case engine.Job() as job:
            return _approximate(reader, made, job, queries, request, lap)  # type: ignore[arg-type]
        case lookup.Job() as job:
            return _looked_up(reader, made, job, queries, request, lap)  # type: ignore[arg-type]
        case Comparison() | BitComparison() | RowComparison() as job if job.ready(len(queries)):
            return _compared(reader, made, job, queries, request, lap)  # type: ignore[arg-type]
    if made.plan.method == "none":
        return [Ranked([], [], None, made.plan) for _ in queries]
    return _exact(reader, made, queries, request, lap)


def _exact(
    reader: Reader,
    made: _Preparation,
    queries: Vectors | Bits,
    request: Request,
    lap: Lap | None,
) -> list[Ranked]:
    """Compare every allowed row."""
    entry, state, found = made.entry, made.state, list[Ranked]()
    kind = ExactBits if entry.spec.metric == "hamming" else Exact
    for part in _slices(queries, state):
        search = kind(reader, entry, state, made.mask, part, request.dims)
        if lap is not None:
            lap("scan")
        for number in range(len(part)):
            best = search.best(number, request.offset + request.k, request.after)
            scores, orders, places = (column.tolist() for column in best)
            if lap is not None:
                lap("settle")
            found.append(Ranked(scores, orders, places, made.plan))
    return found


def _slices(queries: Vectors | Bits, state: State) -> Iterator[Vectors | Bits]:
    """Some queries at a time, whose scores do not take too much memory."""
    step = max(1, SCORES_BYTES // (8 * BLOCK_ROWS * state.blocks))
    for at in range(0, len(queries), step):
        yield queries[at : at + step]


def _looked_up(
    reader: Snapshot,
    made: _Preparation,
    job: lookup.Job,
    queries: Bits,
    request: Request,
    lap: Lap | None,
) -> list[Ranked]:
    """Look into buckets, and compare all rows where that is faster."""
    radius = made.entry.spec.dim
    if request.min_score is not None:
        # Within -1 bits there is nothing.
        radius = max(-1, min(radius, math.floor(-request.min_score)))
    found = [
        one
        for part in _slices(queries, made.state)
        for one in job.search(reader, part, radius)  # type: ignore[arg-type]
    ]
    if lap is not None:
        lap("buckets")
    left = [number for number, one in enumerate(found) if one is None]
    compared: Iterator[Ranked] = iter(())
    if left:
        plan = planner.instead(made.plan, request.recall)
        instead = replace(made, plan=plan, job=job.comparison)
        compared = iter(_find(reader, instead, queries[left], request, lap))
    answers = []
    for one in found:
        if one is None:
            answers.append(next(compared))
            continue
        scores, orders = (0.0 - one.bits).tolist(), one.orders.tolist()
        counts = [one.buckets, one.scanned, 0, one.compared]
        answers.append(Ranked(scores, orders, None, made.plan, counts))
    return answers


def _approximate(
    reader: Snapshot,
    made: _Preparation,
    job: engine.Job,
    queries: Vectors,
    request: Request,
    lap: Lap | None,
) -> list[Ranked]:
    """Look through the index."""
    found = job.search(reader, queries, request.threads)
    if lap is not None:
        lap("search", found.stats)
    return [_ranked(made, found, number) for number in range(len(found.orders))]


def _ranked(made: _Preparation, found: engine.Found, number: int) -> Ranked:
    """The rows of one of the queries that an index has answered."""
    orders = found.orders[number]
    if len(set(orders)) < len(orders):
        # Checksums of lists are not verified on each search.
        raise CorruptionError(
            f"lists: collection {made.entry.number} has a row in two lists, or two rows of one"
            " record; db.check() says more, and reindex(kind) makes the lists anew"
        )
    return Ranked(found.scores[number], orders, None, made.plan, found.stats[number])


def _compared(
    reader: Snapshot,
    made: _Preparation,
    job: Comparison | BitComparison | RowComparison,
    queries: Vectors | Bits,
    request: Request,
    lap: Lap | None,
) -> list[Ranked]:
    """Compare every allowed row with compiled code."""
    found = job.compare(reader, queries, request.threads)  # type: ignore[arg-type]
    if lap is not None:
        lap("search", found.stats)
    # Bytes do not tell the rows apart that are near these.
    left = [number for number, counts in enumerate(found.stats) if counts[plain.RESCORED] < 0]
    if 2 * len(left) > len(queries):
        job.useless = True
    compared = iter(_exact(reader, made, queries[left], request, lap) if left else ())
    answers = []
    for number, counts in enumerate(found.stats):
        if counts[plain.RESCORED] < 0:
            answers.append(next(compared))
            continue
        orders, scores = found.orders[number], found.scores[number]
        answers.append(Ranked(scores, orders, None, made.plan, counts))
    return answers


def _hits(
    reader: Reader, made: _Preparation, request: Request, lap: Lap | None, ranked: Ranked
) -> Hits:
    """Hits of the best rows of one query, each of which is a record."""
    scores, orders, places, plan, counts = ranked
    if request.min_score is not None:
        least = request.min_score
        del scores[sum(score >= least for score in scores) :]
    # Most want the first ones, all of them.
    if request.offset or len(scores) > request.k or len(orders) > len(scores):
        kept = slice(request.offset, min(request.offset + request.k, len(scores)))
        scores, orders = scores[kept], orders[kept]
        places = None if places is None else places[kept]
    if not request.include and places is None:
        columns: Columns = {"id": records.ids(reader, made.entry.number, made.known, orders)}
    else:
        columns = _hydrate(reader, made, request.include, orders, places)
    return _answer(made, request, lap, columns, scores, orders, plan, counts)


def _answer(
    made: _Preparation,
    request: Request,
    lap: Lap | None,
    columns: Columns,
    scores: list[float],
    orders: list[int],
    plan: Plan,
    counts: list[int] | None,
) -> Hits:
    """Hits with what their records hold, and the rest."""
    best, columns["score"], columns["order"] = made.best, scores, orders
    columns["distance"] = [best - score for score in scores]
    if lap is not None:
        lap("hydrate")
    complete: Complete = "approximate" if plan.method == "index" else "exact"
    if len(scores) < request.k:
        complete = "exhausted"
    return Hits.of(columns, plan=plan, complete=complete, counts=counts)


def _hydrate(
    reader: Reader,
    made: _Preparation,
    include: frozenset[Include],
    orders: list[int],
    places: list[int] | None,
) -> Columns:
    """What the records of some orders hold."""
    rows_, values = records.verified(reader, made.entry.number, orders)
    if places is not None and places != rows_:
        wrong = next(i for i, row in enumerate(places) if row != rows_[i])
        (identity,) = record_layout.unpack_ids([values[wrong]])
        raise CorruptionError(
            f"records: row {places[wrong]} leads to id {identity!r}, whose row is {rows_[wrong]}"
        )
    columns: Columns = {}
    if "text" in include or "metadata" in include:
        bodies = list(map(record_layout.unpack_body, values))
        columns["id"] = [body[0] for body in bodies]
        if "text" in include:
            columns["text"] = [body[1] for body in bodies]
        if "metadata" in include:
            columns |= _metadata(made, [body[2] for body in bodies])
    else:
        columns["id"] = record_layout.unpack_ids(values)
    if "vector" in include:
        columns["vector"] = _vectors(reader, made, rows_)
    return columns


def _metadata(made: _Preparation, stored: list[dict[str, Any] | None]) -> Columns:
    """What users get of stored metadata."""
    if not made.state.expiring:
        return {"metadata": stored}
    both = list(map(records.split, stored))
    return {"metadata": [one for one, _ in both], "expires_at": [end for _, end in both]}


def _vectors(reader: Reader, made: _Preparation, places: list[int]) -> list[Any]:
    """The vectors of some rows."""
    entry, chosen = made.entry, np.array(places, np.intp)
    stored = rows.gather_packed(reader, entry.number, made.state, entry.form, chosen)
    return list(unpack(stored.packed, entry.spec))


# Where records have passages


# How many rows are asked for, first, for each record that is wanted; and how many times more then.
ROWS_EACH, MORE = 4, 4


def _best_of_each(
    reader: Reader, entry: Entry, queries: Vectors | Bits, request: Request, lap: Lap | None
) -> list[Hits]:
    """Answer queries by records, each of which is as near as the best of its rows.

    Rows are asked for, and more of them until they are of enough records.
    """
    state = catalog.state(reader, entry.number)
    each = min(ROWS_EACH, -(-state.rows // max(1, state.records)))
    size = each * (request.offset + request.k)
    known = records.remembered_parts(reader, entry.uid)
    answers: list[Hits | None] = [None] * len(queries)
    left = list(range(len(queries)))
    while left:
        asked = replace(request, k=size, offset=0)
        if request.after is not None:
            # What is behind the hit is known from the best rows on, as a record's best one is.
            asked = replace(asked, after=None, recall="exact")
        made = _remembered(reader, entry, asked, lap)
        missing, found = [], _find(reader, made, queries[left], asked, lap)
        for number, ranked in zip(left, found, strict=True):
            parts = records.parts_of(reader, entry.number, known, ranked.orders)
            exhausted = len(ranked.orders) < size or made.mask.count <= size
            best = _best(request, ranked, parts, exhausted=exhausted)
            if best is None:
                missing.append(number)
            else:
                answers[number] = _passage_hits(reader, made, request, lap, ranked, parts, best)
        left, size = missing, MORE * size
    return [hits for hits in answers if hits is not None]


def _best(
    request: Request, ranked: Ranked, parts: list[Part | None], *, exhausted: bool
) -> list[int] | None:
    """Which rows are the best ones of the records wanted; None if there may be others.

    Args:
        request: What was asked for, of records.
        ranked: The best rows.
        parts: The passage of each; None for a row that is its record's own.
        exhausted: Whether no other row is allowed.
    """
    scores = ranked.scores
    best: dict[int, int] = {}
    for i, (order, part) in enumerate(zip(ranked.orders, parts, strict=True)):
        best.setdefault(order if part is None else part.parent, i)
    # Of rows that tie with the last one others may be missing.
    last = -math.inf if exhausted or not scores else scores[-1]
    found = sorted((-scores[i], order, i) for order, i in best.items() if scores[i] > last)
    if request.after is not None:
        score, order = request.after
        found = [one for one in found if one[:2] > (-score, order)]
    if request.min_score is not None:
        least = request.min_score
        found = [one for one in found if -one[0] >= least]
        exhausted |= last < least
    if not exhausted and len(found) < request.offset + request.k:
        return None
    return [i for _, _, i in found[request.offset : request.offset + request.k]]


def _passage_hits(
    reader: Reader,
    made: _Preparation,
    request: Request,
    lap: Lap | None,
    ranked: Ranked,
    parts: list[Part | None],
    chosen: list[int],
) -> Hits:
    """Hits of some of the rows, each of another record."""
    number, rows_orders = made.entry.number, [ranked.orders[i] for i in chosen]
    rows_, values = records.verified(reader, number, rows_orders)
    if ranked.places is not None:
        _check_places([ranked.places[i] for i in chosen], rows_, rows_orders)
    picked = [parts[i] for i in chosen]
    orders = [
        order if part is None else part.parent
        for order, part in zip(rows_orders, picked, strict=True)
    ]
    behind = [part.parent for part in picked if part is not None]
    others = iter(records.verified(reader, number, behind)[1])
    contents = [
        record_layout.unpack_content(order, value if part is None else next(others))
        for order, value, part in zip(orders, values, picked, strict=True)
    ]
    columns: Columns = {"id": [content[0] for content in contents]}
    columns["passage"] = list(map(_passage, picked, contents))
    if "text" in request.include:
        columns["text"] = [content[1] for content in contents]
    if "metadata" in request.include:
        columns |= _metadata(made, [content[2] for content in contents])
    if "vector" in request.include:
        columns["vector"] = _vectors(reader, made, rows_)
    scores = [ranked.scores[i] for i in chosen]
    return _answer(made, request, lap, columns, scores, orders, ranked.plan, ranked.counts)


def _passage(part: Part | None, content: record_layout.Content) -> Passage | None:
    """The passage of a hit; CorruptionError if its record does not know it."""
    _, text, _, passages = content
    if part is not None:
        record_layout.check_part(part, passages)
        return Passage.of(text, part.index, part.start, part.end)
    return None if passages is None else Passage.of(text, 0, *passages.spans[0])


def _check_places(places: list[int], rows_: list[int], orders: list[int]) -> None:
    """Raise CorruptionError unless rows are where their records say."""
    for place, row, order in zip(places, rows_, orders, strict=True):
        if place != row:
            raise CorruptionError(
                f"records: row {place} leads to order {order}, whose row is {row}"
            )
