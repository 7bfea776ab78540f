"""The table of decodes, a BIDS-style TSV.

The bundle's first decoder has one row per planned volume, written when the volume's state is final. Each of a
bank's specialised decoders has one row per picture, at the volume that ends the picture's window.

The confounds table says what each planned volume was like: motion, DVARS, tSNR.

A row is appended with one write, so that a crash loses at most the row in flight; a torn last line is
dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime.errors import RecordError
from realtime.events import Frame, LatencyMs, Quality, VolumeState
from realtime.record.storage import read_file

MAX_TABLE_BYTES = 2**28
"""Of a million volumes; a larger one is damaged, and is not read into memory."""
NOT_AVAILABLE = "n/a"
FrameFile = Annotated[
    str, msgspec.Meta(pattern=r"^frames/[0-9]{6,}(_[A-Za-z0-9][A-Za-z0-9._-]{0,127})?\.png\Z")
]
"""Only a frame of the run's own folder: readers of a table open the files that it names."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one decoder made of the window that ends at one volume; columns in this order."""

    volume: int
    state: VolumeState
    reason: str | None = None
    frame: FrameFile | None = None
    window_start: int | None = None
    window_stop: int | None = None
    sampler: str | None = None
    shown_onset: int | None = None
    repaired_voxels: int | None = None
    journal_ms: float | None = None
    preprocess_ms: float | None = None
    wait_ms: float | None = None
    brain_ms: float | None = None
    denoise_ms: float | None = None
    vae_ms: float | None = None
    total_ms: float | None = None
    decoder: str


COLUMNS: dict[str, dict[str, Any]] = {
    "volume": {"Description": "Index of the last volume of the window, from 0."},
    "state": {
        "Description": "What became of the window. Only rows of the bundle's first decoder are censored or "
        "missing: a window of another decoder that ends at such a volume is skipped.",
        "Levels": {
            "decoded": "a frame was decoded, from statistics of enough volumes to have settled",
            "warming": "the run was too young for its statistics to have settled; a frame was decoded if a "
            "full window existed",
            "skipped": "no frame was decoded; the reason tells why",
            "censored": "too many voxels were not finite, or it is a spike (the reason tells); no frame",
            "missing": "the volume did not come, or came after its gap had been given up",
        },
    },
    "reason": {"Description": "Why, where the state alone does not say it."},
    "frame": {"Description": "The decoded frame: a PNG, relative to this file's folder."},
    "window_start": {"Description": "First volume that the decoded window was made of."},
    "window_stop": {"Description": "Volume after the last of the decoded window."},
    "sampler": {"Description": "Name of the bundle's sampler table that was used."},
    "shown_onset": {
        "Description": "Onset volume of the picture that was on screen for this window (see the events "
        "table). The decoder does not get it.",
    },
    "repaired_voxels": {"Description": "Voxels that were not finite and took their previous value."},
    "journal_ms": {
        "Description": "From the volume's last byte, by the journal, to the decoder.",
        "Units": "ms",
    },
    "preprocess_ms": {"Description": "Detrending and z-scoring.", "Units": "ms"},
    "wait_ms": {"Description": "Waiting: for earlier volumes, for the decoder, for a thread.", "Units": "ms"},
    "brain_ms": {"Description": "The brain graph.", "Units": "ms"},
    "denoise_ms": {"Description": "All steps of the sampler.", "Units": "ms"},
    "vae_ms": {"Description": "From latents to the picture, with the blurring of faces.", "Units": "ms"},
    "total_ms": {
        "Description": "Compute latency: from the volume's last byte to the frame; the sum of the others.",
        "Units": "ms",
    },
    "decoder": {
        "Description": "Name of the bundle's decoder. The first of them decodes every volume; the others, of "
        "every picture, the one window that they were trained for."
    },
}
"""The sidecar's description of every column."""


QUALITY_COLUMNS: dict[str, dict[str, Any]] = {
    **{
        f"trans_{axis}": {
            "Description": f"How far the head has moved {way} since the run's first registered volume.",
            "Units": "mm",
        }
        for axis, way in (("x", "to the right"), ("y", "to the front"), ("z", "to the top"))
    },
    **{
        f"rot_{axis}": {
            "Description": f"How far the head has turned about the axis that points {way}, counter-clockwise "
            "seen from its end; the rotation about x is applied first.",
            "Units": "rad",
        }
        for axis, way in (("x", "to the right"), ("y", "to the front"), ("z", "to the top"))
    },
    "framewise_displacement": {
        "Description": "Sum of the absolute changes of the six parameters since the volume before, with "
        "rotations as arcs on a sphere of 50 mm (Power et al. 2012).",
        "Units": "mm",
    },
    "rmsd": {
        "Description": "RMS movement since the volume before over a sphere of 80 mm (Jenkinson 1999).",
        "Units": "mm",
    },
    "dvars": {
        "Description": "RMS over the region's voxels of the change since the volume before (Power et al. "
        "2012), in the scanner's units."
    },
    "global_signal": {"Description": "Mean of the region's voxels, in the scanner's units."},
    "tsnr": {
        "Description": "Median over the region's voxels of mean over SD after detrending, up to this volume."
    },
}
"""The sidecar's description of the confounds table, which has one row for each planned volume, in order."""


def quality_header() -> bytes:
    """The first line of the confounds table."""
    return ("\t".join(QUALITY_COLUMNS) + "\n").encode()


def quality_line(quality: Quality | None) -> bytes:
    """A volume's row of the confounds table; None for a volume that is missing."""
    known: dict[str, object] = {}
    if quality:
        known = msgspec.structs.asdict(quality)
        known |= msgspec.structs.asdict(quality.motion) if quality.motion else {}
    cells = (known.get(name) for name in QUALITY_COLUMNS)
    line = "\t".join(NOT_AVAILABLE if cell is None else f"{cell:.8g}" for cell in cells)
    return (line + "\n").encode()


def read_quality(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a confounds table, NaN where there is no value; empty for a run that has none.

    :raises RecordError: when the table is damaged
    """
    table = read_file(path, MAX_TABLE_BYTES, missing=b"")
    lines = table[: table.rfind(b"\n") + 1].decode(errors="replace").splitlines()
    if not lines:
        return {}
    try:
        rows = [
            [float("nan") if cell == NOT_AVAILABLE else float(cell) for cell in line.split("\t")]
            for line in lines[1:]
        ]
        columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(QUALITY_COLUMNS))
    except ValueError as error:
        raise RecordError(
            f"{path} is damaged: expected numbers in {len(QUALITY_COLUMNS)} columns: {error}"
        ) from error
    if lines[0].split("\t") != list(QUALITY_COLUMNS):
        raise RecordError(f"expected the columns {', '.join(QUALITY_COLUMNS)} in {path}, got: {lines[0]}")
    return dict(zip(QUALITY_COLUMNS, columns.T, strict=True))


def frame_row(frame: Frame, file: str | None, repaired_voxels: int) -> Row:
    """The row of a frame that was decoded."""
    return Row(
        volume=frame.volume,
        state="decoded" if frame.state == "trusted" else "warming",
        frame=file,
        window_start=frame.window[0],
        window_stop=frame.window[1],
        sampler=frame.sampler,
        shown_onset=frame.shown_onset,
        repaired_voxels=repaired_voxels,
        **{f"{stage}_ms": value for stage, value in msgspec.structs.asdict(frame.latency_ms).items()},
        decoder=frame.decoder,
    )


def row_frame(row: Row, run_id: str) -> Frame | None:
    """The frame that a row describes; None where there was none."""
    if row.frame is None or row.window_start is None or row.window_stop is None:
        return None
    stages = (field.name for field in msgspec.structs.fields(LatencyMs))
    return Frame(
        run_id=run_id,
        volume=row.volume,
        decoder=row.decoder,
        window=(row.window_start, row.window_stop),
        state="trusted" if row.state == "decoded" else "warming",
        sampler=row.sampler or "",
        latency_ms=LatencyMs(**{stage: getattr(row, f"{stage}_ms") or 0.0 for stage in stages}),
        shown_onset=row.shown_onset,
    )


def header_line() -> bytes:
    """The first line of the table."""
    return ("\t".join(Row.__struct_fields__) + "\n").encode()


def row_line(row: Row) -> bytes:
    """A row as a line of the table."""
    return ("\t".join(_cell(value) for value in msgspec.structs.astuple(row)) + "\n").encode()


def read_table(path: Path) -> tuple[list[Row], int]:
    """All whole rows of a table, and the offset where a torn last line, if any, begins.

    :raises RecordError: when the table cannot be read, a row does not fit the columns, or one decoder has two
        rows at a volume.
    """
    table = read_file(path, MAX_TABLE_BYTES, missing=b"")
    end = table.rfind(b"\n") + 1
    return parse_table(table[:end], path), end


def parse_table(table: bytes, path: Path) -> list[Row]:
    """The rows of a table of whole lines; ``path`` is for messages. Raises as :func:`read_table`."""
    lines = table.decode(errors="replace").splitlines()
    if lines and lines[0] + "\n" != header_line().decode():
        expected = ", ".join(Row.__struct_fields__)
        raise RecordError(f"expected the columns {expected} in {path}, got: {lines[0]}")
    rows = [_parse(line, path) for line in lines[1:]]
    if len({(row.volume, row.decoder) for row in rows}) != len(rows):
        raise RecordError(f"expected one row for each volume and decoder in {path}; some are repeated")
    return rows


def _cell(value: object) -> str:
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, float):
        return f"{value:.3f}"
    return " ".join(str(value).split())


def _parse(line: str, path: Path) -> Row:
    cells = line.split("\t")
    names = Row.__struct_fields__
    if len(cells) != len(names):
        raise RecordError(f"expected {len(names)} columns in {path}, got {len(cells)}: {line!r}")
    known = {name: cell for name, cell in zip(names, cells, strict=True) if cell != NOT_AVAILABLE}
    try:
        return msgspec.convert(known, Row, strict=False)
    except msgspec.ValidationError as error:
        raise RecordError(f"a row of {path} does not fit its columns: {error}: {line!r}") from error
