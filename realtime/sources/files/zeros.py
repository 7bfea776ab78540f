"""Tells files that have their full size before all bytes have come. Pure.

Windows gives a file its size first when it copies to a share, and a file that was allocated ahead has it as
well. What has not come reads as zeros. Images have zeros too, where a scanner or a mask leaves no signal, but
at the same places in all volumes of a series. So only pages of zeros where earlier files of the series have
data are suspicious. Pages are counted from the end, because headers of DICOM differ in length.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

_PAGE_BYTES, _SMALL_PAGE_BYTES, _SMALL_BYTES = 4_096, 512, 2**18
_FEWEST_SMALL_PAGES = 7
"""So many small pages are at least in 4 kB that come late; in noise near zero, one may be zero by chance."""
_LEAST_CUT = 16
"""Fewer pages than this part of a file, which have data now and zeros then, lie at the edge of a mask."""
_END_BYTES = 32


class UsualZeros:
    """Where files of each kind have pages of zeros although they are whole."""

    def __init__(self) -> None:
        self._usual: dict[str, NDArray[np.bool_]] = {}

    def knows(self, kind: str) -> bool:
        """Whether a file of this kind was whole before."""
        return kind in self._usual

    def are_unusual(self, kind: str, data: bytes) -> bool:
        """Whether there are zeros where no whole file had any, and enough for bytes that come late."""
        pages = _zero_pages(data)
        unusual = pages.copy()
        usual = self._usual.get(kind, pages[:0])[: len(pages)]
        unusual[: len(usual)] &= ~usual
        if unusual[0]:
            return True
        n_together = _n_together(data, pages)
        if len(pages) <= n_together:
            return False
        together = sliding_window_view(np.stack([pages[1:], unusual[1:]]), n_together, axis=1)
        return bool((together[0].all(axis=1) & together[1].any(axis=1)).any())

    def learn(self, kind: str, data: bytes) -> bool:
        """Take a file for whole, and return whether those before it were probably not.

        They had zeros, and it has data in most of the same places.
        """
        pages = _zero_pages(data)
        usual = self._usual.get(kind, pages[:0])
        if len(usual) < len(pages):
            usual = np.concatenate([usual, np.zeros(len(pages) - len(usual), dtype=np.bool_)])
        n_zeros, n_filled = np.count_nonzero(usual[1:]), np.count_nonzero(usual[1 : len(pages)] & ~pages[1:])
        n_least = max(_n_together(data, pages), len(pages) // _LEAST_CUT)
        were_cut = bool(n_filled >= n_least and 2 * n_filled > n_zeros)
        if were_cut:
            usual = np.zeros_like(usual)
        usual[: len(pages)] |= pages
        self._usual[kind] = usual
        return were_cut

    def forget(self, kind: str) -> None:
        """Take back what was learned: a file was not whole."""
        self._usual.pop(kind, None)


def has_data(data: bytes) -> bool:
    """Whether not all bytes are zero."""
    return data.count(0) < len(data)


def _page_bytes(data: bytes) -> int:
    return _PAGE_BYTES if len(data) > _SMALL_BYTES else _SMALL_PAGE_BYTES


def _n_together(data: bytes, pages: NDArray[np.bool_]) -> int:
    """Return how many pages of zeros together are no chance."""
    return 1 if _page_bytes(data) == _PAGE_BYTES else min(_FEWEST_SMALL_PAGES, 1 + len(pages) // 8)


def _zero_pages(data: bytes) -> NDArray[np.bool_]:
    """Return which pages are zero, the last first; before them, whether the last bytes are."""
    page_bytes = _page_bytes(data)
    n_pages = len(data) // page_bytes
    words = np.frombuffer(data, np.uint64, n_pages * page_bytes // 8, len(data) - n_pages * page_bytes)
    is_written: NDArray[np.bool_] = np.any(words.reshape(n_pages, page_bytes // 8) != 0, axis=1)
    ends_in_zeros = len(data) >= _END_BYTES and not any(data[-_END_BYTES:])
    return np.concatenate([[ends_in_zeros], np.logical_not(is_written[::-1])])
