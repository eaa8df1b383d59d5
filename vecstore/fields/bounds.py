"""Which rows satisfy a filter for certain, and which may? From the columns of a field index.

Two masks bound the answer: the rows that are known to satisfy the filter, and those that are not
known not to. Rows of which nothing is known, since no segment speaks for them or their field has no
columns, are between the two, and so are those that a column leaves in doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from vecstore.field_layout import RANGE_WORDS
from vecstore.fields.columns import has_column
from vecstore.fields.conditions import Leaf, condition
from vecstore.fields.segments import Segment
from vecstore.filters import And, Compare, Contains, Exists, Filter, In, Not, Or, StartsWith
from vecstore.rows import Rows, Words, mark
from vecstore.values import ID, TEXT


class Bounds(NamedTuple):
    """Rows that satisfy a filter, and rows that may, all of the former among them; uint64 words."""

    sure: Words
    possible: Words


# The rows of the records with some ids; None if that is not known at once.
WithIds = Callable[[In], Rows | None]


def bounds(
    where: Filter,
    segments: Sequence[Segment],
    blocks: int,
    with_ids: WithIds,
    indexes: Callable[[str], bool],
) -> Bounds:
    """Return the bounds of a filter.

    Args:
        where: The filter.
        segments: Of all rows that any speaks for.
        blocks: How many words the masks have.
        with_ids: Leads from ids to rows.
        indexes: Which paths have columns.
    """
    return _Resolution(segments, blocks, with_ids, indexes).of(where)


class _Resolution:
    def __init__(
        self,
        segments: Sequence[Segment],
        blocks: int,
        with_ids: WithIds,
        indexes: Callable[[str], bool],
    ) -> None:
        self._with_ids, self._indexes = with_ids, indexes
        # Whole ranges, of which the last may end behind the last block.
        self._words = -(-blocks // RANGE_WORDS) * RANGE_WORDS
        self._blocks, self._segments = blocks, segments
        self._unknown = self._none()
        self._unknown[:] = ~np.uint64(0)
        for segment in segments:
            self._unknown[segment.listed.words] &= ~segment.rows

    def of(self, where: Filter) -> Bounds:
        """The bounds of a filter, or of a part of one."""
        found = self._of(where)
        return Bounds(found.sure[: self._blocks], found.possible[: self._blocks])

    def _of(self, where: Filter) -> Bounds:
        match where:
            case And():
                found = Bounds(~self._none(), ~self._none())
                for term in where.terms:
                    one = self._of(term)
                    found = Bounds(found.sure & one.sure, found.possible & one.possible)
                    if not found.possible.any():
                        break
                return found
            case Or():
                parts = map(self._of, where.terms)
                return reduce(
                    lambda one, other: Bounds(one.sure | other.sure, one.possible | other.possible),
                    parts,
                )
            case Not():
                one = self._of(where.term)
                return Bounds(~one.possible, ~one.sure)
            case In() | Compare() | Contains() | StartsWith() | Exists():
                return self._leaf(where)
        raise AssertionError(f"{type(where).__name__} is no filter")

    def _leaf(self, leaf: Leaf) -> Bounds:
        sure = self._none()
        if leaf.path == ID and isinstance(leaf, Exists):
            return Bounds(~sure, ~sure)
        if leaf.path in (ID, TEXT):
            found = self._with_ids(leaf) if leaf.path == ID and isinstance(leaf, In) else None
            if found is None:
                return Bounds(sure, ~sure)
            mark(sure, found)
            return Bounds(sure, sure)
        if not has_column(leaf.path, self._indexes):
            return Bounds(sure, ~sure)
        doubt, test = self._none(), condition(leaf)
        for segment in self._segments:
            column, part = segment.column(leaf.path), segment.listed.words
            if column is None:
                continue
            if segment.whole:
                test.mark(column, sure[part], doubt[part])
                continue
            own, maybe = np.zeros(RANGE_WORDS, np.uint64), np.zeros(RANGE_WORDS, np.uint64)
            test.mark(column, own, maybe)
            sure[part] |= own & segment.rows
            doubt[part] |= maybe & segment.rows
        return Bounds(sure, sure | doubt | self._unknown)

    def _none(self) -> Words:
        return np.zeros(self._words, np.uint64)
