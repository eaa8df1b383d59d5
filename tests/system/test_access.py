"""Who can read the files, and what does the package reach for beyond them?"""

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore

PACKAGE = Path(vecstore.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# Whatever opens a connection, runs a program or unpickles is told to audit hooks.
WATCHED = """
    import os, sys

    seen = []

    def hook(event, arguments):
        if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "subprocess.",
                             "os.system", "os.exec", "os.posix_spawn", "webbrowser.",
                             "pickle.find_class")):
            seen.append(event)

    sys.addaudithook(hook)
"""
MAIN_JOB = """
    import numpy as np
    import vecstore
    from vecstore import Chunking

    with vecstore.open(sys.argv[1]) as db:
        notes = db.collection("notes")
        notes.add(["a memory-mapped tree", "a late train. It came. " * 50], ids=["a", "b"],
                  metadata=[{"n": 1}, {"n": 2}], chunk=Chunking(tokens=40))
        assert notes.search("an embedded store", 1, where={"n": {"$lt": 3}}).ids
        points = db.collection("points", dim=16)
        points.add(vectors=np.random.default_rng(1).normal(size=(12_000, 16)))
        points.optimize(progress=False)
        points.search(np.ones(16))
        db.compact(secure=True)
        db.backup(sys.argv[1] + ".copy")
        assert db.check() == []
    sockets = [name for name in os.listdir("/proc/self/fd")
               if os.path.islink(f"/proc/self/fd/{name}")
               and os.readlink(f"/proc/self/fd/{name}").startswith("socket:")]
    print(sorted(set(seen)), sockets)
"""


@pytest.fixture
def open_mask() -> Iterator[None]:
    """A umask that takes nothing away."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_mask")
def test_new_files_are_for_their_owner_alone(path: Path) -> None:
    with vecstore.open(path) as db:
        found = db.collection("c", dim=4)
        found.add(vectors=np.eye(4))
        lock = path.with_name(f"{path.name}-lock")
        assert (mode_of(path), mode_of(lock)) == (0o600, 0o600)
        copy = path.with_name("copy.vecstore")
        db.backup(copy)
        assert mode_of(copy) == 0o600
        for secure in (False, True):
            db.compact(secure=secure)
            assert (mode_of(path), mode_of(lock)) == (0o600, 0o600)
    with vecstore.open(copy):
        assert mode_of(copy.with_name("copy.vecstore-lock")) == 0o600


def test_the_main_job_opens_no_connection_and_runs_no_program(
    path: Path, run_python: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Without a cache of compiled code nothing of it is read.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run_python(WATCHED + MAIN_JOB, path).strip() == "[] []"


@pytest.mark.parametrize("file", MODULES, ids=[str(file.relative_to(PACKAGE)) for file in MODULES])
def test_no_module_evaluates_unpickles_or_connects(file: Path) -> None:
    """But for the cache of compiled code, in a folder that only the user can write to."""
    forbidden = {"eval", "exec", "compile", "__import__"}
    modules = {"pickle", "marshal", "shelve", "socket", "urllib", "http", "requests", "ftplib"}
    allowed = {"pickle"} if file.name == "compiled.py" else set()
    met = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            met |= {node.func.id} & forbidden
        if isinstance(node, ast.Import):
            met |= {name.name.partition(".")[0] for name in node.names} & modules
        if isinstance(node, ast.ImportFrom) and node.module:
            met |= {node.module.partition(".")[0]} & modules
    assert met <= allowed
