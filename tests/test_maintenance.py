import numpy as np
import pytest

from vecstore import CorruptionError, catalog, layout, maintenance
from vecstore.layout import BLOCK_ROWS
from vecstore.maintenance import SLICE_BLOCKS, SPARSE_ROWS


@pytest.fixture
def points(memory, rng):
    collection = memory.collection("points", dim=3, metric="dot")
    fill(collection, rng, 10 * BLOCK_ROWS)
    return collection


def fill(collection, rng, count, first=0):
    ids = list(range(first, first + count))
    collection.add(vectors=rng.random((count, 3)), ids=ids, metadata=[{"n": i} for i in ids])


def contents(collection):
    records = collection.scan(include=("text", "metadata", "vector"))
    return [(item.id, item.metadata, item.vector.tolist()) for item in records]


def entry_of(db, name="points"):
    with db.reading() as reader:
        return catalog.find(reader, name)


def state_of(db, name="points"):
    with db.reading() as reader:
        return catalog.state(reader, catalog.find(reader, name).number)


def repack(db, name="points"):
    entry, slices = entry_of(db, name), 1
    while db.writing(lambda txn: maintenance.repack(txn, entry)):
        slices += 1
    return slices


def test_a_block_half_dead_is_emptied_by_the_write_that_made_it_so(memory, points):
    points.delete(list(range(SPARSE_ROWS)))

    assert points.stats()["blocks"] == 10
    assert points.stats()["dead_rows"] < SPARSE_ROWS


def test_a_block_less_than_half_dead_is_left_alone(points):
    points.delete(list(range(SPARSE_ROWS - 1)))

    assert points.stats()["dead_rows"] == SPARSE_ROWS - 1


def test_moving_records_changes_nothing_that_users_see(points):
    before = contents(points)
    doomed = {i for i in range(640) if i % 3}
    points.delete(sorted(doomed))

    assert contents(points) == [item for item in before if item[0] not in doomed]


def test_updates_without_end_do_not_let_a_collection_grow(memory, points, rng):
    for _ in range(30):
        ids = rng.permutation(640)[:200].tolist()
        points.upsert(vectors=rng.random((200, 3)), ids=ids)

    assert points.count() == 640
    assert state_of(memory).blocks <= 24
    assert memory.check() == []


def test_repacking_leaves_no_sparse_block(memory, points, rng):
    order = rng.permutation(640)
    for at in range(0, 500, 7):
        points.delete(order[at : at + 7].tolist())
    before = contents(points)
    repack(memory)

    stats = points.stats()
    assert stats["dead_rows"] <= stats["blocks"] * SPARSE_ROWS
    assert contents(points) == before


def test_repacking_gives_back_the_numbers_of_dead_blocks_at_the_end(memory, points):
    points.delete(list(range(100, 640)))
    repack(memory)

    assert state_of(memory).blocks <= 4


def test_repacking_everything_away_leaves_an_empty_collection(memory, points, rng):
    points.delete(where={})
    repack(memory)

    assert state_of(memory).blocks == 0
    with memory.reading() as reader:
        assert reader.entries("tiers") == reader.entries("live") == 0
    fill(points, rng, 10)
    assert points.count() == 10


def test_repacking_an_untouched_collection_moves_nothing(memory, points):
    before = state_of(memory)
    repack(memory)
    after = state_of(memory)

    assert (after.blocks, after.open_block, after.next_order) == (
        before.blocks,
        before.open_block,
        before.next_order,
    )


def test_much_is_repacked_in_slices(memory, rng, monkeypatch):
    monkeypatch.setattr(maintenance, "SLICE_BLOCKS", 2)
    many = memory.collection("many", dim=3)
    fill(many, rng, 20 * BLOCK_ROWS)
    # One write makes twenty blocks sparse and may repack only two of them.
    many.delete([i for i in range(20 * BLOCK_ROWS) if i % 4])
    before = contents(many)

    assert repack(memory, "many") > 3
    assert contents(many) == before
    assert SLICE_BLOCKS > 2


def test_a_sparse_block_with_a_missing_record_stays_and_is_damage_to_repack(memory, points):
    entry = entry_of(memory)
    points.delete(list(range(SPARSE_ROWS - 1)))
    key = layout.record_key(entry.number, 40)
    value = memory.writing(lambda txn: (txn.get("records", key), txn.delete("records", key))[0])

    assert points.delete([SPARSE_ROWS - 1]) == 1
    with pytest.raises(CorruptionError, match="order 40"):
        repack(memory)
    memory.writing(lambda txn: txn.put("records", key, value))
    assert repack(memory) == 1


@pytest.mark.parametrize("block", [0, "open"])
def test_no_write_gives_a_damaged_block_a_good_checksum(memory, points, rng, block):
    """Block 0 is about to be repacked, the open block to be extended."""
    fill(points, rng, 3, first=10_000)
    entry, state = entry_of(memory), state_of(memory)
    number = state.open_block if block == "open" else block
    key = layout.block_key(entry.number, number)

    def damage(txn):
        value = bytearray(txn.get("tiers", key))
        value[layout.HEADER.size + layout.COLUMNS_BYTES + 1] ^= 1
        txn.put("tiers", key, value)

    memory.writing(damage)
    if block == "open":
        with pytest.raises(CorruptionError, match=f"block {number}"):
            fill(points, rng, 1, first=20_000)
    else:
        assert points.delete(list(range(SPARSE_ROWS))) == SPARSE_ROWS

    assert any(f"block {number}" in problem.what for problem in memory.check())
    memory.writing(damage)


def test_rows_of_several_hundred_blocks_survive_churn(memory, rng):
    many = memory.collection("many", dim=2, metric="l2")
    expected = {}
    for _ in range(12):
        ids = np.unique(rng.integers(0, 5000, 1500)).tolist()
        vectors = rng.random((len(ids), 2)).astype(np.float32)
        many.upsert(vectors=vectors, ids=ids)
        expected.update(zip(ids, vectors.tolist(), strict=True))
        doomed = rng.integers(0, 5000, 700).tolist()
        many.delete(doomed)
        for identity in doomed:
            expected.pop(identity, None)

    found = {item.id: item.vector.tolist() for item in many.scan(include=("vector",))}
    assert found == expected
