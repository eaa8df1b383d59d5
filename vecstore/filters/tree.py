"""What is a filter? A small immutable tree, with the reference semantics.

In, Compare, Exists, Contains and StartsWith test one path; And, Or and Not combine. Invariants: at
most MAX_DEPTH levels, so recursion over a tree is safe; at most MAX_TERMS leaves; And within And,
and Or within Or, are flattened; operands are plain Python values, datetimes in UTC, strings without
lone surrogates.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal, NoReturn, Protocol

from vecstore import values
from vecstore.errors import FilterError
from vecstore.lazy import lazy
from vecstore.spec import Id
from vecstore.values import EXPIRES, ID, MAX_DEPTH, TEXT, Kind, Place, Scalar, describe, fail, show

Order = Literal["$gt", "$gte", "$lt", "$lte"]
Matcher = Callable[["RecordLike"], bool]
Test = Callable[[object], bool]

MAX_TERMS = 100_000

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

    @property
    def expires_at(self) -> datetime | None:
        """When the record expires, if it does."""


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
    def notes(self) -> dict[Any, Any]:
        """What callers remember of this filter, for as long as it is there."""
        return {}

    @lazy
    def _matcher(self) -> Matcher:
        return self._compile()

    def _parts(self) -> Iterable[bytes]:
        raise NotImplementedError

    def _compile(self) -> Matcher:
        raise NotImplementedError

    def __and__(self, other: Filter) -> Filter:
        return combine(And, (self, _check_filter(other, "&")), ("filter & filter",))

    def __or__(self, other: Filter) -> Filter:
        return combine(Or, (self, _check_filter(other, "|")), ("filter | filter",))

    def __rand__(self, other: object) -> Filter:
        return _check_filter(other, "&")

    def __ror__(self, other: object) -> Filter:
        return _check_filter(other, "|")

    def __invert__(self) -> Filter:
        return negate(self, ("~filter",))

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
        # The compiled matcher is a closure, which pickle refuses. The dialect knows the tree.
        from vecstore.filters.dialect import parse

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
        if path == EXPIRES:
            return lambda record: record.expires_at is not None
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


@dataclass(frozen=True, eq=False, repr=False)
class StartsWith(Filter):
    """A string at the path begins with `value`, in the same case."""

    path: str
    value: str

    def to_dict(self) -> dict[str, Any]:
        """Return the filter in the dict dialect."""
        return {self.path: {"$startswith": self.value}}

    def _parts(self) -> Iterable[bytes]:
        return self.path.encode(), self.value.encode()

    def _compile(self) -> Matcher:
        start = self.value
        return _any(self.path, lambda value: isinstance(value, str) and value.startswith(start))

    def __repr__(self) -> str:
        return f"F({self.path!r}).startswith({show(self.value)})"


def values_of(path: str) -> Callable[[RecordLike], list[Any]]:
    """Return what gives the values that a record has at a path, lists taken apart."""
    if path == ID:
        return lambda record: [record.id]
    if path == TEXT:
        return lambda record: [] if record.text is None else [record.text]
    if path == EXPIRES:
        return lambda record: [] if record.expires_at is None else [record.expires_at]
    splits = values.split_path(path)
    return lambda record: values.values_at(record.metadata or {}, splits)


def _any(path: str, test: Test) -> Matcher:
    """Return a matcher for "some value at the path passes the test"."""
    if path == ID:
        return lambda record: test(record.id)
    if path == TEXT:
        return lambda record: record.text is not None and test(record.text)
    if path == EXPIRES:
        return lambda record: record.expires_at is not None and test(record.expires_at)
    if "." in path:
        splits = values.split_path(path)
        return lambda record: any(map(test, values.values_at(record.metadata or {}, splits)))

    def matches_key(record: RecordLike) -> bool:
        value = (record.metadata or {}).get(path, _MISSING)
        if isinstance(value, (list, tuple, dict)):
            return any(map(test, values.scalars(value)))
        return value is not _MISSING and test(value)

    return matches_key


def combine(group: type[And | Or], terms: Iterable[Filter], place: Place) -> Filter:
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


def negate(term: Filter, place: Place) -> Filter:
    """The opposite of a filter."""
    if isinstance(term, Not):
        return term.term
    return _grown(Not(term), term._depth + 1, term._size, place)


def _grown(node: Filter, depth: int, size: int, place: Place) -> Filter:
    check_depth(depth, place)
    vars(node).update(_depth=depth, _size=size)
    return node


def check_depth(depth: int, place: Place) -> None:
    """Raise FilterError where a tree is too deep."""
    if depth > MAX_DEPTH:
        fail(place, f"nested deeper than {MAX_DEPTH} levels")


# Messages


def _check_filter(other: object, sign: str) -> Filter:
    # A field that was not compared says so itself.
    refuse = getattr(other, "_refuse", None)
    if callable(refuse):
        refuse()
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
