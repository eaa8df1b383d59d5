"""vecstore: an embedded vector database. One file, one import, no server.

import vecstore

db = vecstore.open("notes.vecstore")
notes = db.collection("notes")
notes.add(["LMDB is a memory-mapped B+tree."], ids=["lmdb"], metadata=[{"year": 2011}])
hits = notes.search("embedded key-value store", where={"year": {"$lt": 2012}})
"""

from typing import TYPE_CHECKING, Any

from vecstore.check import Problem
from vecstore.collection import Collection
from vecstore.database import Database, open
from vecstore.encoders import Encoder
from vecstore.errors import (
    AlreadyExistsError,
    ClosedError,
    CorruptionError,
    EncoderError,
    EncoderMismatchError,
    FilterError,
    FormatError,
    LockedError,
    MissingExtraError,
    ModelNotFoundError,
    NotFoundError,
    ReadOnlyError,
    SnapshotExpiredError,
    SpecError,
    StoreError,
    StoreFullError,
    UsageError,
    VecstoreError,
    VectorError,
)
from vecstore.filters import F, Filter
from vecstore.hits import Audit, Deleted, Explanation, Facet, Hit, Hits, Passage, Plan, Record
from vecstore.salvaging import Salvage, Salvaged, salvage
from vecstore.spec import Chunking, CollectionSpec
from vecstore.view import View

if TYPE_CHECKING:
    from vecstore.asynchronous import AsyncCollection, AsyncDatabase
    from vecstore.salvaging import Salvage, Salvaged, salvage

__version__ = "0.1.0"

__all__ = [
    "AlreadyExistsError",
    "AsyncCollection",
    "AsyncDatabase",
    "Audit",
    "Chunking",
    "ClosedError",
    "Collection",
    "CollectionSpec",
    "CorruptionError",
    "Database",
    "Deleted",
    "Encoder",
    "EncoderError",
    "EncoderMismatchError",
    "Explanation",
    "F",
    "Facet",
    "Filter",
    "FilterError",
    "FormatError",
    "Hit",
    "Hits",
    "LockedError",
    "MissingExtraError",
    "ModelNotFoundError",
    "NotFoundError",
    "Passage",
    "Plan",
    "Problem",
    "ReadOnlyError",
    "Record",
    "Salvage",
    "Salvaged",
    "SnapshotExpiredError",
    "SpecError",
    "StoreError",
    "StoreFullError",
    "UsageError",
    "VecstoreError",
    "VectorError",
    "View",
    "open",
    "salvage",
]


def __getattr__(name: str) -> Any:
    # Few need these, and asyncio takes longer to import than most of this package.
    if name in ("AsyncCollection", "AsyncDatabase"):
        from vecstore import asynchronous

        return getattr(asynchronous, name)
    if name in ("Salvage", "Salvaged", "salvage"):
        from vecstore import salvaging

        return getattr(salvaging, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
