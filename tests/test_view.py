"""When does a view end, and who is told how old it is?"""

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore import ClosedError, Database, SnapshotExpiredError, StoreError, UsageError


def until(met: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@pytest.fixture
def aging(path: Path) -> Any:
    with vecstore.open(path, max_snapshot_age=0.05) as db:
        db.collection("c", dim=2).add(vectors=[[1, 0]], ids=["a"])
        yield db


def test_a_view_that_is_too_old_ends(aging: Database) -> None:
    with aging.snapshot() as view:
        found = view.collection("c")
        until(lambda: view.ended)
        with pytest.raises(SnapshotExpiredError, match=r"max_snapshot_age=0\.05"):
            found.get("a")
        with pytest.raises(SnapshotExpiredError):
            view.collections()
        assert isinstance(SnapshotExpiredError(), ClosedError)
    assert aging.collection("c").count() == 1


def test_a_view_that_ended_keeps_no_space(path: Path) -> None:
    sizes = []
    for age in (None, 0.02):
        path.unlink(missing_ok=True)
        with vecstore.open(path, durable=False, max_snapshot_age=age) as db:
            found = db.collection("c", dim=64)
            rng = np.random.default_rng(1)
            vectors = rng.normal(size=(256, 64))
            found.add(vectors=vectors, ids=list(range(256)))
            view = db.snapshot()
            if age is not None:
                until(lambda view=view: view.ended)
            for _ in range(20):
                found.upsert(vectors=vectors + rng.random(), ids=list(range(256)))
            view.close()
            sizes.append(path.stat().st_size)
    assert sizes[1] < sizes[0] / 2


def test_a_scan_of_a_view_that_ends_raises_instead_of_stopping(aging: Database) -> None:
    aging.collection("c").upsert(vectors=np.ones((600, 2)), ids=list(range(600)))
    view = aging.snapshot()
    scan = view.collection("c").scan()
    next(scan)
    until(lambda: view.ended)
    with pytest.raises(SnapshotExpiredError):
        list(scan)


def test_a_call_that_reads_ends_before_its_view_does(aging: Database) -> None:
    view = aging.snapshot()
    with view.reading() as reader:
        time.sleep(0.15)
        assert not view.ended
        assert reader.get("meta", b"format") is not None
    until(lambda: view.ended)


def test_a_closed_view_is_closed_and_not_expired(aging: Database) -> None:
    view = aging.snapshot()
    view.close()
    with pytest.raises(ClosedError) as caught:
        view.collections()
    assert not isinstance(caught.value, SnapshotExpiredError)


def test_views_that_nobody_has_end_at_once_and_leave_no_thread(aging: Database) -> None:
    before = threading.active_count()
    for _ in range(10):
        aging.snapshot()
    gc.collect()
    until(lambda: threading.active_count() <= before)
    assert aging.stats()["views"] == {"open": 0, "oldest": 0.0}


def test_views_that_nobody_has_leave_no_thread_that_waits_for_their_age(path: Path) -> None:
    with vecstore.open(path, max_snapshot_age=1000) as db:
        before = threading.active_count()
        for _ in range(20):
            db.snapshot()
        gc.collect()
        until(lambda: threading.active_count() <= before)


def test_a_view_that_no_thread_can_watch_is_not_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with vecstore.open(path, max_snapshot_age=1) as db:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Timer, "start", refuse)
            with pytest.raises(StoreError, match="no thread"):
                db.snapshot()
        db.compact(timeout=0.5)


def test_closing_the_database_does_not_wait_for_ages(path: Path) -> None:
    with vecstore.open(path, max_snapshot_age=1000) as db, db.snapshot():
        pass
    assert db.closed


@pytest.mark.parametrize("age", [0, -1, float("nan"), float("inf"), "10", True])
def test_impossible_ages_are_refused(path: Path, age: Any) -> None:
    with pytest.raises(UsageError, match="max_snapshot_age"):
        vecstore.open(path, max_snapshot_age=age)
    assert not path.exists()


def test_stats_tell_how_old_views_are_and_what_they_hold_up(db: Database) -> None:
    found = db.collection("c", dim=2)
    assert db.stats()["views"] == {"open": 0, "oldest": 0.0}
    assert db.stats()["behind"] == 0
    with db.snapshot() as view:
        for number in range(5):
            found.add(vectors=[[1, number]])
        told = db.stats()
        assert told["views"]["open"] == 1
        assert 0 < told["views"]["oldest"] <= view.age
        assert told["behind"] == 5
    assert db.stats()["behind"] == 0


def test_stats_count_readers_of_other_processes(path: Path, run_python: Any) -> None:
    with vecstore.open(path) as db:
        found = db.collection("c", dim=2)
        with db.snapshot():
            found.add(vectors=[[1, 2]])
            program = """
                import sys, vecstore
                with vecstore.open(sys.argv[1], read_only=True) as db:
                    print(db.stats()["behind"], db.stats()["views"]["open"])
            """
            assert run_python(program, path).split() == ["1", "0"]
