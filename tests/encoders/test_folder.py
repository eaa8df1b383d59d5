from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vecstore.encoders import OnnxEncoder
from vecstore.encoders.config import file_inside
from vecstore.encoders.folder import read_folder
from vecstore.errors import EncoderError, ModelNotFoundError, UsageError

TYPES = "sentence_transformers.models."


def modules(*kinds: str, pooling_path: str = "1_Pooling") -> list[dict[str, object]]:
    paths = {"Transformer": "", "Pooling": pooling_path}
    return [
        {
            "idx": idx,
            "name": str(idx),
            "path": paths.get(kind, f"{idx}_{kind}"),
            "type": TYPES + kind,
        }
        for idx, kind in enumerate(kinds)
    ]


def test_without_any_config_tokens_are_averaged_and_nothing_else(make_model):
    folder = read_folder(make_model())

    assert (folder.pooling, folder.normalize, folder.max_length) == (("mean",), False, 512)
    assert dict(folder.prompts) == {"query": "", "document": ""}
    assert (folder.dim, folder.mrl, folder.limit) == (None, (), None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_max_tokens": True}, ("max",)),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode": "weightedmean"}, ("weightedmean",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"word_embedding_dimension": 6}, ("mean",)),
    ],
)
def test_pooling_is_read_in_both_spellings(make_model, config, expected):
    path = make_model(modules=modules("Transformer", "Pooling", "Normalize"), pooling=config)

    folder = read_folder(path)

    assert (folder.pooling, folder.normalize, folder.skip_prompt) == (expected, True, False)


@pytest.mark.parametrize(
    "config", [{"pooling_mode_attention": True}, {"pooling_mode": "attention"}, {"pooling_mode": 3}]
)
def test_an_unknown_pooling_is_named(make_model, config):
    with pytest.raises(EncoderError, match=r"attention|3"):
        read_folder(make_model(pooling=config))


def test_modules_without_a_meaning_here_are_remembered(make_model):
    path = make_model(modules=modules("Transformer", "Pooling", "CNN", "Dropout"), pooling={})

    assert read_folder(path).missing == ("CNN",)


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({"query": "q: ", "document": "d: "}, None, ("q: ", "d: ")),
        ({"query": "q: ", "passage": "p: "}, None, ("q: ", "p: ")),
        ({"query": "q: "}, None, ("q: ", "")),
        ({"query": "q: ", "other": "o: "}, "other", ("q: ", "o: ")),
        ({}, None, ("", "")),
    ],
)
def test_prompts_are_read(make_model, prompts, default, expected):
    config = {"prompts": prompts, "default_prompt_name": default}

    found = read_folder(make_model(prompts=config)).prompts

    assert (found["query"], found["document"]) == expected


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ({"sentence": {"max_seq_length": 128}, "config": {"max_position_embeddings": 512}}, 128),
        ({"sentence": {"max_seq_length": 900}, "config": {"max_position_embeddings": 512}}, 512),
        ({"sentence": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": 77}}, 77),
        ({"tokenizer_config": {"model_max_length": 1e30}}, 512),
        (
            {"config": {"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}},
            512,
        ),
    ],
)
def test_the_maximum_length_is_the_smallest_that_is_declared(make_model, configs, expected):
    assert read_folder(make_model(**configs)).max_length == expected


def test_own_config_gives_dim_prefixes_and_output(make_model):
    own = {"dim": 6, "mrl": [2, 6], "output": "x", "files": {"model.onnx": "00"}}

    folder = read_folder(make_model(own=own))

    assert (folder.dim, folder.mrl, folder.output) == (6, (2, 6), "x")
    assert folder.digests == {"model.onnx": "00"}


def test_the_model_may_lie_in_a_folder_onnx(make_model):
    path = make_model()
    (path / "onnx").mkdir()
    (path / "model.onnx").rename(path / "onnx" / "model.onnx")

    assert read_folder(path).model == path / "onnx" / "model.onnx"


def test_own_config_names_the_model_file(make_model):
    path = make_model(own={"model": "small/other.onnx"})

    with pytest.raises(ModelNotFoundError, match=r"has no small/other\.onnx"):
        read_folder(path)
    (path / "small").mkdir()
    (path / "model.onnx").rename(path / "small/other.onnx")
    assert read_folder(path).model == path / "small/other.onnx"
    (path / "vecstore.json").write_text('{"model": "../model.onnx"}')
    with pytest.raises(EncoderError, match="outside the model folder"):
        read_folder(path)


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json"])
def test_a_missing_file_is_named(make_model, missing):
    path = make_model()
    (path / missing).unlink()

    with pytest.raises(ModelNotFoundError, match=f"{path}.*{missing}"):
        read_folder(path)


def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(make_model):
    pipe, device = make_model(), make_model()
    os.mkfifo(pipe / "vecstore.json")
    (device / "modules.json").symlink_to("/dev/zero")

    for path, name in ((pipe, "vecstore.json"), (device, "modules.json")):
        with pytest.raises(EncoderError, match=f"{name} is not a file"):
            read_folder(path)


def test_a_prompt_that_is_no_text_is_named(make_model):
    path = make_model(prompts='{"prompts": {"query": "\\ud800"}}')

    with pytest.raises(EncoderError, match=r"config_sentence_transformers.json: .*lone surrogate"):
        read_folder(path)


@pytest.mark.parametrize("count", [0, 17])
def test_a_number_of_poolings_that_makes_no_sense_is_refused(make_model, count):
    with pytest.raises(EncoderError, match=f"vecstore.json declares {count} poolings"):
        read_folder(make_model(own={"pooling": ["cls"] * count}))


def test_poolings_that_are_averaged_count_too(make_model):
    with pytest.raises(EncoderError, match=r"vecstore\.json declares 18 poolings"):
        read_folder(make_model(own={"pooling": ["cls", "+".join(["mean"] * 17)]}))


def test_a_layer_has_one_name(make_model):
    with pytest.raises(EncoderError, match="layers"):
        read_folder(make_model(own={"layers": {"1": "one", "01": "other"}}))


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "configs",
    [
        {"modules": "{"},
        {"modules": {"a": 1}},
        {"modules": [3]},
        {"pooling": "[1]"},
        {"prompts": {"prompts": {"query": 3}}},
        {"prompts": {"prompts": ["query"]}},
        {"sentence": {"max_seq_length": -1}},
        {"sentence": {"max_seq_length": "long"}},
        {"sentence": "[" * 100_000},
        {"sentence": b"\xff\xfe".decode("latin-1") * 3},
        {"config": {"max_position_embeddings": 10**30}},
        {"own": {"dim": 1}},
        {"own": {"dim": True}},
        {"own": {"dim": 6, "mrl": [4, 2]}},
        {"own": {"dim": 6, "mrl": [7]}},
        {"own": {"dim": 6, "mrl": [{}]}},
        {"own": {"files": ["model.onnx"]}},
        {"own": {"output": 3}},
        {"own": " " * (5 << 20)},
    ],
)
def test_a_damaged_or_absurd_config_is_an_encoder_error(make_model, configs):
    with pytest.raises(EncoderError):
        read_folder(make_model(**configs))


@pytest.mark.parametrize(
    "name", ["../other", "a/../../b", "/etc", "C:\\x", "a\\..\\b", "a\0b", 7, None]
)
def test_a_name_that_leads_outside_the_folder_is_refused(make_model, name):
    path = make_model(modules=modules("Transformer", "Pooling"))
    listed = json.loads((path / "modules.json").read_text())
    listed[1]["path"] = name
    (path / "modules.json").write_text(json.dumps(listed))

    with pytest.raises(EncoderError, match=r"outside the model folder|expected a str"):
        read_folder(path)


def test_a_name_inside_the_folder_is_joined_to_it(tmp_path: Path):
    assert file_inside(tmp_path, "a/b.bin", "x") == tmp_path / "a" / "b.bin"
    assert file_inside(tmp_path, "", "x") == tmp_path


def test_a_transformer_may_have_a_folder_of_its_own(make_model, graphs, twin):
    """As sentence-transformers wrote models for years; what lies beside it counts too."""
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    path = make_model(modules=modules, pooling={"pooling_mode": "max"})
    inner = path / "0_Transformer"
    inner.mkdir()
    (path / "tokenizer.json").rename(inner / "tokenizer.json")
    (inner / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    assert read_folder(path).max_length == 4
    (path / "model.onnx").rename(inner / "model.onnx")

    folder = read_folder(path)

    assert (folder.model, folder.tokenizer) == (inner / "model.onnx", inner / "tokenizer.json")
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 3}')
    assert read_folder(path).max_length == 3
    found = OnnxEncoder(path).encode(["red"])[0]
    np.testing.assert_allclose(found, twin.tokens("red").max(axis=0))


LONG = "a" * 5000


def test_what_the_system_cannot_look_at_is_an_encoder_error(make_model, tmp_path):
    for folder in (make_model(own={"model": LONG}), tmp_path / LONG, make_model() / LONG):
        with pytest.raises(EncoderError, match=r"aaa.* cannot be read"):
            OnnxEncoder(folder)


def test_a_kind_of_model_that_is_no_text_is_named(make_model):
    with pytest.raises(EncoderError, match=r"model_type=\['x'\] must be a string"):
        read_folder(make_model(config={"model_type": ["x"]}))


def test_prompts_may_be_given(make_model, twin):
    path = make_model(prompts={"prompts": {"query": "sort : "}})

    encoder = OnnxEncoder(path, prompts={"query": "query : "})

    found = encoder.encode(["red"], kind="query")[0]
    np.testing.assert_allclose(found, twin.tokens("query : red").mean(axis=0), rtol=1e-5)
    assert encoder.fingerprint != OnnxEncoder(path).fingerprint
    assert encoder.folder.prompts["document"] == ""


@pytest.mark.parametrize(
    "prompts", [{"passage": "x"}, {"query": 3}, "query: ", {"query": "\ud800"}, 5, [("query", "x")]]
)
def test_prompts_that_are_none_are_refused(make_model, prompts):
    with pytest.raises(UsageError, match="prompts"):
        OnnxEncoder(make_model(), prompts=prompts)


@pytest.mark.parametrize("folder", [None, 5, b"/tmp", ["x"]])
def test_what_is_no_path_is_refused(folder):
    with pytest.raises(UsageError, match="must be the path of a folder"):
        OnnxEncoder(folder)
