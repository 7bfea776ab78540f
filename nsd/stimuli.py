"""Reads the stimulus pictures."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from nsd.errors import BadFile, BadRequest, require_file
from nsd.layout import Layout

BRICK = "imgBrick"
DRAWN = "drawn"
"""Which pictures are there, in the file of a synthetic data set; NSD's own has all."""


class Stimuli:
    """The stimulus pictures, uint8 ``[H, W, 3]`` RGB, by 0-based image index. A context manager.

    :raises MissingFile: when there is no stimulus file
    :raises BadFile: when it is not HDF5, has no uint8 ``imgBrick`` of shape ``(N, H, W, 3)``, or a ``drawn``
        of another length
    """

    def __init__(self, layout: Layout) -> None:
        import h5py  # here, because most users of this package do not read pictures

        self._path = require_file(layout.stimuli(), "the stimulus pictures")
        try:
            self._file = h5py.File(self._path, "r")
        except OSError as error:
            raise BadFile(self._path, "an HDF5 file", str(error)) from error
        self._brick = self._file.get(BRICK)
        shape: tuple[int, ...] = getattr(self._brick, "shape", ())
        if len(shape) != 4 or shape[3] != 3 or self._brick.dtype != np.uint8:
            self.close()
            found = f"shape {shape}" if shape else "none"
            raise BadFile(self._path, f"uint8 data set {BRICK!r} of shape (N, H, W, 3)", found)
        self._is_drawn = np.ones(shape[0], dtype=np.bool_)
        if DRAWN in self._file:
            self._is_drawn = np.asarray(self._file[DRAWN], dtype=np.bool_)
            if self._is_drawn.shape != shape[:1]:
                self.close()
                raise BadFile(self._path, f"{DRAWN!r} of shape {shape[:1]}", f"shape {self._is_drawn.shape}")

    def __enter__(self) -> Stimuli:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        return int(self._brick.shape[0])

    @property
    def drawn(self) -> npt.NDArray[np.int64]:
        """The pictures that are there, in order; in NSD's own file, all."""
        return np.flatnonzero(self._is_drawn)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of every picture."""
        return int(self._brick.shape[1]), int(self._brick.shape[2])

    def image(self, image: int) -> npt.NDArray[np.uint8]:
        """Return one picture, uint8 ``[H, W, 3]``. :raises BadRequest: when there is no such picture"""
        if not 0 <= image < len(self):
            raise BadRequest(f"image {image}: expected 0 to {len(self) - 1} in {self._path}")
        if not self._is_drawn[image]:
            raise BadRequest(
                f"image {image}: expected one of the {len(self.drawn)} that {self._path} has; `python -m sim "
                "synthesize` adds those of further subjects, sessions, or all"
            )
        return np.asarray(self._brick[image], dtype=np.uint8)

    def images(self, images: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return pictures in the given order, uint8 ``[N, H, W, 3]``; repeats are allowed."""
        pictures = np.empty((len(images), *self.size_px, 3), dtype=np.uint8)
        # In file order, so that each compressed chunk is decompressed once.
        for position in np.argsort(np.asarray(images, dtype=np.int64), kind="stable"):
            pictures[position] = self.image(int(images[position]))
        return pictures
