import pytest

from vecstore import CorruptionError, layout, record_layout, records
from vecstore.records import Stored
from vecstore.store import Store


@pytest.fixture
def store():
    store = Store(":memory:")
    yield store
    store.close()


def put(store, order, identity, row=0, collection=1, text="t", metadata=None, leads_to=None):
    key = layout.record_key(collection, order)
    value = record_layout.pack_record(key, row, record_layout.pack_body(identity, text, metadata))
    target = order if leads_to is None else leads_to

    def work(txn):
        txn.put("records", key, value)
        txn.put("ids", layout.id_key(collection, identity), layout.ORDER.pack(target))

    store.write(work)


def get(store, identity, collection=1):
    with store.snapshot() as snapshot:
        return records.get(snapshot, collection, identity)


def test_a_record_is_found_by_its_id(store):
    put(store, 5, "a", row=9, metadata={"x": 1})

    assert get(store, "a") == Stored(5, 9, "a", "t", {"x": 1})


@pytest.mark.parametrize("identity", ["b", "", 1, -1])
def test_an_unknown_id_leads_to_none(store, identity):
    put(store, 5, "a")

    assert get(store, identity) is None


def test_the_str_and_the_int_of_a_number_are_two_ids(store):
    put(store, 1, 7, text="int")
    put(store, 2, "7", text="str")

    assert (get(store, 7).text, get(store, "7").text) == ("int", "str")


def test_collections_do_not_share_ids(store):
    put(store, 1, "a", collection=1, text="one")
    put(store, 1, "a", collection=2, text="two")

    assert [get(store, "a", number).text for number in (1, 2)] == ["one", "two"]
    assert get(store, "a", 3) is None


def test_a_walk_goes_by_order_within_its_collection(store):
    for order in (300, 2, 1 << 40):
        put(store, order, order)
    put(store, 1, "other", collection=2)

    with store.snapshot() as snapshot:
        assert [item.order for item in records.walk(snapshot, 1)] == [2, 300, 1 << 40]
        assert [item.order for item in records.walk(snapshot, 1, 2)] == [300, 1 << 40]
        assert [item.order for item in records.walk(snapshot, 1, 1 << 40)] == []


def test_a_transaction_reads_records_too(store):
    put(store, 5, "a")

    found = store.write(lambda txn: (records.get(txn, 1, "a"), list(records.walk(txn, 1))))
    assert found[1] == [found[0]]


def test_an_id_without_a_record_is_damage(store):
    put(store, 5, "a")
    store.write(lambda txn: txn.delete("records", layout.record_key(1, 5)))

    with pytest.raises(CorruptionError, match="order 5 of collection 1 is missing"):
        get(store, "a")


def test_an_id_that_leads_to_another_record_is_damage(store):
    put(store, 5, "a")
    put(store, 6, "b", leads_to=5)

    with pytest.raises(CorruptionError, match="id 'b' leads to the record of id 'a'"):
        get(store, "b")


@pytest.mark.parametrize("value", [b"", b"1234567", b"123456789"])
def test_an_order_of_another_length_is_damage(store, value):
    store.write(lambda txn: txn.put("ids", layout.id_key(1, "a"), value))

    with pytest.raises(CorruptionError, match=f"has {len(value)} bytes"):
        get(store, "a")


def test_a_record_under_another_key_is_damage(store):
    put(store, 5, "a")

    def move(txn):
        value = txn.get("records", layout.record_key(1, 5))
        txn.put("records", layout.record_key(1, 6), value)
        txn.put("ids", layout.id_key(1, "a"), layout.ORDER.pack(6))

    store.write(move)
    with pytest.raises(CorruptionError, match="damaged"):
        get(store, "a")


@pytest.mark.parametrize("at", [0, 4, 8, 9, -1])
def test_a_damaged_record_is_found_on_each_way_to_it(store, at):
    put(store, 5, "a", metadata={"x": "y"})

    def spoil(txn):
        value = bytearray(txn.get("records", layout.record_key(1, 5)))
        value[at] ^= 64
        txn.put("records", layout.record_key(1, 5), value)

    store.write(spoil)
    with store.snapshot() as snapshot:
        for work in (
            lambda: records.get(snapshot, 1, "a"),
            lambda: records.read(snapshot, 1, 5),
            lambda: list(records.walk(snapshot, 1)),
        ):
            with pytest.raises(CorruptionError, match="damaged"):
                work()


def test_rows_and_values_stand_in_the_order_that_was_asked_for(store):
    for order in range(3):
        put(store, order, f"id{order}", row=7 - order)
    with store.snapshot() as snapshot:
        rows, values = records.verified(snapshot, 1, [2, 0])

        assert rows == [5, 7]
        assert record_layout.unpack_ids(values) == ["id2", "id0"]


def test_a_missing_record_among_others_is_named(store):
    put(store, 0, "a")
    with store.snapshot() as snapshot, pytest.raises(CorruptionError, match="order 7 of"):
        records.verified(snapshot, 1, [0, 7])
