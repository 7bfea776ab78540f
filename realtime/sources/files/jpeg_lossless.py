"""Decodes JPEG Lossless frames (ITU-T T.81, process 14), as a plugin of pydicom's decoders. Pure.

What pydicom can use for these frames is either under another licence or ends the process at a damaged frame.
Where a code begins depends on all codes before it. So what would follow is looked up for all bits at once,
and only the chain through them is walked one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGLossless, JPEGLosslessSV1

DECODER_DEPENDENCIES = {JPEGLossless: ("numpy",), JPEGLosslessSV1: ("numpy",)}
_SOF3, _DHT, _SOS, _DRI, _EOI = 0xC3, 0xC4, 0xDA, 0xDD, 0xD9
_RESTARTS = range(0xD0, 0xD8)
_LEFT, _ABOVE = 1, 2
"""Pixels that a pixel is predicted from."""
_CHUNK_BYTES = 2**16
_LONGEST = 16
"""Bits of a code, and of a difference."""


def is_available(uid: str) -> bool:
    """Whether a transfer syntax can be decoded; pydicom asks."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Return the frame's pixels, row by row, little endian."""
    pixels = decoded(source)
    if pixels.shape != (runner.rows, runner.columns):
        raise ValueError(f"expected {runner.rows} x {runner.columns} pixels in a frame, got {pixels.shape}")
    return pixels.astype(f"<u{runner.bits_allocated // 8}").tobytes()


@dataclass(kw_only=True)
class _Header:
    precision: int = 0
    n_rows: int = 0
    n_columns: int = 0
    predictor: int = 0
    shift: int = 0
    """Bits that were cut off (point transform)."""
    restart_every: int = 0
    """Pixels after which prediction starts again; 0 means never."""
    tables: dict[int, tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=dict)
    table: int = 0


def decoded(source: bytes) -> NDArray[np.uint16]:
    """Decode a frame of one component. :raises ValueError: when it is damaged or of another kind"""
    header, at = _header(source)
    if header.predictor not in (_LEFT, _ABOVE) or header.table not in header.tables:
        raise ValueError(f"expected JPEG Lossless with predictor 1 or 2, got {header.predictor}")
    n_rows, n_columns = header.n_rows, header.n_columns
    rows_at_once = n_rows
    if header.restart_every:
        rows_at_once = header.restart_every // n_columns
        if header.restart_every % n_columns or not rows_at_once:
            raise ValueError(
                f"expected restarts at the ends of rows, got one every {header.restart_every} pixels"
            )
    pixels = np.empty((n_rows, n_columns), np.uint16)
    for first in range(0, n_rows, rows_at_once):
        part, at = _scan_data(source, at)
        shape = min(rows_at_once, n_rows - first), n_columns
        differences = _differences(part, *header.tables[header.table], shape[0] * shape[1])
        start = 1 << (header.precision - header.shift - 1)
        pixels[first : first + shape[0]] = _predicted(differences.reshape(shape), header.predictor, start)
    return np.left_shift(pixels, header.shift, dtype=np.uint16)


def _header(source: bytes) -> tuple[_Header, int]:
    """Read the segments before the scan; return where its data begin."""
    header, at = _Header(), 2
    while at + 4 <= len(source):
        if source[at] != 0xFF:
            raise ValueError("expected a marker")
        kind, length = source[at + 1], int.from_bytes(source[at + 2 : at + 4], "big")
        body = source[at + 4 : at + 2 + length]
        at += 1 if kind == 0xFF else 2 + length
        if kind == _SOF3:
            header.precision = body[0]
            header.n_rows, header.n_columns = (int.from_bytes(body[k : k + 2], "big") for k in (1, 3))
            if body[5] != 1 or not 2 <= header.precision <= _LONGEST or not header.n_rows * header.n_columns:
                raise ValueError("expected one component of 2 to 16 bits")
        elif kind == _DHT:
            while len(body) > _LONGEST:
                counts = body[1 : 1 + _LONGEST]
                end = 1 + _LONGEST + sum(counts)
                header.tables[body[0] & 15] = _table(counts, body[1 + _LONGEST : end])
                body = body[end:]
        elif kind == _DRI:
            header.restart_every = int.from_bytes(body[:2], "big")
        elif kind == _SOS:
            header.table, header.predictor, header.shift = body[2] >> 4, body[3], body[5] & 15
            if not header.precision > header.shift:
                raise ValueError("expected a frame header before the scan")
            return header, at
    raise ValueError("expected a scan, found the end of the frame")


def _table(counts: bytes, symbols: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the length of the code that any 16 bits begin with, and its symbol; length 0 means none."""
    lengths, found = np.zeros(1 << _LONGEST, np.uint8), np.zeros(1 << _LONGEST, np.uint8)
    code, each = 0, iter(symbols)
    for length, count in enumerate(counts, start=1):
        for _ in range(count):
            same = slice(code << (_LONGEST - length), (code + 1) << (_LONGEST - length))
            lengths[same], found[same] = length, next(each)
            code += 1
        code <<= 1
    if found.max() > _LONGEST:
        raise ValueError("expected differences of at most 16 bits")
    return lengths, found


def _scan_data(source: bytes, at: int) -> tuple[bytes, int]:
    """Return the data up to the next marker, without stuffed zeros, and where the data after it begin."""
    end = at
    while True:
        end = source.find(b"\xff", end)
        if end < 0 or end + 1 >= len(source):
            raise ValueError("expected the end of the scan, found that of the frame")
        if source[end + 1] != 0:
            break
        end += 2
    marker = end + 1
    while marker < len(source) - 1 and source[marker] == 0xFF:  # any number of these may precede a marker
        marker += 1
    if source[marker] not in (*_RESTARTS, _EOI):
        raise ValueError(f"expected the end of the scan, got marker {source[marker]:02x}")
    return source[at:end].replace(b"\xff\0", b"\xff"), marker + 1


def _differences(data: bytes, lengths: NDArray[Any], symbols: NDArray[Any], n: int) -> NDArray[np.uint16]:
    """Return the first n differences, modulo 2**16."""
    found, n_found, bit = np.empty(n, np.uint16), 0, 0
    padded = np.frombuffer(data + bytes(8), np.uint8).astype(np.uint32)
    while n_found < n:
        byte = bit // 8
        if byte >= len(data):
            raise ValueError(f"expected {n} pixels, found {n_found}")
        part = padded[byte : byte + _CHUNK_BYTES + 8]
        words = part[:-2] << 16 | part[1:-1] << 8 | part[2:]
        windows = (words[:, np.newaxis] >> np.arange(8, 0, -1, dtype=np.uint32) & 0xFFFF).ravel()
        n_bits = 8 * min(_CHUNK_BYTES, len(data) - byte)
        of_bit, sizes = lengths[windows], symbols[windows]
        steps = (of_bit + np.where(sizes < _LONGEST, sizes, 0))[:n_bits]
        after = (np.arange(n_bits) + np.where(of_bit[:n_bits], steps, 2**40)).tolist()
        here = bit - 8 * byte
        starts: list[int] = []
        while here < n_bits and n_found + len(starts) < n:
            starts.append(here)
            here = after[here]
        at = np.array(starts)
        if here > 2**39 and not of_bit[at[-1]]:
            raise ValueError("expected a code of the Huffman table")
        size = sizes[at].astype(np.int64)
        value = windows[at + of_bit[at]].astype(np.int64) >> (_LONGEST - np.minimum(size, _LONGEST))
        is_low = value < (1 << size >> 1)
        difference = np.where(size == _LONGEST, 1 << 15, value - np.where(is_low, (1 << size) - 1, 0))
        found[n_found : n_found + len(at)] = difference.astype(np.uint16)
        n_found, bit = n_found + len(at), 8 * byte + here
    return found


def _predicted(differences: NDArray[np.uint16], predictor: int, start: int) -> NDArray[np.uint16]:
    """Add the predictions: the pixel to the left or above; in the first row and column, the one there is."""
    added = differences.copy()
    added[:1, :1] += np.uint16(start)
    if predictor == _LEFT:
        added[:, 0] = np.cumsum(added[:, 0], dtype=np.uint16)
        return np.cumsum(added, axis=1, dtype=np.uint16)
    added[0] = np.cumsum(added[0], dtype=np.uint16)
    return np.cumsum(added, axis=0, dtype=np.uint16)
