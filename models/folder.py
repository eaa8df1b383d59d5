"""What is in the folder of a model that is made here? The files and every configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx


def write_folder(
    folder: Path,
    model: onnx.ModelProto,
    tokenizer: bytes,
    *,
    mrl: Sequence[int],
    max_length: int,
    config: Mapping[str, object],
    layers: Mapping[int, str] | None = None,
) -> None:
    """Write a model folder in the layout of sentence-transformers, and print what is in it.

    Args:
        folder: Where.
        model: Has an output `sentence_embedding`, pooled and of unit length.
        tokenizer: The content of tokenizer.json.
        mrl: The lengths for which vectors were trained, ascending; the last is the whole.
        max_length: Tokens that are read of a text.
        config: The content of config.json.
        layers: Outputs that stand for fewer layers, by how many.
    """
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.onnx": model.SerializeToString(deterministic=True), "tokenizer.json": tokenizer}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    types = "sentence_transformers.models."
    settings: dict[str, object] = {
        # Pooling and rotation are part of the graph, so no module of their own names them.
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{types}Transformer"},
            {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{types}Normalize"},
        ],
        "config.json": config,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "vecstore.json": {
            "dim": mrl[-1],
            "mrl": list(mrl),
            "output": "sentence_embedding",
            **({"layers": {str(layer): name for layer, name in layers.items()}} if layers else {}),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        },
    }
    for name, value in settings.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    for path in sorted(folder.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")
