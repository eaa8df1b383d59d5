import copy
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest

from vecstore import Hit, Hits, MissingExtraError, Plan, Record, UsageError

PLAN = Plan(method="scan", rows=9, allowed=9, expected_recall=1.0, reason="because")


def make(count: int = 3, **values) -> Hits:
    hits = [Hit(id=f"id{n}", score=1.0 - n, distance=float(n), **values) for n in range(count)]
    return Hits(hits, plan=PLAN, complete="exact")


def test_hits_are_a_sequence() -> None:
    hits = make()
    assert len(hits) == 3
    assert hits[0].id == "id0"
    assert hits[-1] is list(hits)[2]
    assert [hit.id for hit in hits[1:]] == ["id1", "id2"]
    assert hits[1] in hits
    assert hits.index(hits[2]) == 2
    assert [hit.id for hit in reversed(hits)] == ["id2", "id1", "id0"]
    assert not make(0)


def test_ids_and_scores_stand_in_the_order_of_the_hits() -> None:
    hits = make()
    assert hits.ids == ["id0", "id1", "id2"]
    assert hits.scores.dtype == np.float64
    assert hits.scores.tolist() == [1.0, 0.0, -1.0]
    assert make(0).scores.shape == (0,)


def test_hits_of_columns_are_made_once() -> None:
    columns = {"score": [1.0, 0.5], "distance": [0.0, 0.5], "order": [3, 1], "id": ["a", 7]}
    hits = Hits.of(columns, plan=PLAN, complete="exhausted")
    assert hits.ids == ["a", 7]
    assert hits.scores.tolist() == [1.0, 0.5]
    assert len(hits) == 2
    assert list(hits) == [Hit(id="a", score=1.0, distance=0.0), Hit(id=7, score=0.5, distance=0.5)]
    assert [hit.order for hit in hits] == [3, 1]
    assert hits[0] is hits[0]
    assert (hits.plan, hits.complete) == (PLAN, "exhausted")
    hits.ids.clear()
    assert hits == Hits(list(hits), plan=PLAN, complete="exact")
    assert len(hits.ids) == 2


def test_counts_become_a_part_of_the_plan() -> None:
    hits = Hits.of({"id": [], "score": []}, plan=PLAN, complete="exact", counts=[1, 2, 3, 4])
    assert hits.plan == replace(PLAN, lists=1, scanned=2, narrowed=3, compared=4)
    assert PLAN.lists == 0
    assert pickle.loads(pickle.dumps(hits)).plan == hits.plan


def test_hits_are_equal_by_content() -> None:
    assert make() == make()
    assert make() != make(2)
    assert make() != list(make())
    with pytest.raises(TypeError):
        hash(make())


def test_dicts_hold_what_is_there() -> None:
    assert make(1).to_dicts() == [{"id": "id0", "score": 1.0, "distance": 0.0}]
    full = Hit(id=1, score=0.5, distance=0.5, text="t", metadata={}, vector=np.ones(2))
    assert list(full.to_dict()) == ["id", "score", "distance", "text", "metadata", "vector"]
    assert Record(id=1, metadata={"a": 1}).to_dict() == {"id": 1, "metadata": {"a": 1}}


def test_records_and_hits_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        make()[0].score = 2.0
    with pytest.raises(AttributeError):
        Record(id=1).text = "x"


def test_hits_survive_pickle_and_copy() -> None:
    hits = make(text="text", metadata={"a": [1]})
    for twin in (pickle.loads(pickle.dumps(hits)), copy.deepcopy(hits)):
        assert twin == hits
        assert (twin.plan, twin.complete) == (hits.plan, hits.complete)


def test_hits_print_as_a_table() -> None:
    hits = Hits(
        [
            Hit(
                id="a",
                score=0.98765,
                distance=0.0,
                text="two\nlines  and [bold]",
                metadata={"n": 1},
            ),
            Hit(id=7, score=-0.5, distance=1.5),
        ],
        plan=PLAN,
        complete="exact",
    )
    header, first, second = str(hits).split("\n")
    assert header.split() == ["score", "id", "text", "metadata"]
    assert first.split() == ["0.9877", "a", "two", "lines", "and", "[bold]", "{'n':", "1}"]
    assert second.split() == ["-0.5000", "7"]


def test_a_long_text_does_not_widen_the_table() -> None:
    hit = Hit(id="x" * 300, score=1.0, distance=0.0, text="word " * 1000, metadata={"k": "v" * 999})
    lines = str(Hits([hit], plan=PLAN, complete="exact")).split("\n")
    assert len(lines) == 2
    assert max(map(len, lines)) <= 110


def test_the_repr_names_ids_and_completeness() -> None:
    assert repr(make(2)) == "Hits(['id0', 'id1'], complete='exact')"


def test_hits_become_a_data_frame() -> None:
    pytest.importorskip("pandas")
    frame = make(text="t", metadata={"a": 1}).to_pandas()
    assert list(frame.columns) == ["id", "score", "distance", "text", "metadata"]
    assert frame["id"].tolist() == ["id0", "id1", "id2"]
    assert len(make(0).to_pandas()) == 0


def test_hits_become_an_arrow_table() -> None:
    pytest.importorskip("pyarrow")
    table = make(text="t", vector=np.ones(2, np.float32)).to_arrow()
    assert table.column_names == ["id", "score", "distance", "text", "vector"]
    assert table.column("score").to_pylist() == [1.0, 0.0, -1.0]


@pytest.mark.parametrize(("method", "name"), [("to_pandas", "pandas"), ("to_arrow", "pyarrow")])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"needs {name}: pip install"):
        getattr(make(), method)()


def test_a_table_of_no_hits_has_its_columns() -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert list(make(0).to_pandas().columns) == ["id", "score", "distance"]
    assert make(0).to_arrow().column_names == ["id", "score", "distance"]


@pytest.mark.parametrize(
    "values",
    [
        ({"id": 1}, {"id": "1"}),
        ({"metadata": {"a": 1}}, {"metadata": {"a": "x"}}),
        ({"metadata": {"a": 2**64 - 1}}, {}),
    ],
)
def test_hits_without_an_arrow_type_are_refused(values: tuple) -> None:
    pytest.importorskip("pyarrow")
    hits = [Hit(**{"id": "x", "score": 1.0, "distance": 0.0, **value}) for value in values]
    with pytest.raises(UsageError, match="no Arrow types"):
        Hits(hits, plan=PLAN, complete="exact").to_arrow()
