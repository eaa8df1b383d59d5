"""How was a query answered? One search, watched stage by stage."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np

from vecstore import catalog, plain, rows, search
from vecstore.ann import buckets, compiled, index
from vecstore.ann.index import Kind
from vecstore.catalog import Entry
from vecstore.hits import Explanation, Method
from vecstore.layout import TILE_ROWS, State
from vecstore.search import Request
from vecstore.store import Reader
from vecstore.vectors import Bits, Vectors

# Stages of the search through the index, and where their times stand.
STAGES = {
    "coarse": plain.COARSE_TIME,
    "scan": plain.SCAN_TIME,
    "settle": plain.SETTLE_TIME,
}


class _Watch:
    """Milliseconds of each stage, in their order."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._begun = time.perf_counter_ns()

    def __call__(self, stage: str, stats: list[list[int]] | None = None) -> None:
        """A stage has ended."""
        took = (time.perf_counter_ns() - self._begun) / 1e6
        if stats is None:
            self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + took
        else:
            # The kernel counts cycles, and numpy nanoseconds: only their shares are known.
            parts = {name: stats[0][place] for name, place in STAGES.items()}
            whole = max(1, sum(parts.values()))
            for name, part in parts.items():
                self.milliseconds[name] = self.milliseconds.get(name, 0.0) + took * part / whole
        self._begun = time.perf_counter_ns()


def run(
    reader: Reader, entry: Entry, query: Vectors | Bits, request: Request, encoding: float | None
) -> Explanation:
    """Search, and say how.

    Args:
        reader: Where to read.
        entry: The collection.
        query: An array of one query, as in `search.run`.
        request: What is asked for.
        encoding: Milliseconds that it took to embed the query, if it was a text.
    """
    watch = _Watch()
    if encoding is not None:
        watch.milliseconds["encode"] = encoding
    (hits,) = search.run(reader, entry, query, request, watch)
    plan = hits.plan
    # Where numpy compares all rows, nothing is counted.
    compares = plan.method in ("scan", "rows")
    by_kernel = compares and plan.scanned + plan.compared > 0
    by_numpy = compares and not by_kernel
    state = catalog.state(reader, entry.number)
    known = compiled.state(_kernel(entry, index.kind(reader, entry.number), plan.method))
    answered: Literal["compiled", "numpy"] = "numpy"
    if by_kernel:
        # Few rows are compared by a kernel of their own, which may be the only one here.
        answered = known = "compiled"
    elif plan.method == "index" and known == "compiled":
        answered = "compiled"
    return Explanation(
        method=plan.method,
        reason=plan.reason,
        lists_scanned=plan.lists,
        rows=plan.rows,
        allowed=plan.allowed,
        scanned=plan.scanned,
        narrowed=plan.narrowed,
        compared=plan.allowed if by_numpy else plan.compared,
        expected_recall=plan.expected_recall,
        answered_by=answered,
        kernels=known,
        milliseconds=watch.milliseconds,
        hits=hits,
        **_shape(reader, entry, state),
    )


def _kernel(entry: Entry, kind: Kind, method: Method) -> compiled.Name:
    """Which kernel answers, or would."""
    if entry.spec.metric == "hamming":
        return "compare_bits"
    if method == "rows" and kind != "flat":
        return "compare_rows"
    return "compare" if kind == "flat" else "search"


def _shape(reader: Reader, entry: Entry, state: State) -> dict[str, Any]:
    """Kind, schedule, lists and tail of an index."""
    wanted = index.kind(reader, entry.number)
    found, alive = index.load(reader, entry, state), rows.live(reader, entry.number, state)
    if found is None:
        bits = buckets.load(reader, entry, state)
        bands = 0 if bits is None else bits.bands.count
        tail = 0 if bits is None else rows.count(alive[~bits.listed])
        return {"index": wanted, "codes": [], "lists": bands, "tail": tail}
    lists = int(np.count_nonzero(~found.model.closed))
    return {
        "index": wanted,
        "codes": [list(pair) for pair in found.model.schedule],
        "lists": lists,
        "tail": rows.count(alive[index.tail(found, alive)]),
    }


def stats(reader: Reader, entry: Entry, state: State) -> dict[str, Any]:
    """What `Collection.stats` says of the index."""
    shape, found = _shape(reader, entry, state), index.load(reader, entry, state)
    trained, size, directions = 0, 0, 0
    if found is not None:
        trained, directions = found.trained, found.model.directions.rows
        form = found.model.shape
        # Rows in lists are named there; those of the tail stand in their order.
        size = state.rows * (form.tile_bytes // TILE_ROWS + form.fine_bytes)
        size += 4 * (state.rows - shape["tail"])
    bits = buckets.load(reader, entry, state)
    if bits is not None:
        trained, size = bits.rows, sum(bits.bytes_of())
    return {
        "index": shape["index"],
        "codes": shape["codes"],
        "directions": directions,
        "lists": shape["lists"],
        "trained_rows": trained,
        "tail_rows": shape["tail"],
        "index_bytes": size,
    }
