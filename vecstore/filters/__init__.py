"""Which records qualify? The filter dialect, the `F` builder and the reference semantics.

A filter is a small immutable tree. `parse` builds it from the dict dialect, `F` from Python
expressions, and both give the same tree: `$eq` is In with one value, `$ne` is Not of that.
docs/filters.md is the manual.

`Filter.matches` is what a filter means. An index that answers faster must agree with it on every
record, and `values.leaves` gives the (path, value) pairs that such an index has to hold: In,
Compare, Contains and StartsWith match a record exactly if one of the values at their path passes,
Exists if the path is there.
"""

from vecstore.filters.builder import F
from vecstore.filters.dialect import parse
from vecstore.filters.tree import (
    And,
    Compare,
    Contains,
    Exists,
    Filter,
    In,
    Not,
    Or,
    RecordLike,
    StartsWith,
    values_of,
)

__all__ = [
    "And",
    "Compare",
    "Contains",
    "Exists",
    "F",
    "Filter",
    "In",
    "Not",
    "Or",
    "RecordLike",
    "StartsWith",
    "parse",
    "values_of",
]
