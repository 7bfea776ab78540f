"""Learns which of a scanner's counters counts the volumes of a series. Pure.

Scanners number their images in different ways: by volume, or over all slices, echoes and parts (magnitude,
phase) of a volume, or through time at one place before the next. The first image that comes again, of the
same place, echo and part but with other counters, belongs to the next volume, and shows what is counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
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
    number = 0 if said.echo_time_ms else said.echo or 0
    return Echo(said.part, round(said.echo_time_ms or 0.0, _TE_DIGITS), number)


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

    @property
    def counters(self) -> tuple[int | None, ...]:
        return self.number, self.acquisition, self.moment


_Rule = Callable[[_Seen], int]


class Numbering:
    """Numbers the volumes of one series."""

    def __init__(self) -> None:
        self._seen: dict[_Seen, None] = {}
        """Images of the first volume, in order of arrival, then the one that showed the rule."""
        self._at_place: dict[tuple[Echo, float | None], _Seen] = {}
        self._of_number: dict[tuple[Echo, int], _Seen] = {}
        """The first image with an echo and place, or an echo and number."""
        self._rule: _Rule | None = None
        self._shift = 0
        self._given: int | None = None
        """Number of the first volume, if it was needed before the rule was known."""
        self._is_one_volume = False
        """Whether all images so far are taken as one volume, although none came again."""
        self._is_by_place = False
        """Whether all images of a place come before those of the next, as when a series is copied."""
        self._n_slices: int | None = None
        self._n_arrived: Counter[tuple[Echo, float | None]] = Counter()

    @property
    def is_known(self) -> bool:
        """Whether volumes can be numbered, and all echoes and slices of a volume are known."""
        return self._rule is not None or self._is_one_volume

    @property
    def echoes(self) -> list[Echo]:
        """Parts and echoes so far, in order of time."""
        return sorted({echo for echo, _ in self._at_place})

    @property
    def n_slices(self) -> int:
        """Number of slices of a volume, as known so far."""
        return self._n_slices or len({place for _, place in self._at_place})

    @property
    def first(self) -> int:
        """Number of the first image's volume."""
        seen = next(iter(self._seen))
        if self._rule:
            return self._rule(seen) + self._shift
        if self._given is None:
            number = seen.number
            if seen.place is not None:
                number = (seen.number - 1) // (self.n_slices * len(self.echoes)) + 1
            told = (number, seen.acquisition, seen.moment)
            self._given = min(counter for counter in told if counter is not None)
        return self._given

    def learn(self, image: Image) -> None:
        """Look at the next image of the series, of any echo and part."""
        if isinstance(image, SliceFile) and image.n_slices:
            self._n_slices = image.n_slices
        seen = _Seen.of(image)
        if self._rule or seen in self._seen:
            self._tell_late(seen)
            return
        self._seen[seen] = None
        before = self._repeated(seen)
        n_places = sum(echo == seen.echo for echo, _ in self._at_place)
        if before and seen.place is not None and n_places == 1 and not self._is_by_place:
            self._is_by_place = True
            _log.info("slices come place by place: volumes follow when no more have come for some TR")
        if self._is_by_place:
            if n_places == self._n_slices:
                self._decide_by_place()
        elif before:
            self._decide([each for each in self._seen if each is not seen], before, seen)
        elif len(self._seen) == self._n_slices:
            self._is_one_volume = True

    def _tell_late(self, seen: _Seen) -> None:
        if seen.echo not in self.echoes:
            self._at_place[seen.echo, seen.place] = seen
            _log.warning(
                "%s images (%s) began to come after the first volume: if they were delayed, the numbers of "
                "volumes are wrong; start again",
                seen.echo.part,
                seen.echo,
            )

    def _repeated(self, seen: _Seen) -> _Seen | None:
        """Return the image of an earlier volume to which this one corresponds, if any."""
        at_place = self._at_place.setdefault((seen.echo, seen.place), seen)
        same_number = self._of_number.setdefault((seen.echo, seen.number), seen)
        if at_place is not seen:
            return at_place
        if same_number is not seen and same_number.counters != seen.counters:
            return same_number  # prospective motion correction has moved the slices
        first = next(iter(self._seen))
        is_one_more = self._is_one_volume and seen.echo == first.echo and len(self._seen) > self.n_slices
        return first if is_one_more else None

    def assume_whole(self) -> None:
        """Take all images so far as one volume, or as the whole series, because no more came for long."""
        if self._is_by_place:
            self._decide_by_place()
        self._is_one_volume = bool(self._seen)

    def number(self, image: Image) -> int | None:
        """Return the number of an image's volume; None means that it is not known yet."""
        seen = _Seen.of(image)
        if self._rule:
            return self._rule(seen) + self._shift
        is_alone = seen.place is None and seen == next(iter(self._seen))
        return self.first if self._is_one_volume or is_alone else None

    def _decide_by_place(self) -> None:
        """Choose the counter when all images of a place came before those of the next."""
        first = list(self._at_place.values())
        again = next(seen for seen in self._seen if self._at_place[seen.echo, seen.place] is not seen)
        self._decide(first, self._at_place[again.echo, again.place], again)

    def _decide(self, first: list[_Seen], before: _Seen, again: _Seen) -> None:
        """Choose the counter that tells the first volume from the next."""
        n_echoes = len({seen.echo for seen in first})
        by_number = _by_number(first, before, again, self._n_slices)
        counted = [(rule, n) for rule, n in by_number if _fits(rule, first, before, again)]
        named = [(rule, 0) for rule in (_by_moment, _by_acquisition) if _fits(rule, first, before, again)]
        if self._n_slices is None and before.place is not None:
            n_images = counted[0][1] if counted else again.number if before.number == again.number else 0
            n_seen = len({seen.place for seen in first})
            self._n_slices = max(n_seen, n_images // n_echoes)
        if named or counted:
            self._rule, _ = (named + counted)[0]
        else:
            _log.warning(
                "no counter in the headers tells the volumes of this series apart (InstanceNumber, "
                "AcquisitionNumber, TemporalPositionIdentifier): they are counted in order of arrival"
            )
            arrived: dict[_Seen, int] = {}
            self._rule = partial(self._by_arrival, arrived)
            for seen in self._seen:
                self._rule(seen)
        if self._given is not None:
            self._shift = self._given - self._rule(first[0])

    def _by_arrival(self, arrived: dict[_Seen, int], seen: _Seen) -> int:
        if seen not in arrived:
            self._n_arrived[seen.echo, seen.place] += 1
            arrived[seen] = self._n_arrived[seen.echo, seen.place]
        return arrived[seen]


def _by_moment(seen: _Seen) -> int:
    return seen.moment or 0


def _by_acquisition(seen: _Seen) -> int:
    return seen.acquisition or 0


def _by_number(
    first: list[_Seen], before: _Seen, again: _Seen, n_slices: int | None
) -> list[tuple[_Rule, int]]:
    """Return the ways in which InstanceNumber may count, each with the number of images of a volume."""
    numbers = sorted({seen.number for seen in first})
    zero = min(1, numbers[0])
    grew = abs(again.number - before.number)
    n_echoes = len({seen.echo for seen in first})
    # If images of the first volume are missing, it grew by more than came; if volumes are, by a multiple.
    n_images = max(1, n_slices * n_echoes if n_slices else grew if grew % len(first) else len(first))
    n_kept = n_images if n_images < 2 * len(first) else len(first)  # of a copy some slices may have been kept
    ways: list[tuple[_Rule, int]] = [(lambda seen: (seen.number - zero) // n_images + 1, n_kept)]
    apart = Counter(b - a for a, b in pairwise(numbers)).most_common(1)
    n_volumes = apart[0][0] if apart else 0
    if n_volumes > grew:
        n_places = (numbers[-1] - zero) // n_volumes - (numbers[0] - zero) // n_volumes + 1
        ways.append((lambda seen: (seen.number - zero) % n_volumes + 1, n_places))
        lowest = numbers[0]
        ways.append((lambda seen: (seen.number - lowest) % n_volumes + 1, n_places))
    return ways


def _fits(rule: _Rule, first: list[_Seen], before: _Seen, again: _Seen) -> bool:
    """Whether a rule gives the first volume's images one number, and the image that came again another.

    Images of the next volume may have come before the last of the first.
    """
    numbers = {rule(seen) for seen in first}
    if rule(again) == rule(before):
        return False
    return len(numbers) == 1 or numbers == {rule(before), rule(again)}
