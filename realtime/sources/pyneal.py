"""Volumes from a scanner's side that speaks Pyneal's protocol.

The scanner connects a ZeroMQ PAIR socket, sends a greeting and gets it back. Then, for each volume, it sends
a JSON header and the voxels, and waits for a line: ``received volIdx N`` once the volume is in the journal. A
line with ``STOP`` in it ends the scanner's side: the volume, or the run, is not taken.

The protocol has no start and no end of a run, so an operator says how many volumes it has. It sends nothing
twice: a volume on its way when the runtime dies is lost with it.

A PAIR socket has one peer; of a second, which may be the scanner's side started again before the end of the
first was noticed, it takes nothing and never will, also once the first has gone. So the port is opened anew
whenever its peer goes, and those who wait connect again. What they have said before is lost.

https://pyneal.readthedocs.io
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from realtime import wire
from realtime.errors import ServeError, WireError
from realtime.network.address import bind, check_address
from realtime.sources.run_boundaries import Scan

MAX_GREETING_BYTES = 1_024
LONGEST_TR_S = 60
"""A larger TR is in milliseconds; some scanners' clients send seconds."""

_BEAT_MS, _SILENT_MS = 1_000, 10_000
"""A peer that answers no heartbeat for so long has gone, behind a tunnel that has died, say."""
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_TRIES, _TRY_AGAIN_S = 100, 0.02

_log = logging.getLogger(__name__)


class Header(msgspec.Struct, frozen=True):
    """The first frame of a volume; fields of other names are passed over."""

    volIdx: wire.Count  # noqa: N815 (the protocol's name)
    dtype: Literal["int16", "uint16", "int32", "float32", "float64"]
    shape: tuple[wire.Edge, wire.Edge, wire.Edge]
    affine: Annotated[str, msgspec.Meta(max_length=2_048)]
    TR: Annotated[str, msgspec.Meta(max_length=64)] | float


_header = msgspec.json.Decoder(Header)
_affine = msgspec.json.Decoder(wire.Affine)


class PynealScanner:
    """A PAIR socket for one scanner at a time. Listens on this machine's loopback only.

    :param address: ``tcp://127.0.0.1:5555``; port 0 takes any free one.
    """

    def __init__(self, address: str) -> None:
        self._host, self._port = check_address(address)
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._peers = _Peers()
        self._gone: asyncio.Future[None] = asyncio.Future()
        """Of the peer that is served; as long as the port is open."""

    async def start(self) -> str:
        """Bind; returns the address with its port. :raises ServeError: where the port is in use."""
        try:
            address = self._open()
        except ServeError:
            self._context.term()
            raise
        self._port = int(address.rpartition(":")[2])
        return f"pyneal+{address}"

    def _open(self) -> str:
        socket = self._context.socket(zmq.PAIR)
        socket.set(zmq.MAXMSGSIZE, wire.MAX_VOLUME_BYTES)
        socket.set(zmq.RCVHWM, 4)  # a scanner waits for each answer
        socket.set(zmq.HEARTBEAT_IVL, _BEAT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, _SILENT_MS)
        self._peers = _Peers(socket.get_monitor_socket(_EVENTS))
        try:
            address = bind(socket, self._host, self._port)
        except ServeError:  # which leaves the socket closed
            self._peers.close()
            raise
        self._socket = socket
        self._gone = asyncio.ensure_future(self._peers.gone())
        return address

    def _close(self) -> None:
        if self._socket is not None:
            self._gone.cancel()
            self._socket.close()
            self._socket = None
        self._peers.close()

    async def _reopen(self) -> None:
        """Close the port and open it again; what closes does so on a thread of ZeroMQ's."""
        self._close()
        for _ in range(_TRIES):
            try:
                self._open()
            except ServeError as error:
                reason = error
                await asyncio.sleep(_TRY_AGAIN_S)
            else:
                return
        raise reason

    async def _receive(self) -> list[memoryview]:
        """The next message of the peer; all of one that has gone come first."""
        while True:
            assert self._socket, "start comes first"
            message = asyncio.ensure_future(self._socket.recv_multipart(copy=False))
            news: set[asyncio.Future[Any]] = {message, self._gone}
            try:
                await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
                if message.done() or await self._socket.poll(0):
                    return [frame.buffer for frame in await message]
            finally:
                message.cancel()
            await self._reopen()

    async def scans(self) -> AsyncIterator[Scan]:
        """Every valid volume; greetings are answered here, and what is no message is refused."""
        while True:
            frames = await self._receive()
            received_s = time.perf_counter()
            try:
                if len(frames) == 1:
                    await self._say(greeting(frames[0]))
                    continue
                scan = self._scan(frames, received_s)
            except WireError as error:
                _log.warning("refused a message: %s", error)
                await self._say(f"STOP: {error}")
                continue
            yield scan

    async def stop(self) -> None:
        """Close the socket; answers under way get half a second."""
        if self._socket is not None:
            self._close()
            self._context.term()

    def _scan(self, frames: list[memoryview], received_s: float) -> Scan:
        if len(frames) != 2:
            raise WireError("frames", f"expected two frames, a header and voxels, got {len(frames)}")
        said, affine, tr_s = parse(frames[0])
        return Scan(
            index=said.volIdx,
            shape=said.shape,
            affine=affine,
            dtype=said.dtype,
            payload=frames[1],
            received_s=received_s,
            answer=partial(self._answer, said.volIdx),
            tr_s=tr_s,
        )

    async def _answer(self, index: int, message: wire.Ack | wire.Refused) -> None:
        if isinstance(message, wire.Ack):
            await self._say(f"received volIdx {index}")
        else:
            await self._say(f"STOP: {message.message}")

    async def _say(self, text: str) -> None:
        if self._socket is None:
            return
        try:
            await self._socket.send(text.encode(), flags=zmq.NOBLOCK)
        except zmq.Again:
            _log.warning("the scanner has gone; it was not told %r", text)


class _Peers:
    """Who is connected to a PAIR socket, by what its monitor tells."""

    def __init__(self, monitor: zmq.asyncio.Socket | None = None) -> None:
        self._monitor = monitor
        self._newest: int | None = None
        """The connection that was accepted last, which need not be one of ZeroMQ's."""
        self._first: int | None = None
        """The one whose handshake was the first, which is served."""

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.close(linger=0)

    async def gone(self) -> None:
        """Return when the served one has gone; warn of others."""
        assert self._monitor
        while True:
            said = await recv_monitor_message(self._monitor)
            if said["event"] == zmq.EVENT_ACCEPTED:
                self._newest = said["value"]
            elif said["event"] == zmq.EVENT_DISCONNECTED and said["value"] == self._first:
                return
            elif said["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._first is None:
                self._first = self._newest
            elif said["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                _log.warning(
                    "a second connection waits until the first has gone: only one can send volumes; if it is "
                    "the scanner's side and gets no answer, start it again"
                )


def greeting(frame: memoryview) -> str:
    """What a scanner's side says first. :raises WireError: for what is too long, or no text."""
    if len(frame) <= MAX_GREETING_BYTES:
        try:
            return bytes(frame).decode()
        except UnicodeDecodeError:
            pass
    raise WireError(
        "frames", f"expected a greeting of at most {MAX_GREETING_BYTES} bytes of text, got {len(frame)} bytes"
    )


def parse(frame: memoryview) -> tuple[Header, wire.Affine, float]:
    """A volume's header, its affine and its TR in seconds.

    :raises WireError: code ``header``, for what is none.
    """
    if len(frame) > wire.MAX_HEADER_BYTES:
        raise WireError(
            "header", f"expected a header of at most {wire.MAX_HEADER_BYTES} bytes, got {len(frame)}"
        )
    try:
        header = _header.decode(frame)
        affine = _affine.decode(header.affine)
        tr = float(header.TR)
    # Beside its own errors msgspec lets through what its string and recursion checks raise.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError(
            "header", f"expected a header with volIdx, dtype, shape, affine and TR: {error}"
        ) from error
    return header, affine, tr / 1_000 if tr > LONGEST_TR_S else tr
