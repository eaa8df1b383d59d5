"""What is an encoder? The protocol that every encoder follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Kind = Literal["document", "query"]


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
