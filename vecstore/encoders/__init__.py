"""How does text become vectors? The protocol that every encoder follows, and the encoders here.

Importing this package is cheap: onnxruntime and tokenizers are imported when a model is loaded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from vecstore.encoders.adapters import (
    AdaptedEncoder,
    Adapter,
    adapt_encoder,
    fit_adapter,
    fit_rotation,
    whiten,
)
from vecstore.encoders.bundled import bundled, bundled_names, is_bundled, parse
from vecstore.encoders.cutting import Truncated
from vecstore.encoders.function import FunctionEncoder
from vecstore.encoders.hashing import HashEncoder
from vecstore.encoders.onnx import OnnxEncoder
from vecstore.encoders.protocol import (
    MEMBERS,
    Encoder,
    Kind,
    LateChunking,
    Tokenizing,
    is_encoder,
)
from vecstore.encoders.texts import check_kind, check_texts
from vecstore.errors import ModelNotFoundError, SpecError, VecstoreError
from vecstore.spec import show

__all__ = [
    "AdaptedEncoder",
    "Adapter",
    "Encoder",
    "FunctionEncoder",
    "HashEncoder",
    "Kind",
    "LateChunking",
    "OnnxEncoder",
    "Tokenizing",
    "Truncated",
    "adapt_encoder",
    "bundled",
    "bundled_names",
    "check_kind",
    "check_texts",
    "fit_adapter",
    "fit_rotation",
    "is_bundled",
    "remembered",
    "resolve",
    "whiten",
]


def resolve(
    encoder: Encoder | str | os.PathLike[str] | Callable[[list[str]], Any] | None,
) -> Encoder:
    """Return the encoder that a user means.

    Args:
        encoder: None or the name of a bundled model, such as "fast" or "default/layer=4/dim=128";
            the path of a model folder, which may end in the like; an encoder; or a named function
            from a list of texts to a matrix, which becomes a `FunctionEncoder`.

    Raises:
        SpecError: None of these, or a function without a name to tell it from others by.
        ModelNotFoundError: There is no model in the folder.
        UsageError: The model does not offer this layer or dim.
    """
    if encoder is None:
        return bundled()
    if isinstance(encoder, str) and is_bundled(encoder):
        return bundled(encoder)
    if isinstance(encoder, str | os.PathLike):
        return _of_folder(os.fspath(encoder))
    if isinstance(encoder, type):
        raise SpecError(f"encoder={encoder.__name__} is a class; pass an instance of it")
    if is_encoder(encoder):
        return encoder
    if not callable(encoder):
        raise SpecError(
            f"encoder={encoder!r:.60} is no encoder: pass one with {', '.join(MEMBERS)}, the path"
            " of a model folder, or a function"
        )
    name = getattr(encoder, "__name__", "<lambda>")
    if name == "<lambda>":
        raise SpecError(
            "a function without a name cannot be told from another one; use"
            " FunctionEncoder(function, name=...)"
        )
    return FunctionEncoder(encoder, name=name)


def _of_folder(path: str | bytes) -> OnnxEncoder:
    if not isinstance(path, str) or not path:
        raise SpecError(f"encoder={show(path)} is neither a model's name nor a folder")
    folder, layer, dim = parse(path)
    try:
        return OnnxEncoder(folder, layer=layer, dim=dim)
    except ModelNotFoundError as error:
        if "/" in path or os.sep in path:
            raise
        known = ", ".join(bundled_names())
        raise ModelNotFoundError(
            f"{error}; the models that come with vecstore are {known}"
        ) from None


def remembered(name: str | None) -> Encoder:
    """Return the encoder of a collection for which none was given, from the name it keeps.

    That is the bundled model of this name, else the default one: whether it is the collection's own
    is for its fingerprint to tell.
    """
    if name is not None:
        # Another release may have had a model of this name, or one that offered more.
        with contextlib.suppress(VecstoreError):
            return bundled(name)
    return bundled()
