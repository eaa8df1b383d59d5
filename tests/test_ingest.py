"""Is every write whole or nothing, and does what is stored come back as it was given?"""

import math
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
import strategies as own
from hypothesis import given
from hypothesis import strategies as st
from reference import exactly

import vecstore
from vecstore import (
    AlreadyExistsError,
    Collection,
    Database,
    EncoderError,
    F,
    NotFoundError,
    UsageError,
    VectorError,
    ingest,
)
from vecstore.batches import new_ids
from vecstore.encoders import FunctionEncoder, HashEncoder

EVERYTHING = ("text", "metadata", "vector")


def content(db: Database) -> Any:
    """Everything that a database holds, in order."""
    return {
        name: [
            (record.id, record.text, record.metadata, record.vector.tobytes())
            for record in db.collection(name).scan(include=EVERYTHING)
        ]
        for name in db.collections()
    }


@pytest.fixture
def points(memory: Database) -> Iterator[Collection]:
    """Three vectors that must be there, unchanged, at the end of the test."""
    collection = memory.collection("points", dim=3)
    collection.add(vectors=np.eye(3) * 2, ids=["a", "b", 3], metadata=[{"n": 1}, None, {}])
    before, stats = content(memory), memory.collection("points").stats()
    yield collection
    assert content(memory) == before
    assert collection.stats() == stats


@pytest.fixture
def notes(memory: Database) -> Iterator[Collection]:
    """Two texts that must be there, unchanged, at the end of the test."""
    collection = memory.collection("notes", encoder=HashEncoder())
    collection.add(["red apples", "late trains"], ids=["a", "b"], metadata=[{"n": 1}, None])
    before = content(memory)
    yield collection
    assert content(memory) == before


WRITES: list[Callable[..., Any]] = [Collection.add, Collection.upsert]
writes = pytest.mark.parametrize("write", WRITES)


# Bad vectors


@writes
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([1, 2], "2 numbers each, the collection has dim=3"),
        ([[1, 2]], "2 numbers each, the collection has dim=3"),
        ([[1, 2, 3, 4]], "4 numbers each, the collection has dim=3"),
        ([[[1, 2, 3]]], r"shape \(1, 1, 3\)"),
        (5, "5"),
        ("abc", "abc|<U3"),
        ([[1, 2, math.nan]], "row 0 holds nan at position 2"),
        ([[1, 2, 3], [1, math.inf, 3]], "row 1 holds inf at position 1"),
        ([[math.inf, -math.inf, 1]], "row 0 holds inf at position 0"),
        (np.array([[1, np.nan, 3]], np.float32), "row 0 holds nan at position 1"),
        (np.array([[1, np.nan, 3]], np.float16), "row 0 holds nan at position 1"),
        ([[1e39, 0, 0]], r"row 0 holds 1e\+39"),
        ([[1, 2, 3], [0, 0, 0]], "vector 1 is zero"),
        ([["a", "b", "c"]], "<U1"),
        ([[1, 2, 1j]], "complex128"),
        ([[True, False, True]], "booleans"),
        ([[None, 1, 2]], "object"),
        ([[1, 2, 3], [1, 2]], "not an array of numbers"),
        ([[10**400, 1, 2]], "object"),
        (np.array(["2020-01-01"] * 3, "M8[D]"), "datetime64"),
        ({"a": 1}, "a"),
        (iter([[1, 2, 3]]), "iterator"),
    ],
)
def test_vectors_that_cannot_be_stored_are_refused(
    points: Collection, write: Any, vectors: Any, message: str
) -> None:
    with pytest.raises(VectorError, match=message):
        write(points, vectors=vectors)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_vector_too_long_for_its_metric_is_refused(memory: Database, metric: str) -> None:
    collection = memory.collection("c", dim=2, metric=metric)
    with pytest.raises(VectorError, match=r"vector 1 has length 2e\+18"):
        collection.add(vectors=[[1, 1], [2e18, 0]])
    assert collection.count() == 0


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_zero_vector_is_stored_where_it_has_a_distance(memory: Database, metric: str) -> None:
    collection = memory.collection("c", dim=2, metric=metric)
    collection.add(vectors=[0, 0], ids="zero")
    assert collection.get("zero", include=("vector",)).vector.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        ([1, 2], VectorError, "2 numbers each"),
        ([1, 2, math.nan], VectorError, "holds nan at position 2"),
        ([0, 0, 0], VectorError, "zero"),
        ([[1, 2, 3], [4, 5, 6]], UsageError, "2 entries for 1 records"),
        ("abc", VectorError, "abc|<U3"),
    ],
)
def test_an_update_with_a_bad_vector_changes_nothing(
    points: Collection, vector: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        points.update("a", vector=vector, metadata={"n": 2})


# Bad texts


@writes
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("", r"texts\[0\] is ''"),
        ("  \n", r"texts\[0\] is '  "),
        (["fine", ""], r"texts\[1\] is ''"),
        (["fine", None], r"texts\[1\] is None"),
        ([5], r"texts\[0\] is int 5"),
        (["fine", b"bytes"], r"texts\[1\] is bytes b'bytes'"),
        (b"bytes", "texts is one bytes"),
        ({"a": 1}, "texts is one dict"),
        (5, "texts is int 5"),
        ("a\ud800", "lone surrogate at position 1"),
        (["fine", "\ud800"], r"texts\[1\] cannot be stored as UTF-8"),
    ],
)
def test_texts_that_cannot_be_embedded_are_refused(
    notes: Collection, write: Any, texts: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write(notes, texts)


@writes
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to store"),
        ({"texts": []}, "empty"),
        ({"vectors": np.zeros((0, 64))}, "empty|shape"),
        ({"texts": iter(())}, "empty"),
        ({"texts": [], "ids": [], "metadata": []}, "empty"),
    ],
)
def test_an_empty_batch_is_refused(
    notes: Collection, write: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write(notes, **arguments)


@writes
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": ["x"]}, "ids has 1 entries for 3 records"),
        ({"ids": "x"}, "ids is one str"),
        ({"ids": []}, "ids has 0 entries for 3 records"),
        ({"ids": 5}, "ids is int 5"),
        ({"metadata": [{}]}, "metadata has 1 entries for 3 records"),
        ({"metadata": {}}, "metadata is one dict"),
        ({"metadata": [{}] * 4}, "metadata has 4 entries for 3 records"),
        ({"texts": ["one"]}, "texts has 1 entries for 3 records"),
        ({"texts": "one"}, "texts has 1 entries for 3 records"),
    ],
)
def test_sequences_of_other_lengths_are_refused(
    points: Collection, write: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write(points, vectors=np.eye(3), **arguments)


def test_a_text_without_a_vector_is_refused_where_there_is_no_encoder(points: Collection) -> None:
    with pytest.raises(UsageError, match=r"'points' holds bare vectors \(dim=3\)"):
        points.add("text")
    with pytest.raises(UsageError, match="'points' has no encoder"):
        points.update("a", text="text")


# Bad ids


@writes
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["x", "y", "x"], r"ids\[2\] = 'x' stands in this batch twice"),
        ([1, np.int64(1), 2], r"ids\[1\] = 1 stands"),
        (["x", True, "y"], "the bool True"),
        (["x", 1.0, "y"], r"float 1\.0"),
        (["x", b"y", "z"], "bytes b'y'"),
        (["x", (1,), "z"], "tuple"),
        (["x", ["y"], "z"], r"list \['y'\]"),
        (["x", 2**63, "y"], "9223372036854775808 does not"),
        (["x", -(2**63) - 1, "y"], "-9223372036854775809 does not"),
        (["x", 10**5000, "y"], "int too large to show"),
        (["x", "y" * 507, "z"], r"506 bytes of UTF-8, 'yyy.* has 507"),
        (["x", "é" * 254, "z"], "has 508"),
        (["x", "a\ud800", "z"], "lone surrogate at position 1"),
    ],
)
def test_ids_that_cannot_be_stored_are_refused(
    points: Collection, write: Any, ids: list[Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write(points, vectors=np.eye(3), ids=ids)


@pytest.mark.parametrize("ids", [["x", "y", "b"], ["x", 3, "a"]])
def test_adding_an_id_that_exists_stores_nothing_of_the_batch(
    points: Collection, ids: list[Any]
) -> None:
    with pytest.raises(AlreadyExistsError, match="'b'" if "b" in ids else "2 of 3 ids .* 3, 'a'"):
        points.add(vectors=np.eye(3), ids=ids)


def test_an_existing_id_is_found_before_its_text_is_embedded(memory: Database) -> None:
    calls: list[list[str]] = []

    def embed(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        return np.ones((len(texts), 4))

    collection = memory.collection("c", encoder=FunctionEncoder(embed, dim=4, name="counting"))
    collection.add("one", ids="a")
    with pytest.raises(AlreadyExistsError):
        collection.add("two", ids="a")
    with pytest.raises(NotFoundError):
        collection.update("b", text="two")
    assert calls == [["one"]]


@pytest.mark.parametrize("ids", ["x", ["a", "x"], [1, "1", "b"]])
def test_updating_an_id_that_does_not_exist_changes_nothing(points: Collection, ids: Any) -> None:
    metadata = {"n": 5} if isinstance(ids, str) else [{"n": 5}] * len(ids)
    with pytest.raises(NotFoundError, match=r"'points' has the id ('x'|1, '1')"):
        points.update(ids, metadata=metadata)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "ids is empty"),
        ([None], "None"),
        (None, "None"),
        (["a", "a"], "twice"),
        (True, "bool True"),
        (1.5, r"1\.5"),
        (b"a", "bytes"),
        ({"a": 1}, "dict"),
    ],
)
def test_an_update_of_impossible_ids_is_refused(points: Collection, ids: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        points.update(ids, metadata=[{}] if not isinstance(ids, list) else [{}] * len(ids))


def test_an_update_of_nothing_is_refused(points: Collection) -> None:
    with pytest.raises(UsageError, match="nothing to update"):
        points.update("a")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (b"ab", "bytes b'ab'"),
        ({"n": 1}, "dict {'n': 1}.*where="),
        (vecstore.F("n") == 1, "where="),
        (1.5, r"float 1\.5"),
        (np.array(5), r"ndarray array\(5\)"),
        (True, "bool True"),
        (["a", None], "NoneType None"),
        (["a", 1.0], r"float 1\.0"),
        ([["a"]], "list"),
        ("\ud800", "lone surrogate"),
        (2**64, "18446744073709551616"),
    ],
)
def test_deleting_and_getting_by_impossible_ids_is_refused(
    points: Collection, ids: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        points.delete(ids)
    with pytest.raises(UsageError, match=message):
        points.get(ids)


def test_deleting_without_saying_what_is_refused(points: Collection) -> None:
    with pytest.raises(UsageError, match=r"where=\{\}"):
        points.delete()


# Bad metadata


def deep(levels: int) -> dict[str, Any]:
    node: dict[str, Any] = {}
    for _ in range(levels):
        node = {"a": node}
    return node


def cycle() -> dict[str, Any]:
    node: dict[str, Any] = {}
    node["self"] = [node]
    return node


@pytest.mark.parametrize("method", ["add", "upsert", "update"])
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": math.nan}, r"metadata\['a'\] = nan"),
        ({"a": [1, -math.inf]}, r"metadata\['a'\]\[1\] = -inf"),
        ({"a": np.float32("nan")}, r"metadata\['a'\] = nan"),
        ({"a": {1, 2}}, r"metadata\['a'\] is set \{1, 2\}"),
        ({"a": object()}, r"metadata\['a'\] is object <object"),
        ({"a": {"b": Decimal("1.5")}}, r"metadata\['a'\]\['b'\] is Decimal Decimal\('1.5'\)"),
        ({"a": date(2024, 2, 29)}, "date datetime.date"),
        ({"a": time(12)}, "time datetime.time"),
        ({"a": timedelta(1)}, "timedelta"),
        ({"a": 1j}, "complex 1j"),
        ({"a": bytearray(b"x")}, "bytearray"),
        ({"a": np.arange(3)}, "ndarray"),
        ({"a": range(3)}, "range"),
        ({"a": 2**64}, "18446744073709551616 does not fit"),
        ({"a": -(2**63) - 1}, "-9223372036854775809 does not fit"),
        ({"a": 10**5000}, "int too large to show"),
        ({1: 2}, "key 1"),
        ({"a": {None: 2}}, r"metadata\['a'\] has the key None"),
        ({"$a": 2}, r"metadata has the key '\$a'"),
        ({"a": {10**5000: 2}}, "int too large to show"),
        ({"a": "x\ud800"}, "lone surrogate at position 1"),
        ({"x\ud800": 1}, "lone surrogate at position 1"),
        (deep(1000), "deeper than 64 levels"),
        (cycle(), "deeper than 64 levels"),
        ({"a": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, "cannot be stored"),
        ({"a": datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2)))}, "cannot be"),
        (
            {
                "a": datetime(
                    2020, 1, 1, tzinfo=timezone(timedelta(days=1) - timedelta(microseconds=1))
                )
            },
            "cannot be stored",
        ),
        ({"a": np.datetime64(1, "ns")}, "datetime64"),
        ({"a": np.datetime64("NaT")}, "datetime64"),
        ([("a", 1)], "metadata is a dict of fields, got"),
        (5, "5"),
        ("text", "text|str"),
    ],
)
def test_metadata_that_cannot_be_stored_is_refused(
    points: Collection, method: str, metadata: Any, message: str
) -> None:
    key = "vector" if method == "update" else "vectors"
    arguments = {"ids": ["a", "b"], key: np.eye(3)[:2], "metadata": [{}, metadata]}
    if method == "add":
        arguments["ids"] = ["x", "y"]
    with pytest.raises(UsageError, match=message):
        getattr(points, method)(**arguments)


def test_the_record_with_the_bad_metadata_is_named(points: Collection) -> None:
    with pytest.raises(UsageError, match="record 1: metadata"):
        points.add(vectors=np.eye(3), metadata=[{}, {"a": set()}, {}])


# Bad encoders


def function(answer: Any) -> FunctionEncoder:
    def embed(texts: list[str]) -> Any:
        if "fail" in texts[-1]:
            return answer(texts) if callable(answer) else answer
        return np.ones((len(texts), 4))

    return FunctionEncoder(embed, dim=4, name="odd")


def raises(texts: list[str]) -> Any:
    raise ZeroDivisionError("half way")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (raises, "ZeroDivisionError: half way"),
        (None, "odd"),
        ("text", "odd"),
        (np.ones((2, 5)), "5 numbers"),
        (np.ones((3, 4)), "odd"),
        (np.full((2, 4), np.nan), "not finite"),
        ([[1, 2, 3, 4], [1, 2, 3]], "odd"),
        (np.zeros((2, 4)), "zero"),
        ([["a"] * 4] * 2, "odd"),
        (np.ones((2, 4), complex), "odd"),
    ],
)
def test_what_an_encoder_returns_is_checked_before_anything_is_stored(
    memory: Database, answer: Any, message: str
) -> None:
    collection = memory.collection("c", encoder=function(answer))
    collection.add("first", ids=1)
    before = content(memory)
    for write in (collection.add, collection.upsert):
        with pytest.raises(EncoderError, match=message):
            write(["fine", "fail"], ids=["x", "y"])
    with pytest.raises(EncoderError):
        collection.update(1, text="fail")
    with pytest.raises(EncoderError):
        collection.search("fail")

    def both() -> None:
        with memory.transaction():
            collection.add("fine", ids="z")
            collection.add(["fine", "fail"], ids=["x", "y"])

    with pytest.raises(EncoderError):
        both()
    assert content(memory) == before


class Rude:
    """An encoder of the protocol that does as it likes."""

    name, dim, mrl, fingerprint = "rude", 4, (), "rude-1"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def encode(self, texts: Any, kind: str = "document") -> Any:
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [None, "x", 5, [], np.ones(4), np.ones((1, 3)), np.ones((2, 4)), np.full((1, 4), np.inf)],
)
def test_an_encoder_of_others_that_returns_garbage_stores_nothing(
    memory: Database, answer: Any
) -> None:
    collection = memory.collection("c", encoder=Rude(answer))
    with pytest.raises(EncoderError, match="rude"):
        collection.add("text")
    with pytest.raises(EncoderError, match="rude"):
        collection.search("text")
    assert collection.count() == 0


def test_an_encoder_of_others_that_raises_stores_nothing(memory: Database) -> None:
    class Broken(HashEncoder):
        def encode(self, texts: Any, kind: Any = "document") -> Any:
            raise OSError("no such weights")

    collection = memory.collection("c", encoder=Broken(dim=4))
    with pytest.raises(EncoderError, match="no such weights") as caught:
        collection.add("text")
    assert isinstance(caught.value.__cause__, OSError)
    assert collection.count() == 0


def test_an_encoder_of_others_that_extends_its_list_stores_nothing(memory: Database) -> None:
    class Greedy(HashEncoder):
        def encode(self, texts: Any, kind: Any = "document") -> Any:
            texts.append("more")
            return super().encode(texts, kind=kind)

    collection = memory.collection("c", encoder=Greedy(dim=4))
    with pytest.raises(EncoderError, match="returned 2 vectors for 1 texts"):
        collection.add("text")
    assert collection.count() == 0


@pytest.mark.parametrize("part", ["name", "dim", "mrl", "fingerprint"])
def test_an_encoder_of_others_that_cannot_tell_what_it_is_makes_nothing(
    memory: Database, part: str
) -> None:
    def broken(encoder: Any) -> Any:
        raise OSError("no such weights")

    encoder = type("Broken", (HashEncoder,), {part: property(broken)})(dim=4)
    with pytest.raises(EncoderError, match=f"the encoder's {part} cannot be told.*no such weights"):
        memory.collection("c", encoder=encoder)
    assert memory.collections() == []


@pytest.mark.parametrize("part", ["name", "fingerprint"])
def test_an_encoder_of_others_whose_name_is_no_text_makes_nothing(
    memory: Database, part: str
) -> None:
    encoder = type("Odd", (HashEncoder,), {part: "\ud800"})(dim=4)
    with pytest.raises(UsageError, match=f"the encoder's {part} .*lone surrogate"):
        memory.collection("c", encoder=encoder)
    assert memory.collections() == []


def test_a_text_that_the_encoder_refuses_is_called_by_its_place_in_the_batch(
    memory: Database,
) -> None:
    class Picky(HashEncoder):
        def encode(self, texts: Any, kind: Any = "document") -> Any:
            for place, text in enumerate(texts):
                if text == "\0":
                    raise UsageError(f"text {place} is {text!r}")
            return super().encode(texts, kind=kind)

    collection = memory.collection("c", encoder=Picky(dim=4))
    collection.add(["there"])
    for place in range(5):
        texts = ["there", "there", "new", "new", "other"]
        texts[place] = "\0"
        # The encoder gets neither what is there nor the same text twice.
        with pytest.raises(UsageError, match=rf"^texts\[{place}\] is '"):
            collection.add(texts)
    with pytest.raises(UsageError, match=r"^texts\[1\] is '"):
        collection.add(["new", "\0"], progress=True)
    assert collection.count() == 1


class Colour(str, Enum):  # noqa: UP042  # its str() is not its value
    RED = "red"


@pytest.mark.parametrize("count", [1, 6])
def test_an_enum_of_strings_is_stored_as_its_value(memory: Database, count: int) -> None:
    collection = memory.collection("c", dim=2)
    collection.add(vectors=[1, 0], ids=[Colour.RED], metadata=[{"colour": Colour.RED}])
    filler: Any = [{"colour": Colour.RED}] * count
    collection.add(vectors=[[1, 0]] * count, metadata=filler)
    assert collection.get(["red"])[0] is not None
    assert collection.count({"colour": "red"}) == count + 1
    assert collection.count(F("$id") == Colour.RED) == 1


def test_what_was_checked_is_stored_though_the_caller_changes_it_meanwhile(
    memory: Database,
) -> None:
    given = [{"n": i} for i in range(10)]

    def spoil(texts: list[str]) -> Any:
        for item in given:
            item["n"] = float("nan")
        return np.ones((len(texts), 4))

    collection = memory.collection("c", encoder=FunctionEncoder(spoil, dim=4, name="spoil"))
    collection.add([f"text {i}" for i in range(10)], metadata=given)
    assert [record.metadata for record in collection.scan()] == [{"n": i} for i in range(10)]


# What is stored comes back


@given(st.lists(own.metadata | st.none(), min_size=1, max_size=20))
def test_metadata_comes_back_as_it_was_given(metadata: list[Any]) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        collection.add(vectors=np.ones((len(metadata), 2)), metadata=metadata)
        assert all(
            exactly(record.metadata, given)
            for record, given in zip(collection.scan(), metadata, strict=True)
        )


def test_datetimes_keep_their_offset_or_their_lack_of_one(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    moment = datetime(2024, 2, 29, 12, 30, 15, 123456)
    given = [
        moment,
        moment.replace(tzinfo=UTC),
        moment.replace(tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
        datetime.min,
        datetime.max,
        datetime.max.replace(tzinfo=UTC),
    ]
    collection.add(vectors=[1, 1], ids=1, metadata={"at": given})
    found = collection.get(1).metadata["at"]
    assert found == given
    assert [value.utcoffset() for value in found] == [value.utcoffset() for value in given]


def test_numbers_and_strings_of_other_types_come_back_as_pythons_own(memory: Database) -> None:
    class Level(IntEnum):
        HIGH = 3

    class Colour(StrEnum):
        RED = "red"

    collection = memory.collection("c", dim=2)
    given = {
        "level": Level.HIGH,
        Colour.RED: Colour.RED,
        "f": np.float32(0.5),
        "i": np.int8(-3),
        "b": np.bool_(True),
        "s": np.str_("s"),
        "t": (1, (2,)),
        "d": np.datetime64("2020-01-01T10:00", "us"),
        "big": 2**63,
    }
    collection.add(vectors=[1, 1], ids=1, metadata=given)
    expected = {
        "level": 3,
        "red": "red",
        "f": 0.5,
        "i": -3,
        "b": True,
        "s": "s",
        "t": [1, [2]],
        "d": datetime(2020, 1, 1, 10),
        "big": 2**63,
    }
    assert exactly(collection.get(1).metadata, expected)


def test_large_texts_and_metadata_come_back(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    text, blob = "é\0" * 1_000_000, bytes(range(256)) * 10_000
    collection.add([text], vectors=[[1, 1]], ids=[1], metadata=[{"blob": blob}])
    found = collection.get(1)
    assert (found.text, found.metadata) == (text, {"blob": blob})


def test_what_is_stored_does_not_change_with_what_was_given(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    vector, metadata = np.ones((1, 2), np.float32), {"list": [1]}
    collection.add(vectors=vector, ids=["a"], metadata=[metadata])
    vector[:] = 7
    metadata["list"].append(2)
    found = collection.get("a", include=EVERYTHING)
    assert (found.vector.tolist(), found.metadata) == ([1, 1], {"list": [1]})


@given(
    st.lists(
        st.integers(-(2**63), 2**63 - 1)
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=126)
        | st.sampled_from(["", "\0", "a\0b", "1", 1, "x" * 506, "é" * 253, -1, 0]),
        min_size=1,
        max_size=30,
        unique=True,
    )
)
def test_ids_come_back_with_their_types(ids: list[Any]) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        given = [np.int64(key) if isinstance(key, int) else key for key in ids]
        assert exactly(collection.add(vectors=np.ones((len(ids), 2)), ids=given), ids)
        assert exactly([record.id for record in collection.scan()], ids)
        assert exactly([record.id for record in collection.get(given)], ids)
        assert all(key in collection for key in ids)
        assert db.check() == []
        assert collection.delete(ids) == len(ids)


def test_an_int_and_its_digits_are_two_ids(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    collection.add(vectors=[[1, 1], [2, 2]], ids=[1, "1"], metadata=[{"x": "int"}, {"x": "str"}])
    assert collection.get(1).metadata == {"x": "int"}
    assert collection.get("1").metadata == {"x": "str"}
    assert collection.delete(1) == 1
    assert collection.get("1") is not None


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_vectors_come_back_as_they_were_given(memory: Database, metric: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 33)).astype(np.float32) * 10.0 ** rng.integers(-9, 9, (200, 1))
    vectors = vectors.astype(np.float32)
    unit = vectors / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    collection = memory.collection("c", dim=33, metric=metric)
    collection.add(vectors=vectors, ids=range(200))
    collection.add(vectors=unit, ids=range(200, 400))
    found = np.array([r.vector for r in collection.get(range(400), include=("vector",))])
    if metric == "cosine":
        assert (np.abs(found[:200] - vectors) <= np.spacing(np.abs(vectors))).all()
    else:
        assert (found[:200] == vectors).all()
    assert (found[200:] == unit.astype(np.float32)).all()


def test_vectors_of_any_layout_and_real_dtype_are_taken(memory: Database) -> None:
    collection = memory.collection("c", dim=3, metric="dot")
    plain = np.arange(12, dtype=np.float32).reshape(4, 3)
    wide = np.zeros((8, 6))
    wide[::2, ::2] = plain
    given = [
        plain.tolist(),
        np.asfortranarray(plain),
        wide[::2, ::2],
        plain.astype(">f8"),
        plain.astype(np.int16),
        plain.astype(np.float16),
        [*plain],
        tuple(map(tuple, plain.tolist())),
    ]
    for vectors in given:
        ids = collection.add(vectors=vectors)
        found = [record.vector for record in collection.get(ids, include=("vector",))]
        assert np.array_equal(found, plain)


# Ids that are made here


def test_made_ids_are_unique_and_ascend(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    made = [key for _ in range(5) for key in collection.add(vectors=np.ones((50, 2)))]
    made += new_ids(5000)
    assert made == sorted(set(made))
    assert all(isinstance(key, str) and len(key) == 36 and key[14] == "7" for key in made)


def test_ids_that_are_none_are_made(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    first, second, third = collection.add(vectors=np.ones((3, 2)), ids=["a", None, None])
    assert first == "a"
    assert second < third
    assert [record.id for record in collection.scan()] == [first, second, third]


# Upsert and update


def test_an_upsert_replaces_text_and_metadata_whole(notes_free: Collection) -> None:
    notes_free.upsert("green pears", ids="a", metadata={"m": 2})
    notes_free.upsert(vectors=np.ones(64), ids="b")
    a, b = notes_free.get(["a", "b"])
    assert (a.text, a.metadata) == ("green pears", {"m": 2})
    assert (b.text, b.metadata) == (None, None)
    assert notes_free.search("green pears", 1).ids == ["a"]


@pytest.fixture
def notes_free(memory: Database) -> Collection:
    collection = memory.collection("notes", encoder=HashEncoder())
    collection.add(["red apples", "late trains"], ids=["a", "b"], metadata=[{"n": 1, "m": 1}, None])
    return collection


def test_an_update_merges_metadata_at_its_top_level(notes_free: Collection) -> None:
    notes_free.update("a", metadata={"m": {"x": 1}, "o": None})
    assert notes_free.get("a").metadata == {"n": 1, "m": {"x": 1}, "o": None}
    notes_free.update("a", metadata={"m": {"y": 2}})
    assert notes_free.get("a").metadata == {"n": 1, "m": {"y": 2}, "o": None}
    notes_free.update(["a", "b"], metadata=[None, {"n": 5}])
    assert notes_free.get("a").metadata["n"] == 1
    assert notes_free.get("b").metadata == {"n": 5}


def test_an_update_of_metadata_keeps_text_and_vector(notes_free: Collection) -> None:
    before = notes_free.get("a", include=EVERYTHING)
    notes_free.update("a", metadata={"n": 2})
    after = notes_free.get("a", include=EVERYTHING)
    assert after.text == before.text
    assert np.array_equal(after.vector, before.vector)
    assert notes_free.stats()["dead_rows"] == 0


def test_a_new_text_is_embedded_anew(notes_free: Collection) -> None:
    notes_free.update(["a", "b"], text=["early buses", None])
    assert notes_free.search("early buses", 1).ids == ["a"]
    assert notes_free.get("b").text == "late trains"
    assert notes_free.search("late trains", 1).ids == ["b"]


def test_a_new_text_with_its_vector_is_not_embedded(notes_free: Collection) -> None:
    vector = np.arange(1, 65, dtype=np.float32)
    notes_free.update("a", text="anything", vector=vector)
    found = notes_free.get("a", include=EVERYTHING)
    assert found.text == "anything"
    np.testing.assert_allclose(found.vector, vector, rtol=3e-7)


def test_records_that_are_replaced_for_ever_do_not_grow_the_collection(memory: Database) -> None:
    rng = np.random.default_rng(0)
    collection = memory.collection("c", dim=4)
    for _ in range(30):
        keys = rng.permutation(200)
        collection.upsert(vectors=rng.normal(size=(200, 4)), ids=keys)
        collection.upsert(vectors=rng.normal(size=(20, 4)), ids=keys[:20])
    assert collection.count() == 200
    assert collection.stats()["blocks"] <= 2 * (200 // 64 + 1)


# Streams


def test_a_stream_may_mix_vectors_texts_and_both(memory: Database) -> None:
    collection = memory.collection("c", encoder=HashEncoder(4))
    items = [
        {"id": 1, "text": "one"},
        {"id": 2, "vector": [1, 2, 3, 4]},
        {"text": "three", "vector": np.ones(4), "metadata": {"n": 3}},
        {"id": None, "text": "four", "vector": None, "metadata": None},
    ]
    assert collection.add_records(items) == 4
    found = list(collection.scan(include=EVERYTHING))
    assert [record.text for record in found] == ["one", None, "three", "four"]
    assert [record.metadata for record in found] == [None, None, {"n": 3}, None]
    assert found[2].vector.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("batch", [1, 2, 7, 1000])
def test_the_last_of_equal_ids_in_an_upserted_stream_wins(memory: Database, batch: int) -> None:
    collection = memory.collection("c", dim=2)
    items = ({"id": n % 5, "vector": [1, n], "metadata": {"n": n}} for n in range(23))
    assert collection.add_records(items, upsert=True, batch=batch) == 23
    assert [r.metadata["n"] for r in collection.get(range(5))] == [20, 21, 22, 18, 19]


def test_a_stream_that_repeats_an_id_fails_there(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    items = [{"id": n % 5, "vector": [1, n]} for n in range(8)]
    with pytest.raises(AlreadyExistsError, match="3 of 3 ids") as caught:
        collection.add_records(items)
    assert any("first 5 records" in note for note in caught.value.__notes__)
    assert collection.count() == 5


def broken(where: int) -> Iterator[dict[str, Any]]:
    for n in range(where):
        yield {"id": n, "vector": [1, n]}
    raise OSError("the source went away")


@pytest.mark.parametrize(
    ("items", "error", "message", "stored"),
    [
        (lambda: broken(25), OSError, "went away", 20),
        (lambda: [*broken_off(25), {"id": 99, "vector": [1]}], VectorError, "array|numbers", 20),
        (lambda: [*broken_off(25), {"id": 99}], UsageError, "no encoder", 25),
        (lambda: [*broken_off(25), {"id": 99, "vec": [1, 2]}], UsageError, "record 25.*'vec'", 20),
        (lambda: [*broken_off(25), "text"], UsageError, "record 25.*'text'", 20),
        (lambda: [*broken_off(25), {"vector": [1, 1], "metadata": 5}], UsageError, "5", 20),
        (lambda: [*broken_off(25), {"id": True, "vector": [1, 1]}], UsageError, "bool True", 20),
    ],
)
def test_a_stream_that_fails_keeps_whole_batches_and_says_how_many(
    memory: Database, items: Any, error: type[Exception], message: str, stored: int
) -> None:
    collection = memory.collection("c", dim=2)
    with pytest.raises(error, match=message) as caught:
        collection.add_records(items(), batch=10)
    assert f"the first {stored} records" in caught.value.__notes__[-1]
    assert [record.id for record in collection.scan()] == list(range(stored))


def broken_off(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "vector": [1, n]} for n in range(count)]


@pytest.mark.parametrize(
    ("items", "message"), [(5, "int 5"), (None, "NoneType None"), ("abc", "record 0.*'a'")]
)
def test_what_is_no_stream_of_dicts_is_refused(
    points: Collection, items: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        points.add_records(items)


@pytest.mark.parametrize("batch", [0, -1, True, 1.5, None])
def test_an_impossible_batch_size_is_refused(points: Collection, batch: Any) -> None:
    with pytest.raises(UsageError, match="batch="):
        points.add_records([], batch=batch)


def test_an_empty_stream_stores_nothing(points: Collection) -> None:
    assert points.add_records([]) == 0
    assert points.add_records(iter(())) == 0


def test_a_stream_takes_memory_for_a_batch_only(memory: Database) -> None:
    collection = memory.collection("c", dim=64)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(100, 64))

    def stream(count: int) -> Iterator[dict[str, Any]]:
        for n in range(count):
            yield {"id": n, "vector": vectors[n % 100], "metadata": {"text": "x" * 500}}

    collection.add_records(stream(200), batch=100, upsert=True)
    tracemalloc.start()
    try:
        collection.add_records(stream(6000), batch=100, upsert=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert collection.count() == 6000
    # The stream is 6,000 times about 800 bytes; ten of its sixty batches are 0.8 MB.
    assert peak < 1_500_000


def test_a_stream_inside_a_transaction_is_rolled_back_with_it(
    memory: Database, points: Collection
) -> None:
    def fail() -> None:
        with memory.transaction():
            points.add_records(({"vector": [1, 1, n]} for n in range(50)), batch=7)
            assert points.count() == 53
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_progress_bar_goes_to_stderr_only_where_wanted(
    memory: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = memory.collection("c", dim=2)
    collection.add_records(broken_off(5))
    assert capsys.readouterr() == ("", "")
    collection.add_records(broken_off(5), upsert=True, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "5/5" in err


@pytest.mark.parametrize("write", ["add", "upsert"])
def test_a_bar_counts_the_texts_that_are_embedded(
    memory: Database, capsys: pytest.CaptureFixture[str], write: str
) -> None:
    collection = memory.collection("c", encoder=HashEncoder(dim=8))
    texts = [f"text {number}" for number in range(2 * ingest.COUNTED + 1)]
    getattr(collection, write)(texts)
    assert capsys.readouterr() == ("", "")
    # Some are there already.
    getattr(collection, write)([*texts, "new", "newer", "new"], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "embedding" in err
    assert "2/2" in err

    other = memory.collection("d", encoder=HashEncoder(dim=8))
    getattr(other, write)(texts, ids=range(len(texts)), progress=True)
    assert f"{len(texts)}/{len(texts)}" in capsys.readouterr().err
    vectors = HashEncoder(dim=8).encode(texts)
    found = [record.vector for record in other.scan(include=("vector",))]
    np.testing.assert_allclose(found, vectors, atol=1e-6)
