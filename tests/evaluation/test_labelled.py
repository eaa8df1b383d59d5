"""Reading labelled files, sound and hostile."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.errors import UsageError
from vecstore.evaluation import (
    Fields,
    Pairs,
    Retrieval,
    labelled,
    read_pairs,
    read_retrieval,
)

DOCUMENTS = [
    {"id": "a", "title": "Apples", "text": "They grow on trees."},
    {"id": 7, "text": "Trains run on rails."},
    {"_id": "c", "title": "Boats", "text": ""},
]
QUERIES = [
    {"id": "q1", "text": "fruit", "rel": {"a": 2, "7": 0}, "split": "dev"},
    {"id": "q2", "text": "rails", "rel": {"7": 1, "gone": 1}, "split": "test"},
    {"text": "nothing", "rel": {"a": 0, "c": -1}, "split": "test"},
]
PAIRS = [
    {"s1": "a boat", "s2": "a ship", "score": 4.5, "split": "dev"},
    {"s1": "a boat", "s2": "a cat", "score": 0, "split": "dev"},
    {"s1": "a dog", "s2": "a cat", "score": 1, "split": "test"},
]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[Any]) -> str:
    return write_text(name, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(name: str, text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return name


def read(documents: list[Any], queries: list[Any], **options: Any) -> Retrieval:
    found = write("docs.jsonl", documents), write("queries.jsonl", queries)
    return read_retrieval(*found, **options)


# Sound files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_documents_queries_and_grades_are_read(suffix):
    documents = write(f"docs.jsonl{suffix}", DOCUMENTS)
    found = read_retrieval(documents, write(f"queries.jsonl{suffix}", QUERIES))

    assert found.ids == ["a", "7", "c"]
    assert found.documents == ["Apples. They grow on trees.", "Trains run on rails.", "Boats"]
    assert found.queries == ["fruit", "rails"]
    assert found.relevant == [{"a": 2}, {"7": 1, "gone": 1}]
    assert (found.left_out, found.unknown, found.sampled) == (1, 1, False)
    assert found.name == Path.cwd().name


def test_gzip_is_told_by_its_bytes_not_by_its_name():
    Path("pairs").write_bytes(gzip.compress(Path(write("plain", PAIRS)).read_bytes()))

    assert read_pairs("pairs").scores == [4.5, 0, 1]


def test_splits_are_chosen():
    assert read(DOCUMENTS, QUERIES, splits=["test"]).queries == ["rails"]
    assert read(DOCUMENTS, QUERIES, splits=["test", "dev"]).queries == ["fruit", "rails"]
    assert read_pairs(write("pairs.jsonl", PAIRS), splits=["dev"]).scores == [4.5, 0]


def test_fields_have_the_names_that_are_given():
    rows = [{"key": "a", "body": "one", "title": "kept out"}]
    fields = Fields(id="key", text="body", title=None, rel="good", first="x", second="y", score="z")
    found = read(rows, [{"key": 1, "body": "first", "good": {"a": 1}}], fields=fields)
    pairs = [{"x": "a", "y": "b", "z": 1}, {"x": "a", "y": "c", "z": 2}]

    assert (found.documents, found.queries) == (["one"], ["first"])
    assert read_pairs(write("pairs.jsonl", pairs), fields=fields).second == ["b", "c"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qrels.txt", "q1 0 a 2\nq1 0 7 0\n\nq2 Q0 7 1\n"),
        ("test.tsv", "query-id\tcorpus-id\tscore\nq1\ta\t2\nq2\t7\t1\n"),
        ("test.tsv.gz", "q1\ta\t2\nq1\tc\t0\nq2\t7\t1\n"),
        (
            "qrels.jsonl.gz",
            '{"query": "q1", "doc": "a", "grade": 2}\n{"query": "q2", "doc": 7, "grade": 1}\n',
        ),
    ],
)
def test_judgements_may_lie_in_a_file_of_their_own(name, text):
    queries = [{"_id": "q1", "text": "fruit"}, {"_id": "q2", "text": "rails", "rel": {"a": 9}}]
    more = [*queries, {"_id": "q3", "text": "unjudged"}]
    found = read(DOCUMENTS, more, qrels=write_text(name, text))

    assert found.relevant == [{"a": 2}, {"7": 1}]
    assert found.left_out == 1


def test_a_sample_keeps_what_is_relevant_and_repeats():
    documents = [{"id": i, "text": f"text {i}"} for i in range(50)]
    queries = [{"text": f"query {i}", "rel": {str(i): 1, "gone": 1}} for i in range(8)]
    whole = read(documents, queries)
    found = whole.sample(6, seed=1)

    assert found == whole.sample(6, seed=1)
    assert (len(found.queries), len(found.ids), found.unknown, found.sampled) == (6, 6, 6, True)
    assert {item for grades in found.relevant for item in grades} == {*found.ids, "gone"}
    assert found.documents == [f"text {item}" for item in found.ids]
    assert len(whole.sample(20).ids) == 20
    assert whole.sample(50) == whole
    pairs = read_pairs(write("pairs.jsonl", PAIRS))
    assert pairs.sample(2).to_dict()["pairs"] == 2
    assert pairs.sample(3) == pairs


# Hostile ones

DOCUMENT, QUERY = {"id": "a", "text": "one"}, {"text": "first", "rel": {"a": 1}}
PAIR = {"s1": "a", "s2": "b", "score": 1}
PACKED = gzip.compress((json.dumps(PAIR) + "\n").encode() * 2, mtime=0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "two"}, "line 2: no field 'id' among text"),
        ({"id": "b"}, "line 2: no field 'text' among id"),
        ({"id": "b", "text": None}, "line 2: 'text' is None"),
        ({"id": "b", "text": " \t"}, "line 2: 'text' is ' \\\\t'"),
        ({"id": "b", "title": "", "text": ""}, "line 2: 'text' is ''"),
        ({"id": "b", "title": ["x"], "text": "two"}, "line 2: 'title' is \\['x'\\]"),
        ({"id": "b", "text": "\ud800"}, "line 2: 'text' .*lone surrogate"),
        ({"id": True, "text": "two"}, "line 2: 'id' is True"),
        ({"id": 1.5, "text": "two"}, "line 2: 'id' is 1.5"),
        ({"id": "", "text": "two"}, "line 2: 'id' is ''"),
        ({"id": "a", "text": "two"}, "line 2: the document 'a' stood in docs.jsonl, line 1"),
        (["a", "two"], "line 2: a record is a JSON object"),
    ],
)
def test_a_bad_document_is_named(row, said):
    with pytest.raises(UsageError, match=f"^docs.jsonl, {said}"):
        read([DOCUMENT, row], [QUERY])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "second"}, "line 2: no field 'rel' among text"),
        ({"text": "", "rel": {"a": 1}}, "line 2: 'text' is ''"),
        ({"text": "second", "rel": ["a"]}, "line 2: 'rel' is \\['a'\\], not an object"),
        ({"text": "second", "rel": {"a": "1"}}, "line 2: the grade of 'a' is '1', not a finite"),
        ({"text": "second", "rel": {"a": True}}, "line 2: the grade of 'a' is True"),
        ({"text": "second", "rel": {"a": 10**400}}, "line 2: the grade of 'a' is 1000"),
        ({"text": "second", "rel": {"a": 1e9}}, "line 2: the grade of 'a' is 1000000000.0, more"),
        ({"text": "second", "rel": {"a": float("nan")}}, "line 2: not JSON: NaN"),
        ({"text": "second", "rel": {"a": 1}, "split": 3}, "line 2: 'split' is 3"),
        ({"id": "q", "text": "second", "rel": {"a": 1}}, "line 2: the query 'q' stands twice"),
    ],
)
def test_a_bad_query_is_named(row, said):
    with pytest.raises(UsageError, match=f"^queries.jsonl, {said}"):
        read([DOCUMENT], [{"id": "q", **QUERY}, row])


def test_queries_need_judgements_that_meet_the_documents():
    with pytest.raises(UsageError, match=r"^queries.jsonl: no query has a relevant document"):
        read([DOCUMENT], [{"text": "first", "rel": {"a": 0}}])
    with pytest.raises(UsageError, match="the first is 'b'"):
        read([DOCUMENT], [{"text": "first", "rel": {"b": 1}}])
    with pytest.raises(UsageError, match="has no split 'dev'; it has 'test', 'train'"):
        read([DOCUMENT], [{**QUERY, "split": s} for s in ("train", "test")], splits=["dev"])
    with pytest.raises(UsageError, match="has no split 'dev'; it has none"):
        read([DOCUMENT], [QUERY], splits=["dev"])
    with pytest.raises(UsageError, match=r"queries.jsonl, line 1: no field 'id'"):
        read([DOCUMENT], [QUERY], qrels=write_text("qrels.txt", "q 0 a 1\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q 0 a 1\nnobody 0 a 1\n", "line 2: the query 'nobody' is not in queries.jsonl"),
        ("q 0 a 1\nq 0 a 0\n", "line 2: document 'a' of query 'q' stands twice"),
        ("q 0 a 1\nq 0 b\tx\n", "line 2: the grade is 'x'"),
        ("q 0 a 1\nq 0 b nan\n", "line 2: the grade is nan"),
        ("q 0 a 1\nq a\n", "line 2: 'q a' is neither"),
        ("q 0 a 1 2 3\n", "line 1: 'q 0 a 1 2 3' is neither"),
        (b"q 0 a 1\nq 0 \xff 1\n", "line 2: not UTF-8 at byte 5"),
    ],
)
def test_a_bad_judgement_is_named(text, said):
    with pytest.raises(UsageError, match=f"^qrels.txt, {said}"):
        read([DOCUMENT], [{"id": "q", "text": "x"}], qrels=write_text("qrels.txt", text))


def test_judgements_in_jsonl_are_checked():
    qrels = write("qrels.jsonl", [{"query": "q", "doc": "a"}])
    with pytest.raises(UsageError, match=r"^qrels.jsonl, line 1: no field 'grade' among query"):
        read([DOCUMENT], [{"id": "q", "text": "x"}], qrels=qrels)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"s1": "a", "s2": "b"}, "line 2: no field 'score' among s1, s2"),
        ({**PAIR, "score": "3"}, "line 2: 'score' is '3'"),
        ({**PAIR, "score": None}, "line 2: 'score' is None"),
        ({**PAIR, "score": float("inf")}, "line 2: not JSON: Infinity"),
        ({**PAIR, "s2": 5}, "line 2: 's2' is 5"),
        ({"first": "a"}, "line 2: no field 's1' among first"),
    ],
)
def test_a_bad_pair_is_named(row, said):
    with pytest.raises(UsageError, match=f"^pairs.jsonl, {said}"):
        read_pairs(write("pairs.jsonl", [PAIR, row]))


def test_pairs_need_two_scores():
    with pytest.raises(UsageError, match=r"2 pairs with at most one score"):
        read_pairs(write("pairs.jsonl", [PAIR, PAIR]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "^broken is empty"),
        (b"\n \n", "^broken is empty"),
        (gzip.compress(b"", mtime=0), "^broken is empty"),
        (b"\xff\xfe", "^broken, line 1: not UTF-8 at byte 1"),
        (b'{"s1": ' * 100_000, "^broken, line 1: not JSON: nested too deep"),
        (b'{"s1": "a"', "^broken, line 1: not JSON"),
        (PACKED[:-9], "^broken, after line 2: damaged gzip"),
        (PACKED[:40] + b"\xff" * 40, "^broken, after line .: damaged gzip"),
        (PACKED[:-8] + b"\0" * 8, "^broken, after line 2: damaged gzip"),
        (b"\x1f\x8bx", "^broken, after line 0: damaged gzip"),
        (PACKED + b"rubbish", "^broken, after line 2: damaged gzip"),
    ],
)
def test_a_broken_file_is_named(data, said):
    Path("broken").write_bytes(data)

    with pytest.raises(UsageError, match=said):
        read_pairs("broken")


def test_a_file_that_cannot_be_read_is_named(monkeypatch):
    with pytest.raises(UsageError, match="nowhere cannot be read: No such file"):
        read_pairs("nowhere")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_pairs(Path.cwd())
    monkeypatch.setattr(labelled, "MAX_BYTES", 80)
    with pytest.raises(UsageError, match="line 2: more than"):
        read_pairs(write("pairs.jsonl", PAIRS))


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_or_refused(data, packed):
    Path("any").write_bytes(gzip.compress(data)[:-1] if packed else data)
    for read_any in (read_pairs, lambda path: read_retrieval(path, path, path)):
        with pytest.raises(UsageError, match="any"):
            read_any("any")


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(UsageError, match="ids and documents must be of one length, got 1 and 2"):
        Retrieval("x", ["a"], ["t", "u"], ["q"], [{"a": 1.0}])
    with pytest.raises(UsageError, match="queries and relevant must be of one length, got 2 and 1"):
        Retrieval("x", ["a"], ["t"], ["q", "p"], [{"a": 1.0}])
    with pytest.raises(UsageError, match="ids of documents must differ"):
        Retrieval("x", ["a", "a"], ["t", "u"], ["q"], [{"a": 1.0}])
    with pytest.raises(UsageError, match="first and second must be of one length, got 2 and 1"):
        Pairs("x", ["a", "b"], ["c"], [1.0, 2.0])
    with pytest.raises(UsageError, match="first and second must be lists, got 'ab'"):
        Pairs("x", "ab", ["c", "d"], [1.0, 2.0])
    with pytest.raises(UsageError, match="finite"):
        Pairs("x", ["a"], ["c"], [float("nan")])
