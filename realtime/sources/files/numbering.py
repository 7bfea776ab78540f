"""Numbers the volumes of a series. Pure.

The first image that comes again, of the same place, echo and part but with other counters, belongs to another
volume, and shows what is counted (:mod:`realtime.sources.files.counting`).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from itertools import pairwise

from realtime.sources.files.counting import Echo, Image, Key, Rule, Seen, find
from realtime.sources.files.places import Places
from realtime.sources.files.slices import SliceFile

_LOOK_AGAIN = 1.05
"""If it is not known yet what is counted, it is looked for again once so many times the images are there."""

_log = logging.getLogger(__name__)


class Numbering:
    """Numbers the volumes of one series."""

    def __init__(self) -> None:
        self._seen: dict[Seen, Key] = {}
        """Images in order of arrival, until it is known how volumes are counted."""
        self._first: dict[Key, Seen] = {}
        """The first image at each place of each echo."""
        self._of_number: dict[tuple[Echo, int], Seen] = {}
        self._places: defaultdict[Echo, Places] = defaultdict(Places)
        self._look_at = 0
        """So many images must be there before it is looked for again what is counted."""
        self._rule: Rule | None = None
        self._lowest = 0
        """Number of the first volume, once the rule is known."""
        self._shift = 0
        self._given: int | None = None
        """Number of the first volume, if it was needed before the rule was known."""
        self._is_one_volume = False
        """Whether all images so far are taken as one volume, although none came again."""
        self._is_all = False
        """Whether no more images came for long, or more cannot wait."""
        self._is_by_place = False
        """Whether all images of a place come before those of the next, as when a series is copied."""
        self._n_slices: int | None = None
        self._arrived: dict[Seen, int] = {}
        """Numbers of volumes, if they are counted in order of arrival."""
        self._n_arrived: Counter[Key] = Counter()

    @property
    def is_known(self) -> bool:
        """Whether volumes can be numbered, and all slices of a volume are known."""
        return self._rule is not None or (self._is_one_volume and not self._has_come_again)

    @property
    def has_all_echoes(self) -> bool:
        """Whether all echoes of a volume are known; others may come after the slices of the first."""
        return self.is_known and (self._rule is not None or self._is_all)

    @property
    def _has_come_again(self) -> bool:
        """Whether a place has been seen twice, so that there are several volumes."""
        return len(self._seen) > len(self._first)

    @property
    def echoes(self) -> list[Echo]:
        """Parts and echoes so far, in order of time."""
        return sorted({echo for echo, _ in self._first})

    @property
    def n_slices(self) -> int:
        """Number of slices of a volume, as known so far."""
        return self._n_slices or max(Counter(echo for echo, _ in self._first).values(), default=1)

    @property
    def first(self) -> int:
        """Number of the first volume."""
        if self._rule:
            return self._lowest + self._shift
        if self._given is None:
            seen = next(iter(self._seen))
            number = seen.number
            if seen.place_mm is not None:
                number = (seen.number - 1) // (self.n_slices * len(self.echoes)) + 1
            told = (number, seen.acquisition, seen.moment)
            self._given = min(counter for counter in told if counter is not None)
        return self._given

    def learn(self, image: Image) -> None:
        """Look at the next image of the series, of any echo and part."""
        if isinstance(image, SliceFile) and image.n_slices:
            self._n_slices = image.n_slices
        seen = Seen.of(image)
        if self._rule or seen in self._seen:
            self._tell_late(seen)
            return
        n_keys = len(self._first)
        self._seen[seen] = self._key(seen)
        is_again = len(self._first) == n_keys
        n_places = sum(echo == seen.echo for echo, _ in self._first)
        if is_again and seen.place_mm is not None and n_places == 1 and not self._is_by_place:
            self._is_by_place = True
            _log.info("slices come place by place: volumes follow when no more have come for some TR")
        if self._is_by_place:
            if n_places == self._n_slices and self._is_last_place:
                self._decide(is_all=True)
        elif self._has_come_again:
            self._decide(is_all=False)
        elif self._has_all_slices and self._seems_one_volume:
            self._is_one_volume = True

    @property
    def _has_all_slices(self) -> bool:
        """Whether each echo so far has as many places as the header says; echoes may come slice by slice."""
        return set(Counter(echo for echo, _ in self._first).values()) == {self._n_slices}

    @property
    def _is_last_place(self) -> bool:
        """Whether all places but one have equally many images."""
        counts = sorted(Counter(self._seen.values()).values())
        return len(set(counts[1:])) <= 1

    @property
    def _seems_one_volume(self) -> bool:
        """Whether so many slices as a volume has are of one, rather than of two that come mixed."""
        numbers = sorted(seen.number for seen in self._seen)
        return (
            len({seen.moment for seen in self._seen}) == 1 and len({b - a for a, b in pairwise(numbers)}) <= 1
        )

    def _key(self, seen: Seen) -> Key:
        """Return echo and place of an image."""
        same_number = self._of_number.setdefault((seen.echo, seen.number), seen)
        key = seen.echo, 0
        if seen.place_mm is not None:
            key = seen.echo, self._places[seen.echo].of(seen.place_mm, seen.distance_mm, seen.moment)
        if key not in self._first:
            if same_number.counters != seen.counters:
                return self._seen[same_number]  # prospective motion correction has moved the slices far
            if self._is_one_volume and self._has_all_slices and seen.echo == next(iter(self._seen)).echo:
                return next(iter(self._seen.values()))
        self._first.setdefault(key, seen)
        return key

    def _tell_late(self, seen: Seen) -> None:
        if seen.echo not in self.echoes:
            self._first[seen.echo, 0] = seen
            _log.warning(
                "%s images (%s) began to come after the first volume: if they were delayed, the numbers of "
                "volumes are wrong; start again",
                seen.echo.part,
                seen.echo,
            )

    def assume_whole(self) -> None:
        """Take all images so far as one volume, or as the whole series, because no more came for long."""
        if not self._rule and self._has_come_again:
            self._decide(is_all=True)
        self._is_one_volume = self._is_all = bool(self._seen)

    def number(self, image: Image) -> int | None:
        """Return the number of an image's volume; None means that it is not known yet."""
        seen = Seen.of(image)
        if self._rule:
            return self._rule(seen) + self._shift
        is_alone = seen.place_mm is None and seen == next(iter(self._seen))
        return self.first if self.is_known or is_alone else None

    def _decide(self, *, is_all: bool) -> None:
        """Find what is counted, if the images tell it."""
        if not is_all and len(self._seen) < self._look_at:
            return
        self._look_at = int(_LOOK_AGAIN * len(self._seen)) + 1
        if is_all:
            self._place_again()
        counted = find(self._seen, self._n_slices, is_all=is_all)
        if counted is None:
            return
        self._n_slices = counted.n_slices
        self._rule = counted.rule or self._by_arrival
        if counted.rule is None:
            _log.warning(
                "no counter in the headers tells the volumes of this series apart (InstanceNumber, "
                "AcquisitionNumber, TemporalPositionIdentifier): they are counted in order of arrival"
            )
        if counted.n_slices == 1 and next(iter(self._seen)).place_mm is not None:
            _log.warning(
                "each volume of this series has one slice. If its images are mosaics, what says so was "
                "removed from their headers: export from the scanner itself without anonymising, or as "
                "enhanced DICOM"
            )
        self._lowest = min(map(self._rule, self._seen))
        if self._given is not None:
            self._shift = self._given - self._rule(next(iter(self._seen)))

    def _place_again(self) -> None:
        """Tell places apart in order of number, in which a head moves less between two images."""
        self._places.clear()
        self._first.clear()
        self._of_number.clear()
        for seen in sorted(self._seen, key=lambda each: each.number):
            self._seen[seen] = self._key(seen)

    def _by_arrival(self, seen: Seen) -> int:
        if seen not in self._arrived:
            key = self._seen.get(seen) or self._key(seen)
            self._n_arrived[key] += 1
            self._arrived[seen] = self._n_arrived[key]
        return self._arrived[seen]
