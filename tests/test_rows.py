"""Rows against a dict: what was added and not killed is there, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore import CollectionSpec, CorruptionError, layout, rows
from vecstore.layout import BLOCK_ROWS, NO_BLOCK, PART_ROWS, State
from vecstore.rows import RowWriter
from vecstore.spec import PRECISIONS
from vecstore.store import Store
from vecstore.vectors import pack, store_form, widen

DIM = 3
NUMBER = 1
FORMS = {
    name: layout.form(CollectionSpec(name="c", dim=DIM, precision=name)) for name in PRECISIONS
}
BITS = CollectionSpec(name="c", dim=72, metric="hamming")
FORMS["bits"] = layout.form(BITS)
FORM = FORMS["float32"]


@pytest.fixture
def store():
    store = Store(":memory:")
    yield store
    store.close()


class Model:
    """A store's rows beside a plain dict of them: row -> (order, norm, vector)."""

    def __init__(self, store, seed=0, precision="float32"):
        self.precision, self.form = precision, FORMS[precision]
        self.store, self.state, self.rows = store, State(), {}
        self.rng, self.order = np.random.default_rng(seed), 0

    def write(self, work):
        def run(txn):
            writer = RowWriter(txn, NUMBER, self.state, self.form)
            work(writer)
            writer.finish()

        self.store.write(run)

    def add(self, writer, count):
        if self.precision == "bits":
            packed = pack(self.rng.integers(0, 256, (count, 9)), BITS)
            vectors = packed.numbers
        else:
            given = self.rng.normal(size=(count, DIM)).astype(np.float32)
            packed = store_form(given, "l2", self.precision)
            vectors = widen(packed)
        norms = packed.norms
        orders = np.arange(self.order, self.order + count, dtype=np.uint64)
        self.order += count
        for at, row in enumerate(writer.add(packed, orders).tolist()):
            assert row not in self.rows
            self.rows[row] = (int(orders[at]), norms[at], vectors[at])

    def seen(self, packed):
        return packed.numbers if self.precision == "bits" else widen(packed)

    def kill(self, writer, doomed):
        writer.kill(np.array(doomed, np.intp))
        for row in doomed:
            del self.rows[row]

    def verify(self, reader):
        words = rows.live(reader, NUMBER, self.state)
        alive = rows.members(words)
        assert alive.tolist() == sorted(self.rows)
        assert rows.count(words) == len(self.rows)
        for sequence in (alive, self.rng.permutation(alive)):
            found = rows.gather_packed(reader, NUMBER, self.state, self.form, sequence)
            orders, norms = found.orders, found.packed.norms
            vectors = self.seen(found.packed)
            for at, row in enumerate(sequence.tolist()):
                order, norm, vector = self.rows[row]
                assert (int(orders[at]), norms[at]) == (order, norm)
                assert (vectors[at] == vector).all()
        blocks = np.flatnonzero(words)
        seen = set()
        for run in rows.runs(reader, NUMBER, self.state, self.form, blocks):
            vectors = self.seen(run.packed)
            assert vectors.shape == (*run.orders.shape, self.form.width)
            for where, row in np.ndenumerate(run.rows()):
                if row in self.rows:
                    order, norm, vector = self.rows[int(row)]
                    assert (int(run.orders[where]), run.norms[where]) == (order, norm)
                    assert (vectors[where] == vector).all()
                    seen.add(int(row))
        assert seen == self.rows.keys()

    def verify_everywhere(self):
        with self.store.snapshot() as snapshot:
            self.verify(snapshot)
        self.store.write(self.verify)


STEPS = st.lists(
    st.tuples(st.integers(0, 150), st.floats(0, 1), st.booleans()), min_size=1, max_size=8
)


@given(STEPS, st.integers(0, 2**32), st.sampled_from([*FORMS]))
def test_rows_are_what_was_added_and_not_killed(steps, seed, precision):
    store = Store(":memory:")
    model = Model(store, seed, precision)
    for count, share, kill_first in steps:

        def work(writer, count=count, share=share, kill_first=kill_first):
            doomed = [row for row in sorted(model.rows) if model.rng.random() < share]
            for step in (0, 1):
                if kill_first == (step == 0):
                    model.kill(writer, doomed)
                else:
                    model.add(writer, count)

        model.write(work)
        model.verify_everywhere()
    store.close()


def test_a_snapshot_keeps_its_rows_while_they_are_replaced(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 200))
    old, snapshot = Model(store), store.snapshot()
    old.rows, old.state = (
        dict(model.rows),
        State(**{name: getattr(model.state, name) for name in State.__dataclass_fields__}),
    )
    for _ in range(10):
        model.write(lambda writer: model.kill(writer, sorted(model.rows)[::2]))
        model.write(lambda writer: model.add(writer, 90))
        model.verify_everywhere()
        old.verify(snapshot)
    snapshot.close()


def test_the_number_of_a_dead_block_is_used_again(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 3 * BLOCK_ROWS))
    model.write(lambda writer: model.kill(writer, list(range(BLOCK_ROWS, 2 * BLOCK_ROWS))))
    model.write(lambda writer: model.add(writer, BLOCK_ROWS))

    assert model.state.blocks == 3
    assert sorted(model.rows) == list(range(3 * BLOCK_ROWS))


def test_a_block_that_dies_is_not_used_again_in_the_same_transaction(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, BLOCK_ROWS))

    def work(writer):
        model.kill(writer, list(range(BLOCK_ROWS)))
        model.add(writer, BLOCK_ROWS)

    model.write(work)

    assert sorted(model.rows) == list(range(BLOCK_ROWS, 2 * BLOCK_ROWS))
    model.verify_everywhere()


def test_the_open_block_dies_and_a_new_one_is_opened(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 5))
    model.write(lambda writer: model.kill(writer, list(range(5))))

    assert (model.state.open_block, model.state.open_rows) == (NO_BLOCK, 0)

    model.write(lambda writer: model.add(writer, 5))
    assert sorted(model.rows) == list(range(5))


def test_the_open_block_lives_on_if_it_dies_and_grows_in_one_transaction(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 5))

    def work(writer):
        model.kill(writer, list(range(5)))
        model.add(writer, 5)

    model.write(work)

    assert sorted(model.rows) == list(range(5, 10))
    model.verify_everywhere()


def test_rows_of_several_parts_of_the_bitmap(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, PART_ROWS + 100))
    model.write(lambda writer: model.kill(writer, list(range(PART_ROWS - 10, PART_ROWS + 10))))

    with store.snapshot() as snapshot:
        assert snapshot.entries("live") == 2
        assert rows.count(rows.live(snapshot, NUMBER, model.state)) == PART_ROWS + 80
    found = [row for row in model.rows if row > PART_ROWS - 80]
    with store.snapshot() as snapshot:
        orders, _, _ = rows.gather(snapshot, NUMBER, model.state, FORM, np.array(found))
    assert orders.tolist() == [model.rows[row][0] for row in found]


def test_trimming_gives_back_dead_blocks_at_the_end(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, PART_ROWS + 100))
    model.write(lambda writer: model.kill(writer, list(range(70, PART_ROWS + 100))))
    model.write(lambda writer: writer.trim())

    assert model.state.blocks == 2
    with store.snapshot() as snapshot:
        assert snapshot.entries("live") == 1
    model.verify_everywhere()


def test_blocks_written_together_are_one_run(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 20 * BLOCK_ROWS))

    with store.snapshot() as snapshot:
        found = list(rows.runs(snapshot, NUMBER, model.state, FORM, np.arange(20)))
    assert len(found) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_views_of_the_map_cannot_be_written_to(store, precision):
    model = Model(store, precision=precision)
    model.write(lambda writer: model.add(writer, BLOCK_ROWS))

    with store.snapshot() as snapshot:
        (run,) = rows.runs(snapshot, NUMBER, model.state, model.form, np.arange(1))
        with pytest.raises(ValueError, match="read-only"):
            run.packed.numbers[0, 0, 0] = 1
        del run


def test_vectors_of_float32_are_not_copied(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, BLOCK_ROWS))

    with store.snapshot() as snapshot:
        (run,) = rows.runs(snapshot, NUMBER, model.state, FORM, np.arange(1))
        assert run.vectors is run.packed.numbers
        del run


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_vectors_of_other_forms_are_widened(store, precision):
    model = Model(store, precision=precision)
    model.write(lambda writer: model.add(writer, BLOCK_ROWS))

    with store.snapshot() as snapshot:
        (run,) = rows.runs(snapshot, NUMBER, model.state, model.form, np.arange(1))
        vectors = run.vectors
        del run
    assert vectors.dtype == np.float32
    assert (vectors[0] == [model.rows[row][2] for row in range(BLOCK_ROWS)]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gathered_rows_outlive_their_snapshot(store, precision):
    model = Model(store, precision=precision)
    model.write(lambda writer: model.add(writer, BLOCK_ROWS))
    with store.snapshot() as snapshot:
        orders, norms, vectors = rows.gather(
            snapshot, NUMBER, model.state, model.form, np.array([3, 1], np.intp)
        )

    for array in (orders, norms, vectors):
        while array.base is not None:
            array = array.base
        assert array.flags.owndata


def test_no_rows_are_gathered_from_nothing(store):
    with store.snapshot() as snapshot:
        orders, norms, vectors = rows.gather(snapshot, NUMBER, State(), FORM, np.empty(0, np.intp))

    assert (len(orders), len(norms), vectors.shape) == (0, 0, (0, DIM))


def test_an_empty_collection_has_no_living_rows(store):
    with store.snapshot() as snapshot:
        assert len(rows.live(snapshot, NUMBER, State())) == 0
    store.write(lambda txn: rows.live(txn, NUMBER, State()))


@given(st.lists(st.integers(0, 639)))
def test_marked_rows_are_members(chosen):
    words = np.zeros(10, np.uint64)
    rows.mark(words, np.array(chosen, np.intp))

    assert rows.members(words).tolist() == sorted(set(chosen))
    assert rows.count(words) == len(set(chosen))


# Damage


def damage(store, database, key, change):
    def work(txn):
        value = bytearray(txn.get(database, key))
        change(value)
        txn.put(database, key, value)

    store.write(work)


READERS = {
    "snapshot": lambda store, work: work_in_snapshot(store, work),
    "transaction": lambda store, work: store.write(work),
}


def work_in_snapshot(store, work):
    with store.snapshot() as snapshot:
        return work(snapshot)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("at", [0, 4, 5, 6, 8, 12, 16, 20, 32], ids=lambda at: f"byte {at}")
def test_a_damaged_header_is_found_before_the_block_is_read(store, reader, at):
    model = Model(store)
    model.write(lambda writer: model.add(writer, BLOCK_ROWS))

    def change(value):
        value[at] ^= 1

    damage(store, "tiers", layout.block_key(NUMBER, 0), change)

    def work(reader):
        list(rows.runs(reader, NUMBER, model.state, FORM, np.arange(1)))

    with pytest.raises(CorruptionError, match="block 0"):
        READERS[reader](store, work)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_block_is_found(store, reader):
    model = Model(store)
    model.write(lambda writer: model.add(writer, BLOCK_ROWS))
    store.write(lambda txn: txn.delete("tiers", layout.block_key(NUMBER, 0)))

    def work(reader):
        rows.gather(reader, NUMBER, model.state, FORM, np.arange(2))

    with pytest.raises(CorruptionError, match=r"block 0.* is missing"):
        READERS[reader](store, work)


@pytest.mark.parametrize("reader", READERS)
def test_a_block_with_fewer_rows_than_the_counters_say_is_found(store, reader):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 9))
    model.state.open_rows = 10

    def work(reader):
        rows.gather(reader, NUMBER, model.state, FORM, np.array([9], np.intp))

    with pytest.raises(CorruptionError, match=r"block 0.*9 rows"):
        READERS[reader](store, work)


def test_a_row_beyond_the_open_block_is_found(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 9))

    def work(snapshot):
        rows.gather(snapshot, NUMBER, model.state, FORM, np.array([9], np.intp))

    with pytest.raises(CorruptionError, match="beyond"):
        work_in_snapshot(store, work)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_bitmap_is_found(store, reader):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 9))
    store.write(lambda txn: txn.delete("live", layout.part_key(NUMBER, 0)))

    with pytest.raises(CorruptionError, match=r"part 0.* is missing"):
        READERS[reader](store, lambda reader: rows.live(reader, NUMBER, model.state))


def test_a_living_row_beyond_the_last_block_is_found(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 9))
    bits = bytearray(layout.PART_BYTES)
    bits[8] = 1
    value = layout.pack_part(NUMBER, 0, bits, store.page)
    store.write(lambda txn: txn.put("live", layout.part_key(NUMBER, 0), value))

    with pytest.raises(CorruptionError, match="beyond its last block"):
        work_in_snapshot(store, lambda snapshot: rows.live(snapshot, NUMBER, model.state))


def test_appending_to_a_damaged_open_block_is_refused(store):
    model = Model(store)
    model.write(lambda writer: model.add(writer, 9))
    model.state.open_rows = 8

    with pytest.raises(CorruptionError, match="does not hold 8 rows"):
        model.write(lambda writer: model.add(writer, 1))
