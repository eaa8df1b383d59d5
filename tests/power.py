"""What may be on a disk after a power cut? Calls that changed files, and a disk that obeys late.

What was synced is there. Of what was written since, each sector has what any of those writes left
in it, or what it had before: writes get lost, change places and are torn. Names are as at the last
sync of their folder, or as after some of the changes since, in their order.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import signal
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import Campaign, Child, attach, find
from steps import World
from syscalls import SYNCS, WRITES, Call, watched

import vecstore
from vecstore.store import unsynced


@dataclass(frozen=True)
class Event:
    """A call, with the file that it is about; or a mark of what had been acknowledged by then."""

    name: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    names: tuple[str, ...] = ()
    durable: bool = False


class Recorder:
    """Takes down what happens to the files of a folder; their locks are nobody's data."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.events: list[Event] = []
        self._files: dict[int, int] = {}
        for at in sorted(folder.iterdir()):
            self._files[at.stat().st_ino] = len(self._files)
        self._made = len(self._files)

    def mark(self, number: int) -> None:
        self.events.append(Event("mark", number))

    def __call__(self, call: Call, carry_out: Callable[[], Any]) -> Any:
        if not call.path.startswith(self.folder) or call.path.endswith("-lock"):
            return carry_out()
        names = tuple(Path(name).name for name in (call.path, call.target) if name)
        durable = call.name in WRITES and call.durable
        ends = {"unlink": call.path, "rename": call.target, "replace": call.target}
        gone = _number(ends.get(call.name, ""))
        result = carry_out()
        # The system may give its number to another file.
        self._files.pop(gone, None)
        if call.name == "open":
            self._met(_number(call.path), names)
        elif call.path == self.folder:
            self.events.append(Event("sync names"))
        elif call.file >= 0:
            # Some files are made by LMDB itself, and are met when they are written.
            file = self._met(os.fstat(call.file).st_ino, names)
            kind = "write" if call.name in WRITES else "sync" if call.name in SYNCS else call.name
            data = call.data[:result] if kind == "write" else b""
            self.events.append(Event(kind, file, call.offset, data, names, durable))
        elif call.name in ("link", "rename", "replace", "unlink"):
            self.events.append(Event(call.name, names=names))
        return result

    def _met(self, number: int, names: tuple[str, ...]) -> int:
        if number not in self._files:
            self._files[number] = self._made
            self.events.append(Event("create", self._made, names=names))
            self._made += 1
        return self._files[number]


def _number(path: str) -> int:
    """The system's number of a file that has no other name; 0 if there is none."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return 0
    return status.st_ino if path and status.st_nlink == 1 else 0


@dataclass
class _File:
    """A file as programs see it, and what of it is on the disk."""

    cached: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    # What each sector was made since, and how long the file.
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    def write(self, offset: int, data: bytes, sector: int) -> None:
        end = offset + len(data)
        if end > len(self.cached):
            self.resize(end)
        self.cached[offset:end] = data
        for number in range(offset // sector, -(-end // sector)):
            self.versions.setdefault(number, []).append(self._of(number, sector))

    def resize(self, size: int) -> None:
        del self.cached[size:]
        self.cached.extend(bytes(size - len(self.cached)))
        self.sizes.append(size)

    def sync(self) -> None:
        self.synced = bytearray(self.cached)
        self.versions.clear()
        self.sizes.clear()

    def sync_part(self, offset: int, size: int, sector: int) -> None:
        end = offset + size
        self.synced.extend(bytes(max(0, end - len(self.synced))))
        for number in range(offset // sector, -(-end // sector)):
            self.synced[number * sector : (number + 1) * sector] = self._of(number, sector)
            self.versions.pop(number, None)

    def _of(self, number: int, sector: int) -> bytes:
        return bytes(self.cached[number * sector : (number + 1) * sector])

    def after_cut(self, chance: random.Random, sector: int) -> bytes:
        content = bytearray(self.synced)
        size = chance.choice([len(self.synced), *self.sizes])
        content.extend(bytes(max(0, size - len(content))))
        # Often nearly all is there, or nearly nothing.
        share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for number, versions in self.versions.items():
            if chance.random() < share:
                kept = chance.choice(versions)
                start = number * sector
                content.extend(bytes(max(0, start + len(kept) - len(content))))
                content[start : start + len(kept)] = kept
        return bytes(content[: max(size, len(self.synced))])


class Disk:
    """Follows events, and tells what a power cut may leave."""

    def __init__(self, folder: dict[str, bytes], sector: int) -> None:
        self.sector = sector
        self.files = {n: _File(bytearray(d), bytearray(d)) for n, d in enumerate(folder.values())}
        self.names = {name: number for number, name in enumerate(folder)}
        self.later: list[Event] = []

    def follow(self, event: Event) -> None:
        """Let something happen wholly."""
        file = self.files.get(event.file)
        if event.name == "create":
            self.files[event.file] = _File()
            self.later.append(event)
        elif event.name in ("link", "rename", "replace", "unlink"):
            self.later.append(event)
        elif event.name == "sync names":
            for change in self.later:
                _rename(self.names, change)
            self.later.clear()
        elif file is not None and event.name == "sync":
            file.sync()
        elif file is not None and event.name == "ftruncate":
            file.resize(event.offset)
        elif event.name == "write":
            self.begin(event)
            if event.durable and file is not None:
                file.sync_part(event.offset, len(event.data), self.sector)

    def begin(self, event: Event) -> None:
        """Let a write happen that may not be on the disk yet."""
        if event.name == "write":
            self.files[event.file].write(event.offset, event.data, self.sector)

    def after_cut(self, chance: random.Random) -> dict[str, bytes]:
        """The folder when the power is back."""
        names = dict(self.names)
        for change in self.later[: chance.randint(0, len(self.later))]:
            _rename(names, change)
        return {
            name: self.files[number].after_cut(chance, self.sector)
            for name, number in names.items()
        }


def _rename(names: dict[str, int], change: Event) -> None:
    if change.name == "create":
        names[change.names[0]] = change.file
    elif change.name == "unlink":
        names.pop(change.names[0], None)
    elif change.names[0] in names:
        source, target = change.names
        names[target] = names[source]
        if change.name != "link":
            del names[source]


def cuts(
    events: list[Event], folder: dict[str, bytes], chance: random.Random, count: int
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Cut the power at moments drawn at random; yield each with what it leaves."""
    for sector in (512, 4096):
        drawn = sorted(chance.randrange(len(events)) for _ in range(count // 2))
        disk, at = Disk(folder, sector), 0
        for moment in drawn:
            for event in events[at:moment]:
                disk.follow(event)
            at = moment
            # The one in the middle is tried on a copy of its own.
            if events[moment].name == "write":
                yield moment, _amid(disk, events[moment]).after_cut(chance)
            else:
                yield moment, disk.after_cut(chance)


def _amid(disk: Disk, event: Event) -> Disk:
    twin = copy.copy(disk)
    twin.files = {**disk.files, event.file: copy.deepcopy(disk.files[event.file])}
    twin.begin(event)
    return twin


# What a writer that was cut off had promised


@dataclass
class Recording:
    """What a writer did to the files of a folder, and what was acknowledged when.

    Attributes:
        before: The folder before it.
        events: What happened; the marks among them are numbers of worlds.
        worlds: All that the file may have held, one after another.
    """

    before: dict[str, bytes]
    events: list[Event]
    worlds: list[World]

    def acknowledged(self, moment: int) -> int:
        """The newest world that was acknowledged before an event."""
        marks = (event.file for event in self.events[:moment] if event.name == "mark")
        return max(marks, default=0)

    def begun(self, moment: int) -> int:
        """The newest world that may have been on its way to the disk by then."""
        later = (event.file for event in self.events[moment:] if event.name == "mark")
        return min(later, default=len(self.worlds) - 1)

    def synced(self, moment: int) -> int:
        """The newest world that was acknowledged before the last sync."""
        return self.acknowledged(self._last(self._is_sync, moment))

    def at_rest(self, moment: int) -> bool:
        """Whether nothing was written since the last sync."""
        written = self._last(lambda at: self.events[at].name in ("write", "ftruncate"), moment)
        return written < self._last(self._is_sync, moment) and self.events[moment].name != "write"

    def _is_sync(self, at: int) -> bool:
        """Whether all of the file was on the disk after an event, and its name."""
        event = self.events[at]
        # A compacted file is there once its folder is synced.
        names = ("replace", "sync names")
        last = self._last(lambda before: self.events[before].name in names, at)
        if self.events[last].name == "replace":
            return event.name == "sync names"
        return event.name == "sync" and event.names == ("torture.vecstore",)

    @staticmethod
    def _last(chosen: Callable[[int], bool], moment: int) -> int:
        return next((at for at in range(moment - 1, -1, -1) if chosen(at)), 0)


def record(
    folder: Path, seed: int, start: str, *, durable: bool, early: int, most: int
) -> Recording:
    """Take down what a writer does, after some steps that nobody takes down."""
    run = Campaign(folder, seed, start)
    if early:
        run.live(most=early)
    before = {at.name: at.read_bytes() for at in sorted(folder.iterdir())}
    before.pop(f"{run.path.name}-lock", None)
    first, worlds, kept = run.number, [*run.worlds], folder / "events"
    for number in range(first, first + most):
        worlds += run.steps(number, worlds[-1]).applied(worlds[-1])[1:]

    def work(tell: Callable[..., None]) -> None:
        recorder, told = Recorder(folder), 0
        with watched(recorder), vecstore.open(run.path, durable=durable) as db:
            recorder.mark(told)
            attach(db)
            for number in range(first, first + most):
                step = run.steps(number, worlds[told])
                step.carry_out(db)
                told += len(step.groups)
                recorder.mark(told)
            if not durable:
                db.sync()
                recorder.mark(told)
        kept.write_bytes(pickle.dumps(recorder.events))

    child = Child(work)
    failed = [message[1] for message in child.told()]
    assert not child.end()
    assert not failed, failed
    return Recording(before, pickle.loads(kept.read_bytes()), worlds)


def outcome(folder: Path, worlds: list[World]) -> tuple[str, int | str]:
    """What becomes of whoever opens a file, in a word; "whole" with the number of its world."""

    def work(tell: Callable[..., None]) -> None:
        signal.alarm(60)
        # The system has been started anew.
        boot = folder / "boot"
        boot.write_text(str(uuid.uuid4()))
        unsynced.BOOT = boot
        try:
            db = vecstore.open(folder / "torture.vecstore", timeout=10)
        except vecstore.VecstoreError as error:
            tell("refused", str(error))
            return
        if problems := db.check():
            tell("found by check", str(problems[0]))
            return
        try:
            tell("whole", find(db, worlds, [0, 0]))
        except AssertionError as error:
            tell("wrong", str(error))
        db.close()

    child = Child(work)
    told = [(str(what), detail) for what, detail in child.told()]
    ended_by = child.end()
    return told[0] if told and not ended_by else ("crashed", signal.Signals(ended_by).name)


def cut_power(
    seed: int, start: str, *, durable: bool, early: int, most: int, count: int
) -> Counter[str]:
    """Let a writer run, and open what the disk would hold after cuts at moments of it.

    Returns:
        How often which came out: "whole" also says that nothing was lost which was promised.

    Raises:
        AssertionError: Something acknowledged was lost, or is half there, though `durable`, or
            though it was synced and nothing was written since. Or a damaged file was not refused.
    """
    with tempfile.TemporaryDirectory() as name:
        made = record(Path(name), seed, start, durable=durable, early=early, most=most)
    counts: Counter[str] = Counter()
    for moment, left in cuts(made.events, made.before, random.Random(seed), count):
        promised = made.acknowledged(moment) if durable else made.synced(moment)
        with tempfile.TemporaryDirectory() as name:
            for file, data in left.items():
                (Path(name) / file).write_bytes(data)
            what, detail = outcome(Path(name), made.worlds[: made.begun(moment) + 1])
        if what == "whole" and int(detail) < promised:
            what = "lost"
        if durable or made.at_rest(moment):
            told = f"seed {seed}, start {start!r}, event {moment}: {what}, {detail} of {promised}"
            assert what == "whole", told
        assert what in ("whole", "refused"), f"seed {seed}, event {moment}: {what}, {detail}"
        counts[what] += 1
    return counts
