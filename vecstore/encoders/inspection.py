"""What is a model folder? All that can be said of it without running the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vecstore.encoders.dense import read_dense
from vecstore.encoders.graph import Value, read_outline
from vecstore.encoders.head import choose_outputs
from vecstore.encoders.onnx import OnnxEncoder
from vecstore.encoders.session import batch_dependence, external_files

_MAX_CARD_BYTES = 1 << 20
# A row of a table, or the first lines of a card as model hubs have them.
_LICENCE = re.compile(
    r"^(?:\|[ \t]{0,40}licen[cs]e[ \t]{0,40}\|([^|\n]{1,200})\||licen[cs]e:([^\n]{1,200}))",
    re.MULTILINE | re.IGNORECASE,
)


def summary(encoder: OnnxEncoder) -> dict[str, Any]:
    """Return what `vecstore models list` shows of a model, as plain values.

    Raises:
        EncoderError: The model cannot be read.
    """
    folder = encoder.folder
    return {
        "name": encoder.name,
        "dim": encoder.dim,
        "mrl": list(encoder.mrl),
        "layers": sorted(folder.layers),
        "max_length": encoder.max_length,
        "bytes": sum(_files(encoder).values()),
        "licence": licence(folder.path),
    }


def inspect(encoder: OnnxEncoder) -> dict[str, Any]:
    """Return all that a model folder declares and holds, as plain values.

    Raises:
        EncoderError: The model cannot be read, or is damaged.
    """
    folder = encoder.folder
    outline = read_outline(folder.model)
    return {
        **summary(encoder),
        "folder": str(folder.path),
        "files": _files(encoder),
        "inputs": {name: _value(value) for name, value in outline.inputs.items()},
        "outputs": {name: _value(value) for name, value in outline.outputs.items()},
        "used": choose_outputs(folder, outline),
        "operators": dict(outline.operators.most_common()),
        "weights": dict(outline.weights.most_common()),
        "pooling": list(folder.pooling),
        "modules": [_module(step) for step in folder.steps] + list(folder.missing),
        "prompts": dict(folder.prompts),
        "lowercase": folder.lowercase,
        "limit": folder.limit,
        "batch_dependence": batch_dependence(outline),
        "fingerprint": encoder.fingerprint,
    }


def licence(folder: Path) -> str | None:
    """Return the licence that a folder's card names, or the first line of its licence file."""
    for name in ("README.md", "LICENSE", "LICENSE.txt"):
        if not (folder / name).is_file():
            # A pipe would be waited for.
            continue
        try:
            with (folder / name).open(encoding="utf-8", errors="replace") as file:
                text = file.read(_MAX_CARD_BYTES)
        except OSError:
            continue
        found = _LICENCE.search(text)
        if found is not None:
            return (found[1] or found[2]).strip() or None
        if name != "README.md":
            return next((line.strip() for line in text.splitlines() if line.strip()), None)
    return None


def _files(encoder: OnnxEncoder) -> dict[str, int]:
    """Sizes of the files that vectors depend on, by name."""
    folder = encoder.folder
    paths = [folder.model, folder.tokenizer]
    paths += external_files(folder, read_outline(folder.model)).values()
    paths += [file for step in folder.steps if isinstance(step, Path) for file in _weights(step)]
    return {str(path.relative_to(folder.path)): path.stat().st_size for path in paths}


def _weights(module: Path) -> list[Path]:
    # Where the graph holds the module itself, its files need not be there.
    return [read_dense(module).weights] if (module / "config.json").is_file() else []


def _module(step: Path | str) -> str:
    if isinstance(step, str):
        return step
    if not (step / "config.json").is_file():
        return "dense"
    dense = read_dense(step)
    return f"dense {dense.inputs} -> {dense.outputs}, {dense.activation}"


def _value(value: Value) -> dict[str, Any]:
    return {"type": value.type, "shape": None if value.shape is None else list(value.shape)}
