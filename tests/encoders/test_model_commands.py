from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from vecstore import cli
from vecstore.encoders import OnnxEncoder, bundled, bundled_names, inspection, trial


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["models", *map(str, arguments)])

    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_SECONDS", 0.0)


def checks(result: Result) -> dict[str, tuple[str, str]]:
    return {
        one["name"]: (one["status"], one["found"]) for one in json.loads(result.output)["checks"]
    }


def test_list_names_every_bundled_model():
    found = json.loads(run("list", "--json").output)

    assert [one["name"] for one in found] == bundled_names()
    (default,) = (one for one in found if one["name"] == "default")
    folder = bundled().folder.path
    assert default["dim"] == 384
    assert default["licence"].startswith("Apache-2.0")
    assert default["bytes"] == sum(
        (folder / name).stat().st_size for name in ("model.onnx", "tokenizer.json")
    )
    assert "default" in run("list").output


def test_inspect_shows_what_a_folder_declares(make_model):
    path = make_model(
        own={"mrl": [2, 6], "layers": {"1": "last_hidden_state"}},
        prompts={"prompts": {"query": "query : "}},
        modules=[
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
        ],
        pooling={"pooling_mode": ["cls", "mean"]},
    )
    (path / "README.md").write_text("---\nlicense: mit\n---\n")

    found = json.loads(run("inspect", path, "--json").output)

    assert found["inputs"] == {
        name: {"type": "int64", "shape": [None, None]} for name in ("input_ids", "attention_mask")
    }
    assert found["outputs"] == {"last_hidden_state": {"type": "float32", "shape": [None, None, 6]}}
    assert found["used"] == ["last_hidden_state"]
    assert found["operators"] == {"Gather": 1, "Identity": 1}
    assert (found["dim"], found["mrl"], found["layers"]) == (12, [2, 6], [1])
    assert (found["pooling"], found["modules"]) == (["cls", "mean"], ["normalize"])
    assert found["prompts"] == {"query": "query : ", "document": ""}
    assert (found["licence"], found["batch_dependence"]) == ("mit", [])
    assert found["fingerprint"] == OnnxEncoder(path).fingerprint
    assert "last_hidden_state (float32 ? x ? x 6)" in run("inspect", path).output


def test_inspect_says_why_a_batch_would_mix(make_model, graphs):
    model = graphs["tokens"](inputs=("input_ids",), output="words")
    model.graph.node.append(
        helper.make_node("DynamicQuantizeLinear", ["words"], ["codes", "scale", "zero"])
    )
    model.graph.node.append(
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["tokens"])
    )
    model.graph.output[0].name = "tokens"

    found = json.loads(run("inspect", make_model(model), "--json").output)

    assert found["batch_dependence"] == ["DynamicQuantizeLinear", "no attention_mask"]


def test_inspect_takes_a_layer_and_a_dim(make_model):
    path = make_model(own={"mrl": [2, 6], "layers": {"1": "last_hidden_state"}})

    found = json.loads(run("inspect", path, "--layer", 1, "--dim", 2, "--json").output)

    assert found["name"] == f"{path.name}/layer=1/dim=2"
    assert found["fingerprint"] == OnnxEncoder(path, layer=1, dim=2).fingerprint


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ({"README.md": "# A\n\n| licence | Apache-2.0 |\n"}, "Apache-2.0"),
        ({"README.md": "No word of it.", "LICENSE": "\n  MIT License\n\nText"}, "MIT License"),
        ({"README.md": "license:\nnothing"}, None),
        ({"LICENSE": ""}, None),
        ({}, None),
    ],
)
def test_the_licence_is_read_from_the_card_or_the_licence(tmp_path: Path, folder, expected):
    for name, text in folder.items():
        (tmp_path / name).write_text(text)

    assert inspection.licence(tmp_path) == expected


def test_a_card_that_is_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "README.md")
    (tmp_path / "LICENSE").write_text("MIT License\n")

    assert inspection.licence(tmp_path) == "MIT License"


def test_a_model_that_works_passes_every_check(make_model):
    result = run("test", make_model(prompts={"prompts": {"query": "query : "}}), "--json")

    assert {status for status, _ in checks(result).values()} == {"ok"}
    assert json.loads(result.output)["works"] is True
    assert json.loads(result.output)["figures"]["batch_cosine"] > 0.9999


def test_the_bundled_model_passes(monkeypatch):
    monkeypatch.setattr(trial, "_LONGEST", 32)
    result = run("test", "default", "--dim", 64)

    assert "failed" not in result.output
    assert "64 finite numbers, unit length" in result.output


def test_a_graph_that_mixes_batches_is_warned_about(make_model, graphs):
    found = checks(run("test", make_model(centred(graphs["tokens"](output="words"))), "--json"))

    status, text = found["batches"]
    assert status == "warning"
    assert "batch_size=1" in text


def centred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Subtract half of the mean of the whole batch from every token."""
    model.graph.node.append(helper.make_node("ReduceMean", ["words"], ["mean"], keepdims=1))
    half = numpy_helper.from_array(np.float32(0.5).reshape(()), "half")
    model.graph.initializer.append(half)
    model.graph.node.append(helper.make_node("Mul", ["mean", "half"], ["less"]))
    model.graph.node.append(helper.make_node("Sub", ["words", "less"], ["tokens"]))
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["b", "s", 6])
    )
    return model


def test_a_tokenizer_with_more_tokens_than_the_model_fails(make_model):
    path = make_model()
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_tokens(["extra"])
    tokenizer.save(str(path / "tokenizer.json"))

    found = checks(run("test", path, "--json", status=1))

    assert found["vocabulary"][0] == "failed"
    assert "13" in found["vocabulary"][1]


@pytest.mark.parametrize("content", [b"", b"\x08\x08\x3a\x03abc"])
def test_a_model_that_does_not_load_fails(make_model, content):
    path = make_model()
    (path / "model.onnx").write_bytes(content)

    result = run("test", path, status=1)

    assert "failed" in result.output
    assert "model.onnx" in result.output


@pytest.mark.parametrize("command", ["inspect", "test"])
def test_a_folder_without_a_model_is_named(tmp_path: Path, command):
    assert f"{tmp_path} has no model.onnx" in run(command, tmp_path, status=1).output


@pytest.mark.parametrize("command", ["inspect", "test"])
def test_a_name_may_state_the_dim(command):
    more = ("--threads", 1) if command == "test" else ()
    found = json.loads(run(command, "default/dim=64", *more, "--json").output)

    assert found["name"] == "default/dim=64"


def test_a_name_and_an_option_may_not_contradict_each_other():
    found = run("inspect", "default/dim=64", "--dim", 128, status=1)

    assert "'default/dim=64' and --dim 128 contradict each other" in found.output
    same = json.loads(run("inspect", "default/dim=64", "--dim", 64, "--json").output)
    assert same["name"] == "default/dim=64"


def test_an_unknown_layer_is_named():
    assert "layer=99" in run("inspect", "default", "--layer", 99, status=1).output
