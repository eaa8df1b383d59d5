"""Which rows of a column pass a condition? Those that do for certain, and those that may.

A column keeps less than the values of long strings, and of whole numbers that float64 lacks. Where
that could matter rows are in doubt, and their records decide.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from vecstore.field_layout import Constant, SortedKind, TermKind
from vecstore.fields.columns import DIGEST_BYTES, LONGEST, kept
from vecstore.fields.segments import ColumnView, TermsView
from vecstore.filters import Compare, Contains, Exists, In, StartsWith
from vecstore.rows import Words
from vecstore.values import Kind, pair_of

# From here on float64 lacks whole numbers.
GAPS = 2.0**53
_CONSTANTS: dict[object, Constant] = {None: "null", False: "false", True: "true"}
_ABOVE, _EQUAL_TOO = ("$gt", "$gte"), ("$gte", "$lte")


class Condition(Protocol):
    """A condition on one path."""

    def mark(self, column: ColumnView, sure: Words, doubt: Words) -> None:
        """Set the bits of the rows that pass, and of those that may; uint64 (RANGE_WORDS,)."""


class OneOf:
    """A value equals one of some."""

    def __init__(self, leaf: In) -> None:
        by_kind: dict[Kind, list[Any]] = {}
        for kind, value in leaf.members:
            by_kind.setdefault(kind, []).append(value)
        self._constants = [
            _CONSTANTS[value] for kind in ("null", "bool") for value in by_kind.get(kind, ())
        ]
        self._ordered: list[tuple[SortedKind, Any]] = []
        if numbers := by_kind.get("number"):
            floats = np.array(sorted({_nearest(value) for value in numbers}))
            self._ordered.append(("number", floats))
        if instants := by_kind.get("datetime"):
            self._ordered.append(("datetime", np.array(sorted(instants), np.int64)))
        self._terms: list[tuple[TermKind, tuple[list[bytes], list[bytes]]]] = []
        if strings := by_kind.get("string"):
            self._terms.append(("string", _by_length(value.encode() for value in strings)))
        if blobs := by_kind.get("bytes"):
            self._terms.append(("bytes", _by_length(blobs)))

    def mark(self, column: ColumnView, sure: Words, doubt: Words) -> None:
        """Set the bits of the rows that pass, and of those that may."""
        for constant in self._constants:
            column.add_set(constant, sure)
        for kind, wanted in self._ordered:
            values = column.find(f"{kind}.values")
            if values is None:
                continue
            starts, stops = (np.searchsorted(values, wanted, side) for side in ("left", "right"))
            there = starts < stops
            vague = there & (abs(wanted) >= GAPS) & (kind == "number")
            for some, words in ((there & ~vague, sure), (vague, doubt)):
                column.add_many_sorted(kind, starts[some], stops[some], words)
        for name, texts in self._terms:
            terms = column.terms(name)
            if terms is None:
                continue
            # A digest is no proof.
            for some, words in zip(texts, (sure, doubt), strict=True):
                if some and len(numbers := terms.numbers(some)):
                    column.add_many_terms(name, numbers, words)


class Ordered:
    """A value is ordered before or after another one of its kind."""

    def __init__(self, leaf: Compare) -> None:
        kind, self._bound = pair_of(leaf.value)
        self._kind: Any = kind
        self._above, self._equal_too = leaf.op in _ABOVE, leaf.op in _EQUAL_TOO

    def mark(self, column: ColumnView, sure: Words, doubt: Words) -> None:
        """Set the bits of the rows that pass, and of those that may."""
        if self._kind == "string":
            terms = column.terms("string")
            if terms is not None:
                self._mark_terms(column, terms, sure, doubt)
            return
        values = column.find(f"{self._kind}.values")
        if values is None:
            return
        bound = _nearest(self._bound) if self._kind == "number" else self._bound
        start, stop = (int(np.searchsorted(values, bound, side)) for side in ("left", "right"))
        first, last = (stop, len(values)) if self._above else (0, start)
        column.add_sorted(self._kind, first, last, sure)
        if self._kind == "number" and abs(bound) >= GAPS:
            column.add_sorted("number", start, stop, doubt)
        elif self._equal_too:
            column.add_sorted(self._kind, start, stop, sure)

    def _mark_terms(self, column: ColumnView, terms: TermsView, sure: Words, doubt: Words) -> None:
        bound: bytes = self._bound.encode()
        start = stop = bisect_left(terms, bound)
        if len(bound) >= LONGEST:
            # Of terms that begin alike the rest is not known.
            start, stop = _beginning(terms, bound[:LONGEST])
            column.add_terms("string", start, stop, doubt)
        elif start < len(terms) and terms[start] == bound:
            stop += 1
            if self._equal_too:
                column.add_terms("string", start, stop, sure)
        first, last = (stop, len(terms)) if self._above else (0, start)
        column.add_terms("string", first, last, sure)


class Existing:
    """The path is there."""

    def mark(self, column: ColumnView, sure: Words, doubt: Words) -> None:
        """Set the bits of the rows that pass, and of those that may."""
        column.add_existing(sure)


class Containing:
    """A string has another one in it."""

    def __init__(self, leaf: Contains) -> None:
        self._part = leaf.value.encode()

    def mark(self, column: ColumnView, sure: Words, doubt: Words) -> None:
        """Set the bits of the rows that pass, and of those that may."""
        terms = column.terms("string")
        if terms is None:
            return
        inside, maybe = terms.containing(self._part)
        for first, last in _runs(inside):
            column.add_terms("string", first, last, sure)
        for first, last in _runs(maybe):
            column.add_terms("string", first, last, doubt)


class Beginning:
    """A string begins with another one."""

    def __init__(self, leaf: StartsWith) -> None:
        self._start = leaf.value.encode()

    def mark(self, column: ColumnView, sure: Words, doubt: Words) -> None:
        """Set the bits of the rows that pass, and of those that may."""
        terms = column.terms("string")
        if terms is not None:
            # Of long strings no more than the beginning is known.
            first, last = _beginning(terms, self._start[:LONGEST])
            words = sure if len(self._start) <= LONGEST else doubt
            column.add_terms("string", first, last, words)


Leaf = In | Compare | Exists | Contains | StartsWith


def condition(leaf: Leaf) -> Condition:
    """The condition of a filter that has no filters in it."""
    match leaf:
        case In():
            return OneOf(leaf)
        case Compare():
            return Ordered(leaf)
        case Contains():
            return Containing(leaf)
        case StartsWith():
            return Beginning(leaf)
    return Existing()


def _by_length(texts: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Strings that columns have whole, and what they have of the others; each ascending."""
    whole, cut = list[bytes](), list[bytes]()
    for text in sorted(texts):
        stored = kept(text)
        (whole if stored is text else cut).append(stored)
    return whole, cut


def _nearest(number: float) -> float:
    """The nearest number of float64, be it infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number)


def _beginning(terms: TermsView, start: bytes) -> tuple[int, int]:
    """The terms that begin with some bytes: the first, and the one behind the last."""
    # No UTF-8 has that byte; a digest, which may follow, can begin with it.
    return bisect_left(terms, start), bisect_left(terms, start + b"\xff" * (DIGEST_BYTES + 1))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of successive numbers, which are ascending: the first, and the one behind the last."""
    found = np.array(numbers, np.int64)
    breaks = np.flatnonzero(np.diff(found) != 1) + 1
    for part in np.split(found, breaks) if len(found) else ():
        yield int(part[0]), int(part[-1]) + 1
