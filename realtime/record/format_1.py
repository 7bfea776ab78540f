"""Run folders of format 1, which kept decodes in two tables.

    <name>_desc-dynadiff_decoding.tsv       one row per planned volume, by the general decoder
    <name>_desc-specialised_decoding.tsv    with a bank, one row per picture and specialised decoder

The first had no column ``decoder``, and ``run.json`` did not list the decoders. All else is as in format 2.
Such a folder is read as if it were of format 2. One whose run goes on is made one of format 2 first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from realtime import wire
from realtime.atomic import write_whole
from realtime.errors import RecordError
from realtime.events import DecoderUsed
from realtime.record import tables
from realtime.record.run_json import FORMAT_VERSION, RunFile, bids_name, table_path
from realtime.record.storage import read_file

GENERAL = "general"
"""What exporting has always called the first decoder of a bundle."""


def read_format_1(folder: Path, info: RunFile) -> tuple[RunFile, list[tables.Row]]:
    """``run.json`` and the rows of a folder of format 1, in the form of format 2.

    :raises RecordError: as :func:`realtime.record.tables.read_table`
    """
    rows = tables.parse_table(_one_table(folder, info.start, GENERAL), table_path(folder, info.start))
    # An upgrade that was cut short has written the bundle's names, with the general decoder's rows first.
    name = rows[0].decoder if rows else GENERAL
    general = DecoderUsed(name=name, window_delay_volumes=info.window_delay_volumes)
    return msgspec.structs.replace(info, decoders=(general, *_specialised(rows, name))), rows


def upgrade(folder: Path, info: RunFile, decoders: Sequence[DecoderUsed]) -> RunFile:
    """Replace the table of a folder by one of format 2, and return the ``run.json`` that goes with it.

    The caller writes that file. Until then the folder counts as one of format 1, and this can be repeated.

    :param decoders: of the bundle that the run was recorded with
    :raises RecordError: as :func:`realtime.record.tables.read_table`
    """
    path = table_path(folder, info.start)
    table = _one_table(folder, info.start, decoders[0].name)
    tables.parse_table(table, path)
    write_whole(path, table, private=True)
    second = _specialised_path(folder, info.start)
    for file in (second, second.with_suffix(".json")):
        file.unlink(missing_ok=True)
    return msgspec.structs.replace(info, format_version=FORMAT_VERSION, decoders=tuple(decoders))


def _one_table(folder: Path, start: wire.RunStart, general: str) -> bytes:
    """The whole lines of both tables as one table of format 2."""
    lines = _lines(table_path(folder, start))
    if lines[:1] == [tables.header_line()]:  # an upgrade was cut short
        return b"".join(lines)
    if not lines:
        raise RecordError(f"expected a table of decodes in {table_path(folder, start)}, found none")
    columns = [b"decoder", *[general.encode()] * (len(lines) - 1)]
    general_lines = [line[:-1] + b"\t" + cell + b"\n" for line, cell in zip(lines, columns, strict=True)]
    path = _specialised_path(folder, start)
    specialised_lines = _lines(path)
    tables.parse_table(b"".join(specialised_lines), path)
    return b"".join([*general_lines, *specialised_lines[1:]])


def _specialised_path(folder: Path, start: wire.RunStart) -> Path:
    return folder / f"{bids_name(start)}_desc-specialised_decoding.tsv"


def _lines(path: Path) -> list[bytes]:
    """The lines of a table without a torn last one; none where there is no table."""
    table = read_file(path, tables.MAX_TABLE_BYTES, missing=b"")
    return table[: table.rfind(b"\n") + 1].splitlines(keepends=True)


def _specialised(rows: Iterable[tables.Row], general: str) -> list[DecoderUsed]:
    """The specialised decoders that rows name, by how soon after a picture's onset their windows end."""
    found = {
        DecoderUsed(name=row.decoder, window_delay_volumes=row.volume - row.shown_onset)
        for row in rows
        if row.decoder != general and row.shown_onset is not None
    }
    return sorted(found, key=lambda decoder: decoder.window_delay_volumes)
