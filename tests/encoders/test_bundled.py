from __future__ import annotations

import hashlib
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vecstore.encoders import OnnxEncoder, bundled, bundled_names
from vecstore.errors import ModelNotFoundError, UsageError

DATA = Path(__file__).parents[1] / "data"
WORDS = (
    "The harbour master counts boats at night while gulls sleep on the roof of the old customs "
    "house; nobody minds 3,141 gulls. "
)


# What is declared of each, and what it may weigh.
MODELS = {
    "default": {"mrl": (64, 128, 256, 384), "max_length": 256, "bytes": 26_000_000},
    "fast": {"mrl": (32, 64, 128, 256, 384), "max_length": 256, "bytes": 13_000_000},
}


@pytest.fixture(params=list(MODELS))
def name(request):
    return request.param


# What encodes: the models, and where one of them may end early.
ENCODERS = [*MODELS, "default/layer=4"]


def cosine(name: str, first: str, second: str) -> float:
    vectors = bundled(name).encode([first, second])
    return float(vectors[0] @ vectors[1])


def test_the_models_that_are_bundled():
    assert bundled_names() == sorted(MODELS)
    assert bundled() is bundled("default")


def test_recorded_digests_are_those_of_the_files(name):
    folder = bundled(name)._folder

    assert set(folder.digests) == {"model.onnx", "tokenizer.json"}
    for name, digest in folder.digests.items():
        assert hashlib.sha256((folder.path / name).read_bytes()).hexdigest() == digest


def test_the_fingerprint_is_that_of_the_folder_opened_by_path(name):
    assert bundled(name).fingerprint == OnnxEncoder(bundled(name)._folder.path).fingerprint
    assert len({bundled(other).fingerprint for other in MODELS}) == len(MODELS)


def test_name_dim_prefixes_and_length_are_known_without_loading(name):
    encoder = OnnxEncoder(bundled(name)._folder.path)

    assert (encoder.name, encoder.dim, encoder.mrl) == (name, 384, MODELS[name]["mrl"])
    assert encoder.max_length == MODELS[name]["max_length"]
    assert encoder._session is None


def test_digests_are_believed_of_exactly_these_files(name):
    folder = bundled(name)._folder
    recorded = sys.modules["vecstore.encoders.bundled"]._recorded_digests

    assert recorded(folder) == {
        "model": folder.digests["model.onnx"],
        "tokenizer": folder.digests["tokenizer.json"],
    }
    for digests in ({}, {"model.onnx": "0"}, {**folder.digests, "more": "0"}):
        assert recorded(replace(folder, digests=digests)) == {}


def test_the_folder_holds_what_a_wheel_may_carry(name):
    path = bundled(name)._folder.path

    assert sum(file.stat().st_size for file in path.iterdir()) <= MODELS[name]["bytes"]
    assert {"README.md", "LICENSE", "modules.json"} <= {file.name for file in path.iterdir()}


def test_one_instance_serves_all_threads(monkeypatch):
    # The module, whose name the package uses for the function.
    monkeypatch.setattr(sys.modules["vecstore.encoders.bundled"], "_BUNDLED", {})
    together = threading.Barrier(8)
    made = OnnxEncoder.__init__

    def slowly(*arguments, **options):
        made(*arguments, **options)
        # None is kept before all were made.
        together.wait(timeout=60)

    monkeypatch.setattr(OnnxEncoder, "__init__", slowly)
    found: list[OnnxEncoder] = []
    threads = [threading.Thread(target=lambda: found.append(bundled())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len({id(encoder) for encoder in found}) == 1


@pytest.mark.parametrize("wrong", ["nonsense", "", "..", "../models/default", "default/"])
def test_another_name_is_not_found(wrong):
    with pytest.raises(ModelNotFoundError, match=r"bundled are: default, fast"):
        bundled(wrong)


@pytest.mark.parametrize("wrong", [None, 5, ["default"]])
def test_what_is_no_name_is_refused(wrong):
    with pytest.raises(UsageError, match="must be a str"):
        bundled(wrong)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_unit_float32(name):
    found = bundled(name).encode(["a", "漢字 and émigrés", "x" * 5000, WORDS * 40])

    assert found.shape == (4, 384)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_vector_does_not_depend_on_its_batch_mates(name):
    words = (WORDS * 20).split()
    texts = [" ".join(words[: 1 + size]) for size in (0, 1, 2, 5, 9, 17, 40, 41, 90, 180, 300)]

    together = bundled(name).encode(texts)

    alone = np.concatenate([bundled(name).encode([text]) for text in texts])
    backwards = bundled(name).encode(texts[::-1])[::-1]
    assert (together * alone).sum(axis=1).min() >= 0.9999
    assert (together * backwards).sum(axis=1).min() >= 0.9999


def test_an_early_exit_nearly_agrees_and_is_another_space():
    texts = [WORDS, "An embedded key-value store", "A kitten rests on a rug."]
    early, whole = bundled("default/layer=4"), bundled()
    first, second = early.encode(texts), whole.encode(texts)

    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=0.15)
    assert np.abs(first - second).max() > 0.01
    assert early.fingerprint != whole.fingerprint
    assert early.mrl == whole.mrl


@pytest.mark.parametrize("name", ENCODERS)
def test_the_vectors_of_tokens_have_the_direction_of_the_text(name):
    (whole,) = bundled(name).encode([WORDS])

    (found,) = bundled(name).encode_passages(WORDS, [(0, len(WORDS))])

    assert found @ whole / np.linalg.norm(found) > 0.9999


@pytest.mark.parametrize("name", ENCODERS)
def test_what_follows_the_maximum_length_changes_nothing(name):
    long = WORDS * 40

    assert cosine(name, long, long + "Quantum chromodynamics is something else entirely.") > 0.99999


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    ("text", "paraphrase", "unrelated"),
    [
        ("How do I reset my password?", "I forgot my login and need a new one", "Bake it an hour"),
        ("A man plays the guitar.", "Someone is strumming a guitar.", "The bank raised its rates."),
        ("embedded key-value store", "LMDB is a memory-mapped B+tree", "a recipe for lentil soup"),
        ("The cat sat on the mat.", "A kitten rests on a rug.", "Stock markets fell on Monday."),
    ],
)
def test_a_paraphrase_is_nearer_than_an_unrelated_text(name, text, paraphrase, unrelated):
    assert cosine(name, text, paraphrase) > cosine(name, text, unrelated) + 0.08


# Measured: 0.924, 0.925, 0.935 and 0.917; 0.895, 0.912, 0.902 and 0.886.
FLOORS = [
    *(
        ("default", size, floor)
        for size, floor in ((384, 0.90), (256, 0.90), (128, 0.90), (64, 0.89))
    ),
    *(("fast", size, floor) for size, floor in ((384, 0.87), (128, 0.88), (64, 0.88), (32, 0.86))),
]


@pytest.mark.parametrize(("name", "size", "floor"), FLOORS)
def test_similarities_agree_with_people_at_every_prefix(name, size, floor):
    rows = [json.loads(line) for line in (DATA / "stsb_slice.jsonl").read_text().splitlines()]
    first = bundled(name).encode([row["first"] for row in rows])[:, :size]
    second = bundled(name).encode([row["second"] for row in rows])[:, :size]
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / lengths
    scores = np.array([row["score"] for row in rows])

    assert spearman(cosines, scores) >= floor


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[groups]
