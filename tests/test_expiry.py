"""Does a record end when it says so, for whoever looks and however, and does it leave the file?"""

import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore import (
    AlreadyExistsError,
    Chunking,
    Collection,
    Database,
    F,
    FormatError,
    NotFoundError,
    UsageError,
    catalog,
    layout,
    removal,
)
from vecstore.encoders import HashEncoder
from vecstore.errors import CorruptionError, VectorError
from vecstore.values import instant

START = datetime(2024, 3, 1, 12, tzinfo=UTC)
DIM = 4


class Clock:
    """The time of day, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START
        # What happens when somebody looks at it the next time.
        self.then: Callable[[], object] | None = None

    def __call__(self) -> int:
        if self.then is not None:
            work, self.then = self.then, None
            work()
        return instant(self.now) * 1000

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "time_ns", found)
    return found


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def filled(db: Database, ends: list[datetime | None], **kind: Any) -> Collection:
    """A collection of records 0, 1, ... with these ends."""
    found = db.collection("c", dim=DIM, **kind)
    vectors = np.random.default_rng(1).normal(size=(len(ends), DIM))
    metadata = [{"n": number, "even": number % 2 == 0} for number in range(len(ends))]
    found.add(vectors=vectors, ids=list(range(len(ends))), metadata=metadata, expires_at=ends)
    return found


QUERY = np.ones(DIM)
LOOKS: dict[str, Callable[[Collection], list[Any]]] = {
    "scan": lambda c: [record.id for record in c.scan()],
    "scan where": lambda c: [record.id for record in c.scan({"n": {"$gte": 0}})],
    "scan ordered": lambda c: [record.id for record in c.scan(order_by="n")],
    "get": lambda c: [record.id for record in c.get(range(20)) if record],
    "contains": lambda c: [number for number in range(20) if number in c],
    "search": lambda c: sorted(c.search(QUERY, 50).ids),
    "search where": lambda c: sorted(c.search(QUERY, 50, where={"n": {"$gte": 0}}).ids),
    "search exact": lambda c: sorted(c.search(QUERY, 50, recall="exact").ids),
    "search many": lambda c: sorted(c.search_many([QUERY, QUERY], 50)[1].ids),
    "search ids": lambda c: sorted(c.search(QUERY, 50, include=()).ids),
    "search groups": lambda c: sorted(c.search(QUERY, 50, group_by="n").ids),
    "with an id": lambda c: sorted(c.search(QUERY, 50, where=F("$id") <= 20).ids),
    "distinct": lambda c: c.distinct("n"),
    "facets": lambda c: sorted(facet.value for facet in c.facets("n")),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_record_is_there_until_its_instant_and_not_at_it(
    db: Database, clock: Clock, look: Callable[[Collection], list[Any]]
) -> None:
    found = filled(db, [None, after(10), after(20), after(10), None])
    for seconds, expected in [(9, [0, 1, 2, 3, 4]), (1, [0, 2, 4]), (9, [0, 2, 4]), (1, [0, 4])]:
        clock.forward(seconds)
        assert look(found) == look(found) == expected
        assert len(found) == found.count() == found.count({"n": {"$gte": 0}}) == len(expected)
        with db.transaction():
            assert look(found) == expected
            assert found.count() == len(expected)


def test_a_view_is_of_one_moment(db: Database, clock: Clock) -> None:
    found = filled(db, [after(10), None])
    with db.snapshot() as view:
        clock.forward(10)
        assert found.search(QUERY).ids == [1]
        assert sorted(view.collection("c").search(QUERY).ids) == [0, 1]
        assert view.collection("c").count() == 2
        assert found.count() == 1


def test_searches_of_other_moments_do_not_meet(db: Database, clock: Clock) -> None:
    """A search of an older view, between the beginning of a search and its end."""
    found = filled(db, [after(10), None])
    with db.snapshot() as view:
        clock.forward(20)
        seen = []
        clock.then = lambda: seen.append(sorted(view.collection("c").search(QUERY).ids))
        assert found.search(QUERY).ids == [1]
        assert seen == [[0, 1]]


def test_a_clock_that_goes_back_brings_back_what_was_not_purged(db: Database, clock: Clock) -> None:
    found = filled(db, [after(10), None])
    clock.forward(20)
    assert found.search(QUERY).ids == [1]
    clock.forward(-15)
    assert sorted(found.search(QUERY).ids) == [0, 1]
    clock.forward(-3600)
    assert found.count() == 2


def test_what_expires_is_told(db: Database) -> None:
    found = filled(db, [after(10), None])
    assert found.get(0).expires_at == after(10)
    assert found.get(0).metadata == {"n": 0, "even": True}
    assert found.get(0).to_dict()["expires_at"] == after(10)
    assert "expires_at" not in found.get(1).to_dict()
    ends = {hit.id: hit.expires_at for hit in found.search(QUERY)}
    assert ends == {0: after(10), 1: None}
    assert [hit.metadata for hit in found.search(QUERY, where={"n": 0})] == [{"n": 0, "even": True}]
    assert found.count({"$expires_at": {"$lt": after(11)}}) == 1
    assert found.count(F("$expires_at").exists(False)) == 1
    assert found.distinct("$expires_at") == [after(10)]
    assert [record.id for record in found.scan(order_by="$expires_at")] == [0, 1]


def test_a_field_that_is_left_out_of_the_index_does_not_keep_anything_alive(
    db: Database, clock: Clock
) -> None:
    found = filled(db, [after(10), None], index_fields=["even"])
    clock.forward(10)
    assert found.count() == 1
    assert found.search(QUERY).ids == [1]


def test_instants_come_back_in_utc(db: Database) -> None:
    east = timezone(timedelta(hours=5))
    found = filled(db, [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=east)])
    assert found.get(0).expires_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert found.get(1).expires_at == datetime(2029, 12, 31, 19, tzinfo=UTC)
    assert found.get(1).expires_at.tzinfo is UTC


def test_one_instant_is_for_all_records_of_a_call(db: Database, clock: Clock) -> None:
    found = db.collection("c", dim=DIM)
    found.add(vectors=np.eye(DIM), expires_at=after(5))
    found.add(vectors=np.ones(DIM), ids="one", expires_at=after(6))
    clock.forward(5)
    assert [record.id for record in found.scan()] == ["one"]


def test_a_stream_says_for_each_record_when_it_expires(db: Database, clock: Clock) -> None:
    found = db.collection("c", dim=DIM)
    ends = [after(1), None, after(3)]
    items = [{"vector": QUERY, "id": i, "expires_at": end} for i, end in enumerate(ends)]
    found.add_records(items)
    clock.forward(1)
    assert [record.id for record in found.scan()] == [1, 2]


def test_an_id_is_free_when_its_record_has_expired(db: Database, clock: Clock) -> None:
    found = filled(db, [after(10), None])
    with pytest.raises(AlreadyExistsError):
        found.add(vectors=QUERY, ids=0)
    clock.forward(10)
    found.add(vectors=QUERY, ids=0)
    assert found.get(0).metadata is None
    assert found.get(0).expires_at is None
    # It is a new record, and stands behind the others.
    assert [record.id for record in found.scan()] == [1, 0]


def test_an_id_is_free_before_its_text_is_embedded(db: Database, clock: Clock) -> None:
    found = db.collection("t", encoder=HashEncoder(16))
    found.add("a red apple", ids="a", expires_at=after(1))
    clock.forward(1)
    found.add("a green apple", ids="a")
    assert found.get("a").text == "a green apple"


def test_upsert_makes_a_new_record_of_one_that_has_expired(db: Database, clock: Clock) -> None:
    found = filled(db, [after(10), None])
    clock.forward(10)
    found.upsert(vectors=QUERY, ids=0)
    assert [record.id for record in found.scan()] == [1, 0]


def test_what_has_expired_cannot_be_updated_or_deleted(db: Database, clock: Clock) -> None:
    found = filled(db, [after(10), None])
    clock.forward(10)
    with pytest.raises(NotFoundError, match="0"):
        found.update(0, metadata={"a": 1})
    # Once and no more, also where it is named twice.
    assert found.delete([0, 0]) == 0
    assert found.stats()["records"] == 1
    assert found.delete(where={"n": 0}) == 0
    assert found.delete([0, 1], where={"n": {"$gte": 0}}) == 1


def test_update_keeps_changes_and_takes_away_the_instant(db: Database, clock: Clock) -> None:
    found = filled(db, [after(10), after(10), after(10)])
    found.update(0, metadata={"x": 1})
    assert found.get(0).expires_at == after(10)
    found.update([1, 2], expires_at=[after(20), ...])
    assert [record.expires_at for record in found.get([1, 2])] == [after(20), after(10)]
    found.update(2, expires_at=None)
    assert found.get(2).metadata == {"n": 2, "even": True}
    clock.forward(10)
    assert [record.id for record in found.scan()] == [1, 2]
    clock.forward(10)
    assert [record.id for record in found.scan()] == [2]


def test_a_record_stored_anew_without_an_instant_stays(db: Database, clock: Clock) -> None:
    found = filled(db, [after(10)])
    found.upsert(vectors=QUERY, ids=0)
    clock.forward(10)
    assert found.count() == 1


def test_an_instant_in_the_past_is_a_record_that_is_never_seen(db: Database) -> None:
    found = filled(db, [after(-1), None])
    assert found.search(QUERY).ids == [1]


def test_passages_expire_with_their_record(db: Database, clock: Clock) -> None:
    found = db.collection("t", encoder=HashEncoder(16))
    story = "A red apple fell. A late train came. A dog barked at it. The night was long."
    cut = Chunking(tokens=6, overlap=0)
    found.add([story, story], ids=["a", "b"], chunk=cut, expires_at=[after(5), None])
    assert found.stats()["vectors"] > 4
    assert len(found.search("a late train", 5)) == 2
    clock.forward(5)
    assert found.search("a late train", 5).ids == ["b"]
    assert found.count() == 1
    found.optimize()
    assert found.stats()["records"] == 1
    assert found.get("b", include=["vector"]).vector.shape[0] == found.stats()["vectors"]


def test_other_collections_keep_to_their_own_times(db: Database, clock: Clock) -> None:
    found = filled(db, [after(10)])
    other = db.collection("other", dim=DIM)
    other.add(vectors=QUERY, ids=0, expires_at=after(20))
    clock.forward(10)
    assert (found.count(), other.count()) == (0, 1)


# Purging


@pytest.mark.parametrize("call", ["optimize", "compact"])
def test_maintenance_purges_what_has_expired(db: Database, clock: Clock, call: str) -> None:
    found = filled(db, [after(10) if number % 20 == 0 else None for number in range(100)])
    clock.forward(10)
    assert (found.stats()["records"], found.stats()["expired"]) == (100, 5)
    found.optimize() if call == "optimize" else db.compact()
    assert (found.stats()["records"], found.stats()["expired"]) == (95, 0)
    assert found.count() == 95


def test_a_write_purges_what_is_worth_it(db: Database, clock: Clock) -> None:
    found = filled(db, [after(1 + number) for number in range(100)] + [None] * 100)
    clock.forward(5)
    found.add(vectors=QUERY, ids=1000)
    assert found.stats()["expired"] == 5
    clock.forward(50)
    found.add(vectors=QUERY, ids=1001)
    assert (found.stats()["expired"], found.stats()["records"]) == (0, 147)


def test_many_are_purged_in_slices(
    db: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "SLICE", 16)
    found = filled(db, [after(1 + number % 3) for number in range(150)])
    clock.forward(2)
    found.optimize()
    assert (found.stats()["records"], found.stats()["expired"]) == (50, 0)
    clock.forward(1)
    assert found.count() == 0


def test_counters_do_not_wait_for_a_record_that_is_gone(db: Database, clock: Clock) -> None:
    found = filled(db, [after(5), after(50)])
    found.delete(0)
    clock.forward(10)
    found.add(vectors=QUERY, ids=2)
    with db.reading() as reader:
        state = catalog.state(reader, 1)
    assert (state.expiring, state.earliest) == (1, instant(after(50)))


def test_nothing_is_left_of_what_was_purged_and_compacted(path: Path, clock: Clock) -> None:
    with vecstore.open(path) as db:
        found = db.collection("t", encoder=HashEncoder(16))
        found.add(
            "an unmistakable sentence", metadata={"mark": "unmistakable"}, expires_at=after(1)
        )
        found.add("another one")
        clock.forward(1)
        db.compact(secure=True)
    assert b"unmistakable" not in path.read_bytes()


# What is refused, and what older releases see


@pytest.mark.parametrize(
    "wrong", [10, 1.5, "tomorrow", date(2030, 1, 1), timedelta(days=1), True, np.datetime64("2030")]
)
def test_what_is_no_instant_is_refused(db: Database, wrong: Any) -> None:
    found = db.collection("c", dim=DIM)
    with pytest.raises(UsageError, match="expires_at"):
        found.add(vectors=[QUERY, QUERY], expires_at=[None, wrong])
    with pytest.raises(UsageError, match="expires_at"):
        found.add(vectors=[QUERY], expires_at=[wrong])
    assert found.count() == 0


def test_as_many_instants_are_needed_as_there_are_records(db: Database) -> None:
    found = db.collection("c", dim=DIM)
    with pytest.raises(UsageError, match="expires_at has 1 entries for 2 records"):
        found.add(vectors=[QUERY, QUERY], expires_at=[after(1)])


def test_only_an_update_can_leave_an_instant_as_it_is(db: Database) -> None:
    found = filled(db, [after(1)])
    with pytest.raises(UsageError, match="ellipsis"):
        found.upsert(vectors=[QUERY], ids=[0], expires_at=[...])
    with pytest.raises(UsageError, match="nothing to update"):
        found.update(0)


def test_an_instant_beyond_all_years_is_refused(db: Database) -> None:
    west = timezone(timedelta(hours=-5))
    with pytest.raises(UsageError, match="years 1 to 9999"):
        filled(db, [datetime.max.replace(tzinfo=west)])


def test_a_time_zone_that_fails_is_refused(db: Database) -> None:
    class Broken(tzinfo):
        def utcoffset(self, when: datetime | None) -> timedelta:
            raise KeyError("where?")

    with pytest.raises(UsageError, match="expires_at"):
        filled(db, [datetime(2030, 1, 1, tzinfo=Broken())])


def test_the_key_in_metadata_is_refused(db: Database) -> None:
    found = db.collection("c", dim=DIM)
    with pytest.raises(UsageError, match=re.escape("$expires_at")):
        found.add(vectors=QUERY, metadata={"$expires_at": after(1)})


def test_a_refused_vector_leaves_nothing_behind(db: Database) -> None:
    found = db.collection("c", dim=DIM)
    with pytest.raises(VectorError):
        found.add(vectors=np.full(DIM, np.nan), expires_at=after(1))
    with db.reading() as reader:
        assert catalog.format_of(reader) == (layout.PLAIN_FORMAT, layout.PLAIN_FORMAT)


def test_older_releases_refuse_a_file_in_which_records_expire(db: Database) -> None:
    found = filled(db, [None])
    with db.reading() as reader:
        assert catalog.format_of(reader) == (layout.PLAIN_FORMAT, layout.PLAIN_FORMAT)
    found.add(vectors=QUERY, ids="b", expires_at=after(1))
    with db.reading() as reader:
        assert catalog.format_of(reader) == (layout.FORMAT, layout.FORMAT)


def test_check_counts_what_expires(path: Path) -> None:
    with vecstore.open(path) as db:
        filled(db, [after(5), after(9), None])

        def lie(txn: Any) -> None:
            state = catalog.state(txn, 1)
            state.expiring, state.earliest = 1, instant(after(7))
            txn.put("meta", layout.state_key(1), state.pack())

        db._store.write(lie)
        assert any("(22)" in problem.what for problem in db.check())


def test_a_stored_end_that_is_no_instant_is_damage(path: Path) -> None:
    from vecstore import record_layout

    with vecstore.open(path) as db:
        found = filled(db, [after(5)])

        def lie(txn: Any) -> None:
            key = layout.record_key(1, 0)
            body = record_layout.pack_body(0, None, {"$expires_at": 7})
            txn.put("records", key, record_layout.pack_record(key, 0, body))

        db._store.write(lie)
        for look in (lambda: found.get(0), lambda: list(found.scan())):
            with pytest.raises(CorruptionError, match="no instant"):
                look()
        assert db.check() != []


def test_format_error_is_what_users_see_of_a_newer_file(path: Path, monkeypatch: Any) -> None:
    with vecstore.open(path) as db:
        filled(db, [after(5)])
    monkeypatch.setattr(layout, "FORMAT", 1)
    with pytest.raises(FormatError):
        vecstore.open(path)
