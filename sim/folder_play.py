"""Plays a folder that a scanner has exported, into a watched folder or a DICOM node: a volume a TR.

Files are passed on as they are, so that the runtime meets the vendor's own dialect. Only headers are read
here, to learn which files come together:

- DICOM: the k-th image at a place (position, echo, magnitude or phase) of a series belongs to volume k. So a
  file may hold a volume, such as a mosaic or an enhanced image, or a slice. Series follow by their numbers.
- NIfTI, Analyze and PAR/REC, one volume a file: names decide the order, and those that differ in suffix or
  echo only belong together.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import pydicom
from pydicom.errors import InvalidDicomError
from tqdm import tqdm

from sim.errors import SimError

_DICOM_NAMES = (".dcm", ".ima")
"""Such files are read as DICOM even where they lack its preamble."""
_VOLUME_NAME = re.compile(
    r"(?P<stem>.+?)(?P<echo>_e(cho-)?\d+)?(?P<ending>\.(nii|hdr|img|par|rec)(\.gz)?)", re.I
)
_TAGS: list[Any] = [
    "StudyInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageType",
    "EchoTime",
    "EchoNumbers",
    "ComplexImageComponent",
    "RepetitionTime",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
]
_LONGEST_TR_S = 60
_LONGEST_WAIT_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Series:
    """Files that one acquisition made.

    ``volumes``: files that appear together, relative to the folder, in order; ``tr_s``: time for each.
    """

    name: str
    volumes: tuple[tuple[Path, ...], ...]
    tr_s: float


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    series: tuple[str, int, str]
    """Study, number and name."""
    order: tuple[Any, ...]
    place: str
    """What distinguishes the files of one volume."""
    acquisition: int
    tr_s: float


def read_series(
    folder: Path, *, tr_s: float | None = None, only: str = ""
) -> tuple[list[Series], list[Path]]:
    """Read which files a folder holds, in its subfolders too, and in which order a scanner wrote them.

    :param tr_s: the TR, where headers do not say it or are wrong
    :param only: take only series whose name contains this text
    :returns: the series, and the files that are no images
    :raises SimError: when there is none, or no TR
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    read = {path: _read(folder, path) for path in tqdm(paths, desc="headers", unit="file", disable=None)}
    files = [file for file in read.values() if file is not None]
    chosen = [file for file in files if only.casefold() in file.series[-1].casefold()]
    if not chosen:
        names = ", ".join(sorted({file.series[-1] for file in files}))
        wanted = f"a series with {only!r} in its name" if only else "DICOM, NIfTI or PAR/REC files"
        raise SimError(f"{folder}: expected {wanted}, found {names or 'none'}")
    chosen.sort(key=lambda file: (file.series, file.order))
    by_series = [list(group) for _, group in groupby(chosen, key=lambda file: file.series)]
    others = [path for path, file in read.items() if file is None]
    return [_series(folder, group, tr_s) for group in by_series], others


def _series(folder: Path, files: list[_File], tr_s: float | None) -> Series:
    name = files[0].series[-1]
    found_s = tr_s or next((file.tr_s for file in files if file.tr_s), 0.0)
    if not 0 < found_s <= _LONGEST_TR_S:
        raise SimError(f"{folder}: expected the TR in the headers of {name}; give --tr SECONDS")
    seen: Counter[str] = Counter()
    nth = []
    for file in files:
        nth.append(seen[file.place])
        seen[file.place] += 1
    acquisitions = {file.acquisition for file in files}
    if max(seen.values()) == 1 and 1 < len(acquisitions) < len(files):
        nth = [file.acquisition for file in files]  # the slices moved with the head: no place comes twice
    volumes: dict[int, list[Path]] = {}
    for number, file in zip(nth, files, strict=True):
        volumes.setdefault(number, []).append(file.path)
    return Series(name=name, volumes=tuple(tuple(volumes[k]) for k in sorted(volumes)), tr_s=found_s)


def _read(folder: Path, path: Path) -> _File | None:
    relative = path.relative_to(folder)
    header = _dicom_header(path)
    if header is not None:
        return _dicom(relative, header)
    named = _VOLUME_NAME.fullmatch(path.name)
    if named is None:
        return None
    stem = str(relative.parent / named["stem"])
    return _File(
        path=relative,
        series=("", 0, re.sub(r"\d+", "#", stem)),
        order=(_natural(stem), path.name),
        place=f"{named['echo']} {named['ending']}",
        acquisition=0,
        tr_s=0.0,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts ``vol_9`` before ``vol_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _dicom_header(path: Path) -> pydicom.Dataset | None:
    is_named = path.suffix.lower() in _DICOM_NAMES
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=is_named)
    except (InvalidDicomError, OSError, EOFError, ValueError, NotImplementedError):
        return None


def _dicom(relative: Path, header: pydicom.Dataset) -> _File:
    number, acquisition = _integer(header, "SeriesNumber"), _integer(header, "AcquisitionNumber")
    kinds = [str(kind) for kind in header.get("ImageType") or []]
    holds_a_volume = "MOSAIC" in kinds or "NumberOfFrames" in header
    position = None if holds_a_volume else header.get("ImagePositionPatient")
    place = [
        [round(float(value), 2) for value in position or []],
        header.get("EchoTime"),
        header.get("EchoNumbers"),
        _of_groups(header, "MREchoSequence", "EffectiveEchoTime"),
        kinds[2:3],
        header.get("ComplexImageComponent"),
    ]
    tr_ms = header.get("RepetitionTime") or _of_groups(
        header, "MRTimingAndRelatedParametersSequence", "RepetitionTime"
    )
    return _File(
        path=relative,
        series=(
            str(header.get("StudyInstanceUID", "")),
            number,
            str(header.get("SeriesDescription") or f"series {number}"),
        ),
        order=(_integer(header, "InstanceNumber"), acquisition, str(relative)),
        place=str(place),
        acquisition=acquisition,
        tr_s=float(tr_ms or 0) / 1_000,
    )


def _integer(header: pydicom.Dataset, name: str) -> int:
    value = header.get(name)
    return int(value) if value not in (None, "") else 0


def _of_groups(header: pydicom.Dataset, sequence: str, name: str) -> Any:
    """Return a value from the functional groups that the frames of an enhanced image share."""
    for group in header.get("SharedFunctionalGroupsSequence") or []:
        for item in group.get(sequence) or []:
            return item.get(name)
    return None


class Destination(Protocol):
    """Where the files of a scanner go."""

    def begin(self, is_interrupted: Callable[[], bool]) -> bool:
        """Make ready; False if interrupted."""

    def put(self, path: Path) -> None:
        """Put a file there, whose path is relative to the folder that is played."""

    def end(self) -> None:
        """The last file was put."""


class Folder:
    """Copies files into a watched folder.

    :raises SimError: when the target is no place for them
    """

    def __init__(self, source: Path, series: list[Series], target: Path) -> None:
        self._source, self._target = source, target
        if target.resolve().is_relative_to(source.resolve()):
            raise SimError(f"{target}: expected a folder outside of {source}, which is played")
        for path in (target / path for one in series for files in one.volumes for path in files):
            if path.exists():
                raise SimError(f"{path}: expected no file that is to be played; choose another folder")

    def begin(self, is_interrupted: Callable[[], bool]) -> bool:
        """Make the folder, unless it is there."""
        self._target.mkdir(parents=True, exist_ok=True)
        return not is_interrupted()

    def put(self, path: Path) -> None:
        """Copy a file as it is."""
        (self._target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._source / path, self._target / path)

    def end(self) -> None:
        """Do nothing: a folder has no end."""


class FolderPlay:
    """Puts series somewhere as a scanner does, one after the other.

    :param speed: 1 is the scan's pace
    """

    def __init__(
        self,
        series: list[Series],
        destination: Destination,
        *,
        speed: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not 0 < speed < float("inf"):
            raise SimError(f"speed: expected a number above 0 (1 is the scanner's own), got {speed}")
        self._moves = [(one.tr_s / speed, files) for one in series for files in one.volumes]
        self._destination = destination
        self._clock, self._sleep = clock, sleep
        self._is_interrupted = False

    @property
    def n_volumes(self) -> int:
        """Number of volumes of all series."""
        return len(self._moves)

    def interrupt(self) -> None:
        """Stop soon; signal handlers may call this."""
        self._is_interrupted = True

    def run(self, progress: tqdm[Any] | None = None) -> bool:
        """Put all files, those of a volume once it is acquired; False if interrupted.

        :raises SimError: when the other side refuses
        """
        try:
            return self._destination.begin(lambda: self._is_interrupted) and self._put_all(progress)
        finally:
            self._destination.end()

    def _put_all(self, progress: tqdm[Any] | None) -> bool:
        due_s = self._clock()
        for seconds, files in self._moves:
            due_s += seconds
            while (left_s := due_s - self._clock()) > 0 and not self._is_interrupted:
                self._sleep(min(left_s, _LONGEST_WAIT_S))
            if self._is_interrupted:
                return False
            for path in files:
                self._destination.put(path)
            if progress is not None:
                progress.update()
        return True
