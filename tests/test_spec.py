import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore import CollectionSpec, SpecError, UsageError
from vecstore.spec import MAX_ID_BYTES, check_id, check_name, is_id, show


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=63),
    st.integers(2, 8192),
    st.sampled_from(["cosine", "dot", "l2"]),
    st.none() | st.text(max_size=5),
    st.sampled_from(["float32", "float16", "int8"]),
)
def test_a_spec_survives_its_stored_form(name, dim, metric, encoder, precision) -> None:
    spec = CollectionSpec(
        name=name,
        dim=dim,
        metric=metric,
        mrl=(1, dim),
        encoder=encoder,
        fingerprint=encoder,
        precision=precision,
    )
    assert CollectionSpec.from_dict(spec.to_dict()) == spec


def test_a_spec_of_binary_vectors_survives_its_stored_form() -> None:
    spec = CollectionSpec(name="c", dim=8, metric="hamming")
    assert spec.precision == "bits"
    assert CollectionSpec.from_dict(spec.to_dict()) == spec


@given(st.integers(2, 8192), st.sampled_from([1, 2, 4]), st.data())
def test_a_schedule_survives_its_stored_form(dim, bits, data) -> None:
    dims = data.draw(st.integers(1, dim))
    spec = CollectionSpec(name="c", dim=dim, tiers=((dims, bits), (dim, 4)))
    assert spec.tiers == ((dims, bits),)
    assert spec == CollectionSpec(name="c", dim=dim, tiers=((dims, bits),))
    assert CollectionSpec.from_dict(spec.to_dict()) == spec


def test_a_spec_without_a_schedule_is_stored_as_it_was_before_there_were_any() -> None:
    values = CollectionSpec(name="c", dim=3).to_dict()
    assert "tiers" not in values
    assert CollectionSpec.from_dict(values).tiers == ()


def test_a_spec_stored_without_a_precision_is_of_float32() -> None:
    values = CollectionSpec(name="c", dim=3, precision="int8").to_dict()
    del values["precision"]
    assert CollectionSpec.from_dict(values).precision == "float32"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 1}, r"dim=1 is outside 2\.\.8192"),
        ({"dim": 8193}, "dim=8193"),
        ({"dim": -(10**5000)}, "dim=<int too large to show>"),
        ({"metric": "euclid"}, "metric='euclid' is unknown; use one of cosine, dot, l2, hamming"),
        ({"metric": ""}, "metric='' is unknown"),
        ({"metric": []}, r"metric=\[\] is unknown"),
        ({"precision": "double"}, "precision='double' is unknown; use one of float32, float16"),
        ({"precision": []}, r"precision=\[\] is unknown"),
        ({"precision": "bits"}, "precision='bits' is unknown"),
        ({"metric": "hamming"}, "dim=3 counts bits under hamming, and must be a multiple of 8"),
        ({"metric": "hamming", "dim": 8, "precision": "int8"}, "'int8' does not apply"),
        ({"metric": "hamming", "dim": 8, "precision": []}, r"precision=\[\] does not apply"),
        ({"metric": "hamming", "dim": 8, "encoder": "e"}, "encoder 'e' makes numbers"),
        ({"mrl": (2, 1)}, r"mrl=\(2, 1\)"),
        ({"mrl": (1, 1)}, r"mrl=\(1, 1\)"),
        ({"mrl": (0, 1)}, r"mrl=\(0, 1\)"),
        ({"mrl": (4,)}, r"mrl=\(4,\).* dim=3"),
        ({"mrl": (1.5,)}, r"mrl=\(1\.5,\)"),
        ({"mrl": (True,)}, r"mrl=\(True,\)"),
        ({"mrl": ("a",)}, r"mrl=\('a',\)"),
        ({"tiers": ((3, 3),)}, r"tiers=\(\(3, 3\),\)"),
        ({"tiers": ((4, 1),)}, r"1 to dim=3 dims"),
        ({"tiers": ((3, True),)}, "is no schedule"),
        ({"tiers": ("31",)}, r"tiers=\('31',\) is no schedule"),
        ({"metric": "hamming", "dim": 8, "tiers": ((8, 1),)}, "tiers=.* does not apply"),
        ({"name": ""}, "must not be empty"),
        ({"name": 5}, "int 5"),
        ({"name": "x" * 256}, "has 256"),
        ({"name": "é" * 128}, "has 256"),
    ],
)
def test_an_impossible_declaration_is_refused_by_value(values, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        CollectionSpec(**{"name": "c", "dim": 3, **values})


def test_a_name_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UsageError, match="lone surrogate at position 1"):
        check_name("a\ud800")


@pytest.mark.parametrize("name", ["a", "a/b", "a\0b", "é" * 127, "x" * 255, " "])
def test_any_other_text_is_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("value", ["", "a\0b", "x" * MAX_ID_BYTES, 0, -(2**63), 2**63 - 1])
def test_an_id_is_returned_as_it_is(value) -> None:
    assert check_id(value) == value
    assert type(check_id(value)) is type(value)


def test_ids_of_other_libraries_become_pythons_own() -> None:
    assert type(check_id(np.uint8(5))) is int
    assert type(check_id(np.str_("x"))) is str


@pytest.mark.parametrize("value", [True, np.bool_(True), None, 1.0, b"x", (1,), [1], {}, object()])
def test_other_values_are_no_ids(value) -> None:
    with pytest.raises(UsageError, match="an id is a str or an int, got"):
        check_id(value)


def test_one_id_is_told_from_several() -> None:
    assert all(map(is_id, ["a", "", 1, np.int64(1)]))
    assert not any(map(is_id, [["a"], (1,), b"a", None, 1.0, range(3)]))


def test_what_has_no_repr_is_shown_by_its_type() -> None:
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert show(nested) == "<list too large to show>"
    assert show(10**5000) == "<int too large to show>"
    assert show("x" * 100) == "'" + "x" * 56 + "..."
