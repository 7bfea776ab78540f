"""Tells the places of slices apart, although the scanner may move them between volumes. Pure."""

from __future__ import annotations

_NEAR = 0.49
"""A slice is at a place if it is nearer than this part of the distance of slices."""


class Places:
    """The places of one echo's slices, where they were seen last.

    A head may drift by more than the distance of slices during a run, but not between two volumes.
    """

    def __init__(self) -> None:
        self._last_mm: list[float] = []
        self._moments: list[set[int]] = []
        """Volumes seen at each place, if the scanner counts them."""

    def of(self, place_mm: float, distance_mm: float, moment: int | None) -> int:
        """Return the number of a slice's place, from 0.

        :param distance_mm: of slices, as the header says
        :param moment: number of the slice's volume, if the scanner says it; no volume is at a place twice
        """
        near_mm = _NEAR * distance_mm
        apart_mm = (abs(last_mm - place_mm) for last_mm in self._last_mm)
        near = [
            (mm, number)
            for number, mm in enumerate(apart_mm)
            if mm == 0 or (mm <= near_mm and (moment is None or moment not in self._moments[number]))
        ]
        if near:
            _, number = min(near)
            self._last_mm[number] = place_mm
        else:
            number = len(self._last_mm)
            self._last_mm.append(place_mm)
            self._moments.append(set())
        if moment is not None:
            self._moments[number].add(moment)
        return number
