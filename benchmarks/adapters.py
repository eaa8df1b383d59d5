"""What do rotations, whitenings and adapters gain? Prints the tables of docs/adapters.md.

    python benchmarks/adapters.py DATA [rotation|whitening|pairs ...]

DATA holds glove50, openai_mrl_sample, debian_packages, scifact, stsb_open, encoder_minilm_rot and
encoder_static_mrl (see models/README.md). Times are of the processor, on one core.
"""

from __future__ import annotations

import argparse
import gzip
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import texts
from numpy.typing import NDArray

from vecstore.encoders import Adapter, bundled, fit_adapter, fit_rotation, whiten

TOP, SHORTLIST = 10, 100
RESAMPLED = 5000

Floats = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("parts", nargs="*", default=["rotation", "whitening", "pairs"])
    arguments = parser.parse_args()
    for part in arguments.parts:
        {"rotation": rotations, "whitening": whitenings, "pairs": pairs}[part](arguments.data)


def load(path: Path) -> Floats:
    return np.load(path).astype(np.float32)


def units(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest(rows: Floats, asked: Floats, count: int) -> NDArray[np.intp]:
    parts = []
    for at in range(0, len(asked), 256):
        scores = asked[at : at + 256] @ rows.T
        parts.append(np.argpartition(-scores, count - 1, axis=1)[:, :count])
    return np.concatenate(parts)


# Rotation: recall@10 of shortlists by prefix, against exact search with whole vectors


def rotations(data: Path) -> None:
    print("| vectors | n x dim, queries | prefix | N | truncation | PCA | fitted | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name, fit, rows, asked, prefixes, shortlist in cases(data):
        start = time.process_time()
        fitted = fit_rotation(fit, prefixes)
        seconds = time.process_time() - start
        principal = fit_rotation(fit, prefixes, steps=0)
        maps = (Adapter(dim=rows.shape[1]), principal, fitted)
        true = nearest(units(rows), units(asked), TOP)
        for size in prefixes:
            found = [share(one, rows, asked, true, size, shortlist) for one in maps]
            figures = " | ".join(f"{100 * value:.1f}" for value in found)
            shape = f"{len(rows):,} x {rows.shape[1]}, {len(asked):,}"
            print(f"| {name} | {shape} | {size} | {shortlist} | {figures} | {seconds:.0f} |")
        print(f"<!-- {fitted.reports[0]} -->", flush=True)


def cases(
    data: Path,
) -> Iterator[tuple[str, Floats, Floats, Floats, tuple[int, ...], int]]:
    """Name, vectors to fit to, vectors to search, queries, prefixes, length of the shortlist."""
    learned = load(data / "encoder_minilm_rot/rotation.f32.npy")
    folder = data / "debian_packages"
    docs, asked = (load(folder / f"{part}.minilm_rot.f16.npy") for part in ("docs", "queries"))
    asked = asked[:1000]
    # The model's own coordinates, without the rotation that the bundled one has.
    plain, plain_asked = docs @ learned.T, asked @ learned.T
    sizes = (128, 64, 32)
    yield "Debian, MiniLM", plain, plain, plain_asked, sizes, SHORTLIST
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(384, 384)))[0].astype(np.float32)
    yield "the same, turned at random", docs @ turn, docs @ turn, asked @ turn, sizes, SHORTLIST
    yield "the same, bundled rotation", docs, docs, asked, sizes, SHORTLIST
    folder = data / "scifact"
    docs, asked = (load(folder / f"{part}.minilm_rot.f16.npy") for part in ("docs", "queries"))
    docs, asked = docs @ learned.T, asked @ learned.T
    yield "SciFact, MiniLM, fitted to Debian", plain, docs, asked, sizes, SHORTLIST
    yield "SciFact, MiniLM, fitted to its abstracts", docs, docs, asked, sizes, SHORTLIST
    folder = data / "glove50"
    words, others = load(folder / "base.f16.npy"), load(folder / "queries.f16.npy")
    yield "GloVe words", words, words, others, (32, 24, 16), SHORTLIST
    for model in ("ada-002", "3-small"):
        films = load(data / f"openai_mrl_sample/movies_es.{model}-1536.f32.npy")
        yield f"OpenAI {model}, 42 films", films[:42], films[:42], films[42:], (256, 64), 15


def share(
    adapter: Adapter, rows: Floats, asked: Floats, true: NDArray[np.intp], size: int, count: int
) -> float:
    """The share of the true ten that are in the shortlist by prefix."""
    prefixes = [
        units(adapter.apply(values, kind)[:, :size])
        for values, kind in ((rows, "document"), (asked, "query"))
    ]
    found = nearest(*prefixes, count)
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]))


# Whitening: Spearman correlation with people's scores of pairs of sentences


def whitenings(data: Path) -> None:
    judged = list(texts.rows(data / "stsb_open/pairs.jsonl.gz"))
    test = [row for row in judged if row["split"] == "test"]
    others = [row for row in judged if row["split"] != "test"]
    scores = np.array([row["score"] for row in test])
    kinds: dict[str, dict[str, Any] | None] = {
        "as they are": None,
        "mean removed": {"shrinkage": 1.0},
        "shrunk by half": {"shrinkage": 0.5},
        "default": {},
        "not shrunk": {"shrinkage": 0.0},
    }
    print("| vectors | " + " | ".join(kinds) + " | default less as they are |")
    print("|---" * (len(kinds) + 2) + "|")
    for name, encode in encoders(data).items():
        first, second = (encode([row[side] for row in test]) for side in ("s1", "s2"))
        sample = encode([row[side] for row in others for side in ("s1", "s2")])
        cosines = {}
        for kind, options in kinds.items():
            adapter = Adapter(dim=sample.shape[1]) if options is None else whiten(sample, **options)
            pair = (units(adapter.apply(vectors)) for vectors in (first, second))
            cosines[kind] = np.prod(list(pair), axis=0).sum(axis=1)
        figures = " | ".join(f"{100 * spearman(found, scores):.1f}" for found in cosines.values())
        low, high = resampled(
            len(scores),
            lambda at, found=cosines: (
                spearman(found["default"][at], scores[at])
                - spearman(found["as they are"][at], scores[at])
            ),
            500,
        )
        print(f"| {name} | {figures} | {100 * low:+.1f} to {100 * high:+.1f} |", flush=True)


def encoders(data: Path) -> dict[str, Callable[[list[str]], Floats]]:
    return {
        "bundled model": lambda texts: bundled().encode(texts),
        "static table, distilled": static(data / "encoder_static_mrl"),
        "mean of GloVe words": glove(data / "glove50"),
    }


def static(folder: Path) -> Callable[[list[str]], Floats]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    table = load(folder / "token_vectors.i8.npy") * load(folder / "row_scales.f32.npy")[:, None]

    def encode(texts: list[str]) -> Floats:
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        return np.array([table[one.ids].mean(axis=0) for one in found])

    return encode


def glove(folder: Path) -> Callable[[list[str]], Floats]:
    with gzip.open(folder / "words.txt.gz", "rt", encoding="utf-8") as file:
        places = {word.rstrip("\n"): place for place, word in enumerate(file)}
    table = load(folder / "base.f16.npy")

    def encode(texts: list[str]) -> Floats:
        words = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]
        known = [[places[word] for word in some if word in places] or [0] for some in words]
        return np.array([table[some].mean(axis=0) for some in known])

    return encode


def spearman(first: Floats, second: Floats) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def ranks(values: Floats) -> Floats:
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[groups]


def resampled(
    count: int, figure: Callable[[NDArray[np.intp]], float], times: int = RESAMPLED
) -> tuple[float, float]:
    """The middle 95 % of a figure, over samples with repetition."""
    rng = np.random.default_rng(0)
    found = [figure(rng.integers(0, count, count)) for _ in range(times)]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


# Pairs: nDCG@10 of claims that were not learned from


def pairs(data: Path) -> None:
    folder = data / "scifact"
    docs, asked = (load(folder / f"{part}.minilm_rot.f16.npy") for part in ("docs", "queries"))
    places = {row["id"]: place for place, row in enumerate(texts.rows(folder / "docs.jsonl.gz"))}
    queries = list(texts.rows(folder / "queries.jsonl.gz"))
    relevant = [[places[key] for key in row["rel"]] for row in queries]
    train = [i for i, row in enumerate(queries) if row["split"] == "train"]
    dev = [i for i, row in enumerate(queries) if row["split"] == "dev" and relevant[i]]
    learned = [(i, place) for i in train for place in relevant[i]]
    seen = {place for _, place in learned}
    known = np.array([any(place in seen for place in relevant[i]) for i in dev])
    print("| side | claims of dev | | before | after | gain | 95 % | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for side in ("queries", "both"):
        start = time.process_time()
        adapter = fit_adapter(asked, docs, learned, side=side)
        seconds = time.process_time() - start
        before, after = (
            ndcg(one, docs, asked[dev], [relevant[i] for i in dev])
            for one in (Adapter(dim=384), adapter)
        )
        for part, which in (
            ("all", known | True),
            ("abstract in a training pair", known),
            ("abstract in none", ~known),
        ):
            gain = (after - before)[which]
            low, high = resampled(len(gain), lambda at, gain=gain: gain[at].mean())
            figures = f"{100 * before[which].mean():.1f} | {100 * after[which].mean():.1f}"
            interval = f"{100 * gain.mean():+.1f} | {100 * low:+.1f} to {100 * high:+.1f}"
            print(f"| {side} | {part} | {which.sum()} | {figures} | {interval} | {seconds:.0f} |")
        print(f"<!-- {adapter.reports[0]} -->", flush=True)


def ndcg(adapter: Adapter, docs: Floats, asked: Floats, relevant: list[list[int]]) -> Floats:
    rows, wanted = units(adapter.apply(docs)), units(adapter.apply(asked, "query"))
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    found = []
    for scores, own in zip(wanted @ rows.T, relevant, strict=True):
        ranked = np.argsort(-scores, kind="stable")[:TOP]
        found.append(discounts[np.isin(ranked, own)].sum() / discounts[: len(own)].sum())
    return np.array(found)


if __name__ == "__main__":
    main()
