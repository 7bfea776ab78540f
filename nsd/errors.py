"""Everything that can go wrong when a data set in NSD's layout is read.

NsdError
├── MissingFile      a file of the layout is not there
├── BadFile          a file is there but is not what the layout says
├── GridMismatch     two files of one subject do not lie on the same grid
└── BadRequest       the caller asked for something the data set does not have
"""

from __future__ import annotations

from pathlib import Path


class NsdError(Exception):
    """Root of this package's errors; its text is one line fit for a terminal."""


class MissingFile(NsdError):
    """A file of the layout is not there."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: expected {what}, found no such file; check the root folder")
        self.path = path


class BadFile(NsdError):
    """A file exists, but its content is not what the layout says."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")
        self.path = path


class GridMismatch(NsdError):
    """Two files that must share one voxel grid do not."""


class BadRequest(NsdError):
    """The caller asked for a subject, session, run, volume or image that does not exist."""


def require_file(path: Path, what: str) -> Path:
    """Return ``path`` if it is a file; raise `MissingFile` naming ``what`` it should be otherwise."""
    if not path.is_file():
        raise MissingFile(path, what)
    return path
