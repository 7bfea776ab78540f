"""Says what the file system reports of a tree of folders."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import watchfiles

from realtime.sources.files.tree import Tree

MOST_WATCHED = 64
"""Folders whose events are asked for: those that changed last. Systems limit the number."""
_TOGETHER_MS = 20
_LOOK_FOR_FOLDERS_MS = 1_000
_AGAIN_S = 1.0


async def changes(tree: Tree) -> AsyncGenerator[set[str], None]:
    """Yield paths of files that were written, renamed or deleted, as events report them.

    Each folder is watched by itself, because to watch a tree means to follow the links in it. One that is
    gone and comes back, such as a share, is watched again.

    :raises OSError, RuntimeError: when the system reports no events
    """
    while True:
        asked = tree.watched(MOST_WATCHED)
        watched = await asyncio.to_thread(_there, asked)
        if not watched:
            await asyncio.sleep(_AGAIN_S)
            continue
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
                if tree.watched(MOST_WATCHED) != asked:
                    break
                if not changed and await asyncio.to_thread(_there, asked) != watched:
                    break


def _there(folders: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the folders that exist, and what tells each from a later one of the same name."""
    found = {}
    for each in folders:
        try:
            seen = os.stat(each, follow_symlinks=False)
        except OSError:
            continue
        found[each] = seen.st_dev, seen.st_ino
    return found
