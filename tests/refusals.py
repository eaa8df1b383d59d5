"""When the system refuses a write: a clear error, the file as it was, and a handle of use."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexed import clusters
from syscalls import WRITES, Call, watched

import vecstore
from vecstore import Chunking, Database, StoreError, VecstoreError
from vecstore.encoders import HashEncoder

ENCODER = HashEncoder(16)
CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
NAMES = {"test.vecstore", "test.vecstore-lock"}
# Once; from then on, as a full disk does; or a part is written, and then no more of it.
WAYS = ("once", "for good", "by half")


def points(db: Database) -> vecstore.Collection:
    return db.collection("points")


def compact(db: Database) -> None:
    db.compact()


def transaction(db: Database) -> None:
    with db.transaction():
        points(db).delete(list(range(50)))
        db.collection("texts").add(["a late train"] * 20)


WORKS: dict[str, Callable[[Database], object]] = {
    "add": lambda db: points(db).add(vectors=clusters(30), ids=range(1000, 1030)),
    "train": lambda db: points(db).add(vectors=clusters(250), ids=range(1000, 1250)),
    "update": lambda db: points(db).update(list(range(90)), metadata=[{"n": -1}] * 90),
    "delete": lambda db: points(db).delete(list(range(200))),
    "texts": lambda db: db.collection("texts").add("A train. " * 30, chunk=Chunking(tokens=9)),
    "transaction": transaction,
    "make": lambda db: db.collection("new", dim=4),
    "drop": lambda db: db.drop("texts"),
    "optimize": lambda db: points(db).optimize(progress=False),
    "reindex": lambda db: points(db).reindex("hash"),
    "backup": lambda db: db.backup(Path(db.path).with_name("backup")),
    "compact": compact,
    "secure": lambda db: db.compact(secure=True),
    "sync": lambda db: db.sync(),
}


class Fault:
    """Refuses the n-th call in a folder, and those behind it if it lasts."""

    def __init__(self, folder: Path, at: int, code: int, way: str) -> None:
        self.folder, self.at, self.code, self.way = str(folder), at, code, way
        self.seen, self.healed = 0, False

    def __call__(self, call: Call, carry_out: Callable[[], Any]) -> Any:
        foreign = not call.path.startswith(self.folder) or call.path.endswith("-lock")
        if foreign or self.healed or call.name == "unlink":
            return carry_out()
        self.seen += 1
        if self.seen <= self.at or (self.way != "for good" and self.seen > self.at + 1):
            return carry_out()
        if self.way == "by half" and call.name in WRITES and len(call.data) > 1:
            size = call.write(len(call.data) // 2)
            if call.name != "pwrite":
                os.lseek(call.file, size, os.SEEK_CUR)
            return size
        raise OSError(self.code, os.strerror(self.code), call.path)


def content(db: Database) -> dict[str, list[Any]]:
    return {
        name: [
            (record.id, record.text, record.metadata)
            for record in db.collection(name).scan(include=("text", "metadata"))
        ]
        for name in db.collections()
    }


def make_sound(path: Path) -> Path:
    """Make a file with an index, texts, and free pages; indexes are to be small."""
    with vecstore.open(path) as db:
        made = db.collection("points", dim=16, metric="l2", index="ivf")
        metadata = [{"n": n} for n in range(400)]
        made.add(vectors=clusters(400), ids=range(400), metadata=metadata)
        made.delete(list(range(300, 330)))
        db.collection("texts", encoder=ENCODER).add(["red apple", "a train"], ids=[1, 2])
    return path


def open_file(path: Path) -> Database:
    db = vecstore.open(path)
    db.collection("texts", encoder=ENCODER)
    return db


def refused(work: Callable[[], object]) -> VecstoreError | None:
    """The error with which something fails; None if it does not."""
    try:
        work()
    except VecstoreError as error:
        return error
    return None


def refuse(sound: Path, folder: Path, work: str, fault: Fault) -> bool:
    """Whether the fault was met; after it everything is as it must be."""
    path = folder / "test.vecstore"
    shutil.copy(sound, path)
    db = open_file(path)
    before = content(db)
    with watched(fault):
        error = refused(lambda: WORKS[work](db))
        fault.healed = True
    met = fault.seen > fault.at
    what = f"{work}, call {fault.at}, {fault.way}: {error}"
    if panic := refused(db.collections):
        # LMDB trusts no header after one that could not be written.
        assert "open it again" in str(panic), what
        db.close()
        db = open_file(path)
    after = content(db)
    if error is not None:
        assert isinstance(error, StoreError), what
        assert folder.name in str(error), what
        assert after == before, what
    points(db).upsert(vectors=clusters(5, 5), ids=range(5000, 5005))
    assert len(content(db)["points"]) == len(after["points"]) + 5, what
    assert db.check() == [], what
    db.close()
    with open_file(path) as db:
        assert db.check() == [], what
        assert len(content(db)["points"]) == len(after["points"]) + 5, what
    if error is not None:
        assert {entry.name for entry in folder.iterdir()} == NAMES, what
    return met


def calls_of(sound: Path, folder: Path, work: str) -> int:
    """How many calls there are to refuse."""
    fault = Fault(folder, 1 << 30, errno.EIO, "once")
    refuse(sound, folder, work, fault)
    return fault.seen


def refuse_each(sound: Path, folder: Path, work: str, most: int | None = None) -> int:
    """Refuse the calls of a work, one after another; return how many were."""
    refused, places = 0, range(calls_of(sound, _fresh(folder), work))
    every = 1 if most is None else -(-len(places) // most)
    codes = itertools.cycle(CODES)
    for number, at in enumerate(places[::every]):
        for way in WAYS if most is None else (WAYS[number % len(WAYS)],):
            refused += refuse(sound, _fresh(folder), work, Fault(folder, at, next(codes), way))
    return refused


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
