"""Which series belong to one acquisition, and which acquisition came after another. Pure.

A scanner acquires one thing at a time, so what was acquired at the same time is of one acquisition.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, replace

from realtime.sources.files.counting import Echo, Image, Seen, echo_of

_TOGETHER_TR = 0.5
"""What is nearer in time than this was acquired together."""
_CAME_TOGETHER_TR = 2.0
"""As before, if only the time is known when the files came."""
_N_REMEMBERED = 1_024
_ECHO_IN_NAME = re.compile(r"[_ -]*(?:e|te|echo)[_ -]?\d+(?:\.\d+)?(?:ms)?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An image without its voxels."""

    series: str
    name: str
    """Of the series, without the echo."""
    echo: Echo
    number: int
    grid: tuple[tuple[int, ...], tuple[float, ...]]
    """Number of voxels, and their sizes and directions."""
    time_s: float | None
    came_s: float

    @classmethod
    def of(cls, image: Image, came_s: float) -> Taken:
        """Return what counts of an image."""
        directions = (round(float(image.affine[row][column]), 3) for row in range(3) for column in range(3))
        return cls(
            series=image.series,
            name=_ECHO_IN_NAME.sub("", image.series_name),
            echo=echo_of(image),
            number=image.number,
            grid=(image.voxels.shape, tuple(directions)),
            time_s=image.acquired.time_s,
            came_s=came_s,
        )

    def is_echo_of(self, other: Taken, tr_s: float) -> bool:
        """Whether both are echoes of one volume."""
        is_known = all(each.echo.time_ms or each.echo.number for each in (self, other))
        if self.echo == other.echo or self.echo.part != other.echo.part or not is_known:
            return False
        if self.time_s is not None and other.time_s is not None:
            return self.grid == other.grid and abs(self.time_s - other.time_s) < _TOGETHER_TR * tr_s
        is_alike = (self.grid, self.name, self.number) == (other.grid, other.name, other.number)
        return is_alike and abs(self.came_s - other.came_s) < _CAME_TOGETHER_TR * tr_s


class EchoSeries:
    """Finds echoes of one acquisition that are stored as series of their own.

    :param preferred: the series after which the acquisition is called, if it has it
    """

    def __init__(self, tr_s: float, preferred: str | None) -> None:
        self._tr_s = tr_s
        self._preferred = preferred
        self._acquisition_of: dict[str, str] = {}
        self._taken: deque[Taken] = deque(maxlen=_N_REMEMBERED)

    def joined(self, image: Image, came_s: float) -> Image:
        """Return an image with the series of the first echo that came in place of its own."""
        if image.acquired.is_derived or image.acquired.part != "magnitude":
            return image
        taken = Taken.of(image, came_s)
        if image.series not in self._acquisition_of:
            echo = next((each for each in self._taken if taken.is_echo_of(each, self._tr_s)), None)
            known = self._acquisition_of[echo.series] if echo else image.series
            if known != image.series and image.series == self._preferred:
                self._acquisition_of = {
                    series: image.series if of == known else of for series, of in self._acquisition_of.items()
                }
                known = image.series
            self._acquisition_of[image.series] = known
        self._taken.append(taken)
        return replace(image, series=self._acquisition_of[image.series])


class Volumes:
    """What tells whether a series has one volume, and when it was acquired."""

    def __init__(self) -> None:
        self._first: Taken | None = None
        self._is_derived = False
        self._counters: dict[tuple[Echo, float | None], tuple[int | None, ...]] = {}
        """By echo and place."""
        self.has_several = False

    def add(self, image: Image, came_s: float) -> None:
        """Look at the next image of the series."""
        if self._first is None:
            self._first, self._is_derived = Taken.of(image, came_s), image.acquired.is_derived
        if not self.has_several:
            seen = Seen.of(image)
            before = self._counters.setdefault((seen.echo, seen.place_mm), seen.counters)
            self.has_several = before != seen.counters

    def follow(self, one: Volumes, tr_s: float) -> bool:
        """Whether this series shows that another of one volume, such as a reference, is over.

        If the times of acquisition are not known, a second volume shows it, because those of series that are
        made together come in turn.
        """
        if self._is_derived or one.has_several or not (one._first and self._first):
            return False
        if one._first.time_s is not None and self._first.time_s is not None:
            return self._first.time_s - one._first.time_s >= _TOGETHER_TR * tr_s
        return one._first.grid == self._first.grid and self.has_several
