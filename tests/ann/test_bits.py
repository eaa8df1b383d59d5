"""Comparing all binary rows with compiled code: the hits are those of numpy's comparison."""

import shutil

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from indexed import by_numpy, found

import vecstore
from vecstore import CorruptionError, catalog, layout, plain, planner, rows
from vecstore.ann import bits, buckets, compiled, lookup
from vecstore.ann.engine import Call

dims = st.sampled_from([8, 64, 72, 192, 256, 320, 448, 512, 8192]) | st.integers(1, 64).map(
    lambda n: 8 * n
)
counts = st.sampled_from([0, 1, 2, 3, 4, 5, 63, 64, 65, 67, 130]) | st.integers(0, 500)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    """Compiled kernels, which small collections use too."""
    patch = pytest.MonkeyPatch()
    patch.setattr(bits, "LEAST_ROWS", 1)
    patch.setattr(bits, "LEAST_A_BLOCK", 0)
    compiled.compile_now()
    yield
    patch.undo()


def drawn(rng, count, dim):
    """Packed bits of which many are equal, or equally far."""
    vectors = rng.integers(0, 256, (count, dim // 8)).astype(np.uint8)
    if count:
        vectors[rng.random(count) < 0.3] = vectors[0]
        vectors[rng.random(count) < 0.1] = 255
    return vectors


def assert_same(collection, queries, **asked):
    """The same hits with and without the kernel; return how many queries it has answered."""
    mine = collection.search_many(queries, **asked)
    with by_numpy():
        right = collection.search_many(queries, **asked)
        assert all(hits.plan.scanned == 0 for hits in right)
    assert list(map(found, mine)) == list(map(found, right))
    asked.pop("threads", None)
    for query, hits in zip(queries[:2], right, strict=False):
        assert found(collection.search(query, **asked)) == found(hits)
    return sum(hits.plan.scanned > 0 for hits in mine)


@given(seeds, dims, counts, st.integers(1, 20), st.sampled_from([1, 3, 10, 600]))
@example(1, 8192, 131, 9, 10)
@example(2, 8, 500, 17, 600)
def test_hits_are_those_of_numpy(seed, dim, count, asked, k):
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=dim, metric="hamming")
        if count:
            vectors = drawn(rng, count, dim)
            metadata = [{"third": n % 3} for n in range(count)]
            collection.add(vectors=vectors, ids=range(count), metadata=metadata)
        # Rows and orders part, and rows die.
        for _ in range(int(rng.integers(0, 3))):
            keys = rng.permutation(count)[: count // 3]
            collection.delete(keys[::2].tolist())
            if len(keys):
                collection.upsert(vectors=drawn(rng, len(keys), dim), ids=keys.tolist())
        queries = drawn(rng, asked, dim)
        answered = assert_same(collection, queries, k=k)
        assert answered == (asked if collection.count() else 0)
        assert_same(collection, queries, k=k, where={"third": 1}, offset=2)
        assert_same(collection, queries, k=k, min_score=-dim / 3, include=())
        assert_same(collection, queries, k=k, dims=8)


def test_threads_share_queries(memory):
    rng = np.random.default_rng(0)
    collection = memory.collection("c", dim=128, metric="hamming", index="flat")
    collection.add(vectors=drawn(rng, 1000, 128))
    assert assert_same(collection, drawn(rng, 100, 128), k=7, threads=3) == 100


def test_many_orders_are_ranked_alike(memory):
    """As many hits as the kernel holds, all equally near."""
    collection = memory.collection("c", dim=16, metric="hamming")
    collection.add(vectors=np.zeros((3000, 2), np.uint8), ids=range(3000))
    collection.upsert(vectors=np.ones((500, 2), np.uint8), ids=range(500))
    collection.upsert(vectors=np.zeros((500, 2), np.uint8), ids=range(500))
    hits = collection.search([0, 0], bits.MOST_WANTED)
    assert hits.ids == list(range(bits.MOST_WANTED))
    assert hits.plan.scanned > 0
    more = collection.search([0, 0], bits.MOST_WANTED + 1)
    assert more.ids == list(range(bits.MOST_WANTED + 1))
    assert more.plan.scanned == 0


def test_the_tail_of_buckets_is_compared_by_the_kernel(memory, monkeypatch):
    monkeypatch.setattr(buckets, "LEAST_ROWS", 1)
    monkeypatch.setattr(planner, "FEW", 0)
    monkeypatch.setattr(lookup, "START_COST", 0.0)
    rng = np.random.default_rng(0)
    collection = memory.collection("c", dim=64, metric="hamming", index="hash")
    vectors = drawn(rng, 900, 64)
    collection.add(vectors=vectors[:640], ids=range(640))
    collection.optimize()
    collection.add(vectors=vectors[640:], ids=range(640, 900))
    collection.delete(range(600, 660))
    for costs in ((1e9, 1.0), (1e-9, 1e-9)):
        monkeypatch.setattr(lookup, "COMPILED_COSTS", costs)
        monkeypatch.setattr(lookup, "NUMPY_COSTS", costs)
        found_by = collection.search(vectors[700], 5).plan.method
        assert found_by == ("buckets" if costs[0] > 1 else "scan")
        for asked in ({"k": 5}, {"k": 300}, {"k": 2000, "min_score": -20}, {"k": 5, "offset": 9}):
            mine = collection.search_many(vectors[::90], **asked)
            with by_numpy():
                right = collection.search_many(vectors[::90], **asked)
            assert list(map(found, mine)) == list(map(found, right))


def test_explain_says_who_answered(memory):
    collection = memory.collection("c", dim=64, metric="hamming")
    collection.add(vectors=drawn(np.random.default_rng(0), 200, 64))
    told = collection.explain(np.zeros(8, np.uint8), 5)
    assert (told.method, told.answered_by, told.kernels) == ("scan", "compiled", "compiled")
    assert (told.scanned, told.compared) == (200, 200)
    with by_numpy():
        told = collection.explain(np.zeros(8, np.uint8), 5)
    assert (told.method, told.answered_by, told.compared) == ("scan", "numpy", 200)


def test_entries_that_are_missing_are_noted(memory):
    collection = memory.collection("c", dim=64, metric="hamming")
    vectors = drawn(np.random.default_rng(0), 300, 64)
    collection.add(vectors=vectors, ids=range(300))
    with memory.reading() as reader:
        entry = catalog.find(reader, "c")
        state = catalog.state(reader, entry.number)
        mask = rows.live(reader, entry.number, state)
        job = bits.BitComparison(entry, state, mask, 4)
        shared = list(job.fill(reader, plain.NOTHING, np.zeros(0, np.intp)))
        place = next(i for i, array in enumerate(shared) if array.dtype == np.uint64 and len(array))
        shared[place] = shared[place].copy()
        shared[place][[1, 3]] = 0
        call = Call(vectors[:2].view(np.uint64).view(np.float32), 4)
        call.share(tuple(shared))
        kernel = compiled.ready("compare_bits")
        assert kernel(call.frame.address, 0) == 0
        assert call.missing[:4].tolist() == [plain.BLOCK, 2, 1, 3]


def test_a_block_that_is_another_is_refused(memory, tmp_path):
    path = tmp_path / "a.vecstore"
    with vecstore.open(path) as db:
        collection = db.collection("c", dim=64, metric="hamming")
        collection.add(vectors=drawn(np.random.default_rng(0), 300, 64))

        def work(txn):
            key = layout.block_key(1, 2)
            value = bytearray(txn.get("tiers", key))
            value[8:12] = (2**31).to_bytes(4, "little")
            txn.put("tiers", key, value)

        db.writing(work)
    with (
        vecstore.open(shutil.copy(path, tmp_path / "b.vecstore")) as db,
        pytest.raises(CorruptionError, match="block 2"),
    ):
        db.collection("c").search(np.zeros(8, np.uint8))
