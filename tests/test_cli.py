import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from indexed import DIM, clusters, small_indexes, spoil

import vecstore
from vecstore import cli, formats
from vecstore.ann import compiled

Run = Callable[..., Result]

NOTES = [
    {"id": "lmdb", "text": "LMDB is a memory-mapped key-value store.", "metadata": {"year": 2011}},
    {"id": "numba", "text": "Numba compiles Python loops.", "metadata": {"year": 2012}},
    {"id": "bread", "text": "Bread is baked from flour and water.", "metadata": {"year": 1000}},
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def invoke(*arguments: object, stdin: str | bytes | None = None, status: int = 0) -> Result:
        result = runner.invoke(cli.main, [str(argument) for argument in arguments], input=stdin)

        assert result.exit_code == status, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


@pytest.fixture
def notes(run: Run) -> str:
    run("add", "notes.vecstore", write_jsonl("notes.jsonl", NOTES))
    return "notes.vecstore"


@pytest.fixture
def points(run: Run) -> str:
    rows = [
        {"id": i, "vector": [float(i), 1.0, 0.5], "metadata": {"odd": bool(i % 2)}}
        for i in range(5)
    ]
    file = write_jsonl("points.jsonl", rows)
    run("add", "points.vecstore", file, "--dim", 3, "--metric", "l2", "-c", "points")
    return "points.vecstore"


def write_jsonl(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def stored(path: str, collection: str = "default", vectors: bool = False) -> list[dict[str, Any]]:
    include = ("text", "metadata", "vector") if vectors else ("text", "metadata")
    with vecstore.open(path) as db:
        assert db.check() == []
        records = [record.to_dict() for record in db.collection(collection).scan(include=include)]
    for record in records:
        if vectors:
            record["vector"] = record["vector"].tolist()
    return records


# add


def test_add_reads_jsonl(run: Run) -> None:
    file = write_jsonl("notes.jsonl", NOTES)

    result = run("add", "notes.vecstore", file)

    assert result.output == "3 records stored in 'default' of notes.vecstore\n"
    assert stored("notes.vecstore") == NOTES


def test_add_makes_metadata_of_other_keys(run: Run) -> None:
    row = {"key": 7, "body": "One text.", "lang": "en", "metadata": {"year": 2020}, "text": None}
    file = write_jsonl("rows.jsonl", [row])

    run("add", "a.vecstore", file, "--text-field", "body", "--id-field", "key", "-c", "rows")

    metadata = {"year": 2020, "lang": "en", "text": None}
    assert stored("a.vecstore", "rows") == [{"id": 7, "text": "One text.", "metadata": metadata}]


def test_add_without_ids_or_metadata(run: Run) -> None:
    run("add", "a.vecstore", "-", stdin='{"text": "One."}\n\n{"text": "Two.", "metadata": {}}\n')

    first, second = stored("a.vecstore")

    assert [first["text"], second["text"]] == ["One.", "Two."]
    assert "metadata" not in first
    assert second["metadata"] == {}


def test_add_reads_csv_with_declared_types(run: Run) -> None:
    rows = [
        ["id", "text", "year", "price", "new", "day", "tags", "zip", "empty"],
        ["a", "Two\nlines, quoted.", "2020", "1.5", "True", "2020-01-02", '["x"]', "01234", ""],
        ["b", "Second.", "", "2", "0", "2021-01-02T03:04:05+00:00", "", "5", ""],
    ]
    with Path("rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    types = ("year=int", "price=float", "new=bool", "day=datetime", "tags=json")

    run("add", "a.vecstore", "rows.csv", *(word for kind in types for word in ("--type", kind)))

    first, second = stored("a.vecstore")
    assert first == {
        "id": "a",
        "text": "Two\nlines, quoted.",
        "metadata": {
            "year": 2020,
            "price": 1.5,
            "new": True,
            "day": datetime(2020, 1, 2),
            "tags": ["x"],
            "zip": "01234",
        },
    }
    day = datetime(2021, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert second["metadata"] == {"price": 2.0, "new": False, "day": day, "zip": "5"}


def test_add_reads_vectors_and_integer_ids_from_tsv(run: Run) -> None:
    Path("a.tsv").write_text('id\tvector\n-3\t"[1, 2]"\n')

    run("add", "a.vecstore", "a.tsv", "--dim", 2, "--metric", "dot", "--type", "id=int")

    assert stored("a.vecstore", vectors=True) == [{"id": -3, "vector": [1.0, 2.0]}]


def test_add_reads_lines_of_text(run: Run) -> None:
    Path("a.txt").write_text("  First line. \n\nThird line.\n")

    run("add", "a.vecstore", "a.txt")

    assert [(record["text"], record["metadata"]) for record in stored("a.vecstore")] == [
        ("First line.", {"file": "a.txt", "line": 1}),
        ("Third line.", {"file": "a.txt", "line": 3}),
    ]


def test_add_takes_the_only_collection(run: Run, points: str) -> None:
    run("add", points, "-", stdin='{"id": 9, "vector": [1, 2, 3]}\n')

    assert len(stored(points, "points")) == 6


def test_add_with_several_collections_asks_which(run: Run, points: str) -> None:
    run("add", points, "-", "-c", "other", "--dim", 2, stdin="")

    result = run("add", points, "-", stdin="", status=1)

    assert "name a collection with --collection; the file has 'other', 'points'" in result.stderr


def test_upsert_replaces(run: Run, notes: str) -> None:
    changed = [{**NOTES[0], "text": "Another text."}, {"id": "new", "text": "New.", "metadata": {}}]
    file = write_jsonl("changed.jsonl", changed)

    assert "'lmdb'" in run("add", notes, file, status=1).stderr
    run("add", notes, file, "--upsert")

    assert stored(notes) == [changed[0], *NOTES[1:], changed[1]]


def test_the_last_of_equal_ids_stays(run: Run) -> None:
    rows = [{"id": "a", "text": f"Text {i}."} for i in range(3)]

    run("add", "a.vecstore", write_jsonl("a.jsonl", rows), "--upsert")

    assert stored("a.vecstore") == [rows[2]]


def test_texts_and_vectors_may_alternate(run: Run) -> None:
    vector = [1.0] + [0.0] * 383
    rows = [
        {"id": i, "text": f"Text {i}."} | ({"vector": vector} if i % 2 else {}) for i in range(5)
    ]

    run("add", "a.vecstore", write_jsonl("a.jsonl", rows))

    records = stored("a.vecstore", vectors=True)
    assert [record["vector"] == vector for record in records] == [False, True, False, True, False]


BAD_LINES = {
    "json": ("a.jsonl", b'{"text": \n', "not JSON: Expecting value"),
    "no text": ("a.jsonl", b'{"body": "a"}\n', "neither 'text' nor 'vector' is among body;"),
    "long id": ("a.jsonl", b'{"text": "a", "id": "' + b"a" * 600 + b'"}\n', "506 bytes"),
    "text": ("a.jsonl", b'{"text": 5}\n', "not a str"),
    "vector": ("a.jsonl", b'{"text": "a", "vector": [1, 2]}\n', "384"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
    "number": ("a.jsonl", b'{"text": "a", "x": 1' + b"0" * 30 + b"}\n", "64 bits"),
    "quote": ("a.csv", b'b,"x"y\n', "not CSV"),
    "open quote": ("a.csv", b'b,"never closed\n', "not CSV: unexpected end of data"),
    "latin": ("a.txt", b"caf\xe9\n", "not UTF-8 at byte 4"),
}


@pytest.mark.parametrize(("name", "line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_and_what_precedes_it_stored(
    run: Run, name: str, line: bytes, message: str
) -> None:
    good = {
        "a.jsonl": b'{"id": "a", "text": "Good."}\n\n',
        "a.csv": b"id,text\na,Good.\n",
        "a.txt": b"Good.\n\n",
    }
    last = {"a.jsonl": b'{"text": "Never."}\n', "a.csv": b"c,Never.\n", "a.txt": b"Never.\n"}
    ending = b"" if message.endswith("end of data") else last[name]
    Path(name).write_bytes(good[name] + line + ending)

    result = run("add", "a.vecstore", name, status=1)

    assert result.stderr.startswith(f"Error: {name}, line 3: ")
    assert message in result.stderr
    assert result.stderr.endswith("(1 records before it were stored)\n")
    assert [record["text"] for record in stored("a.vecstore")] == ["Good."]


def test_a_bad_record_is_found_in_its_batch(run: Run, points: str) -> None:
    rows = [{"id": 100 + i, "vector": [i, 1, 1]} for i in range(900)]
    rows[700]["vector"] = [1, 2]
    file = write_jsonl("more.jsonl", rows)

    result = run("add", points, file, status=1)

    assert result.stderr.startswith("Error: more.jsonl, line 701: ")
    assert "(700 records before it were stored)" in result.stderr
    assert [record["id"] for record in stored(points, "points")][5:] == list(range(100, 800))


def test_a_bad_line_of_stdin_is_named(run: Run) -> None:
    result = run("add", "a.vecstore", "-", stdin='{"text": "One."}\n[]\n', status=1)

    assert result.stderr.startswith("Error: stdin, line 2: ")


def test_a_bad_second_file_is_named(run: Run) -> None:
    write_jsonl("a.jsonl", NOTES)
    Path("b.csv").write_text("text,text\n")

    result = run("add", "a.vecstore", "a.jsonl", "b.csv", status=1)

    expected = (
        "b.csv, line 1: two columns have one name: text, text (3 records before it were stored)"
    )
    assert result.stderr == f"Error: {expected}\n"


def test_an_empty_file_adds_nothing(run: Run) -> None:
    for name in ("a.jsonl", "a.csv", "a.txt"):
        Path(name).touch()

    result = run("add", "a.vecstore", "a.jsonl", "a.csv", "a.txt")

    assert result.stdout.startswith("0 records stored")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.vecstore"], "Missing argument"),
        (["a.vecstore", "missing.jsonl"], "does not exist"),
        (["a.vecstore", "notes.pdf"], "say with --format what it holds"),
        (["a.vecstore", "-", "--format", "xml"], "Invalid value"),
        (["a.vecstore", "-", "--type", "year"], "is not COLUMN=TYPE"),
        (["a.vecstore", "-", "--type", "year=number"], "is not COLUMN=TYPE"),
    ],
)
def test_add_called_wrongly(run: Run, arguments: list[str], message: str) -> None:
    Path("notes.pdf").touch()

    assert message in run("add", *arguments, stdin="", status=2).stderr
    assert not Path("a.vecstore").exists()


def test_add_with_a_bad_declaration(run: Run, points: str) -> None:
    assert "dim" in run("add", points, "-", "--dim", 4, stdin="", status=1).stderr
    assert "dim" in run("add", "new.vecstore", "-", "--dim", 0, stdin="", status=1).stderr
    folder = Path("model")
    folder.mkdir()
    for model in ("model", "missing"):
        result = run("add", "m.vecstore", "-", "--encoder", f"./{model}", stdin="", status=1)
        assert result.stderr.startswith("Error: ")
        assert model in result.stderr
        assert not Path("m.vecstore").exists()


def test_a_model_that_does_not_work_binds_no_collection(run: Run) -> None:
    bundled, broken = Path(__file__).parent.parent / "models" / "default", Path("broken")
    shutil.copytree(bundled, broken)
    (broken / "tokenizer.json").write_text("{}")

    result = run("add", "a.vecstore", "-", "--encoder", "./broken", stdin="", status=1)

    assert "tokenizer.json" in result.stderr
    assert not Path("a.vecstore").exists()
    run("add", "a.vecstore", "-", "--encoder", "fast", stdin='{"id": 1, "text": "One."}')


def test_add_and_search_with_a_model_folder(run: Run) -> None:
    model = Path(__file__).parent.parent / "models" / "default"
    run("add", "a.vecstore", "-", "--encoder", model, stdin='{"id": 1, "text": "One."}')

    result = run("search", "a.vecstore", "one", "--encoder", model, "--json")

    assert [hit["id"] for hit in json.loads(result.stdout)["hits"]] == [1]


def test_another_encoder_is_refused_with_the_option_to_name(run: Run, notes: str) -> None:
    def another(texts: list[str]) -> Any:
        return np.ones((len(texts), 8))

    with vecstore.open("other.vecstore") as db:
        db.collection("default", encoder=another).add("Old.", ids="old")

    for arguments, stdin in (
        (["search", "other.vecstore", "old"], None),
        (["add", "other.vecstore", "-"], '{"text": "New."}'),
    ):
        result = run(*arguments, stdin=stdin, status=1)
        assert "was made with encoder" in result.stderr
        assert "--encoder FOLDER" in result.stderr
    assert "--encoder" not in run("search", notes, " ", status=1).stderr


# search


def test_search_prints_a_table(run: Run, notes: str) -> None:
    result = run("search", notes, "an embedded database", "-k", 2)

    lines = result.output.splitlines()
    assert lines[0].split() == ["score", "id", "text", "metadata"]
    assert lines[1].split()[1:5] == ["lmdb", "LMDB", "is", "a"]
    assert lines[1].rstrip().endswith('{"year": 2011}')
    assert len(lines) == 3
    assert "\x1b" not in result.output


def test_search_as_json(run: Run, notes: str) -> None:
    where = '{"year": {"$lt": 2000}}'

    result = run("search", notes, "an embedded database", "--where", where, "--json")

    answer = json.loads(result.stdout)
    assert list(answer) == ["complete", "hits"]
    [hit] = answer["hits"]
    assert list(hit) == ["id", "score", "distance", "text", "metadata"]
    assert hit["id"] == "bread"


def test_search_with_a_least_score(run: Run, notes: str) -> None:
    result = run("search", notes, "an embedded database", "--min-score", 0.99)

    assert result.stdout == ""
    assert result.stderr == "no record qualifies\n"
    answer = run("search", notes, "database", "--min-score", 0.99, "--json")
    assert json.loads(answer.stdout)["hits"] == []


def test_search_by_vector(run: Run, points: str) -> None:
    result = run("search", points, "[3, 1, 0.5]", "-k", 1, "--json")

    [hit] = json.loads(result.stdout)["hits"]
    assert (hit["id"], hit["distance"]) == (3, 0.0)
    assert "is a JSON array of 3 numbers" in run("search", points, "three", status=1).stderr
    assert run("search", points, "[1, 2]", status=1).stderr.startswith("Error: ")
    assert run("search", points, '{"a": 1}', status=1).stderr.startswith("Error: ")


def test_search_with_a_filter_on_a_datetime(run: Run) -> None:
    rows = [
        {"id": year, "text": "A day.", "at": {"$datetime": f"{year}-05-01T00:00:00+00:00"}}
        for year in (2019, 2021)
    ]
    run("add", "a.vecstore", write_jsonl("a.jsonl", rows))

    where = '{"at": {"$gte": {"$datetime": "2020-01-01T00:00:00+00:00"}}}'
    result = run("search", "a.vecstore", "day", "--where", where, "--json")

    assert [hit["id"] for hit in json.loads(result.stdout)["hits"]] == [2021]
    assert json.loads(result.stdout)["hits"][0]["metadata"] == {
        "at": {"$datetime": "2021-05-01T00:00:00+00:00"}
    }


def test_a_filter_that_is_no_json_is_called_wrongly(run: Run, notes: str) -> None:
    assert "is not JSON" in run("search", notes, "x", "--where", "{year: 1}", status=2).stderr
    assert "is not JSON" in run("search", notes, "x", "--where", "[" * 9999, status=2).stderr
    result = run("search", notes, "x", "--where", '{"year": {"$about": 1}}', status=1)
    assert result.stderr.startswith("Error: ")
    assert "$about" in result.stderr


def test_collections_are_listed_where_the_choice_is_open(run: Run, points: str) -> None:
    run("add", points, "-", "-c", "notes", stdin='{"text": "One."}')

    expected = "name a collection with --collection; the file has 'notes', 'points'"
    assert run("search", points, "x", status=1).stderr == f"Error: {expected}\n"
    expected = "no collection 'other'; the file has 'notes', 'points'"
    assert run("search", points, "x", "-c", "other", status=1).stderr == f"Error: {expected}\n"
    assert run("search", points, "[1, 1, 1]", "-c", "points").stdout


# get, info, check, backup, compact


def test_get_shows_records(run: Run, notes: str) -> None:
    result = run("get", notes, "lmdb", "numba")

    first = 'id: lmdb\ntext: LMDB is a memory-mapped key-value store.\nmetadata: {"year": 2011}\n'
    assert result.output.startswith(f"{first}\nid: numba\n")


def test_get_of_missing_ids_fails_but_shows_the_others(run: Run, notes: str) -> None:
    result = run("get", notes, "lmdb", "5", status=1)

    assert result.stdout.startswith("id: lmdb\n")
    assert result.stderr == (
        "Error: no record has the id '5'; ids are text unless --int is given\n"
    )
    result = run("get", notes, "lmdb", "gone", "--json", status=1)
    assert json.loads(result.stdout) == [NOTES[0], None]


def test_get_by_integer(run: Run, points: str) -> None:
    assert run("get", points, "--int", "3").stdout.startswith("id: 3\n")
    assert "'-'" in run("get", points, "--int", "--", "-", status=2).stderr
    assert run("get", points, "--int", 2**70, status=1).stderr.startswith("Error: ")


def test_what_is_shown_cannot_steer_the_terminal(run: Run) -> None:
    row = {
        "id": "a\x1b[31m",
        "text": "red \x1b]0;title\x07 \u202e text",
        "metadata": {"k\x1b": "v"},
    }
    run("add", "a.vecstore", write_jsonl("a.jsonl", [row]))

    for result in (run("get", "a.vecstore", row["id"]), run("search", "a.vecstore", "red")):
        assert not {"\x1b", "\x07", "\u202e"} & set(result.output)
    result = run("get", "a.vecstore", "\x1b[31m", status=1)
    assert "\x1b" not in result.output


def test_info_describes_the_file(run: Run, notes: str) -> None:
    run("add", notes, "-", "-c", "points", "--dim", 3, stdin="")

    lines = run("info", notes).output.splitlines()

    assert lines[0].startswith("notes.vecstore: format 1, ")
    columns = ["name", "records", "dim", "metric", "precision", "index", "codes", "encoder"]
    assert lines[1].split() == columns
    assert lines[2].split()[:6] == ["default", "3", "384", "cosine", "float32", "auto"]
    assert lines[3].split() == ["points", "0", "3", "cosine", "float32", "auto"]
    assert lines[4].split() == ["bytes", "vectors", "rounded", "lists", "tail", "unused"]
    assert lines[5].split()[:2] == ["default", str(48 + 1024 + 3 * 4 * 384)]
    assert lines[6].split() == ["points", "0", "0", "0", "0", "0"]


def test_info_as_json(run: Run, points: str) -> None:
    summary = json.loads(run("info", points, "--json").stdout)

    assert Path(summary["path"]) == Path(points).resolve()
    assert summary["format"] == 1
    assert summary["file_bytes"] > 0
    collection = summary["collections"]["points"]
    assert collection["name"] == "points"
    assert collection["records"] == 5
    assert collection["encoder"] is None


def test_check_finds_nothing_in_a_sound_file(run: Run, notes: str) -> None:
    assert run("check", notes).output == "notes.vecstore: 0 problems\n"
    assert json.loads(run("check", notes, "--json").stdout) == []


def test_check_prints_problems(run: Run, notes: str) -> None:
    damage(notes)

    result = run("check", notes, status=1)
    found = json.loads(run("check", notes, "--json", status=1).stdout)

    assert result.stdout.splitlines()[-1] == f"notes.vecstore: {len(found)} problems"
    assert len(found) == len(result.stdout.splitlines()) - 1 > 0
    assert set(found[0]) == {"where", "what", "repaired"}


@pytest.mark.parametrize("command", [["info"], ["dump"], ["get", "bread"], ["search", "bread"]])
def test_a_file_from_others_is_checked_first_if_asked(
    run: Run, notes: str, command: list[str]
) -> None:
    verb, *rest = command
    assert run(verb, notes, *rest, "--verify").output == run(verb, notes, *rest).output

    damage(notes)

    assert "cannot trust" in run(verb, notes, *rest, "--verify", status=1).stderr


def test_check_repairs_what_can_be_made_anew(run: Run, notes: str) -> None:
    with vecstore.open(notes) as db:
        db.writing(lambda txn: txn.delete("live", b"\0\0\0\1\0\0\0\0"))
    before = run("check", notes, status=1).stdout.splitlines()
    repaired = run("check", notes, "--repair").stdout.splitlines()

    assert repaired[:-1] == [f"repaired: {line}" for line in before[:-1]]
    count = len(before) - 1
    assert repaired[-1] == f"notes.vecstore: {count} problems, {count} of them repaired"
    assert run("check", notes, "--repair", "--json").stdout == "[]\n"
    assert stored(notes) == NOTES


def test_check_does_not_repair_records(run: Run, notes: str) -> None:
    damage(notes)
    found = json.loads(run("check", notes, "--repair", "--json", status=1).stdout)

    assert found
    assert not any(problem["repaired"] for problem in found)
    last = run("check", notes, "--repair", status=1).stdout.splitlines()[-1]
    assert last.endswith("0 of them repaired; vecstore salvage reads what is left into a new file")


def test_repair_makes_no_file(run: Run) -> None:
    assert "does not exist" in run("check", "none.vecstore", "--repair", status=1).stderr
    assert not Path("none.vecstore").exists()


def damage(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    place = data.index(b"Bread is baked")
    data[place : place + 5] = b"Wheat"
    Path(path).write_bytes(data)


def test_salvage_reads_what_is_left(run: Run, notes: str) -> None:
    damage(notes)
    result = run("salvage", notes, "new.vecstore", status=1)

    left = len(NOTES) - 1
    assert result.stdout.splitlines()[-1] == f"new.vecstore: {left} records, 1 lost"
    assert f"'default': {left} records, 1 cannot be read" in result.stdout
    assert [one for one in NOTES if one in stored("new.vecstore")] == stored("new.vecstore")
    assert run("check", "new.vecstore").exit_code == 0


def test_salvage_prints_json(run: Run, notes: str) -> None:
    found = json.loads(run("salvage", notes, "new.vecstore", "--json").stdout)

    assert found["collections"][0]["records"] == len(NOTES)
    assert found["leftovers"] is None
    assert "exists already" in run("salvage", notes, "new.vecstore", status=1).stderr


def test_backup_is_a_copy(run: Run, notes: str) -> None:
    result = run("backup", notes, "copy.vecstore")

    size = Path("copy.vecstore").stat().st_size
    assert result.output == f"copy.vecstore: {size:,} bytes\n"
    assert stored("copy.vecstore") == NOTES


def test_compact_gives_space_back(run: Run, points: str) -> None:
    rows = [{"id": i, "vector": [i, 1, 1], "text": "x" * 500} for i in range(100, 2000)]
    run("add", points, write_jsonl("rows.jsonl", rows))
    with vecstore.open(points) as db:
        db.collection("points").delete(range(100, 2000))

    result = json.loads(run("compact", points, "--json").stdout)

    assert result["path"] == points
    assert result["given_back"] > 500_000
    assert result["bytes"] == Path(points).stat().st_size
    assert run("compact", points).output.startswith("points.vecstore: ")
    assert len(stored(points, "points")) == 5


@pytest.mark.parametrize("command", ["info", "search", "get", "check", "backup", "compact", "dump"])
def test_a_missing_file_is_said_and_not_made(run: Run, command: str) -> None:
    more = {"search": ["query"], "get": ["id"], "backup": ["copy.vecstore"]}.get(command, [])

    result = run(command, "missing.vecstore", *more, status=1)

    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("command", ["info", "add", "search"])
def test_a_file_of_something_else_is_refused(run: Run, command: str) -> None:
    Path("text.vecstore").write_text("This is a letter to a friend.\n" * 1000)
    more = {"add": ["-"], "search": ["query"]}.get(command, [])

    result = run(command, "text.vecstore", *more, stdin="", status=1)

    assert result.stderr.startswith("Error: ")
    assert Path("text.vecstore").read_text().startswith("This is a letter")


# dump


ODD = {
    "naive": datetime(2020, 1, 2, 3, 4, 5, 6),
    "aware": datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC),
    "bytes": b"\x00\xff",
    "nested": {"list": [1, {"$datetime": "no date"}, [b"x"]], "none": None},
    "alone": {"$bytes": b"b"},
    "twice": {"$dict": {"$dict": 1}},
    "two": {"$bytes": 1, "$datetime": 2},
    "float": 0.1 + 0.2,
    "text": "\u00e9\u4e2d\U0001f600\u2028\n",
    "id": 5,
    "metadata": {},
    "large": 2**63 - 1,
}


def test_dump_prints_jsonl(run: Run, notes: str) -> None:
    result = run("dump", notes)

    assert [json.loads(line) for line in result.stdout.splitlines()] == NOTES
    where = '{"year": {"$gte": 2000}}'
    assert len(run("dump", notes, "--where", where).stdout.splitlines()) == 2


def test_dump_and_add_round_trip(run: Run) -> None:
    with vecstore.open("a.vecstore") as db:
        texts = db.collection("texts")
        texts.add(["One.", "Two.", "Three."], ids=["a", 2, "c"], metadata=[ODD, {}, None])
        texts.add("Four.", ids="d", metadata={"a": {"$datetime": "alone"}})
        texts.upsert("One again.", ids="a", metadata=ODD)
        ends = [datetime(2999, 1, 1, tzinfo=UTC), datetime(2999, 1, 2, tzinfo=UTC)]
        texts.add(["Five.", "Six."], ids=["e", "f"], metadata=[ODD, None], expires_at=ends)

    dumped = run("dump", "a.vecstore").stdout_bytes
    run("add", "b.vecstore", "-", "-c", "texts", stdin=dumped)

    assert stored("b.vecstore", "texts") == stored("a.vecstore", "texts")
    assert run("dump", "b.vecstore").stdout_bytes == dumped


def test_a_search_by_a_prefix(run: Run) -> None:
    rows = [{"id": 1, "vector": [1, 0, 9]}, {"id": 2, "vector": [1, 1, 0]}]
    run("add", "a.vecstore", write_jsonl("rows.jsonl", rows), "--dim", 3)

    for query in ("[1, 0]", "[1, 0, -5]"):
        hits = json.loads(run("search", "a.vecstore", query, "--dims", 2, "--json").output)["hits"]
        assert [hit["id"] for hit in hits] == [1, 2]
    assert "dims=4 is over" in run("search", "a.vecstore", "[1]", "--dims", 4, status=1).stderr


def test_binary_vectors_are_added_searched_and_dumped(run: Run) -> None:
    file = write_jsonl("rows.jsonl", [{"id": i, "vector": [i, 255]} for i in range(4)])
    declared = ("--dim", 16, "--metric", "hamming")
    run("add", "a.vecstore", file, *declared)
    dumped = run("dump", "a.vecstore").output
    run("add", "b.vecstore", "-", *declared, stdin=dumped)
    Path("rows.csv").write_text('id,vector\nx,"[3, 0]"\n')
    run("add", "b.vecstore", "rows.csv")

    assert dumped.splitlines()[3] == '{"id": 3, "vector": [3, 255]}'
    assert run("dump", "b.vecstore").output == dumped + '{"id": "x", "vector": [3, 0]}\n'
    found = json.loads(run("search", "b.vecstore", "[3, 255]", "--json", "-k", 1).output)
    assert (found["hits"][0]["id"], found["hits"][0]["distance"]) == (3, 0.0)
    assert "a JSON array of 2 bytes" in run("search", "b.vecstore", "text", status=1).stderr


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_precision_is_declared_and_dumped_vectors_come_back(run: Run, precision: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 4)).tolist()
    file = write_jsonl("rows.jsonl", [{"id": i, "vector": v} for i, v in enumerate(vectors)])
    declared = ("--dim", 4, "--metric", "l2", "--precision", precision)
    run("add", "a.vecstore", file, *declared)
    dumped = run("dump", "a.vecstore").output

    run("add", "b.vecstore", "-", *declared, stdin=dumped)

    assert run("dump", "b.vecstore").output == dumped
    info = json.loads(run("info", "b.vecstore", "--json").output)
    assert info["collections"]["default"]["precision"] == precision


def test_prefixes_and_a_schedule_are_declared(run: Run) -> None:
    declared = ("--dim", 64, "--mrl", "16,32, 64", "--tiers", "32x2,64x4", "--index", "hash")
    run("add", "a.vecstore", "-", *declared, stdin="")

    with vecstore.open("a.vecstore", read_only=True) as db:
        spec = db.collection("default", index="hash").spec
    assert (spec.mrl, spec.tiers) == ((16, 32, 64), ((32, 2),))
    # What is stated again is compared; what is not stays.
    run("add", "a.vecstore", "-", *declared, stdin="")
    run("add", "a.vecstore", "-", stdin="")
    other = run("add", "a.vecstore", "-", "--mrl", "16,64", stdin="", status=1)
    assert "has mrl=(16, 32, 64), not (16, 64)" in other.stderr
    other = run("add", "a.vecstore", "-", "--tiers", "16x4", stdin="", status=1)
    assert "has tiers=((32, 2),), not ((16, 4),)" in other.stderr


@pytest.mark.parametrize("value", ["", "16,", "a", "1.5", "16x2"])
def test_prefixes_are_numbers(run: Run, value: str) -> None:
    stderr = run("add", "a.vecstore", "-", "--mrl", value, stdin="", status=2).stderr

    assert f"{value!r} is not DIMS,DIMS,..." in stderr
    assert not Path("a.vecstore").exists()


@pytest.mark.parametrize("value", ["", "16", "16x", "16x2x3", "16x2,", "axb", "16*2"])
def test_a_schedule_is_dims_and_bits(run: Run, value: str) -> None:
    stderr = run("add", "a.vecstore", "-", "--tiers", value, stdin="", status=2).stderr

    assert f"{value!r} is not DIMSxBITS, as 192x2" in stderr
    assert not Path("a.vecstore").exists()


@pytest.mark.parametrize(
    "declared", [("--mrl", "64,16"), ("--mrl", "99"), ("--tiers", "99x1"), ("--tiers", "16x3")]
)
def test_what_cannot_be_declared_is_named(run: Run, declared: tuple[str, str]) -> None:
    stderr = run("add", "a.vecstore", "-", "--dim", 64, *declared, stdin="", status=1).stderr

    assert f"{declared[0].removeprefix('--')}=(" in stderr


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_dumped_vectors_come_back(run: Run, metric: str) -> None:
    vectors = np.random.default_rng(7).normal(size=(20, 5)).astype(np.float32)
    declared: dict[str, Any] = {"dim": 5, "metric": metric}
    with vecstore.open("a.vecstore") as db:
        db.collection("points", **declared).add(vectors=vectors, ids=range(20))

    dumped = run("dump", "a.vecstore").stdout_bytes
    run("add", "b.vecstore", "-", "-c", "points", "--dim", 5, "--metric", metric, stdin=dumped)

    assert b'"vector"' in dumped
    before, after = (
        np.array([record["vector"] for record in stored(path, "points", vectors=True)])
        for path in ("a.vecstore", "b.vecstore")
    )
    # Under cosine the store keeps unit vectors and lengths, so that the last bit may differ.
    np.testing.assert_allclose(after, before, rtol=3e-7 if metric == "cosine" else 0)
    assert b'"vector"' not in run("dump", "a.vecstore", "--no-vectors").stdout_bytes


def test_dump_of_texts_with_vectors(run: Run, notes: str) -> None:
    dumped = run("dump", notes, "--vectors").stdout_bytes
    run("add", "b.vecstore", "-", stdin=dumped)

    assert len(json.loads(dumped.splitlines()[0])["vector"]) == 384
    assert stored("b.vecstore", vectors=True) == stored(notes, vectors=True)


# warm


def test_warm_compiles_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compile_now", lambda progress: progress("Compiling") or DONE)

    shown, printed = run("warm"), run("warm", "--json")

    assert shown.output == "compiled in 21.5 s, kept in /caches/kernels\n"
    found = {"folder": "/caches/kernels", "compiled": True, "seconds": 21.5}
    assert json.loads(printed.output) == found


def test_warm_needs_a_folder_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").resolve()))

    result = run("warm", status=1)

    assert "there is no cache folder" in result.stderr


DONE = compiled.Compiled({}, Path("/caches/kernels"), fresh=True, seconds=21.5)


# The command itself


def test_help_names_every_command(run: Run) -> None:
    result = run("--help")

    names = "demo info add search get check backup compact dump warm"
    for name in names.split():
        assert f"\n  {name} " in result.output
        assert "Usage: " in run(name, "--help").output
    assert run("--version").output == f"vecstore, version {vecstore.__version__}\n"


def test_errors_of_the_system_are_one_line(run: Run, notes: str) -> None:
    Path("folder").mkdir()

    result = run("backup", notes, "folder/missing/copy.vecstore", status=1)

    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vecstore", *arguments]


def test_module_runs_as_a_program(notes: str) -> None:
    done = subprocess.run(command("dump", notes), capture_output=True, check=True)

    assert [json.loads(line) for line in done.stdout.splitlines()] == NOTES
    assert done.stderr == b""
    failed = subprocess.run(command("info", "missing.vecstore"), capture_output=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(b"Error: ")
    assert b"Traceback" not in failed.stderr


def test_a_reader_that_goes_away_is_no_error(run: Run, points: str) -> None:
    rows = [{"id": i, "vector": [i, 1, 1], "text": "x" * 1000} for i in range(10, 1000)]
    run("add", points, write_jsonl("rows.jsonl", rows))

    for arguments in (("dump", points), ("search", points, "[1,1,1]", "-k", "900", "--json")):
        with subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""


def test_importing_vecstore_imports_no_command_line() -> None:
    code = "import sys, vecstore; print(sorted({'click', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert done.stdout.split() == [b"[]"]


def test_ctrl_c_says_what_was_stored(
    run: Run, points: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = formats.read

    def interrupted(*arguments: Any) -> Any:
        for number, item in enumerate(read(*arguments)):
            if number == 700:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(formats, "read", interrupted)
    rows = [{"id": i, "vector": [i, 1, 1]} for i in range(10, 800)]

    result = run("add", points, write_jsonl("rows.jsonl", rows), status=1)

    assert result.stderr == "Error: interrupted (600 records before it were stored)\n"


# Indexes


@pytest.fixture
def many(run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    small_indexes(monkeypatch)
    vectors = clusters(600).tolist()
    rows = [{"id": i, "vector": vector, "odd": i % 2} for i, vector in enumerate(vectors)]
    file = write_jsonl("many.jsonl", rows)
    run("add", "many.vecstore", file, "--dim", DIM, "--index", "ivf", "-c", "many")
    return "many.vecstore"


def test_a_search_is_explained(run: Run, many: str) -> None:
    query = json.dumps([1.0] * DIM)

    shown = run("search", many, query, "-k", 2, "--explain").output
    found = json.loads(run("search", many, query, "--explain", "--json").output)

    assert "ivf" in shown
    assert "milliseconds" in shown
    assert found["explanation"]["method"] == "index"
    assert len(found["hits"]) == 10
    assert "explanation" not in json.loads(run("search", many, query, "--json").output)
    assert "ivf" in run("info", many).output


def test_a_search_without_answers_is_explained(run: Run, many: str) -> None:
    result = run("search", many, json.dumps([1.0] * DIM), "--where", '{"odd": 7}', "--explain")

    assert result.stderr == "no record qualifies\n"
    assert "no record satisfies the filter" in result.stdout


def test_indexes_are_brought_up_to_date(run: Run, many: str) -> None:
    run("add", many, write_jsonl("one.jsonl", [{"vector": [1.0] * 4}]), "--dim", 4, "-c", "one")

    one = json.loads(run("optimize", many, "-c", "many", "--json").output)
    everything = run("optimize", many).output.splitlines()

    assert list(one) == ["many"]
    assert one["many"]["lists"] > 10
    assert [line.split(":")[0] for line in everything] == ["many", "one"]
    assert "nothing to train, 0 lists" in everything[1]


def test_a_collection_gets_another_index(run: Run, many: str) -> None:
    assert "many: trained, calibrated, 0 lists" in run("reindex", many, "hash").output
    assert json.loads(run("reindex", many, "flat", "--json").output)["many"]["lists"] == 0
    assert json.loads(run("info", many, "--json").output)["collections"]["many"]["index"] == "flat"
    run("reindex", many, "hnsw", status=2)


def test_an_audit_fails_where_the_recall_does(run: Run, many: str) -> None:
    found = json.loads(run("audit", many, "--sample", 50, "-k", 5, "--json").output)
    assert (found["queries"], found["k"], found["method"]) == (50, 5, "index")
    assert "holds" in run("audit", many, "--where", '{"odd": 1}').output

    with vecstore.open(many) as db:
        spoil(db, "many")
    assert "does not hold" in run("audit", many, status=1).output
    assert "0.95 holds" in run("audit", many, "--recalibrate").output
    run("audit", many, "--recall", 2, status=1)


@pytest.mark.parametrize("command", [["optimize"], ["reindex"], ["audit"], ["audit", "-r"]])
def test_no_file_is_made_to_bring_its_index_up_to_date(run: Run, command: list[str]) -> None:
    name, *rest = command
    rest = ["flat"] if name == "reindex" else ["--recalibrate"] if rest else []
    run(name, "missing.vecstore", *rest, status=1)

    assert not Path("missing.vecstore").exists()


# demo


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some of the standard library, all of which takes seconds to parse; see `test_demo.py`."""
    folder = tmp_path / "lib"
    folder.mkdir()
    for name in ("argparse", "difflib", "shutil", "subprocess", "tarfile"):
        shutil.copy(Path(os.__file__).parent / f"{name}.py", folder)
    monkeypatch.setattr("sysconfig.get_path", lambda name: os.fspath(folder))
    return folder


@pytest.mark.usefixtures("library")
def test_demo_indexes_and_answers(run: Run) -> None:
    result = run("demo", "--limit", 50)

    assert f"50 docstrings in {Path('demo.vecstore').resolve()}; embedded 50 in" in result.output
    assert "run a command and capture its output\n" in result.output
    assert 'vecstore search demo.vecstore "' in result.output
    with vecstore.open("demo.vecstore", read_only=True) as db:
        assert db.collection("stdlib").count() == 50

    assert "embedded 10 in" in run("demo", "--limit", 60).output
    assert "nothing new to embed" in run("demo", "--limit", 60).output


def test_demo_finds_what_it_asks_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = '''
def run(command):
    """Run a command and return what it printed."""

def bake(flour):
    """Bake a loaf of bread."""
'''
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "tools.py").write_text(source)
    monkeypatch.setattr("sysconfig.get_path", lambda name: os.fspath(folder))

    result = run("demo", "mine.vecstore")

    lines = result.output.splitlines()
    place = lines.index("run a command and capture its output")
    assert lines[place + 1] == 'where {"kind": "function"}'
    assert lines[place + 3].split()[1] == "tools.run"
    assert Path("mine.vecstore").exists()


@pytest.mark.usefixtures("library")
def test_demo_into_a_file_of_something_else(run: Run, points: str) -> None:
    run("demo", points, "--limit", 3)

    assert len(stored(points, "points")) == 5
    assert len(stored(points, "stdlib")) == 3


@pytest.mark.usefixtures("library")
def test_demo_over_a_file_of_another_model(run: Run) -> None:
    def another(texts: list[str]) -> Any:
        return np.ones((len(texts), 8))

    with vecstore.open("demo.vecstore") as db:
        db.collection("stdlib", encoder=another).add("Old.")

    result = run("demo", "--limit", 3, status=1)

    expected = "demo.vecstore was made with another model; remove it, or name another file"
    assert result.stderr.endswith(f"{expected}\n")


def test_long_texts_are_chunked_shown_and_dumped(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    long = "Red apples grow on trees. " * 60 + "The last train leaves at midnight."
    records = [{"id": "long", "text": long}, {"id": "short", "text": "a green pear"}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    options = ("--chunk-tokens", 20, "--chunk-overlap", 8)
    run("add", "long.vecstore", tmp_path / "long.jsonl", *options)

    found = json.loads(run("search", "long.vecstore", "midnight train", "--json").stdout)["hits"]
    dumped = run("dump", "long.vecstore", "--vectors").stdout
    lines = [json.loads(line) for line in dumped.splitlines()]
    run("add", "again.vecstore", "-", "--chunk", stdin=json.dumps(lines[0]))

    assert [hit["id"] for hit in found] == ["long", "short"]
    assert found[0]["passage"]["text"].endswith("leaves at midnight.")
    assert "midnight" in run("search", "long.vecstore", "midnight train", "-k", 1).stdout
    assert [line["id"] for line in lines] == ["long", "short"]
    assert lines[0] == records[0]
    assert len(lines[1]["vector"]) == 384
    with vecstore.open("again.vecstore") as db:
        assert len(db.collection("default").get("long").passages) > 1


def test_a_chunking_that_cannot_be_is_a_wrong_call(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("red apples\n")
    call = ("add", "a.vecstore", tmp_path / "a.txt", "--chunk-tokens", 4, "--chunk-overlap", 3)

    result = run(*call, status=2)

    assert "overlap=3 is more than half of the 4 tokens" in result.stderr
