"""While one thing is done the next is made ready: order, errors, interrupts, one thread."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vecstore
from vecstore import EncoderError, UsageError, formats
from vecstore.behind import behind
from vecstore.encoders import FunctionEncoder, HashEncoder
from vecstore.loading import Loader

DIM = 8
HASH = HashEncoder(DIM)


def drain(iterator):
    """What an iterator yields, and what it raises in the end."""
    found = []
    try:
        found.extend(iterator)
    except BaseException as error:
        return found, repr(error)
    return found, None


@given(st.integers(0, 6), st.none() | st.integers(0, 6), st.none() | st.integers(0, 6))
def test_results_and_errors_are_those_of_map(count, drawing, working):
    def items(done):
        for i in range(count):
            if i == drawing:
                raise KeyboardInterrupt(i)
            yield i

    def work(i):
        done.append(i)
        if i == working:
            raise ValueError(i)
        return i * i

    done = []
    expected = drain(map(work, items(done)))
    worked, done = done, []
    assert drain(behind(work, items(done))) == expected
    assert done == worked


def test_the_next_is_drawn_while_work_is_going_on():
    drawn, threads = threading.Event(), set()

    def items():
        yield 1
        drawn.set()
        threads.add(threading.current_thread())
        yield 2

    def work(item):
        assert drawn.wait(20)
        assert threading.current_thread() not in threads
        return item

    assert list(behind(work, items())) == [1, 2]
    assert threads == {threading.current_thread()}


def test_who_stops_listening_waits_for_work():
    done = []

    def work(item):
        time.sleep(0.02)
        done.append(item)
        return item

    found = behind(work, range(9))
    assert next(found) == 0
    found.close()
    assert done in ([0], [0, 1])


# Streams of records


def stream(count, start=0):
    return ({"id": i, "text": f"text {i}"} for i in range(start, start + count))


def counted(db, **failures):
    """A collection whose encoder notes what it embeds, and fails where it is told."""
    seen = []

    def embed(texts):
        seen.extend(texts)
        for text in texts:
            if text in failures.get("on", {}):
                raise failures["on"][text]
        return HASH.encode(texts)

    encoder = FunctionEncoder(embed, name="counted", version="1", dim=DIM)
    return db.collection("c", encoder=encoder), seen


@pytest.mark.parametrize("upsert", [False, True])
def test_a_stream_is_stored_in_its_order_with_the_right_vectors(db, upsert):
    notes, seen = counted(db)
    assert notes.add_records(stream(50), upsert=upsert, batch=7) == 50
    assert seen == [f"text {i}" for i in range(50)]
    found = list(notes.scan(include=("text", "vector")))
    assert [record.id for record in found] == list(range(50))
    vectors = db.collection("plain", encoder=HASH)
    vectors.add(seen, ids=range(50))
    expected = [one.vector for one in vectors.get(range(50), include=("vector",))]
    np.testing.assert_array_equal([record.vector for record in found], expected)


@pytest.mark.parametrize("inside", [False, True])
def test_a_text_that_comes_again_in_the_next_batch_is_embedded_once(db, inside):
    notes, seen = counted(db)
    items = [{"text": f"text {i % 5}"} for i in range(40)]
    if inside:
        with db.transaction():
            notes.add_records(items, batch=4)
    else:
        notes.add_records(items, batch=4)
    assert seen == [f"text {i}" for i in range(5)]
    assert notes.count() == 40


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ValueError("no"), EncoderError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_what_fails_in_embedding_leaves_all_batches_before_it(db, error, raised):
    notes, _ = counted(db, on={"text 12": error})
    with pytest.raises(raised) as found:
        notes.add_records(stream(20), batch=5)
    if raised is EncoderError:
        assert "the first 10 records of the stream are stored" in found.value.__notes__[0]
    assert notes.count() == 10
    assert db.check() == []


def test_what_fails_in_writing_leaves_nothing_after_it(db):
    notes, _ = counted(db)

    def items():
        yield from stream(10)
        yield from stream(4, start=10)
        yield {"id": 3, "text": "again"}
        yield from stream(10, start=20)

    with pytest.raises(vecstore.AlreadyExistsError) as found:
        notes.add_records(items(), batch=5)
    assert "the first 10 records" in found.value.__notes__[0]
    assert notes.count() == 10


def test_a_bad_record_behind_a_batch_that_is_being_written(db):
    notes, _ = counted(db)
    with pytest.raises(UsageError, match="not a str") as found:
        notes.add_records([*stream(10), {"text": 7}], batch=5)
    assert "the first 10 records" in found.value.__notes__[0]
    assert notes.count() == 10


def test_encoder_and_stream_stay_in_the_thread_of_the_caller(db):
    threads = set()

    def embed(texts):
        threads.add(threading.current_thread())
        return HASH.encode(texts)

    def items():
        threads.add(threading.current_thread())
        yield from stream(30)

    encoder = FunctionEncoder(embed, name="mine", version="1", dim=DIM)
    db.collection("c", encoder=encoder).add_records(items(), batch=4)
    assert threads == {threading.current_thread()}


def items(rows):
    return [formats.Item(row, f"line {number}", 10) for number, row in enumerate(rows, 1)]


def loaded(loader, rows):
    """The bytes that were stored, and the error."""
    sizes = []
    try:
        loader.load(items(rows), sizes.append)
    except UsageError as error:
        return sum(sizes), str(error)
    return sum(sizes), None


@pytest.mark.parametrize("bad", [0, 199, 200, 399, 430, 649])
@pytest.mark.parametrize("kind", ["text", "taken", "vector"])
def test_a_loader_finds_a_bad_record_and_stores_what_precedes_it(memory, bad, kind):
    notes, seen = counted(memory)
    rows = [{"id": i, "text": f"text {i}", "vector": None} for i in range(650)]
    taken = notes.add("there", ids=-1) if kind == "taken" else []
    broken = {"text": {"text": 7}, "taken": {"id": -1}, "vector": {"vector": [1, 2]}}[kind]
    rows[bad] |= broken
    loader = Loader(notes, upsert=False)
    size, error = loaded(loader, rows)
    assert error.startswith(f"line {bad + 1}: ")
    assert loader.count == bad == notes.count() - len(taken)
    assert size <= 10 * bad
    assert [record.id for record in notes.scan()] == [*([-1] if taken else []), *range(bad)]
    assert len(set(seen)) == len(seen)


def test_a_loader_stores_all_of_a_stream(memory):
    notes, _ = counted(memory)
    rows = [{"text": f"text {i % 400}"} for i in range(901)]
    rows[450]["vector"] = [1] * DIM
    loader = Loader(notes, upsert=True)
    assert loaded(loader, rows) == (9010, None)
    assert loader.count == notes.count() == 901


def test_a_loader_that_meets_a_broken_file_has_stored_what_precedes(memory):
    notes, _ = counted(memory)

    def broken():
        yield from items({"text": f"text {i}"} for i in range(430))
        raise UsageError("line 431: no JSON")

    loader = Loader(notes, upsert=False)
    with pytest.raises(UsageError, match="431"):
        loader.load(broken(), lambda size: None)
    assert loader.count == notes.count() == 430
