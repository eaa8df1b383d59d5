"""Files of every format version keep opening, keep their content, and take writes."""

import importlib.util
import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import layout

DATA = Path(__file__).parents[1] / "data"
FORMATS = range(layout.OLDEST_READABLE, layout.FORMAT + 1)


@pytest.fixture(scope="module")
def golden():
    """The recipe's module, for its description of a file."""
    spec = importlib.util.spec_from_file_location("make_golden", DATA / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=FORMATS, ids=lambda number: f"format {number}")
def file(request, tmp_path):
    """A copy of a golden file; the original must not even get a lock file beside it."""
    name = f"format_{request.param}.vecstore"
    return shutil.copy(DATA / name, tmp_path / name)


@pytest.fixture
def expected(file):
    return json.loads((DATA / file.name).with_suffix(".json").read_text())


def assert_close(found, expected):
    """Equal, with floats to a tolerance: another BLAS may round differently."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    else:
        assert found == expected


@pytest.mark.parametrize("read_only", [False, True])
def test_an_old_file_opens_and_answers_as_it_did(file, expected, golden, read_only):
    with vecstore.open(file, read_only=read_only) as db:
        assert_close(json.loads(json.dumps(golden.describe(db))), expected)
        assert db.check() == []


def test_an_old_file_is_not_changed_by_reading(file, golden):
    before = file.read_bytes()
    with vecstore.open(file) as db:
        golden.describe(db)
        assert db.check() == []

    assert file.read_bytes() == before


def test_an_old_file_takes_writes(file, expected):
    with vecstore.open(file) as db:
        for name in expected:
            collection = db.collection(name)
            dim, before = collection.spec.dim, collection.count()
            vectors = np.eye(2, dim, dtype=np.float32)
            collection.upsert(vectors=vectors, ids=["new", "newer"], metadata=[{"a": 1}, {}])
            collection.update("new", metadata={"b": 2})
            assert collection.count() == before + 2
            assert collection.delete("newer") == 1
            assert collection.get("new").metadata == {"a": 1, "b": 2}
        db.rename("empty", "not empty")
        db.drop("kinds")
        assert db.check() == []
        db.compact()
        assert db.check() == []


def test_an_old_file_can_be_copied(file, expected, golden, tmp_path):
    with vecstore.open(file) as db:
        db.backup(tmp_path / "copy.vecstore")
    with vecstore.open(tmp_path / "copy.vecstore") as copy:
        assert_close(json.loads(json.dumps(golden.describe(copy))), expected)


def test_the_newest_format_has_a_golden_file():
    assert (DATA / f"format_{layout.FORMAT}.vecstore").exists()


def test_what_is_written_today_reads_like_the_golden_file(golden, expected):
    with vecstore.open(":memory:") as db:
        golden.fill(db)
        found = json.loads(json.dumps(golden.describe(db)))
    for name, entry in expected.items():
        # The encoder may have changed since; the format has not.
        if name != "notes":
            assert_close(found[name], entry)


def test_golden_files_are_small_and_nobodys_database():
    for file in DATA.glob("*.vecstore"):
        assert file.stat().st_size < 300_000
        assert not stat.S_IXUSR & file.stat().st_mode
    assert not list(DATA.glob("*-lock"))
