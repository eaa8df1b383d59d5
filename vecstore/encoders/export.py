"""How does a folder with weights for PyTorch become one with an ONNX model?"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vecstore.encoders.config import Config, file_inside, is_file, is_folder, read_config
from vecstore.encoders.folder import OWN_NAME, TOKENIZER_NAME
from vecstore.encoders.modules import listed_modules, transformer_folder
from vecstore.encoders.onnx import OnnxEncoder
from vecstore.encoders.safetensors import read_tensors
from vecstore.encoders.transformer import Shape, build, read_shape
from vecstore.errors import (
    AlreadyExistsError,
    EncoderError,
    MissingExtraError,
    ModelNotFoundError,
    StoreError,
    UsageError,
)
from vecstore.spec import show

_WEIGHTS, _MODEL = "model.safetensors", "model.onnx"
# What describes a model, wherever sentence-transformers puts its transformer.
_BESIDE_WEIGHTS = (
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "config.json",
    "sentence_bert_config.json",
)
_BESIDE_MODULES = (
    *("modules.json", "config_sentence_transformers.json"),
    *("README.md", "LICENSE", "LICENSE.txt", "NOTICE"),
)
# A protobuf message holds 2 GiB at most; larger tensors go to a file of their own.
_MAX_BYTES = 1 << 30
_LAYER, _POSITIONS = re.compile(r"\blayer\.(\d{1,9})\."), "position_embeddings.weight"
# What vecstore.json says of another graph than the one that is made.
_OF_THE_GRAPH = ("model", "output", "layers", "hidden", "weights", "files")
# The longest text that a new model is tried with, in words.
_TRIED = 4096


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
    for path in (source, target):
        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"{show(path)} is no path of a folder")
    source, target = Path(source), Path(target).absolute()
    if is_folder(target) or is_file(target):
        raise AlreadyExistsError(f"{target} exists already; an export never overwrites")
    if not is_folder(source):
        raise ModelNotFoundError(f"{source} is not a folder")
    weights = transformer_folder(source)
    if is_file(weights / f"{_WEIGHTS}.index.json"):
        raise ModelNotFoundError(
            f"{weights} has weights in several files; save them as one, with a max_shard_size that"
            " is larger than all of them"
        )
    if not is_file(weights / _WEIGHTS):
        raise ModelNotFoundError(
            f"{weights} has no {_WEIGHTS}; save the model with safe_serialization=True (a pickle,"
            " such as pytorch_model.bin, could run any code and is not opened)"
        )
    if not is_file(weights / TOKENIZER_NAME):
        raise ModelNotFoundError(
            f"{weights} has no {TOKENIZER_NAME}; save the fast tokenizer there"
        )
    config = read_config(weights / "config.json")
    shape, tensors = read_shape(config), read_tensors(weights / _WEIGHTS)
    _check_weights(config, shape, tensors)
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


def _check_weights(config: Config, shape: Shape, tensors: Mapping[str, Any]) -> None:
    """Raise EncoderError where weights are of more layers, or fewer positions, than is declared."""
    held = {int(number) for name in tensors for number in _LAYER.findall(name)}
    if max(held, default=-1) >= shape.layers:
        raise EncoderError(
            f"{config.file} declares {shape.layers} layers, and {_WEIGHTS} has {1 + max(held)}"
        )
    declared = config.integer("max_position_embeddings", 1, 1 << 30)
    for name, tensor in tensors.items():
        if name.endswith(_POSITIONS) and declared is not None and declared > len(tensor):
            raise EncoderError(
                f"{config.file} declares {declared} positions, and {name} has {len(tensor)}"
            )


def _written(model: Any, source: Path, weights: Path, target: Path) -> Path:
    """Write the folder beside its place, try it out and rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        _save(model, made / _MODEL)
        _copy(source, weights, made)
        _try(made, target)
        made.rename(target)
    return target


def _try(made: Path, target: Path) -> None:
    """Encode a text, and one that is as long as any that is read."""
    try:
        encoder = OnnxEncoder(made)
        # No token is longer than its text, so that this is cut at the maximum.
        encoder.encode(["It loads.", "a " * min(encoder.max_length, _TRIED)])
    except EncoderError as error:
        # What it names is gone when the message is read.
        said = str(error).replace(str(made), str(target))
        raise EncoderError(f"the exported model does not work: {said}") from error


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
    for module in listed_modules(source / "modules.json") or []:
        name = module.get("path", "")
        inside = file_inside(source, name, f"{source / 'modules.json'}")
        if inside != weights:
            files += [(inside / part, made / name / part) for part in ("config.json", _WEIGHTS)]
    if not (source / "modules.json").exists():
        files.append((source / "1_Pooling/config.json", made / "1_Pooling/config.json"))
    for old, new in files:
        if is_file(old):
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, new)
    own = read_config(source / OWN_NAME).values
    kept = {key: value for key, value in own.items() if key not in _OF_THE_GRAPH}
    if kept:
        (made / OWN_NAME).write_text(json.dumps(kept))
