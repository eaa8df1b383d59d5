"""What hypothesis draws: metadata, records and filters. A new feature must appear here.

Names and values come from small pools, mixed with arbitrary ones, so that filters often match.
"""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from vecstore.hits import Record

KEYS = ("a", "b", "c", "a.b", "b.c", "a.b.c", "año", "with space")
PATHS = (*KEYS, "a.a", "b.b.c", "c.a.b", "missing")
MOMENT = datetime(2024, 3, 1, 12, 30)

texts = st.sampled_from(["", "a", "ab", "abc", "B", "1", "é", "\U0001f600"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
integers = st.sampled_from([-1, 0, 1, 2, 2**53, 2**53 + 1]) | st.integers(-(2**63), 2**63 - 1)
floats = st.sampled_from([-0.0, 0.5, 1.0, 2.0, float(2**53)]) | st.floats(
    allow_nan=False, allow_infinity=False
)
zones = st.none() | st.builds(timezone, st.integers(-14, 14).map(lambda h: timedelta(hours=h)))
datetimes = st.sampled_from(
    [
        MOMENT,
        MOMENT.replace(tzinfo=UTC),
        MOMENT.replace(hour=14, tzinfo=timezone(timedelta(hours=2))),
        MOMENT + timedelta(microseconds=1),
    ]
) | st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=zones)
blobs = st.sampled_from([b"", b"a", b"1"]) | st.binary(max_size=4)

# Everything that metadata may hold, and that a filter may ask for.
scalars = st.none() | st.booleans() | integers | floats | texts | datetimes | blobs
ordered = integers | floats | texts | datetimes

keys = st.sampled_from(KEYS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
# A field's name does not begin with $; the keys inside it may.
fields = keys.map(lambda key: key.lstrip("$"))
paths = st.sampled_from(PATHS) | st.sampled_from(["$id", "$text", "$expires_at"])

metadata: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    fields,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=5,
)
records = st.builds(
    Record, id=texts | integers, text=st.none() | texts, metadata=st.none() | metadata
)


def _operators(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    choices = {
        **dict.fromkeys(("$eq", "$ne"), scalars),
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), ordered),
        **dict.fromkeys(("$in", "$nin"), st.lists(scalars, max_size=4)),
        "$exists": st.booleans(),
        "$contains": texts,
        "$startswith": texts,
    }
    if depth:
        choices["$not"] = _operators(depth - 1)
    pairs = st.one_of(*(st.tuples(st.just(op), operand) for op, operand in choices.items()))
    return st.lists(pairs, min_size=1, max_size=2).map(dict)


conditions = st.tuples(paths, scalars | _operators(1)).map(lambda pair: dict([pair]))


def _combined(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(inner, min_size=1, max_size=3)
    merged = several.map(lambda parts: {key: part[key] for part in parts for key in part})
    logic = st.sampled_from(["$and", "$or"])
    return (
        st.tuples(logic, several).map(lambda pair: dict([pair]))
        | inner.map(lambda part: {"$not": part})
        | merged
    )


# Filters in the dict dialect.
wheres: st.SearchStrategy[dict[str, Any]] = st.recursive(
    conditions | st.just({}), _combined, max_leaves=6
)
