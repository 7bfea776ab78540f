"""Writes the pictures of a synthetic data set, those that are needed of NSD's 73 000.

    nsd_stimuli.hdf5   imgBrick  uint8 [73000, 64, 64, 3]  the scenes, each in its place
                       drawn     bool  [73000]             which of them are there; NSD's own file has all

A picture is a chunk of the file, so that places without one take no room.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from nsd import N_IMAGES, Layout, Stimuli
from nsd.stimuli import BRICK, DRAWN
from realtime.record.storage import lock
from sim.errors import SimError
from sim.forward import Scenes
from sim.scenes import SIZE_PX

_FLUSH_IMAGES = 2_000
_POLL_S = 0.5


def write_stimuli(layout: Layout, scenes: Scenes, images: npt.NDArray[np.int64]) -> None:
    """Add ``images``, 0-based, to the stimulus file, which is made if there is none.

    The file is replaced when all are there; an incomplete one is continued.

    Another process that adds to the file is waited for.

    :raises SimError: when an existing file has other scenes, or cannot take more
    """
    path = layout.stimuli()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_with(path):
        _write(layout, scenes, images)


@contextlib.contextmanager
def _alone_with(path: Path) -> Iterator[None]:
    """Wait until no other process writes the file; subjects may be made side by side."""
    lock_path = path.with_name(path.name + ".lock")
    with lock_path.open("ab") as file:
        is_told = False
        while True:
            try:
                lock(file.fileno())
                break
            except (BlockingIOError, PermissionError):
                if not is_told:
                    tqdm.write(f"waiting for another process, which writes pictures to {path}", sys.stderr)
                is_told = True
                time.sleep(_POLL_S)
        yield


def _write(layout: Layout, scenes: Scenes, images: npt.NDArray[np.int64]) -> None:
    path = layout.stimuli()
    if len(images) and path.exists():
        images = np.setdiff1d(images, _drawn(layout, scenes))
    if not len(images):
        return
    partial = path.with_name(path.name + ".part")
    with _open_partial(partial, path, scenes) as file:
        left = np.setdiff1d(images, np.flatnonzero(file[DRAWN][:]))
        done = len(np.unique(images)) - len(left)
        with tqdm(total=done + len(left), initial=done, desc="pictures", unit="img", mininterval=1) as bar:
            for start in range(0, len(left), _FLUSH_IMAGES):
                _draw(file, scenes, left[start : start + _FLUSH_IMAGES], bar)
    partial.replace(path)


def _draw(file: Any, scenes: Scenes, images: npt.NDArray[np.int64], bar: Any) -> None:
    """Write pictures and, once they are on disk, that they are there."""
    for image in images.tolist():
        file[BRICK][image] = scenes.render(image)
        bar.update()
    file.flush()
    file[DRAWN][images] = True
    file.flush()


def _drawn(layout: Layout, scenes: Scenes) -> npt.NDArray[np.int64]:
    """The pictures that the stimulus file has. :raises SimError: see :func:`write_stimuli`"""
    with Stimuli(layout) as stimuli:
        drawn, n_places = stimuli.drawn, len(stimuli)
        is_same = len(drawn) > 0 and _is_of(scenes, int(drawn[0]), stimuli.image(int(drawn[0])))
    if not is_same or n_places != N_IMAGES:
        raise SimError(
            f"{layout.stimuli()}: expected pictures of seed {scenes.seed} in {N_IMAGES} places, found "
            f"{'those' if is_same else 'others'} in {n_places} places; remove it or choose another folder"
        )
    return drawn


def _open_partial(partial: Path, path: Path, scenes: Scenes) -> Any:
    """Open ``partial`` to continue it if it is one of these scenes; otherwise begin with what there is."""
    with contextlib.suppress(OSError):  # absent, or damaged by a crash
        file = h5py.File(partial, "r+")
        if DRAWN in file:
            drawn = np.flatnonzero(file[DRAWN][:])
            if len(drawn) and _is_of(scenes, int(drawn[0]), file[BRICK][drawn[0]]):
                return file
        file.close()
    if path.exists():
        shutil.copyfile(path, partial)
        file = h5py.File(partial, "r+")
    else:
        file = h5py.File(partial, "w")
        size = (SIZE_PX, SIZE_PX, 3)
        form: Any = {"chunks": (1, *size), "compression": "gzip", "compression_opts": 1}
        file.create_dataset(BRICK, (N_IMAGES, *size), np.uint8, **form)
        file.create_dataset(DRAWN, N_IMAGES, np.bool_)
    return file


def _is_of(scenes: Scenes, image: int, picture: npt.NDArray[np.uint8]) -> bool:
    """Whether a picture is the scene of its number."""
    return np.array_equal(picture, scenes.render(image))
