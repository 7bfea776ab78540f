"""``python -m sim play``: plays a 4D file or a folder of files as if it were acquired now."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from sim.errors import SimError
from sim.folder_play import Destination, Folder, FolderPlay, Series, read_series
from sim.played import PlayedSeries
from sim.transmit import INTERRUPTED, Bar, interrupts, tell, transmit


def play_file(
    path: Path,
    *,
    address: str,
    keys: Path | None,
    tr_s: float | None,
    speed: float,
    subject: int,
    run_id: str | None,
) -> int:
    """Send the volumes of a 4D file to an address; return the exit code.

    :raises SimError: when the file cannot be played, or the other side refuses
    """
    series = PlayedSeries(path, subject=subject, tr_s=tr_s, run_id=run_id)
    start = series.start
    tell(f"{path}: {start.n_volumes} volumes {start.shape} of {start.dtype}, TR {start.tr_s:g} s")
    return transmit(series, [], address=address, keys=keys, speed=speed)


def play_folder(folder: Path, *, address: str, tr_s: float | None, speed: float, only: str) -> int:
    """Copy the files of a folder into a watched one, or store them in a node; return the exit code.

    :raises SimError: when there is nothing to play, or the address cannot take files
    """
    series, others = read_series(folder, tr_s=tr_s, only=only)
    for one in series:
        n_files = sum(len(files) for files in one.volumes)
        tell(f"{one.name}: {len(one.volumes)} volumes in {n_files} files, TR {one.tr_s:g} s")
    if others:
        tell(f"passed over {len(others)} files that are no images, such as {others[0].name}")
    play = FolderPlay(series, _destination(folder, series, address), speed=speed)
    with Bar(play.n_volumes, "play") as progress:
        with interrupts(play.interrupt):
            is_complete = play.run(progress)
    tell("all files sent" if is_complete else "interrupted")
    return 0 if is_complete else INTERRUPTED


def _destination(folder: Path, series: list[Series], address: str) -> Destination:
    kind, _, place = address.partition(":")
    if kind == "folder" and place and "?" not in place:
        return Folder(folder, series, Path(place))
    place, _, query = place.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if kind == "dicom" and options.keys() <= {"aet"}:
        from sim.stored_play import Node

        return Node(folder, series, place, options.get("aet"), tell)
    raise SimError(
        f"{folder}: expected --connect folder:/path or dicom://HOST:PORT for a folder of files, which are "
        f"passed on as they are, got {address}. To send them by another way, make a 4D file (dcm2niix)"
    )
