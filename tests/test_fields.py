"""Does a filter become exactly the rows of the records that match it?"""

import numpy as np
import pytest
import strategies as own
from hypothesis import given
from hypothesis import strategies as st

import vecstore
from vecstore import CorruptionError, Database, catalog, fields, layout, records, rows
from vecstore.filters import parse


def resolve(db: Database, where) -> tuple[fields.Mask, set[int]]:
    """The mask of a filter, and the rows that it must have."""
    with db.reading() as reader:
        entry = catalog.find(reader, "c")
        state = catalog.state(reader, entry.number)
        condition = None if where is None else parse(where)
        mask = fields.resolve(reader, entry, state, condition)
        expected = {
            record.row
            for record in records.walk(reader, entry.number)
            if condition is None or condition.matches(record)
        }
        return mask, expected


@given(
    st.lists(own.metadata, max_size=150),
    st.lists(st.none() | own.wheres, min_size=1, max_size=4),
    st.sets(st.integers(0, 149)),
)
def test_a_mask_holds_the_rows_of_the_living_records_that_match(metadata, wheres, dead) -> None:
    with vecstore.open(":memory:") as db:
        collection = db.collection("c", dim=2)
        if metadata:
            vectors = np.ones((len(metadata), 2))
            collection.add(vectors=vectors, ids=range(len(metadata)), metadata=metadata)
        collection.delete(dead)
        for where in wheres:
            mask, expected = resolve(db, where)
            assert set(rows.members(mask.words).tolist()) == expected
            assert mask.count == len(expected) == rows.count(mask.words)
            with db.transaction():
                inside, _ = resolve(db, where)
                assert np.array_equal(inside.words, mask.words)


@pytest.fixture
def filled(memory: Database) -> Database:
    collection = memory.collection("c", dim=2)
    collection.add(
        vectors=np.ones((200, 2)), ids=range(200), metadata=[{"n": n} for n in range(200)]
    )
    return memory


def test_equal_filters_on_an_unchanged_file_share_one_mask(filled: Database) -> None:
    first, _ = resolve(filled, {"n": {"$in": [1, 2]}})
    second, _ = resolve(filled, {"n": {"$in": [2, 1]}})
    assert first is second


def test_a_commit_makes_masks_anew(filled: Database) -> None:
    resolve(filled, {"n": 5})
    filled.collection("c").update(6, metadata={"n": 5})
    mask, expected = resolve(filled, {"n": 5})
    assert mask.count == len(expected) == 2


def test_an_older_view_keeps_its_own_masks(filled: Database) -> None:
    collection = filled.collection("c")
    with filled.snapshot() as view:
        frozen = view.collection("c")
        collection.delete(where={"n": {"$lt": 100}})
        assert collection.count({"n": {"$lt": 150}}) == 50
        assert frozen.count({"n": {"$lt": 150}}) == 150
        assert collection.count({"n": {"$lt": 150}}) == 50


def test_any_number_of_filters_keeps_a_bounded_number_of_masks(filled: Database) -> None:
    collection = filled.collection("c")
    for number in range(3 * fields.MASKS):
        assert collection.count({"n": {"$lt": number}}) == min(number, 200)
    with filled.reading() as reader:
        (masks,) = (value for key, value in reader.cache.items() if key[0] == "masks")
    assert len(masks) <= fields.MASKS


def test_masks_of_two_collections_are_kept_apart(filled: Database) -> None:
    other = filled.collection("other", dim=2)
    other.add(vectors=np.ones((3, 2)), metadata=[{"n": 7}] * 3)
    assert filled.collection("c").count({"n": 7}) == 1
    assert other.count({"n": 7}) == 3


def test_a_filter_sees_ids_and_texts(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    collection.add(["red pears", "blue"], vectors=np.ones((2, 2)), ids=["a", 2])
    assert collection.count({"$id": "a"}) == 1
    assert collection.count({"$id": {"$in": [2, "2"]}}) == 1
    assert collection.count({"$text": {"$contains": "pear"}}) == 1


def test_masks_take_a_bounded_number_of_bytes(filled: Database, monkeypatch) -> None:
    monkeypatch.setattr(fields, "MASKS_BYTES", 3 * 8 * 4)
    collection = filled.collection("c")
    for number in range(20):
        assert collection.count({"n": {"$lt": number}}) == number
    with filled.reading() as reader:
        (masks,) = (value for key, value in reader.cache.items() if key[0] == "masks")
    assert len(masks) == 3


STORIES = ["red pears", "a réd pear", "\U0001f350 pears", "pear\x00s", " a ", None, "nothing"]


@pytest.mark.parametrize(
    "where",
    [
        {"$text": {"$contains": "pear"}},
        {"$text": {"$contains": "réd"}},
        {"$text": {"$contains": "\U0001f350"}},
        {"$text": {"$contains": "\x00s"}},
        {"$text": {"$contains": ""}},
        {"$text": "red pears"},
        {"$text": {"$in": ["red pears", "nothing"]}},
        {"$text": {"$contains": "pear"}, "kind": "fruit"},
        {"$or": [{"$text": {"$contains": "pear"}}, {"$text": {"$contains": "noth"}}]},
        {"$not": {"$text": {"$contains": "pear"}}},
        {"$text": {"$contains": "pear", "$gt": "b"}},
        {"$id": {"$contains": "1"}},
        {"$id": {"$gt": "s3"}},
        {"$id": {"$in": ["s1", 1, 1.0, 2.5, True, 2**70, float(2**63)]}},
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_texts_and_ids_are_compared_whole(memory: Database, where, inside: bool) -> None:
    collection = memory.collection("c", dim=2)
    for first, kind in ((0, "fruit"), (7, "book")):
        ids = [f"s{n}" if n % 2 else n for n in range(first, first + 7)]
        metadata = [{"kind": kind, "said": story} for story in STORIES]
        collection.add(STORIES, vectors=np.ones((7, 2)), ids=ids, metadata=metadata)
    wanted = [record.id for record in collection.scan() if parse(where).matches(record)]

    with memory.transaction() if inside else memory.snapshot():
        assert collection.count(where) == len(wanted)
        assert [record.id for record in collection.scan(where)] == wanted
        assert sorted(map(str, collection.search([1, 1], 20, where=where).ids)) == sorted(
            map(str, wanted)
        )


def test_damage_is_noticed_in_records_that_are_passed_over(memory: Database) -> None:
    collection = memory.collection("c", dim=2)
    collection.add(["red pears", "blue"], vectors=np.ones((2, 2)), ids=["a", 2])

    def damage(txn) -> None:
        key = layout.record_key(1, 1)
        value = bytearray(txn.get("records", key))
        value[-1] ^= 1
        txn.put("records", key, bytes(value))

    memory.writing(damage)
    with pytest.raises(CorruptionError):
        collection.count({"$text": {"$contains": "pear"}})
    memory.drop("c")
