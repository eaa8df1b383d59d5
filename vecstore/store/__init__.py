"""Where do bytes live? One LMDB file: opening, snapshots, transactions, growth, copies.

The only package that imports lmdb. Three rules of LMDB are enforced here and nowhere else:

* The map may move (growth) or vanish (close, compact) only while nobody reads it: every snapshot
  holds the `Gate` shared, whoever moves the map holds it alone. Each move raises `epoch`.
* Nothing ever opens the lock file, and the data file is open once per process: closing a second
  handle would drop the process's POSIX locks, and LMDB would recycle pages that are being read.
* An environment does not survive a fork: in the child every handle raises ClosedError.
"""

from vecstore.store.environment import CLOSE_TIMEOUT, DEFAULT_TIMEOUT, START_MAP
from vecstore.store.faults import translated
from vecstore.store.files import path_name, remove
from vecstore.store.gate import Gate
from vecstore.store.transactions import Reader, Snapshot, Transaction
from vecstore.store.whole import Store

__all__ = [
    "CLOSE_TIMEOUT",
    "DEFAULT_TIMEOUT",
    "START_MAP",
    "Gate",
    "Reader",
    "Snapshot",
    "Store",
    "Transaction",
    "path_name",
    "remove",
    "translated",
]
