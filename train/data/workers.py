"""Work on many items in processes; finished items are marked, so that an interruption loses little."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm


def over_items(
    done: Path,
    items: Sequence[Any],
    work: Callable[[int, Any], None],
    *,
    name: str,
    unit: str,
    workers: int | None = None,
) -> None:
    """Call ``work(index, item)`` for every item that is not finished yet.

    :param done: ``.npy`` file, uint8 ``[items]``, 1 for finished items; updated after each item
    :param workers: number of processes; by default, the cores that this process may use
    """
    finished = np.load(done, mmap_mode="r+", allow_pickle=False)
    left = np.flatnonzero(finished == 0).tolist()
    if not left:
        return
    # Spawned, because a fork would copy the caller's threads and devices incompletely.
    spawn = get_context("spawn")
    n_workers = workers or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(n_workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        futures = {pool.submit(work, index, items[index]): index for index in left}
        bar = tqdm(total=len(items), initial=len(items) - len(left), desc=name, unit=unit)
        try:
            for future in as_completed(futures):
                future.result()
                finished[futures[future]] = 1
                finished.flush()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()


def _end_with_parent() -> None:
    """End this worker when its parent is killed, so that it does not go on writing."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
