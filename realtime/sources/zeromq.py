"""Receives this project's own messages (:mod:`realtime.wire`) over ZeroMQ."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from functools import partial

import zmq
import zmq.asyncio

from realtime import wire
from realtime.errors import ServeError, WireError
from realtime.network.connections import Connections
from realtime.network.endpoint import Endpoint
from realtime.network.key_files import Right, ServerKeys
from realtime.sources import Peer, Received

HIGH_WATER_MARK = 2
"""Messages queued per scanner on this side; further messages queue at the scanner."""
REPLIES_HIGH_WATER_MARK = 256
"""Replies queued per scanner; one that does not read loses further ones."""
STARTS_PER_MINUTE = 120
"""Run starts of one key. A scanner repeats its start every second while it gets no answer."""
HANDSHAKE_MS = 5_000
"""Time in which a peer must prove that it has a key."""

_BUDGET_VOLUMES = HIGH_WATER_MARK + 2
"""Volumes that ZeroMQ may hold: those that are queued, one on its way, and one to spare."""
_CURVE_BYTES = 64
"""More than encryption adds to a part."""
_SPARE_BYTES = 4 * 2**20

_log = logging.getLogger(__name__)


class ZeroMqSource:
    """A ROUTER socket that scanners, or presentation software, connect to.

    :param address: such as ``tcp://127.0.0.1:5555``, where port 0 chooses a free one, or ``ipc:///path``
    :param keys: keys that authenticate peers at ``tcp://``; unknown peers get no answer at all
    :param right: the right that peers need
    :param max_volume_bytes: size of the largest volume that is taken; it limits the memory that peers can use
    """

    def __init__(
        self,
        address: str,
        keys: ServerKeys | None = None,
        right: Right = "scanners",
        max_volume_bytes: int = wire.MAX_VOLUME_BYTES,
    ) -> None:
        self._context = zmq.asyncio.Context()
        self._endpoint = Endpoint(self._context, address, keys, right)
        self._socket: zmq.asyncio.Socket | None = None
        self._connections: Connections | None = None
        self._max_volume_bytes = max_volume_bytes
        self._max_part_bytes = max(max_volume_bytes, wire.MAX_PICTURE_BYTES) + _CURVE_BYTES
        self._started_s: dict[str, deque[float]] = {}
        """When the last runs of each key started."""

    async def start(self) -> str:
        """Bind and return the address with its port. :raises ServeError: when the port is in use"""
        socket = self._context.socket(zmq.ROUTER)
        socket.set(zmq.MAXMSGSIZE, self._max_part_bytes)
        socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.set(zmq.SNDHWM, REPLIES_HIGH_WATER_MARK)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._connections = self._watch(socket)
        try:
            address = self._endpoint.bind(socket)
        except ServeError:  # bind has closed the socket
            self._end_watch()
            self._end_context()
            raise
        self._socket = socket
        return address

    async def receive(self) -> Received:
        """Wait for the next message with a valid header and return it; refuse other messages."""
        if self._socket is None:
            raise ServeError("the source is not started; call start first")
        while True:
            await asyncio.sleep(0)  # a message that is there already is received without waiting
            frames = await self._socket.recv_multipart(copy=False)
            received_s = time.perf_counter()
            if self._connections:
                self._connections.delivered(frames)
            peer = Peer(key=_key(frames[-1]), connection=frames[0].bytes)
            reply = partial(self._reply, peer.connection)
            try:
                if not self._endpoint.allows(peer.key):
                    raise WireError("key", f"expected a listed key, got {peer.key}: it was removed")
                message, payload = parse([frame.buffer for frame in frames[1:]])
            except WireError as error:
                _log.warning("refused a message: %s", error)
                await reply(wire.Refused(run_id="", code=error.code, message=str(error)))
                continue
            try:
                self._check(message, peer)
            except WireError as error:
                _log.warning("refused a message of %s: %s", message.run_id, error)
                index = message.index if isinstance(message, wire.Volume) else None
                refused = wire.Refused(
                    run_id=message.run_id, code=error.code, message=str(error), index=index
                )
                await reply(refused)
                continue
            return Received(message=message, payload=payload, received_s=received_s, reply=reply, peer=peer)

    async def stop(self) -> None:
        """Close the socket; pending replies get half a second."""
        if self._socket is not None:
            socket, self._socket = self._socket, None
            self._end_watch()
            socket.close()
            self._end_context()

    def _watch(self, socket: zmq.asyncio.Socket) -> Connections | None:
        """Limit the connections of a TCP port; programs of this user could do worse than flood it."""
        if not self._endpoint.is_tcp:
            return None
        return Connections(socket, _BUDGET_VOLUMES * self._max_part_bytes + _SPARE_BYTES)

    def _end_watch(self) -> None:
        if self._connections:
            self._connections.close()
            self._connections = None

    def _check(self, message: wire.ToRuntime, peer: Peer) -> None:
        """Check a message on its own. :raises WireError: codes ``checksum``, ``size`` and ``busy``"""
        if isinstance(message, wire.Volume) and message.crc32 is None:
            raise WireError(
                "checksum",
                f"expected crc32 with volume {message.index}, got none: a damaged volume would go unnoticed",
            )
        if not isinstance(message, wire.RunStart):
            return
        if message.volume_bytes > self._max_volume_bytes:
            raise WireError(
                "size",
                f"expected volumes of at most {self._max_volume_bytes} bytes, got a run with volumes of "
                f"{message.volume_bytes}",
            )
        now_s = time.monotonic()
        starts = self._started_s.setdefault(peer.key, deque(maxlen=STARTS_PER_MINUTE))
        if len(starts) == STARTS_PER_MINUTE and now_s - starts[0] < 60:
            raise WireError(
                "busy",
                f"expected at most {STARTS_PER_MINUTE} run starts a minute, got another; send it again later",
            )
        starts.append(now_s)

    def _end_context(self) -> None:
        self._endpoint.close()
        self._context.term()

    async def _reply(self, peer: bytes, message: wire.ToScanner) -> None:
        if self._socket is not None:
            with contextlib.suppress(zmq.Again):
                await self._socket.send_multipart([peer, wire.encode(message), b""], flags=zmq.NOBLOCK)


def _key(frame: zmq.Frame) -> str:
    """The public key that the sender of a frame has authenticated with; empty over ``ipc://``."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def parse(frames: list[memoryview]) -> tuple[wire.ToRuntime, memoryview]:
    """Parse the frames of a message into header and payload.

    :raises WireError: codes ``frames``, ``size``, ``picture`` and those of
        :func:`realtime.wire.decode_to_runtime`
    """
    if len(frames) != 2:
        raise WireError("frames", f"expected two frames, a header and a buffer, got {len(frames)}")
    header, payload = frames
    if len(header) > wire.MAX_HEADER_BYTES:
        raise WireError(
            "header", f"expected a header of at most {wire.MAX_HEADER_BYTES} bytes, got {len(header)}"
        )
    message = wire.decode_to_runtime(bytes(header))
    limit = _PAYLOAD_LIMITS.get(type(message), 0)
    if len(payload) > limit:
        raise WireError(
            "size",
            f"expected at most {limit} bytes after a {type(message).__name__} header, got {len(payload)}",
        )
    if isinstance(message, wire.Marker) and not payload:
        raise WireError(
            "picture",
            f"expected a picture with the marker at volume {message.onset_volume}, got none; send its PNG",
        )
    return message, payload


_PAYLOAD_LIMITS: dict[type, int] = {
    wire.Volume: wire.MAX_VOLUME_BYTES,
    wire.Marker: wire.MAX_PICTURE_BYTES,
}
