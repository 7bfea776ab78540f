"""Where volumes come from: every source gives the same messages, whatever its scanner speaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from realtime import wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message whose header is valid; what it says has still to be checked against the run."""

    message: wire.ToRuntime
    payload: memoryview
    """Voxels of a volume or PNG of a marker, at most as long as the wire format allows."""
    received_s: float
    """When it was whole, by ``time.perf_counter``."""
    reply: Callable[[wire.ToScanner], Awaitable[None]]


class Source(Protocol):
    """A scanner's end of the line."""

    async def start(self) -> str:
        """Begin to listen; returns the address a scanner connects to.

        :raises ServeError: when that is not possible or not allowed.
        """
        ...

    async def receive(self) -> Received:
        """The next valid message. Answers invalid ones itself and goes on."""
        ...

    async def stop(self) -> None:
        """Stop listening."""
        ...
