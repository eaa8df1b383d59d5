"""Do passages get the means of their tokens' vectors, each token once, however long a text is?"""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from vecstore import Chunking, EncoderError, UsageError, passages
from vecstore.encoders import (
    AdaptedEncoder,
    Adapter,
    HashEncoder,
    LateChunking,
    OnnxEncoder,
    Tokenizing,
    bundled,
    tokens,
)

NORMALIZED = [{"type": "models.Transformer"}, {"type": "models.Normalize", "path": "1"}]
MEAN = [{"type": "models.Transformer"}, {"type": "models.Pooling", "path": "1_Pooling"}]
KNOWN = ["red", "green", "blue", "apple", "pear", "train", "late"]
words = st.lists(st.sampled_from([*KNOWN, "unknown"]), min_size=1, max_size=60)


def spans_of(text, edges):
    """Spans of whole words of a text, from some of its words to others."""
    places = [match.span() for match in re.finditer(r"\S+", text)]
    return [(places[first][0], places[last][1]) for first, last in edges]


def pooled(twin, table, text, span, whole):
    """The mean of the vectors of a span's words; special tokens belong to the outermost."""
    ids = twin.ids(text[span[0] : span[1]])
    ids = ids[0 if span == whole[0] else 1 : None if span == whole[-1] else -1]
    return table[ids].astype(np.float64).mean(axis=0)


@pytest.fixture
def tiny(make_model, graphs):
    """Models by how many tokens they read; one vector per text, and one per token."""
    folder = make_model(graphs["pooled"](tokens="token_embeddings"))
    return {size: OnnxEncoder(folder, max_length=size) for size in (4, 6, 11, 64)}


@given(words, st.sampled_from([4, 6, 11, 64]), st.data())
def test_each_token_counts_once_whatever_the_windows(tiny, twin, table, found, size, data):
    text = " ".join(found)
    starts = sorted(data.draw(st.sets(st.integers(0, len(found) - 1), min_size=1, max_size=8)))
    ends = [later - 1 for later in starts[1:]] + [len(found) - 1]
    edges = list(zip([0, *starts[1:]], ends, strict=True))
    spans = spans_of(text, edges)

    vectors = tiny[size].encode_passages(text, spans)

    expected = np.array([pooled(twin, table, text, span, spans) for span in spans])
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)


def test_passages_may_overlap(tiny, twin, table):
    text = "red green blue apple pear train late"
    spans = spans_of(text, [(0, 3), (2, 5), (4, 6)])

    vectors = tiny[6].encode_passages(text, spans)

    expected = np.array([pooled(twin, table, text, span, spans) for span in spans])
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("modules", [NORMALIZED, None])
def test_a_single_passage_is_the_text(make_model, graphs, modules):
    configs = {} if modules is None else {"modules": modules}
    encoder = OnnxEncoder(make_model(graphs["pooled"](tokens="token_embeddings"), **configs))
    text = "red apple late train"

    found = encoder.encode_passages(text, [(0, len(text))])

    np.testing.assert_allclose(found, encoder.encode([text]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
def test_a_prompt_stands_before_each_window(make_model, twin, table, skip):
    encoder = OnnxEncoder(
        make_model(
            modules=MEAN,
            pooling={"pooling_mode": "mean", "include_prompt": not skip},
            prompts={"prompts": {"document": "query : "}},
        ),
        max_length=8,
    )
    text = "red green blue apple pear train late"
    short = "red apple"

    assert encoder.room == 4
    np.testing.assert_allclose(
        encoder.encode_passages(short, [(0, len(short))]), encoder.encode([short]), rtol=1e-5
    )
    (_, middle, _) = encoder.encode_passages(text, spans_of(text, [(0, 1), (2, 4), (5, 6)]))
    ids = twin.ids("blue apple pear")[1:-1]
    np.testing.assert_allclose(middle, table[ids].mean(axis=0), rtol=1e-5)


def test_tokens_have_their_places(make_model, monkeypatch):
    monkeypatch.setattr(tokens, "SEGMENT", 7)
    encoder = OnnxEncoder(make_model(), max_length=5)
    text = "  red\n\napple nothing-so-long  late "

    found = encoder.token_offsets(text)

    assert "".join(text[start:end] for start, end in found) == "redapplenothing-so-longlate"
    assert [text[start:end] for start, end in found][:2] == ["red", "apple"]
    assert encoder.room == 3
    assert encoder.token_offsets(" ").shape == (0, 2)


def test_places_stay_where_lower_case_is_longer(make_model):
    encoder = OnnxEncoder(make_model(sentence={"do_lower_case": True}))
    text = "\u0130\u0130 RED apple"

    assert [text[start:end] for start, end in encoder.token_offsets(text)] == [
        "\u0130\u0130",
        "RED",
        "apple",
    ]


def test_a_blank_may_belong_to_the_word_behind_it(make_model, table):
    folder = make_model()
    vocabulary = {
        word: number for number, word in enumerate(["<unk>", *(f"\u2581{w}" for w in KNOWN)])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    encoder, text = OnnxEncoder(folder, max_length=3), "red green  blue apple pear"

    assert tokenizer.encode(text).offsets[1] == (3, 9)
    assert [text[start:end] for start, end in encoder.token_offsets(text)][:2] == ["red", "green"]
    vectors = encoder.encode_passages(text, spans_of(text, [(0, 0), (1, 2), (3, 4)]))
    means = [table[ids].mean(axis=0) for ids in ([1], [2, 0, 3], [4, 5])]
    assert tokenizer.encode(text).ids == [1, 2, 0, 3, 4, 5]
    np.testing.assert_allclose(vectors, means, rtol=1e-5)


def test_records_are_chunked_late(make_model, graphs, memory):
    encoder = OnnxEncoder(make_model(graphs["pooled"](tokens="token_embeddings")), max_length=10)
    stories = memory.collection("c", encoder=encoder)
    text = "red apple late train . green pear"
    stories.add([text, "red"], ids=[1, 2], chunk=Chunking(tokens=3, late=True))

    found = stories.get(1, include=("text", "vector"))

    spans = [(item.start, item.end) for item in found.passages]
    assert len(spans) == 3
    np.testing.assert_allclose(found.vector, encoder.encode_passages(text, spans), rtol=1e-5)
    assert stories.search("red", 1).ids == [2]
    stories.update(1, text=text.replace("red", "blue"))
    assert len(stories.get(1).passages) == 3


class Tokens(HashEncoder):
    """An encoder whose tokens are wrong in some way."""

    def __init__(self, found, room=4):
        super().__init__()
        self.found, self.room = found, room

    def token_offsets(self, text):
        return self.found(text)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Tokens(lambda text: [[0, 99]]), "are none in a text of 9 characters"),
        (Tokens(lambda text: [0, 1]), r"of shape \(2,\)"),
        (Tokens(lambda text: [[-1, 2]]), "are none"),
        (Tokens(lambda text: 1 / 0), "failed: ZeroDivisionError"),
        (Tokens(lambda text: [], room=0), "says that it reads 0 tokens"),
    ],
)
def test_tokens_of_other_encoders_are_checked(encoder, message):
    with pytest.raises(EncoderError, match=message):
        passages.cut("red apple", Chunking(), encoder)


# To this tokenizer control characters part no words.
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60))
def test_passages_fit_the_bundled_model(text):
    encoder = bundled()
    text = f"{text} İstanbul 東京タワー naïve ½ {text} antidisestablishmentarianism"
    spans = passages.cut(text, Chunking(tokens=12), encoder)

    for start, end in spans:
        assert len(encoder.token_offsets(text[start:end])) <= 12
    assert (
        "".join(text[start:end] for start, end in spans).split() == text.split() or len(spans) > 1
    )


def test_a_model_without_vectors_of_tokens_says_so(make_model, graphs):
    encoder = OnnxEncoder(make_model(graphs["pooled"]()))

    with pytest.raises(EncoderError, match="has no output token_embeddings"):
        encoder.encode_passages("red apple", [(0, 3), (4, 9)])
    with pytest.raises(EncoderError, match="'hash' has no vectors of tokens"):
        passages.late_vectors("red apple", [(0, 3), (4, 9)], HashEncoder())


@pytest.mark.parametrize("offered", ["token_embeddings_1", "token_embeddings"])
def test_fewer_layers_pool_the_tokens_of_their_own_output(make_model, graphs, offered):
    own = {"layers": {"1": "sentence_embedding"}}
    encoder = OnnxEncoder(make_model(graphs["pooled"](tokens=offered), own=own), layer=1)

    whole = OnnxEncoder(make_model(graphs["pooled"](tokens="token_embeddings")))
    if offered == "token_embeddings":
        with pytest.raises(EncoderError, match="has no output token_embeddings_1"):
            encoder.encode_passages("red apple", [(0, 3), (4, 9)])
    else:
        found = encoder.encode_passages("red apple", [(0, 3), (4, 9)])
        wanted = whole.encode_passages("red apple", [(0, 3), (4, 9)])
        np.testing.assert_array_equal(found, wanted)


def test_a_model_that_pools_otherwise_says_so(make_model):
    folder = make_model(modules=MEAN, pooling={"pooling_mode": "cls"})

    with pytest.raises(EncoderError, match="otherwise than as the mean"):
        OnnxEncoder(folder).encode_passages("red apple", [(0, 3), (4, 9)])


def test_a_passage_without_a_token_is_refused(make_model):
    encoder = OnnxEncoder(make_model())

    with pytest.raises(EncoderError, match="passage 1, from 3 to 4, has no token"):
        encoder.encode_passages("red apple pear", [(0, 3), (3, 4), (4, 14)])


@pytest.mark.parametrize(
    "spans",
    [[(3, 1)], [(0, 99)], [(-1, 4)], [(4, 9), (0, 3)], [(0, 9), (2, 5)], [(2, 2)]],
)
def test_passages_that_are_none_of_the_text_are_refused(make_model, spans):
    encoder = OnnxEncoder(make_model())

    with pytest.raises(UsageError, match=r"passage \d, from .* is not inside a text of 14"):
        encoder.encode_passages("red apple pear", spans)
    with pytest.raises(UsageError, match="spans are empty"):
        encoder.encode_passages("red apple pear", [])


@pytest.mark.parametrize(
    "spans", [5, None, "ab", [5], [(0,)], [(0, 1, 2)], [(None, 3)], [("a", "b")], [(0.5, 3.2)]]
)
def test_what_is_no_passage_is_refused(make_model, spans):
    with pytest.raises(UsageError, match=r"spans=.* must be a list of pairs of ints"):
        OnnxEncoder(make_model()).encode_passages("red apple pear", spans)


def test_passages_may_be_an_array(make_model):
    encoder = OnnxEncoder(make_model())
    spans = [(0, 3), (4, 9)]

    np.testing.assert_array_equal(
        encoder.encode_passages("red apple", np.array(spans)),
        encoder.encode_passages("red apple", spans),
    )


@pytest.mark.parametrize(("text", "found"), [("a\ud800b", "lone surrogate"), (5, "is a int")])
def test_tokens_of_what_is_no_text(make_model, text, found):
    with pytest.raises(UsageError, match=found):
        OnnxEncoder(make_model()).token_offsets(text)


def test_a_letter_that_grows_in_lower_case_moves_no_passage(make_model):
    encoder = OnnxEncoder(make_model(sentence={"do_lower_case": True}))
    plain = "I I I I I I. Red apple. Pear train."
    spans = [(0, 12), (13, 23), (24, 35)]

    wanted = encoder.encode_passages(plain, spans)
    found = encoder.encode_passages(plain.replace("I", "\u0130"), spans)

    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("limit", [None, 5])
def test_a_passage_inside_a_word_has_the_vector_of_the_word(make_model, table, limit):
    encoder = OnnxEncoder(make_model(), max_length=limit)
    text = "red " + "0123456789" * 10 + " pear late train apple"
    start = text.index("0")
    spans = [(0, start + 20), (start + 20, start + 50), (start + 50, start + 100), (105, len(text))]

    found = encoder.encode_passages(text, spans)

    np.testing.assert_allclose(found[1], table[1], rtol=1e-5)
    np.testing.assert_allclose(found[2], table[1], rtol=1e-5)


def test_what_an_encoder_offers(make_model):
    encoder = OnnxEncoder(make_model(), max_length=10)

    assert isinstance(encoder, Tokenizing)
    assert isinstance(encoder, LateChunking)
    assert not isinstance(HashEncoder(), Tokenizing)
    with pytest.raises(UsageError, match="tokens=9 is more than the 8 tokens"):
        passages.cut("red", Chunking(tokens=9), encoder)
    with pytest.raises(UsageError, match="overlap=5 is more than half of the 8 tokens"):
        passages.cut("red", Chunking(overlap=5), encoder)
    with pytest.raises(UsageError, match="overlap=2 is more than half of the 2 tokens"):
        passages.cut("red", Chunking(overlap=2, late=True), encoder)


def test_an_adapted_encoder_reads_what_its_base_reads():
    adapted = AdaptedEncoder(bundled(), Adapter(dim=384))

    assert passages.cut("red " * 300, Chunking(), adapted)[0] == (0, 4 * 254 - 1)
    with pytest.raises(EncoderError, match="has no vectors of tokens"):
        passages.late_vectors("red apple", [(0, 3), (4, 9)], adapted)
