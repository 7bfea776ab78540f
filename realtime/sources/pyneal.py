"""Receives volumes from Pyneal's scanner side (``pynealScanner``).

The scanner side connects a ZeroMQ PAIR socket, sends a greeting and receives it back. For each volume it
sends a JSON header and the voxels and waits for an answer: ``received volIdx N`` once the volume is in the
journal, or a text with ``STOP``, which ends the scanner side, if the volume or the run is refused.

The protocol has neither start nor end of a run, so the operator specifies the number of volumes. It does not
repeat volumes: a volume in transit when the runtime dies is lost.

A PAIR socket serves one peer and never reads from a second one, even after the first has disconnected. A
second peer may be the scanner side, restarted before its disconnection was noticed. So the port is reopened
whenever its peer disconnects, and waiting peers reconnect. What they sent before is lost.

https://pyneal.readthedocs.io
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from realtime import wire
from realtime.errors import ServeError, WireError
from realtime.network.address import bind, check_address
from realtime.network.connections import Connections
from realtime.sources.run_boundaries import Scan

MAX_GREETING_BYTES = 1_024
EXACT = 2**53
"""Integers up to this one are the same in float64."""
LONGEST_TR_S = 60
"""A larger TR is in milliseconds; some clients send seconds."""

_BEAT_MS, _SILENT_MS = 1_000, 10_000
"""A peer that answers no heartbeat for this long counts as disconnected, for example behind a dead tunnel."""
_HANDSHAKE_MS = 5_000
_QUEUED = 2
MOST_CONNECTIONS = 16
SILENT_TURN_S = 60.0
"""A peer that sends nothing for this long is disconnected if another waits."""
_TRIES, _TRY_AGAIN_S = 100, 0.02

_log = logging.getLogger(__name__)


class Header(msgspec.Struct, frozen=True):
    """The first frame of a volume; unknown fields are ignored."""

    volIdx: wire.Count  # noqa: N815 (the protocol's name)
    dtype: Annotated[str, msgspec.Meta(max_length=16)]
    """A number's name in numpy, such as ``float64`` or ``>i2``."""
    shape: tuple[wire.Edge, wire.Edge, wire.Edge]
    affine: Annotated[str, msgspec.Meta(max_length=2_048)]
    TR: Annotated[str, msgspec.Meta(max_length=64)] | float


_NUMBER = re.compile(r"[<>=|]?[biuf][1248]|bool|u?int(?:8|16|32|64)|float(?:16|32|64)")

_header = msgspec.json.Decoder(Header)
_affine = msgspec.json.Decoder(wire.Affine)


class PynealScanner:
    """A PAIR socket for one scanner at a time. It listens on the loopback interface only.

    :param address: such as ``tcp://127.0.0.1:5555``; port 0 chooses a free one
    """

    def __init__(self, address: str) -> None:
        self._host, self._port = check_address(address)
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._peers: _Peers
        self._connections: Connections

    async def start(self) -> str:
        """Bind and return the address with its port. :raises ServeError: when the port is in use"""
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
        socket.set(zmq.RCVHWM, _QUEUED)  # enough, since a scanner waits for each answer
        socket.set(zmq.HEARTBEAT_IVL, _BEAT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, _SILENT_MS)
        socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        # With a domain ZeroMQ refuses ZMTP 1.0, which has no greeting, so that it could be the body of HTTP.
        socket.zap_domain = b"pyneal"
        self._peers = _Peers()
        self._connections = Connections(
            socket,
            (_QUEUED + 2) * wire.MAX_VOLUME_BYTES,
            MOST_CONNECTIONS,
            events=zmq.EVENT_HANDSHAKE_SUCCEEDED,
            note=self._peers.note,
        )
        try:
            address = bind(socket, self._host, self._port)
        except ServeError:  # bind has closed the socket
            self._connections.close()
            raise
        self._socket = socket
        return address

    def _close(self) -> None:
        if self._socket is not None:
            self._connections.close()
            self._socket.close()
            self._socket = None

    async def _reopen(self) -> None:
        """Close the port and open it again; retry, because ZeroMQ closes it on a thread of its own."""
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
        """Return the next message; read all messages of a disconnected peer before reopening the port."""
        while True:
            await asyncio.sleep(0)  # a message that is there already is received without waiting
            assert self._socket, "call start first"
            message = asyncio.ensure_future(self._socket.recv_multipart(copy=False))
            news: set[asyncio.Future[Any]] = {message, self._peers.gone}
            try:
                await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
                if message.done() or await self._socket.poll(0):
                    frames = await message
                    self._peers.heard_s = time.monotonic()
                    self._connections.delivered(frames)
                    return [frame.buffer for frame in frames]
            finally:
                message.cancel()
            await self._reopen()

    async def scans(self) -> AsyncIterator[Scan]:
        """Yield every valid volume; answer greetings and refuse invalid messages."""
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
        """Close the socket; pending answers get half a second."""
        if self._socket is not None:
            self._close()
            self._context.term()

    def _scan(self, frames: list[memoryview], received_s: float) -> Scan:
        if len(frames) != 2:
            raise WireError("frames", f"expected two frames, a header and voxels, got {len(frames)}")
        header, affine, tr_s = parse(frames[0])
        dtype, payload = taken(header, frames[1])
        return Scan(
            index=header.volIdx,
            shape=header.shape,
            affine=affine,
            dtype=dtype,
            payload=payload,
            received_s=received_s,
            answer=partial(self._answer, header.volIdx),
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
            _log.warning("the scanner has disconnected; it did not get the answer %r", text)


class _Peers:
    """Tracks the connections of a PAIR socket by its monitor events."""

    def __init__(self) -> None:
        self.heard_s = time.monotonic()
        """When the served peer has connected, or sent its last message."""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the served peer has disconnected, or was silent for too long while another waits."""
        self._newest: int | None = None
        """The connection accepted last, which need not speak ZeroMQ."""
        self._first: int | None = None
        """The connection whose handshake succeeded first, which is served."""
        self._other_waits = False

    def note(self, event: Any) -> None:
        """Take an event; log a warning about peers that wait."""
        if event["event"] == zmq.EVENT_ACCEPTED:
            self._newest = event["value"]
        elif event["event"] == zmq.EVENT_DISCONNECTED and event["value"] == self._first:
            self._end()
        elif event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._first is None:
            self._first, self.heard_s = self._newest, time.monotonic()
        elif event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            _log.warning(
                "a second connection waits until the first disconnects or is silent for %.0f s: only one can "
                "send volumes; if it is the scanner side and gets no answer, restart it",
                SILENT_TURN_S,
            )
            if not self._other_waits:
                self._other_waits = True
                self._end_silent_turn()

    def _end_silent_turn(self) -> None:
        """End the turn of a served peer that sends nothing; look again when that can be."""
        left_s = self.heard_s + SILENT_TURN_S - time.monotonic()
        if self.gone.done():
            return
        if left_s <= 0:
            _log.warning("the first connection sent nothing for %.0f s; the next has its turn", SILENT_TURN_S)
            self._end()
        else:
            asyncio.get_running_loop().call_later(left_s, self._end_silent_turn)

    def _end(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


def greeting(frame: memoryview) -> str:
    """Decode the first message of the scanner side. :raises WireError: when it is too long or not text"""
    if len(frame) <= MAX_GREETING_BYTES:
        try:
            return bytes(frame).decode()
        except UnicodeDecodeError:
            pass
    raise WireError(
        "frames", f"expected a greeting of at most {MAX_GREETING_BYTES} bytes of text, got {len(frame)} bytes"
    )


def parse(frame: memoryview) -> tuple[Header, wire.Affine, float]:
    """Parse the header of a volume.

    :returns: the header, its affine and its TR in seconds
    :raises WireError: code ``header``, when it is invalid
    """
    if len(frame) > wire.MAX_HEADER_BYTES:
        raise WireError(
            "header", f"expected a header of at most {wire.MAX_HEADER_BYTES} bytes, got {len(frame)}"
        )
    try:
        header = _header.decode(frame)
        affine = _affine.decode(header.affine)
        tr = float(header.TR)
    # msgspec also lets errors of its string and recursion checks through.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError(
            "header", f"expected a header with volIdx, dtype, shape, affine and TR: {error}"
        ) from error
    if not wire.is_invertible(np.array(affine)):
        raise WireError(
            "header",
            f"expected an affine that can be inverted, voxel indices to mm, got {header.affine}; without it "
            "nobody knows where the voxels are",
        )
    return header, affine, tr / 1_000 if tr > LONGEST_TR_S else tr


def taken(header: Header, payload: memoryview) -> tuple[str, memoryview]:
    """Bring voxels of any type of number and byte order to one that the runtime records, without a loss.

    The type depends on the header only, so that it is the same for all volumes of a run.

    :returns: the type's name, and the voxels
    :raises WireError: codes ``header``, ``size`` and ``range``, when that is not possible
    """
    sent = _number(header.dtype)
    recorded = next(name for name in wire.DTYPES if np.can_cast(sent, name, "safe"))
    if sent == np.dtype(recorded).newbyteorder("<"):
        return recorded, payload
    n_voxels = math.prod(header.shape)
    if len(payload) != n_voxels * sent.itemsize:
        raise WireError(
            "size", f"expected {n_voxels * sent.itemsize} bytes of {header.dtype}, got {len(payload)}"
        )
    if n_voxels * np.dtype(recorded).itemsize > wire.MAX_VOLUME_BYTES:
        raise WireError("size", f"expected at most {wire.MAX_VOLUME_BYTES} bytes, got {n_voxels} voxels")
    voxels = np.frombuffer(payload, dtype=sent)
    if sent.kind in "iu" and sent.itemsize == 8 and max(int(voxels.max()), -int(voxels.min())) > EXACT:
        raise WireError(
            "range",
            f"expected {header.dtype} from -{EXACT} to {EXACT}, which float64 holds exactly, got "
            f"{voxels.min()} to {voxels.max()}; send float64",
        )
    return recorded, memoryview(voxels.astype(np.dtype(recorded).newbyteorder("<")).tobytes())


def _number(name: str) -> np.dtype[Any]:
    """The type of numbers with this name in numpy. :raises WireError: when there is none"""
    try:
        found = np.dtype(name) if _NUMBER.fullmatch(name) else None
    except TypeError:
        found = None
    if found is None:
        raise WireError(
            "header",
            f"expected a dtype of integers or floating point numbers, such as int16 or >i2, got {name!r}",
        )
    return found
