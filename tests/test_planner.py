import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.ann import calibration
from vecstore.ann import model as models
from vecstore.planner import EVERY_LIST, FEW, LARGEST, plan

recalls = st.just("exact") | st.floats(0, 1, exclude_min=True)
counts = st.integers(0, 10**9)
LEVELS = [0.5, 0.9, 0.99]


def curves(*sizes: int) -> dict:
    """Budgets that grow with the recall and with the size of the answer."""
    return {
        "gap": 2.0,
        "fine": 1.5,
        "levels": LEVELS,
        "sizes": {str(k): [[level * k, 2 * level, level] for level in LEVELS] for k in sizes},
    }


def planned(
    *, rows=100_000, allowed=None, filtered=None, recall=0.9, wanted=10, budgets=None, **more
):
    allowed = rows if allowed is None else allowed
    return plan(
        rows=rows,
        allowed=allowed,
        filtered=allowed < rows if filtered is None else filtered,
        recall=recall,
        wanted=wanted,
        budgets=budgets,
        **more,
    )


@given(counts, counts, st.booleans(), recalls, st.integers(1, 10**6))
def test_a_plan_without_an_index_is_exact_and_says_what_it_counts(
    rows: int, allowed: int, filtered: bool, recall, wanted: int
) -> None:
    rows, allowed = max(rows, allowed), min(rows, allowed)

    found, budget = planned(
        rows=rows, allowed=allowed, filtered=filtered, recall=recall, wanted=wanted
    )

    assert (found.rows, found.allowed, found.expected_recall) == (rows, allowed, 1.0)
    assert found.method == ("none" if not allowed else "rows" if allowed < rows else "scan")
    assert budget is None


@given(counts, counts, recalls, st.integers(1, 10**6))
def test_a_plan_goes_through_the_index_or_is_exact_never_both(
    rows: int, allowed: int, recall, wanted: int
) -> None:
    rows, allowed = max(rows, allowed), min(rows, allowed)
    asked = {"rows": rows, "allowed": allowed, "recall": recall, "wanted": wanted}

    found, budget = planned(**asked, budgets=curves(1, 10, 100))

    assert (budget is not None) == (found.method == "index")
    assert found.method == "index" or found.expected_recall == 1.0
    assert planned(**asked, budgets=curves(1, 10, 100)) == (found, budget)


@pytest.mark.parametrize(
    "asked",
    [
        {"recall": "exact"},
        {"recall": 1.0},
        {"allowed": FEW},
        {"wanted": LARGEST + 1},
        {"rows": 1000, "wanted": 101},
        {"rows": 0},
        {"budgets": None},
    ],
    ids=str,
)
def test_what_the_index_does_not_speed_up_is_compared_in_full(asked) -> None:
    found, budget = planned(**{"budgets": curves(1, 10, 100), **asked})

    assert (found.method != "index", budget) == (True, None)


def test_the_budget_is_read_off_the_curves() -> None:
    found, budget = planned(recall=0.9, budgets=curves(1, 10, 100))

    assert found.method == "index"
    assert found.expected_recall == pytest.approx(0.9)
    assert (budget.gap, budget.reach, budget.slack) == pytest.approx((2.0, 9.0, 1.8))


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(1, 1000))
def test_more_recall_never_has_a_smaller_budget(one: float, other: float, wanted: int) -> None:
    less, more = sorted((one, other))
    _, small = planned(recall=less, wanted=wanted, budgets=curves(1, 10, 100))
    _, large = planned(recall=more, wanted=wanted, budgets=curves(1, 10, 100))

    assert small.reach <= large.reach
    assert small.slack <= large.slack


def test_an_index_that_is_measured_to_fall_short_is_not_used() -> None:
    enough, _ = planned(recall=0.992, budgets=curves(1, 10, 100))
    short, budget = planned(recall=0.999, budgets=curves(1, 10, 100))

    assert enough.method == "index"
    assert (short.method, short.expected_recall, budget) == ("scan", 1.0, None)
    assert "the index reaches 0.990 only" in short.reason


def test_a_filter_widens_the_budget_as_a_larger_answer_would() -> None:
    _, filtered = planned(allowed=10_000, wanted=10, budgets=curves(1, 10, 100))
    _, larger = planned(wanted=100, budgets=curves(1, 10, 100))

    assert (filtered.reach, filtered.slack) == (larger.reach, larger.slack)


def test_rows_are_compared_where_that_is_as_fast() -> None:
    """A search scans all rows of the lists with an allowed one, or as many as were measured."""
    budgets = curves(1, 10, 100)
    budgets["scanned"] = {size: [50_000.0] * len(LEVELS) for size in budgets["sizes"]}

    def method(allowed: int, reachable: int, dim: int) -> str:
        return planned(allowed=allowed, reachable=reachable, dim=dim, budgets=budgets)[0].method

    assert method(1_000, 40_000, 384) == "rows"
    assert method(1_000, 1_000, 384) == "index"
    assert method(4_500, 40_000, 384) == "index"
    assert method(4_500, 40_000, 16) == "rows"
    assert method(4_500, 90_000, 384) == method(4_500, 50_000, 384) == "rows"


@pytest.mark.parametrize(
    ("asked", "least"),
    [
        ({}, 1),
        ({"allowed": 99_000}, 1),
        ({"wanted": 100}, 1),
        ({"wanted": 101}, EVERY_LIST),
    ],
    ids=str,
)
def test_no_list_is_left_out_where_nothing_was_measured(asked, least) -> None:
    _, budget = planned(**asked, budgets=curves(1, 10, 100))

    assert budget.least == least


def test_answers_beyond_the_largest_that_was_measured_reach_further() -> None:
    _, measured = planned(wanted=100, budgets=curves(1, 10, 100))
    _, beyond = planned(wanted=1000, budgets=curves(1, 10, 100))

    assert beyond.reach > measured.reach


def test_budgets_that_were_not_measured_are_called_estimates() -> None:
    model = models.untrained(np.zeros((0, 16), np.float32), "cosine", seed=1)
    found, _ = planned(budgets=calibration.unmeasured(model))

    assert "the index is estimated to reach a recall of" in found.reason


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"rows": 0}, "the collection is empty"),
        ({"rows": 5, "allowed": 0}, "no record satisfies the filter"),
        ({"rows": 5, "allowed": 2}, "the filter allows 2 of 5 rows"),
        (
            {"rows": 5, "recall": "exact"},
            "every one of 5 rows is compared, which is exact (asked for)",
        ),
        ({"rows": 5}, "more than the recall of 0.9 asked for"),
        ({"budgets": curves(10)}, "the index is measured to reach a recall of 0.900 for 0.9"),
        (
            {"allowed": 5000, "budgets": curves(10)},
            "the filter allows 5000 of 100000 rows, so it looks further",
        ),
        (
            {"wanted": 3000, "budgets": curves(10)},
            "so large an answer is not worth looking for in the index",
        ),
    ],
)
def test_a_plan_gives_its_reason(asked, reason: str) -> None:
    found, _ = planned(**asked)

    assert reason in found.reason
