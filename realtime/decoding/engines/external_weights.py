"""Examines an ONNX graph before an engine loads it, by parsing the needed part of protobuf's wire format.

An ONNX file may refer to any file for the data of a tensor. ``bundle.json`` must list these files, so that
changes are detected. Control flow and functions are refused, because exported graphs have none: a ``Loop``
may turn 2**62 times, and functions that call each other grow without bound when an engine inlines them. The
runtime does not depend on a package that reads ONNX files.

https://protobuf.dev/programming-guides/encoding, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from realtime.bundle.regular_file import open_regular

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_CHILDREN = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Fields, by message type, that can contain tensors with external data."""
_REFUSED = {
    "model": {25: "a function"},
    "attribute": {6: "control flow", 11: "control flow"},  # a graph inside a node: Loop, Scan, If
}
_KEY, _VALUE = 1, 2
_MAX_DEPTH = 64


def weight_files(path: Path) -> set[str]:
    """Return the external files of a graph's tensors, relative to the graph's folder.

    :raises OSError: when the file cannot be read
    :raises ValueError: when the file is not an ONNX graph, or has control flow or functions
    :raises BundleError: when it is not a regular file
    """
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return set()
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as whole,
        ):
            return set(_weight_files("model", whole, 0))


def _weight_files(kind: str, message: memoryview, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"found messages nested more than {_MAX_DEPTH} deep")
    for number, start, stop in _fields(message):
        if refused := _REFUSED.get(kind, {}).get(number):
            raise ValueError(f"found {refused}, which exported graphs never have")
        child = _CHILDREN[kind].get(number)
        if child is None:
            continue
        with message[start:stop] as inner:
            if child == "entry":
                entry = {field: bytes(inner[begin:end]) for field, begin, end in _fields(inner)}
                if entry.get(_KEY) == b"location":
                    yield entry.get(_VALUE, b"").decode()
            else:
                yield from _weight_files(child, inner, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and stop of every field of wire type LEN; skip the others."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, at = _varint(message, at)
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        elif wire_type == _LENGTH:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise ValueError("found a field that is longer than its message")
            yield number, at, at + length
            at += length
        else:
            raise ValueError(f"found a field of wire type {wire_type}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("found a number that does not end")
