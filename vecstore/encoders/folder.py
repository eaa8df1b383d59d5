"""What does a model folder declare? Pooling, prompts, lengths and files, read from its own config.

The layout is that of sentence-transformers, with an optional `vecstore.json`. Only JSON is read
here. A folder is not trusted: a name in a config file that leads outside the folder is refused, and
so is a config file that no encoder needs to be that large.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vecstore.encoders.pooling import POOLINGS
from vecstore.encoders.protocol import Kind
from vecstore.errors import EncoderError, ModelNotFoundError
from vecstore.spec import MAX_DIM, MIN_DIM

MODEL_NAMES = ("model.onnx", "onnx/model.onnx")
TOKENIZER_NAME = "tokenizer.json"
_MAX_CONFIG_BYTES = 4 << 20
_MAX_TOKENIZER_BYTES = 256 << 20
_MAX_LENGTH = 1 << 20
_DEFAULT_LENGTH = 512
# Their position numbers start after the padding token's.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}
_LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
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
        pooling: Names in `POOLINGS`, concatenated; () where the folder declares none.
        skip_prompt: Whether the prompt's tokens are left out of the pooling.
        normalize: Whether vectors are scaled to unit length.
        missing: Modules that the folder declares and that only the graph itself can hold.
        prompts: The text put before a document and before a query.
        max_length: Tokens kept of a text, special tokens included.
        limit: The most tokens that the model can read, or None if it is not declared.
        lowercase: Whether text is lower-cased before the tokenizer sees it.
        output: Name of the graph's output to use, or None to choose.
        digests: sha256 by file name, as recorded in `vecstore.json`.
    """

    path: Path
    model: Path
    tokenizer: Path
    dim: int | None
    mrl: tuple[int, ...]
    pooling: tuple[str, ...]
    skip_prompt: bool
    normalize: bool
    missing: tuple[str, ...]
    prompts: Mapping[Kind, str]
    max_length: int
    limit: int | None
    lowercase: bool
    output: str | None
    digests: Mapping[str, str]


def read_folder(path: Path) -> ModelFolder:
    """Read a model folder's configuration.

    Raises:
        ModelNotFoundError: The folder, its ONNX file or its tokenizer is missing.
        EncoderError: A config file is damaged, declares what this encoder cannot do, or names a
            file outside the folder.
    """
    if not path.is_dir():
        raise ModelNotFoundError(f"{path} is not a folder; a model is a folder with model.onnx")
    model = next((path / name for name in MODEL_NAMES if (path / name).is_file()), None)
    tokenizer = path / TOKENIZER_NAME
    if model is None:
        raise ModelNotFoundError(f"{path} has no {MODEL_NAMES[0]}; export the model to ONNX")
    if not tokenizer.is_file():
        raise ModelNotFoundError(f"{path} has no {TOKENIZER_NAME}; save the fast tokenizer there")
    if tokenizer.stat().st_size > _MAX_TOKENIZER_BYTES:
        raise EncoderError(f"{tokenizer} is larger than {_MAX_TOKENIZER_BYTES >> 20} MiB")
    own = _read_config(path, "vecstore.json")
    dim = _integer(own, "dim", "vecstore.json", MIN_DIM, MAX_DIM)
    pooling, skip_prompt, normalize, missing = _modules(path)
    max_length, limit, lowercase = _lengths(path)
    return ModelFolder(
        path=path,
        model=model,
        tokenizer=tokenizer,
        dim=dim,
        mrl=_mrl(own, dim),
        pooling=pooling,
        skip_prompt=skip_prompt,
        normalize=normalize,
        missing=missing,
        prompts=_prompts(path),
        max_length=max_length,
        limit=limit,
        lowercase=lowercase,
        output=_string(own, "output", "vecstore.json"),
        digests=_digests(own),
    )


def file_inside(folder: Path, name: object, named_by: str) -> Path:
    """Return `folder / name`, or raise EncoderError if the name leads outside the folder."""
    if not isinstance(name, str):
        raise EncoderError(f"{named_by} names a file by {name!r:.60}, expected a str")
    parts = PurePosixPath(name)
    # Backslash and colon separate folders and drives where these files may come from.
    if parts.is_absolute() or ".." in parts.parts or any(sign in name for sign in "\\:\0"):
        raise EncoderError(f"{named_by} names {name!r:.60}, which is outside the model folder")
    return folder / parts


def _modules(path: Path) -> tuple[tuple[str, ...], bool, bool, tuple[str, ...]]:
    """Return pooling, skip_prompt, normalize and missing."""
    modules = _read_json(path / "modules.json")
    if modules is None:
        # What sentence-transformers does with a bare transformer.
        return *_pooling(path, "1_Pooling", default=("mean",)), False, ()
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise EncoderError(f"{path / 'modules.json'} is not a list of modules")
    pooling: tuple[str, ...] = ()
    skip_prompt = normalize = False
    missing: list[str] = []
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling, skip_prompt = _pooling(path, module.get("path", ""), default=("mean",))
        elif kind == "Normalize":
            normalize = True
        elif kind not in ("Transformer", "Dropout"):
            missing.append(kind)
    return pooling, skip_prompt, normalize, tuple(missing)


def _pooling(path: Path, name: object, *, default: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    file = file_inside(path, name, f"{path / 'modules.json'}") / "config.json"
    config = _read_object(file)
    if not config:
        return default, False
    declared = config.get("pooling_mode")
    if declared is None:
        flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        unknown = [flag for flag in flags if flag not in _LEGACY_POOLINGS]
        modes = [mode for flag, mode in _LEGACY_POOLINGS.items() if flag in flags]
    else:
        modes = declared if isinstance(declared, list) else [declared]
        unknown = [mode for mode in modes if not isinstance(mode, str) or mode not in POOLINGS]
    if unknown:
        raise EncoderError(
            f"{file} declares the pooling {unknown[0]!r}, which is unknown; known are"
            f" {', '.join(POOLINGS)}"
        )
    return tuple(modes) or default, config.get("include_prompt") is False


def _prompts(path: Path) -> dict[Kind, str]:
    name = "config_sentence_transformers.json"
    config = _read_config(path, name)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise EncoderError(f"{path / name}: prompts must be an object of strings")
    fallback = prompts.get(config.get("default_prompt_name") or "", "")
    return {
        kind: next((prompts[key] for key in keys if key in prompts), fallback)
        for kind, keys in _PROMPT_NAMES.items()
    }


def _lengths(path: Path) -> tuple[int, int | None, bool]:
    """Return max_length, limit and lowercase."""
    name = "sentence_bert_config.json"
    sentence = _read_config(path, name)
    declared = _integer(sentence, "max_seq_length", name, 1, _MAX_LENGTH)
    tokenizer = _read_config(path, "tokenizer_config.json").get("model_max_length")
    model = _read_config(path, "config.json")
    limit = _integer(model, "max_position_embeddings", "config.json", 1, _MAX_LENGTH)
    if limit is not None and model.get("model_type") in _OFFSET_POSITIONS:
        padding = _integer(model, "pad_token_id", "config.json", 0, _MAX_LENGTH)
        limit = max(1, limit - (1 if padding is None else padding) - 1)
    # Tokenizers without a limit of their own say so with a number like 1e30.
    known = [
        int(size)
        for size in (limit, tokenizer)
        if isinstance(size, int | float) and 0 < size <= _MAX_LENGTH
    ]
    max_length = declared if declared is not None else min(known, default=_DEFAULT_LENGTH)
    if limit is not None:
        max_length = min(max_length, limit)
    return max_length, limit, sentence.get("do_lower_case") is True


def _mrl(config: dict[str, Any], dim: int | None) -> tuple[int, ...]:
    sizes = config.get("mrl", [])
    limit = MAX_DIM if dim is None else dim
    valid = (
        isinstance(sizes, list)
        and all(type(size) is int and 0 < size <= limit for size in sizes)
        and sizes == sorted(set(sizes))
    )
    if not valid:
        raise EncoderError(
            f"vecstore.json: mrl={sizes!r:.60} must be ascending prefix lengths between 1 and"
            f" {limit}"
        )
    return tuple(sizes)


def _digests(config: dict[str, Any]) -> dict[str, str]:
    digests = config.get("files", {})
    if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
        raise EncoderError("vecstore.json: files must be an object of sha256 digests")
    return digests


def _integer(config: dict[str, Any], key: str, name: str, least: int, most: int) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise EncoderError(f"{name}: {key}={value!r:.60} must be an integer in {least}..{most}")
    return value


def _string(config: dict[str, Any], key: str, name: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise EncoderError(f"{name}: {key}={value!r:.60} must be a string")
    return value


def _read_config(path: Path, name: str) -> dict[str, Any]:
    return _read_object(path / name)


def _read_object(file: Path) -> dict[str, Any]:
    value = _read_json(file)
    if value is not None and not isinstance(value, dict):
        raise EncoderError(f"{file} is not a JSON object")
    return value or {}


def _read_json(file: Path) -> Any:
    """Return the file's value, or None if there is no such file."""
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise EncoderError(f"{file} is larger than {_MAX_CONFIG_BYTES >> 20} MiB")
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EncoderError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{file} is not valid JSON: {error}") from None
