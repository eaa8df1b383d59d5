"""Which way will a search go? A pure function of counts and wishes; it fixes everything once."""

from __future__ import annotations

from typing import Any, Literal

from vecstore.ann import calibration
from vecstore.ann.engine import Budget
from vecstore.hits import Plan

Recall = float | Literal["exact"]

# So few rows are compared faster than found.
FEW = 128
# Nanoseconds that a search of an index takes at least, and for each row whose code it scans; and
# for each row that is compared instead, and each of its numbers (measured, see
# docs/architecture.md). An exact answer may take so many times longer.
SEARCH_COST, CODE_COST = 25_000.0, 3.5
ROW_COST, NUMBER_COST = 15.0, 0.1
EXACT_WORTH = 1.25
# An answer that is more than this share of the rows is as well found by comparing all.
LARGE_SHARE = 0.1
# Answers beyond this size need more candidates than codes tell apart.
LARGEST = 2000
# An index that is measured to miss the recall asked for by more than this is not used.
SHORT = 0.005
EVERY_LIST = 2**31


def plan(
    *,
    rows: int,
    allowed: int,
    filtered: bool,
    recall: Recall,
    wanted: int,
    budgets: dict[str, Any] | None,
    buckets: bool = False,
    reachable: int | None = None,
    dim: int = 0,
) -> tuple[Plan, Budget | None]:
    """Choose how to search.

    Args:
        rows: Living rows of the collection.
        allowed: Rows that the filter lets through.
        filtered: Whether there is a filter.
        recall: The share of the true neighbours that the caller wants, or "exact".
        wanted: How many rows.
        budgets: What the calibration of the index found; None if there is none to use.
        buckets: Whether there are buckets of binary vectors to use.
        reachable: With a filter, rows of the lists that have any which it lets through.
        dim: How many numbers a vector has.

    Returns:
        The plan, and the budget of a search through the index.
    """
    if allowed == 0:
        reason = "no record satisfies the filter" if filtered else "the collection is empty"
        return Plan(method="none", rows=rows, allowed=0, expected_recall=1.0, reason=reason), None
    if buckets and allowed > FEW:
        return _looking(rows, allowed), None
    large = wanted > min(LARGE_SHARE * allowed, LARGEST)
    if budgets is None or recall == "exact" or recall >= 1 or allowed <= FEW or large:
        why = "so large an answer is not worth looking for in the index"
        return _exact(rows, allowed, recall, why if budgets is not None and large else None), None
    # Among all rows, the wanted ones reach as far as so many would without the filter.
    spread = wanted * rows / allowed
    reading = calibration.read(budgets, recall, max(1, round(spread)))
    if reading.recall < recall - SHORT:
        return _exact(rows, allowed, recall, f"the index reaches {reading.recall:.3f} only"), None
    if reachable is not None:
        searched = SEARCH_COST + CODE_COST * min(reading.scanned, reachable)
        if allowed * (ROW_COST + NUMBER_COST * dim) <= EXACT_WORTH * searched:
            return _exact(rows, allowed, recall, "which is as fast as the index"), None
    known = "measured" if budgets.get("measured", True) else "estimated"
    reason = f"the index is {known} to reach a recall of {reading.recall:.3f} for {recall} wanted"
    if allowed < rows:
        reason += f"; the filter allows {allowed} of {rows} rows, so it looks further"
    # What was measured does not say where those lie that are farther off than any that was asked
    # for; of samples it does not say where copies lie.
    measured = wanted <= min(calibration.SIZES[-1], max(map(int, budgets["sizes"])))
    budget = Budget(
        gap=reading.gap,
        reach=reading.reach,
        slack=max(reading.slack, calibration.read(budgets, recall, wanted).slack),
        fine=reading.fine,
        least=1 if measured else EVERY_LIST,
    )
    expected = reading.recall
    return (
        Plan(method="index", rows=rows, allowed=allowed, expected_recall=expected, reason=reason),
        budget,
    )


def instead(planned: Plan, recall: Recall) -> Plan:
    """The plan of a search that was to look into buckets, and found too much to look at there."""
    why = "more would have to be looked at in buckets"
    return _exact(planned.rows, planned.allowed, recall, why)


def _looking(rows: int, allowed: int) -> Plan:
    reason = "rows whose bits nearly agree with a part of the query's are looked up, which is exact"
    if allowed < rows:
        reason += f"; the filter allows {allowed} of {rows} rows"
    return Plan(method="buckets", rows=rows, allowed=allowed, expected_recall=1.0, reason=reason)


def _exact(rows: int, allowed: int, recall: Recall, why: str | None) -> Plan:
    if allowed < rows:
        return Plan(
            method="rows",
            rows=rows,
            allowed=allowed,
            expected_recall=1.0,
            reason=f"the filter allows {allowed} of {rows} rows: each of them is compared"
            + ("" if why is None else f" ({why})"),
        )
    wish = "asked for" if recall == "exact" else f"more than the recall of {recall} asked for"
    if why is not None:
        wish += f"; {why}"
    return Plan(
        method="scan",
        rows=rows,
        allowed=allowed,
        expected_recall=1.0,
        reason=f"every one of {rows} rows is compared, which is exact ({wish})",
    )
