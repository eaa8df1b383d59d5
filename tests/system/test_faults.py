"""What happens when something below fails? Disks, locks, other processes, clocks, encoders."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from campaign import Child, Kill, Killer
from indexed import clusters, small_indexes
from refusals import CODES, WORKS, Fault, make_sound, refuse_each, refused
from syscalls import reason_against, watched

import vecstore
from vecstore import Database, EncoderError, ReadOnlyError
from vecstore.encoders import FunctionEncoder

seen = pytest.mark.skipif(bool(reason_against()), reason=reason_against())


# What the system refuses


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        small_indexes(patch)
        return make_sound(tmp_path_factory.mktemp("sound") / "test.vecstore")


@seen
@pytest.mark.parametrize("work", WORKS)
def test_a_refused_write_leaves_the_file_as_it_was(
    sound: Path, tmp_path: Path, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_indexes(monkeypatch)
    assert refuse_each(sound, tmp_path / "refused", work, 6) >= 1


@seen
@pytest.mark.parametrize("way", ["once", "for good", "by half"])
def test_a_file_that_cannot_be_made_leaves_nothing(tmp_path: Path, way: str) -> None:
    codes = itertools.cycle(CODES)
    for at in itertools.count():
        folder = tmp_path / f"fault-{at}"
        folder.mkdir()
        fault, path = Fault(folder, at, next(codes), way), folder / "test.vecstore"
        with watched(fault):
            error = refused(lambda: vecstore.open(path).close())  # noqa: B023
        if error is None:
            assert fault.seen <= at
            break
        assert str(folder) in str(error)
        assert not list(folder.iterdir()), error
        with vecstore.open(path) as db:
            assert db.check() == []
    assert at >= 4


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if not mounted or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system of our own may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_became_read_only_is_read_and_says_so(disk: Path) -> None:
    path = disk / "test.vecstore"
    with vecstore.open(path) as db:
        db.collection("points", dim=2).add(vectors=[1, 0], ids=["a"])
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(ReadOnlyError, match=str(path)):
        vecstore.open(path)
    with vecstore.open(path, read_only=True) as db:
        assert db.collection("points").search([1, 0]).ids == ["a"]
        assert db.check() == []


# Locks and other processes


@pytest.mark.parametrize(
    "lock",
    [None, b"", bytes(65_664), b"\xff" * 65_664, b"text" * 10, os.urandom(200_000)],
    ids=["none", "empty", "zeros", "ones", "short", "long"],
)
def test_a_lock_file_of_any_content_is_no_obstacle(path: Path, lock: bytes | None) -> None:
    with vecstore.open(path) as db:
        db.collection("points", dim=2).add(vectors=[1, 0], ids=["a"])
    name = path.with_name(f"{path.name}-lock")
    name.unlink()
    if lock is not None:
        name.write_bytes(lock)
    for read_only in (True, False):
        with vecstore.open(path, read_only=read_only) as db:
            points = db.collection("points")
            assert points.search([1, 0]).ids == ["a"]
            assert db.check() == []
    with vecstore.open(path) as db:
        db.collection("points").add(vectors=[0, 1], ids=["b"])
        assert db.collection("points").count() == 2


def test_the_space_that_a_killed_reader_kept_is_used_again(path: Path) -> None:
    def churn(db: Database) -> int:
        for _ in range(12):
            db.collection("points").upsert(vectors=clusters(300), ids=range(300))
        return path.stat().st_size

    with vecstore.open(path) as db:
        db.collection("points", dim=16)
        churn(db)

    def read(tell) -> None:
        db = vecstore.open(path, read_only=True)
        view = db.snapshot()
        tell("reading", view.collection("points").count())
        time.sleep(60)

    reader = Child(read)
    assert next(reader.told()) == ["reading", 300]
    with vecstore.open(path) as db:
        kept = churn(db)
        reader.kill()
        assert reader.end() == signal.SIGKILL
        grown = churn(db)
        for _ in range(4):
            assert churn(db) <= grown
        assert grown <= kept + 300_000


@seen
def test_readers_go_on_while_a_writer_is_killed_in_the_middle_of_a_commit(path: Path) -> None:
    with vecstore.open(path) as db:
        db.collection("points", dim=16).add(vectors=clusters(200), ids=range(200))
    for call in range(3):

        def write(tell, call: int = call) -> None:
            killer = Killer(path.parent, Kill(call=call))
            with watched(killer):
                db = vecstore.open(path)
                killer.armed = True
                db.collection("points").upsert(vectors=-clusters(200), ids=range(200))
                tell("not killed")

        with vecstore.open(path, read_only=True) as db, db.snapshot() as view:
            before = view.collection("points").search(np.ones(16), 5)
            writer = Child(write)
            assert list(writer.told()) == []
            assert writer.end() == signal.SIGKILL
            assert view.collection("points").search(np.ones(16), 5).ids == before.ids
            assert db.collection("points").search(np.ones(16), 5).ids == before.ids
            assert db.check() == []
    with vecstore.open(path) as db:
        assert db.collection("points").upsert(vectors=clusters(200), ids=range(200))
        assert db.check() == []


# Clocks and encoders


def test_made_ids_ascend_though_the_clock_goes_backwards(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(time.time_ns(), -3_600_000_000_000)
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    points = memory.collection("points", dim=2)
    made = [key for _ in range(5) for key in points.add(vectors=np.ones((3, 2)))]
    assert made == sorted(set(made))
    assert [record.id for record in points.scan()] == made


def test_a_transaction_goes_on_after_an_encoder_that_failed_half_way(memory: Database) -> None:
    def encode(texts: list[str]) -> np.ndarray:
        if "bad" in texts:
            raise RuntimeError("half way")
        return np.ones((len(texts), 2))

    notes = memory.collection("notes", encoder=FunctionEncoder(encode, dim=2, name="f"))
    with memory.transaction():
        notes.add(["good"], ids=[1])
        with pytest.raises(EncoderError, match="half way"):
            notes.add(["good", "bad"], ids=[2, 3])
        notes.add(["better"], ids=[4])
    assert [record.id for record in notes.scan()] == [1, 4]
