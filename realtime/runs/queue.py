"""Windows that are ready, and queues in which they wait for the decoder, which takes one at a time. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from realtime import wire

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A volume that is in the journal; ``voxels`` is ``[x, y, z]``, None if it was preprocessed before."""

    voxels: NDArray[np.generic] | None
    affine: wire.Affine
    received_s: float
    journal_ms: float
    restored: bool = False
    """It was in the journal before this process followed the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A window to decode: ``[V, n]``, z-scores of the n volumes up to ``volume``, enough for any decoder."""

    volume: int
    window: NDArray[np.float32]
    state: Literal["warming", "trusted"]
    repaired_voxels: int
    preprocess_ms: float
    arrival: Arrival


class Queue(Protocol):
    """Windows that wait for the decoder."""

    def offer(self, item: Ready) -> Ready | None:
        """Add a window; return the one that it replaces, if any."""
        ...

    def take(self) -> Ready | None:
        """The window to decode now."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether there is one."""
        ...


class InTurn(Generic[Item]):
    """Every window, one after the other: for a recorded run, where there is no deadline."""

    def __init__(self) -> None:
        self._waiting: deque[Item] = deque()

    def offer(self, item: Item) -> Item | None:
        """Add a window; it replaces none."""
        self._waiting.append(item)
        return None

    def take(self) -> Item | None:
        """The next window."""
        return self._waiting.popleft() if self._waiting else None

    @property
    def is_waiting(self) -> bool:
        """Whether there is one."""
        return bool(self._waiting)


class NewestWins(Generic[Item]):
    """Only the newest window waits."""

    def __init__(self) -> None:
        self._waiting: Item | None = None

    def offer(self, item: Item) -> Item | None:
        """Add a window; return the older one that it replaces, which is then never decoded."""
        replaced, self._waiting = self._waiting, item
        return replaced

    def take(self) -> Item | None:
        """The window to decode now."""
        item, self._waiting = self._waiting, None
        return item

    @property
    def is_waiting(self) -> bool:
        """Whether there is one."""
        return self._waiting is not None
