from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vecstore.encoders import Encoder, OnnxEncoder, trial
from vecstore.encoders.pooling import POOLINGS, pool
from vecstore.errors import EncoderError, MissingExtraError, ModelNotFoundError, UsageError

TEXTS = ["red apple", "late", "green pear blue train red", "unheard of", "blue"]
LISTED = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
]
NORMALIZED = [*LISTED, {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]


def means(twin, texts=TEXTS):
    return np.array([twin.tokens(text).mean(axis=0) for text in texts])


@pytest.mark.parametrize("modes", [*([mode] for mode in POOLINGS), ["cls", "mean"]])
def test_pooling_equals_its_numpy_twin(make_model, twin, modes):
    encoder = OnnxEncoder(make_model(modules=LISTED, pooling={"pooling_mode": modes}), batch_size=3)
    alone = [twin.tokens(text)[None] for text in TEXTS]
    expected = [pool(t, np.ones(t.shape[:2], np.float32), modes)[0] for t in alone]

    found = encoder.encode(TEXTS)

    assert isinstance(encoder, Encoder)
    assert encoder.dim == 6 * len(modes)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_pooled_graph_is_taken_as_it_is(make_model, graphs, twin):
    encoder = OnnxEncoder(make_model(graphs["pooled"](), modules=LISTED, pooling={}))

    np.testing.assert_allclose(encoder.encode(TEXTS), means(twin), rtol=1e-5, atol=1e-6)


def test_normalize_gives_unit_length(make_model, twin):
    found = OnnxEncoder(make_model(modules=NORMALIZED, pooling={})).encode(TEXTS)

    wanted = means(twin)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", [("input_ids",), ("input_ids", "attention_mask")])
def test_batches_do_not_change_vectors_with_and_without_a_mask(make_model, graphs, twin, inputs):
    encoder = OnnxEncoder(make_model(graphs["tokens"](inputs=inputs)))

    np.testing.assert_allclose(encoder.encode(TEXTS), means(twin), rtol=1e-5, atol=1e-6)


def test_segments_positions_and_narrow_integers_are_fed(make_model, graphs, twin):
    inputs = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    graph = graphs["tokens"](inputs=inputs, integers=TensorProto.INT32)
    places = [np.arange(len(twin.ids(text))).mean() for text in TEXTS]

    found = OnnxEncoder(make_model(graph)).encode(TEXTS)

    wanted = means(twin) + np.array(places)[:, None]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "first"), [("roberta", 4), ("bert", 0)])
def test_positions_begin_where_the_kind_of_model_lets_them(make_model, graphs, twin, kind, first):
    graph = graphs["tokens"](inputs=("input_ids", "attention_mask", "position_ids"))
    path = make_model(graph, config={"model_type": kind, "pad_token_id": 3})
    places = np.array([np.arange(len(twin.ids(text))).mean() for text in TEXTS])

    found = OnnxEncoder(path).encode(TEXTS)

    np.testing.assert_allclose(found, means(twin) + (places + first)[:, None], rtol=1e-5)


def sized(graph: onnx.ModelProto, batch: int | str, sequence: int | str) -> onnx.ModelProto:
    """A graph that says how many texts and tokens it takes."""
    for given in graph.graph.input:
        for dim, size in zip(given.type.tensor_type.shape.dim, (batch, sequence), strict=True):
            if isinstance(size, int):
                dim.dim_value = size
    return graph


def test_a_graph_that_takes_one_text_gets_one_at_a_time(make_model, graphs, twin):
    encoder = OnnxEncoder(make_model(sized(graphs["tokens"](), 1, "sequence")))

    np.testing.assert_allclose(encoder.encode(TEXTS), means(twin), rtol=1e-5, atol=1e-6)
    assert {check.status for check in trial.run(encoder).checks} == {"ok"}


@pytest.mark.parametrize(
    ("batch", "sequence", "what"), [(2, "s", "2 texts"), ("b", 8, "8 tokens"), (1, 8, "8 tokens")]
)
def test_a_graph_of_one_size_is_refused(make_model, graphs, batch, sequence, what):
    path = make_model(sized(graphs["tokens"](), batch, sequence))

    with pytest.raises(EncoderError, match=f"takes {what} at a time and nothing else"):
        OnnxEncoder(path).encode(["red"])


def test_a_pooler_beside_token_vectors_is_not_taken(make_model, graphs, twin):
    encoder = OnnxEncoder(make_model(graphs["tokens"](output="tokens", extra=("pooler_output",))))

    np.testing.assert_allclose(encoder.encode(TEXTS), means(twin), rtol=1e-5, atol=1e-6)


def test_own_config_chooses_the_output(make_model, graphs, twin):
    graph = graphs["tokens"](extra=("largest",))
    encoder = OnnxEncoder(make_model(graph, own={"output": "largest"}))

    np.testing.assert_allclose(encoder.encode(["red"])[0], twin.tokens("red").max(axis=0))


def test_prompts_are_put_before_the_text(make_model, twin):
    encoder = OnnxEncoder(make_model(prompts={"prompts": {"query": "query : "}}))

    found = encoder.encode(["red"], kind="query")[0]

    np.testing.assert_allclose(found, twin.tokens("query : red").mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["red"])[0], means(twin, ["red"])[0], rtol=1e-5)


def test_a_prompt_can_be_left_out_of_the_pooling(make_model, twin):
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    prompts = {"prompts": {"query": "query : "}}
    encoder = OnnxEncoder(make_model(modules=LISTED, pooling=pooling, prompts=prompts))

    found = encoder.encode(["red"], kind="query")[0]

    np.testing.assert_allclose(found, twin.tokens("query : red")[3:].mean(axis=0), rtol=1e-5)


def test_long_text_is_cut_at_the_maximum_length(make_model, twin):
    path = make_model(sentence={"max_seq_length": 5})
    text = "red green blue apple pear train"

    found = OnnxEncoder(path).encode([text])[0]
    shorter = OnnxEncoder(path, max_length=4).encode([text])[0]

    np.testing.assert_allclose(found, twin.tokens(text, 5).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(shorter, twin.tokens(text, 4).mean(axis=0), rtol=1e-5)


def test_text_is_lower_cased_where_the_folder_says_so(make_model, twin):
    encoder = OnnxEncoder(make_model(sentence={"do_lower_case": True}))

    np.testing.assert_allclose(encoder.encode(["RED"])[0], means(twin, ["red"])[0], rtol=1e-5)


def test_order_is_kept_over_many_batches(make_model, twin):
    texts = [" ".join(["red", "blue", "late"][: 1 + i % 3] * (1 + i % 7)) for i in range(5000)]

    found = OnnxEncoder(make_model(), batch_size=64).encode(texts)

    np.testing.assert_allclose(found, means(twin, texts), rtol=1e-4, atol=1e-5)


def test_no_texts_give_an_empty_matrix_without_loading_the_model(make_model):
    encoder = OnnxEncoder(make_model())

    assert encoder.encode([]).shape == (0, 6)
    assert encoder._session is None


def test_a_dim_that_nothing_declares_is_found_by_running(make_model, graphs):
    assert OnnxEncoder(make_model(graphs["tokens"](width="width"))).dim == 6


def test_a_dim_declared_wrongly_is_an_encoder_error(make_model):
    with pytest.raises(EncoderError, match="6 numbers, its configuration declares 8"):
        OnnxEncoder(make_model(own={"dim": 8})).encode(["red"])


@pytest.mark.parametrize("shape", [True, False])
def test_prefixes_beyond_the_vectors_are_an_encoder_error(make_model, graphs, shape):
    graph = graphs["tokens"]()
    if not shape:
        graph.graph.output[0].type.tensor_type.ClearField("shape")
    path = make_model(graph, own={"mrl": [2, 99]})

    with pytest.raises(EncoderError, match=r"vecstore.json: mrl=\[2, 99\] goes beyond the 6"):
        OnnxEncoder(path).encode(["red"])


def test_values_that_are_not_finite_name_the_text(make_model, graphs, table):
    broken = table.copy()
    broken[4] = np.nan
    encoder = OnnxEncoder(make_model(graphs["tokens"](table=broken)), batch_size=1)

    with pytest.raises(EncoderError, match="NaN or infinity for text 2"):
        encoder.encode(["blue", "late", "red", "green"])


def test_a_vector_of_zeros_cannot_be_normalized(make_model, graphs, table):
    graph = graphs["tokens"](table=np.zeros_like(table))

    with pytest.raises(EncoderError, match="zeros"):
        OnnxEncoder(make_model(graph, modules=NORMALIZED, pooling={})).encode(["red"])


def test_a_module_outside_the_graph_is_named(make_model):
    outside = [*LISTED, {"type": "sentence_transformers.models.CNN", "path": "2_CNN"}]

    with pytest.raises(EncoderError, match="declares CNN"):
        OnnxEncoder(make_model(modules=outside, pooling={})).encode(["red"])


def test_token_vectors_without_a_pooling_are_refused(make_model):
    with pytest.raises(EncoderError, match="no pooling"):
        OnnxEncoder(make_model(modules=LISTED[:1])).encode(["red"])


def test_an_unknown_input_is_named(make_model, graphs):
    graph = graphs["tokens"](inputs=("input_ids", "attention_mask", "pixel_values"))

    with pytest.raises(EncoderError, match="pixel_values"):
        OnnxEncoder(make_model(graph)).encode(["red"])


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\x08\x3a\x03abc", b"\x00" * 4096])
def test_a_corrupt_file_is_an_encoder_error(make_model, capfd, file, content):
    path = make_model()
    (path / file).write_bytes(content)

    with pytest.raises(EncoderError, match=file):
        OnnxEncoder(path).encode(["red"])
    assert capfd.readouterr().err == ""


def test_a_truncated_model_is_an_encoder_error(make_model):
    path = make_model() / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(EncoderError):
        OnnxEncoder(path.parent).encode(["red"])


def test_a_failing_graph_is_an_encoder_error(make_model, graphs, table, capfd):
    encoder = OnnxEncoder(make_model(graphs["tokens"](table=table[:4])))

    with pytest.raises(EncoderError, match="failed"):
        encoder.encode(["red"])
    assert capfd.readouterr().err == ""


def test_tensors_outside_the_file_must_lie_in_the_folder(make_model, tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    path = make_model()
    model = onnx.load(path / "model.onnx")
    onnx.save(
        model, path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    encoder = OnnxEncoder(path)
    assert np.isfinite(encoder.encode(["red"])).all()
    before = encoder.fingerprint

    content = (path / "w.bin").read_bytes()
    (path / "w.bin").write_bytes(content[::-1])
    assert OnnxEncoder(path).fingerprint != before

    (path / "w.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"w\.bin"):
        OnnxEncoder(path).encode(["red"])

    redirect(path / "model.onnx", "../secret.bin")
    for use in (lambda e: e.encode(["red"]), lambda e: e.fingerprint):
        with pytest.raises(EncoderError, match="outside the model folder"):
            use(OnnxEncoder(path))


def redirect(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_quantized_activations_do_not_make_batches_mix(make_model, table):
    path = make_model(dynamic_graph(table))
    encoder = OnnxEncoder(path)

    together = encoder.encode(TEXTS)

    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_array_equal(together, alone)


def dynamic_graph(table: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("DynamicQuantizeLinear", ["rows"], ["codes", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["last_hidden_state"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "s", 6])
    graph = helper.make_graph(
        nodes, "tiny", values, [output], initializer=[numpy_helper.from_array(table, "table")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_fingerprint_is_stable_and_ignores_what_changes_no_vector(make_model):
    path = make_model()
    same = [OnnxEncoder(path, threads=1), OnnxEncoder(path, batch_size=2, name="other")]

    assert {encoder.fingerprint for encoder in same} == {OnnxEncoder(path).fingerprint}
    assert len(OnnxEncoder(path).fingerprint) == 32


@pytest.mark.parametrize(
    "configs",
    [
        {"modules": NORMALIZED, "pooling": {}},
        {"modules": LISTED, "pooling": {"pooling_mode": "cls"}},
        {"modules": LISTED, "pooling": {"include_prompt": False}},
        {"prompts": {"prompts": {"query": "q: "}}},
        {"sentence": {"max_seq_length": 7}},
        {"sentence": {"do_lower_case": True}},
        {"own": {"output": "last_hidden_state"}},
    ],
)
def test_the_fingerprint_notices_every_setting(make_model, configs):
    assert OnnxEncoder(make_model()).fingerprint != OnnxEncoder(make_model(**configs)).fingerprint


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json"])
def test_the_fingerprint_notices_a_changed_byte(make_model, file):
    path = make_model()
    before = OnnxEncoder(path).fingerprint
    # Valid in either format: a doc_string, and white space.
    added = {"model.onnx": b"\x32\x01x", "tokenizer.json": b"\n"}[file]
    (path / file).write_bytes((path / file).read_bytes() + added)

    assert OnnxEncoder(path).fingerprint != before


def test_digests_recorded_by_a_foreign_folder_are_not_believed(make_model):
    files = {"model.onnx": "0" * 64, "tokenizer.json": "0" * 64}

    believed = OnnxEncoder(make_model(own={"files": files})).fingerprint

    assert believed == OnnxEncoder(make_model()).fingerprint


@pytest.mark.parametrize(
    "arguments",
    [{"max_length": 0}, {"max_length": "9"}, {"threads": 0}, {"batch_size": True}],
)
def test_bad_arguments_are_refused(make_model, arguments):
    with pytest.raises(UsageError, match=next(iter(arguments))):
        OnnxEncoder(make_model(), **arguments)


def test_a_maximum_beyond_the_models_positions_is_refused(make_model):
    path = make_model(config={"max_position_embeddings": 32})

    with pytest.raises(UsageError, match="32 tokens"):
        OnnxEncoder(path, max_length=33)


@pytest.mark.parametrize(("size", "prompt"), [(1, ""), (2, ""), (4, "query : ")])
def test_a_maximum_that_leaves_no_room_for_text_is_an_encoder_error(make_model, size, prompt):
    path = make_model(prompts={"prompts": {"query": prompt}})

    with pytest.raises(EncoderError, match=f"{path.name}: max_length={size} leaves no room"):
        OnnxEncoder(path, max_length=size).encode(["red green"])


def test_an_unknown_provider_is_refused(make_model):
    with pytest.raises(UsageError, match="NoSuchProvider"):
        OnnxEncoder(make_model(), providers=["NoSuchProvider"]).encode(["red"])


@pytest.mark.parametrize(
    "providers",
    [5, "CPUExecutionProvider", [], [5], [()], [("CPUExecutionProvider",)], [(5, {})], {"a": 1}],
)
def test_providers_that_are_none_are_refused(make_model, providers):
    with pytest.raises(UsageError, match=r"providers=.* must be a list of names"):
        OnnxEncoder(make_model(), providers=providers)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 10**30},
        {"threads": 1 << 40},
        {"max_length": (1 << 20) + 1},
        {"threads": 10**5000},
    ],
)
def test_numbers_beyond_all_bounds_are_refused(make_model, options):
    with pytest.raises(UsageError, match=f"{next(iter(options))}=.* is more than"):
        OnnxEncoder(make_model(), **options)


def test_providers_may_have_options_of_any_mapping(make_model):
    options = MappingProxyType({"use_arena": "0"})
    encoder = OnnxEncoder(make_model(), providers=(("CPUExecutionProvider", options),))

    assert encoder.encode(["red"]).shape == (1, 6)


@pytest.mark.parametrize("option", ["threads", "batch_size", "dim", "layer", "name", "providers"])
def test_numbers_too_long_to_show_are_refused_too(make_model, option):
    with pytest.raises(UsageError, match=option):
        OnnxEncoder(make_model(), **{option: -(10**5000)})


@pytest.mark.parametrize("name", [5, b"m", ["m"]])
def test_a_name_is_a_str(make_model, name):
    with pytest.raises(UsageError, match=r"name=.* must be a str"):
        OnnxEncoder(make_model(), name=name)


@pytest.mark.parametrize("size", [8193, 10**12])
@pytest.mark.parametrize("kind", ["tokens", "pooled"])
def test_a_graph_that_declares_absurd_vectors_is_refused(make_model, graphs, kind, size):
    encoder = OnnxEncoder(make_model(declaring(graphs[kind](), size)))

    with pytest.raises(EncoderError, match=f"makes vectors of {size} numbers"):
        encoder.encode(["red"])


@pytest.mark.parametrize("size", [-1, 0])
@pytest.mark.parametrize("kind", ["tokens", "pooled"])
def test_a_graph_that_does_not_know_its_dim_is_run(make_model, graphs, kind, size):
    encoder = OnnxEncoder(make_model(declaring(graphs[kind](), size)))

    assert encoder.dim == 6
    assert encoder.encode(["red"]).shape == (1, 6)


def declaring(graph, size):
    """A graph that declares so many numbers for each vector."""
    graph.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = size
    return graph


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_a_missing_package_is_named_with_the_remedy(make_model, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtraError, match=f"pip install {package}"):
        OnnxEncoder(make_model()).encode(["red"])


def test_bad_texts_are_refused_before_the_model_is_loaded(make_model):
    encoder = OnnxEncoder(make_model())

    with pytest.raises(UsageError, match="text 1"):
        encoder.encode(["red", " "])
    with pytest.raises(UsageError, match="kind"):
        encoder.encode(["red"], kind="title")
    assert encoder._session is None


def test_threads_share_one_session(make_model, twin):
    encoder = OnnxEncoder(make_model())
    wanted = means(twin)
    wrong: list[object] = []
    sessions: set[int] = set()

    def work() -> None:
        for _ in range(20):
            found = encoder.encode(TEXTS)
            sessions.add(id(encoder._session))
            if not np.allclose(found, wanted, rtol=1e-5, atol=1e-6):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert len(sessions) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_loads_the_model_anew(make_model):
    code = f"""
import os
from vecstore.encoders import OnnxEncoder
encoder = OnnxEncoder({str(make_model())!r}, threads=2)
before = encoder.encode(["red apple"] * 64)
child = os.fork()
after = encoder.encode(["red apple"] * 64)
assert (before == after).all()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
