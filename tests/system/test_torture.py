"""Is an acknowledged transaction whole after a kill, or a power cut, at any moment?

The short form of benchmarks/torture.py.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from campaign import Campaign, Kill
from power import cut_power
from steps import small_parts, warm
from syscalls import reason_against

import vecstore
from vecstore import maintenance
from vecstore.fields import upkeep

seen = pytest.mark.skipif(bool(reason_against()), reason=reason_against())
STARTS = ("", "format_1", "format_1_stored")


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in (
        (maintenance, ("AUTO_ROWS", "AUTO_BYTES", "BACKLOG")),
        (upkeep, ("LEAST", "MERGED")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    small_parts()
    warm()


@pytest.mark.parametrize("start", STARTS)
def test_a_writer_killed_at_any_moment_leaves_whole_transactions(tmp_path: Path, start: str):
    chance, run = random.Random(7), Campaign(tmp_path, 7, start)
    run.live(most=12)
    for turn in range(4):
        run.live(Kill(seconds=chance.uniform(0, 0.2)), durable=turn % 4 == 0)
    run.finish()
    assert run.kills.total() == 4
    assert run.acknowledged > 12


@seen
@pytest.mark.parametrize("start", STARTS)
def test_a_writer_killed_between_any_calls_leaves_whole_transactions(tmp_path: Path, start: str):
    chance, run = random.Random(8), Campaign(tmp_path, 8, start)
    run.live(most=12)
    for turn in range(4):
        run.live(Kill(call=chance.randrange(30), torn=turn % 3 == 0), durable=turn % 4 == 0)
    run.finish()
    assert run.kills.total() >= 3


@seen
@pytest.mark.parametrize("kind", ["transaction", "compact", "upgrade"])
def test_a_writer_killed_at_each_call_of_a_step_leaves_it_whole_or_undone(
    tmp_path: Path, kind: str
):
    run = Campaign(tmp_path, 9, "format_1")
    run.live(most=12)
    run.sweep(kind, most_places=5)
    assert sum(run.kills[kind, how] for how in ("between calls", "within a write")) >= 4
    run.finish()


@seen
@pytest.mark.parametrize("durable", [False, True])
def test_a_new_file_can_be_opened_whenever_its_maker_was_killed(tmp_path: Path, durable: bool):
    run = Campaign(tmp_path, 10)
    run.sweep(None, durable=durable)
    assert run.kills["opening", "between calls"] >= 5


@seen
@pytest.mark.parametrize("early", [0, 12])
def test_what_was_acknowledged_survives_a_power_cut(early: int) -> None:
    start = "format_1" if early else ""
    counts = cut_power(4, start, durable=True, early=early, most=5, count=10)
    assert counts == {"whole": 10}


@seen
def test_whoever_makes_a_file_is_given_it_again_after_a_power_cut() -> None:
    assert cut_power(5, "", durable=True, early=0, most=0, count=30) == {"whole": 30}


@seen
def test_damage_by_a_power_cut_is_refused_where_nothing_was_synced() -> None:
    counts = cut_power(4, "format_1", durable=False, early=12, most=6, count=24)
    assert counts.total() == 24
    assert set(counts) <= {"whole", "refused"}
    assert counts["whole"] < 24


@seen
def test_a_rewritten_file_is_whole_on_the_disk_before_it_has_its_name() -> None:
    """One of the first format gets a database then that it lacked."""
    counts = cut_power(61010, "format_1", durable=False, early=0, most=12, count=60)
    assert counts.total() == 60


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
