"""Does an index stay good while all that it was made of is replaced? Nobody calls `optimize`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import Collection, Database, catalog, maintenance
from vecstore.ann import compiled, index
from vecstore.ann.index import Index

BACKLOG = 500
QUERIES = 300
# A recall may be measured so many standard errors below what is promised by chance.
CHANCE = 3.0


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """numpy's answers are the same, and take minutes for so many queries."""
    compiled.compile_now()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "AUTO_ROWS", 800)
    monkeypatch.setattr(maintenance, "AUTO_BYTES", 1)
    monkeypatch.setattr(maintenance, "BACKLOG", BACKLOG)


@dataclass
class World:
    """A kind of data: clusters in a few directions, elsewhere in every generation."""

    dim: int
    metric: str
    seed: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.move()

    def move(self) -> None:
        """Go elsewhere: nothing is as it was, neither directions nor spread nor place."""
        rng, rank = self.rng, int(self.rng.integers(4, 12))
        self.axes = rng.normal(size=(rank, self.dim)) / rank**0.5
        self.middles = rng.normal(size=(int(rng.integers(5, 60)), rank)) * rng.uniform(0.5, 2)
        self.place = rng.normal(size=self.dim) * rng.uniform(0, 3)

    def vectors(self, count: int) -> np.ndarray:
        near = self.middles[self.rng.integers(0, len(self.middles), count)]
        near = near + 0.5 * self.rng.normal(size=near.shape)
        noise = 0.05 * self.rng.normal(size=(count, self.dim))
        return (near @ self.axes + self.place + noise).astype(np.float32)


class Mirror:
    """A collection beside a dict of its vectors."""

    def __init__(self, db: Database, world: World) -> None:
        self.db, self.world = db, world
        self.collection: Collection = db.collection("c", dim=world.dim, metric=world.metric)
        self.rows: dict[int, np.ndarray] = {}

    def upsert(self, ids: np.ndarray) -> None:
        vectors = self.world.vectors(len(ids))
        self.collection.upsert(vectors=vectors, ids=ids.tolist())
        self.rows.update(zip(ids.tolist(), vectors, strict=True))

    def delete(self, ids: np.ndarray) -> None:
        gone = [self.rows.pop(i) for i in ids.tolist() if i in self.rows]
        assert self.collection.delete(ids.tolist()) == len(gone)

    def replace_all(self) -> None:
        """Replace every record, in random order and batches of any size."""
        self.world.move()
        order = self.world.rng.permutation(sorted(self.rows))
        for batch in self.batches(order):
            self.upsert(batch)

    def batches(self, order: np.ndarray) -> Iterator[np.ndarray]:
        at = 0
        while at < len(order):
            size = int(np.exp(self.world.rng.uniform(0, np.log(1000))))
            yield order[at : at + size]
            at += size

    def index(self) -> Index:
        with self.db.reading() as reader:
            entry = catalog.find(reader, "c")
            found = index.load(reader, entry, catalog.state(reader, entry.number))
        assert found is not None
        return found

    def sizes(self) -> np.ndarray:
        """Living rows of each list that is open."""
        found = self.index()
        with self.db.reading() as reader:
            entry = catalog.find(reader, "c")
            names = [
                index.read_list(reader, entry.number, found.model, which).rows
                for which in np.flatnonzero(~found.model.closed).tolist()
            ]
        return np.array([len(rows) for rows in names])

    def check_stored(self, recall: float) -> None:
        """As `check`, with queries near to records of any age."""
        picked = self.world.rng.permutation(sorted(self.rows))[:QUERIES].tolist()
        stored = np.array([self.rows[i] for i in picked])
        self.check(recall, stored + 0.01 * self.world.rng.normal(size=stored.shape))

    def check(self, recall: float, queries: np.ndarray | None = None) -> None:
        """Assert that approximate answers are sound and as good as was asked for."""
        queries = self.world.vectors(QUERIES) if queries is None else queries
        assert self.index().kind == "auto"
        scores = exact_scores(np.array([*self.rows.values()]), queries, self.world.metric)
        ids = np.array([*self.rows])
        near = self.collection.search_many(queries, recall=recall, include=())
        shares = []
        for row, hits in zip(scores, near, strict=True):
            assert hits.plan.method == "index"
            assert len(hits) == len({*hits.ids}) == 10
            assert {*hits.ids} <= {*self.rows}
            best = ids[np.argsort(-row, kind="stable")[:10]]
            shares.append(len({*hits.ids} & {*best.tolist()}) / 10)
        doubt = CHANCE * np.std(shares) / QUERIES**0.5
        assert np.mean(shares) >= recall - 0.01 - doubt, (np.mean(shares), doubt)


def exact_scores(stored: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    """float64 (queries, rows); the more the nearer."""
    wide, asked = stored.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    if metric != "l2":
        return asked @ wide.T
    middle = wide.mean(axis=0)
    wide, asked = wide - middle, asked - middle
    return asked @ wide.T - 0.5 * np.vecdot(wide, wide)


def check_shape(mirror: Mirror) -> None:
    """Assert that neither lists nor the tail have grown out of hand."""
    sizes, count = mirror.sizes(), len(mirror.rows)
    state = mirror.collection.stats()
    assert sizes.sum() + state["dead_rows"] >= count - 2 * BACKLOG
    # A list is split when it is next tended to, and a batch may be of 1,000.
    assert sizes.max() <= max(256, 3 * count / len(sizes)) + 1000 + BACKLOG
    assert len(sizes) <= 8 * count**0.5


@pytest.mark.parametrize(
    ("count", "turnovers", "dim", "metric"),
    [(4000, 3, 16, "cosine"), (2000, 1, 48, "l2"), (2000, 1, 33, "dot")],
)
def test_recall_holds_through_turnovers_of_all_records(
    path: Path, count: int, turnovers: int, dim: int, metric: str
) -> None:
    with vecstore.open(path, durable=False) as db:
        mirror = Mirror(db, World(dim, metric, seed=dim))
        for batch in mirror.batches(np.arange(count)):
            mirror.upsert(batch)
        mirror.check(0.9)
        bytes_before = path.stat().st_size
        for _ in range(turnovers):
            mirror.replace_all()
            assert sorted(mirror.rows) == list(range(count))
            mirror.check(0.9)
            mirror.check(0.95)
            check_shape(mirror)
            assert db.check() == []
        assert path.stat().st_size < 4 * bytes_before


def test_recall_holds_while_records_go_and_come_again(path: Path) -> None:
    with vecstore.open(path, durable=False) as db:
        mirror = Mirror(db, World(24, "l2", seed=4))
        mirror.upsert(np.arange(3000))
        for _ in range(6):
            gone = mirror.world.rng.permutation(3000)[:700]
            mirror.delete(gone)
            mirror.upsert(mirror.world.rng.permutation(gone)[:680])
        mirror.check(0.95)
        check_shape(mirror)
        assert db.check() == []


def test_recall_holds_while_a_collection_grows_and_shrinks(path: Path) -> None:
    with vecstore.open(path, durable=False) as db:
        mirror = Mirror(db, World(16, "cosine", seed=5))
        mirror.upsert(np.arange(1000))
        mirror.check(0.9)
        for first in range(1000, 20_000, 1900):
            mirror.upsert(np.arange(first, first + 1900))
        mirror.check(0.95)
        check_shape(mirror)
        order = mirror.world.rng.permutation(20_000)
        mirror.delete(order[2000:])
        mirror.check(0.9)
        check_shape(mirror)
        mirror.delete(order[100:2000])
        hits = mirror.collection.search(mirror.world.vectors(1)[0], 200)
        assert {*hits.ids} == {*mirror.rows}
        assert db.check() == []
        mirror.world.move()
        mirror.upsert(np.arange(3000))
        mirror.check(0.95)
        assert db.check() == []


def test_recall_holds_while_the_data_drift(path: Path) -> None:
    """The oldest records go, and each batch is a little farther on."""
    with vecstore.open(path, durable=False) as db:
        mirror = Mirror(db, World(20, "l2", seed=6))
        first, size, kept = 0, 300, 2400
        for step in range(27):
            mirror.world.place += 0.3
            mirror.upsert(np.arange(first, first + size))
            first += size
            if first > kept:
                mirror.delete(np.arange(first - kept - size, first - kept))
            if step % 13 == 12:
                mirror.check_stored(0.9)
        check_shape(mirror)
        assert db.check() == []
