"""Bit rot: whatever is flipped or cut off, the answer is an error or a problem, never a crash.

The files are opened by processes of their own, many per process, so that a crash fails one test
instead of the run. LMDB trusts its own pages and may end the process where they are damaged, so
`check` looks at them without LMDB, and what it finds there is not used here (docs/caveats.md).
"""

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest

import vecstore
from vecstore import Chunking, CorruptionError, FormatError, layout
from vecstore.ann import buckets
from vecstore.encoders import HashEncoder
from vecstore.fields import upkeep
from vecstore.store import Store

PAGE = 4096

ENGINES = pytest.mark.parametrize("engine", ["numpy", "compiled"])

# Reads whatever can be read of each file named on stdin; one line of answer per file.
READER = """
    import json, sys
    import numpy as np
    import vecstore
    from vecstore.ann import compiled, lookup

    # Binary vectors are looked up in their buckets, and not compared all.
    lookup.START_COST, lookup.NUMPY_COSTS = 0.0, (1e9, 0.0)

    # Either of the two that search, and never the other one meanwhile; or nothing but the check.
    if sys.argv[1] == "compiled":
        compiled.compile_now()
    else:
        compiled.ready = lambda name: None

    def search(c, query, **options):
        query = query > 0 if c.spec.metric == "hamming" else query
        return c.search(query, **options)

    def honest(c):
        # What is found is what an exact search finds, as far as it is found.
        if c.name not in ("lists", "codes", "bits"):
            return []
        queries = np.eye(8)[::3]
        found = [search(c, query, k=9, include=()) for query in queries]
        assert all(len(set(hits.ids)) == len(hits) for hits in found), found
        # To compare all with all costs more than the rest of the reading together.
        exact = [search(c, query, k=1000, recall="exact", include=()) for query in queries[:1]]
        for hits, right in zip(found, exact):
            scores = dict(zip(right.ids, right.scores))
            assert all(scores[hit.id] == hit.score for hit in hits), hits
        return [len(hits) for hits in found]

    def read(path):
        try:
            db = vecstore.open(path, read_only=True)
        except (vecstore.CorruptionError, vecstore.FormatError) as error:
            return {"open": type(error).__name__}
        found = {"check": [str(problem) for problem in db.check()], "errors": [], "content": None}
        # LMDB ends the process when it meets what cannot be.
        unusable = any(problem.startswith("file: ") for problem in found["check"])
        if unusable or sys.argv[1] == "check":
            db.close()
            return found
        content = []
        for name in sorted({*db.collections()} & {"cosine", "l2", "lists", "codes", "bits", "c"}):
            for work in (
                lambda c: [repr((r.id, r.text, r.metadata, r.vector.tolist())) for r in
                           c.scan(include=("text", "metadata", "vector"))],
                lambda c: [repr(hit.id) for hit in search(c, np.ones(8), k=5)],
                lambda c: [repr(hit.id) for hit in search(c, np.ones(8), k=5, where={"n": 7})],
                honest,
                lambda c: [repr(record and record.id) for record in c.get(list(range(150)))],
                lambda c: [repr(c.count()), repr(c.stats())],
            ):
                try:
                    content.append(work(db.collection(name)))
                except vecstore.VecstoreError as error:
                    found["errors"].append(type(error).__name__)
        found["content"] = hash(json.dumps(content))
        db.close()
        return found

    for line in sys.stdin:
        print(json.dumps(read(line.rstrip())), flush=True)
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file with a bit of everything, and with free pages."""
    path = tmp_path_factory.mktemp("sound") / "sound.vecstore"
    rng = np.random.default_rng(3)
    with vecstore.open(path) as db, pytest.MonkeyPatch.context() as patch:
        # Columns, and rows without.
        patch.setattr(upkeep, "LEAST", 100)
        for metric in ("cosine", "l2"):
            points = db.collection(metric, dim=8, metric=metric)
            points.add(
                vectors=rng.normal(size=(150, 8)),
                ids=list(range(150)),
                texts=[f"text {i} " * 3 for i in range(150)],
                metadata=[{"n": i, "s": "x" * i} for i in range(150)],
            )
            points.delete(list(range(20, 40)))
            points.upsert(vectors=rng.normal(size=(10, 8)), ids=list(range(10)))
        db.collection("empty", dim=4)
        texts = [f"Text {i} is long. " * (1 + i % 5) for i in range(40)]
        stories = db.collection("c", encoder=HashEncoder(8))
        stories.add(texts, ids=list(range(40)), chunk=Chunking(tokens=8))
    return path


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A file with lists, with codes in row order, and with buckets of binary vectors."""
    path = tmp_path_factory.mktemp("indexed") / "indexed.vecstore"
    rng = np.random.default_rng(3)
    with vecstore.open(path) as db:
        for name, metric, kind in (("lists", "l2", "ivf"), ("codes", "cosine", "hash")):
            points = db.collection(name, dim=8, metric=metric, index=kind)
            points.add(vectors=rng.normal(size=(300, 8)), ids=list(range(300)))
            # The tail, and dead rows in it and in lists.
            points.add(vectors=rng.normal(size=(90, 8)), ids=list(range(300, 390)))
            points.delete([*range(64, 100), *range(340, 350)])
            assert points.search(np.ones(8), k=5).plan.method == "index"
        points = db.collection("bits", dim=8, metric="hamming", index="hash")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(buckets, "LEAST_ROWS", 1)
            points.add(vectors=rng.integers(0, 256, (500, 1)), ids=list(range(500)))
            points.optimize()
        points.delete([*range(64, 100), *range(490, 495)])
        assert points.stats()["lists"] == 1
        assert db.check() == []
    return path


class Patient:
    """Damages copies of a file, and asks another process what it finds in them."""

    def __init__(self, sound, folder):
        self.data, self.folder = sound.read_bytes(), folder
        self.pages = len(self.data) // PAGE

    def ask(self, copies, engine="numpy"):
        paths = []
        for number, data in enumerate(copies):
            paths.append(self.folder / f"{number}.vecstore")
            paths[-1].write_bytes(data)
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(READER), engine],
            input="".join(f"{path}\n" for path in paths),
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=False,
        )
        answers = [json.loads(line) for line in process.stdout.splitlines()]
        where = paths[len(answers)].name if len(answers) < len(paths) else ""
        assert process.returncode == 0, f"{where}: {process.returncode} {process.stderr}"
        return answers

    def flipped(self, at, bit=0):
        data = bytearray(self.data)
        data[at] ^= 1 << bit
        return bytes(data)


@pytest.fixture
def patient(sound, tmp_path):
    return Patient(sound, tmp_path)


@pytest.fixture
def indexed_patient(indexed, tmp_path):
    return Patient(indexed, tmp_path)


def assert_noticed_or_harmless(answer, healthy):
    """Damage that changes what users see must not go unnoticed."""
    if "open" in answer or answer["check"]:
        return
    assert answer["errors"] == []
    assert answer["content"] == healthy["content"]


def test_the_sound_file_is_sound(patient):
    (answer,) = patient.ask([patient.data])

    assert answer["check"] == answer["errors"] == []


@ENGINES
def test_the_file_with_indexes_is_sound(indexed_patient, engine):
    (answer,) = indexed_patient.ask([indexed_patient.data], engine)

    assert answer["check"] == answer["errors"] == []


@pytest.mark.parametrize("seed", range(2))
def test_flipped_bits_are_noticed_or_change_nothing(patient, seed):
    rng = random.Random(seed)
    places = [(rng.randrange(len(patient.data)), rng.randrange(8)) for _ in range(100)]
    healthy, *answers = patient.ask(
        [patient.data, *(patient.flipped(at, bit) for at, bit in places)]
    )

    for answer in answers:
        assert_noticed_or_harmless(answer, healthy)
    assert any(answer.get("check") for answer in answers)


@ENGINES
def test_flipped_bits_in_a_file_with_indexes_are_noticed_or_change_nothing(indexed_patient, engine):
    patient, rng = indexed_patient, random.Random(engine)
    places = [(rng.randrange(len(patient.data)), rng.randrange(8)) for _ in range(50)]
    healthy, *answers = patient.ask(
        [patient.data, *(patient.flipped(at, bit) for at, bit in places)], engine
    )

    for answer in answers:
        assert_noticed_or_harmless(answer, healthy)


@ENGINES
def test_pages_of_noise_in_a_file_with_indexes_are_noticed_or_change_nothing(
    indexed_patient, engine
):
    patient, rng, copies = indexed_patient, random.Random(engine), []
    for page in rng.sample(range(2, patient.pages), 40):
        data = bytearray(patient.data)
        data[page * PAGE : (page + 1) * PAGE] = rng.choice((bytes(PAGE), rng.randbytes(PAGE)))
        copies.append(bytes(data))
    healthy, *answers = patient.ask([patient.data, *copies], engine)

    for answer in answers:
        assert_noticed_or_harmless(answer, healthy)


def test_flipped_bits_at_the_beginning_of_every_page_are_noticed_or_change_nothing(patient):
    rng = random.Random(9)
    places = [page * PAGE + rng.randrange(64) for page in range(patient.pages) for _ in range(2)]
    healthy, *answers = patient.ask([patient.data, *(patient.flipped(at, 2) for at in places)])

    for answer in answers:
        assert_noticed_or_harmless(answer, healthy)


def test_every_bit_of_the_header_pages_may_flip(patient):
    places = [page * PAGE + at for page in (0, 1) for at in range(16, 16 + 136)]
    rng = random.Random(5)
    copies = [patient.flipped(at, rng.randrange(8)) for at in places]
    healthy, *answers = patient.ask([patient.data, *copies])

    # A header that looks older is passed over for the other one: the state before the last commit.
    for answer in answers:
        assert "open" in answer or answer["check"] or answer["errors"] == []
    assert healthy["check"] == []


def test_pages_of_zeros_or_noise_are_noticed_or_change_nothing(patient):
    rng = random.Random(1)
    copies = []
    for page in range(patient.pages):
        for fill in (bytes(PAGE), rng.randbytes(PAGE), b"\xff" * PAGE):
            data = bytearray(patient.data)
            data[page * PAGE : (page + 1) * PAGE] = fill
            copies.append(bytes(data))
    healthy, *answers = patient.ask([patient.data, *copies])

    for number, answer in enumerate(answers):
        if number // 3 >= 2:
            assert_noticed_or_harmless(answer, healthy)


def test_swapped_pages_are_noticed_or_change_nothing(patient):
    rng, copies = random.Random(2), []
    for _ in range(40):
        one, two = rng.sample(range(2, patient.pages), 2)
        data = bytearray(patient.data)
        first, second = slice(one * PAGE, one * PAGE + PAGE), slice(two * PAGE, two * PAGE + PAGE)
        data[first], data[second] = data[second], data[first]
        copies.append(bytes(data))
    healthy, *answers = patient.ask([patient.data, *copies])

    for answer in answers:
        assert_noticed_or_harmless(answer, healthy)


def test_files_cut_at_every_page_are_refused_or_lack_nothing(patient):
    copies = [patient.data[: page * PAGE] for page in range(1, patient.pages)]
    healthy, *answers = patient.ask([patient.data, *copies])

    for answer in answers:
        assert_noticed_or_harmless(answer, healthy)
    assert sum("open" in answer for answer in answers) > patient.pages // 2


def test_files_cut_anywhere_are_refused_or_lack_nothing(patient):
    rng = random.Random(4)
    copies = [patient.data[: rng.randrange(len(patient.data))] for _ in range(40)]
    healthy, *answers = patient.ask([patient.data, *copies])

    for answer in answers:
        assert_noticed_or_harmless(answer, healthy)


def test_a_file_with_more_behind_it_is_as_good_as_before(patient):
    healthy, *answers = patient.ask(
        [patient.data, patient.data + bytes(PAGE), patient.data + b"\xff" * 100]
    )

    for answer in answers:
        assert answer == healthy


# Every kind of value: the flip is inside the value, so vecstore's own checksums must find it


def values_of(path):
    """Some values of every database that has any, and all of `index`: (database, key, value)."""
    store = Store(path, read_only=True)
    found = []
    with store.snapshot() as snapshot:
        for database in layout.DATABASES:
            items = [(key, bytes(value)) for key, value in snapshot.items(database, b"")]
            if database != "index":
                items = items[:1] + items[-1:]
            found += [(database, key, value) for key, value in items]
    store.close()
    return found


def covered(value):
    """How many bytes of a value a checksum covers."""
    if value[:4] == layout.HEADER_MAGIC:
        return layout.HEADER.size + layout.unpack_header(value, "").length
    return len(value)


@pytest.mark.parametrize(
    ("file", "more"),
    [("sound", {"digests", "fields"}), ("indexed", {"lists", "index", "fields"})],
    ids=["sound", "indexed"],
)
def test_a_flipped_bit_in_every_kind_of_value_is_found(file, more, request, tmp_path):
    path = request.getfixturevalue(file)
    copies, names, patient = [], [], Patient(path, tmp_path)
    rng = random.Random(6)
    for database, key, value in values_of(path):
        # Pages that are free now may hold it too.
        copies_of_it = [match.start() for match in re.finditer(re.escape(value), patient.data)]
        assert copies_of_it
        places = range(len(value)) if len(value) < 40 else rng.sample(range(len(value)), 6)
        for place in places:
            if place < covered(value):
                data, bit = bytearray(patient.data), rng.randrange(8)
                for at in copies_of_it:
                    data[at + place] ^= 1 << bit
                copies.append(bytes(data))
                names.append(f"{database} {key.hex()} byte {place}")
    answers = patient.ask(copies, "check")

    kinds = {name.split()[0] for name in names}
    assert kinds == {"meta", "ids", "records", "tiers", "live"} | more
    for name, answer in zip(names, answers, strict=True):
        assert "open" in answer or answer["check"], name


def values_of_indexes(path):
    """Every value of the indexes: (database, key, value)."""
    store = Store(path, read_only=True)
    with store.snapshot() as snapshot:
        found = [
            (database, key, bytes(value))
            for database in ("tiers", "lists", "index")
            for key, value in snapshot.items(database, b"")
            if database != "tiers" or key[4] == layout.CODE_TIER
        ]
    store.close()
    return found


def changed(sound, folder, changes):
    """Copies of a file, each with one value changed, and every checksum of LMDB's own kept."""
    for number, (database, key, value) in enumerate(changes):
        path = folder / f"changed-{number}.vecstore"
        store = Store(shutil.copy(sound, path))
        store.write(lambda txn, at=(database, key, value): txn.put(*at))
        store.close()
        yield path.read_bytes()


def noise(value, rng, first, sealed):
    """A value with other bytes from `first` on; sealed: under the checksum of what it became."""
    noisy, length = bytearray(value), covered(value)
    # Each byte at most once: noise upon noise may be none, and a value of five bytes has but one.
    for place in rng.sample(range(first, length), min(rng.choice((1, 8, 200)), length - first)):
        noisy[place] ^= rng.choice((1, 128, 255))
    if sealed and value[:4] == layout.HEADER_MAGIC:
        header = layout.unpack_header(value, "")
        layout.seal_bulk(header, noisy, header.length)
    elif sealed:
        noisy = layout.pack_checked(bytes(noisy[4:]))
    assert noisy != value
    return bytes(noisy)


@ENGINES
@pytest.mark.parametrize("sealed", [False, True], ids=["as it is", "with a right checksum"])
def test_noise_in_any_value_of_an_index_never_crashes_a_search(
    indexed, indexed_patient, tmp_path, engine, sealed
):
    rng, changes = random.Random(f"{engine} {sealed}"), []
    # Without lists no block is listed: a checksum of nothing.
    values = [found for found in values_of_indexes(indexed) if len(found[2]) > 4]
    for database, key, value in rng.choices(values, k=40):
        # The header is checked when an address is taken: what is behind it is not.
        first = layout.HEADER.size if value[:4] == layout.HEADER_MAGIC else 4
        changes.append((database, key, noise(value, rng, first, sealed)))
    answers = indexed_patient.ask(list(changed(indexed, tmp_path, changes)), engine)

    # With a right checksum, other codes of a few rows may pass for those of the vectors.
    for (database, key, _), answer in zip(changes, answers, strict=True):
        assert answer["check"] or sealed, (database, key.hex())


@ENGINES
def test_values_of_an_index_under_other_keys_never_crash_a_search(
    indexed, indexed_patient, tmp_path, engine
):
    rng, values, changes = random.Random(engine), values_of_indexes(indexed), []
    for database in ("tiers", "lists", "index"):
        some = [(key, value) for name, key, value in values if name == database]
        for _ in range(15):
            (key, _), (_, value) = rng.sample(some, 2)
            changes.append((database, key, value))
    answers = indexed_patient.ask(list(changed(indexed, tmp_path, changes)), engine)

    for (database, key, _), answer in zip(changes, answers, strict=True):
        assert answer["check"], (database, key.hex())


def test_damage_in_one_block_leaves_the_other_collections_usable(sound, tmp_path):
    path = shutil.copy(sound, tmp_path / "copy.vecstore")
    store = Store(path)
    key = layout.block_key(1, 0)

    def spoil(txn):
        value = bytearray(txn.get("tiers", key))
        value[4] ^= 1
        txn.put("tiers", key, value)

    store.write(spoil)
    store.close()
    with vecstore.open(path) as db:
        with pytest.raises(CorruptionError, match="block 0 of collection 1"):
            db.collection("cosine").search(np.ones(8))
        assert len(db.collection("l2").search(np.ones(8), k=5)) == 5
        assert db.collection("cosine").get(5).id == 5
        assert [str(problem) for problem in db.check()] != []


def test_a_flipped_bit_in_the_vectors_is_found_by_check_alone(sound, tmp_path):
    path = shutil.copy(sound, tmp_path / "copy.vecstore")
    store = Store(path)
    key = layout.block_key(2, 0)

    def spoil(txn):
        value = bytearray(txn.get("tiers", key))
        value[layout.HEADER.size + layout.COLUMNS_BYTES + 2] ^= 1
        txn.put("tiers", key, value)

    store.write(spoil)
    store.close()
    with vecstore.open(path) as db:
        assert len(db.collection("l2").search(np.ones(8), k=5)) == 5
        assert any("checksum" in str(problem) for problem in db.check())
        with pytest.raises(CorruptionError, match="cannot backup"):
            db.backup(tmp_path / "backup.vecstore")
        with pytest.raises(CorruptionError, match="cannot compact"):
            db.compact()


def test_a_value_with_a_right_checksum_under_a_wrong_key_is_found(sound, tmp_path):
    path = shutil.copy(sound, tmp_path / "copy.vecstore")
    store = Store(path)
    value = store.write(lambda txn: txn.get("tiers", layout.block_key(1, 0)))
    store.write(lambda txn: txn.put("tiers", layout.block_key(2, 0), value))
    store.close()
    with vecstore.open(path) as db:
        with pytest.raises(CorruptionError, match="belongs to another value"):
            db.collection("l2").search(np.ones(8))
        assert any("belongs to another value" in str(problem) for problem in db.check())


@pytest.mark.parametrize("size", [2**40, 2**63])
def test_a_file_that_claims_to_be_huge_is_refused(sound, tmp_path, size):
    data = bytearray(sound.read_bytes())
    for page in (0, 1):
        struct.pack_into("<Q", data, page * PAGE + 136, size)
    path = tmp_path / "copy.vecstore"
    path.write_bytes(data)

    with pytest.raises((CorruptionError, FormatError)):
        vecstore.open(path)


def test_the_checksum_is_the_crc32_of_zlib():
    assert layout.pack_checked(b"abc")[:4] == zlib.crc32(b"abc").to_bytes(4, "little")
