"""Sends volumes over AFNI's real-time protocol, as Dimon does: a control port, then a data port.

Source: AFNI's README.realtime. Its "DICOM" coordinates are LPS+.
"""

from __future__ import annotations

import socket
import time

import numpy as np

from realtime import wire
from realtime.sources.orient import LPS_TO_RAS
from sim.delivery import IsInterrupted, Tell, Voxels
from sim.errors import SimError

PATIENCE_S = 10.0
"""How long the runtime has to open the data port."""
_TRY_AGAIN_S = 0.2
_DATUM = {"int16": ("short", "<i2"), "float32": ("float", "<f4"), "float64": ("float", "<f4")}


class AfniExport:
    """One connection, which is one run.

    :param place: host and port of the control port, such as ``//127.0.0.1:7961``
    :raises SimError: when an address is not valid, or the protocol has no such voxels
    """

    def __init__(self, place: str, data_port: str, start: wire.RunStart, tell: Tell) -> None:
        host, _, port = place.removeprefix("//").rpartition(":")
        if not host or not port.isdecimal() or not data_port.isdecimal():
            raise SimError(
                f"afni+tcp:{place}: expected ports like afni+tcp://127.0.0.1:7961?data=7960, "
                f"got data port {data_port!r}"
            )
        if start.dtype not in _DATUM:
            raise SimError(f"AFNI's protocol: expected voxels of int16 or float, got {start.dtype}")
        self._host, self._control, self._data = host.strip("[]"), int(port), int(data_port)
        self._start = start
        self._tell = tell
        self._socket: socket.socket | None = None

    def begin(self, is_interrupted: IsInterrupted) -> bool:
        """Name the data port, connect to it and send the commands.

        :raises SimError: when the runtime does not open the data port
        """
        if not self._name_data_port(is_interrupted):
            return False
        until_s = time.monotonic() + PATIENCE_S
        while (connection := self._connection(self._data)) is None:
            if is_interrupted():
                return False
            if time.monotonic() > until_s:
                raise SimError(
                    f"the runtime did not open data port {self._data} in {PATIENCE_S:.0f} s: another sender "
                    "is connected, or the port is in use (`?data=PORT` names another); its log says which"
                )
            time.sleep(_TRY_AGAIN_S)
        self._socket = connection
        connection.sendall(commands(self._start).encode() + b"\0")
        return True

    def send(self, index: int, voxels: Voxels) -> None:
        """Send a volume, x fastest; the protocol does not number volumes."""
        assert self._socket is not None
        image = voxels.astype(_DATUM[self._start.dtype][1]).transpose(2, 1, 0).tobytes()
        try:
            self._socket.sendall(image)
        except OSError as error:
            raise SimError(
                f"the runtime closed the connection before volume {index}: {error}; its log says why"
            ) from error

    def end(self) -> None:
        """Close the connection, which ends the run."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _name_data_port(self, is_interrupted: IsInterrupted) -> bool:
        has_told = False
        while not is_interrupted():
            if (control := self._connection(self._control)) is not None:
                with control:
                    control.sendall(f"tcp:localhost:{self._data}\0".encode())
                return True
            if not has_told:
                self._tell(f"nobody listens on {self._host}:{self._control}; trying again (Ctrl-C ends)")
                has_told = True
            time.sleep(_TRY_AGAIN_S)
        return False

    def _connection(self, port: int) -> socket.socket | None:
        try:
            return socket.create_connection((self._host, port), timeout=PATIENCE_S)
        except OSError:
            return None


def commands(start: wire.RunStart) -> str:
    """Return the commands that describe a run's images."""
    in_patient = LPS_TO_RAS @ np.array(start.affine)
    sizes_mm = np.linalg.norm(in_patient[:3, :3], axis=0)
    extent_mm = sizes_mm * start.shape
    return "\n".join(
        [
            "ACQUISITION_TYPE 3D+timing",
            "ZORDER seq",
            f"TR {start.tr_s:.6f}",
            "XYFOV " + " ".join(f"{mm:.6f}" for mm in extent_mm),
            "XYMATRIX " + " ".join(str(n) for n in start.shape),
            f"DATUM {_DATUM[start.dtype][0]}",
            "BYTEORDER LSB_FIRST",
            "XYZAXES L-R P-A I-S",
            "OBLIQUE_XFORM " + " ".join(f"{value:.6f}" for value in in_patient.ravel()),
            "",
        ]
    )
