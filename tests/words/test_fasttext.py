import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_models import fasttext, subword_vector, write

from vecstore.errors import EncoderError
from vecstore.spec import MAX_ID_BYTES
from vecstore.words import fasttext as models
from vecstore.words import files
from vecstore.words.fasttext import FastTextFile

WORDS = ["the", "</s>", "of", "Ärger", "日本", "a"]
BUCKETS, DIM = 50, 4


@pytest.fixture
def matrix(rng):
    return rng.normal(size=(len(WORDS) + BUCKETS, DIM)).astype(np.float32)


def read(path, limit=None):
    source = FastTextFile(path)
    batches = list(source.batches(limit))
    return (
        source,
        [word for batch in batches for word in batch.words],
        np.concatenate([batch.vectors for batch in batches]),
        [count for batch in batches for count in batch.counts],
    )


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(("minn", "maxn"), [(3, 6), (1, 2), (2, 40), (0, 0)])
def test_vectors_of_words_are_means_with_those_of_their_ngrams(
    tmp_path, matrix, minn, maxn, compress
):
    data = fasttext(WORDS, matrix, buckets=BUCKETS, minn=minn, maxn=maxn)
    source, words, vectors, counts = read(write(tmp_path / "file.bin", compress(data)))

    expected = [subword_vector(word, matrix, WORDS, BUCKETS, minn, maxn) for word in WORDS]
    assert [word.decode() for word in words] == WORDS
    assert counts == [1000 - place for place in range(len(WORDS))]
    assert source.buckets == (BUCKETS if maxn else 0)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)


def test_batches_of_any_size_give_the_same(tmp_path, rng, monkeypatch):
    words = [f"word{i * 37}" for i in range(40)]
    matrix = rng.normal(size=(len(words) + BUCKETS, DIM)).astype(np.float32)
    path = write(tmp_path / "file.bin", fasttext(words, matrix, buckets=BUCKETS))
    _, _, expected, _ = read(path)
    monkeypatch.setattr(models, "BATCH", 7)
    monkeypatch.setattr(models, "CHUNK", 11)
    monkeypatch.setattr(models, "_GATHERED", 3)

    source, found, vectors, _ = read(path)

    assert [word.decode() for word in found] == words
    np.testing.assert_array_equal(vectors, expected)
    assert sum(len(buckets) for buckets, _ in source.ngrams(False)) == BUCKETS


def test_ngrams_are_the_rows_behind_the_words(tmp_path, matrix):
    path = write(tmp_path / "file.bin", fasttext(WORDS, matrix, buckets=BUCKETS))
    source, *_ = read(path, 1)

    ((buckets, vectors),) = source.ngrams(False)
    ((used, some),) = source.ngrams(True)

    assert buckets.tolist() == list(range(BUCKETS))
    np.testing.assert_array_equal(vectors, matrix[len(WORDS) :])
    assert 0 < len(used) <= 6
    np.testing.assert_array_equal(some, vectors[used])


def test_labels_are_left_out(tmp_path, matrix):
    data = fasttext(WORDS, matrix[:6], maxn=0, labels=["__label__a", "__label__b"], model=3)
    _, words, vectors, _ = read(write(tmp_path / "file.bin", data))

    assert len(words) == 6
    np.testing.assert_array_equal(vectors, matrix[:6])


def test_an_old_classifier_has_no_ngrams_whatever_it_says(tmp_path, matrix):
    data = fasttext(WORDS, matrix, buckets=BUCKETS, model=3, version=11)
    source, _, vectors, _ = read(write(tmp_path / "file.bin", data))

    assert source.buckets == 0
    np.testing.assert_array_equal(vectors, matrix[:6])


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"magic": 100}, "not with fastText's mark"),
        ({"version": 13}, "version 13"),
        ({"version": 1}, "version 1,"),
        ({"dim": 0}, "vectors of 0 numbers"),
        ({"dim": -1}, "vectors of -1 numbers"),
        ({"dim": 7}, "its matrix is"),
        ({"pruned": 3}, "quantized"),
        ({"pruned": 0}, "quantized"),
        ({"quantized": True}, "quantized"),
        ({"entries": 2**31 - 1, "n_words": 2**31 - 1}, "dictionary ends after"),
        ({"entries": -1}, "entries"),
        ({"n_words": 5}, "5 words and 0 labels"),
        ({"shape": (2**62, 4)}, "rows, for 6 words"),
        ({"shape": (-1, 4)}, "its matrix is"),
        ({"shape": (5, 4)}, "its matrix is"),
        ({"buckets": 51}, "and 51 buckets"),
        ({"buckets": 0}, "characters in 0 buckets"),
        ({"buckets": -1}, "buckets"),
        ({"minn": -1}, "n-grams of -1"),
        ({"kinds": [0, 0, 1, 0, 0, 0]}, "a label among its words"),
    ],
)
def test_a_model_that_lies_is_refused(tmp_path, matrix, odd, message):
    options = {"buckets": BUCKETS, **odd}
    path = write(tmp_path / "file.bin", fasttext(WORDS, matrix, **options))

    with pytest.raises(EncoderError, match=message):
        read(path)


def test_a_large_matrix_is_not_allocated(tmp_path):
    few = np.ones((6, DIM), np.float32)
    shape = (6 + 2**31 - 1, DIM)
    data = fasttext(WORDS, few, buckets=2**31 - 1, shape=shape)

    for compress in (bytes, gzip.compress):
        with pytest.raises(EncoderError, match=r"cut off: its matrix takes 34,359,738,448 bytes"):
            read(write(tmp_path / "file.bin", compress(data)))


@given(st.data())
def test_a_model_that_is_cut_off_anywhere_is_refused(tmp_path, matrix, data):
    whole = fasttext(WORDS, matrix, buckets=BUCKETS)
    end = len(whole) - 1 - 16 - 4 * DIM
    size = data.draw(st.integers(1, end - 1))

    for compress in (bytes, gzip.compress):
        path = write(tmp_path / "file.bin", compress(whole[:size]))
        with pytest.raises(EncoderError):
            read(path)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path, matrix, place, value):
    data = bytearray(fasttext(WORDS, matrix, buckets=BUCKETS))
    data[place] = value
    path = write(tmp_path / "file.bin", bytes(data))
    try:
        source, words, vectors, _ = read(path, 3)
    except EncoderError:
        return

    assert len(words) == len(vectors) <= 3
    assert source.dim == DIM


def test_an_entry_without_an_end_is_refused(tmp_path, matrix, monkeypatch):
    monkeypatch.setattr(models, "MAX_WORD", 100)
    monkeypatch.setattr(models, "CHUNK", 50)
    words = ["x" * 500, *WORDS[1:]]
    path = write(tmp_path / "file.bin", fasttext(words, matrix, buckets=BUCKETS))

    with pytest.raises(EncoderError, match="dictionary ends after 0"):
        read(path)


def test_an_enormous_entry_takes_no_time(tmp_path, matrix):
    # Read byte by byte it would take minutes.
    words = ["x" * (files.MAX_WORD - 100), *WORDS[1:]]
    path = write(tmp_path / "file.bin", fasttext(words, matrix, buckets=BUCKETS, minn=0, maxn=0))

    source = FastTextFile(path)

    # Cut: longer than any that is kept.
    (word,) = (word for batch in source.batches(1) for word in batch.words)
    assert word == b"x" * (MAX_ID_BYTES + 1)


def test_the_mark_is_the_one_that_fasttext_writes():
    assert bytes([0xBA, 0x16, 0x4F, 0x2F]) == files.FASTTEXT_MAGIC
