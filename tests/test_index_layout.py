import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore import CorruptionError, index_layout, layout
from vecstore.ann import codes
from vecstore.ann.codes import Codes
from vecstore.index_layout import NO_LIST, NO_ROW, CodeShape
from vecstore.layout import BUNDLE, CODE_BLOCK, LIST, LIST_PART_ROWS, TILE_ROWS, Header

PAGES = st.sampled_from([4096, 16384])
KINDS = st.sampled_from([LIST, CODE_BLOCK])
GROUPS = st.sampled_from([16, 32, 96])
DIM = 100


def some_codes(count: int, groups: int, seed: int = 0) -> Codes:
    rng = np.random.default_rng(seed)
    return Codes(
        rng.integers(0, 16, (count, groups)).astype(np.uint8),
        rng.normal(size=count).astype(np.float32),
        rng.normal(size=count).astype(np.float32),
        rng.integers(0, 256, (count, index_layout.fine_bytes(DIM))).astype(np.uint8),
        rng.normal(size=count).astype(np.float32),
        rng.permutation(10 * count)[:count].astype(np.uint32),
    )


def packed(kind=LIST, count=40, groups=16, offsets=False, page=4096, collection=3, first=5):
    found = some_codes(count, groups)
    shape = CodeShape(groups, offsets, DIM)
    parts = codes.pack_tiles(found, shape), codes.pack_fine(found, shape)
    value = index_layout.pack_codes(collection, kind, first, *parts, found.rows, groups, page)
    return found, value


def test_keys_of_one_collection_begin_with_its_number():
    for key in (
        index_layout.list_key(258, 1),
        index_layout.index_key(258, index_layout.PLAN),
        index_layout.list_part_key(258, 1),
    ):
        assert key.startswith(b"\0\0\1\2")


@given(KINDS, st.integers(0, 64), GROUPS, st.booleans(), PAGES)
def test_codes_come_back(kind: int, count: int, groups: int, offsets: bool, page: int) -> None:
    count = max(count, 1 if kind == CODE_BLOCK else 0)
    found, value = packed(kind, count, groups, offsets, page)
    layout.verify_bulk(value, "here")

    shape = CodeShape(groups, offsets, DIM)
    assert index_layout.check_codes(value, 3, kind, 5, shape) == count
    tiles, _, fine = index_layout.split_codes(value, kind, count, shape)
    again = codes.unpack(tiles, fine, found.rows, shape)
    assert (again.fine == found.fine).all()
    assert (again.fine_scales == found.fine_scales).all()
    assert (again.groups == found.groups).all()
    assert (again.scales == found.scales).all()
    assert (again.offsets == (found.offsets if offsets else 0)).all()


@given(st.integers(0, 200))
def test_the_rows_of_a_list_come_back_and_the_rest_of_the_last_tile_names_none(count: int) -> None:
    found, value = packed(count=count)

    _, names, _ = index_layout.split_codes(value, LIST, count, CodeShape(16, False, DIM))
    assert len(names) == -(-count // TILE_ROWS) * TILE_ROWS
    assert (names[:count] == found.rows).all()
    assert (names[count:] == NO_ROW).all()


@given(KINDS, st.integers(1, 64), GROUPS, st.booleans())
def test_the_length_is_that_of_tiles_rows_and_fine_codes(
    kind: int, count: int, groups: int, offsets: bool
) -> None:
    _, value = packed(kind, count, groups, offsets)
    tiles = -(-count // TILE_ROWS)
    length = tiles * (groups * 16 + 128 * (1 + offsets)) + (tiles * 128 if kind == LIST else 0)
    length += count * (64 + 4 * (1 + offsets))

    assert layout.unpack_header(value, "here").length == length


@pytest.mark.parametrize(
    ("collection", "kind", "first", "groups", "offsets", "words"),
    [
        (4, LIST, 5, 16, False, "another value"),
        (3, CODE_BLOCK, 5, 16, False, "another value"),
        (3, LIST, 6, 16, False, "another value"),
        (3, LIST, 5, 32, False, "another value"),
        (3, LIST, 5, 16, True, "40 rows in"),
    ],
)
def test_codes_of_another_shape_or_place_are_damage(
    collection, kind, first, groups, offsets, words
):
    _, value = packed()

    with pytest.raises(CorruptionError, match=words):
        index_layout.check_codes(value, collection, kind, first, CodeShape(groups, offsets, DIM))


@pytest.mark.parametrize(("kind", "rows"), [(LIST, 2**32 - 1), (LIST, 30), (CODE_BLOCK, 0)])
def test_a_header_that_lies_about_rows_is_damage(kind, rows):
    _, value = packed(kind)
    header = layout.unpack_header(value, "here")
    layout.seal_bulk(Header(kind, 2, rows, 16, 5, 0, 0, 3), value, header.length)

    with pytest.raises(CorruptionError, match=f"{rows} rows in"):
        index_layout.check_codes(value, 3, kind, 5, CodeShape(16, False, DIM))


def test_more_rows_than_a_block_has_are_damage():
    found = some_codes(80, 16)
    shape = CodeShape(16, False, DIM)
    parts = codes.pack_tiles(found, shape), codes.pack_fine(found, shape)
    value = index_layout.pack_codes(3, CODE_BLOCK, 5, *parts, found.rows, 16, 4096)

    with pytest.raises(CorruptionError, match="80 rows in"):
        index_layout.check_codes(value, 3, CODE_BLOCK, 5, shape)


# Which list each row is in


def list_part() -> np.ndarray:
    lists = np.full(LIST_PART_ROWS, NO_LIST, np.uint32)
    lists[::3] = 7
    return lists


def test_the_lists_of_a_part_come_back():
    value = index_layout.pack_list_part(2, 1, list_part(), 4096)

    assert (index_layout.unpack_list_part(memoryview(value), 2, 1) == list_part()).all()


@pytest.mark.parametrize(("collection", "part"), [(1, 1), (2, 0)])
def test_a_part_under_the_wrong_key_is_damage(collection, part):
    value = index_layout.pack_list_part(2, 1, list_part(), 4096)

    with pytest.raises(CorruptionError, match="belongs to another value"):
        index_layout.unpack_list_part(value, collection, part)


@given(st.integers(0, 48 + LIST_PART_ROWS * 4 - 1))
def test_a_damaged_part_is_found_when_it_is_read(at: int) -> None:
    value = index_layout.pack_list_part(2, 1, list_part(), 4096)
    value[at] ^= 1

    with pytest.raises(CorruptionError):
        index_layout.unpack_list_part(value, 2, 1)


# Bundles


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.tuples(
            st.sampled_from(["<f4", "|i1", "|u1", "<u4"]),
            st.lists(st.integers(0, 5), min_size=1, max_size=3),
        ),
        max_size=4,
    ),
    PAGES,
)
def test_a_bundle_comes_back(shapes: dict, page: int) -> None:
    arrays = {name: np.ones(shape, dtype) for name, (dtype, shape) in shapes.items()}
    value = index_layout.pack_bundle(2, {"a": [1, b"x"], "b": None}, arrays, page)
    values, found = index_layout.unpack_bundle(memoryview(value), 2, "here")

    assert values == {"a": [1, b"x"], "b": None}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert (found[name] == array).all()
        assert found[name].flags.owndata or found[name].base.flags.owndata


def test_a_bundle_of_another_collection_is_damage():
    value = index_layout.pack_bundle(2, {}, {}, 4096)

    with pytest.raises(CorruptionError, match="belongs to another value"):
        index_layout.unpack_bundle(value, 3, "here")


@pytest.mark.parametrize(
    "directory",
    [
        b"",
        b"\xc1",
        msgpack.packb([{}]),
        msgpack.packb([{}, 5]),
        msgpack.packb([{}, [["a", "<f4"]]]),
        msgpack.packb([{}, [["a", "no dtype", [1], 0]]]),
        msgpack.packb([{}, [["a", "|O", [1], 0]]]),
        msgpack.packb([{}, [["a", "<f4", [10**6], 0]]]),
        msgpack.packb([{}, [["a", "<f4", [2**63, 2**63], 0]]]),
        msgpack.packb([{}, [["a", "<f4", [-1, 5], 0]]]),
        msgpack.packb([{}, [["a", "<f4", [1], 2**40]]]),
        msgpack.packb([{}, [["a", "<f4", [1], -900]]]),
        msgpack.packb([{}, [["a", "<f4", ["x"], 0]]]),
        msgpack.packb([{}, [["a", "<f4", None, 0]]]),
    ],
)
def test_a_directory_that_is_none_is_damage(directory):
    payload = len(directory).to_bytes(4, "little") + directory + bytes(64)
    value = layout.pack_bulk(Header(BUNDLE, 2, 1, 0, 0, 0, 0, 2), payload, 4096)

    with pytest.raises(CorruptionError, match="here: cannot be read"):
        index_layout.unpack_bundle(value, 2, "here")
