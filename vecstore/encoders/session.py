"""How is a model run? One loaded ONNX graph with its tokenizer. onnxruntime is imported only here.

Nothing is imported or loaded before a `Session` is made, and nothing that onnxruntime or tokenizers
raises leaves this module under its own name. Running a session is safe from several threads.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders import cutting
from vecstore.encoders.config import file_inside, is_file
from vecstore.encoders.folder import ModelFolder
from vecstore.encoders.graph import Outline, read_outline
from vecstore.encoders.head import Head, choose_outputs
from vecstore.encoders.pooling import Floats
from vecstore.encoders.prune import prune
from vecstore.encoders.wordwise import wordwise
from vecstore.errors import (
    EncoderError,
    MissingExtraError,
    ModelNotFoundError,
    UsageError,
    VecstoreError,
)
from vecstore.spec import show

if TYPE_CHECKING:
    import onnxruntime
    import tokenizers

Provider = str | tuple[str, Mapping[str, Any]]
_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
# They scale a tensor by its largest value, so that texts in a batch change each other's vectors.
_BATCH_DEPENDENT = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
# onnxruntime prints its own errors; here they are raised.
_SILENT = 4
# The folder of tensors outside the model file, for a graph that is given as bytes.
_EXTERNAL = "session.model_external_initializers_file_folder_path"
_TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model reads it.

    Attributes:
        ids: The numbers of its tokens.
        type_ids: The segment of each; () where that is 0 of all.
        lost: How many characters were cut off.
    """

    ids: list[int]
    type_ids: Sequence[int] = ()
    lost: int = 0


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
        unknown = sorted(outline.inputs.keys() - _INPUTS)
        if unknown or "input_ids" not in outline.inputs:
            raise EncoderError(
                f"{folder.model} takes the inputs {', '.join(outline.inputs)};"
                f" an encoder takes input_ids and may take {', '.join(sorted(_INPUTS))}"
            )
        _check_sizes(folder, outline)
        self._folder = folder
        self._max_length = max_length
        self._outputs = choose_outputs(folder, outline)
        shapes = [outline.outputs[name].shape for name in self._outputs]
        self._head = Head(folder, tokens=any(shape is None or len(shape) != 2 for shape in shapes))
        self._graph = _load_graph(folder, outline, self._outputs, threads, providers)
        self._tokens_output = _choose_tokens(folder, outline, self._outputs)
        # Loaded when passages are to be pooled: the other graph may lack this output.
        self._load = functools.partial(
            _load_graph, folder, outline, threads=threads, providers=providers
        )
        self._tokens_graph: onnxruntime.InferenceSession | None = None
        # Without truncation; made when a text is to be cut.
        self._whole: tokenizers.Tokenizer | None = None
        # Whether the graph itself scales vectors to unit length; None while that is not known.
        self.scales: bool | None = None
        self._types = {
            given.name: np.int32 if given.type == "tensor(int32)" else np.int64
            for given in self._graph.get_inputs()
        }
        self._tokenizer = _read_tokenizer(folder)
        with _foreign(f"{folder.tokenizer} cannot be loaded"):
            self._wordwise = wordwise(self._tokenizer)
            _truncate(self._tokenizer, folder, max_length)
        self.mixes_batches = bool(batch_dependence(outline))
        self.takes_one = takes_one(outline)

    @property
    def vocabulary(self) -> int:
        """How many tokens the tokenizer has, one more than the largest number of one."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def tokenize(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """Return the tokens of each text with the prompt before it, truncated."""
        with _foreign(f"{self._folder.tokenizer} failed"):
            return [self._tokens_of(prompt, text) for text in texts]

    def encodings(self, texts: Sequence[str], prompt: str) -> list[tokenizers.Encoding]:
        """Return what the tokenizer makes of each text with the prompt before it, truncated."""
        # One by one: `encode_batch` starts threads of its own, which a fork does not survive.
        with _foreign(f"{self._folder.tokenizer} failed"):
            return [self._encode(prompt + text) for text in texts]

    def prompt_length(self, prompt: str) -> int:
        """Return how many leading tokens belong to the prompt, the special ones included."""
        if not prompt:
            return 0
        special = self.encodings([""], prompt)[0].special_tokens_mask
        trailing = next((n for n, flag in enumerate(reversed(special)) if not flag), 0)
        return len(special) - trailing

    def run(self, texts: Sequence[Tokens], skipped: int) -> Floats:
        """Return the vectors of one batch, float32 (batch, dim).

        Args:
            texts: The tokens of each text, one at least.
            skipped: Leading tokens that the pooling leaves out.

        Raises:
            EncoderError: The graph failed, or returned no vector for each text.
        """
        feed, mask = self._feed(texts)
        with _foreign(f"{self._folder.model} failed"):
            outputs = [np.asarray(output) for output in self._graph.run(self._outputs, feed)]
        return self._head(outputs, mask, skipped)

    @property
    def name(self) -> str:
        """What messages call the model."""
        return str(self._folder.model)

    @property
    def has_tokens(self) -> bool:
        """Whether the graph has an output with vectors of tokens."""
        return self._tokens_output is not None

    @property
    def tokens_name(self) -> str:
        """What that output is called, where no other one holds them."""
        return self._folder.tokens

    def room(self, prompt: str) -> int:
        """How many tokens of a text the model reads behind a prompt."""
        return self._max_length - len(self.tokenize([""], prompt)[0].ids)

    def tokens(self, text: str) -> tokenizers.Encoding:
        """What the tokenizer makes of all of a text, without special tokens.

        Positions are those in the text.
        """
        if self._whole is None:
            self._whole = _read_tokenizer(self._folder)
        text = self._cased(text)
        with _foreign(f"{self._folder.tokenizer} failed"):
            return self._whole.encode(text, add_special_tokens=False)

    def run_tokens(self, encodings: Sequence[tokenizers.Encoding]) -> Floats:
        """Return the vectors of the tokens of one batch, float32 (batch, sequence, dim).

        Raises:
            EncoderError: The graph failed, or returned something else.
        """
        wanted = [self._tokens_output or ""]
        if self._tokens_graph is None:
            same = self._outputs == wanted
            self._tokens_graph = self._graph if same else self._load(outputs=wanted)
        feed, mask = self._feed([Tokens(one.ids, one.type_ids) for one in encodings])
        # The part of a graph that tokens need may take less.
        taken = {given.name for given in self._tokens_graph.get_inputs()}
        feed = {name: values for name, values in feed.items() if name in taken}
        with _foreign(f"{self._folder.model} failed"):
            output = np.asarray(self._tokens_graph.run(wanted, feed)[0])
        if output.dtype.kind != "f" or output.ndim != 3 or output.shape[:2] != mask.shape:
            raise EncoderError(
                f"{self._folder.model} returned {output.dtype} of shape {output.shape} for"
                f" {mask.shape} tokens, expected one vector for each token"
            )
        return output.astype(np.float32, copy=False)

    def finish(self, vectors: Floats) -> Floats:
        """Do to pooled vectors what the model does behind its pooling."""
        return self._head.finish(vectors)

    def _tokens_of(self, prompt: str, text: str) -> Tokens:
        whole = prompt + text
        if self._wordwise is not None and len(whole) <= cutting.characters(self._max_length):
            ids = self._wordwise.ids(self._cased(whole))
            if ids is not None and len(ids) <= self._max_length:
                return Tokens(ids)
        encoding = self._encode(whole)
        lost = cutting.lost(text, prompt, encoding, self._max_length)
        return Tokens(encoding.ids, encoding.type_ids, lost)

    def _encode(self, text: str) -> tokenizers.Encoding:
        # At least one.
        for part in cutting.prefixes(text, self._max_length):
            encoding = self._tokenizer.encode(self._cased(part))
            if cutting.is_enough(encoding):
                break
        return encoding

    def _cased(self, text: str) -> str:
        """A text as the tokenizer reads it; each character stays where it is."""
        if not self._folder.lowercase:
            return text
        # The one character that becomes two in lower case.
        return text.replace("\u0130", "i").lower()

    def _feed(
        self, texts: Sequence[Tokens]
    ) -> tuple[dict[str, NDArray[np.integer[Any]]], NDArray[np.int64]]:
        sizes = np.array([len(text.ids) for text in texts])
        present = np.arange(sizes.max()) < sizes[:, None]
        mask = present.astype(np.int64)
        feed: dict[str, NDArray[np.integer[Any]]] = {}
        for name, dtype in self._types.items():
            # Any id that exists will do for padding, because the mask hides it.
            values = np.zeros(present.shape, dtype)
            if name == "input_ids":
                ids = chain.from_iterable(text.ids for text in texts)
                values[present] = np.fromiter(ids, dtype, sizes.sum())
            elif name == "attention_mask":
                values[:] = mask
            elif name == "position_ids":
                values[:] = self._folder.first_position + np.arange(present.shape[1])
            elif any(text.type_ids for text in texts):
                for row, text in enumerate(texts):
                    values[row, : len(text.type_ids)] = text.type_ids
            feed[name] = values
        return feed, mask


def _choose_tokens(folder: ModelFolder, outline: Outline, outputs: Sequence[str]) -> str | None:
    """The name of the output that holds vectors of tokens, if there is one."""
    names = [*outputs, folder.tokens] if len(outputs) == 1 else []
    shapes = {name: outline.outputs[name].shape for name in names if name in outline.outputs}
    return next((name for name, shape in shapes.items() if len(shape or ()) == 3), None)


def batch_dependence(outline: Outline) -> list[str]:
    """Return why texts in a batch would change each other's vectors; [] if they would not."""
    reasons = sorted(outline.operators.keys() & _BATCH_DEPENDENT)
    if takes_one(outline):
        reasons.append("batches of one text")
    # Without a mask the graph would read padding as text.
    return reasons if "attention_mask" in outline.inputs else [*reasons, "no attention_mask"]


def takes_one(outline: Outline) -> bool:
    """Whether the graph takes one text at a time and no more."""
    return _sizes(outline)[:1] == (1,)


def _sizes(outline: Outline) -> tuple[Any, ...]:
    """The shape of what the graph takes, as far as it says."""
    return tuple(outline.inputs["input_ids"].shape or ())


def _check_sizes(folder: ModelFolder, outline: Outline) -> None:
    """Raise EncoderError for a graph that takes texts of one length only, or so many at once."""
    batch, length = (*_sizes(outline), None, None)[:2]
    fixed = [f"{batch} texts" if type(batch) is int and batch > 1 else ""]
    fixed.append(f"{length} tokens" if type(length) is int and length > 0 else "")
    if any(fixed):
        raise EncoderError(
            f"{folder.model} takes {' of '.join(filter(None, fixed))} at a time and nothing else;"
            " export it with a batch and a sequence of any size (dynamic axes)"
        )


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
        if not is_file(path):
            raise ModelNotFoundError(f"{folder.model} needs {path}, which is missing")
    return paths


def check_providers(providers: Sequence[Provider]) -> list[Provider]:
    """Return execution providers as a list.

    Raises:
        UsageError: It is no list of names, or of names with options.
    """
    listed = isinstance(providers, Sequence) and not isinstance(providers, str)
    if not listed or not providers or not all(map(_is_provider, providers)):
        raise UsageError(
            f"providers={show(providers, 80)} must be a list of names such as"
            ' "CPUExecutionProvider", or of pairs of a name and its options'
        )
    return [one if isinstance(one, str) else (one[0], dict(one[1])) for one in providers]


def _is_provider(value: object) -> bool:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        return isinstance(value[0], str)
    return isinstance(value, str)


def _load_graph(
    folder: ModelFolder,
    outline: Outline,
    outputs: Sequence[str],
    threads: int | None,
    providers: Sequence[Provider] | None,
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
        options.add_session_config_entry(_EXTERNAL, str(folder.model.parent))
        pruned = None
        if outline.outputs.keys() > set(outputs) and (
            not outline.external or _finds_external(onnxruntime)
        ):
            pruned = prune(folder.model, outputs)
        graph = onnxruntime.InferenceSession(pruned or str(folder.model), options, providers=wanted)
        # It would keep them for as long as it lives.
        graph._model_bytes = None
        return graph


def _finds_external(onnxruntime: Any) -> bool:
    """Whether a graph that is given as bytes may have tensors in other files."""
    release = str(onnxruntime.__version__).split(".")
    return [int(part) for part in release[:2]] >= [1, 21]


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


def _read_tokenizer(folder: ModelFolder) -> tokenizers.Tokenizer:
    """The tokenizer, without padding and truncation."""
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
        return tokenizer


def _truncate(tokenizer: tokenizers.Tokenizer, folder: ModelFolder, max_length: int) -> None:
    longest = max(len(tokenizer.encode(prompt).ids) for prompt in folder.prompts.values())
    if longest >= max_length:
        # The tokenizer would keep nothing of the text, or ignore the limit.
        raise EncoderError(
            f"{folder.path}: max_length={max_length} leaves no room for text beside {longest}"
            " tokens of the prompt and special tokens"
        )
    tokenizer.enable_truncation(max_length)


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
