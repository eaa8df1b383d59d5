"""Are records found by the best of their passages, and do these stay together?"""

from __future__ import annotations

import json
import shutil

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Model

import vecstore
from vecstore import (
    Chunking,
    CorruptionError,
    EncoderError,
    FormatError,
    Passage,
    UsageError,
    chunking,
    layout,
    record_layout,
)
from vecstore.encoders import FunctionEncoder, HashEncoder
from vecstore.layout import State
from vecstore.store import Store

DIM = 8
ENCODER = HashEncoder(DIM)
SENTENCES = ["Red apples.", "Green apples.", "A late train.", "Trains are late.", "One pear."]
CHUNKING = Chunking(tokens=8)

stories = st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=7).map(" ".join)
records = st.lists(st.tuples(stories, st.booleans()), min_size=1, max_size=25)


def cut(text):
    spans = chunking.cut(text, chunking.approximate(text), CHUNKING.tokens)
    return [text[start:end] for start, end in spans]


def embed(text):
    return ENCODER.encode([text])[0]


def story(number, sentences=6):
    return " ".join(f"Sentence {number} and {place}." for place in range(sentences))


def rolled_back(db, work):
    """Do something in a transaction that is given up."""
    try:
        with db.transaction():
            work()
            assert any(record.passages for record in db.collection("c").scan())
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def fill(db, items, metric="cosine", name="c", **declared):
    """A collection and its model, with texts of which some are cut."""
    collection = db.collection(name, encoder=ENCODER, metric=metric, **declared)
    model = Model(DIM, metric, embed, cut=cut)
    for number, (text, chunk) in enumerate(items):
        collection.add(text, ids=number, metadata={"n": number}, chunk=chunk and CHUNKING)
        model.put(number, None, text, {"n": number}, chunk=chunk)
    return collection, model


@given(records, st.sampled_from(["cosine", "dot", "l2"]), st.data())
def test_records_are_as_near_as_their_best_passages(items, metric, data):
    with vecstore.open(":memory:", durable=False) as db:
        collection, model = fill(db, items, metric)
        query = embed(data.draw(stories))
        for _ in range(4):
            k, offset = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 10))
            options = {
                "where": data.draw(st.sampled_from([None, {"n": {"$gte": 5}}, {"n": 99}])),
                "min_score": data.draw(st.none() | st.floats(-1, 1)),
                "dims": data.draw(st.none() | st.integers(1, DIM)),
            }
            if options["dims"] and not query[: options["dims"]].any():
                continue
            hits = collection.search(query, k, offset=offset, **options)
            model.check(hits, query, k, offset=offset, **options)
            assert [hits] == collection.search_many([query], k, offset=offset, **options)
        with db.transaction():
            model.check(collection.search(query, 5), query, 5)


@given(records, st.sampled_from(["cosine", "l2"]), st.integers(1, 4), stories)
def test_pages_behind_a_hit_go_on_where_it_was(items, metric, k, text):
    with vecstore.open(":memory:", durable=False) as db:
        collection, _ = fill(db, items, metric)
        query, found, after = embed(text), [], None
        while page := collection.search(query, k, after=after):
            found += page
            after = page[-1]

        assert found == list(collection.search(query, len(items), recall="exact"))


@pytest.mark.parametrize("kind", ["hash", "ivf"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_records_are_found_through_an_index(kind, metric):
    rng = np.random.default_rng(3)
    with vecstore.open(":memory:", durable=False) as db:
        collection = db.collection("c", encoder=HashEncoder(24), metric=metric, index=kind)
        texts = [story(number, int(rng.integers(1, 14))) for number in range(130)]
        collection.add(texts, ids=range(130), chunk=CHUNKING)
        collection.optimize()
        queries = HashEncoder(24).encode([f"sentence {n} and {n % 7}" for n in range(20)])
        exact = collection.search_many(queries, 10, recall="exact")
        near = collection.search_many(queries, 10)
        single = [collection.search(query, 10) for query in queries]

        assert db.check() == []
        assert near == single
        assert {hits.plan.method for hits in near} == {"index"}
        shared = 0
        for found, right in zip(near, exact, strict=True):
            assert len(set(found.ids)) == 10
            shared += len(set(found.ids) & set(right.ids))
        assert shared >= 0.9 * 200
        assert collection.audit(sample=20).holds
        assert collection.explain(queries[0]).hits == near[0]


def test_a_record_with_many_near_passages_leaves_room_for_others(memory):
    collection = memory.collection("c", encoder=ENCODER)
    collection.add(" ".join(["Red apples."] * 200), ids="many", chunk=CHUNKING)
    collection.add(["Green apples.", "A late train.", "One pear."], ids=["a", "b", "c"])

    hits = collection.search("red apples", 3)

    assert hits.ids[0] == "many"
    assert len(set(hits.ids)) == 3
    assert hits.complete == "exact"
    assert len(collection.search("red apples", 9)) == 4


def test_what_a_record_and_a_hit_tell(memory):
    collection = memory.collection("c", encoder=ENCODER)
    text = "Red apples. Green apples. A late train."
    collection.add([text, "One pear."], ids=["long", "short"], chunk=CHUNKING)

    long, short = collection.get(["long", "short"], include=("text", "vector"))
    (best,) = collection.search("late train", 1, include=("vector",))

    passages = (Passage(0, 0, 25, text[:25]), Passage(1, 26, 39, text[26:]))
    assert long.passages == passages
    assert short.passages == ()
    assert (long.vector == np.array([embed(part) for part in cut(text)])).all()
    assert short.vector.shape == (DIM,)
    assert best.passage == passages[1]
    assert best.text is None
    assert (best.vector == embed(passages[1].text)).all()
    assert best.to_dict()["passage"] == {"index": 1, "start": 26, "end": 39, "text": text[26:]}
    assert collection.get("long", include=()).passages[1] == Passage(1, 26, 39)
    assert "A late train." in str(collection.search("late train"))
    assert "Red apples." not in str(collection.search("late train", 1))
    assert [record.id for record in collection.scan()] == ["long", "short"]
    stats = collection.stats()
    assert (stats["records"], stats["vectors"], len(collection)) == (2, 3, 2)
    assert collection.count({"$id": {"$in": ["long"]}}) == 1


def test_passages_are_replaced_kept_and_deleted_with_their_record(db):
    collection = db.collection("c", encoder=ENCODER)
    collection.add([story(1), story(2)], ids=[1, 2], chunk=CHUNKING)
    count = len(collection.get(1).passages)

    def vectors():
        assert db.check() == []
        return collection.stats()["vectors"]

    assert vectors() == 2 * count
    collection.update(1, metadata={"a": 1})
    assert vectors() == 2 * count
    assert len(collection.get(1).passages) == count
    collection.update(1, text=story(3, 12))
    assert len(collection.get(1).passages) == 2 * count
    assert vectors() == 3 * count
    collection.update(1, text=story(3), chunk=False)
    assert vectors() == count + 1
    collection.update(1, text=story(3), chunk=CHUNKING)
    collection.update(2, vector=embed("anything"))
    assert collection.get(2).passages == ()
    assert collection.get(2).text == story(2)
    assert vectors() == count + 1
    collection.upsert([story(1), story(2)], ids=[1, 2], chunk=CHUNKING)
    assert vectors() == 2 * count
    collection.upsert(story(1), ids=1)
    assert vectors() == count + 1
    assert collection.delete(where={"$id": 2}) == 1
    assert vectors() == 1


def test_a_failure_keeps_passages_as_they_were(db):
    def fails(texts):
        if any("99" in text for text in texts):
            raise ValueError("no")
        return ENCODER.encode(texts)

    collection = db.collection("c", encoder=FunctionEncoder(fails, name="f", dim=DIM))
    collection.add(story(1), ids=1, chunk=CHUNKING)
    before = collection.get(1, include=("text", "vector"))
    with pytest.raises(EncoderError, match="no"):
        collection.upsert(["fine", story(99)], ids=[2, 1], chunk=CHUNKING)
    rolled_back(db, lambda: collection.upsert(story(2, 9), ids=1, chunk=CHUNKING))

    after = collection.get(1, include=("text", "vector"))
    assert (after.vector == before.vector).all()
    assert after.passages == before.passages
    assert len(collection) == 1


def test_a_stream_is_chunked(memory):
    collection = memory.collection("c", encoder=ENCODER)
    items = [{"id": n, "text": story(n)} for n in range(5)]
    items.append({"id": 5, "text": story(5), "vector": embed("own")})

    assert collection.add_records(items, chunk=CHUNKING, batch=2) == 6
    assert [bool(record.passages) for record in collection.scan()] == [True] * 5 + [False]


def test_what_chunking_cannot_be_asked_for(memory):
    collection = memory.collection("c", encoder=ENCODER)

    with pytest.raises(UsageError, match="chunk='yes' must be True, False or a Chunking"):
        collection.add("a", chunk="yes")
    with pytest.raises(UsageError, match="leave out vectors, or chunk"):
        collection.add("a", vectors=embed("a"), chunk=True)
    with pytest.raises(EncoderError, match="late chunking is not possible"):
        collection.add(story(1), chunk=Chunking(tokens=5, late=True))
    with pytest.raises(UsageError, match="no encoder"):
        memory.collection("bare", dim=4).add("a", chunk=True)
    assert len(collection) == 0


def test_an_encoder_that_fails_to_say_what_it_reads_stores_nothing(memory):
    def broken(encoder):
        raise OSError("no such tokenizer")

    encoder = type("Broken", (HashEncoder,), {"room": property(broken)})(dim=4)
    collection = memory.collection("c", encoder=encoder)

    with pytest.raises(EncoderError, match="no such tokenizer"):
        collection.add(story(1), chunk=True)
    assert len(collection) == 0


def test_an_encoder_may_do_to_its_spans_what_it_likes(memory):
    class Greedy(HashEncoder):
        def encode_passages(self, text, spans):
            vectors = self.encode([text[start:end] for start, end in spans])
            spans.clear()
            return vectors

    collection = memory.collection("c", encoder=Greedy(dim=4))
    collection.add(story(1), ids="a", chunk=Chunking(tokens=5, late=True))

    assert len(collection.get("a").passages) > 1


# The file


@pytest.fixture
def chunked(tmp_path):
    """A file with passages: orders 0 and 1 are records, 2 to 4 passages of the first."""
    path = tmp_path / "chunked.vecstore"
    with vecstore.open(path) as db:
        collection = db.collection("c", encoder=ENCODER)
        text = "Red apples. A late train. One pear. Green apples."
        collection.add([text, "One pear."], ids=["long", "short"], chunk=Chunking(tokens=4))
        assert len(collection.get("long").passages) == 4
    return path


def test_only_files_with_passages_need_a_newer_release(tmp_path, monkeypatch):
    path = tmp_path / "file.vecstore"
    with vecstore.open(path) as db:
        db.collection("c", encoder=ENCODER).add("short", chunk=True)
        assert db.stats()["format"] == 1
        rolled_back(db, lambda: db.collection("c").add(story(1), chunk=CHUNKING))
        assert db.stats()["format"] == 1
    monkeypatch.setattr(layout, "FORMAT", 1)
    vecstore.open(path).close()
    monkeypatch.undo()
    with vecstore.open(path) as db:
        db.collection("c", encoder=ENCODER).add(story(1), ids=1, chunk=CHUNKING)
        assert db.stats()["format"] == 2
    monkeypatch.setattr(layout, "FORMAT", 1)
    with pytest.raises(FormatError, match="has format 2, this release reads 1 to 1"):
        vecstore.open(path)


def write(path, work):
    store = Store(path)
    store.write(work)
    store.close()


def body(order, *parts):
    """Give an order another body, with a right checksum."""

    def work(txn):
        key = layout.record_key(1, order)
        row = record_layout.check_record(key, txn.get("records", key))
        value = record_layout.pack_record(key, row, msgpack.packb(parts))
        txn.put("records", key, value)

    return work


def remove(order):
    return lambda txn: txn.delete("records", layout.record_key(1, order))


def counter(change):
    def work(txn):
        state = State.unpack(txn.get("meta", layout.state_key(1)))
        state.passages += change
        txn.put("meta", layout.state_key(1), state.pack())

    return work


def old_format(txn):
    txn.put("meta", layout.KEY_FORMAT, layout.pack_format(1, 1))


TEXT = "Red apples. A late train. One pear. Green apples."
SPANS = [0, 11, 12, 25, 26, 35, 36, 49]


def parent(orders=(2, 3, 4), spans=SPANS, chunk=(4, 0, False), text=TEXT, metadata=None):
    return body(0, "long", text, metadata, chunk, orders, spans)


DAMAGE = {
    "a passage is missing": remove(3),
    "a passage of itself": body(3, 3, 2, 26, 35),
    "a passage of a passage": body(3, 2, 1, 26, 35),
    "a passage of a later record": body(3, 9, 1, 26, 35),
    "a passage of nothing": body(4, 3, 1, 26, 35),
    "a passage of another record": body(3, 1, 1, 0, 3),
    "another index": body(3, 0, 1, 26, 35),
    "an index beyond": body(3, 0, 9, 26, 35),
    "another span": body(3, 0, 2, 25, 35),
    "an empty span": body(3, 0, 2, 26, 26),
    "a negative number": body(3, 0, 2, -26, 35),
    "no number": body(3, 0, 2, "26", 35),
    "a float": body(3, 0, 2, 26.0, 35),
    "too large a number": body(3, 0, 2, 26, 2**63),
    "a record in the place of a passage": body(3, "long", "text", None),
    "a passage in the place of a record": body(1, 0, 1, 12, 25),
    "five parts": body(3, 0, 2, 26, 35, 1),
    "a record that forgot a passage": parent((2, 3), SPANS[:6]),
    "a record without passages": body(0, "long", TEXT, None),
    "orders that do not ascend": parent((3, 2, 4)),
    "its own order": parent((0, 3, 4)),
    "an order of no passage": parent((2, 3, 7)),
    "the order of a record": parent((1, 2, 3, 4), [0, 3, 4, 11, *SPANS[2:]]),
    "one passage": parent((), [0, 11]),
    "a span beyond the text": parent(spans=[*SPANS[:7], 50]),
    "spans that do not ascend": parent(spans=[12, 25, 0, 11, *SPANS[4:]]),
    "half a span": parent(spans=SPANS[:7]),
    "no spans": parent(spans=7),
    "passages of no text": parent(text=None),
    "an impossible chunking": parent(chunk=(0, 0, False)),
    "a chunking of other things": parent(chunk=("a", [], {}, 1)),
    "a counter too high": counter(1),
    "a counter too low": counter(-1),
    "a counter of none": counter(-3),
    "an old format": old_format,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_and_never_a_wrong_answer(chunked, tmp_path, damage):
    path = shutil.copy(chunked, tmp_path / "damaged.vecstore")
    write(path, damage)
    known = {"long": TEXT, "short": "One pear."}
    with vecstore.open(path) as db:
        assert db.check() != []
        collection = db.collection("c", encoder=ENCODER)
        for work in (
            lambda: collection.search(embed("late train"), 2),
            lambda: collection.search(embed("one pear"), 1, include=()),
            lambda: collection.search(embed("one pear"), 9, where={"$id": "long"}),
            lambda: collection.scan(include=("text", "vector")),
            lambda: collection.get(["long", "short"], include=("text", "vector")),
        ):
            try:
                found = list(work())
            except CorruptionError:
                continue
            for item in filter(None, found):
                assert item.id in known
                passage = getattr(item, "passage", None)
                if passage is not None:
                    assert passage.text == TEXT[passage.start : passage.end] != ""
        try:
            collection.delete("long")
        except CorruptionError:
            assert len(collection) == 2


def test_a_file_with_passages_is_sound_and_reads_the_same_elsewhere(chunked, run_python):
    found = run_python(
        """
        import json, sys, vecstore
        from vecstore.encoders import HashEncoder
        with vecstore.open(sys.argv[1], read_only=True) as db:
            assert db.check() == []
            hits = db.collection("c", encoder=HashEncoder(8)).search("late train", 2)
            print(json.dumps(hits.to_dicts()))
        """,
        chunked,
    )

    first, second = json.loads(found)
    assert first["passage"] == {"index": 1, "start": 12, "end": 25, "text": "A late train."}
    assert first["text"] == TEXT
    assert "passage" not in second
