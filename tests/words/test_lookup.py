from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_models import fasttext, subword_vector, text, write

import vecstore
from vecstore.errors import NotFoundError, ReadOnlyError, UsageError
from vecstore.words import WordVectors, convert
from vecstore.words.tokens import tokens

LETTERS = "abcdefghijklmnopqrst"
N, DIM, BUCKETS = 60, 6, 50


@pytest.fixture(scope="module")
def made():
    """Words of one to three letters, and their vectors."""
    rng = np.random.default_rng(7)
    words = sorted({"".join(rng.choice(list(LETTERS), rng.integers(1, 4))) for _ in range(90)})[:N]
    return words, rng.normal(size=(N, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def words(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    with vecstore.open(folder / "words.vecstore") as db:
        convert(write(folder / "file", text(*made)), db)
        yield WordVectors(db)
        assert db.check() == []


@pytest.fixture
def model(tmp_path, db, rng):
    """A model of fastText, its matrix, and its words."""
    known = ["the", "Rome", "cat"]
    matrix = rng.normal(size=(len(known) + BUCKETS, 4)).astype(np.float32)
    path = write(tmp_path / "file.bin", fasttext(known, matrix, buckets=BUCKETS))
    convert(path, db)
    return WordVectors(db), matrix, known


def unit(vectors):
    wide = np.asarray(vectors, np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


def ranked(made, scores, without, k):
    """The oracle: the best words by their scores."""
    best = [made[0][i] for i in np.argsort(-scores, kind="stable")]
    return [word for word in best if word not in without][:k]


def test_a_word_has_its_vector(made, words):
    assert len(words) == N
    assert words.dim == DIM
    assert made[0][3] in words
    assert "unheard" not in words
    assert 3 not in words
    np.testing.assert_allclose(words[made[0][3]], made[1][3], rtol=1e-6)


@given(st.lists(st.integers(0, N - 1), max_size=20))
def test_many_words_have_theirs_in_order(made, words, places):
    found = words.vectors([made[0][i] for i in places])

    assert found.shape == (len(places), DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, made[1][places], rtol=1e-6)


def test_words_that_are_not_there_are_named(words, made):
    with pytest.raises(NotFoundError, match="has no vector for 'unheard', 'of'"):
        words.vectors([made[0][0], "unheard", "of"])
    with pytest.raises(NotFoundError):
        words["x" * 600]
    with pytest.raises(UsageError, match="one str"):
        words.vectors("king")
    with pytest.raises(UsageError, match="a word is a str, got int"):
        words.vectors([3])
    with pytest.raises(UsageError, match="lone surrogate"):
        words["\ud800"]


@given(
    st.lists(st.integers(0, N - 1), min_size=1, max_size=3),
    st.lists(st.integers(0, N - 1), max_size=2),
    st.integers(1, N + 5),
)
def test_similar_words_are_nearest_to_the_sum(made, words, positive, negative, k):
    target = unit(made[1][positive]).sum(axis=0) - unit(made[1][negative]).sum(axis=0)
    given_words = {made[0][i] for i in positive + negative}
    if np.linalg.norm(target) < 1e-5:
        return
    scores = unit(made[1]) @ unit(target)

    hits = words.most_similar([made[0][i] for i in positive], [made[0][i] for i in negative], k)

    assert hits.ids == ranked(made, scores, given_words, k)
    by_word = dict(zip(made[0], scores, strict=True))
    np.testing.assert_allclose(hits.scores, [by_word[word] for word in hits.ids], atol=1e-5)
    assert hits.complete == ("exact" if k <= N - len(given_words) else "exhausted")


def test_a_word_or_vectors_may_be_asked_with(made, words):
    first, vector = made[0][0], made[1][0]

    near = words.most_similar(first, k=3)

    assert words.most_similar([vector], k=4).ids == [first, *near.ids]
    assert words.most_similar([vector * 5, first], k=3).ids == near.ids
    assert words.most_similar([first], [], 3, where={"rank": {"$gt": 30}}).ids == ranked(
        (made[0][30:], None), unit(made[1][30:]) @ unit(vector), {first}, 3
    )


def test_nothing_cannot_be_asked_with(words):
    with pytest.raises(UsageError, match="give a word"):
        words.most_similar([])
    with pytest.raises(UsageError, match="positive is 3"):
        words.most_similar(3)
    with pytest.raises(UsageError, match="k=0"):
        words.most_similar("a", k=0)
    with pytest.raises(NotFoundError, match="'unheard'"):
        words.most_similar("unheard")


@given(st.lists(st.integers(0, N - 1), min_size=3, max_size=3, unique=True))
def test_analogies_by_sums_and_by_products(made, words, places):
    a, b, c = (made[0][i] for i in places)
    cosines = unit(made[1]) @ unit(made[1][places]).T
    products = (cosines + 1) / 2
    by_products = products[:, 1] * products[:, 2] / (products[:, 0] + 0.001)

    added = words.analogy(a, b, c, 5)
    multiplied = words.analogy(a, b, c, 5, method="mul")

    assert added.ids == ranked(made, cosines @ [-1, 1, 1], {a, b, c}, 5)
    assert multiplied.ids == ranked(made, by_products, {a, b, c}, 5)
    np.testing.assert_allclose(
        multiplied.scores, [by_products[made[0].index(word)] for word in multiplied.ids], rtol=1e-4
    )


def test_an_unknown_method_is_refused(words):
    with pytest.raises(UsageError, match="method='multiply'"):
        words.analogy("a", "b", "c", method="multiply")


@given(st.lists(st.integers(0, N - 1), min_size=3, max_size=6, unique=True))
def test_the_odd_one_is_farthest_from_the_mean(made, words, places):
    directions = unit(made[1][places])
    worst = places[int(np.argmin(directions @ directions.mean(axis=0)))]

    assert words.doesnt_match([made[0][i] for i in places]) == made[0][worst]


def test_one_word_is_not_odd(words, made):
    with pytest.raises(UsageError, match="one among several"):
        words.doesnt_match(made[0][:1])


def test_one_vector_is_asked_with_as_it_is(words, made):
    vector = words[made[0][3]]

    assert words.most_similar(vector, k=4).ids == words.most_similar([vector], k=4).ids
    assert words.most_similar(np.array(made[0][:2]), k=4).ids == (
        words.most_similar(made[0][:2], k=4).ids
    )
    assert words.most_similar(vector.tolist(), k=4).ids == words.most_similar(vector, k=4).ids
    with pytest.raises(UsageError, match="positive is b'cat'; a word is a str"):
        words.most_similar(b"cat")
    with pytest.raises(UsageError, match="a word is a str, got NoneType"):
        words.analogy(made[0][0], made[0][1], None)


def test_similarity_is_the_cosine(words, made):
    expected = unit(made[1][0]) @ unit(made[1][1])

    assert words.similarity(*made[0][:2]) == pytest.approx(expected, abs=1e-6)


def test_words_that_are_not_stored_are_made_of_ngrams(model):
    words, matrix, known = model

    for word in ("cats", "Romans", "日本", "\u00e9t\u00e9"):
        assert word not in words
        expected = subword_vector(word, matrix, known, BUCKETS, 3, 6)
        np.testing.assert_allclose(words[word], expected, rtol=1e-5, atol=1e-6)
    assert words.most_similar("cats", k=2).ids == words.most_similar([words["cats"]], k=2).ids


def test_a_word_too_short_for_ngrams_has_no_vector(tmp_path, db, rng):
    matrix = rng.normal(size=(1 + BUCKETS, 4)).astype(np.float32)
    data = fasttext(["the"], matrix, buckets=BUCKETS, minn=4, maxn=6)
    convert(write(tmp_path / "file.bin", data), db)
    words = WordVectors(db)

    assert words["ab"].shape == (4,)
    for word in ("a", "", "x" * 507):
        with pytest.raises(NotFoundError):
            words[word]


def find(words, *wanted):
    return [[found.word for found in words.find([token])[token]] for token in wanted]


def test_tokens_are_found_as_they_are_in_lower_case_or_in_parts(tmp_path, db, rng):
    known = ["rome", "Rome", "cat", "state-of-the-art", "part", "of", "New", "y" * 506]
    vectors = rng.normal(size=(len(known), 4)).astype(np.float32)
    convert(write(tmp_path / "file", text(known, vectors)), db)
    words = WordVectors(db)

    assert find(words, "Rome", "ROME", "CAT", "State-of-the-Art", "unheard", "z" * 600) == [
        *(["Rome"], ["rome"], ["cat"], ["state-of-the-art"], [], []),
    ]
    assert find(words, "part-of-Cat", "part_of", "New-unheard", "cat's") == [
        *(["part", "of", "cat"], ["part", "of"], ["New"], ["cat"]),
    ]


def test_what_is_not_found_is_made_of_ngrams(model):
    words, matrix, known = model

    (whole,) = words.find(["Rome-like"])["Rome-like"][:1]
    parts = words.find(["Rome-like"])["Rome-like"]
    (joined,) = words.find(["far-off"])["far-off"]

    assert whole.word == "Rome"
    assert [found.word for found in parts] == ["Rome", None]
    for found, word in ((parts[1], "like"), (joined, "far-off")):
        expected = subword_vector(word, matrix, known, BUCKETS, 3, 6)
        np.testing.assert_allclose(found.vector, expected, rtol=1e-5, atol=1e-6)


def test_ngrams_are_those_of_lower_case_where_the_words_are(tmp_path, db, rng):
    matrix = rng.normal(size=(1 + BUCKETS, 4)).astype(np.float32)
    convert(write(tmp_path / "file.bin", fasttext(["the"], matrix, buckets=BUCKETS)), db)
    words = WordVectors(db)

    (found,) = words.find(["CATS"])["CATS"]

    np.testing.assert_array_equal(found.vector, words["cats"])


def test_a_view_answers_as_the_database_does(tmp_path, db, made):
    convert(write(tmp_path / "file", text(*made)), db)
    with db.snapshot() as view:
        words = WordVectors(view)
        expected = WordVectors(db).most_similar(made[0][0])

        assert words.most_similar(made[0][0]).ids == expected.ids
        with pytest.raises(ReadOnlyError):
            words.fit_idf(["a text"])


def test_there_must_be_word_vectors(db):
    db.collection("words", dim=3)
    for name in ("words", "others"):
        with pytest.raises(NotFoundError, match=f"no word vectors '{name}'"):
            WordVectors(db, name)
    assert db.collections() == ["words"]


def test_documents_are_counted_once_a_text(tmp_path, db, made):
    convert(write(tmp_path / "file", text(*made)), db)
    words = WordVectors(db)
    texts = [" ".join(made[0][i : i + 4]) for i in range(9)] + [f"{made[0][0].upper()} unheard"]
    texts[1] += f" {made[0][1]} {made[0][1].upper()}"

    assert words.fit_idf(iter(texts)) == 10

    expected = Counter()
    for one in texts:
        expected.update({token.lower() for token in tokens(one)} - {"unheard"})
    found = {record.id: record.metadata for record in words.collection.scan()}
    assert {word: item["documents"] for word, item in found.items() if "documents" in item} == (
        expected
    )
    assert found[made[0][0]]["rank"] == 1
    assert words.about["idf"]["texts"] == 10


def test_a_new_count_replaces_the_former_one(tmp_path, db, made):
    convert(write(tmp_path / "file", text(*made)), db)
    words = WordVectors(db)
    words.fit_idf([made[0][0], made[0][1]])
    words.fit_idf([made[0][1]])

    counts = [words.collection.get(word).metadata["documents"] for word in made[0][:2]]
    assert counts == [None, 1]


def test_nothing_cannot_be_counted(words):
    for wrong in ([], "a text", [""], [3]):
        with pytest.raises(UsageError):
            words.fit_idf(wrong)
    assert "idf" not in words.about
