import copy
import functools
import operator
import pickle
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies as own
from vecstore.errors import FilterError
from vecstore.filters import (
    And,
    Compare,
    Contains,
    Exists,
    F,
    Filter,
    In,
    Not,
    Or,
    StartsWith,
    parse,
)
from vecstore.hits import Record
from vecstore.values import leaves, split_path, values_at

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


def matches(where: Any, metadata: dict[str, Any] | None) -> bool:
    return parse(where).matches(Record(id="id", metadata=metadata))


# An oracle that knows no tree: it reads the dict dialect and lists every node of the metadata.


def nodes(node: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield at, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from nodes(value, (*at, *key.split(".")))
    if isinstance(node, list):
        for value in node:
            yield from nodes(value, at)


def found(record: Record, path: str) -> tuple[bool, list[Any]]:
    if path == "$id":
        return True, [record.id]
    if path == "$text":
        return (False, []) if record.text is None else (True, [record.text])
    parts = tuple(path.split("."))
    under = [(at, value) for at, value in nodes(record.metadata or {}) if at[: len(parts)] == parts]
    values = [value for at, value in under if at == parts and not isinstance(value, (list, dict))]
    return bool(under), values


def sort(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, (str, bytes, datetime)):
        return type(value).__name__
    return "number"


def utc(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)


def same(left: Any, right: Any) -> bool:
    return sort(left) == sort(right) and bool(utc(left) == utc(right))


def holds(op: str, operand: Any, record: Record, path: str) -> bool:
    present, values = found(record, path)
    if op in ("$ne", "$nin", "$not"):
        opposite = {"$ne": "$eq", "$nin": "$in"}.get(op)
        if opposite:
            return not holds(opposite, operand, record, path)
        return not all(holds(inner, operand[inner], record, path) for inner in operand)
    if op == "$exists":
        return present == operand
    if op == "$contains":
        return any(isinstance(value, str) and operand in value for value in values)
    if op == "$startswith":
        return any(isinstance(value, str) and value[: len(operand)] == operand for value in values)
    if op in ("$eq", "$in"):
        wanted = [operand] if op == "$eq" else operand
        return any(same(value, one) for value in values for one in wanted)
    pairs = [(utc(value), utc(operand)) for value in values if sort(value) == sort(operand)]
    return {
        "$gt": any(value > bound for value, bound in pairs),
        "$gte": any(value >= bound for value, bound in pairs),
        "$lt": any(value < bound for value, bound in pairs),
        "$lte": any(value <= bound for value, bound in pairs),
    }[op]


def oracle(where: dict[str, Any], record: Record) -> bool:
    results = []
    for key, value in where.items():
        if key == "$and":
            results.append(all(oracle(part, record) for part in value))
        elif key == "$or":
            results.append(any(oracle(part, record) for part in value))
        elif key == "$not":
            results.append(not oracle(value, record))
        else:
            operators = value if isinstance(value, dict) else {"$eq": value}
            results += [holds(op, operators[op], record, key) for op in operators]
    return all(results)


# Properties


@given(own.wheres, st.lists(own.records, min_size=1, max_size=5))
def test_a_filter_means_what_the_oracle_says(where: dict[str, Any], records: list[Record]) -> None:
    parsed = parse(where)

    assert [parsed.matches(record) for record in records] == [
        oracle(where, record) for record in records
    ]


@given(own.paths, st.sampled_from(["$eq", "$ne", "$in", "$nin"]), own.scalars, own.records)
def test_equality_means_what_the_oracle_says(
    path: str, op: str, operand: Any, record: Record
) -> None:
    where = {path: {op: [operand, 7] if "in" in op else operand}}

    assert parse(where).matches(record) == oracle(where, record)


@given(own.wheres, own.wheres, own.records)
def test_negation_is_exact(one: dict[str, Any], two: dict[str, Any], record: Record) -> None:
    a, b = parse(one), parse(two)
    in_a, in_b = a.matches(record), b.matches(record)

    assert (~a).matches(record) is not in_a
    assert ~~a == a
    assert (a & b).matches(record) == (in_a and in_b)
    assert (a | b).matches(record) == (in_a or in_b)
    assert (~(a & b)).matches(record) == (~a | ~b).matches(record)
    assert (~(a | b)).matches(record) == (~a & ~b).matches(record)


@given(own.wheres)
def test_a_filter_survives_its_dict_its_repr_and_pickle(where: dict[str, Any]) -> None:
    parsed = parse(where)
    names = {"F": F, "parse": parse, "datetime": __import__("datetime")}

    for again in (
        parse(parsed.to_dict()),
        eval(repr(parsed), names),
        pickle.loads(pickle.dumps(parsed)),
        copy.deepcopy(parsed),
    ):
        assert again == parsed
        assert hash(again) == hash(parsed)
        assert again.key() == parsed.key()
        assert repr(again) == repr(parsed) == str(parsed)


@given(own.scalars, own.scalars)
def test_filters_are_equal_exactly_if_their_values_are(one: Any, two: Any) -> None:
    assert (parse({"a": one}) == parse({"a": two})) == same(one, two)
    assert (parse({"a": {"$in": [one, two]}}) == parse({"a": {"$in": [two]}})) == same(one, two)


@given(own.ordered, own.ordered)
def test_ordered_filters_are_equal_exactly_if_their_values_are(one: Any, two: Any) -> None:
    assert (parse({"a": {"$lt": one}}) == parse({"a": {"$lt": two}})) == same(one, two)


@given(own.metadata)
def test_leaves_are_the_paths_and_values_that_filters_see(metadata: dict[str, Any]) -> None:
    record = Record(id=0, metadata=metadata)
    flat = leaves(metadata)

    for path in {*flat, *own.PATHS}:
        if path.startswith("$"):
            continue
        present, values = found(record, path)
        assert (path in flat) == present == parse({path: {"$exists": True}}).matches(record)
        assert Counter(map(repr, flat.get(path, []))) == Counter(map(repr, values))
        assert Counter(map(repr, values)) == Counter(
            map(repr, values_at(metadata, split_path(path)))
        )


@given(own.metadata)
def test_leaves_leave_out_only_what_no_filter_can_name(metadata: dict[str, Any]) -> None:
    flat = leaves(metadata)
    spelled = {".".join(at[:size]) for at, _ in nodes(metadata) for size in range(1, len(at) + 1)}

    assert set(flat) <= spelled
    for path in spelled - set(flat) - {"$id", "$text"}:
        with pytest.raises(FilterError):
            F(path)


@given(own.paths, own.scalars, own.ordered, own.texts)
def test_builder_equals_dict_form(path: str, value: Any, bound: Any, part: str) -> None:
    field = F(path)
    pairs = [
        (field == value, {path: value}),
        (field == value, {path: {"$eq": value}}),
        (field != value, {path: {"$ne": value}}),
        (field > bound, {path: {"$gt": bound}}),
        (field >= bound, {path: {"$gte": bound}}),
        (field < bound, {path: {"$lt": bound}}),
        (field <= bound, {path: {"$lte": bound}}),
        (field.is_in([value, bound]), {path: {"$in": [value, bound]}}),
        (field.not_in([value, bound]), {path: {"$nin": [value, bound]}}),
        (field.exists(), {path: {"$exists": True}}),
        (field.exists(False), {path: {"$exists": False}}),
        (field.contains(part), {path: {"$contains": part}}),
        (field.startswith(part), {path: {"$startswith": part}}),
        (~(field < bound), {path: {"$not": {"$lt": bound}}}),
        (~(field < bound), {"$not": {path: {"$lt": bound}}}),
        ((field < bound) & (field == value), {path: {"$lt": bound, "$eq": value}}),
        ((field < bound) | (field == value), {"$or": [{path: {"$lt": bound}}, {path: value}]}),
    ]

    for built, where in pairs:
        assert built == parse(where)
        assert repr(built) == repr(parse(where))


# The table of docs/filters.md, and its edges

TABLE = [
    # where, metadata, expected
    ({}, None, True),
    ({}, {"a": 1}, True),
    ({"$not": {}}, {"a": 1}, False),
    ({"a": 1}, None, False),
    ({"a": 1}, {}, False),
    ({"a": 1}, {"a": 1}, True),
    ({"a": 1}, {"a": 1.0}, True),
    ({"a": 1.0}, {"a": 1}, True),
    ({"a": 0}, {"a": -0.0}, True),
    ({"a": 2**53 + 1}, {"a": float(2**53)}, False),
    ({"a": {"$gt": float(2**53)}}, {"a": 2**53 + 1}, True),
    ({"a": 1}, {"a": True}, False),
    ({"a": True}, {"a": 1}, False),
    ({"a": True}, {"a": True}, True),
    ({"a": False}, {"a": 0}, False),
    ({"a": "1"}, {"a": 1}, False),
    ({"a": b"x"}, {"a": "x"}, False),
    ({"a": b"x"}, {"a": b"x"}, True),
    ({"a": "\u00e9"}, {"a": "e\u0301"}, False),
    # null and missing
    ({"a": None}, {"a": None}, True),
    ({"a": None}, {}, False),
    ({"a": {"$exists": True}}, {"a": None}, True),
    ({"a": {"$exists": False}}, {}, True),
    ({"a": {"$exists": False}}, {"a": None}, False),
    ({"a": {"$ne": 1}}, {}, True),
    ({"a": {"$ne": None}}, {}, True),
    ({"a": {"$ne": None}}, {"a": None}, False),
    ({"a": {"$ne": 1}}, {"a": "x"}, True),
    ({"a": {"$nin": [1]}}, {}, True),
    ({"a": {"$not": {"$gt": 5}}}, {}, True),
    ({"a": {"$not": {"$gt": 5}}}, {"a": "x"}, True),
    ({"a": {"$not": {"$gt": 5}}}, {"a": 6}, False),
    ({"a": {"$lte": 5}}, {}, False),
    ({"$not": {"a": {"$gt": 5}}}, {"a": 5}, True),
    # order
    ({"a": {"$gt": 1}}, {"a": 1}, False),
    ({"a": {"$gte": 1}}, {"a": 1}, True),
    ({"a": {"$lt": 1}}, {"a": True}, False),
    ({"a": {"$lt": 5}}, {"a": False}, False),
    ({"a": {"$lt": 5}}, {"a": None}, False),
    ({"a": {"$lt": 5}}, {"a": "1"}, False),
    ({"a": {"$gt": "Z"}}, {"a": "a"}, True),
    ({"a": {"$gt": "z"}}, {"a": "é"}, True),
    ({"a": {"$gt": "\uffff"}}, {"a": "\U0001f600"}, True),
    ({"a": {"$gt": ""}}, {"a": 5}, False),
    ({"a": {"$lt": 5}}, {"a": float("nan")}, False),
    ({"a": {"$gt": 10**400}}, {"a": float("inf")}, True),
    ({"a": {"$gte": NOON}}, {"a": datetime(2024, 3, 1, 12)}, True),
    ({"a": datetime(2024, 3, 1, 12)}, {"a": NOON}, True),
    ({"a": NOON}, {"a": datetime(2024, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))}, True),
    ({"a": {"$gt": NOON}}, {"a": "2025-01-01"}, False),
    # lists
    ({"a": 1}, {"a": [3, 1]}, True),
    ({"a": 1}, {"a": [[3], [[1]]]}, True),
    ({"a": 1}, {"a": []}, False),
    ({"a": {"$exists": True}}, {"a": []}, True),
    ({"a": {"$ne": 1}}, {"a": [1, 2]}, False),
    ({"a": {"$ne": 1}}, {"a": []}, True),
    ({"a": {"$gt": 2, "$lt": 2}}, {"a": [1, 3]}, True),
    ({"a": {"$in": [5, 1]}}, {"a": [1]}, True),
    ({"a": {"$in": []}}, {"a": [1]}, False),
    ({"a": {"$nin": []}}, {"a": [1]}, True),
    ({"a": {"$in": [True]}}, {"a": 1}, False),
    ({"a": {"$in": range(3)}}, {"a": 2.0}, True),
    # paths
    ({"a.b": 1}, {"a": {"b": 1}}, True),
    ({"a.b": 1}, {"a.b": 1}, True),
    ({"a.b": 1}, {"a.b": 2, "a": {"b": 1}}, True),
    ({"a.b.c": 1}, {"a.b": {"c": 1}}, True),
    ({"a.b.c": 1}, {"a": {"b.c": 1}}, True),
    ({"a.b": 1}, {"a": [{"b": 2}, {"b": 1}]}, True),
    ({"a.b": 1}, {"a": [[{"b": [1]}]]}, True),
    ({"a": 1}, {"a": {"b": 1}}, False),
    ({"a": 1}, {"a": [1, {"b": 2}]}, True),
    ({"a": {"$exists": True}}, {"a": {}}, True),
    ({"a": {"$exists": True}}, {"a.b": 1}, True),
    ({"a.b": {"$exists": True}}, {"a": [{}, {"b": None}]}, True),
    ({"a.b": {"$exists": True}}, {"a": [1]}, False),
    ({"a.0": 1}, {"a": [1]}, False),
    ({"a.$b": 1}, {"a": {"$b": 1}}, True),
    ({"ünï": 1}, {"ünï": 1}, True),
    ({" ": 1}, {" ": 1}, True),
    # substrings
    ({"a": {"$contains": "bc"}}, {"a": "abcd"}, True),
    ({"a": {"$contains": "BC"}}, {"a": "abcd"}, False),
    ({"a": {"$contains": ""}}, {"a": ""}, True),
    ({"a": {"$contains": ""}}, {"a": 1}, False),
    ({"a": {"$contains": "x"}}, {"a": ["a", "xy"]}, True),
    ({"a": {"$contains": "x"}}, {"a": b"x"}, False),
    # logic
    ({"a": 1, "b": 2}, {"a": 1, "b": 2}, True),
    ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
    ({"$or": [{"a": 1}, {"b": 2}]}, {"b": 2}, True),
    ({"$and": [{"a": 1}, {"b": 2}]}, {"b": 2}, False),
    ({"$or": [{"a": 1}], "b": 2}, {"a": 1}, False),
    ({"$or": ({"a": 2}, F("b") == 2)}, {"b": 2}, True),
]


@pytest.mark.parametrize(("where", "metadata", "expected"), TABLE)
def test_semantics(where: Any, metadata: dict[str, Any] | None, expected: bool) -> None:
    assert matches(where, metadata) is expected
    assert matches({"$not": where}, metadata) is not expected


def test_id_and_text_are_fields() -> None:
    record = Record(id=7, text="a note", metadata={"$id": 1, "$text": "x", "id": 2})

    assert parse({"$id": 7}).matches(record)
    assert not parse({"$id": "7"}).matches(record)
    assert not parse({"$id": 1}).matches(record)
    assert parse({"$id": {"$in": [6, 7]}, "id": 2}).matches(record)
    assert parse({"$text": {"$contains": "note"}}).matches(record)
    assert (F("$id") >= 7).matches(record)
    assert F("$id").exists().matches(record)
    assert F("$text").exists().matches(record)
    assert leaves(record.metadata) == {"id": [2]}


def test_a_record_without_text_has_no_text() -> None:
    record = Record(id=7)

    assert not F("$text").exists().matches(record)
    assert not parse({"$text": None}).matches(record)
    assert (F("$text") != "x").matches(record)
    assert not F("$text").contains("").matches(record)


class Fold(tzinfo):
    """A zone whose every time is ambiguous: an hour earlier the second time."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1 if moment is not None and moment.fold else 2)

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)


def test_times_in_a_fold_are_instants() -> None:
    first = datetime(2024, 3, 1, 14, tzinfo=Fold())

    assert first != NOON  # what Python says
    assert matches({"a": NOON}, {"a": first})
    assert not matches({"a": NOON}, {"a": first.replace(fold=1)})
    assert matches({"a": {"$gt": NOON}}, {"a": first.replace(fold=1)})
    assert matches({"a": first}, {"a": NOON})


# The tree


def test_parse_gives_the_smallest_tree() -> None:
    assert parse(None) is None
    assert isinstance(parse({}), And)
    assert isinstance(parse({"a": 1}), In)
    assert isinstance(parse({"a": {"$ne": 1}}), Not)
    assert isinstance(parse({"a": {"$lt": 1}}), Compare)
    assert isinstance(parse({"a": {"$exists": True}}), Exists)
    assert isinstance(parse({"a": {"$contains": "x"}}), Contains)
    assert isinstance(parse({"a": {"$startswith": "x"}}), StartsWith)
    assert isinstance(parse({"$or": [{"a": 1}, {"a": 2}]}), Or)
    assert isinstance(parse({"$or": [{"a": 1}]}), In)
    assert isinstance(parse({"$not": {"$not": {"a": 1}}}), In)
    built = F("a") == 1
    assert parse(built) is built


def test_terms_of_one_kind_are_flattened() -> None:
    a, b, c, d = (F(name) == 1 for name in "abcd")

    assert ((a & b) & (c & d)).terms == (a, b, c, d)  # type: ignore[attr-defined]
    assert ((a | b) | (c | d)).terms == (a, b, c, d)  # type: ignore[attr-defined]
    assert parse({"$and": [{"a": 1, "b": 1}, {"c": 1}], "d": 1}).terms == (a, b, c, d)  # type: ignore[attr-defined]
    assert (parse({}) & a) == a
    assert (a & b) == (b & a) == parse({"b": 1, "a": 1})
    assert (a & b) != (a | b)
    assert (a & b & c) != (a & (b | c))


def test_filters_are_immutable_and_hashable() -> None:
    condition = F("a") == 1

    with pytest.raises(AttributeError):
        condition.path = "b"  # type: ignore[attr-defined]
    assert {condition: 1}[parse({"a": 1.0})] == 1
    assert (F("a") == 1) != (F("a") == True)  # noqa: E712
    assert (F("a") == "x") != (F("a") == b"x")
    assert (F("a") == 1) != (F("b") == 1)
    assert (F("a") < 1) != (F("a") <= 1)
    assert (F("ab") == "c") != (F("a") == "bc")
    assert condition != "a filter"
    assert len(condition.key()) == 32


def test_filters_print_as_expressions() -> None:
    where = {"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"tags": {"$nin": ["x", None]}}]}

    assert str(parse(where)) == (
        "(F('year') >= 2020) & ((F('lang') == 'en') | (F('tags').not_in(['x', None])))"
    )
    assert repr(~(F("a") > 1)) == "~(F('a') > 1)"
    assert repr(F("a").exists(False)) == "F('a').exists(False)"
    assert repr(parse({})) == "parse({})"
    assert repr(F("author")["name"]) == "F('author.name')"


def test_long_filters_print_short() -> None:
    many = F("a").is_in(range(100_000))
    wide = parse({"$or": [{"a": {"$gt": i}} for i in range(1000)]})

    assert repr(many) == "F('a').is_in([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... 99,990 more])"
    assert repr(wide).endswith("| (F('a') > 19) | ... 980 more")
    assert len(repr(F("a") == "x" * 10_000)) < 200
    assert "bits" in repr(F("a") == 10**5000)


def test_operands_become_plain_values() -> None:
    class Color(StrEnum):
        RED = "red"

    class Stamp(datetime):
        pass

    class Level(IntEnum):
        HIGH = 3

    moment = np.datetime64("2024-03-01T12:00:00", "ns")
    pairs = [
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.bytes_(b"x"), b"x"),
        (np.array(5), 5),
        (moment, NOON),
        (Stamp(2024, 3, 1, 12), NOON),
        (Color.RED, "red"),
        (Level.HIGH, 3),
    ]

    for operand, plain in pairs:
        (value,) = (F("a") == operand).values  # type: ignore[attr-defined]
        assert (type(value), value) == (type(plain), plain)
    assert F("a").is_in(np.array([1, 2])) == F("a").is_in((1, 2)) == F("a").is_in({2, 1})
    assert F("a").is_in({1: 0}.keys()) == F("a").is_in(frozenset([1.0, 1]))
    assert F("a").is_in(np.array([moment])) == (F("a") == NOON)
    assert F("a").exists(np.bool_(False)) == F("a").exists(False)  # type: ignore[arg-type]
    (value,) = (F("a") == datetime(2024, 3, 1, 12)).values  # type: ignore[attr-defined]
    assert value.tzinfo is UTC


# Errors


def cyclic() -> dict[str, Any]:
    where: dict[str, Any] = {}
    where["$and"] = [{"a": 1}, where]
    return where


def nested(key: str, levels: int) -> dict[str, Any]:
    where: dict[str, Any] = {"a": 1}
    for _ in range(levels):
        where = {key: where if key == "$not" else [where, {"b": 1}]}
    return where


def doubled(start: dict[str, Any]) -> dict[str, Any]:
    for _ in range(60):
        start = {"$and": [start, start]}
    return start


class Color(Enum):
    RED = 1


class NotATime(datetime):
    """Like pandas' NaT, a datetime that equals nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = datetime.__hash__


LIST: list[Any] = []
LIST.append(LIST)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

ERRORS: list[tuple[Any, str]] = [
    # the shape
    (5, "where: needs a filter, got int 5"),
    ("a", "where: needs a filter, got str 'a'; write a dict such as"),
    ([], "where: needs a filter, got list []"),
    (F("a"), "where: needs a filter, got F F('a')"),
    ({"$and": []}, 'where["$and"]: needs a list of one or more filters, got list []'),
    ({"$or": {"a": 1}}, 'where["$or"]: needs a list of one or more filters, got dict'),
    ({"$or": "ab"}, "where[\"$or\"]: needs a list of one or more filters, got str 'ab'"),
    ({"$or": [{"a": 1}, None]}, 'where["$or"][1]: needs a filter, got None'),
    ({"$not": [{"a": 1}]}, 'where["$not"]: needs a filter, got list'),
    ({"$not": 5}, 'where["$not"]: needs a filter, got int 5'),
    ({"a": {}}, 'where["a"]: an empty dict; write {"$exists": True}'),
    ({"a": {"$not": 5}}, 'where["a"]["$not"]: needs a dict of operators, got int 5; or use $ne'),
    ({"a": {"$not": {}}}, 'where["a"]["$not"]: an empty dict'),
    ({"$gt": 5}, 'where["$gt"]: $gt stands inside a field: {"year": {"$gt": ...}}'),
    ({"a": {"$or": [1]}}, 'where["a"]["$or"]: $or goes around fields'),
    ({"a": {"b": 1}}, "where[\"a\"]: a dict of operators, but 'b' is none; name nested fields"),
    (
        {"a": {"gte": 1}},
        "where[\"a\"]: a dict of operators, but 'gte' is none; did you mean '$gte'",
    ),
    ({"a": {1: 1}}, 'where["a"]: a dict of operators, but 1 is none'),
    # names
    ({1: 2}, "where: a key is a field or an operator, a str, got int 1"),
    ({None: 2}, "where: a key is a field or an operator, a str, got None"),
    ({"$or": [{(1,): 2}]}, 'where["$or"][0]: a key is a field or an operator, a str, got tuple'),
    ({"": 1}, 'where[""]: the name of a field must not be empty'),
    ({"a.": 1}, "where[\"a.\"]: 'a.' has an empty part"),
    ({".a": 1}, "'.a' has an empty part"),
    ({"a..b": 1}, "'a..b' has an empty part"),
    ({".": 1}, "'.' has an empty part"),
    ({"a." * 64 + "a": 1}, "has more than 64 parts"),
    ({"\ud800": 1}, "'\\ud800' has a lone surrogate at position 0"),
    ({"$a": 1}, "where[\"$a\"]: unknown operator '$a'"),
    ({"$idd": 1}, "unknown operator '$idd'; did you mean '$id'?"),
    ({"$id.x": 1}, "unknown operator '$id.x'"),
    ({"$Or": []}, "unknown operator '$Or'; did you mean '$or'?"),
    ({"a": {"$gtr": 1}}, "where[\"a\"][\"$gtr\"]: unknown operator '$gtr'; did you mean '$gt'?"),
    ({"a": {"$~": 1}}, "unknown operator '$~'; use one of $eq $ne $gt"),
    ({"a": {"$" + "x" * 10_000: 1}}, "unknown operator"),
    # operands
    ({"a": [1, 2]}, 'where["a"]: compares with a str, int, float, bool, None, datetime or bytes,'),
    ({"a": [1, 2]}, "got list [1, 2]; $in matches any of several values"),
    ({"a": {"$eq": {"b": 1}}}, 'where["a"]["$eq"]: compares with a str'),
    ({"a": {"$eq": {"b": 1}}}, "got dict {'b': 1}; name a nested field with dots"),
    ({"a": {"$gt": [1]}}, "got list [1]; $in matches"),
    ({"a": np.array([1, 2])}, "got ndarray array([1, 2]); $in matches"),
    ({"a": F("b")}, "got F F('b'); a field is compared with values"),
    ({"a": F("b") == 1}, "combine filters with & | ~"),
    ({"a": date(2024, 1, 1)}, "got date datetime.date(2024, 1, 1); a day is not an instant"),
    ({"a": Color.RED}, "use its .value"),
    ({"a": Decimal(1)}, "got Decimal Decimal('1'); convert it"),
    ({"a": 1j}, "got complex 1j"),
    ({"a": bytearray(b"x")}, "got bytearray"),
    ({"a": object}, "got type <class 'object'>"),
    ({"a": float("nan")}, 'where["a"]: nan is not a finite number'),
    ({"a": {"$lt": float("inf")}}, 'where["a"]["$lt"]: inf is not a finite number'),
    ({"a": np.float32("nan")}, "nan is not a finite number"),
    ({"a": np.datetime64("NaT")}, "is not an instant"),
    ({"a": np.datetime64(10**6, "Y")}, "is not an instant"),
    ({"a": np.timedelta64(1, "s")}, "got timedelta64"),
    ({"a": np.longdouble(1)}, "got longdouble"),
    ({"a": NotATime(2024, 3, 1)}, "is not an instant"),
    (
        {"a": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))},
        "lies outside the years 1 to 9999 in UTC",
    ),
    ({"a": "x\udcff"}, "where[\"a\"]: 'x\\udcff' has a lone surrogate at position 1"),
    ({"a": {"$gt": None}}, 'where["a"]["$gt"]: orders numbers, datetimes and strings, got None'),
    ({"a": {"$gt": True}}, "orders numbers, datetimes and strings, got bool True"),
    ({"a": {"$lt": b"x"}}, "orders numbers, datetimes and strings, got bytes b'x'"),
    (
        {"$or": [{"b": 1}, {"year": {"$gte": "x", "$lt": None}}]},
        'where["$or"][1]["year"]["$lt"]: orders numbers',
    ),
    ({"a": {"$in": "ab"}}, 'where["a"]["$in"]: needs a list of values, got str \'ab\''),
    ({"a": {"$in": 5}}, 'where["a"]["$in"]: needs a list of values, got int 5'),
    ({"a": {"$nin": {"b": 1}}}, 'where["a"]["$nin"]: needs a list of values, got dict'),
    ({"a": {"$in": iter([1])}}, "needs a list of values, got list_iterator"),
    ({"a": {"$in": np.array(5)}}, "needs a list of values, got ndarray"),
    ({"a": {"$in": [1, [2]]}}, 'where["a"]["$in"][1]: compares with a str'),
    ({"a": {"$in": np.ones((2, 2))}}, 'where["a"]["$in"][0]: compares with a str'),
    ({"a": {"$in": range(10**12)}}, "1,000,000,000,000 values, more than 1,000,000; a range is"),
    ({"a": {"$in": np.zeros(1_000_001)}}, "1,000,001 values, more than 1,000,000"),
    ({"a": {"$exists": 1}}, 'where["a"]["$exists"]: needs True or False, got int 1'),
    ({"a": {"$exists": None}}, "needs True or False, got None"),
    ({"a": {"$contains": 1}}, 'where["a"]["$contains"]: looks for a str in a str, got int 1'),
    ({"a": {"$contains": b"x"}}, "looks for a str in a str, got bytes b'x'"),
    ({"a": {"$startswith": 1}}, 'where["a"]["$startswith"]: looks for a str in a str, got int 1'),
    # size
    (cyclic(), "nested deeper than 64 levels"),
    (nested("$not", 70), "nested deeper than 64 levels"),
    (nested("$or", 10_000), "nested deeper than 64 levels"),
    ({"a": LIST}, "got list [[[[[[[...]]]]]]]"),
    ({"a": DEEP}, "got list [[[[[[[...]]]]]]]"),
    ({"$and": LIST}, 'where["$and"][0]: needs a filter, got list'),
    ({"a": {"$in": LIST}}, 'where["a"]["$in"][0]: compares'),
    (doubled({"a": 1}), "more than 100,000 conditions"),
    (doubled({}), "more than 100,000 conditions"),
    ({str(i): 1 for i in range(100_001)}, "more than 100,000 conditions"),
    ({"$or": [10**5000]}, 'where["$or"][0]: needs a filter, got int 0x'),
]


@pytest.mark.parametrize(("where", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors_name_the_place_and_the_value(where: Any, message: str) -> None:
    with pytest.raises(FilterError, match=re.escape(message)) as caught:
        parse(where)

    text = str(caught.value)
    assert text.startswith("where")
    assert len(text) < 1000
    assert text.encode()


def test_nested_field_operators_stay_within_the_depth() -> None:
    condition: dict[str, Any] = {"$gt": 1}
    for _ in range(10_000):
        condition = {"$not": condition}

    with pytest.raises(FilterError, match="deeper than 64 levels"):
        parse({"a": condition})
    endless: dict[str, Any] = {}
    endless["$not"] = endless
    with pytest.raises(FilterError, match="deeper than 64 levels"):
        parse({"a": endless})


@pytest.mark.parametrize("levels", range(29, 34))
def test_what_can_be_built_can_be_parsed_again(levels: int) -> None:
    built = F("a") == 1
    for _ in range(levels):
        built = (built & (F("b") == 1)) | (F("c") == 1)
        if built._depth >= 63:
            break

    assert parse(built.to_dict()) == built
    assert pickle.loads(pickle.dumps(built)) == built
    assert repr(built)


def test_building_too_deep_or_too_much_fails() -> None:
    def alternate(built: Filter) -> Filter:
        return (built | (F("b") == 1)) & (F("c") == 1)

    def double(built: Filter) -> Filter:
        return built & built

    def repeat(step: Callable[[Filter], Filter]) -> Filter:
        return functools.reduce(lambda built, _: step(built), range(100), F("a") == 1)

    with pytest.raises(FilterError, match=re.escape("filter & filter: nested deeper than 64")):
        repeat(alternate)
    with pytest.raises(FilterError, match="more than 100,000 conditions"):
        repeat(double)
    assert repeat(operator.invert) == (F("a") == 1)


BUILDER_ERRORS = [
    (lambda: F(1), "F(...) takes the name of a field, a str, got int 1"),
    (lambda: F(""), "F(''): the name of a field must not be empty"),
    (lambda: F("a."), "F('a.'): 'a.' has an empty part"),
    (lambda: F("$gt"), "'$gt' is not a field"),
    (lambda: F("a")[0], "takes the name of a nested field, a str, got int 0; a list matches if"),
    (lambda: F("a") == [1], "F('a') ==: compares with a str"),
    (lambda: F("a") == F("b"), "F('a') ==: compares with a str"),
    (lambda: F("a") >= None, "F('a') >=: orders numbers"),
    (lambda: F("a") < float("nan"), "F('a') <: nan is not a finite number"),
    (lambda: F("a").is_in("xy"), "F('a').is_in: needs a list of values, got str 'xy'"),
    (lambda: F("a").not_in([1, {}]), "F('a').not_in[1]: compares with a str"),
    (lambda: F("a").exists(1), "F('a').exists: needs True or False"),
    (lambda: F("a").contains(1), "F('a').contains: looks for a str"),
    (lambda: bool(F("a")), "F('a') is a field, not a filter: compare it"),
    (lambda: F("a") & (F("b") == 1), "F('a') is a field, not a filter"),
    (lambda: (F("b") == 1) | F("a"), "F('a') is a field, not a filter"),
    (lambda: (F("b") == 1) & F("a") == 1, "F('a') is a field, not a filter"),
    (lambda: ~F("a"), "F('a') is a field, not a filter"),
    (lambda: F("a") == 1 & F("b"), "F('b') is a field, not a filter"),
    (lambda: (F("a") == 1) & {"b": 1}, "& combines two filters, got dict"),
    (lambda: {"b": 1} | (F("a") == 1), "| combines two filters, got dict"),
    (lambda: True & (F("a") == 1), "& combines two filters, got bool True"),
    (lambda: bool(F("a") == 1), "F('a') == 1 is neither true nor false"),
    (lambda: (F("a") == 1) and (F("b") == 2), "use & | ~ instead of and, or, not"),
    (lambda: not F("a").exists(), "instead of and, or, not"),
    (lambda: 1 < F("a") < 3, "write a <= x < b as (x >= a) & (x < b)"),
    (lambda: F("a") in [F("b")], "compares with a str"),
]


@pytest.mark.parametrize(
    ("build", "message"), BUILDER_ERRORS, ids=[message[:40] for _, message in BUILDER_ERRORS]
)
def test_builder_errors_say_what_to_write(build: Any, message: str) -> None:
    # "use & | ~" is split over two phrasings, so only its end is compared.
    with pytest.raises(FilterError, match=re.escape(message.removeprefix("use "))):
        build()


def test_a_field_is_neither_hashable_nor_iterable() -> None:
    with pytest.raises(TypeError):
        hash(F("a"))
    with pytest.raises(TypeError):
        list(F("a"))
    with pytest.raises(TypeError):
        "x" in F("a")  # noqa: B015


# Size


def test_a_chain_of_ten_thousand_stays_flat() -> None:
    built = F("a") == -1
    for i in range(10_000):
        built |= F("a") == i

    assert isinstance(built, Or)
    assert len(built.terms) == 10_001
    assert built.matches(Record(id=0, metadata={"a": 9999}))
    assert parse(built.to_dict()) == built


def test_many_values_are_looked_up_not_walked() -> None:
    many = F("a").is_in([*range(0, 200_000, 2), "x"])
    records = [Record(id=i, metadata={"a": i}) for i in range(10_000)]

    began = time.perf_counter()
    count = sum(map(many.matches, records))

    assert count == 5000
    # Walking the values would take minutes.
    assert time.perf_counter() - began < 5


def test_deep_metadata_is_walked_without_recursion() -> None:
    metadata: Any = {"b": 1}
    for _ in range(50_000):
        metadata = [metadata]

    assert matches({"a.b": 1}, {"a": metadata})
    assert matches({"a.b": {"$exists": True}}, {"a": metadata})
    assert not matches({"a": 1}, {"a": metadata})
    assert leaves({"a": metadata}) == {"a": [], "a.b": [1]}


# The manual

MANUAL = Path(__file__).parent.parent / "docs" / "filters.md"


def test_the_manual_tells_what_matches() -> None:
    rows = re.findall(r"^\| `(.*)` \| `(.*)` \| (yes|no) \|$", MANUAL.read_text(), re.MULTILINE)

    assert len(rows) > 20
    for where, metadata, answer in rows:
        assert matches(eval(where), eval(metadata)) == (answer == "yes"), (where, metadata)


def test_the_manual_pairs_dicts_with_expressions() -> None:
    rows = re.findall(r"^\| `([^`]*)`[^|]* \| `(F[^`]*)`[^|]* \|", MANUAL.read_text(), re.MULTILINE)

    assert len(rows) >= 8
    for where, expression in rows:
        assert parse(eval(where)) == eval(expression)
        assert repr(eval(expression)).replace("'", '"') == expression


def test_the_manual_quotes_errors_as_they_are() -> None:
    block = re.findall(r"```\n(where.*?)```", MANUAL.read_text(), re.DOTALL)[0]
    wheres = [{"$or": [{"a": 1}, {"year": {"$gte": None}}]}, {"year": {"$gtr": 1}}]

    for where, line in zip(wheres, block.splitlines(), strict=True):
        with pytest.raises(FilterError, match=f"^{re.escape(line)}$"):
            parse(where)


def test_the_manual_runs() -> None:
    start, day, told, ends, left_out = re.findall(
        r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(start, names)

    try:
        for call, answer in re.findall(r"^books\.(count.*\)) +# (\d)", start, re.MULTILINE):
            assert eval(f"books.{call}", names) == int(answer)
        search = next(line for line in start.splitlines() if line.startswith("books.search"))
        assert eval(search, names).ids == ["dracula"]
        facets, few, years, newest, best = (eval(line, names) for line in told.splitlines())
        assert facets == [("en", 3)]
        assert few == [("essay", 1), ("irony", 1), ("novel", 1)]
        assert (years, newest, best) == ([1815, 1854, 1897], ["dracula", "walden"], ["emma"])
        exec(ends, names)
        assert names["books"].get("on loan").expires_at is None
        exec(left_out, names)
        assert names["notes"].spec.skip_fields == ("debug", "html")
    finally:
        names["db"].close()
    exec(day, names)
    assert names["day"].matches(Record(id=0, metadata={"seen": NOON}))
