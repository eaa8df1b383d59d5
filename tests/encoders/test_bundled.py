from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from vecstore.encoders import OnnxEncoder, bundled, bundled_names
from vecstore.errors import ModelNotFoundError

DATA = Path(__file__).parents[1] / "data"
WORDS = (
    "The harbour master counts boats at night while gulls sleep on the roof of the old customs "
    "house; nobody minds 3,141 gulls. "
)


def cosine(first: str, second: str) -> float:
    vectors = bundled().encode([first, second])
    return float(vectors[0] @ vectors[1])


def test_recorded_digests_are_those_of_the_files():
    folder = bundled()._folder

    assert set(folder.digests) == {"model.onnx", "tokenizer.json"}
    for name, digest in folder.digests.items():
        assert hashlib.sha256((folder.path / name).read_bytes()).hexdigest() == digest


def test_the_fingerprint_is_that_of_the_folder_opened_by_path():
    assert bundled().fingerprint == OnnxEncoder(bundled()._folder.path).fingerprint


def test_name_dim_prefixes_and_length_are_known_without_loading():
    encoder = OnnxEncoder(bundled()._folder.path)

    assert (encoder.name, encoder.dim, encoder.mrl) == ("default", 384, (64, 128, 256, 384))
    assert encoder.max_length == 256
    assert encoder._session is None


def test_the_folder_holds_what_a_wheel_may_carry():
    path = bundled()._folder.path

    assert sum(file.stat().st_size for file in path.iterdir()) < 28 << 20
    assert {"README.md", "LICENSE", "modules.json"} <= {file.name for file in path.iterdir()}


def test_one_instance_serves_all_threads():
    found: list[OnnxEncoder] = []
    threads = [threading.Thread(target=lambda: found.append(bundled())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id(encoder) for encoder in found}) == 1


@pytest.mark.parametrize("name", ["nonsense", "", "..", "../models/default", "default/"])
def test_another_name_is_not_found(name):
    with pytest.raises(ModelNotFoundError, match=r"bundled are: .*default"):
        bundled(name)


def test_default_is_bundled():
    assert "default" in bundled_names()


def test_vectors_are_unit_float32():
    found = bundled().encode(["a", "漢字 and émigrés", "x" * 5000, WORDS * 40])

    assert found.shape == (4, 384)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch_mates():
    words = (WORDS * 20).split()
    texts = [" ".join(words[: 1 + size]) for size in (0, 1, 2, 5, 9, 17, 40, 41, 90, 180, 300)]

    together = bundled().encode(texts)

    alone = np.concatenate([bundled().encode([text]) for text in texts])
    backwards = bundled().encode(texts[::-1])[::-1]
    assert (together * alone).sum(axis=1).min() >= 0.9999
    assert (together * backwards).sum(axis=1).min() >= 0.9999


def test_what_follows_the_maximum_length_changes_nothing():
    long = WORDS * 20

    assert cosine(long, long + "Quantum chromodynamics is something else entirely.") > 0.99999


@pytest.mark.parametrize(
    ("text", "paraphrase", "unrelated"),
    [
        ("How do I reset my password?", "I forgot my login and need a new one", "Bake it an hour"),
        ("A man plays the guitar.", "Someone is strumming a guitar.", "The bank raised its rates."),
        ("embedded key-value store", "LMDB is a memory-mapped B+tree", "a recipe for lentil soup"),
        ("The cat sat on the mat.", "A kitten rests on a rug.", "Stock markets fell on Monday."),
    ],
)
def test_a_paraphrase_is_nearer_than_an_unrelated_text(text, paraphrase, unrelated):
    assert cosine(text, paraphrase) > cosine(text, unrelated) + 0.1


# Measured: 0.924, 0.925, 0.935 and 0.917.
@pytest.mark.parametrize(("size", "floor"), [(384, 0.90), (256, 0.90), (128, 0.90), (64, 0.89)])
def test_similarities_agree_with_people_at_every_prefix(size, floor):
    rows = [json.loads(line) for line in (DATA / "stsb_slice.jsonl").read_text().splitlines()]
    first = bundled().encode([row["first"] for row in rows])[:, :size]
    second = bundled().encode([row["second"] for row in rows])[:, :size]
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / lengths
    scores = np.array([row["score"] for row in rows])

    assert spearman(cosines, scores) >= floor


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[groups]
