"""Does an explanation say what a search did?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import DIM, clusters, filled, small_indexes

import vecstore
from vecstore import Database, UsageError
from vecstore.ann import compiled
from vecstore.encoders import HashEncoder

STAGES = ["encode", "resolve", "plan", "coarse", "scan", "settle", "hydrate"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_indexes(monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "offset": 2},
        {"where": {"third": 1}},
        {"min_score": 0.5},
        {"recall": "exact"},
        {"dims": 4},
        {"include": ("vector",)},
    ],
)
@pytest.mark.parametrize("kind", ["flat", "hash", "ivf"])
def test_the_hits_are_those_of_a_search(memory: Database, kind: Any, options: Any) -> None:
    collection = filled(memory, index=kind)
    for query in clusters(3, 5):
        found, hits = collection.explain(query, **options), collection.search(query, **options)
        assert found.hits == hits
        assert (found.method, found.reason) == (hits.plan.method, hits.plan.reason)
        assert found.expected_recall == hits.plan.expected_recall


def test_a_search_through_lists_is_explained(memory: Database) -> None:
    collection = filled(memory, index="ivf")
    found, stats = collection.explain(clusters(1)[0]), collection.stats()
    assert (found.method, found.index, found.rows, found.allowed) == ("index", "ivf", 900, 900)
    assert (found.lists, found.tail) == (stats["lists"], stats["tail_rows"])
    assert 1 <= found.lists_scanned < found.lists
    assert 10 <= found.compared <= found.scanned < 900
    assert list(found.milliseconds) == STAGES[1:]
    assert found.answered_by in ("compiled", "numpy")
    text = str(found)
    for part in (found.reason, "ivf", f"{found.lists} lists", "900", "hydrate"):
        assert part in text


def test_what_is_known_already_takes_no_time(memory: Database) -> None:
    collection = filled(memory, index="ivf")
    collection.search(clusters(1)[0])
    assert not {"resolve", "plan", "encode"} & set(collection.explain(clusters(1)[0]).milliseconds)


def test_numpy_answers_while_nothing_is_compiled(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = filled(memory, index="ivf")
    monkeypatch.setattr(compiled, "ready", lambda name: None)
    monkeypatch.setattr(compiled, "state", lambda name: "compiling")
    found = collection.explain(clusters(1)[0])
    assert (found.answered_by, found.kernels) == ("numpy", "compiling")
    assert "numpy (the kernels are being compiled)" in str(found)
    assert found.total_milliseconds == pytest.approx(sum(found.milliseconds.values()))


@pytest.mark.parametrize("where", [None, {"n": {"$lt": 100}}])
def test_comparing_all_is_explained(
    memory: Database, where: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "loaded", lambda name: False)
    collection = filled(memory, index="flat")
    found = collection.explain(clusters(1)[0], where=where)
    assert found.method == ("rows" if where else "scan")
    assert found.allowed == found.compared == (100 if where else 900)
    assert (found.lists, found.lists_scanned, found.scanned, found.tail) == (0, 0, 0, 0)
    assert (found.expected_recall, found.answered_by) == (1.0, "numpy")
    assert list(found.milliseconds) == ["resolve", "plan", "scan", "settle", "hydrate"]


def test_a_kernel_that_answered_is_known_to_be_compiled(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.compile_now()
    collection = filled(memory, index="flat")
    # As where no search wanted the other kernels yet.
    monkeypatch.setattr(compiled, "state", lambda name: "numpy")
    found = collection.explain(clusters(1)[0])
    assert (found.method, found.answered_by, found.kernels) == ("scan", "compiled", "compiled")


def test_a_text_takes_time_to_embed(memory: Database) -> None:
    collection = memory.collection("c", encoder=HashEncoder())
    collection.add(["one text", "another text"])
    found = collection.explain("text")
    assert next(iter(found.milliseconds)) == "encode"
    assert len(found.hits) == 2


def test_an_empty_collection_is_explained(memory: Database) -> None:
    found = filled(memory, count=0, index="hash").explain(np.ones(DIM))
    assert (found.method, found.rows, found.compared, len(found.hits)) == ("none", 0, 0, 0)
    assert "the collection is empty" in str(found)


def test_an_explanation_is_plain_values_too(memory: Database) -> None:
    found = filled(memory).explain(clusters(1)[0]).to_dict()
    assert (found["method"], found["rows"]) == ("index", 900)
    assert "hits" not in found


def test_views_files_and_transactions_are_explained(path: Path) -> None:
    with vecstore.open(path) as db:
        filled(db, index="ivf")
        with db.snapshot() as view:
            assert view.collection("points").explain(np.ones(DIM)).method == "index"
        with db.transaction():
            assert db.collection("points").explain(np.ones(DIM)).method == "scan"
    with vecstore.open(path, read_only=True) as db:
        assert db.collection("points").explain(np.ones(DIM)).method == "index"


def test_arguments_are_checked_as_in_a_search(memory: Database) -> None:
    collection = filled(memory, count=3)
    with pytest.raises(UsageError, match="k=0 must be"):
        collection.explain(np.ones(DIM), 0)
    with pytest.raises(UsageError, match="holds bare vectors"):
        collection.explain("text")
