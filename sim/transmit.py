"""Sends a run to an address until it is over or the user interrupts it; tells the user what happens."""

from __future__ import annotations

import contextlib
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import msgspec
from tqdm import tqdm

from realtime import wire
from realtime.progress import Progress
from sim.delivery import OWN, Delivery, open_export
from sim.errors import SimError
from sim.faults import IN_TRANSIT, FaultyLink, FaultyScan, Plan, StartedRun, describe, late_tr
from sim.presentation import Presentation
from sim.scanner import Scanner, ZmqLink
from sim.sender import Sender

INTERRUPTED = 130
"""Exit code."""


def tell(line: str) -> None:
    """Print a line of the scanner's, beside a progress bar."""
    tqdm.write(f"scanner: {line}", file=sys.stderr)


class Bar(tqdm):  # type: ignore[misc]  # it has no types
    """A progress bar on a terminal; elsewhere a line now and then."""

    def __init__(self, n_volumes: int, what: str) -> None:
        super().__init__(total=n_volumes, unit="volume", desc=what, disable=None)
        self._progress = Progress(n_volumes, "volumes")

    def update(self, n: int = 1) -> None:
        """Count ``n`` more volumes."""
        super().update(n)
        if self.disable:
            self.n += n
            if line := self._progress.line(self.n, time.monotonic()):
                tell(line)


def transmit(
    recording: StartedRun,
    markers: Sequence[wire.Marker],
    *,
    address: str,
    keys: Path | None = None,
    speed: float,
    plan: Plan | None = None,
    markers_to: str | None = None,
) -> int:
    """Send a run; return the exit code.

    :param keys: as for `ZmqLink`, or for `Presentation` where ``markers_to`` is given
    :param markers_to: the runtime's port of markers, for protocols that carry no pictures
    :param plan: faults to inject
    :raises SimError: when the other side refuses the run
    """
    scan = FaultyScan(recording, plan or {})
    for line in describe(plan or {}):
        tell(line)
    with Bar(scan.start.n_volumes, "replay") as progress:
        if address.startswith(OWN):
            if markers_to:
                raise SimError(f"expected no --markers with {address}: its messages contain the pictures")
            return _by_own_messages(scan, markers, address, keys, speed, plan or {}, progress)
        if not markers_to:
            if markers:
                tell("this way carries no pictures; --markers sends them to a port of their own")
            return _by_export(scan, address, speed, plan or {}, progress)
        presentation = Presentation(markers_to, keys, recording, markers, tell)
        try:
            return _by_export(scan, address, speed, plan or {}, progress, presentation.show)
        finally:
            presentation.end()


def _by_own_messages(
    scan: FaultyScan,
    markers: Sequence[wire.Marker],
    address: str,
    keys: Path | None,
    speed: float,
    plan: Plan,
    progress: tqdm[None],
) -> int:
    start = msgspec.structs.replace(scan.start, secret=secrets.token_urlsafe())
    sender = Sender(start, markers, speed=speed, late_tr=late_tr(plan, start.n_volumes))
    with ZmqLink(address, keys) as link:
        scanner = Scanner(scan, FaultyLink(link, plan), sender, tell=tell)
        with interrupts(scanner.interrupt):
            is_complete = scanner.replay(progress)
    if not is_complete:
        tell(f"interrupted; the runtime has {sender.n_held} of {start.n_volumes} volumes")
        return INTERRUPTED
    tell(f"run complete: {sender.n_held} volumes acknowledged")
    return 0


def _by_export(
    scan: FaultyScan,
    address: str,
    speed: float,
    plan: Plan,
    progress: tqdm[None],
    on_sent: Callable[[int], None] = lambda index: None,
) -> int:
    if kinds := {fault.kind for fault in plan.values()} & IN_TRANSIT:
        faults = ", ".join(sorted(kinds))
        raise SimError(f"fault {faults}: expected tcp:// or ipc:// as --connect for faults in transit")
    export, late = open_export(address, scan.start, tell), late_tr(plan, scan.start.n_volumes)
    delivery = Delivery(scan, export, speed=speed, late_tr=late, on_sent=on_sent)
    with interrupts(delivery.interrupt):
        is_complete = delivery.run(progress)
    said = "run complete" if is_complete else "interrupted"
    tell(f"{said}: {delivery.n_sent} of {scan.start.n_volumes} volumes sent")
    return 0 if is_complete else INTERRUPTED


@contextlib.contextmanager
def interrupts(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call ``interrupt`` at the first Ctrl-C; the second ends the program at once.

    It raises no exception, because an exception inside a library's callback is printed there and lost.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
