"""Reads a run folder: the rows of the table, the frames, and the pictures that were shown."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.errors import RecordError, WireError
from realtime.record import tables
from realtime.record.folder import EVENT_COLUMNS
from realtime.record.format_1 import read_format_1
from realtime.record.image import decode_png
from realtime.record.journal import read_journal
from realtime.record.run_json import RunFile, confounds_path, events_path, read_run_file, table_path
from realtime.record.storage import read_file

_MAX_IMAGE_BYTES = 2**24
"""More than any frame of the largest size has as PNG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture that was on screen from ``onset_volume`` on."""

    onset_volume: int
    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A picture and the frame that was decoded from its window."""

    picture: Picture
    row: tables.Row
    frame: Path

    def shown_image(self) -> NDArray[np.uint8]:
        """The picture, RGB ``[H, W, 3]``, resized to the frame."""
        shown, frame = read_image(self.picture.path), self.decoded_image()
        if shown.shape == frame.shape:
            return shown
        size = (frame.shape[1], frame.shape[0])
        return np.asarray(cv2.resize(shown, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def decoded_image(self) -> NDArray[np.uint8]:
        """The frame, RGB ``[H, W, 3]``."""
        return read_image(self.frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The content of a run folder; the run may still be open."""

    path: Path
    info: RunFile
    rows: tuple[tables.Row, ...]
    """Of all decoders, in the order of volumes."""
    pictures: tuple[Picture, ...]
    """In the order of onsets."""
    received: frozenset[int]
    """The volumes that came."""
    quality: Mapping[str, NDArray[np.float64]]
    """The columns of the confounds table; none in a run of an earlier release."""

    def rows_by(self, decoder: str) -> list[tables.Row]:
        """One decoder's rows, in the order of volumes."""
        return [row for row in self.rows if row.decoder == decoder]

    def volumes(self) -> Iterator[tuple[int, NDArray[np.generic]]]:
        """The volumes that the run took in, with their indices, ``[x, y, z]``, in order.

        Those that came after they had been given up as missing are left out, as in the run.

        :raises RecordError: when the journal is damaged.
        """
        in_time = self.received - {row.volume for row in self.rows if row.state == "missing"}
        turns = deque(sorted(in_time))
        arrived: dict[int, bytes] = {}
        for index, payload in _volumes(self.path):
            if index in in_time:
                arrived[index] = payload
            while turns and turns[0] in arrived:
                turn = turns.popleft()
                yield turn, wire.volume_array(self.info.start, arrived.pop(turn))

    def trials(self, decoder: str | None = None) -> list[Trial]:
        """Every picture whose own window was decoded: the frame at its onset plus the window's delay.

        Trials of the warm-up are included; their rows have the state ``warming``.

        :param decoder: one of ``info.decoders``; by default the first, the general one
        """
        name = decoder or self.info.first_decoder
        delays = {each.name: each.window_delay_volumes for each in self.info.decoders}
        rows = {row.volume - delays[name]: row for row in self.rows_by(name)}
        found = []
        for picture in self.pictures:
            row = rows.get(picture.onset_volume)
            if row is not None and row.frame is not None:
                found.append(Trial(picture=picture, row=row, frame=self.path / row.frame))
        return found


class _Shown(msgspec.Struct, frozen=True):
    """The columns of the events table that are read."""

    onset_volume: wire.Count
    name: str
    stim_file: Annotated[str, msgspec.Meta(pattern=r"^shown/[0-9]{6,}\.png\Z")]


def read_recorded(path: Path) -> Recorded:
    """Read a run folder.

    :raises RecordError: when the path is no run folder, or the folder is damaged
    """
    info = read_run_file(path)
    if info.format_version == 1:
        info, rows = read_format_1(path, info)
    else:
        rows, _ = tables.read_table(table_path(path, info.start))
    pictures = read_pictures(path, info)
    received = frozenset(index for index, _ in _volumes(path))
    return Recorded(
        path=path,
        info=info,
        rows=tuple(sorted(rows, key=lambda row: row.volume)),
        pictures=tuple(pictures),
        received=received,
        quality=tables.read_quality(confounds_path(path, info.start)),
    )


def read_pictures(path: Path, info: RunFile) -> list[Picture]:
    """The pictures that were shown, in the order of onsets; none if no decoder had the run yet.

    :raises RecordError: when the events table is damaged
    """
    return sorted(_pictures(path, info), key=lambda picture: picture.onset_volume)


def read_image(path: Path) -> NDArray[np.uint8]:
    """A PNG of a run folder as RGB ``[H, W, 3]``.

    :raises RecordError: when it is missing or damaged
    """
    try:
        return decode_png(read_file(path, _MAX_IMAGE_BYTES))
    except WireError as error:
        raise RecordError(f"cannot read the picture {path}: {error}") from error


def _pictures(path: Path, info: RunFile) -> Iterator[Picture]:
    file = events_path(path, info.start)
    table = read_file(file, tables.MAX_TABLE_BYTES, missing=b"")
    lines = table.decode(errors="replace").split("\n")[:-1]  # a torn last one is dropped
    try:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row.keys() != EVENT_COLUMNS.keys():
                raise RecordError(f"expected the columns {', '.join(EVENT_COLUMNS)} in {file}, got {row}")
            if row["stim_file"] == tables.NOT_AVAILABLE:  # only its name is known
                continue
            shown = msgspec.convert(row, _Shown, strict=False)
            yield Picture(onset_volume=shown.onset_volume, name=shown.name, path=path / shown.stim_file)
    except (csv.Error, msgspec.ValidationError) as error:
        raise RecordError(f"a row of {file} does not fit: {error}") from error


def _volumes(path: Path) -> Iterator[tuple[int, bytes]]:
    """Index and voxels of every volume, in the order in which they came."""
    for entry in read_journal(path / "volumes.journal"):
        try:
            message = wire.decode_to_runtime(entry.header)
        except WireError as error:
            raise RecordError(f"a record of the journal in {path} is not a message: {error}") from error
        if isinstance(message, wire.Volume):
            yield message.index, entry.payload
