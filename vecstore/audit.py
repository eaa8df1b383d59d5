"""What is the recall now? Searches as users make them, compared with exact ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore import catalog, fields, records, rows, search
from vecstore.ann.calibration import Z_95
from vecstore.ann.model import Progress
from vecstore.catalog import Entry
from vecstore.hits import Audit, Hits, Plan
from vecstore.search import Request
from vecstore.store import Reader
from vecstore.vectors import Bits, Vectors, unpack

# Not the seed that queries are drawn with for calibration: those would flatter the budgets.
SEED = 1
# Queries that are asked together.
AT_ONCE = 64
# Scores that differ by less are those of equal vectors.
ROUNDING = 1e-12
# The order of no record.
NONE = -1


def run(
    reader: Reader,
    entry: Entry,
    request: Request,
    sample: int,
    real: Vectors | None,
    progress: Progress,
) -> Audit:
    """Measure the recall of searches.

    Args:
        reader: Where to read.
        entry: The collection.
        request: What is asked for: k, where and a recall that is a number.
        sample: How many stored records to ask for.
        real: float32 (m, dim), queries that were asked lately.
        progress: Called with the share of the work that is done.
    """
    stored, own = _draw(reader, entry, request, sample)
    asked: list[tuple[Vectors | Bits, NDArray[Any]]] = [(stored, own)]
    if real is not None and len(stored):
        asked.append((real, np.full(len(real), NONE)))
    total, done = sum(len(queries) for queries, _ in asked), 0
    groups, plans = [], []
    for queries, orders in asked:
        recalls: list[float] = []
        for at in range(0, len(queries), AT_ONCE):
            part = slice(at, at + AT_ONCE)
            found, plan = _recalls(reader, entry, request, queries[part], orders[part])
            recalls += found
            plans.append(plan)
            done += len(found)
            progress(done / total)
        groups.append(np.array(recalls))
    return _summary(request, groups, plans)


def _summary(request: Request, groups: list[NDArray[np.float64]], plans: list[Plan]) -> Audit:
    target = float(request.recall)
    together = np.concatenate(groups)
    known = together if len(together) else np.ones(1)
    return Audit(
        recall=float(known.mean()),
        low=float(known.mean() - Z_95 * known.std() / len(known) ** 0.5),
        target=target,
        queries=len(together),
        remembered=sum(map(len, groups[1:])),
        remembered_recall=float(groups[1].mean()) if len(groups) > 1 else None,
        k=request.k,
        holds=all(float(group.mean()) >= target for group in groups if len(group)),
        method=plans[0].method if plans else "none",
        expected_recall=plans[0].expected_recall if plans else 1.0,
    )


def _draw(
    reader: Reader, entry: Entry, request: Request, sample: int
) -> tuple[Vectors | Bits, NDArray[np.uint64]]:
    """Vectors and orders of some of the records that the filter allows."""
    state = catalog.state(reader, entry.number)
    mask = fields.resolve(reader, entry, state, request.where)
    members = rows.members(mask.words)
    if not len(members):
        return np.zeros((0, entry.spec.dim), np.float32), np.zeros(0, np.uint64)
    rng = np.random.default_rng(SEED)
    picked = np.sort(rng.permutation(members)[:sample])
    found = rows.gather_packed(reader, entry.number, state, entry.form, picked)
    orders = found.orders
    if state.passages:
        # A passage stands for its record, as hits do.
        known = records.remembered_parts(reader, entry.uid)
        parts = records.parts_of(reader, entry.number, known, orders.tolist())
        orders = orders.copy()
        for place, part in enumerate(parts):
            if part is not None:
                orders[place] = part.parent
    return unpack(found.packed, entry.spec), orders


def _recalls(
    reader: Reader, entry: Entry, request: Request, queries: Vectors | Bits, own: NDArray[Any]
) -> tuple[list[float], Plan]:
    """The recall of each query, and how they were answered."""
    # A record is its own nearest neighbour, which tells nothing.
    wanted = request.k + int(own[0] != NONE)
    near = search.run(reader, entry, queries, replace(request, k=wanted))
    plan = near[0].plan
    if plan.method in ("none", "scan", "rows") and not plan.scanned:
        # Vectors were compared, and neither codes, buckets nor bytes.
        return [1.0] * len(near), plan
    exact = search.run(reader, entry, queries, replace(request, k=wanted, recall="exact"))
    triples = zip(near, exact, own.tolist(), strict=True)
    return [
        _recall(_scores(found, order, request.k), _scores(true, order, request.k))
        for found, true, order in triples
    ], plan


def _scores(hits: Hits, own: int, k: int) -> NDArray[np.float64]:
    """Scores of the k best, without the record that is the query."""
    return np.array([hit.score for hit in hits if hit.order != own][:k])


def _recall(found: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """The share of the true neighbours that were found; what ties with the last one counts."""
    if not len(true):
        return 1.0
    bound = true[-1] - ROUNDING * max(1.0, abs(true[-1]))
    return min(int((found >= bound).sum()), len(true)) / len(true)
