import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore import AlreadyExistsError, CorruptionError, NotFoundError, SpecError, catalog, layout
from vecstore.layout import State
from vecstore.spec import CollectionSpec
from vecstore.store import Store

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@pytest.fixture
def store():
    store = Store(":memory:")
    yield store
    store.close()


def create(store, name="points", dim=3, **options):
    return store.write(
        lambda txn: catalog.create(txn, CollectionSpec(name=name, dim=dim, **options))
    )


def look(store, work):
    with store.snapshot() as snapshot:
        return work(snapshot)


def test_a_new_collection_is_found_by_name_and_number(store):
    entry = create(store, mrl=(1, 2), metric="l2", encoder="e", fingerprint="f")

    assert look(store, lambda reader: catalog.find(reader, "points")) == entry
    assert look(store, lambda reader: catalog.read(reader, entry.number, entry.uid)) == entry
    assert look(store, lambda reader: catalog.state(reader, entry.number)) == State()


def test_a_name_that_nobody_has_leads_nowhere(store):
    assert look(store, lambda reader: catalog.find(reader, "points")) is None


@given(st.lists(NAMES, unique=True, max_size=6))
def test_names_are_sorted_by_code_point(names):
    store = Store(":memory:")
    for name in names:
        create(store, name)

    assert look(store, catalog.names) == sorted(names)
    store.close()


def test_a_name_that_is_the_beginning_of_another_is_another(store):
    one, two = create(store, "a"), create(store, "a/b")

    assert look(store, lambda reader: catalog.find(reader, "a")) == one
    assert look(store, lambda reader: catalog.find(reader, "a/b")) == two


def test_a_taken_name_is_refused(store):
    create(store)

    with pytest.raises(AlreadyExistsError, match="'points'"):
        create(store)


@pytest.mark.parametrize("name", ["", "x" * 256, "\ud800", 5, None, b"points"])
def test_a_name_that_cannot_be_one_is_refused(store, name):
    with pytest.raises(ValueError, match="name") as caught:
        look(store, lambda reader: catalog.find(reader, name))
    assert isinstance(caught.value, SpecError) or "surrogate" in str(caught.value)


def test_the_longest_name_is_a_name(store):
    name = "é" * 127 + "x"
    create(store, name)

    assert look(store, catalog.names) == [name]


def test_numbers_are_never_given_out_again(store):
    first = create(store)
    store.write(lambda txn: catalog.drop(txn, "points"))
    second = create(store)

    assert second.number > first.number
    with pytest.raises(NotFoundError, match="no longer exists"):
        look(store, lambda reader: catalog.read(reader, first.number))


def test_dropping_takes_everything_of_the_collection_and_nothing_else(store):
    entries = [create(store, name) for name in ("a", "b", "c")]

    def fill(txn):
        for database in catalog.PREFIXED:
            for entry in entries:
                txn.put(database, layout.collection_key(entry.number) + b"rest", b"1")

    store.write(fill)
    store.write(lambda txn: catalog.drop(txn, "b"))

    assert look(store, catalog.names) == ["a", "c"]
    with store.snapshot() as snapshot:
        for database in catalog.PREFIXED:
            keys = [key[:4] for key, _ in snapshot.items(database, b"")]
            assert keys == [layout.collection_key(entries[at].number) for at in (0, 2)]
        left = [key for key, _ in snapshot.items("meta", b"")]
    assert layout.spec_key(entries[1].number) not in left
    assert layout.state_key(entries[1].number) not in left


def test_dropping_what_is_not_there_names_what_is(store):
    create(store, "a")

    with pytest.raises(NotFoundError, match=r"no collection 'b'; this file has: 'a'"):
        store.write(lambda txn: catalog.drop(txn, "b"))


def test_renaming_keeps_number_and_uid(store):
    entry = create(store, "a")
    renamed = store.write(lambda txn: catalog.rename(txn, "a", "b"))

    assert (renamed.number, renamed.uid, renamed.spec.name) == (entry.number, entry.uid, "b")
    assert look(store, catalog.names) == ["b"]
    assert look(store, lambda reader: catalog.read(reader, entry.number, entry.uid)) == renamed


def test_renaming_to_the_same_name_changes_nothing(store):
    entry = create(store, "a")

    assert store.write(lambda txn: catalog.rename(txn, "a", "a")) == entry


def test_renaming_to_a_taken_name_changes_nothing(store):
    create(store, "a")
    create(store, "b")

    with pytest.raises(AlreadyExistsError, match="'b'"):
        store.write(lambda txn: catalog.rename(txn, "a", "b"))
    assert look(store, catalog.names) == ["a", "b"]


def test_names_may_be_swapped_in_one_transaction(store):
    a, b = create(store, "a"), create(store, "b")

    def swap(txn):
        catalog.rename(txn, "a", "c")
        catalog.rename(txn, "b", "a")
        catalog.rename(txn, "c", "b")

    store.write(swap)

    assert look(store, lambda reader: catalog.find(reader, "a")).uid == b.uid
    assert look(store, lambda reader: catalog.find(reader, "b")).uid == a.uid


def test_an_entry_with_another_uid_is_not_the_one_that_was_meant(store):
    entry = create(store)

    with pytest.raises(NotFoundError, match="no longer exists"):
        look(store, lambda reader: catalog.read(reader, entry.number, b"12345678"))


def test_each_snapshot_has_the_entry_of_its_moment(store):
    entry = create(store)
    with store.snapshot() as before:
        assert catalog.read(before, entry.number).spec.name == "points"
        store.write(lambda txn: catalog.rename(txn, "points", "others"))
        assert look(store, lambda reader: catalog.read(reader, entry.number)).spec.name == "others"
        assert catalog.read(before, entry.number, entry.uid).spec.name == "points"
        store.write(lambda txn: catalog.drop(txn, "others"))
        with pytest.raises(NotFoundError):
            look(store, lambda reader: catalog.read(reader, entry.number))
        assert catalog.read(before, entry.number) == entry


def test_saving_counters_counts_the_change(store):
    entry = create(store)
    state = State(next_order=7)
    store.write(lambda txn: catalog.save_state(txn, entry.number, state))

    found = look(store, lambda reader: catalog.state(reader, entry.number))
    assert (found.next_order, found.generation) == (7, 1)


# Damage


def spoil(store, key, value):
    store.write(lambda txn: txn.put("meta", key, value))


@pytest.mark.parametrize(
    "value",
    [b"", b"short", b"x" * 50, layout.pack_meta({}), layout.pack_meta({"number": "one"})],
)
def test_a_name_that_leads_to_nothing_sensible_is_damage(store, value):
    create(store)
    spoil(store, layout.name_key("points"), value)

    with pytest.raises(CorruptionError, match="name 'points'"):
        look(store, lambda reader: catalog.find(reader, "points"))


@pytest.mark.parametrize(
    "change",
    [
        {"uid": None},
        {"dim": "three"},
        {"dim": 1},
        {"metric": "none"},
        {"precision": 4},
        {"mrl": 5},
        {"name": ""},
    ],
)
def test_a_spec_that_makes_no_sense_is_damage(store, change):
    entry = create(store)
    values = {**entry.spec.to_dict(), "uid": entry.uid, **change}
    spoil(store, layout.spec_key(entry.number), layout.pack_meta(values))

    with pytest.raises(CorruptionError, match=f"spec of collection {entry.number}"):
        look(store, lambda reader: catalog.find(reader, "points"))


def test_a_collection_without_counters_is_damage(store):
    entry = create(store)
    store.write(lambda txn: txn.delete("meta", layout.state_key(entry.number)))

    with pytest.raises(CorruptionError, match="no counters"):
        look(store, lambda reader: catalog.state(reader, entry.number))


@pytest.mark.parametrize("values", [{}, {"next": "one"}, {"next": -1}, {"next": 2**32}])
def test_a_next_number_that_makes_no_sense_is_damage(store, values):
    create(store)
    spoil(store, layout.KEY_NEXT, layout.pack_meta(values))

    with pytest.raises(CorruptionError, match="next"):
        create(store, "another")


def test_a_name_that_is_not_utf8_is_damage(store):
    spoil(store, b"name/\xff", layout.pack_meta({"number": 1}))

    with pytest.raises(CorruptionError, match="name"):
        look(store, catalog.names)
