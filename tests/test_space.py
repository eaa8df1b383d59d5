"""Are the sizes that are told by counts those of the values and pages in the file?"""

from typing import Any

import numpy as np
import pytest
from indexed import clusters, filled, small_indexes

from vecstore import Database, layout


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
