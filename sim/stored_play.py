"""Stores the DICOM files of a played folder in a node, as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import ImplicitVRLittleEndian

from sim.delivery import Tell
from sim.errors import SimError
from sim.folder_play import Series
from sim.send_dicom import ANY_TITLE, Context, StoreNode


class Node:
    """Stores files in a node.

    :raises SimError: when a file is not DICOM, or the address is not valid
    """

    def __init__(self, source: Path, series: list[Series], place: str, title: str | None, tell: Tell) -> None:
        self._source = source
        contexts = {_context(_read(source / path)) for one in series for path in one.volumes[0]}
        self._node = StoreNode(place, title or ANY_TITLE, contexts, tell)

    def begin(self, is_interrupted: Callable[[], bool]) -> bool:
        """Associate with the node."""
        return self._node.connect(is_interrupted)

    def put(self, path: Path) -> None:
        """Store a file."""
        self._node.store(_read(self._source / path))

    def end(self) -> None:
        """End the association."""
        self._node.close()


def _read(path: Path) -> pydicom.FileDataset:
    try:
        image = pydicom.dcmread(path, force=True)
        _context(image)
    except (InvalidDicomError, AttributeError, OSError, EOFError, ValueError) as error:
        raise SimError(f"{path}: expected a DICOM file for a DICOM node: {error}") from error
    if "TransferSyntaxUID" not in image.file_meta:
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # a file without meta information
    return image


def _context(image: pydicom.FileDataset) -> Context:
    syntax = image.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    return str(image.SOPClassUID), str(syntax)
