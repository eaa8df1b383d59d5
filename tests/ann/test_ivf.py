"""Lists hold the living rows, exactly, whatever happened before, between and after their making."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from indexed import DIM, clusters

import vecstore
from vecstore import Collection, Database, catalog, maintenance, rows
from vecstore.ann import index, ivf, training
from vecstore.ann.index import Index
from vecstore.ann.ivf import Draft
from vecstore.index_layout import NO_LIST
from vecstore.layout import BLOCK_ROWS, NO_BLOCK, State
from vecstore.store import Transaction


@dataclass
class Bench:
    """A collection whose index is written by hand; nothing happens after a write."""

    db: Database
    points: Collection

    def load(self) -> tuple[catalog.Entry, State, Index | None]:
        with self.db.reading() as reader:
            entry = catalog.find(reader, "points")
            state = catalog.state(reader, entry.number)
            return entry, state, index.load(reader, entry, state)

    def index(self) -> Index:
        found = self.load()[2]
        assert found is not None
        return found

    def add(self, count: int, first: int = 0, seed: int = 0) -> None:
        self.points.add(vectors=clusters(count, seed), ids=range(first, first + count))

    def draft(self, **options) -> Draft:
        with self.db.reading() as reader:
            entry = catalog.find(reader, "points")
            return training.train(reader, entry, catalog.state(reader, entry.number), **options)

    def change(self, work: Callable[[Transaction, catalog.Entry, State], None]) -> None:
        def inside(txn: Transaction) -> None:
            entry = catalog.find(txn, "points")
            state = catalog.state(txn, entry.number)
            work(txn, entry, state)
            catalog.save_state(txn, entry.number, state)

        self.db.writing(inside)

    def write(self, draft: Draft) -> None:
        self.change(lambda txn, entry, state: ivf.write(txn, entry, state, "ivf", draft))

    def keep_up(self) -> None:
        def work(txn, entry, state) -> None:
            found = index.load(txn, entry, state)
            assert found is not None
            ivf.keep_up(txn, entry, state, found)

        self.change(work)

    def lists(self) -> list[list[int]]:
        """The rows that each list names."""
        found = self.index()
        with self.db.reading() as reader:
            number = catalog.find(reader, "points").number
            lists = range(found.model.lists)
            return [index.read_list(reader, number, found.model, n).rows.tolist() for n in lists]

    def living(self) -> np.ndarray:
        """A bool for every row."""
        with self.db.reading() as reader:
            entry = catalog.find(reader, "points")
            words = rows.live(reader, entry.number, catalog.state(reader, entry.number))
        return np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)

    def check(self) -> None:
        """Assert that every living row is in its one list or in the tail, and can be found."""
        assert self.db.check() == []
        found, living = self.index(), self.living()
        named = np.array([row for names in self.lists() for row in names], int)
        assert len(set(named.tolist())) == len(named)
        tail = np.repeat(~found.listed, BLOCK_ROWS) & living
        assert not tail[named].any()
        inside = named[living[named]]
        assert sorted(inside.tolist()) == np.flatnonzero(living & ~tail).tolist()
        # A search that reaches every list finds everything.
        for query in clusters(3, 77):
            near = self.points.search(query, 20, recall=0.99, include=())
            true = self.points.search(query, 20, recall="exact", include=())
            assert None not in self.points.get(near.ids)
            assert near.scores[0] == true.scores[0]
            assert len({*near.ids} & {*true.ids}) >= 18


@pytest.fixture
def bench(memory, monkeypatch) -> Bench:
    monkeypatch.setattr(maintenance, "due", lambda *_: None)
    bench = Bench(memory, memory.collection("points", dim=DIM, metric="l2", index="ivf"))
    bench.add(600)
    return bench


def test_a_draft_becomes_an_index_of_all_full_blocks(bench: Bench) -> None:
    bench.write(bench.draft())

    found = bench.index()
    assert found.trained == 600
    assert found.listed.tolist() == [True] * 9 + [False]
    assert sum(map(len, bench.lists())) == 9 * BLOCK_ROWS
    bench.check()


@pytest.mark.parametrize("count", [2, 8, 63, 64, 65, 200])
def test_few_rows_are_enough_for_a_draft(memory, count: int) -> None:
    bench = Bench(memory, memory.collection("points", dim=DIM, index="flat"))
    bench.add(count)
    bench.write(bench.draft())

    assert bench.index().model.lists == max(1, min(round(3.2 * count**0.5), count // 8))
    assert sum(map(len, bench.lists())) == count // BLOCK_ROWS * BLOCK_ROWS
    assert memory.check() == []
    bench.keep_up()
    assert memory.check() == []


def test_rows_that_died_after_the_draft_are_in_no_list(bench: Bench) -> None:
    draft = bench.draft()
    bench.points.delete([*range(10), *range(64, 128), *range(200, 220)])
    bench.write(draft)

    living = bench.living()
    assert all(living[row] for names in bench.lists() for row in names)
    bench.check()


def test_rows_that_moved_after_the_draft_are_in_the_tail(bench: Bench) -> None:
    draft = bench.draft()
    # More than half of a block dies: what is left of it is moved.
    bench.points.delete(range(40))
    bench.points.update([300, 301], vector=clusters(2, 5))
    bench.write(draft)

    assert bench.index().listed[1:4].all()
    assert not bench.index().listed[0]
    bench.check()


def test_rows_that_came_after_the_draft_are_in_the_tail(bench: Bench) -> None:
    draft = bench.draft()
    bench.add(150, 1000, seed=3)
    bench.write(draft)

    assert bench.index().listed.tolist() == [True] * 9 + [False] * 3
    bench.check()


def test_a_block_whose_number_was_used_again_after_the_draft_is_in_the_tail(bench: Bench) -> None:
    draft = bench.draft()
    bench.points.delete(range(128))
    bench.add(200, 1000, seed=4)
    _, state, _ = bench.load()
    assert state.blocks < 13
    bench.write(draft)

    assert not bench.index().listed[:2].any()
    bench.check()


def test_a_draft_outlives_the_deletion_of_everything(bench: Bench) -> None:
    draft = bench.draft()
    bench.points.delete(where={})
    bench.write(draft)
    assert not bench.index().listed.any()
    assert bench.db.check() == []
    bench.add(300)
    bench.keep_up()

    bench.check()


def test_blocks_that_were_given_back_after_the_draft_are_left_out(bench: Bench) -> None:
    draft = bench.draft()
    bench.points.delete(range(100, 600))
    bench.db.compact()
    bench.write(draft)

    assert len(bench.index().listed) <= 3
    assert bench.db.check() == []


def test_of_two_drafts_the_last_one_counts(bench: Bench) -> None:
    one, other = bench.draft(), bench.draft(lists=5)
    bench.write(one)
    bench.add(100, 700, seed=2)
    bench.points.delete(range(30))
    bench.keep_up()
    before = bench.index().edition
    bench.write(other)

    assert bench.index().model.lists == 5
    assert bench.index().edition != before
    bench.check()


def test_keeping_up_moves_the_tail_into_lists(bench: Bench) -> None:
    bench.write(bench.draft())
    bench.add(300, 1000, seed=1)
    before = bench.index()
    bench.keep_up()

    _, state, found = bench.load()
    assert found.listed.sum() == 900 // BLOCK_ROWS
    assert found.arrived == before.arrived + (900 // BLOCK_ROWS - 9) * BLOCK_ROWS
    assert state.backlog == 0
    bench.check()


def test_keeping_up_with_nothing_changes_nothing(bench: Bench) -> None:
    bench.write(bench.draft())
    before, lists = bench.index(), bench.lists()
    bench.keep_up()

    assert bench.index().edition == before.edition
    assert bench.lists() == lists


def test_the_number_of_a_dead_block_is_not_used_while_a_list_names_its_rows(bench: Bench) -> None:
    bench.write(bench.draft())
    bench.points.delete(range(64, 192))
    bench.add(300, 1000, seed=1)
    living = bench.living()
    assert not living[64:192].any()
    assert bench.index().listed[1:3].all()
    bench.check()

    bench.keep_up()
    assert not bench.index().listed[1:3].any()
    bench.add(200, 2000, seed=2)
    assert bench.living()[64:192].any()
    bench.check()


def test_trimming_keeps_the_numbers_that_lists_name(bench: Bench) -> None:
    bench.write(bench.draft())
    bench.points.delete(range(64, 600))
    bench.db.compact()
    assert len(bench.index().listed) == 9
    bench.check()

    bench.keep_up()
    bench.db.compact()
    assert len(bench.index().listed) <= 2
    bench.add(700, 1000, seed=6)
    bench.keep_up()
    bench.check()


def test_what_a_shrunk_column_said_is_forgotten(bench: Bench) -> None:
    """Rows beyond the end come again, in other blocks of other records."""
    bench.write(bench.draft())
    for seed in range(3):
        bench.points.delete(where={})
        bench.keep_up()
        bench.db.compact()
        assert bench.load()[1].blocks <= 1
        bench.add(400 + 70 * seed, 10_000 * seed, seed=seed)
        bench.check()
        bench.keep_up()
        bench.check()


def test_lists_that_lose_their_rows_are_closed(bench: Bench) -> None:
    bench.write(bench.draft())
    model, before = bench.index().model, bench.lists()
    doomed = {row for names in before[:10] for row in names}
    with bench.db.reading() as reader:
        entry, state, _ = bench.load()
        orders = rows.gather(
            reader, entry.number, state, entry.form, np.array(sorted(doomed), np.intp)
        )[0]
    bench.points.delete(orders.tolist())
    bench.keep_up()

    found = bench.index()
    assert found.model.closed[[n for n in range(10) if before[n]]].all()
    assert found.model.lists == model.lists
    assert not any(bench.lists()[n] for n in np.flatnonzero(found.model.closed).tolist())
    bench.check()


def test_a_list_that_grew_is_split_until_it_is_small_enough(bench: Bench) -> None:
    bench.write(bench.draft())
    lists = bench.index().model.lists
    # All of these are nearest to one list.
    far = (clusters(3000, 9) + 100).astype(np.float32)
    bench.points.add(vectors=far, ids=range(10_000, 13_000))
    bench.keep_up()

    assert max(map(len, bench.lists())) <= ivf.LEAST_LARGE
    assert bench.index().model.lists > lists
    bench.check()


def test_numbers_of_closed_lists_are_used_for_the_halves_of_others(bench: Bench) -> None:
    bench.write(bench.draft())
    lists = bench.index().model.lists
    bench.points.delete(range(500))
    bench.keep_up()
    shut = int(bench.index().model.closed.sum())
    assert shut > 0
    far = (clusters(1500, 9) + 50).astype(np.float32)
    bench.points.add(vectors=far, ids=range(10_000, 11_500))
    bench.keep_up()

    assert int(bench.index().model.closed.sum()) < shut
    assert bench.index().model.lists == lists
    bench.check()


def test_equal_vectors_do_not_make_a_list_grow_for_ever(bench: Bench) -> None:
    bench.write(bench.draft())
    for turn in range(4):
        same = np.repeat(clusters(1, 50), 400, axis=0)
        bench.points.add(vectors=same, ids=range(10_000 * (turn + 1), 10_000 * (turn + 1) + 400))
        bench.keep_up()

    assert max(map(len, bench.lists())) <= ivf.LEAST_LARGE + 400
    assert bench.db.check() == []
    hits = bench.points.search(clusters(1, 50)[0], 50)
    assert max(hits.scores) == min(hits.scores) == 0


def test_splits_of_one_step_are_bounded(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr(ivf, "SPLITS", 2)
    bench.write(bench.draft())
    lists = bench.index().model.lists
    bench.points.add(vectors=clusters(3000, 9) + 100, ids=range(10_000, 13_000))
    bench.keep_up()
    assert bench.index().model.lists <= lists + 2
    for _ in range(9):
        bench.keep_up()

    assert max(map(len, bench.lists())) <= ivf.LEAST_LARGE
    bench.check()


def test_a_transaction_rolled_back_leaves_tail_and_lists_alone(bench: Bench) -> None:
    bench.write(bench.draft())
    before, lists = bench.load()[1], bench.lists()
    try:
        with bench.db.transaction():
            bench.add(200, 1000, seed=1)
            bench.points.delete(range(100))
            bench.keep_up()
            assert bench.lists() != lists
            raise KeyError
    except KeyError:
        pass

    assert bench.load()[1] == before
    assert bench.lists() == lists
    bench.add(10, 1000, seed=1)
    bench.check()


def test_within_a_transaction_several_writes_share_a_block_of_the_tail(bench: Bench) -> None:
    bench.write(bench.draft())
    with bench.db.transaction():
        for number in range(30):
            bench.add(5, 1000 + 10 * number, seed=number)
            bench.points.delete([1000 + 10 * number])

    bench.check()


def test_codes_in_row_order_are_kept_of_every_block(bench: Bench) -> None:
    bench.points.reindex("hash")
    bench.add(100, 1000, seed=2)
    bench.points.delete(range(50, 200))

    assert bench.index().model.lists == 0
    assert not bench.index().listed.any()
    bench.check()


def test_a_dropped_collection_leaves_nothing_for_the_next(bench: Bench) -> None:
    bench.write(bench.draft())
    bench.db.drop("points")
    with bench.db.reading() as reader:
        assert [reader.entries(name) for name in ("lists", "index", "tiers")] == [0, 0, 0]
    again = bench.db.collection("points", dim=DIM, metric="l2")
    again.add(vectors=clusters(70), ids=range(70))

    assert bench.load()[2] is None
    assert len(again.search(clusters(1)[0])) == 10


def test_a_snapshot_keeps_its_lists_while_others_are_written(bench: Bench) -> None:
    bench.write(bench.draft())
    queries = clusters(5, 31)
    with bench.db.snapshot() as view:
        old = view.collection("points")
        before = [hits.ids for hits in old.search_many(queries, include=())]
        bench.points.delete(range(300))
        bench.add(300, 1000, seed=8)
        bench.keep_up()
        bench.write(bench.draft())
        bench.points.delete(where={})
        assert [hits.ids for hits in old.search_many(queries, include=())] == before
    assert len(bench.points.search(queries[0])) == 0


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_lists_hold_the_codes_of_what_is_stored(memory, monkeypatch, metric, precision) -> None:
    monkeypatch.setattr(maintenance, "due", lambda *_: None)
    points = memory.collection("points", dim=DIM, metric=metric, precision=precision)
    bench = Bench(memory, points)
    bench.add(500)
    bench.write(bench.draft())
    bench.add(100, 600, seed=2)
    bench.keep_up()

    bench.check()


def test_how_many_lists_suit_how_many_rows() -> None:
    assert [ivf.lists_for(count) for count in (0, 1, 7, 8, 256, 10_000)] == [1, 1, 1, 1, 32, 480]
    assert ivf.lists_for(10**9) == 65_536


def test_the_open_block_is_never_listed(bench: Bench) -> None:
    bench.write(bench.draft())
    for number in range(8):
        bench.add(17, 1000 + 100 * number, seed=number)
        bench.keep_up()
        _, state, found = bench.load()
        assert state.open_block == NO_BLOCK or not found.listed[state.open_block]
    assert bench.points.count() == 600 + 8 * 17
    bench.check()


def test_the_column_names_the_list_of_every_row(bench: Bench) -> None:
    bench.write(bench.draft())
    bench.points.delete(range(0, 600, 7))
    bench.keep_up()
    with bench.db.reading() as reader:
        entry, _, found = bench.load()
        column = index.read_lists_of_rows(reader, entry.number, found)

    for number, names in enumerate(bench.lists()):
        assert sorted(np.flatnonzero(column == number).tolist()) == sorted(names)
    assert (column[~bench.living()] == NO_LIST).all()


def test_lists_are_of_the_file_and_not_of_the_process(tmp_path) -> None:
    path = tmp_path / "lists.vecstore"
    with vecstore.open(path) as db:
        bench = Bench(db, db.collection("points", dim=DIM, metric="l2", index="ivf"))
        bench.add(400)
        before = bench.lists()
    with vecstore.open(path) as db:
        bench = Bench(db, db.collection("points"))
        assert bench.lists() == before
        bench.check()
