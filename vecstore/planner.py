"""Which way will a search go? A pure function of counts and wishes; it fixes everything once."""

from __future__ import annotations

from typing import Literal

from vecstore.hits import Plan

Recall = float | Literal["exact"]


def plan(*, rows: int, allowed: int, filtered: bool, recall: Recall) -> Plan:
    """Choose how to search.

    Args:
        rows: Living rows of the collection.
        allowed: Rows that the filter lets through.
        filtered: Whether there is a filter.
        recall: The share of the true neighbours that the caller wants, or "exact".
    """
    if allowed == 0:
        reason = "no record satisfies the filter" if filtered else "the collection is empty"
        return Plan(method="none", rows=rows, allowed=0, expected_recall=1.0, reason=reason)
    if allowed < rows:
        return Plan(
            method="rows",
            rows=rows,
            allowed=allowed,
            expected_recall=1.0,
            reason=f"the filter allows {allowed} of {rows} rows: each of them is compared",
        )
    wish = "asked for" if recall == "exact" else f"more than the recall of {recall} asked for"
    return Plan(
        method="scan",
        rows=rows,
        allowed=allowed,
        expected_recall=1.0,
        reason=f"every one of {rows} rows is compared, which is exact ({wish})",
    )
