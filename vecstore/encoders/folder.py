"""What does a model folder declare? Pooling, prompts, lengths and files, read from its own config.

The layout is that of sentence-transformers, with an optional `vecstore.json`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from vecstore.encoders.config import Config, file_inside, is_file, is_folder, read_config
from vecstore.encoders.modules import (
    Modules,
    Step,
    check_pooling,
    read_modules,
    transformer_folder,
)
from vecstore.encoders.protocol import Kind
from vecstore.errors import EncoderError, ModelNotFoundError, UsageError
from vecstore.spec import MAX_DIM, MIN_DIM, encode_utf8, show

MODEL_NAMES = ("model.onnx", "onnx/model.onnx")
TOKENIZER_NAME = "tokenizer.json"
OWN_NAME = "vecstore.json"
_TOKENS = "token_embeddings"
_MAX_TOKENIZER_BYTES = 256 << 20
MAX_LENGTH = 1 << 20
_MAX_HIDDEN = 256
_DEFAULT_LENGTH = 512
_LAYER = re.compile(r"0|[1-9][0-9]{0,2}")
# Their position numbers start after the padding token's.
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}
_PROMPT_NAMES: dict[Kind, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model folder, as its files describe it.

    Attributes:
        path: The folder.
        model: The ONNX file.
        tokenizer: The tokenizer's file.
        dim: Numbers per vector where `vecstore.json` declares it, else None.
        mrl: Prefix lengths that the model was trained for.
        pooling: Names of poolings, concatenated; () where the folder declares none.
        skip_prompt: Whether the prompt's tokens are left out of the pooling.
        steps: What vectors go through after the pooling, in order.
        missing: Modules that the folder declares and that only the graph itself can hold.
        prompts: The text put before a document and before a query.
        max_length: Tokens kept of a text, special tokens included.
        limit: The most tokens that the model can read, or None if it is not declared.
        first_position: The number of the first token's place, for graphs that are told it.
        lowercase: Whether text is lower-cased before the tokenizer sees it.
        output: Name of the graph's output to use, or None to choose.
        layers: The outputs that stand for fewer layers, by how many.
        tokens: The output with the vectors of tokens, for late chunking.
        hidden: Outputs with the token vectors of several layers, which are averaged: names, or
            numbers of the outputs `hidden_states.N`, from the end if negative.
        weights: Of the average, one for each of `hidden`; () for equal ones.
        digests: sha256 by file name, as recorded in `vecstore.json`.
    """

    path: Path
    model: Path
    tokenizer: Path
    dim: int | None
    mrl: tuple[int, ...]
    pooling: tuple[str, ...]
    skip_prompt: bool
    steps: tuple[Step, ...]
    missing: tuple[str, ...]
    prompts: Mapping[Kind, str]
    max_length: int
    limit: int | None
    first_position: int
    lowercase: bool
    output: str | None
    layers: Mapping[int, str]
    tokens: str
    hidden: tuple[str | int, ...]
    weights: tuple[float, ...]
    digests: Mapping[str, str]

    @property
    def normalize(self) -> bool:
        """Whether vectors are scaled to unit length anywhere."""
        return "normalize" in self.steps


def read_folder(path: Path) -> ModelFolder:
    """Read a model folder's configuration.

    Raises:
        ModelNotFoundError: The folder, its ONNX file or its tokenizer is missing.
        EncoderError: A config file is damaged, declares what this encoder cannot do, or names a
            file outside the folder.
    """
    if not is_folder(path):
        raise ModelNotFoundError(f"{path} is not a folder; a model is a folder with model.onnx")
    own = read_config(path / OWN_NAME)
    named = own.string("model")
    names = MODEL_NAMES if named is None else (named,)
    # Older models have all that is the transformer's in a folder of its own.
    places = list(dict.fromkeys([path, transformer_folder(path)]))
    files = [file_inside(place, name, f"{own.file}") for place in places for name in names]
    model = next(filter(is_file, files), None)
    tokenizer = next(filter(is_file, (place / TOKENIZER_NAME for place in places)), None)
    if model is None:
        raise ModelNotFoundError(f"{path} has no {show(names[0])[1:-1]}; export the model to ONNX")
    if tokenizer is None:
        raise ModelNotFoundError(f"{path} has no {TOKENIZER_NAME}; save the fast tokenizer there")
    if tokenizer.stat().st_size > _MAX_TOKENIZER_BYTES:
        raise EncoderError(f"{tokenizer} is larger than {_MAX_TOKENIZER_BYTES >> 20} MiB")
    dim = own.integer("dim", MIN_DIM, MAX_DIM)
    modules = _with_own_pooling(read_modules(path), own)
    lengths = _lengths(places)
    hidden, weights = _hidden(own)
    return ModelFolder(
        path=path,
        model=model,
        tokenizer=tokenizer,
        dim=dim,
        mrl=_mrl(own, dim),
        pooling=modules.pooling,
        skip_prompt=modules.skip_prompt,
        steps=modules.steps,
        missing=modules.missing,
        prompts=_prompts(path),
        max_length=lengths.most,
        limit=lengths.limit,
        first_position=lengths.first_position,
        lowercase=lengths.lowercase,
        output=own.string("output"),
        layers=_layers(own),
        tokens=_TOKENS,
        hidden=hidden,
        weights=weights,
        digests=_digests(own),
    )


def at_layer(folder: ModelFolder, layer: int | None) -> ModelFolder:
    """Return the folder as it is for a model that ends after so many layers, None for all.

    Raises:
        UsageError: The folder declares no output for so many.
    """
    if layer is None:
        return folder
    if type(layer) is not int or layer not in folder.layers:
        offered = ", ".join(map(str, sorted(folder.layers))) or "none"
        raise UsageError(
            f"layer={show(layer)} is not offered by {folder.path}; its {OWN_NAME} declares"
            f" layers: {offered}"
        )
    return replace(
        folder,
        output=folder.layers[layer],
        # Those behind the last layer would be of another space.
        tokens=f"{_TOKENS}_{layer}",
        hidden=(),
        weights=(),
    )


def with_prompts(folder: ModelFolder, prompts: Mapping[Kind, str]) -> ModelFolder:
    """Return the folder with other prompts.

    Raises:
        UsageError: They are no texts, or of other kinds than "query" and "document".
    """
    if not isinstance(prompts, Mapping) or not prompts.keys() <= _PROMPT_NAMES.keys():
        example = '{"query": "query: ", "document": "passage: "}'
        raise UsageError(f"prompts={show(prompts)} must be such as {example}")
    for kind, text in prompts.items():
        if not isinstance(text, str):
            raise UsageError(f"prompts[{kind!r}]={show(text)} must be a text")
        encode_utf8(text, f"prompts[{kind!r}]")
    return replace(folder, prompts={kind: prompts.get(kind, "") for kind in _PROMPT_NAMES})


def _with_own_pooling(modules: Modules, own: Config) -> Modules:
    declared = own.values.get("pooling")
    if declared is None:
        return modules
    return replace(modules, pooling=check_pooling(own.file, declared))


def _prompts(path: Path) -> dict[Kind, str]:
    config = read_config(path / "config_sentence_transformers.json")
    prompts = config.values.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise EncoderError(f"{config.file}: prompts must be an object of strings")
    try:
        "".join(prompts.values()).encode()
    except UnicodeEncodeError:
        raise EncoderError(f"{config.file}: a prompt has a lone surrogate") from None
    fallback = prompts.get(config.string("default_prompt_name") or "", "")
    return {
        kind: next((prompts[key] for key in keys if key in prompts), fallback)
        for kind, keys in _PROMPT_NAMES.items()
    }


class _Lengths(NamedTuple):
    """How much of a text is read; see `ModelFolder`."""

    most: int
    limit: int | None
    first_position: int
    lowercase: bool


def _lengths(places: Sequence[Path]) -> _Lengths:
    """How much of a text is read, as the folder says, or else that of its transformer."""
    sentence = _first_config(places, "sentence_bert_config.json")
    declared = sentence.integer("max_seq_length", 1, MAX_LENGTH)
    tokenizer = _first_config(places, "tokenizer_config.json").values.get("model_max_length")
    model = _first_config(places, "config.json")
    limit, first = model.integer("max_position_embeddings", 1, MAX_LENGTH), 0
    if model.string("model_type") in OFFSET_POSITIONS:
        padding = model.integer("pad_token_id", 0, MAX_LENGTH)
        first = (1 if padding is None else padding) + 1
        limit = None if limit is None else max(1, limit - first)
    # Tokenizers without a limit of their own say so with a number like 1e30.
    known = [
        int(size)
        for size in (limit, tokenizer)
        if isinstance(size, int | float) and 0 < size <= MAX_LENGTH
    ]
    max_length = declared if declared is not None else min(known, default=_DEFAULT_LENGTH)
    if limit is not None:
        max_length = min(max_length, limit)
    return _Lengths(max_length, limit, first, sentence.values.get("do_lower_case") is True)


def _first_config(places: Sequence[Path], name: str) -> Config:
    """The config of this name in the first folder that has one; an empty one if none has."""
    configs = [read_config(place / name) for place in places]
    return next((config for config in configs if config.values), configs[0])


def _mrl(own: Config, dim: int | None) -> tuple[int, ...]:
    sizes = own.values.get("mrl", [])
    limit = MAX_DIM if dim is None else dim
    valid = (
        isinstance(sizes, list)
        and all(type(size) is int and 0 < size <= limit for size in sizes)
        and sizes == sorted(set(sizes))
    )
    if not valid:
        raise own.error("mrl", f"ascending prefix lengths between 1 and {limit}")
    return tuple(sizes)


def _layers(own: Config) -> dict[int, str]:
    layers = own.values.get("layers", {})
    if not isinstance(layers, dict) or not all(
        _LAYER.fullmatch(key) and isinstance(name, str) for key, name in layers.items()
    ):
        raise own.error("layers", "an object of outputs by numbers of layers")
    return {int(key): name for key, name in layers.items()}


def _hidden(own: Config) -> tuple[tuple[str | int, ...], tuple[float, ...]]:
    """Return hidden and weights."""
    hidden, weights = own.values.get("hidden", []), own.values.get("weights", [])
    if (
        not isinstance(hidden, list)
        or len(hidden) > _MAX_HIDDEN
        or not all(type(output) in (str, int) for output in hidden)
    ):
        raise own.error("hidden", "a list of outputs, by name or by number of the layer")
    if not isinstance(weights, list) or not all(_is_weight(weight) for weight in weights):
        raise own.error("weights", "a list of numbers of at least 0")
    if weights and (len(weights) != len(hidden) or not sum(weights)):
        raise own.error("weights", f"one number for each of hidden={hidden!r:.60}, not all 0")
    return tuple(hidden), tuple(map(float, weights))


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1e6 and math.isfinite(value)


def _digests(own: Config) -> dict[str, str]:
    digests = own.values.get("files", {})
    if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
        raise own.error("files", "an object of sha256 digests")
    return digests
