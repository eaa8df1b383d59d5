"""Vectors as bytes: what they may be off by is never more than is said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vecstore import index_layout
from vecstore.ann import rounding
from vecstore.errors import CorruptionError

METRICS = ["cosine", "dot", "l2"]
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 40)), elements=NUMBERS),
    st.sampled_from(METRICS),
)
def test_bounds_are_true_of_any_numbers(vectors, metric):
    found = rounding.encode(vectors, metric)

    wide = vectors.astype(np.longdouble)
    if metric == "cosine":
        sizes = np.sqrt((wide**2).sum(axis=1, keepdims=True))
        wide = wide / np.where(sizes > 0, sizes, 1)
    scales, errors, sizes = found.columns.astype(np.longdouble)
    lost = wide - found.numbers * scales[:, None]
    assert (np.sqrt((lost**2).sum(axis=1)) <= errors).all()
    assert (np.sqrt((wide**2).sum(axis=1)) <= sizes).all()
    assert np.abs(found.numbers.astype(int)).max() <= 127
    assert rounding.holds(found, vectors, metric).all()


@pytest.mark.parametrize("metric", METRICS)
def test_little_is_lost(metric, rng):
    vectors = rng.normal(size=(100, 256)).astype(np.float32)
    scales, errors, _ = rounding.encode(vectors, metric).columns

    # Of numbers that are rounded to whole ones a twelfth of a square is lost on average.
    assert np.allclose(errors, scales * (256 / 12) ** 0.5, rtol=0.2)


def test_zeros_are_kept_as_zeros():
    found = rounding.encode(np.zeros((2, 3), np.float32), "cosine")
    assert not found.columns.any()
    assert not found.numbers.any()


@pytest.mark.parametrize("dim", [2, 15, 16, 17, 384])
def test_bytes_come_back_as_they_were_packed(dim, rng):
    columns = rng.normal(size=(3, 64)).astype(np.float32)
    numbers = rng.integers(-127, 128, (64, dim), dtype=np.int8)

    value = index_layout.pack_bytes(5, 7, 64, columns, numbers, 4096)

    assert index_layout.check_bytes(value, 5, 7, dim) == 64
    found = index_layout.unpack_bytes(value, dim)
    assert np.array_equal(found[0], columns)
    assert np.array_equal(found[1], numbers)


@pytest.mark.parametrize(("collection", "block", "dim"), [(6, 7, 32), (5, 8, 32), (5, 7, 31)])
def test_bytes_of_something_else_are_refused(collection, block, dim):
    value = index_layout.pack_bytes(
        5, 7, 64, np.zeros((3, 64), np.float32), np.zeros((64, 32), np.int8), 4096
    )
    with pytest.raises(CorruptionError, match="belongs to another value"):
        index_layout.check_bytes(value, collection, block, dim)


@pytest.mark.parametrize("held", [0, 65])
def test_a_wrong_count_of_rows_is_refused(held):
    value = index_layout.pack_bytes(
        5, 7, held, np.zeros((3, 64), np.float32), np.zeros((64, 32), np.int8), 4096
    )
    with pytest.raises(CorruptionError, match=f"of {held} rows"):
        index_layout.check_bytes(value, 5, 7, 32)
