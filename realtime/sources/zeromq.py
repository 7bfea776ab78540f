"""Receives this project's own messages (:mod:`realtime.wire`) over ZeroMQ."""

from __future__ import annotations

import logging
import time
from functools import partial

import zmq
import zmq.asyncio

from realtime import wire
from realtime.errors import ServeError, WireError
from realtime.network.curve import Right, ServerKeys
from realtime.network.endpoint import Endpoint
from realtime.sources import Received

HIGH_WATER_MARK = 64
"""Messages queued per scanner on this side; further messages queue at the scanner."""

_log = logging.getLogger(__name__)


class ZeroMqSource:
    """A ROUTER socket that scanners, or presentation software, connect to.

    :param address: such as ``tcp://127.0.0.1:5555``, where port 0 chooses a free one, or ``ipc:///path``
    :param keys: keys that authenticate peers at ``tcp://``; unknown peers get no answer at all
    :param right: the right that peers need
    """

    def __init__(self, address: str, keys: ServerKeys | None = None, right: Right = "scanners") -> None:
        self._context = zmq.asyncio.Context()
        self._endpoint = Endpoint(self._context, address, keys, right)
        self._socket: zmq.asyncio.Socket | None = None

    async def start(self) -> str:
        """Bind and return the address with its port. :raises ServeError: when the port is in use"""
        socket = self._context.socket(zmq.ROUTER)
        socket.set(zmq.MAXMSGSIZE, wire.MAX_VOLUME_BYTES)
        socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
        try:
            address = self._endpoint.bind(socket)
        except ServeError:
            self._end_context()
            raise
        self._socket = socket
        return address

    async def receive(self) -> Received:
        """Wait for the next message with a valid header and return it; refuse other messages."""
        if self._socket is None:
            raise ServeError("the source is not started; call start first")
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            received_s = time.perf_counter()
            reply = partial(self._reply, frames[0].bytes)
            try:
                message, payload = parse([frame.buffer for frame in frames[1:]])
            except WireError as error:
                _log.warning("refused a message: %s", error)
                await reply(wire.Refused(run_id="", code=error.code, message=str(error)))
                continue
            return Received(message=message, payload=payload, received_s=received_s, reply=reply)

    async def stop(self) -> None:
        """Close the socket; pending replies get half a second."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._end_context()

    def _end_context(self) -> None:
        self._endpoint.close()
        self._context.term()

    async def _reply(self, peer: bytes, message: wire.ToScanner) -> None:
        if self._socket is not None:
            await self._socket.send_multipart([peer, wire.encode(message), b""])


def parse(frames: list[memoryview]) -> tuple[wire.ToRuntime, memoryview]:
    """Parse the frames of a message into header and payload.

    :raises WireError: codes ``frames``, ``size`` and those of :func:`realtime.wire.decode_to_runtime`
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
    return message, payload


_PAYLOAD_LIMITS: dict[type, int] = {
    wire.Volume: wire.MAX_VOLUME_BYTES,
    wire.Marker: wire.MAX_PICTURE_BYTES,
}
