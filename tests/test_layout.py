import zlib
from datetime import UTC, datetime, timedelta, timezone

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore import CollectionSpec, CorruptionError, UsageError, layout, record_layout
from vecstore.filters import parse
from vecstore.hits import Record
from vecstore.layout import BLOCK_ROWS, NO_BLOCK, PART_BYTES, Header, State
from vecstore.metadata import is_plain, plain_metadata
from vecstore.spec import MAX_ID_BYTES, MAX_INT_ID, MIN_INT_ID, PRECISIONS
from vecstore.vectors import pack, store_form

PAGES = st.sampled_from([4096, 8192, 16384, 32768])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers(MIN_INT_ID, 2 * MAX_INT_ID + 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
# Whole seconds: what layout.md gives an offset.
OFFSETS = st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
MOMENTS = st.datetimes(
    datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.none() | st.just(UTC) | OFFSETS
)
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | TEXT | st.binary(max_size=20) | MOMENTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
METADATA = st.dictionaries(TEXT.map(lambda key: key.lstrip("$")), VALUES, max_size=6)
IDS = TEXT | st.integers(MIN_INT_ID, MAX_INT_ID)
FORMS = st.sampled_from([*PRECISIONS, "bits"])


def spec_of(dim: int = 4, precision: str = "float32") -> CollectionSpec:
    if precision == "bits":
        return CollectionSpec(name="c", dim=8 * dim, metric="hamming")
    return CollectionSpec(name="c", dim=dim, precision=precision)


def form(dim: int = 4, precision: str = "float32") -> layout.Form:
    return layout.form(spec_of(dim, precision))


def packed(rows: int, dim: int, precision: str = "float32", seed: int = 0) -> layout.Packed:
    if precision == "bits":
        bits = np.random.default_rng(seed).integers(0, 256, (rows, dim))
        return pack(bits, spec_of(dim, precision))
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return store_form(vectors, "cosine", precision)


def flip(value: bytes, at: int, bit: int = 1) -> bytes:
    data = bytearray(value)
    data[at] ^= bit
    return bytes(data)


def block(rows: int = 64, dim: int = 4, collection: int = 3, number: int = 5) -> bytearray:
    return layout.pack_block(
        collection,
        number,
        None,
        0,
        np.arange(rows, dtype=np.uint64),
        packed(rows, dim),
        form(dim),
        4096,
    )


# Keys


@given(IDS)
def test_an_id_comes_back_from_its_key_with_its_type(value):
    found = layout.parse_id_key(layout.id_key(7, value))

    assert (found, type(found)) == (value, type(value))


@given(st.lists(st.integers(MIN_INT_ID, MAX_INT_ID), min_size=2))
def test_keys_of_integer_ids_sort_like_the_ids(values):
    assert sorted(values) == sorted(values, key=lambda value: layout.id_key(1, value))


def test_the_str_and_the_int_of_a_number_have_different_keys():
    assert layout.id_key(1, "5") != layout.id_key(1, 5)


def test_the_longest_id_makes_the_longest_key_that_lmdb_takes():
    assert len(layout.id_key(1, "x" * MAX_ID_BYTES)) == 511


@pytest.mark.parametrize("key", [b"\0\0\0\1", b"\0\0\0\1z1", b"\0\0\0\1i123", b""])
def test_a_key_that_holds_no_id_is_damage(key):
    with pytest.raises(CorruptionError, match="ids: key"):
        layout.parse_id_key(key)


def test_an_id_key_that_is_not_utf8_is_damage():
    with pytest.raises(CorruptionError, match="ids: key"):
        layout.parse_id_key(b"\0\0\0\1s\xff")


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_record_keys_sort_by_order(collection, first, second):
    one, two = layout.record_key(collection, first), layout.record_key(collection, second)

    assert (one < two) == (first < second)


def test_keys_of_one_collection_begin_with_its_number():
    prefix = layout.collection_key(258)

    assert prefix == b"\0\0\1\2"
    for key in (
        layout.id_key(258, "a"),
        layout.record_key(258, 1),
        layout.block_key(258, 1),
        layout.part_key(258, 1),
    ):
        assert key.startswith(prefix)


# Bulk values


@given(st.binary(max_size=9000), PAGES)
def test_a_bulk_value_is_long_enough_to_get_pages_of_its_own(payload, page):
    value = layout.pack_bulk(Header(2, 2, 1, 0, 0, 0, 0, 1), payload, page)

    # A value that does not fit half a page, less what LMDB keeps beside it, gets its own pages.
    assert len(value) + 8 > (page - 16) // 2 - 2
    assert value[48 : 48 + len(payload)] == payload
    assert not any(value[48 + len(payload) :])


@given(st.binary(max_size=100))
def test_a_bulk_value_is_verified(payload):
    value = layout.pack_bulk(Header(1, 2, 3, 4, 5, 0, 0, 6), payload, 4096)
    header = layout.verify_bulk(memoryview(value), "here")

    assert (header.kind, header.dtype, header.rows, header.width) == (1, 2, 3, 4)
    assert (header.first, header.length, header.collection) == (5, len(payload), 6)


@given(st.data())
def test_a_flipped_bit_anywhere_in_a_bulk_value_is_found(data):
    value = block(rows=2)
    end = 48 + form().block_bytes(2)
    at, bit = data.draw(st.integers(0, end - 1)), data.draw(st.integers(0, 7))

    with pytest.raises(CorruptionError, match="here"):
        layout.verify_bulk(flip(value, at, 1 << bit), "here")


@pytest.mark.parametrize("size", [0, 1, 47])
def test_a_value_too_short_for_a_header_is_damage(size):
    with pytest.raises(CorruptionError, match=f"{size} bytes are too few"):
        layout.unpack_header(bytes(size), "here")


def test_a_header_that_claims_more_than_is_there_is_damage():
    value = block()[:-1]

    with pytest.raises(CorruptionError, match="claims"):
        layout.unpack_header(value, "here")


def test_the_checksum_covers_the_header():
    value = block()
    start = bytearray(value[:48])
    stored = int.from_bytes(start[28:32], "little")
    start[28:32] = bytes(4)

    assert stored == zlib.crc32(bytes(start) + bytes(value[48:]))


# Blocks


def assert_same(found: layout.Packed, expected: layout.Packed) -> None:
    assert (found.norms == expected.norms).all()
    assert found.numbers.dtype == expected.numbers.dtype
    assert (found.numbers == expected.numbers).all()
    assert (found.scales is None) == (expected.scales is None)
    if found.scales is not None:
        assert (found.scales == expected.scales).all()


@given(st.integers(1, 64), st.integers(2, 40), PAGES, st.integers(0, 2**31), FORMS)
def test_a_block_gives_back_what_was_put_in(rows, dim, page, seed, precision):
    rng = np.random.default_rng(seed)
    orders, own = rng.integers(0, 2**63, rows).astype(np.uint64), form(dim, precision)
    expected = packed(rows, dim, precision, seed)
    value = layout.pack_block(9, 11, None, 0, orders, expected, own, page)

    assert layout.check_block(value, 9, 11, own) == rows
    layout.verify_bulk(value, "here")
    found = layout.view_block(value, rows, own)
    assert (found.orders == orders).all()
    assert_same(found.packed, expected)


@given(st.integers(1, 63), st.data(), st.integers(2, 9), FORMS)
def test_a_block_that_grew_equals_one_made_at_once(held, data, dim, precision):
    added = data.draw(st.integers(1, BLOCK_ROWS - held))
    orders, own = np.arange(held + added, dtype=np.uint64), form(dim, precision)
    whole = packed(held + added, dim, precision)
    first, rest = whole.take(slice(held)), whole.take(slice(held, None))
    old = layout.pack_block(1, 2, None, 0, orders[:held], first, own, 4096)

    grown = layout.pack_block(1, 2, old, held, orders[held:], rest, own, 4096)

    assert grown == layout.pack_block(1, 2, None, 0, orders, whole, own, 4096)


@pytest.mark.parametrize("precision", ["float16", "int8", "bits"])
def test_a_block_of_another_form_is_damage(precision):
    with pytest.raises(CorruptionError, match="belongs to another value"):
        layout.check_block(block(), 3, 5, form(4, precision))


@pytest.mark.parametrize("precision", [*PRECISIONS, "bits"])
def test_every_column_of_a_block_begins_at_a_multiple_of_64(precision):
    own = form(4, precision)

    # The payload itself does, as a value of its own pages.
    assert layout.ORDERS_BYTES % 64 == layout.COLUMNS_BYTES % 64 == own.vectors_at % 64 == 0


@pytest.mark.parametrize(("collection", "number", "dim"), [(4, 5, 4), (3, 6, 4), (3, 5, 5)])
def test_a_block_under_the_wrong_key_is_damage(collection, number, dim):
    with pytest.raises(CorruptionError, match="belongs to another value"):
        layout.check_block(block(), collection, number, form(dim))


def test_a_bitmap_in_place_of_a_block_is_damage():
    part = layout.pack_part(3, 0, bytes(PART_BYTES), 4096)

    with pytest.raises(CorruptionError, match="belongs to another value"):
        layout.check_block(part, 3, 0, form())


@pytest.mark.parametrize("rows", [0, 65, 63])
def test_a_block_with_an_impossible_number_of_rows_is_damage(rows):
    value = bytearray(block())
    length = form().block_bytes(64)
    layout.seal_bulk(Header(1, 1, rows, 4, 5 * 64, 0, 0, 3), value, length)

    with pytest.raises(CorruptionError, match=f"{rows} rows"):
        layout.check_block(value, 3, 5, form())


def test_a_vector_begins_at_a_multiple_of_16_behind_the_header():
    # The value lies 16 bytes behind a page's start, so that 48 more make 64.
    assert layout.HEADER.size % 16 == 0
    assert layout.COLUMNS_BYTES % 64 == 0


# Bitmaps


@given(st.binary(min_size=PART_BYTES, max_size=PART_BYTES))
def test_a_bitmap_comes_back(bits):
    value = layout.pack_part(2, 7, bits, 4096)

    assert layout.unpack_part(memoryview(value), 2, 7) == bits


@pytest.mark.parametrize(("collection", "part"), [(1, 7), (2, 6)])
def test_a_bitmap_under_the_wrong_key_is_damage(collection, part):
    value = layout.pack_part(2, 7, bytes(PART_BYTES), 4096)

    with pytest.raises(CorruptionError, match="belongs to another value"):
        layout.unpack_part(value, collection, part)


@given(st.integers(0, 48 + PART_BYTES - 1))
def test_a_damaged_bitmap_is_found_when_it_is_read(at):
    value = flip(layout.pack_part(2, 7, bytes(PART_BYTES), 4096), at)

    with pytest.raises(CorruptionError):
        layout.unpack_part(value, 2, 7)


# Records


@given(IDS, st.none() | TEXT, st.none() | METADATA, st.integers(0, 2**32 - 1))
def test_a_record_comes_back(identity, text, metadata, row):
    plain = None if metadata is None else plain_metadata(metadata)
    key = layout.record_key(1, 2)
    value = record_layout.pack_record(key, row, record_layout.pack_body(identity, text, plain))

    assert record_layout.check_record(key, memoryview(value)) == row
    assert record_layout.unpack_body(memoryview(value)) == (identity, text, metadata)


@given(METADATA)
def test_metadata_comes_back_with_its_types(metadata):
    def types(value):
        if isinstance(value, dict):
            return {key: types(item) for key, item in value.items()}
        if isinstance(value, list):
            return [types(item) for item in value]
        if isinstance(value, datetime):
            return datetime, value.utcoffset()
        return type(value)

    body = record_layout.pack_body(1, None, plain_metadata(metadata))
    _, _, found = record_layout.unpack_body(bytes(8) + body)

    assert found == metadata
    assert types(found) == types(metadata)


@given(st.data())
def test_a_flipped_bit_in_a_record_or_its_key_is_found(data):
    key = layout.record_key(1, 2)
    value = record_layout.pack_record(key, 3, record_layout.pack_body("id", "text", {"a": 1}))
    joined = key + value
    at, bit = data.draw(st.integers(0, len(joined) - 1)), data.draw(st.integers(0, 7))
    joined = flip(joined, at, 1 << bit)

    with pytest.raises(CorruptionError, match="damaged"):
        record_layout.check_record(joined[:12], joined[12:])


@pytest.mark.parametrize("size", range(9))
def test_a_record_without_a_body_is_damage(size):
    with pytest.raises(CorruptionError, match="damaged"):
        record_layout.check_record(b"key", bytes(size))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\x92\x01\x02",
        b"\x01",
        b"\xc0",
        b"\x93\x01\x02\x03\x04",
        b"\x93\x01\x02\xc7\x02\x01ab",
        b"\x93\x01\x02\xd4\x09a",
        b"\x93\x01\x02\x81\x01\x02",
        b"\x93\xa2\xff\xff\xc0\xc0",
        b"\x93" * 3000,
        b"\x93\x01\x02\xc7\x0c\x01" + b"\xff" * 7 + b"\x7f" + bytes(4),
        b"\x93\x01\x02\xc7\x0c\x01" + bytes(8) + b"\xff\xff\xff\x7f",
    ],
)
def test_a_body_that_is_no_record_is_damage(body):
    with pytest.raises(CorruptionError, match="cannot be read"):
        record_layout.unpack_body(bytes(8) + body)


@given(st.lists(st.tuples(IDS, st.none() | TEXT, st.none() | METADATA), max_size=5))
def test_ids_come_back_without_the_rest(found):
    bodies = [
        record_layout.pack_body(
            identity, text, None if metadata is None else plain_metadata(metadata)
        )
        for identity, text, metadata in found
    ]
    ids = record_layout.unpack_ids([memoryview(bytes(8) + body) for body in bodies])

    assert ids == [identity for identity, _, _ in found]
    assert list(map(type, ids)) == [type(identity) for identity, _, _ in found]


def test_an_id_is_found_before_a_text_of_any_size():
    value = bytes(8) + record_layout.pack_body(1, "x" * (101 << 20), None)

    assert record_layout.unpack_ids([value, value]) == [1, 1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x93",
        b"\x93\x01",
        b"\x93\x01\x02",
        b"\x92\x01\x02",
        b"\x94\x01\x02\x03\x04",
        b"\x01",
        b"\x93\xc0\xc0\xc0",
        b"\x93\xc3\xc0\xc0",
        b"\x93\xa2\xff\xff\xc0\xc0",
        b"\x93\xd4\x01a\xc0\xc0",
        b"\x93" * 3000,
    ],
)
def test_a_body_without_an_id_is_damage(body):
    with pytest.raises(CorruptionError, match="records: a record"):
        record_layout.unpack_ids([bytes(8) + body])


# Metadata


def test_tuples_come_back_as_lists_and_scalars_of_numpy_as_those_of_python():
    plain = plain_metadata(
        {"t": (1, (2,)), "i": np.int8(3), "f": np.float32(0.5), "b": np.bool_(True)}
    )

    assert plain == {"t": [1, [2]], "i": 3, "f": 0.5, "b": True}
    assert [type(value) for value in plain.values()] == [list, int, float, bool]


def test_metadata_is_copied_deeply():
    inner = {"list": [1]}
    plain = plain_metadata({"a": inner})
    inner["list"].append(2)

    assert plain == {"a": {"list": [1]}}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (["a"], "list"),
        (None, "NoneType"),
        ({1: "a"}, "key 1"),
        ({"a": {None: 1}}, "key None"),
        ({"a": 2**64}, str(2**64)),
        ({"a": -(2**63) - 1}, str(-(2**63) - 1)),
        ({"a": float("nan")}, "nan"),
        ({"a": [0.0, float("-inf")]}, "-inf"),
        ({"a": np.float32("inf")}, "inf"),
        ({"a": {1, 2}}, "set"),
        ({"a": object}, "type"),
        ({"a": 1j}, "complex"),
        ({"a": bytearray(b"x")}, "bytearray"),
        ({"a": "\ud800"}, "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ({"a": np.arange(3)}, "ndarray"),
        ({"a": datetime(2024, 1, 1).date()}, "date"),
        ({"a": timedelta(1)}, "timedelta"),
        ({"a": np.timedelta64(1, "s")}, "timedelta64"),
        ({"a": np.timedelta64(1, "ns")}, "timedelta64"),
        ({"$a": 1}, "'$a'; a field that begins with $"),
        ({"b": 1, "$id": 1}, "'$id'; a field that begins with $"),
    ],
)
def test_metadata_that_cannot_be_stored_is_refused_with_its_value(metadata, words):
    with pytest.raises(UsageError, match="metadata") as caught:
        plain_metadata(metadata)

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "unit"), [("2024", "Y"), ("2024-02-29", "D"), ("2024-02-29", "ns")]
)
def test_an_exact_time_of_numpy_is_a_datetime(text, unit):
    given = np.datetime64(text, unit)
    (found,) = plain_metadata({"a": given}).values()

    assert (type(found), np.datetime64(found)) == (datetime, given)


@pytest.mark.parametrize(
    "moment",
    [
        np.datetime64(1, "ns"),
        np.datetime64("NaT"),
        np.datetime64("NaT", "ns"),
        np.datetime64(10**6, "Y"),
        # In microseconds it wraps around to 1970.
        np.datetime64(2**61, "D"),
    ],
)
def test_a_time_of_numpy_that_no_datetime_equals_is_refused(moment):
    with pytest.raises(
        UsageError, match=r"metadata\['a'\]\[1\] = np.datetime64.* is no microsecond"
    ):
        plain_metadata({"a": [0, moment]})


def test_a_key_with_a_dollar_is_refused_where_no_filter_can_name_it():
    plain = {"a": {"$b": [{"$id": 1}]}, "price$": 2}

    assert plain_metadata(plain) == plain
    assert parse({"a.$b.$id": 1}).matches(Record(id=0, metadata=plain))
    assert is_plain([{"price$": 2}])
    assert not is_plain([{"$price": 2}])


def test_the_message_names_the_place():
    with pytest.raises(UsageError, match=r"metadata\['a'\]\[1\]\['b'\] is set"):
        plain_metadata({"a": [0, {"b": set()}]})


@pytest.mark.parametrize("make", [lambda value: {"a": value}, lambda value: [value]])
def test_metadata_nested_too_deeply_is_refused(make):
    value = 1
    for _ in range(70):
        value = make(value)

    with pytest.raises(UsageError, match="deeper than 64"):
        plain_metadata({"a": value})


def test_metadata_that_holds_itself_is_refused():
    value = []
    value.append(value)

    with pytest.raises(UsageError, match="deeper than 64"):
        plain_metadata({"a": value})


def test_metadata_as_deep_as_allowed_comes_back():
    value = 1
    for _ in range(63):
        value = [value]
    body = record_layout.pack_body(1, None, plain_metadata({"a": value}))

    assert record_layout.unpack_body(bytes(8) + body)[2] == {"a": value}


@pytest.mark.parametrize(
    "moment",
    [
        datetime.max,
        datetime.min,
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999),
        datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=-11, minutes=-30))),
        datetime(2024, 2, 29, 12, fold=1),
    ],
)
def test_a_datetime_comes_back(moment):
    body = record_layout.pack_body(1, None, plain_metadata({"a": moment}))
    (found,) = record_layout.unpack_body(bytes(8) + body)[2].values()

    assert found == moment
    assert found.utcoffset() == moment.utcoffset()


@pytest.mark.parametrize(
    "moment",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_an_instant_before_or_after_the_years_of_utc_is_refused(moment):
    with pytest.raises(UsageError, match="cannot be stored"):
        plain_metadata({"a": moment})


def test_an_offset_with_parts_of_a_second_keeps_the_instant():
    zone = timezone(timedelta(hours=1, microseconds=900_000))
    moment = datetime(2024, 1, 1, tzinfo=zone)
    body = record_layout.pack_body(1, None, plain_metadata({"a": moment}))

    assert record_layout.unpack_body(bytes(8) + body)[2] == {"a": moment}


def test_a_time_that_is_not_one_is_refused():
    pandas = pytest.importorskip("pandas")

    with pytest.raises(UsageError, match="NaT"):
        plain_metadata({"a": pandas.NaT})


# Small values


@given(
    st.integers(0, 63),
    st.integers(0, layout.MAX_ORDERS),
    st.integers(0, 2**63),
    st.integers(1, 2**26 - 1),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
)
def test_counters_come_back(rows, order, generation, blocks, expires, earliest):
    state = State(rows, order, generation, blocks, blocks - 1 if rows else NO_BLOCK, rows)
    if expires and rows:
        state.expiring, state.earliest = rows, earliest

    assert State.unpack(memoryview(state.pack())) == state


@pytest.mark.parametrize(
    "state",
    [
        State(records=1),
        State(records=65, blocks=1),
        State(blocks=2**26),
        State(next_order=layout.MAX_ORDERS + 1),
        State(records=1, blocks=1, expiring=2),
        State(blocks=1, open_block=1, open_rows=1),
        State(blocks=1, open_block=0, open_rows=0),
        State(blocks=1, open_block=0, open_rows=64),
        State(blocks=1, open_block=NO_BLOCK, open_rows=1),
    ],
)
def test_impossible_counters_are_damage(state):
    with pytest.raises(CorruptionError, match="impossible"):
        State.unpack(state.pack())


@pytest.mark.parametrize("size", [0, 39, 41])
def test_counters_of_another_length_are_damage(size):
    with pytest.raises(CorruptionError, match=f"{size} bytes"):
        State.unpack(layout.pack_checked(bytes(size)))


@given(st.integers(0, 43))
def test_damaged_counters_are_found(at):
    with pytest.raises(CorruptionError, match="checksum"):
        State.unpack(flip(State().pack(), at))


@pytest.mark.parametrize("size", range(5))
def test_a_small_value_cut_short_is_damage(size):
    value = layout.pack_meta({"a": 1})[:size]

    with pytest.raises(CorruptionError):
        layout.unpack_meta(value, "here")


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xc1", b"\x81\xa1a", b"\x90", b"\x80\x80"])
def test_a_small_value_that_is_no_map_is_damage(content):
    with pytest.raises(CorruptionError, match="here"):
        layout.unpack_meta(layout.pack_checked(content), "here")


@pytest.mark.parametrize("instant", [msgpack.Timestamp(1_700_000_000, 5000), msgpack.Timestamp(1)])
def test_instants_as_msgpack_has_them_are_datetimes(instant):
    """They are never written here, but a file of others may hold them; columns know datetimes."""
    body = msgpack.packb((1, None, {"a": [instant]}))

    (found,) = record_layout.unpack_body(bytes(8) + body)[2]["a"]
    assert found == instant.to_datetime()


@pytest.mark.parametrize("seconds", [2**40, 2**62, -(2**62), -(2**40)])
def test_instants_beyond_all_years_are_damage(seconds):
    body = msgpack.packb((1, None, {"a": msgpack.Timestamp(seconds)}))

    with pytest.raises(CorruptionError, match="cannot be read"):
        record_layout.unpack_body(bytes(8) + body)
