"""Finds the volume's number in the names of files that hold a volume each, such as NIfTI. Pure.

A name may hold several numbers: of the volume, of subject, session and run, of an echo, of the protocol
(``3T``), times. The volume's is the one that runs on from file to file. A single name seldom tells which that
is, so the first files wait until those after them do. Names that differ in times only are counted in order of
arrival.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from realtime.errors import WireError
from realtime.sources.files.name_parts import MOST_ECHOES, SUFFIX, Kind, Parts
from realtime.sources.files.volume_file import Acquired

_LONGEST_SERIES = 32
_SURELY_VOLUMES = 5
"""A short number at the end beyond this counts volumes, not echoes, unless it is labelled."""
_LONGEST_RIVAL = 3
_FIRST = 1
"""The highest number of a first volume. Where it stands still, the number before it may count series."""
_ENOUGH, _SURELY_ENOUGH = 3, 1 + _SURELY_VOLUMES
"""So many values of a number show that it counts volumes although another stands behind it; the second is for
one that may be the first volume's."""
_PAUSE_S = 20.0
"""Between two runs whose names hold times only. No two volumes of a run are so far apart."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """What the name of a volume's file says."""

    number: int
    series: str
    """Letters and digits."""
    series_name: str
    acquired: Acquired


@dataclass(frozen=True)
class _Rule:
    """What names of one shape mean."""

    volume: int | None
    """Which of their numbers is the volume's; None: they are counted in order of arrival."""
    echo: int | None = None
    """Which of their numbers is the echo, if one is that has no label."""
    beside: frozenset[int] = frozenset()
    """Numbers that change with the volume's, and say nothing of the series."""


@dataclass(kw_only=True)
class _Run:
    """Files whose names differ in the volume's number, and in those that change with it."""

    beside: tuple[str, ...]
    """The latter of the first file, which stand for all."""
    images: set[tuple[int, Acquired]] = field(default_factory=set)
    """Numbers that came, each with its echo."""
    n_arrived: Counter[Acquired] = field(default_factory=Counter)
    written_s: float = 0.0


class _Runs:
    """Runs of one series, of which names hold numbers that change with the volume's, such as times."""

    def __init__(self) -> None:
        self._by_beside: dict[tuple[str, ...], _Run] = {}

    def of(self, beside: tuple[str, ...], image: tuple[int, Acquired]) -> _Run:
        """Return a file's run. An image that came already begins another."""
        newest = next(reversed(self._by_beside.values()), None)
        run = self._by_beside.get(beside)
        if run is None:
            run = newest if newest and image not in newest.images else _Run(beside=beside)
            self._by_beside[beside] = run
        run.images.add(image)
        return run

    def in_order(self, beside: tuple[str, ...], acquired: Acquired, written_s: float) -> tuple[int, _Run]:
        """Return the number of a file that is counted by its arrival, and its run."""
        run = next(reversed(self._by_beside.values()), None)
        if run is None or written_s - run.written_s > _PAUSE_S:
            run = self._by_beside[beside] = _Run(beside=beside)
        run.n_arrived[acquired] += 1
        run.written_s = max(run.written_s, written_s)
        return run.n_arrived[acquired], run


class _Shape:
    """Names that differ in their numbers only."""

    def __init__(self) -> None:
        self._waiting: dict[Parts, float] = {}
        """Names whose rule is not known yet, in order of arrival, and when they were written, in s."""
        self._rule: _Rule | None = None
        self._is_told = False
        self._runs: dict[tuple[str, ...], _Runs] = {}
        self.placed: dict[Parts, Numbered] = {}

    def tell_if_counted(self, name: str) -> None:
        """Tell once if volumes are counted because no name has their number."""
        if self._rule and self._rule.volume is None and not self._is_told:
            self._is_told = True
            _log.warning(
                "the names of %r and files like it hold times, and no number of the volume: volumes are "
                "counted in order of arrival, so one that never comes is not noticed",
                name,
            )

    def see(self, parts: Parts, written_s: float, *, is_last_chance: bool = False) -> None:
        """Learn from a name, and place those that can be placed now."""
        if parts in self.placed:
            return
        self._waiting.setdefault(parts, written_s)
        if self._rule is None:
            of_echo = [each for each in self._waiting if each.acquired == parts.acquired]
            self._rule = _rule(of_echo, is_last_chance=is_last_chance)
        if self._rule:
            for each, seen_s in self._waiting.items():
                self.placed[each] = self._place(each, self._rule, seen_s)
            self._waiting.clear()

    def _place(self, parts: Parts, rule: _Rule, written_s: float) -> Numbered:
        beside = sorted(rule.beside)
        changing = tuple(parts.digits[nth] for nth in beside)
        acquired, dropped = parts.acquired, {nth: "" for nth in (rule.volume, rule.echo) if nth is not None}
        if rule.echo is not None:
            if int(parts.digits[rule.echo]) <= MOST_ECHOES:
                acquired = replace(acquired, echo=int(parts.digits[rule.echo]))
            else:
                del dropped[rule.echo]
        kept = {**dict.fromkeys(beside, ""), **dropped}
        runs = self._runs.setdefault((parts.name(kept),), _Runs())
        if rule.volume is None:
            number, run = runs.in_order(changing, acquired, written_s)
        else:
            number = int(parts.digits[rule.volume])
            run = runs.of(changing, (number, acquired)) if changing else _Run(beside=())
        name = parts.name({**dict(zip(beside, run.beside, strict=True)), **dropped})
        acquired = replace(acquired, moment=number)
        return Numbered(number=number, series=_identifier(name), series_name=name, acquired=acquired)


class FileNames:
    """Learns from the names of a folder in order of writing."""

    def __init__(self) -> None:
        self._shapes: dict[str, _Shape] = {}

    def see(self, name: str, written_s: float) -> bool:
        """Learn from the name of a file that may hold a volume, and return whether it can be placed.

        :param name: path within the watched folder, with slashes
        :param written_s: when the file was written
        """
        parts = Parts.of(name)
        shape = self._shapes.setdefault(parts.shape, _Shape())
        if parts.digits:
            shape.see(parts, written_s)
        return parts in shape.placed

    def place(self, name: str, *, is_last_chance: bool = False) -> Numbered | None:
        """Return what a name says; None if further names are needed to say it.

        :param name: path within the watched folder, with slashes
        :param is_last_chance: whether no further names are waited for
        :raises WireError: code ``file``, when the name has no number
        """
        parts = Parts.of(name)
        if not parts.digits:
            raise WireError(
                "file", f"expected a name with a volume number, such as run1_0001.nii, got {name}"
            )
        shape = self._shapes.setdefault(parts.shape, _Shape())
        shape.see(parts, 0.0, is_last_chance=is_last_chance)
        shape.tell_if_counted(name)
        return shape.placed.get(parts)


def of_all_volumes(name: str) -> tuple[str, str]:
    """Return identifier and name of the series that a file with all volumes of a run is."""
    series_name = SUFFIX.sub("", name)
    return _identifier(series_name), series_name


def _rule(names: Sequence[Parts], *, is_last_chance: bool) -> _Rule | None:
    """Return what names mean, if they tell."""
    plain, labels, stamps, unsure = (_of_kind(names, kind) for kind in Kind)
    enough = is_last_chance or len(names) >= _ENOUGH
    found: _Rule | None = None
    if changing := _changing(names, plain):
        found = _rule_of_changing(names, plain, changing, is_last_chance=is_last_chance)
    elif changing := _changing(names, labels):
        found = _Rule(changing[-1]) if enough else None
    elif unsure and not enough:
        return None
    elif changing := [nth for nth in _changing(names, unsure) if _counts(names, nth)]:
        found = _Rule(changing[-1])
    elif not (plain or labels) or (_changing(names, stamps + unsure) and enough):
        found = _Rule(None)
    elif is_last_chance or _is_certain(names[0], plain, labels, stamps):
        found = _Rule((plain or labels)[-1])
    return found and replace(found, beside=(found.beside | {*stamps, *unsure}) - {found.volume})


def _is_certain(name: Parts, plain: list[int], labels: list[int], stamps: list[int]) -> bool:
    """Whether a single name tells which number is the volume's."""
    if stamps or len(plain) > 1:
        return False
    return not (plain and labels) or _is_padded(name.digits[plain[0]])


def _rule_of_changing(
    names: Sequence[Parts], plain: list[int], changing: list[int], *, is_last_chance: bool
) -> _Rule | None:
    """Return what names mean in which these plain numbers change, if they tell."""
    values = {nth: [int(name.digits[nth]) for name in names] for nth in plain}
    is_together = all(len(set(values[nth])) == len(names) for nth in changing)
    last = plain[-1]
    if (rival := _rival(names[-1], plain)) is not None and not (is_together and len(changing) > 1):
        if rival in changing:
            return _Rule(rival, echo=last)
        return _Rule(last) if is_last_chance or max(values[last]) > _SURELY_VOLUMES else None
    if len(changing) == 1:
        (only,) = changing
        behind = [values[nth][0] for nth in plain if nth > only]
        n_needed = 0 if not behind else _ENOUGH if min(behind) > _FIRST else _SURELY_ENOUGH
        return _Rule(only) if len(set(values[only])) >= n_needed or is_last_chance else None
    spans = {nth: max(values[nth]) - min(values[nth]) for nth in changing}
    if not is_together:  # images of a volume come before those of the next, so its number never goes back
        return _Rule(min(changing, key=lambda nth: (_n_back(values[nth]), spans[nth], -nth)))
    # A counter changes by one for each file, although files may come in another order; times change by more.
    if len(names) < _ENOUGH and spans[changing[-1]] > 1 and not is_last_chance:
        return None
    dense = [nth for nth in changing if spans[nth] <= len(names)]
    volume = dense[-1] if dense else min(changing, key=lambda nth: (spans[nth], -nth))
    return _Rule(volume, beside=frozenset(changing) - {volume})


def _rival(name: Parts, plain: list[int]) -> int | None:
    """Return which number is padded with zeros, if a short one at the end may be the volume's or an echo."""
    last = name.digits[plain[-1]]
    is_at_end = plain[-1] == len(name.digits) - 1 and name.shape.endswith("#")
    if not is_at_end or len(last) > _LONGEST_RIVAL or _is_padded(last):
        return None
    padded = [nth for nth in plain[:-1] if _is_padded(name.digits[nth])]
    return padded[-1] if padded and len(name.digits[padded[-1]]) > len(last) else None


def _is_padded(digits: str) -> bool:
    return len(digits) >= 3 and digits[0] == "0"


def _of_kind(names: Sequence[Parts], kind: Kind) -> list[int]:
    """Return which numbers are of a kind. A plain number may look like a time now and then."""
    kinds = [set(each) for each in zip(*(name.kinds for name in names), strict=True)]
    is_of: Callable[[set[Kind]], bool] = (
        (lambda found: kind in found) if kind is Kind.PLAIN else (lambda found: found == {kind})
    )
    return [nth for nth, found in enumerate(kinds) if is_of(found)]


def _changing(names: Sequence[Parts], numbers: list[int]) -> list[int]:
    return [nth for nth in numbers if len({name.digits[nth] for name in names}) > 1]


def _counts(names: Sequence[Parts], nth: int) -> bool:
    """Whether a number that may be a time, or part of one, counts files."""
    digits = [name.digits[nth] for name in names]
    values = list(map(int, digits))
    return len(set(map(len, digits))) > 1 or max(values) - min(values) <= len(names)


def _n_back(values: list[int]) -> int:
    return sum(after < before for before, after in pairwise(values))


def _identifier(series_name: str) -> str:
    """Return letters and digits that identify a series; a long name is cut, and its checksum is added."""
    plain = re.sub("[^A-Za-z0-9]", "", series_name)
    if len(plain) > _LONGEST_SERIES:
        plain = f"{plain[: _LONGEST_SERIES - 8]}{zlib.crc32(series_name.encode(errors='replace')):08x}"
    return plain or "nifti"
