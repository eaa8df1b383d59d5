"""How do labelled texts become vectors, once? Batches with a bar, and a folder that keeps them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecstore import ingest
from vecstore.encoders import Encoder, Kind
from vecstore.errors import StoreError
from vecstore.spec import CollectionSpec

BATCH = 256

Vectors = NDArray[np.float32]


def embed(
    encoder: Encoder,
    texts: list[str],
    kind: Kind,
    *,
    named: Callable[[str], str],
    folder: Path | None,
    advance: Callable[[int], object],
) -> Vectors:
    """Embed texts at the encoder's full length.

    Args:
        encoder: The encoder.
        texts: Texts that it can encode.
        kind: Whether they are documents or queries.
        named: What a text is called in messages.
        folder: Where vectors are kept for the next run, under a digest of the encoder's fingerprint
            and of the texts; None to keep none. What is damaged there is made anew.
        advance: Told how many more texts are done.

    Returns:
        float32 of shape (len(texts), encoder.dim).

    Raises:
        UsageError: The encoder refuses a text, as one of which it knows no word.
        EncoderError: The encoder failed, or returned another shape, numbers that are not finite or
            a vector of zeros.
        StoreError: The folder cannot be written to.
    """
    file = None if folder is None else folder / f"{_digest(encoder, texts, kind)}.npy"
    kept = None if file is None else _read(file, (len(texts), encoder.dim))
    if kept is not None:
        advance(len(texts))
        return kept
    spec = CollectionSpec(name="eval", dim=encoder.dim)
    vectors = np.empty((len(texts), encoder.dim), np.float32)
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        vectors[start : start + BATCH] = ingest.embed_named(spec, part, encoder, kind, named)
        advance(len(part))
    if file is not None:
        _write(file, vectors)
    return vectors


def check_folder(folder: Path) -> None:
    """Make a folder for vectors; StoreError if none can be kept there."""
    with _kept_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{folder} cannot keep vectors: {error.strerror or error}") from None


def _digest(encoder: Encoder, texts: list[str], kind: Kind) -> str:
    state = hashlib.sha256(f"{encoder.fingerprint}\n{kind}\n{len(texts)}\n".encode())
    for text in texts:
        data = text.encode()
        # With its length, or two texts could be cut elsewhere and count as the same.
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:40]


def _read(file: Path, shape: tuple[int, int]) -> Vectors | None:
    try:
        kept = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = isinstance(kept, np.ndarray) and kept.shape == shape and kept.dtype == np.float32
    return kept if sound and np.isfinite(kept).all() else None


def _write(file: Path, vectors: Vectors) -> None:
    """Write beside the file and rename, so that a killed run leaves no half of it."""
    with _kept_in(file.parent):
        handle, beside = tempfile.mkstemp(dir=file.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.save(stream, vectors, allow_pickle=False)
            Path(beside).replace(file)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
