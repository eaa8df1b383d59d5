"""Which vectors are approximate indexes compared on? `python benchmarks/make_data.py --help`.

- `minilm`: 384 numbers, sentence embeddings of package descriptions, abstracts and dictionary
  glosses. Queries `docs` are documents that were left out; `other` are synopses, scientific claims
  and example sentences, none of which resembles a document.
- `static-1m`: 384 numbers, a million different sentences that people wrote, embedded by a table of
  token vectors. Queries `docs` are sentences left out, `other` scientific claims.
- `glove50`: 50 numbers, word vectors. Queries `docs` are rarer words.
- `random`: 128 numbers, uniform on the sphere: the worst case, and no real data.

The order is drawn once with a fixed seed, so the first rows of a set are a sample of all of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data import Vectors
from numpy.typing import NDArray
from texts import gather, rows

SEED = 20_240
HELD_OUT = 1000
MILLION = 1_000_000
TEXTS = 2048

Halves = NDArray[np.float16]


def minilm(given: Path, out: Path, more: Sequence[Path]) -> None:
    """Sentence embeddings: those that are given, and those of WordNet made here."""
    kept = out / "minilm"
    synsets = list(rows(given / "wordnet" / "synsets.jsonl.gz"))
    glosses = list(dict.fromkeys(row["gloss"] for row in synsets if row["gloss"]))
    examples = list(dict.fromkeys(text for row in synsets for text in row["examples"]))
    chosen = [examples[i] for i in _order(len(examples))[:HELD_OUT]]
    model = given / "encoder_minilm_rot"
    parts = {
        "debian descriptions": _given(given, "debian_packages", "docs"),
        "scifact abstracts": _given(given, "scifact", "docs"),
        "wordnet glosses": _embedded(model, glosses, kept / "glosses.npy"),
    }
    others = {
        "debian synopses": _given(given, "debian_packages", "queries"),
        "scifact claims": _given(given, "scifact", "queries"),
        "wordnet examples": _embedded(model, chosen, kept / "examples.npy"),
    }
    other = _shuffled([part[_order(len(part))[:HELD_OUT]] for part in others.values()])
    about = {
        "documents": {name: len(part) for name, part in parts.items()},
        "other queries": {name: min(HELD_OUT, len(part)) for name, part in others.items()},
        "encoder": "encoder_minilm_rot, 384 dimensions",
    }
    _write(kept, _shuffled(list(parts.values())), {"other": other}, about)


def static(given: Path, out: Path, more: Sequence[Path]) -> None:
    """A million different sentences, embedded by their tokens."""
    wanted = MILLION + HELD_OUT
    found = gather(given, more, wanted)
    counts = {origin: len(texts) for origin, texts in found.items()}
    model = given / "encoder_static_mrl"
    documents = _static(model, [text for texts in found.values() for text in texts])
    claims = [row["text"] for row in rows(given / "scifact" / "queries.jsonl.gz")]
    other = _static(model, claims)[_order(len(claims))[:HELD_OUT]]
    about = {
        "documents": counts,
        "other queries": {"scifact claims": len(other)},
        "encoder": "encoder_static_mrl, 384 dimensions",
    }
    _write(out / "static-1m", _shuffled([documents]), {"other": other}, about)


def glove(given: Path, out: Path, more: Sequence[Path]) -> None:
    """Word vectors with queries of their own."""
    base = np.load(given / "glove50" / "base.f16.npy")
    queries = np.load(given / "glove50" / "queries.f16.npy")
    about = {"documents": {"commonest words": len(base)}, "queries": {"rarer words": len(queries)}}
    _write(out / "glove50", _shuffled([base]), {"docs": queries}, about)


def uniform(given: Path, out: Path, more: Sequence[Path]) -> None:
    """Directions without any structure."""
    rng = np.random.default_rng(SEED)
    made = rng.standard_normal((100_000 + HELD_OUT, 128), np.float32).astype(np.float16)
    _write(out / "random", made, {}, {"documents": {"synthetic, uniform on the sphere": 100_000}})


def _order(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(SEED).permutation(count)


def _shuffled(parts: Sequence[Halves]) -> Halves:
    together = np.concatenate(parts)
    shuffled: Halves = together[_order(len(together))]
    return shuffled


def _given(folder: Path, name: str, kind: str) -> Halves:
    given: Halves = np.load(folder / name / f"{kind}.minilm_rot.f16.npy")
    return given


def _embedded(model: Path, texts: list[str], kept: Path) -> Halves:
    """The vectors of texts by the model that made the given ones, kept in a file.

    Not by the bundled encoder: its rotation is another one, and vectors of the two do not mix.
    """
    if kept.exists():
        return np.asarray(np.load(kept))
    from vecstore.encoders import OnnxEncoder

    encoder = OnnxEncoder(model, threads=1)
    made = []
    for at in range(0, len(texts), TEXTS):
        made.append(encoder.encode(texts[at : at + TEXTS]).astype(np.float16))
        print(f"embedded {at + len(made[-1]):,} of {len(texts):,} texts", flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.save(kept, np.concatenate(made))
    return np.concatenate(made)


def _static(model: Path, texts: list[str]) -> Halves:
    """The unit means of the token vectors of texts; texts without a known token are left out."""
    from tokenizers import Tokenizer

    table = np.load(model / "token_vectors.i8.npy").astype(np.float32)
    table *= np.load(model / "row_scales.f32.npy").reshape(-1, 1)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    made: list[Halves] = []
    for at in range(0, len(texts), TEXTS):
        tokens = tokenizer.encode_batch_fast(texts[at : at + TEXTS], add_special_tokens=False)
        made.append(_means(table, [token.ids for token in tokens if token.ids]))
    return np.concatenate(made)


def _means(table: Vectors, tokens: list[list[int]]) -> Halves:
    starts = np.cumsum([0, *map(len, tokens[:-1])])
    sums = np.add.reduceat(table[np.concatenate(tokens)], starts, axis=0)
    units: Halves = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float16)
    return units


def _write(
    folder: Path, vectors: Halves, queries: dict[str, Halves], about: dict[str, Any]
) -> None:
    """Write a set; without `docs` queries the first vectors are held out for them."""
    folder.mkdir(parents=True, exist_ok=True)
    if "docs" not in queries:
        queries, vectors = {"docs": vectors[:HELD_OUT], **queries}, vectors[HELD_OUT:]
    np.save(folder / "base.npy", vectors)
    for kind, asked in queries.items():
        np.save(folder / f"{kind}.queries.npy", asked)
    # Neighbours of what stood here before.
    for old in folder.glob("*.truth-*.npy"):
        old.unlink()
    counts = {"base": len(vectors), **{kind: len(asked) for kind, asked in queries.items()}}
    text = json.dumps({"dim": vectors.shape[1], "counts": counts, **about}, indent=2)
    (folder / "set.json").write_text(text + "\n")
    print(text, flush=True)


SETS: dict[str, Callable[[Path, Path, Sequence[Path]], None]] = {
    "minilm": minilm,
    "static-1m": static,
    "glove50": glove,
    "random": uniform,
}


def main() -> None:
    """Make the sets that were asked for."""
    parser = argparse.ArgumentParser(description="Make the data sets of approximate search.")
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS) + "; all if none")
    parser.add_argument("--data", type=Path, required=True, help="the folder with the given data")
    parser.add_argument("--out", type=Path, required=True, help="where the sets go")
    parser.add_argument(
        "--texts", type=Path, action="append", default=[], help="more folders with real text"
    )
    asked = parser.parse_args()
    unknown = set(asked.sets) - set(SETS)
    if unknown:
        parser.error(f"there is no set {', '.join(sorted(unknown))}")
    for name in asked.sets or SETS:
        SETS[name](asked.data, asked.out, asked.texts)


if __name__ == "__main__":
    main()
