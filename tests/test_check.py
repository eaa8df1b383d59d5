"""Every invariant of docs/layout.md, broken on purpose: check must say so."""

import msgpack
import numpy as np
import pytest

import vecstore
from vecstore import CollectionSpec, CorruptionError, Problem, layout, record_layout
from vecstore.layout import BLOCK_ROWS, Header, State

DIM = 4
FORM = layout.form(CollectionSpec(name="c", dim=DIM))
SMALL = layout.form(CollectionSpec(name="c", dim=2))


@pytest.fixture
def db(rng):
    database = vecstore.open(":memory:")
    points = database.collection("points", dim=DIM)
    points.add(
        vectors=rng.normal(size=(150, DIM)),
        ids=[*range(100), *(f"s{i}" for i in range(50))],
        metadata=[{"n": i} for i in range(150)],
    )
    points.delete([3, 4, 5])
    database.collection("others", dim=2, metric="l2").add(vectors=[[1, 2]], ids=["a"])
    assert database.check() == []
    yield database
    database.close()


NUMBER = 1


def break_by(db, work):
    db.writing(work)
    problems = db.check()
    assert all(isinstance(problem, Problem) for problem in problems)
    return [str(problem) for problem in problems]


def put(database, key, value):
    return lambda txn: txn.put(database, key, value)


def drop(database, key):
    return lambda txn: txn.delete(database, key)


def change(database, key, edit):
    def work(txn):
        value = bytearray(txn.get(database, key))
        edit(value)
        txn.put(database, key, value)

    return work


def change_state(**values):
    def work(txn):
        key = layout.state_key(NUMBER)
        state = State.unpack(txn.get("meta", key))
        for name, value in values.items():
            setattr(state, name, value(getattr(state, name)) if callable(value) else value)
        txn.put("meta", key, state.pack())

    return work


def change_block(edit, number=0):
    """Change a block's arrays and give it a right checksum."""

    def work(txn):
        key = layout.block_key(NUMBER, number)
        value = bytearray(txn.get("tiers", key))
        rows = layout.check_block(value, NUMBER, number, FORM)
        edit(layout.view_block(value, rows, FORM))
        header = Header(1, 1, rows, DIM, number * BLOCK_ROWS, 0, 0, NUMBER)
        layout.seal_bulk(header, value, FORM.block_bytes(rows))
        txn.put("tiers", key, value)

    return work


def change_other_norm(txn):
    """The collection under l2 has one row."""
    key = layout.block_key(2, 0)
    value = bytearray(txn.get("tiers", key))
    layout.view_block(value, 1, SMALL).packed.norms[0] += 0.1
    header = Header(1, 1, 1, 2, 0, 0, 0, 2)
    txn.put("tiers", key, layout.seal_bulk(header, value, SMALL.block_bytes(1)))


def change_bits(edit):
    def work(txn):
        key = layout.part_key(NUMBER, 0)
        bits = layout.unpack_part(txn.get("live", key), NUMBER, 0)
        edit(bits)
        txn.put("live", key, layout.pack_part(NUMBER, 0, bits, txn.page))

    return work


def change_record(order, row=None, identity=None):
    def work(txn):
        key = layout.record_key(NUMBER, order)
        value = txn.get("records", key)
        found, text, metadata = record_layout.unpack_body(value)
        body = record_layout.pack_body(found if identity is None else identity, text, metadata)
        old = record_layout.check_record(key, value)
        txn.put("records", key, record_layout.pack_record(key, old if row is None else row, body))

    return work


def flip(at):
    def edit(value):
        value[at] ^= 1

    return edit


def kill_bit(row):
    def edit(bits):
        bits[row >> 3] &= ~(1 << (row & 7))

    return edit


def set_bit(row):
    def edit(bits):
        bits[row >> 3] |= 1 << (row & 7)

    return edit


def set_item(name, where, value):
    def edit(block):
        arrays = block if name == "orders" else block.packed
        getattr(arrays, name)[where] = value

    return edit


def rewrite_block_as(number):
    def work(txn):
        value = bytearray(txn.get("tiers", layout.block_key(NUMBER, 0)))
        header = Header(1, 1, 64, DIM, number * BLOCK_ROWS, 0, 0, NUMBER)
        layout.seal_bulk(header, value, FORM.block_bytes(64))
        txn.put("tiers", layout.block_key(NUMBER, number), value)

    return work


def both(*works):
    def work(txn):
        for one in works:
            one(txn)

    return work


BROKEN = {
    # 1: names, specs and counters
    "a name without a spec": (drop("meta", layout.spec_key(1)), "(1)"),
    "a name without counters": (drop("meta", layout.state_key(1)), "no counters"),
    "a spec without a name": (drop("meta", layout.name_key("points")), "not expected (1)"),
    "counters of nobody": (put("meta", layout.state_key(77), State().pack()), "not expected (1)"),
    "a strange key": (put("meta", b"strange", b"x"), "not expected (1)"),
    "two names of one collection": (
        put("meta", layout.name_key("twin"), layout.pack_meta({"number": 1})),
        "two names",
    ),
    "a name of another spec": (
        put("meta", layout.name_key("twin"), layout.pack_meta({"number": 1})),
        "leads to the spec of 'points'",
    ),
    "a next number in use": (put("meta", b"next", layout.pack_meta({"next": 2})), "in use (1)"),
    "no next number": (drop("meta", b"next"), "next"),
    "a next number that is none": (
        put("meta", b"next", layout.pack_meta({"next": "x"})),
        "next",
    ),
    "no format": (drop("meta", b"format"), "'format' is missing"),
    # 2: owners
    **{
        f"a key of nobody in {name}": (
            put(name, b"\0\0\0\x63rest", b"x"),
            f"{name}: 1 keys belong to no collection (2)",
        )
        for name in layout.DATABASES[1:]
    },
    **{
        f"a short key in {name}": (put(name, b"\0\0\1", b"x"), f"{name}: 1 keys belong")
        for name in layout.DATABASES[1:]
    },
    "something in fields": (put("fields", b"\0\0\0\1rest", b"x"), "is not expected (20)"),
    # 9 to 13, what an index is made of, are broken in tests/ann/test_verify.py.
    **{
        f"something in {name}": (put(name, b"\0\0\0\1rest", b"x"), "though there is no index (9)")
        for name in ("lists", "index")
    },
    "codes of a block": (
        put("tiers", layout.block_key(1, 0, layout.CODE_TIER), b"x"),
        "though there is no index (9)",
    ),
    # 3: ids, records, orders
    "a missing record": (drop("records", layout.record_key(1, 10)), "146 records"),
    "a missing id": (drop("ids", layout.id_key(1, 10)), "id 10 does not lead to its record (3)"),
    "an id too many": (
        put("ids", layout.id_key(1, "ghost"), layout.ORDER.pack(10)),
        "148 ids, the counter says 147 (3)",
    ),
    "an id that leads elsewhere": (
        put("ids", layout.id_key(1, 10), layout.ORDER.pack(11)),
        "id 10 does not lead to its record (3)",
    ),
    "an id of a strange length": (put("ids", layout.id_key(1, 10), b"123"), "has 3 bytes"),
    "a key in ids that is no id": (put("ids", b"\0\0\0\1x", b"x" * 8), "holds no id"),
    "a record of another id": (change_record(10, identity=11), "does not lead to its record (3)"),
    "a record whose id is a list": (change_record(10, identity=["a"]), "records"),
    "a record whose id is too large": (change_record(10, identity=2**64 - 1), "records"),
    "an order not given out": (change_state(next_order=100), "was never given out (3)"),
    "a wrong counter of records": (change_state(records=140), "the counter says 140 (3)"),
    "a record with a strange key": (put("records", b"\0\0\0\1abc", b"x"), "has 7 bytes (3)"),
    # 4: rows
    "a record of a dead row": (change_record(10, row=3), "(4)"),
    "a record of a row that is not there": (change_record(10, row=10**6), "(4)"),
    "two records of one row": (change_record(10, row=11), "row 11 belongs to two records (4)"),
    "two records swapped": (
        both(change_record(10, row=11), change_record(11, row=10)),
        "row 10 says order 10, its record 11 (4)",
    ),
    "a dead row of a record": (change_bits(kill_bit(10)), "1 rows live without a record"),
    "a living row of nobody": (change_bits(set_bit(3)), "such as 3 (4)"),
    "a wrong order in a block": (
        change_block(set_item("orders", 10, 99)),
        "row 10 says order 99, its record 10 (4)",
    ),
    # 5: bitmaps
    "a missing bitmap": (drop("live", layout.part_key(1, 0)), "part 0 of collection 1 is missing"),
    "a bitmap too many": (
        lambda txn: txn.put(
            "live",
            layout.part_key(1, 1),
            layout.pack_part(1, 1, bytes(layout.PART_BYTES), txn.page),
        ),
        "is not expected (5)",
    ),
    # 6: blocks
    "a missing block": (drop("tiers", layout.block_key(1, 0)), "block 0 is missing (6)"),
    "a block of dead rows": (
        both(change_state(blocks=9), rewrite_block_as(7)),
        "block 7 has no living row (6)",
    ),
    "a block never allotted": (rewrite_block_as(7), "block 7 was never allotted (6)"),
    "a wrong number of open rows": (change_state(open_rows=20), "block 2 holds 22 rows (6)"),
    "no open block": (
        change_state(open_rows=0, open_block=layout.NO_BLOCK),
        "block 2 holds 22 rows (6)",
    ),
    "a living row beyond the open block": (
        change_bits(set_bit(128 + 30)),
        "beyond its open block",
    ),
    "a living row beyond the last block": (
        change_bits(set_bit(5 * 64)),
        "beyond its last block",
    ),
    "another tier": (put("tiers", b"\0\0\0\1\7\0\0\0\0", b"x"), "is not expected (6)"),
    "a strange key in tiers": (put("tiers", b"\0\0\0\1\0ab", b"x"), "is not expected (6)"),
    # 7: numbers
    "a vector with a NaN": (
        change_block(set_item("numbers", (10, 1), np.nan)),
        "block 0 holds a value that is not finite (7)",
    ),
    "an infinite norm": (change_block(set_item("norms", 10, np.inf)), "not finite (7)"),
    "a norm of zero": (change_block(set_item("norms", 10, 0.0)), "unit length (7)"),
    "a wrong norm under l2": (change_other_norm, "holds a wrong norm (7)"),
    "a vector not of unit length": (
        change_block(set_item("numbers", 10, 1.0)),
        "not of unit length (7)",
    ),
    # 8: checksums
    "a damaged block": (change("tiers", layout.block_key(1, 1), flip(2000)), "checksum"),
    "a damaged header": (change("tiers", layout.block_key(1, 1), flip(9)), "block 1"),
    "a block cut short": (
        lambda txn: txn.put(
            "tiers", layout.block_key(1, 1), txn.get("tiers", layout.block_key(1, 1))[:100]
        ),
        "block 1",
    ),
    "a damaged bitmap": (change("live", layout.part_key(1, 0), flip(100)), "checksum"),
    "a record of other things": (
        put(
            "records",
            layout.record_key(1, 10),
            record_layout.pack_record(
                layout.record_key(1, 10), 10, msgpack.packb([0, 5, "no dict"])
            ),
        ),
        "not id, text and metadata",
    ),
    "a damaged record": (change("records", layout.record_key(1, 10), flip(-1)), "damaged"),
    "damaged counters": (change("meta", layout.state_key(1), flip(10)), "checksum"),
    "a damaged spec": (change("meta", layout.spec_key(1), flip(10)), "checksum"),
    "a damaged name": (change("meta", layout.name_key("points"), flip(5)), "checksum"),
    "a damaged format": (change("meta", b"format", flip(5)), "format"),
    "a name that is not UTF-8": (put("meta", b"name/\xff", b"x"), "not UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_finds(db, name):
    work, words = BROKEN[name]

    found = break_by(db, work)

    assert any(words in problem for problem in found), found


@pytest.mark.parametrize("name", BROKEN)
def test_check_in_a_transaction_finds_the_same(db, name):
    work, _ = BROKEN[name]
    db.writing(work)
    with db.transaction():
        inside = db.check()

    assert inside == db.check()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(
    ("precision", "name", "value", "words"),
    [
        ("float16", "numbers", np.nan, "not finite (7)"),
        ("float16", "numbers", np.inf, "not finite (7)"),
        ("float16", "numbers", 0.9, "(7)"),
        ("int8", "numbers", 0, "(7)"),
        ("int8", "scales", np.nan, "not finite (7)"),
        ("int8", "scales", 1.0, "(7)"),
        ("int8", "norms", np.nan, "not finite (7)"),
    ],
)
def test_check_finds_wrong_numbers_of_every_precision(
    memory, rng, metric, precision, name, value, words
):
    collection = memory.collection("c", dim=DIM, metric=metric, precision=precision)
    collection.add(vectors=rng.normal(size=(70, DIM)))
    key, own = layout.block_key(NUMBER, 0), layout.form(collection.spec)
    whole = []

    def work(txn):
        whole.append(txn.get("tiers", key))
        copy = bytearray(whole[0])
        getattr(layout.view_block(copy, 64, own).packed, name)[10] = value
        header = Header(1, own.code, 64, DIM, 0, 0, 0, NUMBER)
        txn.put("tiers", key, layout.seal_bulk(header, copy, own.block_bytes(64)))

    found = break_by(memory, work)
    memory.writing(put("tiers", key, whole[0]))

    assert any(words in problem for problem in found), found
    assert memory.check() == []


@pytest.mark.parametrize(("name", "place", "value"), [("numbers", (10, 0), 0), ("norms", 10, 1.0)])
def test_check_finds_wrong_counts_of_bits(memory, name, place, value):
    collection = memory.collection("c", dim=72, metric="hamming")
    collection.add(vectors=np.full((70, 9), 3, np.uint8))
    key, own = layout.block_key(NUMBER, 0), layout.form(collection.spec)

    def work(txn):
        copy = bytearray(txn.get("tiers", key))
        getattr(layout.view_block(copy, 64, own).packed, name)[place] = value
        header = Header(1, own.code, 64, 72, 0, 0, 0, NUMBER)
        txn.put("tiers", key, layout.seal_bulk(header, copy, own.block_bytes(64)))

    assert any("wrong count of bits (7)" in problem for problem in break_by(memory, work))
    memory.drop("c")


def test_check_finds_bits_beyond_the_last(memory):
    collection = memory.collection("c", dim=72, metric="hamming")
    collection.add(vectors=np.zeros((3, 9), np.uint8))
    key, own = layout.block_key(NUMBER, 0), layout.form(collection.spec)

    def work(txn):
        copy = bytearray(txn.get("tiers", key))
        packed = layout.view_block(copy, 3, own).packed
        packed.numbers.view(np.uint8)[1, 9] = 1
        packed.norms[1] = 1
        header = Header(1, own.code, 3, 72, 0, 0, 0, NUMBER)
        txn.put("tiers", key, layout.seal_bulk(header, copy, own.block_bytes(3)))

    assert any("wrong count of bits (7)" in problem for problem in break_by(memory, work))
    memory.drop("c")


@pytest.mark.parametrize("name", ["a damaged block", "a missing id"])
def test_backup_and_compact_refuse_what_check_finds(db, tmp_path, name):
    db.writing(BROKEN[name][0])
    target = tmp_path / "copy.vecstore"

    with pytest.raises(CorruptionError, match="cannot backup: check found"):
        db.backup(target)
    with pytest.raises(CorruptionError, match="cannot compact: check found"):
        db.compact()
    assert list(tmp_path.iterdir()) == []


def test_damage_in_one_collection_leaves_the_other_to_be_checked(db):
    found = break_by(
        db,
        both(
            drop("meta", layout.state_key(1)),
            drop("ids", layout.id_key(2, "a")),
        ),
    )

    assert any("'others'" in problem and "'a'" in problem for problem in found)


def test_an_empty_database_is_sound(memory):
    assert memory.check() == []


def test_a_database_whose_collections_were_all_dropped_is_sound(memory):
    memory.collection("points", dim=2).add(vectors=[1, 0])
    memory.drop("points")

    assert memory.check() == []


def test_a_problem_says_where_and_what():
    assert str(Problem("records", "damaged")) == "records: damaged"


def test_counting_on_from_wrong_counters_is_damage(db):
    db.writing(change_state(records=0))
    with pytest.raises(CorruptionError, match="impossible"):
        db.collection("points").delete([0])
