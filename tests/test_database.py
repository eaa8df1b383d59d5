import contextlib
import gc
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import weakref
from pathlib import Path

import lmdb
import numpy as np
import pytest

import vecstore
from vecstore import (
    AlreadyExistsError,
    Chunking,
    ClosedError,
    CorruptionError,
    FormatError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    SpecError,
    StoreError,
    StoreFullError,
    layout,
)
from vecstore.encoders import HashEncoder
from vecstore.store import Store

LONG = 20.0
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")


@pytest.fixture
def points(db):
    collection = db.collection("points", dim=2)
    collection.add(vectors=[[1, 0], [0, 1], [1, 1]], ids=["a", "b", "c"], metadata=[{"n": 1}] * 3)
    return collection


def content(collection):
    found = collection.scan(include=("text", "metadata", "vector"))
    return [(item.id, item.text, item.metadata, item.vector.tolist()) for item in found]


class Undo(Exception):
    """Leaves a transaction, which then is rolled back."""


@contextlib.contextmanager
def undone(db):
    """A transaction that is rolled back at its end."""
    with contextlib.suppress(Undo), db.transaction():
        yield
        raise Undo


def in_thread(work):
    """Run work in another thread and return its result, or raise its error."""
    box = {}

    def run():
        try:
            box["result"] = work()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()
    if "error" in box:
        raise box["error"]
    return box["result"]


# Opening


def test_a_new_file_is_made_and_has_no_collections(path):
    with vecstore.open(path) as db:
        assert db.collections() == []
        assert db.path == str(path)
        assert not db.closed
        assert not db.read_only
    assert path.exists()


def test_what_was_stored_is_there_when_the_file_is_opened_again(db, points, path):
    before = content(points)
    db.close()

    with vecstore.open(path) as again:
        assert content(again.collection("points")) == before


@pytest.mark.parametrize("kind", [str, Path, os.fspath])
def test_a_path_may_be_a_str_or_a_path(path, kind):
    vecstore.open(kind(path)).close()

    assert path.exists()


def test_a_relative_path_means_the_folder_of_that_moment(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with vecstore.open("test.vecstore") as db:
        points = db.collection("points", dim=2)
        points.add(vectors=[1, 0])
        monkeypatch.chdir(tmp_path / "other")
        db.compact()
        assert points.count() == 1

    assert sorted(item.name for item in tmp_path.iterdir()) == [
        "other",
        "test.vecstore",
        "test.vecstore-lock",
    ]


@pytest.mark.parametrize("name", ["with space", "ünï", "a" * 200, "-", "'\"", "100%"])
def test_a_file_may_have_any_name(tmp_path, name):
    with vecstore.open(tmp_path / name) as db:
        db.collection("points", dim=2).add(vectors=[1, 0])
        db.compact()
    with vecstore.open(tmp_path / name) as db:
        assert db.collection("points").count() == 1


def test_an_empty_file_becomes_a_database(path):
    path.touch()
    with vecstore.open(path) as db:
        assert db.collections() == []


def test_the_file_is_readable_by_its_owner_alone(path):
    vecstore.open(path).close()

    assert path.stat().st_mode & 0o777 == 0o600


# Paths that cannot be opened: a clear error, and nothing is left behind or changed


def tree(folder):
    """What is in a folder; but LMDB makes a lock file before it knows whose file it is."""
    return {
        item.relative_to(folder): item.read_bytes() if item.is_file() else None
        for item in sorted(folder.rglob("*"))
        if not item.name.endswith("-lock")
    }


def refuse(path, kind, words, **options):
    before = tree(path.parent)
    with pytest.raises(kind, match=words) as caught:
        vecstore.open(path, **options)
    assert str(path) in str(caught.value)
    assert tree(path.parent) == before
    return caught.value


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"the folder .*/no does not exist; create it first"):
        vecstore.open(tmp_path / "no" / "such.vecstore")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    refuse(tmp_path / "folder", StoreError, "is a folder")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="not a regular file"):
        vecstore.open(tmp_path / "pipe")


def test_a_device_is_no_file():
    with pytest.raises(StoreError, match="not a regular file"):
        vecstore.open("/dev/null")


def test_a_file_in_place_of_a_folder_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot open"):
        vecstore.open(tmp_path / "file" / "test.vecstore")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    refuse(tmp_path / ("x" * 300), StoreError, "cannot open")


def test_a_name_with_a_nul_is_refused(tmp_path):
    with pytest.raises(StoreError, match="cannot open"):
        vecstore.open(f"{tmp_path}/a\0b")


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StoreError, match="cannot open"):
        vecstore.open(tmp_path / "loop")


@pytest.mark.parametrize("size", [1, 100, 5000, 102_400])
@pytest.mark.parametrize("fill", [b"\0", b"text\n", b"\xff"])
def test_a_file_of_another_kind_is_refused_and_left_alone(path, fill, size):
    path.write_bytes((fill * size)[:size])

    refuse(path, FormatError, "is not a vecstore file")
    assert not path.with_name(path.name + "-lock").exists()


def test_a_file_of_sqlite_is_refused_and_left_alone(path):
    connection = sqlite3.connect(path)
    connection.execute("create table t (x)")
    connection.commit()
    connection.close()

    refuse(path, FormatError, "is not a vecstore file")


@pytest.mark.parametrize("named", [False, True])
def test_a_file_of_somebody_elses_lmdb_is_refused_and_left_alone(path, named):
    environment = lmdb.open(str(path), subdir=False, max_dbs=4, lib_version=0)
    table = environment.open_db(b"theirs") if named else None
    with environment.begin(write=True, db=table) as txn:
        txn.put(b"key", b"value")
    environment.close()

    refuse(path, FormatError, "LMDB file, but not one of vecstore's")
    refuse(path, FormatError, "LMDB file, but not one of vecstore's", read_only=True)


def test_a_database_that_only_looks_like_one_of_vecstore_is_refused(path):
    environment = lmdb.open(str(path), subdir=False, max_dbs=9, lib_version=0)
    for name in layout.DATABASES:
        environment.open_db(name.encode())
    environment.close()

    refuse(path, FormatError, "LMDB file, but not one of vecstore's")


def rewrite_format(path, **values):
    store = Store(path)
    known = {"magic": "vecstore", "format": 1, "oldest_readable": 1}
    value = layout.pack_meta({**known, **values})
    store.write(lambda txn: txn.put("meta", layout.KEY_FORMAT, value))
    store.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_of_a_newer_format_is_refused_with_both_versions(path, read_only):
    rewrite_format(path, format=7, oldest_readable=6)

    error = refuse(path, FormatError, "upgrade vecstore", read_only=read_only)
    assert "format 7" in str(error)
    assert "reads 1 to 2" in str(error)


def test_a_newer_file_that_old_releases_may_read_is_opened(path):
    rewrite_format(path, format=9, oldest_readable=1)

    with vecstore.open(path) as db:
        long = "One sentence. " * 9
        db.collection("c", encoder=HashEncoder(8)).add(long, chunk=Chunking(tokens=8))
        assert db.check() == []
        assert db.stats()["format"] == 9
        with db.reading() as reader:
            value = reader.get("meta", layout.KEY_FORMAT)
        # Those that know no passages may not any more.
        assert layout.unpack_meta(value, "format")["oldest_readable"] == 2


def test_a_file_of_an_older_format_is_refused_with_the_way_to_go(path):
    rewrite_format(path, format=0)

    refuse(path, FormatError, "format 0.*use a vecstore release that reads both")


@pytest.mark.parametrize("values", [{"magic": "other"}, {"format": "1"}, {"format": None}])
def test_a_format_that_makes_no_sense_is_refused(path, values):
    rewrite_format(path, **values)

    refuse(path, FormatError, "not one of vecstore's")


def test_a_damaged_format_is_damage(path):
    store = Store(path)
    store.write(lambda txn: txn.put("meta", layout.KEY_FORMAT, b"12345678"))
    store.close()

    refuse(path, CorruptionError, "format: wrong checksum")


@pytest.mark.parametrize("pages", [1, 2, 3, 10, -1])
def test_a_file_cut_short_is_refused(db, points, path, pages):
    db.close()
    copy = path.with_name("cut.vecstore")
    size = path.stat().st_size
    copy.write_bytes(path.read_bytes()[: size + pages * 4096 if pages < 0 else pages * 4096])

    refuse(copy, CorruptionError, "is cut short")


@pytest.mark.parametrize("bytes_", [1, 100, 151, 152, 200, 4095, 4097, 4200])
def test_a_file_cut_within_its_headers_is_refused(db, points, path, bytes_):
    db.close()
    copy = path.with_name("cut.vecstore")
    copy.write_bytes(path.read_bytes()[:bytes_])

    with pytest.raises((CorruptionError, FormatError), match=r"cut short|not a vecstore file"):
        vecstore.open(copy)


def test_an_impossible_page_size_is_damage(db, path):
    db.close()
    copy = path.with_name("copy.vecstore")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 40, 12345)
    copy.write_bytes(data)

    refuse(copy, CorruptionError, "page size 12345")


def test_the_same_path_opens_after_it_was_refused(path):
    path.write_bytes(b"text")
    refuse(path, FormatError, "is not a vecstore file")
    path.unlink()

    vecstore.open(path).close()


# Folders and files that may not be written to


@root_only
def test_a_folder_that_may_not_be_written_to_is_named(run_python):
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        with vecstore.open(folder / "there.vecstore") as db:
            db.collection("points", dim=2).add(vectors=[1, 0])
        (folder / "there.vecstore").chmod(0o644)
        run_python(
            """
            import os, sys
            import vecstore
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            for name, options in (
                ("new.vecstore", {}),
                ("there.vecstore", {}),
                ("there.vecstore", {"read_only": True}),
            ):
                path = os.path.join(sys.argv[1], name)
                try:
                    vecstore.open(path, **options)
                except vecstore.StoreError as error:
                    assert path in str(error) and "ermission" in str(error), error
                else:
                    raise AssertionError(name)
            """,
            folder,
        )
        names = {item.name for item in folder.iterdir()}
        assert names == {"there.vecstore", "there.vecstore-lock"}
    finally:
        shutil.rmtree(folder)


def test_a_full_disk_leaves_the_file_as_it_was(run_python, path):
    run_python(
        """
        import resource, sys
        import numpy as np
        import vecstore
        path = sys.argv[1]
        rng = np.random.default_rng(1)
        db = vecstore.open(path)
        points = db.collection("points", dim=64)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        stored = 0
        try:
            while True:
                points.add(vectors=rng.normal(size=(200, 64)))
                stored += 200
        except vecstore.StoreFullError as error:
            assert "disk" in str(error), error
        assert points.count() == stored > 0
        assert len(list(points.scan())) == stored
        assert db.check() == []
        try:
            with db.transaction():
                points.add(vectors=rng.normal(size=(2000, 64)))
                assert points.count() == stored + 2000
        except vecstore.StoreFullError:
            pass
        assert points.count() == stored
        try:
            db.backup(path + ".copy")
            with vecstore.open(path + ".copy") as copy:
                assert copy.collection("points").count() == stored
        except vecstore.StoreFullError:
            pass
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        points.add(vectors=rng.normal(size=(2000, 64)))
        assert points.count() == stored + 2000
        assert db.check() == []
        db.close()
        with vecstore.open(path) as db:
            assert db.collection("points").count() == stored + 2000
            assert db.check() == []
        """,
        path,
    )


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not mounted or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system of our own may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_without_room_leaves_the_file_as_it_was(small_disk, rng):
    db = vecstore.open(small_disk / "test.vecstore")
    points = db.collection("points", dim=64)
    stored = 0
    with contextlib.suppress(StoreFullError):
        while True:
            points.add(vectors=rng.normal(size=(200, 64)), ids=range(stored, stored + 200))
            stored += 200
    before = content(points)
    for work in (
        lambda: points.add(vectors=rng.normal(size=(2000, 64))),
        lambda: db.backup(small_disk / "copy.vecstore"),
        lambda: db.compact(),
    ):
        with pytest.raises(StoreFullError, match="free space on the disk"):
            work()
        assert content(points) == before
        assert db.check() == []
    names = {item.name for item in small_disk.iterdir()}
    assert names == {"test.vecstore", "test.vecstore-lock"}
    points.delete(list(range(100)))
    assert points.count() == stored - 100
    db.close()
    with vecstore.open(small_disk / "test.vecstore") as db:
        assert db.collection("points").count() == stored - 100
        assert db.check() == []


@pytest.mark.parametrize("room", [0, 4096, 8192, 20_000, 100_000])
def test_a_disk_without_room_for_a_new_database_leaves_nothing(small_disk, run_python, room):
    (small_disk / "large").write_bytes(bytes((2 << 20) - room))
    # In a process of its own: LMDB alone would crash.
    run_python(
        """
        import sys, vecstore
        try:
            vecstore.open(sys.argv[1])
        except vecstore.StoreFullError as error:
            assert "cannot open" in str(error), error
        else:
            raise AssertionError
        """,
        small_disk / "test.vecstore",
    )

    assert [item.name for item in small_disk.iterdir()] == ["large"]


def test_a_database_on_a_full_disk_is_still_read(small_disk, run_python):
    with vecstore.open(small_disk / "test.vecstore") as db:
        db.collection("points", dim=2).add(vectors=[1, 0], ids=["a"])
    with contextlib.suppress(OSError), (small_disk / "large").open("wb", 0) as file:
        while True:
            file.write(bytes(1000))
    run_python(
        """
        import sys, vecstore
        with vecstore.open(sys.argv[1]) as db:
            points = db.collection("points")
            assert points.get("a").id == "a"
            assert points.search([1, 0]).ids == ["a"]
            assert db.check() == []
            try:
                points.add(vectors=[[1, 1]] * 1000)
            except vecstore.StoreFullError:
                pass
            assert points.count() == 1
        """,
        small_disk / "test.vecstore",
    )


# read_only


def test_read_only_reads_and_refuses_to_write(db, points, path):
    before = content(points)
    db.close()
    with vecstore.open(path, read_only=True) as reader:
        there = reader.collection("points")
        assert reader.read_only
        assert content(there) == before
        assert there.search([1, 0], k=1).ids == ["a"]
        assert reader.check() == []
        for work in (
            lambda: there.add(vectors=[1, 0]),
            lambda: there.delete("a"),
            lambda: there.update("a", metadata={}),
            lambda: reader.drop("points"),
            lambda: reader.rename("points", "other"),
            lambda: reader.compact(),
            lambda: reader.transaction().__enter__(),
        ):
            with pytest.raises(ReadOnlyError, match="read_only=True"):
                work()
        with pytest.raises(NotFoundError, match="'other'; this file has: 'points'"):
            reader.collection("other", dim=3)
        reader.sync()


def test_read_only_opens_no_file_that_is_not_there(path):
    refuse(path, StoreError, "does not exist", read_only=True)


def test_read_only_opens_no_empty_file(path):
    path.touch()
    refuse(path, FormatError, "is empty", read_only=True)


def test_read_only_makes_no_database_in_memory():
    with pytest.raises(ValueError, match="read_only"):
        vecstore.open(":memory:", read_only=True)


def test_read_only_sees_what_another_process_writes(db, points, path, run_python):
    db.close()
    with vecstore.open(path, read_only=True) as reader:
        assert reader.collection("points").count() == 3
        run_python(
            """
            import sys, vecstore
            with vecstore.open(sys.argv[1]) as db:
                db.collection("points").add(vectors=[1, 0], ids=["d"])
            """,
            path,
        )
        assert reader.collection("points").get("d").id == "d"


def test_a_backup_may_be_made_of_a_database_that_is_only_read(db, points, path, tmp_path):
    db.close()
    with vecstore.open(path, read_only=True) as reader:
        reader.backup(tmp_path / "copy.vecstore")
    with vecstore.open(tmp_path / "copy.vecstore") as copy:
        assert copy.collection("points").count() == 3


# durable=False


def test_what_was_not_flushed_is_there_after_a_kill(run_python, path):
    run_python(
        """
        import os, signal, sys, vecstore
        db = vecstore.open(sys.argv[1], durable=False)
        points = db.collection("points", dim=2)
        for i in range(50):
            points.add(vectors=[1, i], ids=[i])
        db.sync()
        for i in range(50, 100):
            points.add(vectors=[1, i], ids=[i])
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
        status=-9,
    )
    with vecstore.open(path) as db:
        assert db.collection("points").count() == 100
        assert db.check() == []


@pytest.mark.parametrize("durable", [False, True])
def test_sync_may_be_called_at_any_time(path, durable):
    with vecstore.open(path, durable=durable) as db:
        db.sync()
        points = db.collection("points", dim=2)
        with db.transaction():
            points.add(vectors=[1, 0])
            db.sync()
        with db.snapshot():
            db.sync()
        assert points.count() == 1


# The same file twice


@pytest.mark.parametrize("way", ["path", "symlink", "hard link", "relative", "other folder"])
def test_a_file_is_opened_once_per_process_by_whatever_path(db, points, path, way, monkeypatch):
    other = path.with_name("other")
    if way == "path":
        other = path
    elif way == "symlink":
        other.symlink_to(path)
    elif way == "hard link":
        other.hardlink_to(path)
    elif way == "relative":
        monkeypatch.chdir(path.parent)
        other = Path(path.name)
    else:
        other.symlink_to(path.parent)
        other = other / path.name
    with pytest.raises(LockedError, match="already open in this process"):
        vecstore.open(other)
    with pytest.raises(LockedError, match="already open in this process"):
        vecstore.open(other, read_only=True)

    assert points.count() == 3
    points.add(vectors=[1, 0])


def test_a_link_leads_to_the_file_and_its_lock(db, points, path, tmp_path, run_python):
    link = tmp_path / "link.vecstore"
    link.symlink_to(path)
    with db.snapshot() as view:
        run_python(
            """
            import sys, vecstore
            with vecstore.open(sys.argv[1]) as db:
                for i in range(20):
                    db.collection("points").upsert(vectors=[1, i], ids=["a"])
            """,
            link,
        )
        # Two lock files would let the other process use these pages again.
        assert view.collection("points").get("a", include=("vector",)).vector.tolist() == [1, 0]
    assert not link.with_name(link.name + "-lock").exists()


def test_a_link_to_nothing_makes_the_file_that_it_names(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    vecstore.open(tmp_path / "link").close()

    assert (tmp_path / "target").is_file()
    assert (tmp_path / "link").is_symlink()


def test_compacting_through_a_link_leaves_the_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with vecstore.open(tmp_path / "link") as db:
        db.collection("points", dim=2).add(vectors=[1, 0])
        db.compact()

    assert (tmp_path / "link").is_symlink()
    with vecstore.open(tmp_path / "target") as db:
        assert db.collection("points").count() == 1


def test_threads_that_open_one_new_file_together_get_one_database(path):
    start, found = threading.Barrier(8), []

    def work():
        start.wait(LONG)
        try:
            found.append(vecstore.open(path))
        except LockedError:
            found.append(None)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    (db,) = filter(None, found)
    db.collection("points", dim=2).add(vectors=[1, 0])
    db.close()


def test_processes_that_make_one_new_file_together_all_succeed(path):
    program = textwrap.dedent("""
        import sys, vecstore
        with vecstore.open(sys.argv[1]) as db:
            points = db.collection("points", dim=2)
            for i in range(5):
                points.add(vectors=[1, i], ids=[f"{sys.argv[2]}-{i}"])
    """)
    command = [sys.executable, "-W", "error", "-c", program, str(path)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(6)]

    assert [process.wait(60) for process in processes] == [0] * 6
    with vecstore.open(path) as db:
        assert db.collection("points").count() == 30
        assert db.check() == []


# Closing


def test_every_use_after_close_is_refused(db, points, path, tmp_path):
    view, scan = db.snapshot(), points.scan()
    hits = points.search([1, 0])
    view.close()
    db.close()

    assert db.closed
    for work in (
        lambda: points.count(),
        lambda: points.search([1, 0]),
        lambda: points.add(vectors=[1, 0]),
        lambda: points.get("a"),
        lambda: points.spec,
        lambda: next(scan),
        lambda: len(points),
        lambda: "a" in points,
        lambda: db.collection("points"),
        lambda: db.collections(),
        lambda: "points" in db,
        lambda: db.drop("points"),
        lambda: db.rename("points", "other"),
        lambda: db.snapshot(),
        lambda: db.transaction().__enter__(),
        lambda: db.check(),
        lambda: db.backup(tmp_path / "copy.vecstore"),
        lambda: db.compact(),
        lambda: db.sync(),
        lambda: db.stats(),
        lambda: view.collections(),
    ):
        with pytest.raises(ClosedError, match="closed"):
            work()
    assert repr(db) == f"<Database {str(path)!r} closed>"
    assert hits.ids == ["a", "c", "b"]


def test_closing_twice_does_nothing(db):
    db.close()
    db.close()


def test_with_closes_also_after_an_error(path):
    with pytest.raises(ZeroDivisionError), vecstore.open(path) as db:
        raise ZeroDivisionError

    assert db.closed


def test_with_may_stand_inside_with(path):
    with vecstore.open(path) as db:
        with db:
            db.collection("points", dim=2)
        assert db.closed
        with pytest.raises(ClosedError):
            db.collections()


def test_a_closed_database_is_not_entered_again(path):
    db = vecstore.open(path)
    db.close()

    with db, pytest.raises(ClosedError):
        db.collections()


def test_a_database_that_nobody_holds_any_more_lets_go_of_its_file(path):
    db = vecstore.open(path)
    points = db.collection("points", dim=2)
    points.add(vectors=[1, 0])
    view, gone = db.snapshot(), weakref.ref(db)
    del db, points, view
    gc.collect()

    assert gone() is None
    with vecstore.open(path, timeout=0) as db:
        assert db.collection("points").count() == 1


def test_a_database_in_a_cycle_lets_go_of_its_file(path):
    db = vecstore.open(path)
    db.me = [db, db.snapshot()]
    del db
    gc.collect()

    vecstore.open(path, timeout=0).close()


def test_closing_inside_a_transaction_is_refused(db, points):
    with db.transaction(), pytest.raises(StoreError, match=r"inside db\.transaction"):
        db.close()
    assert points.count() == 3


def test_closing_names_the_snapshot_that_is_open(db, points):
    with db.snapshot(), pytest.raises(LockedError, match="1 open snapshots of threads MainThread"):
        db.close(0)
    assert points.count() == 3


def test_closing_while_other_threads_search_ends_their_searches(path, rng):
    db = vecstore.open(path)
    points = db.collection("points", dim=32)
    points.add(vectors=rng.normal(size=(3000, 32)))
    query, started, ends = rng.normal(size=32), threading.Barrier(5), []

    def search():
        started.wait(LONG)
        try:
            while True:
                assert len(points.search(query, k=5)) == 5
        except Exception as error:
            ends.append(type(error))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait(LONG)
    db.close(LONG)
    for thread in threads:
        thread.join(LONG)

    assert ends == [ClosedError] * 4


@pytest.mark.parametrize(
    ("thread", "handle"),
    [
        ("none", "open"),
        ("none", "transaction"),
        ("none", "scan"),
        ("reads", "open"),
        ("reads", "transaction"),
        ("writes", "open"),
        ("writes", "snapshot"),
        ("holds a snapshot", "open"),
        ("searches", "open"),
        ("searches", "snapshot"),
    ],
)
def test_the_interpreter_exits_normally_whatever_is_open(run_python, path, thread, handle):
    run_python(
        """
        import sys, threading
        import numpy as np
        import vecstore
        db = vecstore.open(sys.argv[1])
        points = db.collection("points", dim=64)
        points.add(vectors=np.random.default_rng(1).normal(size=(2000, 64)), ids=range(2000))
        started = threading.Event()
        threading.excepthook = lambda args: None

        def work():
            view = db.snapshot()
            if sys.argv[2] != "holds a snapshot":
                view.close()
            while True:
                if sys.argv[2] == "reads":
                    points.count()
                if sys.argv[2] == "searches":
                    points.search_many(np.ones((50, 64)), k=3)
                if sys.argv[2] == "writes":
                    points.upsert(vectors=np.ones((3, 64)), ids=[1, 2, 3], timeout=0.1)
                started.set()
                if sys.argv[2] == "holds a snapshot":
                    threading.Event().wait()

        if sys.argv[2] != "none":
            threading.Thread(target=work, daemon=True).start()
            started.wait()
        if sys.argv[3] == "snapshot":
            view = db.snapshot()
        if sys.argv[3] == "transaction":
            context = db.transaction()
            context.__enter__()
            points.delete([5])
        if sys.argv[3] == "scan":
            scan = points.scan()
            next(scan)
        """,
        path,
        thread,
        handle,
    )
    with vecstore.open(path) as db:
        assert db.check() == []
        assert db.collection("points").count() == 2000


# ":memory:"


def leftovers():
    folders = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    return {
        item
        for folder in folders
        if folder.is_dir()
        for item in folder.iterdir()
        if "vecstore" in item.name and item.name.startswith("memory-")
    }


def test_a_database_in_memory_is_a_database(memory, rng):
    assert memory.path == ":memory:"
    points = memory.collection("points", dim=8)
    points.add(vectors=rng.normal(size=(500, 8)), ids=range(500))
    points.delete(list(range(0, 500, 2)))
    before = content(points)

    assert memory.compact() > 0
    assert content(points) == before
    memory.sync()
    assert memory.stats()["file_bytes"] > 0


def test_databases_in_memory_share_nothing():
    with vecstore.open(":memory:") as one, vecstore.open(":memory:") as two:
        one.collection("points", dim=2)
        assert two.collections() == []


def test_two_hundred_databases_in_memory_are_open_at_once(run_python):
    before = leftovers()
    run_python("""
        import resource
        import vecstore
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limit))
        databases = [vecstore.open(":memory:") for _ in range(200)]
        for number, db in enumerate(databases):
            db.collection("points", dim=2).add(vectors=[1, number], ids=[number])
        for number, db in enumerate(databases):
            assert db.collection("points").get(number).id == number
            assert db.check() == []
        databases[7].compact()
        for db in databases[::2]:
            db.close()
    """)

    assert leftovers() <= before


def test_a_database_in_memory_leaves_nothing_behind():
    before = leftovers()
    with vecstore.open(":memory:") as db:
        db.collection("points", dim=2).add(vectors=[1, 0])
        # Already while it is open: a kill leaves nothing either.
        assert leftovers() <= before
        db.compact()
        assert leftovers() <= before
    assert leftovers() <= before


def test_a_backup_brings_a_database_in_memory_to_disk(memory, path):
    memory.collection("points", dim=2).add(vectors=[1, 0], ids=["a"])
    memory.backup(path)

    with vecstore.open(path) as db:
        assert db.collection("points").get("a").id == "a"


# Collections: drop and rename


def test_a_dropped_collection_is_gone_and_its_handles_say_so(db, points):
    db.drop("points")

    assert db.collections() == []
    assert "points" not in db
    with pytest.raises(NotFoundError, match="no longer exists"):
        points.count()


def test_a_new_collection_under_a_dropped_name_is_another_one(db, points):
    db.drop("points")
    again = db.collection("points", dim=5)

    assert again.count() == 0
    with pytest.raises(NotFoundError, match="no longer exists"):
        points.add(vectors=[1, 0])


def test_dropping_an_unknown_collection_names_the_known_ones(db, points):
    with pytest.raises(NotFoundError, match="no collection 'pionts'; this file has: 'points'"):
        db.drop("pionts")


def test_a_renamed_collection_keeps_its_records_and_its_handles(db, points):
    before = content(points)
    renamed = db.rename("points", "dots")

    assert db.collections() == ["dots"]
    assert points.name == renamed.name == "dots"
    assert content(points) == content(renamed) == before


def test_renaming_to_a_taken_name_changes_nothing(db, points):
    db.collection("other", dim=3)
    with pytest.raises(AlreadyExistsError, match="'other'"):
        db.rename("points", "other")
    assert db.collections() == ["other", "points"]


def test_reopening_with_another_declaration_names_both(db, points):
    for options, words in (
        ({"dim": 3}, "dim=2, not 3"),
        ({"metric": "l2"}, "metric='cosine', not 'l2'"),
        ({"mrl": (1, 2)}, r"mrl=\(\), not \(1, 2\)"),
    ):
        with pytest.raises(SpecError, match=words):
            db.collection("points", **options)


# Transactions


def test_a_transaction_covers_several_collections(db, points):
    others = db.collection("others", dim=3)
    with undone(db):
        points.add(vectors=[1, 0], ids=["d"])
        others.add(vectors=[1, 0, 0], ids=["d"])
        db.collection("third", dim=4)
        db.drop("others")
        db.rename("points", "renamed")

    assert db.collections() == ["others", "points"]
    assert (points.count(), others.count()) == (3, 0)


def test_a_transaction_reads_its_own_writes_and_others_do_not(db, points):
    with db.transaction():
        points.add(vectors=[5, 5], ids=["d"], metadata={"n": 9})
        points.delete("a")
        assert points.count() == 3
        assert points.get("d").metadata == {"n": 9}
        assert points.search([1, 1], k=2, where={"n": 9}).ids == ["d"]
        assert [item.id for item in points.scan()] == ["b", "c", "d"]
        assert in_thread(lambda: points.count()) == 3
        assert in_thread(lambda: points.get("d")) is None
        assert db.check() == []
    assert in_thread(lambda: points.get("d").id) == "d"


def test_a_call_that_fails_inside_a_transaction_rolls_back_alone(db, points):
    with db.transaction():
        points.add(vectors=[1, 0], ids=["d"])
        with pytest.raises(AlreadyExistsError):
            points.add(vectors=[[1, 0], [1, 1]], ids=["e", "a"])
        with pytest.raises(NotFoundError):
            points.update(["d", "x"], metadata=[{"y": 1}, {}])
        with pytest.raises(AlreadyExistsError):
            db.rename("points", db.collection("other", dim=2).name)
        points.add(vectors=[1, 0], ids=["f"])

    assert [item.id for item in points.scan()] == ["a", "b", "c", "d", "f"]
    assert points.get("d").metadata is None
    assert db.check() == []


def test_a_transaction_inside_another_is_a_part_that_rolls_back_alone(db, points):
    with db.transaction():
        points.add(vectors=[1, 0], ids=["d"])
        with undone(db):
            points.add(vectors=[1, 0], ids=["e"])
            with db.transaction():
                points.add(vectors=[1, 0], ids=["f"])
            assert points.count() == 6
        assert points.count() == 4
        with db.transaction():
            points.delete("a")
    assert [item.id for item in points.scan()] == ["b", "c", "d"]


def test_the_tables_of_a_snapshot_survive_parts_that_were_rolled_back(db, rng):
    points = db.collection("many", dim=4, metric="dot")
    vectors = rng.normal(size=(300, 4)).astype(np.float32)
    points.add(vectors=vectors, ids=range(300))
    for round_ in range(6):
        # Fills the address tables of this version.
        assert points.search(vectors[7], k=300).ids[0] is not None
        with db.transaction():
            with undone(db):
                points.upsert(vectors=-vectors[:100], ids=range(100))
            vectors[round_ * 20 : round_ * 20 + 20] *= -1
            changed = range(round_ * 20, round_ * 20 + 20)
            points.upsert(vectors=vectors[changed], ids=changed)
        query = rng.normal(size=4).astype(np.float32)
        hits = points.search(query, k=300)
        scores = vectors.astype(np.float64) @ query
        np.testing.assert_allclose(hits.scores, [scores[i] for i in hits.ids], rtol=1e-5, atol=1e-5)
        assert sorted(hits.ids) == list(range(300))


def test_a_transaction_belongs_to_its_thread(db, points):
    with db.transaction(), pytest.raises(LockedError, match="MainThread"):
        in_thread(lambda: points.add(vectors=[1, 0], timeout=0.01))


def test_a_transaction_that_another_thread_ends_keeps_nothing(db, points):
    transaction = db.transaction()
    transaction.__enter__()
    points.add(vectors=[1, 0], ids="lost")
    with pytest.raises(StoreError, match="began in thread MainThread"):
        in_thread(lambda: transaction.__exit__(None, None, None))
    assert points.get("lost") is None
    points.add(vectors=[1, 0], ids="d")
    in_thread(lambda: points.add(vectors=[1, 0], ids="e"))
    assert points.count() == 5


def test_a_part_that_another_thread_ends_leaves_the_transaction_whole(db, points):
    with db.transaction():
        points.add(vectors=[1, 0], ids="d")
        part = db.transaction()
        part.__enter__()
        points.add(vectors=[1, 0], ids="lost")
        with pytest.raises(StoreError, match="must end there"):
            in_thread(lambda: part.__exit__(None, None, None))
        points.add(vectors=[1, 0], ids="e")
    assert [record.id for record in points.scan()] == ["a", "b", "c", "d", "e"]


def test_a_transaction_whose_thread_is_no_more_is_rolled_back_by_the_next(db, points):
    transaction = db.transaction()
    in_thread(transaction.__enter__)
    with pytest.raises(LockedError):
        points.add(vectors=[1, 0], ids="d", timeout=0.01)
    with contextlib.suppress(StoreError):
        transaction.__exit__(None, None, None)
    points.add(vectors=[1, 0], ids="d", timeout=1)
    assert points.count() == 4


def test_a_transaction_collected_in_another_thread_does_not_crash(run_python, tmp_path):
    # LMDB's lock belongs to the thread that took it, and the lock file must not be unmapped.
    program = """
        import sys, threading, vecstore

        def leave(path):
            db = vecstore.open(path)
            held = [db.transaction()]
            held[0].__enter__()
            db.collection("c", dim=2).add(vectors=[1, 2])
            thread = threading.Thread(target=held.clear)
            thread.start()
            thread.join()

        leave(sys.argv[1] + "/left")
        for name in "abc":
            with vecstore.open(sys.argv[1] + "/" + name) as db:
                db.collection("c", dim=2).add(vectors=[1, 2])
                print(name)
    """
    assert run_python(program, tmp_path).split() == ["a", "b", "c"]


def test_transactions_that_overlap_keep_nothing_and_leave_the_thread_usable(db, points):
    def work(name):
        with db.transaction():
            points.add(vectors=[1, 0], ids=name)
            yield

    first, second, third = work("first"), work("second"), work("third")
    for generator in (first, second, third):
        next(generator)
    with pytest.raises(StoreError, match="overlapped"):
        next(first)
    with pytest.raises(ClosedError, match="has ended"):
        points.add(vectors=[1, 0], ids="inside")
    second.close()
    with pytest.raises(StoreError, match="overlapped"):
        next(third)
    points.add(vectors=[1, 0], ids="d")
    assert [record.id for record in points.scan()] == ["a", "b", "c", "d"]


def test_a_transaction_that_does_nothing_is_one(db, points):
    before = db.stats()
    with db.transaction():
        pass
    assert db.stats() == before


def test_waiting_for_a_transaction_has_an_end(db, points):
    with db.transaction():

        def work():
            with db.transaction(timeout=0.01):
                raise AssertionError

        with pytest.raises(LockedError, match="thread MainThread"):
            in_thread(work)


def test_a_transaction_after_a_failed_one_works(db, points):
    for _ in range(3):
        with undone(db):
            points.delete(where={})
    with db.transaction():
        points.delete("a")
    assert points.count() == 2


def test_a_transaction_larger_than_the_map_says_that_the_next_one_has_more_room(path, rng):
    db = vecstore.Database(Store(path, start_map=1 << 20))
    points = db.collection("points", dim=64)
    points.add(vectors=rng.normal(size=(10, 64)))

    def attempt():
        with db.transaction():
            for _ in range(20):
                points.add(vectors=rng.normal(size=(200, 64)))

    with pytest.raises(StoreFullError, match="try it again"):
        attempt()
    assert points.count() == 10
    for _ in range(3):
        with contextlib.suppress(StoreFullError):
            attempt()
            break
    assert points.count() == 4010
    assert db.check() == []
    db.close()


# Snapshots


def test_a_snapshot_repeats_its_reads_while_others_write(db, points):
    with db.snapshot() as view:
        there = view.collection("points")
        before = content(there), there.search([1, 0]).ids, there.count(where={"n": 1})
        points.delete("a")
        points.add(vectors=[1, 0], ids=["z"], metadata={"n": 1})
        points.update("b", metadata={"n": 2})
        db.collection("other", dim=2)
        assert (content(there), there.search([1, 0]).ids, there.count(where={"n": 1})) == before
        assert view.collections() == ["points"]
    assert db.collections() == ["other", "points"]


def test_a_snapshot_sees_a_collection_that_was_dropped_meanwhile(db, points):
    with db.snapshot() as view:
        db.drop("points")
        db.collection("points", dim=7)
        assert view.collection("points").count() == 3


def test_a_snapshot_only_reads(db, points):
    with db.snapshot() as view:
        there = view.collection("points")
        for work in (
            lambda: there.add(vectors=[1, 0]),
            lambda: there.delete("a"),
            lambda: there.update("a", metadata={}),
        ):
            with pytest.raises(ReadOnlyError, match="snapshot only reads"):
                work()
        with pytest.raises(NotFoundError):
            view.collection("other")


def test_a_snapshot_inside_a_transaction_is_of_what_was_committed(db, points):
    with db.transaction():
        points.add(vectors=[1, 0], ids=["d"])
        with db.snapshot() as view:
            assert view.collection("points").count() == 3
        assert points.count() == 4


def test_a_snapshot_that_has_ended_says_so(db, points):
    view = db.snapshot()
    there, scan = view.collection("points"), view.collection("points").scan()
    view.close()
    view.close()

    for work in (lambda: there.count(), lambda: next(scan), lambda: view.collections()):
        with pytest.raises(ClosedError, match="snapshot has ended"):
            work()


def test_threads_may_share_a_snapshot(db, points):
    with db.snapshot() as view:
        there = view.collection("points")
        stop = threading.Event()

        def write():
            number = 0
            while not stop.is_set():
                points.upsert(vectors=[number, 1], ids=["a"])
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        expected = content(there)
        results = [in_thread(lambda: content(there)) for _ in range(20)]
        stop.set()
        writer.join(LONG)
    assert results == [expected] * 20


# Backup


def test_a_backup_is_a_database_with_the_same_content(db, points, path, tmp_path):
    target = tmp_path / "copy.vecstore"
    size = db.backup(target)

    assert target.stat().st_size == size
    assert {item.name for item in tmp_path.iterdir()} == {
        path.name,
        f"{path.name}-lock",
        target.name,
    }
    with vecstore.open(target) as copy:
        assert content(copy.collection("points")) == content(points)
        assert copy.check() == []


def test_a_backup_never_overwrites(db, points, tmp_path):
    target = tmp_path / "copy.vecstore"
    target.write_text("mine")
    with pytest.raises(AlreadyExistsError, match="never overwrites"):
        db.backup(target)
    assert target.read_text() == "mine"
    with pytest.raises(AlreadyExistsError):
        db.backup(db.path)


@pytest.mark.parametrize("odd", [5, None, b"bytes", ["a"], 1.5])
def test_what_is_no_path_is_refused(db, odd):
    with pytest.raises(vecstore.UsageError, match="a path is a str"):
        vecstore.open(odd)
    with pytest.raises(vecstore.UsageError, match="a path is a str"):
        db.backup(odd)


def test_a_backup_takes_away_what_a_killed_one_left(db, points, tmp_path):
    (tmp_path / "copy.vecstore-part").write_bytes(b"half")
    db.backup(tmp_path / "copy.vecstore")
    assert not (tmp_path / "copy.vecstore-part").exists()
    with vecstore.open(tmp_path / "copy.vecstore") as copy:
        assert copy.check() == []


@pytest.mark.parametrize("name", ["no/such/folder", "x" * 300, "\0"])
def test_a_backup_that_cannot_be_written_leaves_nothing(db, points, tmp_path, name):
    before = {item.name for item in tmp_path.iterdir()}
    with pytest.raises(StoreError):
        db.backup(f"{tmp_path}/{name}")

    assert {item.name for item in tmp_path.iterdir()} == before


def test_backups_made_while_others_write_hold_whole_batches(db, tmp_path, rng):
    points = db.collection("batches", dim=4)
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            points.add(vectors=rng.normal(size=(10, 4)), metadata=[{"batch": number}] * 10)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    copies = [tmp_path / f"copy{number}" for number in range(5)]
    for copy in copies:
        db.backup(copy)
    stop.set()
    writer.join(LONG)
    counts = []
    for copy in copies:
        with vecstore.open(copy) as there:
            counts.append(there.collection("batches").count())
            assert there.check() == []
    assert all(count % 10 == 0 for count in counts)
    assert counts == sorted(counts)


# Compact


def test_compacting_gives_space_back_and_keeps_everything(db, path, rng):
    points = db.collection("points", dim=32)
    points.add(vectors=rng.normal(size=(3000, 32)), ids=range(3000))
    points.delete(list(range(100, 3000)))
    before, size = content(points), path.stat().st_size
    gained = db.compact()

    assert gained == size - path.stat().st_size > size // 2
    assert content(points) == before
    points.add(vectors=rng.normal(size=(10, 32)))
    assert points.count() == 110


def test_the_same_path_works_after_compacting(db, points, path, run_python):
    before = content(points)
    db.compact()
    points.add(vectors=[1, 0], ids=["d"])
    with pytest.raises(LockedError, match="already open in this process"):
        vecstore.open(path)
    run_python(
        """
        import sys, vecstore
        with vecstore.open(sys.argv[1]) as db:
            db.collection("points").add(vectors=[0, 1], ids=["e"])
        """,
        path,
    )
    assert content(points)[:3] == before
    assert [item.id for item in points.scan()] == ["a", "b", "c", "d", "e"]
    db.compact()
    db.close()
    with vecstore.open(path) as again:
        assert again.collection("points").count() == 5
    names = {item.name for item in path.parent.iterdir()}
    assert names == {path.name, f"{path.name}-lock"}


OPENER = """
    import sys, vecstore
    db = vecstore.open(sys.argv[1], read_only=sys.argv[2] == "read only")
    print("open", flush=True)
    sys.stdin.readline()
    print(db.collection("points").count(), flush=True)
    db.close()
"""


@pytest.mark.parametrize("how", ["read only", "to write"])
def test_compacting_is_refused_while_another_process_has_the_file_open(db, points, path, how):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(OPENER), str(path), how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    before, inode = content(points), path.stat().st_ino
    with pytest.raises(LockedError, match=r"another process has .* open"):
        db.compact()
    assert content(points) == before
    assert path.stat().st_ino == inode
    assert {item.name for item in path.parent.iterdir()} == {path.name, f"{path.name}-lock"}
    points.add(vectors=[1, 0], ids=["d"])
    assert process.communicate("\n", timeout=LONG)[0] == "4\n"

    db.compact()
    assert path.stat().st_ino != inode


def test_compacting_names_the_snapshots_that_did_not_end(db, points, path):
    inode = path.stat().st_ino
    with db.snapshot() as view:
        with pytest.raises(LockedError, match=r"cannot compact: waited 0\.01 s for 1 open snap"):
            db.compact(timeout=0.01)
        assert view.collection("points").count() == 3
    assert path.stat().st_ino == inode
    db.compact(timeout=0)


def test_compacting_waits_for_a_writer_no_longer_than_it_may(db, points):
    with db.transaction(), pytest.raises(LockedError, match="thread MainThread"):
        in_thread(lambda: db.compact(timeout=0.01))


def test_compacting_inside_a_transaction_is_refused(db, points):
    with db.transaction(), pytest.raises(StoreError, match=r"inside db\.transaction"):
        db.compact()


def test_compacting_keeps_the_modes_of_the_file(db, points, path):
    path.chmod(0o640)
    db.compact()

    assert path.stat().st_mode & 0o777 == 0o640


def test_compacting_an_empty_database_works(db):
    db.compact()
    db.collection("points", dim=2).add(vectors=[1, 0])


def test_threads_go_on_while_another_compacts(db, rng):
    points = db.collection("points", dim=4, metric="dot")
    vectors = rng.normal(size=(500, 4)).astype(np.float32)
    points.add(vectors=vectors, ids=range(500))
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            hits = points.search(vectors[3], k=500)
            scores = vectors.astype(np.float64)[hits.ids] @ vectors[3]
            np.testing.assert_allclose(hits.scores, scores, rtol=1e-5, atol=1e-5)
            seen.append(len(hits))

    def write():
        while not stop.is_set():
            points.update(7, metadata={"x": 1})

    box = []

    def guarded(work):
        try:
            work()
        except Exception as error:
            box.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (read, read, write)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        db.compact()
    stop.set()
    for thread in threads:
        thread.join(LONG)
    assert box == []
    assert set(seen) == {500}


# Others


def test_stats_inside_a_transaction_count_its_writes(db, points):
    with db.transaction():
        points.add(vectors=[1, 0], ids="d")
        db.collection("new", dim=2)
        found = db.stats()["collections"]
    assert {name: stats["records"] for name, stats in found.items()} == {"new": 0, "points": 4}


def test_stats_describe_the_file(db, points, path):
    stats = db.stats()

    assert stats["path"] == str(path)
    assert stats["format"] == layout.PLAIN_FORMAT
    assert stats["file_bytes"] == path.stat().st_size
    assert stats["used_bytes"] <= stats["file_bytes"] <= stats["map_bytes"]
    assert stats["collections"]["points"]["records"] == 3


def test_a_database_knows_which_collections_it_has(db, points):
    assert "points" in db
    assert "other" not in db
    assert 5 not in db


def test_another_process_reads_while_this_one_writes(db, points, path):
    program = textwrap.dedent("""
        import sys, vecstore
        with vecstore.open(sys.argv[1], read_only=True) as db:
            points = db.collection("points")
            seen = set()
            print("ready", flush=True)
            while "end" not in points:
                with db.snapshot() as view:
                    there = view.collection("points")
                    numbers = {item.metadata["n"] for item in there.scan(limit=3)}
                    assert len(numbers) == 1, numbers
                    seen |= numbers
            print(len(seen))
    """)
    command = [sys.executable, "-W", "error", "-c", program, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    for number in range(100):
        points.update(["a", "b", "c"], metadata=[{"n": number}] * 3)
    points.add(vectors=[1, 0], ids=["end"], metadata={"n": 0})

    out, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0
    assert int(out) >= 1
