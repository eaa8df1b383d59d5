"""Do the methods of a collection do what their docstrings say?"""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vecstore
from vecstore import (
    AlreadyExistsError,
    Collection,
    Database,
    EncoderError,
    EncoderMismatchError,
    NotFoundError,
    ReadOnlyError,
    Record,
    SpecError,
    StoreError,
    UsageError,
    VectorError,
)
from vecstore.contents import PAGE
from vecstore.encoders import FunctionEncoder, HashEncoder

DATA = Path(__file__).parent / "data"


@pytest.fixture
def points(memory: Database) -> Collection:
    collection = memory.collection("points", dim=2)
    collection.add(
        vectors=[[1, n] for n in range(10)], ids=range(10), metadata=[{"n": n} for n in range(10)]
    )
    return collection


def keys(records: Any) -> list[Any]:
    return [record.id for record in records]


# Declaring


def test_a_collection_is_made_once_and_found_again(memory: Database) -> None:
    first = memory.collection("c", dim=3, metric="l2", mrl=(1, 2))
    first.add(vectors=np.ones((4, 3)))
    second = memory.collection("c")
    third = memory.collection("c", dim=3, metric="l2", mrl=[1, 2])
    assert first.spec == second.spec == third.spec
    assert len(second) == 4


def test_the_metric_is_cosine_unless_another_is_asked_for(memory: Database) -> None:
    assert memory.collection("c", dim=3).spec.metric == "cosine"


def test_whole_numbers_of_numpy_declare_too(memory: Database) -> None:
    spec = memory.collection("c", dim=np.int64(3), mrl=np.array([1, 2])).spec
    assert (spec.dim, spec.mrl) == (3, (1, 2))
    assert type(spec.dim) is int
    assert memory.collection("c", dim=np.int32(3), mrl=[np.int8(1), 2]).spec == spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 1}, "dim=1 is outside"),
        ({"dim": 8193}, "dim=8193 is outside"),
        ({"dim": True}, "dim=True is not"),
        ({"dim": 2.0}, r"dim=2\.0 is not"),
        ({"dim": "3"}, "dim='3' is not"),
        ({"dim": 10**5000}, "dim=<int too large to show>"),
        ({"dim": 3, "metric": "foo"}, "metric='foo'"),
        ({"dim": 3, "metric": ""}, "metric=''"),
        ({"dim": 3, "metric": []}, r"metric=\[\]"),
        ({"dim": 3, "precision": "f2"}, "precision='f2' is unknown"),
        ({"dim": 3, "precision": "bits"}, "precision='bits' is unknown"),
        ({"dim": 12, "metric": "hamming"}, "dim=12 counts bits"),
        ({"dim": 8200, "metric": "hamming"}, "dim=8200 is outside"),
        ({"dim": 16, "metric": "hamming", "precision": "int8"}, "'int8' does not apply"),
        ({"dim": 16, "metric": "hamming", "precision": "float32"}, "'float32' does not apply"),
        ({"metric": "hamming"}, "needs dim="),
        ({"dim": 64, "metric": "hamming", "encoder": HashEncoder()}, "encoder 'hash' makes"),
        ({"dim": 3, "mrl": 5}, "mrl=5"),
        ({"dim": 3, "mrl": "12"}, "mrl='12'"),
        ({"dim": 3, "mrl": (1.5, 2)}, r"mrl=\(1\.5, 2\)"),
        ({"dim": 3, "mrl": [True]}, r"mrl=\[True\]"),
        ({"dim": 3, "mrl": (2, 1)}, r"mrl=\(2, 1\)"),
        ({"dim": 3, "mrl": (4,)}, r"mrl=\(4,\)"),
        ({"dim": 4, "encoder": HashEncoder(8)}, "dim=4, but encoder 'hash' makes 8"),
        ({"encoder": 5}, "encoder=5"),
        ({"encoder": lambda texts: texts}, "a function without a name"),
    ],
)
def test_an_impossible_collection_is_not_made(
    memory: Database, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        memory.collection("c", **values)
    assert memory.collections() == []


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"dim": 4}, SpecError, "'c' has dim=64, not 4"),
        ({"metric": "l2"}, SpecError, "'c' has metric='cosine', not 'l2'"),
        ({"mrl": (1, 2)}, SpecError, r"'c' has mrl=\(\), not \(1, 2\)"),
        ({"precision": "int8"}, SpecError, "'c' has precision='float32', not 'int8'"),
        ({"encoder": HashEncoder(32)}, EncoderMismatchError, "'hash'.*not with 'hash'"),
        ({"encoder": HashEncoder(64, seed=1)}, EncoderMismatchError, "made with encoder 'hash'"),
        (
            {"encoder": FunctionEncoder(lambda texts: texts, dim=64, name="other")},
            EncoderMismatchError,
            "made with encoder 'hash' .*not with 'other'",
        ),
    ],
)
def test_another_declaration_of_a_collection_is_refused(
    memory: Database, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    memory.collection("c", encoder=HashEncoder()).add("text", ids=1)
    with pytest.raises(error, match=message):
        memory.collection("c", **values)
    assert keys(memory.collection("c").scan()) == [1]


def test_an_encoder_for_bare_vectors_is_refused(memory: Database) -> None:
    memory.collection("c", dim=64)
    with pytest.raises(SpecError, match=r"holds bare vectors \(dim=64\).* not with 'hash'"):
        memory.collection("c", encoder=HashEncoder())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must not be empty"),
        (None, "NoneType None"),
        (b"c", "bytes b'c'"),
        ("x" * 256, "has 256"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_an_impossible_name_is_refused(memory: Database, name: Any, message: str) -> None:
    memory.collection("c", dim=3)
    with pytest.raises(UsageError, match=message):
        memory.collection(name, dim=3)
    with pytest.raises(UsageError, match=message):
        memory.rename("c", name)
    with pytest.raises(UsageError, match=message):
        memory.drop(name)
    assert memory.collections() == ["c"]


def test_an_unknown_collection_is_refused_with_the_names_of_the_known(memory: Database) -> None:
    memory.collection("known", dim=3)
    with memory.snapshot() as view:
        for call in (memory.drop, view.collection, lambda name: memory.rename(name, "new")):
            with pytest.raises(NotFoundError, match=r"no collection 'unknown'.*'known'"):
                call("unknown")
    assert memory.collections() == ["known"]


def test_a_name_that_is_taken_is_refused(memory: Database) -> None:
    for name in ("a", "b"):
        memory.collection(name, dim=3)
    with pytest.raises(AlreadyExistsError, match="'b'"):
        memory.rename("a", "b")
    assert memory.collections() == ["a", "b"]


def test_a_renamed_collection_keeps_its_handles(memory: Database, points: Collection) -> None:
    other = memory.rename("points", "new/名")
    assert points.name == other.name == "new/名"
    points.add(vectors=[1, 1], ids="x")
    assert other.count() == 11
    assert memory.rename("new/名", "new/名").count() == 11


def test_a_handle_of_a_dropped_collection_meets_no_other(
    memory: Database, points: Collection
) -> None:
    memory.drop("points")
    memory.collection("points", dim=2).add(vectors=[1, 1])
    for call in (
        points.count,
        points.stats,
        lambda: points.add(vectors=[1, 1]),
        lambda: points.get(1),
        lambda: points.search([1, 1]),
        lambda: list(points.scan()),
        lambda: points.delete([1]),
    ):
        with pytest.raises(NotFoundError, match="no longer exists"):
            call()
    assert "no longer exists" in repr(points)
    assert memory.collection("points").count() == 1


def test_a_collection_made_in_a_rolled_back_transaction_is_gone(memory: Database) -> None:
    made: list[Collection] = []

    def fail() -> None:
        with memory.transaction():
            made.append(memory.collection("c", dim=2))
            made[0].add(vectors=[1, 1])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert memory.collections() == []
    with pytest.raises(NotFoundError, match="creation was rolled back"):
        made[0].count()


class Odd:
    """An encoder of the protocol that says odd things of itself."""

    name, dim, mrl, fingerprint = "odd", 4, (), "odd-1"

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def encode(self, texts: Any, kind: str = "document") -> Any:
        return np.ones((len(texts), 4))


@pytest.mark.parametrize(
    "values",
    [
        {"name": None},
        {"name": ""},
        {"fingerprint": 5},
        {"fingerprint": None},
        {"dim": None},
        {"dim": 1.5},
        {"dim": 1},
        {"mrl": 5},
        {"mrl": (5,)},
    ],
)
def test_an_encoder_that_says_nothing_sensible_of_itself_is_refused(
    memory: Database, values: dict[str, Any]
) -> None:
    (name,) = values
    with pytest.raises(SpecError, match=rf"{name}.*{re.escape(repr(values[name]))}"):
        memory.collection("c", encoder=Odd(**values))
    assert memory.collections() == []


def test_an_encoder_may_describe_itself_with_numpys_numbers(memory: Database) -> None:
    encoder = Odd(dim=np.int64(4), mrl=np.array([2, 4]))
    collection = memory.collection("c", encoder=encoder)
    assert (collection.spec.dim, collection.spec.mrl) == (4, (2, 4))
    collection.add("text", ids=1)
    assert collection.search("text").ids == [1]


def test_the_repr_says_what_a_collection_is(memory: Database) -> None:
    assert repr(memory.collection("c", dim=3)) == "<Collection 'c' dim=3 metric='cosine'>"
    text = memory.collection("t", encoder=HashEncoder())
    assert repr(text) == "<Collection 't' dim=64 metric='cosine', encoder='hash'>"


def test_a_handle_is_true_even_when_empty(memory: Database) -> None:
    assert memory.collection("c", dim=3)


def test_texts_need_the_encoder_that_the_collection_was_made_with(path: Any) -> None:
    with vecstore.open(path) as db:
        db.collection("c", encoder=HashEncoder()).add("text", ids=1)
    with vecstore.open(path) as db:
        collection = db.collection("c")
        for call in (lambda: collection.add("more"), lambda: collection.search("text")):
            with pytest.raises(EncoderMismatchError, match=r"'hash'.*encoder=\.\.\."):
                call()
        # What needs no encoder goes on.
        assert collection.get(1).text == "text"
        assert len(collection.search(np.ones(64))) == 1
        db.collection("c", encoder=HashEncoder())
        assert collection.search("text").ids == [1]


def test_stats_count_records_and_rows(memory: Database) -> None:
    collection = memory.collection("c", dim=3)
    assert collection.stats()["records"] == collection.stats()["blocks"] == 0
    collection.add(vectors=np.ones((100, 3)), ids=range(100))
    collection.delete(range(10))
    stats = collection.stats()
    assert (stats["records"], stats["dead_rows"], stats["blocks"]) == (90, 10, 2)
    assert (stats["name"], stats["dim"], stats["vector_bytes"]) == ("c", 3, 90 * 12)


# Precision


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_a_precision_is_declared_kept_and_counted(
    memory: Database, precision: Any, size: int
) -> None:
    collection = memory.collection("c", dim=3, precision=precision)
    collection.add(vectors=np.eye(3))
    assert collection.spec.precision == memory.collection("c").spec.precision == precision
    assert memory.collection("c", dim=3, precision=precision).spec == collection.spec
    assert collection.stats()["vector_bytes"] == 9 * size


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_record_whose_vector_is_given_again_keeps_its_row(
    memory: Database, precision: Any, metric: Any
) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 7))
    collection = memory.collection("c", dim=7, metric=metric, precision=precision)
    collection.add(vectors=vectors, ids=range(20))
    collection.upsert(vectors=vectors[::-1], ids=range(20)[::-1])
    collection.update([3, 4], vector=vectors[3:5])
    assert collection.stats()["dead_rows"] == 0
    collection.update(3, vector=vectors[4])
    assert collection.stats()["dead_rows"] == 1


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "bits"])
def test_repacked_vectors_are_the_same_bits(memory: Database, precision: Any) -> None:
    vectors = np.random.default_rng(1).normal(size=(200, 8))
    if precision == "bits":
        collection = memory.collection("c", dim=8, metric="hamming")
        collection.add(vectors=vectors > 0, ids=range(200))
    else:
        collection = memory.collection("c", dim=8, precision=precision)
        collection.add(vectors=vectors, ids=range(200))
    before = {record.id: record.vector for record in collection.scan(include=("vector",))}
    collection.delete([key for key in range(200) if key % 3])
    memory.compact()
    for record in collection.scan(include=("vector",)):
        assert record.vector.tobytes() == before[record.id].tobytes()


def test_texts_are_stored_in_the_precision_too(memory: Database) -> None:
    collection = memory.collection("c", encoder=HashEncoder(), precision="int8")
    collection.add(["red apples", "late trains"], ids=[1, 2])
    assert collection.search("apples", 1).ids == [1]
    assert collection.stats()["vector_bytes"] == 128


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_numbers_beyond_float16_are_refused(memory: Database, metric: Any) -> None:
    collection = memory.collection("c", dim=2, metric=metric, precision="float16")
    with pytest.raises(VectorError, match=r"vector 1 holds 1e\+06 at position 0; .*'float16'"):
        collection.add(vectors=[[1, 2], [1e6, 0]])
    assert collection.count() == 0


# Binary vectors


def test_a_binary_record_whose_vector_is_given_again_keeps_its_row(memory: Database) -> None:
    collection = memory.collection("c", dim=16, metric="hamming")
    assert memory.collection("c", dim=16, metric="hamming").spec == collection.spec
    vectors = np.arange(40, dtype=np.uint8).reshape(20, 2)
    collection.add(vectors=vectors, ids=range(20))
    collection.upsert(vectors=np.unpackbits(vectors, axis=1).astype(bool), ids=range(20))
    assert collection.stats()["dead_rows"] == 0
    collection.update(3, vector=[7, 7])
    assert collection.stats()["dead_rows"] == 1
    assert collection.stats()["vector_bytes"] == 20 * 8


def test_binary_records_are_streamed(memory: Database) -> None:
    collection = memory.collection("c", dim=16, metric="hamming")
    items = [{"id": 1, "vector": [1, 2]}, {"id": 2, "vector": np.array([3, 4], np.uint8)}]
    assert collection.add_records(items, batch=1) == 2
    assert collection.add_records(items, upsert=True) == 2
    assert [record.vector.tolist() for record in collection.scan(include=("vector",))] == [
        [1, 2],
        [3, 4],
    ]


def test_texts_are_no_binary_vectors(memory: Database) -> None:
    collection = memory.collection("c", dim=16, metric="hamming")
    with pytest.raises(UsageError, match="has no encoder"):
        collection.add("a text")
    with pytest.raises(UsageError, match="has no encoder"):
        collection.search("a text")
    collection.add("a text beside", vectors=[1, 2], ids=1)
    assert collection.search([1, 2])[0].text == "a text beside"


# Prefixes of an encoder's vectors


def trained(mrl: Any = (8, 16, 64)) -> FunctionEncoder:
    hashed = HashEncoder(64)
    return FunctionEncoder(hashed.encode, dim=64, name="trained", mrl=mrl)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_a_collection_holds_a_prefix_that_its_encoder_was_trained_for(
    path: Any, metric: Any
) -> None:
    texts, encoder = ["red apples", "late trains", "red trains"], trained()
    whole = encoder.encode(texts)[:, :16]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    with vecstore.open(path) as db:
        collection = db.collection("c", dim=16, encoder=encoder, metric=metric)
        assert (collection.spec.dim, collection.spec.mrl) == (16, (8, 16))
        collection.add(texts, ids=range(3))
        found = [record.vector for record in collection.scan(include=("vector",))]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        collection.add("a vector beside", vectors=np.ones(16), ids="given")
        with pytest.raises(VectorError, match="64 numbers each, the collection has dim=16"):
            collection.add(vectors=np.ones(64))
    with vecstore.open(path) as db:
        collection = db.collection("c", encoder=trained())
        assert db.collection("c", dim=16, mrl=(8, 16, 64), encoder=trained()).spec.dim == 16
        assert collection.search("red apples", 1).ids == [0]
        assert collection.search("red apples", 1, dims=8).ids == [0]
        assert db.check() == []


def test_the_caller_may_declare_an_encoders_prefixes(memory: Database) -> None:
    collection = memory.collection("c", dim=16, encoder=HashEncoder(64), mrl=(4, 16, 32))
    assert (collection.spec.dim, collection.spec.mrl) == (16, (4, 16))
    collection.add("red apples")
    assert collection.search("red apples")[0].score == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 16}, "dim=16, but encoder 'hash' makes 64 numbers, and declares no prefixes"),
        ({"dim": 16, "mrl": (8, 32)}, "dim=16, .* and its prefixes are 8, 32; leave dim out"),
        ({"dim": 128, "mrl": (8, 128)}, "dim=128, but encoder 'hash' makes 64"),
        ({"dim": 16, "mrl": (16, 128)}, r"mrl=\(16, 128\)"),
        ({"dim": True, "mrl": (1, 16)}, "dim=True is not"),
        ({"dim": "16", "mrl": (16,)}, "dim='16' is not"),
        ({"dim": 16, "mrl": (16, 8)}, r"mrl=\(16, 8\)"),
    ],
)
def test_a_prefix_that_an_encoder_was_not_trained_for_is_refused(
    memory: Database, values: Any, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        memory.collection("c", encoder=HashEncoder(64), **values)
    assert memory.collections() == []


def test_a_prefix_keeps_the_length_of_the_whole(memory: Database) -> None:
    def three(texts: list[str]) -> Any:
        return [[3.0, 4.0, 12.0]] * len(texts)

    encoder = FunctionEncoder(three, name="three", mrl=(2,))
    collection = memory.collection("c", dim=2, encoder=encoder, metric="dot")
    collection.add("a", ids=1)
    found = collection.get(1, include=("vector",)).vector
    np.testing.assert_allclose(found, [7.8, 10.4], rtol=1e-6)


def test_a_prefix_of_zeros_is_the_encoders_fault(memory: Database) -> None:
    def zero(texts: list[str]) -> Any:
        return [[0.0, 0.0, 1.0]] * len(texts)

    encoder = FunctionEncoder(zero, name="zero", mrl=(2,))
    with pytest.raises(EncoderError, match="'zero' returned for text 0 is zero"):
        memory.collection("c", dim=2, encoder=encoder).add("a")
    memory.collection("d", dim=2, encoder=encoder, metric="l2").add("a")


def test_cut_and_scaled_vectors_are_what_a_trained_services_own_short_ones_are(
    memory: Database,
) -> None:
    """Real vectors: the first 256 of 1,536 numbers, and what was asked of the service at 256."""
    with np.load(DATA / "openai_prefix.npz") as file:
        whole, short = file["whole"], file["short"]
    encoder = FunctionEncoder(
        lambda texts: [whole[int(text)] for text in texts], dim=1536, name="service", mrl=(256,)
    )
    collection = memory.collection("c", dim=256, encoder=encoder)
    collection.add([str(number) for number in range(len(whole))], ids=range(len(whole)))
    found = [record.vector for record in collection.scan(include=("vector",))]
    np.testing.assert_allclose(found, short, atol=5e-4)
    for number, vector in enumerate(short):
        assert collection.search(vector, 1)[0].id == number
        assert collection.search(vector, 1)[0].score > 0.99999


# Getting


def test_one_id_gets_a_record_and_a_list_gets_a_list(points: Collection) -> None:
    assert points.get(3) == Record(id=3, metadata={"n": 3})
    assert points.get([3]) == [points.get(3)]
    assert points.get(n for n in (1, 2)) == [points.get(1), points.get(2)]
    assert points.get([]) == []


def test_missing_ids_get_none_in_their_places(points: Collection) -> None:
    assert points.get("3") is None
    assert points.get([5, "5", 99, 5, 0]) == [
        points.get(5),
        None,
        None,
        points.get(5),
        points.get(0),
    ]


def test_a_record_carries_what_include_names(points: Collection) -> None:
    assert points.get(3, include=()) == Record(id=3)
    found = points.get([9, "no", 3], include=("vector",))
    assert found[0].metadata is None
    assert (found[0].vector.tolist(), found[1], found[2].vector.tolist()) == ([1, 9], None, [1, 3])


@pytest.mark.parametrize("include", ["vector", ("vectors",), None, 5, [[]]])
def test_an_unknown_include_is_refused(points: Collection, include: Any) -> None:
    for call in (lambda: points.get(1, include=include), lambda: points.scan(include=include)):
        with pytest.raises(UsageError, match="include"):
            call()


def test_an_id_may_be_asked_for_with_in(points: Collection) -> None:
    assert 3 in points
    assert "3" not in points
    assert np.int64(3) in points
    with pytest.raises(UsageError, match=r"float 3\.0"):
        assert 3.0 not in points


# Deleting


def test_deleting_counts_what_was_there(points: Collection) -> None:
    assert points.delete([1, 1, 2, "2", 99]) == 2
    assert points.delete(3) == 1
    assert points.delete([]) == 0
    assert keys(points.scan()) == [0, 4, 5, 6, 7, 8, 9]


def test_deleting_by_ids_and_filter_deletes_what_is_in_both(points: Collection) -> None:
    assert points.delete([1, 2, 3, 99], where={"n": {"$gte": 2}}) == 2
    assert points.delete(where=vecstore.F("n") > 7) == 2
    assert keys(points.scan()) == [0, 1, 4, 5, 6, 7]


def test_an_empty_filter_deletes_everything(points: Collection) -> None:
    assert points.delete(where={}) == 10
    assert points.count() == 0
    assert points.stats()["blocks"] == 0


def test_a_bad_filter_deletes_nothing(points: Collection) -> None:
    with pytest.raises(UsageError, match=r"\$between"):
        points.delete(where={"n": {"$between": [1, 2]}})
    assert points.count() == 10


# Scanning


@given(st.integers(0, 12), st.none() | st.integers(0, 12))
def test_a_scan_goes_on_after_a_record(first: int, limit: int | None) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        collection.add(vectors=np.ones((10, 2)), ids=list("jihgfedcba"))
        begun = list(collection.scan(limit=first))
        assert keys(begun) == list("jihgfedcba")[:first]
        after = begun[-1] if begun else None
        rest = keys(collection.scan(after=after, limit=limit))
        assert rest == list("jihgfedcba")[len(begun) :][:limit]


def test_a_scan_is_in_the_order_of_storing_over_many_pages(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    count = 2 * PAGE + 7
    ids = np.random.default_rng(0).permutation(count).tolist()
    collection.add(vectors=np.ones((count, 2)), ids=ids, metadata=[{"n": n} for n in ids])
    collection.upsert(vectors=np.full((50, 2), 2), ids=ids[:50], metadata=[{"n": -1}] * 50)
    assert keys(collection.scan()) == ids
    assert keys(collection.scan({"n": {"$gte": 0}})) == ids[50:]
    assert keys(collection.scan(limit=PAGE)) == ids[:PAGE]
    assert keys(collection.scan(limit=PAGE + 1)) == ids[: PAGE + 1]


def test_a_scan_reads_what_is_written_between_its_pages(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    count = 2 * PAGE
    collection.add(vectors=np.ones((count, 2)), ids=range(count))
    scan = collection.scan(include=("metadata", "vector"))
    seen = keys(itertools.islice(scan, 10))
    # The page that was begun is of one moment; what follows is of another.
    collection.delete([5, 20, PAGE + 20])
    collection.update(PAGE + 30, metadata={"new": True}, vector=[3, 4])
    collection.add(vectors=[1, 1], ids="last")
    rest = list(scan)
    assert seen + keys(rest) == [*range(PAGE + 20), *range(PAGE + 21, count), "last"]
    (changed,) = (record for record in rest if record.metadata)
    assert (changed.id, changed.vector.tolist()) == (PAGE + 30, [3, 4])
    memory.compact()


def test_a_scan_goes_on_after_a_record_that_is_gone(points: Collection) -> None:
    begun = list(points.scan(limit=3))
    points.delete([1, 2, 3])
    assert keys(points.scan(after=begun[-1])) == [4, 5, 6, 7, 8, 9]
    with pytest.raises(NotFoundError, match="after=2 is not an id"):
        points.scan(after=2)


def test_a_scan_goes_on_after_an_id_or_a_hit(points: Collection) -> None:
    assert keys(points.scan(after=6)) == [7, 8, 9]
    hit = points.search([1, 7], 1)[0]
    assert keys(points.scan(after=hit)) == list(range(hit.id + 1, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": -1}, "limit=-1"),
        ({"limit": True}, "limit=True"),
        ({"limit": 1.5}, r"limit=1\.5"),
        ({"after": 1.5}, r"float 1\.5"),
        ({"after": True}, "bool True"),
        ({"where": 5}, "int 5"),
    ],
)
def test_an_impossible_scan_is_refused_at_once(
    points: Collection, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        points.scan(**options)


def test_an_unfinished_scan_holds_nothing(memory: Database, points: Collection) -> None:
    scan = points.scan()
    next(scan)
    memory.compact()
    points.delete(where={})
    assert points.count() == 0


def test_a_scan_inside_a_transaction_sees_its_writes(memory: Database, points: Collection) -> None:
    with memory.transaction():
        points.delete([0, 1])
        points.add(vectors=[1, 1], ids="new")
        assert keys(points.scan(limit=2)) == [2, 3]
        assert keys(points.scan(after=8)) == [9, "new"]


# Transactions and views


def test_a_failing_call_inside_a_transaction_fails_alone(
    memory: Database, points: Collection
) -> None:
    with memory.transaction():
        points.delete([0])
        with pytest.raises(AlreadyExistsError):
            points.add(vectors=[[1, 1], [1, 1]], ids=["new", 5])
        with pytest.raises(NotFoundError):
            points.update([1, "no"], metadata=[{"n": 99}, {}])
        assert keys(points.scan()) == list(range(1, 10))
        points.add(vectors=[1, 1], ids="after")
    assert keys(points.scan()) == [*range(1, 10), "after"]
    assert points.get(1).metadata == {"n": 1}


def test_an_inner_transaction_is_rolled_back_alone(memory: Database, points: Collection) -> None:
    def inner() -> None:
        with memory.transaction():
            points.delete(where={})
            memory.collection("other", dim=2).add(vectors=[1, 1])
            raise ZeroDivisionError

    with memory.transaction():
        points.update(1, metadata={"n": -1})
        with pytest.raises(ZeroDivisionError):
            inner()
        with memory.transaction():
            points.delete([2])
    assert keys(points.scan()) == [0, 1, *range(3, 10)]
    assert points.get(1).metadata == {"n": -1}
    assert memory.collections() == ["points"]


def test_an_exception_rolls_a_transaction_back_over_all_collections(
    memory: Database, points: Collection
) -> None:
    other = memory.collection("other", dim=2)
    before = list(points.scan())

    def fail() -> None:
        with memory.transaction():
            points.delete(where={"n": {"$lt": 5}})
            other.add(vectors=np.ones((100, 2)))
            points.upsert(vectors=np.ones((200, 2)), ids=range(200))
            memory.rename("other", "renamed")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(points.scan()) == before
    assert (other.name, other.count()) == ("other", 0)


def test_a_view_repeats_its_reads_while_others_write(memory: Database, points: Collection) -> None:
    with memory.snapshot() as view:
        frozen = view.collection("points")
        before = (frozen.search([1, 3]), list(frozen.scan()), frozen.stats())
        points.delete([1, 3])
        points.upsert(vectors=np.ones((300, 2)), ids=range(300))
        memory.rename("points", "moved")
        assert (frozen.search([1, 3]), list(frozen.scan()), frozen.stats()) == before
        assert (frozen.name, view.collections()) == ("points", ["points"])
        assert points.count() == 300


def test_a_view_of_a_dropped_collection_goes_on(memory: Database, points: Collection) -> None:
    with memory.snapshot() as view:
        frozen = view.collection("points")
        memory.drop("points")
        assert frozen.count() == 10
        assert frozen.search([1, 3], 1).ids == [3]


def test_a_view_only_reads(memory: Database, points: Collection) -> None:
    with memory.snapshot() as view:
        frozen = view.collection("points")
        for call in (
            lambda: frozen.add(vectors=[1, 1]),
            lambda: frozen.upsert(vectors=[1, 1]),
            lambda: frozen.update(1, metadata={}),
            lambda: frozen.delete([1]),
            lambda: frozen.add_records([{"vector": [1, 1]}]),
        ):
            with pytest.raises(ReadOnlyError, match="snapshot"):
                call()
    assert points.count() == 10


def test_a_view_that_has_ended_says_so(memory: Database, points: Collection) -> None:
    view = memory.snapshot()
    frozen = view.collection("points")
    scan = frozen.scan()
    view.close()
    view.close()
    for call in (frozen.count, lambda: frozen.search([1, 1]), lambda: next(scan)):
        with pytest.raises(StoreError, match="snapshot has ended"):
            call()
