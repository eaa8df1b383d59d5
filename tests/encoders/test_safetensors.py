from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecstore.encoders.safetensors import read_tensors
from vecstore.errors import EncoderError

NAMES = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "|i1": "I8", "|u1": "U8"}


def packed(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def stored(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        span = [len(data), len(data) + tensor.nbytes]
        header[name] = {
            "dtype": NAMES[tensor.dtype.str],
            "shape": list(tensor.shape),
            "data_offsets": span,
        }
        data += tensor.tobytes()
    return packed(header, data)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_was_stored_is_read(tmp_path_factory, data):
    tensors = {}
    for number in range(data.draw(st.integers(0, 4))):
        shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
        dtype = np.dtype(data.draw(st.sampled_from(sorted(NAMES))))
        tensors[f"t{number}"] = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
        tensors[f"t{number}"] = tensors[f"t{number}"].astype(dtype)
    path = tmp_path_factory.mktemp("stored") / "m.safetensors"
    path.write_bytes(stored(tensors))

    found = read_tensors(path)

    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_bfloat16_is_widened(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    halves = np.array([0x3F80, 0xC000, 0x7F80], dtype="<u2")
    entry = {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}
    path.write_bytes(packed({"a": entry}, halves.tobytes()))

    np.testing.assert_array_equal(read_tensors(path)["a"], np.float32([1, -2, np.inf]))


def entry(shape: Any = (2,), span: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (1 << 63).to_bytes(8, "little"),
        (1 << 20).to_bytes(8, "little") + b"{}",
        packed(b"[]"),
        packed(b"[" * 9000),
        packed(b"\xff\xfe"),
        packed({}, b"more"),
        packed({"a": 3}),
        packed({"a": {}}),
        packed({"a": entry()}, bytes(7)),
        packed({"a": entry()}, bytes(9)),
        packed({"a": entry(span=(1, 9))}, bytes(9)),
        packed({"a": entry(), "b": entry()}, bytes(8)),
        packed({"a": entry(), "b": entry(span=(12, 20))}, bytes(20)),
        packed({"a": entry(span=(8, 0))}, bytes(8)),
        packed({"a": entry(shape=(1 << 62, 4), span=(0, 0))}),
        packed({"a": entry(shape=(-2, -1))}, bytes(8)),
        packed({"a": entry(shape=(True, 2))}, bytes(8)),
        packed({"a": entry(shape=(0,) * 40, span=(0, 0))}),
        packed({"a": entry(shape="22")}, bytes(8)),
        packed({"a": entry(shape=None)}, bytes(8)),
        packed({"a": entry(dtype="F7")}, bytes(8)),
        packed({"a": entry(dtype=["F32"])}, bytes(8)),
        packed({"a": entry(span=(0, 8, 8))}, bytes(8)),
        packed({"a": entry(span=(0, 8.0))}, bytes(8)),
    ],
)
def test_whatever_departs_from_the_format_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)

    with pytest.raises(EncoderError, match=r"m\.safetensors is not a safetensors file"):
        read_tensors(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(EncoderError, match=r"m\.safetensors cannot be read"):
        read_tensors(tmp_path / "m.safetensors")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_encoder_error_or_other_tensors(tmp_path_factory, data):
    content = bytearray(stored({"a": np.ones((2, 3), "<f4"), "b": np.zeros(3, "|i1")}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])

    try:
        found = read_tensors(path)
    except EncoderError:
        return
    assert sum(tensor.nbytes for tensor in found.values()) <= 2 * len(content)
