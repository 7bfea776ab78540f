"""Learns which of a scanner's counters counts the volumes of a series. Pure.

Scanners number their images in different ways: by volume, or over all slices, echoes and parts (magnitude,
phase) of a volume, or through time at one place before the next. The first image that comes again, of the
same place, echo and part but with other counters, belongs to the next volume, and shows what is counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import VolumeFile

_log = logging.getLogger(__name__)

Image = VolumeFile | SliceFile
_TE_DIGITS = 2


class Echo(NamedTuple):
    """What tells the images of a volume apart that lie at the same place; in order of time."""

    part: str
    time_ms: float
    """0 if it is not known."""
    number: int
    """0 if it is not known, or the time is."""

    def __str__(self) -> str:
        return (
            f"TE {self.time_ms:g} ms" if self.time_ms else f"echo {self.number}" if self.number else "no TE"
        )


def echo_of(image: Image) -> Echo:
    """Return part and echo of an image."""
    said = image.acquired
    return Echo(said.part, round(said.echo_time_ms or 0.0, _TE_DIGITS), said.echo or 0)


@dataclass(frozen=True)
class _Seen:
    """An image without its voxels."""

    echo: Echo
    place: float | None
    """Of a slice, in mm along the normal."""
    number: int
    acquisition: int | None
    moment: int | None

    @classmethod
    def of(cls, image: Image) -> _Seen:
        place = image.place if isinstance(image, SliceFile) else None
        acquired = image.acquired
        return cls(echo_of(image), place, image.number, acquired.acquisition, acquired.moment)

    def is_repeated_by(self, later: _Seen) -> bool:
        """Whether another image must be of another volume.

        Prospective motion correction moves the slices; then a number may start again with each volume.
        """
        if self.echo != later.echo:
            return False
        is_same_number = self.number == later.number and self.acquisition != later.acquisition
        return self.place == later.place or is_same_number


_Rule = Callable[[_Seen], int]


class Numbering:
    """Numbers the volumes of one series."""

    def __init__(self) -> None:
        self._first_volume: dict[_Seen, None] = {}
        """Images of the first volume, in order of arrival, then the one that showed the rule."""
        self._rule: _Rule | None = None
        self._shift = 0
        self._is_one_volume = False
        """Whether all images so far are taken as one volume, although none came again."""
        self._is_by_place = False
        """Whether all images of a place come before those of the next, as when a series is copied."""
        self._n_slices: int | None = None
        self._counts: Counter[tuple[Echo, float | None]] = Counter()
        self._order: dict[_Seen, int] = {}

    @property
    def is_known(self) -> bool:
        """Whether volumes can be numbered, and all echoes and slices of a volume are known."""
        return self._rule is not None or self._is_one_volume

    @property
    def echoes(self) -> list[Echo]:
        """Parts and echoes so far, in order of time."""
        return sorted({seen.echo for seen in self._first_volume})

    @property
    def n_slices(self) -> int:
        """Number of slices of a volume, as known so far."""
        return self._n_slices or len({seen.place for seen in self._first_volume})

    def learn(self, image: Image) -> None:
        """Look at the next image of the series, of any echo and part."""
        if isinstance(image, SliceFile) and image.n_slices:
            self._n_slices = image.n_slices
        if self._rule:
            return
        seen = _Seen.of(image)
        if seen in self._first_volume:
            return
        before = next((each for each in self._first_volume if each.is_repeated_by(seen)), None)
        self._first_volume[seen] = None
        of_echo = [each for each in self._first_volume if each.echo == seen.echo]
        n_places = len({each.place for each in of_echo})
        if before and seen.place is not None and n_places == 1:
            self._is_by_place = True
        if self._is_by_place:
            if n_places == self._n_slices:
                self._decide_by_place()
            return
        if before is None and self._n_slices and len(of_echo) > self._n_slices:
            before = of_echo[0]
        if before:
            self._decide([each for each in self._first_volume if each is not seen], before, seen)
        elif len(of_echo) == self._n_slices == len(self._first_volume):
            self._is_one_volume = True

    def assume_whole(self) -> None:
        """Take all images so far as one volume, because no more came for long."""
        if self._is_by_place:
            self._decide_by_place()
        self._is_one_volume = bool(self._first_volume)

    def number(self, image: Image) -> int | None:
        """Return the number of an image's volume; None means that it is not known yet."""
        seen = _Seen.of(image)
        if self._rule:
            return self._rule(seen) + self._shift
        if self._is_one_volume or seen == next(iter(self._first_volume), None):
            return self._base
        return None

    @property
    def _base(self) -> int:
        """Number of the first image's volume: what any of its counters says at least."""
        first = next(iter(self._first_volume))
        counters = (first.number, first.acquisition, first.moment)
        return min(counter for counter in counters if counter is not None)

    def _decide_by_place(self) -> None:
        """Choose the counter when all images of a place came before those of the next."""
        first: dict[tuple[Echo, float | None], _Seen] = {}
        again: dict[tuple[Echo, float | None], _Seen] = {}
        for seen in self._first_volume:
            key = (seen.echo, seen.place)
            if first.setdefault(key, seen) is not seen:
                again.setdefault(key, seen)
        key = next(iter(again))
        self._decide(list(first.values()), first[key], again[key])

    def _decide(self, first: list[_Seen], before: _Seen, again: _Seen) -> None:
        """Choose the counter that tells the first volume from the next."""
        for rule in self._rules(first, before, again):
            if _fits(rule, first, before, again):
                self._rule = rule
                break
        else:
            _log.warning(
                "no counter in the headers tells the volumes of this series apart (InstanceNumber, "
                "AcquisitionNumber, TemporalPositionIdentifier): they are counted in order of arrival"
            )
            self._rule = self._by_arrival
            for seen in self._first_volume:
                self._by_arrival(seen)
        self._shift = self._base - self._rule(first[0])
        if self._n_slices is None:
            self._n_slices = self._slices_of(first, before, again)

    def _rules(self, first: list[_Seen], before: _Seen, again: _Seen) -> Iterator[_Rule]:
        if all(seen.moment is not None for seen in (*first, again)):
            yield lambda seen: seen.moment or 0
        if all(seen.acquisition is not None for seen in (*first, again)):
            yield lambda seen: seen.acquisition or 0
        stride = self._stride(first, before, again)
        start = 1 if min(seen.number for seen in first) > 0 else 0
        yield lambda seen: (seen.number - start) // stride
        start, through_time = min(seen.number for seen in first), _stride_through_time(first)
        if through_time > abs(again.number - before.number):
            yield lambda seen: (seen.number - start) % through_time

    def _stride(self, first: list[_Seen], before: _Seen, again: _Seen) -> int:
        """By how much InstanceNumber grows from volume to volume if it counts all images of a volume.

        The growth that was seen is right if images of the first volume are missing, and a multiple of what is
        right if whole volumes are.
        """
        if self._n_slices:
            return self._n_slices * len({seen.echo for seen in first})
        grew = abs(again.number - before.number)
        return max(1, grew if grew % len(first) else len(first))

    def _slices_of(self, first: list[_Seen], before: _Seen, again: _Seen) -> int | None:
        """Return the number of slices, with those of the first volume that did not come."""
        if before.place is None:
            return None
        n_echoes = len({seen.echo for seen in first})
        n_seen = len({seen.place for seen in first})
        n_counted = self._stride(first, before, again) // n_echoes
        return n_counted if n_seen <= n_counted < 2 * n_seen else n_seen

    def _by_arrival(self, seen: _Seen) -> int:
        if seen not in self._order:
            self._counts[seen.echo, seen.place] += 1
            self._order[seen] = self._counts[seen.echo, seen.place]
        return self._order[seen]


def _fits(rule: _Rule, first: list[_Seen], before: _Seen, again: _Seen) -> bool:
    """Whether a rule gives the first volume's images one number, and the image that came again another.

    Images of the next volume may have come before the last of the first.
    """
    numbers = {rule(seen) for seen in first}
    if rule(again) == rule(before):
        return False
    return len(numbers) == 1 or (len(numbers) == 2 and numbers == {rule(before), rule(again)})


def _stride_through_time(first: list[_Seen]) -> int:
    """By how much InstanceNumber grows from place to place if it counts through time at each."""
    numbers = sorted({seen.number for seen in first})
    return min((b - a for a, b in zip(numbers, numbers[1:], strict=False)), default=0)
