"""How does a model folder encode text? The ONNX encoder."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders import batching, tokens
from vecstore.encoders.cutting import Tally, Truncated
from vecstore.encoders.dense import read_dense
from vecstore.encoders.folder import (
    MAX_LENGTH,
    OWN_NAME,
    ModelFolder,
    at_layer,
    read_folder,
    with_prompts,
)
from vecstore.encoders.graph import read_outline
from vecstore.encoders.head import declared_dim
from vecstore.encoders.protocol import Kind
from vecstore.encoders.session import Provider, Session, check_providers, external_files
from vecstore.encoders.texts import check_kind, check_texts
from vecstore.errors import EncoderError, UsageError
from vecstore.spec import MAX_DIM, encode_utf8, show
from vecstore.vectors import shorten

# Texts tokenized at a time: enough to sort into batches of like length, and a bound on memory.
_WINDOW = 2048
_PROCESSOR = "CPUExecutionProvider"
_MAX_THREADS = 1024
# Raised when this code starts to make other vectors from the same files and settings.
_RULES = 1


class OnnxEncoder:
    """An encoder from a folder with `model.onnx` and `tokenizer.json`, in any of the usual layouts.

    Pooling, normalisation, prompts and the maximum length are read from the folder's own
    configuration when the encoder is made; the model itself is loaded at the first `encode`.
    Nothing is fetched from anywhere, and only ONNX and JSON files are read. May be used from
    several threads, and in a forked child, where the model is loaded anew.

    Args:
        folder: The model folder.
        max_length: Tokens kept of a text, special tokens included; None for the model's maximum.
        threads: Threads that share the work of one batch; None for one per core.
        providers: onnxruntime's execution providers; None for the CPU.
        batch_size: The most texts run at once; None for as many as suit their lengths. Another
            size changes vectors by rounding only.
        name: A name for people; None for the folder's name. `layer` and `dim` are added to it.
        layer: End after so many of the model's layers, where `vecstore.json` declares an output for
            that; only this part of the model is loaded. None for all layers.
        dim: Keep this prefix of each vector, one of `mrl`, scaled to the length of the whole; None,
            or the model's own number, for the whole. Reads the model if only the graph tells that.
        prompts: What is put before a "query" and before a "document", for models that were trained
            with such and whose folder does not say so; None for what the folder says.

    Raises:
        ModelNotFoundError: The folder, the model or the tokenizer is missing.
        EncoderError: A configuration file is damaged, or declares what is not known here.
        UsageError: `max_length`, `threads` or `batch_size` is out of range, `providers` or `name`
            is something else, or the model does not offer this `layer` or `dim`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_length: int | None = None,
        threads: int | None = None,
        providers: Sequence[Provider] | None = None,
        batch_size: int | None = None,
        name: str | None = None,
        layer: int | None = None,
        dim: int | None = None,
        prompts: Mapping[Kind, str] | None = None,
    ) -> None:
        if not isinstance(folder, str | os.PathLike) or not isinstance(os.fspath(folder), str):
            raise UsageError(f"folder={show(folder)} must be the path of a folder, a str or a Path")
        self._folder = at_layer(read_folder(Path(folder).absolute()), layer)
        if prompts is not None:
            self._folder = with_prompts(self._folder, prompts)
        self._max_length = self._folder.max_length
        if max_length is not None:
            limit = self._folder.limit or MAX_LENGTH
            self._max_length = _positive("max_length", max_length, limit, "tokens it can read")
        self._threads = threads
        if threads is not None:
            self._threads = _positive("threads", threads, _MAX_THREADS, "that are possible")
        self._providers = None if providers is None else check_providers(providers)
        self._batch_size = None if batch_size is None else _positive("batch_size", batch_size)
        self._budget = _budget(self._providers)
        if not isinstance(name, str | None):
            raise UsageError(f"name={show(name)} must be a str")
        self._name = name or self._folder.path.name
        # Digests that need not be computed, because the files came with this package.
        self._known_digests: Mapping[str, str] = {}
        self._dim = self._folder.dim
        self._fingerprint: str | None = None
        self._session: Session | None = None
        self._lock = threading.RLock()
        self._tally = Tally()
        self._layer = layer
        self._prefix = None if dim is None else self._check_prefix(dim)
        _ENCODERS.add(self)

    @property
    def name(self) -> str:
        """The name that was given, or the folder's name; with layer and dim where those are less.

        Such as "default", or "default/layer=4/dim=128".
        """
        parts = {"layer": self._layer, "dim": self._prefix}
        stated = [f"{part}={value}" for part, value in parts.items() if value is not None]
        return "/".join([self._name, *stated])

    @property
    def folder(self) -> ModelFolder:
        """What the model folder declares."""
        return self._folder

    @property
    def session(self) -> Session:
        """The loaded model; loads it.

        Raises:
            EncoderError: The model cannot be loaded.
            MissingExtraError: onnxruntime or tokenizers is not installed.
        """
        return self._loaded()

    @property
    def dim(self) -> int:
        """Numbers per vector, from the configuration or the graph; runs the model if neither says.

        Raises:
            EncoderError: The model cannot be read or run.
        """
        return self._prefix or self._whole_dim()

    @property
    def mrl(self) -> tuple[int, ...]:
        """Prefix lengths that the model was trained for, from `vecstore.json`; () if none."""
        most = self._prefix
        return tuple(size for size in self._folder.mrl if most is None or size <= most)

    @property
    def max_length(self) -> int:
        """Tokens kept of a text, special tokens included; the rest is cut off."""
        return self._max_length

    @property
    def truncated(self) -> Truncated:
        """How many texts were cut at `max_length` tokens since the encoder was made."""
        return self._tally.total

    @property
    def fingerprint(self) -> str:
        """A digest of the model's files and of every setting that changes its vectors.

        Digesting a file takes some milliseconds for each 10 MB, once a process. Bundled models
        have their digests recorded.

        Raises:
            EncoderError: A file cannot be read.
        """
        if self._fingerprint is None:
            with self._lock:
                self._fingerprint = self._fingerprint or self._compute_fingerprint()
        return self._fingerprint

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> NDArray[np.float32]:
        """Encode texts; a text's vector does not depend on the texts beside it.

        Args:
            texts: Texts that are not empty; what exceeds `max_length` tokens is cut off.
            kind: Chooses the model's prompt, if it has prompts.

        Returns:
            float32 of shape (len(texts), dim), C-contiguous, in the order of `texts`.

        Raises:
            UsageError: A text is no str, is empty or only whitespace, has a lone surrogate, or has
                nothing that the tokenizer reads, as control characters alone.
            EncoderError: The model cannot be loaded or run, or returned values that are not finite.
            MissingExtraError: onnxruntime or tokenizers is not installed.
        """
        checked = check_texts(texts)
        check_kind(kind)
        vectors = np.empty((len(checked), self.dim), dtype=np.float32)
        for start in range(0, len(checked), _WINDOW):
            part = slice(start, start + _WINDOW)
            if self._prefix is None:
                self._encode_window(checked[part], kind, vectors[part], start)
            else:
                whole = np.empty((len(checked[part]), self._whole_dim()), dtype=np.float32)
                self._encode_window(checked[part], kind, whole, start)
                vectors[part] = shorten(whole, self._prefix)
        return vectors

    @property
    def room(self) -> int:
        """How many tokens of a document are read, special ones and the prompt left out.

        Raises:
            EncoderError, MissingExtraError: As `encode`.
        """
        return self._loaded().room(self._folder.prompts["document"])

    def token_offsets(self, text: str) -> NDArray[np.int64]:
        """Where each token of a text begins and ends, int64 (t, 2), in characters.

        All of the text is tokenized, however long it is, without prompt and special tokens.

        Raises:
            UsageError: It is no str, or has a lone surrogate.
            EncoderError, MissingExtraError: As `encode`.
        """
        if not isinstance(text, str):
            raise UsageError(f"text is a {type(text).__name__}, expected a str")
        encode_utf8(text, "text")
        return tokens.offsets(self._loaded(), text)

    def encode_passages(self, text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """Encode passages of a text that is read as a whole, in windows where it is long.

        A passage's vector is the mean of those of its tokens (late chunking), of the special ones
        too where the text begins or ends.

        Args:
            text: The text.
            spans: Where each passage begins and ends, in characters; both ascend.

        Returns:
            float32 of shape (len(spans), dim).

        Raises:
            UsageError: The text cannot be encoded, or has no such passages.
            EncoderError: As `encode`; or the model has no output with vectors of tokens, or makes
                a text's vector otherwise than as their mean.
            MissingExtraError: As `encode`.
        """
        check_texts([text])
        tokens.check_spans(spans, text)
        session = self._loaded()
        found = tokens.pool_passages(
            session,
            self._folder.prompts["document"],
            text,
            spans,
            at_once=self._most(session) or max(1, self._budget // self._max_length),
            skip_prompt=self._folder.skip_prompt,
        )
        if self._prefix is not None:
            found = shorten(found, self._prefix)
        if found.shape[1] != self.dim or not np.isfinite(found).all():
            raise EncoderError(
                f"{self._folder.model} returned {found.shape[1]} numbers or NaN for passages"
            )
        return found

    def _encode_window(
        self, texts: list[str], kind: Kind, vectors: NDArray[np.float32], start: int
    ) -> None:
        session = self._loaded()
        prompt = self._folder.prompts[kind]
        read = session.tokenize(texts, prompt)
        skipped = session.prompt_length(prompt) if self._folder.skip_prompt else 0
        sizes = np.array([len(text.ids) for text in read])
        nothing = session.tokenize([""], prompt)[0].ids
        for row in np.flatnonzero(sizes <= len(nothing)).tolist():
            if not sizes[row] or read[row].ids == nothing:
                raise UsageError(
                    f"text {start + row} is {show(texts[row])}, of which {self.name!r} knows"
                    " no token; it has no meaning to encode"
                )
        self._tally.add([text.lost for text in read])
        for rows in batching.batches(sizes, self._most(session), self._budget):
            found = session.run([read[row] for row in rows], skipped)
            if found.shape[1] != vectors.shape[1]:
                raise EncoderError(
                    f"{self._folder.model} returned vectors of {found.shape[1]} numbers, its"
                    f" configuration declares {vectors.shape[1]}"
                )
            finite = np.isfinite(found).all(axis=1)
            if not finite.all():
                row = int(rows[np.argmin(finite)])
                raise EncoderError(
                    f"{self._folder.model} returned NaN or infinity for text {start + row},"
                    f" {show(texts[row])}"
                )
            vectors[rows] = found

    def _most(self, session: Session) -> int | None:
        """How many texts may be run at once; None if only their lengths say."""
        return 1 if session.mixes_batches else self._batch_size

    def _loaded(self) -> Session:
        session = self._session
        if session is None:
            with self._lock:
                session = self._session or Session(
                    self._folder,
                    max_length=self._max_length,
                    threads=self._threads,
                    providers=self._providers,
                )
                self._session = session
        return session

    def _whole_dim(self) -> int:
        if self._dim is None:
            with self._lock:
                self._dim = self._dim or self._find_dim()
        return self._dim

    def _find_dim(self) -> int:
        folder = self._folder
        found = declared_dim(folder, read_outline(folder.model))
        if not found:
            session = self._loaded()
            found = int(session.run(session.tokenize(["dimension"], ""), 0).shape[1])
        if not 0 < found <= MAX_DIM:
            raise EncoderError(
                f"{folder.model} makes vectors of {found} numbers; 1 to {MAX_DIM} are possible"
            )
        if folder.mrl and folder.mrl[-1] > found:
            raise EncoderError(
                f"{folder.path / OWN_NAME}: mrl={list(folder.mrl)!r:.60} goes beyond the {found}"
                " numbers of a vector"
            )
        return found

    def _check_prefix(self, dim: int) -> int | None:
        whole = self._whole_dim()
        if type(dim) is not int or dim not in (*self._folder.mrl, whole):
            known = ", ".join(map(str, self._folder.mrl)) or "none"
            raise UsageError(
                f"dim={show(dim)} is no prefix that {self._name!r} was trained for; it makes"
                f" {whole} numbers, and its prefixes are: {known}"
            )
        return None if dim == whole else dim

    def _compute_fingerprint(self) -> str:
        folder = self._folder
        digests = dict(self._known_digests)
        if not digests:
            paths = {"model": folder.model, "tokenizer": folder.tokenizer}
            paths |= external_files(folder, read_outline(folder.model))
            digests = {name: _digest(path) for name, path in paths.items()}
        identity = {
            "rules": _RULES,
            "files": digests,
            "pooling": folder.pooling,
            "skip_prompt": folder.skip_prompt,
            "normalize": folder.normalize,
            "prompts": dict(folder.prompts),
            "max_length": self._max_length,
            "lowercase": folder.lowercase,
            "output": folder.output,
            **self._further_identity(),
        }
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def _further_identity(self) -> dict[str, object]:
        """Settings that few models have; only those, so that others keep their fingerprints."""
        folder = self._folder
        further: dict[str, object] = {}
        if folder.hidden:
            further |= {"hidden": folder.hidden, "weights": folder.weights}
        if self._prefix is not None:
            further["dim"] = self._prefix
        # Where the graph holds the modules itself, their files need not be there.
        if any(step != "normalize" and (step / "config.json").is_file() for step in folder.steps):
            further["modules"] = [
                step if step == "normalize" else _identity(step) for step in folder.steps
            ]
        return further

    def _abandon_session(self) -> None:
        """Forget what a forked child cannot use: a session whose threads stayed in the parent."""
        if self._session is not None:
            # Freeing it would wait for those threads for ever, at the latest when the child ends.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session = None
        # The parent may have held the locks in another thread.
        self._lock = threading.RLock()
        self._tally.after_fork()

    def __repr__(self) -> str:
        return f"OnnxEncoder({str(self._folder.path)!r}, name={self.name!r})"


_ENCODERS: weakref.WeakSet[OnnxEncoder] = weakref.WeakSet()


def _after_fork() -> None:
    for encoder in list(_ENCODERS):
        encoder._abandon_session()


os.register_at_fork(after_in_child=_after_fork)


def _budget(providers: Sequence[Provider] | None) -> int:
    """How many tokens are run at once."""
    names = [one if isinstance(one, str) else one[0] for one in providers or [_PROCESSOR]]
    return batching.TOKENS if names == [_PROCESSOR] else batching.ACCELERATED_TOKENS


def _identity(path: Path) -> list[object]:
    """What vectors depend on of a Dense module."""
    dense = read_dense(path)
    return [dense.inputs, dense.outputs, dense.bias, dense.activation, _digest(dense.weights)]


def _digest(path: Path) -> str:
    try:
        status = path.stat()
        key = (status.st_size, status.st_mtime_ns, status.st_ino)
        return _digest_once(path, key)
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=64)
def _digest_once(path: Path, _key: tuple[int, int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _positive(name: str, value: int, limit: int | None = None, unit: str = "") -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name}={show(value)} must be a positive int")
    if limit is not None and value > limit:
        raise UsageError(f"{name}={show(value)} is more than the {limit} {unit}")
    return value
