"""Damaged and hostile files are opened and used in processes of their own: what comes of it?

A child is forked of a process that has everything loaded, so that a case takes hundredths of a
second. It is given little time and memory, and tells what it found; or it dies, which is noticed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import victims

import vecstore
from vecstore.encoders import HashEncoder

# Seconds of a case, and how much it may allocate beside what it was born with.
SECONDS, ROOM = 20.0, 1 << 30


@dataclass(slots=True)
class Outcome:
    """What became of a case.

    Attributes:
        refused: The error with which the file was refused; "" if it was opened.
        answers: What each way of reading found; of those that raised a VecstoreError its name.
        raw: Exceptions that are none of vecstore's, with where they were raised.
        contradictions: What ways of reading say that others deny, where all was verified.
        died: How the process ended, if not by itself: "signal 11", "too long".
        peak: Bytes of memory beyond those that it was born with.
        seconds: How long it took.
    """

    refused: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    raw: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    died: str = ""
    peak: int = 0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing happened that must never happen, whatever is in the file."""
        return not (self.raw or self.died or self.contradictions)

    def wrong(self, healthy: Outcome) -> list[str]:
        """Ways of reading whose answers are not those of the intact file, and no error either."""
        if self.refused:
            return []
        return [
            name
            for name, answer in self.answers.items()
            if answer != healthy.answers.get(name) and not is_error(answer)
        ]


def is_error(answer: Any) -> bool:
    return isinstance(answer, dict) and "error" in answer


def _raw(error: BaseException) -> str:
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return f"{type(error).__name__}: {str(error)[:120]} at {' '.join(frames[-4:])}"


def use(path: Path, *, verify: bool, writing: bool) -> Outcome:
    """Open a file and do with it whatever can be done."""
    found = Outcome()
    try:
        db = vecstore.open(path, verify=verify, timeout=5)
    except vecstore.VecstoreError as error:
        found.refused = f"{type(error).__name__}: {str(error)[:300]}"
        return found
    except Exception as error:
        found.raw.append(f"open: {_raw(error)}")
        return found

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except vecstore.VecstoreError as error:
            return {"error": type(error).__name__}
        except Exception as error:
            found.raw.append(f"{name}: {_raw(error)}")
            return {"error": "raw"}

    def named() -> list[vecstore.Collection]:
        return [_collection(db, name) for name in db.collections()]

    collections = attempt("collections", named)
    if is_error(collections):
        found.answers["collections"] = collections
        collections = []
    for points in collections:
        for name, work in victims.READS.items():
            name = f"{points.name} {name}"
            found.answers[name] = attempt(name, lambda work=work, points=points: work(points))
        if verify:
            told = attempt("contradictions", lambda points=points: victims.contradictions(points))
            found.contradictions += [] if is_error(told) else told
    if not verify:
        attempt("check", lambda: list(map(str, db.check())))
    if writing:
        for points in collections:
            for name, work in victims.WRITES.items():
                attempt(f"{points.name} {name}", lambda work=work, points=points: work(points))
                attempt(
                    f"{points.name} after {name}",
                    lambda points=points: points.search(victims._query(points), 5),
                )
        attempt("compact", db.compact)
        attempt("backup", lambda: db.backup(path.with_suffix(".backup")))
        attempt("drop", lambda: [db.drop(name) for name in db.collections()])
    attempt("close", db.close)
    # As they come out of the pipe.
    found.answers = json.loads(json.dumps(found.answers, default=repr))
    return found


def mend(path: Path, *, repairing: bool) -> Outcome:
    """Salvage a file and, where LMDB's pages are sound, repair it; use what comes of it."""
    found, target = Outcome(), path.with_name("mended.vecstore")
    try:
        vecstore.salvage(path, target, encoder=HashEncoder(8))
        with vecstore.open(target, verify=True) as db:
            for name in db.collections():
                found.contradictions += victims.contradictions(db.collection(name))
    except vecstore.VecstoreError as error:
        found.refused = f"{type(error).__name__}: {str(error)[:300]}"
        # Of what was salvaged nothing may be wrong.
        found.raw += [f"salvaged: {found.refused}"] if target.exists() else []
    except Exception as error:
        found.raw.append(f"salvage: {_raw(error)}")
    try:
        if repairing:
            with vecstore.open(path, timeout=5) as db:
                db.check(repair=True)
                sound = db.check() == []
            if sound:
                with vecstore.open(path, verify=True) as db:
                    for name in db.collections():
                        found.contradictions += victims.contradictions(db.collection(name))
    except vecstore.VecstoreError as error:
        found.refused = f"{type(error).__name__}: {str(error)[:300]}"
    except Exception as error:
        found.raw.append(f"repair: {_raw(error)}")
    return found


def _collection(db: vecstore.Database, name: str) -> vecstore.Collection:
    points = db.collection(name)
    return db.collection(name, encoder=HashEncoder(8)) if points.spec.encoder else points


class Ordeal:
    """Puts files to the test; used as a context, in which everything is small and loaded.

    Args:
        engine: "numpy" or "compiled".
        verify: Whether files are opened with `verify=True`.
        writing: Whether they are written to as well.
        mending: Whether they are salvaged instead, and repaired if `writing`.
    """

    def __init__(
        self, engine: str, *, verify: bool = False, writing: bool = False, mending: bool = False
    ) -> None:
        self.engine, self.verify, self.writing, self.mending = engine, verify, writing, mending
        self._contexts = [victims.small(), victims.answered_by(engine)]

    def __enter__(self) -> Ordeal:
        for context in self._contexts:
            context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for context in reversed(self._contexts):
            context.__exit__(None, None, None)

    def __call__(self, path: Path) -> Outcome:
        """Use a file in a child."""
        reading, writing = os.pipe()
        begun = time.monotonic()
        # The child is one that ends by itself or by the alarm, and never returns from here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.close(reading)
            self._child(path, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        found = Outcome(**json.loads(told)) if told else Outcome()
        found.seconds = time.monotonic() - begun
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            found.died = "too long" if number == signal.SIGALRM else f"signal {number}"
        elif not told:
            found.died = f"exit {os.waitstatus_to_exitcode(status)}"
        return found

    def _child(self, path: Path, pipe: int) -> None:
        try:
            # Its death is looked for.
            faulthandler.disable()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            born = _bytes("VmData")
            resource.setrlimit(resource.RLIMIT_DATA, (born + ROOM, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            before = _bytes("VmHWM")
            with warnings.catch_warnings():
                # Of numbers that are none; in a file that passed there are none.
                warnings.simplefilter("error" if self.verify else "ignore")
                if self.mending:
                    found = mend(path, repairing=self.writing)
                else:
                    found = use(path, verify=self.verify, writing=self.writing)
            found.peak = max(0, _bytes("VmHWM") - before)
            told = {name: getattr(found, name) for name in Outcome.__slots__}
            with os.fdopen(pipe, "wb") as out:
                out.write(json.dumps(told).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)


def _bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for copies, in memory if there is one there."""
    shared = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None)
