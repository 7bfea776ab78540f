"""Senders of a run by each way that volumes come in. Each notes what it sent, and what the way may lose."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

from realtime import wire
from realtime.sources.dicom_port import OUT_OF_RESOURCES
from sim import dicom_images
from sim.delivery import Delivery, Export, Voxels, open_export
from sim.dialects import Images
from sim.errors import SimError
from sim.faults import IN_TRANSIT, KINDS, FaultyLink, FaultyScan, Kind, Plan, late_tr
from sim.scanner import Scanner, ZmqLink
from sim.send_dicom import ANY_TITLE, NodeExport
from sim.send_files import DICOM_FORMATS, NIFTI_FORMATS, Files, FolderExport, Format, dicom_format
from sim.sender import RefusedError, Sender

OF_SCANNERS = tuple(kind for kind in KINDS if kind not in IN_TRANSIT)
OF_INTEGERS = tuple(kind for kind in OF_SCANNERS if kind != "nan")
LATE_TR, TOO_LATE_TR = 0.5, 1.5
"""The second half of a file comes so much later; after the other time a runtime may take it as it is."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way in."""

    source: str
    """Of `realtime serve`, beside ``folder`` for a folder in its working folder."""
    kinds: tuple[Kind, ...]
    """Faults that it can carry."""
    form: str = ""
    """Of files and objects."""
    has_late_bytes: bool = False
    """Whether files have their full size first and their bytes later."""
    has_slices: bool = False
    """Whether objects are slices, which are answered before their volume is complete."""
    is_numbered: bool = True
    """Whether volumes are numbered; otherwise they are counted."""
    is_announced: bool = False
    """Whether runs have starts and ends."""


WAYS = {
    "messages": Way(source="tcp://127.0.0.1:0", kinds=KINDS, is_announced=True),
    "pyneal": Way(source="pyneal+tcp://127.0.0.1:0", kinds=OF_SCANNERS),
    "afni": Way(source="afni+tcp://127.0.0.1:0", kinds=("stall", "spike"), is_numbered=False),
    "dicom, mosaics": Way(source="dicom://127.0.0.1:0", form="mosaic", kinds=OF_INTEGERS),
    "dicom, enhanced": Way(source="dicom://127.0.0.1:0", form="enhanced", kinds=OF_INTEGERS),
    "dicom, slices": Way(source="dicom://127.0.0.1:0", form="classic", kinds=OF_INTEGERS, has_slices=True),
    "folder, mosaics": Way(source="folder", form="mosaic", kinds=OF_INTEGERS),
    "folder, enhanced": Way(source="folder", form="enhanced", kinds=OF_INTEGERS),
    "folder, slices": Way(source="folder", form="classic", kinds=OF_INTEGERS, has_slices=True),
    "folder, NIfTI": Way(source="folder", form="nifti", kinds=OF_SCANNERS),
    "folder, mosaics with late bytes": Way(
        source="folder", form="mosaic", kinds=OF_INTEGERS, has_late_bytes=True
    ),
    "folder, NIfTI with late bytes": Way(
        source="folder", form="nifti", kinds=OF_SCANNERS, has_late_bytes=True
    ),
}


@dataclass(kw_only=True)
class Sent:
    """What a sender knows of a run that it has sent."""

    order: list[int] = field(default_factory=list)
    """Indices of volumes in the order in which they went out."""
    may_be_lost: set[int] = field(default_factory=set)
    """Volumes that the documentation of the way lets a crash lose."""
    is_cut: bool = False
    """Whether the connection broke in a way that knows no going on."""


def send(way: Way, scan: FaultyScan, plan: Plan, address: str, keys: Path) -> list[Sent]:
    """Send a run until it went out as a whole; the last is that one, before it those that were cut.

    :param keys: a scanner's folder of keys, for this project's own messages
    """
    if way.is_announced:
        return [_by_messages(scan, plan, address, keys)]
    attempts = [_by_export(way, scan, plan, address)]
    while attempts[-1].is_cut:
        attempts.append(_by_export(way, scan, plan, address))
    return attempts


def _by_messages(scan: FaultyScan, plan: Plan, address: str, keys: Path) -> Sent:
    n_volumes = scan.start.n_volumes
    late = late_tr(plan, n_volumes)
    sender = Sender(scan.start, [], speed=1.0, late_tr=late)
    with ZmqLink(address, keys) as link:
        if not Scanner(scan, FaultyLink(link, plan), sender, tell=lambda _: None).replay():
            raise SystemExit(f"{scan.start.run_id}: expected that the runtime closes it as complete")
    return Sent(order=[index for index in range(n_volumes) if late.get(index) != float("inf")])


def _by_export(way: Way, scan: FaultyScan, plan: Plan, address: str) -> Sent:
    sent = Sent()
    export = _opened(way, scan, address, sent)
    late = late_tr(plan, scan.start.n_volumes)
    try:
        Delivery(scan, export, speed=1.0, late_tr=late, on_sent=sent.order.append).run()
    except SimError:
        if way.is_numbered:
            raise
        sent.is_cut = True
    return sent


def _opened(way: Way, scan: FaultyScan, address: str, sent: Sent) -> Export:
    start = scan.start
    kind, _, place = address.partition(":")
    if kind == "folder":
        write = NIFTI_FORMATS.get(way.form) or _dicom_files(DICOM_FORMATS[way.form])
        if way.has_late_bytes:
            return LateBytes(Path(place), write, start, sent)
        return FolderExport(Path(place), write, start)
    if kind == "dicom":
        return PatientNode(place, way, start, sent)
    if kind == "afni+tcp":
        return open_export(f"{address}?data={_free_port()}", start, lambda _: None)
    return open_export(address, start, _note_unanswered(sent))


def _dicom_files(images: Images) -> Format:
    def files(start: wire.RunStart, index: int, voxels: Voxels) -> Files:
        for name, image in images(start, index, voxels):
            yield name, dicom_images.encode(image)

    return files


def _note_unanswered(sent: Sent) -> Callable[[str], None]:
    """Pyneal's protocol sends a volume once: one without an answer may be lost."""

    def tell(line: str) -> None:
        if found := re.match(r"no answer to volume (\d+)", line):
            sent.may_be_lost.add(int(found[1]))

    return tell


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class LateBytes(FolderExport):
    """Gives files their full size first, as Windows' copies to a share do, and their bytes later."""

    def __init__(self, folder: Path, write: Format, start: wire.RunStart, sent: Sent) -> None:
        super().__init__(folder, write, start)
        self._sent = sent

    def send(self, index: int, voxels: Voxels) -> None:
        """Write the files of a volume."""
        tr_s = self._start.tr_s
        for name, content in self._write(self._start, index, voxels):
            half = len(content) // 2
            with (self._folder / name).open("xb", buffering=0) as file:
                file.truncate(len(content))
                file.write(content[:half])
                begun_s = time.monotonic()
                time.sleep(LATE_TR * tr_s)
                file.write(content[half:])
            if time.monotonic() - begun_s > TOO_LATE_TR * tr_s:  # this process had no core
                self._sent.may_be_lost.add(index)


class PatientNode(NodeExport):
    """Stores an object that got no answer again, in a new association, as PACS nodes do."""

    def __init__(self, place: str, way: Way, start: wire.RunStart, sent: Sent) -> None:
        super().__init__(place, ANY_TITLE, dicom_format(way.form, ""), start, lambda _: None)
        self._sent = sent

    def send(self, index: int, voxels: Voxels) -> None:
        """Store the images of a volume, each until it is kept.

        :raises RefusedError: when the node does not want an image
        """
        for n_kept, (_, image) in enumerate(self._images(self._start, index, voxels)):
            while not self._is_kept(image):
                if n_kept:  # the recorder has died, and with it the slices that it had of this volume
                    self._sent.may_be_lost.add(index)
                with contextlib.suppress(SimError):
                    self._node.close()
                    self._node.connect(lambda: False)

    def _is_kept(self, image: Dataset) -> bool:
        try:
            self._node.store(image)
        except RefusedError as error:
            if f"0x{OUT_OF_RESOURCES:04X}" not in str(error):  # it says so while it stops
                raise
        except SimError:
            pass
        else:
            return True
        return False
