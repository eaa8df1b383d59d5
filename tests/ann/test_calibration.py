"""Do budgets keep what they promise? They are held against a search written out in plain numpy."""

from dataclasses import dataclass

import numpy as np
import pytest

from vecstore.ann import calibration, codes
from vecstore.ann import model as models
from vecstore.ann.calibration import (
    FARTHEST,
    LEVELS,
    MOST_FINE,
    MOST_SLACK,
    SIZES,
    Asked,
    Part,
    Reading,
)
from vecstore.ann.codes import Codes
from vecstore.ann.model import Model, Shape

COUNT, QUERIES = 2000, 128


def clustered(rng, count: int, dim: int) -> np.ndarray:
    middles = np.random.default_rng(1).normal(size=(30, dim))
    return middles[rng.integers(0, 30, count)] + 0.4 * rng.normal(size=(count, dim))


def uneven(rng, count: int, dim: int) -> np.ndarray:
    """Half of the rows crowd in a tenth of the space: their codes are much surer than others'."""
    tight = rng.normal(size=(count, dim)) * 0.05 + 1
    return np.where((rng.random(count) < 0.5)[:, None], tight, rng.normal(size=(count, dim)))


def parallel(rng, count: int, dim: int) -> np.ndarray:
    """As clusters, and far from the origin."""
    return clustered(rng, count, dim) + 1000


def copies(rng, count: int, dim: int) -> np.ndarray:
    """Half of the rows are copies of ten."""
    ten = np.random.default_rng(2).normal(size=(10, dim))
    alike = ten[rng.integers(0, 10, count)]
    return np.where((rng.random(count) < 0.5)[:, None], alike, rng.normal(size=(count, dim)))


@dataclass
class Lab:
    """Rows, coded and in lists, and queries of the same kind."""

    model: Model
    vectors: np.ndarray
    lists: np.ndarray
    codes: Codes
    queries: np.ndarray

    @classmethod
    def of(cls, draw, dim: int, metric: str, seed: int = 0) -> "Lab":
        rng = np.random.default_rng(seed)
        every = draw(rng, COUNT + 300, dim).astype(np.float32)
        if metric == "cosine":
            every /= np.linalg.norm(every, axis=1, keepdims=True)
        vectors, queries = every[:COUNT], every[COUNT:]
        model = models.train(vectors, Shape(lists=40, coded=dim, bits=1), metric, seed=1)
        lists = model.assign(vectors)
        found = model.encode(vectors, lists, np.arange(COUNT, dtype=np.uint32))
        return cls(model, vectors, lists, found, queries)

    def calibrated(self, *, pieces: int = 4, real: np.ndarray | None = None) -> dict:
        rng = np.random.default_rng(3)
        own = rng.permutation(COUNT)[:QUERIES]
        rows = self.vectors[own]
        asked = Asked.of(rows, rows[rng.permutation(QUERIES)], own, self.model.metric, real)
        parts = [
            Part(self.vectors[part], self.lists[part], self.codes.take(part))
            for part in np.array_split(np.arange(COUNT), pieces)
        ]
        sizes = np.bincount(self.lists, minlength=self.model.lists)
        return calibration.calibrate(self.model, asked, parts, sizes)

    def exact(self, queries: np.ndarray) -> np.ndarray:
        asked = self.model.aimed(queries).astype(np.float64)
        stored = self.model.centred(self.vectors).astype(np.float64)
        square = 0.5 * np.vecdot(stored, stored) if self.model.distances else 0.0
        return asked @ stored.T - square

    def recall(self, queries: np.ndarray, k: int, budget: Reading) -> float:
        """The share of the k nearest that a search finds, without any rounding of the query."""
        model, exact = self.model, self.exact(queries)
        asked = model.aimed(queries).astype(np.float64)
        bases = (asked @ model.reducing.T) @ model.centres.T + model.bias
        levels = model.patterns.T.take(self.codes.groups, axis=0).reshape(COUNT, -1)
        rotated = asked @ model.rotating.T
        likely = (rotated @ levels[:, : model.dim].T) * self.codes.scales + self.codes.offsets
        likely += bases[:, self.lists]
        shares = []
        for number, query in enumerate(asked):
            far = bases[number, :-1].max() - bases[number, :-1]
            if model.metric == "dot":
                far = far / np.linalg.norm(query)
            elif model.distances:
                square = query @ query - 2 * bases[number, :-1].max()
                far = far / np.sqrt(max(square, 1e-30))
            rank = np.argsort(np.argsort(far, kind="stable"))
            reached = (np.log1p(rank) + budget.gap * far <= budget.reach)[self.lists]
            noise = budget.slack * self.codes.scales * np.linalg.norm(rotated[number])
            # Fine codes know the k best that were reached, and no better ones.
            known = np.sort(exact[number][reached])[::-1]
            bound = known[k - 1] if len(known) >= k else -np.inf
            kept = reached & (likely[number] + noise >= bound - 1e-6 * abs(bound))
            nearest = np.sort(exact[number])[::-1][k - 1]
            shares.append(min(k, int((exact[number][kept] >= nearest).sum())) / k)
        return float(np.mean(shares))


@pytest.mark.parametrize(
    ("draw", "dim", "metric"),
    [
        (clustered, 32, "dot"),
        (uneven, 24, "l2"),
        (uneven, 24, "cosine"),
        (copies, 16, "l2"),
        (copies, 16, "cosine"),
        (parallel, 24, "cosine"),
        (parallel, 24, "dot"),
        (clustered, 3, "l2"),
        (clustered, 2, "dot"),
    ],
)
def test_budgets_reach_the_recall_that_they_are_for(draw, dim: int, metric: str) -> None:
    lab = Lab.of(draw, dim, metric)
    budgets = lab.calibrated()

    for recall in (0.8, 0.9, 0.95, 0.99):
        for k in SIZES:
            budget = calibration.read(budgets, recall, k)
            assert budget.recall >= recall - 0.005
            found = lab.recall(lab.queries, k, budget)
            assert found >= recall - (0.06 if k == 1 else 0.03), (recall, k, found)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_what_is_expected_is_what_comes_of_the_queries_measured(metric: str) -> None:
    lab = Lab.of(clustered, 32, metric)
    budgets = lab.calibrated(real=lab.queries)

    for recall in (0.8, 0.95):
        budget = calibration.read(budgets, recall, 10)
        assert lab.recall(lab.queries, 10, budget) >= budget.recall - 0.01


def test_more_recall_never_costs_less() -> None:
    budgets = Lab.of(uneven, 24, "l2").calibrated()

    for curve in budgets["sizes"].values():
        reach, slack, expected = np.array(curve).T
        assert (np.diff(reach) >= 0).all()
        assert (np.diff(slack) >= 0).all()
        assert (np.diff(expected) >= 0).all()
        assert ((slack >= 0) & (slack <= FARTHEST)).all()


def test_it_does_not_matter_in_how_many_parts_rows_come() -> None:
    lab = Lab.of(clustered, 16, "cosine")
    one, many = lab.calibrated(pieces=1), lab.calibrated(pieces=60)

    assert one["gap"] == many["gap"]
    for k in map(str, SIZES):
        np.testing.assert_allclose(one["sizes"][k], many["sizes"][k], atol=1e-6)


def test_a_row_is_not_its_own_neighbour(rng) -> None:
    """Rows that lie alone: each would be found in its own list, its neighbours are far."""
    vectors = rng.normal(size=(COUNT, 24)).astype(np.float32)
    lab = Lab.of(lambda *_: np.concatenate([vectors, vectors[:300]]), 24, "l2")
    budget = calibration.read(lab.calibrated(), 0.95, 1)

    assert lab.recall(lab.queries, 1, budget) > 0.99
    others = rng.normal(size=(300, 24)).astype(np.float32)
    assert lab.recall(others, 1, budget) > 0.92


def test_the_harder_half_of_the_queries_decides(rng) -> None:
    lab = Lab.of(clustered, 32, "cosine")
    strange = rng.normal(size=(200, 32)).astype(np.float32)
    usual, harder = lab.calibrated(), lab.calibrated(real=strange)

    asked, shifted = (calibration.read(found, 0.95, 10) for found in (usual, harder))
    unit = strange / np.linalg.norm(strange, axis=1, keepdims=True)
    assert lab.recall(unit, 10, asked) < 0.9
    assert lab.recall(unit, 10, shifted) > 0.94


def test_few_real_queries_do_not_decide(rng) -> None:
    lab = Lab.of(clustered, 32, "cosine")
    few = rng.normal(size=(calibration.LEAST_REAL - 1, 32)).astype(np.float32)

    assert lab.calibrated(real=few) == lab.calibrated()


@pytest.mark.parametrize("there", [2, 11, 50])
def test_sizes_of_answers_that_there_are_no_rows_for_are_not_measured(there: int) -> None:
    lab = Lab.of(clustered, 8, "cosine")
    few = np.arange(there)
    asked = Asked.of(lab.vectors[few], lab.vectors[few], few, "cosine", None)
    part = Part(lab.vectors[few], lab.lists[few], lab.codes.take(few))
    budgets = calibration.calibrate(lab.model, asked, [part], np.bincount(lab.lists))

    # A row is not its own neighbour.
    assert [int(k) for k in budgets["sizes"]] == [k for k in SIZES if k < there]
    assert calibration.read(budgets, 0.95, 1000).reach >= 0


def curves(**sizes: float) -> dict:
    """Budgets where reach is recall times a factor, slack twice that, for each size of answer."""
    named = {
        name[1:]: [[level * factor, 2 * level * factor, level] for level in LEVELS]
        for name, factor in sizes.items()
    }
    return {"gap": 3.0, "fine": 1.5, "levels": list(LEVELS), "sizes": named}


def test_budgets_are_read_at_and_between_what_was_measured() -> None:
    budgets = curves(k1=1.0, k10=2.0, k100=4.0)

    assert calibration.read(budgets, 0.9, 10) == pytest.approx(Reading(3.0, 1.8, 3.6, 1.5, 0.9))
    between = calibration.read(budgets, 0.8, round(10**1.5))
    assert between.reach == pytest.approx(0.8 * 3, rel=0.02)
    assert calibration.read(budgets, 0.96, 1).reach == pytest.approx(0.96)
    assert calibration.read(budgets, 0.1, 1).reach == pytest.approx(LEVELS[0])


def test_beyond_what_was_measured_the_reach_grows_on() -> None:
    beyond = calibration.read(curves(k1=1.0, k10=2.0, k100=4.0), 0.9, 1000)

    assert beyond.reach == pytest.approx(0.9 * 6)
    assert beyond.slack == pytest.approx(2 * 0.9 * 4)


def test_unmeasured_budgets_can_be_read_for_every_size() -> None:
    model = models.untrained(np.zeros((0, 16), np.float32), "cosine", seed=1)
    for k in (1, 10, 5000):
        found = calibration.read(calibration.unmeasured(model), 0.95, k)
        assert (found.gap, found.slack, found.fine) == (0.0, MOST_SLACK, MOST_FINE)
        assert found.recall == pytest.approx(0.95)


def test_rows_mixed_with_others_are_queries_unlike_the_rows(rng) -> None:
    rows = rng.normal(size=(50, 16)).astype(np.float32)
    found = calibration.queries(rows, rows[::-1], "cosine")

    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:50], rows / lengths, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found[50:], axis=1), 1, rtol=1e-5)
    assert np.array_equal(calibration.queries(rows, rows[::-1], "dot")[:50], rows)
    opposite = calibration.queries(rows, -rows * 1.5, "cosine")
    assert np.isfinite(opposite).all()


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("dim", [2, 16, 200])
def test_fine_codes_are_off_by_no_more_than_was_measured(metric: str, dim: int) -> None:
    lab = Lab.of(uneven, dim, metric)
    most = lab.calibrated()["fine"]
    model, asked = lab.model, lab.model.aimed(lab.queries)
    levels = codes.unpack_fine(lab.codes.fine, dim)
    bases = (asked @ model.reducing.T) @ model.centres.T + model.bias
    estimates = (model.turn(asked) @ levels.T) * lab.codes.fine_scales + lab.codes.offsets
    estimates += bases[:, lab.lists]

    units = np.linalg.norm(asked, axis=1)[:, None] * lab.codes.fine_scales
    errors = np.abs(estimates - lab.exact(lab.queries))
    assert 0 < most <= MOST_FINE
    assert (errors > most * units + 1e-4).mean() < 0.005


def test_fewer_rows_are_narrowed_with_more_bits() -> None:
    lab = Lab.of(clustered, 64, "cosine")
    asked, own = lab.vectors[:50], np.arange(50)
    found = []
    for bits in (1, 2, 4):
        model = models.recode(lab.model, np.eye(64, dtype=np.float32), 64, bits)
        coded = model.encode(lab.vectors, lab.lists, lab.codes.rows)
        part = Part(lab.vectors, lab.lists, coded)
        found.append(calibration.costs(model, asked, own, part)[0])

    assert 10 <= found[2] < found[1] < found[0] < COUNT
