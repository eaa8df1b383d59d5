import os
import sys
from pathlib import Path
from typing import Any

import pytest

import vecstore
from vecstore import demo
from vecstore.errors import UsageError

SOURCE = '''
"""A module about boxes.

Second paragraph, long enough
to be the last.

Third paragraph.
"""

import os


class Box:
    """Holds things."""

    def put(self, thing):
        """Put a thing
        into the box."""

    def _hidden(self):
        """Not public."""

    def undocumented(self):
        return 1

    class Lid:
        """Closes a box."""

        def shut(self):
            """Shut the lid."""


def carry(box):
    """Carry a box."""
    return box


async def send(box):
    """Send a box away."""


try:
    import fast
except ImportError:
    def slow():
        """Only without the fast one."""
else:
    def slow():
        """A second definition of the name."""

if os:
    @decorate(
        1
    )
    def conditional():
        """Defined under a condition."""

raise RuntimeError("importing this file is the mistake that the test looks for")
'''


def library(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def ids(root: Path, **options: Any) -> list[str]:
    return [record["id"] for record in demo.stdlib_records(root, **options)]


def test_records_of_a_module(tmp_path: Path) -> None:
    root = library(tmp_path, {"boxes.py": SOURCE})

    records = {record["id"]: record for record in demo.stdlib_records(root)}

    assert list(records) == [
        "boxes",
        "boxes.Box",
        "boxes.Box.put",
        "boxes.Box.Lid",
        "boxes.Box.Lid.shut",
        "boxes.carry",
        "boxes.send",
        "boxes.slow",
        "boxes.conditional",
    ]
    expected = "boxes: A module about boxes. Second paragraph, long enough to be the last."
    assert records["boxes"]["text"] == expected
    assert records["boxes.Box.put"] == {
        "id": "boxes.Box.put",
        "text": "boxes.Box.put: Put a thing into the box.",
        "metadata": {"module": "boxes", "kind": "method", "name": "put", "lines": 3},
    }
    assert records["boxes.Box.Lid"]["metadata"]["kind"] == "class"
    assert records["boxes.slow"]["text"] == "boxes.slow: Only without the fast one."
    assert records["boxes.carry"]["metadata"] == {
        "module": "boxes",
        "kind": "function",
        "name": "carry",
        "lines": 3,
    }
    assert records["boxes.conditional"]["metadata"]["lines"] == 5


def test_nothing_is_imported(tmp_path: Path) -> None:
    before = set(sys.modules)

    ids(library(tmp_path, {"boxes.py": SOURCE}))

    assert "boxes" not in set(sys.modules) - before


def test_private_and_foreign_modules_are_left_out(tmp_path: Path) -> None:
    text = '"""Something."""\n'
    skipped = [
        "_private.py",
        "_package/inside.py",
        "test/support.py",
        "package/tests/case.py",
        "idlelib/editor.py",
        "lib2to3/pytree.py",
        "site-packages/numpy.py",
        "dist-packages/apt.py",
        "package/__pycache__/cached.py",
        "package/__main__.py",
        "config-3.11/makefile.py",
        "not-a-name.py",
        "data.txt",
    ]
    kept = {"plain.py": text, "package/__init__.py": text, "package/part.py": text}
    root = library(tmp_path, dict.fromkeys(skipped, text) | kept)

    assert ids(root) == ["plain", "package", "package.part"]


def test_limit_prefers_breadth(tmp_path: Path) -> None:
    classes = "".join(
        f'class C{i}:\n "c"\n' + "".join(f' def m{j}(self):\n  "m"\n' for j in range(3))
        for i in range(2)
    )
    source = f'"""Module."""\n{classes}def f():\n "f"\n'
    root = library(tmp_path, {"a.py": source, "b.py": '"""Other."""\n'})

    assert ids(root, limit=2) == ["a", "b"]
    assert ids(root, limit=4) == ["a", "a.C0", "a.C1", "b"]
    assert ids(root, limit=5) == ["a", "a.C0", "a.C1", "a.f", "b"]
    assert ids(root, limit=7) == ["a", "a.C0", "a.C0.m0", "a.C1", "a.C1.m0", "a.f", "b"]
    assert len(ids(root)) == 11
    assert ids(root, limit=0) == []


@pytest.mark.parametrize(
    "content",
    [
        b"def broken(:\n    pass\n",
        b'"""Nul."""\n\x00\n',
        b'"""Latin \xe9."""\n',
        b"# coding: no-such-codec\n'''Text.'''\n",
        b'"""Deep."""\nx = ' + b"(" * 5000 + b")" * 5000,
        b'"""Deep."""\nx = ' + b"-" * 100_000 + b"1",
        b'"""Deep."""\nx = ' + b"+".join([b"1"] * 50_000),
        b'"""Deep."""\nif a:\n    pass\n' + b"elif a:\n    pass\n" * 20_000,
        b'"""Big."""\n' + b"#" * demo.MAX_SOURCE_BYTES,
    ],
    ids=["syntax", "nul", "bytes", "codec", "parentheses", "unary", "sum", "elif", "big"],
)
def test_a_hostile_source_is_left_out(tmp_path: Path, content: bytes) -> None:
    root = library(tmp_path, {"bad.py": content, "good.py": '"""Good."""\n'})

    assert ids(root) == ["good"]


def test_a_long_chain_of_elif_is_walked(tmp_path: Path) -> None:
    chain = "if a:\n    pass\n" + "elif a:\n    pass\n" * 300
    source = f'{chain}else:\n    def last():\n        """Found."""\n'

    assert ids(library(tmp_path, {"chain.py": source})) == ["chain.last"]


def test_odd_docstrings(tmp_path: Path) -> None:
    sources = {
        "empty.py": '"""   """\n',
        "huge.py": '"""' + "word " * 200_000 + '"""\n',
        "solid.py": '"""' + "x" * 500_000 + '"""\n',
        "surrogate.py": '"""A \\ud800 alone."""\n',
        "escape.py": '"""A \\d that warns."""\n',
        "long.py": f'def {"n" * 600}():\n    """A name longer than an id may be."""\n',
    }

    records = {
        record["id"]: record["text"] for record in demo.stdlib_records(library(tmp_path, sources))
    }

    assert set(records) == {"huge", "solid", "surrogate", "escape"}
    assert all(len(text) <= demo.MAX_TEXT + 4 for text in records.values())
    assert records["huge"].endswith("word ...")
    assert records["surrogate"] == "surrogate: A ? alone."


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    root = library(tmp_path, {"good.py": '"""Good."""\n'})
    os.mkfifo(root / "pipe.py")
    (root / "loop").symlink_to(root)
    (root / "gone.py").symlink_to(root / "nowhere.py")
    (root / "folder.py").mkdir()

    assert ids(root) == ["good"]


def test_a_python_without_sources_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no documented Python sources"):
        list(demo.stdlib_records(tmp_path))


def test_the_real_library_has_what_everybody_knows() -> None:
    records = {record["id"]: record for record in demo.stdlib_records()}

    assert 2000 < len(records) <= demo.MAX_RECORDS
    assert {"shutil.rmtree", "json", "subprocess.run", "difflib.get_close_matches"} <= set(records)
    assert {record["metadata"]["kind"] for record in records.values()} == set(demo.KINDS)
    assert all(record["metadata"]["lines"] > 0 for record in records.values())


def test_changed_leaves_out_what_is_stored(tmp_path: Path) -> None:
    records = [
        {"id": "a", "text": "a: one", "metadata": {"lines": 1}},
        {"id": "b", "text": "b: two", "metadata": {"lines": 2}},
    ]
    with vecstore.open(":memory:") as db:
        docs = db.collection("docs", dim=2)
        docs.add_records({**record, "vector": [1.0, 0.0]} for record in records)
        moved = {"id": "b", "text": "b: two", "metadata": {"lines": 3}}

        assert demo.changed(docs, records) == []
        assert demo.changed(docs, [records[0], moved]) == [moved]


def test_farewell_quotes_the_path() -> None:
    said = demo.farewell("my notes/it's.vecstore")

    assert "vecstore search 'my notes/it'\"'\"'s.vecstore' " in said
    assert 'vecstore.open("my notes/it\'s.vecstore")' in said
