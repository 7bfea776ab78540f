"""Queues of windows that wait for the decoder. Pure."""

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


class NewestWins(Generic[Item]):
    """One decode at a time; while it runs only the newest window waits."""

    def __init__(self) -> None:
        self._waiting: Item | None = None
        self._busy = False

    def offer(self, item: Item) -> Item | None:
        """Add a window; return the older one that it replaces, which is then never decoded."""
        replaced, self._waiting = self._waiting, item
        return replaced

    def take(self) -> Item | None:
        """The window to decode now; None while a decode runs or nothing waits."""
        if self._busy or self._waiting is None:
            return None
        item, self._waiting, self._busy = self._waiting, None, True
        return item

    def done(self) -> None:
        """Say that the decode of the window from :meth:`take` is over."""
        self._busy = False

    @property
    def is_waiting(self) -> bool:
        """Whether a window waits for the running decode to end."""
        return self._waiting is not None

    @property
    def idle(self) -> bool:
        """Whether no decode runs and no window waits."""
        return not self._busy and self._waiting is None
