"""What the file says of an index, and how long that is remembered."""

from dataclasses import replace

import numpy as np
import pytest
from indexed import DIM, clusters, filled, small_indexes

import vecstore
from vecstore import CorruptionError, Database, catalog, index_layout, layout, maintenance
from vecstore.ann import index
from vecstore.ann.index import Index
from vecstore.index_layout import NO_LIST
from vecstore.layout import BLOCK_ROWS, LIST_PART, LIST_PART_ROWS, PART_ROWS, UINT32, Header


@pytest.fixture(autouse=True)
def _small(monkeypatch) -> None:
    small_indexes(monkeypatch)


def load(db: Database, name: str = "points") -> Index:
    with db.reading() as reader:
        entry = catalog.find(reader, name)
        found = index.load(reader, entry, catalog.state(reader, entry.number))
    assert found is not None
    return found


def numbers_of(db: Database, name: str = "points") -> tuple[catalog.Entry, int]:
    with db.reading() as reader:
        entry = catalog.find(reader, name)
        return entry, catalog.state(reader, entry.number).blocks


def test_an_index_is_read_once_for_each_version_of_the_file(memory) -> None:
    collection = filled(memory)
    first = load(memory)

    assert load(memory) is first
    collection.add(vectors=clusters(1, 5))
    assert load(memory) is not first
    assert load(memory).model is first.model


def test_a_transaction_reads_the_index_that_it_wrote(memory) -> None:
    filled(memory)
    with memory.transaction():
        with memory.reading() as reader:
            entry = catalog.find(reader, "points")
            state = catalog.state(reader, entry.number)
            before = index.load(reader, entry, state)
        memory.writing(lambda txn: maintenance.set_kind(txn, entry, "hash"))
        with memory.reading() as reader:
            after = index.load(reader, entry, catalog.state(reader, entry.number))
        assert (before.kind, after.kind) == ("auto", "hash")
        assert before.edition != after.edition


def test_models_of_several_collections_are_kept_together(memory) -> None:
    names = [f"c{number}" for number in range(index.MODELS_KEPT)]
    for name in names:
        filled(memory, name, 100, index="hash")
    models = [load(memory, name).model for name in names]
    # Another version: nothing but what is kept is there any more.
    memory.collection(names[0]).add(vectors=clusters(1, 3))

    assert all(load(memory, name).model is model for name, model in zip(names, models, strict=True))


def test_no_more_models_are_kept_than_that(memory) -> None:
    names = [f"c{number}" for number in range(index.MODELS_KEPT + 3)]
    for name in names:
        filled(memory, name, 100, index="hash")
        load(memory, name)
    with memory.reading() as reader:
        kept = reader.store.tables.kept("models")

    assert len(kept) == index.MODELS_KEPT


def test_ids_that_are_remembered_push_out_no_model(memory) -> None:
    names = [f"c{number}" for number in range(index.MODELS_KEPT)]
    for name in names:
        filled(memory, name, 300, index="hash")
    models = [load(memory, name).model for name in names]
    for name in names:
        hits = memory.collection(name).search(clusters(1)[0], include=())
        assert hits.plan.method == "index"
    memory.collection(names[0]).add(vectors=clusters(1, 3))

    assert all(load(memory, name).model is model for name, model in zip(names, models, strict=True))
    with memory.reading() as reader:
        assert len(reader.store.tables.kept("ids")) == index.MODELS_KEPT


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 300])
def test_the_bits_of_listed_blocks_fit_any_number_of_blocks(memory, count: int, rng) -> None:
    memory.collection("points", dim=DIM)
    entry, _ = numbers_of(memory)
    listed = rng.random(count) < 0.5
    memory.writing(lambda txn: index.save_listed(txn, entry.number, listed))

    with memory.reading() as reader:
        more = index.read_listed(reader, entry.number, count + 20)
    assert more[:count].tolist() == listed.tolist()
    assert not more[count:].any()
    memory.drop("points")


def test_fewer_blocks_than_there_are_listed_are_damage(memory) -> None:
    filled(memory)
    entry, blocks = numbers_of(memory)
    with (
        memory.reading() as reader,
        pytest.raises(vecstore.CorruptionError, match="beyond the last"),
    ):
        index.read_listed(reader, entry.number, blocks - 8)


def test_the_tail_is_what_lives_and_is_not_listed(memory) -> None:
    found = filled(memory) and load(memory)
    alive = np.ones(len(found.listed), np.uint64)
    alive[-1] = 0
    expected = [n for n in range(len(alive) - 1) if not found.listed[n]]

    assert index.tail(found, alive).tolist() == expected


def test_columns_of_several_parts_come_back(memory, rng) -> None:
    """More rows than one part of the column holds; parts that never were are of no list."""
    filled(memory)
    entry, _ = numbers_of(memory)
    blocks = 2 * LIST_PART_ROWS // BLOCK_ROWS + 5
    column = rng.integers(0, 30, blocks * BLOCK_ROWS).astype(np.uint32)
    only = np.array([0, 2])
    memory.writing(lambda txn: index.save_lists_of_rows(txn, entry.number, column, only))
    expected = column.copy()
    expected[LIST_PART_ROWS : 2 * LIST_PART_ROWS] = NO_LIST

    with memory.reading() as reader:
        found = index.load(reader, entry, catalog.state(reader, entry.number))
        parts = [
            read_part(reader, entry.number, part)
            for part in range(-(-len(column) // LIST_PART_ROWS))
        ]
        assert found is not None
    assert np.array_equal(np.concatenate(parts)[: len(column)], expected)
    memory.drop("points")


def test_long_parts_of_the_first_files_are_read_and_then_written_anew(memory, rng) -> None:
    filled(memory)
    entry, _ = numbers_of(memory)
    found = load(memory)
    with memory.reading() as reader:
        column = index.read_lists_of_rows(reader, entry.number, found)
    long = np.full(PART_ROWS, NO_LIST, np.uint32)
    long[: len(column)] = column
    header = Header(LIST_PART, UINT32, PART_ROWS, 0, 0, 0, 0, entry.number)
    prefix = index_layout.list_parts(entry.number)

    def as_before(txn) -> None:
        txn.delete_prefix("index", prefix)
        key = index_layout.list_part_key(entry.number, 0)
        txn.put("index", key, layout.pack_bulk(header, long.tobytes(), txn.page))

    memory.writing(as_before)
    points = memory.collection("points")
    assert memory.check() == []
    with memory.reading() as reader:
        assert np.array_equal(index.read_lists_of_rows(reader, entry.number, found), column)

    points.delete([0])
    points.add(vectors=clusters(700, 4))
    points.optimize(progress=False)
    assert memory.check() == []
    with memory.reading() as reader:
        sizes = [layout.unpack_header(part, "").rows for _, part in reader.items("index", prefix)]
    assert set(sizes) == {LIST_PART_ROWS}


def read_part(reader, number: int, part: int) -> np.ndarray:
    value = reader.get("index", index_layout.list_part_key(number, part))
    if value is None:
        return np.full(LIST_PART_ROWS, NO_LIST, np.uint32)
    return index_layout.unpack_list_part(value, number, part).copy()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 200])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_list_comes_back_as_it_was_written(memory, count: int, metric: str, rng) -> None:
    filled(memory, metric=metric)
    model, (entry, _) = load(memory).model, numbers_of(memory)
    names = rng.permutation(10_000)[:count].astype(np.uint32)
    found = model.encode(clusters(count, 4), np.zeros(count, np.intp), names)
    memory.writing(lambda txn: index.save_list(txn, entry.number, model, 3, found))

    with memory.reading() as reader:
        again = index.read_list(reader, entry.number, model, 3)
    assert np.array_equal(again.rows, names)
    assert np.array_equal(again.groups, found.groups)
    assert np.array_equal(again.scales, found.scales)
    assert np.array_equal(again.offsets, found.offsets)
    memory.drop("points")


def test_plans_that_say_nothing_sensible_are_damage(memory) -> None:
    filled(memory)
    entry, _ = numbers_of(memory)
    key = index_layout.index_key(entry.number, index_layout.PLAN)
    value = memory.writing(lambda txn: txn.get("index", key))
    plan = layout.unpack_meta(value, "plan")
    for change in ({"kind": "tree"}, {"trained": -1}, {"arrived": None}, {"budgets": {}}):
        broken = layout.pack_meta({**plan, **change})
        memory.writing(lambda txn, broken=broken: txn.put("index", key, broken))
        with memory.reading() as reader, pytest.raises(vecstore.CorruptionError, match="plan"):
            index.load(reader, entry, catalog.state(reader, entry.number))
    memory.writing(lambda txn: txn.put("index", key, value))


def test_budgets_that_could_not_be_read_again_are_not_written(memory) -> None:
    filled(memory, index="ivf")
    before = load(memory).budgets

    def work(txn) -> None:
        entry = catalog.find(txn, "points")
        found = index.load(txn, entry, catalog.state(txn, entry.number))
        spoiled = replace(found, budgets={**found.budgets, "gap": float("inf")})
        index.save_plan(txn, entry.number, spoiled)

    with pytest.raises(CorruptionError, match="no index can be made"):
        memory.writing(work)
    assert load(memory).budgets == before
