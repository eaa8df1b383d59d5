"""How does a file come to have a copy? Whole and synced, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vecstore.errors import StoreError
from vecstore.store.faults import translated
from vecstore.store.files import remove, sync_folder


def publish(env: Any, target: Path, txn: Any) -> int:
    """Write a copy that gets its name when it is whole; return its bytes.

    Raises:
        StoreError: The target exists, or cannot be written; nothing is left behind.
    """
    part = target.with_name(f"{target.name}-part")
    remove(part)
    size = write(env, part, txn)
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


def write(env: Any, target: Path, txn: Any, mode: int = 0o600) -> int:
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
