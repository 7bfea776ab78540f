"""What a run folder tells of a run so far, as events, for a page that comes late or was started again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from realtime.errors import RecordError
from realtime.events import KEPT, Event, Shown
from realtime.record.reader import read_image, read_pictures
from realtime.record.run_json import read_run_file, table_path
from realtime.record.storage import read_file
from realtime.record.tables import read_table, row_frame
from realtime.wire import MAX_PICTURE_BYTES


def past_events(path: Path) -> Iterator[Event]:
    """The newest pictures and frames in a run folder; those that cannot be read are left out.

    :raises RecordError: when the path is no run folder, or its table is damaged
    """
    info = read_run_file(path)
    for picture in read_pictures(path, info)[-KEPT:]:
        shown = Shown(run_id=path.name, onset_volume=picture.onset_volume, name=picture.name)
        try:
            png = read_file(picture.path, MAX_PICTURE_BYTES)
        except RecordError:
            continue
        yield Event(shown, png=png, is_recorded=True)
    rows, _ = read_table(table_path(path, info.start))
    newest = max((row.volume for row in rows), default=0)
    for row in rows:
        frame = row_frame(row, path.name)
        if frame is None or row.frame is None or row.volume <= newest - KEPT:
            continue
        try:
            image = read_image(path / row.frame)
        except RecordError:
            continue
        yield Event(frame, image=image, is_recorded=True)
