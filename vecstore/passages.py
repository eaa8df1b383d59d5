"""How does a long text become passages, and these vectors? What chunking asks of an encoder.

An encoder may offer more than the protocol asks for: its tokens (`encoders.Tokenizing`), else they
are counted approximately; and vectors of passages in their context (`encoders.LateChunking`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vecstore import chunking
from vecstore.chunking import Offsets, Span
from vecstore.encoders import AdaptedEncoder, Encoder
from vecstore.errors import EncoderError, UsageError, VecstoreError
from vecstore.spec import Chunking, show

# Tokens of a passage where neither the user nor the encoder says how many.
TOKENS = 256
# In late chunking a passage is this share of what is read at once, so that it has a context.
LATE_SHARE = 4


def declared(chunk: bool | Chunking | None) -> Chunking | None:
    """What `chunk=` says: how to cut, or None for not at all.

    Raises:
        UsageError: It is neither a bool nor a `Chunking`.
    """
    if chunk is None or isinstance(chunk, bool):
        return Chunking() if chunk else None
    if not isinstance(chunk, Chunking):
        raise UsageError(f"chunk={show(chunk)} must be True, False or a Chunking")
    return chunk


def cut(text: str, wanted: Chunking | None, encoder: Encoder) -> list[Span]:
    """The passages of a text, as `chunking.cut`; all of it as one if it is not to be cut.

    Raises:
        UsageError: More tokens are wanted than the encoder reads, or too large an overlap.
        EncoderError: The encoder cannot tokenize it.
    """
    if wanted is None:
        return [(0, len(text))]
    room = _room(wanted, encoder)
    spans = chunking.cut(text, _offsets(text, encoder), room, wanted.overlap)
    return spans if len(spans) > 1 else [(0, len(text))]


def _offsets(text: str, encoder: Encoder) -> Offsets:
    """The tokens of a text, checked."""
    tokenize = getattr(_reader(encoder), "token_offsets", None)
    if tokenize is None:
        return chunking.approximate(text)
    try:
        offsets = np.asarray(tokenize(text), np.int64)
    except VecstoreError:
        raise
    except Exception as error:
        raise EncoderError(f"encoder {encoder.name!r} failed: {error!r}") from error
    flat = offsets.ndim == 2 and offsets.shape[1] == 2
    if not flat or (len(offsets) and not 0 <= offsets.min() <= offsets.max() <= len(text)):
        raise EncoderError(
            f"what encoder {encoder.name!r} returned as the places of tokens, of shape"
            f" {offsets.shape}, are none in a text of {len(text)} characters"
        )
    return offsets


def _reader(encoder: Encoder) -> Encoder:
    """What reads the tokens: an adapter changes vectors only."""
    return encoder.base if isinstance(encoder, AdaptedEncoder) else encoder


def _room(wanted: Chunking, encoder: Encoder) -> int:
    """How many tokens a passage may have."""
    try:
        most: int | None = getattr(_reader(encoder), "room", None)
    except VecstoreError:
        raise
    except Exception as error:
        raise EncoderError(f"encoder {encoder.name!r} failed: {error!r}") from error
    if most is not None and (type(most) is not int or most < 1):
        raise EncoderError(f"encoder {encoder.name!r} says that it reads {most!r} tokens")
    room = wanted.tokens
    if room is None:
        room = TOKENS if most is None else most
        room = max(1, room // LATE_SHARE) if wanted.late else room
    if most is not None and room > most:
        raise UsageError(
            f"tokens={room} is more than the {most} tokens of a document that encoder"
            f" {encoder.name!r} reads"
        )
    if 2 * wanted.overlap > room:
        raise UsageError(
            f"overlap={wanted.overlap} is more than half of the {room} tokens of a passage"
        )
    return room


def late_vectors(text: str, spans: list[Span], encoder: Encoder) -> Any:
    """Vectors of passages in the context of their text, (n, dim); what they are is not checked.

    Raises:
        EncoderError: The encoder does not offer that.
    """
    encode = getattr(encoder, "encode_passages", None)
    if encode is None:
        raise EncoderError(
            f"encoder {encoder.name!r} has no vectors of tokens, so that late chunking is not"
            " possible; use chunk=True"
        )
    # A copy, as of texts.
    return encode(text, list(spans))
