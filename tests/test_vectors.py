import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecstore import VectorError, vectors
from vecstore.vectors import UNIT_SLACK, as_vector, as_vectors, lengths, original, store_form

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


@given(MATRICES)
def test_under_cosine_stored_vectors_have_unit_length(values):
    values = values[lengths(values) > 0]
    stored, _ = store_form(values, "cosine")

    np.testing.assert_allclose(lengths(stored), 1.0, atol=2 * UNIT_SLACK)


@given(MATRICES)
def test_under_cosine_the_original_comes_back_to_a_unit_in_the_last_place(values):
    values = values[lengths(values) > 0]
    stored, norms = store_form(values, "cosine")
    found = original(stored, norms, "cosine")

    assert found.dtype == np.float32
    # Numbers far smaller than their vector lose bits where float32 has no more exponents.
    slack = lengths(values)[:, None] * 2.0**-148
    assert (np.abs(found - values) <= 2 * np.spacing(np.abs(values)) + slack).all()


def test_under_cosine_the_largest_numbers_do_not_overflow():
    values = np.full((1, 7), np.finfo(np.float32).max)
    stored, norms = store_form(values, "cosine")

    assert np.isfinite(original(stored, norms, "cosine")).all()


@given(MODERATE)
def test_vectors_of_unit_length_come_back_bit_by_bit(values):
    values = values[lengths(values) > 0]
    unit = (values / lengths(values)[:, None]).astype(np.float32)
    stored, norms = store_form(unit, "cosine")

    assert original(stored, norms, "cosine").tobytes() == unit.tobytes()


@given(MODERATE, st.sampled_from(["dot", "l2"]))
def test_under_other_metrics_vectors_come_back_bit_by_bit(values, metric):
    stored, norms = store_form(values, metric)

    assert original(stored, norms, metric).tobytes() == values.tobytes()
    assert (norms == lengths(values)).all()


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
    stored, norms = store_form(np.zeros((1, 2), np.float32), metric)

    assert (stored == 0).all()
    assert norms.tolist() == [0.0]


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_vector_too_long_to_compare_is_refused(metric):
    with pytest.raises(VectorError, match=r"vector 1 has length 2e\+18"):
        store_form(np.array([[1, 0], [2e18, 0]], np.float32), metric)


def test_the_smallest_number_of_float32_has_a_direction():
    stored, norms = store_form(np.array([[1e-45, 0]], np.float32), "cosine")

    assert stored.tolist() == [[1.0, 0.0]]
    assert norms[0] > 0


def test_the_longest_vectors_have_a_finite_inner_product():
    values = np.full((1, 4), vectors.LONGEST / 2, np.float32)

    assert np.isfinite(np.einsum("ij,ij->i", values, values)).all()
