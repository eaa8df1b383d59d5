"""Which part of an ONNX graph makes some of its outputs? The rest is left out before loading.

onnxruntime loads a whole graph, and runs it, whichever output is asked for. So a model that offers
an output after its third layer would cost as much there as at its full depth.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vecstore.encoders.graph import MAX_DEPTH, read_mapped
from vecstore.encoders.wire import Malformed, field, fields, text

# Field numbers of onnx.proto, which never change.
_MODEL_GRAPH = 7
_NODE, _CONSTANT, _INPUT, _OUTPUT, _DESCRIBED, _QUANTIZED, _SPARSE = 1, 5, 11, 12, 13, 14, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPHS = (6, 11)
# Where a part of a graph has its name.
_NAMES = {_CONSTANT: 8, _INPUT: 1, _OUTPUT: 1, _DESCRIBED: 1, _QUANTIZED: 1}


@dataclass(frozen=True, slots=True)
class _Node:
    inputs: frozenset[str]
    outputs: tuple[str, ...]


def prune(path: Path, outputs: Collection[str]) -> bytes | None:
    """Return the bytes of a model that makes these outputs alone, None if there is nothing to drop.

    Tensors in other files stay there. What graphs inside graphs take from outside is kept.

    Args:
        path: An ONNX file.
        outputs: Names of outputs of its graph.

    Raises:
        EncoderError: The file cannot be read, or is no ONNX file.
    """
    return read_mapped(path, lambda data: _Pruner(data).run(outputs))


class _Pruner:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        # Number, first byte of the field, first byte and end of its value.
        self.parts: list[tuple[int, int, int, int]] = []

    def run(self, outputs: Collection[str]) -> bytes | None:
        whole = list(self._parts(0, len(self.data)))
        graphs = [part for part in whole if part[0] == _MODEL_GRAPH]
        if len(graphs) != 1:
            raise Malformed("it has no graph, or several")
        _, first, begin, stop = graphs[0]
        self.parts = list(self._parts(begin, stop))
        kept = self._kept(outputs)
        if len(kept) == len(self.parts):
            return None
        graph = b"".join(self.data[first:stop] for _, first, _, stop in kept)
        before, after = self.data[:first], self.data[stop:]
        return b"".join((before, field(_MODEL_GRAPH, len(graph)), graph, after))

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        first = start
        for number, begin, stop in fields(self.data, start, end):
            yield number, first, begin, stop
            first = stop

    def _kept(self, outputs: Collection[str]) -> list[tuple[int, int, int, int]]:
        nodes = {
            first: self._node(begin, stop, 0)
            for number, first, begin, stop in self.parts
            if number == _NODE
        }
        made_by = {name: first for first, node in nodes.items() for name in node.outputs}
        wanted, kept = set(outputs), set()
        waiting = list(outputs)
        while waiting:
            maker = made_by.get(waiting.pop())
            if maker is not None and maker not in kept:
                kept.add(maker)
                waiting += nodes[maker].inputs - wanted
                wanted |= nodes[maker].inputs
        described = wanted.union(*(nodes[first].outputs for first in kept))
        keep = {_OUTPUT: set(outputs), _DESCRIBED: described, _QUANTIZED: described}

        def stays(number: int, first: int, begin: int, stop: int) -> bool:
            if number == _NODE:
                return first in kept
            if number in (*_NAMES, _SPARSE):
                return self._name(number, begin, stop) in keep.get(number, wanted)
            return True

        return [part for part in self.parts if stays(*part)]

    def _name(self, number: int, start: int, end: int) -> str:
        if number == _SPARSE:
            # Named by the tensor of its values.
            values = (span for n, *span in fields(self.data, start, end) if n == 1)
            start, end = next(values, (end, end))
            number = _CONSTANT
        return text(self.data, start, end, _NAMES[number])

    def _node(self, start: int, end: int, depth: int) -> _Node:
        inputs: set[str] = set()
        outputs = []
        for number, begin, stop in fields(self.data, start, end):
            if number == _NODE_INPUT:
                inputs.add(self.data[begin:stop].decode())
            elif number == _NODE_OUTPUT:
                outputs.append(self.data[begin:stop].decode())
            elif number == _NODE_ATTRIBUTE:
                for inner, first, last in fields(self.data, begin, stop):
                    if inner in _ATTRIBUTE_GRAPHS:
                        inputs |= self._taken(first, last, depth + 1)
        # An optional input or output that is not there has an empty name.
        return _Node(frozenset(inputs - {""}), tuple(name for name in outputs if name))

    def _taken(self, start: int, end: int, depth: int) -> set[str]:
        """Names that a graph inside a node takes from outside."""
        if depth > MAX_DEPTH:
            raise Malformed("its graphs are nested too deeply")
        used: set[str] = set()
        made: set[str] = set()
        for number, begin, stop in fields(self.data, start, end):
            if number == _NODE:
                node = self._node(begin, stop, depth)
                used |= node.inputs
                made.update(node.outputs)
            elif number == _OUTPUT:
                used.add(self._name(number, begin, stop))
            elif number in (_CONSTANT, _SPARSE, _INPUT):
                made.add(self._name(number, begin, stop))
        return used - made
