"""k-means against float64 arithmetic without tricks, and what must hold whatever the rows are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecstore.ann import kmeans
from vecstore.ann.kmeans import MANY, SLICE_CENTROIDS, SLICE_ROWS


def distances(vectors, centroids):
    """Squared distances, float64 (n, count)."""
    differences = vectors.astype(np.float64)[:, None] - centroids.astype(np.float64)
    return (differences**2).sum(axis=2)


def plain_nearest(vectors, centroids):
    # No differences: those of thousands of lists take too much memory.
    rows, points = vectors.astype(np.float64), centroids.astype(np.float64)
    return ((points**2).sum(axis=1) - 2 * rows @ points.T).argmin(axis=1)


def plain_lloyd(sample, count, iterations=25, seed=0):
    """Lloyd's algorithm from random rows, with nothing added."""
    start = np.random.default_rng(seed).choice(len(sample), count, replace=False)
    centroids = sample[start].astype(np.float64)
    for _ in range(iterations):
        labels = plain_nearest(sample, centroids)
        for number in np.unique(labels):
            centroids[number] = sample[labels == number].mean(axis=0, dtype=np.float64)
    return centroids


def inertia(sample, centroids):
    differences = sample - centroids[plain_nearest(sample, centroids)].astype(np.float64)
    return (differences**2).sum()


def sizes(sample, centroids):
    return np.bincount(plain_nearest(sample, centroids), minlength=len(centroids))


def heaps(rng, n, dim, groups):
    """Rows in heaps whose sizes fall as 1 / rank, as topics of texts do."""
    share = 1 / np.arange(1, groups + 1)
    group = rng.choice(groups, n, p=share / share.sum())
    middles = rng.standard_normal((groups, dim))
    return (middles[group] + 0.3 * rng.standard_normal((n, dim))).astype(np.float32)


# Few distinct numbers, so that ties and equal rows are common.
rows_of_few_numbers = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 5)),
    elements=st.integers(-3, 3).map(float),
)


# train


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [
        pytest.param(1_000_000, 100, 25_600, id="256 a list"),
        pytest.param(1_000_000, 2_000, 262_144, id="ample"),
        pytest.param(1_000_000, 8_000, 512_000, id="64 a list"),
        pytest.param(1_000, 100, 1_000, id="all there are"),
    ],
)
def test_sample_size(rows, count, expected):
    assert kmeans.sample_size(rows, count) == expected


@pytest.mark.parametrize("count", [20, MANY])
def test_centroids_follow_from_the_seed(rng, count):
    sample = heaps(rng, 3_000, 4, 10)

    first = kmeans.train(sample, count, seed=1, iterations=3)

    np.testing.assert_array_equal(kmeans.train(sample, count, seed=1, iterations=3), first)
    assert (kmeans.train(sample, count, seed=2, iterations=3) != first).any()


def test_training_leaves_the_sample_as_it_is(rng):
    sample = heaps(rng, 500, 4, 10)
    before = sample.copy()

    kmeans.train(sample, 20, seed=1)

    np.testing.assert_array_equal(sample, before)


@pytest.mark.parametrize("count", [2, 16, 100])
def test_inertia_is_about_that_of_plain_training(rng, count):
    sample = (rng.standard_normal((3_000, 8)) * 0.7 ** np.arange(8)).astype(np.float32)

    found = inertia(sample, kmeans.train(sample, count, seed=1, iterations=25))

    expected = min(inertia(sample, plain_lloyd(sample, count, seed=s)) for s in range(3))
    assert found < 1.03 * expected


def test_inertia_of_many_lists_is_below_that_of_plain_training(rng):
    sample = heaps(rng, 6_000, 6, 100)

    found = inertia(sample, kmeans.train(sample, MANY, seed=1))

    assert found < 0.99 * inertia(sample, plain_lloyd(sample, MANY, iterations=8))


@pytest.mark.parametrize("count", [50, MANY])
def test_no_list_is_much_larger_than_the_mean(rng, count):
    # Rows far from the middle are sparse: plain lists are small there, and large in the middle.
    lengths = np.exp(1.5 * rng.standard_normal((12 * count, 1)))
    sample = (rng.standard_normal((12 * count, 8)) * lengths).astype(np.float32)
    plain = sizes(sample, plain_lloyd(sample, count, iterations=5))

    found = sizes(sample, kmeans.train(sample, count, seed=1))

    assert found.max() < plain.max() / 2
    assert found.min() > 0


@pytest.mark.parametrize("seed", range(3))
def test_no_list_is_empty_while_there_are_rows_to_part(rng, seed):
    equal = np.zeros((900, 5), np.float32)
    sample = np.concatenate([equal, rng.standard_normal((100, 5)).astype(np.float32)])

    found = sizes(sample, kmeans.train(sample, 40, seed=seed))

    assert found.min() > 0


def test_one_list_has_the_mean_for_its_centre(rng):
    sample = heaps(rng, 3_000, 7, 5)

    found = kmeans.train(sample, 1, seed=1)

    np.testing.assert_allclose(found[0], sample.mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_as_many_lists_as_rows_or_more_repeat_the_rows(rng):
    sample = rng.standard_normal((3, 4)).astype(np.float32)

    np.testing.assert_array_equal(kmeans.train(sample, 3, seed=1), sample)
    np.testing.assert_array_equal(kmeans.train(sample, 7, seed=1), sample[[0, 1, 2, 0, 1, 2, 0]])


@given(sample=rows_of_few_numbers, count=st.integers(1, 45), seed=st.integers(0, 9))
def test_centroids_of_any_rows_lie_among_them(sample, count, seed):
    found = kmeans.train(sample, count, seed=seed)

    assert found.shape == (count, sample.shape[1])
    assert found.dtype == np.float32
    assert (found >= sample.min(axis=0)).all()
    assert (found <= sample.max(axis=0)).all()


@pytest.mark.parametrize("count", [1, 7, MANY])
def test_equal_rows_are_their_own_centroid(count):
    sample = np.full((MANY + 500, 3), 0.1, np.float32)

    found = kmeans.train(sample, count, seed=1)

    np.testing.assert_array_equal(found, np.full((count, 3), 0.1, np.float32))


@pytest.mark.parametrize("scale", [1e-25, 1e17])
def test_training_does_not_depend_on_the_scale(rng, scale):
    sample = heaps(rng, 800, 5, 10)
    expected = inertia(sample, kmeans.train(sample, 20, seed=1))

    found = kmeans.train(sample * np.float32(scale), 20, seed=1).astype(np.float64) / scale

    assert inertia(sample, found) < 1.02 * expected


def test_training_does_not_depend_on_the_origin(rng):
    sample = heaps(rng, 800, 5, 10)
    expected = inertia(sample, kmeans.train(sample, 20, seed=1))

    found = kmeans.train(sample + np.float32(1000), 20, seed=1).astype(np.float64) - 1000

    assert inertia(sample, found) < 1.02 * expected


def test_thousands_of_dims(rng):
    sample = rng.standard_normal((30, 8192)).astype(np.float32)
    sample[::2] += 1

    found = kmeans.train(sample, 2, seed=1)

    assert sorted(found.mean(axis=1).round().tolist()) == [0, 1]


@pytest.mark.parametrize("count", [5, MANY, 3_000])
def test_progress_ascends_to_one(rng, count):
    done = []

    kmeans.train(heaps(rng, 2_000, 3, 10), count, seed=1, iterations=4, progress=done.append)

    assert done == sorted(set(done))
    assert done[0] > 0
    assert done[-1] == 1.0


# assign


@pytest.mark.parametrize(
    ("n", "count", "dim"),
    [
        pytest.param(1, 1, 1, id="one of each"),
        pytest.param(300, 7, 20, id="few lists"),
        pytest.param(SLICE_ROWS + 1, SLICE_CENTROIDS + 1, 5, id="more than a slice"),
        pytest.param(50, 2 * SLICE_CENTROIDS, 9, id="whole slices"),
        pytest.param(5, 3, 8192, id="many dims"),
    ],
)
@pytest.mark.parametrize("offset", [0, 100])
def test_each_row_goes_to_the_nearest_centroid(rng, n, count, dim, offset):
    vectors = (rng.standard_normal((n, dim)) + offset).astype(np.float32)
    centroids = (rng.standard_normal((count, dim)) + offset).astype(np.float32)

    labels, found = kmeans.assign(vectors, centroids)

    expected = distances(vectors, centroids)
    assert labels.dtype == np.intp
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[np.arange(n), labels], rtol=1e-5)
    # Where two are equally near but for rounding, either is right.
    np.testing.assert_allclose(found, expected.min(axis=1), rtol=1e-4)


@given(vectors=rows_of_few_numbers, data=st.data())
def test_the_nearest_centroid_of_small_integers_is_exact(vectors, data):
    chosen = data.draw(st.lists(st.integers(0, len(vectors) - 1), min_size=1, max_size=9))
    centroids = vectors[chosen]

    labels, found = kmeans.assign(vectors, centroids)

    assert found.tolist() == distances(vectors, centroids).min(axis=1).tolist()
    assert found.tolist() == distances(vectors, centroids)[np.arange(len(labels)), labels].tolist()


@pytest.mark.parametrize("count", [4, SLICE_CENTROIDS + 4])
def test_the_first_of_equal_centroids_is_taken(rng, count):
    centroids = np.ones((count, 3), np.float32)
    centroids[0] = 9

    labels, _ = kmeans.assign(rng.standard_normal((20, 3)).astype(np.float32), centroids)

    assert set(labels.tolist()) == {1}


def test_a_row_is_at_no_distance_from_itself(rng):
    vectors = rng.standard_normal((100, 16)).astype(np.float32) + 1000

    labels, found = kmeans.assign(vectors, vectors)

    assert labels.tolist() == list(range(100))
    assert not found.any()


@pytest.mark.parametrize("scale", [1e-25, 1e17])
def test_the_nearest_centroid_does_not_depend_on_the_scale(rng, scale):
    vectors = rng.standard_normal((100, 8)).astype(np.float32)
    centroids = rng.standard_normal((30, 8)).astype(np.float32)
    expected, _ = kmeans.assign(vectors, centroids)

    labels, _ = kmeans.assign(vectors * np.float32(scale), centroids * np.float32(scale))

    assert labels.tolist() == expected.tolist()


def test_no_rows_have_no_lists():
    labels, found = kmeans.assign(np.empty((0, 3), np.float32), np.ones((2, 3), np.float32))

    assert len(labels) == len(found) == 0


# split


@given(vectors=rows_of_few_numbers, seed=st.integers(0, 9))
def test_neither_half_is_below_a_quarter(vectors, seed):
    second = kmeans.split(vectors, seed=seed)

    assert second.dtype == np.bool_
    assert second.shape == (len(vectors),)
    smaller = min(second.sum(), (~second).sum())
    assert 4 * smaller >= len(vectors) or len(vectors) == 1


@pytest.mark.parametrize("n", [0, 1])
def test_one_row_cannot_be_split(n):
    assert kmeans.split(np.ones((n, 3), np.float32), seed=1).tolist() == [False] * n


@pytest.mark.parametrize("n", [2, 3, 8, 101])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e18])
def test_equal_rows_are_halved(n, value):
    assert kmeans.split(np.full((n, 3), value, np.float32), seed=1).sum() == n // 2


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("scale", [1e-25, 1, 1e17])
def test_two_heaps_are_parted(rng, share, scale):
    first = rng.permutation(200) < 200 * share
    vectors = rng.standard_normal((200, 10)) + 8 * first[:, None]

    second = kmeans.split((vectors * scale).astype(np.float32), seed=1)

    assert (second == first).all() or (second != first).all()


def test_a_small_heap_takes_the_nearest_rows_along(rng):
    vectors = rng.standard_normal((100, 4)).astype(np.float32)
    vectors[:5, 0] += 30

    second = kmeans.split(vectors, seed=1)

    assert second[:5].all() or not second[:5].any()
    assert min(second.sum(), (~second).sum()) == 25


def test_halves_follow_from_the_seed(rng):
    vectors = rng.standard_normal((300, 30)).astype(np.float32)

    found = [kmeans.split(vectors, seed=seed).tolist() for seed in (1, 1, 2, 3, 4)]

    assert found[0] == found[1]
    assert any(other != found[0] for other in found[2:])


def test_splitting_leaves_the_rows_as_they_are(rng):
    vectors = rng.standard_normal((30, 3)).astype(np.float32)
    before = vectors.copy()

    kmeans.split(vectors, seed=1)

    np.testing.assert_array_equal(vectors, before)
