"""Do processes share a file? Readers see whole batches while one writes, and writers take turns."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import SMALL_INDEXES, clusters, honest

import vecstore
from vecstore import LockedError

Start = Callable[..., subprocess.Popen[str]]

# Every batch gives all 150 records one new number, in their vectors and their metadata, and adds
# others for those of the last batch; so two numbers in one view would be half a batch.
WRITER = """
import sys
import numpy as np
import vecstore

rng = np.random.default_rng(1)
with vecstore.open(sys.argv[1], durable=False) as db:
    points = db.collection("points", dim=8, metric="l2")
    print("ready", flush=True)
    for number in range(1, int(sys.argv[2]) + 1):
        extra = int(rng.integers(1, 120))
        with db.transaction():
            points.delete(where={"extra": True})
            points.upsert(
                vectors=np.full((150, 8), number), ids=range(150), metadata=[{"n": number}] * 150
            )
            points.add(
                vectors=np.full((extra, 8), -number),
                ids=[f"{number}:{place}" for place in range(extra)],
                metadata=[{"n": number, "extra": True, "of": extra}] * extra,
            )
    print("done", flush=True)
"""

READER = """
import sys
import numpy as np
import vecstore

last, seen = 0, set()
with vecstore.open(sys.argv[1], read_only=sys.argv[2] == "1") as db:
    points = db.collection("points")
    print("ready", flush=True)
    while last < int(sys.argv[3]):
        with db.snapshot() as view:
            frozen = view.collection("points")
            hits = frozen.search(np.zeros(8), 1000, include=("metadata", "vector"))
            numbers = {hit.metadata["n"] for hit in hits}
            assert len(numbers) <= 1, numbers
            if not numbers:
                continue
            (number,) = numbers
            assert number >= last
            extras = [hit for hit in hits if isinstance(hit.id, str)]
            assert len(hits) == 150 + len(extras) == frozen.count()
            assert len(extras) == extras[0].metadata["of"] == frozen.count({"extra": True})
            for hit in hits:
                expected = -number if isinstance(hit.id, str) else number
                assert (hit.vector == expected).all(), (hit, number)
            records = list(frozen.scan(include=("metadata",)))
            assert sorted(map(str, hits.ids)) == sorted(str(record.id) for record in records)
        hits = points.search(np.full(8, number), 10, where={"extra": {"$exists": False}})
        assert len(hits) == 10
        assert len({hit.metadata["n"] for hit in hits}) == 1
        last = number
        seen.add(number)
    assert db.check() == []
print(len(seen), flush=True)
"""


INDEX_READER = """
import sys
import numpy as np
import vecstore
from indexed import clusters, honest

last, through = 0, 0
queries = clusters(2, 7)
with vecstore.open(sys.argv[1], read_only=sys.argv[2] == "1") as db:
    points = db.collection("points")
    print("ready", flush=True)
    while last < int(sys.argv[3]):
        with db.snapshot() as view:
            frozen = view.collection("points")
            through += honest(frozen, queries)
            hits = frozen.search(queries[0], 10)
            (number,) = {hit.metadata["n"] for hit in hits}
            assert frozen.count({"n": number}) == frozen.count() == 490
        assert number >= last
        last = number
        hits = points.search(queries[1], 10, where={"n": {"$gte": last}})
        assert len(hits) == len(set(hits.ids)) == 10
        assert len({hit.metadata["n"] for hit in hits}) == 1
    assert db.check() == []
print(through, flush=True)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Run programs in processes of their own; at the end all must have exited with 0."""
    started: list[subprocess.Popen[str]] = []

    def begin(program: str, *arguments: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
        # What tests share is there for their programs too.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        started.append(process)
        return process

    try:
        yield begin
        for process in started:
            process.communicate(timeout=60)
            assert process.returncode == 0
    finally:
        for process in started:
            process.kill()
            process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_read_whole_batches_while_one_writes(path: Path, start: Start) -> None:
    rounds = 60
    with vecstore.open(path) as db:
        db.collection("points", dim=8, metric="l2")
    readers = [start(READER, path, read_only, rounds) for read_only in (0, 1)]
    assert [said(reader) for reader in readers] == ["ready", "ready"]
    writer = start(WRITER, path, rounds)
    assert [said(writer), said(writer)] == ["ready", "done"]
    for reader in readers:
        assert int(said(reader)) >= 1


# Every batch replaces all records, so lists are trained anew again and again.
MAINTAINER = (
    SMALL_INDEXES
    + """
import sys
import numpy as np
import vecstore

with vecstore.open(sys.argv[1], durable=False) as db:
    points = db.collection("points")
    kinds = ["hash", "ivf", "auto"]
    for number in range(1, int(sys.argv[2]) + 1):
        vectors = np.random.default_rng(number).normal(size=(400, 16))
        with db.transaction():
            points.upsert(vectors=vectors, ids=range(400), metadata=[{"n": number}] * 400)
            points.delete(range(400, 500))
            points.add(vectors=-vectors[:90], ids=range(400, 490), metadata=[{"n": number}] * 90)
        if number % 2:
            points.reindex(kinds[number // 2 % 3])
        else:
            points.optimize()
    print("done", flush=True)
"""
)


def test_processes_search_an_index_while_another_one_changes_it(path: Path, start: Start) -> None:
    rounds = 5
    with vecstore.open(path) as db:
        points = db.collection("points", dim=16, metric="l2", index="ivf")
        points.add(vectors=clusters(490), ids=range(490), metadata=[{"n": 0}] * 490)
    readers = [start(INDEX_READER, path, read_only, rounds) for read_only in (0, 1)]
    assert [said(reader) for reader in readers] == ["ready", "ready"]
    writer = start(MAINTAINER, path, rounds)
    assert said(writer) == "done"
    for reader in readers:
        assert int(said(reader)) >= 1
    with vecstore.open(path) as db:
        assert db.check() == []
        assert honest(db.collection("points"), clusters(3))


def test_a_reader_sees_what_another_process_wrote(path: Path, start: Start) -> None:
    with vecstore.open(path) as db:
        points = db.collection("points", dim=2)
        assert points.count() == 0
        other = start(
            """
            import sys, vecstore
            with vecstore.open(sys.argv[1]) as db:
                db.collection("points").add(vectors=[[1, 0], [0, 1]], ids=["a", "b"])
            print("done", flush=True)
            """,
            path,
        )
        assert said(other) == "done"
        assert points.search([1, 0]).ids == ["a", "b"]
        assert db.check() == []


HOLDER = """
import sys, vecstore
with vecstore.open(sys.argv[1]) as db:
    points = db.collection("points")
    with db.transaction():
        points.add(vectors=[1, 0], ids="held")
        print("holding", flush=True)
        sys.stdin.readline()
"""


def test_a_writer_waits_for_another_process_no_longer_than_its_timeout(
    path: Path, start: Start
) -> None:
    with vecstore.open(path) as db:
        points = db.collection("points", dim=2)
        points.add(vectors=[0, 1], ids="first")
        holder = start(HOLDER, path)
        assert said(holder) == "holding"
        with pytest.raises(LockedError, match=r"more than 0\.05 s"):
            points.add(vectors=[1, 1], ids="second", timeout=0.05)
        with pytest.raises(LockedError), db.transaction(timeout=0):
            raise AssertionError("the transaction began")
        # Reading does not wait.
        assert [record.id for record in points.scan()] == ["first"]
        holder.communicate("\n", timeout=30)
        points.add(vectors=[1, 1], ids="second")
        assert [record.id for record in points.scan()] == ["first", "held", "second"]


def test_a_killed_writer_gives_up_the_right_to_write(path: Path, start: Start) -> None:
    with vecstore.open(path) as db:
        points = db.collection("points", dim=2)
        command = [sys.executable, "-c", HOLDER, str(path)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert said(holder) == "holding"
        holder.kill()
        holder.communicate()
        points.add(vectors=[1, 1], ids="next", timeout=10)
        assert [record.id for record in points.scan()] == ["next"]
        assert db.check() == []


def test_writers_of_two_processes_lose_nothing(path: Path, start: Start) -> None:
    program = """
    import sys, vecstore
    with vecstore.open(sys.argv[1], durable=False) as db:
        points = db.collection("points", dim=2)
        for number in range(150):
            points.add(vectors=[1, number], ids=f"{sys.argv[2]}:{number}")
    """
    for process in [start(program, path, name) for name in ("a", "b")]:
        process.communicate(timeout=60)
    with vecstore.open(path) as db:
        points = db.collection("points")
        found = [record.id for record in points.scan()]
        assert sorted(found) == sorted(f"{name}:{n}" for name in "ab" for n in range(150))
        for name in "ab":
            own = [key for key in found if key.startswith(name)]
            assert own == [f"{name}:{number}" for number in range(150)]
        assert db.check() == []


def test_a_file_is_whole_for_whoever_opens_it_while_it_is_compacted(
    path: Path, start: Start
) -> None:
    with vecstore.open(path) as db:
        points = db.collection("points", dim=16)
        points.add(vectors=np.random.default_rng(0).normal(size=(300, 16)), ids=range(300))
    compacter = start(
        """
        import sys, time, vecstore
        done = 0
        with vecstore.open(sys.argv[1], durable=False) as db:
            points = db.collection("points")
            print("ready", flush=True)
            while done < 20:
                try:
                    # An odd number of transactions between: LMDB's two headers take turns.
                    points.update(done % 300, metadata={"n": done})
                    db.compact(timeout=1)
                    done += 1
                except vecstore.LockedError:
                    time.sleep(0.001)
        print("done", flush=True)
        """,
        path,
    )
    assert said(compacter) == "ready"
    while compacter.poll() is None:
        with vecstore.open(path) as db:
            assert db.collections() == ["points"]
            assert db.collection("points").count() == 300
            assert db.check() == []
        time.sleep(0.01)
