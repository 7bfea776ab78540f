"""Reads the volumes of a NIfTI file that holds a run and may still grow, one volume at a time."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from realtime.errors import WireError
from realtime.sources.files import nifti
from realtime.sources.files.formats import GZIP_MARK, HEAD_BYTES, beginning
from realtime.sources.files.volume_file import NotWholeError, VolumeFile
from realtime.sources.files.zeros import UsualZeros, has_data

_COMPARED_BYTES = 2**16
"""So much of the first volume tells whether the file was written anew."""
_DAMAGE = (EOFError, OSError, zlib.error)


def is_run(head: bytes) -> bool:
    """Whether a file begins like one that holds a run."""
    head = beginning(head) if head.startswith(GZIP_MARK) else head
    try:
        return nifti.is_header(head) and nifti.layout(head).is_run
    except WireError:
        return False


class RunFile:
    """One file, and how many of its volumes were reported."""

    def __init__(self) -> None:
        self._n_reported = 0
        self._first_crc: int | None = None
        self._usual = UsualZeros()

    def volumes(self, file: BinaryIO, name: str, *, is_quiet: bool) -> Iterator[VolumeFile]:
        """Yield the volumes that are whole and were not reported yet.

        :param file: at its beginning
        :param is_quiet: whether it has not changed for so long that zeros at its end may be data
        :raises NotWholeError: at last, when some of the volumes that the header names have not come
        :raises WireError: when the file is damaged or not supported
        """
        is_packed = file.read(len(GZIP_MARK)) == GZIP_MARK
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if is_packed else file
        try:
            layout = nifti.layout(stream.read(HEAD_BYTES))
        except _DAMAGE as error:
            raise NotWholeError(f"expected a NIfTI header: {error}") from error
        self._begin_again_if_rewritten(_at(stream, layout, 0, _COMPARED_BYTES))
        stored = _at(stream, layout, self._n_reported)
        while self._n_reported < layout.n_volumes:
            following = _at(stream, layout, self._n_reported + 1)
            is_there = len(stored) == layout.volume_bytes and (
                is_packed
                or has_data(following)  # of a file that grows in its full size, the next volume has begun
                or (is_quiet and has_data(stored))
                or (not following and not self._usual.are_unusual("", stored))
            )
            if not is_there:
                raise NotWholeError(f"expected {layout.n_volumes} volumes, {self._n_reported} are there")
            self._usual.learn("", stored)
            nth, self._n_reported = self._n_reported, self._n_reported + 1
            yield layout.volume(stored, nth, name, None)
            stored = following

    def _begin_again_if_rewritten(self, first: bytes) -> None:
        crc = zlib.crc32(first)
        if crc != self._first_crc:
            self._n_reported = 0
            self._usual.forget("")
        self._first_crc = crc


def _at(stream: BinaryIO | gzip.GzipFile, layout: nifti.Layout, nth: int, n_most: int = sys.maxsize) -> bytes:
    """Return what there is of a volume, or of its beginning."""
    if nth >= layout.n_volumes:
        return b""
    try:
        stream.seek(layout.offset + nth * layout.volume_bytes)
        return stream.read(min(layout.volume_bytes, n_most))
    except _DAMAGE:  # the rest has not come
        return b""
