"""How do files of records become dicts, and back?

`read` turns the lines of a file into records, and names the line that holds none. JSON stands for
metadata in every format; types that it lacks are written as an object with one key, a mark.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from vecstore.errors import UsageError

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "txt"}
MAX_LINE = 64 << 20
# The key of when a record expires: no field of metadata can be called so.
EXPIRES = "$expires_at"
MARKS = {"$datetime", "$bytes", "$dict"}

_Numbered = tuple[int, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Item:
    """A record to store, and where it came from.

    Attributes:
        record: The record, as `add_records` takes it.
        place: Its file and line, for people.
        size: Bytes that it took there.
    """

    record: dict[str, Any]
    place: str
    size: int


@dataclass(frozen=True, slots=True)
class Fields:
    """How an object or a row becomes a record.

    Attributes:
        text: The key of the text.
        id: The key of the id.
        types: The types of the columns of a CSV that are no plain text; see `cell_types`.
    """

    text: str
    id: str
    types: dict[str, str]

    def record(self, values: dict[str, Any]) -> dict[str, Any]:
        """Turn an object into a record; its keys are taken out of `values`.

        Raises:
            ValueError: It is no record; the message says why.
        """
        metadata = from_json(values.pop("metadata", None))
        if not isinstance(metadata, dict | None):
            raise ValueError(f"metadata is an object, got {type(metadata).__name__}")
        names = ", ".join(values) or "nothing"
        keys = {"id": self.id, "text": self.text, "vector": "vector", "expires_at": EXPIRES}
        record = {name: from_json(values.pop(key, None)) for name, key in keys.items()}
        record = {name: value for name, value in record.items() if value is not None}
        if isinstance(record.get("expires_at"), str):
            record["expires_at"] = datetime.fromisoformat(record["expires_at"])
        if not isinstance(record.get("id"), str | int | None):
            raise ValueError(f"an id is a text or an integer, got {record['id']!r:.40}")
        if not record.keys() & {"text", "vector"}:
            raise ValueError(
                f"neither {self.text!r} nor 'vector' is among {names}; name the field of the text"
                " with --text-field"
            )
        if twice := values.keys() & (metadata or {}):
            raise ValueError(f"{min(twice)!r} stands both in metadata and beside it")
        if values or metadata is not None:
            plain = {key: from_json(value) for key, value in values.items()}
            record["metadata"] = {**(metadata or {}), **plain}
        return record


def format_of(file: str) -> str:
    """Return the format that the suffix of a file tells.

    Raises:
        UsageError: It tells none.
    """
    kind = SUFFIXES.get(Path(file).suffix.lower())
    if kind is None:
        raise UsageError(f"{file}: say with --format what it holds, the suffix does not")
    return kind


def cell_types(declared: Iterable[str]) -> dict[str, str]:
    """Return the types of columns by name.

    Args:
        declared: Texts of the form COLUMN=TYPE.

    Raises:
        UsageError: One has another form, or an unknown type.
    """
    types = {"vector": "json", "metadata": "json", EXPIRES: "datetime"}
    for option in declared:
        column, _, kind = option.rpartition("=")
        if not column or kind not in CELL_TYPES:
            raise UsageError(
                f"{option!r} is not COLUMN=TYPE with a type of {', '.join(CELL_TYPES)}"
            )
        types[column] = kind
    return types


# Reading


def read(stream: IO[bytes], name: str, kind: str, fields: Fields) -> Iterator[Item]:
    """Yield the records of a file.

    Args:
        stream: The file, open for reading; it is read as far as records are taken.
        name: What messages call it.
        kind: One of the values of `SUFFIXES`.
        fields: Where the parts of a record stand.

    Raises:
        UsageError: A line holds no record; the message names the file and the line.
    """
    lines = Lines(name, stream)
    done = 0
    for line, values in _READERS[kind](lines, fields):
        try:
            record = fields.record(values)
        except (ValueError, RecursionError) as error:
            raise lines.error(error, line) from None
        yield Item(record, f"{lines.name}, line {line}", lines.size - done)
        done = lines.size


class Lines:
    """The lines of a file as text, counted; every complaint names the file and the line."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.number = 0
        self.size = 0
        self.name = name
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        while data := self._stream.readline(MAX_LINE + 1):
            self.number += 1
            self.size += len(data)
            if len(data) > MAX_LINE:
                raise self.error(f"longer than {MAX_LINE >> 20} MiB")
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                raise self.error(f"not UTF-8 at byte {error.start + 1}") from None
            yield text.removeprefix("\ufeff") if self.number == 1 else text

    def error(self, what: object, line: int | None = None) -> UsageError:
        """Make the error that says what is wrong with a line, the last one by default."""
        return UsageError(f"{self.name}, line {line or self.number}: {what}")


def objects(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of lines, each with the number of its line; blank lines are none.

    Raises:
        UsageError: A line holds something else; the message names it.
    """
    for text in lines:
        if not text.strip():
            continue
        try:
            value = parse_json(text)
        except ValueError as error:
            raise lines.error(f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise lines.error(f"a record is a JSON object, got {text.strip():.40}")
        yield lines.number, value


def _objects(lines: Lines, fields: Fields) -> Iterator[_Numbered]:
    return objects(lines)


def _rows(lines: Lines, fields: Fields, delimiter: str = ",") -> Iterator[_Numbered]:
    csv.field_size_limit(MAX_LINE)
    header: list[str] = []
    last = 0
    try:
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
            line, last = last + 1, lines.number
            if not header:
                header = row
                if len(set(header)) != len(header):
                    raise lines.error(f"two columns have one name: {', '.join(header)}")
            elif row and len(row) != len(header):
                raise lines.error(f"{len(row)} cells under {len(header)} columns", line)
            elif row:
                try:
                    yield line, _cells(header, row, fields.types)
                except ValueError as error:
                    raise lines.error(error, line) from None
    except csv.Error as error:
        raise lines.error(f"not CSV: {error}") from None


def _tabbed_rows(lines: Lines, fields: Fields) -> Iterator[_Numbered]:
    return _rows(lines, fields, "\t")


def _cells(header: list[str], row: list[str], types: dict[str, str]) -> dict[str, Any]:
    values = {}
    for column, cell in zip(header, row, strict=True):
        # CSV cannot tell an empty text from a missing one.
        if cell:
            kind = types.get(column, "str")
            try:
                values[column] = CELL_TYPES[kind](cell)
            except (ValueError, KeyError):
                raise ValueError(f"column {column!r}: {cell[:40]!r} is no {kind}") from None
    return values


def _texts(lines: Lines, fields: Fields) -> Iterator[_Numbered]:
    for text in lines:
        if text.strip():
            origin = {"file": lines.name, "line": lines.number}
            yield lines.number, {fields.text: text.strip(), **origin}


_READERS = {"jsonl": _objects, "csv": _rows, "tsv": _tabbed_rows, "txt": _texts}


# JSON, with marks for the types of metadata that it lacks


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is something else; NaN and bottomless nesting are.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no value in JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


CELL_TYPES: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda cell: {"true": True, "1": True, "false": False, "0": False}[cell.lower()],
    "datetime": datetime.fromisoformat,
    "json": parse_json,
}


def from_json(value: Any) -> Any:
    """Turn {"$datetime": ...}, {"$bytes": ...} and {"$dict": ...} into what they stand for.

    Raises:
        ValueError: A mark stands before something else.
        RecursionError: The value is nested too deep.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value)) if len(value) == 1 else ""
    try:
        if mark == "$datetime":
            return datetime.fromisoformat(value[mark])
        if mark == "$bytes":
            return base64.b64decode(value[mark], validate=True)
        marked = value[mark] if mark == "$dict" else value
        return {key: from_json(item) for key, item in marked.items()}
    except (TypeError, AttributeError):
        raise ValueError(f"{mark!r} stands before {value[mark]!r:.40}") from None


def to_json(value: Any) -> Any:
    """Turn a stored value into what JSON can hold; `from_json` turns it back."""
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        plain = {key: to_json(item) for key, item in value.items()}
        return {"$dict": plain} if len(plain) == 1 and plain.keys() <= MARKS else plain
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        # Bits are integers; of a float32, nine digits tell any two apart.
        return [
            number if isinstance(number, int) else float(f"{number:.9g}")
            for number in value.tolist()
        ]
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """Return a stored value as JSON text, on one line unless `indent` is given."""
    return json.dumps(to_json(value), ensure_ascii=False, indent=indent)
