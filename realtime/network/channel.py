"""How the processes of one runtime hear each other: recorder, decoder and page on one machine.

Each process sends its events on a ZeroMQ PUB socket at a Unix address that follows from ``--out``, so that
processes that were started alone find each other. The sockets lie in a folder that only this user can enter;
there is no other authentication. Nothing waits for a listener: one that is slow misses messages, and a gap in
``sequence`` tells it so.

    message    msgpack of :class:`Envelope`: the event, its sequence number, the shape of a picture
    picture    RGB uint8 of a frame in C order, the PNG of a picture shown; otherwise empty
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from realtime.errors import ServeError
from realtime.events import Event, Frame, Publishing, Recording, Reported, Shown, Status

Role = Literal["recorder", "decoder"]
"""The processes that send."""
BEAT_S = 1.0
"""A process sends something at least this often."""
SILENT_S = 3.0
"""One that is silent for longer has died or hangs."""
HIGH_WATER_MARK = 256
"""Messages that wait for a slow listener; it misses those beyond."""

Message = Status | Frame | Shown | Recording | Reported | Publishing


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the channel."""

    sequence: int
    message: Message
    shape: tuple[int, int, int] | None = None
    """Height, width and channels of a frame's picture."""


_decoder = msgspec.msgpack.Decoder(Envelope)


def channel_address(out: Path, role: Role) -> str:
    """The address at which a process of the runtime that records in ``out`` sends.

    :raises ServeError: when the folder for sockets belongs to someone else, or cannot be made
    """
    name = hashlib.blake2s(str(out.resolve()).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return f"ipc://{_private_folder()}/{name}-{role}"


def _private_folder() -> Path:
    """A folder for sockets that no other user can enter; its path is short, as socket addresses must be."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(base) / "realtime-dynadiff" if base else Path(tempfile.gettempdir()) / f"realtime-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ServeError(f"cannot make the folder {folder} for sockets: {error.strerror or error}") from error
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink()):
        raise ServeError(
            f"expected that {folder} belongs to this user and that nobody else can enter it; remove it, or "
            "set XDG_RUNTIME_DIR to a folder of this user"
        )
    return folder


class ChannelSender:
    """Sends the events of one process; a context manager."""

    def __init__(self, out: Path, role: Role) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.set(zmq.LINGER, 500)
        self._sequence = 0
        address = channel_address(out, role)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ServeError(f"cannot open {address}: {error.strerror}") from error

    def __enter__(self) -> ChannelSender:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; pending messages get half a second."""
        self._socket.close()
        self._context.term()

    def send(self, message: Message, picture: np.ndarray | bytes = b"") -> None:
        """Send an event with its picture, if it has one; never waits."""
        shape = None
        if isinstance(picture, np.ndarray):
            height, width, channels = picture.shape
            shape, picture = (height, width, channels), np.ascontiguousarray(picture).tobytes()
        envelope = Envelope(sequence=self._sequence, message=message, shape=shape)
        self._sequence += 1
        with contextlib.suppress(zmq.ZMQError):  # a PUB socket drops what a listener cannot take
            self._socket.send_multipart([msgspec.msgpack.encode(envelope), picture], flags=zmq.NOBLOCK)

    def send_event(self, event: Event) -> None:
        """Send an event of a :class:`realtime.events.Broadcast`."""
        picture = event.image if event.image is not None else event.png
        self.send(event.message, b"" if picture is None else picture)


@contextlib.asynccontextmanager
async def listening(out: Path, role: Role) -> AsyncIterator[Heard]:
    """The messages of another process, from now on, whether it runs already or not."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.set(zmq.RECONNECT_IVL, 20)
    socket.set(zmq.RECONNECT_IVL_MAX, 200)
    socket.subscribe(b"")
    try:
        address = channel_address(out, role)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise ServeError(f"cannot connect to {address}: {error.strerror}") from error
        yield Heard(socket)
    finally:
        socket.close(linger=0)
        context.term()


class Heard:
    """Receives from one process; see :func:`listening`."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self._expected: int | None = None
        self.missed = 0
        """Messages that were lost because this process read too slowly, or another sender began."""

    async def receive(self) -> Message | Event:
        """The next message; those of a broadcast come as an :class:`Event` with their picture."""
        await asyncio.sleep(0)  # a message that is there already is received without waiting
        header, picture = await self._socket.recv_multipart()
        envelope = _decoder.decode(header)
        if self._expected is not None and envelope.sequence != self._expected:
            self.missed += 1
        self._expected = envelope.sequence + 1
        message = envelope.message
        if isinstance(message, Frame):
            image = np.frombuffer(picture, np.uint8).reshape(envelope.shape) if envelope.shape else None
            return Event(message, image=image)
        if isinstance(message, Shown):
            return Event(message, png=picture or None)
        return Event(message) if isinstance(message, Status) else message
