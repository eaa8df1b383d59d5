import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.errors import UsageError
from vecstore.evaluation import bootstrap_interval, paired_difference, spearman

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(VALUES, st.integers(0, 3))
def test_an_interval_lies_within_the_values_and_repeats(values, seed):
    found = bootstrap_interval(values, samples=50, seed=seed)

    assert found == bootstrap_interval(values, samples=50, seed=seed)
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12
    assert found.value == pytest.approx(np.mean(values))


def test_the_interval_of_a_mean_is_that_of_theory(rng):
    # Of a mean the bootstrap's error is s / sqrt(n), and 95 % lie within 1.96 of it.
    values = rng.normal(3, 2, size=400)
    found = bootstrap_interval(values, samples=3000)
    error = values.std() / 20

    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_intervals_hold_the_true_mean_about_as_often_as_they_say(rng):
    held = 0
    for seed in range(200):
        found = bootstrap_interval(rng.random(60), samples=100, seed=seed)
        held += found.low <= 0.5 <= found.high

    assert 178 <= held <= 199


def test_of_two_that_share_their_hard_queries_a_small_difference_is_told(rng):
    hard = rng.random(300)
    first, second = 0.8 * hard, 0.8 * hard + rng.uniform(0, 0.04, size=300)
    found = paired_difference(first, second)
    apart = [bootstrap_interval(values) for values in (first, second)]

    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.excludes_zero
    assert apart[0].high > apart[1].low
    assert not paired_difference(first, first).excludes_zero
    back = paired_difference(second, first)
    assert (back.value, back.low) == (pytest.approx(-found.value), pytest.approx(-found.high))


def test_rows_are_drawn_together():
    rows = np.column_stack([np.arange(30), np.arange(30)])
    found = bootstrap_interval(rows, lambda drawn: spearman(*drawn.T), samples=50)

    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))


def test_samples_without_a_figure_are_left_out():
    rows = np.array([[0.0, 1.0], [1.0, 2.0]])
    found = bootstrap_interval(rows, lambda drawn: spearman(*drawn.T), samples=50)

    assert (found.value, found.low, found.high) == (1, 1, 1)
    none = bootstrap_interval([1.0, 2.0], lambda drawn: math.nan, samples=5)
    assert none.to_dict() == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([], {}, "no rows"),
        (1.0, {}, "no rows"),
        ([1.0, math.nan], {}, "NaN"),
        ([1.0], {"confidence": 1}, "confidence=1"),
        ([1.0], {"samples": 0}, "samples=0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values, options, said):
    with pytest.raises(UsageError, match=said):
        bootstrap_interval(values, **options)


def test_pairs_are_as_many():
    with pytest.raises(UsageError, match=r"\(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])
