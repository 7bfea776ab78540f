"""Queues of windows that wait for the decoder, which takes one at a time. Pure."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


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
