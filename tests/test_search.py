"""Is every answer the exact one? Against float64 numpy, over every option and state."""

import math
from typing import Any

import numpy as np
import pytest
import strategies as own
from hypothesis import example, given
from hypothesis import strategies as st
from reference import Model, exactly

import vecstore
from vecstore import FilterError, Hit, Hits, UsageError, VectorError
from vecstore.encoders import HashEncoder
from vecstore.spec import PRECISIONS

METRICS = ("cosine", "dot", "l2")
COUNTS = (0, 1, 2, 63, 64, 65, 127, 128, 129, 191, 300)

metrics = st.sampled_from(METRICS)
precisions = st.sampled_from(PRECISIONS)
seeds = st.integers(0, 2**32 - 1)
dims = st.sampled_from([2, 3, 5, 7, 17, 31, 65, 129, 333, 700]) | st.integers(2, 700)
counts = st.sampled_from(COUNTS) | st.integers(0, 300)
ks = st.sampled_from([1, 2, 10, 64, 1000]) | st.integers(1, 320)


def draw_vectors(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Vectors with duplicates, near duplicates and, where it is allowed, extremes of length."""
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    for row in range(1, n):
        kind = rng.integers(10)
        if kind < 3:
            vectors[row] = vectors[rng.integers(row)]
        elif kind == 3:
            vectors[row] = vectors[rng.integers(row)] * np.float32(1 + 1e-6)
        elif kind == 4:
            vectors[row] = np.round(vectors[row])
            vectors[row, 0] += 10
    return vectors


def fill(
    collection: vecstore.Collection, model: Model, vectors: np.ndarray, metadata: Any = None
) -> None:
    rows = metadata or [{"n": number} for number in range(len(vectors))]
    for key, (vector, values) in enumerate(zip(vectors, rows, strict=True)):
        model.put(key, vector, metadata=values)
    if len(vectors):
        collection.add(vectors=vectors, ids=range(len(vectors)), metadata=rows)


def churn(
    rng: np.random.Generator, collection: vecstore.Collection, model: Model, dim: int
) -> None:
    """Delete, replace and add records until rows are dead, free and used again."""
    for _ in range(3):
        keys = list(model.rows)
        doomed = [key for key in keys if rng.random() < 0.4]
        collection.delete(doomed)
        model.delete(doomed)
        changed = [key for key in model.rows if rng.random() < 0.3]
        first = int(rng.integers(1000, 10**9))
        changed += range(first, first + int(rng.integers(80)))
        if changed:
            vectors = draw_vectors(rng, len(changed), dim)
            metadata = [{"n": key} for key in changed]
            collection.upsert(vectors=vectors, ids=changed, metadata=metadata)
            for key, vector, values in zip(changed, vectors, metadata, strict=True):
                model.put(key, vector, metadata=values)


def make(db: Any, metric: str, dim: int, precision: str = "float32") -> tuple[Any, Model]:
    """A collection and its model."""
    collection = db.collection("c", dim=dim, metric=metric, precision=precision)
    return collection, Model(dim, metric, precision=precision)


@given(metrics, precisions, seeds, dims, counts, ks)
@example("cosine", "float32", 1, 700, 129, 10)
@example("l2", "float32", 2, 3, 65, 64)
@example("dot", "float32", 3, 2, 128, 1)
def test_the_hits_are_those_of_float64_numpy(
    metric: str, precision: str, seed: int, dim: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, dim, precision)
        fill(collection, model, draw_vectors(rng, n, dim))
        queries = [*rng.normal(size=(2, dim)).astype(np.float32), np.ones(dim, np.float32)]
        if n:
            queries.append(model.rows[int(rng.integers(n))].vector)
        for query in queries:
            model.check(collection.search(query, k), query, k)
        assert db.check() == []


@given(metrics, precisions, seeds, st.integers(2, 40), st.integers(1, 200), ks)
def test_the_hits_are_right_after_deletes_and_upserts(
    metric: str, precision: str, seed: int, dim: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, dim, precision)
        fill(collection, model, draw_vectors(rng, n, dim))
        churn(rng, collection, model, dim)
        for query in rng.normal(size=(3, dim)):
            model.check(collection.search(query, k), query, k)
        assert db.check() == []


@given(
    metrics,
    st.sampled_from(["float32", "int8"]),
    seeds,
    st.sampled_from([1e-38, 1e-30, 1e-22, 1e-19, 1e-10, 1.0, 1e10, 1e16]),
)
def test_any_magnitude_is_compared_exactly(
    metric: str, precision: str, seed: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    dim = int(rng.integers(2, 40))
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, dim, precision)
        scale = size if seed % 2 else size * 10.0 ** rng.uniform(-3, 0, size=(150, 1))
        vectors = draw_vectors(rng, 150, dim) * scale
        fill(collection, model, vectors.astype(np.float32))
        for query in (rng.normal(size=dim) * size, rng.normal(size=dim), vectors[3]):
            model.check(collection.search(query, 12), query, 12)


@pytest.mark.parametrize("size", [1e18, 9e17])
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_the_longest_vectors_do_not_overflow(metric: str, size: float) -> None:
    with vecstore.open(":memory:") as db:
        collection, model = db.collection("c", dim=2, metric=metric), Model(2, metric)
        angles = np.linspace(0, 6, 70)
        fill(
            collection,
            model,
            (np.stack([np.cos(angles), np.sin(angles)], 1) * size * 0.99).astype("f4"),
        )
        query = np.array([0.5, -0.8]) * size
        model.check(collection.search(query, 70), query, 70)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [3, 64, 65, 200])
def test_equal_vectors_stand_in_the_order_of_storing(metric: str, n: int) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3, metric=metric)
        ids = [f"{(number * 7919) % 1000:03}" for number in range(n)]
        collection.add(vectors=[[1.5, -2, 3]] * n, ids=ids)
        assert collection.search([1.5, -2, 3], n).ids == ids
        assert collection.search([1, 1, 1], 2).ids == ids[:2]


def test_an_upserted_record_keeps_its_place_among_equals() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        collection.add(vectors=np.ones((100, 2)), ids=range(100))
        collection.upsert(vectors=[[1, -1], [1, -1]], ids=[3, 70])
        collection.upsert(vectors=[[1, 1], [1, 1]], ids=[70, 3])
        assert collection.search([1, 1], 100).ids == list(range(100))


def test_a_record_that_is_deleted_and_added_again_goes_behind_its_equals() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        collection.add(vectors=np.ones((4, 2)), ids=["w", "x", "y", "z"])
        collection.delete("x")
        collection.add(vectors=[1, 1], ids="x")
        assert collection.search([1, 1], 4).ids == ["w", "y", "z", "x"]


def test_distances_are_the_metrics_own() -> None:
    expected = {"cosine": 1 - 0.6, "dot": -3.0, "l2": math.sqrt(4 + 16)}
    for metric, distance in expected.items():
        with vecstore.open(":memory:") as db:
            collection = db.collection("c", dim=2, metric=metric)
            collection.add(vectors=[3, 4], ids="a")
            hit = collection.search([1, 0], 1)[0]
            assert hit.distance == pytest.approx(distance, rel=1e-6)
            assert hit.score == pytest.approx(1 - distance if metric == "cosine" else -distance)


# Binary vectors


def binary(db: Any, bits: int) -> tuple[Any, Model]:
    collection = db.collection("c", dim=bits, metric="hamming")
    return collection, Model(bits, "hamming", precision="bits")


def draw_bits(rng: np.random.Generator, n: int, bits: int) -> np.ndarray:
    """Packed bits with many equal distances."""
    vectors = rng.integers(0, 256, (n, bits // 8)).astype(np.uint8)
    if n:
        vectors[rng.random(n) < 0.3] = vectors[0]
        vectors[rng.random(n) < 0.1] = 0
    return vectors


@given(seeds, st.sampled_from([8, 16, 56, 64, 72, 256, 1000, 8192]), counts, ks)
@example(1, 8192, 129, 10)
def test_hits_of_binary_vectors_are_those_of_counted_bits(
    seed: int, bits: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, model = binary(db, bits)
        fill(collection, model, draw_bits(rng, n, bits))
        queries = draw_bits(rng, 3, bits)
        where = {"n": {"$lt": n // 2}}
        for query, hits in zip(queries, collection.search_many(queries, k), strict=True):
            model.check(hits, query, k)
            model.check(collection.search(query, k), query, k)
            model.check(collection.search(query, k, where=where), query, k, where=where)
        assert db.check() == []


@given(seeds, st.integers(1, 150), st.integers(1, 40))
def test_pages_of_binary_vectors_make_up_one_large_search(seed: int, n: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, model = binary(db, 16)
        fill(collection, model, draw_bits(rng, n, 16))
        query = draw_bits(rng, 1, 16)[0]
        whole, paged = collection.search(query, n), []
        while len(page := collection.search(query, size, after=paged[-1] if paged else None)):
            paged += page
        assert tuple(paged) == tuple(whole)


def test_the_least_score_is_a_radius_of_bits() -> None:
    rng = np.random.default_rng(0)
    with vecstore.open(":memory:") as db:
        collection, model = binary(db, 64)
        fill(collection, model, draw_bits(rng, 300, 64))
        query = model.rows[0].vector
        for radius in (0, 20, 30, 64):
            hits = collection.search(query, 300, min_score=-radius)
            model.check(hits, query, 300, min_score=-radius)
            assert all(hit.distance <= radius for hit in hits)


def test_binary_vectors_are_given_in_many_ways_and_come_back_packed() -> None:
    rng = np.random.default_rng(0)
    packed = draw_bits(rng, 5, 24)
    flags = np.unpackbits(packed, axis=1).astype(bool)
    ways = [packed, flags, packed.tolist(), flags.tolist(), packed.astype(">i8"), packed[:, ::1]]
    with vecstore.open(":memory:") as db:
        for number, way in enumerate(ways):
            collection = db.collection(f"c{number}", dim=24, metric="hamming")
            collection.add(vectors=way, ids=range(5))
            found = collection.get(range(5), include=("vector",))
            assert all(record.vector.dtype == np.uint8 for record in found)
            assert (np.array([record.vector for record in found]) == packed).all()
            hit = collection.search(way[2], 1, include=("vector",))[0]
            assert (hit.score, hit.distance) == (0.0, 0.0)
            assert (hit.vector == packed[2]).all()
            assert collection.search_many(way, 2) == collection.search_many(packed, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.0], "float64; binary vectors are packed: uint8 .*numpy.packbits"),
        (np.ones(16, np.float32), "float32; binary vectors are packed"),
        ([1, 2, 3], r"3 bytes each, the collection has dim=16: 2 bytes \(uint8\), or 16 booleans"),
        ([True] * 15, "15 bits each, the collection has dim=16"),
        (np.ones(16, int), "16 bytes each"),
        ([1, 256], "row 0 holds 256 at position 1; packed bits are"),
        ([-1, 0], "row 0 holds -1 at position 0"),
        (["a", "b"], "<U1"),
    ],
)
def test_what_are_no_bits_is_refused(values: Any, message: str) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=16, metric="hamming")
        collection.add(vectors=[[1, 2]], ids=["a"])
        for call in (collection.search, lambda values: collection.search_many([values])):
            with pytest.raises(VectorError, match=message):
                call(values)
        with pytest.raises(VectorError, match=message):
            collection.add(vectors=[values])
        with pytest.raises(VectorError, match=message):
            collection.upsert(vectors=values, ids="a")
        with pytest.raises(VectorError, match=r"shape \(1, 2\)"):
            collection.search([[1, 2]])
        assert collection.get("a", include=("vector",)).vector.tolist() == [1, 2]


# Prefixes


@given(metrics, precisions, seeds, st.integers(2, 200), counts, st.integers(1, 100), st.data())
def test_hits_by_a_prefix_are_those_of_cut_vectors(
    metric: str, precision: str, seed: int, dim: int, n: int, k: int, data: Any
) -> None:
    rng = np.random.default_rng(seed)
    dims = data.draw(st.integers(1, dim))
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, dim, precision)
        vectors = draw_vectors(rng, n, dim)
        # Prefixes of zeros, and far shorter than their vectors.
        vectors[rng.random(n) < 0.1, :dims] *= np.float32(1e-12)
        if dims < dim:
            vectors[rng.random(n) < 0.1, :dims] = 0
            vectors[~vectors.any(axis=1), -1] = 1
        fill(collection, model, vectors)
        queries, where = rng.normal(size=(2, dim)).astype(np.float32), {"n": {"$lt": n // 2}}
        for query, hits in zip(queries, collection.search_many(queries, k, dims=dims), strict=True):
            model.check(hits, query, k, dims=dims)
            model.check(collection.search(query, k, dims=dims), query, k, dims=dims)
            found = collection.search(query, k, dims=dims, where=where)
            model.check(found, query, k, dims=dims, where=where)
        with db.transaction():
            model.check(collection.search(queries[0], k, dims=dims), queries[0], k, dims=dims)


@given(metrics, seeds, st.sampled_from([1e-38, 1e-30, 1e-22, 1e-19, 1.0, 1e10, 1e16]))
def test_prefixes_of_any_magnitude_are_compared_exactly(
    metric: str, seed: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, 9)
        vectors = draw_vectors(rng, 150, 9)
        vectors[:, :4] *= size * 10.0 ** rng.uniform(-3, 0, size=(150, 1))
        fill(collection, model, vectors)
        for query in (rng.normal(size=9) * size, rng.normal(size=9), vectors[3]):
            model.check(collection.search(query, 12, dims=4), query, 12, dims=4)


@given(seeds, st.sampled_from([8, 72, 256]), st.integers(0, 200), st.data())
def test_hits_by_a_prefix_of_bits_are_those_of_cut_vectors(
    seed: int, bits: int, n: int, data: Any
) -> None:
    rng = np.random.default_rng(seed)
    dims = 8 * data.draw(st.integers(1, bits // 8))
    with vecstore.open(":memory:") as db:
        collection, model = binary(db, bits)
        fill(collection, model, draw_bits(rng, n, bits))
        queries = draw_bits(rng, 2, bits)
        for query, hits in zip(queries, collection.search_many(queries, 9, dims=dims), strict=True):
            model.check(hits, query, 9, dims=dims)
            assert collection.search(query[: dims // 8], 9, dims=dims) == hits
            flags = np.unpackbits(query).astype(bool)
            assert collection.search(flags, 9, dims=dims) == hits
            assert collection.search(flags[:dims], 9, dims=dims) == hits


@pytest.mark.parametrize("metric", METRICS)
def test_a_query_may_be_as_short_as_the_prefix(metric: str) -> None:
    rng = np.random.default_rng(0)
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, 8)
        fill(collection, model, draw_vectors(rng, 70, 8))
        queries = rng.normal(size=(3, 8))
        many = collection.search_many(queries, dims=3)
        assert collection.search_many(queries[:, :3], dims=3) == many
        assert [collection.search(query[:3].tolist(), dims=3) for query in queries] == many
        assert collection.search_many(queries, dims=8) == collection.search_many(queries)


@pytest.mark.parametrize("metric", METRICS)
def test_pages_by_a_prefix_make_up_one_large_search(metric: str) -> None:
    rng = np.random.default_rng(0)
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, 8)
        vectors = draw_vectors(rng, 150, 8)
        vectors[::9, :3] = 0
        fill(collection, model, vectors)
        query = rng.normal(size=8)
        whole, paged = collection.search(query, 150, dims=3), []
        while page := collection.search(query, 7, dims=3, after=paged[-1] if paged else None):
            paged += page
        assert tuple(paged) == tuple(whole)


def test_a_vector_whose_prefix_is_zero_has_a_cosine_of_zero() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3)
        collection.add(vectors=[[0, 0, 1], [-1, 0, 0], [0, 0, 2], [1, 1, 0]], ids=[*"abcd"])
        hits = collection.search([1, 0, 5], dims=2, include=("vector",))
        assert hits.ids == ["d", "a", "c", "b"]
        assert hits.scores.tolist()[1:] == [0, 0, -1]
        assert hits[1].vector.tolist() == [0, 0, 1]
        with pytest.raises(VectorError, match="query 0 is zero"):
            collection.search([0, 0, 5], dims=2)


def test_a_text_is_cut_too() -> None:
    encoder = HashEncoder()
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", encoder=encoder)
        collection.add(["red apples", "late trains", "red trains"])
        vector = encoder.encode(["red"])[0]
        assert collection.search("red", dims=9) == collection.search(vector[:9], dims=9)
        assert collection.search_many(["red"], dims=9) == [collection.search("red", dims=9)]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (0, "dims=0 must be"),
        (-1, "dims=-1 must be"),
        (True, "dims=True must be"),
        (1.0, r"dims=1\.0 must be"),
        ("2", "dims='2' must be"),
        (17, "dims=17 is over the collection's dim=16"),
        pytest.param(10**5000, "dims=<int too large to show> is over", id="huge"),
    ],
)
@pytest.mark.parametrize("metric", [*METRICS, "hamming"])
def test_an_impossible_prefix_is_refused(metric: str, dims: Any, message: str) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=16, metric=metric)
        for call in (collection.search, collection.search_many):
            with pytest.raises(UsageError, match=message):
                call([1, 2], dims=dims)


def test_a_prefix_of_bits_is_whole_bytes() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=16, metric="hamming")
        with pytest.raises(UsageError, match="dims=9 counts bits under hamming"):
            collection.search([1, 2], dims=9)


def test_a_query_of_another_length_than_vector_and_prefix_is_refused() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=16)
        with pytest.raises(VectorError, match="5 numbers, the collection has dim=16"):
            collection.search([1] * 5, dims=4)
        with pytest.raises(VectorError, match="4 numbers, the collection has dim=16"):
            collection.search([1] * 4)


# Filters


@given(
    metrics,
    seeds,
    st.lists(own.metadata, min_size=1, max_size=90),
    st.lists(own.wheres, min_size=1, max_size=4),
    st.integers(1, 100),
)
def test_filtered_hits_are_the_nearest_of_the_records_that_match(
    metric: str, seed: int, metadata: list[dict], wheres: list[dict], k: int
) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, model = db.collection("c", dim=5, metric=metric), Model(5, metric)
        fill(collection, model, draw_vectors(rng, len(metadata), 5), metadata)
        query = rng.normal(size=5)
        for where in wheres:
            hits = collection.search(query, k, where=where)
            model.check(hits, query, k, where=where)
            assert hits.plan.allowed == len(model.matching(where)) == collection.count(where)
            assert hits.plan.rows == len(metadata)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("share", [0, 1, 2, 15, 16, 17, 64, 200, 299, 300])
def test_k_hits_come_back_at_any_selectivity(metric: str, precision: str, share: int) -> None:
    rng = np.random.default_rng(share)
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, 9, precision)
        order = rng.permutation(300)
        metadata = [{"n": int(number)} for number in order]
        fill(collection, model, draw_vectors(rng, 300, 9), metadata)
        query, where = rng.normal(size=9), {"n": {"$lt": share}}
        for k in (1, 10, 300):
            hits = collection.search(query, k, where=where)
            assert len(hits) == min(k, share)
            model.check(hits, query, k, where=where)


def test_a_filter_applies_to_what_was_written_since_the_last_search() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        collection.add(vectors=[[1, 0], [0, 1]], ids=["a", "b"], metadata=[{"x": 1}, {"x": 2}])
        assert collection.search([1, 1], where={"x": 2}).ids == ["b"]
        collection.update("a", metadata={"x": 2})
        assert collection.search([1, 0], where={"x": 2}).ids == ["a", "b"]
        collection.delete("b")
        assert collection.search([1, 0], where={"x": 2}).ids == ["a"]


# Pages and the least score


@given(metrics, seeds, st.integers(1, 150), st.integers(1, 40), st.booleans())
def test_pages_by_offset_make_up_one_large_search(
    metric: str, seed: int, n: int, size: int, filtered: bool
) -> None:
    rng = np.random.default_rng(seed)
    where = {"n": {"$gte": n // 3}} if filtered else None
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=4, metric=metric)
        fill(collection, Model(4, metric), draw_vectors(rng, n, 4))
        query = rng.normal(size=4)
        whole = collection.search(query, n, where=where)
        paged = [
            hit
            for offset in range(0, n + size, size)
            for hit in collection.search(query, size, offset=offset, where=where)
        ]
        assert tuple(paged) == tuple(whole)


@given(metrics, seeds, st.integers(1, 150), st.integers(1, 40), st.booleans())
@example("l2", 0, 150, 1, False)
def test_pages_after_the_last_hit_make_up_one_large_search(
    metric: str, seed: int, n: int, size: int, filtered: bool
) -> None:
    rng = np.random.default_rng(seed)
    where = {"n": {"$gte": n // 3}} if filtered else None
    zero = metric != "cosine" and seed % 3 == 0
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=4, metric=metric)
        fill(collection, Model(4, metric), draw_vectors(rng, n, 4))
        query = np.zeros(4) if zero else rng.normal(size=4)
        whole = collection.search(query, n, where=where)
        paged: list[Hit] = []
        while True:
            last = paged[-1] if paged else None
            page = collection.search(query, size, after=last, where=where)
            paged += page
            if page.complete == "exhausted":
                break
        assert tuple(paged) == tuple(whole)


def test_paging_after_a_hit_passes_over_nothing_when_all_are_equal() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3, metric="l2")
        collection.add(vectors=[[1, 0, 0]] * 100 + [[2, 0, 0]] * 5, ids=range(105))
        last = collection.search([0, 0, 0], 100)[-1]
        assert collection.search([0, 0, 0], 3, after=last).ids == [100, 101, 102]


def test_a_page_goes_on_behind_a_hit_whose_record_is_gone() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        collection.add(vectors=np.ones((9, 2)), ids=range(9))
        last = collection.search([1, 1], 3)[-1]
        collection.delete([0, 1, 2, 3])
        assert collection.search([1, 1], 3, after=last).ids == [4, 5, 6]


@given(metrics, seeds, st.integers(0, 150), st.integers(1, 40))
def test_no_hit_has_less_than_the_least_score(metric: str, seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, model = db.collection("c", dim=6, metric=metric), Model(6, metric)
        fill(collection, model, draw_vectors(rng, n, 6))
        query = rng.normal(size=6)
        for least in rng.normal(size=3) - (3 if metric == "l2" else 0):
            hits = collection.search(query, k, min_score=float(least), offset=seed % 3)
            model.check(hits, query, k, min_score=float(least), offset=seed % 3)


def test_a_hits_own_score_as_the_least_score_keeps_the_hit() -> None:
    rng = np.random.default_rng(5)
    for metric in METRICS:
        with vecstore.open(":memory:") as db:
            collection = db.collection("c", dim=6, metric=metric)
            collection.add(vectors=rng.normal(size=(70, 6)))
            query = rng.normal(size=6)
            for hit in collection.search(query, 5):
                assert hit.id in collection.search(query, 70, min_score=hit.score).ids


# Equal ways to ask the same


@given(metrics, precisions, seeds, st.integers(2, 200), st.integers(0, 150), st.integers(1, 9))
def test_many_queries_get_the_answers_of_single_ones(
    metric: str, precision: str, seed: int, dim: int, n: int, m: int
) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, _ = make(db, metric, dim, precision)
        fill(collection, Model(dim, metric), draw_vectors(rng, n, dim))
        queries = rng.normal(size=(m, dim))
        options: dict[str, Any] = {"k": 7, "where": {"n": {"$lt": 100}}, "offset": 2}
        many = collection.search_many(queries, **options)
        assert many == [collection.search(query, **options) for query in queries]
        assert collection.search_many(queries.tolist(), **options) == many


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_a_scan_in_small_pieces_gives_the_same_answers(
    monkeypatch: pytest.MonkeyPatch, metric: str, precision: str
) -> None:
    monkeypatch.setattr("vecstore.exact.PIECE_BYTES", 3 * 64 * 5 * 4)
    monkeypatch.setattr("vecstore.exact.BLAS_BYTES", 3 * 64 * 5 * 4)
    rng = np.random.default_rng(0)
    with vecstore.open(":memory:") as db:
        collection, model = make(db, metric, 5, precision)
        fill(collection, model, draw_vectors(rng, 64 * 11 + 3, 5))
        queries, where = rng.normal(size=(3, 5)), {"n": {"$lt": 500}}
        for query, hits in zip(queries, collection.search_many(queries, 9), strict=True):
            model.check(hits, query, 9)
            model.check(collection.search(query, 9), query, 9)
            model.check(collection.search(query, 9, where=where), query, 9, where=where)


def test_more_queries_than_one_slice_holds_are_all_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vecstore.search.SCORES_BYTES", 3 * 8 * 64 * 3)
    monkeypatch.setattr("vecstore.exact.SETTLED_AT_ONCE", 50)
    rng = np.random.default_rng(0)
    with vecstore.open(":memory:") as db:
        collection, model = db.collection("c", dim=3), Model(3, "cosine")
        fill(collection, model, draw_vectors(rng, 150, 3))
        queries = rng.normal(size=(20, 3))
        for query, hits in zip(queries, collection.search_many(queries, 150), strict=True):
            model.check(hits, query, 150)


def test_no_queries_get_no_answers() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3)
        collection.add(vectors=np.eye(3))
        assert collection.search_many([]) == []
        assert collection.search_many(np.zeros((0, 3))) == []


@given(metrics, seeds, st.integers(1, 140))
def test_a_search_inside_a_transaction_is_that_after_its_commit(
    metric: str, seed: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection, model = db.collection("c", dim=4, metric=metric), Model(4, metric)
        fill(collection, model, draw_vectors(rng, n, 4))
        query = rng.normal(size=4)
        before = collection.search(query, n)
        with db.snapshot() as view:
            with db.transaction():
                churn(rng, collection, model, 4)
                inside = collection.search(query, 50, include=("vector", "metadata"))
                filtered = collection.search(query, 50, where={"n": {"$gt": 5}})
            assert view.collection("c").search(query, n) == before
        model.check(inside, query, 50)
        model.check(filtered, query, 50, where={"n": {"$gt": 5}})
        assert collection.search(query, 50, include=("vector", "metadata")) == inside
        assert collection.search(query, 50, where={"n": {"$gt": 5}}) == filtered


@given(metrics, seeds, st.integers(1, 140))
def test_the_order_of_storing_matters_only_among_equals(metric: str, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 5)).astype(np.float32)
    order = rng.permutation(n)
    with vecstore.open(":memory:") as db:
        first = db.collection("first", dim=5, metric=metric)
        second = db.collection("second", dim=5, metric=metric)
        first.add(vectors=vectors, ids=range(n))
        second.add(vectors=vectors[order], ids=order)
        query = rng.normal(size=5)
        here, there = first.search(query, 20), second.search(query, 20)
        assert here.ids == there.ids
        assert here.scores.tolist() == there.scores.tolist()


@given(seeds, st.sampled_from([1e-30, 1e-8, 0.125, 1024.0, 3e7, 1e30]))
def test_the_length_of_a_query_does_not_matter_under_cosine(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=5)
        collection.add(vectors=rng.normal(size=(100, 5)), ids=range(100))
        query = rng.normal(size=5).astype(np.float32)
        one, other = collection.search(query, 10), collection.search(query * np.float32(scale), 10)
        assert one.ids == other.ids
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_every_recall_is_kept_by_an_exact_search() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3)
        collection.add(vectors=np.random.default_rng(0).normal(size=(80, 3)))
        answers = [collection.search([1, 0, 0], 9, recall=r) for r in (0.5, 1, 1.0, "exact")]
        assert all(answer == answers[0] for answer in answers)
        assert {answer.plan.expected_recall for answer in answers} == {1.0}


def test_a_query_may_be_a_list_or_an_array_of_any_real_dtype() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3, metric="l2")
        collection.add(vectors=np.eye(3), ids=["a", "b", "c"])
        expected = collection.search([1.0, 2.0, 3.0])
        for dtype in ("f2", "f4", "f8", ">f4", "i1", "i8", "u2", "g"):
            assert collection.search(np.array([1, 2, 3], dtype)) == expected
        assert collection.search(np.array([1, 9, 2, 9, 3])[::2]) == expected
        assert collection.search((1, 2, 3)) == expected


def test_a_search_leaves_its_query_as_it_was() -> None:
    query = np.array([3, 4, 0], np.float32)
    query.flags.writeable = False
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3)
        collection.add(vectors=np.eye(3))
        collection.search(query)
        assert query.tolist() == [3, 4, 0]


# What hits carry


def owner(array: np.ndarray) -> Any:
    base: Any = array
    while getattr(base, "base", None) is not None:
        base = base.base
    return base


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_hits_own_all_their_memory(metric: str, precision: str, inside: bool) -> None:
    db = vecstore.open(":memory:")
    collection, _ = make(db, metric, 3, precision)
    vectors = np.random.default_rng(1).normal(size=(130, 3)).astype(np.float32)
    collection.add(vectors=vectors, ids=range(130), metadata=[{"b": b"bytes"}] * 130)
    everything = ("text", "metadata", "vector")
    if inside:
        with db.transaction():
            hits = collection.search([1, 2, 3], 5, include=everything)
    else:
        hits = collection.search([1, 2, 3], 5, include=everything)
    records = [record for record in collection.get(range(3), include=everything) if record]
    db.close()
    for found in (*hits, *records):
        base = owner(found.vector)
        assert isinstance(base, np.ndarray)
        assert base.flags.owndata
        slack = {"float32": 3e-7, "float16": 5e-4, "int8": 4e-3}[precision]
        largest = np.abs(vectors[found.id]).max()
        np.testing.assert_allclose(found.vector, vectors[found.id], rtol=0, atol=slack * largest)
        assert found.metadata == {"b": b"bytes"}
    assert hits.scores.flags.owndata


@pytest.mark.parametrize(
    "include", [(), ("text",), ("metadata",), ("vector",), ("text", "metadata", "vector")]
)
def test_hits_carry_what_include_names_and_nothing_else(include: tuple[str, ...]) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", encoder=HashEncoder())
        collection.add("a text", ids=1, metadata={"x": 1})
        hit = collection.search("a text", include=include)[0]
        assert (hit.id, hit.score) == (1, pytest.approx(1))
        for name in ("text", "metadata", "vector"):
            assert (getattr(hit, name) is not None) == (name in include)


def test_text_and_metadata_are_included_by_default() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", encoder=HashEncoder())
        collection.add("a text", ids=1, metadata={"x": 1})
        hit = collection.search("a text")[0]
        assert (hit.text, hit.metadata, hit.vector) == ("a text", {"x": 1}, None)


def test_a_hit_has_the_id_as_it_was_given() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        ids = ["1", 1, "", -5, "é\0", 2**63 - 1]
        collection.add(vectors=np.ones((6, 2)), ids=ids)
        assert exactly(collection.search([1, 1]).ids, ids)


# Texts


def test_a_text_finds_the_text_nearest_to_it() -> None:
    texts = ["red apples and pears", "trains that are late", "a key value store"]
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", encoder=HashEncoder())
        collection.add(texts, ids=range(3))
        for number, text in enumerate(texts):
            assert collection.search(text, 1).ids == [number]
        many = collection.search_many(texts, 1)
        assert [hits.ids for hits in many] == [[0], [1], [2]]


def test_a_text_collection_takes_a_vector_as_query_too() -> None:
    encoder = HashEncoder()
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", encoder=encoder)
        collection.add(["one", "two"], ids=[1, 2])
        assert collection.search(encoder.encode(["two"])[0]) == collection.search("two")


# Bad input


@pytest.fixture
def small() -> Any:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3)
        collection.add(vectors=np.eye(3), ids=["a", "b", "c"], metadata=[{"x": 1}] * 3)
        before = list(collection.scan(include=("text", "metadata", "vector")))
        yield collection
        assert list(collection.scan(include=("text", "metadata", "vector"))) == before
        assert db.check() == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([1, 2], "2 numbers, the collection has dim=3"),
        ([], "0 numbers, the collection has dim=3"),
        ([[1, 2, 3]], r"shape \(1, 3\)"),
        (5, r"shape \(\)"),
        (None, "dtype object"),
        ([1, math.nan, 2], "nan at position 1"),
        ([1, 2, -math.inf], "-inf at position 2"),
        ([1e39, 0, 0], r"1e\+39 at position 0"),
        ([0, 0, 0], "zero"),
        ([1, 2j, 3], "complex128"),
        ([True, False, True], "booleans"),
        (["a", "b", "c"], "<U1"),
        ([1, [2], 3], "not an array of numbers"),
        ([10**400, 1, 2], "dtype object"),
        ({"a": 1}, "dtype object"),
    ],
)
def test_a_query_that_is_no_vector_is_refused(small: Any, query: Any, message: str) -> None:
    with pytest.raises(VectorError, match=message):
        small.search(query)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([[1, 2]], "2 numbers each"),
        ([[]], "0 numbers each"),
        ([1, 2, 3], r"shape \(3,\)"),
        ([[1, 2, 3], [1, 2]], "not an array of numbers"),
        ([[1, 2, 3], [1, 2, math.nan]], "row 1 holds nan at position 2"),
        ([[1, 2, 3], [0, 0, 0]], "query 1 is zero"),
        (5, r"shape \(\)"),
        (None, "dtype object"),
    ],
)
def test_queries_that_are_no_vectors_are_refused(small: Any, queries: Any, message: str) -> None:
    with pytest.raises(VectorError, match=message):
        small.search_many(queries)


def test_a_zero_query_is_a_query_under_dot_and_l2() -> None:
    for metric in ("dot", "l2"):
        with vecstore.open(":memory:") as db:
            collection = db.collection("c", dim=3, metric=metric)
            collection.add(vectors=[[0, 0, 0], [0, 2, 0], [0, 1, 0]], ids=["a", "b", "c"])
            hits = collection.search([0, 0, 0])
            assert hits.ids == {"dot": ["a", "b", "c"], "l2": ["a", "c", "b"]}[metric]


def test_a_query_too_long_for_its_metric_is_refused() -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=3, metric="dot")
        with pytest.raises(VectorError, match=r"query 0 has length 2e\+18"):
            collection.search([2e18, 0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 must be"),
        ({"k": -3}, "k=-3 must be"),
        ({"k": True}, "k=True must be"),
        ({"k": 2.0}, r"k=2\.0 must be"),
        ({"k": "2"}, "k='2' must be"),
        ({"k": None}, "k=None must be"),
        ({"k": [1]}, r"k=\[1\] must be"),
        ({"k": -(10**5000)}, "k=<int too large to show>"),
        ({"offset": -1}, "offset=-1 must be"),
        ({"offset": False}, "offset=False must be"),
        ({"offset": 0.5}, r"offset=0\.5 must be"),
        ({"min_score": math.nan}, "min_score=nan"),
        ({"min_score": math.inf}, "min_score=inf"),
        ({"min_score": "1"}, "min_score='1'"),
        ({"min_score": True}, "min_score=True"),
        ({"min_score": [1]}, r"min_score=\[1\]"),
        ({"min_score": 10**400}, "min_score=1000"),
        ({"min_score": np.array([1, 2])}, r"min_score=array\(\[1, 2\]\) must"),
        ({"recall": 0}, "recall=0 must"),
        ({"recall": 1.01}, r"recall=1\.01 must"),
        ({"recall": math.nan}, "recall=nan must"),
        ({"recall": "best"}, "recall='best' must"),
        ({"recall": None}, "recall=None must"),
        ({"recall": np.array([1, 2])}, r"recall=array\(\[1, 2\]\) must"),
        ({"include": "text"}, r"include='text' is a str"),
        ({"include": ("text", "texts")}, "include holds 'texts'"),
        ({"include": None}, "include=None"),
        ({"include": np.array("text")}, r"include=array\('text', dtype='<U4'\) must be a tuple"),
        ({"include": [["text"]]}, r"include holds \['text'\]"),
        ({"include": (["text"],)}, r"include holds \['text'\]"),
        ({"after": "a"}, "after='a' must be a Hit"),
        ({"after": 3}, "after=3 must be a Hit"),
        ({"after": np.array([1, 2])}, "after=array.* must be a Hit"),
    ],
)
def test_an_impossible_option_is_refused_by_name(small: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small.search([1, 2, 3], **options)
    if "after" not in options:
        with pytest.raises(UsageError, match=message):
            small.search_many([[1, 2, 3]], **options)


@pytest.mark.parametrize("where", [None, vecstore.F("x") >= 0])
def test_what_equals_a_usual_option_is_still_checked(small: Any, where: Any) -> None:
    def found(*args: Any, **options: Any) -> Hits:
        return small.search([1, 2, 3], *args, where=where, **options)

    assert len(found(1, recall=1.0, offset=0)) == 1
    # All of these have the hash of what has just been checked, and equal it.
    for options in ({"k": True}, {"k": 1.0}, {"k": 1, "offset": False}, {"k": 1, "recall": True}):
        with pytest.raises(UsageError, match="must be"):
            found(**{"recall": 1.0, **options})
    included = iter(("text",))
    assert found(1, include=included)[0].metadata is None
    assert found(1, include=included)[0].text is None
    assert found(np.int64(1))[0] == found(1)[0]


def test_one_filter_serves_searches_that_ask_for_different_things(small: Any) -> None:
    where = vecstore.F("x") >= 0
    for _ in range(2):
        for k, offset in [(k, offset) for k in range(1, 5) for offset in range(3)]:
            right = small.search([1, 2, 3], k, where={"x": {"$gte": 0}}, offset=offset)
            assert small.search([1, 2, 3], k, where=where, offset=offset).ids == right.ids
        assert small.search([1, 2, 3], 2, where=where, include=())[0].metadata is None
        assert small.search([1, 2, 3], 2, where=where)[0].metadata == {"x": 1}


@pytest.mark.parametrize("where", [vecstore.F("x"), np.array([1, 2]), 3])
def test_what_is_no_filter_is_named(small: Any, where: Any) -> None:
    with pytest.raises(FilterError, match="needs a filter, got"):
        small.search([1, 2, 3], where=where)


def test_a_masked_array_is_asked_for_by_its_numbers(small: Any) -> None:
    query = np.array([1, 2, 3], np.float32)
    masked = np.ma.masked_array(query, mask=[True, False, False])

    assert small.search(masked) == small.search(query)


def test_a_filter_that_is_none_is_refused(small: Any) -> None:
    with pytest.raises(FilterError, match=r"\$near"):
        small.search([1, 2, 3], where={"x": {"$near": 1}})


@pytest.mark.parametrize("k", [3, 4, 10**6, 2**63, 10**30])
def test_a_k_beyond_the_count_gives_every_record(small: Any, k: int) -> None:
    hits = small.search([1, 2, 3], k)
    assert sorted(hits.ids) == ["a", "b", "c"]
    assert hits.complete == ("exact" if k == 3 else "exhausted")


def test_an_offset_beyond_the_count_gives_no_hits(small: Any) -> None:
    for offset in (3, 10**30):
        hits = small.search([1, 2, 3], offset=offset)
        assert isinstance(hits, Hits)
        assert (len(hits), hits.complete) == (0, "exhausted")


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_query_text_is_refused(text: str) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", encoder=HashEncoder())
        with pytest.raises(UsageError, match="query 0 is"):
            collection.search(text)
        with pytest.raises(UsageError, match="query 1 is"):
            collection.search_many(["fine", text])


def test_a_query_text_with_a_lone_surrogate_is_refused() -> None:
    with vecstore.open(":memory:") as db, pytest.raises(UsageError, match="lone surrogate"):
        db.collection("c", encoder=HashEncoder()).search("a\ud800")


def test_one_text_for_many_is_refused() -> None:
    with vecstore.open(":memory:") as db, pytest.raises(UsageError, match="use search"):
        db.collection("c", encoder=HashEncoder()).search_many("one text")


def test_a_text_query_needs_an_encoder(small: Any) -> None:
    with pytest.raises(UsageError, match=r"'c' holds bare vectors \(dim=3\)"):
        small.search("text")


def test_a_search_of_an_empty_collection_is_exhausted() -> None:
    with vecstore.open(":memory:") as db:
        hits = db.collection("c", dim=3).search([1, 2, 3])
        assert (hits.ids, hits.complete, hits.plan.method) == ([], "exhausted", "none")
        assert hits.scores.shape == (0,)
