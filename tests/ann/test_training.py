"""What does training make of a snapshot? All of its rows, coded and placed, the same every time."""

import numpy as np
import pytest
from indexed import DIM, clusters

from vecstore import Database, catalog, maintenance
from vecstore.ann import ivf, training
from vecstore.ann.ivf import Draft


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch) -> None:
    monkeypatch.setattr(maintenance, "due", lambda *_: None)


def filled(db: Database, count: int, **declared) -> None:
    points = db.collection("points", dim=DIM, **declared)
    points.add(vectors=clusters(count), ids=range(count))


def train(db: Database, **options) -> Draft:
    with db.reading() as reader:
        entry = catalog.find(reader, "points")
        return training.train(reader, entry, catalog.state(reader, entry.number), **options)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_a_draft_covers_the_living_rows(memory, metric: str) -> None:
    filled(memory, 500, metric=metric)
    memory.collection("points").delete(range(5, 500, 10))
    draft = train(memory)

    assert draft.count == 450
    assert draft.codes.rows.tolist() == [n for n in range(500) if n % 10 != 5]
    assert draft.blocks.tolist() == list(range(8))
    assert draft.model.lists == ivf.lists_for(450)
    vectors = clusters(500)[draft.codes.rows]
    if metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (draft.model.assign(vectors) == draft.lists).mean() > 0.99
    again = draft.model.encode(vectors, draft.lists, draft.codes.rows)
    assert (again.groups == draft.codes.groups).mean() > 0.999


def test_training_again_gives_the_same_draft(memory) -> None:
    filled(memory, 400)
    one, other = train(memory), train(memory)

    assert np.array_equal(one.lists, other.lists)
    assert np.array_equal(one.codes.groups, other.codes.groups)
    assert one.budgets == other.budgets


def test_it_does_not_matter_how_many_blocks_are_in_memory_together(memory, monkeypatch) -> None:
    filled(memory, 400)
    one = train(memory)
    monkeypatch.setattr(training, "BLOCKS_AT_ONCE", 2)
    other = train(memory)

    assert np.array_equal(one.lists, other.lists)
    assert np.array_equal(one.codes.groups, other.codes.groups)


def test_progress_ascends_to_one(memory) -> None:
    filled(memory, 700)
    shares: list[float] = []
    train(memory, progress=shares.append)

    assert shares == sorted(shares)
    assert len(shares) > 3
    assert shares[-1] == 1


def test_without_lists_all_rows_stay_in_the_tail(memory) -> None:
    filled(memory, 300)
    draft = train(memory, lists=0)

    assert (draft.model.lists, len(draft.blocks), len(draft.codes.rows)) == (0, 0, 0)
    assert draft.budgets["sizes"]


@pytest.mark.parametrize("dim", [2, 3, 8, 63, 64, 65, 200])
def test_codes_of_every_width_are_of_known_shapes(dim: int) -> None:
    for coded, bits in training.shapes(dim):
        assert 1 <= coded <= dim
        assert bits in (1, 2, 4)
    assert training.shapes(dim)[0] == (dim, 1)


def test_rows_that_are_asked_for_are_not_learnt_from_where_there_are_others(memory) -> None:
    filled(memory, 1500)
    with memory.reading() as reader:
        entry = catalog.find(reader, "points")
        state = catalog.state(reader, entry.number)
        rng = np.random.default_rng(0)
        sample, asked = training._sample(reader, entry, state, np.arange(1500), 2, rng)
        vectors = ivf.gather(reader, entry, state, asked)

    assert len(asked) == training.QUERIES
    assert len(sample) == 512
    learnt = {vector.tobytes() for vector in sample}
    assert not any(vector.tobytes() in learnt for vector in vectors)


def test_a_file_without_records_is_measured_by_nobody(memory) -> None:
    memory.collection("points", dim=DIM, index="hash")
    with memory.reading() as reader:
        entry = catalog.find(reader, "points")
        draft = training.untrained(entry)

    assert draft.budgets["measured"] is False
    assert draft.model.lists == draft.count == 0
