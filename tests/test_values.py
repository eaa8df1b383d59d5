from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies as own
from vecstore import values
from vecstore.errors import FilterError

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Stamp(datetime):
    pass


# Kinds and equality


@pytest.mark.parametrize(
    ("value", "pair"),
    [
        (None, ("null", None)),
        (True, ("bool", True)),
        (1, ("number", 1)),
        (1.0, ("number", 1)),
        ("1", ("string", "1")),
        (b"1", ("bytes", b"1")),
        (NOON, ("datetime", 1_709_294_400_000_000)),
        (NOON.replace(tzinfo=None), ("datetime", 1_709_294_400_000_000)),
        (Colour.RED, ("string", "red")),
        (Level.HIGH, ("number", 3)),
        (Stamp(1970, 1, 1), ("datetime", 0)),
        ([1], None),
        ({}, None),
        (1j, None),
    ],
)
def test_a_value_compares_within_its_kind(value: Any, pair: Any) -> None:
    assert values.comparable(value) == pair


@given(own.scalars, own.scalars)
def test_equal_values_are_those_with_the_same_bytes(one: Any, two: Any) -> None:
    pairs = [values.pair_of(value) for value in (one, two)]

    assert (pairs[0] == pairs[1]) == (values.canonical(pairs[0]) == values.canonical(pairs[1]))


def test_instants_are_exact_microseconds() -> None:
    assert values.instant(datetime(1970, 1, 1)) == 0
    assert values.instant(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)) == 1_000_005
    assert values.instant(datetime(1969, 12, 31, 23, 59, 59, 999_999)) == -1
    assert values.instant(datetime.max) - values.instant(datetime.max.replace(microsecond=0)) == (
        999_999
    )


# Paths


def test_leaves_of_nested_metadata() -> None:
    metadata = {
        "authors": [{"name": "a"}, {"name": "b"}, "x"],
        "a.b": 1,
        "a": {"b": [2, [3]], "c": {}},
        "empty": [],
        "null": None,
        "": 1,
        "..": 1,
        "$id": {"x": 1},
        "end.": 1,
    }

    assert values.leaves(metadata) == {
        "authors": ["x"],
        "authors.name": ["a", "b"],
        "a": [],
        "a.b": [1, 2, 3],
        "a.c": [],
        "empty": [],
        "null": [None],
        "end": [],
    }
    assert values.leaves(None) == values.leaves({}) == {}


def test_the_scalars_of_a_value() -> None:
    assert list(values.scalars(1)) == [1]
    assert sorted(values.scalars([1, (2, [3]), {"a": 4}])) == [1, 2, 3]
    assert list(values.scalars({"a": 1})) == []


@given(own.metadata)
def test_every_leaf_exists_and_is_found_at_its_path(metadata: dict[str, Any]) -> None:
    for path, found in values.leaves(metadata).items():
        assert values.path_exists(metadata, path)
        assert values.check_path(path, ("path",)) == path
        at = values.values_at(metadata, values.split_path(path))
        assert sorted(map(repr, at)) == sorted(map(repr, found))


# Operands


@given(own.scalars)
def test_a_value_is_an_operand_equal_to_itself(value: Any) -> None:
    plain = values.plain_operand(value, ("here",))

    assert values.pair_of(plain) == values.comparable(value)
    assert values.plain_operand(plain, ("here",)) == plain


@given(st.lists(own.scalars, max_size=8))
def test_a_list_of_operands_holds_each_value_once(operands: list[Any]) -> None:
    pairs = [values.pair_of(value) for value in values.plain_operands(operands, ("here",))]

    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == {values.pair_of(value) for value in operands}


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Stamp(2024, 3, 1, 12), NOON),
        (np.float32(0.5), 0.5),
        (np.array(5), 5),
        (np.datetime64("2024-03-01T12", "ns"), NOON),
    ],
)
def test_operands_of_other_types_become_plain(given: Any, plain: Any) -> None:
    found = values.plain_operand(given, ("here",))

    assert (type(found), found) == (type(plain), plain)


# Messages


def test_a_message_names_the_place_and_stays_short() -> None:
    with pytest.raises(FilterError) as caught:
        values.plain_operands([1, ["x" * 10_000]], ("where", "a" * 10_000, "\ud800", 3))

    text = str(caught.value)
    assert text.startswith('where["aaa')
    assert "[3][1]: compares with a str" in text
    assert len(text) < 1000
    assert text.encode()


def test_long_values_are_shown_short() -> None:
    assert values.show_list((1, "a")) == "[1, 'a']"
    assert values.show_list(tuple(range(12))).endswith("9, ... 2 more]")
    assert values.describe(None) == "None"
    assert values.describe(10**5000).startswith("int 0x")
    assert len(values.clip("x" * 10_000)) == 200
