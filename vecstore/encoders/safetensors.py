"""Which tensors does a safetensors file hold? A strict reader.

The format: https://github.com/huggingface/safetensors#format. A file is a number of 8 bytes, so
many bytes of JSON that give each tensor's type, shape and place, and the tensors one after another
without gaps. Whatever departs from that is refused; nothing is ever executed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.errors import EncoderError

_MAX_HEADER_BYTES = 16 << 20
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    # The upper half of a float32.
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file by name, mapped, so that what is not used is not read.

    Tensors of bfloat16 come as float32, all others as they are stored.

    Raises:
        EncoderError: The file cannot be read, or is not as the format says.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= _MAX_HEADER_BYTES:
                raise ValueError(f"its header would take {size} bytes")
            header = file.read(size)
        if len(header) < size:
            raise ValueError("it is cut short")
        data = np.memmap(path, dtype=np.uint8, mode="r")[8 + size :]
        tensors = json.loads(header)
        return _tensors(tensors, data)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EncoderError(f"{path} is not a safetensors file: {error}") from None
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from None


def _tensors(header: Any, data: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    if not isinstance(header, dict):
        raise TypeError("its header is no JSON object")
    header.pop("__metadata__", None)
    found, spans = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise TypeError(f"tensor {name!r:.60} is {entry!r:.60}")
        tensor, span = _tensor(name, entry, data)
        found[name] = tensor
        spans.append(span)
    ends = [0, *(end for _, end in sorted(spans))]
    if [begin for begin, _ in sorted(spans)] != ends[:-1] or ends[-1] != len(data):
        raise ValueError("its tensors overlap, or do not fill it")
    return found


def _tensor(
    name: str, entry: Mapping[str, Any], data: NDArray[np.uint8]
) -> tuple[NDArray[Any], tuple[int, int]]:
    kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = [type(size) is int and 0 <= size < 1 << 48 for size in [*shape, *span]]
    if kind not in _TYPES or not all(whole) or len(span) != 2 or len(shape) > 8:
        raise ValueError(f"tensor {name!r:.60} is {dict(entry)!r:.120}")
    begin, end = span
    dtype = np.dtype(_TYPES[kind])
    if end > len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r:.60} of shape {shape!r:.60} is at bytes {begin}..{end}")
    tensor = data[begin:end].view(dtype).reshape(shape)
    if kind == "BF16":
        tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor, (begin, end)
