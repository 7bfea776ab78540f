"""Unpacking gzip so that it takes no more memory than there is to unpack. Pure: bytes in, bytes out."""

from __future__ import annotations

import gzip
import io

_PART_BYTES = 2**20


def unpack(packed: bytes, at_most: int) -> bytes:
    """The first ``at_most`` bytes of what is packed, or all of it where that is less.

    :raises EOFError, OSError, zlib.error: as gzip does, where it is cut off or damaged before that
    """
    found = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        # Not at once: what a read asks for is taken before it is known to be there.
        while part := file.read(min(_PART_BYTES, at_most - len(found))):
            found += part
    return bytes(found)
