"""Collects the parts of volumes, slices or echoes, until a volume has all of them. Pure."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

MAX_PASSED = 8
"""A volume is told to be missing once more than so many are whole that began after its last part came."""
MAX_BYTES = 2**30
"""Of all parts that wait; beyond it the volume that has waited longest is given up."""
_MAX_LINES = 8
_N_RECENT = 64

_log = logging.getLogger(__name__)
Key = TypeVar("Key", bound=Hashable)
Part = TypeVar("Part", bound="_HasVoxels")


class _HasVoxels(Protocol):
    @property
    def voxels(self) -> NDArray[Any]: ...


@dataclass
class _Volume(Generic[Key, Part]):
    began: int
    """How many parts, of any volume, had come when it began."""
    heard: int = 0
    """How many had come when its last part did."""
    parts: dict[Key, Part] = field(default_factory=dict)
    n_passed: int = 0
    """Number of volumes that began later and are whole."""
    is_told: bool = False

    @property
    def n_bytes(self) -> int:
        return sum(part.voxels.nbytes for part in self.parts.values())


class Begun(Generic[Key, Part]):
    """Volumes of which parts are missing.

    A series may be copied in any order, for example the first slice of every volume before the second, so
    how many volumes have begun does not say that parts of one are lost.

    :param called: what the parts are called, in the plural
    """

    def __init__(self, called: str) -> None:
        self._called = called
        self._begun: dict[int, _Volume[Key, Part]] = {}
        self._over: set[int] = set()
        """Volumes that are whole or given up."""
        self._had: OrderedDict[int, frozenset[Key]] = OrderedDict()
        """Parts of those that are over since recently."""
        self._n_came = 0
        self._n_bytes = 0
        self._n_parts = 0
        """Of a volume."""
        self._has_told = False

    def add(self, volume: int, key: Key, part: Part, n_parts: int) -> dict[Key, Part] | None:
        """Add a part and return all parts of the volume if it is whole now."""
        self._n_parts = n_parts
        if volume in self._over:
            self._tell_late(volume, key)
            return None
        self._n_came += 1
        found = self._begun.setdefault(volume, _Volume(began=self._n_came))
        found.heard = self._n_came
        if key not in found.parts:
            found.parts[key] = part
            self._n_bytes += part.voxels.nbytes
        if len(found.parts) == n_parts:
            self._end(volume)
            self._pass(found)
            return found.parts
        while self._n_bytes > MAX_BYTES and len(self._begun) > 1:
            self._give_up(min(self._begun, key=lambda each: self._begun[each].heard))
        return None

    def __contains__(self, volume: int) -> bool:
        return volume in self._begun

    def tell_missing(self) -> None:
        """Tell of each volume that lacks parts; they may still come, and are then taken."""
        untold = [number for number in sorted(self._begun) if not self._begun[number].is_told]
        for number in untold[:_MAX_LINES]:
            self._tell_missing(number)
        if more := untold[_MAX_LINES:]:
            _log.warning("%d more volumes of up to number %d are missing likewise", len(more), more[-1])
        for number in untold:
            self._begun[number].is_told = True

    def _pass(self, whole: _Volume[Key, Part]) -> None:
        """Tell of volumes that too many have passed.

        They are kept: where files come in order of their names, the rest of volume 17 comes after volume 99.
        """
        for number, other in self._begun.items():
            other.n_passed += other.heard < whole.began
            if other.n_passed > MAX_PASSED and not other.is_told:
                self._tell_missing(number)
                other.is_told = True

    def _give_up(self, number: int) -> None:
        if not self._begun[number].is_told:
            self._tell_missing(number)
        self._end(number)

    def _end(self, number: int) -> None:
        over = self._begun.pop(number)
        self._n_bytes -= over.n_bytes
        self._over.add(number)
        self._had[number] = frozenset(over.parts)
        if len(self._had) > _N_RECENT:
            self._had.popitem(last=False)

    def _tell_missing(self, number: int) -> None:
        n_came = len(self._begun[number].parts)
        _log.warning(
            "volume %d is missing: %d of its %d %s came", number, n_came, self._n_parts, self._called
        )

    def _tell_late(self, number: int, key: Key) -> None:
        """Tell once of a part that is no copy of one that the volume had."""
        had = self._had.get(number)
        if had is not None and key not in had and not self._has_told:
            self._has_told = True
            _log.warning(
                "one of the %s of volume %d came after the volume, of %d, was over",
                self._called,
                number,
                len(had),
            )
