"""`vecstore eval` as a shell calls it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vecstore import cli

Run = Callable[..., Result]

DOCUMENTS = [
    {"id": "cats", "title": "Cats", "text": "They sleep in the sun and hunt mice at night."},
    {"id": "rail", "text": "A train leaves the station every hour."},
    {"id": "bread", "title": "Bread", "text": "Flour, water, salt and yeast, baked."},
    {"id": "boats", "text": "Two boats sail across the bay."},
]
QUERIES = [
    {"id": "q1", "split": "dev", "text": "animals that catch rodents", "rel": {"cats": 2}},
    {"id": "q2", "split": "dev", "text": "railway timetable", "rel": {"rail": 1, "gone": 1}},
    {"id": "q3", "split": "train", "text": "baking", "rel": {"bread": 1}},
]
PAIRS = [
    {"split": "test", "a": "A cat sleeps.", "b": "The cat is asleep.", "grade": 5},
    {"split": "test", "a": "A cat sleeps.", "b": "A dog sleeps.", "grade": 2.5},
    {"split": "test", "a": "A cat sleeps.", "b": "Shares fell on Monday.", "grade": 0},
]
FILES = ("--docs", "docs.jsonl", "--queries", "queries.jsonl")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("docs", DOCUMENTS), ("queries", QUERIES), ("pairs", PAIRS)):
        write(f"{name}.jsonl", rows)
    runner = CliRunner()

    def invoke(*arguments: object, status: int = 0) -> Result:
        result = runner.invoke(cli.main, ["eval", *map(str, arguments)])

        assert result.exit_code == status, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_bundled_model_is_measured_on_documents_and_pairs(run):
    pairs = "--pairs", "pairs.jsonl", "--pair-fields", "a,b,grade", "--pairs-split", "test"
    options = "--split", "dev", "-k", 2, "--shortlist", 3, "--tiers", 64, "--dims", "384,64"
    found = json.loads(run(*FILES, *pairs, *options, "--json").stdout)
    (encoder,) = found["encoders"]

    assert encoder["name"] == "default"
    assert (found["data"]["queries"], found["data"]["documents"]) == (2, 4)
    assert found["data"]["judgements_of_unknown_documents"] == 1
    assert [one["setup"] for one in encoder["retrieval"]] == ["384", "64", "64 → 384 (3)"]
    assert all(one["mrr"]["value"] == 1 for one in encoder["retrieval"])
    assert encoder["retrieval"][0]["recall"]["value"] == 0.75
    assert [one["dims"] for one in encoder["similarity"]] == [384, 64]
    assert all(one["spearman"]["value"] == 1 for one in encoder["similarity"])


def test_two_encoders_stand_side_by_side(run):
    text = run(*FILES, "-k", 1, "--dims", 384, "--against", "default").stdout

    assert text.count("4 documents, 3 queries") == 2
    assert "default against default" in text
    assert re.search(r"nDCG@1 +384 +100.0 +100.0 +\+0.0 +\+0.0\.\.\+0.0 +no", text)


def test_tables_may_be_markdown(run):
    text = run(*FILES, "-k", 1, "--dims", 64, "--precision", "float32,int8", "--markdown").stdout

    assert "| search | nDCG@1 | 95 % |" in text
    assert "| 64 int8 | 100.0 |" in text


def test_vectors_are_kept_and_found_again(run):
    first = run(*FILES, "-k", 1, "--dims", 384, "--vectors", "kept", "--json").stdout
    kept = {file: file.stat().st_mtime_ns for file in Path("kept").iterdir()}
    again = run(*FILES, "-k", 1, "--dims", 384, "--vectors", "kept", "--json").stdout

    assert len(kept) == 2
    assert kept == {file: file.stat().st_mtime_ns for file in Path("kept").iterdir()}
    both = [json.loads(text)["encoders"][0]["retrieval"][0]["ndcg"] for text in (first, again)]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 1, "name labelled files"),
        (("--docs", "docs.jsonl"), 1, "--docs and --queries go together"),
        (("--pairs", "pairs.jsonl", "--qrels", "docs.jsonl"), 1, "--qrels goes with --docs"),
        (("--pairs", "nowhere.jsonl"), 2, "'nowhere.jsonl' does not exist"),
        (("--pairs", "pairs.jsonl"), 1, "pairs.jsonl, line 1: no field 's1' among split, a, b"),
        ((*FILES, "--split", "test"), 1, "no split 'test'; it has 'dev', 'train'"),
        ((*FILES, "-k", "5"), 1, "documents"),
        ((*FILES, "-k", "2", "--dims", "1000"), 1, "1000 dims were asked for"),
        ((*FILES, "--dims", "a"), 2, "'a' is not N,N"),
        ((*FILES, "--bits", "128"), 2, "'128' is not DIMSxBITS"),
        ((*FILES, "--precision", "int4"), 1, "precisions holds 'int4'"),
        ((*FILES, "--index", "auto"), 1, "indexes holds 'auto'"),
        ((*FILES, "--pair-fields", "a,b"), 2, "'a,b' is not FIRST,SECOND,SCORE"),
        ((*FILES, "-k", "2", "--encoder", "nowhere"), 1, "nowhere"),
        ((*FILES, "--shortlist", "5"), 1, "shortlist=5"),
    ],
)
def test_what_cannot_be_measured_is_named(run, arguments, status, said):
    assert said in run(*arguments, status=status).stderr


def test_a_picture_is_refused_before_the_work_where_it_cannot_be(run):
    pytest.importorskip("matplotlib")

    assert "a picture is one of" in run(*FILES, "--plot", "a.xyz", status=1).stderr
    run(*FILES, "-k", 1, "--plot", "a.png")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
