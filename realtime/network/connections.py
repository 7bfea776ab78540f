"""Limits the TCP connections of a ZeroMQ socket: their number, and the memory that they take.

ZeroMQ limits the parts of a message, and how many whole messages wait, but not how many parts a message has:
one that never ends would take all memory. It tells of every connection that it accepts, so the kernel can be
asked how much each has sent. What was neither delivered nor is still in the kernel, ZeroMQ holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket as sockets
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

if sys.platform == "linux":
    import fcntl
    import termios

MOST_CONNECTIONS = 64
FRAME_OVERHEAD_BYTES = 42
"""What ZMTP (9) and CURVE (33) add to a frame at most."""

_LOOK_EVERY_MS = 50
_MOST_EVENTS = 64
"""Events taken in one go, so that a flood of connections leaves time for everything else."""
_BYTES_RECEIVED = slice(128, 136)
"""Place of ``tcpi_bytes_received`` in the kernel's ``struct tcp_info``."""

_log = logging.getLogger(__name__)


@dataclass
class _Connection:
    socket: sockets.socket
    """A duplicate of ZeroMQ's, which stays this connection's when ZeroMQ closes its own."""
    delivered_bytes: int = 0
    has_spoken: bool = False
    """Whether a whole message came; before that, the peer need not have a key."""
    is_cut: bool = False

    def taken_bytes(self) -> int:
        """Bytes that ZeroMQ has taken from the kernel; 0 where the kernel does not tell."""
        if sys.platform != "linux":
            return 0
        try:
            info = self.socket.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _BYTES_RECEIVED.stop)
            (received,) = struct.unpack("=Q", info[_BYTES_RECEIVED])
            (unread,) = struct.unpack("=i", fcntl.ioctl(self.socket, termios.FIONREAD, bytes(4)))
        except (OSError, struct.error):
            return 0
        return int(received) - int(unread)

    def held_bytes(self) -> int:
        """Bytes that ZeroMQ has taken and not delivered."""
        return 0 if self.is_cut else max(self.taken_bytes() - self.delivered_bytes, 0)

    def cut(self) -> None:
        """Shut the connection down; ZeroMQ then frees what it holds of it."""
        self.is_cut = True
        with contextlib.suppress(OSError):  # if the peer was faster
            self.socket.shutdown(sockets.SHUT_RDWR)


class Connections:
    """Watches the connections of a socket; create it before the socket is bound to a ``tcp://`` address.

    When all connections together hold too much, the one that holds most is closed. When there are too many,
    the oldest that never delivered a message is closed. Memory is limited on Linux only.

    :param budget_bytes: what ZeroMQ may hold of all connections
    :param note: takes every event of the socket's monitor, also those of ``events``
    """

    def __init__(
        self,
        socket: zmq.asyncio.Socket,
        budget_bytes: int,
        most: int = MOST_CONNECTIONS,
        *,
        events: int = 0,
        note: Callable[[Any], None] = lambda event: None,
    ) -> None:
        self._budget_bytes, self._most = budget_bytes, most
        self._watched = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | events)
        self._note_event = note
        self._open: dict[int, _Connection] = {}
        """By the number of ZeroMQ's file descriptor, in the order in which they came."""
        self._watching = asyncio.ensure_future(self._watch())

    def delivered(self, frames: list[zmq.Frame]) -> None:
        """Note that a message was delivered."""
        connection = self._open.get(frames[-1].get(zmq.SRCFD))
        if connection is None:  # it is gone already
            return
        n_bytes = sum(len(frame) + FRAME_OVERHEAD_BYTES for frame in frames)
        # Not above what came, or small frames would earn credit for a large one.
        connection.delivered_bytes = min(connection.delivered_bytes + n_bytes, connection.taken_bytes())
        connection.has_spoken = True

    def close(self) -> None:
        """Stop watching; call this before the socket is closed."""
        self._watching.cancel()
        if not self._watched.closed:
            self._watched.disable_monitor()
        self._monitor.close(linger=0)
        for connection in self._open.values():
            connection.socket.close()
        self._open.clear()

    async def _watch(self) -> None:
        while True:
            if await self._monitor.poll(_LOOK_EVERY_MS if self._open else None):
                for _ in range(_MOST_EVENTS):
                    if not await self._monitor.poll(0):
                        break
                    event = parse_monitor_message(await self._monitor.recv_multipart())
                    if event["event"] in (zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED):
                        self._note(event["event"], int(event["value"]))
                    self._note_event(event)
                await asyncio.sleep(0)
            self._keep_budget()

    def _note(self, event: int, number: int) -> None:
        before = self._open.pop(number, None)
        if before:
            before.socket.close()
        if event == zmq.EVENT_ACCEPTED:
            connection = self._duplicate(number)
            if connection:
                self._open[number] = connection
                self._make_room()

    def _duplicate(self, number: int) -> _Connection | None:
        """The connection behind a file descriptor; None if ZeroMQ has closed it already."""
        try:
            socket = sockets.socket(fileno=os.dup(number))
        except OSError:
            return None
        # If the number was used again for something else, that must not be touched.
        if socket.family not in (sockets.AF_INET, sockets.AF_INET6) or not self._is_ours(socket):
            socket.close()
            return None
        return _Connection(socket)

    def _is_ours(self, socket: sockets.socket) -> bool:
        port = int(self._watched.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        try:
            return bool(socket.getsockname()[1] == port)
        except OSError:
            return False

    def _make_room(self) -> None:
        here = [each for each in self._open.values() if not each.is_cut]
        if len(here) > self._most:
            _log.warning("more than %d connections; closed one that sent nothing", self._most)
            next(each for each in here if not each.has_spoken).cut()  # the newest has not

    def _keep_budget(self) -> None:
        held = [(each.held_bytes(), each) for each in self._open.values()]
        while sum(n_bytes for n_bytes, _ in held) > self._budget_bytes:
            most = max(held, key=lambda each: each[0])
            _log.warning(
                "closed a connection that holds %.0f MB of messages; all together may hold %.0f MB",
                most[0] / 1e6,
                self._budget_bytes / 1e6,
            )
            most[1].cut()
            held.remove(most)
