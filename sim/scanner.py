"""The simulated scanner: replays a recorded run to a runtime at the pace of the scan.

It is a loop around `sim.sender.Sender`, which makes all decisions. Time passes only in `Link.receive`, so a
test can replace clock and link.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import zmq
from tqdm import tqdm

from realtime import wire
from realtime.network.key_files import load_client_keys, own_client_keys
from sim.errors import SimError
from sim.sender import Reconnect, Sender, State

ABORT_PATIENCE_S = 2.0
"""How long an interrupted scanner waits for the runtime to close the run."""

_LONGEST_WAIT_S = 0.5  # so that an interrupt is noticed even if the socket library swallows signals


class Link(Protocol):
    """A connection to the runtime."""

    def send(self, header: bytes, buffer: bytes) -> None:
        """Queue one message."""

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the header of the next reply, or None after the timeout."""

    def reconnect(self) -> None:
        """Drop the connection with all queued messages, and connect again."""


class ZmqLink:
    """A DEALER socket that connects to the runtime's ROUTER. A context manager.

    :param keys: the scanner's folder of keys; by default that of this user, which may appear later. Only the
        runtime that the keys name receives the volumes. An ``ipc://`` address needs none
    :raises SimError: when ``endpoint`` is not an address that ZeroMQ can connect to
    """

    def __init__(self, endpoint: str, keys: Path | None = None) -> None:
        self._endpoint = endpoint
        self._keys = load_client_keys(keys) if keys else None
        self._context = zmq.Context()
        self._socket = self._connect()

    def __enter__(self) -> ZmqLink:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def send(self, header: bytes, buffer: bytes) -> None:
        """Queue one message; if the queue is full, the sender reconnects and sends it again."""
        try:
            self._socket.send_multipart([header, buffer], flags=zmq.NOBLOCK)
        except zmq.Again:
            return

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the header of the next reply, or None after the timeout."""
        if not self._socket.poll(math.ceil(timeout_s * 1000)):
            return None
        return self._socket.recv_multipart()[0]

    def reconnect(self) -> None:
        """Drop the socket with all queued messages, and connect again."""
        self._socket.close(linger=0)
        self._socket = self._connect()

    def _connect(self) -> zmq.Socket[bytes]:
        if self._keys is None and self._endpoint.startswith("tcp:"):
            self._keys = own_client_keys("scanner")
        socket = self._context.socket(zmq.DEALER)
        if self._keys:
            self._keys.use(socket)
        try:
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            self._context.term()
            expected = "expected an address like tcp://127.0.0.1:5555"
            raise SimError(f"{self._endpoint}: {expected}: {error}") from error
        return socket


class RunData(Protocol):
    """The volumes and pictures of a run, as bytes for the wire."""

    def volume(self, index: int) -> bytes:
        """Return the voxels of a volume."""

    def picture_png(self, onset_volume: int) -> bytes:
        """Return the picture that appeared at a volume."""


class Scanner:
    """Replays one recording.

    :param tell: receives lines of text for the user
    :param clock: returns the time in seconds
    """

    def __init__(
        self,
        recording: RunData,
        link: Link,
        sender: Sender,
        *,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sender = sender
        self._recording = recording
        self._link = link
        self._tell = tell
        self._clock = clock
        self._said_unanswered = False
        self._said_trouble = False
        self._said_duplicates: set[int] = set()
        self._is_interrupted = False

    def interrupt(self) -> None:
        """End the run on both sides soon; signal handlers may call this."""
        self._is_interrupted = True

    def replay(self, progress: tqdm[None] | None = None) -> bool:
        """Send the run; return True if the runtime closed it as complete, False if it was interrupted.

        :param progress: updated with the number of volumes that the runtime has
        :raises RefusedError: when the runtime refuses the run
        """
        give_up_s = math.inf
        while not self.sender.is_finished and self._clock() < give_up_s:
            if self._is_interrupted and not self.sender.aborted:
                self.sender.abort()
                give_up_s = self._clock() + ABORT_PATIENCE_S
            self._step(give_up_s)
            if progress is not None:
                progress.update(self.sender.n_held - progress.n)
        return self.sender.is_finished and not self.sender.aborted

    def _step(self, give_up_s: float) -> None:
        """Send the messages that are due, then wait for a reply until the next one is due."""
        now_s = self._clock()
        for action in self.sender.poll(now_s):
            if isinstance(action, Reconnect):
                self._link.reconnect()
            else:
                self._send(action)
        self._say_unanswered()
        wake_s = min(self.sender.wake_s(now_s), give_up_s)
        header = self._link.receive(min(max(wake_s - self._clock(), 0), _LONGEST_WAIT_S))
        if header is None:
            return
        was_opening = self.sender.state is State.OPENING
        self.sender.on_reply(wire.decode_to_scanner(header), self._clock())
        self._say_duplicates()
        if was_opening and self.sender.state is not State.OPENING:
            self._say_accepted()

    def _send(self, message: wire.ToRuntime) -> None:
        buffer = self._buffer(message)
        if isinstance(message, wire.Volume):
            message = wire.with_checksum(message, buffer)
        self._link.send(wire.encode(message), buffer)

    def _buffer(self, message: wire.ToRuntime) -> bytes:
        if isinstance(message, wire.Volume):
            return self._recording.volume(message.index)
        if isinstance(message, wire.Marker):
            return self._recording.picture_png(message.onset_volume)
        return b""

    def _say_unanswered(self) -> None:
        if self.sender.is_unanswered and not self._said_unanswered:
            self._tell(
                "no answer from the runtime; trying again, nothing is lost (Ctrl-C ends). A runtime "
                "answers only known keys, and its log names the keys it turned away"
            )
        self._said_unanswered = self.sender.is_unanswered
        if self.sender.trouble and not self._said_trouble:
            self._tell(f"the runtime refuses for now: {self.sender.trouble}; trying again, nothing is lost")
        self._said_trouble = bool(self.sender.trouble)

    def _say_duplicates(self) -> None:
        for index in self.sender.duplicates.keys() - self._said_duplicates:
            self._said_duplicates.add(index)
            said = self.sender.duplicates[index]
            self._tell(f"the runtime keeps another volume {index} than the one sent: {said}")

    def _say_accepted(self) -> None:
        n_held, n_volumes = self.sender.n_held, self.sender.start.n_volumes
        self._tell(f"the runtime accepts the run; it has {n_held} of {n_volumes} volumes")
