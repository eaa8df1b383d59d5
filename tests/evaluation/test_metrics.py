"""The metrics, compared with their definitions written out plainly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.errors import UsageError
from vecstore.evaluation import mrr, ndcg, recall, spearman

METRICS = (ndcg, mrr, recall)
DOCUMENTS = st.integers(0, 12).map("d{}".format)
RANKINGS = st.lists(DOCUMENTS, unique=True, max_size=13)
GRADES = st.dictionaries(DOCUMENTS, st.integers(-1, 3), min_size=1).filter(
    lambda grades: any(grade > 0 for grade in grades.values())
)
DEPTHS = st.integers(1, 15)
NUMBERS = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30
).filter(lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True)))


def plain_ndcg(ranking, relevant, k):
    gained = 0.0
    for rank in range(1, k + 1):
        if rank <= len(ranking):
            gained += max(0, relevant.get(ranking[rank - 1], 0)) / math.log2(rank + 1)
    ideal = 0.0
    for rank, grade in enumerate(sorted(relevant.values(), reverse=True), 1):
        if rank <= k and grade > 0:
            ideal += grade / math.log2(rank + 1)
    return gained / ideal


def plain_spearman(first, second):
    def rank(values, value):
        below = sum(other < value for other in values)
        return below + (sum(other == value for other in values) + 1) / 2

    one, two = ([rank(side, value) for value in side] for side in (first, second))
    return np.corrcoef(one, two)[0, 1]


@given(RANKINGS, GRADES, DEPTHS)
def test_ndcg_is_its_definition(ranking, relevant, k):
    found = ndcg(ranking, relevant, k)

    assert found == pytest.approx(plain_ndcg(ranking, relevant, k), abs=1e-12)
    assert 0 <= found <= 1


@given(RANKINGS, GRADES, DEPTHS)
def test_mrr_and_recall_are_their_definitions(ranking, relevant, k):
    good = [document for document, grade in relevant.items() if grade > 0]
    places = [rank for rank, document in enumerate(ranking[:k], 1) if document in good]

    assert mrr(ranking, relevant, k) == (1 / places[0] if places else 0)
    assert recall(ranking, relevant, k) == len(places) / len(good)


@given(GRADES, DEPTHS, st.randoms())
def test_a_perfect_ranking_has_an_ndcg_of_1_whatever_the_order_of_equal_grades(
    relevant, k, shuffler
):
    ranking = list(relevant)
    shuffler.shuffle(ranking)
    ranking.sort(key=lambda document: -relevant[document])

    assert ndcg(ranking, relevant, k) == 1
    assert mrr(ranking, relevant, k) == 1


@given(RANKINGS, GRADES, DEPTHS)
def test_a_better_place_never_makes_ndcg_smaller(ranking, relevant, k):
    for at in range(1, len(ranking)):
        one, other = ranking[at - 1 : at + 1]
        if relevant.get(other, 0) > max(0, relevant.get(one, 0)):
            swapped = [*ranking[: at - 1], other, one, *ranking[at + 1 :]]

            assert ndcg(swapped, relevant, k) >= ndcg(ranking, relevant, k)


def test_graded_gains_are_linear():
    # trec_eval's: 2 / log2(3) of (3 / log2(2) + 2 / log2(3)).
    assert ndcg(["x", "b"], {"a": 3, "b": 2}) == pytest.approx(0.2961, abs=5e-5)


def test_judged_documents_that_nothing_found_count_in_the_ideal():
    assert ndcg(["a"], {"a": 1, "nowhere": 1}) == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert recall(["a"], {"a": 1, "nowhere": 1}) == 0.5


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("ranking", "relevant", "k", "said"),
    [
        (["a"], {}, 10, "nothing is relevant"),
        (["a"], {"a": 0, "b": -1}, 10, "nothing is relevant"),
        (["a", "b", "a"], {"a": 1}, 10, "twice"),
        (["a"], {"a": math.nan}, 10, "grade of 'a' is nan"),
        (["a"], {"a": math.inf}, 10, "grade of 'a' is inf"),
        (["a"], {"a": 1}, 0, "k=0"),
        (["a"], {"a": 1}, True, "k=True"),
        (["a"], {"a": 1}, 2.0, "k=2.0"),
    ],
)
def test_what_has_no_figure_is_refused(metric, ranking, relevant, k, said):
    with pytest.raises(UsageError, match=said):
        metric(ranking, relevant, k)


@given(NUMBERS)
def test_spearman_is_the_correlation_of_mean_ranks(pairs):
    first, second = zip(*pairs, strict=True)
    found = spearman(first, second)

    assert found == pytest.approx(plain_spearman(first, second), abs=1e-12)
    assert found == pytest.approx(spearman(second, first), abs=1e-12)
    assert found == pytest.approx(spearman(np.exp(first), second), abs=1e-12)
    assert found == pytest.approx(-spearman(np.negative(first), second), abs=1e-12)


def test_spearman_with_ties_is_that_of_scipy():
    # scipy.stats.spearmanr of scipy 1.17.1.
    first = [1, 2, 2, 3, 5, 5, 5, 8, 9, 0]
    second = [2, 1, 4, 4, 4, 7, 6, 9, 8, 3]

    assert spearman(first, second) == pytest.approx(0.8785089358171372, abs=1e-12)


def test_spearman_of_equal_values_is_not_defined():
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([1], [1], "2 numbers or more"),
        ([1, 2], [1, 2, 3], "shapes"),
        ([[1, 2]], [[1, 2]], "shapes"),
        ([1, math.nan], [1, 2], "value 1 is nan"),
        ([1, 2], [-math.inf, 2], "value 0 is -inf"),
    ],
)
def test_spearman_refuses_what_has_no_ranks(first, second, said):
    with pytest.raises(UsageError, match=said):
        spearman(first, second)
