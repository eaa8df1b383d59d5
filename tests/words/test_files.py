import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_models import fasttext, headed, text, word2vec, write

from vecstore.errors import EncoderError, ModelNotFoundError, UsageError
from vecstore.words import files
from vecstore.words.files import BinaryFile, TextFile, detect

READERS = {"text": TextFile, "word2vec": BinaryFile}
WORD = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=" \n\r"), min_size=1, max_size=9
)


def read(path, limit=None):
    """The words of a file, and its numbers, as one list and one array."""
    source = READERS[detect(path)](path)
    batches = list(source.batches(limit))
    words = [word for batch in batches for word in batch.words]
    vectors = [batch.vectors for batch in batches]
    return words, np.concatenate(vectors) if vectors else np.empty((0, source.dim), np.float32)


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(5, 4)).astype(np.float32)


WORDS = ["the", "of", "Ärger", "日本", "</s>"]


@pytest.mark.parametrize("form", [text, headed, word2vec])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_every_form_is_told_and_read(tmp_path, vectors, form, compress):
    path = write(tmp_path / "file", compress(form(WORDS, vectors)))

    words, found = read(path)

    assert [word.decode() for word in words] == WORDS
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors)


@given(st.lists(WORD, min_size=1, max_size=40), st.integers(2, 9), st.data())
def test_what_is_written_is_read(tmp_path, words, dim, data):
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    rows = st.lists(numbers, min_size=dim, max_size=dim)
    rows = data.draw(st.lists(rows, min_size=len(words), max_size=len(words)))
    vectors = np.array(rows, np.float32)
    form = data.draw(st.sampled_from([headed, word2vec]))
    path = write(tmp_path / "file", form(words, vectors))

    found, read_vectors = read(path)

    assert found == [word.encode() for word in words]
    np.testing.assert_array_equal(read_vectors, vectors)


def test_many_words_come_in_batches_of_any_size(tmp_path, rng, monkeypatch):
    vectors = rng.normal(size=(500, 3)).astype(np.float32)
    words = [f"w{i}" for i in range(500)]
    monkeypatch.setattr(files, "BATCH", 7)
    monkeypatch.setattr(files, "CHUNK", 29)
    for form in (headed, word2vec):
        found, read_vectors = read(write(tmp_path / "file", form(words, vectors)))

        assert [word.decode() for word in found] == words
        np.testing.assert_array_equal(read_vectors, vectors)


def test_the_words_of_word2vec_may_end_without_a_newline(tmp_path, vectors):
    words, found = read(write(tmp_path / "file", word2vec(WORDS, vectors, end=b"")))

    assert [word.decode() for word in words] == WORDS
    np.testing.assert_array_equal(found, vectors)


def test_a_word_may_hold_spaces(tmp_path, vectors):
    spaced = ["the", ". . .", "at name@domain.com", "a", "b"]

    for form in (text, headed):
        words, found = read(write(tmp_path / "file", form(spaced, vectors)))

        assert [word.decode() for word in words] == spaced
        np.testing.assert_array_equal(found, vectors)


def test_the_first_word_may_hold_spaces(tmp_path, vectors):
    words, _ = read(write(tmp_path / "file", text([". . .", "b", "c", "d", "e"], vectors)))

    assert words[0] == b". . ."


def test_windows_lines_trailing_spaces_and_empty_lines_are_passed_over(tmp_path, vectors):
    data = headed(WORDS, vectors).replace(b"\n", b" \r\n\r\n")

    words, found = read(write(tmp_path / "file", data))

    assert len(words) == 5
    np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize("form", [text, headed, word2vec])
def test_a_limit_takes_the_first_words(tmp_path, vectors, form):
    words, found = read(write(tmp_path / "file", form(WORDS, vectors)), 2)

    assert words == [b"the", b"of"]
    np.testing.assert_array_equal(found, vectors[:2])


@pytest.mark.parametrize("form", [headed, word2vec])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_file_that_is_cut_off_is_refused(tmp_path, vectors, form, compress):
    whole = compress(form(WORDS, vectors))
    for size in (len(whole) - 30, len(whole) // 2):
        path = write(tmp_path / "file", whole[:size])

        with pytest.raises(EncoderError, match=r"cut off|cannot be read|numbers behind|is empty"):
            read(path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("2000000000 4", "says that it has 2,000,000,000 words, and 5 were read; it is cut off"),
        ("3 4", "says that it has 3 words, and 5 were read; limit=3 takes"),
        ("5 0", "vectors of 0 numbers, outside"),
        ("5 -4", "vectors of -4 numbers"),
        ("-5 4", "has -5 words"),
        ("5 2147483647", "vectors of 2147483647 numbers"),
        ("5 3", "vectors have 3 numbers, and they have 4"),
        ("5 6", "line 2: 4 numbers behind"),
    ],
)
def test_a_head_that_lies_is_refused(tmp_path, vectors, head, message):
    path = write(tmp_path / "file", text(WORDS, vectors, head))

    with pytest.raises(EncoderError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("2000000000 4", "it is cut off"),
        ("5 0", "vectors of 0 numbers"),
        ("5 -4", "vectors of -4 numbers"),
        ("-5 4", "how many words"),
        ("5 99999999999", "numbers, outside"),
        ("5 6", "it is cut off"),
    ],
)
def test_a_binary_head_that_lies_is_refused(tmp_path, vectors, head, message):
    data = word2vec(WORDS, vectors).partition(b"\n")[2]
    path = write(tmp_path / "file", head.encode() + b"\n" + data)

    with pytest.raises(EncoderError, match=message):
        list(BinaryFile(path).batches(None))


def test_a_line_that_is_wrong_is_named(tmp_path, vectors):
    lines = text(WORDS, vectors).split(b"\n")
    lines[2] = b"word 1 2 three 4"
    with pytest.raises(EncoderError, match=r"line 3: b'three' behind b'word' is no number"):
        read(write(tmp_path / "file", b"\n".join(lines)))
    lines[2] = b"word 1 2"
    path = write(tmp_path / "file", b"4 4\n" + b"\n".join(lines[1:]))
    with pytest.raises(EncoderError):
        read(path)


def test_a_line_that_is_short_is_refused_where_no_head_says_how_many_numbers_there_are(
    tmp_path, vectors
):
    lines = text(WORDS, vectors).splitlines(keepends=True)
    for place in range(len(lines)):
        short = lines[place].rpartition(b" ")[0] + b"\n"
        path = write(tmp_path / "file", b"".join([*lines[:place], short, *lines[place + 1 :]]))

        with pytest.raises(EncoderError, match=f"line {place + 1}: 3 numbers behind .*expected 4"):
            read(path)


def test_more_words_than_a_binary_head_says_are_refused(tmp_path, vectors):
    data = word2vec(WORDS, vectors)
    path = write(tmp_path / "file", data.replace(b"5 4", b"4 4", 1))

    with pytest.raises(EncoderError, match="has 4 words, and 5 were read; limit=4 takes"):
        read(path)
    assert len(read(path, 4)[0]) == 4


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    path = write(tmp_path / "file", b"word 1 2\n" + b"x" * 5000)

    with pytest.raises(EncoderError, match="line 2: over 1,000 bytes long"):
        TextFile(path)


def test_a_binary_word_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_WORD", 1000)
    monkeypatch.setattr(files, "CHUNK", 100)
    path = write(tmp_path / "file", b"5 4\n" + b"x" * 5000)

    with pytest.raises(EncoderError, match="0 were read; it is cut off"):
        list(BinaryFile(path).batches(None))


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02\x03" * 50, b"one line of text\n", struct.pack("<12i", *range(12))]
)
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    with pytest.raises(EncoderError, match="is no file of word vectors"):
        detect(write(tmp_path / "file", data))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="is empty"):
        detect(write(tmp_path / "file", b""))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        detect(tmp_path / "nothing")
    with pytest.raises(EncoderError, match="cannot be read"):
        detect(tmp_path)


def test_a_kind_may_be_stated(tmp_path, vectors):
    path = write(tmp_path / "file", fasttext(WORDS, vectors, maxn=0))

    assert detect(path) == "fasttext"
    assert detect(path, "text") == "text"
    with pytest.raises(UsageError, match="kind='glove' is unknown"):
        detect(path, "glove")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path, data):
    path = write(tmp_path / "file", data)
    for reader in (TextFile, BinaryFile):
        try:
            batches = list(reader(path).batches(None))
        except EncoderError:
            continue
        assert all(len(batch.words) == len(batch.vectors) for batch in batches)
