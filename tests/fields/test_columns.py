"""Columns of metadata, held against what filters mean: the reference `matches`, row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore import field_layout
from vecstore.errors import CorruptionError
from vecstore.field_layout import DENSE, RANGE_ROWS, RANGE_WORDS, STEP, Listed
from vecstore.fields import segments
from vecstore.fields.bounds import bounds
from vecstore.fields.columns import LONGEST, Column, columns, merged
from vecstore.fields.conditions import condition
from vecstore.fields.segments import Segment
from vecstore.filters import Compare, F, Filter, parse

PATHS = ["a", "b", "a.b", "n", "a.a", "a.c.d", "b.a"]
LONG = "x" * LONGEST
SCALARS: list[Any] = [
    *(None, True, False, 0, 1, -5, 2**53, 2**53 + 1, 2**60, 2**60 + 1, 1.5, -0.0, 1e300),
    *("", "a", "b", "é", "xy", LONG, LONG[:-1], LONG + "a", LONG + "b", LONG + "ab"),
    *(b"a", b"", LONG.encode() + b"z"),
    *(datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2)),
]
scalars = st.sampled_from(SCALARS) | st.integers(-3, 3) | st.text("abé", max_size=3)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c.d", ""]), inner, max_size=2)
    ),
    max_leaves=5,
)
metadata = st.none() | st.dictionaries(
    st.sampled_from(["a", "b", "a.b", "n", "..x"]), values, max_size=4
)
alike = st.fixed_dictionaries({"a": scalars, "b": st.sampled_from("abc"), "n": st.integers(0, 9)})
orderable = scalars.filter(lambda value: not isinstance(value, bool | bytes | None))
paths = st.sampled_from(PATHS)
leaves = st.one_of(
    st.builds(lambda path, some: F(path).is_in(some), paths, st.lists(scalars, max_size=4)),
    st.builds(
        lambda path, op, value: Compare(path, op, value),
        paths,
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        orderable.map(lambda value: parse({"a": {"$gt": value}}).value),  # type: ignore[attr-defined]
    ),
    st.builds(lambda path: F(path).exists(), paths),
    st.builds(
        lambda path, part: F(path).contains(part),
        paths,
        st.sampled_from(["", "a", "é", "xx", "x" * 260, "ab", "q"]),
    ),
    st.builds(
        lambda path, start: F(path).startswith(start),
        paths,
        st.sampled_from(["", "a", "é", LONG, LONG[:-1], LONG + "a", "ab", "q"]),
    ),
)
filters = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda one, other: one & other, inner, inner)
        | st.builds(lambda one, other: one | other, inner, inner)
        | st.builds(lambda one: ~one, inner)
    ),
    max_leaves=6,
)
records = st.lists(metadata, max_size=12) | st.lists(alike, max_size=12)


def placed(count: int, seed: int = 0) -> np.ndarray:
    chosen = np.random.default_rng(seed).permutation(RANGE_ROWS)[:count]
    return np.sort(chosen).astype(np.uint16)


def made(
    places: np.ndarray, found: dict[str, Column], number: int = 3, which: int = 0
) -> tuple[Listed, bytearray]:
    listed = Listed(number, b"edition", which, len(places))
    arrays = segments.arrays_of(found, len(places))
    return listed, field_layout.pack_segment(1, listed, sorted(found), arrays, 4096)


def segment(places: np.ndarray, found: dict[str, Column], number: int = 3) -> Segment:
    listed, value = made(places, found, number)
    directory = field_layout.read_segment(value, 1, listed)
    return Segment(listed, directory, value, field_layout.bits_of(places))


def places_of(words: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def marked(found: Segment, leaf: Filter) -> tuple[set[int], set[int]]:
    """The places that pass a condition for certain, and those that are in doubt."""
    column = found.column(leaf.path)
    sure, doubt = (np.zeros(RANGE_WORDS, np.uint64) for _ in range(2))
    if column is not None:
        condition(leaf).mark(column, sure, doubt)
    return places_of(sure), places_of(doubt)


def matching(where: Filter, places: np.ndarray, rows: list[Any]) -> set[int]:
    found = zip(places.tolist(), rows, strict=True)
    return {
        place
        for place, row in found
        if where.matches(SimpleNamespace(id="x", text=None, metadata=row))  # type: ignore[arg-type]
    }


@given(records, leaves)
def test_what_is_sure_matches_and_what_matches_is_possible(rows, leaf):
    places = placed(len(rows))
    sure, doubt = marked(segment(places, columns(places, rows)), leaf)

    wanted = matching(leaf, places, rows)

    assert sure <= wanted <= sure | doubt


PLAIN = [None, True, 3, 1.5, -2.0, "", "a", "é", b"a", datetime(2020, 1, 1)]


@given(st.lists(st.fixed_dictionaries({"a": st.sampled_from(PLAIN)}), max_size=20), leaves)
def test_of_short_values_nothing_is_in_doubt(rows, leaf):
    places = placed(len(rows))
    sure, doubt = marked(segment(places, columns(places, rows)), leaf)

    # Of operands that columns cannot tell apart no value is near.
    assert sure == matching(leaf, places, rows)
    assert not doubt


@given(records, records, records, filters)
def test_bounds_hold_what_matches_between_them(first, second, unknown, where):
    """Two segments, and rows of which nothing is known."""
    rows = [*first, *second, *unknown]
    places = placed(len(rows))
    ends = np.cumsum([len(first), len(second)])
    parts = np.split(places, ends)
    found = [
        segment(part, columns(part, some), number)
        for number, (part, some) in enumerate(zip(parts, (first, second), strict=False))
    ]

    sure, possible = bounds(where, found, RANGE_WORDS, lambda leaf: None, lambda path: True)

    wanted, everything = matching(where, places, rows), set(places.tolist())
    assert places_of(sure) & everything <= wanted <= places_of(possible)


@given(records, records, st.sets(st.integers(0, 23)))
def test_columns_that_are_merged_are_those_of_all_rows(first, second, dead):
    """Some rows are left out when a segment is read back."""
    rows = [*first, *second]
    places = placed(len(rows))
    living = np.array([number not in dead for number in range(len(rows))], bool)
    parts = []
    for part, some in ((slice(0, len(first)), first), (slice(len(first), None), second)):
        words = field_layout.bits_of(places[part][living[part]])
        parts.append(segments.columns_of(segment(places[part], columns(places[part], some)), words))

    found = merged(parts)

    kept = [row for row, lives in zip(rows, living.tolist(), strict=True) if lives]
    wanted, count = columns(places[living], kept), int(living.sum())
    assert found.keys() == wanted.keys()
    arrays, expected = (segments.arrays_of(one, count) for one in (found, wanted))
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def many(count: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Rows of a whole range, with values that are common and values that are not."""
    rng = np.random.default_rng(5)
    start = datetime(2020, 1, 1)
    numbers = rng.permutation(count)
    rows = [
        {
            "lang": "en" if number % 3 else "de",
            "price": float(number) / 7,
            "at": start + timedelta(seconds=int(number)),
            "ok": bool(number % 2),
            "tags": ["all", f"t{number % 50}"],
            "name": f"name {number}",
        }
        for number in numbers.tolist()
    ]
    return placed(count, 7), rows


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, list[dict[str, Any]], Segment]:
    places, rows = many(5 * STEP)
    return places, rows, segment(places, columns(places, rows))


@pytest.mark.parametrize(
    "leaf",
    [
        F("lang") == "en",
        F("lang").is_in(["de", "fr"]),
        F("lang") > "de",
        F("tags") == "all",
        F("tags") == "t7",
        F("ok") == True,  # noqa: E712  # builds a filter
        F("price") >= 0,
        F("price") < 1,
        F("price") > 2000,
        F("price") <= 5.5 * STEP / 7,
        F("at") >= datetime(2020, 1, 1, 1),
        F("name").contains("99"),
        F("name").contains("name"),
        F("name").exists(),
        *(F("price") < bound / 7 for bound in (2 * STEP - 1, 2 * STEP, 3 * STEP + STEP // 2)),
    ],
    ids=repr,
)
def test_common_values_and_long_ranges_are_found_too(large, leaf):
    places, rows, found = large
    sure, doubt = marked(found, leaf)

    assert sure == matching(leaf, places, rows)
    assert not doubt


def test_a_range_is_taken_from_steps_wherever_it_begins(large):
    _, _, found = large
    column = found.column("price")
    assert column.find("number.steps") is not None
    values, where = column.array("number.values"), column.array("number.places")
    rng = np.random.default_rng(2)
    for _ in range(60):
        start, stop = np.sort(rng.integers(0, len(values) + 1, 2)).tolist()
        words = np.zeros(RANGE_WORDS, np.uint64)

        column.add_sorted("number", start, stop, words)

        assert places_of(words) == set(where[start:stop].tolist())


def test_what_many_rows_have_is_kept_as_bits(large):
    _, _, found = large
    assert found.column("lang").find("string.often").tolist() == [0, 1]
    assert len(found.column("tags").array("string.places")) == 5 * STEP
    assert found.column("ok").array("true").dtype == np.uint64
    assert found.column("lang").find("exists") is None
    assert DENSE == 4096


def test_a_segment_with_a_common_value_is_read_back(large):
    places, rows, found = large
    back = segments.columns_of(found, field_layout.bits_of(places))

    arrays, wanted = (segments.arrays_of(one, len(places)) for one in (back, columns(places, rows)))

    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@given(st.data())
def test_a_segment_that_lies_is_refused_or_can_be_used(data):
    """Whatever bytes are changed: an error of ours, or some answer, and nothing else."""
    places = placed(40)
    rows = [
        {"a": number % 3, "b": f"x{number}", "c": number % 2 == 0, "d": LONG + str(number)}
        for number in range(40)
    ]
    listed, value = made(places, columns(places, rows))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(value) - 1))
        value[at] = data.draw(st.integers(0, 255))
    value = value[: data.draw(st.integers(0, len(value)))] if data.draw(st.booleans()) else value
    try:
        directory = field_layout.read_segment(value, 1, listed)
        found = Segment(listed, directory, value, field_layout.bits_of(places))
        several = F("b").is_in([f"x{number}" for number in range(0, 50, 7)])
        leaves = F("a").is_in([0, 2, 9]), F("c") == True, F("d") > LONG  # noqa: E712  # builds a filter
        for leaf in (F("a") >= 1, F("b").contains("x1"), several, *leaves):
            marked(found, leaf)
    except CorruptionError:
        pass


def test_a_manifest_comes_back_or_is_refused():
    listed = (Listed(2, b"e", 0, 7), Listed(5, b"f", 1, 9))
    manifest = field_layout.Manifest(3, listed)

    assert field_layout.Manifest.unpack(manifest.pack(), "here") == manifest
    for wrong in (
        field_layout.Manifest(-1, listed),
        field_layout.Manifest(3, listed[::-1]),
        field_layout.Manifest(3, (listed[0], listed[0])),
        field_layout.Manifest(3, (Listed(2, "e", 0, 7),)),  # type: ignore[arg-type]
    ):
        with pytest.raises(CorruptionError, match="here: cannot be read"):
            field_layout.Manifest.unpack(wrong.pack(), "here")


def test_the_rows_of_a_segment_come_back_or_are_refused():
    words = field_layout.bits_of(placed(500))
    listed = Listed(4, b"e", 0, 500)
    value = field_layout.pack_rows(1, listed, words, 4096)

    np.testing.assert_array_equal(field_layout.read_rows(value, 1, listed), words)
    with pytest.raises(CorruptionError, match="belongs to another value"):
        field_layout.read_rows(value, 1, Listed(5, b"e", 0, 500))
    value[60] ^= 1
    with pytest.raises(CorruptionError, match="checksum"):
        field_layout.read_rows(value, 1, listed)
