"""Which map brings queries nearer to the texts that answer them? Learned from pairs of the two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.encoders.adapters import samples
from vecstore.encoders.adapters.adapter import Adapter, Affine
from vecstore.encoders.adapters.encoder import AdaptedEncoder
from vecstore.encoders.adapters.losses import Adam, contrastive_loss, scaled
from vecstore.encoders.protocol import Encoder, is_encoder
from vecstore.encoders.texts import check_texts
from vecstore.errors import UsageError
from vecstore.spec import show
from vecstore.vectors import Vectors, as_vectors

Side = Literal["queries", "both"]

EPOCHS, RATE, RIDGE = 30, 1e-3, 0.02
# Pairs in a batch, fewer where an epoch would else have fewer steps than that.
MOST_PAIRS, LEAST_PAIRS, STEPS = 128, 16, 8
# Hard negatives of a pair in a batch, of either kind, drawn from so many of the nearest.
HARD, NEAREST = 4, 32
# Nearer than this part of the right one's similarity a document may well be relevant itself.
TOO_NEAR = 0.95
LEAST_QUERIES = 20
# One query in so many is kept back to stop by, and as many to judge by.
HELD_SHARE, MOST_HELD = 6, 1000
TOP = 10
_AT_ONCE = 256

Places = NDArray[np.intp]


def adapt_encoder(
    encoder: Encoder,
    pairs: Sequence[tuple[str, str]],
    *,
    side: Side = "queries",
    negatives: Sequence[tuple[str, str]] = (),
    documents: Sequence[str] = (),
    seed: int = 0,
) -> AdaptedEncoder:
    """Adapt an encoder to pairs of a query and a text that answers it; see `fit_adapter`.

    Args:
        encoder: What is adapted.
        pairs: (query, relevant text).
        side: "queries", or "both".
        negatives: (query, text that looks relevant and is not).
        documents: Other texts among which a query has to find its own; the more like those that
            will be searched the better.
        seed: Fixes which queries are kept back, and the batches.

    Returns:
        The encoder with the adapter behind it; nothing is gained by it if
        `adapter.reports[-1]["gained"]` is not true, and then it is the identity.
    """
    if not is_encoder(encoder):
        raise UsageError(f"encoder={show(encoder)} is none; pass bundled() or OnnxEncoder(folder)")
    # Whatever gives them may do so once only.
    pairs, negatives = _listed(pairs, "pairs"), _listed(negatives, "negatives")
    documents = check_texts(documents) if documents else []
    texts = [*_columns(pairs, 1), *_columns(negatives, 1)]
    places = {text: place for place, text in enumerate(dict.fromkeys([*texts, *documents]))}
    asked = {text: place for place, text in enumerate(dict.fromkeys(_columns(pairs, 0)))}
    strange = [query for query in _columns(negatives, 0) if query not in asked]
    if strange:
        raise UsageError(f"negatives name the query {show(strange[0])}, which is in no pair")
    numbered = [
        [(asked[query], places[text]) for query, text in some] for some in (pairs, negatives)
    ]
    adapter = fit_adapter(
        encoder.encode(check_texts(list(asked)), "query"),
        encoder.encode(check_texts(list(places)), "document"),
        numbered[0],
        side=side,
        negatives=numbered[1],
        seed=seed,
    )
    return AdaptedEncoder(encoder, adapter)


def _listed(pairs: Iterable[tuple[str, str]], what: str) -> list[tuple[str, str]]:
    try:
        listed = [() if isinstance(pair, str) else tuple(pair) for pair in pairs]
    except TypeError:
        listed = [()]
    for pair in listed:
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UsageError(f"{what} must be pairs (query, text), got {show(pair)}")
    return [(query, text) for query, text in listed]


def _columns(pairs: Sequence[tuple[str, str]], column: int) -> list[str]:
    return [pair[column] for pair in pairs]


def fit_adapter(
    queries: ArrayLike,
    documents: ArrayLike,
    pairs: Sequence[tuple[int, int]],
    *,
    side: Side = "queries",
    negatives: Sequence[tuple[int, int]] = (),
    ridge: float = RIDGE,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> Adapter:
    """Learn a linear map that brings queries nearer to their documents than to others.

    It begins at the identity and descends along the gradient of a contrastive loss: each query has
    to find its document among those of its batch and among hard negatives, which are the nearest of
    all documents that are not its own, and those that are given. A ridge draws it back to the
    identity. Of the queries, a sixth is kept back to stop by: the best epoch on these is taken. By
    another sixth it is judged: what does not raise their nDCG@10, or lowers that of the ones whose
    documents it has not learned from, is refused, and the identity is returned.

    Args:
        queries: Vectors of shape (m, dim), as the encoder makes them of queries.
        documents: Vectors of shape (n, dim): those that are to be found, and as many others as can
            be had. They decide what is hard.
        pairs: (query, document), their numbers in the two arrays.
        side: "queries": queries alone are mapped, so vectors that are stored stay as they are.
            "both": queries and documents are mapped alike; documents have to be stored anew.
        negatives: (query, document) that look relevant and are not.
        ridge: How strongly the map is drawn to the identity.
        epochs: How often the pairs are gone through at most.
        seed: Fixes which queries are kept back, and the batches.

    Time grows with queries times documents, and with pairs times epochs: 800 pairs among 5,000
    documents of 384 numbers take some 5 seconds.

    Returns:
        An adapter named "pairs". Its report has of the queries it is judged by, "all" and those
        whose documents are "unseen", how many they are ("queries"), their nDCG@10 "before" and
        "after", and the "interval" of 95 % of what they gain; the "epoch" that was taken, how many
        pairs were "learned" from, and whether anything was "gained": if not, the adapter is the
        identity.

    Raises:
        UsageError: Pairs of what is not there, fewer than 20 queries, arguments out of range.
        VectorError: Values that are not finite.
    """
    if side not in get_args(Side):
        raise UsageError(f'side={show(side)} is unknown; use "queries" or "both"')
    if not isinstance(ridge, int | float) or not 0 <= ridge < np.inf:
        raise UsageError(f"ridge={show(ridge)} must be a number of at least 0")
    epochs, seed = samples.whole(epochs, "epochs", 1), samples.whole(seed, "seed", 0)
    rng = np.random.default_rng(seed)
    task = _task(queries, documents, pairs, negatives)
    stop, judge, train = _split(task, rng)
    matrix, epoch = _fit(task, train, stop, side == "both", ridge, epochs, rng)
    before = _gains(task, judge, None, side == "both")
    after = _gains(task, judge, matrix, side == "both")
    report = {"kind": "pairs", "side": side, "epoch": epoch, "learned": len(train)}
    report |= _judged(before, after, _unseen(task, judge, train))
    dim = task.queries.shape[1]
    if not report["gained"]:
        return Adapter(dim=dim, reports=(report,))
    affine = Affine(matrix)
    kept = affine if side == "both" else None
    return Adapter(dim=dim, documents=kept, queries=affine, name="pairs", reports=(report,))


@dataclass(frozen=True, eq=False)
class _Task:
    """What is to be learned from.

    Attributes:
        queries: float32 (m, dim), of unit length.
        documents: float32 (n, dim), of unit length.
        pairs: (p, 2), of query and document.
        relevant: Of each query the documents that are.
        named: Of each query the documents that are said not to be.
        near: Of each query the nearest of the others.
    """

    queries: Vectors
    documents: Vectors
    pairs: Places
    relevant: list[Places]
    named: list[Places]
    near: list[Places]


def _task(queries: ArrayLike, documents: ArrayLike, pairs: Any, negatives: Any) -> _Task:
    units = []
    for values, what in ((queries, "queries"), (documents, "documents")):
        array = samples.matrix(values, what)
        units.append(scaled(as_vectors(array, array.shape[1], what))[0])
    asked, found = units
    if asked.shape[1] != found.shape[1]:
        raise UsageError(f"queries of {asked.shape[1]} numbers, documents of {found.shape[1]}")
    shape = len(asked), len(found)
    right, wrong = _check_pairs(pairs, shape, "pairs"), _check_pairs(negatives, shape, "negatives")
    relevant = _by_query(right, shape[0])
    if sum(len(some) > 0 for some in relevant) < LEAST_QUERIES:
        raise UsageError(
            f"pairs of {len(np.unique(right[:, 0]))} queries are too few to learn from; give those"
            f" of at least {LEAST_QUERIES}, better some hundreds"
        )
    named = [
        np.setdiff1d(given, own)
        for given, own in zip(_by_query(wrong, shape[0]), relevant, strict=True)
    ]
    return _Task(asked, found, right, relevant, named, _mine(asked, found, relevant))


def _check_pairs(pairs: Any, shape: tuple[int, int], what: str) -> Places:
    try:
        array = np.asarray(pairs if len(pairs) else np.zeros((0, 2), np.intp))
    except (TypeError, ValueError):
        # Nothing with a length, or rows of several.
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise UsageError(f"{what} must be pairs (query, document) of whole numbers")
    if len(array) and (array.min() < 0 or (array >= shape).any()):
        bad = array[((array < 0) | (array >= shape)).any(axis=1)][0].tolist()
        raise UsageError(f"{what} name {bad}; there are {shape[0]} queries, {shape[1]} documents")
    return np.unique(array.astype(np.intp), axis=0)


def _by_query(pairs: Places, count: int) -> list[Places]:
    """The documents of each query; pairs are sorted."""
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, count)))


def _mine(queries: Vectors, documents: Vectors, relevant: list[Places]) -> list[Places]:
    """The nearest documents of each query that are not relevant, nor nearly as near as those."""
    found: list[Places] = []
    count = min(NEAREST + max(map(len, relevant)), len(documents))
    for at in range(0, len(queries), _AT_ONCE):
        scores = queries[at : at + _AT_ONCE] @ documents.T
        listed = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        for row, near, own in zip(scores, listed, relevant[at : at + _AT_ONCE], strict=True):
            bound = TOO_NEAR * max(row[own].max(), 0) if len(own) else np.inf
            near = near[np.argsort(-row[near], kind="stable")]
            found.append(near[row[near] < bound][:NEAREST])
    return found


def _split(task: _Task, rng: np.random.Generator) -> tuple[Places, Places, Places]:
    """Queries to stop by, to judge by, and pairs to learn from."""
    asked = rng.permutation(np.unique(task.pairs[:, 0]))
    held = min(max(len(asked) // HELD_SHARE, 2), MOST_HELD)
    stop, judge = np.sort(asked[:held]), np.sort(asked[held : 2 * held])
    return stop, judge, task.pairs[np.isin(task.pairs[:, 0], asked[2 * held :])]


def _fit(
    task: _Task,
    train: Places,
    stop: Places,
    both: bool,
    ridge: float,
    epochs: int,
    rng: np.random.Generator,
) -> tuple[Vectors, int]:
    """The map of the epoch that is best for the queries to stop by, and that epoch; 0 is none."""
    unit = np.eye(task.queries.shape[1], dtype=np.float32)
    matrix = best = unit
    highest, chosen = _gains(task, stop, None, both).mean(), 0
    batches = -(-len(train) // int(np.clip(len(train) // STEPS, LEAST_PAIRS, MOST_PAIRS)))
    adam = Adam(RATE, epochs * batches)
    for epoch in range(1, epochs + 1):
        for part in np.array_split(rng.permutation(train), batches):
            gradient = _gradient(task, part, matrix, both, rng) + 2 * ridge * (matrix - unit)
            matrix = matrix - adam.step(gradient)
        reached = _gains(task, stop, matrix, both).mean()
        if reached > highest:
            best, highest, chosen = matrix, reached, epoch
    return best, chosen


def _gradient(
    task: _Task, pairs: Places, matrix: Vectors, both: bool, rng: np.random.Generator
) -> Vectors:
    """The gradient of one batch, whose documents are those of its pairs and hard negatives."""
    queries, own = pairs[:, 0], pairs[:, 1]
    hard = [
        rng.permutation(some[query])[:HARD] for query in queries for some in (task.named, task.near)
    ]
    listed = np.unique(np.concatenate([own, *hard]))
    barred = np.zeros((len(pairs), len(listed)), bool)
    for row, query in enumerate(queries):
        barred[row, np.isin(listed, task.relevant[query])] = True
    right = np.searchsorted(listed, own)
    barred[np.arange(len(pairs)), right] = False
    found: Vectors = contrastive_loss(
        matrix, task.queries[queries], task.documents[listed], right, barred, both=both
    )[1]
    return found


def _gains(task: _Task, queries: Places, matrix: Vectors | None, both: bool) -> NDArray[np.float64]:
    """The nDCG@10 of each query among all documents."""
    asked, documents = task.queries[queries], task.documents
    if matrix is not None:
        asked = asked @ matrix
        if both:
            documents = scaled(documents @ matrix)[0]
    count = min(TOP, len(documents))
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    gains = []
    for at in range(0, len(asked), _AT_ONCE):
        scores = asked[at : at + _AT_ONCE] @ documents.T
        near = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        for row, listed, query in zip(scores, near, queries[at : at + _AT_ONCE], strict=True):
            ranked, own = listed[np.argsort(-row[listed], kind="stable")], task.relevant[query]
            reached = discounts[:count][np.isin(ranked, own)].sum()
            gains.append(reached / discounts[: min(len(own), TOP)].sum())
    return np.array(gains)


def _unseen(task: _Task, queries: Places, train: Places) -> NDArray[np.bool_]:
    """Which queries have no document that was learned from."""
    return np.array([not np.isin(task.relevant[query], train[:, 1]).any() for query in queries])


def _judged(
    before: NDArray[np.float64], after: NDArray[np.float64], unseen: NDArray[np.bool_]
) -> dict[str, Any]:
    """What the queries to judge by gained, and whether that is enough."""
    differences = after - before
    harmed = unseen.any() and differences[unseen].mean() < 0
    return {
        "gained": bool(differences.mean() > 0 and not harmed),
        "all": _summary(before, after),
        "unseen": _summary(before[unseen], after[unseen]),
    }


def _summary(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    differences, count = after - before, len(before)
    if count < 2:
        return {"queries": count}
    # Normal: a bootstrap of so few differences says no more.
    spread = 1.96 * float(differences.std(ddof=1)) / count**0.5
    mean = float(differences.mean())
    return {
        "queries": count,
        "before": round(float(before.mean()), 4),
        "after": round(float(after.mean()), 4),
        "interval": [round(mean - spread, 4), round(mean + spread, 4)],
    }
