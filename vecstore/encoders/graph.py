"""What does an ONNX file hold? Its inputs, outputs, operators, weights and external files.

Read from the file's protobuf structure without running, or even importing, anything of ONNX: it
takes a few milliseconds, and the big tensors are skipped without being touched.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from vecstore.encoders.wire import Data, Malformed, fields, number, numbers, text
from vecstore.errors import EncoderError

T = TypeVar("T")

# Graphs inside graphs; a file that nests deeper was made to exhaust the stack.
MAX_DEPTH = 32
# Their product would take for ever.
_MAX_RANK = 64
# Larger ones are negative ones.
_MAX_SIZE = (1 << 63) - 1

# The messages on the way to what is wanted: message -> field number -> message inside. Numbers are
# those of onnx.proto, which never change.
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "input", 12: "output", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_OPERATOR = 4
# TensorProto.DataType: name and bits of each number.
_TYPES = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    19: ("float8e5m2", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
}


class Value(NamedTuple):
    """An input or output: its type, and its shape with None for a size that varies.

    The shape is None where the file states none.
    """

    type: str
    shape: tuple[int | None, ...] | None


@dataclass(slots=True)
class Outline:
    """What an ONNX file declares about itself.

    Attributes:
        inputs: The outermost graph's inputs that have no default value, by name.
        outputs: Its outputs by name.
        operators: How many nodes each operator has, in graphs inside graphs too.
        weights: Bytes of the tensors in the file or beside it, by type.
        external: Names of files that hold tensors outside the model file, as written there.
    """

    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    weights: Counter[str] = field(default_factory=Counter)
    external: set[str] = field(default_factory=set)


def read_outline(path: Path) -> Outline:
    """Read the outline of an ONNX file.

    Raises:
        EncoderError: The file cannot be read, or is no ONNX file.
    """
    return read_mapped(path, lambda data: _Reader(data).read())


def read_mapped(path: Path, read: Callable[[mmap.mmap], T]) -> T:
    """Return what `read` makes of an ONNX file's bytes.

    Raises:
        EncoderError: The file cannot be read, or is no ONNX file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read(data)
    except (Malformed, ValueError) as error:
        raise EncoderError(f"{path} is not an ONNX model: {error or 'damaged'}") from None
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from None


class _Reader:
    def __init__(self, data: Data) -> None:
        self.data = data
        self.outline = Outline()
        self.constants: set[str] = set()
        self.graphs = 0

    def read(self) -> Outline:
        self._walk("model", 0, len(self.data), 0)
        if self.graphs != 1 or not self.outline.outputs:
            raise Malformed("it has no graph with an output, or several")
        # Old files list their constants among the inputs.
        for name in self.constants & self.outline.inputs.keys():
            del self.outline.inputs[name]
        return self.outline

    def _walk(self, message: str, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Malformed("its graphs are nested too deeply")
        outermost = depth == 1
        inside = _INSIDE[message]
        self.graphs += message == "graph" and outermost
        for part, begin, stop in fields(self.data, start, end):
            kind = inside.get(part)
            if kind in ("input", "output"):
                if outermost:
                    values = self.outline.inputs if kind == "input" else self.outline.outputs
                    values[text(self.data, begin, stop, 1)] = self._value(begin, stop)
            elif kind == "entry":
                if text(self.data, begin, stop, 1) == "location":
                    self.outline.external.add(text(self.data, begin, stop, 2))
            elif kind is not None:
                if kind == "tensor":
                    self._weigh(begin, stop, outermost)
                self._walk(kind, begin, stop, depth + 1)
            elif message == "node" and part == _OPERATOR:
                self.outline.operators[self.data[begin:stop].decode()] += 1

    def _weigh(self, start: int, end: int, outermost: bool) -> None:
        sizes, of, name = [], 0, ""
        for part, begin, stop in fields(self.data, start, end):
            if part == 1:
                sizes += numbers(self.data, begin, stop)
            elif part == 2:
                of = number(self.data, begin, stop)
            elif part == 8:
                name = self.data[begin:stop].decode()
        if len(sizes) > _MAX_RANK:
            raise Malformed(f"tensor {name!r:.60} has {len(sizes)} dimensions")
        if outermost:
            self.constants.add(name)
        kind, bits = _TYPES.get(of, (f"type {of}", 0))
        self.outline.weights[kind] += math.prod(sizes) * bits // 8

    def _value(self, start: int, end: int) -> Value:
        # ValueInfo.type -> Type.tensor_type -> Tensor.elem_type, and .shape -> Shape.dim.
        for part in (2, 1):
            found = self._inside(start, end, part)
            if found is None:
                return Value("unknown", None)
            start, end = found
        of = self._inside(start, end, 1)
        code = number(self.data, *of) if of else 0
        kind = _TYPES.get(code, (f"type {code}", 0))[0]
        shape = self._inside(start, end, 2)
        return Value(kind, None if shape is None else self._shape(*shape))

    def _inside(self, start: int, end: int, wanted: int) -> tuple[int, int] | None:
        for part, begin, stop in fields(self.data, start, end):
            if part == wanted:
                return begin, stop
        return None

    def _shape(self, start: int, end: int) -> tuple[int | None, ...]:
        sizes: list[int | None] = []
        for part, begin, stop in fields(self.data, start, end):
            if part == 1:
                stated = self._inside(begin, stop, 1)
                size = number(self.data, *stated) if stated else 0
                # Some exporters write 0 or -1 where they do not know.
                sizes.append(size if 0 < size <= _MAX_SIZE else None)
        return tuple(sizes)
