"""Compares the trigger pulses that presentation software counts with the volumes that come. Pure.

Presentation software takes the onset of a picture from its own count of the scanner's triggers. If it misses
one, or counts one that belongs to no volume, every later onset is wrong, and nothing else shows it.

The scanner sends a trigger when it begins a volume. The volumes that have come say how far the scan is at any
moment, but late: by how long a volume is on its way. So the count is ahead of them, by a part of a TR to some
TR. It stays as far ahead, within the TR that passes between two triggers.
"""

from __future__ import annotations

import statistics
from collections import deque

import msgspec

from realtime import wire

LEAST_AHEAD_TR, MOST_AHEAD_TR = -1.0, 3.0
"""What latency explains: a marker may be a TR on its way, a volume two, and a TR passes between triggers."""
SHIFT_TR = 0.5
"""How far outside what it was before the lead must be; a trigger that is missed moves it by a whole TR."""
SPREAD_TR = 1.25
"""How far apart two leads may be: the TR between two triggers, and what varies on the way."""
BASELINE = 5
"""Markers that show how far ahead the count is in this run."""
IN_A_ROW = 3
"""Markers that must agree before an alarm is raised, or is over."""
_CLOCK_VOLUMES = 8
_SILENT_TR = 3
"""After so long without a volume nothing is known of how far the scan is."""


class TriggerCount:
    """Follows one run; gets its volumes and markers in the order in which they came.

    :param tr_s: TR in seconds
    """

    def __init__(self, tr_s: float) -> None:
        self._tr_s = tr_s
        self._begins_s: deque[float] = deque(maxlen=_CLOCK_VOLUMES)
        """When the run began, by each of the last volumes; one that was long on its way says later."""
        self._newest_s = float("-inf")
        self._usual: tuple[float, float] | None = None
        """Least and greatest lead so far, in TR."""
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=IN_A_ROW)
        self.alarm = ""
        """Why onsets are probably wrong; empty while the count fits the volumes."""

    def take(self, message: wire.ToRuntime, received_s: float) -> str:
        """Take the next message of the run; returns what the operator is told, if that has changed."""
        if isinstance(message, wire.Volume):
            self._volume(message.index, received_s)
        elif isinstance(message, wire.Marker) and message.triggers is not msgspec.UNSET:
            return self._marker(message.onset_volume, message.triggers, received_s)
        return ""

    def _volume(self, index: int, received_s: float) -> None:
        self._begins_s.append(received_s - (index + 1) * self._tr_s)
        self._newest_s = max(self._newest_s, received_s)

    def _marker(self, onset_volume: int, triggers: int, received_s: float) -> str:
        if not self._begins_s or received_s - self._newest_s > _SILENT_TR * self._tr_s:
            return ""
        acquired = (received_s - min(self._begins_s)) / self._tr_s
        self._last.append(triggers - acquired)
        off = self._off()
        if off is None or bool(off) == bool(self.alarm):
            return ""
        if not off:
            self.alarm = ""
            return (
                f"presentation software's count of triggers fits the volumes again at volume {onset_volume}"
            )
        self.alarm = (
            f"presentation software has counted {triggers} triggers at volume {onset_volume}, which is about "
            f"{abs(off)} too {'many' if off > 0 else 'few'} for the volumes that came: onsets from about "
            "here on are probably shifted; check the trigger line, and where the software's count begins"
        )
        return self.alarm

    def _off(self) -> int | None:
        """By how many triggers the last counts are off; None where they do not agree, or are too few."""
        lead = self._last[-1]
        if self._usual is None:
            if LEAST_AHEAD_TR <= lead <= MOST_AHEAD_TR:
                self._first.append(lead)
            if len(self._first) == BASELINE:
                self._usual = min(self._first), max(self._first)
        low, high = self._limits()
        if len(self._last) < IN_A_ROW:
            return None
        if all(low <= each <= high for each in self._last):
            if self._usual and not self.alarm:
                self._usual = min(self._usual[0], lead), max(self._usual[1], lead)
            return 0
        if max(self._last) < low or min(self._last) > high:
            middle = sum(self._usual) / 2 if self._usual else 1.0
            off = round(statistics.median(self._last) - middle)
            return off or (1 if min(self._last) > high else -1)
        return None

    def _limits(self) -> tuple[float, float]:
        if self._usual is None:
            return LEAST_AHEAD_TR, MOST_AHEAD_TR
        least, greatest = self._usual
        low = max(least - SHIFT_TR, greatest - SPREAD_TR, LEAST_AHEAD_TR)
        return low, min(greatest + SHIFT_TR, least + SPREAD_TR, MOST_AHEAD_TR)
