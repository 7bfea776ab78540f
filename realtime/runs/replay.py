"""``realtime replay``: decodes a recorded run again from its journal, and says which frames are the same.

    copy of the journal ─► follow, as a live run ─► frame ─► compared with the recorded one
    table: which volumes were missing or skipped, the sampler of each frame ──┘

With the recorded bundle, engine and samplers, the frames are the recorded ones bit for bit. Another bundle,
engine or sampler may be given. No volume is skipped that was not skipped in the recording. The new run folder
is like any other, with the timings of the replay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from realtime.atomic import write_whole
from realtime.bundle.bundle import Bundle
from realtime.bundle.decoding_quality import quality_in_words
from realtime.bundle.locate import find_bundle, is_shipped
from realtime.bundle.match import is_on_grid, resampled_to_s
from realtime.bundle.signers import Trust
from realtime.bundle.spec import Sampler
from realtime.bundle.trained_on import trained_on
from realtime.decoding.open import open_decoders
from realtime.decoding.trial import was_tried
from realtime.errors import BundleError, EngineError, RecordError
from realtime.events import Event, Frame
from realtime.progress import Progress
from realtime.record.folder import RunFolder
from realtime.record.reader import Recorded, read_image, read_recorded
from realtime.record.run_journal import copy_run
from realtime.record.run_json import (
    EngineUsed,
    Faces,
    Registration,
    RunFile,
    decoders_of,
    new_run_file,
    resampling_in_words,
    table_path,
)
from realtime.record.tables import Row, read_table
from realtime.runs import follow
from realtime.runs.decode_loop import Decode, DecodeLoop, Skip
from realtime.runs.open import engine_alone
from realtime.runs.queue import InTurn, Ready
from realtime.runs.run import Run
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
    bundle = _bundle(options.bundle, options.trust, recorded)
    tell(f"bundle {bundle.spec.name}: {bundle.folder}; {bundle.signed.description}")
    bundle.check_run(recorded.info.start, resamples=True)
    faces = "shown" if options.show_faces else recorded.info.faces
    wanted = options.engine or recorded.info.engine.name or "auto"
    opened = open_decoders(bundle, wanted, recorded.info.seed, blurs_faces=faces == "blurred")
    used = EngineUsed(name=opened.engine_name, description=opened.engine_description)
    changed = _changed(options, recorded.info, bundle, used)
    for line in changed:
        tell(line)
    registration = _registration(recorded.info, bundle)
    if registration != recorded.info.registration:
        tell_of_it = "registered to its reference volume" if registration else "not registered"
        changed.append(f"volumes {tell_of_it}, in the recording otherwise")
        tell(changed[-1])
    policy = _AsRecorded(recorded, bundle, options.sampler)
    info, prior = _run_file(recorded, bundle, used, faces), _prior(recorded, bundle)
    if info.resampled_to_s != recorded.info.resampled_to_s:
        resampled = resampling_in_words(info) or "not resampled in time"
        changed.append(f"volumes {resampled}, in the recording otherwise")
        tell(changed[-1])
    path = copy_run(recorded.path, options.out.absolute(), info, prior)
    folder = RunFolder.open(path, info.decoders)
    frames: list[FrameCompared] = []
    progress = Progress(sum(row.frame is not None for row in recorded.rows), "frames")

    def compare(event: Event) -> None:
        if found := _compared(event, policy, recorded):
            frames.append(found)
            tell(_in_words(found, is_bank=len(bundle.spec.decoders) > 1))
            if line := progress.line(len(frames), time.monotonic()):
                tell(line)

    try:
        if said := trained_on(bundle.spec, info.start.run_id):
            folder.note(said)
            tell(said)
        _missing(recorded, info.first_decoder, folder)
        run = Run(folder, bundle, InTurn())
        asyncio.run(follow.replay(run, DecodeLoop(opened.decoders, policy, compare, opened.worker), compare))
    finally:
        folder.let_go()
    for found in _without_a_frame_now(policy, path, info):
        frames.append(found)
        tell(_in_words(found, is_bank=len(bundle.spec.decoders) > 1))
    compared = Compared(
        replay_of=str(recorded.path.absolute()),
        run_folder=str(path),
        changed=tuple(changed),
        frames=tuple(frames),
        states_differ=tuple(_states_differ(recorded, path, info)),
    )
    _save(path / "replay.json", compared)
    return compared


def lines(compared: Compared) -> list[str]:
    """The result for a terminal."""
    n_same = sum(frame.is_same for frame in compared.frames)
    found = [f"{n_same} of {len(compared.frames)} frames are the recorded ones bit for bit"]
    if compared.states_differ:
        volumes = ", ".join(map(str, compared.states_differ))
        found.append(f"the final state differs at volumes {volumes}")
    return [*found, f"recorded in {compared.run_folder}"]


class _AsRecorded:
    """The rows of the recording say which decoders had a window, and with which sampler.

    Not the markers: in the journal those may come after the volume.
    """

    def __init__(self, recorded: Recorded, bundle: Bundle, sampler: str | None) -> None:
        self._bundle = bundle
        self._sampler = bundle.sampler(sampler) if sampler else None
        first = bundle.decoder().name  # another bundle may have another name for it
        names = {recorded.info.first_decoder: first}
        self.rows = {(row.volume, names.get(row.decoder, row.decoder)): row for row in recorded.rows}
        """By volume and decoder of the bundle that decodes now."""

    def next(self, run: Run, ready: Ready) -> Decode | Skip | None:
        """The next decoder that made a frame of this window; the others had none."""
        decoders = [each.name for each in self._bundle.spec.decoders]
        open_rows = {
            decoder: self.rows.get((ready.volume, decoder))
            for decoder in decoders
            if not run.is_accounted(ready.volume, decoder)
        }
        for decoder, row in open_rows.items():
            if row is not None and row.state != "skipped":
                return Decode(decoder=decoder, sampler=self._sampler or self._sampler_of(row))
        first = open_rows.get(decoders[0])
        return Skip(reason=(first.reason if first else None) or _NOT_THEN)

    def failed(self, run: Run, ready: Ready, error: EngineError) -> None:
        """A replay is worth nothing without the frame."""
        raise error

    def _sampler_of(self, row: Row) -> Sampler:
        """The sampler that a frame was made with; the first of the bundle if it has none of that name."""
        names = {sampler.name for sampler in self._bundle.spec.samplers}
        return self._bundle.sampler(row.sampler if row.sampler in names else None)


def _missing(recorded: Recorded, first: str, folder: RunFolder) -> None:
    """Volumes that were missing are so again, whether they came too late or not at all."""
    for row in recorded.rows_by(recorded.info.first_decoder):
        if row.state == "missing":
            folder.write_row(Row(volume=row.volume, state="missing", reason=row.reason, decoder=first))


def _compared(event: Event, policy: _AsRecorded, recorded: Recorded) -> FrameCompared | None:
    frame = event.message
    if not isinstance(frame, Frame) or event.image is None:
        return None
    row = policy.rows[frame.volume, frame.decoder]
    then = read_image(recorded.path / row.frame) if row.frame else None
    return _compare(frame, then, event.image)


def _without_a_frame_now(policy: _AsRecorded, folder: Path, info: RunFile) -> Iterator[FrameCompared]:
    rows, _ = read_table(table_path(folder, info.start))
    has_frame = {(row.volume, row.decoder) for row in rows if row.frame}
    for (volume, decoder), row in policy.rows.items():
        if row.frame and (volume, decoder) not in has_frame:
            yield FrameCompared(volume=volume, decoder=decoder, largest_difference=None, differing_share=None)


def _compare(frame: Frame, then: NDArray[np.uint8] | None, now: NDArray[np.uint8]) -> FrameCompared:
    largest, share = None, None
    if then is not None and then.shape == now.shape:
        apart = np.abs(now.astype(np.int16) - then)
        largest, share = int(apart.max()), float(np.mean(apart > 0))
    return FrameCompared(
        volume=frame.volume, decoder=frame.decoder, largest_difference=largest, differing_share=share
    )


def _in_words(frame: FrameCompared, *, is_bank: bool) -> str:
    which = f"volume {frame.volume}" + (f" by {frame.decoder}" if is_bank else "")
    if frame.largest_difference is None or frame.differing_share is None:
        return f"{which}: only one of the runs has a frame of this size"
    if frame.is_same:
        return f"{which}: the same, bit for bit"
    return (
        f"{which}: differs in {100 * frame.differing_share:.2f} % of its values, "
        f"by {frame.largest_difference} of 255 levels at most"
    )


def _bundle(folder: Path | None, trust: Trust, recorded: Recorded) -> Bundle:
    """The bundle in ``folder``; without one, that of the recording, wherever it is now."""
    if folder is not None:
        return Bundle.open(folder, trust)
    info, runs = recorded.info, recorded.path.absolute().parent
    then = [Path(info.bundle_folder)] if info.bundle_folder else []
    found = find_bundle(info.bundle_sha256, then, beside=(Path(), runs, runs.parent))
    if found is None:
        looked = [*map(str, then), "the folders bundles/ here and beside the run", "the shipped demo"]
        raise BundleError(
            f"expected the bundle of the recorded run, {info.bundle_name} (SHA-256 {info.bundle_sha256}), "
            f"found it neither in {', nor in '.join(looked)}; give its folder as --bundle, or another bundle "
            "to decode with that one"
        )
    bundle = Bundle.open(found, trust)
    is_ours = is_shipped(found) or found.absolute().parent == Path("bundles").absolute()
    if not (is_ours or bundle.signed.by or was_tried(bundle)):
        raise BundleError(
            f"the run was recorded with the bundle in {found}. The recording names it itself, it is "
            f"{bundle.signed.description}, and you have never decoded with it; if you trust who made it, "
            f"give it as --bundle {found}"
        )
    return bundle


def _changed(options: Options, info: RunFile, bundle: Bundle, used: EngineUsed) -> list[str]:
    """What differs from the recorded run, in words."""
    changed = []
    if bundle.sha256 != info.bundle_sha256:
        changed.append(f"bundle {bundle.spec.name} ({bundle.sha256}), recorded with {info.bundle_sha256}")
    if engine_alone(used) != engine_alone(info.engine):
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
    start = recorded.info.start
    info = new_run_file(
        start,
        bundle_name=bundle.spec.name,
        bundle_sha256=bundle.sha256,
        bundle_signed_by=bundle.signed.by,
        decoders=decoders_of(bundle.spec, start),
        seed=recorded.info.seed,
        engine=used,
        faces=faces,
        spikes=recorded.info.spikes,
        registration=_registration(recorded.info, bundle),
        resampled_to_s=resampled_to_s(bundle.spec, start),
        bundle_folder=str(bundle.folder.absolute()),
        decoding_quality=quality_in_words(bundle.spec),
        prior_from=recorded.info.prior_from if bundle.sha256 == recorded.info.bundle_sha256 else None,
    )
    return msgspec.structs.replace(info, replay_of=str(recorded.path.absolute()))


def _registration(info: RunFile, bundle: Bundle) -> Registration | None:
    """As in the recording; with another bundle, as that needs it. A start is for one bundle's reference."""
    if info.bundle_sha256 == bundle.sha256:
        return info.registration
    needs = not is_on_grid(bundle.spec, info.start) or info.registration is not None
    if bundle.reference is None or not needs:
        return None
    return msgspec.structs.replace(info.registration or Registration(), initial=None)


def _prior(recorded: Recorded, bundle: Bundle) -> dict[str, bytes]:
    """The statistics that the recorded run began with if they were carried over; they fit its bundle only."""
    if recorded.info.prior_from is None or bundle.sha256 != recorded.info.bundle_sha256:
        return {}
    return {PRIOR_FILE: read_statistics(recorded.path / PRIOR_FILE, bundle.spec.roi.n_voxels).as_npz()}


def _states_differ(recorded: Recorded, folder: Path, info: RunFile) -> Iterator[int]:
    rows, _ = read_table(table_path(folder, info.start))
    now = {row.volume: row.state for row in rows if row.decoder == info.first_decoder}
    then = {row.volume: row.state for row in recorded.rows_by(recorded.info.first_decoder)}
    for volume in range(recorded.info.start.n_volumes):
        if volume in then and now[volume] != then[volume]:
            yield volume


def _save(path: Path, compared: Compared) -> None:
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(compared), indent=2) + b"\n")
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror or error}") from error
