"""Which fields have columns is declared, and what filters mean does not depend on it."""

import pytest

import vecstore
from vecstore import F, SpecError, catalog
from vecstore.fields import index, upkeep

METADATA = [
    {"a": n % 3, "b": {"c": str(n), "d": [n, n + 1]}, "b.e": n, "note": "x" * n} for n in range(40)
]
WHERES = [
    F("a") == 1,
    F("b.c").is_in(["3", "4"]),
    F("b.d") > 30,
    F("b.e") <= 7,
    F("b").exists(),
    (F("a") == 2) & (F("note") > "xxxx"),
    ~(F("note").contains("xxx")),
]


@pytest.fixture(autouse=True)
def _columns_of_few(monkeypatch):
    monkeypatch.setattr(upkeep, "LEAST", 1)


@pytest.mark.parametrize(
    ("declared", "kept"),
    [
        ({}, {"a", "b", "b.c", "b.d", "b.e", "note"}),
        ({"skip_fields": ["note", "b.d"]}, {"a", "b", "b.c", "b.e"}),
        ({"skip_fields": ["b"]}, {"a", "note"}),
        ({"index_fields": ["b"]}, {"b", "b.c", "b.d", "b.e"}),
        ({"index_fields": {"b.c", "a"}}, {"a", "b.c"}),
        ({"index_fields": []}, set()),
    ],
)
def test_declared_fields_alone_have_columns_and_all_can_be_filtered(memory, declared, kept):
    points = memory.collection("p", dim=2, **declared)
    points.add(vectors=[[1, n] for n in range(40)], ids=range(40), metadata=METADATA)
    points.update([3, 4], metadata=[{"a": 7}, {"note": "short"}])

    with memory.reading() as reader:
        entry = catalog.find(reader, "p")
        found = index.load(reader, entry.number, catalog.state(reader, entry.number))
        paths = set().union(*(segment.paths for segment in found.segments(reader)))
    assert paths == kept
    stored = list(points.scan())
    for where in WHERES:
        assert points.count(where) == sum(map(where.matches, stored)), where
    assert memory.collection("p", **declared).spec == points.spec
    assert vecstore.CollectionSpec.from_dict(points.spec.to_dict()) == points.spec


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"index_fields": ["a"], "skip_fields": ["b"]}, "give one of them"),
        ({"index_fields": "a"}, "is not a list of the names"),
        ({"skip_fields": [1]}, "takes the name of a field"),
        ({"skip_fields": ["$a"]}, "is not a field"),
        ({"skip_fields": 7}, "is not a list of the names"),
    ],
)
def test_what_is_no_list_of_fields_is_refused(memory, declared, message):
    with pytest.raises(SpecError, match=message):
        memory.collection("p", dim=2, **declared)


def test_another_declaration_is_refused(memory):
    memory.collection("p", dim=2, skip_fields=["b", "a"])

    memory.collection("p", skip_fields=["a", "b"])
    with pytest.raises(SpecError, match="skip_fields"):
        memory.collection("p", skip_fields=["a"])
    with pytest.raises(SpecError, match="index_fields"):
        memory.collection("p", index_fields=["a"])
