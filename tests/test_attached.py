"""Adapters that are kept with a collection."""

import contextlib

import numpy as np
import pytest

import vecstore
from vecstore import attached, index_layout, layout
from vecstore.encoders import AdaptedEncoder, Adapter, HashEncoder, bundled
from vecstore.encoders.adapters import Affine
from vecstore.errors import (
    CorruptionError,
    EncoderMismatchError,
    NotFoundError,
    ReadOnlyError,
    UsageError,
)

DIM = 16
TEXTS = ["red apple", "green apple", "green pear", "a late train"]
BASE = HashEncoder(DIM)


def turn(seed=0, name="rotation"):
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))[0]
    affine = Affine(matrix.astype(np.float32))
    return Adapter(dim=DIM, documents=affine, queries=affine, mrl=(8, DIM), name=name)


def skew(seed=0):
    matrix = np.eye(DIM) + 0.3 * np.random.default_rng(seed).normal(size=(DIM, DIM))
    return Adapter(dim=DIM, queries=Affine(matrix.astype(np.float32)), name="pairs")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "notes.vecstore"


@pytest.fixture
def made(path):
    """A file whose collection was made with an adapted encoder."""
    with vecstore.open(path) as db:
        notes = db.collection("notes", encoder=AdaptedEncoder(BASE, turn()))
        notes.add(TEXTS, ids=[1, 2, 3, 4])
    return path


def answer(notes, query="green apple"):
    return [(hit.id, pytest.approx(hit.score, abs=1e-6)) for hit in notes.search(query, k=4)]


def expected(adapter, query="green apple"):
    """By plain numpy."""
    rows = adapter.apply(BASE.encode(TEXTS)).astype(np.float64)
    asked = adapter.apply(BASE.encode([query]), "query")[0].astype(np.float64)
    scores = rows @ asked / np.linalg.norm(rows, axis=1) / np.linalg.norm(asked)
    return sorted(zip([1, 2, 3, 4], scores, strict=True), key=lambda pair: -pair[1])


def test_what_is_no_adapter_is_refused(made):
    with vecstore.open(made) as db, pytest.raises(UsageError, match="adapter='x' must be an Adap"):
        db.collection("notes", encoder=BASE).adapt("x")


def test_a_collection_finds_its_adapter_again(made):
    with vecstore.open(made) as db:
        notes = db.collection("notes", encoder=BASE)

        assert expected(turn()) == answer(notes)
        assert notes.adapter.to_bytes() == turn().to_bytes()
        assert (notes.spec.encoder, notes.spec.mrl) == ("hash+rotation", (8, DIM))
        notes.add("green plum", ids=5)
        stored = notes.get(5, include=("vector",)).vector
        assert stored == pytest.approx(turn().apply(BASE.encode(["green plum"]))[0], abs=1e-6)
        assert db.check() == []


def test_the_adapted_encoder_itself_may_be_given(made):
    with vecstore.open(made) as db:
        notes = db.collection("notes", encoder=AdaptedEncoder(BASE, turn()))

        assert expected(turn()) == answer(notes)


@pytest.mark.parametrize(
    "encoder",
    [HashEncoder(DIM, seed=1), HashEncoder(8), AdaptedEncoder(BASE, turn(1))],
    ids=["seed", "dim", "adapter"],
)
def test_another_encoder_is_refused(made, encoder):
    with (
        vecstore.open(made) as db,
        pytest.raises(EncoderMismatchError, match=r"made with encoder 'hash\+rotation'"),
    ):
        db.collection("notes", encoder=encoder)


def test_the_bundled_model_needs_not_be_named(path):
    adapter = Adapter(dim=384, queries=Affine(2 * np.eye(384, dtype=np.float32)), name="double")
    with vecstore.open(path) as db:
        notes = db.collection("notes", encoder=AdaptedEncoder(bundled(), adapter))
        notes.add(TEXTS, ids=[1, 2, 3, 4])
        before = notes.search("fruit").ids
    with vecstore.open(path) as db:
        notes = db.collection("notes")

        assert notes.search("fruit").ids == before
        with db.snapshot() as view:
            assert view.collection("notes").search("fruit").ids == before
        db.collection("notes", encoder="default").add("a banana", ids=5)
        assert notes.search("a banana", k=1).ids == [5]


def test_a_prefix_of_adapted_vectors_may_be_stored(path):
    with vecstore.open(path) as db:
        notes = db.collection("notes", encoder=AdaptedEncoder(BASE, turn()), dim=8)
        notes.add(TEXTS, ids=[1, 2, 3, 4])
    with vecstore.open(path) as db:
        notes = db.collection("notes", encoder=BASE)
        rows = turn().apply(BASE.encode(TEXTS))[:, :8].astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)

        assert notes.search("red apple", k=4).scores == pytest.approx(
            sorted(rows @ rows[0], reverse=True), abs=1e-6
        )
        assert db.check() == []
        with pytest.raises(UsageError, match="keeps 8 of the 16 numbers"):
            notes.adapt(skew())


def test_an_adapter_goes_with_its_collection(made, tmp_path):
    with vecstore.open(made) as db:
        db.rename("notes", "texts")
        db.compact()
        db.backup(tmp_path / "copy.vecstore")
        db.drop("texts")

        assert db.check() == []
        with db.reading() as reader:
            assert [key for key, _ in reader.items("meta", b"adapter/")] == []
        # A new collection has nothing of the old one.
        assert db.collection("texts", encoder=BASE).adapter is None
    with vecstore.open(tmp_path / "copy.vecstore") as copy:
        assert expected(turn()) == answer(copy.collection("texts", encoder=BASE))
        assert copy.check() == []


def test_an_index_made_anew_leaves_the_adapter(made):
    with vecstore.open(made) as db:
        notes = db.collection("notes", encoder=BASE)
        for kind in ("hash", "flat", "auto"):
            notes.reindex(kind)

            assert expected(turn()) == answer(notes)
            assert db.check() == []


def test_an_adapter_that_changes_nothing_is_not_kept(path):
    with vecstore.open(path) as db:
        notes = db.collection("notes", encoder=AdaptedEncoder(BASE, Adapter(dim=DIM)))

        assert notes.adapter is None
        assert notes.spec.fingerprint == BASE.fingerprint
        assert db.collection("plain", encoder=BASE).adapter is None
        assert db.check() == []


def test_a_creation_that_was_rolled_back_leaves_no_adapter(path):
    with vecstore.open(path) as db:
        with contextlib.suppress(ZeroDivisionError), db.transaction():
            db.collection("notes", encoder=AdaptedEncoder(BASE, turn())).add(TEXTS)
            raise ZeroDivisionError

        assert db.collections() == []
        assert db.check() == []
        assert db.collection("notes", encoder=BASE).adapter is None


# Queries of a collection that is there


@pytest.mark.parametrize("first", [None, turn()], ids=["plain", "adapted"])
def test_queries_are_adapted_and_what_is_stored_stays(path, first):
    start = first or Adapter(dim=DIM)
    with vecstore.open(path) as db:
        notes = db.collection("notes", encoder=AdaptedEncoder(BASE, start))
        notes.add(TEXTS, ids=[1, 2, 3, 4])
        vectors = notes.sample(9)
        other, spec = db.collection("notes"), notes.spec
        with db.snapshot() as view:
            notes.adapt(skew(0))
            notes.adapt(skew(1))

            whole = start @ skew(0) @ skew(1)
            assert expected(whole) == answer(notes) == answer(other)
            # As it was at its moment.
            assert expected(start) == answer(view.collection("notes"))
            assert expected(whole) == answer(notes)
        assert (notes.sample(9) == vectors).all()
        assert notes.spec.fingerprint not in (spec.fingerprint, BASE.fingerprint)
        assert db.check() == []
    with vecstore.open(path) as db:
        notes = db.collection("notes", encoder=BASE)
        assert expected(whole) == answer(notes)
        notes.adapt(None)
        assert (notes.spec, expected(start)) == (spec, answer(notes))
        assert (notes.adapter is None) == start.is_identity
        notes.adapt(None)
        assert notes.spec == spec
        assert db.check() == []


def test_another_process_sees_that_queries_are_adapted(made, run_python):
    with vecstore.open(made) as db:
        notes = db.collection("notes", encoder=BASE)
        assert expected(turn()) == answer(notes)
        run_python(f"""
            import numpy as np, vecstore
            from vecstore.encoders import Adapter, HashEncoder
            from vecstore.encoders.adapters import Affine
            matrix = np.eye({DIM}) + 0.3 * np.random.default_rng(0).normal(size=({DIM}, {DIM}))
            skew = Adapter(dim={DIM}, queries=Affine(matrix.astype(np.float32)), name="pairs")
            with vecstore.open({str(made)!r}) as db:
                db.collection("notes", encoder=HashEncoder({DIM})).adapt(skew)
        """)

        assert expected(turn() @ skew()) == answer(notes)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (turn(), "maps documents too"),
        (Adapter(dim=8, queries=Affine(np.eye(8, dtype=np.float32))), "takes vectors of 8"),
    ],
)
def test_an_adapter_that_does_not_fit_what_is_stored_is_refused(made, adapter, message):
    with vecstore.open(made) as db:
        notes = db.collection("notes", encoder=BASE)
        with pytest.raises(UsageError, match=message):
            notes.adapt(adapter)

        assert expected(turn()) == answer(notes)


def test_who_cannot_write_or_embed_cannot_adapt(made):
    with vecstore.open(made) as db:
        with pytest.raises(UsageError, match="bare vectors"):
            db.collection("points", dim=DIM).adapt(skew())
        notes = db.collection("notes", encoder=BASE)
        with db.snapshot() as view, pytest.raises(ReadOnlyError):
            view.collection("notes").adapt(skew())
        db.drop("notes")
        with pytest.raises(NotFoundError):
            notes.adapt(skew())


def test_a_rolled_back_adapter_is_not_used(made):
    with vecstore.open(made) as db:
        notes = db.collection("notes", encoder=BASE)
        with contextlib.suppress(ZeroDivisionError), db.transaction():
            notes.adapt(skew())
            assert expected(turn() @ skew()) == answer(notes)
            raise ZeroDivisionError

        assert expected(turn()) == answer(notes)


# Samples


def test_a_sample_is_of_the_records_that_live():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 5)).astype(np.float32)
    with vecstore.open(":memory:") as db:
        points = db.collection("points", dim=5)
        assert points.sample(3).shape == (0, 5)
        points.add(vectors=vectors, ids=range(300))
        points.delete(list(range(0, 300, 2)))
        everything, some = points.sample(1000), points.sample(40, seed=3)

        order = np.argsort(everything[:, 0])
        true = vectors[1::2][np.argsort(vectors[1::2, 0])]
        assert everything[order] == pytest.approx(true, rel=1e-5)
        assert (some == points.sample(40, seed=3)).all()
        assert not (some == points.sample(40, seed=4)).all()
        known = {row.tobytes() for row in everything}
        assert len({row.tobytes() for row in some} & known) == 40
        with db.transaction():
            points.delete([1])
            assert len(points.sample(1000)) == 149
        with pytest.raises(UsageError, match="count=0"):
            points.sample(0)


def test_a_sample_of_binary_vectors_is_packed():
    bits = np.random.default_rng(0).random((9, 16)) < 0.5
    with vecstore.open(":memory:") as db:
        points = db.collection("bits", dim=16, metric="hamming")
        points.add(vectors=bits)

        assert (points.sample(9) == np.packbits(bits, axis=1)).all()


# Damage


def put(db, value):
    with db.reading() as reader:
        number = vecstore.catalog.find(reader, "notes").number
    db.writing(lambda txn: txn.put("meta", layout.adapter_key(number), value(number, txn.page)))


def bundle(**changes):
    parts = {"base": BASE.fingerprint, "name": "hash", "adapter": turn().to_bytes(), **changes}
    arrays = {
        name: np.frombuffer(parts.pop(name), np.uint8)
        for name in ("adapter", "former")
        if parts.get(name)
    }
    return lambda number, page: index_layout.pack_bundle(number, parts, arrays, page)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda number, page: b"", "too few for a header"),
        (lambda number, page: bytes(4096), "not a bulk value"),
        (lambda number, page: bundle()(number + 1, page), "another value"),
        (bundle(base=None), "cannot be read"),
        (bundle(name=3), "cannot be read"),
        (bundle(adapter=None), "cannot be read"),
        (bundle(adapter=turn().to_bytes()[:-1]), "no adapter"),
        (bundle(former=b"x"), "no adapter"),
    ],
)
def test_a_damaged_adapter_is_found(made, value, message):
    with vecstore.open(made) as db:
        put(db, value)
        with pytest.raises(CorruptionError, match=message):
            db.collection("notes", encoder=BASE)

        assert any(message in str(problem) for problem in db.check())


@pytest.mark.parametrize(
    "value",
    [
        bundle(base="another"),
        bundle(adapter=turn(1).to_bytes()),
        bundle(adapter=Adapter(dim=DIM).to_bytes(), base=AdaptedEncoder(BASE, turn()).fingerprint),
        bundle(former=turn(1).to_bytes()),
    ],
)
def test_an_adapter_that_is_not_the_one_of_the_fingerprint_is_found(made, value):
    with vecstore.open(made) as db:
        put(db, value)

        assert all("(17)" in str(problem) for problem in db.check())
        assert db.check()


def test_an_adapter_of_no_collection_is_found(made):
    with vecstore.open(made) as db:
        db.writing(lambda txn: txn.put("meta", layout.adapter_key(77), b"x"))

        assert [str(problem) for problem in db.check()] == [
            "meta: key b'adapter/\\x00\\x00\\x00M' is not expected (1)"
        ]


def test_every_flipped_bit_of_an_adapter_is_noticed(made):
    with vecstore.open(made) as db:
        with db.reading() as reader:
            number = vecstore.catalog.find(reader, "notes").number
            value = bytes(reader.get("meta", layout.adapter_key(number)))
            length = layout.HEADER.size + layout.unpack_header(value, "").length
        for at in range(0, length, 29):
            flipped = value[:at] + bytes([value[at] ^ 4]) + value[at + 1 :]
            put(db, lambda number, page, flipped=flipped: flipped)
            with db.reading() as reader, pytest.raises(CorruptionError):
                attached.read(reader, number)
