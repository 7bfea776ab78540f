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
import itertools
import math
from collections.abc import Mapping, Sequence
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

DAMAGED = frozenset({"header", "version", "checksum"})
"""Codes with which it refuses a message that was changed on the way; from a scanner that it never understood,
two of them mean another release."""


class RefusedError(SimError):
    """The runtime does not take this run, and sending it again would not change that."""


@dataclass(frozen=True)
class Reconnect:
    """Drop the connection with all it has queued and make a new one, before what follows is sent."""


Action = Reconnect | wire.RunStart | wire.Marker | wire.Volume | wire.RunEnd


_Key = tuple[Literal["volume", "marker"], int]


def _key(message: wire.Marker | wire.Volume) -> _Key:
    if isinstance(message, wire.Marker):
        return "marker", message.onset_volume
    return "volume", message.index


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

    ``late_tr`` holds volumes that the scanner hands on so much later than it acquired them, infinity: never.
    """

    def __init__(
        self, *, n_volumes: int, tr_s: float, speed: float, late_tr: Mapping[int, float] | None = None
    ) -> None:
        self._n_volumes = n_volumes
        self._period_s = tr_s / speed
        self._late_tr = late_tr or {}
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

    def ready(self, now_s: float) -> Sequence[int]:
        """The volumes that can be sent, in the order in which they became so."""
        acquired = range(self.acquired(now_s))
        if not self._late_tr:
            return acquired
        return sorted((index for index in acquired if self._ready_s(index) <= now_s), key=self._ready_s)

    def next_s(self, now_s: float) -> float:
        """When the next volume will be complete or, where it is late, can be sent; infinity if none will."""
        if not self.has_begun:
            return math.inf
        index = self.acquired(now_s)
        next_s = self._deadline_s(index) if index < self._n_volumes else math.inf
        late_s = (self._ready_s(late) for late in self._late_tr if late < index)
        return min([next_s, *(ready_s for ready_s in late_s if ready_s > now_s)])

    def _ready_s(self, index: int) -> float:
        return self._deadline_s(index) + self._late_tr.get(index, 0.0) * self._period_s

    def _deadline_s(self, index: int) -> float:
        assert self._begun_s is not None
        return self._begun_s + (index - self._first + 1) * self._period_s


class Sender:
    """Sends one run so that the runtime ends up holding every volume of it, whatever breaks on the way.

    ``markers`` is what was put on screen, in order; a marker goes out before the volume of its onset.
    ``late_tr``: see `Pacer`; the run is complete without the volumes that never come.
    """

    def __init__(
        self,
        start: wire.RunStart,
        markers: Sequence[wire.Marker],
        *,
        speed: float,
        resend_s: float = 1.0,
        late_tr: Mapping[int, float] | None = None,
    ) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise SimError(f"speed: expected a number above 0 (1 is the scanner's own), got {speed}")
        self.start = start
        self.state = State.OPENING
        self.is_unanswered = False
        """Whether the runtime has been silent for longer than it may, and has not answered since."""
        self.trouble = ""
        """Why the runtime takes nothing for the time being."""
        self.aborted = False
        self._pacer = Pacer(n_volumes=start.n_volumes, tr_s=start.tr_s, speed=speed, late_tr=late_tr)
        self._resend_s = resend_s
        self._open_markers = {marker.onset_volume: marker for marker in markers}
        never = {index for index, late in (late_tr or {}).items() if math.isinf(late)}
        self._coming = set(range(start.n_volumes)) - never
        self._held: set[int] = set()
        self._in_flight: dict[_Key, None] = {}  # in the order of sending, which replies keep
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
            self.is_unanswered = not self.trouble
            actions.append(Reconnect())
        if self.state is State.SENDING:
            actions += self._due(now_s)
            if self._coming <= self._held and not self._open_markers:
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
            self.trouble = ""
            self._on_ack(reply)
            self._awaiting_since_s = now_s if self._expects_reply else None

    @property
    def _expects_reply(self) -> bool:
        return self.state in (State.OPENING, State.ENDING) or bool(self._in_flight)

    def _due(self, now_s: float) -> list[Action]:
        """Markers and volumes that are acquired, not held and not under way, oldest first."""
        # A marker goes before its onset's volume, also where that was held before this process began.
        n_acquired = self._pacer.acquired(now_s)
        shown = [marker for onset, marker in self._open_markers.items() if onset < n_acquired]
        markers = [marker for marker in shown if _key(marker) not in self._in_flight]
        room = MAX_IN_FLIGHT - sum(kind == "volume" for kind, _ in self._in_flight)
        missing = (index for index in self._pacer.ready(now_s) if index not in self._held)
        waiting = (index for index in missing if ("volume", index) not in self._in_flight)
        volumes = [self._volume(index) for index in itertools.islice(waiting, room)]
        due: list[wire.Marker | wire.Volume] = [*markers, *volumes]
        self._in_flight.update(dict.fromkeys(map(_key, due)))
        return list(due)

    def _volume(self, index: int) -> wire.Volume:
        return wire.Volume(run_id=self.start.run_id, index=index, acquired_s=(index + 1) * self.start.tr_s)

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
        self._in_flight.clear()
        self._awaiting_since_s = None
        self.state = State.SENDING
        if self.aborted:
            self._end()
        elif not self._pacer.has_begun:
            self._pacer.begin(now_s, max(held, default=-1) + 1)

    def _on_ack(self, reply: wire.Ack | wire.MarkerAck) -> None:
        key: _Key
        if isinstance(reply, wire.Ack):
            self._held.add(reply.index)
            key = ("volume", reply.index)
        else:
            self._open_markers.pop(reply.onset_volume, None)
            key = ("marker", reply.onset_volume)
        # Replies come in the order of what they answer: what was sent before and is not answered got lost.
        # Let go of, it is sent again at once, before the runtime gives its gap up.
        while key in self._in_flight:
            del self._in_flight[next(iter(self._in_flight))]

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
        if reply.code in DAMAGED and self.state is not State.OPENING:
            if reply.index is not None:
                self._in_flight.pop(("volume", reply.index), None)
            return
        if reply.code == TROUBLE and self._pacer.has_begun:
            self.trouble = reply.message  # what it refused is not acknowledged, so it is offered again
            return
        raise RefusedError(f"the runtime refused: {reply.message}")
