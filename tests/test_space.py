"""Are the sizes that are told by counts those of the values and pages in the file?"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import clusters, filled, small_indexes

import vecstore
from vecstore import Database, StoreError, layout
from vecstore.store import environment, files, whole


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_indexes(monkeypatch)


def stored(db: Database, number: int) -> dict[str, dict[str, int]]:
    """What `stats` is to say, by a walk over all values."""
    prefixes = {
        "full": ("tiers", layout.tier_prefix(number, 0)),
        "rounded": ("tiers", layout.tier_prefix(number, layout.BYTE_TIER)),
        "lists": ("lists", layout.collection_key(number)),
        "tail": ("tiers", layout.tier_prefix(number, layout.CODE_TIER)),
    }
    found = {}
    with db.reading() as reader:
        page = reader.store.page
        for name, (database, prefix) in prefixes.items():
            used = whole = 0
            for _, value in reader.items(database, prefix):
                used += layout.HEADER.size + layout.unpack_header(value, "value").length
                whole += -(-(len(value) + 16) // page) * page
            found[name] = {"values": used, "unused": whole - used}
    return found


@pytest.mark.parametrize("kind", ["flat", "hash", "ivf"])
@pytest.mark.parametrize("declared", [{}, {"metric": "l2"}, {"precision": "int8"}])
def test_sizes_are_those_of_the_values(memory: Database, kind: Any, declared: Any) -> None:
    collection = filled(memory, index=kind, **declared)
    assert collection.stats()["space"] == stored(memory, 1)
    # Dead rows in lists and blocks, dead blocks, a tail, an open block and none.
    collection.delete(range(100, 400))
    collection.delete(range(400, 900, 3))
    collection.add(vectors=clusters(150, 3))
    assert collection.stats()["space"] == stored(memory, 1)
    with memory.transaction():
        collection.add(vectors=clusters(42, 4))
        assert collection.stats()["space"] == stored(memory, 1)
    collection.optimize()
    assert collection.stats()["space"] == stored(memory, 1)
    collection.delete(where={})
    assert collection.stats()["space"] == stored(memory, 1)


def test_pages_are_those_that_the_file_has_given(memory: Database) -> None:
    sizes = filled(memory, index="ivf").stats()["space"]
    with memory.reading() as reader:
        databases = reader.store.databases
        page = reader.store.page
        for names, database in ((("full", "rounded", "tail"), "tiers"), (("lists",), "lists")):
            pages = reader.txn.stat(databases[database])["overflow_pages"]
            assert sum(sum(sizes[name].values()) for name in names) == pages * page


def test_a_collection_without_records_takes_nothing(memory: Database) -> None:
    nothing = {"values": 0, "unused": 0}
    assert memory.collection("c", dim=2).stats()["space"] == dict.fromkeys(
        ("full", "rounded", "lists", "tail"), nothing
    )
    binary = memory.collection("b", dim=64, metric="hamming")
    binary.add(vectors=np.ones((3, 64), bool))
    assert binary.stats()["space"]["full"]["values"] == 48 + 1024 + 3 * 8


def test_optimize_gives_back_a_file_that_is_mostly_free(path: Path) -> None:
    with vecstore.open(path, durable=False) as db:
        found = db.collection("c", dim=64)
        found.add(vectors=np.random.default_rng(1).normal(size=(4000, 64)))
        assert db.stats()["free_bytes"] < db.stats()["used_bytes"] / 2
        assert found.optimize(progress=False)["given_back"] == 0
        found.delete(where={})
        before = path.stat().st_size
        assert db.stats()["free_bytes"] > before / 2
        with db.snapshot():
            # Somebody reads.
            assert found.optimize(progress=False)["given_back"] == 0
        grown = path.stat().st_size
        given_back = found.optimize(progress=False)["given_back"]
        assert given_back == grown - path.stat().st_size > before / 2
        assert db.check() == []
        found.add(vectors=np.ones((2, 64)))
        assert found.count() == 2


def test_optimize_leaves_a_file_as_long_as_it_is_that_another_process_has_open(
    path: Path, run_python: Any
) -> None:
    with vecstore.open(path, durable=False) as db:
        found = db.collection("c", dim=64)
        found.add(vectors=np.random.default_rng(1).normal(size=(4000, 64)))
        found.delete(where={})
        program = """
            import sys, vecstore
            with vecstore.open(sys.argv[1]) as db:
                print(db.collection("c").optimize(progress=False)["given_back"])
        """
        assert run_python(program, path).strip() == "0"


@pytest.fixture
def churned(path: Path) -> Iterator[tuple[Database, Callable[[], None]]]:
    """A file, and what changes many of its small values and then a long one.

    The small ones take pages here and there, and the long one finds few free ones in a row.
    """
    rng = np.random.default_rng(1)
    with vecstore.open(path, durable=False) as db:
        found, other = db.collection("c", dim=64, index="flat"), db.collection("b", dim=2)
        found.add(vectors=rng.normal(size=(6000, 64)), ids=range(6000))

        def churn() -> None:
            for _ in range(10):
                ids = rng.choice(6000, 20, replace=False).tolist()
                found.upsert(vectors=rng.normal(size=(20, 64)), ids=ids)
            length = int(rng.integers(300_000, 900_000))
            other.upsert(vectors=[[1, 2]], ids=[length % 4], texts=["x" * length])

        yield db, churn


def test_a_file_stays_below_twice_what_is_in_it_whatever_is_written(
    churned: tuple[Database, Callable[[], None]], path: Path
) -> None:
    db, churn = churned
    inodes, largest = {path.stat().st_ino}, 0.0
    for number in range(100):
        churn()
        inodes.add(path.stat().st_ino)
        told = db.stats()
        if told["used_bytes"] > whole.SHORT:
            live = told["used_bytes"] - told["free_bytes"]
            # The long values, which are half of it, have another length each time.
            largest = max(largest, told["used_bytes"] / live)
        if number % 20 == 0:
            assert db.check() == []

    assert 1.3 < largest < 2.3
    assert 2 <= len(inodes) < 20
    assert db.collection("c").count() == 6000


def test_a_file_shrinks_behind_the_writes_that_empty_it(path: Path) -> None:
    with vecstore.open(path, durable=False) as db:
        found = db.collection("c", dim=1024, index="flat")
        found.add(vectors=np.random.default_rng(1).normal(size=(4000, 1024)), ids=range(4000))
        db.collection("other", dim=2).add(vectors=[[1, 2]], texts=["stays"])
        with db.transaction():
            found.delete(list(range(3000)))
        for number in range(3000, 4000):
            found.delete([number])
        for number in range(100):
            db.collection("other").upsert(vectors=[[1, number]], ids=["one"])

        assert path.stat().st_size < 8 << 20
        assert next(db.collection("other").scan()).text == "stays"
        assert db.check() == []


def test_a_file_that_somebody_reads_grows_and_shrinks_when_he_is_gone(
    churned: tuple[Database, Callable[[], None]], path: Path
) -> None:
    db, churn = churned
    with db.snapshot() as view:
        for _ in range(30):
            churn()
        assert path.stat().st_size > 40 << 20
        assert view.collection("c").count() == 6000
    # There is room enough now for the file not to grow, so it is the number of writes that counts.
    for number in range(1024):
        db.collection("b").upsert(vectors=[[1, number]], ids=[0])

    assert path.stat().st_size < 16 << 20
    assert db.check() == []


@pytest.fixture
def wasteful(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Database, Any]]:
    """A file most of which is free, and a write behind which it is rewritten."""
    with vecstore.open(path, durable=False) as db:
        found = db.collection("c", dim=256, index="flat")
        found.add(vectors=np.random.default_rng(1).normal(size=(2000, 256)), ids=range(2000))
        found.delete(list(range(1, 2000)))
        monkeypatch.setattr(whole, "SHORT", 1 << 16)
        monkeypatch.setattr(whole, "WRITES", 1)

        yield db, lambda: found.upsert(vectors=[np.ones(256)], ids=[0])


def test_what_came_in_the_place_of_a_file_is_left_alone(
    wasteful: tuple[Database, Callable[[], None]], path: Path, tmp_path: Path
) -> None:
    db, write = wasteful
    for name in (path.name, f"{path.name}-lock"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    path.write_bytes(b"another one's")
    write()

    assert path.read_bytes() == b"another one's"
    with pytest.raises(StoreError, match="another file"):
        db.compact()
    assert path.read_bytes() == b"another one's"
    assert {one.name for one in tmp_path.iterdir() if "compact" in one.name} == set()
    assert db.collection("c").count() == 1


def test_a_file_that_was_taken_away_does_not_come_back(
    wasteful: tuple[Database, Callable[[], None]], path: Path
) -> None:
    db, write = wasteful
    path.unlink()
    write()

    assert not path.exists()
    assert db.collection("c").count() == 1


def test_a_file_with_two_names_keeps_both_until_it_is_asked_for(
    wasteful: tuple[Database, Callable[[], None]], path: Path, tmp_path: Path
) -> None:
    db, write = wasteful
    other = tmp_path / "other.vecstore"
    os.link(path, other)
    write()
    assert path.samefile(other)

    assert db.compact() > 0
    assert not path.samefile(other)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_rewritten_file_belongs_to_whom_it_belonged(
    wasteful: tuple[Database, Callable[[], None]], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, write = wasteful
    os.chown(path, 1000, 1001)
    path.chmod(0o660)
    before = path.stat()
    with monkeypatch.context() as patch:
        patch.setattr(os, "chown", _refuse)
        write()
        assert path.stat().st_ino == before.st_ino
        assert not path.with_name(f"{path.name}-compact").exists()
    write()

    after = path.stat()
    assert after.st_size < before.st_size / 2
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (1000, 1001, before.st_mode)


def _refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "not the owner")


def test_a_write_is_done_though_the_file_is_closed_while_it_is_looked_at(
    wasteful: tuple[Database, Callable[[], None]], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, write = wasteful
    begun, verify = threading.Event(), files.verify

    def slow(file: int) -> list[str]:
        begun.set()
        time.sleep(0.2)
        return verify(file)

    monkeypatch.setattr(files, "verify", slow)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        assert begun.wait(10)
        db.close()
        assert written.result() == [0]
    with vecstore.open(path) as again:
        assert again.collection("c").count() == 1


def test_a_rewritten_file_stays_open_though_its_folder_cannot_be_synced(
    wasteful: tuple[Database, Callable[[], None]], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, write = wasteful
    before = path.stat()

    def refuse(folder: Path) -> None:
        raise StoreError(f"cannot sync {folder}")

    with monkeypatch.context() as patch:
        patch.setattr(environment, "sync_folder", refuse)
        write()
        assert path.stat().st_ino != before.st_ino
        # Nothing is committed that a power cut would take away with the name.
        with pytest.raises(StoreError, match="cannot sync"):
            write()
    write()
    assert db.collection("c").count() == 1


def test_free_bytes_are_those_of_pages_that_nothing_is_in(db: Database) -> None:
    found = db.collection("c", dim=64)
    found.add(vectors=np.random.default_rng(1).normal(size=(1000, 64)))
    db.compact()
    told = db.stats()
    # A few pages are those of the list of free ones.
    assert told["free_bytes"] <= 16 * 4096 < told["used_bytes"]
