"""Are near binary vectors found in buckets, all of them? Against Python's own integers."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import vecstore
from vecstore import CorruptionError, catalog, index_layout, layout, maintenance, planner
from vecstore.ann import bits, buckets, lookup
from vecstore.index_layout import LISTED, PLAN

NUMBER = 1

dims = st.sampled_from([8, 16, 24, 64, 72, 200, 256]) | st.integers(1, 64).map(lambda n: 8 * n)
counts = st.sampled_from([0, 1, 63, 64, 65, 128, 500]) | st.integers(0, 500)
seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from(["random", "clustered", "equal", "twins"])
# What comparing a row is said to cost: so much that nothing is, and what leaves both ways open.
costs = st.sampled_from([1e12, 1e4, 300.0])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of any number of rows, and nothing that is cheaper."""
    monkeypatch.setattr(buckets, "LEAST_ROWS", 1)
    monkeypatch.setattr(planner, "FEW", 0)
    monkeypatch.setattr(lookup, "NUMPY_COSTS", (1e12, 0.0))
    monkeypatch.setattr(lookup, "START_COST", 0.0)
    # Whether other tests have loaded the kernel must not matter.
    monkeypatch.setattr(bits, "LEAST_LOADED", bits.LEAST_ROWS)


def draw(rng: np.random.Generator, shape: str, count: int, dim: int) -> np.ndarray:
    """Packed bits."""
    if shape == "random":
        return rng.integers(0, 256, (count, dim // 8)).astype(np.uint8)
    centres = rng.integers(0, 256, (5, dim // 8)).astype(np.uint8)
    chosen = centres[rng.integers(0, len(centres), count)]
    if shape == "equal":
        return np.repeat(centres[:1], count, axis=0)
    if shape == "twins":
        return chosen
    share = rng.random((count, 1)) * 0.2
    return chosen ^ np.packbits(rng.random((count, dim)) < share, axis=1)


@dataclass
class Truth:
    """A collection as Python's integers, in the order of first storing."""

    rows: dict[int, int] = field(default_factory=dict)

    def put(self, keys: Any, vectors: np.ndarray) -> None:
        for key, vector in zip(keys, vectors, strict=True):
            self.rows[key] = int.from_bytes(vector.tobytes())

    def near(
        self, query: np.ndarray, k: int, *, radius: int | None = None, third: int | None = None
    ) -> list[tuple[int, int]]:
        """(differing bits, id) of the k best."""
        asked = int.from_bytes(query.tobytes())
        found = [
            ((bits ^ asked).bit_count(), key)
            for key, bits in self.rows.items()
            if third is None or key % 3 == third
        ]
        found.sort(key=lambda pair: pair[0])
        return [pair for pair in found if radius is None or pair[0] <= radius][:k]

    def check(self, collection: Any, query: np.ndarray, k: int, **wanted: Any) -> vecstore.Hits:
        options: dict[str, Any] = {}
        if wanted.get("radius") is not None:
            options["min_score"] = -wanted["radius"]
        if wanted.get("third") is not None:
            options["where"] = {"third": wanted["third"]}
        hits = collection.search(query, k, **options)
        expected = self.near(query, k, **wanted)
        assert [(hit.distance, hit.id) for hit in hits] == expected
        assert [hit.score for hit in hits] == [-bits for bits, _ in expected]
        assert hits.complete == ("exact" if len(hits) == k else "exhausted")
        return hits


def put(collection: Any, truth: Truth, keys: Any, vectors: np.ndarray) -> None:
    if len(vectors):
        metadata = [{"third": key % 3} for key in keys]
        collection.upsert(vectors=vectors, ids=keys, metadata=metadata)
        truth.put(keys, vectors)


def filled(
    db: Any, shape: str = "clustered", count: int = 700, dim: int = 64
) -> tuple[Any, Truth, np.ndarray]:
    """A collection of the kind "hash" with buckets, and a tail of its last rows."""
    collection, truth = db.collection("c", dim=dim, metric="hamming", index="hash"), Truth()
    vectors = draw(np.random.default_rng(3), shape, count, dim)
    put(collection, truth, range(count), vectors)
    collection.optimize()
    return collection, truth, vectors


# Answers


@given(seeds, dims, counts, shapes, costs, st.integers(1, 600), st.data())
@example(1, 512, 500, "random", 1e12, 10, None)
def test_hits_are_those_of_counted_bits(
    seed: int, dim: int, count: int, shape: str, cost: float, k: int, data: Any
) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "NUMPY_COSTS", (cost, 0.0))
        collection, truth = db.collection("c", dim=dim, metric="hamming", index="hash"), Truth()
        put(collection, truth, range(count), draw(rng, shape, count, dim))
        report = collection.optimize()
        assert report["trained"] == (count >= 64) == (report["lists"] > 0)
        queries = draw(rng, shape, 3, dim)
        if count:
            queries[0] = collection.get(0, include=("vector",)).vector
        for query in queries:
            truth.check(collection, query, k)
            truth.check(collection, query, k, third=1)
            for radius in [0, dim // 10, dim] if data is None else [data.draw(st.integers(0, dim))]:
                hits = truth.check(collection, query, k, radius=radius)
                truth.check(collection, query, k, radius=radius, third=2)
                # Where everything else costs too much, no row is compared but those of buckets.
                if cost == 1e12 and report["lists"]:
                    assert hits.plan.method == "buckets"
        assert db.check() == []


@given(seeds, shapes, st.data())
def test_any_writes_leave_buckets_that_find_everything(seed: int, shape: str, data: Any) -> None:
    rng, dim = np.random.default_rng(seed), 40
    with vecstore.open(":memory:") as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr(maintenance, "BACKLOG", 100)
        collection, truth = db.collection("c", dim=dim, metric="hamming", index="hash"), Truth()
        put(collection, truth, range(300), draw(rng, shape, 300, dim))
        assert collection.stats()["lists"] > 0
        for _ in range(data.draw(st.integers(1, 6))):
            first, count = data.draw(st.tuples(st.integers(0, 400), st.integers(1, 150)))
            keys = range(first, first + count)
            match data.draw(st.sampled_from(["put", "delete", "thin out", "optimize", "reindex"])):
                case "put":
                    put(collection, truth, keys, draw(rng, shape, count, dim))
                case "delete":
                    collection.delete(keys)
                    truth.rows = {k: v for k, v in truth.rows.items() if k not in keys}
                case "thin out":
                    doomed = [key for key in truth.rows if key % 5]
                    collection.delete(doomed)
                    truth.rows = {k: v for k, v in truth.rows.items() if k % 5 == 0}
                case "optimize":
                    collection.optimize()
                case "reindex":
                    collection.reindex("flat")
                    collection.reindex("hash")
            assert db.check() == []
            for query in draw(rng, shape, 2, dim):
                truth.check(collection, query, 10)
                truth.check(collection, query, 1000, radius=data.draw(st.integers(0, dim)))


def test_all_that_a_search_may_ask_for(path: Path) -> None:
    with vecstore.open(path) as db:
        collection, truth, vectors = filled(db)
        assert collection.stats()["tail_rows"] == 700 % 64
    with vecstore.open(path, read_only=True) as db:
        collection, query = db.collection("c", index="hash"), vectors[5]
        whole = collection.search(query, 100)
        assert whole.plan.method == "buckets"
        assert [hit.id for hit in whole] == [key for _, key in truth.near(query, 100)]
        assert tuple(collection.search(query, 30, offset=20)) == whole[20:50]
        assert tuple(collection.search(query, 30, after=whole[19])) == whole[20:50]
        assert collection.search(query, 30, after=whole[19]).plan.method == "scan"
        for least in (1, 0.5, 1e-300, 1e300):
            assert collection.search(query, 1000, min_score=least).ids == []
        assert collection.search(query, 20, min_score=-1e300).ids == whole.ids[:20]
        assert collection.search(query, 1000, min_score=-4.5).ids == (
            collection.search(query, 1000, min_score=-4).ids
        )
        short = collection.search(query, 20, dims=24)
        bits = np.bitwise_count(vectors[:, :3] ^ query[:3]).sum(axis=1)
        assert short.ids == np.argsort(bits, kind="stable")[:20].tolist()
        assert short.plan.method == "scan"
        hits = collection.search(query, 3, include=("vector", "metadata"))
        for hit in hits:
            assert hit.vector.tolist() == vectors[hit.id].tolist()
            assert hit.metadata == {"third": hit.id % 3}
        queries = vectors[::50]
        many = collection.search_many(queries, 7, where={"third": 1}, min_score=-30)
        for query, found in zip(queries, many, strict=True):
            assert found == collection.search(query, 7, where={"third": 1}, min_score=-30)
        for recall in ("exact", 1.0):
            hits = collection.search(vectors[5], 100, recall=recall)
            assert (hits.plan.method, hits) == ("scan", whole)


def test_a_transaction_and_a_snapshot_see_their_own(path: Path) -> None:
    with vecstore.open(path) as db:
        collection, truth, vectors = filled(db)
        with db.snapshot() as view:
            before = truth.check(view.collection("c"), vectors[3], 20)
            with db.transaction():
                collection.delete([before[0].id])
                put(collection, truth, [7000], vectors[3:4])
                del truth.rows[before[0].id]
                assert truth.check(collection, vectors[3], 20).plan.method == "scan"
            collection.reindex("flat")
            collection.reindex("hash")
            assert truth.check(collection, vectors[3], 20).plan.method == "buckets"
            assert view.collection("c").search(vectors[3], 20) == before
            assert view.collection("c").search(vectors[3], 20).plan.method == "buckets"


def test_what_is_farther_is_looked_for_only_as_long_as_it_is_worth_it(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, truth, vectors = filled(memory, "random", 2000, 256)
    monkeypatch.setattr(lookup, "NUMPY_COSTS", (100.0, 0.0))
    near, far = vectors[70], np.random.default_rng(9).integers(0, 256, 32).astype(np.uint8)
    looked = truth.check(collection, near, 5, radius=20)
    assert looked.plan.method == "buckets"
    assert 0 < looked.plan.compared < 200
    # Of 26 bands, of which one must agree among the first 21.
    assert looked.plan.lists == 21
    compared = truth.check(collection, far, 5)
    assert compared.plan.method == "scan"
    assert "more would have to be looked at in buckets" in compared.plan.reason
    some = truth.check(collection, far, 5, third=1)
    assert some.plan.method == "rows"
    both = collection.search_many([near, far, near], 1)
    assert [hits.plan.method for hits in both] == ["buckets", "scan", "buckets"]
    assert [hits.ids for hits in both] == [
        [key for _, key in truth.near(query, 1)] for query in (near, far, near)
    ]


def test_few_allowed_rows_are_compared(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "FEW", 300)
    collection, truth, vectors = filled(memory)
    assert truth.check(collection, vectors[0], 5, third=1).plan.method == "rows"
    assert truth.check(collection, vectors[0], 5).plan.method == "buckets"
    assert collection.search(vectors[0], where={"third": 5}).plan.method == "none"


def test_explain_tells_what_was_looked_at(memory: Any) -> None:
    collection, _, vectors = filled(memory)
    found = collection.explain(vectors[0], 5, min_score=-3)
    assert (found.method, found.index, found.lists, found.tail) == ("buckets", "hash", 8, 60)
    assert found.lists_scanned == 4
    assert 60 < found.compared < 700
    assert found.scanned >= found.compared - 60
    assert "buckets" in found.milliseconds
    assert "which is exact" in str(found)
    assert collection.audit().recall == 1.0


# Bands


@given(seeds, dims, st.integers(1, 100_000))
def test_bands_are_the_bits_of_a_vector_in_turn(seed: int, dim: int, count: int) -> None:
    number = buckets.bands_for(dim, count)
    bands = buckets.bands_of(dim, number)
    assert bands.widths.sum() == dim
    assert bands.widths.max() - bands.widths.min() <= 1
    assert bands.widths.max() <= 16
    vectors = draw(np.random.default_rng(seed), "random", 4, dim)
    for vector, found in zip(
        vectors, bands.numbers(vecstore.vectors.as_words(vectors)), strict=True
    ):
        whole = int.from_bytes(vector.tobytes(), "little")
        for width, value in zip(bands.widths.tolist(), found.tolist(), strict=True):
            assert value == whole & (1 << width) - 1
            whole >>= width


@pytest.mark.parametrize("width", [1, 2, 7, 16])
def test_numbers_are_flipped_in_so_many_bits(width: int) -> None:
    seen: set[int] = set()
    for count in range(width + 2):
        found = lookup._flips_of(width, count).tolist()
        assert all(number.bit_count() == count for number in found)
        seen |= set(found)
    assert seen == set(range(1 << width))


# Maintenance


def test_buckets_are_made_as_the_collection_grows(memory: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(maintenance, "BACKLOG", 400)
    monkeypatch.setattr(buckets, "LEAST_ROWS", 256)
    collection, truth = memory.collection("c", dim=64, metric="hamming", index="hash"), Truth()
    vectors = draw(np.random.default_rng(1), "random", 6000, 64)
    trained = []
    for at in range(0, 6000, 100):
        put(collection, truth, range(at, at + 100), vectors[at : at + 100])
        stats = collection.stats()
        trained.append(stats["trained_rows"])
        assert stats["tail_rows"] < max(500, 100 + at / 8)
        truth.check(collection, vectors[at], 3)
    # Ever more rows are waited for.
    steps = np.diff(np.unique(trained))
    assert trained[0] == 0
    assert len(steps) < 15
    assert steps[-1] > 500


def test_rows_of_buckets_are_not_given_to_others(memory: Any) -> None:
    collection, truth, vectors = filled(memory, "random", 640)
    collection.delete(range(320))
    truth.rows = {key: bits for key, bits in truth.rows.items() if key >= 320}
    put(collection, truth, range(1000, 1300), vectors[:300] ^ 255)
    assert collection.stats()["blocks"] > 5
    with memory.reading() as reader:
        entry = catalog.find(reader, "c")
        assert catalog.state(reader, entry.number).blocks > 10
    for query in (*vectors[:5], *vectors[:5] ^ 255):
        truth.check(collection, query, 400)
        assert truth.check(collection, query, 10, radius=12).plan.method == "buckets"
    assert memory.check() == []
    # Once no bucket names them, they are.
    collection.optimize()
    put(collection, truth, range(2000, 2300), vectors[:300])
    with memory.reading() as reader:
        assert catalog.state(reader, entry.number).blocks <= 15
    truth.check(collection, vectors[4], 400)


def test_few_rows_have_no_buckets(memory: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(buckets, "LEAST_ROWS", 256)
    collection, truth, vectors = filled(memory, count=500)
    assert collection.stats()["lists"] == 8
    collection.delete(range(300))
    truth.rows = {key: bits for key, bits in truth.rows.items() if key >= 300}
    assert truth.check(collection, vectors[0], 5).plan.method == "buckets"
    told = collection.optimize()
    assert (told["trained"], told["calibrated"], told["lists"]) == (False, False, 0)
    assert truth.check(collection, vectors[0], 5).plan.method == "scan"
    assert collection.stats()["index"] == "hash"


def test_nothing_is_made_anew_where_nothing_changed(memory: Any) -> None:
    collection, _, vectors = filled(memory)
    assert not collection.optimize()["trained"]
    collection.upsert(vectors=vectors[:1], ids=[9999])
    assert collection.optimize()["trained"]
    sizes = collection.stats()["space"]
    assert sizes["lists"]["values"] == collection.stats()["index_bytes"] + 8 * 48


# Damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: Any) -> Path:
    """A file with buckets, a tail and dead rows in both."""
    path = tmp_path_factory.mktemp("buckets") / "sound.vecstore"
    with vecstore.open(path) as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "LEAST_ROWS", 1)
        collection, _, vectors = filled(db)
        collection.delete([*range(64), *range(70, 80), 695])
        collection.upsert(vectors=vectors[:100], ids=range(1000, 1100))
        assert db.check() == []
    return path


@pytest.fixture
def db(sound: Path, tmp_path: Path) -> Any:
    database = vecstore.open(shutil.copy(sound, tmp_path / "copy.vecstore"))
    yield database
    database.close()


def change_band(db: Any, change: Any, band: int = 2, **header: Any) -> None:
    """Change the offsets and rows of a band, and its header; the checksum will be right."""

    def work(txn: Any) -> None:
        key = index_layout.list_key(NUMBER, band)
        value = bytearray(txn.get("lists", key))
        found = layout.unpack_header(value, "")
        parts = index_layout.split_band(value, found.width, found.rows)
        change(*parts)
        layout.seal_bulk(replace(found, **header), value, header.get("length", found.length))
        txn.put("lists", key, value)

    db.writing(work)


def search_everything(db: Any) -> None:
    """Look into all buckets, for each of some queries."""
    collection = db.collection("c")
    for query in draw(np.random.default_rng(3), "clustered", 30, 64):
        collection.search(query, 1000)


def swap(offsets: np.ndarray, rows: np.ndarray) -> None:
    middle = len(rows) // 2
    rows[[0, middle]] = rows[[middle, 0]]


def descend(offsets: np.ndarray, rows: np.ndarray) -> None:
    offsets[100] = offsets[-1]
    offsets[101] = 0


def beyond(offsets: np.ndarray, rows: np.ndarray) -> None:
    offsets[100:] = 2**32 - 1


def shifted(offsets: np.ndarray, rows: np.ndarray) -> None:
    offsets[:-1] += 1


def strange(offsets: np.ndarray, rows: np.ndarray) -> None:
    rows[:] = 2**32 - 1


def doubled(offsets: np.ndarray, rows: np.ndarray) -> None:
    rows[1] = rows[0]


def of_the_tail(offsets: np.ndarray, rows: np.ndarray) -> None:
    rows[0] = 704


LIES = {
    swap: "not in their bucket",
    descend: "do not lie one behind the other",
    beyond: "do not lie one behind the other",
    shifted: "do not lie one behind the other",
    strange: "names other rows than the first band",
    doubled: "names other rows than the first band",
    of_the_tail: "names other rows than the first band",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_buckets_that_lie_are_found_and_harm_nothing(db: Any, lie: Any) -> None:
    change_band(db, lie)
    assert any(LIES[lie] in str(problem) for problem in db.check())
    if lie in (descend, beyond, shifted, strange):
        with pytest.raises(CorruptionError, match=r"lists: buckets of collection 1"):
            search_everything(db)
    else:
        search_everything(db)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (strange, "names row 4294967295, which is not"),
        (doubled, "names a row twice"),
        (of_the_tail, "block 11 is not listed"),
    ],
)
def test_what_the_first_band_names_is_checked(db: Any, lie: Any, message: str) -> None:
    change_band(db, lie, band=0)
    assert any(message in str(problem) for problem in db.check())


@pytest.mark.parametrize(
    "header",
    [
        {"kind": layout.LIST},
        {"dtype": layout.BITS},
        {"rows": 3},
        {"rows": 2**32 - 1},
        {"width": 16},
        {"first": 3},
        {"length": 64},
        {"collection": 2},
    ],
    ids=str,
)
def test_a_band_that_is_another_is_refused(db: Any, header: dict[str, int]) -> None:
    change_band(db, lambda offsets, rows: None, **header)
    assert db.check() != []
    with pytest.raises(CorruptionError, match="band 2 of collection 1"):
        search_everything(db)


@pytest.mark.parametrize(
    "values",
    [
        {"bands": 0},
        {"bands": 3},
        {"bands": 65},
        {"bands": 2**60},
        {"bands": "8"},
        {"bands": None},
        {"trained": 0},
        {"trained": -1},
        {"trained": 10**9},
        {"trained": 1.5},
        {"kind": "hnsw"},
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused(db: Any, values: dict[str, Any]) -> None:
    def work(txn: Any) -> None:
        key = index_layout.index_key(NUMBER, PLAN)
        plan = layout.unpack_meta(txn.get("index", key), "")
        txn.put("index", key, layout.pack_meta({**plan, **values}))

    db.writing(work)
    assert db.check() != []
    with pytest.raises(CorruptionError, match="index: plan of collection 1"):
        search_everything(db)


def test_keys_that_are_missing_or_too_many_are_found(db: Any) -> None:
    def work(txn: Any) -> None:
        value = txn.get("lists", index_layout.list_key(NUMBER, 1))
        txn.put("lists", index_layout.list_key(NUMBER, 8), value)
        txn.delete("lists", index_layout.list_key(NUMBER, 1))
        txn.delete("index", index_layout.index_key(NUMBER, LISTED))
        txn.put("tiers", layout.block_key(NUMBER, 2, layout.CODE_TIER), value)

    db.writing(work)
    problems = " ".join(map(str, db.check()))
    for key in ("0000000100000001 is missing", "0000000100000008 is not expected"):
        assert f"lists: key {key}" in problems
    assert f"index: key {index_layout.index_key(NUMBER, LISTED).hex()} is missing" in problems
    assert "is not listed (15)" in problems
    assert f"tiers: key {layout.block_key(NUMBER, 2, layout.CODE_TIER).hex()}" in problems
    with pytest.raises(CorruptionError, match="block 1 is missing"):
        search_everything(db)


def test_an_open_block_in_buckets_is_found(db: Any) -> None:
    def work(txn: Any) -> None:
        state = catalog.state(txn, NUMBER)
        vecstore.ann.index.save_listed(txn, NUMBER, np.arange(state.blocks) == state.open_block)

    db.writing(work)
    assert any("is open and in buckets (15)" in str(problem) for problem in db.check())


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_any_bytes_in_a_band_are_harmless(sound: Path, seed: int, count: int) -> None:
    """No more than an error, or hits that are missing, comes of them."""
    rng = np.random.default_rng(seed)

    def spoil(offsets: np.ndarray, rows: np.ndarray) -> None:
        for column in (offsets, rows):
            places = rng.integers(0, len(column), count)
            column[places] = rng.integers(0, 2**32, count) >> rng.integers(0, 32)

    with vecstore.open(":memory:") as db:
        collection, truth, _ = filled(db, count=300)
        change_band(db, spoil, band=int(rng.integers(0, 8)))
        for query in draw(rng, "clustered", 5, 64):
            try:
                hits = collection.search(query, 1000, min_score=-9)
            except CorruptionError:
                continue
            assert len(set(hits.ids)) == len(hits)
            right = {key: bits for bits, key in truth.near(query, 1000)}
            assert [right[hit.id] for hit in hits] == [hit.distance for hit in hits]
