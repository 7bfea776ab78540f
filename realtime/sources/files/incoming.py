"""Where images of series come from, of which :mod:`realtime.sources.files.folder` makes volumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from realtime.sources.files.watch import Found


class Incoming(Protocol):
    """Images that come one by one: the files of a folder, or objects from a network."""

    @property
    def is_settling(self) -> bool:
        """Whether something has come that cannot be reported yet."""
        ...

    @property
    def is_held_up(self) -> bool:
        """Whether something of a series has come that cannot be reported before other things."""
        ...

    def look(self, now_s: float) -> Iterator[Found]:
        """Yield what is complete now; the caller may stop at any time. Called in a thread."""
        ...

    def again(self, name: str) -> None:
        """Report an image again at the next look."""
        ...
