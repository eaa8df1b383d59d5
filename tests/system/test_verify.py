"""`vecstore.open(path, verify=True)`: nothing of a file is trusted before all of it was read."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import attacks
import lmdb
import numpy as np
import pytest
import victims
from attacks import PAGE
from ordeal import Ordeal

import vecstore
from vecstore import CorruptionError, FormatError, LockedError, StoreError, layout
from vecstore.store import Store, files

Spoil = Callable[[bytearray], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return victims.make("lists", tmp_path_factory.mktemp("sound") / "sound.vecstore")


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound, tmp_path / "copy.vecstore"))


def spoil(path: Path, place: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)


def a_block(path: Path) -> attacks.Key:
    return next(key for key in attacks.values_of(path) if key[0] == "tiers")


def long_texts(path: Path) -> Path:
    """A file whose last page is in the middle of a value."""
    with vecstore.open(path) as db:
        points = db.collection("points", dim=8)
        for number in range(7):
            points.add("x" * (9000 if number % 3 else 60_000), vectors=np.ones(8), ids=number)
    (at,) = struct.unpack_from("<Q", path.read_bytes()[-PAGE:])
    assert at != path.stat().st_size // PAGE - 1
    return path


@pytest.mark.parametrize("read_only", [False, True])
def test_a_sound_file_opens(copy: Path, read_only: bool) -> None:
    with vecstore.open(copy, verify=True, read_only=read_only) as db:
        assert len(db.collection("points").search(np.ones(8), 5)) == 5


def test_a_new_file_and_one_in_memory_open(tmp_path: Path) -> None:
    with vecstore.open(tmp_path / "new.vecstore", verify=True) as db:
        db.collection("points", dim=2)
    with vecstore.open(":memory:", verify=True) as db:
        assert db.collections() == []


def test_a_flipped_bit_of_a_vector_is_found_though_lmdb_finds_none(copy: Path) -> None:
    key = a_block(copy)
    value = bytearray(attacks.values_of(copy)[key])
    value[layout.HEADER.size + layout.COLUMNS_BYTES + 3] ^= 1
    attacks.change(copy, ((key, bytes(value)),))

    with pytest.raises(CorruptionError, match=r"cannot trust .*: check found 1 problems.*checksum"):
        vecstore.open(copy, verify=True)
    # And it is free again.
    with vecstore.open(copy) as db:
        assert len(db.collection("points").search(np.ones(8), 5)) == 5


def test_damaged_pages_are_found_before_lmdb_sees_them(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The root of the database of databases.
    root = struct.unpack_from("<Q", copy.read_bytes(), PAGE + 16 + 24 + 48 + 40)[0]
    spoil(copy, root * PAGE + 8, b"\xff" * 6)
    monkeypatch.setattr(lmdb, "open", lambda *_, **__: pytest.fail("it was opened"))

    with pytest.raises(CorruptionError, match=r"cannot be trusted: \d+ problems, such as: main DB"):
        vecstore.open(copy, verify=True)


def test_all_problems_are_counted_and_the_first_ones_told(copy: Path) -> None:
    changes = []
    for key, value in attacks.values_of(copy).items():
        if key[0] == "records":
            changes.append((key, value[:-1] + bytes([value[-1] ^ 1])))
    attacks.change(copy, tuple(changes))

    with pytest.raises(CorruptionError, match=r"found \d\d\d problems, such as: [^;]*; [^;]*; "):
        vecstore.open(copy, verify=True)


def test_a_file_cut_in_the_middle_of_its_last_value_is_refused(tmp_path: Path) -> None:
    path = long_texts(tmp_path / "long.vecstore")
    os.truncate(path, path.stat().st_size - PAGE)

    for options in ({}, {"read_only": True}, {"verify": True}):
        with pytest.raises(CorruptionError, match=r"cut short|behind the end"):
            vecstore.open(path, **options)


def test_a_file_that_was_replaced_while_it_was_opened_is_not_taken_for_the_one_that_was_verified(
    copy: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_env = Store._open_env

    def replaced(store: Store) -> None:
        other = shutil.copy(sound, copy.with_name("other"))
        Path(other).replace(copy)
        open_env(store)

    monkeypatch.setattr(Store, "_open_env", replaced)

    with pytest.raises(LockedError, match="was replaced while it was opened"):
        vecstore.open(copy, verify=True)


def test_pages_are_verified_by_the_handle_and_not_by_the_name(copy: Path, tmp_path: Path) -> None:
    handle = os.open(copy, os.O_RDONLY)
    try:
        copy.rename(tmp_path / "elsewhere")
        copy.write_bytes(b"something else")

        assert files.verify(handle) == []
    finally:
        os.close(handle)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_lock_file_that_is_another_file_is_never_written(
    copy: Path, tmp_path: Path, link: Callable[[Path, Path], None], read_only: bool
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link(precious, copy.with_name(f"{copy.name}-lock"))

    with pytest.raises(StoreError, match="-lock is a link"):
        vecstore.open(copy, read_only=read_only)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"\xff" * 10, b"\xff" * 80_000])
def test_a_lock_file_of_anything_does_no_harm(copy: Path, content: bytes) -> None:
    lock = copy.with_name(f"{copy.name}-lock")
    lock.write_bytes(content)
    if content:
        os.truncate(lock, 1 << 40)

    with vecstore.open(copy, verify=True) as db:
        assert db.collection("points").count() > 0


def test_databases_nested_beyond_measure_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "nested.vecstore"
    with vecstore.open(path):
        pass
    # Each named database is one leaf, whose only value is the record of the next one.
    data, levels = bytearray(path.read_bytes()), 1200
    first = len(data) // PAGE
    pages = []
    for level in range(levels):
        record = struct.pack("<IHHQQQQQ", 0, 0, 1, 0, 1, 0, 1, first + level + 1)
        if level == levels - 1:
            record = struct.pack("<IHHQQQQQ", 0, 0, 0, 0, 0, 0, 0, 2**64 - 1)
        node = struct.pack("<HHHH", 48, 0, 2, 1) + b"x" + record
        upper = PAGE - len(node) - 1
        head = struct.pack("<QHHHH", first + level, 0, 2, 18, upper) + struct.pack("<H", upper)
        pages.append((head.ljust(upper, b"\0") + node).ljust(PAGE, b"\0"))
    header = PAGE * _newest(data) + 16 + 24
    struct.pack_into("<Q", data, header + 48 + 40, first)
    struct.pack_into("<Q", data, header + 96, first + levels - 1)
    path.write_bytes(bytes(data) + b"".join(pages))

    with pytest.raises(CorruptionError, match="cannot be verified: RecursionError"):
        vecstore.open(path, verify=True)


def _newest(data: bytes) -> int:
    numbers = [struct.unpack_from("<Q", data, page * PAGE + 144)[0] for page in (0, 1)]
    return numbers.index(max(numbers))


def test_a_database_of_another_kind_is_refused(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.vecstore"
    source = lmdb.open(str(copy), subdir=False, max_dbs=16, lib_version=0, lock=False)
    target = lmdb.open(str(other), subdir=False, max_dbs=16, lib_version=0, lock=False)
    for name in layout.DATABASES:
        made = target.open_db(name.encode(), reverse_key=name == "records")
        found = source.open_db(name.encode(), create=False)
        with source.begin() as reading, target.begin(write=True) as writing:
            for key, value in reading.cursor(found):
                writing.put(bytes(key), bytes(value), db=made)
    source.close()
    target.close()

    with pytest.raises(CorruptionError, match="database 'records' is of another kind"):
        vecstore.open(other)


def test_a_file_that_its_newest_header_calls_empty_is_never_written_over(copy: Path) -> None:
    # One bit of the number of the only commit of a file that was compacted.
    data = copy.read_bytes()
    copy.write_bytes(attacks.without_last_commit(data).data or b"")

    for options in ({}, {"read_only": True}, {"verify": True}):
        with pytest.raises((CorruptionError, FormatError)):
            vecstore.open(copy, **options)
    copy.write_bytes(data)
    with vecstore.open(copy, verify=True) as db:
        assert db.check() == []


def test_the_ordeal_notices_what_must_not_happen(sound: Path, copy: Path) -> None:
    with Ordeal("numpy", verify=True) as ordeal, pytest.MonkeyPatch.context() as patch:
        assert ordeal(copy).sound
        for name, work in (
            ("crash", lambda points: os.kill(os.getpid(), 11)),
            ("raw", lambda points: 1 / 0),
            ("memory", lambda points: bytes(2 << 30)),
        ):
            patch.setitem(victims.READS, "stats", work)
            found = ordeal(copy)

            assert not found.sound, name
            assert found.died == ("signal 11" if name == "crash" else "")
