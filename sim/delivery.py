"""Sends a run by a protocol that is not this project's own: at the scan's pace, each volume once.

Such protocols have no acknowledgements, or weak ones, so what is lost in transit is lost. Time passes only in
``sleep`` and in the export, so a test can replace the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from realtime import wire
from sim.errors import SimError
from sim.faults import StartedRun
from sim.sender import Pacer

Voxels = npt.NDArray[np.generic]
Tell = Callable[[str], None]
IsInterrupted = Callable[[], bool]

OWN = ("tcp:", "ipc:")
"""Addresses of this project's own messages."""
FORMS = (
    "tcp://127.0.0.1:5555 or ipc:///path (this project's own messages), pyneal+tcp://127.0.0.1:5555, "
    "afni+tcp://127.0.0.1:7961, dicom://127.0.0.1:11112?aet=NAME or folder:/path?format=mosaic"
)
_LONGEST_WAIT_S = 0.5


class Export(Protocol):
    """A way for the volumes of one run to leave the scanner."""

    def begin(self, is_interrupted: IsInterrupted) -> bool:
        """Connect, if need be wait for the other side; False if interrupted."""

    def send(self, index: int, voxels: Voxels) -> None:
        """Send a volume ``[x, y, z]``. :raises SimError: when the other side refuses"""

    def end(self) -> None:
        """End the run, complete or not."""


def open_export(address: str, start: wire.RunStart, tell: Tell) -> Export:
    """Open the export at an address, which is the runtime's ``--source`` where both are on one machine.

    :raises SimError: when the address is none of `FORMS`
    """
    kind, _, rest = address.partition(":")
    place, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if kind == "folder" and place:
        from sim.send_files import open_folder

        name, dialects = options.pop("format", "nifti"), options.pop("dialect", "")
        return open_folder(Path(place), name, dialects, _none_left(start, address, options))
    if kind == "pyneal+tcp":
        from sim.send_pyneal import PynealExport

        return PynealExport(f"tcp:{place}", _none_left(start, address, options), tell)
    if kind == "afni+tcp":
        from sim.send_afni import AfniExport

        data_port = options.pop("data", "7960")
        return AfniExport(place, data_port, _none_left(start, address, options), tell)
    if kind == "dicom":
        from sim.send_dicom import ANY_TITLE, NodeExport
        from sim.send_files import dicom_format

        images = dicom_format(options.pop("format", "enhanced"), options.pop("dialect", ""))
        title = options.pop("aet", ANY_TITLE)
        return NodeExport(place, title, images, _none_left(start, address, options), tell)
    raise SimError(f"{address}: expected an address like {FORMS}")


def _none_left(start: wire.RunStart, address: str, options: Mapping[str, str]) -> wire.RunStart:
    if options:
        raise SimError(f"{address}: expected no option {', '.join(options)}; `--help` lists what there is")
    return start


class Delivery:
    """Sends one run through an export.

    :param speed: 1 is the scan's pace
    :param late_tr: as for `Pacer`
    :param on_sent: called with the index of each volume that was sent
    """

    def __init__(
        self,
        scan: StartedRun,
        export: Export,
        *,
        speed: float,
        late_tr: Mapping[int, float] | None = None,
        on_sent: Callable[[int], None] = lambda index: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.n_sent = 0
        self._scan = scan
        self._export = export
        start, late = scan.start, late_tr or {}
        self._pacer = Pacer(n_volumes=start.n_volumes, tr_s=start.tr_s, speed=speed, late_tr=late)
        self._coming = {k for k in range(start.n_volumes) if not math.isinf(late.get(k, 0.0))}
        self._on_sent = on_sent
        self._clock, self._sleep = clock, sleep
        self._is_interrupted = False

    def interrupt(self) -> None:
        """End the run soon; signal handlers may call this."""
        self._is_interrupted = True

    def run(self, progress: tqdm[Any] | None = None) -> bool:
        """Send the run; return False if it was interrupted.

        :raises SimError: when the other side refuses
        """
        try:
            if not self._export.begin(lambda: self._is_interrupted):
                return False
            self._pacer.begin(self._clock(), 0)
            while self._coming and not self._is_interrupted:
                now_s = self._clock()
                for index in self._pacer.ready(now_s):
                    if index in self._coming and not self._is_interrupted:
                        self._send(index)
                        if progress is not None:
                            progress.update()
                self._wait(self._pacer.next_s(now_s))
        finally:
            self._export.end()
        return not self._coming

    def _send(self, index: int) -> None:
        start = self._scan.start
        self._export.send(index, wire.volume_array(start, self._scan.volume(index)))
        self._coming.remove(index)
        self.n_sent += 1
        self._on_sent(index)

    def _wait(self, until_s: float) -> None:
        """Wait for the next volume, in small steps, so that an interrupt is noticed."""
        while self._coming and not self._is_interrupted and (left_s := until_s - self._clock()) > 0:
            self._sleep(min(left_s, _LONGEST_WAIT_S))
