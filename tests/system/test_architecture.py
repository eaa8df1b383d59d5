"""What docs/architecture.md and docs/layout.md say, compared with the code."""

import ast
import inspect
import math
import re
import sys
from pathlib import Path

import pytest

import vecstore
from vecstore import layout, spec

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vecstore"
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
LAYOUT = (ROOT / "docs/layout.md").read_text()
# The standard library, and what stands above the layers.
FREE = {*sys.stdlib_module_names}
LONGER = {"kernels.py": 3000}


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
    codes, at = "", 0
    for name, offset, size, _ in header:
        assert int(offset) == at, name
        at += int(size)
        plain = {"1": "B", "2": "H", "4": "I", "8": "Q"}
        codes += {"magic": "4s", "unused": f"{size}x"}.get(name) or plain[size]

    assert layout.HEADER.format == "<" + codes
    assert layout.HEADER.size == at == 48
    crc = next(row for row in header if row[0] == "crc32")
    assert slice(int(crc[1]), int(crc[1]) + int(crc[2])) == layout.HEADER_CRC
    assert header[0][3] == f"`{layout.HEADER_MAGIC.decode()}`"


def test_kinds_and_dtypes_are_those_of_the_layout():
    header, *_ = rows_of("Bulk values")
    text = {row[0]: row[3] for row in header}

    assert text["kind"] == f"{layout.FULL_BLOCK} full block, {layout.LIVE_PART} live part"
    codes = {"float32": layout.FLOAT32, "bits": layout.BITS}
    codes |= {"float16": layout.FLOAT16, "int8": layout.INT8}
    assert text["dtype"] == ", ".join(f"{code} {name}" for name, code in codes.items())


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
    codes = "".join({"8": "Q", "4": "I"}[row[1]] for row in counters)
    names = [row[0] for row in counters]

    assert layout.STATE.format == "<" + codes
    assert [*layout.State.__dataclass_fields__, "unused"] == names


def test_a_record_begins_as_the_layout_says():
    (rows,) = rows_of("ids and records")

    assert [row[:2] for row in rows[:2]] == [["crc32", "4"], ["row", "4"]]
    assert layout.RECORD.format == "<II"


def test_limits_are_those_of_the_layout():
    assert f"at most {spec.MAX_ID_BYTES} bytes" in LAYOUT
    assert f"bitmap of {layout.PART_ROWS:,} rows" in LAYOUT
    assert f"extension {layout.DATETIME_CODE} is a datetime" in LAYOUT


def test_the_newest_format_is_the_last_one_of_the_layout():
    versions = rows_of("Versions")[-1]

    assert int(versions[-1][0]) == layout.FORMAT
    assert f"`format` ({layout.FORMAT}), `oldest_readable` ({layout.OLDEST_READABLE})" in LAYOUT
