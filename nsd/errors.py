"""Errors of reading a data set in NSD's layout.

NsdError
├── MissingFile      a file of the layout does not exist
├── BadFile          the content of a file differs from the layout
├── GridMismatch     two files of a subject have different grids
└── BadRequest       the caller requested something that the data set does not contain
"""

from __future__ import annotations

from pathlib import Path


class NsdError(Exception):
    """Base of this package's errors; its text is one line for a terminal."""


class MissingFile(NsdError):
    """A file of the layout does not exist; can be pickled, because worker processes raise it."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def __str__(self) -> str:
        return f"{self.path}: expected {self.what}, found no such file; check the root folder"


class BadFile(NsdError):
    """The content of a file differs from the layout."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(path, expected, found)
        self.path, self.expected, self.found = path, expected, found

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


class GridMismatch(NsdError):
    """Two files that must have the same voxel grid have different ones."""


class BadRequest(NsdError):
    """The caller requested a subject, session, run, volume or image that does not exist."""


def require_file(path: Path, what: str) -> Path:
    """Return ``path``, a file that should be ``what``. :raises MissingFile: when it does not exist"""
    if not path.is_file():
        raise MissingFile(path, what)
    return path
