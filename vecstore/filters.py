"""Which records qualify? The filter dialect, the `F` builder and the reference semantics.

A filter is a small immutable tree: In, Compare, Exists and Contains test one path; And, Or and
Not combine. `parse` builds it from the dict dialect, `F` from Python expressions, and both give the
same tree: `$eq` is In with one value, `$ne` is Not of that. docs/filters.md is the manual.

`Filter.matches` is what a filter means. An index that answers faster must agree with it on every
record, and `leaves` gives the (path, value) pairs that such an index has to hold: In, Compare and
Contains match a record exactly if one of the values at their path passes, Exists if the path is
there. Invariants of a tree: at most MAX_DEPTH levels, so recursion over it is safe; at most
MAX_TERMS leaves; And within And and Or within Or are flattened; operands are plain Python values,
datetimes in UTC, strings without lone surrogates.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal, NoReturn, Protocol, overload

from vecstore.errors import FilterError
from vecstore.spec import Id

Scalar = str | int | float | bool | None | datetime | bytes
Kind = Literal["null", "bool", "number", "string", "datetime", "bytes"]
Order = Literal["$gt", "$gte", "$lt", "$lte"]
# Where an error happened: a root such as "where", then the keys and positions below it.
Place = tuple[object, ...]
Matcher = Callable[["RecordLike"], bool]
Test = Callable[[object], bool]

MAX_DEPTH = 64
MAX_TERMS = 100_000
MAX_VALUES = 1_000_000
ID, TEXT = "$id", "$text"
LOGIC = ("$and", "$or", "$not")
OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains")

_ORDERS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "$gt": (">", operator.gt),
    "$gte": (">=", operator.ge),
    "$lt": ("<", operator.lt),
    "$lte": ("<=", operator.le),
}
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
_MICROSECOND = timedelta(microseconds=1)
_MISSING = object()


class RecordLike(Protocol):
    """What a filter reads of a record, be it a Record or one as it is stored."""

    @property
    def id(self) -> Id:
        """The record's id."""

    @property
    def text(self) -> str | None:
        """The record's text, if it has one."""

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The record's metadata, if it has some."""


# Values


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
    return (since - offset if offset else since) // _MICROSECOND


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
        elif path:
            found[path].append(node)
    # A metadata key named $id must not pass for the record's id.
    return {
        path: values
        for path, values in found.items()
        if path not in (ID, TEXT) and _flaw(path) is None
    }


def _kind_of_subclass(value: object) -> Kind | None:
    # bool stands before int here, of which it is a subclass.
    return next((kind for base, kind in _KINDS.items() if isinstance(value, base)), None)


def _scalars(node: object) -> Iterator[Any]:
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, (list, tuple)):
            stack.extend(node)
        elif not isinstance(node, dict):
            yield node


def _splits(path: str) -> dict[int, list[tuple[str, int]]]:
    """Return, by the start of each segment, the keys that may follow and where the rest starts."""
    ends = [*(index for index, char in enumerate(path) if char == "."), len(path)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return {start: [(path[start:end], end + 1) for end in ends if end > start] for start in starts}


def _values(metadata: dict[str, Any], splits: dict[int, list[tuple[str, int]]]) -> list[Any]:
    """Return the scalar values at a path, given by its splits."""
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


def _exists(metadata: dict[str, Any], path: str) -> bool:
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


# The tree


@dataclass(frozen=True, eq=False, repr=False)
class Filter:
    """A condition on records. Combine filters with `&`, `|` and `~`.

    Filters are immutable, hashable and picklable. Two are equal if they are the same conditions on
    values of the same kinds, in any order: 1 and 1.0 are the same value, 1, True and "1" are not.
    """

    def matches(self, record: RecordLike) -> bool:
        """Return whether a record, with its text and metadata loaded, qualifies."""
        return self._matcher(record)

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect; `parse` of it gives an equal filter."""
        raise NotImplementedError

    def key(self) -> bytes:
        """Return 32 bytes that are the same for equal filters only."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        digest = blake2b(type(self).__name__.encode(), digest_size=32)
        for part in self._parts():
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()

    @cached_property
    def _matcher(self) -> Matcher:
        return self._compile()

    @cached_property
    def _depth(self) -> int:
        return 1

    @cached_property
    def _size(self) -> int:
        return 1

    def _parts(self) -> Iterable[bytes]:
        raise NotImplementedError

    def _compile(self) -> Matcher:
        raise NotImplementedError

    def __and__(self, other: Filter) -> Filter:
        return _combine(And, (self, _check_filter(other, "&")), ("filter & filter",))

    def __or__(self, other: Filter) -> Filter:
        return _combine(Or, (self, _check_filter(other, "|")), ("filter | filter",))

    def __rand__(self, other: object) -> NoReturn:
        raise FilterError(_misuse(other, "&"))

    def __ror__(self, other: object) -> NoReturn:
        raise FilterError(_misuse(other, "|"))

    def __invert__(self) -> Filter:
        return _negate(self, ("~filter",))

    def __bool__(self) -> NoReturn:
        raise FilterError(
            f"the filter {_clip(repr(self))} is neither true nor false: combine filters with & | ~"
            " instead of and, or, not, and write a <= x < b as (x >= a) & (x < b)"
        )

    def __eq__(self, other: object) -> bool:
        return self._digest == other._digest if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._digest)

    def __reduce__(self) -> tuple[Any, ...]:
        # The compiled matcher is a closure, which pickle refuses.
        return parse, (self.to_dict(),)


@dataclass(frozen=True, eq=False, repr=False)
class And(Filter):
    """All terms match; with no terms, everything matches."""

    terms: tuple[Filter, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        return {"$and": [term.to_dict() for term in self.terms]} if self.terms else {}

    def _parts(self) -> Iterable[bytes]:
        return sorted(term.key() for term in self.terms)

    def _compile(self) -> Matcher:
        matchers = [term._matcher for term in self.terms]

        def matches(record: RecordLike) -> bool:
            for matcher in matchers:  # noqa: SIM110  # all() takes twice as long for few terms
                if not matcher(record):
                    return False
            return True

        return matches

    def __repr__(self) -> str:
        return _joined(" & ", self.terms) if self.terms else "parse({})"


@dataclass(frozen=True, eq=False, repr=False)
class Or(Filter):
    """At least one term matches; there are always two or more."""

    terms: tuple[Filter, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        return {"$or": [term.to_dict() for term in self.terms]}

    def _parts(self) -> Iterable[bytes]:
        return sorted(term.key() for term in self.terms)

    def _compile(self) -> Matcher:
        matchers = [term._matcher for term in self.terms]

        def matches(record: RecordLike) -> bool:
            for matcher in matchers:  # noqa: SIM110  # any() takes twice as long for few terms
                if matcher(record):
                    return True
            return False

        return matches

    def __repr__(self) -> str:
        return _joined(" | ", self.terms)


@dataclass(frozen=True, eq=False, repr=False)
class Not(Filter):
    """The term does not match: the exact opposite, also for records that lack the field."""

    term: Filter

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        term = self.term
        if isinstance(term, In):
            if len(term.values) == 1:
                return {term.path: {"$ne": term.values[0]}}
            return {term.path: {"$nin": list(term.values)}}
        if isinstance(term, Exists):
            return {term.path: {"$exists": False}}
        return {"$not": term.to_dict()}

    def _parts(self) -> Iterable[bytes]:
        return (self.term.key(),)

    def _compile(self) -> Matcher:
        matcher = self.term._matcher
        return lambda record: not matcher(record)

    def __repr__(self) -> str:
        term = self.term
        if isinstance(term, In):
            if len(term.values) == 1:
                return f"F({term.path!r}) != {_show(term.values[0])}"
            return f"F({term.path!r}).not_in({_listed(term.values)})"
        if isinstance(term, Exists):
            return f"F({term.path!r}).exists(False)"
        return f"~({term!r})"


@dataclass(frozen=True, eq=False, repr=False)
class In(Filter):
    """A value at the path equals one of `values`; with none, nothing matches."""

    path: str
    values: tuple[Scalar, ...]

    @cached_property
    def members(self) -> frozenset[tuple[Kind, Any]]:
        """The values as `comparable` pairs."""
        return frozenset(_pair(value) for value in self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        one = len(self.values) == 1
        return {self.path: self.values[0] if one else {"$in": list(self.values)}}

    def _parts(self) -> Iterable[bytes]:
        return [self.path.encode(), *sorted(map(_canonical, self.members))]

    def _compile(self) -> Matcher:
        members = self.members
        return _any(self.path, lambda value: comparable(value) in members)

    def __repr__(self) -> str:
        if len(self.values) == 1:
            return f"F({self.path!r}) == {_show(self.values[0])}"
        return f"F({self.path!r}).is_in({_listed(self.values)})"


@dataclass(frozen=True, eq=False, repr=False)
class Compare(Filter):
    """A value at the path, of the kind of `value`, is ordered before or after it."""

    path: str
    op: Order
    value: str | int | float | datetime

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        return {self.path: {self.op: self.value}}

    def _parts(self) -> Iterable[bytes]:
        return self.path.encode(), self.op.encode(), _canonical(_pair(self.value))

    def _compile(self) -> Matcher:
        kind, bound = _pair(self.value)
        ordered = _ORDERS[self.op][1]

        def test(value: object) -> bool:
            pair = comparable(value)
            return pair is not None and pair[0] == kind and ordered(pair[1], bound)

        return _any(self.path, test)

    def __repr__(self) -> str:
        return f"F({self.path!r}) {_ORDERS[self.op][0]} {_show(self.value)}"


@dataclass(frozen=True, eq=False, repr=False)
class Exists(Filter):
    """The path is there, whatever lies at it: a null, an empty list or a dict too."""

    path: str

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        return {self.path: {"$exists": True}}

    def _parts(self) -> Iterable[bytes]:
        return (self.path.encode(),)

    def _compile(self) -> Matcher:
        path = self.path
        if path == ID:
            return lambda record: True
        if path == TEXT:
            return lambda record: record.text is not None
        return lambda record: _exists(record.metadata or {}, path)

    def __repr__(self) -> str:
        return f"F({self.path!r}).exists()"


@dataclass(frozen=True, eq=False, repr=False)
class Contains(Filter):
    """A string at the path has `value` as a substring, in the same case."""

    path: str
    value: str

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        return {self.path: {"$contains": self.value}}

    def _parts(self) -> Iterable[bytes]:
        return self.path.encode(), self.value.encode()

    def _compile(self) -> Matcher:
        part = self.value
        return _any(self.path, lambda value: isinstance(value, str) and part in value)

    def __repr__(self) -> str:
        return f"F({self.path!r}).contains({_show(self.value)})"


def _any(path: str, test: Test) -> Matcher:
    """Return a matcher for "some value at the path passes the test"."""
    if path == ID:
        return lambda record: test(record.id)
    if path == TEXT:
        return lambda record: record.text is not None and test(record.text)
    if "." in path:
        splits = _splits(path)
        return lambda record: any(map(test, _values(record.metadata or {}, splits)))

    def matches_key(record: RecordLike) -> bool:
        value = (record.metadata or {}).get(path, _MISSING)
        if isinstance(value, (list, tuple, dict)):
            return any(map(test, _scalars(value)))
        return value is not _MISSING and test(value)

    return matches_key


def _pair(value: Scalar) -> tuple[Kind, Any]:
    pair = comparable(value)
    assert pair is not None, "operands are scalars"
    return pair


def _canonical(pair: tuple[Kind, Any]) -> bytes:
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


def _combine(group: type[And | Or], terms: Iterable[Filter], place: Place) -> Filter:
    """Join terms, taking those of the same group apart; one term stays as it is."""
    terms = tuple(terms)
    flat: tuple[Filter, ...] = ()
    if len(terms) == 2:
        # Sums of tuples keep a loop of `filter &= term` at one copy of pointers a step.
        left, right = (term.terms if isinstance(term, group) else (term,) for term in terms)
        flat = left + right
    else:
        flat = tuple(
            part for term in terms for part in (term.terms if isinstance(term, group) else (term,))
        )
    if len(flat) == 1:
        return flat[0]
    node = group(flat)
    size = sum(term._size for term in terms)
    depth = max((term._depth + (not isinstance(term, group)) for term in terms), default=1)
    if size > MAX_TERMS:
        _fail(place, f"more than {MAX_TERMS:,} conditions; use $in for many values of a field")
    return _grown(node, depth, size, place)


def _negate(term: Filter, place: Place) -> Filter:
    if isinstance(term, Not):
        return term.term
    return _grown(Not(term), term._depth + 1, term._size, place)


def _grown(node: Filter, depth: int, size: int, place: Place) -> Filter:
    if depth > MAX_DEPTH:
        _fail(place, f"nested deeper than {MAX_DEPTH} levels")
    vars(node).update(_depth=depth, _size=size)
    return node


# The dict dialect


@overload
def parse(where: None) -> None: ...


@overload
def parse(where: Filter | Mapping[str, Any]) -> Filter: ...


@overload
def parse(where: Filter | Mapping[str, Any] | None) -> Filter | None: ...


def parse(where: Filter | Mapping[str, Any] | None) -> Filter | None:
    """Return the filter that a `where` argument means.

    Args:
        where: A dict in the dialect of docs/filters.md, a Filter, or None. Filters may stand inside
            the dict wherever the dialect has a filter.

    Returns:
        The filter, or None for None. `{}` gives a filter that everything matches.

    Raises:
        FilterError: It is malformed; the message names the place and the value.
    """
    return None if where is None else _Parser().tree(where, ("where",), 1)


class _Parser:
    """One call of `parse`; counts conditions, since shared dicts can stand for 2**60 of them."""

    def __init__(self) -> None:
        self._left = MAX_TERMS

    def tree(self, where: object, place: Place, depth: int) -> Filter:
        if isinstance(where, Filter):
            return where
        if not isinstance(where, Mapping):
            _fail(place, _not_a_filter(where))
        self._count(place)
        self._check_depth(place, depth)
        return _combine(
            And, [self._entry(key, where[key], (*place, key), depth) for key in where], place
        )

    def _entry(self, key: object, value: object, place: Place, depth: int) -> Filter:
        self._count(place)
        if not isinstance(key, str):
            _fail(place[:-1], f"a key is a field or an operator, a str, got {_describe(key)}")
        if key in ("$and", "$or"):
            if not isinstance(value, (list, tuple)) or not value:
                _fail(place, f"needs a list of one or more filters, got {_describe(value)}")
            terms = [self.tree(item, (*place, i), depth + 1) for i, item in enumerate(value)]
            return _combine(And if key == "$and" else Or, terms, place)
        if key == "$not":
            return _negate(self.tree(value, place, depth + 1), place)
        if key in OPERATORS:
            _fail(place, f'{key} stands inside a field: {{"year": {{"{key}": ...}}}}')
        if key.startswith("$") and key not in (ID, TEXT):
            _fail(place, _unknown(key, (*LOGIC, ID, TEXT, *OPERATORS)))
        return self._field(_check_path(key, place), value, place, depth)

    def _field(self, path: str, value: object, place: Place, depth: int) -> Filter:
        if not isinstance(value, Mapping):
            return _condition(path, "$eq", value, place)
        self._check_depth(place, depth)
        if not value:
            _fail(place, 'an empty dict; write {"$exists": True} to ask for the field')
        terms = [self._operator(path, op, value[op], (*place, op), depth) for op in value]
        return _combine(And, terms, place)

    def _operator(self, path: str, op: object, operand: object, place: Place, depth: int) -> Filter:
        self._count(place)
        if op == "$not":
            if not isinstance(operand, Mapping):
                _fail(place, f"needs a dict of operators, got {_describe(operand)}; or use $ne")
            return _negate(self._field(path, operand, place, depth + 1), place)
        if op in OPERATORS:
            return _condition(path, str(op), operand, place)
        if op in LOGIC:
            _fail(place, f'{op} goes around fields: {{"{op}": [{{"year": ...}}, ...]}}')
        if isinstance(op, str) and op.startswith("$"):
            _fail(place, _unknown(op, (*OPERATORS, "$not")))
        hint = f"did you mean '${op}'?" if f"${op}" in OPERATORS else "name nested fields with dots"
        return _fail(place[:-1], f"a dict of operators, but {_show(op)} is none; {hint}")

    def _count(self, place: Place) -> None:
        self._left -= 1
        if self._left < 0:
            _fail(place, f"more than {MAX_TERMS:,} conditions; use $in for many values of a field")

    def _check_depth(self, place: Place, depth: int) -> None:
        if depth > MAX_DEPTH:
            _fail(place, f"nested deeper than {MAX_DEPTH} levels")


def _condition(path: str, op: str, operand: object, place: Place) -> Filter:
    """Return the filter of one operator on one field."""
    if op in ("$eq", "$ne"):
        equal = In(path, (_scalar(operand, place),))
        return equal if op == "$eq" else _negate(equal, place)
    if op in ("$in", "$nin"):
        among = In(path, _operands(operand, place))
        return among if op == "$in" else _negate(among, place)
    if op == "$exists":
        present = _scalar(operand, place)
        if not isinstance(present, bool):
            _fail(place, f"needs True or False, got {_describe(operand)}")
        return Exists(path) if present else _negate(Exists(path), place)
    value = _scalar(operand, place)
    if op == "$contains":
        if not isinstance(value, str):
            _fail(
                place,
                f"looks for a str in a str, got {_describe(operand)}; a list that has an element"
                " matches $eq of it",
            )
        return Contains(path, value)
    if value is None or isinstance(value, (bool, bytes)):
        _fail(place, f"orders numbers, datetimes and strings, got {_describe(operand)}")
    return Compare(path, op, value)  # type: ignore[arg-type]  # the only operators left


def _operands(values: object, place: Place) -> tuple[Scalar, ...]:
    array: Any = values
    if type(values).__module__ == "numpy" and getattr(values, "shape", ()) != ():
        values = range(len(array)) if len(array) > MAX_VALUES else list(array)
    if not isinstance(values, (list, tuple, range, Set)):
        _fail(place, f"needs a list of values, got {_describe(values)}")
    if len(values) > MAX_VALUES:
        _fail(place, f"{len(values):,} values, more than {MAX_VALUES:,}; a range is $gte and $lt")
    unique: dict[tuple[Kind, Any], Scalar] = {}
    for index, value in enumerate(values):
        scalar = _scalar(value, place, index)
        unique.setdefault(_pair(scalar), scalar)
    return tuple(unique.values())


def _scalar(value: object, place: Place, index: int | None = None) -> Scalar:
    """Return an operand as a plain Python value; `index` is its position in a list."""
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
            _fail(place, f"{value!r} is not a finite number, so no comparison with it is useful")
        return float(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, datetime):
        return _in_utc(value, place)
    try:
        return operator.index(value)  # type: ignore[arg-type]  # refusing others is the point
    except (TypeError, ValueError):
        _fail(place, _not_a_value(value))


def _in_utc(value: datetime, place: Place) -> datetime:
    # NaT of pandas is a datetime that is unequal to itself.
    if value != value:
        _fail(place, f"{value!r} is not an instant")
    try:
        return (_EPOCH + timedelta(microseconds=instant(value))).replace(tzinfo=UTC)
    except OverflowError:
        _fail(place, f"{_show(value)} lies outside the years 1 to 9999 in UTC")


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
            _fail(place, f"{value!r} is not an instant in the years 1 to 9999")
        return moment
    if name == "timedelta64" or not hasattr(value, "item"):
        return value
    return value.item()


def _check_text(text: str, place: Place) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            _fail(
                place,
                f"{_show(text)} has a lone surrogate at position {error.start}, which no record"
                " can hold",
            )
    return text


def _check_path(path: str, place: Place) -> str:
    if flaw := _flaw(path):
        _fail(place, flaw)
    return _check_text(str.__str__(path), place)


def _flaw(path: str) -> str | None:
    if path in (ID, TEXT):
        return None
    if not path:
        return "the name of a field must not be empty"
    if path.startswith("$"):
        return f"{_show(path)} is not a field: names with $ are operators, $id and $text"
    if path.startswith(".") or path.endswith(".") or ".." in path:
        return f"{_show(path)} has an empty part; a field is named like author.name"
    if path.count(".") >= MAX_DEPTH:
        return f"{_show(path)} has more than {MAX_DEPTH} parts"
    return None


# The builder


class F:
    """A field, to be compared: `(F("year") >= 2020) & (F("author.name") == "Ada")`.

    `F("author")["name"]` is `F("author.name")`; `F("$id")` and `F("$text")` are a record's id and
    text. Every comparison returns a Filter.
    """

    __slots__ = ("path",)
    # Equality builds a filter, so a set or dict could not tell fields apart.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, path: str) -> None:
        if not isinstance(path, str):
            raise FilterError(f"F(...) takes the name of a field, a str, got {_describe(path)}")
        self.path = _check_path(path, (f"F({_show(path)})",))

    def __getitem__(self, name: str) -> F:
        if not isinstance(name, str):
            raise FilterError(
                f"{self!r}[...] takes the name of a nested field, a str, got {_describe(name)}; a"
                " list matches if any element does"
            )
        return F(f"{self.path}.{name}")

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return self._where("$eq", " ==", value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return self._where("$ne", " !=", value)

    def __gt__(self, value: object) -> Filter:
        return self._where("$gt", " >", value)

    def __ge__(self, value: object) -> Filter:
        return self._where("$gte", " >=", value)

    def __lt__(self, value: object) -> Filter:
        return self._where("$lt", " <", value)

    def __le__(self, value: object) -> Filter:
        return self._where("$lte", " <=", value)

    def is_in(self, values: Iterable[object]) -> Filter:
        """Return the filter for "equals one of the values", a list, tuple, range or set."""
        return self._where("$in", ".is_in", values)

    def not_in(self, values: Iterable[object]) -> Filter:
        """Return the filter for "equals none of the values", a missing field included."""
        return self._where("$nin", ".not_in", values)

    def exists(self, present: bool = True) -> Filter:
        """Return the filter for records that have the field, or with False for those without."""
        return self._where("$exists", ".exists", present)

    def contains(self, part: str) -> Filter:
        """Return the filter for strings that have `part` as a substring, in the same case."""
        return self._where("$contains", ".contains", part)

    def _where(self, op: str, sign: str, operand: object) -> Filter:
        return _condition(self.path, op, operand, (f"{self!r}{sign}",))

    def _refuse(self, other: object = None) -> NoReturn:
        raise FilterError(
            f"{self!r} is a field, not a filter: compare it, as in {self!r} == 1 or"
            f" {self!r}.exists(), and put each comparison in parentheses before & | ~"
        )

    __and__ = __rand__ = __or__ = __ror__ = __invert__ = __bool__ = _refuse
    __contains__ = __iter__ = None

    def __repr__(self) -> str:
        return f"F({_show(self.path)})"


# Messages


class _Short(reprlib.Repr):
    """A repr of bounded length for any value, also a nested, cyclic or huge one."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxother = 80, 100

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of more than 4,300 digits.
        return repr(x) if x.bit_length() < 256 else f"{hex(x)[:20]}... ({x.bit_length()} bits)"


_show = _Short().repr


def _clip(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:97]} ... {text[-98:]}"


def _describe(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__} {_show(value)}"


def _fail(place: Place, text: str) -> NoReturn:
    keys = [
        json.dumps(k, ensure_ascii=False) if isinstance(k, str) else _show(k) for k in place[1:]
    ]
    where = "".join(f"[{_clip(key)}]" for key in keys)
    message = f"{place[0]}{_clip(where)}: {text}"
    # A key may hold a lone surrogate, which no terminal or log file takes.
    raise FilterError(message.encode(errors="backslashreplace").decode())


def _unknown(op: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(op[:40], known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"use one of {' '.join(known)}"
    return f"unknown operator {_show(op)}; {hint}"


def _not_a_filter(where: object) -> str:
    hint = "write a dict such as {\"year\": 2020} or an expression such as F('year') == 2020"
    return f"needs a filter, got {_describe(where)}; {hint}"


def _not_a_value(value: object) -> str:
    if isinstance(value, (list, tuple, Set, range)) or getattr(value, "shape", ()) != ():
        hint = "$in matches any of several values, and a list matches if any element does"
    elif isinstance(value, Mapping):
        hint = 'name a nested field with dots, as in {"author.name": "Ada"}'
    elif isinstance(value, F):
        hint = "a field is compared with values, not with another field"
    elif isinstance(value, Filter):
        hint = "combine filters with & | ~, each comparison in parentheses"
    elif isinstance(value, date):
        hint = (
            "a day is not an instant: use datetime(year, month, day), with $gte and $lt for a day"
        )
    elif isinstance(value, Enum):
        hint = "use its .value"
    else:
        hint = "convert it"
    return (
        f"compares with a str, int, float, bool, None, datetime or bytes, got {_describe(value)};"
        f" {hint}"
    )


def _misuse(other: object, sign: str) -> str:
    return (
        f"{sign} combines two filters, got {_describe(other)}; put each comparison in parentheses,"
        f" as in (F('year') > 2020) {sign} (F('lang') == 'en'), and turn a dict into a filter with"
        " vecstore.filters.parse"
    )


def _check_filter(other: object, sign: str) -> Filter:
    if isinstance(other, F):
        other._refuse()
    if not isinstance(other, Filter):
        raise FilterError(_misuse(other, sign))
    return other


def _listed(values: tuple[Scalar, ...]) -> str:
    more = f", ... {len(values) - 10:,} more" if len(values) > 10 else ""
    return f"[{', '.join(map(_show, values[:10]))}{more}]"


def _joined(sign: str, terms: tuple[Filter, ...]) -> str:
    more = f"{sign}... {len(terms) - 20:,} more" if len(terms) > 20 else ""
    return sign.join(f"({term!r})" for term in terms[:20]) + more
