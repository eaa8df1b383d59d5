"""Words with a token of their own, beside counting them as the tokenizer splits text."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny_bert
from base import Base
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from words import alone, cut_words, with_words

VOCABULARY = "[PAD] [unused0] [UNK] [CLS] [SEP] [unused1] car ##cino ##ma a ##s neur ##on , the"
TEXTS = [
    "The carcinoma, a neuron",
    "neurons the CARCINOMA, carcinoma",
    "cars a car xyz neuron",
    "",
    "carcinomas",
]


@pytest.fixture
def base() -> Base:
    numbers = {token: number for number, token in enumerate(VOCABULARY.split())}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    return Base({}, tiny_bert.SHAPE, tokenizer)


def counted(base: Base) -> Counter[str]:
    """How often each word is cut."""
    times: Counter[str] = Counter()
    for text in TEXTS:
        for word, _ in base.tokenizer.pre_tokenizer.pre_tokenize_str(text.lower()):
            times[word] += len(base.tokenizer.encode(word, add_special_tokens=False).ids) > 1
    return +times


def test_the_words_are_those_that_are_cut_most_often(base):
    wanted = counted(base)

    found = cut_words([base.encode(text, 64) for text in TEXTS], base, 100)

    assert sorted(found) == sorted(wanted)
    assert [wanted[word] for word in found] == sorted(wanted.values(), reverse=True)
    assert found[:2] == ["carcinoma", "neuron"]
    assert cut_words([base.encode(text, 64) for text in TEXTS], base, 1) == found[:1]


def test_each_word_gets_one_token_and_all_others_stay(base):
    wider = with_words(base, ["carcinoma", "neuron", "neurons"])
    numbers, before = wider.tokenizer.get_vocab(), base.tokenizer.get_vocab()

    assert [numbers[word] for word in ("carcinoma", "neuron", "neurons")] == [1, 5, len(before)]
    assert sorted(numbers.values()) == list(range(len(before) + 1))
    assert before.items() - numbers.items() == {("[unused0]", 1), ("[unused1]", 5)}
    tokens = wider.tokenizer.encode(" ".join(TEXTS[:3])).tokens
    assert " ".join(tokens) == (
        "[CLS] the carcinoma , a neuron neurons the carcinoma , carcinoma car ##s a car [UNK] "
        "neuron [SEP]"
    )
    again = Tokenizer.from_str(wider.tokenizer_json().decode())
    assert again.encode("A carcinomas").tokens == ["[CLS]", "a", "carcinoma", "##s", "[SEP]"]


def test_tokens_alone_are_told_in_the_numbers_of_the_base(base):
    wider = with_words(base, ["carcinoma", "neuron", "neurons"])

    found = alone(base, wider)

    assert len(found) == wider.tokenizer.get_vocab_size()
    for word, number in wider.tokenizer.get_vocab().items():
        known = base.tokenizer.get_vocab().get(word)
        one = base.encode(word, 64) if known is None else [3, known, 4]
        assert found[number] == one
