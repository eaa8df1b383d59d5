"""How does text become adapted vectors? An encoder, and an adapter behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders.adapters.adapter import Adapter
from vecstore.encoders.protocol import Encoder, Kind, is_encoder
from vecstore.encoders.texts import check_kind
from vecstore.errors import UsageError
from vecstore.spec import show


class AdaptedEncoder:
    """An encoder whose vectors go through an adapter.

    It has what every encoder has and nothing else: an adapter is fitted to vectors of whole texts,
    so what a base may offer for single tokens is not here.

    Args:
        base: An encoder; one that is adapted itself is taken apart, and the adapters are joined.
        adapter: What is applied to its vectors.

    Raises:
        UsageError: One of the two is something else, or the adapter takes vectors of another length
            than the encoder makes.
    """

    def __init__(self, base: Encoder, adapter: Adapter) -> None:
        if not isinstance(adapter, Adapter) or not is_encoder(base):
            raise UsageError(
                f"AdaptedEncoder takes an encoder, such as bundled() or OnnxEncoder(folder), and an"
                f" adapter; got {show(base)} and {show(adapter)}"
            )
        if base.dim != adapter.dim:
            raise UsageError(
                f"adapter {adapter.name!r} takes vectors of {adapter.dim} numbers, encoder"
                f" {base.name!r} makes {base.dim}"
            )
        self._base, self._adapter = base, adapter
        if isinstance(base, AdaptedEncoder):
            self._base, self._adapter = base.base, base.adapter @ adapter

    @property
    def base(self) -> Encoder:
        """The encoder without the adapter."""
        return self._base

    @property
    def adapter(self) -> Adapter:
        """What is applied to the base's vectors."""
        return self._adapter

    @property
    def name(self) -> str:
        """The names of base and adapter."""
        return adapted_name(self._base.name, self._adapter)

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self._adapter.dim_out

    @property
    def mrl(self) -> tuple[int, ...]:
        """The adapter's prefix lengths; the base's where it has none and documents stay."""
        unchanged = self._adapter.documents is None and not self._adapter.mrl
        return self._base.mrl if unchanged else self._adapter.mrl

    @property
    def fingerprint(self) -> str:
        """A digest of the base's and the adapter's; the base's where nothing is changed."""
        return adapted_fingerprint(self._base.fingerprint, self._adapter)

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> NDArray[np.float32]:
        """Return float32 of shape (len(texts), dim); errors are those of the base."""
        check_kind(kind)
        return self._adapter.apply(self._base.encode(texts, kind), kind)

    def __repr__(self) -> str:
        return f"AdaptedEncoder({self._base!r}, {self._adapter!r})"


def adapted_fingerprint(base: str, adapter: Adapter) -> str:
    """The fingerprint of an encoder, whose own is `base`, with an adapter."""
    if adapter.is_identity:
        return base
    return hashlib.sha256(f"adapted-1:{base}:{adapter.fingerprint}".encode()).hexdigest()[:32]


def adapted_name(base: str, adapter: Adapter) -> str:
    """The name of an encoder with an adapter."""
    return base if adapter.is_identity else f"{base}+{adapter.name}"
