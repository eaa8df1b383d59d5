"""Is a file known whose last writes may not be on the disk, and read whole before it is used?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import CorruptionError, layout
from vecstore.store import unsynced

MARKED = b"unsynced"


def marked(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(unsynced.MARK_AT)
        return file.read(8) == MARKED


@pytest.fixture
def start_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The system goes down and comes back."""

    def start() -> None:
        boot = tmp_path / "boot_id"
        boot.write_text("9a2f1c1e-8a7e-4b21-a7d5-0f6f3c1d2b3a\n")
        monkeypatch.setattr(unsynced, "BOOT", boot)

    return start


@pytest.fixture
def killed(path: Path, run_python) -> Path:
    """A file whose writer did not wait for the disk, and was killed."""
    run_python(
        """
        import os, sys
        import numpy as np
        import vecstore
        db = vecstore.open(sys.argv[1], durable=False)
        rng = np.random.default_rng(1)
        points = db.collection("points", dim=16, metric="l2")
        points.add(vectors=rng.normal(size=(500, 16)), ids=range(500))
        os._exit(0)
        """,
        path,
    )
    return path


def damage(path: Path, payload: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.rindex(payload)
    data[at : at + len(payload)] = bytes(len(payload))
    path.write_bytes(data)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_that_was_closed_is_never_in_doubt(path: Path, durable: bool) -> None:
    with vecstore.open(path, durable=durable) as db:
        assert marked(path) is not durable
        db.collection("points", dim=2).add(vectors=[1, 0])
    assert not marked(path)


def test_a_file_that_others_have_open_stays_marked(path: Path, run_python) -> None:
    with vecstore.open(path) as db:
        db.collection("points", dim=2)
        program = """
        import sys, vecstore
        with vecstore.open(sys.argv[1], durable=False) as db:
            db.collection("points").add(vectors=[1, 0])
        """
        run_python(program, path)
        assert marked(path)


def test_a_killed_writer_leaves_no_doubt_while_the_system_runs(killed: Path) -> None:
    with vecstore.open(killed) as db:
        assert db.collection("points").count() == 500
    # To open it for the first time in a running would have taken it away.
    assert marked(killed)


def test_a_sound_file_is_trusted_once_it_was_read(killed: Path, start_anew) -> None:
    start_anew()
    with vecstore.open(killed, read_only=True) as db:
        assert db.collection("points").count() == 500
    assert marked(killed)
    with vecstore.open(killed) as db:
        assert db.collection("points").count() == 500
    assert not marked(killed)


@pytest.mark.parametrize("read_only", [False, True])
def test_damage_anywhere_is_found_before_it_is_answered_with(
    killed: Path, start_anew, read_only: bool
) -> None:
    vectors = np.random.default_rng(1).normal(size=(500, 16))
    damage(killed, vectors[300].astype(np.float32).tobytes())
    vecstore.open(killed, read_only=read_only).close()
    start_anew()
    for _ in range(2):
        with pytest.raises(CorruptionError, match=r"durable=False.*restore a backup"):
            vecstore.open(killed, read_only=read_only)


def test_damage_of_the_engines_pages_is_found_before_it_trusts_them(
    killed: Path, start_anew
) -> None:
    data = bytearray(killed.read_bytes())
    # All but the headers.
    data[2 * 4096 :] = bytes(len(data) - 2 * 4096)
    killed.write_bytes(data)
    start_anew()
    with pytest.raises(CorruptionError, match=r"durable=False.*restore a backup"):
        vecstore.open(killed)


def test_a_system_without_a_name_for_its_running_is_always_in_doubt(
    path: Path, killed: Path, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(unsynced, "BOOT", tmp_path / "none")
    with vecstore.open(killed, durable=False) as db:
        db.collection("points").delete([1])
        with path.open("rb") as file:
            assert unsynced.is_in_doubt(file.fileno())


def test_an_old_files_mark_lies_where_it_has_zeros() -> None:
    for file in (Path(__file__).parent / "data").glob("*.vecstore"):
        assert not any(file.read_bytes()[168:4096])
    assert layout.FORMAT == 2
