"""What is an encoder? The protocol that every encoder follows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Literal, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Kind = Literal["document", "query"]
MEMBERS = ("name", "dim", "mrl", "fingerprint", "encode")


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns texts into vectors of one length."""

    @property
    def name(self) -> str:
        """A name for people, such as the model's folder name."""

    @property
    def dim(self) -> int:
        """Numbers per vector."""

    @property
    def mrl(self) -> tuple[int, ...]:
        """Prefix lengths that the model was trained for, ascending; () if none."""

    @property
    def fingerprint(self) -> str:
        """A digest of the model and of every setting that changes its vectors."""

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> NDArray[np.float32]:
        """Return float32 of shape (len(texts), dim)."""


@runtime_checkable
class Tokenizing(Protocol):
    """What an encoder may offer besides, so that long texts are cut by its own tokens."""

    @property
    def room(self) -> int:
        """How many tokens of a document are read."""

    def token_offsets(self, text: str) -> NDArray[np.int64]:
        """Return where each token of all of a text begins and ends, int64 of shape (t, 2)."""


@runtime_checkable
class LateChunking(Protocol):
    """What an encoder may offer besides, so that it reads all of a text before it is cut."""

    def encode_passages(self, text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """Return the vectors of passages of one text, float32 of shape (len(spans), dim)."""


def is_encoder(value: object) -> TypeGuard[Encoder]:
    """Whether something has all that an encoder has; nothing of it is evaluated.

    isinstance would run the properties, and so the model.
    """
    missing = object()
    return all(inspect.getattr_static(value, name, missing) is not missing for name in MEMBERS)
