"""Publishes every decoded frame, and what each volume is like, to subscribers over a ZeroMQ PUB socket.

Each message has three parts:

    topic     ``frame``, ``quality``, ``run_start`` or ``run_end``; subscribe to the ones you need
    header    msgpack map with the fields of :class:`FrameHeader`, :class:`VolumeQuality`,
              :class:`RunStart` or :class:`RunEnd`
    picture   for ``frame``: RGB uint8 in C order, with the header's ``shape`` [height, width, 3];
              otherwise empty

A frame is sent as soon as it is decoded, before it is recorded. Nothing is repeated: a subscriber that
connects late, or reads more slowly than frames are decoded, misses frames; the pipeline never waits. Every
header has a ``sequence`` number that increases by one per message of its topic, so a gap shows missed
messages. :attr:`Publisher.overruns` counts how often a subscriber's queue was full. When a run continues
after a restart of the runtime, ``run_start`` is sent again with the same id, and sequence numbers restart
from 0; earlier frames are not sent again.

Over ``tcp://`` only subscribers with a listed public key (:mod:`realtime.network.curve`) receive messages.
Over ``ipc://`` every program of this user does. ``docs/examples/subscriber.py`` is an example.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import Literal

import msgspec
import numpy as np
import zmq

from realtime.errors import ServeError
from realtime.events import Counts, Event, Frame, LatencyMs, Quality, Status
from realtime.network.curve import REREAD_S
from realtime.network.endpoint import Endpoint
from realtime.network.key_files import ServerKeys

PUBLISH_VERSION = 1
HIGH_WATER_MARK = 8
"""Queue length per subscriber, besides the buffers of its connection; it misses messages beyond that."""

_TRY_AGAIN_S = 0.02

_log = logging.getLogger(__name__)


class FrameHeader(msgspec.Struct, frozen=True, kw_only=True, tag="frame", tag_field="kind"):
    """One decoded frame."""

    version: int = PUBLISH_VERSION
    sequence: int
    """Number of this message within its topic since the runtime started, from 0."""
    run_id: str
    volume: int
    """Index of the newest volume of the decoded window, from 0."""
    window: tuple[int, int]
    """Half-open range of the window's volumes."""
    decoder: str
    """Name of the bundle's decoder that made it; the first one decodes every volume, the others one window
    of each picture.
    """
    shown_onset: int | None
    """Onset volume of the picture that the window belongs to; None if no marker tells."""
    status: Literal["warming", "trusted"]
    sampler: str
    received_unix_s: float
    """Time when the volume was received completely."""
    published_unix_s: float
    latency_ms: LatencyMs
    """Latency by stage; ``total`` is the difference of the two times above."""
    bundle_sha256: str
    shape: tuple[int, int, int]
    dtype: Literal["uint8"] = "uint8"


class VolumeQuality(msgspec.Struct, frozen=True, kw_only=True, tag="quality", tag_field="kind"):
    """What a volume is like, before its frame; of several volumes that come at once, the newest."""

    version: int = PUBLISH_VERSION
    sequence: int
    run_id: str
    quality: Quality
    published_unix_s: float


class RunStart(msgspec.Struct, frozen=True, kw_only=True, tag="run_start", tag_field="kind"):
    """A run begins, or continues after a restart."""

    version: int = PUBLISH_VERSION
    sequence: int
    run_id: str
    subject: int
    tr_s: float
    planned: int
    """Planned number of volumes."""
    decoder: str
    """The bundle's first, which decodes every volume."""
    decode_delay_s: float
    """Time from a picture's onset to the end of its window."""
    bundle_name: str
    bundle_sha256: str
    published_unix_s: float


class RunEnd(msgspec.Struct, frozen=True, kw_only=True, tag="run_end", tag_field="kind"):
    """A run has ended; no more frames of it follow."""

    version: int = PUBLISH_VERSION
    sequence: int
    run_id: str
    counts: Counts
    published_unix_s: float


Header = FrameHeader | VolumeQuality | RunStart | RunEnd


class Publisher:
    """Publishes events; register :meth:`take` with :meth:`realtime.events.Broadcast.call`.

    :param address: such as ``tcp://127.0.0.1:5556``, where port 0 chooses a free one, or ``ipc:///path``
    :param keys: keys that authenticate subscribers at ``tcp://``
    :raises ServeError: when the address is malformed or not allowed
    """

    def __init__(self, address: str, keys: ServerKeys | None = None) -> None:
        self.overruns = 0
        """How often a subscriber's queue was found full; the subscriber misses messages until it reads."""
        self.published: Counter[str] = Counter()
        """Number of messages sent, by topic."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._endpoint = Endpoint(self._context, address, keys, "subscribers")
        self._socket: zmq.Socket[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._status: Status | None = None
        self._open_folder: str | None = None
        self._quality: Quality | None = None

    def start(self) -> str:
        """Bind and return the address with its port; needs a running event loop.

        :raises ServeError: when the port is in use
        """
        try:
            address = self._open()
        except ServeError:
            self._end_context()
            raise
        self._watching = asyncio.ensure_future(self._watch_keys())
        return address

    def take(self, event: Event) -> None:
        """Publish an event if it is a frame or changes a run's state; never waits or raises."""
        message = event.message
        if isinstance(message, Status):
            self._take_status(message)
        elif isinstance(message, Frame) and event.image is not None and not event.is_recorded:
            picture = np.ascontiguousarray(event.image)
            self._send(self._frame_header(message, picture.shape), picture.tobytes())

    def stop(self) -> None:
        """Close the socket; pending messages get half a second."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._end_context()

    def _open(self) -> str:
        socket = self._context.socket(zmq.PUB)
        socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
        address = self._endpoint.bind(socket)
        self._socket = socket
        return address

    async def _watch_keys(self) -> None:
        """Turn a subscriber out once its key is removed.

        ZeroMQ cannot close the connection of one subscriber, so all are closed. Those that still have a key
        connect again, and miss what is published meanwhile.
        """
        while True:
            await asyncio.sleep(REREAD_S)
            if not self._endpoint.revoked() or self._socket is None:
                continue
            _log.warning("the key of a subscriber was removed; all subscribers must connect again")
            self._socket.close(linger=0)
            self._socket = None
            while self._socket is None:
                await asyncio.sleep(_TRY_AGAIN_S)  # ZeroMQ closes the port on a thread of its own
                with contextlib.suppress(ServeError):
                    self._open()

    def _end_context(self) -> None:
        self._endpoint.close()
        self._context.term()

    def _take_status(self, status: Status) -> None:
        self._status = status
        if status.run_id is None or status.subject is None:
            return
        has_ended = status.state == "ended"
        if not has_ended and status.run_folder != self._open_folder:
            self._open_folder = status.run_folder
            self._send(self._run_start(status, status.run_id, status.subject))
        if status.quality is not None and status.quality is not self._quality:
            self._quality = status.quality
            self._send(self._volume_quality(status.run_id, status.quality))
        if has_ended and status.run_folder == self._open_folder:
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

    def _volume_quality(self, run_id: str, quality: Quality) -> VolumeQuality:
        return VolumeQuality(
            sequence=self.published["quality"],
            run_id=run_id,
            quality=quality,
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
        topic = _TOPICS[type(header)]
        parts = [topic.encode(), msgspec.msgpack.encode(header), picture]
        self.published[topic] += 1
        socket = self._socket
        if socket is None:
            return
        # A PUB socket silently drops messages to a peer whose queue is full. With XPUB_NODROP the send fails
        # instead, and nobody receives the message; it is then sent again to the others. From then on ZeroMQ
        # omits that peer until it has read, so the messages that it misses cannot be counted here.
        try:
            socket.get(zmq.EVENTS)  # makes ZeroMQ process what peers have read, which a send may not do
            socket.set(zmq.XPUB_NODROP, 1)
            try:
                socket.send_multipart(parts, flags=zmq.NOBLOCK)
            except zmq.Again:
                self.overruns += 1
                _log.warning(
                    "a subscriber reads too slowly and misses messages from %s %d on", topic, header.sequence
                )
                socket.set(zmq.XPUB_NODROP, 0)
                socket.send_multipart(parts, flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            _log.warning("cannot publish a %s: %s", topic, error)


_TOPICS: dict[type[Header], str] = {
    FrameHeader: "frame",
    VolumeQuality: "quality",
    RunStart: "run_start",
    RunEnd: "run_end",
}
