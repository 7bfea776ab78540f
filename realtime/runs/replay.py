"""``realtime replay``: decodes a recorded run again from its journal, and says which frames are the same.

    journal, in order of arrival ─► the code of a live run ─► frame ─► compared with the recorded one
    table: which volumes were missing or skipped, the sampler of each frame ──┘

With the recorded bundle, engine and samplers, the frames are the recorded ones bit for bit. Another bundle,
engine or sampler may be given. No volume is skipped that was not skipped in the recording. The new run folder
is like any other, with the timings of the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.atomic import write_whole
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import choose_bundle
from realtime.bundle.signers import Trust
from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_and_use
from realtime.decoding.engines.contract import Engine
from realtime.decoding.faces import FaceBlur
from realtime.decoding.trial import try_bundle
from realtime.errors import BundleError, RecordError
from realtime.events import Frame
from realtime.record.folder import RunFolder
from realtime.record.journal import read_journal
from realtime.record.reader import Recorded, read_image, read_recorded
from realtime.record.run_json import EngineUsed, Faces, RunFile, new_run_file
from realtime.record.tables import Row
from realtime.runs.queue import InTurn
from realtime.runs.run import Ready, Run, decoders_of
from realtime.runs.statistics import PRIOR_FILE, read_statistics

_NOT_THEN = "it was not decoded in the recorded run"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The run to decode again, and with what; None: as in the recording."""

    run: Path
    out: Path
    bundle: Path | None = None
    trust: Trust = Trust()
    """Whose signatures of bundles count, and whether one is required."""
    engine: str | None = None
    sampler: str | None = None
    show_faces: bool = False
    """Even if they were blurred in the recording."""


class FrameCompared(msgspec.Struct, frozen=True, kw_only=True):
    """One frame beside the recorded one."""

    volume: int
    decoder: str
    largest_difference: int | None
    """Of 255 levels. 0: bit for bit the same. None: only one run has a frame here, or their sizes differ."""
    differing_share: float | None
    """Share of the values that differ."""

    @property
    def is_same(self) -> bool:
        """Whether it is the recorded frame, bit for bit."""
        return self.largest_difference == 0


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """``replay.json``."""

    replay_of: str
    run_folder: str
    changed: tuple[str, ...]
    """What differs from the recorded run: bundle, engine, samplers, faces."""
    frames: tuple[FrameCompared, ...]
    states_differ: tuple[int, ...]
    """Volumes whose final state differs."""

    @property
    def is_same(self) -> bool:
        """Whether all frames and states are those of the recorded run."""
        return not self.states_differ and all(frame.is_same for frame in self.frames)


def replay(options: Options, tell: Callable[[str], None]) -> Compared:
    """Decode a recorded run again, into a folder of its own under ``options.out``.

    :param tell: takes lines for the user
    :raises RealtimeError: when the recording or the bundle cannot be read, the engine does not run here, or a
        frame cannot be decoded or written
    """
    recorded = read_recorded(options.run)
    bundle = _bundle(options.bundle, options.trust, recorded.info)
    bundle.check_run(recorded.info.start)
    faces = "shown" if options.show_faces else recorded.info.faces
    blur = FaceBlur() if faces == "blurred" else None
    seed = recorded.info.seed

    def make(engine: Engine) -> list[Decoder]:
        return [Decoder(bundle, engine, seed, each.name, blur) for each in bundle.spec.decoders]

    wanted = options.engine or recorded.info.engine.name or "auto"
    try_bundle(bundle, wanted)
    name, engine, decoders = open_and_use(bundle, wanted, make)
    used = EngineUsed(name=name, description=engine.description)
    changed = _changed(options, recorded.info, bundle, used)
    for line in changed:
        tell(line)
    again = _Again(recorded, bundle, decoders, options.sampler)
    info, prior = _run_file(recorded, bundle, used, faces), _prior(recorded, bundle)
    folder = RunFolder.create(options.out.absolute(), info, prior)
    try:
        frames = tuple(_told(again.frames(folder), tell, is_bank=len(decoders) > 1))
    finally:
        folder.suspend()
    compared = Compared(
        replay_of=str(recorded.path.absolute()),
        run_folder=str(folder.path),
        changed=tuple(changed),
        frames=frames,
        states_differ=tuple(_states_differ(recorded, folder)),
    )
    _save(folder.path / "replay.json", compared)
    return compared


def lines(compared: Compared) -> list[str]:
    """The result for a terminal."""
    n_same = sum(frame.is_same for frame in compared.frames)
    found = [f"{n_same} of {len(compared.frames)} frames are the recorded ones bit for bit"]
    if compared.states_differ:
        volumes = ", ".join(map(str, compared.states_differ))
        found.append(f"the final state differs at volumes {volumes}")
    return [*found, f"recorded in {compared.run_folder}"]


class _Again:
    """A recorded run, ready to be decoded again."""

    def __init__(
        self, recorded: Recorded, bundle: Bundle, decoders: Sequence[Decoder], sampler: str | None
    ) -> None:
        self._recorded = recorded
        self._bundle = bundle
        self._decoders = decoders
        self._sampler = bundle.sampler(sampler) if sampler else None
        first = decoders[0].spec.name  # another bundle may have another name for it
        names = {recorded.info.first_decoder: first}
        self._rows = {(row.volume, names.get(row.decoder, row.decoder)): row for row in recorded.rows}
        """By volume and decoder of the bundle that decodes now."""

    def frames(self, folder: RunFolder) -> Iterator[FrameCompared]:
        """Decode into ``folder``; yield a comparison for each frame of either run."""
        first = self._decoders[0].spec.name
        for row in self._rows.values():
            if row.state == "missing":
                folder.write_row(Row(volume=row.volume, state="missing", reason=row.reason, decoder=first))
        windows: InTurn[Ready] = InTurn()  # the recorded rows say what was skipped
        run = Run(folder, self._bundle, windows.offer)
        for message, payload in self._messages():
            if isinstance(message, wire.Marker):
                run.show(message, memoryview(payload))
            elif arrival := run.receive(message, memoryview(payload), perf_counter()):
                run.take(message.index, arrival)
                yield from self._decode_all(run, windows)
        run.finish()
        yield from self._decode_all(run, windows)
        run.close()
        yield from self._without_a_frame_now(folder)

    def _messages(self) -> Iterator[tuple[wire.Marker | wire.Volume, bytes]]:
        """Markers and volumes of the journal; the start has been written already."""
        for entry in read_journal(self._recorded.path / "volumes.journal"):
            message = wire.decode_to_runtime(entry.header)
            if isinstance(message, wire.Marker | wire.Volume):
                yield message, entry.payload

    def _decode_all(self, run: Run, windows: InTurn[Ready]) -> Iterator[FrameCompared]:
        while ready := windows.take():
            yield from self._decode(run, ready)

    def _decode(self, run: Run, ready: Ready) -> Iterator[FrameCompared]:
        """Decode a window by the decoders that did in the recording.

        The rows say which, not the markers: in the journal those may come after the volume.
        """
        reason = _NOT_THEN
        for decoder in self._decoders:
            row = self._rows.get((ready.volume, decoder.spec.name))
            if row is not None and row.state != "skipped":
                yield self._frame(run, ready, decoder, row)
            elif row is not None and decoder is self._decoders[0]:
                reason = row.reason or _NOT_THEN
        run.skip(ready.volume, reason)

    def _frame(self, run: Run, ready: Ready, decoder: Decoder, row: Row) -> FrameCompared:
        sampler = self._sampler or self._sampler_of(row)
        decoded = decoder.decode(ready.window_of(decoder.spec), sampler)
        frame = run.frame(ready, decoder.spec, sampler.name, decoded.stages_ms)
        run.record(frame, decoded.image, ready.repaired_voxels)
        then = read_image(self._recorded.path / row.frame) if row.frame else None
        return _compare(frame, then, decoded.image)

    def _sampler_of(self, row: Row) -> Sampler:
        """The sampler that a frame was made with; the first of the bundle if it has none of that name."""
        names = {sampler.name for sampler in self._bundle.spec.samplers}
        return self._bundle.sampler(row.sampler if row.sampler in names else None)

    def _without_a_frame_now(self, folder: RunFolder) -> Iterator[FrameCompared]:
        has_frame = {(row.volume, row.decoder) for row in folder.rows() if row.frame}
        for (volume, decoder), row in self._rows.items():
            if row.frame and (volume, decoder) not in has_frame:
                yield FrameCompared(
                    volume=volume, decoder=decoder, largest_difference=None, differing_share=None
                )


def _compare(frame: Frame, then: NDArray[np.uint8] | None, now: NDArray[np.uint8]) -> FrameCompared:
    largest, share = None, None
    if then is not None and then.shape == now.shape:
        apart = np.abs(now.astype(np.int16) - then)
        largest, share = int(apart.max()), float(np.mean(apart > 0))
    return FrameCompared(
        volume=frame.volume, decoder=frame.decoder, largest_difference=largest, differing_share=share
    )


def _told(
    frames: Iterator[FrameCompared], tell: Callable[[str], None], *, is_bank: bool
) -> Iterator[FrameCompared]:
    for frame in frames:
        which = f"volume {frame.volume}" + (f" by {frame.decoder}" if is_bank else "")
        if frame.largest_difference is None or frame.differing_share is None:
            tell(f"{which}: only one of the runs has a frame of this size")
        elif frame.is_same:
            tell(f"{which}: the same, bit for bit")
        else:
            tell(
                f"{which}: differs in {100 * frame.differing_share:.2f} % of its values, "
                f"by {frame.largest_difference} of 255 levels at most"
            )
        yield frame


def _bundle(folder: Path | None, trust: Trust, info: RunFile) -> Bundle:
    """The bundle in ``folder``; without one, that of the recording if it is in its usual place."""
    if folder is not None:
        return Bundle.open(folder, trust)
    bundle = Bundle.open(choose_bundle(None, info.start.subject)[0], trust)
    if bundle.sha256 != info.bundle_sha256:
        raise BundleError(
            f"expected the bundle of the recorded run, {info.bundle_name} (SHA-256 {info.bundle_sha256}), "
            f"found {bundle.spec.name} ({bundle.sha256}) in {bundle.folder}; give the bundle's folder as "
            "--bundle"
        )
    return bundle


def _changed(options: Options, info: RunFile, bundle: Bundle, used: EngineUsed) -> list[str]:
    """What differs from the recorded run, in words."""
    changed = []
    if bundle.sha256 != info.bundle_sha256:
        changed.append(f"bundle {bundle.spec.name} ({bundle.sha256}), recorded with {info.bundle_sha256}")
    if used != info.engine:
        then = info.engine.description or "an engine that run.json does not name"
        changed.append(f"engine {used.description}, recorded with {then}")
    changed += [
        f"the same {what} throughout, recorded with another after a restart" for what in info.changed_midway
    ]
    if info.prior_from and bundle.sha256 != info.bundle_sha256:
        changed.append(
            f"statistics begin with the bundle's prior, recorded with those at the end of {info.prior_from}"
        )
    if options.sampler:
        changed.append(f"all frames with the sampler {options.sampler}")
    if options.show_faces and info.faces == "blurred":
        changed.append("faces shown, recorded blurred")
    return changed


def _run_file(recorded: Recorded, bundle: Bundle, used: EngineUsed, faces: Faces) -> RunFile:
    info = new_run_file(
        recorded.info.start,
        bundle_name=bundle.spec.name,
        bundle_sha256=bundle.sha256,
        bundle_signed_by=bundle.signed.by,
        decoders=decoders_of(bundle),
        seed=recorded.info.seed,
        engine=used,
        faces=faces,
        spikes=recorded.info.spikes,
        prior_from=recorded.info.prior_from if bundle.sha256 == recorded.info.bundle_sha256 else None,
    )
    return msgspec.structs.replace(info, replay_of=str(recorded.path.absolute()))


def _prior(recorded: Recorded, bundle: Bundle) -> dict[str, bytes]:
    """The statistics that the recorded run began with if they were carried over; they fit its bundle only."""
    if recorded.info.prior_from is None or bundle.sha256 != recorded.info.bundle_sha256:
        return {}
    return {PRIOR_FILE: read_statistics(recorded.path / PRIOR_FILE, bundle.spec.roi.n_voxels).as_npz()}


def _states_differ(recorded: Recorded, folder: RunFolder) -> Iterator[int]:
    now = {row.volume: row.state for row in folder.rows() if row.decoder == folder.info.first_decoder}
    then = {row.volume: row.state for row in recorded.rows_by(recorded.info.first_decoder)}
    for volume in range(recorded.info.start.n_volumes):
        if volume in then and now[volume] != then[volume]:
            yield volume


def _save(path: Path, compared: Compared) -> None:
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(compared), indent=2) + b"\n")
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror or error}") from error
