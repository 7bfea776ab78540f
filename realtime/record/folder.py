"""The run folder: the messages that came in and the frames that were decoded, written as it happens.

    run.json                    what the run is; bundle, engine, seed, versions; whether it is open or closed
    volumes.journal             every message taken (see :mod:`realtime.record.journal`)
    statistics.npz, prior.npz   per-voxel statistics (see :mod:`realtime.runs.statistics`)
    frames/000123.png           the frame that the bundle's first decoder made at volume 123
    frames/000123_<decoder>.png the same by another decoder of a bank
    shown/000120.png            the picture that presentation software put on screen at volume 120
    <name>_desc-dynadiff_decoding.tsv, .json    one row per decode (see :mod:`realtime.record.tables`)
    <name>_desc-shown_events.tsv, .json         one row per picture shown
    dataset_description.json    a BIDS-style derivative

A run that is started again after it was closed gets a folder of its own, ``<run_id>_take-2``. Folders of the
first format had two tables of decodes (see :mod:`realtime.record.format_1`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.atomic import whole, write_whole
from realtime.errors import RecordError
from realtime.events import DecoderUsed
from realtime.record import tables
from realtime.record.format_1 import upgrade
from realtime.record.journal import Entry, Journal, read_journal
from realtime.record.run_json import (
    PACKAGE,
    RunFile,
    events_path,
    read_run_file,
    table_path,
    take_path,
    takes_of,
    utc_now,
)

EVENT_COLUMNS: dict[str, dict[str, Any]] = {
    "onset": {"Description": "Start of the volume at which the picture appeared.", "Units": "s"},
    "duration": {"Description": "How long it was shown: markers do not say.", "Units": "s"},
    "onset_volume": {"Description": "Index of that volume, from 0."},
    "name": {"Description": "The picture's name in presentation software."},
    "stim_file": {"Description": "The picture: a PNG, relative to this file's folder."},
}


class RunFolder:
    """Writes a run folder; one process at a time.

    :raises RecordError: from every method, when the disk does not take what is written
    """

    def __init__(self, path: Path, info: RunFile) -> None:
        """Use :meth:`create` or :meth:`reopen`."""
        self.path = path
        self.info = info
        self._journal = Journal(path / "volumes.journal")
        self._table = table_path(path, info.start)
        self._events = events_path(path, info.start)
        self._unwritten = {self._table: b"", self._events: b""}

    @classmethod
    def create(cls, root: Path, info: RunFile, files: Mapping[str, bytes] | None = None) -> RunFolder:
        """Make the folder of a run's next take under ``root``, with these files in it from the start.

        The folder appears only when it is complete: one that a crash leaves incomplete is not a take.
        """
        takes = list(takes_of(root, info.start.run_id))
        path = take_path(root, info.start.run_id, len(takes) + 1)
        try:
            with whole(path, replaces=False) as partial:
                for folder in (partial, partial / "frames", partial / "shown"):
                    folder.mkdir(parents=True)
                cls._fill(partial, info, files or {})
                if path.exists():
                    raise RecordError(
                        f"another runtime has just made the run folder {path}; start the run again"
                    )
        except OSError as error:
            raise RecordError(f"cannot make the run folder {path}: {error.strerror or error}") from error
        return cls(path, info)

    @classmethod
    def _fill(cls, path: Path, info: RunFile, files: Mapping[str, bytes]) -> None:
        run = cls(path, info)
        try:
            run._describe()
            for name, content in files.items():
                run.write_file(name, content)
            run._append(run._table, tables.header_line())
            run._begin_events()
            run.journal(info.start)
            run._save(info)
        finally:
            run.suspend()

    @classmethod
    def reopen(cls, path: Path, decoders: Sequence[DecoderUsed]) -> RunFolder:
        """Open the folder of a run that is to be resumed.

        Torn ends are cut off, and frames whose row was lost are removed. A folder of format 1 becomes one of
        format 2.

        :param decoders: of the bundle that the run was recorded with
        """
        run = cls(path, read_run_file(path))
        try:
            end = 0
            for entry in run.entries():
                end = entry.end
            run._journal.cut(end)
            if run.info.format_version == 1:
                upgraded = upgrade(path, run.info, decoders)
                run._describe()
                run._save(upgraded)  # last: until then all of this can be repeated
            rows, table_end = tables.read_table(run._table)
            os.truncate(run._table, table_end)
            run._begin_events()  # written again from the journal, which has every marker whole
            named = {row.frame for row in rows}
            for orphan in (path / "frames").iterdir():
                if f"frames/{orphan.name}" not in named:
                    orphan.unlink()
        except OSError as error:
            run._journal.close()
            raise RecordError(f"cannot resume {path}: {error.strerror or error}") from error
        except RecordError:
            run._journal.close()
            raise
        return run

    def entries(self) -> Iterator[Entry]:
        """The records of the journal, from its start."""
        return read_journal(self.path / "volumes.journal")

    def rows(self) -> list[tables.Row]:
        """The whole rows of the table of decodes."""
        return tables.read_table(self._table)[0]

    def journal(self, message: wire.ToRuntime, payload: bytes | memoryview = b"") -> None:
        """Append a message to the journal."""
        self._journal.append(wire.encode(message), payload, datetime.now(UTC).timestamp())

    def write_frame(self, volume: int, decoder: str, image: NDArray[np.uint8]) -> str:
        """Save a frame, RGB ``[H, W, 3]``, as PNG; returns its name for the table."""
        done, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if not done:
            raise RecordError(f"cannot encode the frame of volume {volume}, an image of {image.shape}")
        suffix = "" if decoder == self.info.first_decoder else f"_{decoder}"
        name = f"frames/{volume:06d}{suffix}.png"
        self._write(self.path / name, png.tobytes())
        return name

    def write_file(self, name: str, content: bytes) -> None:
        """Save a file in the folder."""
        self._write(self.path / name, content)

    def write_row(self, row: tables.Row) -> None:
        """Append a row to the table of decodes."""
        self._append(self._table, tables.row_line(row))

    def write_shown(self, marker: wire.Marker, png: bytes) -> None:
        """Save the picture of a marker and its row in the events table."""
        self.write_picture(marker, png)
        self.write_event(marker)

    def write_picture(self, marker: wire.Marker, png: bytes) -> None:
        """Save the picture of a marker."""
        self._write(self.path / _picture_file(marker), png)

    def picture(self, marker: wire.Marker) -> bytes:
        """The PNG of the picture that a marker put on screen.

        :raises RecordError: when it cannot be read
        """
        path = self.path / _picture_file(marker)
        try:
            return path.read_bytes()
        except OSError as error:
            raise RecordError(f"cannot read {path}: {error.strerror or error}") from error

    def write_event(self, marker: wire.Marker) -> None:
        """Append a marker's row to the events table."""
        onset_s = marker.onset_volume * self.info.start.tr_s
        name = " ".join(marker.name.split()) or tables.NOT_AVAILABLE
        row = (f"{onset_s:.4f}", tables.NOT_AVAILABLE, str(marker.onset_volume), name, _picture_file(marker))
        self._append(self._events, ("\t".join(row) + "\n").encode())

    def _begin_events(self) -> None:
        self._write(self._events, ("\t".join(EVENT_COLUMNS) + "\n").encode())

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
        """Sync the journal to the disk, then mark the run closed, with a last note if there is one.

        A run whose disk fails stays open, and can be closed later.
        """
        for path, rest in list(self._unwritten.items()):
            if rest:
                self._append(path, b"")
        self._journal.sync()
        notes = (*self.info.notes, note) if note else self.info.notes
        self._save(msgspec.structs.replace(self.info, state="closed", closed_utc=utc_now(), notes=notes))
        self.suspend()

    def suspend(self) -> None:
        """Close the journal and leave the run open, to be resumed later."""
        self._journal.close()

    def _save(self, info: RunFile) -> None:
        file = self.path / "run.json"
        try:
            write_whole(file, msgspec.json.format(msgspec.json.encode(info), indent=2))
        except OSError as error:
            raise RecordError(f"cannot write {file}: {error.strerror or error}") from error
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
        shown = {
            "Description": "What was on screen, by presentation software's markers; decoders do not get it.",
            "Sources": ["volumes.journal"],
            **EVENT_COLUMNS,
        }
        for path, content in (
            (self.path / "dataset_description.json", description),
            (self._table.with_suffix(".json"), decoding),
            (self._events.with_suffix(".json"), shown),
        ):
            self._write(path, msgspec.json.format(msgspec.json.encode(content), indent=2))

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.write_bytes(data)
        except OSError as error:
            with contextlib.suppress(OSError):  # a read-only disk refuses this too
                path.unlink()
            raise RecordError(f"cannot write {path}: {error.strerror or error}") from error

    def _append(self, path: Path, line: bytes) -> None:
        """Append a line; what the disk does not take now is written before the next, so no row is lost."""
        self._unwritten[path] += line
        try:
            with path.open("ab", buffering=0) as file:
                while rest := self._unwritten[path]:  # a full disk may take only a part
                    self._unwritten[path] = rest[file.write(rest) :]
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror or error}") from error


def _picture_file(marker: wire.Marker) -> str:
    return f"shown/{marker.onset_volume:06d}.png"
