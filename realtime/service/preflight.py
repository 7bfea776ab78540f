"""Whether a run would be accepted, decoded and recorded: what is said before a person lies in the scanner."""

from __future__ import annotations

import asyncio
import math
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.match import can_resample, check_run, delay_at, is_on_grid, resampled_to_s
from realtime.errors import RecordError, RegistrationError, WireError
from realtime.network.key_files import ServerKeys
from realtime.preprocessing.stream import CENSOR_SHARE
from realtime.record.run_json import Registration
from realtime.record.storage import lock_role
from realtime.registration.resample import RegionSampler
from realtime.registration.session import register_session
from realtime.runs.head_position import positions_of
from realtime.service.listen import Heard, listen
from realtime.sources.open import SourceOptions

LEAST_INSIDE = 1 - CENSOR_SHARE
"""Of the region that should be in the field of view."""
MOST_OFF_MM = 1.0
"""How far a head may lie off where volumes on the decoder's own grid are taken as they are."""
_MOST_OFF_PACE = 0.2
"""Relative difference of the time between volumes from the TR that is worth a word."""
_WHAT_TO_CHECK = {
    "tcp": "is the scanner's sender started, does it connect to this address, and has it keys that are known "
    "here (--keys)? `python -m sim replay` tries the way without a scanner",
    "ipc": "is the scanner's sender started, as this user, and does it connect to this path?",
    "pyneal+tcp": "is Pyneal's scanner side started, with this host and port? If it runs on another "
    "computer, is the port forwarded to this one?",
    "afni+tcp": "is Dimon (-rt -host) or rtfeedme started, with this host and port?",
    "dicom": "does the console send to this AE title, host and port, and is its machine among --allow?",
    "folder": "does the scanner export into this folder, and is real-time export switched on at the console? "
    "Files that were there before do not count",
}
_MARKERS_TO_CHECK = {
    "tcp": "is presentation software started, does it send there, and has it keys that are known here "
    "(--keys)? docs/examples/presentation.py tries the way",
    "ipc": "is presentation software started, as this user, and does it send there?",
    "lsl": "is presentation software started, with a stream of this name? If it runs on another machine, is "
    "that among --allow?",
}
_OTHERWISE = "is the scanner's sender started, and does it send to this address?"


class Volumes(msgspec.Struct, frozen=True, kw_only=True):
    """The run that was heard."""

    run_id: str
    subject: int
    n_volumes: int
    """Of the run, as planned."""
    tr_s: float
    shape: tuple[int, int, int]
    affine: wire.Affine
    dtype: str
    volume_bytes: int
    heard: tuple[int, ...]
    """Indices of the volumes that came."""
    every_s: float | None
    """Median time from one to the next; None where there were none in a row."""
    is_on_grid: bool
    """Whether they lie on the grid of the decoder's region."""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How the head lies in the first volume, as compared with the decoder's reference volume."""

    similarity: float
    shift_mm: float
    turn_degrees: float
    inside: float
    """Share of the region in the field of view."""


class Preflight(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    address: str
    listened_s: float
    volumes: Volumes | None
    position: Position | None
    """None where the bundle has no reference volume, or the head was not found."""
    markers_at: str
    markers: tuple[tuple[int, str], ...]
    """Onset volume and name of each picture."""
    disk_hours: float | None
    """How long such volumes can be recorded."""
    said: tuple[str, ...]
    """What the sources said meanwhile: what they refused and passed over, and why."""
    hints: tuple[str, ...]
    problems: tuple[str, ...]
    """Why a run would not be decoded, and what to do; empty if it would be."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """As the recorder would get them."""

    source: str
    source_options: SourceOptions
    keys: ServerKeys | None
    registration: Registration
    registers_all: bool
    resamples: bool
    out: Path
    wait_s: float


def check(bundle: Bundle, options: Options, tell: Callable[[str], None]) -> Preflight:
    """Listen, and judge what came.

    :param tell: told where it listens, once it does
    :raises ServeError: when the address or an option is malformed
    """
    listening = listen(
        options.source, options.source_options, bundle.spec, options.keys, options.wait_s, tell
    )
    heard = asyncio.run(listening)
    problems = [*heard.problems, *_recorder_at_work(options.out)]
    hints: list[str] = []
    volumes = position = disk_hours = None
    if heard.listened_s:
        problems += _silence(heard, options)
    if heard.start:
        volumes = _described(heard, heard.start, bundle)
        disk_hours = _disk_hours(volumes, bundle, options.out)
        hints += _pace(volumes)
        problems += _refusal(volumes, heard.start, bundle, disk_hours, resamples=options.resamples)
        hints += _resampling(heard.start, bundle)
    if heard.start and heard.first:
        array = _array(heard.start, *heard.first, problems)
        if array is not None and bundle.reference is not None:
            position = _position(array, _affine(heard.start, heard.first[0]), bundle, options, problems)
    if options.registers_all and bundle.reference is None:
        problems.append("--register-all needs a bundle with a reference volume: python -m export reference")
    if position and volumes and volumes.is_on_grid and not options.registers_all:
        hints += _off(position)
    return Preflight(
        address=heard.address,
        listened_s=heard.listened_s,
        volumes=volumes,
        position=position,
        markers_at=heard.markers_at,
        markers=tuple(heard.markers),
        disk_hours=disk_hours,
        said=tuple(heard.said),
        hints=tuple(hints),
        problems=tuple(dict.fromkeys(problems)),
    )


def _recorder_at_work(out: Path) -> Iterator[str]:
    if not out.is_dir():
        return
    try:
        lock_role(out.absolute(), "recorder").close()
    except RecordError as error:
        yield str(error)


def _silence(heard: Heard, options: Options) -> Iterator[str]:
    waited = f"within {options.wait_s:g} s"
    if heard.start is None:
        kind = options.source.partition(":")[0]
        yield (
            f"nothing came to {heard.address} {waited}; {_WHAT_TO_CHECK.get(kind, _OTHERWISE)}"
            f"{'; see what the source said' if heard.said else ''}"
        )
    elif heard.first is None:
        yield f"{heard.start.run_id} began at {heard.address}, but none of its volumes came {waited}"
    if heard.markers_at and not heard.markers:
        kind = heard.markers_at.partition(":")[0]
        yield f"no marker came to {heard.markers_at} {waited}; {_MARKERS_TO_CHECK[kind]}"


def _described(heard: Heard, start: wire.RunStart, bundle: Bundle) -> Volumes:
    times = heard.arrivals_s
    steps = [times[index + 1] - time_s for index, time_s in times.items() if index + 1 in times]
    return Volumes(
        run_id=start.run_id,
        subject=start.subject,
        n_volumes=start.n_volumes,
        tr_s=start.tr_s,
        shape=start.shape,
        affine=start.affine,
        dtype=start.dtype,
        volume_bytes=start.volume_bytes,
        heard=tuple(sorted(times)),
        every_s=statistics.median(steps) if steps else None,
        is_on_grid=is_on_grid(bundle.spec, start),
    )


def _disk_hours(volumes: Volumes, bundle: Bundle, out: Path) -> float:
    folder = next(each for each in (out.absolute(), *out.absolute().parents) if each.is_dir())
    frame_bytes = math.prod(bundle.spec.image_size_px) * 3
    return shutil.disk_usage(folder).free / (volumes.volume_bytes + frame_bytes) * volumes.tr_s / 3600


def _pace(volumes: Volumes) -> Iterator[str]:
    if volumes.every_s is not None and abs(volumes.every_s - volumes.tr_s) > _MOST_OFF_PACE * volumes.tr_s:
        yield (
            f"volumes came every {volumes.every_s:.2f} s, but the scanner says a TR of {volumes.tr_s:.3f} s: "
            "is this a copy of an older scan, or is the TR another (--tr)?"
        )


def _resampling(start: wire.RunStart, bundle: Bundle) -> Iterator[str]:
    spec = bundle.spec
    if resampled_to_s(spec, start) and can_resample(spec, start):
        _, added_s = delay_at(spec.decoders[0].window, spec.tr_s, start.tr_s)
        yield (
            f"the decoder's TR is {spec.tr_s:.3f} s: with --resample, windows are resampled in time, which "
            f"adds a delay of {added_s:.2f} s"
        )


def _refusal(
    volumes: Volumes, start: wire.RunStart, bundle: Bundle, disk_hours: float, *, resamples: bool
) -> Iterator[str]:
    try:
        check_run(bundle.spec, start, resamples=resamples)
    except WireError as error:
        yield str(error)
    run_hours = start.n_volumes * start.tr_s / 3600
    if disk_hours < run_hours:
        yield f"the disk has room for {disk_hours:.1f} of the {run_hours:.1f} hours of a run; free some"
    if late := [index for index in volumes.heard if index >= start.n_volumes]:
        yield f"expected volumes below {start.n_volumes}, as planned, got {late[0]}; is --volumes right?"


def _array(
    start: wire.RunStart, message: wire.Volume, payload: bytes, problems: list[str]
) -> np.ndarray | None:
    try:
        array = wire.volume_array(start, payload).astype(np.float32)
    except WireError as error:
        problems.append(str(error))
        return None
    finite = array[np.isfinite(array)]
    if finite.size == 0 or finite.min() == finite.max():
        problems.append(
            f"volume {message.index} shows nothing: all its voxels are the same; is it a scan of a head or a "
            "phantom, or the first image of another series?"
        )
        return None
    return array


def _affine(start: wire.RunStart, message: wire.Volume) -> np.ndarray:
    return np.array(start.affine if message.affine is msgspec.UNSET else message.affine)


def _position(
    volume: np.ndarray, affine: np.ndarray, bundle: Bundle, options: Options, problems: list[str]
) -> Position | None:
    reference = bundle.reference
    assert reference is not None
    initial = options.registration.initial
    try:
        found = register_session(
            volume, affine, reference.voxels, reference.affine, None if initial is None else np.array(initial)
        )
    except RegistrationError as error:
        problems.append(f"the head was not found: {error}")
        return None
    sampler = RegionSampler(positions_of(bundle.spec.roi, bundle.roi_mask))
    inside = float(np.isfinite(sampler.sample(volume, affine, found.matrix)).mean())
    if inside < LEAST_INSIDE:
        problems.append(
            f"only {inside:.0%} of the decoder's region is in the field of view; move or enlarge it so that "
            "all of the region is"
        )
    return Position(
        similarity=found.similarity,
        shift_mm=math.hypot(*found.parameters[:3]),
        turn_degrees=math.degrees(math.hypot(*found.parameters[3:])),
        inside=inside,
    )


def _off(position: Position) -> Iterator[str]:
    if position.shift_mm > MOST_OFF_MM or position.turn_degrees > MOST_OFF_MM:
        yield (
            "the volumes lie on the decoder's own grid and would be taken as they are, but the head lies "
            "elsewhere in them: give --register-all"
        )


def lines(found: Preflight) -> list[str]:
    """Format what was found as text."""
    said = [f"source    {found.address}"]
    if volumes := found.volumes:
        grid = " x ".join(map(str, volumes.shape))
        place = "the decoder's own grid" if volumes.is_on_grid else "a grid of its own"
        pace = "" if volumes.every_s is None else f", one every {volumes.every_s:.2f} s"
        said += [
            f"run       {volumes.run_id} of subject {volumes.subject}: {volumes.n_volumes} volumes planned, "
            f"TR {volumes.tr_s:.3f} s",
            f"volumes   {grid} of {volumes.dtype}, on {place}; {len(volumes.heard)} came{pace}",
        ]
    if position := found.position:
        said.append(
            f"head      {position.shift_mm:.1f} mm and {position.turn_degrees:.1f}° from where it lay for "
            f"the decoder; similarity {position.similarity:.2f}, {position.inside:.0%} of the region inside"
        )
    if found.markers_at:
        heard = ", ".join(f"{name!r} at volume {onset}" for onset, name in found.markers) or "none"
        said.append(f"markers   {found.markers_at}: {heard}")
    if found.disk_hours is not None:
        said.append(f"room      for {found.disk_hours:.1f} hours of such volumes")
    said += [f"said      {line}" for line in found.said]
    said += [f"hint      {line}" for line in found.hints]
    said += [f"PROBLEM   {line}" for line in found.problems]
    verdict = "a run like this would be recorded and decoded" if not found.problems else "not ready"
    return [*said, "", verdict]
