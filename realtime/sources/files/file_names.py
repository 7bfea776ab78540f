"""Finds the volume's number in the names of files that hold a volume each, such as NIfTI. Pure.

The number is the last one in the name that is no label (``sub-01``, ``run-2``), no echo (``_e2``, ``_te35``),
no time stamp and no mark of a copy (``(1)``). One case cannot be told from a single name: in ``vol_0001_2``,
the volume may be 1 or 2. Such a file waits until other names show which of the two numbers runs on.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field, replace

from realtime.errors import WireError
from realtime.sources.files.volume_file import Acquired

SUFFIX = re.compile(r"\.(nii|img|hdr|rec|par)(\.gz)?$", re.IGNORECASE)
_COPY = re.compile(r"\s*\(\d{1,3}\)$|\s+-\s+copy(\s\(\d+\))?$", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")
_LABELLED = re.compile(
    r"(?<![A-Za-z])(?:(?:rec|acq|dir|chunk|split|inv|flip|task|part|scan)-|(?:sub|subj|ses|sess|run|coil)[-_]?)"
    r"(?P<digits>\d+)(?=$|[^0-9A-Za-z])",
    re.IGNORECASE,
)
_ECHO = re.compile(
    r"(?:^|[-_ .]|(?<=\d))(?P<label>echo|ec|te|e)[-_]?(?P<value>\d+(?:[.]\d+)?)(?:ms)?(?=$|[-_ .])",
    re.IGNORECASE,
)
_PART = re.compile(
    r"(?:[-_.]part-|[-_.](?=[a-z]+$))(?:(?P<phase>ph|pha|phase)|(?P<real>real)|(?P<imaginary>imag|imaginary))"
    r"(?=$|[-_.])",
    re.IGNORECASE,
)
_STAMP = re.compile(
    r"(?<![0-9])(?:"
    r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_T. ]?(?:[01]\d|2[0-3])[0-5]\d[0-5]\d(?:[.,_-]?\d{1,6})?)?Z?"
    r"|(?:19|20)\d\d-\d\d-\d\d(?:[-_T ]\d\d[-:.h]?\d\d[-:.m]?\d\d(?:[.,]\d+)?)?Z?"
    r"|(?!00)(?:[01]\d|2[0-3])[0-5]\d[0-5]\d(?:[.,]\d+)?"
    r"|\d{10,}(?:[.,]\d+)?"
    r"|(?<=[-_])\d+[.]\d{1,3}$"
    r")(?![0-9])"
)
_LONGEST_SERIES = 32
_MOST_ECHOES = 9
_SURELY_VOLUMES = 5
"""A short number beyond this counts volumes, not echoes, unless it is labelled."""
_LONGEST_NUMBER, _LONGEST_RIVAL = 9, 3


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """What the name of a volume's file says."""

    number: int
    series: str
    """Letters and digits."""
    series_name: str
    acquired: Acquired


@dataclass(kw_only=True)
class _Run:
    """Files whose names differ in the number and in time stamps."""

    stamps: tuple[str, ...]
    """Those of the first file, which stand for all."""
    images: set[tuple[int, Acquired]] = field(default_factory=set)
    """Numbers that came, each with its echo."""


class _Runs:
    """Runs of files whose names differ in the number and in time stamps."""

    def __init__(self) -> None:
        self._by_stamps: dict[tuple[str, ...], _Run] = {}

    def stamps(self, stamps: tuple[str, ...], image: tuple[int, Acquired]) -> tuple[str, ...]:
        """Return the time stamps that stand for a file's run. An image that came already begins a run."""
        newest = next(reversed(self._by_stamps.values()), None)
        run = self._by_stamps.get(stamps)
        if run is None:
            run = newest if newest and image not in newest.images else _Run(stamps=stamps)
            self._by_stamps[stamps] = run
        run.images.add(image)
        return run.stamps


@dataclass(kw_only=True)
class _Rivals:
    """Names with two numbers that may be the volume's."""

    padded: set[int] = field(default_factory=set)
    """Values of the number that is padded with zeros."""
    last: set[int] = field(default_factory=set)
    """Values of the last number."""
    is_last_volumes: bool | None = None
    """Whether the last number is the volume's; None while it is not known."""

    def learn(self, padded: int, last: int, *, is_last_chance: bool) -> bool | None:
        """Return whether the last number is the volume's."""
        self.padded.add(padded)
        self.last.add(last)
        if self.is_last_volumes is None:
            if len(self.padded) > 1:
                self.is_last_volumes = False
            elif is_last_chance or (len(self.last) > 1 and max(self.last) > _SURELY_VOLUMES):
                self.is_last_volumes = True
        return self.is_last_volumes


class FileNames:
    """Learns from the names of a folder in order of writing."""

    def __init__(self) -> None:
        self._rivals: dict[str, _Rivals] = {}
        self._runs: dict[str, _Runs] = {}
        self._known: dict[str, Numbered] = {}

    def place(self, name: str, *, is_last_chance: bool = False) -> Numbered | None:
        """Return what a name says; None if further names are needed to say it.

        :param name: path within the watched folder, with slashes
        :param is_last_chance: whether no further names are waited for
        :raises WireError: code ``file``, when the name has no number
        """
        if name in self._known:
            return self._known[name]
        folder, _, stem = name.rpartition("/")
        stem, acquired = _acquired(_COPY.sub("", SUFFIX.sub("", stem)))
        spans, stamps = _numbers(stem)
        if not spans:
            raise WireError(
                "file", f"expected a name with a volume number, such as run1_0001.nii, got {name}"
            )
        start, end = spans[-1]
        if rival := _rival(stem, spans):
            rivals = self._rivals.setdefault(f"{folder}/{_DIGITS.sub('#', stem)}", _Rivals())
            padded, last = int(stem[slice(*rival)]), int(stem[start:end])
            is_last = rivals.learn(padded, last, is_last_chance=is_last_chance)
            if is_last is None:
                return None
            if not is_last:
                if last <= _MOST_ECHOES:
                    stem, acquired = stem[:start], replace(acquired, echo=last)
                start, end = rival
        number = int(stem[start:end])
        acquired = replace(acquired, moment=number)
        without_stamps = _replaced(stem, {(start, end): "", **dict.fromkeys(stamps, "")})
        runs = self._runs.setdefault(f"{folder}/{without_stamps}", _Runs())
        of_run = (
            runs.stamps(tuple(stem[slice(*span)] for span in stamps), (number, acquired)) if stamps else ()
        )
        series_name = _replaced(stem, {(start, end): "", **dict(zip(stamps, of_run, strict=True))})
        if folder:
            series_name = f"{folder}/{series_name}"
        found = Numbered(
            number=number, series=_identifier(series_name), series_name=series_name, acquired=acquired
        )
        self._known[name] = found
        return found


def of_all_volumes(name: str) -> tuple[str, str]:
    """Return identifier and name of the series that a file with all volumes of a run is."""
    series_name = SUFFIX.sub("", name)
    return _identifier(series_name), series_name


def _acquired(stem: str) -> tuple[str, Acquired]:
    """Return a name without its echo, and what it says of echo and part."""
    part = _PART.search(stem)
    said = Acquired(
        part=next((name for name, text in part.groupdict().items() if text), "magnitude")
        if part
        else "magnitude"
    )
    for match in _ECHO.finditer(stem):
        value = float(match["value"])
        without = stem[: match.start()] + stem[match.end() :]
        if not _DIGITS.search(without):
            continue
        if value <= _MOST_ECHOES and value.is_integer():
            return without, replace(said, echo=int(value))
        if match["label"].lower() == "te":
            return without, replace(said, echo_time_ms=value)
    return stem, said


def _numbers(stem: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return where numbers are that may be the volume's, and where time stamps are."""
    numbers = [match.span() for match in _DIGITS.finditer(stem)]
    short = [span for span in numbers if span[1] - span[0] <= _LONGEST_NUMBER]
    labels = [match.span("digits") for match in _LABELLED.finditer(stem)]
    stamps = [match.span() for match in _STAMP.finditer(stem)]
    free = [span for span in short if not _is_in(span, labels)]
    plain = [span for span in free if not _is_in(span, stamps)]
    if plain:
        return plain, stamps
    return free or short, []


def _replaced(text: str, parts: dict[tuple[int, int], str]) -> str:
    for (start, end), part in sorted(parts.items(), reverse=True):
        text = text[:start] + part + text[end:]
    return text


def _is_in(span: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(start <= span[0] and span[1] <= end for start, end in others)


def _rival(stem: str, spans: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Return where a number padded with zeros is, if the last number comes after it and is not padded."""
    start, end = spans[-1]
    if end - start > _LONGEST_RIVAL or end != len(stem) or (stem[start] == "0" and end - start > 1):
        return None
    padded = [span for span in spans[:-1] if span[1] - span[0] >= 3 and stem[span[0]] == "0"]
    return padded[-1] if padded and padded[-1][1] - padded[-1][0] > end - start else None


def _identifier(series_name: str) -> str:
    """Return letters and digits that identify a series; a long name is cut, and its checksum is added."""
    plain = re.sub("[^A-Za-z0-9]", "", series_name)
    if len(plain) > _LONGEST_SERIES:
        plain = f"{plain[: _LONGEST_SERIES - 8]}{zlib.crc32(series_name.encode(errors='replace')):08x}"
    return plain or "nifti"
