"""``python -m sim play``: plays a 4D file or a folder of files as if it were acquired now."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from sim.errors import SimError
from sim.folder_play import FolderPlay, read_series
from sim.played import PlayedSeries
from sim.transmit import INTERRUPTED, interrupts, tell, transmit


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
    """Copy the files of a folder into a watched one; return the exit code.

    :raises SimError: when there is nothing to play, or the address is no folder
    """
    kind, _, target = address.partition(":")
    if kind != "folder" or not target or "?" in target:
        raise SimError(
            f"{folder}: expected --connect folder:/path for a folder of files, which are copied as they are, "
            f"got {address}. To send them by another way, convert them to a 4D file (dcm2niix) and play that"
        )
    series, others = read_series(folder, tr_s=tr_s, only=only)
    for one in series:
        n_files = sum(len(files) for files in one.volumes)
        tell(f"{one.name}: {len(one.volumes)} volumes in {n_files} files, TR {one.tr_s:g} s")
    if others:
        tell(f"passed over {len(others)} files that are no images, such as {others[0].name}")
    play = FolderPlay(folder, series, Path(target), speed=speed)
    with tqdm(total=play.n_volumes, unit="volume", desc="play", disable=None) as progress:
        with interrupts(play.interrupt):
            is_complete = play.run(progress)
    tell("all files copied" if is_complete else "interrupted")
    return 0 if is_complete else INTERRUPTED
