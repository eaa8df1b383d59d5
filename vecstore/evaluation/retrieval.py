"""How well does a setup find what is relevant? Measured on a real collection of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore import database
from vecstore.ann import compiled
from vecstore.collection import DEFAULT_RECALL, Collection
from vecstore.errors import UsageError
from vecstore.evaluation import metrics
from vecstore.evaluation.intervals import Floats, Interval
from vecstore.evaluation.labelled import Retrieval
from vecstore.evaluation.setups import NUMBER_BYTES, Setup, Sweep
from vecstore.planner import Recall

# The second depth that recall is told of.
DEPTH = 100
# Scores this close are one score: equal texts have vectors that differ by rounding.
TIE = 1e-6
BATCH = 10_000
# Queries that are timed, and those before them that are not.
TIMED, UNTIMED = 100, 5

Vectors = NDArray[np.float32]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Times:
    """How long searches take.

    Processor time is what a search costs; on a machine that does other work too, time by the clock
    says as much of that.

    Attributes:
        elapsed: Milliseconds by the clock of a query that is asked alone, the median.
        busy: Milliseconds of processor time of that, the median.
        rate: Queries in a second of processor time, asked together on one thread.
    """

    elapsed: float
    busy: float
    rate: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a setup.

    Attributes:
        setup: The setup.
        ndcg: nDCG at k, 0 to 1, its mean over queries.
        change: How much larger nDCG is than that of exact search by whole vectors, query by query;
            below 0 for what is lost.
        mrr: Mean reciprocal rank at k.
        recall: The share of the relevant documents that is among the first k.
        deep_recall: The same of the first `depth`.
        depth: 100, or as many as there are documents or places in a shortlist.
        agreement: How many of the first k are among the k nearest by whole vectors; a hit whose
            score ties with the k-th counts as one of these.
        agreement_by_id: The same where ties do not count: where several are equally far, only those
            that exact search gave.
        ceiling: What exact search has of itself by id if equal scores come in any order.
        stored: Bytes of vectors and codes of a record in the file, headers included.
        compared: Bytes of each vector that are compared first.
        times: How long searches take; None of shortlists, which are no single search.
        compiled: Of an index with codes, whether the compiled search answered; else numpy did,
            which is slower. None of other setups.
        each: The first three figures query by query, float64 of shape (queries,).
    """

    setup: Setup
    ndcg: Interval
    change: Interval
    mrr: Interval
    recall: Interval
    deep_recall: Interval
    depth: int
    agreement: Interval
    agreement_by_id: float
    ceiling: float
    stored: float
    compared: float
    times: Times | None
    compiled: bool | None
    each: dict[str, Floats] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the figures of single queries."""
        setup = self.setup
        return {
            "setup": setup.label,
            "dims": setup.dims,
            "precision": setup.precision,
            "first": setup.first,
            "shortlist": setup.shortlist or None,
            "index": setup.index,
            "codes": None if setup.codes is None else list(setup.codes),
            "ndcg": self.ndcg.to_dict(),
            "change": self.change.to_dict(),
            "mrr": self.mrr.to_dict(),
            "recall": self.recall.to_dict(),
            "deep_recall": self.deep_recall.to_dict(),
            "depth": self.depth,
            "agreement": self.agreement.to_dict(),
            "agreement_by_id": self.agreement_by_id,
            "ceiling": self.ceiling,
            "bytes_stored": self.stored,
            "bytes_compared": self.compared,
            "milliseconds": self.times and self.times.elapsed,
            "processor_milliseconds": self.times and self.times.busy,
            "queries_per_processor_second": self.times and self.times.rate,
            "compiled": self.compiled,
        }


@dataclass(frozen=True, slots=True)
class _Truth:
    """The nearest documents of each query by whole vectors."""

    rows: list[Rows]
    # The score of the k-th of each query, and how good its ranking is.
    threshold: Floats
    ndcg: Floats
    ceiling: float


@dataclass(frozen=True, slots=True)
class _Found:
    """What a setup's collection answered, and what it is."""

    rankings: list[Rows]
    stored: float
    compared: float
    times: Times | None
    compiled: bool | None


def measure(
    data: Retrieval,
    documents: Vectors,
    queries: Vectors,
    setups: Sequence[Setup],
    sweep: Sweep,
    advance: Callable[[int], object],
) -> list[Measured]:
    """Measure setups, each on a collection of its own in memory.

    Args:
        data: What is relevant.
        documents: Whole vectors, float32 of shape (documents, dim).
        queries: Whole vectors, float32 of shape (queries, dim).
        setups: What to measure.
        sweep: How many hits, and the seed of the intervals.
        advance: Told of each setup that is done.

    Raises:
        UsageError: k is more than there are documents, or a prefix of a vector is all zeros.
    """
    if sweep.k > len(documents):
        raise UsageError(f"k={sweep.k}, but {data.name} has {len(documents)} documents")
    whole = Setup(documents.shape[1])
    first = _search(documents, queries, whole, sweep, data)
    truth = _truth(data, documents, queries, first.rankings, sweep.k)
    measured = []
    for setup in setups:
        found = first if setup == whole else _search(documents, queries, setup, sweep, data)
        measured.append(_figures(data, documents, queries, setup, sweep, found, truth))
        advance(1)
    return measured


def prefixes(vectors: Vectors, size: int, what: Callable[[int], str]) -> Vectors:
    """Return the first `size` numbers of vectors; UsageError where they are all zero."""
    cut = np.ascontiguousarray(vectors[:, :size])
    zero = ~cut.any(axis=1)
    if zero.any():
        raise UsageError(
            f"the first {size} numbers of {what(int(np.argmax(zero)))} are all zero, which has no"
            " cosine; leave that length out"
        )
    return cut


# Searching


def _search(
    documents: Vectors, queries: Vectors, setup: Setup, sweep: Sweep, data: Retrieval
) -> _Found:
    """Store documents as a setup says, and ask every query."""
    stored = prefixes(documents, setup.dims, lambda row: f"document {data.ids[row]!r}")
    asked = prefixes(queries, setup.dims, lambda row: f"query {data.queries[row]!r:.60}")
    depth = min(max(DEPTH, sweep.k), len(documents))
    with _collection(stored, setup) as points:
        stats = points.stats()
        times = None
        if setup.first is not None:
            shortlist = min(setup.shortlist, len(documents))
            rankings = _ask(points, asked, shortlist, "exact", setup.first)
            rankings = [
                _reorder(documents, query, rows)
                for query, rows in zip(queries, rankings, strict=True)
            ]
        else:
            recall: Recall = DEFAULT_RECALL if setup.index else "exact"
            rankings = _ask(points, asked, sweep.k if setup.index else depth, recall)
            times = _times(points, asked, sweep.k, recall)
            if setup.index:
                # Many hits of an index are found otherwise than few, so they are asked for anew.
                deep = _ask(points, asked, depth, recall)
                rankings = [_behind(*both) for both in zip(rankings, deep, strict=True)]
    coded = bool(stats["codes"]) and setup.index is not None
    return _Found(
        rankings,
        _bytes(stats, setup),
        _compared(stats, setup),
        times,
        compiled.loaded("search") if coded else None,
    )


@contextmanager
def _collection(vectors: Vectors, setup: Setup) -> Iterator[Collection]:
    with database.open(":memory:", remember_queries=False) as db:
        points = db.collection(
            "eval",
            dim=setup.dims,
            precision=setup.precision,
            tiers=None if setup.codes is None else (setup.codes,),
            # Which is never trained; exact search does not look at its bytes.
            index=setup.index or "flat",
        )
        for start in range(0, len(vectors), BATCH):
            part = vectors[start : start + BATCH]
            points.add(vectors=part, ids=range(start, start + len(part)))
        if setup.index is not None:
            points.optimize(progress=False)
        yield points


def _ask(
    points: Collection, queries: Vectors, k: int, recall: Recall, dims: int | None = None
) -> list[Rows]:
    asked = queries if dims is None else queries[:, :dims]
    found = points.search_many(asked, k, recall=recall, dims=dims, include=(), threads=1)
    return [np.array(hits.ids, np.intp) for hits in found]


def _times(points: Collection, queries: Vectors, k: int, recall: Recall) -> Times:
    """Ask queries alone, and then all together."""
    chosen = np.resize(queries, (min(len(queries), TIMED) + UNTIMED, queries.shape[1]))
    elapsed, busy = [], []
    for query in chosen:
        began = time.perf_counter(), time.process_time()
        points.search(query, k, recall=recall, include=())
        elapsed.append(time.perf_counter() - began[0])
        busy.append(time.process_time() - began[1])
    begun = time.process_time()
    points.search_many(queries, k, recall=recall, include=(), threads=1)
    together = max(time.process_time() - begun, 1e-9)
    clock, processor = (1000 * statistics.median(spent[UNTIMED:]) for spent in (elapsed, busy))
    return Times(clock, processor, len(queries) / together)


def _reorder(documents: Vectors, query: Vectors, rows: Rows) -> Rows:
    """A shortlist in the order of whole vectors, equal ones in the order of the documents."""
    rows = np.sort(rows)
    return rows[np.argsort(-_cosines(documents[rows], query), kind="stable")]


def _behind(first: Rows, deep: Rows) -> Rows:
    """Hits, and behind them those of a deeper search that are not among them."""
    return np.concatenate([first, deep[~np.isin(deep, first)]])


def _bytes(stats: dict[str, Any], setup: Setup) -> float:
    space = stats["space"]
    tiers = ["full"] if setup.index is None else list(space)
    return float(sum(space[tier]["values"] for tier in tiers) / stats["records"])


def _compared(stats: dict[str, Any], setup: Setup) -> float:
    if setup.index == "flat":
        return setup.dims
    if setup.index is not None and stats["codes"]:
        dims, bits = stats["codes"][0]
        return float(dims * bits / 8)
    return (setup.first or setup.dims) * NUMBER_BYTES[setup.precision]


# Figures


def _truth(
    data: Retrieval, documents: Vectors, queries: Vectors, rankings: list[Rows], k: int
) -> _Truth:
    thresholds, shares = [], []
    for query, rows in zip(queries, rankings, strict=True):
        scores = _cosines(documents[rows], query)
        threshold = scores[k - 1]
        above = int((scores > threshold + TIE).sum())
        tied = int((abs(scores - threshold) <= TIE).sum())
        # Of the tied, k - above are among the first k: any choice of them hits so many of another.
        shares.append((above + (k - above) ** 2 / tied) / k)
        thresholds.append(threshold)
    ndcg = _each(metrics.ndcg, data, rankings, k)
    return _Truth(rankings, np.array(thresholds), ndcg, float(np.mean(shares)))


def _each(figure: Callable[..., float], data: Retrieval, rankings: list[Rows], k: int) -> Floats:
    """A figure of every query."""
    pairs = zip(rankings, data.relevant, strict=True)
    return np.array([figure([data.ids[row] for row in rows], grades, k) for rows, grades in pairs])


def _figures(
    data: Retrieval,
    documents: Vectors,
    queries: Vectors,
    setup: Setup,
    sweep: Sweep,
    found: _Found,
    truth: _Truth,
) -> Measured:
    depth = min(map(len, found.rankings))
    firsts = [rows[: sweep.k] for rows in found.rankings]
    scores = [_cosines(documents[rows], query) for rows, query in zip(firsts, queries, strict=True)]
    near = [
        float((row >= limit - TIE).sum()) / sweep.k
        for row, limit in zip(scores, truth.threshold, strict=True)
    ]
    shared = [
        len(np.intersect1d(rows, right[: sweep.k])) / sweep.k
        for rows, right in zip(firsts, truth.rows, strict=True)
    ]
    values = {
        "ndcg": _each(metrics.ndcg, data, found.rankings, sweep.k),
        "mrr": _each(metrics.mrr, data, found.rankings, sweep.k),
        "recall": _each(metrics.recall, data, found.rankings, sweep.k),
    }
    return Measured(
        setup=setup,
        ndcg=sweep.interval(values["ndcg"]),
        change=sweep.interval(values["ndcg"] - truth.ndcg),
        mrr=sweep.interval(values["mrr"]),
        recall=sweep.interval(values["recall"]),
        deep_recall=sweep.interval(_each(metrics.recall, data, found.rankings, depth)),
        depth=depth,
        agreement=sweep.interval(np.array(near)),
        agreement_by_id=float(np.mean(shared)),
        ceiling=truth.ceiling,
        stored=found.stored,
        compared=found.compared,
        times=found.times,
        compiled=found.compiled,
        each=values,
    )


def _cosines(vectors: Vectors, query: Vectors) -> Floats:
    rows, one = vectors.astype(np.float64), query.astype(np.float64)
    cosines: Floats = rows @ one / np.linalg.norm(rows, axis=1) / np.linalg.norm(one)
    return cosines
