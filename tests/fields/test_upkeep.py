"""Do columns follow the records, whatever is written, merged, damaged or forgotten?"""

import contextlib
import random
from typing import Any

import numpy as np
import pytest

import vecstore
import vecstore.record_layout
from vecstore import Chunking, CorruptionError, Database, F, catalog, field_layout, layout, records
from vecstore.encoders import HashEncoder
from vecstore.field_layout import Manifest, manifest_key, rows_key, segment_key
from vecstore.fields import index, upkeep

WHERES = [
    F("n") < 40,
    F("n").is_in(range(0, 500, 7)),
    F("s").is_in(["s3", "s5", "s77"]),
    F("s") >= "s5",
    ~(F("s") == "s1"),
    F("t").exists(),
    F("t") == "b",
    (F("n") > 20) & ~(F("t") == "a"),
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of few rows, merged when there are few."""
    monkeypatch.setattr(upkeep, "LEAST", 16)
    monkeypatch.setattr(upkeep, "MERGED", 3)


def metadata(number: int) -> dict[str, Any]:
    found: dict[str, Any] = {"n": number % 97, "s": f"s{number % 11}"}
    if number % 3:
        found["t"] = ["a", "b"] if number % 2 else "c"
    return found


def add(points: vecstore.Collection, ids: Any) -> None:
    points.add(
        vectors=[[1, n % 5] for n in ids], ids=list(ids), metadata=[metadata(n) for n in ids]
    )


def manifest(db: Database, name: str = "p") -> Manifest:
    with db.reading() as reader:
        return index.read_manifest(reader, catalog.find(reader, name).number)


def sizes(db: Database) -> list[int]:
    return [one.rows for one in manifest(db).segments]


def assert_right(points: vecstore.Collection) -> None:
    stored = list(points.scan())
    for where in WHERES:
        wanted = [record.id for record in stored if where.matches(record)]
        assert points.count(where) == len(wanted), where
        assert [record.id for record in points.scan(where)] == wanted
        hits = points.search([1, 0], len(stored) + 1, where=where, include=())
        assert sorted(hits.ids) == sorted(wanted)


def test_few_rows_wait_for_others(memory: Database, small: None) -> None:
    points = memory.collection("p", dim=2)
    add(points, range(10))
    assert (sizes(memory), manifest(memory).pending) == ([], 10)
    assert_right(points)
    add(points, range(10, 15))
    assert (sizes(memory), manifest(memory).pending) == ([], 15)
    add(points, range(15, 17))
    assert (sizes(memory), manifest(memory).pending) == ([17], 0)
    add(points, range(17, 57))
    assert sizes(memory) == [17, 40]
    assert_right(points)


def test_segments_of_about_one_size_are_merged(memory: Database, small: None) -> None:
    points = memory.collection("p", dim=2)
    for first in range(0, 20 * 30, 20):
        add(points, range(first, first + 20))
        held = sizes(memory)
        assert len(held) <= 3 + 3
        assert sum(held) == first + 20
    assert_right(points)
    points.optimize(progress=False)
    assert sizes(memory) == [600]
    assert_right(points)


def test_a_full_range_is_left_with_one_segment(memory: Database) -> None:
    points = memory.collection("p", dim=2)
    count = field_layout.RANGE_ROWS + 1000
    for first in range(0, count, 9000):
        add(points, range(first, min(count, first + 9000)))

    found = manifest(memory).segments

    assert [one.rows for one in found if one.range == 0] == [field_layout.RANGE_ROWS]
    assert sum(one.rows for one in found if one.range == 1) == 1000
    assert points.count(F("n") < 40) == sum(number % 97 < 40 for number in range(count))
    assert points.count(F("s") == "s3") == sum(number % 11 == 3 for number in range(count))


def test_rows_whose_metadata_change_are_read_again(memory: Database, small: None) -> None:
    points = memory.collection("p", dim=2)
    add(points, range(100))
    points.update([3, 50], metadata=[{"n": 1000}, {"t": "b"}])
    assert manifest(memory).pending == 2
    assert_right(points)
    assert [record.id for record in points.scan(F("n") == 1000)] == [3]
    points.update(list(range(20)), metadata=[{"s": "s77"}] * 20)
    assert manifest(memory).pending == 0
    assert points.count(F("s") == "s77") == 20
    assert_right(points)


def test_rows_that_are_given_to_others_are_told_apart(memory: Database, small: None) -> None:
    points = memory.collection("p", dim=2)
    add(points, range(640))
    rng = random.Random(4)
    living = list(range(640))
    for first in range(640, 1600, 120):
        doomed = rng.sample(living, 120)
        points.delete(doomed)
        living = [*sorted(set(living) - set(doomed)), *range(first, first + 120)]
        add(points, range(first, first + 120))
        assert_right(points)
    assert memory.check() == []


def test_all_that_is_deleted_leaves_nothing_behind(memory: Database, small: None) -> None:
    points = memory.collection("p", dim=2)
    add(points, range(300))
    points.delete(where={})
    points.optimize(progress=False)
    assert (sizes(memory), memory.check()) == ([], [])
    add(points, range(40))
    assert_right(points)
    memory.drop("p")
    with memory.reading() as reader:
        assert list(reader.items("fields", b"")) == []


def test_a_write_of_a_release_without_columns_is_noticed(memory: Database, small: None) -> None:
    points = memory.collection("p", dim=2)
    add(points, range(100))

    def change(txn: Any) -> None:
        """As such a release would: the record changes, and so does the generation."""
        found = records.get(txn, 1, 5)
        key = layout.record_key(1, found.order)
        body = vecstore.record_layout.pack_content(found.id, None, {"n": 5000}, None)
        txn.put("records", key, vecstore.record_layout.pack_record(key, found.row, body))
        state = catalog.state(txn, 1)
        state.generation += 1
        txn.put("meta", layout.state_key(1), state.pack())

    memory.writing(change)

    assert memory.check() == []
    assert [record.id for record in points.scan(F("n") == 5000)] == [5]
    assert_right(points)
    points.delete([7])
    assert sizes(memory) == [99]
    assert_right(points)


@pytest.mark.parametrize("committed", [True, False])
def test_a_transaction_sees_its_own_columns(memory: Database, small: None, committed: bool) -> None:
    points = memory.collection("p", dim=2)
    add(points, range(100))
    assert_right(points)
    try:
        with memory.transaction():
            add(points, range(100, 160))
            points.delete(where=F("n") < 10)
            points.update(50, metadata={"s": "s77"})
            assert_right(points)
            if not committed:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert points.count(F("s") == "s77") == committed
    assert_right(points)
    add(points, range(200, 260))
    assert_right(points)


def test_snapshots_keep_the_columns_that_they_began_with(memory: Database, small: None) -> None:
    points = memory.collection("p", dim=2)
    add(points, range(100))
    with memory.snapshot() as view:
        before = view.collection("p")
        counts = [before.count(where) for where in WHERES]
        add(points, range(100, 400))
        points.delete(where=F("n") < 30)
        points.optimize(progress=False)
        assert [before.count(where) for where in WHERES] == counts
        assert_right(before)
    assert_right(points)


def test_passages_have_what_their_record_has(memory: Database, small: None) -> None:
    stories = memory.collection("c", encoder=HashEncoder(8))
    texts = [f"Text {n} is long. " * (1 + n % 5) for n in range(60)]
    given = [metadata(n) for n in range(60)]
    stories.add(texts, ids=range(60), metadata=given, chunk=Chunking(tokens=8))
    stories.update(list(range(0, 60, 7)), metadata=[{"s": "s77"}] * 9)
    stories.upsert(["Another text. " * 4] * 3, ids=[1, 2, 3], chunk=Chunking(tokens=8))

    stored = list(stories.scan())
    for where in WHERES:
        wanted = [record.id for record in stored if where.matches(record)]
        assert stories.count(where) == len(wanted)
        assert sorted(stories.search("Text 3", 61, where=where).ids) == sorted(wanted)
    assert memory.check() == []
    stories.optimize(progress=False)
    assert stories.count(F("s") == "s77") == 9
    assert memory.check() == []


# Damage


def flip(key: bytes, place: int) -> Any:
    def work(txn: Any) -> None:
        value = bytearray(txn.get("fields", key))
        value[place] ^= 1
        txn.put("fields", key, bytes(value))

    return work


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (segment_key(1, 0), 3),
        (segment_key(1, 0), 300),
        (rows_key(1, 0), 60),
        (manifest_key(1), 9),
        (layout.collection_key(1), 6),
    ],
    ids=["header", "directory", "rows", "manifest", "generation"],
)
def test_what_is_damaged_is_found_and_made_anew(
    memory: Database, small: None, key: bytes, place: int
) -> None:
    points = memory.collection("p", dim=2)
    for first in range(0, 100, 20):
        add(points, range(first, first + 20))
    memory.writing(flip(key, place))
    assert memory.check()

    with contextlib.suppress(CorruptionError):
        assert_right(points)
    add(points, range(100, 130))
    points.optimize(progress=False)

    assert memory.check() == []
    assert_right(points)


def change_record(txn: Any) -> None:
    """Other metadata, without the columns."""
    found = records.get(txn, 1, 5)
    key = layout.record_key(1, found.order)
    body = vecstore.record_layout.pack_content(found.id, None, {"n": 5000}, None)
    txn.put("records", key, vecstore.record_layout.pack_record(key, found.row, body))


def speak_twice(txn: Any) -> None:
    """A segment speaks for the rows of another one."""
    first, second = index.read_manifest(txn, 1).segments[:2]
    words = index.read_rows(txn, 1, first) | index.read_rows(txn, 1, second)
    txn.put(
        "fields", rows_key(1, second.number), field_layout.pack_rows(1, second, words, txn.page)
    )


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda txn: txn.delete("fields", segment_key(1, 0)), "is missing"),
        (lambda txn: txn.delete("fields", rows_key(1, 0)), "its rows are missing"),
        (lambda txn: txn.put("fields", segment_key(1, 900), b"x"), "is not expected (20)"),
        (speak_twice, "has rows of another one (20)"),
        (change_record, "(21)"),
    ],
)
def test_check_compares_columns_with_records(memory: Database, small: None, work, message) -> None:
    points = memory.collection("p", dim=2)
    add(points, range(20))
    add(points, range(20, 40))
    assert memory.check() == []

    memory.writing(work)

    assert any(message in str(problem) for problem in memory.check())
    memory.drop("p")


def test_numbers_of_segments_are_used_again(memory: Database, small: None) -> None:
    points = memory.collection("p", dim=2)
    for first in range(0, 2000, 20):
        add(points, range(first, first + 20))
        assert max(one.number for one in manifest(memory).segments) < 10
    assert len({one.edition for one in manifest(memory).segments}) == len(sizes(memory))
    np.testing.assert_array_less(0, sizes(memory))
