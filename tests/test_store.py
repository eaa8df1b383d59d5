import ctypes
import errno
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore import (
    ClosedError,
    CorruptionError,
    FormatError,
    LockedError,
    ReadOnlyError,
    StoreError,
    StoreFullError,
    UsageError,
    VecstoreError,
    layout,
)
from vecstore.store import Gate, Store, translated
from vecstore.store.faults import MAX_READERS, MapFullError

PREFIX = b"\0\0\0\1\0"
LONG = 20.0


@pytest.fixture
def store(path):
    store = Store(path)
    yield store
    store.close()


def key(number):
    return PREFIX + number.to_bytes(4, "big")


def block(number, fill, size=2000):
    """A bulk value; LMDB keeps it on pages of its own."""
    header = layout.Header(layout.FULL_BLOCK, layout.FLOAT32, 1, 1, number, 0, 0, 1)
    return layout.pack_bulk(header, bytes([fill]) * size, 4096)


def put(store, **values):
    """Write blocks: block number -> the byte that fills it."""

    def work(txn):
        for name, fill in values.items():
            txn.put("tiers", key(int(name[1:])), block(int(name[1:]), fill))

    store.write(work)


def addresses(snapshot, *numbers, count=100):
    wanted = np.array(numbers, np.intp)
    return snapshot.addresses("tiers", PREFIX, wanted, count, lambda value, number: None)


def fills(snapshot, *numbers):
    """The bytes that fill some blocks, read at their addresses."""
    table = addresses(snapshot, *numbers)
    return [ctypes.string_at(int(table[number]) + 48, 1)[0] for number in numbers]


def in_thread(work):
    """Start a thread; join() gives its result or raises its error."""

    class Thread(threading.Thread):
        def run(self):
            self.result = self.error = None
            try:
                self.result = work()
            except BaseException as error:
                self.error = error

        def join(self, timeout=LONG):
            super().join(timeout)
            assert not self.is_alive()
            if self.error is not None:
                raise self.error
            return self.result

    thread = Thread(daemon=True)
    thread.start()
    return thread


def wait_until(condition):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# The gate


def test_many_hold_the_gate_together():
    gate = Gate()
    tickets = [gate.enter(0) for _ in range(3)]

    assert len(set(tickets)) == 3
    assert gate.describe().startswith("3 open snapshots")


def test_nobody_has_the_gate_alone_while_somebody_holds_it():
    gate = Gate()
    ticket = gate.enter(0)

    waited = r"cannot move: waited 0\.01 s for 1 open snapshots"
    with pytest.raises(LockedError, match=waited), gate.alone(0.01, "move"):
        pass
    gate.leave(ticket)
    with gate.alone(0, "move"):
        pass


def test_the_message_names_the_threads_that_hold_the_gate():
    gate = Gate()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        ticket = gate.enter(0)
        entered.set()
        leave.wait(LONG)
        gate.leave(ticket)

    thread = threading.Thread(target=hold, name="the-long-reader")
    thread.start()
    entered.wait(LONG)
    with pytest.raises(LockedError, match="the-long-reader"), gate.alone(0, "move"):
        pass
    leave.set()
    thread.join()


def test_a_hold_can_be_joined_even_while_somebody_waits_and_outlives_it():
    gate = Gate()
    first, moved = gate.enter(0), []

    def move():
        with gate.alone(LONG, "move"):
            moved.append(True)

    mover = in_thread(move)
    wait_until(lambda: gate._waiting)
    second = gate.join(first)
    gate.leave(first)

    assert not moved
    gate.leave(second)
    mover.join()
    assert moved


def test_a_hold_that_was_given_back_cannot_be_joined():
    gate = Gate()
    ticket = gate.enter(0)
    gate.leave(ticket)

    with pytest.raises(ClosedError, match="has ended"):
        gate.join(ticket)
    with gate.alone(0, "move"):
        pass


def test_a_hold_given_back_between_looking_and_waiting_is_noticed(monkeypatch):
    gate = Gate()
    ticket, wait = gate.enter(0), gate._condition.wait

    def late(timeout):
        # As the garbage collector may do, which runs anywhere.
        gate.leave(ticket)
        return wait(timeout)

    monkeypatch.setattr(gate._condition, "wait", late)
    with gate.alone(LONG, "move"):
        pass


def test_nobody_enters_while_somebody_has_the_gate_alone():
    gate = Gate()
    with gate.alone(0, "move"):
        thread = in_thread(lambda: gate.enter(0.01))
        with pytest.raises(LockedError, match="being moved or closed"):
            thread.join()


def test_whoever_waits_to_have_the_gate_alone_is_not_overtaken():
    gate = Gate()
    first, order = gate.enter(0), []

    def move():
        with gate.alone(LONG, "move"):
            order.append("alone")

    mover = in_thread(move)
    wait_until(lambda: gate._waiting)

    def read():
        ticket = gate.enter(LONG)
        order.append("shared")
        gate.leave(ticket)

    reader = in_thread(read)
    gate.leave(first)
    mover.join()
    reader.join()

    assert order == ["alone", "shared"]


def test_a_thread_that_holds_the_gate_enters_again_while_another_waits_to_have_it_alone():
    gate = Gate()
    first = gate.enter(0)

    def move():
        with gate.alone(LONG, "move"):
            return True

    mover = in_thread(move)
    wait_until(lambda: gate._waiting)
    gate.leave(gate.enter(0))
    gate.leave(first)

    assert mover.join()


def test_the_gate_opens_for_others_when_waiting_for_it_was_in_vain():
    gate = Gate()
    ticket = gate.enter(0)
    with pytest.raises(LockedError), gate.alone(0.01, "move"):
        pass

    in_thread(lambda: gate.leave(gate.enter(0))).join()
    gate.leave(ticket)


def test_the_gate_opens_again_after_an_error():
    gate = Gate()
    with pytest.raises(KeyError), gate.alone(0, "move"):
        raise KeyError

    gate.leave(gate.enter(0))


def test_the_garbage_collector_may_end_a_snapshot_while_the_gate_is_being_taken(store):
    class Cycle:
        def __init__(self):
            self.me, self.snapshot = self, store.snapshot()

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            Cycle()
            store.snapshot().close()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    with store.gate.alone(0, "look"):
        pass


def test_threads_that_read_and_move_the_map_never_meet(store):
    put(store, b0=1)
    stop, moves = threading.Event(), 0

    def read():
        seen = 0
        while not stop.is_set():
            with store.snapshot() as snapshot:
                assert fills(snapshot, 0) == [1]
                seen += 1
        return seen

    readers = [in_thread(read) for _ in range(3)]
    for _ in range(30):
        with store.gate.alone(LONG, "move"):
            store._remap(store.map_size + (1 << 20), 0)
            moves += 1
    stop.set()

    assert all(reader.join() > 0 for reader in readers)
    assert store.epoch == moves


# The lock file


def test_nothing_but_lmdb_ever_opens_the_lock_file(run_python, path):
    opened = run_python(
        """
        import os, sys
        opened = []
        sys.addaudithook(lambda name, args: name == "open" and opened.append(args[0]))
        import vecstore
        path = sys.argv[1]
        for options in ({}, {"durable": False}, {"read_only": True}):
            with vecstore.open(path, **options) as db:
                if not db.read_only:
                    points = db.collection("points", dim=2)
                    points.upsert(vectors=[[1, 0], [0, 1]], ids=["a", "b"])
                    db.sync()
                    db.compact()
                    try:
                        vecstore.open(path)
                    except vecstore.LockedError:
                        pass
                    db.backup(f"{path}.{len(opened)}")
                assert db.check() == []
        with vecstore.open(":memory:") as db:
            db.collection("points", dim=2).add(vectors=[1, 0])
        print(*(os.fsdecode(name) for name in opened if isinstance(name, (str, bytes))), sep="\\n")
        """,
        path,
    )

    assert str(path) in opened
    assert [name for name in opened.splitlines() if name.endswith("-lock")] == []


# Address tables


def test_what_is_kept_of_one_kind_does_not_push_out_another(store):
    tables = store.tables
    for number in range(5):
        made = tables.keep("a", bytes([number]), 3, lambda number=number: [number])
        assert made == [number]
        assert tables.keep("a", bytes([number]), 3, list) is made
    tables.keep("b", b"\0", 1, dict)

    assert tables.kept("a") == [b"\2", b"\3", b"\4"]
    assert tables.kept("b") == [b"\0"]
    assert tables.kept("c") == []
    # One that was pushed out is made anew.
    assert tables.keep("a", b"\0", 3, lambda: "anew") == "anew"


def test_a_table_is_filled_by_need(store):
    put(store, b0=1, b1=2, b2=3)
    with store.snapshot() as snapshot:
        assert np.flatnonzero(addresses(snapshot, 1)).tolist() == [1]
        assert np.flatnonzero(addresses(snapshot, 2)).tolist() == [1, 2]


def test_a_table_that_was_returned_does_not_change(store):
    put(store, b0=1, b1=2)
    with store.snapshot() as snapshot:
        first = addresses(snapshot, 0)
        before = first.copy()
        addresses(snapshot, 1)
        assert (first == before).all()


def test_snapshots_of_one_version_share_their_table(store):
    put(store, b0=1)
    with store.snapshot() as snapshot:
        table = addresses(snapshot, 0)
    with store.snapshot() as snapshot:
        assert addresses(snapshot, 0) is table


def test_a_newer_table_is_the_older_one_without_what_was_replaced(store):
    put(store, b0=1, b1=2, b2=3)
    with store.snapshot() as snapshot:
        old = addresses(snapshot, 0, 1, 2)
    put(store, b1=9)
    with store.snapshot() as snapshot:
        new = addresses(snapshot)
        assert new.nonzero()[0].tolist() == [0, 2]
        assert (new[[0, 2]] == old[[0, 2]]).all()
        assert fills(snapshot, 0, 1, 2) == [1, 9, 3]


@pytest.mark.parametrize("deletion", ["delete", "delete_prefix"])
def test_a_deleted_value_leaves_the_table(store, deletion):
    put(store, b0=1, b1=2)
    with store.snapshot() as snapshot:
        addresses(snapshot, 0, 1)
    if deletion == "delete":
        store.write(lambda txn: txn.delete("tiers", key(1)))
    else:
        store.write(lambda txn: txn.delete_prefix("tiers", key(1)))

    with store.snapshot() as snapshot:
        assert addresses(snapshot, 0).nonzero()[0].tolist() == [0]
        with pytest.raises(CorruptionError, match="block 1 is missing"):
            addresses(snapshot, 1)


def test_an_older_snapshot_does_not_see_a_newer_table(store):
    put(store, b0=1)
    old = store.snapshot()
    put(store, b0=2)
    with store.snapshot() as new:
        assert fills(new, 0) == [2]
        assert fills(old, 0) == [1]
        assert fills(new, 0) == [2]
    with store.snapshot() as again:
        assert fills(again, 0) == [2]
    old.close()


def test_a_newer_snapshot_does_not_see_what_an_older_one_fills_in_later(store):
    put(store, b0=1, b1=1)
    old = store.snapshot()
    put(store, b0=2)
    assert fills(old, 0, 1) == [1, 1]

    with store.snapshot() as new:
        assert fills(new, 0, 1) == [2, 1]
    old.close()


def test_a_transaction_that_writes_nothing_makes_no_version(store):
    put(store, b0=1)
    with store.snapshot() as snapshot:
        version, table = snapshot.version, addresses(snapshot, 0)
    store.write(lambda txn: txn.get("tiers", key(0)))
    store.write(lambda txn: txn.delete("tiers", key(7)))
    store.write(lambda txn: txn.put_many("records", []))
    with store.snapshot() as snapshot:
        assert snapshot.version == version
        assert addresses(snapshot, 0) is table
    put(store, b0=2)
    with store.snapshot() as snapshot:
        assert fills(snapshot, 0) == [2]


def test_a_transaction_that_fails_makes_no_version(store):
    put(store, b0=1)
    with store.snapshot() as snapshot:
        table = addresses(snapshot, 0)

    def fail(txn):
        txn.put("tiers", key(0), block(0, 9))
        raise KeyError

    with pytest.raises(KeyError):
        store.write(fail)
    with store.snapshot() as snapshot:
        assert addresses(snapshot, 0) is table
        assert fills(snapshot, 0) == [1]


def test_a_moved_map_makes_a_new_version(store):
    put(store, b0=1)
    with store.snapshot() as snapshot:
        version = snapshot.version
        addresses(snapshot, 0)
    with store.gate.alone(0, "move"):
        store._remap(store.map_size * 2, 0)
    with store.snapshot() as snapshot:
        assert snapshot.version > version
        assert fills(snapshot, 0) == [1]


def test_a_commit_of_another_process_makes_a_new_version(store, path, run_python):
    put(store, b0=1)
    with store.snapshot() as snapshot:
        assert fills(snapshot, 0) == [1]
    run_python(
        """
        import sys
        from vecstore.store import Store
        store = Store(sys.argv[1])
        value = lambda txn: bytearray(txn.get("tiers", bytes.fromhex(sys.argv[2])))
        def work(txn):
            changed = value(txn)
            changed[48] = 5
            txn.put("tiers", bytes.fromhex(sys.argv[2]), changed)
        store.write(work)
        store.close()
        """,
        path,
        key(0).hex(),
    )
    with store.snapshot() as snapshot:
        assert fills(snapshot, 0) == [5]
    put(store, b1=2)
    with store.snapshot() as snapshot:
        assert fills(snapshot, 0, 1) == [5, 2]


def test_what_is_cached_with_a_version_ends_with_it(store):
    put(store, b0=1)
    with store.snapshot() as snapshot:
        snapshot.cache["what"] = 1
    with store.snapshot() as snapshot:
        assert snapshot.cache == {"what": 1}
        put(store, b0=2)
        assert snapshot.cache == {"what": 1}
    with store.snapshot() as snapshot:
        assert snapshot.cache == {}


VERSIONS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 5), st.integers(1, 255), max_size=4),
        st.sampled_from(["commit", "abort", "nothing", "child", "child aborted", "move"]),
        st.booleans(),
    ),
    max_size=12,
)


@given(VERSIONS)
def test_every_snapshot_reads_its_own_version(versions):
    store = Store(":memory:")
    now, held = {}, []
    try:
        for changes, how, hold in versions:
            if hold:
                held.append((store.snapshot(), dict(now)))

            def write(txn, changes=changes):
                for number, fill in changes.items():
                    if fill % 5 == 0:
                        txn.delete("tiers", key(number))
                    else:
                        txn.put("tiers", key(number), block(number, fill, 100 * fill))

            def work(txn, how=how, write=write):
                if how == "nothing":
                    return
                if how.startswith("child"):
                    child = store.begin_child(txn)
                    write(child)
                    (child.commit if how == "child" else child.abort)()
                else:
                    write(txn)
                if how == "abort":
                    raise KeyError

            if how == "move":
                for snapshot, _ in held:
                    snapshot.close()
                held = []
                with store.gate.alone(0, "move"):
                    store._remap(store.map_size + (1 << 20), 0)
            elif how == "abort":
                with pytest.raises(KeyError):
                    store.write(work)
            else:
                store.write(work)
            if how in ("commit", "child"):
                for number, fill in changes.items():
                    now.pop(number, None)
                    if fill % 5:
                        now[number] = fill
            with store.snapshot() as snapshot:
                assert fills(snapshot, *now) == list(now.values())
            for snapshot, then in held:
                assert fills(snapshot, *then) == list(then.values())
    finally:
        for snapshot, _ in held:
            snapshot.close()
        store.close()


def test_a_small_value_never_enters_a_table(store):
    store.write(lambda txn: txn.put("tiers", key(0), b"x" * 100))

    with store.snapshot() as snapshot, pytest.raises(CorruptionError, match="100 bytes"):
        addresses(snapshot, 0)


def test_a_value_that_fails_its_check_never_enters_a_table(store):
    put(store, b0=1)

    def refuse(value, number):
        raise CorruptionError("no")

    with store.snapshot() as snapshot:
        with pytest.raises(CorruptionError, match="no"):
            snapshot.addresses("tiers", PREFIX, np.array([0]), 1, refuse)
        assert not addresses(snapshot).any()


def test_payloads_lie_at_multiples_of_64(store):
    put(store, b0=1, b1=2, b2=3)
    with store.snapshot() as snapshot:
        table = addresses(snapshot, 0, 1, 2)

        assert ((table[:3] + np.uint64(48)) % np.uint64(64) == 0).all()


# Transactions


def test_a_transaction_sees_its_own_writes(store):
    def work(txn):
        txn.put("records", b"a", b"1")
        assert txn.get("records", b"a") == b"1"
        assert list(txn.items("records", b"")) == [(b"a", b"1")]
        assert txn.entries("records") == 1
        assert txn.get_many("records", [b"a", b"b"]) == {b"a": b"1"}
        assert txn.get_each("records", [b"b", b"a"]) == [None, b"1"]

    store.write(work)


def test_others_see_a_transaction_when_it_is_committed(store):
    def work(txn):
        txn.put("records", b"a", b"1")
        with store.snapshot() as snapshot:
            assert snapshot.get("records", b"a") is None

    store.write(work)
    with store.snapshot() as snapshot:
        assert bytes(snapshot.get("records", b"a")) == b"1"


def test_a_child_that_fails_is_rolled_back_alone(store):
    def fail(txn):
        txn.put("records", b"b", b"2")
        raise KeyError

    def work(txn):
        txn.put("records", b"a", b"1")
        with pytest.raises(KeyError):
            store.write_child(txn, fail)
        store.write_child(txn, lambda child: child.put("records", b"c", b"3"))

    store.write(work)
    with store.snapshot() as snapshot:
        assert [key for key, _ in snapshot.items("records", b"")] == [b"a", b"c"]


def test_a_value_too_large_for_a_key_fails_alone(store):
    def work(txn):
        txn.put("records", b"a", b"1")
        with pytest.raises(StoreError, match="cannot write"):
            store.write_child(txn, lambda child: child.put("records", b"x" * 512, b""))

    store.write(work)
    with store.snapshot() as snapshot:
        assert snapshot.entries("records") == 1


def test_items_stop_at_the_end_of_their_prefix(store):
    names = [b"a", b"ab", b"abc", b"b", b"\xff\xff"]
    store.write(lambda txn: txn.put_many("records", [(name, b"") for name in names]))

    with store.snapshot() as snapshot:
        for prefix in (b"", b"a", b"ab", b"b", b"c", b"\xff"):
            found = [key for key, _ in snapshot.items("records", prefix)]
            assert found == [name for name in names if name.startswith(prefix)]
        assert [key for key, _ in snapshot.items("records", b"a", b"abb")] == [b"abc"]


def test_deleting_a_prefix_leaves_its_neighbours(store):
    names = [b"\0\0\0\1a", b"\0\0\0\2a", b"\0\0\0\2b", b"\0\0\0\3a"]
    store.write(lambda txn: txn.put_many("records", [(name, b"") for name in names]))

    assert store.write(lambda txn: txn.delete_prefix("records", b"\0\0\0\2")) == 2
    with store.snapshot() as snapshot:
        assert [key for key, _ in snapshot.items("records", b"")] == [names[0], names[3]]


@pytest.mark.parametrize("end", ["close", "commit", "abort"])
def test_a_reader_that_has_ended_says_so(store, end):
    if end == "close":
        reader = store.snapshot()
        reader.close()
        reader.close()
    else:
        with store.writer():
            reader = store.begin()
            getattr(reader, end)()
            reader.abort()

    assert reader.ended
    for work in (
        lambda: reader.get("records", b"a"),
        lambda: list(reader.items("records", b"")),
        lambda: reader.entries("records"),
    ):
        with pytest.raises(ClosedError, match="ended"):
            work()


def test_an_iteration_that_outlives_its_snapshot_says_so(store):
    store.write(lambda txn: txn.put_many("records", [(b"a", b""), (b"b", b"")]))
    snapshot = store.snapshot()
    items = snapshot.items("records", b"")
    next(items)
    snapshot.close()

    with pytest.raises(StoreError):
        next(items)


# The right to write


def test_a_writer_waits_for_another_thread(store):
    with store.writer():
        thread = in_thread(lambda: put(store, b0=1))
        assert thread.is_alive()
    thread.join()


def test_waiting_for_another_thread_has_an_end(store):
    with store.writer():
        thread = in_thread(lambda: store.write(lambda txn: None, 0.01))
        with pytest.raises(LockedError, match=r"thread MainThread .* more than 0\.01 s"):
            thread.join()


def test_a_writer_that_waited_in_vain_leaves_no_trace(store):
    with store.writer(), pytest.raises(LockedError):
        in_thread(lambda: store.write(lambda txn: None, 0)).join()
    put(store, b0=1)
    in_thread(lambda: put(store, b0=2)).join()


WRITER = """
    import sys
    from vecstore.store import Store
    store = Store(sys.argv[1])
    with store.writer():
        print("writing", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def other_writer(path):
    """Another process that holds the right to write until it is told to go."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.communicate("\n", timeout=LONG)


def test_waiting_for_another_process_has_an_end(store, other_writer):
    with pytest.raises(LockedError, match=r"another process .* more than 0\.01 s"):
        store.write(lambda txn: None, 0.01)
    other_writer.stdin.write("\n")
    other_writer.stdin.flush()
    put(store, b0=1)


def test_a_writer_that_was_killed_leaves_the_right_to_write(store, other_writer):
    other_writer.kill()
    put(store, b0=1)


def test_reading_does_not_wait_for_another_process_that_writes(store, other_writer):
    with store.snapshot(0) as snapshot:
        assert snapshot.entries("records") == 0


def test_opening_to_read_does_not_wait_for_another_process_that_writes(path, other_writer):
    store = Store(path, read_only=True, timeout=0)
    with store.snapshot() as snapshot:
        assert snapshot.entries("records") == 0
    store.close()


def test_opening_to_write_waits_for_another_process_that_writes(path, other_writer):
    with pytest.raises(LockedError, match="another process has been writing"):
        Store(path, timeout=0.01)


@pytest.mark.parametrize("timeout", ["1", True, float("nan"), [1], 1j])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(store, timeout):
    for work in (
        lambda: store.write(lambda txn: None, timeout),
        lambda: store.snapshot(timeout),
        lambda: store.compact(timeout),
        lambda: store.close(timeout),
        lambda: Store(":memory:", timeout=timeout),
    ):
        with pytest.raises(UsageError, match="timeout="):
            work()


@pytest.mark.parametrize("timeout", [-1, 0, float("inf"), 1e300, 10**30, np.float32(1)])
def test_any_number_of_seconds_is_a_timeout(store, timeout):
    store.write(lambda txn: txn.put("records", b"a", b""), timeout)
    store.snapshot(timeout).close()


# Errors


LMDB_ERRORS = sorted({lmdb.Error, *lmdb.Error.__subclasses__()}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", LMDB_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_lmdb_becomes_one_of_vecstore(kind):
    with pytest.raises(StoreError, match="cannot dance: why") as caught, translated("dance"):
        raise kind("why")

    assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lmdb.MapFullError, StoreFullError),
        (lmdb.TxnFullError, StoreFullError),
        (lmdb.ReadersFullError, LockedError),
        (lmdb.CorruptedError, CorruptionError),
        (lmdb.PageNotFoundError, CorruptionError),
        (lmdb.ReadonlyError, ReadOnlyError),
        (lmdb.InvalidError, FormatError),
        (lmdb.VersionMismatchError, FormatError),
    ],
)
def test_an_error_of_lmdb_that_callers_can_act_on_has_a_class_of_its_own(error, expected):
    with pytest.raises(expected), translated("dance"):
        raise error("why")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EFBIG, StoreFullError),
        (errno.EROFS, ReadOnlyError),
        (errno.EACCES, StoreError),
        (errno.EIO, StoreError),
    ],
)
def test_errors_of_the_system_become_those_of_vecstore(code, expected):
    with pytest.raises(expected, match="cannot dance"), translated("dance"):
        raise OSError(code, os.strerror(code))


def test_running_out_of_memory_becomes_an_error_of_vecstore():
    with pytest.raises(StoreError), translated("dance"):
        raise MemoryError


def test_other_errors_pass_through():
    with pytest.raises(ZeroDivisionError), translated("dance"):
        raise ZeroDivisionError


# Growth


def test_the_map_grows_by_itself(path):
    store = Store(path, start_map=1 << 20)
    for number in range(40):
        store.write(lambda txn, number=number: txn.put("records", b"%d" % number, bytes(100_000)))

    assert store.map_size > 4 << 20
    with store.snapshot() as snapshot:
        assert snapshot.entries("records") == 40
    store.close()


def test_a_transaction_larger_than_the_map_is_run_again_in_a_larger_one(path):
    store, runs = Store(path, start_map=1 << 20), []

    def work(txn):
        runs.append(1)
        for number in range(30):
            txn.put("records", b"%d" % number, bytes(300_000))

    store.write(work)

    assert len(runs) > 1
    with store.snapshot() as snapshot:
        assert snapshot.entries("records") == 30
    store.close()


def test_growth_waits_for_the_snapshots_of_other_threads(path):
    store = Store(path, start_map=1 << 20)
    put(store, b0=7)
    stop = threading.Event()

    def read():
        count = 0
        while not stop.is_set():
            with store.snapshot() as snapshot:
                assert fills(snapshot, 0) == [7]
            count += 1
        return count

    readers = [in_thread(read) for _ in range(2)]
    for number in range(60):
        store.write(lambda txn, number=number: txn.put("records", b"%d" % number, bytes(200_000)))
    stop.set()

    assert all(reader.join() > 0 for reader in readers)
    assert store.epoch > 0
    store.close()


def test_growth_that_an_open_snapshot_hinders_says_so_and_changes_nothing(path):
    store = Store(path, start_map=1 << 20)
    put(store, b0=7)
    with store.snapshot() as snapshot:
        with pytest.raises(LockedError, match=r"enlarge the map.*MainThread"):
            store.write(lambda txn: txn.put("records", b"a", bytes(2 << 20)), 0.01)
        assert fills(snapshot, 0) == [7]
        assert snapshot.entries("records") == 0
    store.write(lambda txn: txn.put("records", b"a", bytes(2 << 20)))
    store.close()


def test_an_open_snapshot_hinders_no_write_that_has_room(path):
    store = Store(path, start_map=1 << 20)
    with store.snapshot():
        for number in range(8):
            store.write(lambda txn, n=number: txn.put("records", b"%d" % n, bytes(90_000)), 0)
    store.close()


def test_a_child_that_needs_a_larger_map_fails_alone_and_the_next_transaction_has_it(path):
    store = Store(path, start_map=1 << 20)
    large = bytes(1 << 20)

    def work(txn):
        txn.put("records", b"a", b"1")
        with pytest.raises(StoreFullError, match="try it again"):
            store.write_child(txn, lambda child: child.put("records", b"b", large))

    store.write(work)
    store.write(lambda txn: store.write_child(txn, lambda child: child.put("records", b"b", large)))
    with store.snapshot() as snapshot:
        assert [key for key, _ in snapshot.items("records", b"")] == [b"a", b"b"]
    store.close()


GROWER = """
    import sys
    from vecstore.store import Store
    store = Store(sys.argv[1], start_map=1 << 20)
    for number in range(40):
        store.write(lambda txn: txn.put("records", b"%d" % number, bytes(100_000)))
    store.close()
"""


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_another_process_let_grow_is_read(path, run_python, read_only):
    Store(path).close()
    store = Store(path, start_map=1 << 20, read_only=read_only)
    with store.snapshot() as snapshot:
        assert snapshot.entries("records") == 0
    run_python(GROWER, path)
    with store.snapshot() as snapshot:
        assert snapshot.entries("records") == 40
        assert all(len(value) == 100_000 for _, value in snapshot.items("records", b""))
    assert store.epoch == 1
    store.close()


def test_a_file_that_another_process_let_grow_is_written(path, run_python):
    store = Store(path, start_map=1 << 20)
    run_python(GROWER, path)
    store.write(lambda txn: txn.put("records", b"mine", b"1"))
    with store.snapshot() as snapshot:
        assert snapshot.entries("records") == 41
    store.close()


def test_many_threads_notice_together_that_the_file_has_outgrown_the_map(path, run_python):
    store = Store(path, start_map=1 << 20)
    run_python(GROWER, path)
    start = threading.Barrier(8)

    def work(number):
        start.wait(LONG)
        if number % 2:
            store.write(lambda txn: txn.put("records", b"t%d" % number, b"1"))
        with store.snapshot() as snapshot:
            return snapshot.entries("records")

    threads = [in_thread(lambda number=number: work(number)) for number in range(8)]
    assert all(thread.join() >= 40 for thread in threads)
    with store.snapshot() as snapshot:
        assert snapshot.entries("records") == 44
    store.close()


def test_another_process_that_lets_the_file_grow_waits_for_nobody(path, run_python):
    store = Store(path, start_map=1 << 20)
    put(store, b0=7)
    with store.snapshot() as snapshot:
        run_python(GROWER, path)
        assert fills(snapshot, 0) == [7]
        assert snapshot.entries("records") == 0
    store.close()


def test_without_address_space_for_a_larger_map_the_store_goes_on_with_the_one_it_has(
    run_python, path
):
    run_python(
        """
        import resource, sys
        from pathlib import Path
        from vecstore import StoreFullError
        from vecstore.store import Store
        store = Store(sys.argv[1], start_map=1 << 20)
        size = Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0]
        resource.setrlimit(resource.RLIMIT_AS, ((int(size) + 8192) * 1024,) * 2)
        count = 0
        try:
            while True:
                store.write(lambda txn: txn.put("records", b"%d" % count, bytes(200_000)))
                count += 1
        except StoreFullError as error:
            assert "limit on virtual memory" in str(error), error
        with store.snapshot() as snapshot:
            assert snapshot.entries("records") == count > 5
        store.write(lambda txn: txn.delete("records", b"0"))
        with store.snapshot() as snapshot:
            assert snapshot.entries("records") == count - 1
        store.close()
        """,
        path,
    )


def test_under_a_limit_on_virtual_memory_a_smaller_map_is_taken(run_python, path):
    run_python(
        """
        import resource, sys
        from pathlib import Path
        from vecstore.store import START_MAP, Store
        size = Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0]
        resource.setrlimit(resource.RLIMIT_AS, (int(size) * 1024 + (1 << 30),) * 2)
        store = Store(sys.argv[1])
        assert store.map_size < 1 << 30 < START_MAP
        store.write(lambda txn: txn.put("records", b"a", b"1"))
        store.close()
        """,
        path,
    )


# Closing


def test_closing_waits_for_the_snapshots_of_other_threads(store):
    snapshot = store.snapshot()
    thread = in_thread(lambda: store.close(LONG))
    wait_until(lambda: store.gate._waiting)
    snapshot.close()
    thread.join()

    assert store.closed


def test_closing_names_the_snapshots_that_did_not_end(store):
    with store.snapshot(), pytest.raises(LockedError, match=r"cannot close.*MainThread"):
        store.close(0)
    assert not store.closed


def test_closing_names_the_writer_that_did_not_end(store):
    with store.writer():
        thread = in_thread(lambda: store.close(0))
        with pytest.raises(LockedError, match="thread MainThread holds the transaction"):
            thread.join()
    assert not store.closed


def test_a_thread_that_waits_for_a_snapshot_while_the_store_closes_hears_of_it(store):
    with store.gate.alone(0, "look"):
        thread = in_thread(lambda: store.snapshot(LONG))
        wait_until(lambda: len(store.gate._condition._waiters) == 1)
        store._release()
    with pytest.raises(ClosedError):
        thread.join()


def test_a_thread_that_waits_to_write_while_the_store_closes_hears_of_it(store):
    with store.writer():
        thread = in_thread(lambda: store.write(lambda txn: None, LONG))
        store._release()
    with pytest.raises(ClosedError):
        thread.join()


def test_a_store_that_nobody_holds_any_more_closes_itself(path):
    store = Store(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    del store
    gc.collect()

    assert len(list(Path("/proc/self/fd").iterdir())) < before
    Store(path).close()


@pytest.mark.parametrize("where", ["file", "memory"])
def test_as_many_snapshots_as_lmdb_has_slots_for_may_be_open(path, where):
    store = Store(path if where == "file" else ":memory:")
    snapshots = [store.snapshot() for _ in range(MAX_READERS)]
    with pytest.raises(LockedError, match="1024 snapshots are open"):
        store.snapshot()
    for snapshot in snapshots:
        snapshot.close()
    store.snapshot().close()
    store.close()


def test_the_slots_of_killed_processes_are_taken_back(path, run_python):
    Store(path).close()
    store = Store(path)
    run_python(
        """
        import os, signal, sys
        from vecstore.store import Store
        store = Store(sys.argv[1])
        snapshots = [store.snapshot() for _ in range(1000)]
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
        status=-9,
    )
    snapshots = [store.snapshot() for _ in range(500)]
    for snapshot in snapshots:
        snapshot.close()
    store.close()


def test_every_error_of_the_store_is_an_error_of_vecstore():
    assert issubclass(MapFullError, StoreFullError)
    assert issubclass(StoreFullError, VecstoreError)
