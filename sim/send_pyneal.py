"""Sends volumes as Pyneal's scanner side does: ZeroMQ PAIR, a greeting, JSON headers, answers to volumes.

https://pyneal.readthedocs.io
"""

from __future__ import annotations

import json
import time

import zmq

from realtime import wire
from sim.delivery import IsInterrupted, Tell, Voxels
from sim.errors import SimError
from sim.sender import RefusedError

GREETING = "hello from pyneal_scanner "
PATIENCE_S = 10.0
"""How long to wait for the answer to a volume; the protocol does not send a volume again."""
_GREET_AGAIN_MS = 2_000
_POLL_MS = 200


class PynealExport:
    """The scanner side of Pyneal's protocol. :raises SimError: when ZeroMQ cannot connect to the address"""

    def __init__(self, address: str, start: wire.RunStart, tell: Tell) -> None:
        self._start = start
        self._tell = tell
        self._is_interrupted: IsInterrupted = lambda: False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.end()
            raise SimError(
                f"pyneal+{address}: expected an address like tcp://127.0.0.1:5555: {error}"
            ) from error

    def begin(self, is_interrupted: IsInterrupted) -> bool:
        """Greet until the greeting comes back."""
        self._is_interrupted = is_interrupted
        has_told = False
        while not is_interrupted():
            self._put([GREETING.encode()])
            if self._socket.poll(_GREET_AGAIN_MS):
                self._socket.recv()
                return True
            if not has_told:
                self._tell("no answer to the greeting; trying again (Ctrl-C ends)")
                has_told = True
        return False

    def send(self, index: int, voxels: Voxels) -> None:
        """Send a volume as 64-bit floats, as the clients for GE and Siemens do, and wait for the answer."""
        header = {
            "volIdx": index,
            "dtype": "float64",
            "shape": voxels.shape,
            "affine": json.dumps(self._start.affine),
            "TR": str(self._start.tr_s),
        }
        self._put([json.dumps(header).encode(), voxels.astype("<f8").tobytes()])
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s and not self._is_interrupted():
            if not self._socket.poll(_POLL_MS):
                continue
            answer = self._socket.recv().decode(errors="replace")
            if "STOP" in answer:
                raise RefusedError(f"the runtime refused: {answer.removeprefix('STOP: ')}")
            if answer == f"received volIdx {index}":
                return
        if not self._is_interrupted():
            self._tell(f"no answer to volume {index} in {PATIENCE_S:.0f} s; it may be lost")

    def end(self) -> None:
        """Disconnect; the protocol has no end of a run."""
        self._socket.close(linger=500)
        self._context.term()

    def _put(self, frames: list[bytes]) -> None:
        try:
            self._socket.send_multipart(frames, flags=zmq.NOBLOCK)
        except zmq.Again:
            return  # nobody is connected and the queue is full; the missing answer is told
