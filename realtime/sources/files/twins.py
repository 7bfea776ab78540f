"""Finds images of one volume and place, such as echoes, that nothing in their headers tells apart. Pure."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator

from realtime.sources.files.counting import Echo, Image, Seen, echo_of
from realtime.sources.files.slices import SliceFile

_MAX_LOOKED_AT = 2_048
"""If the first images of a series have none, the others have none."""
_TOGETHER_TR = 0.5
"""Images of one place that are nearer in time than this are of one volume."""
_FAST_S = 2.0
"""At a shorter TR, times in whole seconds do not tell volumes apart."""

_Place = tuple[Echo, float | None]


class Twins:
    """Looks at the first images of a series.

    That one volume seems to have two images of a place may come from a counter that does not count, or counts
    places; that two volumes have of the same place, does not.
    """

    def __init__(self, tr_s: float) -> None:
        self._tr_s = tr_s
        self._at_place: defaultdict[tuple[Echo, float | None], list[tuple[Seen, float | None]]] = defaultdict(
            list
        )
        self._held: dict[Seen, tuple[str, int]] = {}
        """Name of the file, and checksum of its voxels."""
        self._found: set[tuple[tuple[str, float | None], object]] = set()
        """By which counter and at which place, and of which volume."""
        self._n_looked_at = 0

    def are_shown_by(self, image: Image, name: str) -> bool:
        """Whether two volumes are known to have several images of one place, now that this one has come."""
        if self._n_looked_at == _MAX_LOOKED_AT:
            return False
        self._n_looked_at += 1
        seen, crc = Seen.of(image), zlib.crc32(image.voxels.tobytes())
        name_before, crc_before = self._held.setdefault(seen, (name, crc))
        place = image.place if isinstance(image, SliceFile) else None
        at_place = self._at_place[echo_of(image), place]
        if name_before != name:  # otherwise the file has been written again
            self._found |= {(("all", None), seen)} if crc_before != crc else set()
        else:
            tr_s = min(self._tr_s, image.tr_s or self._tr_s)
            for other, time_s in at_place:
                in_common = _in_common(seen, image.acquired.time_s, other, time_s, tr_s)
                self._found |= {((counter, place), volume) for counter, volume in in_common}
            at_place.append((seen, image.acquired.time_s))
        return any(sum(kind == each for each, _ in self._found) > 1 for kind, _ in self._found)


def _in_common(
    seen: Seen, time_s: float | None, other: Seen, other_s: float | None, tr_s: float
) -> Iterator[tuple[str, object]]:
    """Yield what says that two different images are of one volume, and of which."""
    if seen == other or (seen.moment != other.moment):
        return
    if time_s is not None and other_s is not None and (tr_s >= _FAST_S or time_s % 1 or other_s % 1):
        if abs(time_s - other_s) >= _TOGETHER_TR * tr_s:
            return
        yield "time", round(min(time_s, other_s) / tr_s)
    if seen.moment is not None:
        yield "moment", seen.moment
    elif seen.acquisition is not None and seen.acquisition == other.acquisition:
        yield "acquisition", seen.acquisition
