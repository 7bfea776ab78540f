"""The processes of one training: a lone one, or one for every GPU of every host.

    deepspeed --num_gpus 8 --module train fit …
    deepspeed --hostfile HOSTS --module train fit …

The launcher (torchrun too) says through the environment who is who; without one, a process is alone. Hosts
share the output folder. Machines without GPUs do it over gloo.
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
_LONGEST_WAIT = timedelta(days=7)  # preparing a data set on slow disks takes its time


def n_processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one that writes logs and results."""
    return int(os.environ.get("RANK", "0")) == 0


def join_processes() -> None:
    """Connect with the other processes; a lone process becomes a group of one. Again: does nothing."""
    if dist.is_initialized():
        return
    import deepspeed  # slow to import, and it reads the launcher's environment
    from deepspeed.accelerator import get_accelerator

    atexit.register(dist.destroy_process_group)  # gloo's threads abort a process that ends with them
    if "RANK" in os.environ:
        deepspeed.init_distributed(verbose=False)
        return
    # Not through the environment: what this process starts would take itself for a part of the group.
    backend = get_accelerator().communication_backend_name()
    store = dist.HashStore()  # type: ignore[attr-defined]  # documented, but not in its __all__
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for this one everywhere


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the body run in the main process, then in the first of every other host, then in the rest.

    For what is made once and then read: the first to come makes it, the others find it made, whether hosts
    share the folder or not.

    :raises TrainError: in the processes that wait, when the body fails where it runs.
    """
    if n_processes() > 1:
        _waiting_group()  # before the first turn: who joins late is waited for ten minutes, not for days
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
    """What ``decide`` returns in the main process, told to all the others.

    :raises TrainError: in all of them, when ``decide`` raises it.
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
    """Wait for all processes; what each has to say."""
    if n_processes() == 1:
        return [failure]
    said: list[str | None] = [None] * n_processes()
    dist.all_gather_object(said, failure, group=_waiting_group())
    return said


@cache
def _waiting_group() -> Any:
    """On the CPU, whatever trains on: a GPU's own group gives up on those who wait for long."""
    join_processes()
    return dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)


class StopRequest:
    """While in its block, SIGINT and SIGTERM (Ctrl-C; what launchers and schedulers send) only ask to stop.

    A second Ctrl-C does not wait. Outside the main thread signals go where they went before.
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
