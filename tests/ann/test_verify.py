"""Every invariant of an index, broken on purpose: check says so, and searches stay honest."""

import contextlib
import shutil
from dataclasses import replace

import numpy as np
import pytest

import vecstore
from vecstore import (
    CorruptionError,
    VecstoreError,
    catalog,
    index_layout,
    layout,
    maintenance,
    rows,
)
from vecstore.ann import codes, compiled, index
from vecstore.index_layout import LISTED, MODEL, NO_LIST, PLAN
from vecstore.layout import BLOCK_ROWS, CODE_TIER, LIST_PART_ROWS, Header

DIM, NUMBER = 24, 1
# Rows in lists, rows written later, and rows that die in each part.
FIRST, LATER = 900, 150
QUERIES = np.random.default_rng(11).normal(size=(4, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file with lists, a tail of three blocks, dead rows in both, and a collection without."""
    path = tmp_path_factory.mktemp("verify") / "sound.vecstore"
    rng = np.random.default_rng(7)
    with vecstore.open(path) as db:
        points = db.collection("points", dim=DIM, metric="l2", index="ivf")
        points.add(vectors=rng.normal(size=(FIRST, DIM)), ids=range(FIRST))
        points.add(vectors=rng.normal(size=(LATER, DIM)), ids=range(FIRST, FIRST + LATER))
        points.delete([*range(64), *range(70, 80), *range(FIRST, FIRST + 20, 4)])
        others = db.collection("others", dim=DIM, metric="l2")
        others.add(vectors=rng.normal(size=(70, DIM)))
        hashed = db.collection("hashed", dim=DIM, index="hash")
        hashed.add(vectors=rng.normal(size=(400, DIM)), ids=range(400))
        assert db.check() == []
    return path


@pytest.fixture
def db(sound, tmp_path, monkeypatch):
    """A copy of the file; numpy answers, so that nothing is compiled meanwhile."""
    monkeypatch.setattr(compiled, "ready", lambda name: None)
    database = vecstore.open(shutil.copy(sound, tmp_path / "copy.vecstore"))
    yield database
    database.close()


def loaded(reader, name="points"):
    entry = catalog.find(reader, name)
    state = catalog.state(reader, entry.number)
    return entry, state, index.load_anew(reader, entry, state)


def put(database, key, value):
    return lambda txn: txn.put(database, key, value)


def drop(database, key):
    def work(txn):
        assert txn.delete(database, key)

    return work


def edit(database, key, change):
    """Change the bytes of a value."""

    def work(txn):
        value = bytearray(txn.get(database, key))
        txn.put(database, key, change(value) or value)

    return work


def flip(at):
    def change(value):
        value[at] ^= 1

    return change


def cut(value):
    return value[:60]


def copied(database, key, to):
    return lambda txn: txn.put(database, to, txn.get(database, key))


def in_turn(*works):
    def work(txn):
        for one in works:
            one(txn)

    return work


def plan_key(number=NUMBER):
    return index_layout.index_key(number, PLAN)


def model_key(number=NUMBER):
    return index_layout.index_key(number, MODEL)


def listed_key(number=NUMBER):
    return index_layout.index_key(number, LISTED)


def list_key(which):
    return index_layout.list_key(NUMBER, which)


def codes_key(block):
    return layout.block_key(NUMBER, block, CODE_TIER)


PART = index_layout.list_part_key(NUMBER, 0)
# The blocks of the tail: what was written later, and what was open when the lists were made.
LISTED_BLOCK, TAIL_BLOCK, OPEN_BLOCK = 3, 15, 16


def change_plan(**values):
    def work(txn):
        plan = layout.unpack_meta(txn.get("index", plan_key()), "plan")
        budgets = {**plan["budgets"], **values.pop("budgets", {})}
        txn.put("index", plan_key(), layout.pack_meta({**plan, "budgets": budgets, **values}))

    return work


def change_model(change, values=None):
    """Change the arrays of the model and give it a right checksum."""

    def work(txn):
        found, arrays = index_layout.unpack_bundle(txn.get("index", model_key()), NUMBER, "model")
        change(arrays)
        whole = {**found, **(values or {})}
        txn.put("index", model_key(), index_layout.pack_bundle(NUMBER, whole, arrays, txn.page))

    return work


def change_listed(change):
    def work(txn):
        _, _, found = loaded(txn)
        change(found.listed)
        index.save_listed(txn, NUMBER, found.listed)

    return work


def change_column(change):
    def work(txn):
        column = index.read_lists_of_rows(txn, NUMBER, loaded(txn)[2])
        change(column)
        parts = np.arange(-(-len(column) // LIST_PART_ROWS))
        index.save_lists_of_rows(txn, NUMBER, column, parts)

    return work


def largest(txn):
    """The two lists with the most rows."""
    _, _, found = loaded(txn)
    sizes = [
        len(index.read_list(txn, NUMBER, found.model, which).rows)
        for which in range(found.model.lists)
    ]
    return np.argsort(sizes)[::-1][:2].tolist()


def change_list(change):
    """Change the codes of the largest list, and give it a right checksum."""

    def work(txn):
        model, (which, other) = loaded(txn)[2].model, largest(txn)
        found = index.read_list(txn, NUMBER, model, which)
        index.save_list(
            txn, NUMBER, model, which, change(found, index.read_list(txn, NUMBER, model, other))
        )

    return work


def change_lists(change):
    """Change the codes of all lists, and give them right checksums."""

    def work(txn):
        model = loaded(txn)[2].model
        for which in range(model.lists):
            found = index.read_list(txn, NUMBER, model, which)
            index.save_list(txn, NUMBER, model, which, change(found))

    return work


def with_first_row(row):
    def change(found, other):
        rows = found.rows.copy()
        rows[0] = other.rows[0] if row is None else row
        return replace(found, rows=rows)

    return change


def other_codes(found):
    return replace(found, groups=found.groups ^ 5)


def other_scales(found):
    return replace(found, scales=found.scales * np.float32(1.5))


def other_offsets(found):
    return replace(found, offsets=found.offsets + np.float32(1))


def wild_numbers(found):
    scales = found.scales.copy()
    scales[::3], scales[1::3], scales[2::3] = np.nan, np.inf, -1e38
    return replace(found, scales=scales)


def change_codes(change, block=TAIL_BLOCK):
    def work(txn):
        model = loaded(txn)[2].model
        found = index.read_block_codes(txn, NUMBER, model, block)
        index.save_block_codes(txn, NUMBER, model, block, change(found))

    return work


def save_codes_of(block):
    """Codes for a block that must have none."""

    def work(txn):
        model = loaded(txn)[2].model
        found = index.read_block_codes(txn, NUMBER, model, TAIL_BLOCK)
        index.save_block_codes(txn, NUMBER, model, block, found)

    return work


def reseal(database, key, **fields):
    """Give a value another header, with a right checksum."""

    def work(txn):
        value = bytearray(txn.get(database, key))
        header = replace(layout.unpack_header(value, ""), **fields)
        txn.put(database, key, layout.seal_bulk(header, value, header.length))

    return work


def name_more_rows(txn):
    """Write rows that are there where the last tile of the largest list is filled up."""
    which, other = largest(txn)
    value = bytearray(txn.get("lists", list_key(which)))
    header = layout.unpack_header(value, "")
    model = loaded(txn)[2].model
    _, named, _ = index_layout.split_codes(value, layout.LIST, header.rows, model.shape)
    assert len(named) > header.rows
    foreign = index.read_list(txn, NUMBER, model, other).rows
    place = layout.HEADER.size + len(named) // 32 * model.shape.tile_bytes + header.rows * 4
    value[place : place + 4] = foreign[:1].astype("<u4").tobytes()
    txn.put("lists", list_key(which), layout.seal_bulk(header, value, header.length))


def take_out(txn):
    """Take a living row out of its list, and out of the column."""
    model, (which, _) = loaded(txn)[2].model, largest(txn)
    found, words = (
        index.read_list(txn, NUMBER, model, which),
        rows.live(txn, NUMBER, loaded(txn)[1]),
    )
    lives = [int(words[row >> 6]) >> (row & 63) & 1 for row in found.rows.tolist()]
    taken = np.arange(len(found.rows)) == lives.index(1)
    index.save_list(txn, NUMBER, model, which, found.take(~taken))
    change_column(lambda column: column.__setitem__(int(found.rows[taken][0]), NO_LIST))(txn)


def close_one(txn):
    """Close the largest list without emptying it."""
    which, _ = largest(txn)
    change_model(lambda arrays: arrays["closed"].__setitem__(which, 1))(txn)


def open_listed(txn):
    """Let a listed block be the open one."""
    state = catalog.state(txn, NUMBER)
    state.open_block = LISTED_BLOCK
    catalog.save_state(txn, NUMBER, state)


def assign(name, value):
    return lambda arrays: arrays.__setitem__(name, value(arrays[name]))


BROKEN = {
    # 9: what there is
    "a strange key in index": (put("index", index_layout.index_key(1, b"what"), b"x"), "(9)"),
    "a list too many": (copied("lists", list_key(1), list_key(9999)), "lists: key"),
    "a strange key in lists": (put("lists", b"\0\0\0\1abc", b"x"), "lists: key"),
    "a missing list": (drop("lists", list_key(1)), "are missing (9)"),
    "a part of the column too many": (
        copied("index", PART, index_layout.list_part_key(1, 7)),
        "index: key",
    ),
    "a model without a plan": (drop("index", plan_key()), "though there is no index (9)"),
    "codes without an index": (
        copied("tiers", codes_key(TAIL_BLOCK), layout.block_key(2, 0, CODE_TIER)),
        "though there is no index (9)",
    ),
    "a list without an index": (
        copied("lists", list_key(1), index_layout.list_key(2, 1)),
        "though there is no index (9)",
    ),
    "a plan for another collection": (copied("index", plan_key(), plan_key(2)), "is missing"),
    "plan and model for another": (
        in_turn(
            copied("index", plan_key(), plan_key(2)), copied("index", model_key(), model_key(2))
        ),
        "belongs to another value",
    ),
    "another collection's plan": (copied("index", plan_key(3), plan_key()), "edition"),
    "another collection's listed blocks": (
        copied("index", listed_key(3), listed_key()),
        "or the reverse",
    ),
    # The plan
    "a damaged plan": (edit("index", plan_key(), flip(9)), "checksum"),
    "a plan cut short": (edit("index", plan_key(), cut), "checksum"),
    "a plan of no kind": (change_plan(kind="tree"), "'tree' is no kind of index"),
    "a plan of another edition": (change_plan(edition=b"12345678"), "edition"),
    "a plan whose edition is no name": (change_plan(edition=7), "cannot be read"),
    "a plan without curves": (change_plan(budgets={"sizes": {}}), "cannot be read"),
    "a plan with a curve too short": (
        change_plan(budgets={"sizes": {"10": [[1.0, 1.0, 1.0]]}}),
        "cannot be read",
    ),
    "a plan with a gap that is none": (change_plan(budgets={"gap": "wide"}), "cannot be read"),
    "a plan that reaches nowhere": (change_plan(budgets={"gap": float("nan")}), "cannot be read"),
    # The model
    "a missing model": (drop("index", model_key()), "is missing"),
    "a damaged model": (edit("index", model_key(), flip(500)), "checksum"),
    "a model cut short": (edit("index", model_key(), cut), "claims"),
    "another collection's model": (copied("index", model_key(3), model_key()), "another value"),
    "a model of other vectors": (
        change_model(assign("mean", lambda mean: mean[:-1])),
        "mean is (23,), not (24,)",
    ),
    "a model whose matrix is too small": (
        change_model(assign("directions", lambda matrix: matrix[:, :4])),
        "directions has shape",
    ),
    "a model whose matrix is of floats": (
        change_model(assign("centroids", lambda matrix: matrix.astype(np.float32))),
        "centroids is of float32",
    ),
    "a model with scales that are not numbers": (
        change_model(assign("centroids_scales", lambda scales: scales * np.float32("nan"))),
        "not finite",
    ),
    "a model of 3 bits": (change_model(lambda arrays: None, {"bits": 3}), "3 bits"),
    "a model with fewer lists": (
        change_model(assign("closed", lambda closed: closed[:-1])),
        "closed is",
    ),
    "a model without a matrix": (change_model(lambda arrays: arrays.pop("mean")), "cannot be read"),
    # 10: lists and the rows they name
    "a damaged list": (edit("lists", list_key(1), flip(70)), "checksum"),
    "a list with another header": (reseal("lists", list_key(1), width=32), "another value"),
    "a list cut short": (edit("lists", list_key(1), cut), "list 1"),
    "a list under another's key": (copied("lists", list_key(2), list_key(1)), "another value"),
    "a list that claims more rows": (reseal("lists", list_key(1), rows=10**6), "rows in"),
    "a list of a row that is not there": (change_list(with_first_row(10**6)), "which is not (10)"),
    "a list of another's row": (change_list(with_first_row(None)), "in a list that is not theirs"),
    "rows in two lists": (change_list(with_first_row(None)), "in lists more than once (10)"),
    "a row that is not in its list": (change_list(with_first_row(None)), "not in their list (10)"),
    "a row twice in its list": (
        change_list(lambda found, other: codes.join([found, found.take(slice(0, 1))])),
        "in lists more than once (10)",
    ),
    "an emptied list": (change_list(lambda found, other: found.take(slice(0))), "not in their"),
    "rows behind the last of a list": (name_more_rows, "names rows beyond its last (10)"),
    "a closed list with rows": (close_one, "is closed and names"),
    # 10, 11: the column of lists
    "a damaged part of the column": (edit("index", PART, flip(60)), "checksum"),
    "a part of the column cut short": (edit("index", PART, cut), "claims"),
    "a missing part of the column": (drop("index", PART), "or the reverse"),
    "a part under another's key": (reseal("index", PART, first=16_384), "another value"),
    "a row in a list that is not there": (
        change_column(lambda column: column.__setitem__(200, 5000)),
        "there are no more than",
    ),
    "a row of the tail with a list": (
        change_column(lambda column: column.__setitem__(TAIL_BLOCK * 64, 0)),
        "or the reverse",
    ),
    "a row with another list": (
        change_column(lambda column: column.__setitem__(200, int(column[200]) ^ 1)),
        "in a list that is not theirs (10)",
    ),
    "a living row in no list": (take_out, "of blocks in lists, but in none (11)"),
    "damaged bits of listed blocks": (edit("index", listed_key(), flip(5)), "checksum"),
    "missing bits of listed blocks": (drop("index", listed_key()), "or the reverse"),
    "missing bits where no block is listed": (drop("index", listed_key(3)), "are missing (9)"),
    "bits beyond the last block": (
        put("index", listed_key(), layout.pack_checked(b"\xff" * 9)),
        "blocks beyond the last one",
    ),
    "a listed block that is not": (
        change_listed(lambda listed: listed.__setitem__(LISTED_BLOCK, False)),
        "or the reverse",
    ),
    "a block of the tail that is listed": (
        change_listed(lambda listed: listed.__setitem__(TAIL_BLOCK, True)),
        "or the reverse",
    ),
    "an open block in lists": (open_listed, "is open and in lists (11)"),
    # 12: codes of the tail
    "damaged codes": (edit("tiers", codes_key(TAIL_BLOCK), flip(70)), "checksum"),
    "codes cut short": (edit("tiers", codes_key(TAIL_BLOCK), cut), "claims"),
    "missing codes": (drop("tiers", codes_key(TAIL_BLOCK)), "has no codes (12)"),
    "missing codes of the open block": (drop("tiers", codes_key(OPEN_BLOCK)), "no codes (12)"),
    "codes of another block": (
        copied("tiers", codes_key(TAIL_BLOCK), codes_key(OPEN_BLOCK)),
        "another value",
    ),
    "codes of too few rows": (
        change_codes(lambda found: found.take(slice(40))),
        "has codes of 40 of its 64 rows (12)",
    ),
    "codes of a listed block": (save_codes_of(LISTED_BLOCK), "of no block in the tail (12)"),
    "codes of a dead block": (save_codes_of(0), "of no block in the tail (12)"),
    "codes of a block that never was": (save_codes_of(99), "of no block in the tail (12)"),
    "codes under a strange key": (put("tiers", b"\0\0\0\1\1ab", b"x"), "in the tail (12)"),
    # 13: what codes say
    "codes in a list that are others": (change_lists(other_codes), "as their vectors are (13)"),
    "scales in a list that are others": (change_lists(other_scales), "as their vectors are (13)"),
    "offsets in a list that are others": (change_lists(other_offsets), "as their vectors are (13)"),
    "numbers in a list that are none": (change_lists(wild_numbers), "as their vectors are (13)"),
    "codes in the tail that are others": (
        change_codes(other_codes),
        "as their vectors are (13)",
    ),
}


@pytest.fixture(scope="module")
def exact(sound):
    """The exact score of every record of each collection, by query and id."""
    with vecstore.open(sound, read_only=True) as db:
        return {
            name: [
                {hit.id: hit.score for hit in hits}
                for hits in db.collection(name).search_many(QUERIES, k=2000, recall="exact")
            ]
            for name in db.collections()
        }


def search_all(db, name, exact):
    """Search, and check that no answer is worse than one that misses records."""
    points = db.collection(name)
    for where in (None, {"n": {"$exists": False}}):
        for query, scores in zip(QUERIES, exact[name], strict=True):
            hits = points.search(query, k=10, where=where)
            assert len({hit.id for hit in hits}) == len(hits)
            assert all(hit.score == scores[hit.id] for hit in hits)


def test_the_sound_file_is_searched_through_its_indexes(db, exact):
    query = np.ones(DIM)

    assert db.collection("points").search(query).plan.method == "index"
    assert db.collection("hashed").search(query).plan.method == "index"
    assert db.collection("others").search(query).plan.method == "scan"
    for name in ("points", "hashed", "others"):
        search_all(db, name, exact)


@pytest.mark.parametrize("name", BROKEN)
def test_check_finds(db, name):
    work, words = BROKEN[name]
    db.writing(work)

    found = [str(problem) for problem in db.check()]

    assert any(words in problem for problem in found), found


@pytest.mark.parametrize("name", BROKEN)
def test_searches_of_a_damaged_index_fail_or_are_honest(db, name, exact):
    db.writing(BROKEN[name][0])
    path = db.path
    db.close()
    # Nothing is remembered of how the file was before.
    with vecstore.open(path) as again:
        for collection in ("points", "others"):
            with contextlib.suppress(CorruptionError):
                search_all(again, collection, exact)
        # What is wrong with one index is no matter of others, nor of exact searches.
        search_all(again, "hashed", exact)
        (hits,) = again.collection("others").search_many(QUERIES[:1], k=70, recall="exact")
        assert {hit.id: hit.score for hit in hits} == exact["others"][0]


@pytest.mark.parametrize("name", BROKEN)
def test_writes_to_a_damaged_index_fail_or_leave_the_records_sound(db, name, rng, monkeypatch):
    # So that the write goes on to bring the lists up to date.
    monkeypatch.setattr(maintenance, "BACKLOG", 200)
    monkeypatch.setattr(maintenance, "BACKLOG_EACH", 1)
    db.writing(BROKEN[name][0])
    points = db.collection("points")
    before = points.count()

    try:
        points.add(vectors=rng.normal(size=(300, DIM)), ids=range(10_000, 10_300))
    except VecstoreError:
        assert points.count() == before
        return
    assert points.count() == before + 300
    query = rng.normal(size=DIM)
    exact = points.search(query, k=10, recall="exact")
    assert len({hit.id for hit in exact}) == 10
    problems = [str(problem) for problem in db.check()]
    assert all("index" in problem for problem in problems), problems


@pytest.mark.parametrize("name", ["a damaged list", "damaged codes", "a damaged model"])
def test_backup_and_compact_refuse_a_damaged_index(db, tmp_path, name):
    db.writing(BROKEN[name][0])

    with pytest.raises(CorruptionError, match="check"):
        db.backup(tmp_path / "backup.vecstore")
    assert not (tmp_path / "backup.vecstore").exists()


def whole(collection):
    records = collection.scan(include=("text", "metadata", "vector"))
    return [(item.id, item.text, item.metadata, item.vector.tolist()) for item in records]


def made_anew(path, kind, exact):
    """Make the indexes of a damaged file anew, and see that nothing is lost."""
    with vecstore.open(path) as db:
        points = db.collection("points")
        before = whole(points)
        report = points.reindex(kind)
        # Some damage is to the other two.
        db.collection("others").reindex("auto")
        db.collection("hashed").reindex("hash")

        assert db.check() == []
        assert whole(points) == before
        assert (report["lists"] > 0) == (kind == "ivf")
        plan = points.search(QUERIES[0]).plan
        assert plan.method == ("scan" if kind == "flat" else "index")
        search_all(db, "points", exact)


# All but what is wrong with the counters, and not with the index.
@pytest.mark.parametrize("name", sorted(BROKEN.keys() - {"an open block in lists"}))
def test_an_index_is_made_anew_whatever_was_wrong_with_it(db, name, exact):
    db.writing(BROKEN[name][0])
    db.close()

    made_anew(db.path, "hash", exact)


@pytest.mark.parametrize("kind", ["ivf", "flat"])
@pytest.mark.parametrize("name", ["a damaged model", "a plan of no kind", "a damaged list"])
def test_a_damaged_index_may_become_one_of_any_kind(db, name, kind, exact):
    db.writing(BROKEN[name][0])
    db.close()

    made_anew(db.path, kind, exact)


@pytest.mark.parametrize(
    "name", ["a damaged plan", "a damaged model", "damaged bits of listed blocks"]
)
def test_what_meets_an_unreadable_index_says_how_to_be_rid_of_it(db, name, exact):
    db.writing(BROKEN[name][0])
    path = db.path
    db.close()
    with vecstore.open(path) as again:
        points = again.collection("points")
        for call in (
            lambda: points.search(QUERIES[0]),
            lambda: points.explain(QUERIES[0]),
            points.optimize,
            points.stats,
            lambda: points.add(vectors=QUERIES),
        ):
            with pytest.raises(CorruptionError, match=r"reindex\(kind\) makes the index anew"):
                call()
        # Nobody needs an index to compare all.
        for recall in ("exact", 1, 1.0):
            found = points.search_many(QUERIES, 2000, recall=recall)
            assert [dict(zip(hits.ids, hits.scores, strict=True)) for hits in found] == (
                exact["points"]
            )
        points.reindex("ivf")
        points.add(vectors=QUERIES)
        assert points.optimize()["calibrated"]
        assert again.check() == []


def test_check_in_a_transaction_finds_the_same(db):
    db.writing(change_list(with_first_row(None)))
    with db.transaction():
        inside = db.check()

    assert inside == db.check() != []


def test_what_is_damaged_is_named_once(db):
    db.writing(edit("lists", list_key(1), flip(70)))

    found = [str(problem) for problem in db.check()]

    assert [problem for problem in found if "checksum" in problem] == found[:1]
    assert all("(10)" in problem for problem in found[1:])


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_codes_made_again_are_those_stored(memory, metric, precision):
    rng = np.random.default_rng(5)
    points = memory.collection("c", dim=50, metric=metric, precision=precision, index="ivf")
    vectors = rng.normal(size=(700, 50)) + 3
    # Residuals of rows that are all alike are nothing but rounding.
    vectors[100:400] = vectors[100]
    points.add(vectors=vectors[:500] * 10)
    points.add(vectors=vectors[500:] * 10)

    assert memory.check() == []


def test_vectors_far_from_their_code_are_found(db):
    """A block and its checksum are right, but its vectors are not those that were coded."""

    def work(txn):
        entry, _, _ = loaded(txn)
        for block in range(1, 14):
            key = layout.block_key(NUMBER, block)
            value = bytearray(txn.get("tiers", key))
            packed = layout.view_block(value, BLOCK_ROWS, entry.form).packed
            packed.numbers[:] *= -1
            header = Header(1, 1, BLOCK_ROWS, DIM, block * BLOCK_ROWS, 0, 0, NUMBER)
            txn.put(
                "tiers", key, layout.seal_bulk(header, value, entry.form.block_bytes(BLOCK_ROWS))
            )

    db.writing(work)

    (problem,) = db.check()
    assert "of 64 not coded as their vectors are (13)" in str(problem)


# The index goes where the collection goes


def keys_of(db, number):
    with db.reading() as reader:
        return {
            (database, key)
            for database in ("lists", "index", "tiers")
            for key, _ in reader.items(database, layout.collection_key(number))
        }


def answers(db):
    rng = np.random.default_rng(2)
    queries = rng.normal(size=(5, DIM))
    return [
        [(hit.id, hit.score) for hit in hits]
        for name in ("points", "hashed")
        for hits in db.collection(name).search_many(queries, 10)
    ]


def test_a_backup_carries_the_index(db, tmp_path):
    before, keys = answers(db), keys_of(db, NUMBER)
    db.backup(tmp_path / "backup.vecstore")

    with vecstore.open(tmp_path / "backup.vecstore") as copy:
        assert copy.collection("points").search(np.ones(DIM)).plan.method == "index"
        assert (answers(copy), keys_of(copy, NUMBER)) == (before, keys)
        assert copy.check() == []


def test_compact_carries_the_index(db):
    db.collection("points").delete(list(range(300, 420)))
    before = answers(db)
    db.compact()

    assert db.collection("points").search(np.ones(DIM)).plan.method == "index"
    assert [len(hits) for hits in answers(db)] == [len(hits) for hits in before]
    assert db.check() == []


def test_drop_removes_the_index(db):
    db.drop("points")
    db.drop("hashed")

    assert keys_of(db, NUMBER) == keys_of(db, 3) == set()
    assert db.check() == []


def test_a_collection_made_after_a_drop_has_no_index(db, rng):
    db.drop("points")
    points = db.collection("points", dim=DIM)
    points.add(vectors=rng.normal(size=(400, DIM)))

    assert points.search(np.ones(DIM)).plan.method == "scan"
    assert db.check() == []


def test_a_rename_keeps_the_index(db):
    before = answers(db)
    db.rename("points", "renamed")
    db.rename("renamed", "points")

    assert answers(db) == before


def test_parts_of_the_column_beyond_the_last_block_are_given_back(memory, rng):
    points = memory.collection("c", dim=4, index="ivf")
    # Whole blocks, so that none is open at the end.
    points.add(vectors=rng.normal(size=(300 * BLOCK_ROWS, 4)), ids=range(300 * BLOCK_ROWS))
    assert len([key for name, key in keys_of(memory, 1) if b"rows" in key]) == 20
    points.delete(list(range(100 * BLOCK_ROWS, 300 * BLOCK_ROWS)))
    memory.compact()

    assert len([key for name, key in keys_of(memory, 1) if b"rows" in key]) == 7
    assert memory.check() == []
