"""Is an acknowledged batch whole after a kill at any moment? A child writes, and is killed.

Each round of the child is one transaction: it replaces 50 records, adds others under keys that name
the round, and deletes those of the last round but one. Records that disagree about the round, or
about how many they are, would be half a batch.
"""

import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from indexed import SMALL_INDEXES, clusters, honest

import vecstore

KILLS = 24
DIM = 24

CHILD = textwrap.dedent(
    """
    import sys
    import numpy as np
    import vecstore

    path, durable, compacting, dim = sys.argv[1], sys.argv[2] == "1", sys.argv[3] == "1", 24
    rng = np.random.default_rng()
    db = vecstore.open(path, durable=durable, timeout=10)
    points = db.collection("points", dim=dim)
    log = db.collection("log", dim=2, metric="l2")
    start = log.get("round", include=("metadata",))
    number = 0 if start is None else start.metadata["round"]
    print("ready", flush=True)
    while True:
        number += 1
        size = int(rng.integers(1, 200))
        keys = [f"{number}:{place}" for place in range(size)]
        with db.transaction():
            # All old ones go, some keys stay for life and are replaced.
            points.delete(where={"round": {"$lt": number - 1}})
            points.upsert(
                vectors=np.full((50, dim), number) + rng.normal(size=(50, dim)),
                ids=range(50),
                metadata=[{"kept": number, "size": size}] * 50,
            )
            points.add(
                vectors=rng.normal(size=(size, dim)),
                ids=keys,
                metadata=[{"round": number, "size": size}] * size,
            )
            log.upsert(vectors=[number, size], ids="round", metadata={"round": number})
        print(number, flush=True)
        # A single call is a batch too: most rows of some blocks die, and they are repacked.
        doomed = [key for key in keys if rng.random() < 0.7]
        points.update(keys, metadata=[{"single": len(doomed)}] * size)
        points.delete(doomed)
        if compacting and number % 3 == 0:
            print("compact", flush=True)
            db.compact()
    """
)


# Each round replaces a part of the records, and then does whatever changes the index as a whole.
MAINTAINER = SMALL_INDEXES + textwrap.dedent(
    """
    import sys
    import numpy as np
    import vecstore

    db = vecstore.open(sys.argv[1], durable=False, timeout=10)
    points = db.collection("points")
    number = points.get(0, include=("metadata",)).metadata["n"]
    print("ready", flush=True)
    while True:
        number += 1
        ids = sorted({0, *range(number % 2, 500, 2)})
        vectors = np.random.default_rng(number).normal(size=(len(ids), 16))
        with db.transaction():
            points.upsert(vectors=vectors, ids=ids, metadata=[{"n": number}] * len(ids))
        print(number, flush=True)
        print("maintain", flush=True)
        if number % 3:
            points.reindex(["ivf", "hash", "auto"][number // 3 % 3])
        else:
            points.optimize()
    """
)


def check(path: Path, acknowledged: int) -> int:
    """Assert that the file holds whole batches, the acknowledged ones among them."""
    with vecstore.open(path, timeout=10) as db:
        assert db.check() == []
        if "log" not in db:
            assert acknowledged == 0
            return 0
        points, log = db.collection("points"), db.collection("log")
        found = log.get("round", include=("metadata", "vector"))
        if found is None:
            assert acknowledged == 0
            assert points.count() == 0
            return 0
        number = found.metadata["round"]
        assert number in (acknowledged, acknowledged + 1)
        records = list(points.scan(include=("metadata", "vector")))
        kept = [record for record in records if isinstance(record.id, int)]
        assert sorted(record.id for record in kept) == list(range(50))
        assert {record.metadata["kept"] for record in kept} == {number}
        for record in kept:
            assert np.abs(record.vector - number).max() < 10
        for earlier in (number - 1, number):
            batch = [
                record
                for record in records
                if isinstance(record.id, str) and record.id.startswith(f"{earlier}:")
            ]
            check_batch(batch, earlier)
        rounds = {int(record.id.split(":")[0]) for record in records if isinstance(record.id, str)}
        assert rounds <= {number - 1, number}
        assert len(points.search(np.ones(DIM), 1000)) == len(records)
        return number


def check_batch(batch: list[vecstore.Record], number: int) -> None:
    """A batch is as it was added, or updated whole, or thinned out whole."""
    if not batch:
        return
    assert {record.metadata["round"] for record in batch} == {number}
    (size,) = {record.metadata["size"] for record in batch}
    singles = {record.metadata.get("single") for record in batch}
    assert len(singles) == 1
    single = singles.pop()
    assert len(batch) in ({size} if single is None else {size, size - single})


class Killed:
    """A writing child, the number of its last acknowledged batch, and whether it compacts."""

    def __init__(self, path: Path, *, durable: bool, compacting: bool) -> None:
        self._begin(CHILD, str(path), str(int(durable)), str(int(compacting)))

    def _begin(self, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill_after(self, seconds: float, word: str | None = None) -> list[str]:
        """Kill after a time, or a time after the child said a word; return what it said."""
        said: list[str] = []
        assert self.process.stdout is not None
        while word is not None and word not in said:
            said.append(self.process.stdout.readline().strip())
        time.sleep(seconds)
        self.process.send_signal(signal.SIGKILL)
        said += self.process.stdout.read().split("\n")
        self.process.stdout.close()
        assert self.process.wait(10) == -signal.SIGKILL
        # A last line without its end was not acknowledged.
        return [line for line in said if line]


class KilledMaintainer(Killed):
    """A child that changes an index."""

    def __init__(self, path: Path) -> None:
        self._begin(MAINTAINER, str(path))


@pytest.mark.parametrize("compacting", [False, True])
def test_a_killed_writer_leaves_whole_batches_only(tmp_path: Path, compacting: bool) -> None:
    path, chance = tmp_path / "crash.vecstore", random.Random(7)
    acknowledged, compactions = 0, 0
    for turn in range(KILLS // 2):
        child = Killed(path, durable=turn % 4 == 0, compacting=compacting)
        word = "compact" if compacting and turn % 2 else None
        said = child.kill_after(chance.uniform(0, 0.02 if word else 0.2), word)
        numbers = [int(line) for line in said if line.isdigit()]
        compactions += said.count("compact")
        acknowledged = check(path, numbers[-1] if numbers else acknowledged)
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names <= {"crash.vecstore", "crash.vecstore-lock", "crash.vecstore-compact"}
    assert acknowledged > KILLS // 4
    assert compactions > 0 or not compacting


def test_an_index_survives_kills_while_it_is_made_and_changed(tmp_path: Path) -> None:
    path, chance, through = tmp_path / "crash.vecstore", random.Random(8), 0
    with vecstore.open(path) as db:
        points = db.collection("points", dim=16, metric="l2", index="ivf")
        points.add(vectors=clusters(500), ids=range(500), metadata=[{"n": 0}] * 500)
    acknowledged = 0
    for _ in range(8):
        said = KilledMaintainer(path).kill_after(chance.uniform(0, 0.4), "maintain")
        acknowledged = max(int(line) for line in said if line.isdigit())
        with vecstore.open(path, timeout=10) as db:
            assert db.check() == []
            points = db.collection("points")
            assert sorted(record.id for record in points.scan()) == [*range(500)]
            number = points.get(0, include=("metadata",)).metadata["n"]
            assert number in (acknowledged, acknowledged + 1)
            assert points.count({"n": number}) == 250 + number % 2
            through += honest(points, clusters(3, number))
    assert through >= 1
    with vecstore.open(path) as db:
        db.collection("points").reindex("ivf")
        assert honest(db.collection("points"), clusters(3, 1))
        assert db.check() == []


def test_the_copy_of_a_killed_compaction_is_taken_away_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "crash.vecstore"
    with vecstore.open(path) as db:
        db.collection("points", dim=2).add(vectors=np.ones((9, 2)))
        # A kill leaves a part of the copy.
        (tmp_path / "crash.vecstore-compact").write_bytes(bytes(100_000))
        db.compact()
        assert db.collection("points").count() == 9
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {"crash.vecstore", "crash.vecstore-lock"}
