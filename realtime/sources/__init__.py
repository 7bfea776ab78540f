"""Sources receive volumes; every source yields the messages of :mod:`realtime.wire`, whatever the protocol.

May import ``wire``, ``errors``, ``bundle`` and ``network``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from realtime import wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who sent a message."""

    key: str = ""
    """The public key that the peer has authenticated with (Z85); empty where the source has no keys."""
    connection: bytes = b""
    """Names the connection as long as it lasts; empty where the source has one connection at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message with a valid header; its content is not yet checked against the run."""

    message: wire.ToRuntime
    payload: memoryview
    """Voxels of a volume or PNG of a marker, no longer than the wire format allows."""
    received_s: float
    """Time when the message was complete, by ``time.perf_counter``."""
    reply: Callable[[wire.ToScanner], Awaitable[None]]
    peer: Peer = Peer()


class Source(Protocol):
    """Receives the messages of a scanner."""

    async def start(self) -> str:
        """Start listening and return the address that a scanner connects to.

        :raises ServeError: when listening is impossible or not allowed
        """
        ...

    async def receive(self) -> Received:
        """Wait for the next valid message and return it; refuse invalid messages."""
        ...

    async def stop(self) -> None:
        """Stop listening."""
        ...
