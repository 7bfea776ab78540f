"""The processes of one training: a single one, or one for every GPU of every host.

    deepspeed --num_gpus 8 --module train fit …
    deepspeed --hostfile HOSTS --module train fit …

The launcher (DeepSpeed's, or torchrun) sets the rank of each process in the environment; without a launcher
there is one process. Hosts share the output folder. Machines without GPUs communicate over gloo.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch.distributed as dist

from train.errors import TrainError

_T = TypeVar("_T")
_LONGEST_WAIT = timedelta(days=7)  # preparing a data set can take long on slow disks


def n_processes() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes logs and results."""
    return int(os.environ.get("RANK", "0")) == 0


def join_processes() -> None:
    """Connect to the other processes; a single process becomes a group of one. Further calls do nothing."""
    if dist.is_initialized():
        return
    import deepspeed  # slow to import, and it reads the launcher's environment
    from deepspeed.accelerator import get_accelerator

    atexit.register(dist.destroy_process_group)  # else gloo's threads abort the process at its end
    if "RANK" in os.environ:
        deepspeed.init_distributed(verbose=False)
        return
    # Not through the environment, because child processes would then join the group.
    backend = get_accelerator().communication_backend_name()
    store = dist.HashStore()  # type: ignore[attr-defined]  # documented, but not in its __all__
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed reads it in any case


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the body in the main process, then in the first process of every other host, then in the rest.

    For files that are made once and then read: the first process makes them and the others find them, whether
    or not the hosts share the folder.

    :raises TrainError: in the waiting processes, when the body fails in a process before them
    """
    if n_processes() > 1:
        _waiting_group()  # before the first turn, so that a missing process is noticed after ten minutes
    turn = 0 if is_main_process() else 1 if os.environ.get("LOCAL_RANK", "0") == "0" else 2
    for earlier in range(turn):
        _end_of_turn(earlier)
    try:
        yield
    except BaseException as error:
        _tell(str(error) or type(error).__name__)
        raise
    for later in range(turn, 3):
        _end_of_turn(later)


def decided_by_main(decide: Callable[[], _T]) -> _T:
    """Call ``decide`` in the main process, and return its result in all processes.

    :raises TrainError: in all processes, when ``decide`` raises it
    """
    if n_processes() == 1:
        return decide()
    told: list[Any] = [None, None]
    if is_main_process():
        try:
            told[0] = decide()
        except TrainError as error:
            told[1] = str(error)
    dist.broadcast_object_list(told, src=0, group=_waiting_group())
    decided, failure = told
    if failure is not None:
        raise TrainError(failure)
    decision: _T = decided
    return decision


def _end_of_turn(turn: int) -> None:
    failures = [failure for failure in _tell(None) if failure]
    if failures:
        raise TrainError(f"another process of this training stopped first: {failures[0]}")


def _tell(failure: str | None) -> list[str | None]:
    """Wait for all processes, and return the failure of each, or None."""
    if n_processes() == 1:
        return [failure]
    said: list[str | None] = [None] * n_processes()
    dist.all_gather_object(said, failure, group=_waiting_group())
    return said


@cache
def _waiting_group() -> Any:
    """A group on the CPU, because a group on GPUs times out when processes wait for long."""
    join_processes()
    return dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)


class StopRequest:
    """In its block, SIGINT (Ctrl-C) and SIGTERM (from launchers and schedulers) only set ``made``.

    A second Ctrl-C interrupts at once. Outside the main thread, signal handlers stay as they were.
    """

    def __init__(self) -> None:
        self.made = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.made and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.made = True
