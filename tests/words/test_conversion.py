import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_models import fasttext, headed, subword_vector, text, word2vec, write

import vecstore
from vecstore.errors import (
    AlreadyExistsError,
    EncoderError,
    SpecError,
    StoreError,
    UsageError,
    VectorError,
)
from vecstore.words import WordVectors, conversion, convert, files

WORDS = ["the", "of", "Ärger", "日本", "a"]
BUCKETS = 40


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(5, 4)).astype(np.float32)


def stored(db, name="words"):
    """The records of the words, in their order."""
    return list(db.collection(name).scan(include=("metadata", "vector")))


def test_each_word_becomes_a_record(tmp_path, db, vectors):
    done = convert(write(tmp_path / "file", text(WORDS, vectors)), db)

    records = stored(db)
    assert [record.id for record in records] == WORDS
    assert [record.metadata for record in records] == [{"rank": i} for i in range(1, 6)]
    np.testing.assert_allclose([record.vector for record in records], vectors, rtol=1e-6)
    assert (done.words, done.dim, done.kind, done.skipped) == (5, 4, "text", {})
    assert db.collections() == ["words", "words.extra"]


def test_the_same_words_have_the_same_digest_whatever_their_form(tmp_path, db, vectors):
    forms = {form(WORDS, vectors) for form in (text, headed, word2vec)}
    forms.add(fasttext(WORDS, vectors, maxn=0))
    digests = {
        convert(write(tmp_path / "file", data), db, f"words{i}").digest
        for i, data in enumerate(forms)
    }
    other = convert(write(tmp_path / "file", text(WORDS, vectors[::-1])), db, "other").digest
    fewer = convert(write(tmp_path / "file", text(WORDS, vectors)), db, "fewer", limit=4).digest

    assert len(digests) == 1
    assert len(digests | {other, fewer}) == 3


def test_a_path_is_opened_and_closed(tmp_path, path, vectors):
    convert(write(tmp_path / "file", text(WORDS, vectors)), path, "english")

    with vecstore.open(path) as db:
        assert len(WordVectors(db, "english")) == 5


def test_what_cannot_be_stored_is_counted_and_ranks_stay(tmp_path, db, rng):
    words = ["a", "b", b"\xff\xfe", "a", "", "x" * 507, "c", "b", "y" * 506]
    vectors = rng.normal(size=(9, 3)).astype(np.float32)
    vectors[1] = 0

    done = convert(write(tmp_path / "file", word2vec(words, vectors)), db)

    assert done.skipped == {"not UTF-8": 1, "duplicate": 1, "empty": 1, "long": 1, "zero": 1}
    found = [(record.id, record.metadata["rank"]) for record in stored(db)]
    assert found == [("a", 1), ("c", 7), ("b", 8), ("y" * 506, 9)]


@given(st.lists(st.sampled_from("abcdeABCDE"), min_size=1, max_size=40), st.booleans())
def test_the_first_of_the_same_words_is_kept(tmp_path, memory, words, lower):
    vectors = np.random.default_rng(0).normal(size=(len(words), 3)).astype(np.float32)
    path = write(tmp_path / "file", text(words, vectors))
    for name in memory.collections():
        memory.drop(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BATCH", 3)
        done = convert(path, memory, lower=lower)

    expected = {}
    for rank, word in enumerate(words, 1):
        expected.setdefault(word.lower() if lower else word, rank)
    assert {record.id: record.metadata["rank"] for record in stored(memory)} == expected
    assert done.skipped == (
        {"duplicate": len(words) - len(expected)} if len(expected) < len(words) else {}
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("form", [text, word2vec])
def test_numbers_that_are_not_finite_are_refused(tmp_path, db, vectors, bad, form):
    wide = vectors.astype(np.float64)
    wide[3, 2] = bad
    with np.errstate(over="ignore"):
        data = form(WORDS, wide)

    with pytest.raises(
        EncoderError, match=r"word 4 of the file, '日本', has the number -?(nan|inf)"
    ):
        convert(write(tmp_path / "file", data), db)
    assert db.collections() == []


def test_a_model_of_fasttext_keeps_counts_and_ngrams(tmp_path, db, rng):
    matrix = rng.normal(size=(5 + BUCKETS, 4)).astype(np.float32)
    data = fasttext(WORDS, matrix, buckets=BUCKETS, minn=2, maxn=3)

    done = convert(write(tmp_path / "file.bin", data), db)

    assert (done.words, done.ngrams, done.kind) == (5, BUCKETS, "fasttext")
    assert [record.metadata for record in stored(db)] == [
        {"rank": i + 1, "count": 1000 - i} for i in range(5)
    ]
    words = WordVectors(db)
    for word in [*WORDS, "Ärgernis", "unknown", "x"]:
        expected = subword_vector(word, matrix, WORDS, BUCKETS, 2, 3)
        np.testing.assert_allclose(words[word], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("subwords", ["used", "none"])
def test_fewer_ngrams_may_be_kept(tmp_path, db, rng, subwords):
    matrix = rng.normal(size=(5 + BUCKETS, 4)).astype(np.float32)
    path = write(tmp_path / "file.bin", fasttext(WORDS, matrix, buckets=BUCKETS))

    done = convert(path, db, limit=1, subwords=subwords)

    # <the> has 6 n-grams of 3 to 5 letters.
    assert 0 < done.used <= 6
    assert done.ngrams == (done.used if subwords == "used" else 0)
    words = WordVectors(db)
    if subwords == "used":
        assert words["other"].shape == (4,)
    else:
        with pytest.raises(vecstore.NotFoundError):
            words["other"]


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_vectors_may_be_stored_shorter(tmp_path, db, rng, precision):
    matrix = rng.normal(size=(5 + BUCKETS, 4)).astype(np.float32)
    path = write(tmp_path / "file.bin", fasttext(WORDS, matrix, buckets=BUCKETS))

    convert(path, db, precision=precision)

    assert {db.collection(name).spec.precision for name in db.collections()} == {precision}
    expected = subword_vector("mother", matrix, WORDS, BUCKETS, 3, 6)
    np.testing.assert_allclose(WordVectors(db)["mother"], expected, atol=0.02)


def test_a_file_may_have_any_name(tmp_path, db, vectors):
    convert(write(tmp_path / "\udcff.txt", text(WORDS, vectors)), db)

    assert WordVectors(db).about["file"] == "?.txt"


def test_a_file_that_breaks_off_leaves_nothing(tmp_path, db, rng, monkeypatch):
    monkeypatch.setattr(files, "BATCH", 4)
    vectors = rng.normal(size=(20, 3)).astype(np.float32)
    data = headed([f"w{i}" for i in range(20)], vectors)
    path = write(tmp_path / "file", data[: len(data) // 2])

    with pytest.raises(EncoderError):
        convert(path, db)

    assert db.collections() == []


def test_what_a_killed_conversion_left_is_replaced(tmp_path, db, vectors):
    name = "words" + conversion.UNFINISHED
    left = db.collection(name, dim=3)
    left.add(vectors=[[1, 2, 3]], ids=["the"])
    db.collection(conversion.extra_name(name), dim=3, metric="dot")

    convert(write(tmp_path / "file", text(WORDS, vectors)), db)

    assert db.collections() == ["words", "words.extra"]
    assert len(db.collection("words")) == 5


def test_a_collection_of_the_users_is_not_taken_for_one_that_was_left(tmp_path, db, vectors):
    path = write(tmp_path / "file", text(WORDS, vectors))
    own = db.collection("words" + conversion.UNFINISHED, dim=2)
    own.add(vectors=[[1, 2]], ids=["mine"])

    with pytest.raises(AlreadyExistsError, match=r"'words\.unfinished' exists"):
        convert(path, db)
    with pytest.raises(UsageError, match=r"name='x\.unfinished'"):
        convert(path, db, "x.unfinished")

    assert own.get("mine") is not None
    assert db.collections() == ["words.unfinished"]


def test_a_text_file_may_begin_with_a_byte_order_mark(tmp_path, db, vectors):
    plain = write(tmp_path / "plain", text(WORDS, vectors))
    marked = write(tmp_path / "marked", b"\xef\xbb\xbf" + plain.read_bytes())

    found = [convert(path, db, path.name) for path in (plain, marked)]

    assert found[0].digest == found[1].digest


def test_words_that_are_too_long_take_no_time_and_no_room(tmp_path, db, rng):
    """Their n-grams would be of any number, and as long as they are."""
    words = ["short", "x" * 20_000, "y" * 600_000]
    model = fasttext(words, rng.normal(size=(3 + BUCKETS, 4)), buckets=BUCKETS, maxn=400)

    found = convert(write(tmp_path / "model", model), db)

    assert (found.words, found.skipped) == (1, {"long": 2})


@pytest.mark.parametrize("taken", ["words", "words.extra"])
def test_a_name_that_is_taken_is_refused(tmp_path, db, vectors, taken):
    db.collection(taken, dim=3)

    with pytest.raises(AlreadyExistsError, match=f"'{taken}' exists already"):
        convert(write(tmp_path / "file", text(WORDS, vectors)), db)


def test_wrong_arguments_are_refused(tmp_path, db, vectors):
    path = write(tmp_path / "file", text(WORDS, vectors))
    for wrong, message in (
        ({"limit": 0}, "limit=0"),
        ({"kind": "glove"}, "kind='glove'"),
        ({"subwords": "some"}, "subwords='some'"),
        ({"name": ""}, "must not be empty"),
        ({"name": "x" * 240}, "at most 255 bytes"),
    ):
        with pytest.raises(UsageError, match=message):
            convert(path, db, **wrong)
    with pytest.raises(SpecError, match="precision="):
        convert(path, db, precision="half")
    with db.transaction(), pytest.raises(StoreError, match=r"inside db.transaction\(\)"):
        convert(path, db)
    assert db.collections() == []


def test_a_file_that_is_only_read_is_refused(tmp_path, path, vectors):
    vecstore.open(path).close()

    with vecstore.open(path, read_only=True) as db, pytest.raises(vecstore.ReadOnlyError):
        convert(write(tmp_path / "file", text(WORDS, vectors)), db)


def test_a_file_without_a_word_that_can_be_stored_is_refused(tmp_path, db):
    with pytest.raises(EncoderError, match=r"none of the 2 words .* \(zero: 2\)"):
        convert(write(tmp_path / "file", b"a 0 0 0\nb 0 0 0\n"), db)
    with pytest.raises(EncoderError, match="none of the 0 words"):
        convert(write(tmp_path / "file", b"0 3\n"), db)


def test_ngrams_that_are_no_numbers_are_refused(tmp_path, db, rng):
    matrix = rng.normal(size=(5 + BUCKETS, 4)).astype(np.float32)
    matrix[9] = np.nan
    data = fasttext(WORDS, matrix, buckets=BUCKETS, minn=30, maxn=31)

    with pytest.raises(EncoderError, match="n-gram's vector holds NaN"):
        convert(write(tmp_path / "file.bin", data), db)
    matrix[9] = 1e30
    data = fasttext(WORDS, matrix, buckets=BUCKETS, minn=30, maxn=31)
    with pytest.raises(VectorError, match="length"):
        convert(write(tmp_path / "file.bin", data), db)
    assert db.collections() == []
