"""The compiled search against its numpy twin, against exact scores, and against hostile bytes."""

import ast
import inspect

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Memory, ask, build, value

from vecstore import exact, frames, kernels, layout, plain, vectors
from vecstore.ann import compiled, model
from vecstore.ann.model import Matrix
from vecstore.vectors import as_compared

METRICS = ["cosine", "dot", "l2"]


@pytest.fixture(scope="session")
def search():
    """The compiled search, from the user's cache if it was ever compiled here."""
    return compiled.compile_now().kernels["search"]


def drawn(rng, count, dim, metric, far=0.0):
    """Vectors; those far from the origin point in much the same direction."""
    vectors = (rng.normal(size=(count, dim)) + far).astype(np.float32)
    if metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def oracle(memory, query, k, allowed=None):
    """Orders and scores by float64, best first."""
    count = len(memory.vectors)
    rows = np.arange(count) if allowed is None else np.asarray(allowed)
    scores = exact.score(
        memory.stored()[rows], as_compared(query[None], memory.model.metric)[0], memory.model.metric
    )
    orders = memory.orders(rows)
    best = np.lexsort((orders, -scores))[:k]
    return orders[best], scores[best]


def assert_same(mine, twins):
    """The hits to the bit; how many candidates were compared may differ by a rounding."""
    assert mine.done == twins.done
    assert mine.missing[0] == twins.missing[0]
    assert mine.counts.tolist() == twins.counts.tolist()
    assert mine.orders.tolist() == twins.orders.tolist()
    assert mine.scores.tobytes() == twins.scores.tobytes()
    seen = [plain.LISTS_SEEN, plain.ROWS_SEEN]
    assert mine.stats[:, seen].tolist() == twins.stats[:, seen].tolist()


# The twin


@st.composite
def cases(draw):
    """An index, queries, and how to search it."""
    metric = draw(st.sampled_from(METRICS))
    dim = draw(st.sampled_from([2, 3, 31, 33, 64, 70, 384]))
    count = draw(st.integers(1, 400))
    lists = draw(st.integers(0, min(12, count)))
    far = draw(st.sampled_from([0.0, 1000.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    memory = build(
        drawn(rng, count, dim, metric, far),
        metric,
        lists=lists,
        bits=draw(st.sampled_from([1, 2, 4])),
        coded=draw(st.sampled_from([dim, max(1, dim // 2)])),
        tail=draw(st.integers(0, count)),
        precision=draw(st.sampled_from([layout.FLOAT32, layout.FLOAT16, layout.INT8])),
        distances=metric == "l2" or (metric == "cosine" and far > 0),
    )
    how = {
        "k": draw(st.sampled_from([1, 5, count, count + 3])),
        "gap": draw(st.sampled_from([0.0, 1.0, 4.0])),
        "reach": draw(st.sampled_from([0.0, 1.0, 2.0, 100.0])),
        "slack": draw(st.sampled_from([0.0, 0.5, 2.0])),
        "least": draw(st.integers(0, 3)),
    }
    if draw(st.booleans()):
        few = rng.choice(count, draw(st.integers(0, min(count, 20))), replace=False)
        how["mask"] = memory.words(few)
    if draw(st.booleans()):
        # Some lists are passed over, and not all count alike.
        drawn_weights = rng.choice([0, 0.1, 0.5, 1], lists, p=[0.3, 0.2, 0.2, 0.3])
        how["weights"] = drawn_weights.astype(np.float32)
    if lists and draw(st.booleans()):
        how["excerpts"] = memory.put_excerpts(how.get("mask", memory.mask))
    return memory, drawn(rng, 3, dim, metric, far), how


@given(case=cases())
def test_kernel_and_twin_find_the_same(search, case):
    memory, queries, how = case

    assert_same(ask(search, memory, queries, **how), ask(plain.search, memory, queries, **how))


@given(case=cases())
def test_excerpts_have_what_the_lists_have(search, case):
    """All that may be found is found, with the same scores."""
    memory, queries, how = case
    mask = how.get("mask", memory.mask)
    everything = {"k": len(memory.vectors), "slack": 50.0, "fine": 50.0, "mask": mask}

    found = ask(search, memory, queries, **everything)
    others = ask(search, memory, queries, **everything, excerpts=memory.put_excerpts(mask))
    assert (found.counts == others.counts).all()
    for number, count in enumerate(found.counts.tolist()):
        assert (found.orders[number, :count] == others.orders[number, :count]).all()
        assert (found.scores[number, :count] == others.scores[number, :count]).all()


def excerpts_of(memory, mask, rooms):
    """What the kernel writes, of each list with so many rows; behind it nothing may change."""
    kernel = compiled.compile_now().kernels["excerpt"]
    model, made = memory.model, []
    for room in rooms:
        tiles = -(-room // 32)
        made.append(value(0, bytes(tiles * (model.shape.tile_bytes + 256) + 64)))
    integers = np.zeros(plain.INTEGERS, np.int64)
    integers[plain.GROUPS], integers[plain.OFFSETS] = model.groups, model.distances
    targets = np.array([one.ctypes.data for one in made], np.uint64)
    frame = frames.partly(
        integers=integers,
        mask=mask,
        lists=memory.lists,
        tail=np.array(rooms, np.int64),
        excerpts=targets,
    )
    assert kernel(frame.address, 0) == len(rooms)
    assert not any(one[-64:].any() for one in made)
    return [one[:-64] for one in made]


@given(case=cases())
def test_the_kernel_writes_excerpts_as_numpy_does(search, case):
    memory, _, how = case
    mask, lists = how.get("mask", memory.mask), range(memory.model.lists)
    expected = [memory.excerpt(number, mask) for number in lists]
    rooms = [int(one[8:12].view("<u4")[0]) for one in expected]

    made = excerpts_of(memory, mask, rooms)
    assert all((one == other).all() for one, other in zip(made, expected, strict=True))


@pytest.mark.parametrize("off", [-5, 5, 40])
def test_an_excerpt_keeps_within_its_room_whatever_a_list_says(search, off):
    rng = np.random.default_rng(1)
    memory = build(drawn(rng, 300, 33, "cosine"), "cosine", lists=3, bits=1, tail=0)
    rooms = [int((memory.listed == number).sum()) + off for number in range(3)]

    made = excerpts_of(memory, memory.mask, rooms)
    for number, (one, room) in enumerate(zip(made, rooms, strict=True)):
        named = one[-256 * -(-room // 32) :].view("<u4")[:room]
        assert one[8:12].view("<u4")[0] == room
        assert set(named.tolist()) - {2**32 - 1} <= set(np.flatnonzero(memory.listed == number))
        assert (named == 2**32 - 1).sum() == max(0, off)


def test_rows_that_an_excerpt_does_not_have_are_not_found(search):
    rng = np.random.default_rng(1)
    memory = build(drawn(rng, 300, 33, "cosine"), "cosine", lists=3, bits=1, tail=0)
    made = excerpts_of(memory, memory.mask, [120, 120, 120])
    table = np.array([one.ctypes.data for one in made], np.uint64)
    how = {"k": 300, "slack": 50.0, "fine": 50.0, "excerpts": table}
    queries = drawn(rng, 2, 33, "cosine")

    found, twin = (ask(one, memory, queries, **how) for one in (search, plain.search))
    assert_same(found, twin)
    missed = sum(max(0, int((memory.listed == number).sum()) - 120) for number in range(3))
    assert (found.counts == 300 - missed).all()


@pytest.mark.parametrize("seed", range(12))
def test_distances_count_from_the_same_list(search, seed):
    """Nearer lists have so few of the rows that are wanted that they do not say where these are."""
    rng = np.random.default_rng(seed)
    memory = build(drawn(rng, 600, 33, "cosine"), "cosine", lists=12, bits=1, tail=0)
    weights = np.where(np.arange(12) % 3 == 0, 1, 0.1).astype(np.float32)
    how = {"k": 5, "gap": 4.0, "reach": 1.5, "least": 1, "weights": weights}
    queries = drawn(rng, 8, 33, "cosine")

    assert_same(ask(search, memory, queries, **how), ask(plain.search, memory, queries, **how))


@given(case=cases(), room=st.integers(1, 60))
def test_with_little_room_what_is_found_is_still_true(search, case, room):
    memory, queries, how = case

    for one in (search, plain.search):
        found = ask(one, memory, queries, **how, room=room)
        for number, query in enumerate(queries):
            count = found.counts[number]
            orders, scores = oracle(memory, query, len(memory.vectors))
            expected = dict(zip(orders.tolist(), scores.tolist(), strict=True))
            hits = found.orders[number, :count].tolist()
            assert len(set(hits)) == count <= min(how["k"], room)
            assert found.scores[number, :count].tolist() == [expected[order] for order in hits]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("precision", [layout.FLOAT32, layout.FLOAT16, layout.INT8])
def test_a_search_of_everything_is_exact(search, rng, metric, precision):
    memory = build(drawn(rng, 700, 70, metric), metric, lists=9, bits=2, tail=90,
                   precision=precision)  # fmt: skip
    queries = drawn(rng, 5, 70, metric)

    for one in (search, plain.search):
        found = ask(one, memory, queries, 20, slack=100.0, fine=100.0)
        for number, query in enumerate(queries):
            orders, scores = oracle(memory, query, 20)
            assert found.orders[number].tolist() == orders.tolist()
            assert found.scores[number].tobytes() == scores.tobytes()


def test_near_neighbours_far_from_the_mean_are_told_apart(search, rng):
    near = rng.normal(size=(600, 33)) * 0.01
    vectors = (near + np.where(np.arange(600)[:, None] % 2, 30, -30)).astype(np.float32)
    memory = build(vectors, "l2", lists=6, bits=2, tail=90)
    queries = vectors[:4] + np.float32(0.005)

    for one in (search, plain.search):
        found = ask(one, memory, queries, 20, slack=100.0, fine=100.0)
        for number, query in enumerate(queries):
            assert found.orders[number].tolist() == oracle(memory, query, 20)[0].tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_that_float32_cannot_tell_apart_are_ranked(search, rng, metric):
    vectors = drawn(rng, 600, 33, metric, far=3e5)
    memory = build(vectors, metric, lists=6, bits=2, tail=90, distances=metric != "dot")
    queries = vectors[:4]

    for one in (search, plain.search):
        found = ask(one, memory, queries, 20, slack=100.0, fine=100.0)
        for number, query in enumerate(queries):
            assert found.orders[number].tolist() == oracle(memory, query, 20)[0].tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_a_filter_that_lets_few_rows_through_loses_none(search, rng, metric):
    memory = build(drawn(rng, 900, 33, metric), metric, lists=12, bits=1, tail=50)
    allowed = rng.choice(900, 7, replace=False)
    query = drawn(rng, 1, 33, metric)

    for one in (search, plain.search):
        found = ask(one, memory, query, 10, reach=0.0, mask=memory.words(allowed))
        assert found.counts.tolist() == [7]
        assert found.orders[0, :7].tolist() == oracle(memory, query[0], 7, allowed)[0].tolist()


@pytest.mark.parametrize("dim", [8, 9, 127, 128, 129, 136, 257, 1000, 1536, 4100, 8192])
@pytest.mark.parametrize("metric", METRICS)
def test_scores_add_up_as_numpy_does(search, rng, dim, metric):
    memory = build(drawn(rng, 40, dim, metric), metric, lists=0, bits=1, coded=8)
    query = drawn(rng, 1, dim, metric)

    found = ask(search, memory, query, 40, slack=1000.0)

    assert found.scores[0].tobytes() == oracle(memory, query[0], 40)[1].tobytes()


# Candidates that tie


@pytest.mark.parametrize("metric", METRICS)
def test_equal_vectors_fill_the_answer(search, rng, metric):
    memory = build(np.tile(drawn(rng, 1, 33, metric), (300, 1)), metric, lists=3, bits=1)
    query = drawn(rng, 1, 33, metric)

    mine, twins = (ask(one, memory, query, 10) for one in (search, plain.search))

    assert mine.counts.tolist() == [10]
    assert mine.orders[0].tolist() == sorted(mine.orders[0].tolist())
    assert_same(mine, twins)


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-38])
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_query_without_length_finds_k(search, rng, metric, scale):
    memory = build(drawn(rng, 300, 33, metric), metric, lists=3, bits=1, tail=40)
    queries = memory.model.mean + scale * drawn(rng, 2, 33, metric)

    mine, twins = (ask(one, memory, queries, 10) for one in (search, plain.search))

    assert mine.counts.tolist() == twins.counts.tolist() == [10, 10]
    # Of scores this small float32 keeps a bit or two.
    if scale == 0:
        assert_same(mine, twins)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_vectors_of_zeros_are_found(search, rng, metric):
    memory = build(np.zeros((300, 33), np.float32), metric, lists=3, bits=2)
    query = drawn(rng, 1, 33, metric)

    mine, twins = (ask(one, memory, query, 10) for one in (search, plain.search))

    assert mine.counts.tolist() == [10]
    assert_same(mine, twins)


@pytest.mark.parametrize("room", [10, 11, 37])
def test_ties_that_have_no_room_are_dropped_and_not_all(search, rng, room):
    memory = build(np.tile(drawn(rng, 1, 33, "dot"), (300, 1)), "dot", lists=0, bits=1)
    query = drawn(rng, 1, 33, "dot")

    mine, twins = (ask(one, memory, query, 300, room=room) for one in (search, plain.search))

    assert 0 < mine.counts[0] <= room
    assert_same(mine, twins)


# Tables with entries missing


@pytest.mark.parametrize("note", [1, 3, 100])
def test_entries_are_filled_by_need(search, rng, note):
    memory = build(drawn(rng, 900, 33, "l2"), "l2", lists=8, bits=1, tail=200)
    queries = drawn(rng, 3, 33, "l2")
    whole = ask(search, memory, queries, 10)
    asked = []

    for one in (search, plain.search):
        tables = {
            name: np.zeros_like(getattr(memory, name)) for name in ("lists", "blocks", "codes")
        }
        names = {plain.LIST: "lists", plain.CODES: "codes", plain.BLOCK: "blocks"}
        log, first = [], 0
        while first < len(queries):
            found = ask(one, memory, queries, 10, note=note, first=first, **tables)
            kind, count = found.missing[:2].tolist()
            log.append((found.done, kind, found.missing[2 : 2 + count].tolist()))
            if kind == plain.NOTHING:
                assert found.orders[first:].tolist() == whole.orders[first:].tolist()
            else:
                assert 0 < count <= note
                numbers = found.missing[2 : 2 + count]
                assert not tables[names[kind]][numbers].any()
                tables[names[kind]][numbers] = getattr(memory, names[kind])[numbers]
            first = found.done
        asked.append(log)

    assert asked[0] == asked[1]
    assert {kind for _, kind, _ in asked[0]} == set(range(4))


# What damage in the file may do


@pytest.fixture
def sound(rng) -> Memory:
    return build(drawn(rng, 300, 33, "dot"), "dot", lists=4, bits=1, tail=70)


def test_rows_beyond_the_mask_are_passed_over(search, rng, sound):
    rows = np.flatnonzero(sound.listed == 0)
    wild = np.array([320, 321, 2**31, 2**32 - 65, 2**32 - 1])
    names = rows.copy()
    names[: len(wild)] = wild[: len(names)]
    sound.lists[0] = sound.put_list(0, rows, names)
    queries = drawn(rng, 3, 33, "dot")

    mine, twins = (ask(one, sound, queries, 300) for one in (search, plain.search))

    assert mine.counts.max() <= 300 - min(len(wild), len(rows))
    assert_same(mine, twins)


def test_rows_beyond_a_block_are_passed_over(search, rng, sound):
    sound.blocks[1] = sound.put_block(np.arange(64, 128), held=10)
    queries = drawn(rng, 3, 33, "dot")

    mine, twins = (ask(one, sound, queries, 300) for one in (search, plain.search))

    assert mine.counts.tolist() == [300 - 54] * 3
    assert_same(mine, twins)


def test_a_row_that_two_lists_name_is_no_harm(search, rng, sound):
    rows = np.flatnonzero(sound.listed == 0)
    sound.lists[1] = sound.put_list(1, rows)
    queries = drawn(rng, 3, 33, "dot")

    assert_same(*(ask(one, sound, queries, 50) for one in (search, plain.search)))


# Other processors

WIDTHS = {
    "avx512bw": (64, "llvm.x86.avx512.pshuf.b.512"),
    "avx2": (32, "llvm.x86.avx2.pshuf.b"),
    "ssse3": (16, "llvm.x86.ssse3.pshuf.b.128"),
    "neon": (16, "llvm.aarch64.neon.tbl1.v16i8"),
    "": (1, ""),
}


@pytest.mark.parametrize("feature", WIDTHS)
def test_tiles_score_alike_at_every_width(rng, monkeypatch, feature):
    if feature and not llvm.get_host_cpu_features().get(feature):
        pytest.skip(f"this processor has no {feature}")
    monkeypatch.setattr(kernels, "SHUFFLES", WIDTHS[feature])
    scan_tile = kernels._scan_tile

    @numba.njit
    def scan(tile, table, groups, out, offsets):
        base, step, start = np.float32(0.5), np.float32(0.25), np.float32(-3)
        at, entries = np.uint64(tile.ctypes.data), np.uint64(table.ctypes.data)
        return scan_tile(
            at,
            entries,
            groups,
            np.uint64(out.ctypes.data),
            base,
            step,
            start,
            np.float32(1),
            offsets,
        )

    for groups, offsets in ((16, 0), (64, 1), (1024, 1)):
        codes = rng.integers(0, 256, (groups, 16), np.uint8)
        table = rng.integers(0, min(63, 65535 // groups) + 1, (groups, 16)).astype(np.uint8)
        columns = rng.integers(-8, 8, (2, 32)).astype(np.float32) / 8
        tile = value(32, codes.tobytes() + columns[: 1 + offsets].tobytes())[layout.HEADER.size :]
        out = np.zeros(32, np.float32)

        above = scan(tile, table, groups, out, offsets)

        nibbles = np.concatenate([codes & 15, codes >> 4], axis=1).astype(int)
        sums = np.take_along_axis(table.astype(np.float32), nibbles, 1).sum(axis=0)
        expected = 0.5 + offsets * columns[1] + columns[0] * (0.25 * sums - 3)
        assert out.tolist() == expected.tolist()
        assert above == sum(1 << i for i in range(32) if expected[i] > 1)


@pytest.mark.parametrize("instruction", [kernels.SUMS_OF_FOURS, ""])
@pytest.mark.parametrize(
    ("at_once", "rows", "columns"),
    [(1, 1, 1), (1, 16, 16), (1, 40, 100), (1, 17, 2048), (2, 128, 40), (4, 64, 16), (4, 126, 384)],
)
def test_matrices_multiply_alike_with_and_without_the_instruction(
    rng, monkeypatch, instruction, at_once, rows, columns
):
    monkeypatch.setattr(kernels, "SUMS_OF_FOURS", instruction)
    multiply_blocks = kernels._multiplier(at_once)

    @numba.njit
    def multiply(values, scales, numbers, high, low, out):
        for block in range(0, values.shape[0], at_once):
            multiply_blocks(
                np.uint64(values[block].ctypes.data),
                np.uint64(scales[16 * block :].ctypes.data),
                np.uint64(numbers.ctypes.data),
                values.shape[1] // 4,
                np.int32(high),
                np.int32(low),
                np.float32(0.5),
                np.uint64(out[16 * block :].ctypes.data),
            )

    matrix = Matrix.of(rng.integers(-127, 128, (rows, columns)).astype(np.float32))
    numbers = np.zeros((2, 4 * matrix.values.shape[1]), np.int8)
    numbers[:, :columns] = rng.integers(-127, 128, (2, columns))
    out = np.empty(len(matrix.scales), np.float32)
    less = 128 * numbers.sum(axis=1, dtype=int)
    multiply(matrix.values, matrix.scales, numbers, int(less[0]), int(less[1]), out)

    whole = model.unpack(matrix.values).astype(int)[:rows, :columns]
    high, low = (whole @ numbers[:, :columns].T.astype(int)).T.astype(np.float32)
    expected = (high + low * np.float32(1 / 254)) * matrix.scales[:rows] * np.float32(0.5)
    assert out[:rows].tolist() == expected.tolist()
    assert not out[rows:].any()


# The rules of the file


def test_names_and_offsets_are_those_of_the_twin_and_the_layout():
    shared = [name for name in vars(plain) if name.isupper() and not name.startswith("_")]
    shared.remove("ROWS_AT")

    assert {name: getattr(kernels, name) for name in shared} == {
        name: getattr(plain, name) for name in shared
    }
    assert layout.HEADER.size == kernels.HEADER
    assert layout.COLUMNS_BYTES == kernels.COLUMNS
    assert layout.SCALES_BYTES == kernels.SCALES
    assert layout.HEADER.size + layout.ORDERS_BYTES == kernels.NORMS
    assert vectors.UNIT_SLACK == kernels.UNIT_SLACK
    packed = layout.HEADER.pack(b"vecs", 1, 1, 0, 12345, 0, 0, 0, 0, 0)
    assert int.from_bytes(packed[plain.ROWS_AT : plain.ROWS_AT + 4], "little") == 12345


def broken_rules(source):
    """What a file of kernels does that none may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
            found += [alias.name for alias in node.names if alias.name == "prange"]
        found += [name for name in names if name.split(".")[0] == "vecstore"]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "njit":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("nogil") != "True":
                found.append("a kernel that holds the GIL")
            # numba lets a function that says nothing inherit from whoever calls it first.
            if given.get("fastmath") not in ("False", "FLOAT_MATH"):
                found.append("a kernel that does not say how exact it is")
            harmless = {"error_model", "no_cpython_wrapper", "no_cfunc_wrapper"}
            found += given.keys() - {"nogil", "fastmath"} - harmless
        decorators = getattr(node, "decorator_list", [])
        found += [
            f"@{ast.unparse(one)}"
            for one in decorators
            if ast.unparse(one) not in ("intrinsic", "_exactly", "_quickly")
        ]
    return found


def test_kernels_keep_the_rules():
    assert broken_rules(inspect.getsource(kernels)) == []
    assert {"reassoc", "contract", "nsz"} == kernels.FLOAT_MATH


@pytest.mark.parametrize(
    "line",
    [
        "from vecstore import layout",
        "from numba import prange",
        "_fast = njit(nogil=True, fastmath=FLOAT_MATH, parallel=True)",
        "_fast = njit(nogil=True, fastmath=True)",
        "_fast = njit(nogil=True)",
        "_fast = njit(fastmath=False)",
        "@njit\ndef kernel(): pass",
    ],
)
def test_a_broken_rule_is_found(line):
    assert broken_rules(line)


def test_the_search_has_one_signature(search):
    assert list(search.overloads) == [kernels.ENTRY.args]
    assert search.targetoptions["nogil"]


def test_frames_hold_what_the_twin_takes_in_the_order_that_the_kernel_knows():
    taken = list(inspect.signature(plain.search).parameters)

    assert [*frames.ARRAYS, "first"] == taken
    assert list(frames.ARRAYS).index("queries") == kernels.QUERIES
    assert list(frames.ARRAYS).index("tail") == kernels.TAIL
    assert list(frames.ARRAYS).index("missing") == kernels.LACKING
    assert frames.WORDS == kernels.WORDS


def test_other_types_are_refused_and_not_compiled(search, rng, sound):
    with pytest.raises(TypeError):
        ask(search, sound, drawn(rng, 1, 33, "dot"), 5, mask=sound.mask.astype(np.int64))
