"""What is read of long texts, and what is counted of the rest."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import vecstore
from vecstore import cli
from vecstore.encoders import OnnxEncoder, Truncated, cutting

WORDS = ["red", "green", "blue", "apple", "pear", "train", "late"]


@pytest.fixture
def short(make_model):
    """An encoder of five tokens: three words between two special ones."""
    return OnnxEncoder(make_model(sentence={"max_seq_length": 5}))


def test_texts_that_fit_are_counted_and_nothing_else(short):
    short.encode(["red", "red green blue"])

    assert short.truncated == Truncated(texts=2, cut=0, characters=0)


def test_what_is_cut_is_counted_to_the_character(short):
    short.encode(["red green blue apple", "red green blue", "late late late late late"])
    short.encode(["red green blue    pear  "])

    assert short.truncated == Truncated(texts=4, cut=3, characters=6 + 10 + 10)


def test_a_prompt_is_no_part_of_the_text(make_model):
    path = make_model(sentence={"max_seq_length": 5}, prompts={"prompts": {"query": "query : "}})
    encoder = OnnxEncoder(path)

    encoder.encode(["red green"], kind="query")

    assert encoder.truncated == Truncated(texts=1, cut=1, characters=len(" green"))


def test_threads_count_together(short):
    threads = [
        threading.Thread(target=lambda: [short.encode(["red " * 9]) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (short.truncated.texts, short.truncated.cut) == (80, 80)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    gaps=st.lists(st.sampled_from([" ", "  ", " " * 50, "\n" * 300]), min_size=1, max_size=4),
    limit=st.integers(3, 12),
    long=st.booleans(),
)
def test_a_beginning_gives_the_tokens_of_the_whole(size, gaps, limit, long):
    tokenizer = _tokenizer(limit)
    words = (WORDS * 6)[:size] * (20 if long else 1)
    text = "".join(word + gaps[index % len(gaps)] for index, word in enumerate(words))

    whole = tokenizer.encode(text)
    tried = 0
    for part in cutting.prefixes(text, limit):
        tried += len(part)
        found = tokenizer.encode(part)
        if cutting.is_enough(found):
            break

    assert found.ids == whole.ids
    assert bool(found.overflowing) == bool(whole.overflowing)
    assert tried <= 2.2 * len(part)


def _tokenizer(limit: int) -> Tokenizer:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(limit)
    return tokenizer


@pytest.mark.parametrize("unit", ["red green blue ", "x", " late" + " " * 10_000, "漢字"])
def test_an_enormous_text_costs_no_more_than_its_beginning(short, monkeypatch, unit):
    monkeypatch.setattr(cutting, "_MOST_CHARACTERS", 1 << 16)
    text = "red " + unit * (2_000_000 // len(unit))
    read = 0

    class Spy:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def encode(self, part):
            nonlocal read
            read += len(part)
            return self.tokenizer.encode(part)

    short.session._tokenizer = Spy(short.session._tokenizer)
    found = short.encode([text])

    assert np.isfinite(found).all()
    assert read < 2.2 * cutting._MOST_CHARACTERS
    assert short.truncated.cut == 1
    assert short.truncated.characters > len(text) - 1.1 * cutting._MOST_CHARACTERS


def test_a_text_of_very_many_tokens_is_read_as_far_as_they_go(make_model, monkeypatch):
    monkeypatch.setattr(cutting, "_MOST_CHARACTERS", 1000)
    encoder = OnnxEncoder(make_model(), max_length=100)

    encoder.encode(["red      " * 98 + "   " * 500])
    encoder.encode(["red      " * 98 + "   " * 500 + "late"])

    assert encoder.truncated == Truncated(texts=2, cut=1, characters=6 + 1500 + 4)


def test_add_tells_how_many_texts_were_cut(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make_model(sentence={"max_seq_length": 5})
    rows = [{"text": "red green blue pear " * number} for number in (2, 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "late"}) + "\n")

    def add(file):
        arguments = ["add", "a.vecstore", file, "--encoder", str(path)]
        return CliRunner().invoke(cli.main, arguments)

    first, second = add("a.jsonl"), add("b.jsonl")

    assert "2 of 2 texts were cut at 5 tokens" in first.stderr
    assert (second.stderr, second.exit_code) == ("", 0)


def test_a_collection_tells_its_encoder(short):
    with vecstore.open(":memory:") as db:
        assert db.collection("texts", encoder=short).encoder is short
        assert db.collection("bare", dim=3).encoder is None
