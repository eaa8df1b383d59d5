"""Was the power cut before everything was on the disk? A mark of who writes without waiting for it.

Before the first commit that does not wait, the file is marked with the running of the system: as
long as that lasts, the system itself has what was written. Found after another start, what the
file holds is in doubt. Closing in good order takes the mark away. It lies in LMDB's first header
page, in a sector of its own that LMDB neither reads nor writes: reading it must not depend on the
pages that are in doubt.
"""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
from pathlib import Path
from typing import Any

import lmdb

BOOT = Path("/proc/sys/kernel/random/boot_id")
MARK_AT = 2048
MARK = struct.Struct("<8s16s")
_MAGIC = b"unsynced"
# Of a system that does not tell its starts apart: every opening is in doubt.
_UNKNOWN = bytes(16)


def boot() -> bytes:
    """The running of the system, another one after each start."""
    try:
        return uuid.UUID(BOOT.read_text().strip()).bytes
    except (OSError, ValueError):
        return _UNKNOWN


def is_in_doubt(file: int) -> bool:
    """Whether a file may lack some of what was written, since the system was started anew."""
    found = os.pread(file, MARK.size, MARK_AT)
    if len(found) < MARK.size:
        return False
    magic, running = MARK.unpack(found)
    return bool(magic == _MAGIC and (running == _UNKNOWN or running != boot()))


class Mark:
    """The mark of an open file.

    Attributes:
        in_doubt: Whether nobody has found out yet if the file is whole.
    """

    def __init__(self, file: int, *, waits: bool) -> None:
        self._file = file
        self._waits = waits
        self._made = False
        self.in_doubt = is_in_doubt(file)

    def make(self) -> None:
        """Mark the file, on the disk, if commits are not going to wait for it."""
        if not (self._waits or self._made):
            self._write(MARK.pack(_MAGIC, boot()))
            self._made = True

    def trust(self) -> None:
        """Take the mark of another running away: the file was found to be whole."""
        # Another process may have found that already, and be writing.
        if is_in_doubt(self._file):
            os.fdatasync(self._file)
            self._write(bytes(MARK.size))
        self.in_doubt = False

    def take_away(self, env: Any) -> None:
        """At the end have everything on the disk; nobody else has the file open."""
        # What cannot be synced stays marked.
        with contextlib.suppress(lmdb.Error, OSError):
            env.sync(True)
            self._write(bytes(MARK.size))

    @property
    def made(self) -> bool:
        """Whether it was made here."""
        return self._made

    def _write(self, value: bytes) -> None:
        if os.pread(self._file, MARK.size, MARK_AT) != value:
            os.pwrite(self._file, value, MARK_AT)
            os.fdatasync(self._file)
