"""The right to write among threads, and what interrupts do to it."""

import threading

import pytest

from vecstore import LockedError
from vecstore.store import Store
from vecstore.store.gate import WriterLock


def in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_holds_the_lock_and_others_wait_in_vain():
    lock = WriterLock()
    assert lock.take(0.0)
    assert lock.holder == threading.current_thread().name
    assert not in_thread(lambda: lock.take(0.05))
    lock.leave()
    assert lock.holder is None
    assert in_thread(lambda: lock.take(0.0))


def test_a_thread_takes_over_the_hold_that_it_lost_and_gives_all_back():
    lock = WriterLock()
    assert lock.take(0.0)
    assert lock.take(0.0)
    lock.leave()
    assert in_thread(lambda: lock.take(0.0))


def test_the_hold_of_a_dead_thread_is_freed_from_elsewhere_while_others_wait():
    lock, got = WriterLock(), threading.Event()
    assert in_thread(lambda: lock.take(0.0))
    waiting = threading.Thread(target=lambda: lock.take(20.0) and got.set())
    waiting.start()
    lock.leave()
    waiting.join()
    assert got.is_set()


def test_a_write_within_a_write_of_the_same_thread_is_refused_at_once(path):
    store = Store(path)

    def work(txn):
        with pytest.raises(LockedError, match="in the middle of a write"):
            store.write(lambda inner: None)
        with pytest.raises(LockedError, match="in the middle of a write"):
            store.close()
        txn.put("meta", b"key", b"value")

    store.write(work)
    with store.snapshot() as snapshot:
        assert bytes(snapshot.get("meta", b"key")) == b"value"
    store.close()


INTERRUPTED = """
import random, signal, sys, time
import numpy as np
import vecstore

def interrupt(*args):
    raise KeyboardInterrupt

random.seed(1)
signal.signal(signal.SIGALRM, interrupt)
db = vecstore.open(sys.argv[1], durable=False, timeout=5.0)
points = db.collection("points", dim=8)
vectors, end, hits = np.random.default_rng(1).random((10, 8)), time.monotonic() + 3, 0
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.005))
        # An interrupt that meets a finalizer is lost.
        while time.monotonic() < end:
            with db.transaction():
                points.upsert(vectors=vectors, ids=list(range(10)))
            points.upsert(vectors=vectors, ids=list(range(10)))
        # Within the try, for the last alarm may come just before this.
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        hits += 1
assert hits > 0
assert db.check() == []
db.close()
print("done")
"""


def test_no_interrupt_keeps_the_right_to_write(path, run_python):
    assert run_python(INTERRUPTED, str(path)).strip() == "done"


def test_a_database_is_of_use_after_a_write_was_interrupted(db):
    points = db.collection("points", dim=2)

    def interrupted():
        with db.transaction():
            points.add(vectors=[1, 2], ids="a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    points.add(vectors=[1, 2], ids="b")
    assert [record.id for record in points.scan()] == ["b"]
