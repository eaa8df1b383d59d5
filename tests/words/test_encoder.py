import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_models import fasttext, subword_vector, text, write

import vecstore
from vecstore.errors import EncoderError, EncoderMismatchError, UsageError
from vecstore.words import WordVectors, convert, encoder, lookup, tokens

WORDS = ["the", "of", "cat", "dog", "king", "queen"]
BUCKETS = 30
TEXTS = st.lists(
    st.lists(st.sampled_from([*WORDS, "THE", "unheard", "cat-king"]), min_size=1, max_size=9)
    .filter(lambda words: set(words) != {"unheard"})
    .map(" ".join),
    min_size=1,
    max_size=9,
)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(3).normal(size=(len(WORDS), 5)).astype(np.float32)


@pytest.fixture(scope="module")
def words(vectors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    with vecstore.open(folder / "words.vecstore") as db:
        convert(write(folder / "file", text(WORDS, vectors)), db)
        found = WordVectors(db)
        found.fit_idf(["the cat", "the dog", "of the king"])
        yield found
        assert db.check() == []


def pieces(one):
    return [
        word
        for token in one.split()
        for word in (token.split("-") if "-" in token else [token.lower()])
        if word in WORDS
    ]


def sif(word):
    # By Zipf's law over six ranks.
    share = 1 / ((WORDS.index(word) + 1) * (math.log(6) + 0.5772156649))
    return 1e-3 / (1e-3 + share)


def idf(word):
    documents = {"the": 3, "cat": 1, "dog": 1, "of": 1, "king": 1}.get(word, 0)
    return 1 + math.log(4 / (1 + documents))


def expected(one, pooling, vectors):
    found = pieces(one)
    rows = vectors[[WORDS.index(word) for word in found]].astype(np.float64)
    if pooling == "minmax":
        return np.concatenate([rows.min(axis=0), rows.max(axis=0)])
    weights = np.array([{"sif": sif, "idf": idf}.get(pooling, lambda word: 1)(w) for w in found])
    return weights @ rows / weights.sum()


@pytest.mark.parametrize("pooling", ["sif", "idf", "mean", "minmax"])
@given(texts=TEXTS)
def test_a_text_is_pooled_from_its_words(words, vectors, pooling, texts):
    made = words.encoder(pooling)

    found = made.encode(texts)

    assert found.shape == (len(texts), made.dim)
    assert found.dtype == np.float32
    wanted = [expected(one, pooling, vectors) for one in texts]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    # Neither other texts, nor what is remembered, changes a bit.
    alone = np.concatenate([words.encoder(pooling).encode([one]) for one in texts])
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(found, made.encode(texts, "query"))


def test_little_memory_gives_the_same(words, monkeypatch):
    texts = [f"{a} {b}" for a in WORDS for b in WORDS]
    plain = words.encoder().encode(texts)
    monkeypatch.setattr(tokens, "TEXTS", 3)
    monkeypatch.setattr(lookup, "UNKNOWN", 2)
    monkeypatch.setattr(encoder, "REMEMBERED", 1100)

    np.testing.assert_array_equal(words.encoder().encode(texts), plain)


@pytest.mark.parametrize("pooling", ["sif", "minmax"])
def test_a_long_text_is_pooled_in_pieces(words, vectors, monkeypatch, pooling):
    one = " ".join(WORDS * 5)
    monkeypatch.setattr(encoder, "POOLED", 4)

    found = words.encoder(pooling).encode(["cat", one, "dog"])[1]

    np.testing.assert_allclose(found, expected(one, pooling, vectors), rtol=1e-5)


def test_weights_follow_counts_where_the_file_has_them(tmp_path, db, rng):
    matrix = rng.normal(size=(3 + BUCKETS, 4)).astype(np.float32)
    path = write(tmp_path / "file.bin", fasttext(WORDS[:3], matrix, buckets=BUCKETS))
    convert(path, db)
    words = WordVectors(db)

    found = words.encoder().encode(["the catlike cat"])[0]

    weights = [1e-3 / (1e-3 + 1000 / 2997), 1.0, 1e-3 / (1e-3 + 998 / 2997)]
    rows = [
        subword_vector(word, matrix, WORDS[:3], BUCKETS, 3, 6) for word in ("the", "catlike", "cat")
    ]
    np.testing.assert_allclose(found, np.average(rows, axis=0, weights=weights), rtol=1e-5)


def test_words_that_a_user_added_count_as_rare(tmp_path, db, vectors):
    convert(write(tmp_path / "file", text(WORDS, vectors)), db)
    words = WordVectors(db)
    words.collection.add(vectors=[[1, 2, 3, 4, 5]], ids=["vecstore"])

    found = words.encoder().encode(["the vecstore"])[0]

    weight = sif("the")
    np.testing.assert_allclose(
        found, (weight * vectors[0] + np.arange(1, 6)) / (1 + weight), rtol=1e-5
    )


@pytest.mark.parametrize("bad", ["unheard of-it-not", "!!! ...", "\U0001f600"])
def test_a_text_without_a_known_word_is_named(words, bad):
    texts = ["the cat", "cat", bad.replace("of", "xx")]

    with pytest.raises(UsageError, match="text 2 has no word that 'words' knows"):
        words.encoder().encode(texts)
    for pooling in ("sif", "mean", "minmax"):
        with pytest.raises(UsageError, match="text 0 has no word that 'words' knows"):
            words.encoder(pooling).encode(texts[2:])


@pytest.mark.parametrize("bad", ["", " \n", 3, None, "\ud800"])
def test_what_is_no_text_is_refused(words, bad):
    with pytest.raises(UsageError, match="text 1"):
        words.encoder().encode(["the cat", bad])
    with pytest.raises(UsageError, match="list of texts"):
        words.encoder().encode("the cat")
    with pytest.raises(UsageError, match="kind="):
        words.encoder().encode(["cat"], "passage")


def test_words_that_cancel_out_are_refused(tmp_path, db):
    convert(write(tmp_path / "file", b"up 1 2\ndown -1 -2\n"), db)

    with pytest.raises(EncoderError, match="text 0 cancel out: 'up down'"):
        WordVectors(db).encoder("mean").encode(["up down"])


def test_no_texts_give_no_vectors(words):
    assert words.encoder("minmax").encode([]).shape == (0, 10)


def test_the_fingerprint_tells_words_pooling_and_weights(tmp_path, db, vectors):
    convert(write(tmp_path / "file", text(WORDS, vectors)), db, "one")
    convert(write(tmp_path / "file", text(WORDS, vectors)), db, "same")
    convert(write(tmp_path / "file", text(WORDS, vectors)), db, "half", precision="float16")
    convert(write(tmp_path / "file", text(WORDS, vectors[::-1])), db, "other")
    one = WordVectors(db, "one")

    def marks(name):
        return [WordVectors(db, name).encoder(one).fingerprint for one in ("sif", "mean", "minmax")]

    assert marks("one") == marks("same")
    found = [*marks("one"), *marks("half"), *marks("other")]
    for texts in (["the cat"], ["the dog"]):
        one.fit_idf(texts)
        found.append(one.encoder("idf").fingerprint)
    assert len(set(found)) == len(found)
    assert marks("one") == found[:3]


def test_idf_needs_a_count(tmp_path, db, vectors):
    convert(write(tmp_path / "file", text(WORDS, vectors)), db)

    with pytest.raises(UsageError, match=r"call words.fit_idf\(texts\) first"):
        WordVectors(db).encoder("idf")


def test_a_pooling_must_be_there_and_fit(tmp_path, db, words):
    with pytest.raises(UsageError, match="pooling='max' is unknown"):
        words.encoder("max")
    wide = np.ones((1, 5000), np.float32)
    convert(write(tmp_path / "file", text(["a"], wide)), db)
    with pytest.raises(UsageError, match="makes 10000 numbers, over 8192"):
        WordVectors(db).encoder("minmax")


def test_threads_may_share_it(words, monkeypatch):
    texts = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]
    plain = words.encoder().encode(texts)
    # So little is remembered that it is forgotten all the time.
    monkeypatch.setattr(encoder, "REMEMBERED", 1600)
    shared = words.encoder()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(shared.encode, [texts[i::8] for i in range(8)] * 3))

    for i, vectors in enumerate(found):
        np.testing.assert_array_equal(vectors, plain[i % 8 :: 8])


def test_a_collection_takes_it_as_its_encoder(tmp_path, db, vectors):
    convert(write(tmp_path / "file", text(WORDS, vectors)), db)
    words = WordVectors(db)
    made = words.encoder("mean")
    notes = db.collection("notes", encoder=made)
    notes.add(["the king of cat", "dog"], ids=["king", "dog"])
    with db.transaction():
        notes.add(["queen"], ids=["queen"])

    assert notes.search("Dog!", k=1).ids == ["dog"]
    assert notes.search("Queen", k=1).ids == ["queen"]
    assert (notes.spec.dim, notes.spec.encoder) == (5, "words-mean")
    assert isinstance(made, vecstore.Encoder)
    with pytest.raises(EncoderMismatchError):
        db.collection("notes", encoder=words.encoder("sif"))
