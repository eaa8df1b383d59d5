"""Files are damaged in every way: what is salvaged is true, and all that is left is salvaged.

Most tests only read (`Wreck`): to write a new file each time would take minutes.
"""

import itertools
import json
import os
import random
import shutil
import struct
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import (
    AlreadyExistsError,
    Chunking,
    FormatError,
    LockedError,
    StoreError,
    VecstoreError,
    catalog,
    layout,
    record_layout,
)
from vecstore.ann import compiled
from vecstore.encoders import AdaptedEncoder, HashEncoder
from vecstore.encoders.adapters import Adapter, Affine
from vecstore.vectors import unpack
from vecstore.wreck import Found, Wreck

PAGE, DIM, COUNT = 4096, 8, 260
# How many times as much damage is done: HYPOTHESIS_PROFILE=long is for campaigns.
TIMES = 40 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 1
DATA = Path(__file__).parents[1] / "data"
END = datetime(2199, 1, 1, tzinfo=UTC)
COLLECTIONS = {
    "auto": {"precision": "int8"},
    "flat": {"index": "flat", "metric": "dot", "precision": "float16"},
    "ivf": {"index": "ivf", "metric": "l2"},
    "bits": {"index": "hash", "metric": "hamming"},
}


@pytest.fixture(autouse=True)
def _by_numpy(monkeypatch):
    monkeypatch.setattr(compiled, "ready", lambda *_: None)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file with free pages, whose last commit changes no record; and all that ever was in it."""
    path = tmp_path_factory.mktemp("salvage") / "sound.vecstore"
    rng, ever = np.random.default_rng(3), set()
    with vecstore.open(path) as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ready", lambda *_: None)
        for name, declared in COLLECTIONS.items():
            points = db.collection(name, dim=DIM, **declared)
            points.add(
                vectors=vectors(rng, name, COUNT),
                ids=[i if i % 2 else f"id {i}" for i in range(COUNT)],
                # Some lie on pages of their own.
                texts=[f"{name} {i} " * (900 if i % 50 == 0 else 9) for i in range(COUNT)],
                metadata=[{"n": i, "even": i % 2 == 0} for i in range(COUNT)],
                expires_at=[END if i % 3 == 0 else None for i in range(COUNT)],
            )
            ever |= described(db)
            points.upsert(vectors=vectors(rng, name, 40), ids=range(1, 80, 2))
            points.update(range(81, 120, 2), metadata=[{"n": -1}] * 20)
            ever |= described(db)
            points.delete(range(131, 200, 2))
        stories = db.collection("stories", encoder=HashEncoder(DIM))
        texts = [f"Story {n}. " + f"It goes on {n}. " * n for n in range(60)]
        stories.add(texts, ids=range(60), chunk=Chunking(tokens=20))
        ever |= described(db)
        stories.update(7, text="Story 7 is told anew. " * 20)
        stories.delete([3, 4])
        ever |= described(db)
        for _ in range(2):
            stories.update(9, metadata={"last": True})
        assert db.check() == []
        now = described(db)
    return path, now, ever | now


def vectors(rng, name, count):
    found = rng.normal(size=(count, DIM))
    return found > 0 if name == "bits" else found


def described(db):
    """Each record as a value that can be compared."""
    return {
        value_of(name, one.id, one.text, one.metadata, one.expires_at, one.passages, one.vector)
        for name in db.collections()
        for one in db.collection(name).scan(include=("text", "metadata", "vector"))
    }


def value_of(name, identity, text, metadata, end, passages, vector):
    spans = [(one.start, one.end) for one in passages]
    return (name, identity, text, repr(metadata), str(end), repr(spans), vector.tobytes())


class Damaged:
    """A copy of a file, to be damaged and read."""

    def __init__(self, sound, folder):
        self.file, self.now, self.ever = sound
        self.data = self.file.read_bytes()
        self.pages = len(self.data) // PAGE
        self.path = folder / "damaged.vecstore"

    def read(self, data):
        """What is certain, and what is uncertain; whole records only."""
        self.path.write_bytes(data)
        certain, uncertain = set(), set()
        with Wreck(self.path) as wreck:
            by_number = itertools.groupby(
                (one for one in wreck.records() if isinstance(one, Found)),
                lambda one: one.number,
            )
            for number, found in by_number:
                kept = wreck.kept.get(number)
                if kept is not None and kept.entry is not None:
                    spec, some = kept.entry.spec, list(found)
                    packed, there = wreck.vectors(number, spec, some)
                    vectors, at = unpack(packed.take(there), spec), 0
                    edges = np.cumsum([0, *(len(one.rows) for one in some)])
                    for one, start, end in zip(some, edges, edges[1:], strict=False):
                        count = int(there[start:end].sum())
                        if count == end - start:
                            value = self._value(spec.name, one, vectors[at : at + count])
                            (certain if one.certain else uncertain).add(value)
                        at += count
        return certain, uncertain

    def _value(self, name, one, vectors):
        metadata = dict(one.metadata or {})
        end = metadata.pop("$expires_at", None)
        spans = () if one.passages is None else one.passages.spans
        passages = [vecstore.Passage.of(None, i, *span) for i, span in enumerate(spans)]
        return value_of(name, one.id, one.text, metadata or None, end, passages, vectors)

    def assert_true(self, data, expected):
        """What is found was written, what is certain is there now, and nothing is missing."""
        certain, uncertain = self.read(data)
        assert certain <= self.now
        assert uncertain <= self.ever
        names = {value[:2] for value in certain | uncertain}
        assert {value[:2] for value in expected} <= names
        if not uncertain:
            assert expected <= certain

    def file_copy(self):
        self.path.write_bytes(self.data)
        return self.path

    def without(self, *pages, fill=bytes(PAGE)):
        data = bytearray(self.data)
        for page in pages:
            data[page * PAGE : (page + 1) * PAGE] = fill
        return bytes(data)

    def flipped(self, at, bit):
        data = bytearray(self.data)
        data[at] ^= 1 << bit
        return bytes(data)


def some(rng, values, count):
    """So many of some values; in a campaign more, or all."""
    return rng.sample(values, min(len(values), count * TIMES))


@pytest.fixture
def damaged(sound, tmp_path):
    return Damaged(sound, tmp_path)


class Places:
    """On which pages of a sound file each record is: a reader that believes all it reads."""

    def __init__(self, file):
        self.data = file.read_bytes()
        heads = [struct.unpack_from("<QQ", self.data, page * PAGE + 136) for page in (0, 1)]
        newest = heads.index(max(heads, key=lambda head: head[1]))
        at = newest * PAGE + 40
        self.free, self.main = (
            struct.unpack_from("<Q", self.data, at + tree + 40)[0] for tree in (0, 48)
        )
        self.newest, self.branches, self.trees = newest, [], {}
        for key, (value, _) in self.entries(self.main).items():
            (self.trees[key.decode()],) = struct.unpack_from("<Q", value, 40)
        blocks = self.entries(self.trees["tiers"])
        names = {key: value for key, (value, _) in self.entries(self.trees["meta"]).items()}
        self.needed, self.blocks = {}, {}
        records = self.entries(self.trees["records"])
        for key, (value, pages) in records.items():
            if value[8] == 0x94:
                # A passage belongs to its record.
                continue
            identity, _, _, passages = record_layout.unpack_content(0, value)
            orders = () if passages is None else passages.orders
            rows = [int.from_bytes(value[4:8], "little")]
            for order in orders:
                part, more = records[key[:4] + order.to_bytes(8, "big")]
                rows.append(int.from_bytes(part[4:8], "little"))
                pages = pages | more
            spec = catalog.parse(0, names[b"spec/" + key[:4]]).spec
            own = self.blocks.setdefault(spec.name, set())
            for row in rows:
                own |= blocks[key[:4] + b"\0" + (row // 64).to_bytes(4, "big")][1]
                pages = pages | blocks[key[:4] + b"\0" + (row // 64).to_bytes(4, "big")][1]
            self.needed[spec.name, identity] = pages
        self.meta = set.union(*(pages for _, pages in self.entries(self.trees["meta"]).values()))

    def entries(self, root):
        """Values, and the pages that they are on, by key."""
        found = {}
        at = root * PAGE
        flags, lower = struct.unpack_from("<HH", self.data, at + 10)
        if flags == 1:
            self.branches.append(root)
        for place in struct.unpack_from(f"<{(lower - 16) // 2}H", self.data, at + 16):
            low, high, node, size = struct.unpack_from("<HHHH", self.data, at + place)
            begin = at + place + 8 + size
            if flags == 1:
                found |= self.entries(low | high << 16)
                continue
            length, pages = low | high << 16, {root}
            if node & 1:
                (first,) = struct.unpack_from("<Q", self.data, begin)
                begin = first * PAGE + 16
                # Blocks are found without the page that leads to them.
                pages = set() if self.data[begin : begin + 4] == b"vecs" else pages
                pages |= set(range(first, first + -(-(16 + length) // PAGE)))
            found[self.data[at + place + 8 : at + place + 8 + size]] = (
                self.data[begin : begin + length],
                pages,
            )
        return found

    def left(self, now, pages):
        """The records that need none of some pages."""
        pages = set(pages)
        # With the roots of names and free pages a commit is lost, and the one before is read.
        if pages & self.meta or {self.main, self.free} <= pages:
            return set()
        return {value for value in now if not self.needed[value[:2]] & pages}


@pytest.fixture(scope="module")
def places(sound):
    return Places(sound[0])


def test_a_sound_file_is_read_as_it_is(damaged):
    assert damaged.read(damaged.data) == (damaged.now, set())


def test_the_file_has_what_is_to_be_damaged(damaged, places):
    assert places.branches
    assert len(places.needed) == len(damaged.now)
    assert damaged.ever > damaged.now


@pytest.mark.parametrize("fill", ["zeros", "noise"])
def test_losing_a_page_loses_what_was_on_it_and_nothing_else(damaged, places, fill):
    rng = random.Random(fill)
    for page in some(rng, range(damaged.pages), 35):
        filled = bytes(PAGE) if fill == "zeros" else rng.randbytes(PAGE)
        found, uncertain = damaged.read(damaged.without(page, fill=filled))

        assert not uncertain
        assert found == places.left(damaged.now, {page}), page


def test_losing_several_pages_loses_what_was_on_them(damaged, places):
    rng = random.Random(1)
    for _ in range(25 * TIMES):
        pages = rng.sample(range(2, damaged.pages), rng.randrange(2, 12))
        damaged.assert_true(damaged.without(*pages), places.left(damaged.now, pages))


def test_what_lies_below_lost_branches_is_found(damaged, places):
    found = damaged.read(damaged.without(*places.branches))

    assert found == (damaged.now, set())


def test_without_header_pages_all_is_found_and_is_uncertain(damaged):
    certain, uncertain = damaged.read(damaged.without(0, 1))

    assert not certain
    assert {value[:2] for value in uncertain} >= {value[:2] for value in damaged.now}
    assert uncertain <= damaged.ever


def test_text_that_looks_like_a_page_is_no_page(tmp_path, monkeypatch):
    """Users may store what they want: no page is looked for inside of a value."""

    def make(content):
        path = tmp_path / "planted.vecstore"
        path.unlink(missing_ok=True)
        monkeypatch.setattr("os.urandom", lambda count: bytes(count))
        with vecstore.open(path) as db:
            points = db.collection("c", dim=2)
            points.add(vectors=[[1, 2]], ids=["a"], metadata=[{"b": content}])
        return path, path.read_bytes()

    _, data = make(b"\x77" * (4 * PAGE))
    page = data.index(b"\x77" * PAGE) // PAGE + 1
    start = page * PAGE - data.index(b"\x77" * PAGE)
    key = layout.record_key(1, 999)
    body = record_layout.pack_body("planted", None, None)
    node = record_layout.pack_record(key, 0, body)
    node = struct.pack("<HHHH", len(node), 0, 0, 12) + key + node
    at = PAGE - len(node) - len(node) % 2
    image = struct.pack("<QHHHHH", page, 0, 2, 18, at, at).ljust(at, b"\0") + node
    image = image.ljust(PAGE, b"\0")
    path, data = make(b"\x77" * start + image + b"\x77" * (3 * PAGE - start))
    assert data[page * PAGE : (page + 1) * PAGE] == image
    # Something is missing, so that all pages are looked at.
    with Wreck(path) as wreck:
        index = wreck._pages.trees["tiers"].root
    path.write_bytes(data[: index * PAGE] + bytes(PAGE) + data[(index + 1) * PAGE :])
    with Wreck(path) as wreck:
        assert wreck.scanned
        assert [found.id for found in wreck.records()] == ["a"]


def test_of_several_versions_one_that_was_written_is_taken(damaged):
    """A page does not say how old it is; but a vector of another record is never taken."""
    _, uncertain = damaged.read(damaged.without(0, 1))

    assert uncertain <= damaged.ever
    assert len(uncertain & damaged.now) > 0.9 * len(damaged.now)


def test_files_cut_anywhere_give_what_is_before(damaged, places):
    rng = random.Random(2)
    cuts = [*range(PAGE, len(damaged.data), 9 * PAGE), *some(rng, range(len(damaged.data)), 20)]
    for cut in cuts:
        gone = range(cut // PAGE, damaged.pages)
        expected = places.left(damaged.now, gone) if cut >= 2 * PAGE else set()
        try:
            damaged.assert_true(damaged.data[:cut], expected)
        except FormatError:
            assert not expected


@pytest.mark.parametrize("seed", range(2))
def test_flipped_bits_make_nothing_wrong(damaged, places, seed):
    rng = random.Random(seed)
    for _ in range(25 * TIMES):
        at = rng.randrange(2 * PAGE, len(damaged.data))
        expected = places.left(damaged.now, {at // PAGE})
        damaged.assert_true(damaged.flipped(at, rng.randrange(8)), expected)


def test_flipped_bits_in_the_heads_of_pages_make_nothing_wrong(damaged, places):
    rng = random.Random(7)
    for page in some(rng, range(damaged.pages), 40):
        expected = places.left(damaged.now, {page})
        data = damaged.flipped(page * PAGE + rng.randrange(24), rng.randrange(8))
        damaged.assert_true(data, expected if page > 1 else damaged.now)


def test_flipped_bits_in_branches_lose_nothing(damaged, places):
    rng = random.Random(8)
    for _ in range(25 * TIMES):
        page = rng.choice(places.branches)
        lower, upper = struct.unpack_from("<HH", damaged.data, page * PAGE + 12)
        used = [*range(12, lower), *range(upper, PAGE)]
        data = damaged.flipped(page * PAGE + rng.choice(used), rng.randrange(8))
        certain, uncertain = damaged.read(data)

        assert (certain, uncertain) == (damaged.now, set())


def test_a_commit_whose_roots_are_lost_gives_way_to_the_one_before(damaged, places):
    damaged.path.write_bytes(damaged.without(places.main, places.free))
    with Wreck(damaged.path) as wreck:
        assert (wreck.headers, wreck.scanned) == (1, False)
    # The last commit changed no record.
    assert damaged.read(damaged.without(places.main, places.free)) == (damaged.now, set())


def test_a_list_of_free_pages_that_names_others_costs_nothing(damaged, places):
    """It has no checksum; but no page that is free is led to."""
    (lower,) = struct.unpack_from("<H", damaged.data, places.free * PAGE + 12)
    used = sorted(set.union(*places.needed.values()))
    for place in struct.unpack_from(
        f"<{(lower - 16) // 2}H", damaged.data, places.free * PAGE + 16
    ):
        at = places.free * PAGE + place + 16
        (count,) = struct.unpack_from("<Q", damaged.data, at)
        for number in range(1, count + 1):
            data = bytearray(damaged.data)
            # The lists descend.
            listed = [2**64 - 1, *struct.unpack_from(f"<{count}Q", data, at + 8), 0]
            between = [page for page in used if listed[number - 1] > page > listed[number + 1]]
            if between:
                struct.pack_into("<Q", data, at + 8 * number, between[0])
                damaged.assert_true(bytes(data), damaged.now)


def test_what_leads_to_a_wrong_vector_costs_nothing(damaged, places):
    """A block says whose it is and how long; what leads to it is not believed."""
    root = places.trees["tiers"] * PAGE
    (lower,) = struct.unpack_from("<H", damaged.data, root + 12)
    nodes = struct.unpack_from(f"<{(lower - 16) // 2}H", damaged.data, root + 16)
    blocks = [root + at for at in nodes if damaged.data[root + at + 12] == 0]
    for at, other in itertools.pairwise(blocks):
        data = bytearray(damaged.data)
        struct.pack_into("<H", data, at, 40)
        assert damaged.read(bytes(data)) == (damaged.now, set())
        data[at + 17 : at + 25] = data[other + 17 : other + 25]
        assert damaged.read(bytes(data)) == (damaged.now, set())
        for place in range(8, 17):
            assert damaged.read(damaged.flipped(at + place, 0)) == (damaged.now, set())


def test_a_spec_under_a_wrong_key_is_still_its_collections(damaged):
    for number in (1, 2, 4, 5):
        data, key = bytearray(damaged.data), b"spec/" + number.to_bytes(4, "big")
        # Old pages have it, too.
        at = -1
        while (at := data.find(key, at + 1)) >= 0:
            data[at + 8] ^= 2
        certain, uncertain = damaged.read(bytes(data))

        assert (certain, uncertain) == (damaged.now, set())


def test_either_header_page_is_enough(tmp_path):
    path = tmp_path / "one.vecstore"
    with vecstore.open(path) as db:
        db.collection("c", dim=2).add(vectors=[[1, 2]], ids=["a"])
    data = path.read_bytes()
    for page in (0, 1):
        path.write_bytes(data[: page * PAGE] + bytes(PAGE) + data[(page + 1) * PAGE :])
        with Wreck(path) as wreck:
            assert wreck.headers == 1
            assert [entry.entry.spec.name for entry in wreck.kept.values()] == ["c"]


def test_flipped_bits_in_header_pages_give_a_commit(damaged):
    rng = random.Random(9)
    for page in (0, 1):
        for at in some(rng, range(152), 20):
            data = damaged.flipped(page * PAGE + at, rng.randrange(8))
            damaged.assert_true(data, damaged.now)


def test_pages_that_lead_in_circles_end(damaged, places):
    for page in places.branches:
        for target in (page, places.trees["records"], places.trees["tiers"], 2**40):
            data = bytearray(damaged.data)
            (lower,) = struct.unpack_from("<H", data, page * PAGE + 12)
            for place in struct.unpack_from(f"<{(lower - 16) // 2}H", data, page * PAGE + 16):
                low = (target & 0xFFFF, target >> 16 & 0xFFFF, target >> 32)
                struct.pack_into("<HHH", data, page * PAGE + place, *low)
            certain, uncertain = damaged.read(bytes(data))

            assert certain == damaged.now
            assert not uncertain


ODD = (0, 1, 2, 3, 8, 12, 16, 255, 4095, 4096, 65535, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def distorted(data, rng):
    """A file with numbers that lie, in many places."""
    data, pages = bytearray(data), len(data) // PAGE
    for _ in range(rng.choice((1, 3, 30, 300))):
        at, kind = rng.randrange(pages) * PAGE, rng.randrange(5)
        if kind == 0:
            size, form = rng.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
            value = rng.choice((*ODD, rng.randrange(pages))) % 2 ** (8 * size)
            struct.pack_into(form, data, at + size * rng.randrange(PAGE // size), value)
        elif kind == 1:
            head = rng.choice((1, 2, 4, 8, 34)), rng.choice((16, 18, 200, 4000)), rng.choice(ODD)
            struct.pack_into("<HHH", data, at + 10, *head[:2], head[2] % 65536)
        elif kind == 2:
            other = rng.randrange(pages) * PAGE
            data[at : at + PAGE] = data[other : other + PAGE]
        elif kind == 3:
            other = rng.randrange(pages) * PAGE
            data[at + 8 : at + PAGE] = data[other + 8 : other + PAGE]
        else:
            at += rng.randrange(PAGE - 300)
            data[at : at + 300] = rng.randbytes(300)
    return bytes(data)


def test_numbers_that_lie_make_nothing_wrong(damaged):
    rng = random.Random(11)
    for _ in range(25 * TIMES):
        certain, uncertain = damaged.read(distorted(damaged.data, rng))
        assert certain | uncertain <= damaged.ever


def test_a_file_of_lies_comes_out_sound_or_not_at_all(damaged, target):
    rng = random.Random(12)
    for _ in range(2 * TIMES):
        damaged.path.write_bytes(distorted(damaged.data, rng))
        try:
            vecstore.salvage(damaged.path, target)
        except VecstoreError:
            continue
        with vecstore.open(target) as new:
            assert new.check() == []
            assert described(new) <= damaged.ever
        for path in target.parent.glob(f"{target.name}*"):
            path.unlink()


def test_swapped_pages_make_nothing_wrong(damaged, places):
    rng = random.Random(4)
    for _ in range(25 * TIMES):
        one, two = rng.sample(range(2, damaged.pages), 2)
        pages = [damaged.data[page * PAGE : (page + 1) * PAGE] for page in (one, two)]
        data = bytearray(damaged.without(one, fill=pages[1]))
        data[two * PAGE : (two + 1) * PAGE] = pages[0]
        damaged.assert_true(bytes(data), places.left(damaged.now, {one, two}))


# New files


def salvaged(source, target, **options):
    before = source.read_bytes()
    report = vecstore.salvage(source, target, **options)
    assert source.read_bytes() == before
    assert not source.with_name(f"{source.name}-lock").exists()
    left = {path.name for path in target.parent.glob(f"{target.name}*")}
    assert left <= {target.name, f"{target.name}-leftovers.jsonl"}
    return report


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new.vecstore"


def answers(db):
    """What exact searches find, and how collections are declared."""
    found = {}
    for name in db.collections():
        points = db.collection(name)
        query = np.sin(np.arange(points.spec.dim))
        query = query > 0 if points.spec.metric == "hamming" else query
        hits = points.search(query, 9, recall="exact")
        stats = points.stats()
        found[name] = (points.spec, hits.to_dicts(), stats["index"], stats["records"])
        found[name] += ([record.id for record in points.scan()],)
    return found


@pytest.mark.parametrize("file", sorted(DATA.glob("*.vecstore")), ids=lambda file: file.stem)
def test_an_old_sound_file_comes_out_as_it_was(file, tmp_path, target):
    source = Path(shutil.copy(file, tmp_path / "old.vecstore"))
    report = salvaged(source, target)

    assert report.whole
    assert report.lost == 0
    with vecstore.open(source, read_only=True) as old, vecstore.open(target) as new:
        assert new.check() == []
        assert described(new) == described(old)
        assert answers(new) == answers(old)


def test_a_sound_file_comes_out_as_it_was(damaged, target):
    report = salvaged(damaged.file_copy(), target)

    assert report.whole
    assert report.records == len(damaged.now)
    with vecstore.open(damaged.path) as old, vecstore.open(target) as new:
        assert new.check() == []
        assert described(new) == damaged.now
        assert answers(new) == answers(old)


def test_what_is_left_of_a_file_comes_out(damaged, places, target):
    rng = random.Random(5)
    pages = rng.sample(sorted(set.union(*places.needed.values()) - places.meta), 12)
    expected = places.left(damaged.now, pages)
    damaged.path.write_bytes(damaged.without(*pages, *places.branches))
    report = salvaged(damaged.path, target)

    assert not report.whole
    assert report.headers == 2
    assert report.records == len(expected)
    assert report.lost == len(damaged.now) - len(expected)
    with vecstore.open(target) as new:
        assert new.check() == []
        assert described(new) == expected
    lines = Path(report.leftovers).read_text().splitlines()
    texts = {(value[0], value[1]): value[2] for value in damaged.now}
    for line in map(json.loads, lines):
        assert texts[line["collection"], line["id"]] == line["text"]
        assert "vector is lost" in line["why"]
    assert len(lines) == sum(one.left.total() for one in report.collections)


def test_without_header_pages_a_file_comes_out(damaged, target):
    damaged.path.write_bytes(damaged.without(0, 1))
    report = salvaged(damaged.path, target)

    assert report.headers == 0
    assert all(one.uncertain == one.records > 0 for one in report.collections)
    with vecstore.open(target) as new:
        assert new.check() == []
        assert {value[:2] for value in described(new)} >= {value[:2] for value in damaged.now}


def test_vectors_that_are_lost_are_made_anew_of_their_texts(damaged, places, target):
    damaged.path.write_bytes(damaged.without(*places.blocks["stories"]))
    report = salvaged(damaged.path, target, encoder=HashEncoder(DIM))
    (stories,) = (one for one in report.collections if one.name == "stories")

    assert stories.embedded == stories.records > 0
    assert report.lost == 0
    with vecstore.open(target) as new:
        assert described(new) == damaged.now


def test_where_it_is_interrupted_nothing_is_left_behind(damaged, places, tmp_path, target):
    class Interrupted(HashEncoder):
        def encode(self, texts, *, kind="document"):
            raise KeyboardInterrupt

    # The vectors of one collection need an encoder, and others are left out before.
    damaged.path.write_bytes(damaged.without(*places.blocks["auto"], *places.blocks["stories"]))
    with pytest.raises(KeyboardInterrupt):
        vecstore.salvage(damaged.path, target, encoder=Interrupted(DIM))

    assert [path.name for path in tmp_path.iterdir()] == [damaged.path.name]


def test_the_encoder_of_another_collection_makes_no_vectors(damaged, places, target):
    damaged.path.write_bytes(damaged.without(*places.blocks["stories"]))
    report = salvaged(damaged.path, target, encoder=HashEncoder(DIM, seed=1))
    (stories,) = (one for one in report.collections if one.name == "stories")

    assert stories.records == stories.embedded == 0
    assert stories.lost == len(stories.left_ids) == 58


def test_an_adapter_is_kept(tmp_path, target):
    source = tmp_path / "adapted.vecstore"
    turn = np.eye(DIM, dtype=np.float32)[::-1].copy()
    adapter = Adapter(dim=DIM, documents=Affine(turn), queries=Affine(turn), name="turned")
    with vecstore.open(source) as db:
        notes = db.collection("notes", encoder=AdaptedEncoder(HashEncoder(DIM), adapter))
        notes.add(["one text", "another text"], ids=[1, 2])
        wanted = notes.search("one", 2).to_dicts()
    source.with_name(f"{source.name}-lock").unlink()
    salvaged(source, target)

    with vecstore.open(target) as db:
        assert db.check() == []
        notes = db.collection("notes", encoder=HashEncoder(DIM))
        assert notes.adapter.to_bytes() == adapter.to_bytes()
        assert notes.search("one", 2).to_dicts() == wanted


def test_an_adapter_that_is_not_the_collections_is_left_out(tmp_path, target):
    source = tmp_path / "adapted.vecstore"
    adapter = Adapter(dim=DIM, queries=Affine(np.eye(DIM)[::-1]), name="turned")
    bare = HashEncoder(DIM)
    with vecstore.open(source) as db:
        notes = db.collection("notes", encoder=AdaptedEncoder(bare, adapter))
        notes.add(["one text"], ids=[1])
        db.writing(
            lambda txn: catalog.change_encoder(
                txn, catalog.find(txn, "notes"), bare.name, bare.fingerprint
            )
        )
        assert db.check() != []
    vecstore.salvage(source, target)

    with vecstore.open(target) as db:
        assert db.check() == []
        notes = db.collection("notes", encoder=bare)
        assert notes.adapter is None
        assert notes.count() == 1


def test_the_records_of_a_lost_collection_are_left_over(damaged, places, target):
    damaged.path.write_bytes(damaged.without(*places.meta))
    report = salvaged(damaged.path, target)

    assert report.records == 0
    assert all(one.name is None for one in report.collections)
    lines = [json.loads(line) for line in Path(report.leftovers).read_text().splitlines()]
    assert len(lines) == len(damaged.now) == report.lost


def test_nothing_is_overwritten(damaged, target):
    source = damaged.file_copy()
    for path in (target, target.with_name("new.vecstore-leftovers.jsonl")):
        path.write_text("here")
        with pytest.raises(AlreadyExistsError, match="ever overwritten"):
            vecstore.salvage(source, target)
        assert path.read_text() == "here"
        path.unlink()


def test_a_file_that_this_process_has_open_is_refused(damaged, target):
    source = damaged.file_copy()
    with vecstore.open(source), pytest.raises(LockedError):
        vecstore.salvage(source, target)
    assert not target.exists()


def test_a_file_that_others_have_open_is_refused(damaged, target, run_python):
    source = damaged.file_copy()
    run_python(
        """
        import subprocess, sys
        import vecstore
        program = "import sys, vecstore; vecstore.salvage(*sys.argv[1:])"
        command = [sys.executable, "-c", program, *sys.argv[1:]]
        with vecstore.open(sys.argv[1], read_only=True):
            done = subprocess.run(command, capture_output=True, text=True)
        assert "LockedError" in done.stderr, done.stderr
        """,
        source,
        target,
    )
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 20_000, b"SQLite format 3\0" * 999])
def test_what_is_no_file_of_ours_is_refused(tmp_path, target, content):
    source = tmp_path / "other"
    source.write_bytes(content)

    with pytest.raises(FormatError, match="not a vecstore file"):
        vecstore.salvage(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_file_that_is_not_there_is_refused(tmp_path, target):
    with pytest.raises(StoreError, match="does not exist"):
        vecstore.salvage(tmp_path / "none", target)
    with pytest.raises(StoreError, match="folder"):
        vecstore.salvage(tmp_path, target)


def test_a_file_of_a_newer_format_is_refused(tmp_path, target):
    source = tmp_path / "newer.vecstore"
    with vecstore.open(source) as db:
        db.writing(lambda txn: txn.put("meta", b"format", layout.pack_format(99, 98)))

    with pytest.raises(FormatError, match="upgrade vecstore"):
        vecstore.salvage(source, target)


def test_an_empty_database_comes_out_empty(tmp_path, target):
    source = tmp_path / "empty.vecstore"
    vecstore.open(source).close()
    report = vecstore.salvage(source, target)

    assert report.whole
    assert str(report).endswith("0 records, 0 lost")
    with vecstore.open(target) as db:
        assert db.collections() == []
