"""How does a user's metadata become safe? Plain values that can be stored and come back equal."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np

from vecstore.errors import UsageError
from vecstore.record_layout import pack_extension, unpack_extension
from vecstore.spec import MAX_INT_ID, MIN_INT_ID, encode_utf8, show

MAX_DEPTH = 64


def is_plain(metadata: Sequence[object]) -> bool:
    """Whether these are dicts of the same keys with the commonest values, storable as they are.

    A quick look by columns; False says only that `plain_metadata` has to look at each.
    """
    if set(map(type, metadata)) != {dict}:
        return False
    dicts = cast("Sequence[dict[object, Any]]", metadata)
    keys = set(map(tuple, dicts))
    return len(keys) == 1 and all(
        type(key) is str
        and key.isascii()
        and key[:1] != "$"
        and _are_plain([values[key] for values in dicts], lists=True)
        for key in keys.pop()
    )


def _are_plain(column: list[Any], *, lists: bool) -> bool:
    """Whether all values are of the commonest, or lists of these."""
    kinds = set(map(type, column))
    return all(
        _are_alike(
            kind, column if len(kinds) == 1 else [v for v in column if type(v) is kind], lists
        )
        for kind in kinds
    )


def _are_alike(kind: type, column: list[Any], lists: bool) -> bool:
    """Whether values of one type can be stored as they are."""
    if kind is str:
        return "".join(column).isascii()
    if kind is int:
        return bool(min(column) >= MIN_INT_ID and max(column) <= MAX_INT_ID)
    if kind is float:
        total = sum(column)
        return bool(total - total == 0.0)
    if kind is datetime:
        return all(value.tzinfo is None or value.tzinfo is UTC for value in column)
    if kind is list:
        return lists and _are_plain(list(itertools.chain.from_iterable(column)), lists=False)
    return kind is bool or kind is type(None)


def plain_metadata(metadata: object) -> dict[str, Any]:
    """Copy metadata into plain values that can be stored and come back equal.

    Allowed: None, bool, int of 64 bits, finite float, str, bytes, datetime; lists, tuples (they
    come back as lists) and dicts with str keys of these; numpy scalars become Python's. The keys of
    the outermost dict do not begin with $, since filters could not name them.

    Raises:
        UsageError: Anything else; the message names the place and the value.
    """
    if type(metadata) is not dict and not isinstance(metadata, Mapping):
        raise UsageError(
            f"metadata is a dict of fields, got {type(metadata).__name__} {show(metadata)}"
        )
    plain = _plain_dict(metadata, "metadata", 0)
    for key in plain:
        if key[:1] == "$":
            raise UsageError(
                f"metadata has the key {show(key)}; a field that begins with $ cannot be filtered"
            )
    return plain


def _plain_dict(values: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
    plain = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise UsageError(f"{where} has the key {show(key)}; keys are str")
        if not key.isascii():
            encode_utf8(key, f"{where}: a key")
        # The commonest values first; everything else, and every error, is _plain's.
        kind = type(value)
        if (
            (kind is str and value.isascii())
            or (kind is int and MIN_INT_ID <= value <= MAX_INT_ID)
            or (kind is float and value - value == 0.0)
            or kind is bool
            or value is None
            # Others may not come back equal.
            or (kind is datetime and (value.tzinfo is None or value.tzinfo is UTC))
        ):
            plain[_exact_str(key)] = value
        else:
            plain[_exact_str(key)] = _plain(value, f"{where}[{key!r}]", depth + 1)
    return plain


def _exact_str(text: str) -> str:
    """A str and no subclass; str() would call the __str__ of an Enum."""
    return text if type(text) is str else str.__str__(text)


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise UsageError(f"{where:.80}... is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, np.datetime64):
        micros = value.astype("datetime64[us]")
        # numpy cuts what is finer and wraps around what is too far; NaT equals nothing.
        if micros.astype(value.dtype) != value or not isinstance(micros.item(), datetime):
            raise UsageError(f"{where} = {show(value)} is no microsecond of the years 1 to 9999")
        value = micros.item()
    # A timedelta64 in nanoseconds would become an int.
    elif isinstance(value, np.generic) and not isinstance(value, np.timedelta64):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, bytes):
        return bytes(memoryview(value))
    if isinstance(value, str):
        encode_utf8(value, where)
        return _exact_str(value)
    if isinstance(value, int):
        if not MIN_INT_ID <= value <= 2 * MAX_INT_ID + 1:
            raise UsageError(f"{where} = {show(value)} does not fit 64 bits; use str or float")
        return int(value)
    if isinstance(value, float):
        if not np.isfinite(value):
            raise UsageError(f"{where} = {value} cannot be ordered; use None or leave it out")
        return float(value)
    if isinstance(value, datetime):
        return _checked_datetime(value, where)
    if isinstance(value, Mapping):
        return _plain_dict(value, where, depth)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise UsageError(
        f"{where} is {type(value).__name__} {show(value)}; metadata holds None, bool, int, float,"
        " str, bytes, datetime, and lists and dicts of these"
    )


def _checked_datetime(value: datetime, where: str) -> datetime:
    """Refuse a datetime whose instant in UTC, or whose offset, could not be read back."""
    try:
        packed = pack_extension(value)
        unpack_extension(packed.code, packed.data)
    except (ValueError, TypeError, OverflowError, struct.error) as error:
        raise UsageError(f"{where} = {show(value)} cannot be stored: {error}") from None
    if type(value) is datetime:
        return value
    day, time = (value.year, value.month, value.day), (value.hour, value.minute, value.second)
    return datetime(*day, *time, value.microsecond, tzinfo=value.tzinfo, fold=value.fold)
