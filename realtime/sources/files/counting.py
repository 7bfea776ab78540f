"""Finds out what a scanner's counters count, from images of several volumes in any order. Pure.

Scanners number their images in different ways: by volume, or over all slices, echoes and parts (magnitude,
phase) of a volume, or through time at one place before the next. A counter is believed if no volume then has
two images of one place, and if it puts together most of what one volume has.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from realtime.sources.files.slices import SliceFile
from realtime.sources.files.volume_file import VolumeFile

Image = VolumeFile | SliceFile
_TE_DIGITS = 2
_UNKNOWN = -(2**40)
"""No scanner counts so."""
_MIXED = 2
"""Files of so many volumes may come mixed, as when several are copied at once."""
_CLOSEST = 0.5
"""Slices of a volume are not closer to each other than this part of their distance."""


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
class Seen:
    """An image without its voxels."""

    echo: Echo
    place_mm: float | None
    """Of a slice, along the normal."""
    distance_mm: float
    """Of slices, as the header says; it is not more than the true one."""
    number: int
    acquisition: int | None
    moment: int | None

    @classmethod
    def of(cls, image: Image) -> Seen:
        """Return what counts of an image."""
        acquired = image.acquired
        return cls(
            echo=echo_of(image),
            place_mm=image.place if isinstance(image, SliceFile) else None,
            distance_mm=image.distance_mm if isinstance(image, SliceFile) else 0.0,
            number=image.number,
            acquisition=acquired.acquisition,
            moment=acquired.moment,
        )

    @property
    def counters(self) -> tuple[int | None, ...]:
        """Everything that may count volumes."""
        return self.number, self.acquisition, self.moment


Key = tuple[Echo, int]
"""Echo, and place by its number."""
Rule = Callable[[Seen], int]
"""Returns the number of an image's volume."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the images so far tell."""

    rule: Rule | None
    """None: no counter tells the volumes apart."""
    n_slices: int


def find(images: dict[Seen, Key], n_slices: int | None, *, is_all: bool) -> Counted | None:
    """Return what counts the volumes; None while further images are needed to tell.

    :param images: in order of arrival, at least two with one key
    :param n_slices: of a volume, as the header says
    :param is_all: whether no more images are waited for
    """
    keys = set(images.values())
    n_echoes = len({echo for echo, _ in keys})
    is_slices = next(iter(images)).place_mm is not None
    by_number = [(rule, n) for rule, n in _by_number(images, n_slices, n_echoes) if _separates(rule, images)]
    named = [rule for rule in (_by_moment, _by_acquisition) if _separates(rule, images)]
    sure = [rule for rule, n in by_number if n or is_all or _goes_on(list(map(rule, images)))]
    rules = [rule for rule in (*named, *sure) if _joins(rule, images, is_all)]
    if not rules:
        is_hopeless = not by_number and not any(len(set(map(rule, images))) < len(images) for rule in named)
        if is_all or not is_slices or (is_hopeless and len(images) > 2 * len(keys)):
            return Counted(rule=None, n_slices=n_slices or len(keys) // n_echoes)
        return None
    rule = rules[0]
    numbers = list(map(rule, images))
    most = max(Counter(numbers).values())
    told = (n_slices or 0) * n_echoes
    is_sure = rule in named or is_all or told in (most, *(n for counts, n in by_number if counts is rule))
    if not is_slices or (n_slices and is_sure):
        return Counted(rule=rule, n_slices=n_slices or 1)
    if len(keys) in (n for counts, n in by_number if counts in rules):
        return Counted(rule=rule, n_slices=len(keys) // n_echoes)
    if is_all or _has_whole(numbers, len(keys)):
        return Counted(rule=rule, n_slices=n_slices or most // n_echoes)
    return None


def _separates(rule: Rule, images: dict[Seen, Key]) -> bool:
    """Whether a rule finds several volumes, none of which has two images of one place."""
    volumes: defaultdict[tuple[int, Echo], list[float]] = defaultdict(list)
    for seen in images:
        volumes[rule(seen), seen.echo].append(seen.place_mm or 0.0)
    if len({number for number, _ in volumes}) < 2 or any(number == _UNKNOWN for number, _ in volumes):
        return False
    closest_mm = min((seen.distance_mm for seen in images), default=0.0) * _CLOSEST
    return all(b - a > closest_mm for places_mm in volumes.values() for a, b in pairwise(sorted(places_mm)))


def _joins(rule: Rule, images: dict[Seen, Key], is_all: bool) -> bool:
    """Whether a rule puts together more than half of what a volume has, or something, if there is no more."""
    n_keys = len(set(images.values()))
    largest = max(Counter(rule(seen) for seen in images).values())
    return largest >= min(2, n_keys) if is_all else 2 * largest > n_keys


def _goes_on(numbers: list[int]) -> bool:
    """Whether volumes come one after the other, or hardly mixed, so that it shows where the next begins."""
    return all(
        most - number <= _MIXED for most, number in zip(accumulate(numbers, max), numbers, strict=True)
    )


def _has_whole(numbers: list[int], n_keys: int) -> bool:
    """Whether a whole volume has come, which shows how many images that is.

    Either two volumes have everything that there is, or they came one after the other; and a third began.
    """
    sizes = Counter(numbers)
    if len(sizes) < 3:
        return False
    if [size for _, size in sizes.most_common(2)] == [n_keys, n_keys]:
        return True
    came = [number for number, _ in groupby(numbers)]
    return len(came) == len(sizes) and len({sizes[number] for number in came[:-1]}) == 1


def _by_moment(seen: Seen) -> int:
    return _UNKNOWN if seen.moment is None else seen.moment


def _by_acquisition(seen: Seen) -> int:
    return _UNKNOWN if seen.acquisition is None else seen.acquisition


def _by_number(images: dict[Seen, Key], n_slices: int | None, n_echoes: int) -> Iterator[tuple[Rule, int]]:
    """Yield the ways in which InstanceNumber may count, each with the number of images of a volume.

    That number is 0 if it does not follow.
    """
    of_key: dict[Key, list[int]] = defaultdict(list)
    for seen, key in images.items():
        of_key[key].append(seen.number)
    lowest = min(map(min, of_key.values()))
    zero = min(1, lowest)
    grew = math.gcd(*(number - numbers[0] for numbers in of_key.values() for number in numbers))
    for n in dict.fromkeys(_images_of_a_volume(images, n_slices, n_echoes, grew)):
        yield _through_volume(zero, n), n
    for n in dict.fromkeys(_steps_through_time(of_key, zero)):
        for start in dict.fromkeys((zero, lowest)):
            places = [{(number - start) // n for number in numbers} for numbers in of_key.values()]
            if all(len(each) == 1 for each in places) and len(set.union(*places)) == len(places) // n_echoes:
                yield _through_time(start, n), 0


def _through_volume(zero: int, n_images: int) -> Rule:
    return lambda seen: (seen.number - zero) // n_images + 1


def _through_time(zero: int, n_volumes: int) -> Rule:
    return lambda seen: (seen.number - zero) % n_volumes + 1


def _images_of_a_volume(
    images: dict[Seen, Key], n_slices: int | None, n_echoes: int, grew: int
) -> Iterator[int]:
    """Yield how many numbers a volume may take, if the next volume has the next numbers."""
    if n_slices:
        yield n_slices * n_echoes
    first: dict[Key, int] = {}
    for seen, key in images.items():
        if key in first:
            break
        first[key] = seen.number
    # They are all of the first volume if no number is left out; whole volumes may be, so that more grew.
    numbers = set(first.values())
    is_dense = len(numbers) == len(first) == max(numbers) - min(numbers) + 1
    if is_dense and (not grew % len(first) or seen.number == max(numbers) + 1):
        yield len(first)
    if grew >= max(Counter(echo for echo, _ in set(images.values())).values()):
        yield grew


def _steps_through_time(of_key: dict[Key, list[int]], zero: int) -> Iterator[int]:
    """Yield how far apart the numbers of neighbouring places may be, if they run through time first."""
    lowest = sorted(map(min, of_key.values()))
    widest = max(max(numbers) - min(numbers) for numbers in of_key.values())
    apart = Counter(b - a for a, b in pairwise(lowest)).most_common(1)
    guesses = [n for n, _ in apart]
    if len(lowest) > 1:
        guesses.append(min((number - zero) // nth for nth, number in enumerate(lowest[1:], start=1)))
    return (n for n in guesses if n > widest)
