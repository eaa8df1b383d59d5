"""Is every acknowledged transaction whole after a kill? Writers that are killed, and an oracle.

A writer is a forked child that carries out steps and tells each through a pipe before it begins the
next. Its parent, which never opens the file, keeps what a plain dict would hold, and kills it: at a
moment, or before the n-th call to the operating system. The next child opens the file, compares all
of it with the oracle, and goes on writing in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from indexed import clusters
from reference import Model, same_record
from steps import DATA, DIM, ENCODER, HASH, Frozen, K, Steps, World, read_world
from syscalls import WRITES, Call, watched

import vecstore
from vecstore import Database

# Steps of a writer that is never killed.
STEPS = 60


def attach(db: Database) -> None:
    """Tell which encoders collections were made with."""
    for name, encoder in (("texts", ENCODER), ("notes", HASH)):
        if name in db:
            db.collection(name, encoder=encoder)


def find(db: Database, worlds: list[World], recall: list[int]) -> int:
    """Which of the worlds the file holds; it is sound, and answers as that one must."""
    assert db.check() == []
    names = db.collections()
    attach(db)
    found = {
        name: list(db.collection(name).scan(include=("text", "metadata", "vector")))
        for name in names
    }
    differences = [_difference(found, world) for world in worlds]
    # The newest: a step that changed nothing may be over.
    which = max((at for at, text in enumerate(differences) if not text), default=-1)
    assert which >= 0, f"the file is none of {len(worlds)} worlds: {differences}"
    for name in names:
        _check_answers(db.collection(name), worlds[which][name], recall)
    return which


def _difference(found: dict[str, list[vecstore.Record]], world: World) -> str:
    if sorted(found) != sorted(world):
        return f"{sorted(found)} for {sorted(world)}"
    for name, records in found.items():
        model = world[name]
        if [record.id for record in records] != list(model.rows):
            return f"{name} has {len(records)} records for {len(model.rows)}, or others"
        for record in records:
            if not same_record(record, model.record(record.id), model.metric):
                return f"{name}: record {record.id!r} is another one"
            if len(record.passages) != len(model.rows[record.id].passages):
                return f"{name}: record {record.id!r} has other passages"
    return ""


def _check_answers(points: vecstore.Collection, model: Model, recall: list[int]) -> None:
    assert points.count() == len(model.rows)
    assert points.count({"word": "red"}) == len(model.matching({"word": "red"}))
    if isinstance(model, Frozen):
        # The oracle would round once more what comes back rounded.
        query = model.own(np.ones(model.dim))
        assert set(points.search(query, len(model.rows) + 1).ids) == set(model.rows)
        return
    rng = np.random.default_rng(len(model.rows))
    given = rng.normal(size=(2, model.dim)).astype(np.float32)
    if points.spec.dim == DIM and model.metric != "hamming":
        given = clusters(2, len(model.rows))
    for query in model.own(given):
        model.check(points.search(query, K, recall="exact"), query, K)
        where = {"n": {"$gte": 50}}
        model.check(points.search(query, K, where=where, recall="exact"), query, K, where=where)
        if model.metric != "hamming":
            near = points.search(query, K)
            model.check_near(near, query, K)
            if near.plan.method == "index":
                right = {key for _, key in model.rank(query)[:K]}
                recall[0] += len(right & set(near.ids))
                recall[1] += K


@dataclass(frozen=True)
class Kill:
    """When a writer is killed.

    Attributes:
        seconds: So long after it was found that the file is whole.
        call: Before so many calls to the operating system, or in the middle of a write.
        torn: After a part of what the call was to write.
        opening: Calls are counted from the opening of the file on.
    """

    seconds: float | None = None
    call: int | None = None
    torn: bool = False
    opening: bool = False

    @property
    def how(self) -> str:
        if self.call is None:
            return "a moment" if self.seconds is not None else "none"
        return "within a write" if self.torn else "between calls"


class Killer:
    """Counts the calls that a child makes in its folder, and kills it."""

    def __init__(self, folder: Path, kill: Kill) -> None:
        self.folder, self.kill, self.armed = str(folder), kill, kill.opening
        self.names: list[str] = []
        self.chance = random.Random(repr(kill))

    def __call__(self, call: Call, carry_out: Callable[[], Any]) -> Any:
        if self.armed and call.path.startswith(self.folder):
            if self.kill.call is not None and len(self.names) >= self.kill.call:
                if not self.kill.torn:
                    os.kill(os.getpid(), signal.SIGKILL)
                elif call.name in WRITES:
                    # The system stops at the end of a page.
                    call.write(self.chance.randint(0, len(call.data) // 4096) * 4096)
                    os.kill(os.getpid(), signal.SIGKILL)
            self.names.append(call.name)
        return carry_out()


class Child:
    """A forked process, and what it tells through a pipe."""

    def __init__(self, work: Callable[[Callable[..., None]], None]) -> None:
        self._reading, writing = os.pipe()
        self._heard = b""
        self.number = os.fork()
        if not self.number:
            os.close(self._reading)
            self._run(work, writing)
        os.close(writing)

    @staticmethod
    def _run(work: Callable[[Callable[..., None]], None], writing: int) -> NoReturn:
        def tell(*message: Any) -> None:
            # In one call, so that nothing is told by halves.
            os.write(writing, json.dumps(message).encode() + b"\n")

        try:
            work(tell)
        except BaseException:
            tell("failed", traceback.format_exc()[-3000:])
        finally:
            os._exit(0)

    def told(self, seconds: float | None = None) -> Iterator[list[Any]]:
        """What the child tells until it ends, or for so long."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            while b"\n" in self._heard:
                line, _, self._heard = self._heard.partition(b"\n")
                yield json.loads(line)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._reading], [], [], left)[0]:
                return
            data = os.read(self._reading, 1 << 16)
            if not data:
                return
            self._heard += data

    def kill(self) -> None:
        os.kill(self.number, signal.SIGKILL)

    def end(self) -> int:
        """Wait for it; return the signal that ended it, or 0."""
        os.close(self._reading)
        status = os.waitpid(self.number, 0)[1]
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


# The campaign


class Campaign:
    """One file, from its beginning on, and what it must hold."""

    def __init__(self, folder: Path, seed: int, start: str = "") -> None:
        self.folder, self.path = folder, folder / "torture.vecstore"
        self.steps, self.number = Steps(seed), 0
        self.seed, self.start = seed, start
        self.worlds: list[World] = [{}]
        if start:
            shutil.copy(DATA / f"{start}.vecstore", self.path)
            self.worlds = [read_world(self.path)]
        self.kills: Counter[tuple[str, str]] = Counter()
        self.acknowledged = 0
        # Of approximate answers: how many were right, of how many.
        self.recall = [0, 0]
        self.calls: list[str] = []

    def live(
        self,
        kill: Kill | None = None,
        *,
        durable: bool = False,
        most: int = STEPS,
        kind: str | None = None,
    ) -> bool:
        """Let a writer open the file, compare it, and write until it is killed; was it?"""
        kill = kill or Kill()
        child = Child(lambda tell: self._write(tell, kill, durable, most, kind))
        phase = "opening"
        try:
            for message in child.told():
                phase = self._heard(message, phase, kind)
                if message[0] == "found" and kill.seconds is not None:
                    for later in child.told(kill.seconds):
                        phase = self._heard(later, phase, kind)
                    child.kill()
        finally:
            ended_by = child.end()
        assert ended_by in (0, signal.SIGKILL), f"{self}: signal {ended_by} while {phase}"
        if ended_by:
            self.kills[phase, kill.how] += 1
        return bool(ended_by)

    def _heard(self, message: list[Any], phase: str, kind: str | None) -> str:
        what, *rest = message
        if what == "failed":
            raise AssertionError(f"{self}, {phase}: {rest[0]}")
        if what == "begin":
            step = self.steps(self.number, self.worlds[-1], kind)
            assert step.kind == rest[0]
            self.worlds = step.applied(self.worlds[-1])
            self.number += 1
            return step.kind
        if what == "found":
            which, right, of, self.calls = rest
            self.worlds = [self.worlds[which]]
            self.recall = [self.recall[0] + right, self.recall[1] + of]
        else:
            (self.calls,) = rest
            self.acknowledged += 1
            self.worlds = self.worlds[-1:]
        return "between steps"

    def _write(
        self, tell: Callable[..., None], kill: Kill, durable: bool, most: int, kind: str | None
    ) -> None:
        killer, recall = Killer(self.folder, kill), [0, 0]
        with watched(killer) if kill.call is not None else contextlib.nullcontext():
            db = vecstore.open(self.path, durable=durable, timeout=10)
            which = find(db, self.worlds, recall)
            world, first = self.worlds[which], self.number
            tell("found", which, *recall, killer.names)
            killer.armed = True
            for number in range(first, first + most):
                step = self.steps(number, world, kind)
                tell("begin", step.kind)
                step.carry_out(db)
                tell("done", killer.names)
                world = step.applied(world)[-1]
            db.close()

    def sweep(
        self, kind: str | None, *, durable: bool = False, most_places: int | None = None
    ) -> None:
        """Kill a writer at every call of one step, or of opening: always at the same file."""
        kept, before = self.path.with_name("kept"), (self.worlds, self.number)
        opening, most = kind is None, 0 if kind is None else 1
        if self.path.exists():
            shutil.copy(self.path, kept)
        self.live(Kill(call=1 << 30, opening=opening), durable=durable, most=most, kind=kind)
        places = [(at, False) for at in range(len(self.calls))]
        places += [(at, True) for at, name in enumerate(self.calls) if name in WRITES]
        every = 1 if most_places is None else -(-len(places) // most_places)
        for at, torn in places[::every]:
            for file in self.folder.iterdir():
                if file != kept:
                    file.unlink()
            if kept.exists():
                shutil.copy(kept, self.path)
            self.worlds, self.number = before
            kill = Kill(call=at, torn=torn, opening=opening)
            assert self.live(kill, durable=durable, most=most, kind=kind), f"{self} outlived {kill}"
            # Whoever comes next finds all of it, and goes on.
            self.live(most=1)
        kept.unlink(missing_ok=True)

    def finish(self) -> None:
        """Nothing but the file may stay in the folder."""
        self.live(most=0)
        with vecstore.open(self.path) as db:
            db.compact()
        names = {entry.name for entry in self.folder.iterdir()}
        names -= {"backup.vecstore", "backup.vecstore-part", "backup.vecstore-lock"}
        assert names == {"torture.vecstore", "torture.vecstore-lock"}, f"{self}: {names}"
        self.live(most=0)

    def __str__(self) -> str:
        return f"seed {self.seed}, start {self.start or 'empty'!r}, step {self.number}"
