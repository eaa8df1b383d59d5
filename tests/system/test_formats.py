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
FILES = sorted(DATA.glob("format_*.vecstore"))
# What answers and counts of an index depend on, beside the format.
LEARNT = {"index", "tail", "approximate", "filtered"}


@pytest.fixture(scope="module")
def golden():
    """The recipe's module, for its description of a file."""
    spec = importlib.util.spec_from_file_location("make_golden", DATA / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request, tmp_path):
    """A copy of a golden file; the original must not even get a lock file beside it."""
    return shutil.copy(request.param, tmp_path / request.param.name)


@pytest.fixture
def expected(file):
    return json.loads((DATA / file.name).with_suffix(".json").read_text())


@pytest.fixture
def recipe(golden, file):
    """How the file was filled, and what is in a database like it, as JSON has it."""
    fill, describe = golden.RECIPES[file.stem]
    return fill, lambda db: json.loads(json.dumps(describe(db)))


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
def test_an_old_file_opens_and_answers_as_it_did(file, expected, recipe, read_only):
    _, describe = recipe
    with vecstore.open(file, read_only=read_only) as db:
        assert_close(describe(db), expected)
        assert db.check() == []


def test_an_old_file_is_not_changed_by_reading(file, recipe):
    _, describe = recipe
    before = file.read_bytes()
    with vecstore.open(file) as db:
        describe(db)
        assert db.check() == []

    assert file.read_bytes() == before


def new_vectors(collection, count):
    vectors = np.eye(count, collection.spec.dim, dtype=np.float32)
    return vectors > 0 if collection.spec.metric == "hamming" else vectors


def test_an_old_file_takes_writes(file, expected):
    with vecstore.open(file) as db:
        for name in expected:
            collection = db.collection(name)
            before = collection.count()
            vectors = new_vectors(collection, 2)
            collection.upsert(vectors=vectors, ids=["new", "newer"], metadata=[{"a": 1}, {}])
            collection.update("new", metadata={"b": 2})
            assert collection.count() == before + 2
            assert collection.delete("newer") == 1
            assert collection.get("new").metadata == {"a": 1, "b": 2}
        first, *_, last = expected
        db.rename(first, "of another name")
        db.drop(last)
        assert db.check() == []
        db.compact()
        assert db.check() == []


def test_an_old_file_answers_as_it_did_after_writes(file, expected, recipe):
    _, describe = recipe
    with vecstore.open(file) as db:
        for name in expected:
            collection = db.collection(name)
            ids = [f"new {n}" for n in range(70)]
            collection.add(vectors=new_vectors(collection, 1).repeat(70, axis=0), ids=ids)
            assert collection.delete(ids) == 70
        found = describe(db)
        for name, entry in expected.items():
            # What was written and deleted may still have rows in the tail of an index.
            assert_close({**found[name], "tail": entry.get("tail")}, {"tail": None, **entry})
        assert db.check() == []


def test_the_indexes_of_an_old_file_can_be_kept_up_and_made_anew(file, expected):
    with vecstore.open(file) as db:
        for name in expected:
            collection = db.collection(name)
            if collection.spec.metric == "hamming":
                continue
            query = np.sin(np.arange(collection.spec.dim))
            right = collection.search(query, k=7, recall="exact")
            for kind in ("ivf", "hash", "auto"):
                collection.optimize()
                collection.reindex(kind)
                assert collection.search(query, k=7, recall="exact").ids == right.ids
                assert db.check() == []


def test_an_old_file_can_be_copied(file, expected, recipe, tmp_path):
    _, describe = recipe
    with vecstore.open(file) as db:
        db.backup(tmp_path / "copy.vecstore")
    with vecstore.open(tmp_path / "copy.vecstore") as copy:
        assert_close(describe(copy), expected)


def test_the_newest_format_has_all_golden_files(golden):
    assert set(golden.RECIPES) == {file.stem for file in FILES}
    assert any(name.startswith(f"format_{layout.FORMAT}") for name in golden.RECIPES)


def test_what_is_written_today_reads_like_the_golden_file(recipe, expected):
    fill, describe = recipe
    with vecstore.open(":memory:") as db:
        fill(db)
        found = describe(db)
    for name, entry in expected.items():
        # The encoder may have changed since, and what an index learns; the format has not.
        for part in () if name == "notes" else set(entry) - LEARNT:
            assert_close(found[name][part], entry[part])


def test_golden_files_are_small_and_nobodys_database():
    assert FILES
    for file in FILES:
        assert file.stat().st_size < 450_000
        assert not stat.S_IXUSR & file.stat().st_mode
    assert not list(DATA.glob("*-lock"))
