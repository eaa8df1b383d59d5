"""What docs/architecture.md and docs/layout.md say, compared with the code."""

import ast
import inspect
import math
import re
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest

import vecstore
from vecstore import index_layout, layout, record_layout, spec
from vecstore.ann import codes, index, rotation
from vecstore.ann import model as models

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vecstore"
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
LAYOUT = (ROOT / "docs/layout.md").read_text()
# The standard library, and what stands above the layers.
FREE = {*sys.stdlib_module_names}
LONGER = {"kernels.py": 3000, "plain.py": 800}


def tables(text: str) -> list[list[list[str]]]:
    """The rows of every table of a markdown text, header and rule left out."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            found.append(rows[2:])
            rows = []
    return found


def words(cell: str) -> set[str]:
    return {word.strip(" `") for word in cell.split(",")} - {""}


LAYERS = {
    row[1].strip("`").removesuffix(".py"): (words(row[2]), words(row[3]))
    for table in tables(ARCHITECTURE)
    for row in table
    if len(row) == 4
}


def module_of(file: Path) -> str:
    """The module of the table that a file belongs to: a package counts as one."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(
    file for file in PACKAGE.rglob("*.py") if not module_of(file).startswith("__") and file.stem
)


def imports(file: Path) -> tuple[set[str], set[str]]:
    """Modules of vecstore, and outside libraries, that a file imports anywhere."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            deeper = node.module == "vecstore"
            names = [
                f"{node.module}.{alias.name}" if deeper else node.module for alias in node.names
            ]
        for name in names:
            first, *rest = name.split(".")
            if first == "vecstore":
                # `import vecstore` reaches everything; only the entry points may.
                inside.add(rest[0] if rest else "database")
            elif first not in FREE:
                outside.add(first)
    return inside - {module_of(file)}, outside


def test_the_layer_table_names_every_module():
    assert LAYERS.keys() == {module_of(file) for file in FILES}


def test_every_module_answers_one_question():
    (rows,) = (table for table in tables(ARCHITECTURE) if table[0][0] == "`errors.py`")

    assert {row[0].strip("`").removesuffix(".py") for row in rows} == LAYERS.keys()
    assert all(row[1].endswith("?") for row in rows)


def test_every_file_of_a_package_has_its_line():
    named = {row[0].strip("`") for table in tables(ARCHITECTURE) for row in table if len(row) == 2}
    files = {str(file.relative_to(PACKAGE)) for file in FILES if file.stem != "__init__"}

    assert {name for name in named if "/" in name and name.endswith(".py")} == {
        file for file in files if "/" in file
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_row_allows(file):
    inside, outside = imports(file)
    allowed, libraries = LAYERS[module_of(file)]

    assert inside <= allowed
    assert outside <= libraries


def test_modules_import_downward_only():
    order = list(LAYERS)

    for module, (allowed, _) in LAYERS.items():
        later = set(order[order.index(module) :])
        assert not allowed & later, f"{module} imports {allowed & later}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_is_short_enough_to_read(file):
    lines = len(file.read_text().splitlines())

    assert lines <= LONGER.get(file.name, 620)


def test_public_names_are_sorted_and_there():
    assert vecstore.__all__ == sorted(vecstore.__all__)
    assert all(hasattr(vecstore, name) for name in vecstore.__all__)


@pytest.mark.parametrize("name", vecstore.__all__)
def test_a_public_name_has_a_docstring(name):
    thing = getattr(vecstore, name)

    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            if callable(value) and not method.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{method}"


def test_importing_vecstore_loads_no_heavy_library(run_python):
    loaded = run_python("import sys, vecstore; print(*sys.modules)").split()

    assert not {"numba", "onnxruntime", "tokenizers", "rich", "click"} & set(loaded)


def test_a_search_by_vector_loads_no_heavy_library(run_python):
    loaded = run_python("""
        import sys, vecstore
        with vecstore.open(":memory:") as db:
            points = db.collection("points", dim=2)
            points.add(vectors=[[1, 0], [0, 1]])
            points.search([1, 0], where={"a": 1})
        print(*sys.modules)
    """).split()

    assert not {"numba", "onnxruntime", "tokenizers", "rich", "click"} & set(loaded)


# docs/layout.md


def rows_of(section: str) -> list[list[list[str]]]:
    (text,) = re.findall(rf"^## \d+\. {section}$(.*?)(?=^## |\Z)", LAYOUT, re.M | re.S)
    return tables(text)


def test_the_databases_are_those_of_the_layout():
    (rows,) = rows_of("The environment")

    assert tuple(row[0] for row in rows) == layout.DATABASES


def test_the_header_is_that_of_the_layout():
    header, *_ = rows_of("Bulk values")
    fields, at = "", 0
    for name, offset, size, _ in header:
        assert int(offset) == at, name
        at += int(size)
        plain = {"1": "B", "2": "H", "4": "I", "8": "Q"}
        fields += {"magic": "4s", "unused": f"{size}x"}.get(name) or plain[size]

    assert layout.HEADER.format == "<" + fields
    assert layout.HEADER.size == at == 48
    crc = next(row for row in header if row[0] == "crc32")
    assert slice(int(crc[1]), int(crc[1]) + int(crc[2])) == layout.HEADER_CRC
    assert header[0][3] == f"`{layout.HEADER_MAGIC.decode()}`"


def test_kinds_and_dtypes_are_those_of_the_layout():
    header, *_ = rows_of("Bulk values")
    text = {row[0]: row[3] for row in header}

    kinds = ["full block", "live part", "list", "code block", "list part", "bundle", "byte block"]
    kinds += ["band", "segment", "segment rows"]
    dtypes = ["float32", "bits", "float16", "int8", "uint32"]
    for field, names in (("kind", kinds), ("dtype", dtypes)):
        known = {getattr(layout, name.replace(" ", "_").upper()): name for name in names}
        assert text[field] == ", ".join(f"{code} {name}" for code, name in sorted(known.items()))


def test_the_columns_of_a_block_are_those_of_the_layout():
    _, columns, forms, *_ = rows_of("Bulk values")

    assert [row[0] for row in columns] == ["orders", "norms", "scales", "vectors"]
    sizes = [layout.ORDERS_BYTES, layout.NORMS_BYTES, layout.SCALES_BYTES]
    assert [int(row[1].split()[0]) for row in columns[:3]] == sizes
    assert tuple(row[0] for row in forms) == (*spec.PRECISIONS, "bits")
    for precision, dtype, at, row_bytes in forms:
        for dim in (8, 64, 72, 8192):
            found = layout.form(declared(precision, dim))
            assert found.dtype.str == {"int8": "|i1"}.get(precision, f"<{dtype}")
            assert found.vectors_at == int(at)
            expected = 64 * eval(row_bytes, {"dim": dim, "ceil": math.ceil})
            assert found.block_bytes(64) - found.vectors_at == expected


def declared(precision, dim):
    if precision == "bits":
        return vecstore.CollectionSpec(name="c", dim=dim, metric="hamming")
    return vecstore.CollectionSpec(name="c", dim=dim, precision=precision)


def test_the_counters_are_those_of_the_layout():
    counters = rows_of("meta")[1]
    fields = "".join({"8": "Q", "4": "I"}[row[1]] for row in counters[:-3])
    names = [row[0] for row in counters]

    assert layout.STATE.format == "<" + fields
    assert [row[:2] for row in counters[-3:]] == [
        ["passages", "8 or none"],
        ["expiring", "8 or none"],
        ["earliest", "8 or none"],
    ]
    assert (layout.PASSAGES.format, layout.EXPIRY.format) == ("<Q", "<Qq")
    assert list(layout.State.__dataclass_fields__) == names


def test_a_record_begins_as_the_layout_says():
    (rows,) = rows_of("ids and records")

    assert [row[:2] for row in rows[:2]] == [["crc32", "4"], ["row", "4"]]
    assert record_layout.RECORD.format == "<II"


def test_the_bodies_of_records_and_passages_have_as_many_parts_as_the_layout_says():
    spans = ((0, 1), (1, 2))
    held = record_layout.Passages(spec.Chunking(5, 2, late=True), (7,), spans)
    bodies = [
        record_layout.pack_content("id", "ab", {"a": 1}, None),
        record_layout.pack_content("id", "ab", {"a": 1}, held),
        record_layout.pack_part(3, 1, 1, 2),
    ]
    found = [msgpack.unpackb(body) for body in bodies]

    assert "has three parts or six, and that of a passage four" in LAYOUT
    assert found[0] == ["id", "ab", {"a": 1}]
    assert found[1] == [*found[0], [5, 2, True], [7], [0, 1, 1, 2]]
    assert found[2] == [3, 1, 1, 2]


def example(metric, lists, dim=40):
    """A model of a collection, and codes of 40 rows."""
    model = models.untrained(np.zeros((0, dim), np.float32), metric, seed=1)
    centres = np.ones((lists + 1, 1), np.float32)
    model = model.with_lists(centres, np.zeros(lists, bool))
    vectors = np.random.default_rng(1).normal(size=(40, dim)).astype(np.float32)
    return model, model.encode(vectors, None, np.arange(40, dtype=np.uint32))


def test_the_parts_of_an_index_are_those_of_the_layout():
    parts, *_ = rows_of("The index")
    names = (index_layout.PLAN, index_layout.MODEL, index_layout.LISTED, index_layout.ROWS)

    assert [row[0].split()[0] for row in parts] == [f"`{name.decode()}`" for name in names]
    for name in names[:3]:
        assert index_layout.index_key(1, name) == b"\0\0\0\1" + name
    assert parts[3][0] == "`rows` part:4"
    assert index_layout.list_part_key(1, 2) == b"\0\0\0\1rows\0\0\0\2"


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_tiles_are_those_of_the_layout(metric):
    _, tile, *_ = rows_of("The index")
    model, found = example(metric, 0)
    packed = codes.pack_tiles(found, model.shape).reshape(2, -1)
    at, parts = 0, {}
    for name, size, _ in tile:
        count = eval(size.split(" ", 1)[0], {}) if "*" not in size else 16 * model.groups
        count = 0 if "`distances`" in size and not model.distances else count
        parts[name] = packed[:, at : at + count]
        at += count

    assert at == packed.shape[1]
    halves = parts["codes"].reshape(2, model.groups, 16)
    for row in (0, 5, 16, 31, 39):
        byte = halves[row // 32, :, row % 16]
        assert ((byte >> 4 if row % 32 >= 16 else byte & 15) == found.groups[row]).all()
    for name in ("scales", "offsets")[: 1 + model.distances]:
        assert (parts[name].copy().view("<f4").reshape(-1)[:40] == getattr(found, name)).all()
    assert not (halves[1] >> 4).any()
    assert not halves[1, :, 8:].any()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_fine_codes_are_those_of_the_layout(metric):
    _, _, fine, *_ = rows_of("The index")
    model, found = example(metric, 0, dim=100)
    packed = codes.pack_fine(found, model.shape).reshape(40, -1)
    heads = [row for row in fine[:2] if "`distances`" not in row[1] or model.distances]
    numbers = packed[:, 4 * len(heads) :]

    assert [row[0] for row in fine] == ["scale", "offset", "numbers"]
    assert fine[2][1] == "32 for each 64 dimensions"
    assert numbers.shape == (40, 64)
    columns = packed[:, : 4 * len(heads)].copy().view("<f4").T
    wanted = (found.fine_scales, found.offsets)[: len(heads)]
    assert all((column == one).all() for column, one in zip(columns, wanted, strict=True))
    levels = codes.unpack_fine(found.fine, 100)
    for dim in (0, 31, 32, 63, 64, 99):
        byte = numbers[:, dim // 64 * 32 + dim % 32]
        number = byte >> 4 if dim % 64 >= 32 else byte & 15
        assert (levels[:, dim] == number - 7.5).all()


def test_a_list_and_a_block_of_codes_are_those_of_the_layout():
    model, found = example("cosine", 3)
    tiles, fine = codes.pack_tiles(found, model.shape), codes.pack_fine(found, model.shape)
    parts = tiles, fine, found.rows, model.groups, 4096
    listed = index_layout.pack_codes(7, layout.LIST, 2, *parts)
    header = layout.verify_bulk(listed, "list")
    names = np.frombuffer(listed, "<u4", 64, layout.HEADER.size + len(tiles))

    assert (header.rows, header.width, header.first) == (40, model.groups, 2)
    assert header.length == len(tiles) + 64 * 4 + len(fine)
    assert (names[:40] == found.rows).all()
    assert (names[40:] == 2**32 - 1).all()
    payload = listed[layout.HEADER.size : layout.HEADER.size + header.length]
    assert payload.endswith(fine.tobytes())
    block = index_layout.pack_codes(7, layout.CODE_BLOCK, 0, *parts)
    assert layout.verify_bulk(block, "codes").length == len(tiles) + len(fine)
    assert layout.block_key(7, 2, layout.CODE_TIER) == b"\0\0\0\7\1\0\0\0\2"
    assert index_layout.list_key(7, 2) == b"\0\0\0\7\0\0\0\2"


def test_a_bundle_is_that_of_the_layout():
    *_, bundle, _ = rows_of("The index")
    arrays = {"a": np.arange(3, dtype="<f4"), "b": np.ones((2, 3), np.int8)}
    value = index_layout.pack_bundle(7, {"x": 1}, arrays, 4096)
    payload = bytes(value[layout.HEADER.size :])
    size = int.from_bytes(payload[:4], "little")
    values, directory = msgpack.unpackb(payload[4 : 4 + size])

    assert [row[:2] for row in bundle] == [["size", "4"], ["directory", "size"], ["arrays", "rest"]]
    assert values == {"x": 1}
    assert directory == [["a", "<f4", [3], 0], ["b", "|i1", [2, 3], 64]]
    assert payload[4 + size :][:12] == arrays["a"].tobytes()
    assert layout.verify_bulk(value, "bundle").rows == 2


def test_the_arrays_of_a_model_are_those_of_the_layout():
    *_, table = rows_of("The index")
    model, _ = example("l2", 3)
    values, arrays = models.to_parts(model)
    sizes = {"dim": 40, "coarse": 1, "known": 0, "lists": 3, "lists + 1": 4}
    sizes["rounds"] = rotation.ROUNDS

    assert values.keys() == {"bits", "coarse", "coded", "distances", "shapes"}
    assert set(arrays) == {row[0] for row in table}
    for name, dtype, shape, _ in table:
        wanted = [sizes[part.strip()] for part in shape.split(",")]
        if name in values["shapes"]:
            assert values["shapes"][name] == wanted
            wanted = [max(1, -(-wanted[0] // 16)), -(-wanted[1] // 16) * 4, 64]
        elif name.endswith("_scales"):
            wanted = [max(1, -(-wanted[0] // 16)) * 16]
        assert list(arrays[name].shape) == wanted, name
        assert arrays[name].dtype == np.dtype(dtype), name


def test_a_plan_and_the_listed_blocks_are_those_of_the_layout(memory):
    assert "`kind` (" + ", ".join(f'"{kind}"' for kind in index.KINDS) + ")" in LAYOUT
    memory.collection("c", dim=2, index="hash")
    points = memory.collection("d", dim=2, index="ivf")
    points.add(vectors=np.random.default_rng(1).normal(size=(600, 2)))

    with memory.reading() as reader:
        plan, listed = (
            reader.get("index", index_layout.index_key(2, name)) for name in (b"plan", b"listed")
        )
    found = layout.unpack_meta(plan, "plan")
    assert list(found) == re.findall("`(.*?)`", rows_of("The index")[0][0][1])[1:]
    assert (len(found["edition"]), found["trained"], found["arrived"]) == (8, 600, 0)
    assert found["budgets"].keys() == {"gap", "fine", "levels", "sizes", "scanned", "measured"}
    assert layout.unpack_checked(listed, "listed") == b"\xff\x01"


def test_the_invariants_that_check_names_are_those_of_the_layout():
    (text,) = re.findall(r"^## \d+\. Invariants$(.*?)(?=^## )", LAYOUT, re.M | re.S)
    numbers = {int(number) for number in re.findall(r"^(\d+)\. ", text, re.M)}
    source = "".join(
        (PACKAGE / name).read_text()
        for name in ("check.py", "attached.py", "digests.py", "ann/verify.py", "fields/verify.py")
    )
    named = {
        int(n) for part in re.findall(r"\(((?:\d+, )*\d+)\)", source) for n in part.split(", ")
    }

    assert numbers == set(range(1, len(numbers) + 1))
    # Checksums are found where they are read.
    assert named | {8} == numbers


def test_limits_are_those_of_the_layout():
    assert f"at most {spec.MAX_ID_BYTES} bytes" in LAYOUT
    assert f"bitmap of {layout.PART_ROWS:,} rows" in LAYOUT
    assert f"extension {record_layout.DATETIME_CODE} is a datetime" in LAYOUT


def test_the_newest_format_is_the_last_one_of_the_layout():
    versions = rows_of("Versions")[-1]

    assert int(versions[-1][0]) == layout.FORMAT
    assert int(versions[0][0]) == layout.PLAIN_FORMAT == layout.OLDEST_READABLE
    assert (
        f"`format` ({layout.PLAIN_FORMAT}, or {layout.FORMAT} once there were passages or records"
        " that expire)" in LAYOUT
    )
