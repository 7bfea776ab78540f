"""Processes that make models and pages at the same time, with one thread each.

At the size of these models a step takes less of two cores when each has a model of its own. This module
imports nothing that is slow or that reads the environment: a process sets that first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from types import FrameType

_PATIENCE_S = 120


def n_workers() -> int:
    """As many as this process may use cores; one where there is a GPU, which they would share."""
    import torch  # slow to import

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


@contextmanager
def workers(n: int) -> Iterator[ProcessPoolExecutor]:
    """``n`` processes. After Ctrl-C or SIGTERM each saves what it trains, and ends.

    :raises KeyboardInterrupt: after Ctrl-C or SIGTERM
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    # Spawned, because a fork would copy the caller's threads and devices incompletely.
    pool = ProcessPoolExecutor(n, mp_context=get_context("spawn"), initializer=_begin)
    try:
        yield pool
    except BaseException:
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def end_if_orphaned() -> None:
    """End this worker when its parent was killed: nobody waits for what it would return."""
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _begin() -> None:
    """Set up a worker: one thread, no progress bars, and an end when its parent is killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes it on as SIGTERM

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)  # a training saves its state
            time.sleep(_PATIENCE_S)
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
