"""The pictures that were shown in a run, by presentation software's markers. No decoder gets them."""

from __future__ import annotations

import bisect
from collections.abc import Callable

from realtime import wire
from realtime.errors import RecordError
from realtime.events import Event, Shown
from realtime.record.folder import RunFolder
from realtime.record.image import decode_png


class Pictures:
    """Records the pictures of one run.

    :param disk_failed: is told that the disk did not take a picture
    """

    def __init__(self, folder: RunFolder, disk_failed: Callable[[RecordError], None]) -> None:
        self._folder = folder
        self._disk_failed = disk_failed
        self.onsets: list[int] = []
        """Onset volumes, rising."""

    def take(self, marker: wire.Marker, png: bytes | None, *, is_past: bool) -> Event | None:
        """Record a picture; returns what listeners are told, nothing if it was known or its PNG was not read.

        :param png: empty where only the name of the picture is known

        :raises WireError: when it is no picture
        """
        if marker.onset_volume in self.onsets:
            return None
        unsaved = png
        if png is not None and is_past and self._folder.has_picture(marker, len(png)):
            unsaved = None
        if unsaved:
            decode_png(unsaved)
        bisect.insort(self.onsets, marker.onset_volume)
        try:
            self._folder.write_shown(marker, unsaved)
        except RecordError as error:
            self._disk_failed(error)
        if png is None:
            return None
        shown = Shown(run_id=self._folder.path.name, onset_volume=marker.onset_volume, name=marker.name)
        return Event(shown, png=png or None, is_recorded=is_past)

    def newest(self, onset: int) -> int | None:
        """Onset of the newest picture that was shown at ``onset`` or before; None if there is none."""
        position = bisect.bisect_right(self.onsets, onset)
        return self.onsets[position - 1] if position else None
