"""The presentation software beside a scanner whose protocol carries no pictures: it sends markers of its own.

A marker follows its onset volume. The runtime puts it into the open run (``realtime serve --markers``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import zmq

from realtime import wire
from realtime.network.key_files import load_client_keys, own_client_keys
from sim.delivery import Tell
from sim.errors import SimError
from sim.scanner import RunData

PATIENCE_MS = 5_000
"""How long to wait for the last answers."""


class Presentation:
    """Sends the pictures of a run to a runtime's port of markers.

    :param keys: the presentation's folder of keys; by default that of this user
    :raises SimError: when ZeroMQ cannot connect to the address, or there are no keys
    """

    def __init__(
        self, address: str, keys: Path | None, recording: RunData, markers: Sequence[wire.Marker], tell: Tell
    ) -> None:
        self._recording = recording
        self._waiting = sorted(markers, key=lambda marker: marker.onset_volume)
        self._tell = tell
        self._n_unanswered = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        try:
            if address.startswith("tcp:"):
                found = load_client_keys(keys) if keys else own_client_keys("presentation")
                if found is None:
                    raise SimError("--markers: expected keys, which `realtime serve` makes; start it first")
                found.use(self._socket)
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._close()
            raise SimError(f"--markers {address}: expected tcp://127.0.0.1:5557: {error}") from error
        except BaseException:
            self._close()
            raise

    def show(self, index: int) -> None:
        """Send the markers of the volumes up to ``index``, and take the answers that have come."""
        while self._waiting and self._waiting[0].onset_volume <= index:
            marker = self._waiting.pop(0)
            picture = self._recording.picture_png(marker.onset_volume)
            self._socket.send_multipart([wire.encode(marker), picture])
            self._n_unanswered += 1
        while self._n_unanswered and self._socket.poll(0):
            self._take_answer()

    def end(self) -> None:
        """Wait for the last answers, and disconnect."""
        while self._n_unanswered and self._socket.poll(PATIENCE_MS):
            self._take_answer()
        if self._n_unanswered:
            self._tell(f"{self._n_unanswered} pictures got no answer from the port of markers")
        self._close()

    def _take_answer(self) -> None:
        answer = wire.decode_to_scanner(self._socket.recv_multipart()[0])
        self._n_unanswered -= 1
        if isinstance(answer, wire.Refused):
            self._tell(f"a picture was refused: {answer.message}")

    def _close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()
