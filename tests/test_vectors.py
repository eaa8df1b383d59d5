import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecstore import VectorError, vectors
from vecstore.layout import Packed
from vecstore.spec import PRECISIONS, CollectionSpec
from vecstore.vectors import (
    UNIT_SLACK,
    as_compared,
    as_query,
    as_vector,
    as_vectors,
    check_lengths,
    differ,
    lengths,
    original,
    store_form,
    unit,
    unit_slack,
    usual_query,
    widen,
)

FINITE = st.floats(-(2.0**120), 2.0**120, width=32)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.just(5)), elements=FINITE)
MODERATE = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 8), st.just(5)), elements=st.floats(-1e6, 1e6, width=32)
)


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", ">f4", ">f8", "i1", "i4", "i8", "u1", "u8", "longdouble"]
)
def test_numbers_of_every_kind_become_float32(dtype):
    found = as_vectors(np.array([[1, 2], [3, 4]], dtype), 2)

    assert found.dtype == np.dtype("float32")
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_result_lies_in_rows(order):
    values = np.array(np.arange(6.0).reshape(2, 3), order=order)

    assert as_vectors(values, 3).flags.c_contiguous
    assert as_vectors(values[:, ::-1], 3).flags.c_contiguous


def test_lists_and_tuples_are_arrays_too():
    assert as_vectors([(1, 2), [3.5, 4]], 2).tolist() == [[1.0, 2.0], [3.5, 4.0]]


def test_float32_is_not_copied():
    values = np.ones((2, 3), np.float32)

    assert as_vectors(values, 3) is values


def test_no_vectors_are_an_array_of_none():
    assert as_vectors(np.empty((0, 3)), 3).shape == (0, 3)


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_the_first_number_that_is_not_finite_is_named(place, value):
    values = np.ones((3, 3))
    values[place] = value

    with pytest.raises(VectorError, match=f"row {place[0]} .*position {place[1]}"):
        as_vectors(values, 3)


def test_infinities_that_cancel_are_found():
    with pytest.raises(VectorError, match="finite"):
        as_vectors([[np.inf, -np.inf]], 2)


def test_the_largest_numbers_of_float32_are_no_infinity():
    top = float(np.finfo(np.float32).max)

    assert as_vectors([[top] * 4] * 4, 4).max() == top


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, 2.0], r"shape \(2,\)"),
        ([[[1.0, 2.0]]], r"shape \(1, 1, 2\)"),
        (5, r"shape \(\)"),
        ([[1.0, 2.0, 3.0]], "3 numbers each.*dim=2"),
        ([[1.0], [1.0, 2.0]], "not an array"),
        ([["a", "b"]], "dtype <U1"),
        ([[None, 1.0]], "dtype object"),
        ([[True, False]], "booleans"),
        ([[1j, 2.0]], "complex"),
        (np.zeros((1, 2), "M8[s]"), "datetime64"),
        (b"ab", "dtype"),
        ({"a": 1}, "dtype object"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(values, words):
    with pytest.raises(VectorError, match=words):
        as_vectors(values, 2)


@pytest.mark.parametrize(
    ("value", "words"),
    [([[1.0, 2.0]], r"shape \(1, 2\)"), ([1.0], "1 numbers.*dim=2"), ([1.0, np.nan], "finite")],
)
def test_what_is_no_vector_is_refused(value, words):
    with pytest.raises(VectorError, match=words):
        as_vector(value, 2)


@given(MATRICES)
def test_lengths_are_those_of_float64(values):
    wide = values.astype(np.float64)

    np.testing.assert_allclose(lengths(values), np.sqrt((wide * wide).sum(axis=1)), rtol=1e-12)


def test_vectors_are_scaled_to_unit_length_but_for_zeros():
    values = np.array([[3, 4], [0, 0], [1e-30, 0], [3e38, 3e38]], np.float32)

    found = unit(values)

    assert found.dtype == np.float32
    half = 0.5**0.5
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [1, 0], [half, half]], rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("dim", [2, 3, 64, 384, 8192])
def test_a_query_is_compared_alone_as_among_others(metric, dim):
    queries = np.random.default_rng(dim).normal(size=(9, dim)).astype(np.float32)
    alone = [as_compared(queries[at : at + 1], metric) for at in range(len(queries))]

    assert (np.concatenate(alone) == as_compared(queries, metric)).all()
    if metric == "cosine":
        np.testing.assert_allclose(np.vecdot(alone[0], alone[0]), 1.0, rtol=1e-12)
    else:
        assert (alone[0] == queries[:1]).all()


@pytest.mark.parametrize("count", [1, 2])
def test_queries_that_a_metric_cannot_compare_are_refused(count):
    zeros, far = np.zeros((count, 4), np.float32), np.full((count, 4), 3e38, np.float32)

    for metric, refused, taken in (("cosine", zeros, far), ("dot", far, zeros), ("l2", far, zeros)):
        with pytest.raises(VectorError, match="query 0"):
            check_lengths(refused, metric, "query")
        check_lengths(taken, metric, "query")
        assert np.isfinite(as_compared(taken, metric)).all()


def test_most_queries_are_usual_and_what_is_no_float32_array_of_their_shape_is_not():
    usual = np.arange(4, dtype=np.float32)
    others = [
        usual.astype(np.float64), usual[:3], usual[None], usual.tolist(), np.ma.array(usual), "a",
    ]  # fmt: skip

    for metric in ("cosine", "dot", "l2"):
        spec = CollectionSpec(name="a", dim=4, metric=metric)
        assert usual_query(usual, spec).tolist() == as_query(usual, spec).tolist()
        assert all(usual_query(other, spec) is None for other in others)
    bits = CollectionSpec(name="a", dim=8, metric="hamming")
    assert usual_query(np.zeros(1, np.uint8), bits) is None


def test_a_query_in_steps_through_memory_is_copied_together():
    spec = CollectionSpec(name="a", dim=4)
    query = as_query(np.arange(8, dtype=np.float32)[::2], spec)

    assert query.flags.c_contiguous
    assert query.tolist() == [[0.0, 2.0, 4.0, 6.0]]


@given(MATRICES)
def test_under_cosine_stored_vectors_have_unit_length(values):
    values = values[lengths(values) > 0]
    stored = store_form(values, "cosine")

    np.testing.assert_allclose(lengths(stored.numbers), 1.0, atol=2 * UNIT_SLACK)


@given(MATRICES)
def test_under_cosine_the_original_comes_back_to_a_unit_in_the_last_place(values):
    values = values[lengths(values) > 0]
    stored = store_form(values, "cosine")
    found = original(stored, "cosine")

    assert found.dtype == np.float32
    # Numbers far smaller than their vector lose bits where float32 has no more exponents.
    slack = lengths(values)[:, None] * 2.0**-148
    assert (np.abs(found - values) <= 2 * np.spacing(np.abs(values)) + slack).all()


def test_under_cosine_the_largest_numbers_do_not_overflow():
    values = np.full((1, 7), np.finfo(np.float32).max)
    stored = store_form(values, "cosine")

    assert np.isfinite(original(stored, "cosine")).all()


@given(MODERATE)
def test_vectors_of_unit_length_come_back_bit_by_bit(values):
    values = values[lengths(values) > 0]
    scaled = unit(values)
    stored = store_form(scaled, "cosine")

    assert original(stored, "cosine").tobytes() == scaled.tobytes()


@given(MODERATE, st.sampled_from(["dot", "l2"]))
def test_under_other_metrics_vectors_come_back_bit_by_bit(values, metric):
    stored = store_form(values, metric)

    assert original(stored, metric).tobytes() == values.tobytes()
    assert (stored.norms == lengths(values)).all()


def test_the_users_array_is_not_changed():
    values = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    before = values.copy()
    store_form(values, "cosine")

    assert (values == before).all()


def test_a_zero_vector_is_refused_under_cosine_with_its_place():
    with pytest.raises(VectorError, match="vector 1 is zero"):
        store_form(np.array([[1, 0], [0, 0]], np.float32), "cosine")


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_zero_vector_is_a_vector_under_other_metrics(metric):
    stored = store_form(np.zeros((1, 2), np.float32), metric)

    assert (stored.numbers == 0).all()
    assert stored.norms.tolist() == [0.0]


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_vector_too_long_to_compare_is_refused(metric):
    with pytest.raises(VectorError, match=r"vector 1 has length 2e\+18"):
        store_form(np.array([[1, 0], [2e18, 0]], np.float32), metric)


def test_the_smallest_number_of_float32_has_a_direction():
    stored = store_form(np.array([[1e-45, 0]], np.float32), "cosine")

    assert stored.numbers.tolist() == [[1.0, 0.0]]
    assert stored.norms[0] > 0


def test_the_longest_vectors_have_a_finite_inner_product():
    values = np.full((1, 4), vectors.LONGEST / 2, np.float32)

    assert np.isfinite(np.einsum("ij,ij->i", values, values)).all()


# Other forms than float32


def test_every_float16_is_widened_exactly():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(-1, 8)
    found = widen(Packed(np.ones(len(every)), every))

    assert found.tobytes() == every.astype(np.float32).tobytes()


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("value", [65504, -65504])
def test_the_largest_float16_is_stored(metric, value):
    stored = store_form(np.array([[value, 1]], np.float32), metric, "float16")

    assert original(stored, metric).tolist() == [[value, 1]]


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("value", [65505, -1e9])
def test_a_number_beyond_float16_is_named(metric, value):
    values = np.array([[1, 2], [3, value]], np.float32)

    with pytest.raises(VectorError, match=r"vector 1 holds .* at position 1; .*65504: scale"):
        store_form(values, metric, "float16")


def test_under_cosine_float16_takes_vectors_of_any_length():
    stored = store_form(np.array([[3e20, 4e20]], np.float32), "cosine", "float16")

    np.testing.assert_allclose(original(stored, "cosine"), [[3e20, 4e20]], rtol=1e-3)


@given(MODERATE, st.sampled_from(["dot", "l2"]))
def test_int8_is_off_by_half_a_step_at_most(values, metric):
    stored = store_form(values, metric, "int8")
    largest = np.abs(values).max(axis=1, keepdims=True)

    assert (np.abs(original(stored, metric) - values) <= largest / 127 * 0.501 + 1e-45).all()
    assert np.abs(stored.numbers.astype(int)).max() <= 127


@given(MODERATE)
def test_a_step_times_a_code_is_exact_in_float32(values):
    stored = store_form(values, "l2", "int8")
    exact = stored.numbers.astype(np.float64) * stored.scales.astype(np.float64)[:, None]

    assert (widen(stored) == exact).all()


@given(MODERATE.filter(lambda values: np.abs(values[np.nonzero(values)]).min(initial=1) > 1e-30))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_came_back_is_stored_as_it_was(precision, values):
    values = np.clip(values, -65504, 65504)
    stored = store_form(values, "l2", precision)

    assert not differ(store_form(original(stored, "l2"), "l2", precision), stored).any()


def test_a_zero_vector_has_a_scale_of_zero():
    stored = store_form(np.zeros((2, 3), np.float32), "l2", "int8")

    assert stored.scales.tolist() == [0, 0]
    assert original(stored, "l2").tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("size", [1e-45, 3e-44, 1e-40, 1e-38])
def test_the_smallest_numbers_survive_int8(size):
    values = np.array([[size, -size], [size, 0]], np.float32)
    stored = store_form(values, "l2", "int8")

    assert (np.abs(original(stored, "l2") - values) <= np.abs(values).max() / 100).all()


@given(MATRICES, st.sampled_from(PRECISIONS))
def test_lengths_of_stored_unit_vectors_are_within_their_slack(values, precision):
    values = values[lengths(values) > 0]
    stored = store_form(values, "cosine", precision)

    assert (np.abs(lengths(widen(stored)) - 1) <= unit_slack(stored)).all()


@given(MODERATE, st.sampled_from(["dot", "l2"]), st.sampled_from(PRECISIONS))
def test_norms_are_the_lengths_of_what_is_stored(values, metric, precision):
    stored = store_form(np.clip(values, -65504, 65504), metric, precision)

    assert (stored.norms == lengths(original(stored, metric))).all()


def test_vectors_that_differ_in_scale_or_length_alone_differ():
    values = np.array([[1, 2], [2, 4], [1, 2]], np.float32)
    one, other = store_form(values[:2], "l2", "int8"), store_form(values[[2, 0]], "l2", "int8")
    assert (one.numbers == other.numbers).all()

    assert differ(one, other).tolist() == [False, True]
    one, other = (store_form(values[rows], "cosine") for rows in ([0, 1], [2, 0]))
    assert differ(one, other).tolist() == [False, True]
