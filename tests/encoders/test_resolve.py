from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

from vecstore.encoders import FunctionEncoder, HashEncoder, OnnxEncoder, bundled, resolve
from vecstore.errors import ModelNotFoundError, SpecError, UsageError


def embed(texts):
    return np.ones((len(texts), 4))


class Watched:
    """An encoder whose properties must not be asked for their values."""

    def __getattr__(self, name):
        raise AssertionError(name)

    @property
    def name(self):
        raise AssertionError("name")

    dim = mrl = fingerprint = name

    def encode(self, texts, kind="document"):
        raise AssertionError("encode")


@pytest.mark.parametrize("given", [None, "default"])
def test_nothing_and_a_bundled_name_give_the_bundled_model(given):
    assert resolve(given) is bundled()


def test_a_path_gives_the_model_in_that_folder(make_model):
    path = make_model()

    for given in (path, str(path)):
        found = resolve(given)
        assert isinstance(found, OnnxEncoder)
        assert found.name == path.name


def test_an_encoder_is_itself_and_is_not_asked_for_anything():
    for encoder in (HashEncoder(), Watched()):
        assert resolve(encoder) is encoder


def test_a_named_function_becomes_an_encoder():
    found = resolve(embed)

    assert isinstance(found, FunctionEncoder)
    assert (found.name, found.dim) == ("embed", 4)


@pytest.mark.parametrize("given", [lambda texts: texts, functools.partial(embed)])
def test_a_function_without_a_name_is_refused(given):
    with pytest.raises(SpecError, match="FunctionEncoder"):
        resolve(given)


@pytest.mark.parametrize(("given", "message"), [(3, "3 is no encoder"), (HashEncoder, "a class")])
def test_anything_else_is_refused(given, message):
    with pytest.raises(SpecError, match=message):
        resolve(given)


@pytest.mark.parametrize("given", ["no-such-model", "./no/such/folder"])
def test_a_path_to_nothing_is_not_found(given):
    with pytest.raises(ModelNotFoundError, match=r"no.such"):
        resolve(given)


def test_encoding_leaves_no_trace_outside_the_process(tmp_path):
    # onnxruntime's telemetry keeps an identifier of the device in the home folder.
    code = """
import os
from vecstore.encoders import bundled
bundled().encode(["text"])
assert "ORT_DISABLE_TELEMETRY" not in os.environ
"""
    folders = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    left_out = ("CI", "ORT_DISABLE_TELEMETRY")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment | folders,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_known_of_the_bundled_model_needs_no_runtime():
    code = """
import sys
from vecstore.encoders import HashEncoder, resolve
encoder = resolve(None)
assert (encoder.dim, encoder.mrl[0], len(encoder.fingerprint)) == (384, 64, 32)
HashEncoder().encode(["text"])
for name in ("onnxruntime", "tokenizers", "numba", "onnx"):
    assert name not in sys.modules, name
encoder.encode(["text"])
assert "onnxruntime" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_may_be_named_with_a_dim(make_model):
    path = make_model(own={"dim": 6, "mrl": [2, 6]})

    encoder = resolve(f"{path}/dim=2")

    assert (encoder.dim, encoder.name) == (2, f"{path.name}/dim=2")
    with pytest.raises(UsageError, match="layer=4 is not offered"):
        resolve(f"{path}/layer=4")


def test_a_name_that_is_nearly_one_is_told_the_others():
    with pytest.raises(ModelNotFoundError, match=r"defualt.*are default, fast"):
        resolve("defualt")
    with pytest.raises(SpecError, match="encoder='' is neither"):
        resolve("")
