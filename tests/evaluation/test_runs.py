"""Whole evaluations on small data, compared with numpy in float64."""

import functools
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from vecstore.encoders import FunctionEncoder, HashEncoder
from vecstore.errors import EncoderError, MissingExtraError, SpecError, StoreError, UsageError
from vecstore.evaluation import Pairs, Retrieval, Setup, Sweep, draw, evaluate, spearman

# Intervals have tests of their own.
Quick = functools.partial(Sweep, samples=40)
WORDS = ["boat", "cat", "dog", "rail", "tree", "apple", "river", "stone", "bread", "house", "lamp"]


def texts(rng, count):
    return [" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(count)]


@pytest.fixture
def data(rng):
    documents = texts(rng, 300)
    # Equal documents, whose order no score tells.
    documents[50:53] = documents[10:13]
    chosen = rng.choice(300, 30, replace=False)
    relevant = [{f"d{row}": 2.0, f"d{rng.integers(300)}": 1.0} for row in chosen]
    relevant[0]["gone"] = 1.0
    queries = [" ".join(documents[row].split()[:3]) for row in chosen]
    ids = [f"d{row}" for row in range(300)]
    return Retrieval("toy", ids, documents, queries, relevant, left_out=2, unknown=1)


@pytest.fixture
def pairs(rng):
    return Pairs("alike", texts(rng, 40), texts(rng, 40), rng.integers(0, 5, 40).tolist())


def units(vectors):
    long = vectors.astype(np.float64)
    return long / np.linalg.norm(long, axis=1, keepdims=True)


def ranked(documents, queries, size):
    """The order of all documents for each query, by prefixes in float64."""
    scores = units(queries[:, :size]) @ units(documents[:, :size]).T
    return np.argsort(-scores, axis=1, kind="stable"), scores


def mean_ndcg(data, order, k):
    found = []
    for row, relevant in zip(order, data.relevant, strict=True):
        gains = [relevant.get(data.ids[at], 0) for at in row[:k]]
        best = sorted(relevant.values(), reverse=True)[:k]
        dcg = [sum(g / math.log2(i + 2) for i, g in enumerate(side)) for side in (gains, best)]
        found.append(dcg[0] / dcg[1])
    return np.mean(found)


def test_the_figures_are_those_of_plain_arithmetic(data):
    encoder = HashEncoder(dim=32)
    documents, queries = encoder.encode(data.documents), encoder.encode(data.queries)
    whole, scores = ranked(documents, queries, 32)
    limits = np.sort(scores, axis=1)[:, -5]
    sweep = Quick(
        dims=(32, 12), precisions=("float32", "float16", "int8"), tiers=(12,), k=5, shortlist=20
    )
    report = evaluate(encoder, retrieval=data, sweep=sweep)
    found = {one.setup.label: one for one in report.encoders[0].retrieval}

    assert list(found) == [
        *("32", "12", "32 float16", "12 float16", "32 int8", "12 int8"),
        "12 → 32 (20)",
    ]
    shorter, _ = ranked(documents, queries, 12)
    rescored = [
        sorted(row[:20], key=lambda at, i=i: (-scores[i, at].round(9), at))
        for i, row in enumerate(shorter)
    ]
    for label, order in (("32", whole), ("12", shorter), ("12 → 32 (20)", rescored)):
        right = [(scores[i, row[:5]] >= limits[i] - 1e-6).mean() for i, row in enumerate(order)]
        one = found[label]
        assert one.ndcg.value == pytest.approx(mean_ndcg(data, order, 5))
        assert one.agreement.value == pytest.approx(np.mean(right))
        lost = mean_ndcg(data, order, 5) - mean_ndcg(data, whole, 5)
        assert one.change.value == pytest.approx(lost)
    exact = found["32"]
    assert (exact.agreement.value, exact.agreement_by_id, exact.depth) == (1, 1, 100)
    assert found["32 float16"].ndcg.value == pytest.approx(exact.ndcg.value, abs=0.03)
    sizes = [found[label].compared for label in ("32", "12 float16", "12 int8", "12 → 32 (20)")]
    assert sizes == [128, 24, 12, 48]
    assert all(one.stored > one.setup.dims for one in found.values())
    assert found["12 → 32 (20)"].times is None
    assert min(exact.times.elapsed, exact.times.busy, exact.times.rate) > 0


def test_the_ceiling_is_what_equal_scores_leave():
    # Of 4 equal documents 2 are among the first 3: by chance two others, half of which are these.
    documents = ["boat", *["cat"] * 4, "dog"]
    ids = [f"d{row}" for row in range(6)]
    data = Retrieval("toy", ids, documents, ["boat cat cat"], [{"d1": 1.0}])

    def encode(listed):
        places = {"boat": (1, 0.2, 0), "cat": (0.8, 0.6, 0), "dog": (0, 0, 1)}
        return np.array([places.get(text, (1, 0.3, 0)) for text in listed], np.float32)

    encoder = FunctionEncoder(encode, name="placed", dim=3)
    (one,) = evaluate(encoder, retrieval=data, sweep=Quick(k=3)).encoders[0].retrieval

    assert one.ceiling == pytest.approx((1 + 2 * 2 / 4) / 3)
    assert (one.agreement.value, one.agreement_by_id) == (1, 1)


@pytest.mark.parametrize("kind", ["ivf", "hash", "flat"])
def test_an_index_is_measured_by_its_answers(data, kind):
    encoder = HashEncoder(dim=32)
    sweep = Quick(dims=(32,), indexes=(kind,), codes=((16, 1), (32, 2)))
    exact, *coded = evaluate(encoder, retrieval=data, sweep=sweep).encoders[0].retrieval

    assert [one.setup.codes for one in coded] == ([None] if kind == "flat" else [(16, 1), (32, 2)])
    for one in coded:
        # As many of the neighbours as a search promises, less what chance may take.
        assert one.agreement.value > 0.85
        assert one.ndcg.value == pytest.approx(exact.ndcg.value, abs=0.1)
        assert one.stored > exact.stored
    assert [one.compared for one in coded] == ([32] if kind == "flat" else [2, 8])
    assert all((one.compiled is None) == (kind == "flat") for one in coded)


def test_correlations_are_those_of_plain_cosines(pairs):
    encoder = HashEncoder(dim=32)
    report = evaluate(encoder, pairs=pairs, sweep=Quick(dims=(32, 8)))
    sides = encoder.encode(pairs.first), encoder.encode(pairs.second)

    assert [one.dims for one in report.encoders[0].similarity] == [32, 8]
    for one in report.encoders[0].similarity:
        first, second = (units(side[:, : one.dims]) for side in sides)
        expected = spearman((first * second).sum(axis=1), pairs.scores)
        assert one.spearman.value == pytest.approx(expected)
        assert one.spearman.low < expected < one.spearman.high


def test_two_encoders_are_compared_query_by_query(data, pairs):
    sweep = Quick(dims=(48, 32, 8))
    good, bad = HashEncoder(dim=48), HashEncoder(dim=32, seed=1)
    report = evaluate(good, against=bad, retrieval=data, pairs=pairs, sweep=sweep)
    first, second = report.encoders
    by_place = {(one.figure, one.setup): one for one in report.differences}

    assert [len(one.retrieval) for one in report.encoders] == [3, 2]
    assert {setup for figure, setup in by_place if figure == "ndcg"} == {"48 and 32", "32", "8"}
    for place, at in (("48 and 32", (0, 0)), ("32", (1, 0)), ("8", (2, 1))):
        for figure in ("ndcg", "mrr", "recall", "spearman"):
            rows = [
                (one.similarity if figure == "spearman" else one.retrieval)[i]
                for one, i in zip((first, second), at, strict=True)
            ]
            values = [getattr(row, figure).value for row in rows]
            one = by_place[figure, place]
            assert (one.first, one.second) == pytest.approx(values)
            assert one.difference.value == pytest.approx(values[1] - values[0])
            assert one.difference.low <= one.difference.value <= one.difference.high
    same = evaluate(good, against=good, retrieval=data, pairs=pairs, sweep=sweep)
    assert not any(one.difference.excludes_zero for one in same.differences)


def test_a_report_says_everything_as_json_and_as_markdown(data, pairs):
    encoder = FunctionEncoder(HashEncoder(dim=32).encode, name="a|b", dim=32, mrl=(16, 32))
    report = evaluate(encoder, retrieval=data, pairs=pairs, sweep=Quick())
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    text = report.to_markdown()

    assert found["data"]["judgements_of_unknown_documents"] == 1
    assert found["pairs"] == {"name": "alike", "pairs": 40, "sampled": False}
    assert [one["dims"] for one in found["encoders"][0]["retrieval"]] == [32, 16]
    ndcg = found["encoders"][0]["retrieval"][0]["ndcg"]
    assert f"| 32 | {100 * ndcg['value']:.1f} | {100 * ndcg['low']:.1f}.." in text
    assert "a|b on toy: 300 documents, 30 queries" in text
    assert "2 queries without a relevant document were left out." in text
    assert "1 judgements are of documents that are not there" in text
    assert "Equal scores in any order" in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith(" |")


def test_a_sample_is_said_to_be_one(pairs):
    report = evaluate(HashEncoder(dim=8), pairs=pairs.sample(20), sweep=Quick())

    assert any("sample" in note for note in report.notes())


def test_documents_too_few_for_an_index_are_said_to_be(data):
    few = data.sample(20)
    sweep = Quick(dims=(16,), codes=((16, 1),), indexes=("ivf", "flat"))
    few_notes = evaluate(HashEncoder(dim=16), retrieval=few, sweep=sweep).notes()
    all_notes = evaluate(HashEncoder(dim=16), retrieval=data, sweep=sweep).notes()

    said = "So few documents have no index: all were compared under 16 ivf 16 x 1."
    assert said in few_notes
    assert said not in all_notes


def test_vectors_are_kept_for_the_next_run(data, tmp_path):
    asked = []

    def encode(listed):
        asked.extend(listed)
        return HashEncoder(dim=16).encode(listed)

    def run(version="1"):
        asked.clear()
        encoder = FunctionEncoder(encode, name="counted", dim=16, version=version)
        report = evaluate(encoder, retrieval=data, vectors=tmp_path / "kept", sweep=Quick())
        return [one.ndcg for one in report.encoders[0].retrieval]

    first = run()
    assert sorted(asked) == sorted([*data.queries, *data.documents])
    assert run() == first
    assert asked == []
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(file.read_bytes()[:-8])
    assert run() == first
    assert len(asked) == 330
    run(version="2")
    assert len(asked) == 330
    assert not list((tmp_path / "kept").glob("*.part"))


class Picky(HashEncoder):
    """Refuses a text, as one of which a tokenizer reads nothing."""

    def encode(self, texts, kind="document"):
        if "\0" in texts:
            raise UsageError(f"text {texts.index(chr(0))} says nothing")
        return super().encode(texts, kind)


def test_a_text_that_cannot_be_embedded_is_named(data):
    documents = [*data.documents[:-1], "\0"]
    broken = replace(data, documents=documents)
    with pytest.raises(UsageError, match=f"^document '{data.ids[-1]}' of {data.name} says nothing"):
        evaluate(Picky(dim=32), retrieval=broken)
    broken = replace(data, queries=[*data.queries[:1], "\0", *data.queries[2:]])
    with pytest.raises(UsageError, match=f"^query 1 of {data.name} says nothing"):
        evaluate(Picky(dim=32), retrieval=broken)
    with pytest.raises(UsageError, match=r"^a text of pair 2 of tiny says nothing"):
        evaluate(Picky(dim=32), pairs=Pairs("tiny", ["a", "b", "c"], ["d", "e", "\0"], [1, 2, 3]))


def test_a_folder_that_cannot_keep_vectors_is_named(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file cannot keep vectors"):
        evaluate(HashEncoder(dim=8), retrieval=data, vectors=tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"dims": (64,)}, UsageError, "64 dims were asked for, the encoder makes 32"),
        ({"dims": (1,)}, UsageError, "dims holds 1"),
        ({"dims": 8}, UsageError, r"dims=8 must be a tuple, such as \(8,\)"),
        ({"precisions": "int8"}, UsageError, "precisions='int8' must be a tuple"),
        ({"codes": (16,)}, UsageError, "codes holds 16, not dims and bits"),
        ({"tiers": (64,)}, UsageError, "64 dims"),
        ({"codes": ((64, 1),)}, UsageError, "64 dims"),
        ({"codes": ((16, 3),)}, UsageError, "16 x 3"),
        ({"precisions": ("int4",)}, UsageError, "'int4'"),
        ({"indexes": ("auto",)}, UsageError, "'auto'"),
        ({"k": 0}, UsageError, "k=0"),
        ({"shortlist": 9}, UsageError, "shortlist=9 must be an int of 10 or more"),
        ({"k": 301, "shortlist": 400}, UsageError, "k=301, but toy has 300 documents"),
        ({"codes": ((0, 1),)}, SpecError, "short codes have 1 to dim=32"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_embedded(data, options, error, said):
    def encode(listed):
        raise AssertionError("embedded")

    encoder = FunctionEncoder(encode, name="none", dim=32)
    with pytest.raises(error, match=said):
        evaluate(encoder, retrieval=data, sweep=Quick(**options))


def test_there_must_be_data():
    with pytest.raises(UsageError, match="nothing to measure on"):
        evaluate(HashEncoder())


def test_prefixes_of_zeros_are_named(data, pairs):
    def encode(listed):
        return np.array([(0, 0, 1 + len(text), 1) for text in listed], np.float32)

    encoder = FunctionEncoder(encode, name="zeros", dim=4)
    with pytest.raises(UsageError, match="first 2 numbers of document 'd0' are all zero"):
        evaluate(encoder, retrieval=data, sweep=Quick(dims=(2,)))
    with pytest.raises(UsageError, match="first 2 numbers of '"):
        evaluate(encoder, pairs=pairs, sweep=Quick(dims=(2,)))


def test_an_encoder_that_fails_is_named(data):
    def encode(listed):
        return np.full((len(listed), 4), np.nan)

    with pytest.raises(EncoderError, match="'broken'"):
        evaluate(FunctionEncoder(encode, name="broken", dim=4), retrieval=data)


def test_a_setup_is_named_by_what_it_is():
    setups = Quick(tiers=(8, 32), codes=((8, 1),), indexes=("hash", "flat")).setups(32, (8,))

    assert [setup.label for setup in setups] == [
        *("32", "8", "8 → 32 (100)", "32 hash 8 x 1", "32 flat")
    ]
    assert Quick(dims=(8, 64)).setups(32, ()) == [Setup(8)]
    assert Quick(codes=((8, 1),)).setups(32, ())[1].index == "ivf"


def test_a_picture_is_drawn(data, pairs, tmp_path):
    pytest.importorskip("matplotlib")
    sweep = Quick(dims=(16, 8), precisions=("float32", "int8"), tiers=(8,), indexes=("flat",))
    two = HashEncoder(dim=16), HashEncoder(dim=16, seed=1)
    report = evaluate(two[0], against=two[1], retrieval=data, pairs=pairs, sweep=sweep)
    draw(report, tmp_path / "curve.png")
    draw(evaluate(two[0], pairs=pairs, sweep=Quick()), tmp_path / "curve.svg")

    assert (tmp_path / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    with pytest.raises(UsageError, match="xyz: a picture is one of"):
        draw(report, tmp_path / "curve.xyz")
    with pytest.raises(StoreError, match="cannot be written"):
        draw(report, tmp_path / "nowhere" / "curve.png")


def test_a_picture_without_matplotlib_says_how_to_get_it(pairs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    report = evaluate(HashEncoder(dim=8), pairs=pairs, sweep=Quick())

    with pytest.raises(MissingExtraError, match=r"pip install 'vecstore\[plot\]'"):
        draw(report, tmp_path / "curve.png")
