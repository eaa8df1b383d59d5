"""What does training make of a snapshot? All of its rows, coded and placed, the same every time."""

from dataclasses import replace

import numpy as np
import pytest
from indexed import DIM, clusters

from vecstore import Database, catalog, maintenance
from vecstore.ann import index, ivf, training
from vecstore.ann.ivf import Draft

WIDE = 192


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
    # Rows of the open block are in no list, as they will be.
    assert ((draft.lists == draft.model.lists) == (draft.codes.rows >= 448)).all()
    listed = draft.codes.rows < 448
    assert (draft.model.assign(vectors) == draft.lists)[listed].mean() > 0.99
    again = draft.model.encode(vectors, draft.lists, draft.codes.rows)
    assert (again.groups == draft.codes.groups).mean() > 0.999


@pytest.mark.parametrize("count", [447, 448, 449])
@pytest.mark.parametrize("more", [0, 1, 64])
def test_a_block_that_was_open_in_training_stays_in_the_tail(memory, count, more) -> None:
    filled(memory, count)
    draft = train(memory)
    points = memory.collection("points")
    if more:
        points.add(vectors=clusters(more, 5))
    with memory.reading() as reader:
        entry = catalog.find(reader, "points")
    memory.writing(lambda txn: maintenance.set_kind(txn, entry, "ivf", draft))

    assert memory.check() == []
    assert points.stats()["lists"] == draft.model.lists
    queries = clusters(20, 7)
    near, true = (points.search_many(queries, recall=recall) for recall in (0.95, "exact"))
    shares = [len({*a.ids} & {*b.ids}) / 10 for a, b in zip(near, true, strict=True)]
    assert np.mean(shares) > 0.9


def test_what_is_found_is_also_in_the_tail_under_dot(memory) -> None:
    # Little of the queries tells rows apart; codes are off by the rest, those in the tail most.
    vectors = np.ones((600, 16), np.float32)
    vectors[:, 0] = np.arange(600) / 600
    points = memory.collection("points", dim=16, metric="dot", index="flat")
    points.add(vectors=vectors, ids=range(600))
    points.reindex("ivf")
    assert points.stats()["tail_rows"] == 24

    for query in vectors[7::50]:
        hits = points.search(query)
        assert hits.plan.method == "index"
        assert len({*hits.ids} & set(range(590, 600))) >= 9


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
    for sizes in ((), (dim,), (dim // 2, dim)):
        found = training.shapes(dim, sizes)
        assert len(set(found)) == len(found)
        for coded, bits in found:
            assert 1 <= coded <= dim
            assert bits in (1, 2, 4)
        assert found[0] == (dim, 1)


def test_prefixes_that_vectors_were_made_for_are_tried() -> None:
    assert {(64, 4), (128, 2), (256, 1)} <= {*training.shapes(384, (64, 128, 256, 384))}
    assert (256, 2) in training.shapes(768, (64, 256, 768))


# Own numbers, or directions


def weighed(draft: Draft) -> dict[tuple[float, ...], float]:
    """What a query reads with each of the codes tried, weighed: by dims, bits and directions."""
    found: dict[tuple[float, ...], float] = {}
    for coded, bits, _, _, read, kept in draft.budgets["measured"]:
        # Those that are along directions come first.
        usual = len(found) < len(training.shapes(WIDE))
        found[coded, bits, kept] = read / (1 if usual else training.OWN_WORTH)
    return found


def chosen(draft: Draft) -> tuple[float, ...]:
    return (*draft.model.schedule[0], draft.model.directions.rows)


@pytest.fixture(scope="module")
def decaying() -> np.ndarray:
    """Vectors whose first numbers say most, as an encoder with declared prefixes makes them."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(300, WIDE))
    points = centres[rng.integers(0, len(centres), 2000)] + 0.5 * rng.normal(size=(2000, WIDE))
    return (points / (1 + np.arange(WIDE))).astype(np.float32)


@pytest.fixture(scope="module")
def turned(decaying) -> np.ndarray:
    """The same vectors in other axes, where a prefix says little."""
    axes, _ = np.linalg.qr(np.random.default_rng(6).normal(size=(WIDE, WIDE)))
    return (decaying @ axes).astype(np.float32)


def draft_of(db: Database, vectors: np.ndarray, **declared) -> Draft:
    db.collection("points", dim=WIDE, **declared).add(vectors=vectors)
    return train(db)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_own_prefixes_are_taken_where_they_are_as_good(memory, decaying, metric: str) -> None:
    draft = draft_of(memory, decaying, metric=metric, mrl=(48, 96, WIDE))
    costs = weighed(draft)

    assert draft.model.directions.rows == 0
    assert chosen(draft) == min(costs, key=costs.get)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_directions_are_taken_where_prefixes_are_no_good(memory, turned, metric: str) -> None:
    draft = draft_of(memory, turned, metric=metric, mrl=(48, 96, WIDE))
    costs = weighed(draft)

    assert draft.model.directions.rows > 0
    assert chosen(draft) == min(costs, key=costs.get)
    assert min(cost for shape, cost in costs.items() if not shape[2]) > 1.2 * min(costs.values())


def test_own_prefixes_are_tried_with_lists_along_directions_too(memory, decaying) -> None:
    draft = draft_of(memory, decaying, mrl=(48, 144, WIDE))

    assert {(144, 1, kept) for kept in (0, 128)} <= weighed(draft).keys()
    assert (48, 4, 0) in weighed(draft)


def test_prefixes_that_nobody_declared_are_not_tried(memory, decaying) -> None:
    draft = draft_of(memory, decaying)

    assert {row[:2] for row in map(tuple, draft.budgets["measured"])} == {*training.shapes(WIDE)}
    assert all(row[5] > 0 for row in draft.budgets["measured"])


def test_a_stated_schedule_leaves_the_choice_of_directions(memory, decaying, turned) -> None:
    stated = ((96, 2),)
    for name, vectors, own in (("good", decaying, True), ("bad", turned, False)):
        points = memory.collection(name, dim=WIDE, mrl=(96,), tiers=stated, index="ivf")
        points.add(vectors=vectors)
        with memory.reading() as reader:
            entry = catalog.find(reader, name)
            draft = training.train(reader, entry, catalog.state(reader, entry.number))
        assert draft.model.schedule == (*stated, (WIDE, 4))
        assert [row[:2] for row in draft.budgets["measured"]] == 2 * [[96, 2]]
        assert (draft.model.directions.rows == 0) == own


def test_what_was_measured_of_codes_outlives_a_calibration(memory, decaying) -> None:
    def plan() -> dict:
        with memory.reading() as reader:
            entry = catalog.find(reader, "points")
            return index.load(reader, entry, catalog.state(reader, entry.number)).budgets

    points = memory.collection("points", dim=WIDE, index="ivf", mrl=(96,))
    points.add(vectors=decaying)
    assert points.optimize()["trained"]
    before = plan()
    assert not points.optimize()["trained"]
    assert before["measured"] == plan()["measured"]
    # As files have it that were written before directions were counted, or anything was tried.
    for older in ([row[:5] for row in before["measured"]], None):
        budgets = {name: part for name, part in before.items() if name != "measured"}
        budgets |= {} if older is None else {"measured": older}
        save(memory, budgets)
        assert "measured" in points.search(decaying[0]).plan.reason
        assert points.optimize()["calibrated"]
        assert plan().get("measured") == older


def save(db: Database, budgets: dict) -> None:
    def work(txn) -> None:
        entry = catalog.find(txn, "points")
        found = index.load(txn, entry, catalog.state(txn, entry.number))
        index.save_plan(txn, entry.number, replace(found, budgets=budgets))

    db.writing(work)


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
