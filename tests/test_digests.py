"""Is the same text embedded once, and is a vector taken only where it was made of that text?"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vecstore
from vecstore import Chunking, EncoderMismatchError, chunking, digests, layout
from vecstore.encoders import FunctionEncoder, HashEncoder
from vecstore.store import Store

DIM = 8
HASH = HashEncoder(DIM)
POOL = ["Red apples.", "Green apples.", "A late train.", "One pear. " * 9, "Trains. " * 20]
CHUNKING = Chunking(tokens=8)


class Counting:
    """A HashEncoder that notes what it is given."""

    name, dim, mrl, fingerprint = "counting", DIM, (), "counting-1"

    def __init__(self):
        self.seen = []

    def encode(self, texts, kind="document"):
        self.seen += texts
        return HASH.encode(texts, kind=kind)

    def taken(self):
        seen, self.seen = self.seen, []
        return seen


def cut(text, chunked):
    if not chunked:
        return [text]
    spans = chunking.cut(text, chunking.approximate(text), CHUNKING.tokens)
    return [text[start:end] for start, end in spans] if len(spans) > 1 else [text]


def entries(db):
    """How many vectors the file knows the texts of."""
    with db._store.snapshot() as snapshot:
        return sum(len(key) > 4 for key, _ in snapshot.items("digests", b""))


ids = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True)
text = st.sampled_from(POOL)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), ids, st.lists(text, min_size=4, max_size=4), st.booleans()),
        st.tuples(st.just("given"), ids, st.lists(text, min_size=4, max_size=4)),
        st.tuples(st.just("text"), st.integers(0, 5), text, st.booleans()),
        st.tuples(st.just("vector"), st.integers(0, 5)),
        st.tuples(st.just("metadata"), st.integers(0, 5)),
        st.tuples(st.just("delete"), ids),
        st.tuples(st.just("lost")),
    ),
    max_size=12,
)


class Oracle:
    """Of each record the texts that its vectors were made of; none where a user gave it."""

    def __init__(self, collection, encoder):
        self.collection, self.encoder = collection, encoder
        self.made = {}

    def expect(self, texts):
        """What must be embedded of some texts: each once, and not what is there."""
        there = {text for found in self.made.values() for text in found}
        assert self.encoder.taken() == [t for t in dict.fromkeys(texts) if t not in there]

    def upsert(self, given, texts, chunked):
        chosen = texts[: len(given)]
        self.collection.upsert(chosen, ids=given, chunk=CHUNKING if chunked else False)
        pieces = {key: cut(one, chunked) for key, one in zip(given, chosen, strict=True)}
        self.expect([piece for found in pieces.values() for piece in found])
        self.made |= pieces

    def given(self, given, texts):
        vectors = np.eye(DIM)[: len(given)]
        self.collection.upsert(texts[: len(given)], vectors=vectors, ids=given)
        self.made |= dict.fromkeys(given, ())

    def text(self, key, text, chunked):
        if key in self.made:
            self.collection.update(key, text=text, chunk=CHUNKING if chunked else False)
            self.expect(cut(text, chunked))
            self.made[key] = cut(text, chunked)

    def vector(self, key):
        if key in self.made:
            self.collection.update(key, vector=np.eye(DIM)[1])
            self.made[key] = ()

    def metadata(self, key):
        if key in self.made:
            self.collection.update(key, metadata={"seen": True})

    def delete(self, given):
        self.collection.delete(given)
        for key in given:
            self.made.pop(key, None)

    def lost(self):
        """Nothing is left of a transaction that is given up."""
        with contextlib.suppress(KeyboardInterrupt), self.collection._source.transaction():
            self.collection.delete(where={})
            self.collection.upsert(["lost"], ids=[1])
            raise KeyboardInterrupt
        self.encoder.taken()


@given(steps, st.sampled_from(["float32", "float16", "int8"]))
def test_only_texts_that_are_not_there_are_embedded(chosen, precision):
    encoder = Counting()
    with vecstore.open(":memory:") as db:
        oracle = Oracle(db.collection("c", encoder=encoder, precision=precision), encoder)
        for name, *arguments in chosen:
            getattr(oracle, name)(*arguments)
            assert oracle.encoder.taken() == []
            assert entries(db) == sum(map(len, oracle.made.values()))
        assert db.check() == []
        plain = db.collection("plain", encoder=HASH, precision=precision)
        for record in oracle.collection.scan(include=("text", "vector")):
            pieces = oracle.made[record.id]
            if pieces:
                keys = plain.add(list(pieces))
                found = np.atleast_2d(np.squeeze(record.vector))
                expected = [one.vector for one in plain.get(keys, include=("vector",))]
                np.testing.assert_array_equal(found, expected)


def test_the_same_upsert_embeds_nothing_also_in_another_process(path):
    texts = [f"text {number}" for number in range(300)]
    with vecstore.open(path) as db:
        db.collection("c", encoder=Counting()).upsert(texts, ids=range(300))
    encoder = Counting()
    with vecstore.open(path) as db:
        notes = db.collection("c", encoder=encoder)
        notes.upsert(texts, ids=range(300))
        notes.add([*texts, "new", "new"])
        assert encoder.taken() == ["new"]
        with db.transaction():
            notes.add(["of this transaction"])
            notes.add(["of this transaction"])
        assert encoder.taken() == ["of this transaction"]
        assert db.check() == []


def test_another_collection_embeds_for_itself_and_forgets_when_dropped(db):
    first, second = Counting(), Counting()
    db.collection("a", encoder=first).add(["one"])
    db.collection("b", encoder=second).add(["one"])
    assert second.taken() == ["one"]
    db.drop("a")
    assert entries(db) == 1


def test_late_passages_and_bare_vectors_are_not_remembered(db):
    class Late(Counting):
        def encode_passages(self, text, spans):
            return HASH.encode([text[start:end] + "!" for start, end in spans])

    encoder = Late()
    notes = db.collection("c", encoder=encoder)
    notes.add(POOL[3], chunk=Chunking(tokens=8, late=True))
    assert entries(db) == 0
    piece = cut(POOL[3], True)[0]
    notes.add(piece)
    assert encoder.taken() == [piece]
    db.collection("bare", dim=2).add("a text", vectors=[1, 0])
    assert entries(db) == 1


def test_the_wrong_encoder_is_refused_though_all_is_there(path):
    with vecstore.open(path) as db:
        db.collection("c", encoder=Counting()).add("one", ids=1)
    other = FunctionEncoder(HASH.encode, name="other", version="1", dim=DIM)
    with vecstore.open(path) as db, pytest.raises(EncoderMismatchError):
        db.collection("c", encoder=other).upsert("one", ids=1)


# Damage, and releases that do not know digests


def rewrite(path, work):
    store = Store(path)
    store.write(work)
    store.close()


@pytest.fixture
def known(path):
    """A file that knows two texts."""
    with vecstore.open(path) as db:
        db.collection("c", encoder=Counting()).add(["one", "two"], ids=[1, 2])
    return path


def again(path, texts=("one", "two")):
    """What is embedded of texts now, and what the check says after that."""
    encoder = Counting()
    with vecstore.open(path) as db:
        db.collection("c", encoder=encoder).add(list(texts))
        return encoder.taken(), list(map(str, db.check()))


def test_a_write_of_a_release_without_digests_ends_their_use(known):
    def older(txn):
        key = layout.state_key(1)
        state = layout.State.unpack(txn.get("meta", key))
        state.generation += 1
        txn.put("meta", key, state.pack())
        # Such a release may have given the order to nothing at all.
        txn.put("digests", layout.digest_key(1, digests.digest("x"), 99), bytes(4))

    rewrite(known, older)
    with vecstore.open(known) as db:
        assert db.check() == []
    assert again(known) == (["one", "two"], [])
    assert again(known) == ([], [])


def test_a_file_of_a_release_without_digests_gets_them_by_compaction(known):
    def older(txn):
        txn.txn.drop(txn.store.databases["digests"], delete=True)

    rewrite(known, older)
    with vecstore.open(known, read_only=True) as db:
        assert not db._store.snapshot().has("digests")
        assert db.check() == []
        assert db.collection("c", encoder=Counting()).count() == 2
    assert again(known) == (["one", "two"], [])
    assert again(known) == (["one", "two"], [])
    with vecstore.open(known) as db:
        assert db.collection("c", encoder=Counting()).delete([1]) == 1
        db.compact()
    assert again(known) == (["one", "two"], [])
    assert again(known) == ([], [])


def test_what_a_dropped_collection_left_is_no_damage(known):
    with vecstore.open(known) as db:
        db.drop("c")
    rewrite(known, lambda txn: txn.put("digests", layout.digest_key(1, bytes(16), 0), bytes(4)))
    with vecstore.open(known) as db:
        assert db.check() == []


KEY = layout.digest_key(1, digests.digest("one"), 0)


@pytest.mark.parametrize(
    ("key", "value", "problem", "embedded"),
    [
        (KEY, bytes(4), "another vector (19)", ["one"]),
        (KEY, b"x", "has 1 bytes", ["one", "two"]),
        (KEY + b"x", bytes(4), "has 4 bytes", []),
        (layout.digest_key(1, digests.digest("three"), 0), bytes(4), "another text (19)", []),
        (layout.digest_key(1, digests.digest("three"), 9), bytes(4), "9 of collection 1", []),
        (layout.collection_key(1), bytes(12), "wrong checksum", ["one", "two"]),
    ],
)
def test_damage_is_told_and_never_taken_for_a_vector(known, key, value, problem, embedded):
    rewrite(known, lambda txn: txn.put("digests", key, value))
    with vecstore.open(known) as db:
        (found,) = map(str, db.check())
    assert problem in found
    encoder = Counting()
    with vecstore.open(known) as db:
        notes = db.collection("c", encoder=encoder)
        notes.upsert(["one", "two"], ids=[3, 4])
        assert encoder.taken() == embedded
        found = [record.vector for record in notes.get([1, 2, 3, 4], include=("vector",))]
        np.testing.assert_array_equal(found[:2], found[2:])


def test_a_damaged_vector_is_not_copied(known):
    def damage(txn):
        key = layout.block_key(1, 0)
        value = bytearray(txn.get("tiers", key))
        value[layout.HEADER.size + layout.COLUMNS_BYTES + 1] ^= 1
        txn.put("tiers", key, value)

    rewrite(known, damage)
    with vecstore.open(known) as db, db._store.snapshot() as snapshot:
        entry = vecstore.catalog.find(snapshot, "c")
        texts = ["one", "two"]
        found = digests.find(snapshot, entry, list(map(digests.digest, texts)), texts)
        assert found.places == [1]
