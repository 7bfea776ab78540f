"""Work on many items in processes; each is noted as it ends, so an interruption loses only what runs."""

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
    """Do ``work(index, item)`` for every item that is not finished yet.

    :param done: uint8 ``[items]`` as ``.npy``, where 1 says finished; it is kept up to date
    :param workers: processes; by default one for each core this one may use
    """
    finished = np.load(done, mmap_mode="r+", allow_pickle=False)
    left = np.flatnonzero(finished == 0).tolist()
    if not left:
        return
    # Not forked: the caller may hold threads and devices that a fork would copy half.
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
    """In a worker: a parent that was killed leaves nobody behind who writes."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
