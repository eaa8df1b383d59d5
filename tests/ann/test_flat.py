"""Comparing all rows by their bytes: the hits are those of numpy's comparison, to the bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexed import by_numpy, found
from odd_vectors import KINDS, drawn

import vecstore
from vecstore import Database, catalog, layout
from vecstore.ann import compiled, flat, rounding
from vecstore.errors import CorruptionError

METRICS = ["cosine", "dot", "l2"]


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    """Compiled kernels, which small collections use too."""
    patch = pytest.MonkeyPatch()
    patch.setattr(flat, "LEAST_BYTES", 0)
    patch.setattr(flat, "LEAST_A_BLOCK", 0)
    compiled.compile_now()
    yield
    patch.undo()


def assert_same(collection, queries, **asked):
    """The same hits with and without bytes; return how many queries bytes have answered."""
    mine = collection.search_many(queries, **asked)
    with by_numpy():
        right = collection.search_many(queries, **asked)
    assert list(map(found, mine)) == list(map(found, right))
    for query, hits in zip(queries[:2], right, strict=False):
        assert found(collection.search(query, **asked)) == found(hits)
    return sum(hits.plan.scanned > 0 for hits in mine)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_hits_are_those_of_numpy(data):
    metric, kind = data.draw(st.sampled_from(METRICS)), data.draw(st.sampled_from(KINDS))
    precision = "float32"
    if kind not in ("huge", "tiny", "uneven"):
        precision = data.draw(st.sampled_from(["float32", "float16"]))
    dim, count = data.draw(st.sampled_from([2, 3, 16, 17, 70, 384])), data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    vectors = drawn(rng, count, dim, kind)
    if metric == "cosine":
        # Vectors of zeros have no direction.
        vectors[~vectors.any(axis=1)] = 1
    queries = np.concatenate([vectors[:3], drawn(rng, 9, dim, kind)])
    queries[~queries.any(axis=1)] = 1
    with vecstore.open(":memory:") as db:
        points = db.collection("p", dim=dim, metric=metric, index="flat", precision=precision)
        points.add(vectors=vectors, ids=range(count), metadata=[{"n": n % 3} for n in range(count)])
        k = data.draw(st.sampled_from([1, 10, 64, 400]))
        assert_same(points, queries, k=k)
        assert_same(points, queries, k=k, where={"n": 1}, offset=2)
        points.delete(range(0, count, 2))
        points.upsert(vectors=vectors[: 1 + count // 3], ids=range(1 + count // 3))
        assert_same(points, queries, k=k, include=())
        assert db.check() == []


def test_bytes_answer_most_searches(rng):
    with vecstore.open(":memory:") as db:
        points = db.collection("p", dim=64, index="flat")
        points.add(vectors=rng.normal(size=(2000, 64)), ids=range(2000))
        queries = rng.normal(size=(50, 64)).astype(np.float32)

        assert assert_same(points, queries, k=10) == 50

        explained = points.explain(queries[0])
        assert explained.answered_by == "compiled"
        assert explained.method == "scan"
        assert 10 <= explained.compared < explained.narrowed < 2000
        assert explained.hits.complete == "exact"


def test_the_kernel_is_loaded_only_where_that_pays(monkeypatch):
    finder = compiled.Finder("compare")
    monkeypatch.setitem(compiled._finders, "compare", finder)
    monkeypatch.setattr(compiled, "ready", lambda name: len)
    monkeypatch.setattr(compiled, "ENOUGH", 1000)

    assert [compiled.ready_after("compare", 400) for _ in range(4)] == [None, None, len, len]
    assert not compiled.loaded("compare")
    finder.kernel = len
    assert compiled.ready_after("compare", 0) is len


def test_where_bytes_do_not_help_numpy_answers(rng):
    with vecstore.open(":memory:") as db:
        points = db.collection("p", dim=8, metric="l2", index="flat")
        count = 2 * flat.ROOM
        points.add(vectors=rng.normal(size=(count, 8)).astype(np.float32) + 1000, ids=range(count))

        assert assert_same(points, np.full((9, 8), 1000, np.float32), k=10) == 0
        explained = points.explain(np.full(8, 1000, np.float32))
        assert "hydrate" in explained.milliseconds
        assert explained.compared == count


def test_other_searches_are_as_before(rng):
    with vecstore.open(":memory:") as db:
        points = db.collection("p", dim=32, index="flat")
        points.add(vectors=rng.normal(size=(500, 32)), ids=range(500))
        query = rng.normal(size=32).astype(np.float32)
        first = points.search(query, k=5)

        assert points.search(query, k=5, after=first[-1]).plan.scanned == 0
        assert points.search(query, k=5, dims=16).plan.scanned == 0
        with db.transaction():
            inside = points.search(query, k=5)
            assert inside.plan.scanned == 0
            assert found(inside) == found(first)
        assert points.search(query, k=5, min_score=first[2].score).ids == first.ids[:3]
        assert len(points.search(query, k=10_000)) == 500


@pytest.mark.parametrize("declared", [{"precision": "int8"}, {"metric": "hamming"}])
def test_bytes_are_kept_of_vectors_that_are_longer(memory: Database, declared):
    points = memory.collection("p", dim=64, index="flat", **declared)
    points.add(vectors=np.ones((70, 64), bool if "metric" in declared else np.float32))

    assert points.stats()["space"]["rounded"]["values"] == 0
    assert memory.check() == []


def test_bytes_come_and_go_with_the_kind(memory: Database, rng):
    points = memory.collection("p", dim=32)
    points.add(vectors=rng.normal(size=(500, 32)), ids=range(500))
    queries = rng.normal(size=(9, 32)).astype(np.float32)
    points.delete(range(64, 128))
    assert assert_same(points, queries) == 0

    points.reindex("flat")
    size = points.stats()["space"]["rounded"]["values"]
    assert size == 7 * (48 + 64 * (12 + 32))
    assert assert_same(points, queries) == 9
    points.reindex("flat")
    assert points.stats()["space"]["rounded"]["values"] == size
    points.delete(range(128, 400))
    memory.compact()
    assert assert_same(points, queries) == 9
    assert memory.check() == []

    for kind in ("ivf", "auto", "hash"):
        points.reindex(kind)
        assert points.stats()["space"]["rounded"]["values"] == 0
        assert memory.check() == []


def _change(db, change):
    """Change the bytes of the first block, leaving a right checksum."""

    def work(txn):
        key = layout.block_key(1, 0, layout.BYTE_TIER)
        value = bytearray(txn.get("tiers", key))
        change(value)
        header = layout.unpack_header(value, "bytes")
        txn.put("tiers", key, bytes(layout.seal_bulk(header, value, header.length)))

    db.writing(work)


@pytest.fixture
def broken():
    """A database that a test damages."""
    with vecstore.open(":memory:") as db:
        yield db


@pytest.fixture
def damaged(broken, rng):
    points = broken.collection("p", dim=32, index="flat")
    points.add(vectors=rng.normal(size=(200, 32)), ids=range(200))
    return points


def test_hostile_bytes_find_living_rows_with_their_scores(broken, damaged, rng):
    queries = rng.normal(size=(20, 32)).astype(np.float32)
    with by_numpy():
        every = [
            dict(zip(hits.ids, hits.scores, strict=True))
            for hits in damaged.search_many(queries, k=200)
        ]
    for seed in range(30):
        noise = np.random.default_rng(seed)

        def change(value, noise=noise):
            for _ in range(40):
                value[layout.HEADER.size + int(noise.integers(64 * 44))] = int(noise.integers(256))

        _change(broken, change)
        for hits, scores in zip(damaged.search_many(queries, k=10), every, strict=True):
            assert [scores[hit.id] for hit in hits] == hits.scores.tolist()


def test_bounds_that_are_not_true_are_found(broken, damaged):
    _change(broken, lambda value: value.__setitem__(slice(48 + 256, 48 + 260), bytes(4)))

    (problem,) = broken.check()
    assert "1 rows, such as 0, are farther off (14)" in str(problem)


def test_bytes_that_are_missing_are_found(broken, damaged, rng):
    broken.writing(lambda txn: txn.delete("tiers", layout.block_key(1, 1, layout.BYTE_TIER)))

    (problem,) = broken.check()
    assert "block 1 has none (14)" in str(problem)
    query = rng.normal(size=32)
    with pytest.raises(CorruptionError, match="block 1 is missing; records are not affected"):
        damaged.search(query)
    # What is compared with vectors alone needs no bytes.
    assert len(damaged.search(query, recall="exact")) == 10
    damaged.reindex("flat")
    assert len(damaged.search(query)) == 10
    assert broken.check() == []


def test_audits_see_what_damaged_bytes_miss(broken, damaged):
    assert damaged.audit(sample=50).recall == 1.0
    # Every row of the block is said to be nowhere near anything.
    _change(broken, lambda value: value.__setitem__(slice(48, 48 + 768), bytes(768)))

    found = damaged.audit(sample=200)
    assert found.recall < 0.95
    assert not found.holds


def test_bytes_of_nothing_are_found(broken, damaged):
    def work(txn):
        value = bytes(txn.get("tiers", layout.block_key(1, 1, layout.BYTE_TIER)))
        txn.put("tiers", layout.block_key(1, 9, layout.BYTE_TIER), value)

    broken.writing(work)

    (problem,) = broken.check()
    assert "is not expected (14)" in str(problem)


def test_a_flipped_bit_is_found(broken, damaged):
    def work(txn):
        key = layout.block_key(1, 0, layout.BYTE_TIER)
        value = bytearray(txn.get("tiers", key))
        value[1000] ^= 1
        txn.put("tiers", key, bytes(value))

    broken.writing(work)

    assert any("checksum" in str(problem) for problem in broken.check())
    with broken.reading() as reader:
        entry = catalog.find(reader, "p")
        with pytest.raises(CorruptionError, match="checksum"):
            rounding.read(reader, entry, 0)
