"""The scanner's side of the wire contract, without I/O: what to send now, and what a reply changes.

    opening ──accepted──► sending ──all volumes held──► ending ──closed──► finished
       ▲                     │                            │
       └──── no reply for resend_s, or "no-run" ──────────┘

The caller owns clock, socket and volumes. It asks `Sender.poll` what to send, hands every reply
to `Sender.on_reply`, and waits at most until `Sender.wake_s`. Nothing is forgotten before
the runtime has acknowledged it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from realtime import wire
from sim.errors import SimError

MAX_IN_FLIGHT = 16
"""Volumes sent and not yet acknowledged at any time; more wait here, not in a socket's queue."""

NO_RUN = "no-run"
"""Code with which a runtime refuses messages of a run that it has not opened (since its start)."""

TROUBLE = "runtime"
"""Code with which it refuses what it would take another time: its disk is full, say."""


class RefusedError(SimError):
    """The runtime does not take this run, and sending it again would not change that."""


@dataclass(frozen=True)
class Reconnect:
    """Drop the connection with all it has queued and make a new one, before what follows is sent."""


Action = Reconnect | wire.RunStart | wire.Marker | wire.Volume | wire.RunEnd


class State(enum.Enum):
    """Where a run stands; see the module's picture."""

    OPENING = "opening"
    SENDING = "sending"
    ENDING = "ending"
    FINISHED = "finished"


class Pacer:
    """Says how many volumes the scanner has acquired; deadlines are absolute, so errors do not add up.

    Volume ``i`` is complete at ``begun + (i - first + 1) * tr_s / speed``, where ``first`` is the first
    volume still to be acquired when the pacer begins.
    """

    def __init__(self, *, n_volumes: int, tr_s: float, speed: float) -> None:
        self._n_volumes = n_volumes
        self._period_s = tr_s / speed
        self._first = 0
        self._begun_s: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the scanner runs."""
        return self._begun_s is not None

    def begin(self, now_s: float, first: int) -> None:
        """Start acquiring with volume ``first``."""
        self._begun_s = now_s
        self._first = first

    def acquired(self, now_s: float) -> int:
        """How many volumes of the run are complete: 0 to ``n_volumes``."""
        if self._begun_s is None:
            return 0
        # A deadline that has been reached counts, whatever the rounding of the division.
        n_new = max(math.floor((now_s - self._begun_s) / self._period_s), 0)
        if now_s >= self._deadline_s(self._first + n_new):
            n_new += 1
        elif n_new and now_s < self._deadline_s(self._first + n_new - 1):
            n_new -= 1
        return min(self._first + n_new, self._n_volumes)

    def next_s(self, now_s: float) -> float:
        """When the next volume will be complete; infinity if none will."""
        index = self.acquired(now_s)
        return self._deadline_s(index) if self.has_begun and index < self._n_volumes else math.inf

    def _deadline_s(self, index: int) -> float:
        assert self._begun_s is not None
        return self._begun_s + (index - self._first + 1) * self._period_s


class Sender:
    """Sends one run so that the runtime ends up holding every volume of it, whatever breaks on the way.

    ``markers`` is what was put on screen, in order; a marker goes out before the volume of its onset.
    """

    def __init__(
        self, start: wire.RunStart, markers: Sequence[wire.Marker], *, speed: float, resend_s: float = 1.0
    ) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise SimError(f"speed: expected a number above 0 (1 is the scanner's own), got {speed}")
        self.start = start
        self.state = State.OPENING
        self.is_unanswered = False
        """Whether the runtime has been silent for longer than it may, and has not answered since."""
        self.aborted = False
        self._pacer = Pacer(n_volumes=start.n_volumes, tr_s=start.tr_s, speed=speed)
        self._resend_s = resend_s
        self._open_markers = {marker.onset_volume: marker for marker in markers}
        self._held: set[int] = set()
        self._sent: set[int] = set()
        self._sent_markers: set[int] = set()
        self._awaiting_since_s: float | None = None
        self._end_sent = False

    @property
    def n_held(self) -> int:
        """Volumes that the runtime has acknowledged or said to hold."""
        return len(self._held)

    @property
    def is_finished(self) -> bool:
        """Whether the runtime has closed the run."""
        return self.state is State.FINISHED

    def abort(self) -> None:
        """End the run with what the runtime has; nothing more is acquired."""
        if self.state is State.ENDING:
            return
        self.aborted = True
        if self.state is State.OPENING and not self._pacer.has_begun:
            self.state = State.FINISHED  # the runtime never took the run: there is nothing to end
        elif self.state is State.SENDING:
            self._end()

    def poll(self, now_s: float) -> list[Action]:
        """Return what is to be sent now, in order."""
        actions: list[Action] = []
        if self._awaiting_since_s is not None and now_s >= self._awaiting_since_s + self._resend_s:
            self._reopen()
            self.is_unanswered = True
            actions.append(Reconnect())
        if self.state is State.SENDING:
            actions += self._due(now_s)
            if len(self._held) == self.start.n_volumes and not self._open_markers:
                self._end()
        if self._awaiting_since_s is None:
            if self.state is State.OPENING:
                actions.append(self.start)
            elif self.state is State.ENDING:
                actions.append(self._run_end())
                self._end_sent = True
        if self._awaiting_since_s is None and self._expects_reply:
            self._awaiting_since_s = now_s
        return actions

    def wake_s(self, now_s: float) -> float:
        """When `poll` is to be called next if no reply comes; infinity: only a reply changes anything."""
        silence_s = math.inf if self._awaiting_since_s is None else self._awaiting_since_s + self._resend_s
        is_sending = self.state is State.SENDING
        return min(silence_s, self._pacer.next_s(now_s) if is_sending else math.inf)

    def on_reply(self, reply: wire.ToScanner, now_s: float) -> None:
        """Take a reply in.

        :raises RefusedError: the runtime will not take this run.
        """
        self.is_unanswered = False
        if isinstance(reply, wire.Refused):
            self._on_refused(reply)
        elif reply.run_id != self.start.run_id:
            return  # of a run that another process sent over this address
        elif isinstance(reply, wire.RunAccepted):
            self._on_accepted(reply, now_s)
        elif isinstance(reply, wire.RunClosed):
            self._on_closed()
        else:
            self._on_ack(reply)
            self._awaiting_since_s = now_s if self._expects_reply else None

    @property
    def _expects_reply(self) -> bool:
        in_flight = bool(self._sent - self._held) or bool(self._sent_markers & self._open_markers.keys())
        return self.state in (State.OPENING, State.ENDING) or in_flight

    def _due(self, now_s: float) -> list[Action]:
        """Markers and volumes that are acquired, not held and not under way, oldest first."""
        actions: list[Action] = []
        n_acquired = self._pacer.acquired(now_s)
        room = MAX_IN_FLIGHT - len(self._sent - self._held)
        # A marker goes with its onset's volume: when that is acquired, or was held before this process began.
        for index in range(n_acquired):
            marker = self._open_markers.get(index)
            if marker is not None and index not in self._sent_markers:
                self._sent_markers.add(index)
                actions.append(marker)
            if index in self._held or index in self._sent:
                continue
            if room == 0:
                break
            room -= 1
            self._sent.add(index)
            acquired_s = (index + 1) * self.start.tr_s
            actions.append(wire.Volume(run_id=self.start.run_id, index=index, acquired_s=acquired_s))
        return actions

    def _run_end(self) -> wire.RunEnd:
        reason: Literal["complete", "aborted"] = "aborted" if self.aborted else "complete"
        return wire.RunEnd(run_id=self.start.run_id, reason=reason)

    def _end(self) -> None:
        self.state = State.ENDING
        self._awaiting_since_s = None

    def _reopen(self) -> None:
        """Offer the run again: the runtime was silent, or does not know the run any more."""
        # A run whose end was sent may be closed by now, and starting it again would begin a new take; so its
        # end is sent again instead, and its start only where the runtime then says that it knows no such run.
        if self.state is not State.ENDING:
            self.state = State.OPENING
        self._awaiting_since_s = None

    def _on_accepted(self, reply: wire.RunAccepted, now_s: float) -> None:
        if self.state is not State.OPENING:
            return
        n_volumes = self.start.n_volumes
        held = {index for first, stop in reply.held for index in range(first, min(stop, n_volumes))}
        if self._end_sent and not held:
            self.state = State.FINISHED  # it had closed the run; what it has opened now is an empty new take
            return
        self._held = held
        self._sent.clear()
        self._sent_markers.clear()
        self._awaiting_since_s = None
        self.state = State.SENDING
        if self.aborted:
            self._end()
        elif not self._pacer.has_begun:
            self._pacer.begin(now_s, max(held, default=-1) + 1)

    def _on_ack(self, reply: wire.Ack | wire.MarkerAck) -> None:
        if isinstance(reply, wire.Ack):
            self._held.add(reply.index)
        else:
            self._open_markers.pop(reply.onset_volume, None)

    def _on_closed(self) -> None:
        if self.state is State.ENDING:
            self.state = State.FINISHED
            self._awaiting_since_s = None

    def _on_refused(self, reply: wire.Refused) -> None:
        if reply.code == NO_RUN:
            if self.state is State.SENDING or self.state is State.ENDING:
                self.state = State.OPENING
                self._awaiting_since_s = None
            return
        if reply.run_id not in ("", self.start.run_id):
            return
        if reply.code == TROUBLE and reply.index is not None:
            return  # the volume is not acknowledged, so it is offered again
        raise RefusedError(f"the runtime refused: {reply.message}")
