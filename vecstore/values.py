"""What is a metadata value, and when are two equal?

A value is None, a bool, a number, a str, a datetime or bytes; lists and dicts lead to values. Two
are equal if their `comparable` pairs are: types do not mix, and datetimes are instants. A path
names the values of a field: dots lead into dicts, and lists add up. `plain_operand` turns what
users compare with into a value, and refuses what no value could equal.
"""

from __future__ import annotations

import json
import math
import operator
import reprlib
from collections.abc import Iterator, Mapping, Set
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any, Literal, NoReturn

from vecstore.errors import FilterError

Scalar = str | int | float | bool | None | datetime | bytes
Kind = Literal["null", "bool", "number", "string", "datetime", "bytes"]
# Where an error happened: a root such as "where", then the keys and positions below it.
Place = tuple[object, ...]
# By the start of each segment of a path, the keys that may follow and where the rest starts.
Splits = dict[int, list[tuple[str, int]]]

# Segments of a path.
MAX_DEPTH = 64
# Operands of one list.
MAX_VALUES = 1_000_000
# The paths of a record's id and text, and of the instant at which it expires, which is stored under
# this key of its metadata.
ID, TEXT, EXPIRES = "$id", "$text", "$expires_at"

_KINDS: dict[type, Kind] = {
    type(None): "null",
    bool: "bool",
    int: "number",
    float: "number",
    str: "string",
    datetime: "datetime",
    bytes: "bytes",
}
_EPOCH = datetime(1970, 1, 1)


# Kinds and equality


def comparable(value: object) -> tuple[Kind, Any] | None:
    """Return the kind of a value and what its kind compares by, or None if no operand is like it.

    Filters take two values for equal exactly if their pairs are equal, and order them if the kinds
    are equal. Datetimes compare by `instant`.
    """
    kind = _KINDS.get(type(value)) or _kind_of_subclass(value)
    if kind is None:
        return None
    return kind, instant(value) if kind == "datetime" else value  # type: ignore[arg-type]


def instant(value: datetime) -> int:
    """Return a datetime as microseconds since 1970 in UTC; a naive one is taken as UTC."""
    # Python itself calls a time in a daylight-saving fold unequal to the same instant in UTC.
    offset = value.utcoffset()
    since = value.replace(tzinfo=None) - _EPOCH
    if offset:
        since -= offset
    # What a timedelta is made of; dividing it by another one takes longer.
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment(micros: int) -> datetime:
    """Return the datetime in UTC of an `instant`; OverflowError beyond the years 1 to 9999."""
    return (_EPOCH + timedelta(microseconds=micros)).replace(tzinfo=UTC)


def pair_of(value: Scalar) -> tuple[Kind, Any]:
    """Return the `comparable` pair of an operand, which always has one."""
    pair = comparable(value)
    assert pair is not None, "operands are scalars"
    return pair


def canonical(pair: tuple[Kind, Any]) -> bytes:
    """Return bytes that are the same for equal pairs only."""
    kind, value = pair
    if kind == "number":
        # Hexadecimal has no limit on digits; a float that is an integer is that integer.
        whole = isinstance(value, int) or value.is_integer()
        content = (format(int(value), "x") if whole else value.hex()).encode()
    elif kind == "string":
        content = value.encode()
    else:
        content = value if kind == "bytes" else str(value).encode()
    return kind.encode() + b":" + content


def _kind_of_subclass(value: object) -> Kind | None:
    # bool stands before int here, of which it is a subclass.
    return next((kind for base, kind in _KINDS.items() if isinstance(value, base)), None)


# Paths


def leaves(metadata: dict[str, Any] | None) -> dict[str, list[Any]]:
    """Return every path of a record's metadata with the scalar values found there.

    Dicts nest with dots, lists and lists in lists add up, a key with a dot is the path it spells. A
    path leading to an empty list or to a dict has no values but exists, as does every prefix of a
    path. Paths that no filter can name (an empty segment, a leading "$") are left out.
    """
    found: dict[str, list[Any]] = {}
    stack: list[tuple[str | None, Any]] = [(None, metadata or {})]
    while stack:
        path, node = stack.pop()
        prefix = path
        if prefix and prefix.count(".") >= MAX_DEPTH:
            # No filter can name it, nor what lies below it.
            prefix = ".".join(prefix.split(".", MAX_DEPTH)[:MAX_DEPTH])
        while prefix and prefix not in found:
            found[prefix] = []
            prefix = prefix.rpartition(".")[0]
        if isinstance(node, dict):
            stack.extend(
                (key if path is None else f"{path}.{key}", value)
                for key, value in reversed(node.items())
                if isinstance(key, str)
            )
        elif isinstance(node, (list, tuple)):
            stack.extend((path, item) for item in reversed(node))
        elif path in found:
            found[path].append(node)
    # A metadata key named $id must not pass for the record's id.
    return {
        path: values
        for path, values in found.items()
        if path not in (ID, TEXT) and _flaw(path) is None
    }


def scalars(node: object) -> Iterator[Any]:
    """Yield a scalar, or those of a list and of lists in it; dicts have none of their own."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, (list, tuple)):
            stack.extend(node)
        elif not isinstance(node, dict):
            yield node


def split_path(path: str) -> Splits:
    """Return, by the start of each segment, the keys that may follow and where the rest starts."""
    ends = [*(index for index, char in enumerate(path) if char == "."), len(path)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return {start: [(path[start:end], end + 1) for end in ends if end > start] for start in starts}


def values_at(metadata: dict[str, Any], splits: Splits) -> list[Any]:
    """Return the scalar values at a path, given by its `split_path`."""
    found = []
    stack: list[tuple[Any, int]] = [(metadata, 0)]
    while stack:
        node, start = stack.pop()
        if isinstance(node, dict):
            for key, after in splits.get(start, ()):
                if key in node:
                    stack.append((node[key], after))
        elif isinstance(node, (list, tuple)):
            stack.extend([(item, start) for item in node])
        elif start not in splits:
            found.append(node)
    return found


def path_exists(metadata: dict[str, Any], path: str) -> bool:
    """Return whether something lies at a path or below it, be it null or empty."""
    stack: list[tuple[Any, str]] = [(metadata, path)]
    while stack:
        node, rest = stack.pop()
        if isinstance(node, dict):
            if rest in node:
                return True
            for key, value in node.items():
                if not isinstance(key, str):
                    continue
                if key.startswith(f"{rest}."):
                    return True
                if rest.startswith(f"{key}."):
                    stack.append((value, rest[len(key) + 1 :]))
        elif isinstance(node, (list, tuple)):
            stack.extend((item, rest) for item in node)
    return False


# Operands


def plain_operands(values: object, place: Place) -> tuple[Scalar, ...]:
    """Return a list of operands as plain Python values, equal ones once.

    Raises:
        FilterError: It is no list, tuple, range, set or numpy array, has more than MAX_VALUES
            entries, or one of them is refused.
    """
    array: Any = values
    if type(values).__module__ == "numpy" and getattr(values, "shape", ()) != ():
        values = range(len(array)) if len(array) > MAX_VALUES else list(array)
    if not isinstance(values, (list, tuple, range, Set)):
        fail(place, f"needs a list of values, got {describe(values)}")
    if len(values) > MAX_VALUES:
        fail(place, f"{len(values):,} values, more than {MAX_VALUES:,}; a range is $gte and $lt")
    unique: dict[tuple[Kind, Any], Scalar] = {}
    for index, value in enumerate(values):
        scalar = plain_operand(value, place, index)
        unique.setdefault(pair_of(scalar), scalar)
    return tuple(unique.values())


def plain_operand(value: object, place: Place, index: int | None = None) -> Scalar:
    """Return an operand as a plain Python value, datetimes in UTC.

    Numpy's scalars and instances of subclasses become Python's own.

    Args:
        value: What the user gave.
        place: Where; for messages.
        index: Its position, if `place` is a list.

    Raises:
        FilterError: No value could equal it; the message names the place and the value.
    """
    kind = type(value)
    if kind is int or (kind is str and value.isascii()):  # type: ignore[attr-defined]
        return value  # type: ignore[return-value]
    place = place if index is None else (*place, index)
    if kind.__module__ == "numpy":
        value = _from_numpy(value, place)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # str() would call the __str__ of an Enum.
        return _check_text(str.__str__(value), place)
    if isinstance(value, float):
        if not math.isfinite(value):
            fail(place, f"{value!r} is not a finite number, so no comparison with it is useful")
        return float(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, datetime):
        return _in_utc(value, place)
    try:
        return operator.index(value)  # type: ignore[arg-type]  # refusing others is the point
    except (TypeError, ValueError):
        fail(place, _not_a_value(value))


def _in_utc(value: datetime, place: Place) -> datetime:
    # NaT of pandas is a datetime that is unequal to itself.
    if value != value:
        fail(place, f"{value!r} is not an instant")
    try:
        return moment(instant(value))
    except OverflowError:
        fail(place, f"{show(value)} lies outside the years 1 to 9999 in UTC")


def _from_numpy(value: Any, place: Place) -> object:
    if getattr(value, "shape", None) != ():
        return value
    if type(value).__name__ == "ndarray":
        value = value[()]
    name = type(value).__name__
    if name == "datetime64":
        # item() gives a bare int for nanoseconds.
        moment = value.astype("datetime64[us]").item()
        if not isinstance(moment, datetime):
            fail(place, f"{value!r} is not an instant in the years 1 to 9999")
        return moment
    if name == "timedelta64" or not hasattr(value, "item"):
        return value
    return value.item()


def _check_text(text: str, place: Place) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            fail(
                place,
                f"{show(text)} has a lone surrogate at position {error.start}, which no record"
                " can hold",
            )
    return text


def check_path(path: str, place: Place) -> str:
    """Return the path of a field as a plain str.

    Raises:
        FilterError: It has an empty or too many parts, a leading "$" or a lone surrogate.
    """
    if flaw := _flaw(path):
        fail(place, flaw)
    return _check_text(str.__str__(path), place)


def _flaw(path: str) -> str | None:
    if path in (ID, TEXT, EXPIRES):
        return None
    if not path:
        return "the name of a field must not be empty"
    if path.startswith("$"):
        return f"{show(path)} is not a field: names with $ are operators, $id, $text and {EXPIRES}"
    if path.startswith(".") or path.endswith(".") or ".." in path:
        return f"{show(path)} has an empty part; a field is named like author.name"
    if path.count(".") >= MAX_DEPTH:
        return f"{show(path)} has more than {MAX_DEPTH} parts"
    return None


# Messages


class _Short(reprlib.Repr):
    """A repr of bounded length for any value, also a nested, cyclic or huge one."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxother = 80, 100

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of more than 4,300 digits.
        return repr(x) if x.bit_length() < 256 else f"{hex(x)[:20]}... ({x.bit_length()} bits)"


_SHORT = _Short()


def show(value: object) -> str:
    """Return the repr of any value, cut short."""
    return _SHORT.repr(value)


def show_list(values: tuple[Scalar, ...]) -> str:
    """Return the repr of a list of values; only the first ten are shown."""
    more = f", ... {len(values) - 10:,} more" if len(values) > 10 else ""
    return f"[{', '.join(map(show, values[:10]))}{more}]"


def clip(text: str) -> str:
    """Return a text, without its middle if it is long."""
    return text if len(text) <= 200 else f"{text[:97]} ... {text[-98:]}"


def describe(value: object) -> str:
    """Return the type and the repr of a value."""
    return "None" if value is None else f"{type(value).__name__} {show(value)}"


def fail(place: Place, text: str) -> NoReturn:
    """Raise a FilterError that says where and what."""
    keys = [json.dumps(k, ensure_ascii=False) if isinstance(k, str) else show(k) for k in place[1:]]
    where = "".join(f"[{clip(key)}]" for key in keys)
    message = f"{place[0]}{clip(where)}: {text}"
    # A key may hold a lone surrogate, which no terminal or log file takes.
    raise FilterError(message.encode(errors="backslashreplace").decode())


def _not_a_value(value: object) -> str:
    if isinstance(value, (list, tuple, Set, range)) or getattr(value, "shape", ()) != ():
        hint = "$in matches any of several values, and a list matches if any element does"
    elif isinstance(value, Mapping):
        hint = 'name a nested field with dots, as in {"author.name": "Ada"}'
    elif own := getattr(type(value), "_operand_hint", None):
        # F and Filter, which this module does not know.
        hint = own
    elif isinstance(value, date):
        hint = (
            "a day is not an instant: use datetime(year, month, day), with $gte and $lt for a day"
        )
    elif isinstance(value, Enum):
        hint = "use its .value"
    else:
        hint = "convert it"
    return (
        f"compares with a str, int, float, bool, None, datetime or bytes, got {describe(value)};"
        f" {hint}"
    )
