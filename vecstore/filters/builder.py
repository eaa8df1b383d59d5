"""How is a filter written as an expression? With `F`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from vecstore import values
from vecstore.errors import FilterError
from vecstore.filters.dialect import condition
from vecstore.filters.tree import Filter
from vecstore.values import describe, show


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

    def startswith(self, start: str) -> Filter:
        """Return the filter for strings that begin with `start`, in the same case."""
        return self._where("$startswith", ".startswith", start)

    def _where(self, op: str, sign: str, operand: object) -> Filter:
        return condition(self.path, op, operand, (f"{self!r}{sign}",))

    def _refuse(self, other: object = None) -> NoReturn:
        raise FilterError(
            f"{self!r} is a field, not a filter: compare it, as in {self!r} == 1 or"
            f" {self!r}.exists(), and put each comparison in parentheses before & | ~"
        )

    __and__ = __rand__ = __or__ = __ror__ = __invert__ = __bool__ = _refuse
    __contains__ = __iter__ = None

    def __repr__(self) -> str:
        return f"F({show(self.path)})"
