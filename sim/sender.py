"""The scanner's side of the wire protocol, without I/O: decides what to send.

    opening ──accepted──► sending ──all volumes held──► ending ──closed──► finished
       ▲                     │                            │
       └──── no reply for resend_s, or "no-run" ──────────┘

The caller owns clock, socket and volumes. It gets the messages to send from `Sender.poll`, passes every reply
to `Sender.on_reply`, and waits until `Sender.wake_s` at most. Every volume is sent again until the runtime
acknowledges it.
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
"""Limit of volumes that are sent but not acknowledged; more wait here, not in a socket's queue."""

NO_RUN = "no-run"
"""Code of a refusal because the runtime has not opened the run since its start."""

TROUBLE = "runtime"
"""Code of a temporary refusal, for example because the runtime's disk is full."""

DUPLICATE = "duplicate"
"""Code of a refusal because the runtime has another volume with this index, which it keeps."""

NOT_OWNER = "not-owner"
"""Code of a refusal because another process has started the run, perhaps one before this that was killed."""

OWNER_PATIENCE_TR = 6
"""How many TR to offer a run again that belongs to another process: one that is silent loses it."""

DAMAGED = frozenset({"header", "version", "checksum"})
"""Codes of a refusal because the message was changed in transit. While a run is opened, ``header`` and
``version`` mean that the runtime is another release."""


class RefusedError(SimError):
    """The runtime refuses this run permanently."""


@dataclass(frozen=True)
class Reconnect:
    """Drop the connection with all queued messages and connect again before sending what follows."""


Action = Reconnect | wire.RunStart | wire.Marker | wire.Volume | wire.RunEnd


_Key = tuple[Literal["volume", "marker"], int]


def _key(message: wire.Marker | wire.Volume) -> _Key:
    if isinstance(message, wire.Marker):
        return "marker", message.onset_volume
    return "volume", message.index


class State(enum.Enum):
    """State of a run; see the diagram of this module."""

    OPENING = "opening"
    SENDING = "sending"
    ENDING = "ending"
    FINISHED = "finished"


class Pacer:
    """Computes which volumes the scanner has acquired; deadlines are absolute, so errors do not accumulate.

    Volume ``i`` is complete at ``begun + (i - first + 1) * tr_s / speed``, where ``first`` is the first
    volume to acquire when the pacer begins.

    :param late_tr: delays of volumes after their acquisition; infinity means never sent
    :raises SimError: when ``speed`` is not above 0
    """

    def __init__(
        self, *, n_volumes: int, tr_s: float, speed: float, late_tr: Mapping[int, float] | None = None
    ) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise SimError(f"speed: expected a number above 0 (1 is the scanner's own), got {speed}")
        self._n_volumes = n_volumes
        self._period_s = tr_s / speed
        self._late_tr = late_tr or {}
        self._first = 0
        self._begun_s: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the acquisition has started."""
        return self._begun_s is not None

    def begin(self, now_s: float, first: int) -> None:
        """Start acquiring with volume ``first``."""
        self._begun_s = now_s
        self._first = first

    def acquired(self, now_s: float) -> int:
        """Number of complete volumes of the run, 0 to ``n_volumes``."""
        if self._begun_s is None:
            return 0
        # Correct the rounding of the division, so that a deadline that is reached counts.
        n_new = max(math.floor((now_s - self._begun_s) / self._period_s), 0)
        if now_s >= self._deadline_s(self._first + n_new):
            n_new += 1
        elif n_new and now_s < self._deadline_s(self._first + n_new - 1):
            n_new -= 1
        return min(self._first + n_new, self._n_volumes)

    def ready(self, now_s: float) -> Sequence[int]:
        """Volumes that can be sent, in the order in which they became ready."""
        acquired = range(self.acquired(now_s))
        if not self._late_tr:
            return acquired
        return sorted((index for index in acquired if self._ready_s(index) <= now_s), key=self._ready_s)

    def next_s(self, now_s: float) -> float:
        """Time when the next volume will be ready to send; infinity if there is none."""
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
    """Sends one run until the runtime has every volume of it, despite disconnections and restarts.

    :param markers: pictures on screen, in order; a marker is sent before the volume of its onset
    :param speed: 1 is the scan's pace
    :param resend_s: time without a reply after which the sender reconnects
    :param late_tr: as for `Pacer`; the run is complete without the volumes that are never sent
    :raises SimError: when ``speed`` is not above 0
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
        self.start = start
        self.state = State.OPENING
        self.is_unanswered = False
        """Whether the runtime has not answered for ``resend_s`` or longer."""
        self.trouble = ""
        """Reason of a temporary refusal; empty otherwise."""
        self.duplicates: dict[int, str] = {}
        """Volumes of which the runtime has other content, and what it says about them."""
        self.aborted = False
        self._pacer = Pacer(n_volumes=start.n_volumes, tr_s=start.tr_s, speed=speed, late_tr=late_tr)
        self._resend_s = resend_s
        self._open_markers = {marker.onset_volume: marker for marker in markers}
        never = {index for index, late in (late_tr or {}).items() if math.isinf(late)}
        self._coming = set(range(start.n_volumes)) - never
        self._held: set[int] = set()
        self._in_flight: dict[_Key, None] = {}  # in order of sending, which is also the order of replies
        self._awaiting_since_s: float | None = None
        self._end_sent = False
        self._not_owner_since_s: float | None = None

    @property
    def n_held(self) -> int:
        """Number of volumes that the runtime has, by its acknowledgements and by ``held``."""
        return len(self._held)

    @property
    def is_finished(self) -> bool:
        """Whether the runtime has closed the run."""
        return self.state is State.FINISHED

    def abort(self) -> None:
        """Stop the acquisition and end the run with the volumes that the runtime has."""
        if self.state is State.ENDING:
            return
        self.aborted = True
        if self.state is State.OPENING and not self._pacer.has_begun:
            self.state = State.FINISHED  # the runtime never accepted the run, so there is nothing to end
        elif self.state is State.SENDING:
            self._end()

    def poll(self, now_s: float) -> list[Action]:
        """Return what to send now, in order."""
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
        """Time of the next call of `poll` if no reply comes; infinity means not before a reply."""
        silence_s = math.inf if self._awaiting_since_s is None else self._awaiting_since_s + self._resend_s
        is_sending = self.state is State.SENDING
        return min(silence_s, self._pacer.next_s(now_s) if is_sending else math.inf)

    def on_reply(self, reply: wire.ToScanner, now_s: float) -> None:
        """Process a reply.

        :raises RefusedError: when the runtime refuses the run permanently
        """
        self.is_unanswered = False
        if isinstance(reply, wire.Refused):
            self._on_refused(reply, now_s)
        elif reply.run_id != self.start.run_id:
            return  # for a run that another process sent
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
        """Return markers and volumes that are ready, not acknowledged and not in flight, oldest first."""
        # A marker precedes its onset volume, even if the runtime had that volume before this process began.
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
        """Offer the run again, because the runtime is silent or does not know the run."""
        # If the end was sent, the run may be closed, and a start would begin a new take. So the end is sent
        # again, and the start only if the runtime then answers that it does not know the run.
        if self.state is not State.ENDING:
            self.state = State.OPENING
        self._awaiting_since_s = None

    def _on_accepted(self, reply: wire.RunAccepted, now_s: float) -> None:
        if self.state is not State.OPENING:
            return
        self.trouble, self._not_owner_since_s = "", None
        n_volumes = self.start.n_volumes
        held = {index for first, stop in reply.held for index in range(first, min(stop, n_volumes))}
        if self._end_sent and not held:
            self.state = State.FINISHED  # the run was closed before; the runtime has opened an empty new take
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
        if isinstance(reply, wire.Ack):
            self._held.add(reply.index)
            self._answered(("volume", reply.index))
        else:
            self._open_markers.pop(reply.onset_volume, None)
            self._answered(("marker", reply.onset_volume))

    def _answered(self, key: _Key) -> None:
        # Replies come in order of sending, so earlier messages without a reply are lost. Removing them here
        # sends them again at once, before the runtime counts them as missing.
        while key in self._in_flight:
            del self._in_flight[next(iter(self._in_flight))]

    def _on_closed(self) -> None:
        if self.state is State.ENDING:
            self.state = State.FINISHED
            self._awaiting_since_s = None

    def _on_refused(self, reply: wire.Refused, now_s: float) -> None:
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
        if reply.code == DUPLICATE and reply.index is not None:
            self._held.add(reply.index)  # the runtime keeps what it has, so sending it again changes nothing
            self.duplicates[reply.index] = reply.message
            self._answered(("volume", reply.index))
            self._awaiting_since_s = now_s if self._expects_reply else None
            return
        if reply.code == NOT_OWNER and self.state is State.OPENING:
            self._not_owner_since_s = now_s if self._not_owner_since_s is None else self._not_owner_since_s
            if now_s < self._not_owner_since_s + OWNER_PATIENCE_TR * self.start.tr_s:
                self.trouble = reply.message
                return
        if reply.code == TROUBLE and self._pacer.has_begun:
            self.trouble = reply.message  # the refused message stays unacknowledged, so it is sent again
            return
        raise RefusedError(f"the runtime refused: {reply.message}")
