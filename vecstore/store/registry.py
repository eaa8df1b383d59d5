"""Which files does this process have open? None is opened twice; forks and exit are survived."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmdb import _envid

from vecstore.errors import LockedError

if TYPE_CHECKING:
    from vecstore.store.environment import Environment

# By the identity of the file, since several paths may lead to one.
_registry: dict[tuple[int, int], weakref.ref[Environment]] = {}
lock = threading.RLock()


def check_unregistered(info: os.stat_result, path: Path) -> None:
    """Raise LockedError if this process has the file open; `lock` is held."""
    found = _registry.get((info.st_dev, info.st_ino))
    if found is not None and found() is not None:
        raise LockedError(
            f"{path} is already open in this process; share that database between threads, or"
            " close it first"
        )


def register(store: Environment, info: os.stat_result, path: Path) -> None:
    """Note that a store has a file open; `lock` is held."""
    check_unregistered(info, path)
    _registry[info.st_dev, info.st_ino] = weakref.ref(store)


def forget(store: Environment) -> None:
    """Forget a store that has closed its file; `lock` is held."""
    for key, found in list(_registry.items()):
        if found() in (store, None):
            del _registry[key]


def stores() -> list[Environment]:
    """Every store that is open."""
    with lock:
        return [store for found in _registry.values() if (store := found()) is not None]


def _after_fork() -> None:
    global lock
    lock = threading.RLock()
    for store in stores():
        store.abandon()
    _registry.clear()
    # py-lmdb refuses a file that the process has open; to a child it means the parent's files too.
    _envid.env_keys = _keys_of_process


def _keys_of_process(path: str, subdir: int) -> tuple[Any, ...]:
    keys = _env_keys(path, subdir)  # type: ignore[no-untyped-call]  # lmdb has no stub for it
    return tuple((os.getpid(), key) for key in keys)


def _at_exit() -> None:
    for store in stores():
        # A thread that still reads keeps its map; the system takes it back.
        with contextlib.suppress(Exception):
            store.close(timeout=0.2)


_env_keys = _envid.env_keys
os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
