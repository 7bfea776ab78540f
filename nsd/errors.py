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
    """A file of the layout is not there. Its arguments are kept: it also crosses processes."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def __str__(self) -> str:
        return f"{self.path}: expected {self.what}, found no such file; check the root folder"


class BadFile(NsdError):
    """A file exists, but its content is not what the layout says."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(path, expected, found)
        self.path, self.expected, self.found = path, expected, found

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


class GridMismatch(NsdError):
    """Two files that must share one voxel grid do not."""


class BadRequest(NsdError):
    """The caller asked for a subject, session, run, volume or image that does not exist."""


def require_file(path: Path, what: str) -> Path:
    """Return ``path`` if it is a file; raise `MissingFile` naming ``what`` it should be otherwise."""
    if not path.is_file():
        raise MissingFile(path, what)
    return path
