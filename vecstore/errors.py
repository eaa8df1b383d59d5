"""What can go wrong? Every exception that vecstore raises.

Tree::

    VecstoreError
      UsageError (ValueError)            the caller can mend it
        SpecError                        a bad declaration, or reopening with another one
        VectorError                      wrong dimension, dtype, NaN, infinity, zero length
        FilterError                      unknown operator, wrong operand, malformed tree
      NotFoundError (KeyError)           a collection or an id that does not exist
      AlreadyExistsError                 an id or a name that is taken
      StoreError                         the file
        ClosedError                      used after close, or in a forked child
          SnapshotExpiredError           a view open for longer than max_snapshot_age
        ReadOnlyError                    a write on something opened for reading
        StoreFullError                   map or disk full; nothing of the transaction was kept
        CorruptionError                  a stored value is not what was written
        FormatError                      not a vecstore file, or another format version
        LockedError                      somebody else holds what is needed
      EncoderError                       text could not become vectors
        ModelNotFoundError               no model in the given folder
        EncoderMismatchError             another encoder than the collection was made with
        MissingExtraError (ImportError)  an optional package is not installed

A message says what went wrong, with which value, and what to do about it. Nothing that lmdb,
onnxruntime, tokenizers or numba raises leaves the package under its own name.
"""

from __future__ import annotations


class VecstoreError(Exception):
    """The base of every vecstore exception."""


class UsageError(VecstoreError, ValueError):
    """A call that cannot be carried out as written; nothing was changed."""


class SpecError(UsageError):
    """A collection declared badly, or reopened with a declaration that differs."""


class VectorError(UsageError):
    """Vectors of the wrong dimension, shape or dtype, or with values that have no distance."""


class FilterError(UsageError):
    """A filter that cannot be understood; the message names the place in the tree."""


class NotFoundError(VecstoreError, KeyError):
    """A collection or an id that does not exist."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return str(self.args[0]) if self.args else ""


class AlreadyExistsError(VecstoreError):
    """An id or a collection name that is already taken."""


class StoreError(VecstoreError):
    """The file could not be opened, read or written."""


class ClosedError(StoreError):
    """A handle used after close, after its snapshot or transaction ended, or in a forked child."""


class SnapshotExpiredError(ClosedError):
    """A view of a database that was open for longer than `max_snapshot_age` allows."""


class ReadOnlyError(StoreError):
    """A write through a handle that only reads."""


class StoreFullError(StoreError):
    """The disk or the memory map is full; the transaction left no trace."""


class CorruptionError(StoreError):
    """A stored value does not have the checksum, length or links it must have."""


class FormatError(StoreError):
    """Not a vecstore file, or one of a format version that this release does not read."""


class LockedError(StoreError):
    """A lock was not free in time; the message names its holders where they are known."""


class EncoderError(VecstoreError):
    """Text could not be turned into vectors."""


class ModelNotFoundError(EncoderError):
    """A model folder, or a file that it must hold, is missing."""


class EncoderMismatchError(EncoderError, SpecError):
    """The collection was made with another encoder."""


class MissingExtraError(EncoderError, ImportError):
    """An optional package is needed; the message names the command that installs it."""
