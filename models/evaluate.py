"""How good is a model? Similarity and retrieval by prefix length, and whether batches mix.

    python models/evaluate.py FOLDER --data DATA [--json FILE]

DATA holds stsb_open/pairs.jsonl.gz and scifact/{docs,queries}.jsonl.gz (see models/README.md).
Measured through `vecstore.encoders.OnnxEncoder`, as users get the model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from corpus import read_rows
from numpy.typing import NDArray

from vecstore.encoders import OnnxEncoder

TOP = 10
LENGTHS = (1, 3, 7, 12, 20, 45, 90, 180, 400)

Floats = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled data")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    encoder = OnnxEncoder(arguments.folder, threads=arguments.threads)
    sizes = sorted({*encoder.mrl, encoder.dim}, reverse=True)
    figures: dict[str, Any] = {
        "fingerprint": encoder.fingerprint,
        "batch_cosine": round(batch_cosine(encoder), 7),
        "stsb_open_spearman": similarity(encoder, arguments.data, sizes),
        "scifact_ndcg10": retrieval(encoder, arguments.data, sizes),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def similarity(encoder: OnnxEncoder, data: Path, sizes: list[int]) -> dict[int, float]:
    """Spearman correlation x 100 of cosines with human scores, test split, by prefix length."""
    rows = read_rows(data / "stsb_open" / "pairs.jsonl.gz")
    rows = [row for row in rows if row["split"] == "test"]
    start = time.perf_counter()
    first = encoder.encode([row["s1"] for row in rows])
    second = encoder.encode([row["s2"] for row in rows])
    print(f"{2 * len(rows) / (time.perf_counter() - start):.0f} sentences a second", flush=True)
    scores = np.array([row["score"] for row in rows])
    return {
        size: _percent(spearman((prefix(first, size) * prefix(second, size)).sum(axis=1), scores))
        for size in sizes
    }


def retrieval(encoder: OnnxEncoder, data: Path, sizes: list[int]) -> dict[int, float]:
    """NDCG@10 x 100 of claims (dev) against abstracts, by prefix length, exact search."""
    documents = read_rows(data / "scifact" / "docs.jsonl.gz")
    queries = read_rows(data / "scifact" / "queries.jsonl.gz")
    queries = [query for query in queries if query["split"] == "dev"]
    start = time.perf_counter()
    vectors = encoder.encode([f"{row['title']}. {row['text']}" for row in documents])
    print(f"{len(vectors) / (time.perf_counter() - start):.1f} abstracts a second", flush=True)
    asked = encoder.encode([query["text"] for query in queries], kind="query")
    places = {row["id"]: place for place, row in enumerate(documents)}
    gains = [{places[key]: gain for key, gain in query["rel"].items()} for query in queries]
    return {
        size: _percent(ndcg(prefix(asked, size) @ prefix(vectors, size).T, gains)) for size in sizes
    }


def batch_cosine(encoder: OnnxEncoder) -> float:
    """Return the lowest cosine between a text's vector alone and in a batch of other lengths."""
    words = (
        "Every river runs to some sea, and people on its banks count boats by night. " * 30
    ).split()
    texts = [" ".join(words[:length]) for length in LENGTHS]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    return float((prefix(together, encoder.dim) * prefix(alone, encoder.dim)).sum(axis=1).min())


def prefix(vectors: Floats, size: int) -> Floats:
    """Return the first numbers of each vector, at unit length."""
    cut = vectors[:, :size]
    scaled: Floats = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    return scaled


def spearman(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float:
    """Return the correlation of the ranks, ties sharing their mean rank."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def ndcg(scores: Floats, gains: list[dict[int, float]]) -> float:
    """Return the mean NDCG@10 of the queries that have a relevant document."""
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    found = []
    for row, relevant in zip(scores, gains, strict=True):
        if relevant:
            best = np.argsort(-row, kind="stable")[:TOP]
            gained = np.array([relevant.get(int(place), 0) for place in best])
            ideal = np.array(sorted(relevant.values(), reverse=True)[:TOP])
            found.append((gained @ discounts) / (ideal @ discounts[: len(ideal)]))
    return float(np.mean(found))


def _ranks(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[groups]
    return ranks


def _percent(value: float) -> float:
    return round(100 * value, 2)


if __name__ == "__main__":
    main()
