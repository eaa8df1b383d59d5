"""Who may read, and who may move the map? A lock that is shared, or held alone."""

from __future__ import annotations

import contextlib
import itertools
import numbers
import threading
import time
from collections.abc import Iterator

from vecstore.errors import ClosedError, LockedError, UsageError

# How often a waiting thread looks whether the lock was replaced.
_SLICE = 0.1


class Gate:
    """A lock that many hold shared or one holds alone, and that knows its holders.

    Shared holders are snapshots; whoever moves the map takes the gate alone. Once somebody waits
    to have it alone, new shared holders wait too, or growth would starve; except threads that hold
    it already, or they would wait for themselves.
    """

    def __init__(self) -> None:
        # Reentrant: the garbage collector may end a snapshot anywhere, also in here.
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        # By ticket: the thread, and since when.
        self._holders: dict[int, tuple[threading.Thread, float]] = {}
        self._tickets = itertools.count(1)
        self._alone = False
        self._waiting = 0

    def enter(self, timeout: float) -> int:
        """Take the gate shared and return a ticket for `leave`.

        Mostly without the lock, which would be a good part of a search: who enters is a holder
        first and looks then whether anybody wants the gate alone; who does wants it first and looks
        then for holders. So one of the two sees the other.
        """
        ticket = next(self._tickets)
        self._holders[ticket] = (threading.current_thread(), time.monotonic())
        # In this order: who has it alone says so before he waits no more.
        if self._waiting or self._alone:
            self._wait(ticket, timeout)
        return ticket

    def join(self, ticket: int) -> int:
        """Take the gate again for another thread, beside a hold that is there; never waits.

        Raises:
            ClosedError: The hold was given back.
        """
        mine = next(self._tickets)
        self._holders[mine] = (threading.current_thread(), time.monotonic())
        if ticket not in self._holders:
            self.leave(mine)
            raise ClosedError("this snapshot has ended")
        return mine

    def _wait(self, ticket: int, timeout: float) -> None:
        def free() -> bool:
            held = any(thread is mine[0] for thread, _ in list(self._holders.values()))
            return not self._alone and (not self._waiting or held)

        with self._condition:
            mine = self._holders.pop(ticket)
            # Who waits to be alone may have seen this holder.
            self._condition.notify_all()
            if not self._condition.wait_for(free, timeout):
                raise LockedError(
                    f"the file's map is being moved or closed and was not free for {timeout:g} s"
                )
            self._holders[ticket] = mine

    def leave(self, ticket: int) -> None:
        """Give back a shared hold; again does nothing."""
        self._holders.pop(ticket, None)
        if self._waiting:
            with self._condition:
                self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self, timeout: float, purpose: str) -> Iterator[None]:
        """Hold the gate with no snapshot open.

        Raises:
            LockedError: Snapshots stayed open for `timeout` seconds; the message names them.
        """
        with self._condition:
            self._waiting += 1
            try:
                deadline = time.monotonic() + timeout
                # In slices: the garbage collector may end a snapshot of this very thread just
                # before it waits, and then nobody wakes it.
                while self._alone or self._holders:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._condition.wait(min(left, _SLICE))
                if self._alone or self._holders:
                    raise LockedError(
                        f"cannot {purpose}: waited {timeout:g} s for {self.describe()}; end them"
                    )
                self._alone = True
            finally:
                self._waiting -= 1
                if not self._alone:
                    self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()

    def describe(self) -> str:
        """Name the open snapshots: threads and ages."""
        now = time.monotonic()
        holders = [
            f"{thread.name} ({now - since:.1f} s)" for thread, since in list(self._holders.values())
        ]
        return f"{len(holders)} open snapshots of threads {', '.join(holders[:8])}"


class WriterLock:
    """The right to write among threads, which no interrupt can lose.

    Between being taken and being known as taken, any lock can meet a Ctrl-C and stay taken. So a
    thread that comes again finds its own hold, and takes it over; and leaving gives back however
    many holds there are.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.holder: str | None = None

    def take(self, timeout: float) -> bool:
        """Take the lock, also where this thread has it already; False if it stayed taken."""
        deadline = time.monotonic() + timeout
        while True:
            lock = self._lock
            left = max(0.0, deadline - time.monotonic())
            if lock.acquire(timeout=min(left, _SLICE)):
                if lock is self._lock:
                    self.holder = threading.current_thread().name
                    return True
                lock.release()
            elif left <= 0:
                return False

    def undo(self) -> None:
        """Take back one `take` that found the lock held by this thread."""
        self._lock.release()

    def leave(self) -> None:
        """Free the lock, also for a thread that holds it and is dead."""
        lock, self.holder = self._lock, None
        if not lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition does
            self._lock = threading.RLock()
        while lock._is_owned():  # type: ignore[attr-defined]
            lock.release()


def seconds(timeout: float | None, default: float) -> float:
    """Return a timeout as locks take it; they know no infinity."""
    if timeout is None:
        return default
    value = timeout
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
        raise UsageError(f"timeout={timeout!r} is not a number of seconds")
    return min(max(0.0, float(value)), threading.TIMEOUT_MAX / 2)
