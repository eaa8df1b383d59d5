"""Whatever is derived may be damaged: repair makes it anew, and all is found as before."""

import random
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import (
    Chunking,
    ReadOnlyError,
    StoreError,
    catalog,
    index_layout,
    layout,
    record_layout,
)
from vecstore.ann import buckets, compiled
from vecstore.encoders import HashEncoder
from vecstore.layout import BYTE_TIER, CODE_TIER, Header
from vecstore.store.pages import Pages

DIM = 8
DATA = Path(__file__).parent / "data"
END = datetime(2199, 1, 1, tzinfo=UTC)
# What is derived, by where it is: the database, and what its keys begin with.
DERIVED = {
    "ids": ("ids", b""),
    "bitmaps": ("live", b""),
    "columns": ("fields", b""),
    "digests": ("digests", b""),
    "lists": ("lists", b""),
    "index": ("index", b""),
    "codes": ("tiers", bytes((CODE_TIER,))),
    "bytes": ("tiers", bytes((BYTE_TIER,))),
    "counters": ("meta", b"state/"),
    "names": ("meta", b"name/"),
    "the next number": ("meta", b"next"),
}


@pytest.fixture(autouse=True)
def _by_numpy(monkeypatch):
    monkeypatch.setattr(compiled, "ready", lambda *_: None)
    monkeypatch.setattr(buckets, "LEAST_ROWS", 64)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file with a collection of each kind of index, with passages, and with records that end."""
    path = tmp_path_factory.mktemp("repair") / "sound.vecstore"
    rng = np.random.default_rng(3)
    with vecstore.open(path) as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ready", lambda *_: None)
        patch.setattr(buckets, "LEAST_ROWS", 64)
        for name, declared in {
            "auto": {"precision": "int8"},
            "flat": {"index": "flat", "metric": "dot"},
            "hash": {"index": "hash"},
            "ivf": {"index": "ivf", "metric": "l2"},
            "bits": {"index": "hash", "metric": "hamming"},
        }.items():
            points = db.collection(name, dim=DIM, **declared)
            # Fewer have no lists.
            count = 300 if name == "ivf" else 140
            points.add(
                vectors=vectors(rng, name, count),
                ids=[i if i % 2 else f"id {i}" for i in range(count)],
                metadata=[{"n": i, "even": i % 2 == 0} for i in range(count)],
                expires_at=[END + timedelta(i) if i % 3 == 0 else None for i in range(count)],
            )
            points.optimize()
            points.add(vectors=vectors(rng, name, 70), ids=range(1000, 1070))
            points.delete([*range(1, 60, 2), 1003])
        stories = db.collection("stories", encoder=HashEncoder(DIM))
        texts = [f"Story {n}. " + "It goes on. " * n for n in range(24)]
        stories.add(texts, ids=range(24), chunk=Chunking(tokens=12))
        stories.delete([3])
        assert db.check() == []
    return path


def vectors(rng, name, count):
    found = rng.normal(size=(count, DIM))
    return found > 0 if name == "bits" else found


@pytest.fixture
def db(sound, tmp_path):
    database = vecstore.open(shutil.copy(sound, tmp_path / "copy.vecstore"), durable=False)
    yield database
    database.close()


@pytest.fixture(scope="module")
def before(sound):
    """What is in the file."""
    with vecstore.open(sound, read_only=True) as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ready", lambda *_: None)
        return described(db)


def described(db):
    """All that users can read, and what exact searches find."""
    found = {}
    for name in db.collections():
        points = db.collection(name)
        query = np.sin(np.arange(DIM))
        query = query > 0 if points.spec.metric == "hamming" else query
        stored = points.scan(include=("text", "metadata", "vector"))
        found[name] = [
            points.spec,
            points.stats()["index"],
            [
                (r.order, r.id, r.text, r.metadata, r.expires_at, r.passages, r.vector.tobytes())
                for r in stored
            ],
            [
                [(hit.id, hit.score) for hit in points.search(query, 9, where=where, recall=recall)]
                for recall in ("exact", 1.0)
                for where in (None, {"n": {"$gte": 50}}, {"even": True})
            ],
            points.facets("even"),
            points.count({"$expires_at": {"$exists": True}}),
        ]
    return found


def keys_of(txn, kind):
    database, start = DERIVED[kind]
    if database in ("meta", "ids"):
        return database, [key for key, _ in txn.items(database, start)]
    return database, [key for key, _ in txn.items(database, b"") if key[4:].startswith(start)]


def delete(txn, database, keys):
    txn.delete(database, keys[0])


def flip(txn, database, keys):
    for key in keys[:2]:
        value = bytearray(txn.get(database, key))
        value[len(value) // 3] ^= 16
        txn.put(database, key, value)


def swap(txn, database, keys):
    one, two = keys[0], keys[-1]
    first, second = txn.get(database, one), txn.get(database, two)
    txn.put(database, one, second)
    txn.put(database, two, first)


def empty(txn, database, keys):
    txn.put(database, keys[0], b"")


def copy(txn, database, keys):
    txn.put(database, keys[0][:-1] + bytes((keys[0][-1] ^ 3,)), txn.get(database, keys[0]))


def delete_all(txn, database, keys):
    for key in keys:
        txn.delete(database, key)


def damaged(db, kinds, damage, seed=0):
    """Damage what is derived, and return what check says."""
    rng = random.Random(seed)

    def work(txn):
        for kind in kinds:
            database, keys = keys_of(txn, kind)
            rng.shuffle(keys)
            damage(txn, database, keys)

    db.writing(work)
    return db.check()


@pytest.mark.parametrize("damage", [delete, flip, swap])
@pytest.mark.parametrize("kind", DERIVED)
def test_what_is_derived_is_made_anew(db, before, kind, damage):
    wrong = damaged(db, [kind], damage)
    found = db.check(repair=True)

    assert found == [replace(problem, repaired=True) for problem in wrong]
    assert db.check() == []
    assert described(db) == before


@pytest.mark.parametrize("damage", [delete, flip, empty, copy, delete_all])
def test_all_that_is_derived_is_made_anew_at_once(db, before, damage):
    # With all of an index the kind that was wanted would be gone.
    kinds = DERIVED.keys() - ({"index"} if damage is delete_all else set())
    wrong = damaged(db, sorted(kinds), damage, seed=1)
    found = db.check(repair=True)

    assert wrong
    assert all(problem.repaired for problem in found)
    assert db.check() == []
    assert described(db) == before


def test_a_sound_file_is_not_written_to(db):
    before = catalog_state(db, "auto")

    assert db.check(repair=True) == []
    assert catalog_state(db, "auto") == before


def test_only_collections_with_problems_are_made_anew(db):
    before = catalog_state(db, "ivf")
    damaged(db, ["digests"], flip)

    assert all(problem.repaired for problem in db.check(repair=True))
    assert catalog_state(db, "ivf") == before


def catalog_state(db, name):
    with db.reading() as reader:
        return catalog.state(reader, catalog.find(reader, name).number)


def edit(db, database, key, change):
    def work(txn):
        value = bytearray(txn.get(database, key))
        change(value)
        txn.put(database, key, value)

    db.writing(work)


def flip_last(value):
    value[-1] ^= 1


def number_of(db, name):
    with db.reading() as reader:
        return catalog.find(reader, name).number


def first_key(db, database, prefix):
    with db.reading() as reader:
        return next(reader.items(database, prefix))[0]


def flip_numbers(value):
    value[layout.HEADER.size + layout.COLUMNS_BYTES + 40] ^= 1


PRIMARY = {
    "a record": ("records", lambda number: layout.collection_key(number), flip_last),
    "a block": ("tiers", lambda number: layout.tier_prefix(number), flip_numbers),
    "a spec": ("meta", layout.spec_key, flip_last),
}


@pytest.mark.parametrize("what", PRIMARY)
def test_a_collection_with_damaged_data_is_left_as_it_is_and_others_are_mended(db, what):
    database, prefix, change = PRIMARY[what]
    number = number_of(db, "hash")
    damaged(db, ["bitmaps", "counters"], delete_all)
    edit(db, database, first_key(db, database, prefix(number)), change)
    before = values_of(db, number)
    wrong = db.check()
    found = db.check(repair=True)
    left = [problem for problem in found if not problem.repaired]

    assert len(wrong) > len(left) > 0
    assert left == db.check()
    assert values_of(db, number) == before
    assert db.collection("ivf").search(np.ones(DIM), 5, recall="exact").complete


def values_of(db, number):
    """All values of a collection."""
    found = {}
    with db.reading() as reader:
        for database in layout.DATABASES[1:]:
            for key, value in reader.items(database, layout.collection_key(number)):
                found[database, key] = bytes(value)
        return found, bytes(reader.get("meta", layout.spec_key(number)))


def set_orders(number, block, change):
    """Change the orders in a block and give it a right checksum."""

    def work(txn):
        form = layout.form(catalog.read(txn, number).spec)
        key = layout.block_key(number, block)
        value = bytearray(txn.get("tiers", key))
        held = layout.check_block(bytes(value), number, block, form)
        change(layout.view_block(value, held, form).orders)
        header = Header(1, form.code, held, form.dim, block * 64, 0, 0, number)
        txn.put("tiers", key, layout.seal_bulk(header, value, form.block_bytes(held)))

    return work


def test_an_order_in_a_block_is_taken_from_the_record(db, before):
    number = number_of(db, "flat")

    def change(orders):
        orders[5] = 999_999

    db.writing(set_orders(number, 2, change))
    found = db.check(repair=True)

    assert found
    assert all(problem.repaired for problem in found)
    assert described(db) == before


def test_vectors_that_may_be_each_others_are_left_to_their_rows(db):
    def change(orders):
        orders[[5, 6]] = orders[[6, 5]]

    db.writing(set_orders(number_of(db, "flat"), 2, change))
    found = db.check(repair=True)

    assert found
    assert not any(problem.repaired for problem in found)


def test_records_of_no_collection_are_kept_and_all_else_of_none_is_deleted(db):
    stray = layout.collection_key(77)

    def work(txn):
        for database in layout.DATABASES[1:]:
            txn.put(database, stray + b"rest", b"x")
            txn.put(database, b"\0", b"x")
        txn.put("meta", b"strange", b"x")
        key = layout.record_key(77, 1)
        body = record_layout.pack_body("a", "text", None)
        txn.put("records", key, record_layout.pack_record(key, 0, body))

    db.writing(work)
    found = db.check(repair=True)

    # Of the two keys in `records` one is left.
    assert [str(problem) for problem in db.check()] == [
        "records: 1 keys belong to no collection (2)"
    ]
    assert sum(not problem.repaired for problem in found) == 1


def test_orders_that_were_given_out_are_not_given_again(db):
    stories = db.collection("stories", encoder=HashEncoder(DIM))
    stories.add(["The last one."], ids=["last"])
    last = stories.get("last").order
    stories.delete("last")
    damaged(db, ["counters"], delete_all)
    db.check(repair=True)
    stories = db.collection("stories", encoder=HashEncoder(DIM))
    stories.add(["Another one."], ids=["another"])

    assert stories.get("another").order > last
    assert db.check() == []


def test_repair_is_refused_where_nothing_may_be_written(db, sound):
    with db.transaction(), pytest.raises(StoreError, match="end it before repairing"):
        db.check(repair=True)
    with (
        vecstore.open(sound, read_only=True) as closed,
        pytest.raises(ReadOnlyError, match="read_only=True"),
    ):
        closed.check(repair=True)


def test_the_index_of_a_hostile_plan_is_made_anew(db):
    """What cannot be under this metric is not asked for again."""
    plan = layout.pack_meta({"kind": "ivf", "edition": b"12345678", "trained": 1, "bands": 9})
    key = index_layout.index_key(number_of(db, "bits"), index_layout.PLAN)
    db.writing(lambda txn: txn.put("index", key, plan))
    found = db.check(repair=True)

    assert all(problem.repaired for problem in found)
    assert db.check() == []
    assert db.collection("bits").stats()["index"] == "hash"


def test_a_file_whose_pages_are_damaged_is_not_written_to(db, tmp_path):
    path = Path(db.path)
    db.close()
    data = bytearray(path.read_bytes())
    with Pages(path) as pages:
        page = pages.trees["live"].root * pages.size
    data[page + 12] ^= 2
    path.write_bytes(data)
    with vecstore.open(path) as opened:
        found = opened.check(repair=True)

        assert any(problem.where == "file" for problem in found)
        assert not any(problem.repaired for problem in found)
    assert path.read_bytes() == data


@pytest.mark.parametrize("file", sorted(DATA.glob("*.vecstore")), ids=lambda file: file.stem)
def test_an_old_file_is_repaired(file, tmp_path):
    with vecstore.open(shutil.copy(file, tmp_path / "old.vecstore")) as db:
        before = everything(db)
        kinds = ["ids", "bitmaps", "counters", "the next number"]
        wrong = damaged(db, kinds, delete_all)
        found = db.check(repair=True)

        assert found == [replace(problem, repaired=True) for problem in wrong]
        assert db.check() == []
        assert everything(db) == before


def everything(db):
    return {
        name: [
            (r.order, r.id, r.text, r.metadata, r.vector.tobytes())
            for r in db.collection(name).scan(include=("text", "metadata", "vector"))
        ]
        for name in db.collections()
    }


@pytest.mark.parametrize("number", [[None], {}, "1", None, 1.5, 2**40, -1, 0])
def test_a_name_that_leads_to_no_number_leads_to_its_collection_again(db, before, number):
    key = layout.name_key("flat")
    db.writing(lambda txn: txn.put("meta", key, layout.pack_meta({"number": number})))
    assert db.check()

    problems = db.check(repair=True)
    assert problems
    assert db.check() == []
    assert described(db) == before
