"""How is somebody else's model used? A callable, wrapped as an encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders.protocol import Kind
from vecstore.encoders.texts import check_kind, check_texts
from vecstore.errors import EncoderError, UsageError, VecstoreError
from vecstore.spec import MAX_DIM, MIN_DIM, show

# Anything that numpy can read as a matrix of numbers.
Function = Callable[[list[str]], Any]


class FunctionEncoder:
    """An encoder around any callable that takes a list of texts and returns one vector for each.

    The fingerprint is made from `name`, `version` and `dim`, because a callable cannot be digested:
    **change `version` whenever the model or a setting changes**, so that a collection made with the
    old one refuses the new one instead of comparing vectors that cannot be compared.

    Args:
        function: Takes a list of str; returns something that numpy reads as (n, dim) numbers.
        dim: Numbers per vector; None to find out by encoding one word when it is first needed.
        name: A name for people; part of the fingerprint.
        version: The model's version; part of the fingerprint.
        mrl: Prefix lengths that the model was trained for, ascending.
        query_function: Used instead of `function` for queries, where the model tells them apart.

    Raises:
        UsageError: An argument of the wrong type, or `dim` or `mrl` out of range.
    """

    def __init__(
        self,
        function: Function,
        *,
        dim: int | None = None,
        name: str,
        version: str = "1",
        mrl: Sequence[int] = (),
        query_function: Function | None = None,
    ) -> None:
        if not callable(function) or not (query_function is None or callable(query_function)):
            raise UsageError("function and query_function must be callable")
        for argument, value in (("name", name), ("version", version)):
            if not isinstance(value, str) or not value:
                raise UsageError(f"{argument}={value!r} must be a str that is not empty")
        self._function = function
        self._query_function = query_function
        self._name = name
        self._version = version
        self._dim = None if dim is None else _check_dim(dim)
        self._mrl = _check_mrl(mrl, self._dim)

    @property
    def name(self) -> str:
        """The name that was given."""
        return self._name

    @property
    def dim(self) -> int:
        """Numbers per vector; may call the function once.

        Raises:
            EncoderError: The function failed, or did not return one vector.
        """
        if self._dim is None:
            found = self._call(self._function, ["dimension"])
            self._learn(found.shape[1])
        assert self._dim is not None
        return self._dim

    @property
    def mrl(self) -> tuple[int, ...]:
        """The prefix lengths that were given."""
        return self._mrl

    @property
    def fingerprint(self) -> str:
        """A digest of name, version and dim; may call the function once to learn dim."""
        identity = json.dumps(["function-1", self._name, self._version, self.dim])
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> NDArray[np.float32]:
        """Return a copy of what the function returns, float32 of shape (len(texts), dim).

        Raises:
            UsageError: A text is no str, is empty, or has a lone surrogate.
            EncoderError: The function failed (its exception is the cause), or returned another
                shape, or values that are not finite.
        """
        checked = check_texts(texts)
        check_kind(kind)
        if not checked:
            return np.zeros((0, self.dim), dtype=np.float32)
        asked = self._query_function if kind == "query" else None
        vectors = self._call(asked or self._function, checked)
        if self._dim is None:
            self._learn(vectors.shape[1])
        if vectors.shape[1] != self._dim:
            raise EncoderError(
                f"encoder {self._name!r} returned vectors of {vectors.shape[1]} numbers, expected"
                f" {self._dim}"
            )
        return vectors

    def _call(self, function: Function, texts: list[str]) -> NDArray[np.float32]:
        try:
            # A list of its own, so that a function that changes it changes nothing here.
            answer = function(list(texts))
        except VecstoreError:
            raise
        except Exception as error:
            raise EncoderError(
                f"the function of encoder {self._name!r} failed: {type(error).__name__}: {error}"
            ) from error
        return self._matrix(answer, len(texts))

    def _matrix(self, answer: Any, count: int) -> NDArray[np.float32]:
        try:
            with np.errstate(all="ignore"):
                raw = np.asarray(answer)
                if raw.dtype.kind not in "fiu":
                    raise TypeError(f"an array of {raw.dtype} is not an array of real numbers")
                vectors = np.array(raw, dtype=np.float32, order="C")
        except (TypeError, ValueError, RuntimeError) as error:
            raise EncoderError(
                f"encoder {self._name!r} returned {type(answer).__name__}, which is not a matrix of"
                f" numbers: {error}"
            ) from error
        if vectors.ndim != 2 or len(vectors) != count:
            raise EncoderError(
                f"encoder {self._name!r} returned an array of shape {vectors.shape} for {count}"
                f" texts, expected ({count}, dim)"
            )
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise EncoderError(
                f"encoder {self._name!r} returned a value that is not finite for text {bad[0]}"
            )
        return vectors

    def _learn(self, dim: int) -> None:
        if not MIN_DIM <= dim <= MAX_DIM:
            raise EncoderError(
                f"encoder {self._name!r} returned vectors of {dim} numbers, outside"
                f" {MIN_DIM}..{MAX_DIM}"
            )
        if self._mrl and self._mrl[-1] > dim:
            raise EncoderError(
                f"encoder {self._name!r} returned vectors of {dim} numbers, less than"
                f" mrl={self._mrl}"
            )
        self._dim = dim

    def __repr__(self) -> str:
        return f"FunctionEncoder(name={self._name!r}, version={self._version!r}, dim={self._dim})"


def _check_dim(dim: int) -> int:
    if not isinstance(dim, int) or isinstance(dim, bool) or not MIN_DIM <= dim <= MAX_DIM:
        raise UsageError(f"dim={dim!r} must be an int in {MIN_DIM}..{MAX_DIM}")
    return dim


def _check_mrl(mrl: Sequence[int], dim: int | None) -> tuple[int, ...]:
    if not isinstance(mrl, Sequence) or isinstance(mrl, str | bytes):
        raise UsageError(f"mrl={show(mrl)} must be a list of prefix lengths")
    sizes = tuple(mrl)
    limit = MAX_DIM if dim is None else dim
    if any(not isinstance(size, int) or not 0 < size <= limit for size in sizes) or list(
        sizes
    ) != sorted(set(sizes)):
        raise UsageError(f"mrl={sizes} must be ascending prefix lengths between 1 and {limit}")
    return sizes
