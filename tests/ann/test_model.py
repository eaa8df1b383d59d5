"""What a model says of vectors: where they belong, and how they are coded; against float64."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.ann import model as models
from vecstore.ann import rotation
from vecstore.ann.model import Matrix, Model, Shape

METRICS = pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])


def drawn(count: int, dim: int, metric: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)) * np.linspace(2, 0.2, dim)
    if metric == "l2":
        vectors += 1000
    elif metric == "dot":
        vectors *= 10 ** rng.uniform(-1, 1, (count, 1))
    else:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def trained(metric: str, dim: int = 20, lists: int = 12, **shape: int) -> tuple[Model, np.ndarray]:
    vectors = drawn(400, dim, metric)
    wanted = Shape(**{"lists": lists, "coded": dim, "bits": 1, **shape})
    return models.train(vectors, wanted, metric, seed=1), vectors


@given(st.integers(1, 9), st.integers(1, 70), st.floats(-30, 30))
def test_a_matrix_is_rounded_by_half_a_step_at_most(rows: int, columns: int, size: float) -> None:
    rng = np.random.default_rng(rows * 100 + columns)
    matrix = (rng.normal(size=(rows, columns)) * 10**size).astype(np.float32)
    kept = Matrix.of(matrix)

    assert kept.floats().shape == matrix.shape
    filled = models.unpack(kept.values)
    assert filled.shape[0] % 16 == filled.shape[1] % 16 == 0
    steps = np.abs(matrix).max(axis=1, keepdims=True) / 127
    assert (np.abs(kept.floats() - matrix) <= 0.5001 * steps).all()
    assert not filled[rows:].any()
    assert not filled[:, columns:].any()


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not Matrix.of(np.zeros((3, 5), np.float32)).floats().any()


@METRICS
def test_vectors_belong_to_the_nearest_open_list(metric: str) -> None:
    model, vectors = trained(metric)
    closed = np.zeros(12, bool)
    closed[[0, 5, 11]] = True
    model = model.with_lists(model.centres, closed)
    wide = model.centred(vectors).astype(np.float64) @ model.reducing.T.astype(np.float64)
    distances = ((wide[:, None] - model.centres[None, :-1]) ** 2).sum(axis=2)
    distances[:, closed] = np.inf

    found = model.assign(vectors)
    assert not closed[found].any()
    nearest = distances.min(axis=1)
    assert (distances[np.arange(len(found)), found] <= nearest * (1 + 1e-4) + 1e-6).all()
    assert (model.bias[:-1][closed] == -np.inf).all()


@METRICS
@pytest.mark.parametrize("where", ["lists", "tail"])
def test_estimates_of_scores_have_no_bias(metric: str, where: str) -> None:
    model, vectors = trained(metric, dim=48)
    queries = drawn(60, 48, metric, seed=5)
    lists = model.assign(vectors) if where == "lists" else None
    found = model.encode(vectors, lists, np.arange(400, dtype=np.uint32))
    placed = np.full(400, model.lists) if lists is None else lists
    asked, stored = model.aimed(queries).astype(np.float64), model.centred(vectors)

    bases = (asked @ model.reducing.T) @ model.centres.T + model.bias
    levels = model.patterns.T.take(found.groups, axis=0).reshape(400, -1)[:, :48]
    estimates = bases[:, placed] + found.offsets
    estimates += (asked @ model.rotating.T) @ (levels * found.scales[:, None]).T
    true = asked @ stored.T
    if model.distances:
        true -= 0.5 * np.vecdot(stored, stored)
    errors = (estimates - true) / np.linalg.norm(asked, axis=1)[:, None]
    unit = np.linalg.norm(stored, axis=1)
    assert abs((errors / unit).mean()) < 0.02
    assert (errors / unit).std() < 0.15


@METRICS
@pytest.mark.parametrize(("coded", "bits"), [(20, 1), (12, 2), (7, 4)])
def test_codes_are_those_of_residuals(metric: str, coded: int, bits: int) -> None:
    model, vectors = trained(metric, coded=coded, bits=bits)
    lists = model.assign(vectors)
    found = model.encode(vectors, lists, np.arange(400, dtype=np.uint32))
    wide = model.centred(vectors).astype(np.float64)
    residuals = wide - model.centres[lists].astype(np.float64) @ model.reducing
    rotated = residuals @ model.rotating.T.astype(np.float64)
    levels = model.patterns.T.take(found.groups, axis=0).reshape(400, -1)[:, :coded]

    # RaBitQ's estimator is right of the residual's own direction.
    own = found.scales * np.vecdot(levels, rotated)
    np.testing.assert_allclose(own, np.vecdot(rotated, rotated), rtol=2e-3, atol=1e-6)


@METRICS
def test_a_large_batch_is_coded_as_many_small_ones(metric: str, monkeypatch) -> None:
    model, vectors = trained(metric)
    lists, names = model.assign(vectors), np.arange(400, dtype=np.uint32)
    whole = model.encode(vectors, lists, names)
    monkeypatch.setattr(models, "CODED_AT_ONCE", 33)

    assert np.array_equal(model.assign(vectors), lists)
    assert np.array_equal(model.encode(vectors, lists, names).groups, whole.groups)
    assert len(model.encode(vectors[:0], None, names[:0]).rows) == 0


@METRICS
@pytest.mark.parametrize("dim", [2, 3, 65, 130])
def test_a_model_comes_back_from_its_parts(metric: str, dim: int) -> None:
    model, vectors = trained(metric, dim=dim, lists=5)
    again = models.from_parts(metric, *models.to_parts(model))
    models.check(again, dim)

    for name in ("reducing", "rotating", "centres", "bias", "mean", "closed"):
        assert np.array_equal(getattr(again, name), getattr(model, name))
    assert np.array_equal(again.assign(vectors), model.assign(vectors))


def test_nearly_parallel_vectors_are_ranked_by_distances() -> None:
    rng = np.random.default_rng(0)
    for spread, distances in ((0.01, True), (1.0, False)):
        vectors = np.eye(1, 40) + spread * rng.normal(size=(500, 40))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        shape = Shape(lists=5, coded=40, bits=1)
        model = models.train(vectors.astype(np.float32), shape, "cosine", seed=1)
        assert model.distances is distances
        assert models.from_parts("cosine", *models.to_parts(model)).distances is distances


def test_a_few_vectors_far_out_do_not_move_the_mean(rng) -> None:
    vectors = rng.normal(size=(1000, 20)).astype(np.float32)
    vectors[::50] += 1e6
    mean = models.untrained(vectors, "l2", seed=1).mean

    assert np.abs(mean).max() < 0.3
    assert not models.untrained(vectors[:0], "l2", seed=1).mean.any()


def test_models_without_the_word_estimate_products_but_for_l2() -> None:
    for metric in ("cosine", "dot", "l2"):
        values, arrays = models.to_parts(trained(metric)[0])
        del values["distances"]
        assert models.from_parts(metric, values, arrays).distances == (metric == "l2")


def test_changing_lists_leaves_the_others_as_they_are() -> None:
    model, _ = trained("cosine")
    centres = model.centres.copy()
    centres[3] *= 7
    changed = model.with_lists(centres, model.closed)
    rest = np.arange(13) != 3

    np.testing.assert_allclose(changed.centres[rest], model.centres[rest], rtol=1e-6)
    before, after = (models.unpack(one.centroids.values)[:13] for one in (model, changed))
    assert np.array_equal(after[rest], before[rest])


def test_training_again_gives_the_same_model() -> None:
    one, _ = trained("l2")
    other, _ = trained("l2")

    for name in ("reducing", "rotating", "centres", "mean"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.zeros(19, np.float32)},
        {"mean": np.full(20, np.nan, np.float32)},
        {"closed": np.zeros(11, bool)},
        {"bits": 3},
        {"coded": 21},
        {"coded": 20.0},
        {"coarse": True},
        {"coarse": 0},
        {"distances": 1.5},
        {"distances": None},
        {"metric": "l2"},
        {"metric": "dot", "distances": True},
        {"signs": np.zeros((rotation.ROUNDS, 20), np.int8)},
        {"signs": np.ones((rotation.ROUNDS, 19), np.int8)},
        {"centroids": Matrix.of(np.zeros((13, 19), np.float32))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_parts_that_do_not_fit_are_refused(change) -> None:
    model, _ = trained("cosine")
    models.check(model, 20)
    with pytest.raises(ValueError):  # noqa: PT011  each part has a message of its own
        models.check(replace(model, **change), 20)
