"""What does an ONNX file hold? Its inputs, outputs, operators and external files.

Read from the file's protobuf structure without running, or even importing, anything of ONNX: it
takes a few milliseconds, and the big tensors are skipped without being touched.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vecstore.errors import EncoderError

# Graphs inside graphs; a file that nests deeper was made to exhaust the stack.
_MAX_DEPTH = 32

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


class _Malformed(Exception):
    """The bytes are not the protobuf that an ONNX file is."""


@dataclass(slots=True)
class Outline:
    """What an ONNX file declares about itself.

    Attributes:
        inputs: Names of the outermost graph's inputs that have no default value.
        outputs: Shapes of its outputs by name; None for a size that varies.
        operators: The names of all operators, of graphs inside graphs too.
        external: Names of files that hold tensors outside the model file, as written there.
    """

    inputs: list[str] = field(default_factory=list)
    outputs: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)
    external: set[str] = field(default_factory=set)


def read_outline(path: Path) -> Outline:
    """Read the outline of an ONNX file.

    Raises:
        EncoderError: The file cannot be read, or is no ONNX file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).read()
    except (_Malformed, ValueError, UnicodeDecodeError) as error:
        raise EncoderError(f"{path} is not an ONNX model: {error or 'damaged'}") from None
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.outline = Outline()
        self.constants: set[str] = set()
        self.graphs = 0

    def read(self) -> Outline:
        self._walk("model", 0, len(self.data), 0)
        if not self.graphs or not self.outline.outputs:
            raise _Malformed("it has no graph with an output")
        inputs = self.outline.inputs
        # Old files list their constants among the inputs.
        self.outline.inputs = [name for name in inputs if name not in self.constants]
        return self.outline

    def _walk(self, message: str, start: int, end: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise _Malformed("its graphs are nested too deeply")
        outermost = depth == 1
        inside = _INSIDE[message]
        self.graphs += message == "graph"
        for number, begin, stop in self._fields(start, end):
            kind = inside.get(number)
            if kind == "input":
                if outermost:
                    self.outline.inputs.append(self._text(begin, stop, 1))
            elif kind == "output":
                if outermost:
                    self.outline.outputs[self._text(begin, stop, 1)] = self._shape(begin, stop)
            elif kind == "entry":
                if self._text(begin, stop, 1) == "location":
                    self.outline.external.add(self._text(begin, stop, 2))
            elif kind is not None:
                if kind == "tensor" and outermost:
                    self.constants.add(self._text(begin, stop, 8))
                self._walk(kind, begin, stop, depth + 1)
            elif message == "node" and number == _OPERATOR:
                self.outline.operators.add(self.data[begin:stop].decode())

    def _shape(self, start: int, end: int) -> tuple[int | None, ...]:
        # ValueInfo.type -> Type.tensor_type -> Tensor.shape -> Shape.dim, each with dim_value.
        for number in (2, 1, 2):
            found = next(((b, e) for n, b, e in self._fields(start, end) if n == number), None)
            if found is None:
                return ()
            start, end = found
        sizes: list[int | None] = []
        for number, begin, stop in self._fields(start, end):
            if number == 1:
                values = [b for n, b, _ in self._fields(begin, stop) if n == 1]
                sizes.append(self._varint(values[0], stop)[0] if values else None)
        return tuple(sizes)

    def _text(self, start: int, end: int, wanted: int) -> str:
        for number, begin, stop in self._fields(start, end):
            if number == wanted:
                return self.data[begin:stop].decode()
        return ""

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, first byte and end of each field's value."""
        at = start
        while at < end:
            tag, at = self._varint(at, end)
            kind = tag & 7
            if kind == 0:
                stop = self._varint(at, end)[1]
            elif kind == 2:
                size, at = self._varint(at, end)
                stop = at + size
            elif kind in (1, 5):
                stop = at + (8 if kind == 1 else 4)
            else:
                raise _Malformed(f"byte {at} starts no field")
            if stop > end:
                raise _Malformed(f"the field at byte {at} is longer than the file")
            yield tag >> 3, at, stop
            at = stop

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 64:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise _Malformed(f"byte {at} ends no number")
