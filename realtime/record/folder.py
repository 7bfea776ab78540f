"""The run folder as the decoder writes it: tables, frames and pictures, as they are made.

    run.json                    what the run is; bundle, engine, seed, versions; whether it is open or closed
    volumes.journal             every message taken, the recorder's (:mod:`realtime.record.run_journal`)
    decoder.checkpoint          while a long run is open: its state (:mod:`realtime.runs.checkpoint`)
    statistics.npz, prior.npz   per-voxel statistics (see :mod:`realtime.runs.statistics`)
    frames/000123.png           the frame that the bundle's first decoder made at volume 123
    frames/000123_<decoder>.png the same by another decoder of a bank
    shown/000120.png            the picture that presentation software put on screen at volume 120
    <name>_desc-dynadiff_decoding.tsv, .json    one row per decode (see :mod:`realtime.record.tables`)
    <name>_desc-confounds_timeseries.tsv, .json one row per planned volume: motion and quality
    <name>_desc-shown_events.tsv, .json         one row per picture shown
    dataset_description.json    a BIDS-style derivative

The recorder makes the folder with ``run.json`` and the journal; from then on it writes only the journal, and
the decoder everything else. A run that is started again after it was closed gets a folder of its own,
``<run_id>_take-2``. Folders of the first format had two tables of decodes (see
:mod:`realtime.record.format_1`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.errors import RecordError
from realtime.events import DecoderUsed, Quality
from realtime.record import tables
from realtime.record.format_1 import upgrade
from realtime.record.run_json import (
    PACKAGE,
    EngineUsed,
    RunFile,
    confounds_path,
    events_path,
    read_run_file,
    table_path,
    utc_now,
)
from realtime.record.storage import Folder, read_file

EVENT_COLUMNS: dict[str, dict[str, Any]] = {
    "onset": {"Description": "Start of the volume at which the picture appeared.", "Units": "s"},
    "duration": {"Description": "How long it was shown: markers do not say.", "Units": "s"},
    "onset_volume": {"Description": "Index of that volume, from 0."},
    "name": {"Description": "The picture's name in presentation software."},
    "stim_file": {
        "Description": "The picture: a PNG, relative to this file's folder; n/a if only its name is known."
    },
}


class RunFolder:
    """Writes a run folder; one process at a time.

    :raises RecordError: from every method, when the disk does not take what is written
    """

    def __init__(self, folder: Folder, info: RunFile) -> None:
        """Use :meth:`open`."""
        self.path = folder.path
        self.info = info
        self._folder = folder
        self._table = table_path(folder.path, info.start).name
        self._events = events_path(folder.path, info.start).name
        self._confounds = confounds_path(folder.path, info.start).name
        self._unwritten = {self._table: b"", self._events: b"", self._confounds: b""}
        self._n_qualities = 0
        """Rows of the confounds table."""
        self.is_fresh = False
        """Whether no decoder had this run before."""

    @classmethod
    def open(cls, path: Path, decoders: Sequence[DecoderUsed]) -> RunFolder:
        """Open the folder of a run that has just begun, or was decoded in part.

        Torn ends are cut off, and frames whose row was lost are removed. A folder of format 1 becomes one of
        format 2.

        :param decoders: of the bundle that the run was recorded with
        """
        info = read_run_file(path)
        folder = Folder.open(path, to_write=True)
        run = cls(folder, info)
        try:
            run._prepare(decoders)
        except OSError as error:
            folder.close()
            raise RecordError(f"cannot go on with {path}: {error.strerror or error}") from error
        except RecordError:
            folder.close()
            raise
        return run

    def _prepare(self, decoders: Sequence[DecoderUsed]) -> None:
        for name in ("frames", "shown"):
            if not self._folder.has(name):
                self._folder.make_sub(name).close()
        if self.info.format_version == 1:
            upgraded = upgrade(self.path, self.info, decoders)
            self._describe()
            self._save(upgraded)  # last: until then all of this can be repeated
        if not (self._folder.has(self._table) and self._folder.has(self._confounds)):
            self._describe()
        rows, table_end = tables.read_table(self.path / self._table)
        self.is_fresh = not rows and self.info.engine == EngineUsed()
        self._cut(self._table, table_end, tables.header_line())
        self._prepare_confounds()
        self._write(self._events, ("\t".join(EVENT_COLUMNS) + "\n").encode())  # filled from the journal again
        named = {row.frame for row in rows}
        with self._folder.sub("frames") as frames:
            for orphan in frames.names():
                if f"frames/{orphan}" not in named:
                    frames.unlink(orphan)

    def _prepare_confounds(self) -> None:
        """Keep whole rows; a run that an earlier release recorded in part begins its table here."""
        header = tables.quality_header()
        table = read_file(self.path / self._confounds, tables.MAX_TABLE_BYTES, missing=b"")
        end = table.rfind(b"\n") + 1 if table.startswith(header) else 0
        self._cut(self._confounds, end, header)
        self._n_qualities = max(0, table[:end].count(b"\n") - 1)

    def _cut(self, table: str, end: int, header: bytes) -> None:
        """Cut a table to its whole rows; without any, it begins with its header."""
        descriptor = self._folder.open_append(table)
        try:
            os.ftruncate(descriptor, end)
        finally:
            os.close(descriptor)
        if end == 0:
            self._append(table, header)

    def begin(self, **decoded_by: object) -> None:
        """Say in ``run.json`` what decodes a fresh run.

        :param decoded_by: fields of :class:`realtime.record.run_json.RunFile`
        """
        self._save(msgspec.structs.replace(self.info, **decoded_by))

    @property
    def is_in_place(self) -> bool:
        """Whether the folder is still there."""
        return self._folder.is_in_place()

    def rows(self) -> list[tables.Row]:
        """The whole rows of the table of decodes."""
        return tables.read_table(self.path / self._table)[0]

    def write_frame(self, volume: int, decoder: str, image: NDArray[np.uint8]) -> str:
        """Save a frame, RGB ``[H, W, 3]``, as PNG; returns its name for the table."""
        done, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if not done:
            raise RecordError(f"cannot encode the frame of volume {volume}, an image of {image.shape}")
        suffix = "" if decoder == self.info.first_decoder else f"_{decoder}"
        name = f"frames/{volume:06d}{suffix}.png"
        self._write(name, png.tobytes())
        return name

    def write_file(self, name: str, content: bytes) -> None:
        """Save a file in the folder."""
        self._write(name, content)

    def remove_file(self, name: str) -> None:
        """Remove a file of the folder, and what a crash left of its next version, if they are there."""
        self._folder.unlink(name)
        self._folder.unlink(f".partial-{name}")

    @property
    def has_all_rows(self) -> bool:
        """Whether the disk has taken every row so far."""
        return not any(self._unwritten.values())

    def write_row(self, row: tables.Row) -> None:
        """Append a row to the table of decodes."""
        self._append(self._table, tables.row_line(row))

    def write_quality(self, volume: int, quality: Quality | None) -> None:
        """Append a volume's row to the confounds table, unless it has one; None: it is missing."""
        if volume < self._n_qualities:
            return
        missing = tables.quality_line(None) * (volume - self._n_qualities)
        self._n_qualities = volume + 1
        self._append(self._confounds, missing + tables.quality_line(quality))

    def has_picture(self, marker: wire.Marker, n_bytes: int) -> bool:
        """Whether the picture of a marker is there; it is written whole, so its size tells."""
        name = _picture_file(marker).rpartition("/")[2]
        try:
            with self._folder.sub("shown") as folder:
                return folder.has(name) and folder.size(name) == n_bytes
        except RecordError:  # such as a link, which the picture replaces
            return False

    def write_shown(self, marker: wire.Marker, png: bytes | None) -> None:
        """Save the picture of a marker, and its row in the events table.

        :param png: None if the picture is there already, empty if the marker has only a name
        """
        if png:
            self._write(_picture_file(marker), png)
        file = tables.NOT_AVAILABLE if png == b"" else _picture_file(marker)
        onset_s = marker.onset_volume * self.info.start.tr_s
        name = " ".join(marker.name.split()) or tables.NOT_AVAILABLE
        row = (f"{onset_s:.4f}", tables.NOT_AVAILABLE, str(marker.onset_volume), name, file)
        self._append(self._events, ("\t".join(row) + "\n").encode())

    def changes(self, what: Literal["engine", "faces"], note: str) -> None:
        """Record that the run continues on another engine, or with faces shown or blurred instead.

        A run in which faces are shown in any part counts as one that shows them.
        """
        self._save(
            msgspec.structs.replace(
                self.info,
                changed_midway=(*self.info.changed_midway, what),
                faces="shown" if what == "faces" else self.info.faces,
                notes=(*self.info.notes, note),
            )
        )

    def note(self, text: str) -> None:
        """Add a note for people to ``run.json``."""
        self._save(msgspec.structs.replace(self.info, notes=(*self.info.notes, text)))

    def close(self, note: str = "") -> None:
        """Mark the run closed, with a last note if there is one.

        A run whose disk fails stays open, and can be closed later.
        """
        for name, rest in list(self._unwritten.items()):
            if rest:
                self._append(name, b"")
        notes = (*self.info.notes, note) if note else self.info.notes
        self._save(msgspec.structs.replace(self.info, state="closed", closed_utc=utc_now(), notes=notes))
        self.let_go()

    def let_go(self) -> None:
        """Leave the run as it is; if it is open, it can be gone on with later."""
        self._folder.close()

    def _save(self, info: RunFile) -> None:
        self._folder.write_whole("run.json", msgspec.json.format(msgspec.json.encode(info), indent=2))
        self.info = info

    def _describe(self) -> None:
        description = {
            "Name": f"Decoded images of {self.info.start.run_id}",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": PACKAGE, "Version": self.info.versions[PACKAGE]}],
        }
        decoding = {
            "Description": "What became of every planned volume, with its frame by the bundle's first "
            "decoder; with a bank, also one row for each picture and specialised decoder.",
            "Sources": ["volumes.journal", f"bundle:{self.info.bundle_name}#{self.info.bundle_sha256}"],
            **tables.COLUMNS,
        }
        confounds = {
            "Description": "What each planned volume was like, as it came.",
            "Sources": ["volumes.journal"],
            **tables.QUALITY_COLUMNS,
        }
        shown = {
            "Description": "What was on screen, by presentation software's markers; decoders do not get it.",
            "Sources": ["volumes.journal"],
            **EVENT_COLUMNS,
        }
        for name, content in (
            ("dataset_description.json", description),
            (Path(self._table).with_suffix(".json").name, decoding),
            (Path(self._confounds).with_suffix(".json").name, confounds),
            (Path(self._events).with_suffix(".json").name, shown),
        ):
            self._write(name, msgspec.json.format(msgspec.json.encode(content), indent=2))

    def _write(self, name: str, data: bytes) -> None:
        """Write a file of the folder, or of one of its two subfolders."""
        sub, _, file = name.rpartition("/")
        if sub:
            with self._folder.sub(sub) as folder:
                folder.write_whole(file, data)
        else:
            self._folder.write_whole(file, data)

    def _append(self, name: str, line: bytes) -> None:
        """Append a line; what the disk does not take now is written before the next, so no row is lost."""
        self._unwritten[name] += line
        descriptor = self._folder.open_append(name)
        try:
            while rest := self._unwritten[name]:  # a full disk may take only a part
                self._unwritten[name] = rest[os.write(descriptor, rest) :]
        except OSError as error:
            raise RecordError(f"cannot write {self.path / name}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)


def _picture_file(marker: wire.Marker) -> str:
    return f"shown/{marker.onset_volume:06d}.png"
