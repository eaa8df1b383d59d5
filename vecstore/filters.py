"""Which records qualify? The filter dialect, the `F` builder and the reference semantics.

A filter is a small immutable tree: In, Compare, Exists and Contains test one path; And, Or and
Not combine. `parse` builds it from the dict dialect, `F` from Python expressions, and both give the
same tree: `$eq` is In with one value, `$ne` is Not of that. docs/filters.md is the manual.

`Filter.matches` is what a filter means. An index that answers faster must agree with it on every
record, and `values.leaves` gives the (path, value) pairs that such an index has to hold: In,
Compare and Contains match a record exactly if one of the values at their path passes, Exists if the
path is there. Invariants of a tree: at most MAX_DEPTH levels, so recursion over it is safe; at most
MAX_TERMS leaves; And within And and Or within Or are flattened; operands are plain Python values,
datetimes in UTC, strings without lone surrogates.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal, NoReturn, Protocol, overload

from vecstore import values
from vecstore.errors import FilterError
from vecstore.lazy import lazy
from vecstore.spec import Id
from vecstore.values import ID, MAX_DEPTH, TEXT, Kind, Place, Scalar, describe, fail, show

Order = Literal["$gt", "$gte", "$lt", "$lte"]
Matcher = Callable[["RecordLike"], bool]
Test = Callable[[object], bool]

MAX_TERMS = 100_000
LOGIC = ("$and", "$or", "$not")
OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains")

_ORDERS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "$gt": (">", operator.gt),
    "$gte": (">=", operator.ge),
    "$lt": ("<", operator.lt),
    "$lte": ("<=", operator.le),
}
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


# The tree


@dataclass(frozen=True, eq=False, repr=False)
class Filter:
    """A condition on records. Combine filters with `&`, `|` and `~`.

    Filters are immutable, hashable and picklable. Two are equal if they are the same conditions on
    values of the same kinds, in any order: 1 and 1.0 are the same value, 1, True and "1" are not.
    """

    _operand_hint = "combine filters with & | ~, each comparison in parentheses"
    _depth = 1
    _size = 1

    def matches(self, record: RecordLike) -> bool:
        """Return whether a record, with its text and metadata loaded, qualifies."""
        return self._matcher(record)

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect; `parse` of it gives an equal filter."""
        raise NotImplementedError

    def key(self) -> bytes:
        """Return 32 bytes that are the same for equal filters only."""
        return self._digest

    @lazy
    def _digest(self) -> bytes:
        digest = blake2b(type(self).__name__.encode(), digest_size=32)
        for part in self._parts():
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()

    @lazy
    def _matcher(self) -> Matcher:
        return self._compile()

    def _parts(self) -> Iterable[bytes]:
        raise NotImplementedError

    def _compile(self) -> Matcher:
        raise NotImplementedError

    def __and__(self, other: Filter) -> Filter:
        return _combine(And, (self, _check_filter(other, "&")), ("filter & filter",))

    def __or__(self, other: Filter) -> Filter:
        return _combine(Or, (self, _check_filter(other, "|")), ("filter | filter",))

    def __rand__(self, other: object) -> Filter:
        return _check_filter(other, "&")

    def __ror__(self, other: object) -> Filter:
        return _check_filter(other, "|")

    def __invert__(self) -> Filter:
        return _negate(self, ("~filter",))

    def __bool__(self) -> NoReturn:
        raise FilterError(
            f"the filter {values.clip(repr(self))} is neither true nor false: combine filters with"
            " & | ~ instead of and, or, not, and write a <= x < b as (x >= a) & (x < b)"
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
                return f"F({term.path!r}) != {show(term.values[0])}"
            return f"F({term.path!r}).not_in({values.show_list(term.values)})"
        if isinstance(term, Exists):
            return f"F({term.path!r}).exists(False)"
        return f"~({term!r})"


@dataclass(frozen=True, eq=False, repr=False)
class In(Filter):
    """A value at the path equals one of `values`; with none, nothing matches."""

    path: str
    values: tuple[Scalar, ...]

    @lazy
    def members(self) -> frozenset[tuple[Kind, Any]]:
        """The values as `comparable` pairs."""
        return frozenset(values.pair_of(value) for value in self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        one = len(self.values) == 1
        return {self.path: self.values[0] if one else {"$in": list(self.values)}}

    def _parts(self) -> Iterable[bytes]:
        return [self.path.encode(), *sorted(map(values.canonical, self.members))]

    def _compile(self) -> Matcher:
        members = self.members
        return _any(self.path, lambda value: values.comparable(value) in members)

    def __repr__(self) -> str:
        if len(self.values) == 1:
            return f"F({self.path!r}) == {show(self.values[0])}"
        return f"F({self.path!r}).is_in({values.show_list(self.values)})"


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
        return self.path.encode(), self.op.encode(), values.canonical(values.pair_of(self.value))

    def _compile(self) -> Matcher:
        kind, bound = values.pair_of(self.value)
        ordered = _ORDERS[self.op][1]

        def test(value: object) -> bool:
            pair = values.comparable(value)
            return pair is not None and pair[0] == kind and ordered(pair[1], bound)

        return _any(self.path, test)

    def __repr__(self) -> str:
        return f"F({self.path!r}) {_ORDERS[self.op][0]} {show(self.value)}"


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
        return lambda record: values.path_exists(record.metadata or {}, path)

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
        return f"F({self.path!r}).contains({show(self.value)})"


def _any(path: str, test: Test) -> Matcher:
    """Return a matcher for "some value at the path passes the test"."""
    if path == ID:
        return lambda record: test(record.id)
    if path == TEXT:
        return lambda record: record.text is not None and test(record.text)
    if "." in path:
        splits = values.split_path(path)
        return lambda record: any(map(test, values.values_at(record.metadata or {}, splits)))

    def matches_key(record: RecordLike) -> bool:
        value = (record.metadata or {}).get(path, _MISSING)
        if isinstance(value, (list, tuple, dict)):
            return any(map(test, values.scalars(value)))
        return value is not _MISSING and test(value)

    return matches_key


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
        fail(place, f"more than {MAX_TERMS:,} conditions; use $in for many values of a field")
    return _grown(node, depth, size, place)


def _negate(term: Filter, place: Place) -> Filter:
    if isinstance(term, Not):
        return term.term
    return _grown(Not(term), term._depth + 1, term._size, place)


def _grown(node: Filter, depth: int, size: int, place: Place) -> Filter:
    _check_depth(depth, place)
    vars(node).update(_depth=depth, _size=size)
    return node


def _check_depth(depth: int, place: Place) -> None:
    if depth > MAX_DEPTH:
        fail(place, f"nested deeper than {MAX_DEPTH} levels")


# The dict dialect


@overload
def parse(where: None) -> None: ...


@overload
def parse(where: Filter | Mapping[str, Any]) -> Filter: ...


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
            hint = "a dict such as {\"year\": 2020} or an expression such as F('year') == 2020"
            fail(place, f"needs a filter, got {describe(where)}; write {hint}")
        self._count(place)
        _check_depth(depth, place)
        return _combine(
            And, [self._entry(key, where[key], (*place, key), depth) for key in where], place
        )

    def _entry(self, key: object, value: object, place: Place, depth: int) -> Filter:
        self._count(place)
        if not isinstance(key, str):
            fail(place[:-1], f"a key is a field or an operator, a str, got {describe(key)}")
        if key in ("$and", "$or"):
            if not isinstance(value, (list, tuple)) or not value:
                fail(place, f"needs a list of one or more filters, got {describe(value)}")
            terms = [self.tree(item, (*place, i), depth + 1) for i, item in enumerate(value)]
            return _combine(And if key == "$and" else Or, terms, place)
        if key == "$not":
            return _negate(self.tree(value, place, depth + 1), place)
        if key in OPERATORS:
            fail(place, f'{key} stands inside a field: {{"year": {{"{key}": ...}}}}')
        if key.startswith("$") and key not in (ID, TEXT):
            fail(place, _unknown(key, (*LOGIC, ID, TEXT, *OPERATORS)))
        return self._field(values.check_path(key, place), value, place, depth)

    def _field(self, path: str, value: object, place: Place, depth: int) -> Filter:
        if not isinstance(value, Mapping):
            return _condition(path, "$eq", value, place)
        _check_depth(depth, place)
        if not value:
            fail(place, 'an empty dict; write {"$exists": True} to ask for the field')
        terms = [self._operator(path, op, value[op], (*place, op), depth) for op in value]
        return _combine(And, terms, place)

    def _operator(self, path: str, op: object, operand: object, place: Place, depth: int) -> Filter:
        self._count(place)
        if op == "$not":
            if not isinstance(operand, Mapping):
                fail(place, f"needs a dict of operators, got {describe(operand)}; or use $ne")
            return _negate(self._field(path, operand, place, depth + 1), place)
        if op in OPERATORS:
            return _condition(path, str(op), operand, place)
        if op in LOGIC:
            fail(place, f'{op} goes around fields: {{"{op}": [{{"year": ...}}, ...]}}')
        if isinstance(op, str) and op.startswith("$"):
            fail(place, _unknown(op, (*OPERATORS, "$not")))
        hint = f"did you mean '${op}'?" if f"${op}" in OPERATORS else "name nested fields with dots"
        return fail(place[:-1], f"a dict of operators, but {show(op)} is none; {hint}")

    def _count(self, place: Place) -> None:
        self._left -= 1
        if self._left < 0:
            fail(place, f"more than {MAX_TERMS:,} conditions; use $in for many values of a field")


def _condition(path: str, op: str, operand: object, place: Place) -> Filter:
    """Return the filter of one operator on one field."""
    if op in ("$eq", "$ne"):
        equal = In(path, (values.plain_operand(operand, place),))
        return equal if op == "$eq" else _negate(equal, place)
    if op in ("$in", "$nin"):
        among = In(path, values.plain_operands(operand, place))
        return among if op == "$in" else _negate(among, place)
    if op == "$exists":
        present = values.plain_operand(operand, place)
        if not isinstance(present, bool):
            fail(place, f"needs True or False, got {describe(operand)}")
        return Exists(path) if present else _negate(Exists(path), place)
    value = values.plain_operand(operand, place)
    if op == "$contains":
        if not isinstance(value, str):
            fail(
                place,
                f"looks for a str in a str, got {describe(operand)}; a list that has an element"
                " matches $eq of it",
            )
        return Contains(path, value)
    if value is None or isinstance(value, (bool, bytes)):
        fail(place, f"orders numbers, datetimes and strings, got {describe(operand)}")
    return Compare(path, op, value)  # type: ignore[arg-type]  # the only operators left


# The builder


class F:
    """A field, to be compared: `(F("year") >= 2020) & (F("author.name") == "Ada")`.

    `F("author")["name"]` is `F("author.name")`; `F("$id")` and `F("$text")` are a record's id and
    text. Every comparison returns a Filter.
    """

    __slots__ = ("path",)
    _operand_hint = "a field is compared with values, not with another field"
    # Equality builds a filter, so a set or dict could not tell fields apart.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, path: str) -> None:
        if not isinstance(path, str):
            raise FilterError(f"F(...) takes the name of a field, a str, got {describe(path)}")
        self.path = values.check_path(path, (f"F({show(path)})",))

    def __getitem__(self, name: str) -> F:
        if not isinstance(name, str):
            raise FilterError(
                f"{self!r}[...] takes the name of a nested field, a str, got {describe(name)}; a"
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
        return f"F({show(self.path)})"


# Messages


def _unknown(op: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(op[:40], known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"use one of {' '.join(known)}"
    return f"unknown operator {show(op)}; {hint}"


def _check_filter(other: object, sign: str) -> Filter:
    if isinstance(other, F):
        other._refuse()
    if not isinstance(other, Filter):
        raise FilterError(
            f"{sign} combines two filters, got {describe(other)}; put each comparison in"
            f" parentheses, as in (F('year') > 2020) {sign} (F('lang') == 'en'), and turn a dict"
            " into a filter with vecstore.filters.parse"
        )
    return other


def _joined(sign: str, terms: tuple[Filter, ...]) -> str:
    more = f"{sign}... {len(terms) - 20:,} more" if len(terms) > 20 else ""
    return sign.join(f"({term!r})" for term in terms[:20]) + more
