"""Mutations that keep an input's outer format valid, so that fuzzing reaches the code behind it.

Random bytes are seldom valid JSON or msgpack, and never have the checksums of a PNG, a gzip stream or a
journal. Half of all mutations are the fuzzer's own on the raw bytes; the others decode a message, change a
value or a part of it, and encode it again.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

Mutate = Callable[[bytes, int], bytes]
"""The fuzzer's own mutation: takes bytes and the longest result, returns bytes."""

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**16, 2**31, -(2**31), 2**63 - 1, -(2**63), 2**64 - 1),
    *(0.0, 0.5, -1.5, 1e-320, 1e38, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", "x", "\0", "../x", "\ud7ff\u202e\U0001f9e0", "x" * 300, b"", b"\xff" * 9, [], {}, [[]], [0, 2**62]),
]


def of_target(name: str, mutate: Mutate) -> Callable[[bytes, int, int], bytes]:
    """Return the mutation of a target with the fuzzer's arguments: bytes, longest result, seed."""
    change = {
        "message": _framed,
        "reply": _msgpack,
        "pyneal": _json,
        "offer": _offer,
        "run-json": _json,
        "bundle-json": _json,
        "png": _png,
        "nifti": _gzip,
        "roi": _gzip,
        "journal": _journal,
    }.get(name)

    def custom(data: bytes, max_size: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if change is not None and draw.random() < 0.5:
            try:
                changed = change(data, draw, lambda part: bytes(mutate(part, max(len(part) + 64, 64))))
            except Exception:  # the format is no longer valid
                changed = b""
            if 0 < len(changed) <= max_size:
                return changed
        return bytes(mutate(data, max_size))

    return custom


_Part = Callable[[bytes], bytes]


def _tree(value: Any, draw: random.Random, *, depth: int = 0) -> Any:
    """Change one place in a value."""
    if isinstance(value, dict) and value and draw.random() < 0.95:
        key = draw.choice(list(value))
        action = draw.random()
        if action < 0.08:
            return {name: each for name, each in value.items() if name != key}
        if action < 0.12:
            return value | {"unknown": draw.choice(ODD)}
        return value | {key: _tree(value[key], draw, depth=depth + 1)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        action = draw.random()
        if action < 0.08:
            return value[:place] + value[place + 1 :]
        if action < 0.2:
            return value[:place] + [value[place]] * draw.choice((2, 3, 50)) + value[place:]
        return [*value[:place], _tree(value[place], draw, depth=depth + 1), *value[place + 1 :]]
    if isinstance(value, int | float) and draw.random() < 0.4:
        return draw.choice((-value, value + 1, value - 1, value * 1024, float(value), str(value)))
    if isinstance(value, str) and value and draw.random() < 0.6:
        place = draw.randrange(len(value))
        return value[:place] + draw.choice(("", ".", "\n", "/", "0", "é", value)) + value[place + 1 :]
    return draw.choice(ODD)


def _msgpack(data: bytes, draw: random.Random, _part: _Part) -> bytes:
    return msgspec.msgpack.encode(_tree(msgspec.msgpack.decode(data), draw))


def _json(data: bytes, draw: random.Random, _part: _Part) -> bytes:
    return msgspec.json.encode(_tree(msgspec.json.decode(data), draw))


def _framed(data: bytes, draw: random.Random, part: _Part) -> bytes:
    n_header = 2 + int.from_bytes(data[:2], "big")
    header, payload = data[2:n_header], data[n_header:]
    if draw.random() < 0.3:
        payload = part(payload)
    else:
        header = _msgpack(header, draw, part)
    return len(header).to_bytes(2, "big") + header + payload


def _offer(data: bytes, draw: random.Random, part: _Part) -> bytes:
    """Lines of the description, which JSON holds as one string."""
    body = msgspec.json.decode(data)
    lines = body["sdp"].split("\r\n")
    place = draw.randrange(len(lines))
    action = draw.random()
    if action < 0.2:
        del lines[place]
    elif action < 0.4:
        lines.insert(draw.randrange(len(lines)), lines[place])
    else:
        lines[place] = part(lines[place].encode() or b"a=").decode(errors="replace")
    return msgspec.json.encode(body | {"sdp": "\r\n".join(lines)})


def _gzip(data: bytes, _draw: random.Random, part: _Part) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return b""
    return gzip.compress(part(gzip.GzipFile(fileobj=io.BytesIO(data)).read(2**16)), 1, mtime=0)


def _png(data: bytes, draw: random.Random, part: _Part) -> bytes:
    """Chunks with correct checksums, and pixels that can be decompressed."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    place = draw.randrange(len(chunks))
    kind, content = chunks[place]
    action = draw.random()
    if action < 0.15:
        chunks.insert(draw.randrange(len(chunks)), chunks[place])
    elif action < 0.25:
        kind = draw.choice((b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"iCCP", b"eXIf", b"zTXt"))
        chunks.insert(place, (kind, part(content)))
    elif kind == b"IDAT" and action < 0.7:
        chunks[place] = kind, zlib.compress(part(zlib.decompress(content)))
    else:
        chunks[place] = kind, part(content)
    sealed = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return data[:8] + b"".join(sealed)


def _journal(data: bytes, draw: random.Random, part: _Part) -> bytes:
    """Records with correct checksums."""
    from realtime.record.journal import MAGIC

    records, at, head = [], len(MAGIC), struct.Struct("<4sIQdI")
    while at + head.size <= len(data):
        _, n_header, n_payload, received, _ = head.unpack_from(data, at)
        at += head.size
        records.append([data[at : at + n_header], data[at + n_header : at + n_header + n_payload], received])
        at += n_header + n_payload
    record = draw.choice(records)
    if draw.random() < 0.7:
        record[0] = _msgpack(record[0], draw, part)
    else:
        record[1] = part(record[1])
    sealed = b""
    for header, payload, received in records:
        begin = struct.pack("<4sIQd", b"RTJ1", len(header), len(payload), received)
        sealed += begin + struct.pack("<I", zlib.crc32(payload, zlib.crc32(header, zlib.crc32(begin))))
        sealed += header + payload
    return MAGIC + sealed
