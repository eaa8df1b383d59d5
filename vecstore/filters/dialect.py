"""How is a filter written as a dict? `parse`, in the dialect of docs/filters.md."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, overload

from vecstore import values
from vecstore.filters.tree import (
    MAX_TERMS,
    And,
    Compare,
    Contains,
    Exists,
    Filter,
    In,
    Or,
    StartsWith,
    check_depth,
    combine,
    negate,
)
from vecstore.values import EXPIRES, ID, TEXT, Place, describe, fail, show

LOGIC = ("$and", "$or", "$not")
OPERATORS = (
    *("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists"),
    *("$contains", "$startswith"),
)


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
        check_depth(depth, place)
        return combine(
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
            return combine(And if key == "$and" else Or, terms, place)
        if key == "$not":
            return negate(self.tree(value, place, depth + 1), place)
        if key in OPERATORS:
            fail(place, f'{key} stands inside a field: {{"year": {{"{key}": ...}}}}')
        if key.startswith("$") and key not in (ID, TEXT, EXPIRES):
            fail(place, _unknown(key, (*LOGIC, ID, TEXT, EXPIRES, *OPERATORS)))
        return self._field(values.check_path(key, place), value, place, depth)

    def _field(self, path: str, value: object, place: Place, depth: int) -> Filter:
        if not isinstance(value, Mapping):
            return condition(path, "$eq", value, place)
        check_depth(depth, place)
        if not value:
            fail(place, 'an empty dict; write {"$exists": True} to ask for the field')
        terms = [self._operator(path, op, value[op], (*place, op), depth) for op in value]
        return combine(And, terms, place)

    def _operator(self, path: str, op: object, operand: object, place: Place, depth: int) -> Filter:
        self._count(place)
        if op == "$not":
            if not isinstance(operand, Mapping):
                fail(place, f"needs a dict of operators, got {describe(operand)}; or use $ne")
            return negate(self._field(path, operand, place, depth + 1), place)
        if op in OPERATORS:
            return condition(path, str(op), operand, place)
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


def condition(path: str, op: str, operand: object, place: Place) -> Filter:
    """Return the filter of one operator on one field."""
    if op in ("$eq", "$ne"):
        equal = In(path, (values.plain_operand(operand, place),))
        return equal if op == "$eq" else negate(equal, place)
    if op in ("$in", "$nin"):
        among = In(path, values.plain_operands(operand, place))
        return among if op == "$in" else negate(among, place)
    if op == "$exists":
        present = values.plain_operand(operand, place)
        if not isinstance(present, bool):
            fail(place, f"needs True or False, got {describe(operand)}")
        return Exists(path) if present else negate(Exists(path), place)
    value = values.plain_operand(operand, place)
    if op in ("$contains", "$startswith"):
        if not isinstance(value, str):
            fail(
                place,
                f"looks for a str in a str, got {describe(operand)}; a list that has an element"
                " matches $eq of it",
            )
        return Contains(path, value) if op == "$contains" else StartsWith(path, value)
    if value is None or isinstance(value, (bool, bytes)):
        fail(place, f"orders numbers, datetimes and strings, got {describe(operand)}")
    return Compare(path, op, value)  # type: ignore[arg-type]  # the only operators left


def _unknown(op: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(op[:40], known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"use one of {' '.join(known)}"
    return f"unknown operator {show(op)}; {hint}"
