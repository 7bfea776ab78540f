"""One run from its start to its end: volumes in order, windows that are ready, each volume's final state.

It neither waits nor reads files: :mod:`realtime.runs.follow` brings the journal's records and the time, the
decode loop takes windows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from functools import partial
from time import perf_counter
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Decoder
from realtime.errors import RecordError, WireError
from realtime.events import Event, Frame, LatencyMs, VolumeState
from realtime.record.folder import RunFolder
from realtime.record.journal import Entry, Head
from realtime.record.tables import Row, frame_row
from realtime.runs.account import Account
from realtime.runs.checkpoint import CHECKPOINT, About, Checkpoint, WaitingWindow, digest_of
from realtime.runs.pictures import Pictures
from realtime.runs.queue import Arrival, Queue, Ready
from realtime.runs.region import Region
from realtime.runs.reorder import Reorder, Turn
from realtime.runs.statistics import STATISTICS_FILE, prior_of
from realtime.runs.triggers import TriggerCount

GAP_PATIENCE_TR = 2
"""A gap in the volumes is given up after this many TR."""
_REPLACED = "a newer window was ready before its decode began"
_TOO_LATE = "the picture's marker came after its window"
_RESTARTED = "the decoder was restarted before it was decoded"

_log = logging.getLogger(__name__)

Line = TypeVar("Line")


class Run:
    """A run in a folder that is open for writing."""

    def __init__(self, folder: RunFolder, bundle: Bundle, queue: Queue) -> None:
        """Volumes that have a row in the folder keep the state that it names."""
        self.folder = folder
        self.start = folder.info.start
        self.queue = queue
        self.message = ""
        """The latest message to the operator."""
        self.alarm = ""
        """Why results are not recorded; empty while the disk works."""
        self.end: wire.RunEnd | None = None
        """Its end, once that was read."""
        self.digest = digest_of(folder.info)
        """Of what a checkpoint of it belongs to."""
        self.journal_end = 0
        """Where the records end that were read."""
        self.headers = hashlib.sha256()
        """Of their headers, as they came."""
        self.heard_s = float("-inf")
        """When its newest volume was received."""
        self.account = Account(self.start.n_volumes)
        self._decoders = bundle.spec.decoders
        rows = folder.rows()
        self._accounted = {(row.volume, row.decoder) for row in rows}
        """Volumes and decoders that have their row."""
        for row in rows:
            if self._is_of_first(row):
                self.account.settle(row.volume, row.state)
        self.trusted = False
        """Whether the run has had enough volumes for its statistics to be trusted."""
        self._has_begun = False
        self._newest: Ready | None = None
        """The newest window that was ready."""
        self._resumed: Checkpoint | None = None
        """The checkpoint from which the run went on, if there was one."""
        self._shown = Pictures(folder, self.disk_failed)
        self.triggers = TriggerCount(self.start.tr_s)
        self._reorder: Reorder[Arrival] = Reorder(
            self.start.n_volumes,
            GAP_PATIENCE_TR * self.start.tr_s,
            given_up=[row.volume for row in rows if row.state == "missing"],
        )
        self.region = Region(bundle, folder.info, prior_of(folder, bundle))

    @property
    def name(self) -> str:
        """The run's id; of a later take, with its number."""
        return self.folder.path.name

    @property
    def position(self) -> int | None:
        """The newest volume that was preprocessed; None before the first."""
        newest = self.account.newest
        if newest is None or not self._reorder.next_index:
            return None
        return min(self._reorder.next_index - 1, newest)  # the end of a run gives up what has not come

    def where(self) -> str:
        """The run's position, in words."""
        return "its start" if self.position is None else f"volume {self.position}"

    def take(self, entry: Entry | Head, received_s: float, *, is_past: bool = False) -> Event | None:
        """Take the next record of the journal; returns what listeners are told of it.

        :param entry: its head is enough for a volume before the checkpoint, and a picture in the folder
        :param received_s: when it was received, by ``time.perf_counter``
        :param is_past: whether it was in the journal before this process followed the run
        :raises WireError: when the record is no message of this run
        """
        message = wire.decode_to_runtime(entry.header)
        payload = entry.payload if isinstance(entry, Entry) else None
        self.headers.update(entry.header)
        self.journal_end = entry.end
        if said := self.triggers.take(message, entry.received_utc_s):
            self.warn(said)
        if isinstance(message, wire.Volume):
            self.heard_s = received_s
            self._take_volume(message, payload, received_s, is_past=is_past)
        elif isinstance(message, wire.Marker):
            return self._show(message, payload, is_past=is_past)
        elif isinstance(message, wire.RunEnd):
            self.end = message
        elif self._has_begun and not is_past:
            self.tell(f"the scanner is back; the run goes on after {self.where()}")
            self._reorder.restart_clock(received_s)  # it may now fill gaps that it could not fill before
        self._has_begun = True
        return None

    def _take_volume(
        self, message: wire.Volume, payload: bytes | None, received_s: float, *, is_past: bool
    ) -> None:
        """Preprocess a volume as soon as those before it have been."""
        if not self.account.receive(message.index):
            return
        if is_past:  # its deadline is long over, and its sender may fill a gap before it yet
            received_s = perf_counter()
        elif message.index < self._reorder.next_index:
            self.tell(f"volume {message.index} came after its gap had been given up; it is not used")
        arrival = Arrival(
            voxels=None if payload is None else wire.volume_array(self.start, payload),
            affine=self.start.affine if message.affine is msgspec.UNSET else message.affine,
            received_s=received_s,
            journal_ms=1e3 * (perf_counter() - received_s),
            restored=is_past,
        )
        self._advance(self._reorder.push(message.index, arrival, received_s, len(payload or b"")))

    def expire(self, now_s: float) -> None:
        """Give up the gaps whose time is over."""
        self._advance(self._reorder.expire(now_s))

    def finish(self) -> None:
        """No more volumes will come: those that have not come are missing."""
        self._advance(self._reorder.close())

    def close(self, note: str = "") -> None:
        """Once all decodes are over: save the statistics for later runs, and close the folder.

        :raises RecordError: when the disk does not take it; it can then be called again
        """
        for volume in range(self.start.n_volumes):
            if self.account.state_of(volume) is not None:
                self.skip(volume, _TOO_LATE)
        self.folder.write_quality(self.start.n_volumes - 1, None)  # unless it came
        if statistics := self.region.statistics():
            self.folder.write_file(STATISTICS_FILE, statistics.as_npz())
        self.folder.remove_file(CHECKPOINT)
        self.folder.close(note)
        self.alarm = self.triggers.alarm = ""  # the disk has taken all that waited, and no onset follows

    def checkpoint(self) -> Checkpoint | None:
        """The state so far; None while a volume waits for its turn, or a row for the disk."""
        if self._reorder.is_waiting or not self.folder.has_all_rows:
            return None
        next_index, newest = self._reorder.next_index, self._newest
        arrays, waiting = self.region.state(), None
        if newest and self.account.state_of(newest.volume) is None:
            arrays["window"] = newest.window
            waiting = WaitingWindow(
                volume=newest.volume,
                state=newest.state,
                repaired_voxels=newest.repaired_voxels,
                preprocess_ms=newest.preprocess_ms,
            )
        about = About(
            run=self.digest,
            journal_end=self.journal_end,
            headers_sha256=self.headers.digest(),
            next_index=next_index,
            is_trusted=self.trusted,
            open_volumes=tuple(i for i in range(next_index) if self.account.state_of(i) is None),
            waiting=waiting,
        )
        return Checkpoint(about=about, arrays=arrays)

    def resume(self, saved: Checkpoint) -> None:
        """Before the first record: go on from a checkpoint. The records before it must be taken next.

        :raises PreprocessError, RegistrationError: when its numbers do not fit
        """
        self.region.restore({name: saved.arrays[name] for name in saved.arrays if name != "window"})
        window = {name: saved.arrays[name] for name in saved.arrays if name == "window"}
        self._resumed = Checkpoint(about=saved.about, arrays=window)
        self.trusted = saved.about.is_trusted

    def _show(self, marker: wire.Marker, png: bytes | None, *, is_past: bool) -> Event | None:
        try:
            return self._shown.take(marker, png, is_past=is_past)
        except WireError as error:
            self.tell(f"the picture at volume {marker.onset_volume} is left out: {error}")
            return None

    def due(self, volume: int) -> list[Decoder]:
        """The decoders that decode the window ending at ``volume`` and have no row there yet.

        The first decoder decodes every volume, the others a volume that ends their window of a picture.
        """
        return [
            decoder
            for decoder in self._decoders
            if (volume, decoder.name) not in self._accounted
            and (decoder is self._decoders[0] or self._onset(volume, decoder) in self._shown.onsets)
        ]

    def _onset(self, volume: int, decoder: Decoder) -> int:
        """The onset of the picture whose window ends at a volume."""
        return volume - self.region.windows[decoder.name].delay_volumes

    def frame(self, ready: Ready, decoder: Decoder, sampler: str, stages_ms: dict[str, float]) -> Frame:
        """Describe the frame that a decode has just made; its latency ends here."""
        total_ms = 1e3 * (perf_counter() - ready.arrival.received_s)
        known = {"journal": ready.arrival.journal_ms, "preprocess": ready.preprocess_ms} | stages_ms
        is_first = decoder is self._decoders[0]
        onset = self._onset(ready.volume, decoder)
        return Frame(
            run_id=self.name,
            volume=ready.volume,
            decoder=decoder.name,
            window=(ready.volume + 1 - self.region.windows[decoder.name].length_volumes, ready.volume + 1),
            state=ready.state,
            sampler=sampler,
            latency_ms=LatencyMs(**known, wait=max(0.0, total_ms - sum(known.values())), total=total_ms),
            shown_onset=self._shown.newest(onset) if is_first else onset,
        )

    def record(self, frame: Frame, image: NDArray[np.uint8], repaired_voxels: int) -> None:
        """Write a frame and its row; where the disk does not take the frame, the row says so."""
        row = frame_row(frame, None, repaired_voxels)
        try:
            file = self.folder.write_frame(frame.volume, frame.decoder, image)
            row = msgspec.structs.replace(row, frame=file)
        except RecordError as error:
            self.disk_failed(error)
            row = msgspec.structs.replace(row, reason="the disk did not take its frame")
        self._account_row(row)

    def is_accounted(self, volume: int, decoder: str) -> bool:
        """Whether a decoder has its row at a volume."""
        return (volume, decoder) in self._accounted

    def skip(self, volume: int, reason: str) -> None:
        """Write a row for each decoder that is due at a volume and will not decode it."""
        self._settle(volume, "skipped", reason)

    def _account_row(self, row: Row) -> None:
        self._accounted.add((row.volume, row.decoder))
        if self._is_of_first(row):
            self.account.settle(row.volume, row.state)
        self._write(self.folder.write_row, row)

    def _is_of_first(self, row: Row) -> bool:
        return row.decoder == self._decoders[0].name

    def _advance(self, turns: Iterable[Turn[Arrival]]) -> None:
        lost = []
        for turn in turns:
            if turn.item is None:
                self._settle(turn.index, "missing", "it did not come")
                lost.append(turn.index)
            else:
                self._preprocess(turn.index, turn.item)
        if lost:
            self.tell(
                f"{_volumes(lost)} missing: the scanner did not send them, or they were lost on the way"
            )

    def _preprocess(self, volume: int, arrival: Arrival) -> None:
        if arrival.voxels is None:
            self._pass(volume, arrival)
            return
        began_s = perf_counter()
        pushed = self.region.push(volume, arrival.voxels, arrival.affine)
        window = self.region.window()
        preprocess_ms = 1e3 * (perf_counter() - began_s)
        self._write(partial(self.folder.write_quality, volume), self.region.quality)
        if self.region.said:
            self.tell(self.region.said)
        self.trusted = self.trusted or pushed.status == "trusted"
        if self.account.state_of(volume) is not None:
            self.skip(volume, _RESTARTED)
            return
        if pushed.status == "censored":
            self._settle(volume, "censored", pushed.reason)
        elif window is None:
            self._settle(volume, "warming", "no full window yet")
        else:
            ready = Ready(
                volume=volume,
                window=window,
                state=pushed.status,
                repaired_voxels=pushed.repaired_voxels,
                preprocess_ms=preprocess_ms,
                arrival=arrival,
            )
            self._offer(ready)

    def _pass(self, volume: int, arrival: Arrival) -> None:
        """The turn of a volume that was preprocessed before: only the newest window is in the checkpoint."""
        assert self._resumed
        waiting = self._resumed.about.waiting
        if waiting is None or waiting.volume != volume or self.account.state_of(volume) is not None:
            self.skip(volume, _RESTARTED)
            return
        ready = Ready(
            volume=volume,
            window=self._resumed.arrays["window"],
            state=waiting.state,
            repaired_voxels=waiting.repaired_voxels,
            preprocess_ms=waiting.preprocess_ms,
            arrival=arrival,
        )
        self._offer(ready)

    def _offer(self, ready: Ready) -> None:
        self._newest = ready
        replaced = self.queue.offer(ready)
        if replaced:
            self.skip(replaced.volume, _RESTARTED if replaced.arrival.restored else _REPLACED)

    def _settle(self, volume: int, state: VolumeState, reason: str) -> None:
        """Write the rows of a volume without a frame; specialised decoders that are due skip their window."""
        for decoder in self.due(volume):
            if decoder is self._decoders[0]:
                self._account_row(Row(volume=volume, state=state, reason=reason, decoder=decoder.name))
                if state in ("censored", "skipped"):
                    self.tell(f"volume {volume} {state}: {reason}")
                continue
            onset = self._onset(volume, decoder)
            self._account_row(
                Row(volume=volume, state="skipped", reason=reason, shown_onset=onset, decoder=decoder.name)
            )

    def disk_failed(self, error: RecordError) -> None:
        """Raise the alarm. Rows wait until the disk takes them; a frame is decoded again by a replay."""
        alarm = f"results are not recorded at {self.where()}: {error}; free disk space so that they are"
        if alarm != self.alarm:
            _log.error("%s", alarm)
        self.alarm = alarm

    def _write(self, write: Callable[[Line], None], line: Line) -> None:
        """Write a row; if the disk does not take it now, the folder keeps it and writes it later."""
        try:
            write(line)
        except RecordError as error:
            self.disk_failed(error)
        else:
            if self.alarm:
                self.alarm = ""
                self.tell(f"results are recorded again after {self.where()}")

    def warn(self, message: str) -> None:
        """Send the operator a message that belongs into the record."""
        self.message = message
        _log.warning("%s", message, extra={"run_id": self.name})
        if message not in self.folder.info.notes:  # where it is from before a restart
            self._write(self.folder.note, message)

    def tell(self, message: str) -> None:
        """Send the operator a message."""
        self.message = message
        _log.info("%s", message, extra={"run_id": self.name})


def _volumes(indices: list[int]) -> str:
    """Rising indices in words."""
    first, last = indices[0], indices[-1]
    if first == last:
        return f"volume {first}"
    return f"{len(indices)} volumes from {first} to {last}"
