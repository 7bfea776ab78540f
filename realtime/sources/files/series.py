"""The files of one series become numbered volumes. Pure: time comes in as an argument."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from realtime.errors import WireError
from realtime.sources.files.counting import Echo, Image, echo_of
from realtime.sources.files.echoes import Echoes
from realtime.sources.files.numbering import Numbering
from realtime.sources.files.slices import SliceFile, Slices
from realtime.sources.files.twins import Twins
from realtime.sources.files.volume_file import VolumeFile

PATIENCE_TR = 2
"""For so many TR volumes wait for the number of the first, and what they lack is not told yet."""
STALL_TR = 4
"""For so many TR without a file slices and echoes that are not known yet are waited for: longer than a copy
stalls, and shorter than it takes for a run to end."""
MAX_HELD_BYTES = 2**30
"""When more waits, what has come is taken as one volume, or as the whole series."""
_FIRST = (0, 1)
"""Numbers that scanners and converters give to a first volume."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """A volume of a run."""

    index: int
    """From 0."""
    volume: VolumeFile
    whole_s: float
    """Time when its last file was whole."""


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What a file holds, while its volume is not known yet."""

    image: Image
    name: str
    whole_s: float


class Series:
    """Makes the volumes of one series.

    :param first_number: number of the first volume; None means to learn it
    :param echo: as for :class:`Echoes`
    :param numbering: what images tell that are passed over, such as phase images
    """

    def __init__(
        self,
        tr_s: float,
        *,
        first_number: int | None = None,
        echo: int | str | None = None,
        numbering: Numbering | None = None,
    ) -> None:
        self._patience_s = PATIENCE_TR * tr_s
        self._stall_s = STALL_TR * tr_s
        self._first_number = first_number
        self._numbering = numbering or Numbering()
        self._echoes = Echoes(echo, self._numbering)
        self._twins = Twins(tr_s)
        self.refusal = ""
        """Why nothing of it is taken any more."""
        self._slices: dict[Echo, Slices] = {}
        self._held: list[_Held] = []
        self._held_bytes = 0
        """Of all images since their volumes were known last."""
        self._early: list[tuple[VolumeFile, _Held]] = []
        """Volumes before the number of the first one is known, with their last files."""
        self._heard_s = 0.0
        self._early_since_s = 0.0

    def add(self, image: Image, name: str, whole_s: float, now_s: float) -> list[Numbered]:
        """Add what a file holds and return the volumes that are ready."""
        self._heard_s = now_s
        if self.refusal or self._twins.are_shown_by(image, name):
            self._refuse(image)
            return []
        self._numbering.learn(image)
        held = _Held(image=image, name=name, whole_s=whole_s)
        self._held_bytes += image.voxels.nbytes
        if self._held_bytes > MAX_HELD_BYTES and not self._numbering.is_known:
            self._numbering.assume_whole()
            _log.warning(
                "series %s (%s): %d bytes of images wait, which is the most that is kept: volumes are taken "
                "to have %d slices. If they have more, copy the series volume by volume",
                image.series,
                image.series_name,
                self._held_bytes,
                self._numbering.n_slices,
            )
        if not self._numbering.is_known:  # then it is known of none of those that wait
            return self._ready([held], now_s)
        waiting, self._held, self._held_bytes = [*self._held, held], [], 0
        return self._ready(waiting, now_s)

    def settle(self, now_s: float) -> list[Numbered]:
        """Return the volumes that have waited long enough."""
        if now_s - self._heard_s <= self._patience_s:
            return self._ready([], now_s)
        waiting: list[_Held] = []
        if self._held and now_s - self._heard_s > self._stall_s:
            self._numbering.assume_whole()
            waiting, self._held, self._held_bytes = self._held, [], 0
        ready = self._ready(waiting, now_s)
        for slices in self._slices.values():
            slices.begun.tell_missing()
        self._echoes.begun.tell_missing()
        return ready

    def _refuse(self, image: Image) -> None:
        if not self.refusal:
            self.refusal = (
                "each volume has several images of one place, as echoes are, which nothing tells apart"
            )
            _log.error(
                "series %s (%s) is not decoded any further: %s. Export EchoTime (0018,0081) or EchoNumbers "
                "(0018,0086) with the images, or one echo alone",
                image.series,
                image.series_name,
                self.refusal,
            )
            self._held.clear()

    def lacks_parts_of(self, index: int) -> bool:
        """Whether some slices or echoes of a volume have come, and others have not."""
        number = index + (self._first_number or 0)
        return number in self._echoes.begun or any(number in each.begun for each in self._slices.values())

    def _ready(self, waiting: list[_Held], now_s: float) -> list[Numbered]:
        for held in waiting:
            try:
                volume = self._volume(held)
            except WireError as error:
                _log.warning("%r is ignored: %s", held.name, error)
                continue
            if volume:
                self._early_since_s = self._early_since_s if self._early else now_s
                self._early.append((volume, held))
        return list(self._from_first(now_s))

    def _volume(self, held: _Held) -> VolumeFile | None:
        """Return the volume that an image is or completes; hold it if that is not known yet.

        :raises WireError: when the image belongs to no volume
        """
        image = held.image
        is_wanted = self._echoes.wants(image)
        if is_wanted is False:
            return None
        number = self._numbering.number(image)
        is_early = isinstance(image, SliceFile) and not self._numbering.is_known
        if is_wanted is None or number is None or is_early:
            self._held.append(held)
            return None
        if isinstance(image, SliceFile):
            slices = self._slices.setdefault(echo_of(image), Slices())
            volume = slices.add(image, number, self._numbering.n_slices)
        else:
            volume = replace(image, number=number)
        return self._echoes.add(volume) if volume else None

    def _from_first(self, now_s: float) -> Iterator[Numbered]:
        """Yield the volumes with their indices, once the first one's number is known."""
        if self._first_number is None and self._early:
            lowest = min(self._numbering.first, *(volume.number for volume, _ in self._early))
            if lowest not in _FIRST and now_s - self._early_since_s <= self._patience_s:
                return  # one of a lower number may still come
            self._first_number = lowest
            if lowest not in _FIRST:
                volume, _ = self._early[0]
                _log.warning(
                    "the first volume of series %s (%s) has the number %d, and becomes the first of the run: "
                    "numbers are shifted by %d. If the run began earlier, start again with --first-number 1",
                    volume.series,
                    volume.series_name,
                    lowest,
                    lowest - 1,
                )
        early, self._early = self._early, []
        for volume, held in early:
            index = volume.number - (self._first_number or 0)
            if index < 0:
                _log.warning(
                    "%r is ignored: its number, %d, is below that of the first volume",
                    held.name,
                    volume.number,
                )
            else:
                yield Numbered(index=index, volume=volume, whole_s=held.whole_s)
