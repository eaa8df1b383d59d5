"""How does a folder with weights for PyTorch become one with an ONNX model?"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vecstore.encoders.config import file_inside, read_config, read_json
from vecstore.encoders.folder import TOKENIZER_NAME
from vecstore.encoders.onnx import OnnxEncoder
from vecstore.encoders.safetensors import read_tensors
from vecstore.encoders.transformer import build, read_shape
from vecstore.errors import (
    AlreadyExistsError,
    EncoderError,
    MissingExtraError,
    ModelNotFoundError,
    StoreError,
)

_WEIGHTS, _MODEL = "model.safetensors", "model.onnx"
# What describes a model, wherever sentence-transformers puts its transformer.
_BESIDE_WEIGHTS = (
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "config.json",
    "sentence_bert_config.json",
)
_BESIDE_MODULES = (
    *("modules.json", "config_sentence_transformers.json", "vecstore.json"),
    *("README.md", "LICENSE", "LICENSE.txt", "NOTICE"),
)
# A protobuf message holds 2 GiB at most; larger tensors go to a file of their own.
_MAX_BYTES = 1 << 30


def export(source: str | os.PathLike[str], target: str | os.PathLike[str], *, int8: bool) -> Path:
    """Write a model folder with an ONNX model from one with weights in safetensors.

    The graph holds the transformer; pooling and modules behind it are copied, and done by
    `OnnxEncoder`. The new model is loaded once before the folder gets its name.

    Args:
        source: A folder in the layout of sentence-transformers or transformers.
        target: The new folder; it must not exist.
        int8: Whether matrices are stored as int8, a quarter of the size; arithmetic stays float32.

    Returns:
        The new folder.

    Raises:
        ModelNotFoundError: There are no weights or no tokenizer.
        EncoderError: The model is damaged, or of a kind that cannot be exported.
        AlreadyExistsError: There is something at `target`.
        MissingExtraError: onnx is not installed.
        StoreError: The folder cannot be written.
    """
    source, target = Path(source), Path(target).absolute()
    if target.exists():
        raise AlreadyExistsError(f"{target} exists already; an export never overwrites")
    weights = _transformer(source)
    if not (weights / _WEIGHTS).is_file():
        raise ModelNotFoundError(
            f"{weights} has no {_WEIGHTS}; save the model with safe_serialization=True (a pickle,"
            " such as pytorch_model.bin, could run any code and is not opened)"
        )
    if not (weights / TOKENIZER_NAME).is_file():
        raise ModelNotFoundError(
            f"{weights} has no {TOKENIZER_NAME}; save the fast tokenizer there"
        )
    shape = read_shape(read_config(weights / "config.json"))
    tensors = read_tensors(weights / _WEIGHTS)
    try:
        model = build(tensors, shape, quantized=int8)
    except MissingExtraError:
        raise
    except EncoderError as error:
        raise EncoderError(f"{weights / _WEIGHTS}: {error}") from error
    try:
        return _written(model, source, weights, target)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error


def _written(model: Any, source: Path, weights: Path, target: Path) -> Path:
    """Write the folder beside its place, try it out and rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        _save(model, made / _MODEL)
        _copy(source, weights, made)
        OnnxEncoder(made).encode(["It loads."])
        made.rename(target)
    return target


def _transformer(source: Path) -> Path:
    """The folder of the transformer among the modules."""
    if not source.is_dir():
        raise ModelNotFoundError(f"{source} is not a folder")
    for module in _modules(source):
        if str(module.get("type", "")).endswith(".Transformer"):
            return file_inside(source, module.get("path", ""), f"{source / 'modules.json'}")
    return source


def _modules(source: Path) -> list[dict[str, Any]]:
    listed = read_json(source / "modules.json") or []
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise EncoderError(f"{source / 'modules.json'} is not a list of modules")
    return listed


def _save(model: Any, path: Path) -> None:
    import onnx

    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _MAX_BYTES
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=large,
        location=f"{path.name}.data" if large else None,
    )


def _copy(source: Path, weights: Path, made: Path) -> None:
    files = [(weights / name, made / name) for name in _BESIDE_WEIGHTS]
    files += [(source / name, made / name) for name in _BESIDE_MODULES]
    for module in _modules(source):
        name = module.get("path", "")
        inside = file_inside(source, name, f"{source / 'modules.json'}")
        if inside != weights:
            files += [(inside / part, made / name / part) for part in ("config.json", _WEIGHTS)]
    if not (source / "modules.json").exists():
        files.append((source / "1_Pooling/config.json", made / "1_Pooling/config.json"))
    for old, new in files:
        if old.is_file():
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, new)
