"""Is nothing left in the file of what was deleted securely? The bytes of the file say."""

import contextlib
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore import Chunking, Collection, Database, LockedError, ReadOnlyError, StoreError
from vecstore.encoders import HashEncoder
from vecstore.hits import Deleted
from vecstore.store import files

COUNT, DIM = 700, 32
VECTORS = np.random.default_rng(5).normal(size=(COUNT, DIM)).astype(np.float32)
NUMBERS = np.arange(COUNT)
DOOMED = NUMBERS[NUMBERS % 5 == 2].tolist()
KINDS: dict[str, dict[str, Any]] = {
    "flat": {"index": "flat"},
    "flat dot": {"index": "flat", "metric": "dot"},
    "hash": {"index": "hash"},
    "ivf": {"index": "ivf"},
    "ivf l2": {"index": "ivf", "metric": "l2"},
    "float16": {"precision": "float16", "index": "flat"},
    "int8": {"precision": "int8"},
    "bits": {"metric": "hamming", "index": "hash"},
    "bits flat": {"metric": "hamming"},
}


def vectors_of(kind: str) -> np.ndarray:
    return np.packbits(VECTORS > 0, axis=1) if kind.startswith("bits") else VECTORS


def words_of(number: int) -> tuple[str, str, str]:
    """A text, a title and an id that nothing else in the file has."""
    return f"secret{number:05d}text", f"secret{number:05d}title", f"secret{number:05d}id"


def filled(db: Database, kind: str) -> Collection:
    found = db.collection("c", dim=DIM, **KINDS[kind])
    words = [words_of(number) for number in range(COUNT)]
    found.add(
        [text for text, _, _ in words],
        vectors=vectors_of(kind),
        ids=[identity for _, _, identity in words],
        metadata=[{"title": title, "n": n} for n, (_, title, _) in enumerate(words)],
    )
    found.optimize(progress=False)
    return found


def traces(path: Path, kind: str, numbers: list[int], before: dict[int, list[bytes]]) -> set[int]:
    """Those records of which something is in the file."""
    data = path.read_bytes()
    left = set()
    for number in numbers:
        parts = [word.encode() for word in words_of(number)] + before[number]
        if any(part in data for part in parts):
            left.add(number)
    return left


def stored_parts(path: Path, db: Database, kind: str) -> dict[int, list[bytes]]:
    """Bytes that stand for the vector of each record: as it is stored, and as bytes."""
    from vecstore import catalog, layout, rows
    from vecstore.ann import rounding

    found: dict[int, list[bytes]] = {}
    with db.reading() as reader:
        entry = catalog.find(reader, "c")
        assert entry is not None
        state = catalog.state(reader, entry.number)
        members = rows.members(rows.live(reader, entry.number, state))
        held = rows.gather_packed(reader, entry.number, state, entry.form, members)
        for order, numbers in zip(held.orders.tolist(), held.packed.numbers, strict=True):
            # Few bits are in a file of many by chance.
            found[order] = [] if kind.startswith("bits") else [numbers.tobytes()]
        if KINDS[kind].get("index") == "flat" and not kind.startswith("bits"):
            for block in sorted(set((members >> 6).tolist())):
                rounded = rounding.read(reader, entry, block)
                orders = rows.read_block(reader, entry.number, block, entry.form).orders
                for order, numbers in zip(orders.tolist(), rounded.numbers, strict=False):
                    found[order].append(numbers.tobytes())
    assert layout.BLOCK_ROWS == 64
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_of_what_was_deleted_securely_is_in_the_file(path: Path, kind: str) -> None:
    with vecstore.open(path) as db:
        found = filled(db, kind)
        before = stored_parts(path, db, kind)
        db.sync()
        everything = NUMBERS.tolist()
        assert traces(path, kind, everything, before) == set(everything)
        size = path.stat().st_size
        gone = found.delete([words_of(number)[2] for number in DOOMED], secure=True)
        assert gone == len(DOOMED)
        assert gone.given_back == size - path.stat().st_size
        assert db.check() == []
        assert traces(path, kind, DOOMED, before) == set()
        kept = sorted(set(everything) - set(DOOMED))
        assert traces(path, kind, kept, before) == set(kept)
        truth = [record.id for record in found.scan()]
        assert truth == [words_of(number)[2] for number in kept]
        for number in kept[::50]:
            query = vectors_of(kind)[number]
            assert words_of(number)[2] in found.search(query, 5, recall="exact").ids
            assert words_of(number)[2] in found.search(query, 10).ids


@pytest.mark.parametrize("kind", ["ivf", "hash", "bits"])
def test_no_code_of_a_dead_row_is_left(db: Database, kind: str) -> None:
    """Whoever writes the same records without the doomed ones has the same codes."""
    from vecstore import catalog, rows
    from vecstore.ann import index

    found = filled(db, kind)
    found.delete([words_of(number)[2] for number in DOOMED], secure=True)
    with db.reading() as reader:
        entry = catalog.find(reader, "c")
        assert entry is not None
        state = catalog.state(reader, entry.number)
        alive = rows.live(reader, entry.number, state)
        living = rows.flags(alive)
        for block in np.flatnonzero(alive).tolist():
            held = rows.read_block(reader, entry.number, block, entry.form)
            mine = living[block * 64 : block * 64 + len(held.orders)]
            assert set(held.orders.tolist()) == set(held.orders[mine].tolist())
            assert {row.tobytes() for row in held.packed.numbers} == {
                row.tobytes() for row in held.packed.numbers[mine]
            }
        made = index.load(reader, entry, state)
        for which in range(0 if made is None else made.model.lists):
            assert living[index.read_list(reader, entry.number, made.model, which).rows].all()


def test_passages_and_their_texts_go(path: Path) -> None:
    with vecstore.open(path) as db:
        found = db.collection("t", encoder=HashEncoder(16))
        stories = [f"One unique{n} thing. Another unique{n} thing. A third one." for n in range(40)]
        found.add(stories, ids=list(range(40)), chunk=Chunking(tokens=5, overlap=0))
        assert found.delete(where={"$id": {"$lt": 10}}, secure=True) == 10
        assert db.check() == []
    data = path.read_bytes()
    assert not any(f"unique{n} ".encode() in data for n in range(10))
    assert all(f"unique{n} ".encode() in data for n in range(10, 40))


def test_former_values_of_what_was_updated_go_too(path: Path) -> None:
    with vecstore.open(path) as db:
        found = filled(db, "flat")
        found.update(words_of(0)[2], text="new text", vector=VECTORS[1], metadata={"title": "new"})
        db.compact(secure=True)
        assert db.check() == []
    data = path.read_bytes()
    assert not any(word.encode() in data for word in words_of(0)[:2])


def test_dropped_collections_leave_nothing(path: Path) -> None:
    with vecstore.open(path) as db:
        filled(db, "flat")
        db.collection("other", dim=DIM).add(vectors=VECTORS[:5])
        db.drop("c")
        db.compact(secure=True)
        assert db.collection("other").count() == 5
    assert b"secret" not in path.read_bytes()


def test_everything_may_go(path: Path) -> None:
    with vecstore.open(path) as db:
        found = filled(db, "ivf")
        assert found.delete(where={}, secure=True) == COUNT
        assert db.check() == []
        assert found.search(VECTORS[0]).ids == []
        found.add(vectors=VECTORS, ids=NUMBERS.tolist())
        assert db.check() == []
    assert b"secret" not in path.read_bytes()


def test_who_is_not_alone_deletes_nothing_securely(path: Path, run_python: Any) -> None:
    with vecstore.open(path) as db:
        found = filled(db, "flat")
        program = """
            import sys, vecstore
            db = vecstore.open(sys.argv[1])
            try:
                db.collection("c").delete("secret00000id", secure=True)
            except vecstore.LockedError as error:
                print(type(error).__name__)
        """
        assert run_python(program, path).strip() == "LockedError"
        assert words_of(0)[2] in found


def test_a_snapshot_keeps_secure_deletion_from_beginning(db: Database) -> None:
    found = filled(db, "flat")
    with db.snapshot(), pytest.raises(LockedError):
        found.delete(words_of(0)[2], secure=True, timeout=0.1)
    assert words_of(0)[2] in found


@pytest.mark.parametrize("call", ["delete", "close"])
def test_whoever_asks_for_the_file_alone_keeps_others_from_compacting_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A lock that is asked for in vain is lost for a moment; nobody may compact just then."""
    db = vecstore.open(path, durable=False)
    found = filled(db, "flat")
    real, seen = fcntl.flock, []
    # Another handle of the file stands for another process.
    other = os.open(path, os.O_RDWR)
    real(other, fcntl.LOCK_SH)

    def flock(file: int, operation: int) -> None:
        try:
            real(file, operation)
        except BlockingIOError:
            with pytest.raises(LockedError):
                files.take_writer_byte(other, 0.0, path)
            seen.append(operation)
            raise

    monkeypatch.setattr(fcntl, "flock", flock)
    if call == "delete":
        with pytest.raises(LockedError, match="another process"):
            found.delete(words_of(0)[2], secure=True)
        with pytest.raises(BlockingIOError):
            # The lock is there again.
            real(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert words_of(0)[2] in found
    db.close()
    assert seen
    os.close(other)


def test_processes_that_delete_and_compact_lose_nothing(path: Path, run_python: Any) -> None:
    with vecstore.open(path, durable=False) as db:
        found = db.collection("c", dim=2)
        found.add(vectors=[[1, 0]], ids=["first"])
        program = """
            import sys, time, vecstore
            end = time.monotonic() + 2
            with vecstore.open(sys.argv[1], durable=False) as db:
                found = db.collection("c")
                while time.monotonic() < end:
                    try:
                        db.compact(timeout=1)
                    except vecstore.LockedError:
                        pass
                    assert "first" in found
        """
        with ThreadPoolExecutor(1) as pool:
            running, number = pool.submit(run_python, program, path), 0
            while not running.done():
                with contextlib.suppress(LockedError):
                    found.delete("nobody", secure=True, timeout=1)
                with contextlib.suppress(LockedError):
                    found.add(vectors=[[0, 1]], ids=[number], timeout=1)
                    number += 1
            running.result()
        wanted = {"first", *range(number)}
    with vecstore.open(path) as db:
        assert {record.id for record in db.collection("c").scan()} == wanted
        assert db.check() == []


def test_secure_deletion_is_refused_inside_a_transaction_and_in_views(db: Database) -> None:
    found = filled(db, "flat")
    with db.transaction(), pytest.raises(StoreError, match="rewrites the file"):
        found.delete(words_of(0)[2], secure=True)
    with db.snapshot() as view, pytest.raises(ReadOnlyError):
        view.collection("c").delete(words_of(0)[2], secure=True)
    assert found.count() == COUNT


def test_memory_databases_are_rewritten_too(memory: Database) -> None:
    found = filled(memory, "flat")
    assert found.delete(words_of(3)[2], secure=True) == 1
    assert found.count() == COUNT - 1


def test_the_rewritten_file_keeps_its_mode(path: Path) -> None:
    with vecstore.open(path) as db:
        filled(db, "flat")
        path.chmod(0o640)
        db.compact(secure=True)
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_was_deleted_is_a_number() -> None:
    found = Deleted(3, 4096)
    assert (found, found.given_back, str(found)) == (3, 4096, "3")
    assert Deleted(2).given_back == 0
