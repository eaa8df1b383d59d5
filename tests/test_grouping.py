"""Hits by groups: compared with grouping all hits of an exact search."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexed import clusters, filled

import vecstore
from vecstore import Chunking, Database, F, FilterError, UsageError, grouping
from vecstore.encoders import HashEncoder


def expected(hits: Any, key: Any, k: int, size: int, offset: int = 0) -> list[Any]:
    """Ids of the best of the best groups, of all hits."""
    groups: dict[Any, list[Any]] = {}
    for hit in hits:
        own = groups.setdefault(key(hit), [])
        if len(own) < size:
            own.append(hit.id)
    return [identity for own in list(groups.values())[offset : offset + k] for identity in own]


def by_values(path: str) -> Any:
    def key(hit: Any) -> Any:
        value = (hit.metadata or {}).get(path)
        held = value if isinstance(value, list) else [value] * (path in (hit.metadata or {}))
        found = frozenset((type(one).__name__.replace("float", "int"), one) for one in held)
        return found or ("alone", hit.id)

    return key


fields = st.none() | st.fixed_dictionaries(
    {}, optional={"doc": st.sampled_from(["a", "b", 1, 1.0, True, None, [], ["a", "b"], ["a"]])}
)


@settings(max_examples=120, deadline=None)
@given(
    metadata=st.lists(fields, min_size=1, max_size=60),
    k=st.integers(1, 8),
    size=st.integers(1, 4),
    offset=st.integers(0, 3),
    seed=st.integers(0, 99),
    every=st.booleans(),
)
def test_groups_are_those_of_all_hits(metadata, k, size, offset, seed, every) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        points = db.collection("p", dim=3)
        count = len(metadata)
        points.add(vectors=rng.normal(size=(count, 3)), ids=range(count), metadata=metadata)
        query = rng.normal(size=3)
        where = None if every else F("$id") >= count // 3

        found = points.search(
            query, k, where=where, group_by="doc", group_size=size, offset=offset, include=()
        )

        everything = points.search(query, count, where=where)
        assert found.ids == expected(everything, by_values("doc"), k, size, offset)
        assert all(hit.metadata is None for hit in found)
        scores = {hit.id: hit.score for hit in everything}
        assert [scores[hit.id] for hit in found] == [hit.score for hit in found]
        groups = len({by_values("doc")(hit) for hit in everything})
        assert (found.complete == "exhausted") == (groups < offset + k)


@pytest.mark.parametrize("size", [1, 3])
def test_one_group_may_hold_all_that_is_near(memory: Database, size: int, rng: Any) -> None:
    points = memory.collection("p", dim=2)
    near = np.array([1, 0]) + 0.01 * rng.normal(size=(500, 2))
    far = np.array([0, 1]) + 0.01 * rng.normal(size=(9, 2))
    metadata = [{"doc": "near"}] * 500 + [{"doc": f"far {n // 3}"} for n in range(9)]
    points.add(vectors=np.concatenate([near, far]), ids=range(509), metadata=metadata)

    found = points.search([1, 0], 4, group_by="doc", group_size=size)

    docs = [hit.metadata["doc"] for hit in found]
    assert docs[:size] == ["near"] * size
    assert set(docs) == {"near", "far 0", "far 1", "far 2"}
    assert len(docs) == 4 * size
    assert [docs.index(doc) for doc in dict.fromkeys(docs)] == list(range(0, 4 * size, size))


def test_groups_are_found_through_an_index(memory: Database) -> None:
    points = filled(memory, count=900, index="ivf")
    queries = clusters(5, 3)
    exact = points.search_many(queries, 900, recall="exact")

    found = points.search_many(queries, 3, group_by="third", group_size=2, recall=0.99, threads=2)

    for hits, right in zip(found, exact, strict=True):
        assert len(hits) == 6
        scores = {hit.id: hit.score for hit in right}
        assert [hit.score for hit in hits] == [scores[hit.id] for hit in hits]
        assert hits.ids[0] in right.ids[:3]
        assert len({hit.metadata["third"] for hit in hits}) == 3
    assert points.search(queries[0], 3, group_by="third", recall="exact").ids == [
        found[0].ids[0],
        *points.search(queries[0], 3, group_by="third", recall="exact").ids[1:],
    ]


def test_records_with_passages_are_grouped_as_records(memory: Database) -> None:
    stories = memory.collection("c", encoder=HashEncoder(8))
    texts = [f"Text {n % 7} is long. " * (1 + n % 5) for n in range(30)]
    metadata = [{"n": n % 3} for n in range(30)]
    stories.add(texts, ids=range(30), metadata=metadata, chunk=Chunking(tokens=8))
    everything = stories.search("Text 3", 30)

    found = stories.search("Text 3", 2, group_by="n", group_size=4)

    assert found.ids == expected(everything, by_values("n"), 2, 4)
    assert all(hit.passage is not None or len(hit.text) < 40 for hit in found)
    by_text = stories.search("Text 3", 5, group_by="$text", include=())
    assert by_text.ids == expected(everything, lambda hit: hit.text, 5, 1)
    assert all(hit.text is None for hit in by_text)


def test_groups_of_ids_are_single(memory: Database) -> None:
    points = filled(memory, count=100)
    query = clusters(1)[0]

    assert points.search(query, 5, group_by="$id").ids == points.search(query, 5).ids


def test_more_is_asked_for_until_there_are_groups_enough(
    memory: Database, monkeypatch: Any
) -> None:
    monkeypatch.setattr(grouping, "EACH", 1)
    points = memory.collection("p", dim=2)
    metadata = [{"doc": n // 40} for n in range(400)]
    points.add(vectors=[[100, n] for n in range(400)], ids=range(400), metadata=metadata)

    assert points.search([1, 0], 3, group_by="doc").ids == [0, 40, 80]
    assert points.search([1, 0], 2, group_by="doc", group_size=2, offset=8).ids == [
        *(320, 321),
        *(360, 361),
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"group_size": 2}, UsageError, "group_size=2 needs group_by"),
        ({"group_by": "a", "group_size": 0}, UsageError, "group_size=0"),
        ({"group_by": "a", "group_size": True}, UsageError, "group_size=True"),
        ({"group_by": "$a"}, FilterError, "not a field"),
        ({"group_by": 3}, FilterError, "a str"),
    ],
)
def test_what_is_no_grouping_is_refused(memory: Database, options, error, message) -> None:
    points = filled(memory, count=10)
    with pytest.raises(error, match=message):
        points.search(clusters(1)[0], 3, **options)
    hit = points.search(clusters(1)[0], 1)[0]
    with pytest.raises(UsageError, match="offset="):
        points.search(clusters(1)[0], 3, group_by="third", after=hit)
