"""Metadata that nearly was indexed as something else, and columns that lie."""

import enum
import hashlib
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from vecstore import CorruptionError, Database, F, SpecError, VecstoreError, catalog, field_layout
from vecstore.field_layout import Manifest, manifest_key, segment_key
from vecstore.fields import index, upkeep
from vecstore.index_layout import read_arrays
from vecstore.values import leaves

LONG = "p" * 256


@pytest.fixture(autouse=True)
def _columns_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LEAST", 1)


def filled(db: Database, metadata: list[Any], **declared: Any) -> Any:
    points = db.collection("p", dim=2, **declared)
    count = len(metadata)
    points.add(vectors=[[1, n] for n in range(count)], ids=range(count), metadata=metadata)
    return points


def assert_counts(points: Any, *wheres: Any) -> None:
    stored = list(points.scan())
    for where in wheres:
        assert points.count(where) == sum(map(where.matches, stored)), where


@pytest.mark.parametrize("value", [[{"name": "Ada"}], [{"name": "Ada"}, 3], {"name": ["Ada"]}])
def test_dicts_in_lists_have_columns_below_a_field_that_has_none(memory, value) -> None:
    points = filled(memory, [{"author": value}] * 5, index_fields=["author.name"])

    assert_counts(points, F("author.name") == "Ada", F("author") == 3, F("author").exists())
    assert points.count(F("author.name") == "Ada") == 5


def test_digests_do_not_say_how_strings_are_ordered(memory) -> None:
    number = 0
    while hashlib.blake2b(f"{LONG}a{number}".encode(), digest_size=16).digest()[0] != 0xFF:
        number += 1
    points = filled(memory, [{"s": f"{LONG}a{number}"}, {"s": "z"}, {"s": LONG}])

    bounds = (LONG, LONG + "m", LONG + "a", LONG[:-1])
    assert_counts(points, *(F("s") > bound for bound in bounds))
    assert_counts(points, *(F("s") <= bound for bound in bounds))
    assert_counts(points, *(F("s").startswith(bound) for bound in bounds))


class Moment(datetime):
    """As those of other libraries."""


class Blob(bytes):
    """As other libraries' too."""


class Colour(str, enum.Enum):  # noqa: UP042  # whose __str__ is another one
    """Keys and values."""

    RED = "red"


def test_subclasses_become_what_they_are_a_kind_of(memory) -> None:
    rows = [
        {"t": Moment(2024, 1, 1 + n, tzinfo=UTC if n % 2 else None), "b": Blob(b"x%d" % (n % 3))}
        for n in range(9)
    ]
    points = filled(memory, rows)
    nested = filled_again(memory, [{"a": {Colour.RED: 1}}, {"a": {Colour.RED: "é"}}])

    assert points.count(F("t") == None) == 0  # noqa: E711  # builds a filter
    assert points.count(F("t") >= datetime(2024, 1, 5)) == 5
    assert points.count(F("b") == b"x1") == 3
    assert {type(record.metadata["t"]) for record in points.scan()} == {datetime}
    assert nested.count(F("a.red").exists()) == 2
    assert [record.metadata for record in nested.scan()] == [{"a": {"red": 1}}, {"a": {"red": "é"}}]
    assert memory.check() == []


def filled_again(db: Database, metadata: list[Any]) -> Any:
    points = db.collection("q", dim=2)
    points.add(vectors=np.ones((len(metadata), 2)), metadata=metadata)
    return points


def test_a_key_of_many_dots_is_found_by_its_beginning(memory) -> None:
    deep = ".".join("a" * 70)
    points = filled(memory, [{deep: 1}, {"a": 2}])

    found = leaves({deep: 1})
    assert max(path.count(".") for path in found) == 63
    assert len(found) == 64
    beginning = ".".join("a" * 64)
    assert_counts(points, F("a").exists(), F(beginning).exists(), F(beginning) == 1)
    assert points.count(F(beginning).exists()) == 1
    # Not so many strings of its length.
    assert len(leaves({"a." * 100_000 + "a": 1})) == 64


def test_parts_that_reach_into_the_next_string_are_passed_over(memory) -> None:
    rows = [{"s": "=" * 9 + str(n) + "=" * 9} for n in range(30)]
    points = filled(memory, rows)

    assert_counts(points, *(F("s").contains("=" * count) for count in (1, 8, 9, 10, 15)))
    assert_counts(points, F("s").contains("9="), F("s").contains("=1"))


def test_whole_numbers_are_told_as_such_up_to_where_float_has_all(memory) -> None:
    points = filled(memory, [{"n": 1e22}, {"n": 3.0}, {"n": -0.0}, {"n": 2.5}])

    assert [repr(value) for value in points.distinct("n")] == ["0", "2.5", "3", "1e+22"]


def test_ids_and_texts_are_no_fields(memory) -> None:
    for path in ("$id", "$text"):
        with pytest.raises(SpecError, match="no fields of metadata"):
            memory.collection("p", dim=2, skip_fields=[path])


# Columns that lie, with checksums that are right


def lie(db: Database, change: Any) -> None:
    """Change the arrays of the only segment."""

    def work(txn: Any) -> None:
        entry = catalog.find(txn, "p")
        (listed,) = index.read_manifest(txn, entry.number).segments
        value = txn.get("fields", segment_key(entry.number, listed.number))
        directory = field_layout.read_segment(value, entry.number, listed)
        arrays = {
            name: np.ndarray(shape, dtype, value, at).copy()
            for name, (dtype, shape, at) in directory.arrays.items()
        }
        change(arrays)
        made = field_layout.pack_segment(
            entry.number, listed, sorted(directory.paths), arrays, txn.page
        )
        txn.put("fields", segment_key(entry.number, listed.number), made)

    db.writing(work)


def change(name: str, place: Any, value: Any) -> Any:
    def work(arrays: dict[str, Any]) -> None:
        arrays[name][place] = value

    return work


def cut(name: str) -> Any:
    def work(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name][:-1]

    return work


LIES = {
    "starts beyond all places": change("1.string.starts", -1, 2**31),
    "starts that fall": change("1.string.starts", 1, 10**6),
    "a start before": change("1.string.starts", 0, 3),
    "fewer starts": cut("1.string.starts"),
    "fewer places": cut("1.string.places"),
    "ends beyond the text": change("1.string.ends", -1, 10**6),
    "ends that fall": change("1.string.ends", 1, 0),
    "often a string that is not there": change("1.string.often", 0, 10**6),
    "no number": change("0.number.values", -1, np.nan),
    "an infinite number": change("0.number.values", -1, np.inf),
    "numbers out of order": change("0.number.values", 0, 1e9),
    "a datetime of no year": change("2.datetime.values", -1, 2**62),
    "one place": change("0.number.places", slice(None), 7),
}


@pytest.mark.parametrize("name", LIES)
def test_columns_that_lie_raise_no_other_errors_and_are_found(memory: Database, name: str) -> None:
    rows = [
        {
            "a": n % 50,
            "s": "common" if n < 5000 else f"s{n % 7}",
            "t": datetime(2024, 1, 1 + n % 28),
        }
        for n in range(6000)
    ]
    points = filled(memory, rows)
    lie(memory, LIES[name])

    for work in (
        lambda: points.count(F("a") > 20),
        lambda: points.count(F("s").is_in(["common", "s3", "s5"])),
        lambda: points.count(F("s") >= "s2"),
        lambda: points.count(F("t") > datetime(2024, 1, 20)),
        lambda: [points.facets(field) for field in "ast"],
        lambda: list(points.scan(order_by="s", limit=5)),
        lambda: points.search([1, 0], k=5, where=F("s") == "s1"),
    ):
        try:
            work()
        except VecstoreError as error:
            assert isinstance(error, CorruptionError)  # noqa: PT017  # others are failures
    assert memory.check()
    # A write that merges it makes it anew.
    points.add(vectors=[[1, 0]], ids=["new"], metadata=[{"s": "s3"}])
    memory.drop("p")


def test_a_range_beyond_all_rows_is_refused(memory: Database) -> None:
    points = filled(memory, [{"a": 1}] * 3)

    def work(txn: Any) -> None:
        value = Manifest(0, (field_layout.Listed(0, b"e" * 8, 2**24, 3),)).pack()
        txn.put("fields", manifest_key(1), value)

    memory.writing(work)
    assert any("cannot be read" in str(problem) for problem in memory.check())
    with pytest.raises(CorruptionError, match="a range beyond all rows"):
        points.count(F("a") == 1)
    points.optimize(progress=False)
    assert memory.check() == []
    assert points.count(F("a") == 1) == 3


@pytest.mark.parametrize("dtype", ["i4,,", "O", "<U4", ">f4", "f", 7, None, "<f3"])
def test_only_plain_dtypes_are_read(dtype: Any) -> None:
    import msgpack

    head = msgpack.packb([{}, [["name", dtype, [1], 0]]])
    payload = len(head).to_bytes(4, "little") + head
    payload = payload.ljust(64, b"\0") + bytes(64)
    with pytest.raises(ValueError, match="is of the dtype"):
        read_arrays(payload, aligned=True)
