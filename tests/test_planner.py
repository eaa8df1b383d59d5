import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.planner import plan

recalls = st.just("exact") | st.floats(0, 1, exclude_min=True)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.booleans(), recalls)
def test_a_plan_is_exact_and_says_what_it_counts(
    rows: int, allowed: int, filtered: bool, recall
) -> None:
    rows, allowed = max(rows, allowed), min(rows, allowed)
    found = plan(rows=rows, allowed=allowed, filtered=filtered, recall=recall)
    assert (found.rows, found.allowed, found.expected_recall) == (rows, allowed, 1.0)
    assert found.method == ("none" if not allowed else "rows" if allowed < rows else "scan")
    assert plan(rows=rows, allowed=allowed, filtered=filtered, recall=recall) == found


@pytest.mark.parametrize(
    ("rows", "allowed", "filtered", "recall", "reason"),
    [
        (0, 0, False, 0.9, "the collection is empty"),
        (5, 0, True, 0.9, "no record satisfies the filter"),
        (5, 2, True, 0.9, "the filter allows 2 of 5 rows"),
        (5, 5, True, "exact", "every one of 5 rows is compared, which is exact (asked for)"),
        (5, 5, False, 0.9, "more than the recall of 0.9 asked for"),
    ],
)
def test_a_plan_gives_its_reason(
    rows: int, allowed: int, filtered: bool, recall, reason: str
) -> None:
    found = plan(rows=rows, allowed=allowed, filtered=filtered, recall=recall)
    assert reason in found.reason
