"""The runtime's side of the wire protocol for tests of the scanner; stores volumes and can be killed."""

from __future__ import annotations

from realtime import wire


class ContractRuntime:
    """Stored volumes survive `restart`, like a journal; the open run does not."""

    def __init__(self) -> None:
        self.journal: dict[int, bytes] = {}
        self.markers: dict[int, tuple[str, bytes]] = {}
        self.starts: list[wire.RunStart] = []
        self.ends: list[str] = []
        self.takes = 0
        self._is_open = False

    def restart(self) -> None:
        self._is_open = False

    def handle(self, message: wire.ToRuntime, buffer: bytes) -> wire.ToScanner:
        run_id = message.run_id
        if isinstance(message, wire.RunStart):
            return self._start(message)
        if isinstance(message, wire.RunEnd) and self.ends:
            return wire.RunClosed(run_id=run_id)
        if not self._is_open:
            return wire.Refused(run_id=run_id, code="no-run", message="send its run start")
        if isinstance(message, wire.Volume):
            assert self.journal.setdefault(message.index, buffer) == buffer
            return wire.Ack(run_id=run_id, index=message.index)
        if isinstance(message, wire.Marker):
            assert self.markers.setdefault(message.onset_volume, (message.name, buffer))[1] == buffer
            return wire.MarkerAck(run_id=run_id, onset_volume=message.onset_volume)
        self.ends.append(message.reason)
        self._is_open = False
        return wire.RunClosed(run_id=run_id)

    def _start(self, message: wire.RunStart) -> wire.ToScanner:
        self.starts.append(message)
        if not self._is_open and (self.ends or self.takes == 0):
            self.takes += 1
            self.journal, self.markers, self.ends = {}, {}, []
        self._is_open = True
        return wire.RunAccepted(run_id=message.run_id, held=ranges(sorted(self.journal)))


def ranges(indices: list[int]) -> list[tuple[int, int]]:
    """Half-open ranges that cover exactly the sorted ``indices``."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return found
