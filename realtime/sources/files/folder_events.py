"""Says what the file system reports of a tree of folders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import watchfiles

from realtime.sources.files.tree import Tree

MOST_WATCHED = 64
"""Folders whose events are asked for: those that changed last. Systems limit the number."""
_TOGETHER_MS = 20
_LOOK_FOR_FOLDERS_MS = 1_000


async def changes(tree: Tree) -> AsyncIterator[set[str]]:
    """Yield paths of files that were written, renamed or deleted, as events report them.

    Each folder is watched by itself, because to watch a tree means to follow the links in it.

    :raises OSError, RuntimeError: when the system reports no events
    """
    while True:
        watched = tree.watched(MOST_WATCHED)
        events = watchfiles.awatch(
            *watched,
            watch_filter=None,
            step=_TOGETHER_MS,
            rust_timeout=_LOOK_FOR_FOLDERS_MS,
            yield_on_timeout=True,
            recursive=False,
        )
        async with aclosing(events):
            async for changed in events:
                if changed:
                    yield {path for _, path in changed}
                if tree.watched(MOST_WATCHED) != watched:
                    break
