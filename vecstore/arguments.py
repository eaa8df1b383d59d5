"""What may a collection be asked for? Checks of arguments, before anything is read."""

from __future__ import annotations

import functools
import math
import numbers
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, get_args

from vecstore import filters
from vecstore.errors import UsageError
from vecstore.filters import Filter
from vecstore.grouping import Grouping
from vecstore.hits import Hit
from vecstore.lazy import keep
from vecstore.planner import Recall
from vecstore.search import Request
from vecstore.spec import Id, Include, is_id, show

Where = Mapping[str, Any] | Filter | None

INCLUDE: tuple[Include, ...] = get_args(Include)
_INCLUDE_NAMES = ", ".join(map(repr, INCLUDE))


def listed(ids: Id | Iterable[Id]) -> list[Any]:
    """One id or several as a list; whether they are ids is not checked."""
    if is_id(ids):
        return [ids]
    # Bytes would be read as int ids, and a filter in the place of ids as the id of its field.
    if isinstance(ids, bytes | bytearray | Mapping | Filter) or not _has_items(ids):
        hint = "; a filter is given as where=" if isinstance(ids, Mapping | Filter) else ""
        raise UsageError(f"ids is {type(ids).__name__} {show(ids)}, not an id or a list{hint}")
    return list(ids)


def _has_items(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether a value can be gone through; an array of no dimensions only looks as if it could."""
    try:
        iter(value)  # type: ignore[call-overload]  # refusing others is the point
    except TypeError:
        return False
    return True


def check_include(include: Iterable[Include]) -> frozenset[Include]:
    """What records or hits are to carry."""
    if not isinstance(include, tuple):
        if isinstance(include, str):
            raise UsageError(f"include={include!r} is a str; give a tuple such as ({include!r},)")
        if not _has_items(include):
            raise UsageError(f"include={show(include)} must be a tuple of {_INCLUDE_NAMES}")
        include = tuple(include)
    for name in include:
        if not isinstance(name, str) or name not in INCLUDE:
            raise UsageError(f"include holds {show(name)}; it may hold {_INCLUDE_NAMES}")
    return frozenset(include)


def whole(value: object, what: str, least: int) -> int:
    """A whole number of at least `least`, as int."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # refusing others is the point
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise UsageError(f"{what}={show(value)} must be a whole number of at least {least}")
    return number


def _number(value: object) -> float:
    """A real number as float; NaN for whatever is none."""
    if isinstance(value, float):
        return float(value)
    try:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return float(value) if real else math.nan  # type: ignore[arg-type]
    except OverflowError:
        return math.nan


# Requests of usual arguments, which most searches repeat.
USUAL_KEPT = 256
# And so many with one filter.
USUAL_NOTED = 8


def request(
    k: int,
    where: Where,
    min_score: float | None,
    offset: int,
    after: Hit | None,
    include: Iterable[Include],
    recall: Recall,
    dims: int | None,
    threads: int = 1,
) -> Request:
    """A checked request; arguments as in `Collection.search`."""
    # Not by ==, which arrays and fields of a filter answer with neither true nor false.
    if after is None and min_score is None and dims is None and type(include) is tuple:
        try:
            if where is None:
                return _usual(k, offset, include, recall, threads)
            if isinstance(where, Filter):
                return _under(where, k, offset, include, recall, threads)
        except TypeError:
            # Something has no hash, and is nothing that may be asked for.
            pass
    return _request(k, offset, include, recall, threads, where, min_score, after, dims)


def _under(
    where: Filter, k: int, offset: int, include: tuple[Include, ...], recall: Recall, threads: int
) -> Request:
    """A request of usual arguments under a filter, which remembers it."""
    key = (k, type(k), offset, type(offset), include, recall, type(recall), threads)
    known: Request | None = where.notes.get(key)
    if known is None:
        made = _request(k, offset, include, recall, threads, where)
        known = keep(where.notes, key, made, USUAL_NOTED)
    return known


def _request(
    k: int,
    offset: int,
    include: Iterable[Include],
    recall: Recall,
    threads: int,
    where: Where = None,
    min_score: float | None = None,
    after: Hit | None = None,
    dims: int | None = None,
) -> Request:
    if after is not None and not isinstance(after, Hit):
        raise UsageError(f"after={show(after)} must be a Hit of an earlier page")
    least = None if min_score is None else _number(min_score)
    if least is not None and not math.isfinite(least):
        raise UsageError(f"min_score={show(min_score)} must be a finite number")
    check_recall(recall)
    return Request(
        k=whole(k, "k", 1),
        where=filters.parse(where),
        min_score=least,
        offset=whole(offset, "offset", 0),
        after=None if after is None else (after.score, after.order),
        include=check_include(include),
        recall=recall,
        dims=dims,
        threads=threads,
    )


# By types too: True is no 1.
_usual = functools.lru_cache(USUAL_KEPT, typed=True)(_request)


def grouping(group_by: str | None, group_size: int, request: Request) -> Grouping | None:
    """How hits are grouped; None if they are not."""
    size = whole(group_size, "group_size", 1)
    if group_by is None:
        if size > 1:
            raise UsageError(f"group_size={size} needs group_by, the field to group by")
        return None
    if request.after is not None:
        raise UsageError("after= does not go with group_by; use offset=, which counts groups")
    return Grouping(filters.F(group_by).path, size)


def check_recall(recall: Recall) -> None:
    """Raise UsageError for what is no share of neighbours that may be wanted."""
    named = isinstance(recall, str) and recall == "exact"
    if not named and not 0 < _number(recall) <= 1:
        raise UsageError(f'recall={show(recall)} must be "exact" or a number over 0 and at most 1')


def check_share(recall: object) -> None:
    """Raise UsageError for what is no number over 0 and at most 1."""
    if not 0 < _number(recall) <= 1:
        raise UsageError(f"recall={show(recall)} must be a number over 0 and at most 1")


def check_threads(threads: int | None) -> int:
    """How many threads may be used; for None as many as the process has processors."""
    if threads is not None:
        return whole(threads, "threads", 1)
    # Not every system can say which processors a process may use.
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))
