"""Parts of the recipes, each beside something plainer. They need torch, as the recipes do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

# Behind the line above, since all of them import it.
import nested  # noqa: E402
import tiny_bert  # noqa: E402
import training  # noqa: E402
from finetune import Sequences, Student, finetune  # noqa: E402
from layers import Layer  # noqa: E402
from make_fast import build_static, joined  # noqa: E402
from rotation import Rotation, rotation_of  # noqa: E402
from static import Bags, Table, first_table, fit_table  # noqa: E402
from tiny_bert import DIM, SHAPE, WORDS  # noqa: E402
from training import Memory, Settings, Source, train  # noqa: E402

from vecstore.encoders import fit_rotation  # noqa: E402
from vecstore.encoders.transformer import build  # noqa: E402


@dataclass(frozen=True)
class Vectors:
    """Texts of which only the teacher's vectors are known."""

    teacher: np.ndarray


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return tiny_bert.tensors(large=2.0)


def shares(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_the_loss_is_that_of_its_numpy_twin(rng):
    """Four texts, two of them queries; three documents beside them; two prefixes."""
    vectors, teacher = rng.normal(size=(4, 8)), unit(rng.normal(size=(4, 8))).astype(np.float64)
    beside, known = rng.normal(size=(3, 8)), unit(rng.normal(size=(3, 8))).astype(np.float64)
    loss = nested.Nested(
        prefixes={8: 2.0, 4: 1.0}, labels=0.3, own=0.5, temperature=0.1, squares=5.0, direct=0.7
    )

    def others(first: np.ndarray, more: np.ndarray) -> np.ndarray:
        rows = [np.delete(row, place) for place, row in enumerate(first @ first.T)]
        return np.hstack([np.array(rows), first @ more.T])

    wanted = others(teacher, known)
    aim, total, whole = shares(wanted / 0.1), 0.0, None
    for size, weight in ((8, 2.0), (4, 1.0)):
        parts = [part[:, :size] for part in (vectors, beside)]
        own, more = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
        found = others(own, more)
        now = shares(found / 0.1)
        part = (aim * np.log(aim / now)).sum() / 4 + 5 * np.square(found - wanted).mean()
        if whole is None:
            whole = now
        else:
            part += 0.5 * (whole * np.log(whole / now)).sum() / 4
        first = teacher[:, :size] / np.linalg.norm(teacher[:, :size], axis=1, keepdims=True)
        part += 0.7 * (1 - (own * first).sum(axis=1)).mean()
        there = shares(own[:2] @ np.vstack([own[2:], more]).T / 0.1)
        back = shares(own[2:] @ own[:2].T / 0.1)
        right = -np.log(np.diag(there)).mean() - np.log(np.diag(back)).mean()
        total += weight * (part + 0.3 * right / 2)

    tensor = [torch.from_numpy(part) for part in (vectors, teacher, beside, known)]
    result = loss(tensor[0], tensor[1], nested.Documents(*tensor[2:]), labelled=True)

    assert float(result) == pytest.approx(total, rel=1e-6)


def test_a_memory_keeps_the_latest_and_hides_those_of_the_batch():
    memory = Memory(3, 2)
    teacher = np.eye(6, dtype=np.float32)
    for rows in ([0, 1], [2, 1], [3]):
        memory.add(np.array(rows), torch.tensor([[float(row), 0.0] for row in rows]))

    found = memory.beside(np.array([3, 5]), teacher)

    assert found.vectors[:, 0].tolist() == [2, 1]
    assert found.teacher.numpy().tolist() == teacher[[2, 1]].tolist()
    assert Memory(0, 2).beside(np.array([0]), teacher).vectors.shape == (0, 2)


def test_neighbours_are_the_nearest_others(rng, monkeypatch):
    monkeypatch.setattr(training, "NEAR", 4)
    vectors = unit(rng.normal(size=(50, 6)))
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)

    found = training.neighbours(vectors)

    wanted = np.argsort(-scores, axis=1)[:, :4]
    assert [set(row) for row in found.tolist()] == [set(row) for row in wanted.tolist()]


def test_texts_that_are_alike_are_different_rows(rng):
    vectors = unit(rng.normal(size=(300, 6)))
    for count in (5, 300, 400):
        for _ in range(8):
            rows = training.some_alike(vectors, count, rng)
            assert len(set(rows.tolist())) == min(count, 300)


def test_a_rotation_stays_orthogonal_while_it_is_trained(rng):
    start, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    rotation = Rotation(start.astype(np.float32))
    np.testing.assert_allclose(rotation.matrix(), start, atol=1e-6)
    values = torch.from_numpy(rng.normal(size=(5, DIM)).astype(np.float32))
    turned = values.numpy() @ rotation.matrix()
    np.testing.assert_allclose(rotation(values).detach(), turned, atol=1e-5)
    optimizer = torch.optim.Adam(rotation.parameters(), 0.1)
    for _ in range(20):
        optimizer.zero_grad()
        rotation(values)[:, :3].pow(2).sum().backward()
        optimizer.step()

    found = rotation.matrix()

    np.testing.assert_allclose(found @ found.T, np.eye(DIM), atol=1e-5)
    assert np.abs(found - start).max() > 0.1


def test_a_fitted_rotation_puts_in_front_what_differs_within_sources(rng, monkeypatch):
    """Sources lie far apart in four directions, and their texts differ in four others."""
    monkeypatch.setattr("rotation.STEPS", 150)
    monkeypatch.setattr("rotation.RATE", 2e-2)
    monkeypatch.setattr("rotation.ANCHORS", 32)
    hidden, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    sources = []
    for _ in range(6):
        values = rng.normal(size=(200, 4)) @ hidden[:4] + 0.1 * rng.normal(size=(200, DIM))
        values += 4 * rng.normal(size=4) @ hidden[4:8]
        sources.append(Source(1.0, Vectors(unit(values)), Vectors(unit(values))))
    everything = np.concatenate([source.documents.teacher for source in sources])
    first = fit_rotation(everything, [4]).documents.matrix

    found = rotation_of(sources, {4: 1.0, 8: 0.5})

    np.testing.assert_allclose(found @ found.T, np.eye(DIM), atol=1e-5)
    before, after = (np.square(hidden[:4] @ turn[:, :4]).sum() for turn in (first, found))
    assert after > before + 0.5


def test_a_layer_computes_what_the_graph_does(rng, tensors):
    """What enters is what the graph's embeddings make, and padding changes nothing."""

    def finish(graph, values):
        for value, name in zip(values[:2], ("before", "after"), strict=True):
            graph.node("Identity", value, output=name)
            graph.output(name, "batch", "sequence", DIM)

    model = build(tensors, SHAPE, quantized=False, finish=finish)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    ids = rng.integers(0, WORDS, (3, 9))
    mask = (np.arange(9) < np.array([[9], [4], [7]])).astype(np.int64)
    before, after = session.run(None, {"input_ids": ids, "attention_mask": mask})
    layer = Layer(tensors, SHAPE, 0)

    with torch.no_grad():
        found = layer(torch.from_numpy(before), torch.from_numpy(mask.astype(np.float32)))

    np.testing.assert_allclose(found.numpy()[mask > 0], after[mask > 0], rtol=1e-4, atol=1e-5)
    back = layer.tensors(0)
    assert back.keys() == {name for name in tensors if name.startswith("encoder.layer.0")}
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])


def sequences(rng: np.random.Generator, sizes: np.ndarray) -> Sequences:
    values = rng.normal(size=(sizes.sum(), DIM)).astype(np.float16)
    starts = np.cumsum(sizes) - sizes
    return Sequences(values, starts, sizes, unit(rng.normal(size=(len(sizes), DIM))))


@pytest.fixture
def student(tensors) -> Student:
    class Base:
        def __init__(self):
            self.tensors, self.shape = tensors, SHAPE

    return Student(Base(), 0, np.eye(DIM, dtype=np.float32))


def test_a_student_gives_each_text_its_own_vector(rng, student):
    texts = sequences(rng, np.array([3, 9, 1, 5]))

    with torch.no_grad():
        together = student(texts, np.array([3, 1, 0, 2])).numpy()
        alone = [student(texts, np.array([row])).numpy()[0] for row in (3, 1, 0, 2)]

    np.testing.assert_allclose(together, np.array(alone), rtol=0.02, atol=0.02)


def test_a_student_learns_what_its_teacher_says(rng, student):
    """Pairs and single texts; the teacher is one such as it may become, turned."""
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    sources = []
    for count in (40, 70):
        texts = sequences(rng, rng.integers(1, 9, count))
        with torch.no_grad():
            told = unit(student(texts, np.arange(count)).numpy()) @ turn
        texts = Sequences(texts.values, texts.starts, texts.sizes, told)
        sources.append(Source(1.0, texts, texts if count == 40 else None))
    loss = nested.Nested(prefixes={DIM: 1.0, 8: 1.0}, labels=0.0, own=0.5, direct=1.0)
    settings = Settings(steps=120, anchors=8, remembered=16, loss=loss)
    losses = []

    finetune(student, sources, settings, lambda step, loss: losses.append(loss), rate=1e-2)

    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    with torch.no_grad():
        found = unit(student(sources[1].documents, np.arange(70)).numpy())
    assert (found * sources[1].documents.teacher).sum(axis=1).mean() > 0.6


def test_a_table_sums_the_vectors_of_a_texts_tokens(rng):
    table = rng.normal(size=(7, 3)).astype(np.float32)
    bags = Bags.of([[5, 1, 2, 6], [5, 4, 6], [5, 3, 3, 3, 6]], unit(rng.normal(size=(3, 3))))

    model = Table(table, 4)
    found = model(bags, np.array([2, 0])).detach().numpy()

    np.testing.assert_allclose(found, [3 * table[3], table[1] + table[2]], rtol=1e-5)
    with torch.no_grad():
        model.knots[:] = torch.tensor([0.0, 1.0, 2.0])
    # Knots are at the places 0, 1 and 3; the place 2 lies between the last two.
    weights = np.exp([0, 1, 1 + np.log2(1.5), 2]).astype(np.float32)
    np.testing.assert_allclose(model.weights().detach(), weights, rtol=1e-5)
    found = model(bags, np.array([2, 0])).detach().numpy()
    wanted = [weights[:3].sum() * table[3], table[1] + weights[1] * table[2]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_common_tokens_are_made_small(rng):
    texts = [[8, 0, token, 9] for token in range(1, 8)] * 200
    bags = Bags.of(texts, unit(rng.normal(size=(len(texts), 3))))
    table = first_table(unit(rng.normal(size=(10, 3))), [Source(1.0, bags)])

    lengths = np.linalg.norm(table, axis=1)

    assert lengths[0] < 0.5 * lengths[1:8].min()
    assert lengths.mean() == pytest.approx(1, rel=1e-5)


def test_training_a_table_lessens_its_loss_and_finds_which_places_count(rng, monkeypatch):
    """The teacher looks at the first two tokens of five only."""
    texts = [[8, *rng.integers(0, 8, 5).tolist(), 9] for _ in range(300)]
    hidden = rng.normal(size=(10, 4))
    teacher = unit(np.array([hidden[text[1:3]].sum(axis=0) for text in texts]))
    source = Source(1.0, Bags.of(texts, teacher), Bags.of(texts, teacher))
    loss = nested.Nested(prefixes={4: 1.0, 2: 1.0}, labels=0.1, own=0.0)
    losses: list[float] = []
    settings = Settings(steps=80, anchors=16, remembered=32, loss=loss)

    start = rng.normal(size=(10, 4)).astype(np.float32)
    monkeypatch.setattr("static.PLACES_RATE", 0.1)
    table, weights = fit_table(
        start, 5, [source], settings, lambda _, loss: losses.append(loss), rate=0.05
    )

    assert table.shape == (10, 4)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert weights[:2].min() > 2 * weights[3:].max()


def test_training_is_the_same_twice(rng):
    vectors = Vectors(unit(rng.normal(size=(60, 4))))
    told = []
    for _ in range(2):
        losses: list[float] = []
        torch.manual_seed(1)
        model = torch.nn.Linear(4, 4)
        train(
            lambda texts, rows, model=model: model(torch.from_numpy(texts.teacher[rows])),
            [torch.optim.Adam(model.parameters())],
            [Source(1.0, vectors, vectors), Source(2.0, vectors)],
            Settings(
                steps=10,
                anchors=4,
                remembered=8,
                loss=nested.Nested(prefixes={4: 1.0}, labels=0.1, own=0),
            ),
            lambda _, loss, losses=losses: losses.append(loss),
        )
        told.append(losses)

    assert told[0] == told[1]


def test_the_static_graph_scales_the_sum_of_rows(rng):
    table = rng.normal(size=(20, 6)).astype(np.float32)
    places = rng.uniform(0.5, 2, 8).astype(np.float32)
    session = onnxruntime.InferenceSession(build_static(table, places).SerializeToString())
    ids = rng.integers(0, 20, (3, 5))
    mask = (np.arange(5) < np.array([[5], [2], [4]])).astype(np.int64)

    whole, tokens = session.run(None, {"input_ids": ids, "attention_mask": mask})

    sums = (table[ids] * (places[:5] * mask)[..., None]).sum(axis=1)
    # Of int8: each number is off by half a step at most, of the largest of its row.
    np.testing.assert_allclose(whole, unit(sums), atol=0.01)
    np.testing.assert_allclose(unit(tokens.sum(axis=1)), whole, atol=1e-6)


def test_joined_teachers_say_the_weighted_mean_of_their_similarities(rng):
    first, second = unit(rng.normal(size=(4, 5))), unit(rng.normal(size=(4, 7)))

    both = joined(first, second)

    wanted = 0.1 * first @ first.T + 0.9 * second @ second.T
    np.testing.assert_allclose(both @ both.T, wanted, atol=1e-6)
