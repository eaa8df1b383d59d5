"""How is a file copied? As LMDB copies it, without free pages, or value by value.

LMDB's own copy takes over pages as they are, and between the entries of a page lies what was
deleted there. Written value by value a copy has nothing but what is there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lmdb

from vecstore.errors import StoreError
from vecstore.store.faults import translated
from vecstore.store.files import remove, sync_folder

# What one transaction of a copy value by value holds in memory.
SLICE_BYTES = 64 << 20


def publish(env: Any, target: Path, txn: Any) -> int:
    """Write a copy that gets its name when it is whole; return its bytes.

    Raises:
        StoreError: The target exists, or cannot be written; nothing is left behind.
    """
    part = target.with_name(f"{target.name}-part")
    remove(part)
    size = copy(env, part, txn)
    try:
        with translated(f"write {target}"):
            _name(part, target)
    finally:
        remove(part)
    try:
        sync_folder(target.parent)
    except StoreError:
        remove(target)
        raise
    return size


def copy(env: Any, target: Path, txn: Any, mode: int = 0o600) -> int:
    """Write a compact copy of what a transaction reads, synced, to a file that must not exist.

    Raises:
        StoreError: As `publish`.
    """
    with translated(f"create {target}"):
        file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with translated(f"write {target}"):
            os.fchmod(file, mode)
            env.copyfd(file, compact=True, txn=txn)
            os.fsync(file)
            size = os.fstat(file).st_size
    except BaseException:
        remove(target)
        raise
    finally:
        os.close(file)
    return size


def rewrite(env: Any, databases: dict[str, Any], target: Path, mode: int, map_size: int) -> None:
    """Write the newest commit of an environment to a new file, synced.

    Args:
        env: The environment.
        databases: Its named databases.
        target: The new file, which must not exist.
        mode: Who may read and write it.
        map_size: Bytes of its map; more than what is to be written.

    Raises:
        StoreError: The new file's pages have another size, on which bulk values could not lie.
    """
    try:
        with translated(f"write {target}"):
            _rewrite(env, databases, target, map_size)
            target.chmod(mode)
    except BaseException:
        remove(target)
        raise


def _rewrite(env: Any, databases: dict[str, Any], target: Path, map_size: int) -> None:
    options: dict[str, Any] = {"lock": False, "sync": False, "lib_version": 0, "mode": 0o600}
    made = lmdb.open(
        os.fspath(target), map_size=map_size, subdir=False, max_dbs=len(databases), **options
    )
    try:
        before, after = env.stat()["psize"], made.stat()["psize"]
        if before != after:
            raise StoreError(
                f"{env.path()} has pages of {before} bytes, and here they would have {after}:"
                " rewrite it on a machine like the one that made it"
            )
        with env.begin(buffers=True) as txn:
            _put_all(txn, databases, made)
        made.sync(True)
    finally:
        made.close()


def _put_all(txn: Any, databases: dict[str, Any], made: Any) -> None:
    """Put the entries of all databases into a new file, in order, and commit now and then."""
    writing, size = made.begin(write=True), 0
    try:
        for name, database in databases.items():
            placed = made.open_db(name.encode(), txn=writing)
            with txn.cursor(db=database) as cursor:
                for key, value in cursor:
                    writing.put(key, value, db=placed, append=True)
                    size += len(value)
                    if size >= SLICE_BYTES:
                        writing.commit()
                        writing, size = made.begin(write=True), 0
        writing.commit()
    except BaseException:
        writing.abort()
        raise


def _name(part: Path, target: Path) -> None:
    """Give a finished file its name, which must be free."""
    try:
        # Unlike a rename, a link never takes the place of a file that came up meanwhile.
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:
        # This file system has no links.
        if target.exists():
            raise
        part.rename(target)
