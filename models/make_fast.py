"""How is the fast model made? A table of token vectors that learns from all-MiniLM-L6-v2.

    python models/make_fast.py --corpus CORPUS [--base FOLDER] [--out models/fast]

The arguments are those of make_default.py.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import onnx
from arguments import read_arguments
from base import read_base
from folder import write_folder
from nested import Nested
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from paraphrases import Paraphrases
from ranges import measure
from rotation import rotation_of
from static import Bags, first_table, fit_table
from teacher import Teacher
from texts import SENTENCE_TOKENS, SENTENCES, Part, sample, sentences, used_pairs
from training import Settings, Source
from words import alone, cut_words, with_words

from vecstore.encoders.transformer import IR_VERSION, OPSET

Floats = NDArray[np.float32]
MRL = (32, 64, 128, 256, 384)
# As the default model reads: more of a text would blur its vector.
MAX_LENGTH = 256
SOURCES = {
    "plos_titles": Part(3, 2200, 40, 256),
    "plos_paragraphs": Part(4, 4900, 64, 256),
    "wikipedia": Part(1.5, 4800, 48, 256),
    "gene_ontology": Part(2, 10000, 32, 64),
    "ontology_mondo": Part(2, 10000, 32, 64),
    "ontology_uberon": Part(1.5, 6000, 32, 64),
    "ontology_efo": Part(1.5, 6000, 32, 64),
    "ontology_chebi": Part(1.5, 5000, 32, 64),
    "ontology_cl": Part(1, 3300, 32, 64),
    "r_bioconductor_help": Part(1, 2500, 32, 256),
    "docs_python": Part(1, 2900, 32, 96),
    "docs_scikit_learn": Part(1, 2500, 32, 96),
    "docs_scipy": Part(1, 2100, 32, 96),
    "docs_postgresql": Part(1, 3600, 32, 96),
    "perl_docs": Part(1.5, 4800, 32, 96),
    "debian_descriptions": Part(2, 5000, 32, 256),
    "wordnet_examples": Part(3, 25000, 32, 48),
    "wordnet_glosses": Part(5, 70000, 32, 48),
    "foldoc": Part(1.5, 2000, 24, 256),
    "gcide": Part(3, 20000, 24, 48),
}
# How often batches are of sentences, beside pairs, and how much the second teacher counts there.
SENTENCES_SHARE, SECOND = 120, 0.9
# Words that the base model reads in pieces and that get a token of their own.
WORDS = 2400
RATE = 2e-3
SETTINGS = Settings(
    steps=6000,
    anchors=128,
    remembered=1024,
    loss=Nested(prefixes=dict.fromkeys(MRL, 1.0), labels=0.2, own=0.0, squares=10.0, direct=0.5),
)


def main() -> None:
    arguments = read_arguments(__doc__, "fast")
    base = read_base(arguments.base)
    pairs = {name: used_pairs(arguments.corpus, name, part, base) for name, part in SOURCES.items()}
    single = sentences(arguments.corpus, SENTENCES, SENTENCE_TOKENS, base)
    read = chain(single, *(side for both in pairs.values() for side in both))
    wider = with_words(base, cut_words(read, base, WORDS))
    teacher = Teacher(base, measure(base.tensors, base.shape, sample(pairs)))
    sources = []
    for name, part in SOURCES.items():
        own = used_pairs(arguments.corpus, name, part, wider)
        queries, documents = (
            Bags.of(texts, teacher.vectors(taught))
            for texts, taught in zip(own, pairs[name], strict=True)
        )
        sources.append(Source(part.share, documents, queries))
        print(f"{name}: {len(documents)} pairs", flush=True)
    rotation = rotation_of(sources, dict.fromkeys(MRL[:-1], 1.0))
    sources = [source.turned(rotation) for source in sources]
    both = joined(teacher.vectors(single) @ rotation, Paraphrases().vectors(single))
    own_single = sentences(arguments.corpus, SENTENCES, SENTENCE_TOKENS, wider)
    sources.append(Source(SENTENCES_SHARE, Bags.of(own_single, both)))
    print(f"{len(single)} sentences", flush=True)
    table = first_table(teacher.vectors(alone(base, wider)) @ rotation, sources)
    table, places = fit_table(table, MAX_LENGTH, sources, SETTINGS, _tell, rate=RATE)
    write_folder(
        arguments.out,
        build_static(table, places),
        # Special tokens would have the same part in every text.
        wider.tokenizer_json(post_processor=None),
        mrl=MRL,
        max_length=MAX_LENGTH,
        config={"model_type": "static", "max_position_embeddings": MAX_LENGTH},
    )


def joined(first: Floats, second: Floats) -> Floats:
    """Vectors whose similarities are the weighted means of two teachers', the first's in front."""
    return np.hstack([(1 - SECOND) ** 0.5 * first, SECOND**0.5 * second])


def _tell(step: int, loss: float) -> None:
    if step % 100 == 99 or step == SETTINGS.steps - 1:
        print(f"step {step + 1}: loss {loss:.3f}", flush=True)


def build_static(table: Floats, places: Floats) -> onnx.ModelProto:
    """Return the graph that looks tokens up, adds their vectors and scales the sum to unit length.

    Args:
        table: Float32 (tokens, dim); int8 is stored, with a scale for each token.
        places: How much a token counts by where it stands, float32 (length,).
    """
    dim = table.shape[1]
    scales = np.maximum(np.abs(table).max(axis=1), 1e-8).astype(np.float32) / np.float32(127)
    constants = {
        "codes": np.rint(table / scales[:, None]).astype(np.int8),
        "scales": scales,
        "places": places,
        "first": np.array([0]),
        "token_axis": np.array([1]),
        "last_axis": np.array([2]),
        "tiny": np.float32(1e-12),
    }

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)

    nodes = [
        node("Gather", "codes input_ids", "rows"),
        node("Cast", "rows", "vectors", to=TensorProto.FLOAT),
        node("Gather", "scales input_ids", "steps"),
        node("Cast", "attention_mask", "present", to=TensorProto.FLOAT),
        node("Shape", "input_ids", "length_of_all", start=1, end=2),
        node("Slice", "places first length_of_all", "weights_of_places"),
        node("Mul", "steps weights_of_places", "placed"),
        # A token's scale is its weight in the sum, so that no scaled vectors need be made.
        node("Mul", "placed present", "weights"),
        node("Unsqueeze", "weights token_axis", "row"),
        node("MatMul", "row vectors", "sums"),
        node("Squeeze", "sums token_axis", "sum"),
        node("ReduceL2", "sum", "length", axes=[-1], keepdims=1),
        node("Max", "length tiny", "floor"),
        node("Div", "sum floor", "sentence_embedding"),
        node("Unsqueeze", "weights last_axis", "column"),
        node("Mul", "vectors column", "token_embeddings"),
    ]
    axes = ["batch", "sequence"]

    def value(name: str, kind: int, shape: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "static",
        [value(name, TensorProto.INT64, [*axes]) for name in ("input_ids", "attention_mask")],
        [
            value("sentence_embedding", TensorProto.FLOAT, ["batch", dim]),
            value("token_embeddings", TensorProto.FLOAT, [*axes, dim]),
        ],
        initializer=[
            numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
        ],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="vecstore",
    )


if __name__ == "__main__":
    main()
