import io
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from vecstore import UsageError, formats

ODD: dict[str, Any] = {
    "naive": datetime(2020, 1, 2, 3, 4, 5, 6),
    "aware": datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC),
    "bytes": b"\x00\xff",
    "nested": {"list": [1, {"$datetime": "no date"}, [b"x"]], "none": None},
    "alone": {"$bytes": b"b"},
    "twice": {"$dict": {"$dict": 1}},
    "two": {"$bytes": 1, "$datetime": 2},
    "float": 0.1 + 0.2,
    "text": "\u00e9\u4e2d\U0001f600\u2028\n",
    "large": 2**63 - 1,
}


def read(data: bytes, kind: str, *types: str, text: str = "text") -> list[formats.Item]:
    fields = formats.Fields(text, "id", formats.cell_types(types))
    return list(formats.read(io.BytesIO(data), f"a.{kind}", kind, fields))


def records(data: bytes, kind: str, *types: str) -> list[dict[str, Any]]:
    return [item.record for item in read(data, kind, *types)]


# Files of records


def test_places_and_sizes_are_those_of_the_lines() -> None:
    items = read(b'{"text": "a"}\n\n{"text": "b"}', "jsonl")

    assert [(item.place, item.size) for item in items] == [
        ("a.jsonl, line 1", 14),
        ("a.jsonl, line 3", 14),
    ]


def test_a_row_over_several_lines_stands_where_it_begins() -> None:
    items = read(b'id,text\na,"two\nlines"\nb,one\n', "csv")

    assert [item.place for item in items] == ["a.csv, line 2", "a.csv, line 4"]
    assert sum(item.size for item in items) == len(b'id,text\na,"two\nlines"\nb,one\n')


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("jsonl", b'\xef\xbb\xbf{"id": "a", "text": "One."}\r\n\r\n  \r\n'),
        ("csv", b"\xef\xbb\xbfid,text\r\na,One.\r\n\r\n"),
        ("tsv", b"\xef\xbb\xbfid\ttext\r\na\tOne.\r\n"),
        ("txt", b"\xef\xbb\xbfOne.\r\n\r\n"),
    ],
)
def test_files_of_windows_are_read(kind: str, data: bytes) -> None:
    [record] = records(data, kind)

    assert record["text"] == "One."
    assert record.get("id", "a") == "a"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "txt"])
def test_an_empty_file_holds_no_record(kind: str) -> None:
    assert records(b"", kind) == []


def test_vector_and_metadata_of_a_row_are_json() -> None:
    data = b'id,vector,metadata,year\n1,"[1, 2]","{""a"": {""$bytes"": ""AAE=""}}",2020\n'

    assert records(data, "csv", "id=int", "year=int") == [
        {"id": 1, "vector": [1, 2], "metadata": {"a": b"\x00\x01", "year": 2020}}
    ]


def test_lines_of_text_tell_their_origin() -> None:
    [item] = read(b"\n  One. \n", "txt", text="body")

    assert item.record == {"text": "One.", "metadata": {"file": "a.txt", "line": 2}}


def test_records_are_read_as_they_are_taken() -> None:
    fields = formats.Fields("text", "id", {})
    items = formats.read(io.BytesIO(b"Good.\n\xff\n"), "a.txt", "txt", fields)

    assert next(items).record["text"] == "Good."
    with pytest.raises(UsageError, match="line 2"):
        next(items)


BAD_LINES = {
    "json": ("jsonl", b'{"text": \n', "not JSON: Expecting value"),
    "nan": ("jsonl", b'{"text": "a", "x": NaN}\n', "NaN is no value in JSON"),
    "deep": ("jsonl", b"[" * 100_000 + b"\n", "nested too deep"),
    "list": ("jsonl", b'["a"]\n', 'a record is a JSON object, got ["a"]'),
    "no text": ("jsonl", b'{"body": "a"}\n', "neither 'text' nor 'vector' is among body;"),
    "empty": ("jsonl", b"{}\n", "is among nothing;"),
    "metadata": ("jsonl", b'{"text": "a", "metadata": 1}\n', "metadata is an object, got int"),
    "twice": (
        "jsonl",
        b'{"text": "a", "x": 1, "metadata": {"x": 1}}\n',
        "'x' stands both in metadata and beside it",
    ),
    "id": ("jsonl", b'{"text": "a", "id": 1.5}\n', "an id is a text or an integer, got 1.5"),
    "mark": ("jsonl", b'{"text": "a", "at": {"$datetime": 5}}\n', "'$datetime' stands before 5"),
    "bytes": ("jsonl", b'{"text": "a", "x": {"$bytes": "!"}}\n', "base64"),
    "utf-8": ("jsonl", b'{"text": "caf\xe9"}\n', "not UTF-8 at byte 14"),
    "cells": ("csv", b"b,too,many\n", "3 cells under 2 columns"),
    "quote": ("csv", b'b,"x"y\n', "not CSV"),
    "open quote": ("csv", b'b,"never closed\n', "not CSV: unexpected end of data"),
    "no cell": ("csv", b"b,\n", "neither 'text' nor 'vector' is among id;"),
    "latin": ("txt", b"caf\xe9\n", "not UTF-8 at byte 4"),
}


@pytest.mark.parametrize(("kind", "line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(kind: str, line: bytes, message: str) -> None:
    good = {"jsonl": b'{"text": "Good."}\n\n', "csv": b"id,text\na,Good.\n", "txt": b"Good.\n\n"}

    with pytest.raises(UsageError) as raised:
        read(good[kind] + line, kind)

    assert str(raised.value).startswith(f"a.{kind}, line 3: ")
    assert message in str(raised.value)


def test_columns_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="line 1: two columns have one name: text, text"):
        read(b"text,text\na,b\n", "csv")


@pytest.mark.parametrize("kind", ["int", "float", "bool", "datetime", "json"])
def test_a_bad_cell_names_column_and_type(kind: str) -> None:
    with pytest.raises(UsageError, match=f"a.csv, line 4: column 'n': 'x' is no {kind}"):
        read(b'text,n\n"two\nlines",\nb,x\n', "csv", f"n={kind}")


def test_an_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE", 1 << 20)

    with pytest.raises(UsageError, match="line 1: longer than 1 MiB"):
        read(b"x" * (2 << 20), "txt")


@pytest.mark.parametrize("declared", ["year", "=int", "year=number", ""])
def test_a_type_has_a_column_and_a_name(declared: str) -> None:
    with pytest.raises(UsageError, match="is not COLUMN=TYPE"):
        formats.cell_types([declared])


def test_the_suffix_tells_the_format() -> None:
    assert formats.format_of("folder.csv/A.JSONL") == "jsonl"
    assert formats.format_of("a.ndjson") == "jsonl"
    with pytest.raises(UsageError, match=r"notes\.pdf: say with --format"):
        formats.format_of("notes.pdf")


# JSON


def test_metadata_survives_json() -> None:
    line = formats.dumps(ODD)

    assert "\n" not in line
    assert formats.from_json(formats.parse_json(line)) == ODD


@pytest.mark.parametrize("mark", sorted(formats.MARKS))
def test_a_lone_mark_survives_json(mark: str) -> None:
    value = {mark: {mark: "x"}}

    assert formats.from_json(json.loads(formats.dumps(value))) == value


def test_nine_digits_restore_a_float32() -> None:
    vector = np.random.default_rng(3).normal(size=1000).astype(np.float32)

    back = np.array(json.loads(formats.dumps(vector)), dtype=np.float32)

    np.testing.assert_array_equal(back, vector)
