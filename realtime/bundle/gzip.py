"""Decompresses gzip data with bounded memory. Pure."""

from __future__ import annotations

import gzip
import io

_PART_BYTES = 2**20


def unpack(packed: bytes, at_most: int) -> bytes:
    """Return the first ``at_most`` decompressed bytes, or all if there are fewer.

    :raises EOFError: when the data is truncated before that
    :raises OSError, zlib.error: when the data is damaged before that
    """
    found = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        # In parts, because a read allocates the size it asks for, even if there is less data.
        while part := file.read(min(_PART_BYTES, at_most - len(found))):
            found += part
    return bytes(found)
