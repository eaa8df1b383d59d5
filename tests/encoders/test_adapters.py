"""Adapters: maps and their bytes, rotations, whitenings, and what is learned from pairs."""

import functools
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vecstore
from vecstore.encoders import (
    AdaptedEncoder,
    Adapter,
    HashEncoder,
    adapt_encoder,
    fit_adapter,
    fit_rotation,
    whiten,
)
from vecstore.encoders.adapters import Affine, losses, rotation
from vecstore.errors import EncoderError, UsageError, VectorError

DIM = 24


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def units(vectors):
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def affine(seed, dim=DIM, out=DIM, *, offset=True):
    return Affine(normal(seed, dim, out), normal(seed + 1, out) if offset else None)


def hidden(seed=0, count=1500, dim=DIM, signal=4):
    """Clusters in a few directions, much noise in none, turned at random."""
    turn = np.linalg.qr(np.random.default_rng(77).normal(size=(dim, dim)))[0]
    centres = np.random.default_rng(78).normal(size=(60, signal))
    rng = np.random.default_rng(seed)
    vectors = np.zeros((count, dim))
    vectors[:, :signal] = centres[rng.integers(0, 60, count)] + 0.2 * rng.normal(
        size=(count, signal)
    )
    vectors += 0.15 * rng.normal(size=(count, dim))
    return (vectors @ turn).astype(np.float32)


def prefix_recall(rows, asked, size, true, shortlist=20):
    """How many of the true neighbours are in the shortlist by prefix, by plain numpy."""
    scores = units(asked[:, :size]) @ units(rows[:, :size]).T
    listed = np.argsort(-scores, axis=1)[:, :shortlist]
    return np.mean([len({*a} & {*b}) / len(a) for a, b in zip(true, listed, strict=True)])


# Adapters


@given(st.integers(0, 99), st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_joined_adapters_do_what_they_do_one_after_another(seed, first_offset, second_offset):
    first = affine(seed, 6, 5, offset=first_offset)
    second = affine(seed + 7, 5, 4, offset=second_offset)
    one = Adapter(dim=6, documents=first, queries=first, name="one")
    two = Adapter(dim=5, documents=second, queries=second, mrl=(2,), name="two")
    vectors = normal(seed, 9, 6)
    joined = one @ two

    assert (joined.name, joined.mrl, joined.dim, joined.dim_out) == ("one+two", (2,), 6, 4)
    assert joined.queries is joined.documents
    expected = vectors.astype(np.float64) @ first.matrix + (0 if not first_offset else first.offset)
    expected = expected @ second.matrix + (0 if not second_offset else second.offset)
    assert joined.apply(vectors) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert two.apply(one.apply(vectors)) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_an_adapter_of_queries_leaves_documents_alone():
    turned = Adapter(dim=DIM, documents=affine(1), queries=affine(1), mrl=(3,), name="a")
    asked = Adapter(dim=DIM, queries=affine(5), name="b")
    vectors, joined = normal(2, 3, DIM), turned @ asked

    assert (asked.apply(vectors) == vectors).all()
    assert (joined.apply(vectors) == turned.apply(vectors)).all()
    assert joined.mrl == (3,)
    assert joined.apply(vectors, "query") == pytest.approx(
        asked.apply(turned.apply(vectors, "query"), "query"), rel=1e-3, abs=1e-3
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("documents", [True, False])
def test_an_adapter_comes_back_from_its_bytes(shared, documents):
    one = affine(1, offset=False) if documents else None
    adapter = Adapter(
        dim=DIM, documents=one, queries=one if shared else affine(2), mrl=(2, DIM), name="né",
        reports=({"kind": "x", "list": [1.5, {"a": None}]},),
    )  # fmt: skip
    back = Adapter.from_bytes(adapter.to_bytes())

    assert back.to_bytes() == adapter.to_bytes()
    assert back.fingerprint == adapter.fingerprint
    assert (back.dim, back.mrl, back.name) == (DIM, (2, DIM), "né")
    assert back.reports == adapter.reports
    vectors = normal(3, 4, DIM)
    for kind in ("document", "query"):
        assert (back.apply(vectors, kind) == adapter.apply(vectors, kind)).all()


def test_a_fingerprint_tells_adapters_apart_that_make_other_vectors():
    one, two = affine(1), affine(2)
    maps = [(None, None), (one, one), (one, two), (two, one), (None, one), (one, None), (two, two)]
    found = {Adapter(dim=DIM, documents=d, queries=q).fingerprint for d, q in maps}

    assert len(found) == len(maps)
    named = Adapter(dim=DIM, documents=one, queries=one, name="x", mrl=(3,))
    assert named.fingerprint == Adapter(dim=DIM, documents=one, queries=one).fingerprint


def sealed(data):
    """Bytes with a right digest behind them."""
    return data + hashlib.sha256(data).digest()


def with_header(**changes):
    """An adapter's bytes whose header says something else."""
    data = Adapter(dim=4, documents=affine(1, 4, 4), name="a").to_bytes()[:-32]
    size = int.from_bytes(data[8:12], "little")
    header = json.dumps({**json.loads(data[12 : 12 + size]), **changes}).encode()
    return sealed(data[:8] + len(header).to_bytes(4, "little") + header + data[12 + size :])


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 5}, {"dim": 0}, {"dim": -1}, {"dim": True}, {"dim": 2**60}, {"dim": "4"},
        {"dim": None}, {"documents": [4, False]}, {"documents": [2**40, True]},
        {"documents": [4, 1]}, {"documents": [4]}, {"documents": "queries"}, {"documents": None},
        {"queries": [4, False]}, {"queries": "neither"}, {"mrl": [5]}, {"mrl": [2, 1]},
        {"mrl": 3}, {"mrl": [1.5]}, {"name": ""}, {"name": 3}, {"name": "x" * 101},
        {"reports": [3]}, {"reports": 3}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_lies_is_refused(changes):
    with pytest.raises(EncoderError, match="no adapter"):
        Adapter.from_bytes(with_header(**changes))


def test_bytes_that_were_changed_or_cut_short_are_refused():
    data = Adapter(dim=4, documents=affine(1, 4, 4), name="a").to_bytes()

    for at in range(len(data)):
        for wrong in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            with pytest.raises(EncoderError, match="no adapter"):
                Adapter.from_bytes(wrong)
    for wrong in (data + b"\0", b"", b"vsadapt1" + b"\xff" * 60):
        with pytest.raises(EncoderError, match="no adapter"):
            Adapter.from_bytes(wrong)


def test_nested_headers_and_numbers_that_are_not_finite_are_refused():
    nested = b"[" * 60_000
    nan = Adapter(dim=4, documents=affine(1, 4, 4)).to_bytes()[:-32]
    nan = nan[:-4] + np.float32("nan").tobytes()

    for wrong in (b"vsadapt1" + len(nested).to_bytes(4, "little") + nested, nan):
        with pytest.raises(EncoderError, match="no adapter"):
            Adapter.from_bytes(sealed(wrong))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 1}, "dim=1"),
        ({"dim": 5, "queries": affine(1)}, "24 numbers, dim=5"),
        ({"dim": DIM, "queries": affine(1, DIM, 3)}, "other lengths"),
        ({"dim": DIM, "mrl": (30,)}, "mrl="),
        ({"dim": DIM, "name": ""}, "name="),
        ({"dim": DIM, "name": "\ud800"}, "lone surrogate"),
    ],
)
def test_an_impossible_adapter_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Adapter(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": np.eye(DIM)}, "a map is .*must be an Affine or None"),
        ({"queries": "x"}, "a map is 'x'"),
        ({"mrl": None}, "mrl=None must be ascending"),
        ({"mrl": 5}, "mrl=5 must be ascending"),
        ({"mrl": ("4",)}, "must be ascending"),
        ({"reports": None}, "reports=None must be a tuple of maps"),
        ({"reports": (3,)}, "must be a tuple of maps"),
    ],
)
def test_an_adapter_of_other_values_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Adapter(dim=DIM, **arguments)


def test_an_adapter_holds_tuples_whatever_it_was_given():
    adapter = Adapter(dim=DIM, mrl=[2, 4], reports=[{"a": 1}])

    assert (adapter.mrl, adapter.reports) == ((2, 4), ({"a": 1},))


def test_rows_of_several_lengths_are_no_map():
    with pytest.raises(UsageError, match="differ in length"):
        Affine([[1.0, 2.0], [1.0]])


@pytest.mark.parametrize("pairs", [None, 3, [(0, 1), (1,)], zip([1], [2], strict=True)])
def test_what_is_no_list_of_pairs_is_refused(pairs):
    with pytest.raises(UsageError, match="pairs must be pairs"):
        fit_adapter(np.ones((30, 4)), np.ones((30, 4)), pairs)


@pytest.mark.parametrize("pairs", [None, 3, [1, 2]])
def test_what_is_no_list_of_pairs_of_texts_is_refused(pairs):
    with pytest.raises(UsageError, match=r"pairs must be pairs \(query, text\)"):
        adapt_encoder(HashEncoder(), pairs)


def test_one_prefix_alone_is_refused():
    with pytest.raises(UsageError, match="prefixes=4 must be lengths"):
        fit_rotation(np.random.default_rng(0).normal(size=(50, 8)), prefixes=4)


def test_adapters_that_do_not_fit_are_not_joined():
    with pytest.raises(UsageError, match="takes 5 numbers"):
        Adapter(dim=4) @ Adapter(dim=5)
    with pytest.raises(TypeError):
        Adapter(dim=4) @ 3


@pytest.mark.parametrize("report", [{"a": object()}, {"a": "x" * 70_000}], ids=["type", "size"])
def test_a_report_that_cannot_be_stored_is_refused(report):
    with pytest.raises(UsageError, match="reports of adapter"):
        Adapter(dim=DIM, reports=(report,)).to_bytes()


# Encoders


def test_an_adapted_encoder_is_the_base_and_then_the_adapter():
    base, adapter = HashEncoder(DIM), Adapter(dim=DIM, documents=affine(1), queries=affine(3))
    encoder, texts = AdaptedEncoder(base, adapter), ["red apple", "late train"]

    for kind in ("document", "query"):
        assert (encoder.encode(texts, kind) == adapter.apply(base.encode(texts), kind)).all()
    assert encoder.encode([]).shape == (0, DIM)
    with pytest.raises(UsageError, match="kind"):
        encoder.encode(texts, "passage")


def test_the_fingerprint_is_of_base_and_adapter():
    one = Adapter(dim=DIM, documents=affine(1), queries=affine(1))
    two = Adapter(dim=DIM, queries=affine(2))
    encoders = [
        AdaptedEncoder(HashEncoder(DIM, seed), adapter)
        for seed in (0, 1)
        for adapter in (Adapter(dim=DIM), one, two)
    ]

    assert len({encoder.fingerprint for encoder in encoders}) == len(encoders)
    # What changes nothing is nothing.
    assert encoders[0].fingerprint == HashEncoder(DIM).fingerprint
    assert encoders[0].name == "hash"


def test_an_encoder_adapted_twice_is_one_adapted_once():
    one = Adapter(dim=DIM, documents=affine(1), queries=affine(1), mrl=(8,), name="one")
    two = Adapter(dim=DIM, queries=affine(2), name="two")
    encoder = AdaptedEncoder(AdaptedEncoder(HashEncoder(DIM), one), two)

    assert isinstance(encoder.base, HashEncoder)
    assert encoder.fingerprint == AdaptedEncoder(HashEncoder(DIM), one @ two).fingerprint
    assert (encoder.name, encoder.mrl) == ("hash+one+two", (8,))


@pytest.mark.parametrize(
    ("base", "adapter"),
    [(None, Adapter(dim=DIM)), ("default", Adapter(dim=DIM)), (HashEncoder(DIM), np.eye(DIM))],
)
def test_what_is_no_encoder_or_no_adapter_is_refused(base, adapter):
    with pytest.raises(UsageError, match="takes an encoder"):
        AdaptedEncoder(base, adapter)


def test_an_adapter_of_another_length_is_refused():
    with pytest.raises(UsageError, match="takes vectors of 24 numbers, encoder 'hash' makes 64"):
        AdaptedEncoder(HashEncoder(64), Adapter(dim=DIM))


# Gradients


def assert_gradient(function, at, gradient, directions=12):
    """Compare a gradient with differences, along directions at random."""
    rng = np.random.default_rng(5)
    for _ in range(directions):
        way = rng.normal(size=at.shape)
        step = 1e-5 / np.linalg.norm(way)
        slope = (function(at + step * way) - function(at - step * way)) / (2 * step)
        assert slope == pytest.approx((gradient * way).sum(), rel=1e-5, abs=1e-7)


def test_the_gradient_of_the_nested_loss_is_right():
    full, points = units(normal(1, 12, 9)), normal(2, 12, 7).astype(np.float64)
    wanted, logs = losses.wanted_shares(full)
    sizes = (2, 5, 7)

    _, gradient = losses.nested_loss(wanted, logs, points, sizes)

    assert_gradient(lambda at: losses.nested_loss(wanted, logs, at, sizes)[0], points, gradient)


def test_the_nested_loss_is_what_it_says():
    full, points = units(normal(1, 6, 5)), normal(2, 6, 4).astype(np.float64)
    expected = 0.0
    for size in (2, 4):
        cut = units(points[:, :size])
        for row in range(6):
            others = [other for other in range(6) if other != row]
            true, found = full[others] @ full[row], cut[others] @ cut[row]
            p = np.exp(true / 0.05) / np.exp(true / 0.05).sum()
            q = np.exp(found / 0.05) / np.exp(found / 0.05).sum()
            expected += (p * np.log(p / q)).sum() / 6 + 5 * ((true - found) ** 2).sum() / 30

    loss, _ = losses.nested_loss(*losses.wanted_shares(full), points, (2, 4))

    assert loss == pytest.approx(expected)


def test_the_nested_loss_of_the_vectors_themselves_is_zero():
    full = units(normal(1, 12, 9))

    loss, gradient = losses.nested_loss(*losses.wanted_shares(full), full, (9,))

    assert loss == pytest.approx(0, abs=1e-12)
    assert gradient == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("both", [False, True])
def test_the_gradient_of_the_contrastive_loss_is_right(both):
    queries, documents = normal(1, 5, 6).astype(np.float64), normal(2, 8, 6).astype(np.float64)
    matrix = np.eye(6) + 0.1 * normal(3, 6, 6)
    right, barred = np.array([0, 3, 3, 7, 1]), np.zeros((5, 8), bool)
    barred[0, 4] = barred[2, [0, 1]] = True

    def function(at):
        return losses.contrastive_loss(at, queries, documents, right, barred, both=both)

    loss, gradient = function(matrix)

    asked, found = units(queries @ matrix), units(documents @ matrix if both else documents)
    scores = np.where(barred, -np.inf, asked @ found.T / 0.05)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(shares[np.arange(5), right]).mean())
    assert_gradient(lambda at: function(at)[0], matrix, gradient)


# Rotations


@pytest.fixture(scope="module")
def fitted():
    return fit_rotation(hidden(), (4, 8), steps=30)


def test_a_rotation_is_orthogonal(fitted):
    matrix = fitted.documents.matrix.astype(np.float64)

    assert abs(matrix.T @ matrix - np.eye(DIM)).max() < 1e-6
    assert fitted.queries is fitted.documents
    assert fitted.documents.offset is None


def test_a_rotation_keeps_similarities_of_whole_vectors(fitted):
    rows, asked = hidden(3, 200), hidden(4, 20)
    turned, turned_asked = fitted.apply(rows), fitted.apply(asked, "query")

    assert units(turned_asked) @ units(turned).T == pytest.approx(
        units(asked) @ units(rows).T, abs=2e-6
    )


def test_prefixes_of_rotated_vectors_find_more_than_truncation(fitted):
    rows, asked = hidden(), hidden(1, 200)
    true = np.argsort(-(units(asked) @ units(rows).T), axis=1)[:, :10]
    turned, turned_asked = fitted.apply(rows), fitted.apply(asked)
    before = prefix_recall(rows, asked, 4, true)
    after = prefix_recall(turned, turned_asked, 4, true)

    assert after > before + 0.3
    assert fitted.mrl == (4, 8, DIM)


def test_a_rotation_reports_what_it_gained(fitted):
    (report,) = fitted.reports

    assert report["chosen"] == min(report["loss"], key=report["loss"].get) != "none"
    before, after = report["recall"]["4"]
    assert after > before


def test_descent_improves_on_principal_directions():
    # Directions that vary most but tell few neighbours apart: one of eight values for all.
    corners = 4 * np.random.default_rng(0).choice([-1, 1], (1000, 3)).astype(np.float32)

    (report,) = fit_rotation(np.hstack([hidden(0, 1000), corners]), (3, 6), steps=40).reports

    assert report["chosen"] == "fitted"
    assert report["loss"]["fitted"] < report["loss"]["principal"]


def test_a_rotation_is_the_same_for_the_same_seed(fitted):
    again = fit_rotation(hidden(), (8, 4), steps=30)
    other = fit_rotation(hidden(), (4, 8), steps=30, seed=1)

    assert again.to_bytes() == fitted.to_bytes()
    assert other.fingerprint != fitted.fingerprint


def test_vectors_whose_prefixes_are_best_stay_as_they_are():
    rng = np.random.default_rng(0)
    # The same information again and again: nothing can be put in front that is not there already.
    vectors = np.tile(rng.normal(size=(600, 4)), 3).astype(np.float32)

    adapter = fit_rotation(vectors, (4, 8), steps=20)

    assert adapter.is_identity
    assert adapter.reports[0]["chosen"] == "none"
    assert adapter.mrl == (4, 8, 12)


@pytest.mark.parametrize(
    "vectors",
    [
        hidden(1, 20, 40),
        np.repeat(hidden(1, 30), 20, axis=0),
        np.hstack([hidden(1, 100), np.zeros((100, 4), np.float32), np.ones((100, 2), np.float32)]),
        np.vstack([hidden(1, 100), np.zeros((5, DIM), np.float32)]),
        1e30 * hidden(1, 100),
        hidden(1, 100).astype(np.float16),
        np.random.default_rng(0).integers(-9, 9, (100, 8)),
        hidden(1, 60, 2, signal=2),
    ],
    ids=["few", "repeated", "constant", "zeros", "large", "half", "integers", "flat"],
)
def test_odd_vectors_can_be_rotated_too(vectors):
    adapter = fit_rotation(vectors, steps=5)
    matrix = np.eye(vectors.shape[1]) if adapter.is_identity else adapter.documents.matrix

    assert abs(matrix.T.astype(np.float64) @ matrix - np.eye(len(matrix))).max() < 1e-6


def test_only_the_leading_directions_of_long_vectors_are_turned(monkeypatch):
    monkeypatch.setattr(rotation, "LEAST_TURNED", 10)
    adapter = fit_rotation(hidden(2, 800), (4,), steps=40)
    matrix = adapter.documents.matrix.astype(np.float64)

    assert abs(matrix.T @ matrix - np.eye(DIM)).max() < 1e-6
    assert adapter.reports[0]["recall"]["4"][1] > adapter.reports[0]["recall"]["4"][0]


def test_progress_of_fitting_ascends_to_one():
    seen = []
    fit_rotation(hidden(), (4,), steps=5, progress=seen.append)

    assert seen == [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize(
    ("vectors", "options", "error", "message"),
    [
        (hidden(1, 15), {}, UsageError, "15 different vectors are too few"),
        (np.repeat(hidden(1, 3), 50, axis=0), {}, UsageError, "3 different vectors"),
        (hidden()[0], {}, UsageError, r"shape \(24,\)"),
        ("text", {}, UsageError, "expected numbers"),
        ([[1.0] * 16, [1.0] * 3], {}, UsageError, "vectors must all be of one length"),
        (hidden() > 0, {}, UsageError, "bool"),
        (hidden()[:, :1], {}, UsageError, "2 to 8192 numbers"),
        (np.full((20, 4), np.nan), {}, VectorError, "row 0 holds nan"),
        (hidden(), {"prefixes": ()}, UsageError, "prefixes="),
        (hidden(), {"prefixes": (DIM,)}, UsageError, "between 1 and 23"),
        (hidden(), {"prefixes": (1.5,)}, UsageError, "prefixes="),
        (hidden(), {"steps": -1}, UsageError, "steps=-1"),
        (hidden(), {"rows": 3}, UsageError, "rows=3"),
        (hidden(), {"seed": "a"}, UsageError, "seed='a'"),
    ],
)
def test_what_cannot_be_rotated_is_refused(vectors, options, error, message):
    with pytest.raises(error, match=message):
        fit_rotation(vectors, **options)


# Whitening


def cloud(seed=0, count=3000):
    return normal(seed, count, 6) @ normal(9, 6, 6) + np.arange(6, dtype=np.float32)


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_whitened_vectors_have_no_mean_and_equal_spread(kind):
    data = cloud()
    white = whiten(data, kind=kind, shrinkage=0).apply(data).astype(np.float64)

    assert white.mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert np.cov(white.T, bias=True) == pytest.approx(np.eye(6) / 6, abs=1e-4)


def test_zca_changes_vectors_least_and_pca_has_the_same_cosines():
    data = cloud()
    zca, pca = whiten(data).apply(data), whiten(data, kind="pca").apply(data)

    assert zca[:50] @ zca[:50].T == pytest.approx(pca[:50] @ pca[:50].T, abs=1e-4)
    matrix = whiten(data).documents.matrix
    assert matrix == pytest.approx(matrix.T, abs=1e-6)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_pca_keeps_the_directions_of_most_variance():
    data = cloud()
    adapter = whiten(data, kind="pca", dim=2, shrinkage=0)
    values, columns = np.linalg.eigh(np.cov(data.T.astype(np.float64), bias=True))
    expected = (data - data.mean(axis=0)) @ columns[:, :-3:-1] / np.sqrt(2 * values[:-3:-1])

    assert adapter.dim_out == 2
    assert abs(adapter.apply(data)) == pytest.approx(abs(expected), abs=1e-3)


def test_shrinking_wholly_only_removes_the_mean():
    data = cloud()
    white = whiten(data, shrinkage=1).apply(data)

    assert units(white) == pytest.approx(units(data - data.mean(axis=0)), abs=1e-4)


def test_the_fewer_vectors_the_more_is_shrunk():
    found = [whiten(cloud()[:count]).reports[0]["shrinkage"] for count in (8, 30, 300, 3000)]

    assert found == sorted(found, reverse=True)
    assert found[0] > 0.1 > 0.02 > found[-1]


def test_the_shrinkage_is_that_of_ledoit_and_wolf():
    data = cloud(count=40).astype(np.float64)
    centred = data - data.mean(axis=0)
    covariance = centred.T @ centred / 40
    sphere = np.trace(covariance) / 6 * np.eye(6)
    off = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in centred) / 40**2
    expected = min(off / ((covariance - sphere) ** 2).sum(), 1)

    assert whiten(data).reports[0]["shrinkage"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shrinkage", [None, 0])
def test_few_vectors_and_constant_numbers_can_be_whitened(shrinkage):
    data = np.hstack([cloud(count=4), np.ones((4, 3), np.float32)])
    white = whiten(data, shrinkage=shrinkage).apply(data)

    assert np.isfinite(white).all()
    assert (white**2).sum(axis=1).mean() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        (cloud(), {"kind": "ica"}, "kind='ica'"),
        (cloud(), {"shrinkage": 1.5}, "shrinkage=1.5"),
        (cloud(), {"dim": 3}, "keeps all 6"),
        (cloud(), {"dim": 7, "kind": "pca"}, "dim=7 is over the 6"),
        (cloud(), {"dim": 1, "kind": "pca"}, "dim=1"),
        (np.ones((9, 3)), {}, "all the same"),
        (np.ones((0, 3)), {}, "all the same"),
        (np.ones(3), {}, "shape"),
    ],
)
def test_what_cannot_be_whitened_is_refused(vectors, options, message):
    with pytest.raises(UsageError, match=message):
        whiten(vectors, **options)


# Pairs


def questions(seed=0, count=300, skew=1.0):
    """Documents, and queries that are documents seen through a map that hides them."""
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(count, 16))
    distortion = np.eye(16) + skew * rng.normal(size=(16, 16)) / 4
    queries = documents @ distortion + 0.3 * rng.normal(size=(count, 16))
    return queries.astype(np.float32), documents.astype(np.float32), [(i, i) for i in range(count)]


def hits(queries, documents):
    return (
        np.argmax(units(queries) @ units(documents).T, axis=1) == np.arange(len(queries))
    ).mean()


@pytest.mark.parametrize("side", ["queries", "both"])
def test_an_adapter_learns_what_hides_documents(side):
    queries, documents, pairs = questions()
    adapter = fit_adapter(queries[:200], documents, pairs[:200], side=side)
    # The others were never seen.
    asked = adapter.apply(queries, "query")[200:]
    before = hits(queries, documents)

    assert adapter.reports[0]["gained"] is True
    found = (np.argmax(units(asked) @ units(adapter.apply(documents)).T, axis=1)) == range(200, 300)
    assert found.mean() > before + 0.05
    assert (adapter.documents is None) == (side == "queries")


def test_the_report_is_what_the_queries_to_judge_by_gained():
    queries, documents, pairs = questions()
    (report,) = fit_adapter(queries, documents, pairs, epochs=5).reports

    everything = report["all"]
    low, high = everything["interval"]
    assert low <= everything["after"] - everything["before"] <= high
    assert report["gained"] == (everything["after"] > everything["before"])
    assert everything["queries"] == 50 == report["unseen"]["queries"]
    assert report["learned"] == 200


@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_help_is_refused(seed):
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(120, 12)).astype(np.float32)
    queries = rng.normal(size=(120, 12)).astype(np.float32)
    # Queries find their documents as they are, and what the pairs say is made up.
    queries[:40] = documents[:40]
    pairs = [(i, i) for i in range(40)] + [(i, int(rng.integers(120))) for i in range(40, 60)]
    adapter = fit_adapter(queries, documents, pairs, epochs=10, seed=seed)
    (report,) = adapter.reports

    assert report["gained"] == (not adapter.is_identity)
    for judged in (report["all"], report["unseen"]):
        gain = judged.get("after", 0) - judged.get("before", 0)
        assert adapter.is_identity or gain >= 0


def test_queries_that_cannot_be_better_leave_the_identity():
    documents = normal(1, 60, 12)
    adapter = fit_adapter(documents, documents, [(i, i) for i in range(60)], epochs=3)

    assert adapter.is_identity
    assert adapter.reports[0]["gained"] is False
    assert adapter.reports[0]["all"]["before"] == 1


def test_an_adapter_is_the_same_for_the_same_seed():
    queries, documents, pairs = questions()
    one, two = (fit_adapter(queries, documents, pairs, epochs=4) for _ in range(2))

    assert one.to_bytes() == two.to_bytes()
    assert fit_adapter(queries, documents, pairs, epochs=4, seed=1).to_bytes() != one.to_bytes()


def test_negatives_are_driven_away():
    # Each query lies between its document and another one, which nothing else is near to.
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(size=(2, 80, 40))
    right[:, 20:] = wrong[:, :20] = 0
    queries = right + wrong
    documents = np.vstack([right, wrong])
    pairs, negatives = [(i, i) for i in range(80)], [(i, 80 + i) for i in range(80)]
    adapter = fit_adapter(queries, documents, pairs, negatives=negatives, ridge=0.001)
    found = [
        units(asked) @ units(documents).T for asked in (queries, adapter.apply(queries, "query"))
    ]
    better = [
        (s[np.arange(80), np.arange(80)] > s[np.arange(80), np.arange(80, 160)]).mean()
        for s in found
    ]

    assert better[0] < 0.6 < 0.8 < better[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": "documents"}, "side='documents'"),
        ({"pairs": [(0, 999)] * 30}, r"\[0, 999\]"),
        ({"pairs": [(-1, 0)] * 30}, r"\[-1, 0\]"),
        ({"pairs": [(0.5, 1)] * 30}, "whole numbers"),
        ({"pairs": [1, 2, 3]}, "must be pairs"),
        ({"pairs": []}, "too few"),
        ({"pairs": [(0, i) for i in range(30)]}, "too few"),
        ({"negatives": [(0, 300)]}, "negatives name"),
        ({"documents": normal(1, 300, 5)}, "queries of 16 numbers, documents of 5"),
        ({"ridge": -1}, "ridge=-1"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_pairs_that_cannot_be_learned_from_are_refused(change, message):
    queries, documents, pairs = questions()
    arguments = {"queries": queries, "documents": documents, "pairs": pairs, **change}

    with pytest.raises(UsageError, match=message):
        fit_adapter(**arguments)


def test_an_encoder_is_adapted_to_pairs_of_texts():
    animals = [f"animal{i}" for i in range(60)]
    pairs = [(f"where lives {name} now", f"habitat {name} forest") for name in animals]
    negatives = [(query, f"where lives {name}s friend") for (query, _), name in
                 zip(pairs, animals, strict=True)]  # fmt: skip
    base = HashEncoder(48)
    encoder = adapt_encoder(base, pairs, negatives=negatives, documents=["where lives who now"])

    assert encoder.base is base
    assert encoder.adapter.documents is None
    assert encoder.adapter.reports[0]["all"]["queries"] == 10
    assert (encoder.encode(["habitat"]) == base.encode(["habitat"])).all()


def test_pairs_may_come_from_what_gives_them_once():
    pairs = [(f"where lives animal{i} now", f"habitat animal{i} forest") for i in range(30)]

    encoders = [adapt_encoder(HashEncoder(48), given) for given in (pairs, iter(pairs))]

    assert encoders[0].fingerprint == encoders[1].fingerprint
    with pytest.raises(UsageError, match="list of texts"):
        adapt_encoder(HashEncoder(48), pairs, documents="habitat")
    with pytest.raises(UsageError, match="encoder='fast' is none"):
        adapt_encoder("fast", pairs)


@pytest.mark.parametrize(
    ("pairs", "negatives", "message"),
    [
        (["ab", "cd"], [], "must be pairs"),
        ([([], "a")] * 30, [], "must be pairs"),
        ([("a", "b", "c")], [], "must be pairs"),
        ([("a", "b")], [("x", "y")], "'x'"),
        ([("a", "")], [], "empty"),
    ],
)
def test_pairs_of_texts_that_are_none_are_refused(pairs, negatives, message):
    with pytest.raises(UsageError, match=message):
        adapt_encoder(HashEncoder(), pairs, negatives=negatives)


# Collections


def test_the_examples_of_the_documentation_run(capsys):
    page = (Path(__file__).parents[2] / "docs/adapters.md").read_text()
    first, fit, turned, _ = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    points = hidden(0, 300, 100)
    with vecstore.open(":memory:") as db:
        names = {"db": db, "points": db.collection("points", dim=100), "query": points[7]}
        names["points"].add(vectors=points, ids=range(300), metadata=[{"n": n} for n in range(300)])
        names["fit_rotation"] = functools.partial(fit_rotation, steps=10)
        exec(fit.replace("(256, 128, 64)", "(64, 32)") + turned, names)

        assert names["turned"].search(names["rotation"].apply([points[7]])[0], k=1).ids == [7]
        assert names["turned"].get(5).metadata == {"n": 5}
    exec(first, names)
    names["db"].close()
    assert capsys.readouterr().out.split()[1].startswith("default")


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_a_rotation_is_fitted_to_a_collection(metric):
    with vecstore.open(":memory:") as db:
        points = db.collection("points", dim=DIM, metric=metric)
        points.add(vectors=hidden())
        adapter = fit_rotation(points, (4, 8), rows=600, steps=10)
        white = whiten(points, rows=500)
        turned = db.collection("turned", dim=DIM, metric=metric, mrl=adapter.mrl)
        turned.add(vectors=adapter.apply(hidden()))
        asked = hidden(3, 1)
        before = points.search(asked[0], k=5, recall="exact")
        after = turned.search(adapter.apply(asked)[0], k=5, recall="exact")

        assert adapter.reports[0]["recall"]["4"][1] > adapter.reports[0]["recall"]["4"][0] + 0.1
        assert white.reports[0]["rows"] == 500
        assert after.scores == pytest.approx(before.scores, abs=1e-4)


def test_binary_vectors_are_not_rotated():
    with vecstore.open(":memory:") as db:
        bits = db.collection("bits", dim=64, metric="hamming")
        bits.add(vectors=hidden(dim=64)[:100] > 0)

        with pytest.raises(UsageError, match="binary"):
            fit_rotation(bits)
