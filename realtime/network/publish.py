"""Results out: every decoded frame to whoever subscribes, over a ZeroMQ PUB socket.

Each message has three parts:

    topic     ``frame``, ``run_start`` or ``run_end``; subscribe to the ones you want
    header    msgpack: a map with the fields of :class:`FrameHeader`, :class:`RunStart` or :class:`RunEnd`
    picture   of a frame: its bytes, RGB uint8 in C order, of the header's ``shape`` [height, width, 3];
              of the others: empty

A frame is sent the moment it is decoded, before it is recorded. Nothing is sent twice: who subscribes late,
or reads slower than frames are made, misses frames, and the pipeline never waits for anybody. Every header
has a ``sequence`` number, which rises by one with each message of its topic: a gap is what a subscriber has
missed, whatever topics it takes. How often one was found with its queue full is counted here, in
:attr:`Publisher.overruns`. A run that goes on after a restart of the runtime starts once more under the same
id, and the numbers from 0; what was decoded before is not sent again.

Without keys the socket listens on this machine's loopback only. With them (:mod:`realtime.network.curve`)
only subscribers whose public key is listed get anything. ``docs/subscriber.py`` is a whole subscriber.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Literal

import msgspec
import numpy as np
import zmq

from realtime.errors import ServeError
from realtime.events import Counts, Event, Frame, LatencyMs, Status
from realtime.network.address import bind, check_address
from realtime.network.curve import Guard, ServerKeys

PUBLISH_VERSION = 1
HIGH_WATER_MARK = 8
"""Messages that wait for each subscriber, beside those in its connection; what comes then it misses."""

_log = logging.getLogger(__name__)


class FrameHeader(msgspec.Struct, frozen=True, kw_only=True, tag="frame", tag_field="kind"):
    """One decoded frame."""

    version: int = PUBLISH_VERSION
    sequence: int
    """Of the messages of this topic since the runtime started, from 0; so in every header."""
    run_id: str
    volume: int
    """The newest volume of the window that was decoded, from 0."""
    window: tuple[int, int]
    """Half-open range of volumes the decoder saw."""
    decoder: str
    """The bundle's decoder that made it: the first decodes every volume, the others a picture's window."""
    shown_onset: int | None
    """Onset volume of the picture that the window belongs to, where markers tell."""
    status: Literal["warming", "trusted"]
    sampler: str
    received_unix_s: float
    """When the volume was whole here."""
    published_unix_s: float
    latency_ms: LatencyMs
    """By stage; ``total`` is what lies between these two times."""
    bundle_sha256: str
    shape: tuple[int, int, int]
    dtype: Literal["uint8"] = "uint8"


class RunStart(msgspec.Struct, frozen=True, kw_only=True, tag="run_start", tag_field="kind"):
    """A run begins, or goes on after a restart."""

    version: int = PUBLISH_VERSION
    sequence: int
    run_id: str
    subject: int
    tr_s: float
    planned: int
    """Volumes."""
    decoder: str
    """The bundle's first, which decodes every volume."""
    decode_delay_s: float
    """From an image's onset to the end of the window that shows it."""
    bundle_name: str
    bundle_sha256: str
    published_unix_s: float


class RunEnd(msgspec.Struct, frozen=True, kw_only=True, tag="run_end", tag_field="kind"):
    """A run has ended; no frame of it follows."""

    version: int = PUBLISH_VERSION
    sequence: int
    run_id: str
    counts: Counts
    published_unix_s: float


Header = FrameHeader | RunStart | RunEnd


class Publisher:
    """Sends events on; hand :meth:`take` to :meth:`realtime.events.Broadcast.call`.

    :param address: ``tcp://127.0.0.1:5556``; port 0 takes any free one.
    :param keys: with which subscribers must prove who they are.
    :raises ServeError: when the address is not good.
    """

    def __init__(self, address: str, keys: ServerKeys | None = None) -> None:
        self.overruns = 0
        """Times that a subscriber's queue was found full: it misses messages until it has read on."""
        self.published: Counter[str] = Counter()
        """Messages so far, by topic."""
        self._host, self._port = check_address(address, has_keys=keys is not None)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._guard = Guard(self._context, keys, "subscribers") if keys else None
        self._socket: zmq.Socket[bytes] | None = None
        self._status: Status | None = None
        self._open_folder: str | None = None

    def start(self) -> str:
        """Bind, in a running event loop; returns the address with its port.

        :raises ServeError: where the port is in use.
        """
        socket = self._context.socket(zmq.PUB)
        socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
        if self._guard:
            self._guard.start()
            self._guard.protect(socket)
        try:
            address = bind(socket, self._host, self._port)
        except ServeError:
            self._end_context()
            raise
        self._socket = socket
        return address

    def take(self, event: Event) -> None:
        """Publish what is to be published of an event; never waits, and raises nothing."""
        message = event.message
        if isinstance(message, Status):
            self._take_status(message)
        elif isinstance(message, Frame) and event.image is not None and not event.is_recorded:
            picture = np.ascontiguousarray(event.image)
            self._send(self._frame_header(message, picture.shape), picture.tobytes())

    def stop(self) -> None:
        """Close the socket; messages under way get half a second."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._end_context()

    def _end_context(self) -> None:
        if self._guard:
            self._guard.stop()
        self._context.term()

    def _take_status(self, status: Status) -> None:
        self._status = status
        if status.run_id is None or status.subject is None:
            return
        has_ended = status.state == "ended"
        if not has_ended and status.run_folder != self._open_folder:
            self._open_folder = status.run_folder
            self._send(self._run_start(status, status.run_id, status.subject))
        elif has_ended and status.run_folder == self._open_folder:
            self._open_folder = None
            end = RunEnd(
                sequence=self.published["run_end"],
                run_id=status.run_id,
                counts=status.counts,
                published_unix_s=time.time(),
            )
            self._send(end)

    def _run_start(self, status: Status, run_id: str, subject: int) -> RunStart:
        return RunStart(
            sequence=self.published["run_start"],
            run_id=run_id,
            subject=subject,
            tr_s=status.tr_s,
            planned=status.counts.planned,
            decoder=status.decoders[0].name,
            decode_delay_s=status.decode_delay_s,
            bundle_name=status.bundle_name,
            bundle_sha256=status.bundle_sha256,
            published_unix_s=time.time(),
        )

    def _frame_header(self, frame: Frame, shape: tuple[int, ...]) -> FrameHeader:
        height, width, channels = shape
        now_s = time.time()
        return FrameHeader(
            sequence=self.published["frame"],
            run_id=frame.run_id,
            volume=frame.volume,
            window=frame.window,
            decoder=frame.decoder,
            shown_onset=frame.shown_onset,
            status=frame.state,
            sampler=frame.sampler,
            received_unix_s=now_s - frame.latency_ms.total / 1e3,
            published_unix_s=now_s,
            latency_ms=frame.latency_ms,
            bundle_sha256=self._status.bundle_sha256 if self._status else "",
            shape=(height, width, channels),
        )

    def _send(self, header: Header, picture: bytes = b"") -> None:
        socket = self._socket
        if socket is None:
            return
        topic = _TOPICS[type(header)]
        parts = [topic.encode(), msgspec.msgpack.encode(header), picture]
        self.published[topic] += 1
        # A PUB socket passes over a peer whose queue is full and says nothing. To know of it, ask to be told:
        # then nobody has got the message, and it is sent once more, to those who have room. From then on
        # ZeroMQ leaves that peer out, unasked, until it has read on: so its messages cannot be counted here.
        try:
            socket.get(zmq.EVENTS)  # makes ZeroMQ take note of what peers have read: a send alone may not
            socket.set(zmq.XPUB_NODROP, 1)
            try:
                socket.send_multipart(parts, flags=zmq.NOBLOCK)
            except zmq.Again:
                self.overruns += 1
                _log.warning(
                    "a subscriber reads too slowly: it misses messages from %s %d on", topic, header.sequence
                )
                socket.set(zmq.XPUB_NODROP, 0)
                socket.send_multipart(parts, flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            _log.warning("cannot publish a %s: %s", topic, error)


_TOPICS: dict[type[Header], str] = {FrameHeader: "frame", RunStart: "run_start", RunEnd: "run_end"}
