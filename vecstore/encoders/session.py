"""How is a model run? One loaded ONNX graph with its tokenizer. onnxruntime is imported only here.

Nothing is imported or loaded before a `Session` is made, and nothing that onnxruntime or tokenizers
raises leaves this module under its own name. Running a session is safe from several threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders.folder import ModelFolder, file_inside
from vecstore.encoders.graph import Outline, read_outline
from vecstore.encoders.pooling import Floats, pool
from vecstore.errors import (
    EncoderError,
    MissingExtraError,
    ModelNotFoundError,
    UsageError,
    VecstoreError,
)

if TYPE_CHECKING:
    import onnxruntime
    import tokenizers

Provider = str | tuple[str, Mapping[str, Any]]
_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
_OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
# They scale a tensor by its largest value, so that texts in a batch change each other's vectors.
_BATCH_DEPENDENT = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
# onnxruntime prints its own errors; here they are raised.
_SILENT = 4
_TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


class Session:
    """A loaded model.

    Args:
        folder: The model folder.
        max_length: Tokens kept of a text.
        threads: Threads that share one batch; None for onnxruntime's choice.
        providers: onnxruntime's execution providers; None for the CPU.

    Raises:
        ModelNotFoundError: A file that the model refers to is missing.
        MissingExtraError: onnxruntime or tokenizers is not installed.
        EncoderError: The model or the tokenizer is damaged, or of a kind that cannot be used.
        UsageError: A provider is not available.
    """

    def __init__(
        self,
        folder: ModelFolder,
        *,
        max_length: int,
        threads: int | None,
        providers: Sequence[Provider] | None,
    ) -> None:
        outline = read_outline(folder.model)
        external_files(folder, outline)
        unknown = sorted(set(outline.inputs) - _INPUTS)
        if unknown or "input_ids" not in outline.inputs:
            raise EncoderError(
                f"{folder.model} takes the inputs {', '.join(outline.inputs)};"
                f" an encoder takes input_ids and may take {', '.join(sorted(_INPUTS))}"
            )
        self._folder = folder
        self._output = choose_output(folder, outline)
        self._graph = _load_graph(folder, threads, providers)
        self._types = {
            given.name: np.int32 if given.type == "tensor(int32)" else np.int64
            for given in self._graph.get_inputs()
        }
        self._tokenizer = _load_tokenizer(folder, max_length)
        # Without a mask the graph would read padding as text.
        self.mixes_batches = bool(outline.operators & _BATCH_DEPENDENT) or (
            "attention_mask" not in outline.inputs
        )

    def tokenize(self, texts: Sequence[str], prompt: str) -> list[tokenizers.Encoding]:
        """Return what the tokenizer makes of each text with the prompt before it, truncated."""
        # One by one: `encode_batch` starts threads of its own, which a fork does not survive.
        return [self._encode(prompt + text) for text in texts]

    def prompt_length(self, prompt: str) -> int:
        """Return how many leading tokens belong to the prompt, the special ones included."""
        if not prompt:
            return 0
        special = self._encode(prompt).special_tokens_mask
        trailing = next((n for n, flag in enumerate(reversed(special)) if not flag), 0)
        return len(special) - trailing

    def run(self, encodings: Sequence[tokenizers.Encoding], skipped: int) -> Floats:
        """Return the vectors of one batch, float32 (batch, dim).

        Args:
            encodings: One for each text, each with one token at least.
            skipped: Leading tokens that the pooling leaves out.

        Raises:
            EncoderError: The graph failed, or returned no vector for each text.
        """
        feed, mask = self._feed(encodings)
        with _foreign(f"{self._folder.model} failed"):
            output = np.asarray(self._graph.run([self._output], feed)[0])
        if output.dtype.kind != "f" or output.ndim not in (2, 3) or len(output) != len(mask):
            raise EncoderError(
                f"{self._folder.model} returned {output.dtype} of shape {output.shape} for"
                f" {len(mask)} texts, expected one vector for each text or each token"
            )
        vectors = output.astype(np.float32, copy=False)
        if vectors.ndim == 3:
            vectors = self._pool(vectors, mask, skipped)
        return self._normalized(vectors) if self._folder.normalize else vectors

    def _encode(self, text: str) -> tokenizers.Encoding:
        with _foreign(f"{self._folder.tokenizer} failed"):
            return self._tokenizer.encode(text.lower() if self._folder.lowercase else text)

    def _feed(
        self, encodings: Sequence[tokenizers.Encoding]
    ) -> tuple[dict[str, NDArray[np.integer[Any]]], NDArray[np.int64]]:
        shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
        # Any id that exists will do for padding, because the mask hides it.
        ids = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        kinds = np.zeros(shape, dtype=np.int64)
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            ids[row, :length] = encoding.ids
            kinds[row, :length] = encoding.type_ids
            mask[row, :length] = 1
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": kinds,
            "position_ids": np.broadcast_to(np.arange(shape[1]), shape),
        }
        return {name: np.ascontiguousarray(given[name], t) for name, t in self._types.items()}, mask

    def _pool(self, tokens: Floats, mask: NDArray[np.int64], skipped: int) -> Floats:
        folder = self._folder
        if tokens.shape[1] != mask.shape[1]:
            raise EncoderError(
                f"{folder.model} returned {tokens.shape[1]} vectors for {mask.shape[1]} tokens"
            )
        if folder.missing or not folder.pooling:
            what = ", ".join(folder.missing) or "no pooling"
            raise EncoderError(
                f"{folder.path / 'modules.json'} declares {what}, and the graph returns token"
                " vectors; export the whole model, so that the graph returns sentence vectors"
            )
        kept = mask.astype(np.float32)
        kept[:, :skipped] = 0
        # A text cut down to its prompt has nothing else to pool.
        alone = kept.sum(axis=1) == 0
        kept[alone] = mask[alone]
        return pool(tokens, kept, folder.pooling)

    def _normalized(self, vectors: Floats) -> Floats:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not lengths.all():
            raise EncoderError(f"{self._folder.model} returned a vector of zeros")
        normalized: Floats = vectors / lengths
        return normalized


def choose_output(folder: ModelFolder, outline: Outline) -> str:
    """Return the name of the graph's output that holds the vectors.

    Raises:
        EncoderError: `vecstore.json` names an output that the graph does not have.
    """
    if folder.output is not None:
        if folder.output not in outline.outputs:
            raise EncoderError(
                f"vecstore.json names the output {folder.output!r}, and {folder.model} has"
                f" {', '.join(outline.outputs)}"
            )
        return folder.output
    # A pooled output of another name may be BERT's pooler, which is no sentence vector, so token
    # vectors come first.
    tokens = [name for name, shape in outline.outputs.items() if len(shape) == 3]
    known = [name for name in _OUTPUTS if name in outline.outputs]
    return (known + tokens + list(outline.outputs))[0]


def external_files(folder: ModelFolder, outline: Outline) -> dict[str, Any]:
    """Return the paths, by name, of the files that hold tensors outside the model file.

    Raises:
        EncoderError: A name leads outside the folder.
        ModelNotFoundError: A file is missing.
    """
    paths = {
        name: file_inside(folder.model.parent, name, str(folder.model))
        for name in sorted(outline.external)
    }
    for path in paths.values():
        if not path.is_file():
            raise ModelNotFoundError(f"{folder.model} needs {path}, which is missing")
    return paths


def _load_graph(
    folder: ModelFolder, threads: int | None, providers: Sequence[Provider] | None
) -> onnxruntime.InferenceSession:
    onnxruntime = _import_onnxruntime()
    wanted = ["CPUExecutionProvider"] if providers is None else list(providers)
    available = onnxruntime.get_available_providers()
    for provider in wanted:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise UsageError(
                f"the provider {name!r} is not available; this onnxruntime has"
                f" {', '.join(available)}"
            )
    with _foreign(f"{folder.model} cannot be loaded"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        if threads is not None:
            options.intra_op_num_threads = threads
        # Waiting threads would otherwise burn the cores that the search is about to use.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(str(folder.model), options, providers=wanted)


def _import_onnxruntime() -> Any:
    # From 1.29 on it reports its use over the network unless this is set when it is imported. Its
    # thread for that also makes a forked child hang when it ends.
    chosen = os.environ.get(_TELEMETRY_OFF)
    os.environ[_TELEMETRY_OFF] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"encoding text needs onnxruntime ({error}): pip install onnxruntime"
        ) from error
    finally:
        if chosen is None:
            del os.environ[_TELEMETRY_OFF]
        else:
            os.environ[_TELEMETRY_OFF] = chosen
    # For the case that somebody else imported it before.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _load_tokenizer(folder: ModelFolder, max_length: int) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError(
            f"encoding text needs tokenizers ({error}): pip install tokenizers"
        ) from error
    with _foreign(f"{folder.tokenizer} cannot be loaded"):
        tokenizer = tokenizers.Tokenizer.from_file(str(folder.tokenizer))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        longest = max(len(tokenizer.encode(prompt).ids) for prompt in folder.prompts.values())
        if longest >= max_length:
            # The tokenizer would keep nothing of the text, or ignore the limit.
            raise EncoderError(
                f"max_length={max_length} leaves no room for text beside {longest} tokens of the"
                " prompt and special tokens"
            )
        tokenizer.enable_truncation(max_length)
        return tokenizer


@contextmanager
def _foreign(what: str) -> Iterator[None]:
    """Turn whatever another package raises into an EncoderError that starts with `what`."""
    try:
        yield
    except (VecstoreError, MemoryError):
        raise
    except Exception as error:
        raise EncoderError(f"{what}: {error}") from error
    except BaseException as error:
        # A panic in Rust is no Exception, so that `except Exception` would let it pass.
        if type(error).__name__ != "PanicException":
            raise
        raise EncoderError(f"{what}: {error}") from error
