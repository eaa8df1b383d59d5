"""Axes against float64 linear algebra, and what a random rotation has to do to any vector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.ann import rotation


def distance_from_orthogonal(matrix):
    wide = matrix.astype(np.float64)
    return np.abs(wide @ wide.T - np.eye(len(wide))).max()


def stretched(rng, n, dim, offset=0.0):
    """Rows that vary less from axis to axis, turned at random."""
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    spread = 0.8 ** np.arange(dim)
    rows = (rng.standard_normal((n, dim)) * spread) @ axes.T + offset
    return rows.astype(np.float32), axes.T


# principal


def test_principal_directions_are_those_the_sample_was_stretched_along(rng):
    sample, axes = stretched(rng, 20_000, 6)

    basis = rotation.principal(sample)

    assert basis.dtype == np.float32
    np.testing.assert_allclose(np.abs(basis @ axes.T), np.eye(6), atol=0.1)


@given(n=st.integers(1, 40), dim=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_principal_directions_diagonalise_the_second_moments(n, dim, seed):
    sample = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)

    basis = rotation.principal(sample)

    wide = sample.astype(np.float64)
    found = basis @ (wide.T @ wide) @ basis.T
    expected = np.linalg.eigvalsh(wide.T @ wide)[::-1]
    np.testing.assert_allclose(found, np.diag(expected), atol=1e-5 * expected[0])
    assert distance_from_orthogonal(basis) < 1e-5


@pytest.mark.parametrize("centre", [False, True])
def test_fewer_vectors_than_dims_have_the_directions_that_their_moments_have(rng, centre):
    # The least of the variances is a millionth of the largest.
    sample = (rng.standard_normal((30, 200)) * np.geomspace(1, 1e-3, 200) + 0.1).astype(np.float32)

    basis = rotation.principal(sample, centre=centre)

    wide = sample.astype(np.float64) - (sample.mean(axis=0, dtype=np.float64) if centre else 0)
    moments = wide.T @ wide
    expected = np.linalg.eigvalsh(moments)[::-1]
    np.testing.assert_allclose(basis @ moments @ basis.T, np.diag(expected), atol=1e-5)
    assert basis.shape == (200, 200)
    assert distance_from_orthogonal(basis) < 1e-5


def test_principal_takes_the_mean_for_a_direction_unless_centred(rng):
    offset = np.array([0.0, 30.0, 0.0], np.float32)
    sample = rng.standard_normal((500, 3)).astype(np.float32) * [3, 1, 2] + offset
    sample = sample.astype(np.float32)

    assert np.abs(rotation.principal(sample)[0]).argmax() == 1
    assert np.abs(rotation.principal(sample, centre=True)[0]).argmax() == 0


def test_the_largest_component_of_a_direction_is_positive(rng):
    basis = rotation.principal(stretched(rng, 300, 20)[0])

    assert (basis.max(axis=1) == np.abs(basis).max(axis=1)).all()


def test_principal_does_not_depend_on_the_order_of_many_rows(rng):
    # More rows than are summed at once.
    sample, _ = stretched(rng, rotation.SLICE_ROWS + 5, 4)

    there, back = rotation.principal(sample), rotation.principal(sample[::-1].copy())

    np.testing.assert_allclose(there, back, atol=1e-5)


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(np.zeros((3, 4)), id="zeros"),
        pytest.param(np.ones((3, 4)), id="equal rows"),
        pytest.param(np.eye(4)[:1], id="one row"),
        pytest.param(np.full((2, 4), 1e18), id="long"),
        pytest.param(np.full((2, 4), 1e-30), id="short"),
        pytest.param(np.ones((3, 1)), id="one dim"),
    ],
)
@pytest.mark.parametrize("centre", [False, True])
def test_principal_is_orthogonal_for_a_degenerate_sample(sample, centre):
    basis = rotation.principal(sample.astype(np.float32), centre=centre)

    assert distance_from_orthogonal(basis) < 1e-6


# turn


def turning(dim, seed=5):
    """The matrix that vectors are turned by."""
    return rotation.turn(np.eye(dim, dtype=np.float32), rotation.signs(dim, seed)).T


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 64, 65, 384, 1024, 1025])
def test_a_turn_is_a_product_with_an_orthogonal_matrix(dim, rng):
    matrix, vectors = turning(dim), rng.standard_normal((5, dim)).astype(np.float32)
    turned = rotation.turn(vectors, rotation.signs(dim, 5))

    assert matrix.shape == (dim, dim)
    assert matrix.dtype == turned.dtype == np.float32
    assert distance_from_orthogonal(matrix) < 1e-5
    np.testing.assert_allclose(turned, vectors @ matrix.T, atol=1e-4)


def test_a_turn_follows_from_its_seed():
    np.testing.assert_array_equal(turning(7), turning(7))
    assert (turning(7) != turning(7, 6)).any()


def test_fewer_dims_are_turned_by_the_first_signs(rng):
    vectors, signs = rng.standard_normal((5, 40)).astype(np.float32), rotation.signs(64, 5)

    assert np.array_equal(rotation.turn(vectors, signs), rotation.turn(vectors, signs[:, :40]))


@pytest.mark.parametrize("dim", [256, 384, 600, 1000, 1025, 1600])
def test_a_turn_spreads_every_axis_over_all_dims(dim):
    matrix = turning(dim).astype(np.float64) * np.sqrt(dim)

    # A component of a direction that is uniformly distributed is nearly a standard normal one.
    assert np.abs(matrix).max() < 7
    np.testing.assert_allclose((matrix**2).mean(axis=0), 1, atol=0.5)
    np.testing.assert_allclose((matrix**4).mean(axis=0), 3, atol=1.5)
    np.testing.assert_allclose((matrix**4).mean(axis=1), 3, atol=1.5)


def test_a_turn_keeps_no_trace_of_a_run_of_dims(rng):
    dim = 1600
    run = np.zeros((1, dim), np.float32)
    run[0, :300] = rng.standard_normal(300)

    turned = rotation.turn(run, rotation.signs(dim, 5))[0].astype(np.float64)

    parts = np.array([np.square(part).sum() for part in np.array_split(turned, 8)])
    np.testing.assert_allclose(parts / parts.sum(), 1 / 8, atol=0.05)
