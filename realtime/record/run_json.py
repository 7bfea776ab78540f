"""``run.json``, which says what a run is, and what the files of a run folder are called."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec

from realtime import wire
from realtime.bundle.match import delay_at, resampled_to_s
from realtime.bundle.spec import Spec
from realtime.errors import RecordError
from realtime.events import DecoderUsed
from realtime.preprocessing.spikes import SpikeRule
from realtime.record.storage import exists, read_file

FORMAT_VERSION = 2
"""Folders of format 1 are read as well: see :mod:`realtime.record.format_1`."""
MAX_RUN_FILE_BYTES = 2**20
Faces = Literal["blurred", "shown"]
PACKAGE = "realtime-dynadiff"
SEALED = ".tar.age"
"""After the name of its folder, the name of a sealed run (see :mod:`realtime.record.seal`)."""
_BIDS_NAME = re.compile(r"sub-[a-zA-Z0-9]+(_ses-[a-zA-Z0-9]+)?_task-[a-zA-Z0-9]+(_[a-z]+-[a-zA-Z0-9]+)*")


class EngineUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that decoded; it has no name in records of the first release."""

    name: str = ""
    """As ``--engine`` takes it."""
    description: str = ""
    """Its version and the hardware that it ran on."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who started a run: only this peer may add volumes to it, and end it."""

    key: str
    """Public key of the peer; empty for sources without keys."""
    secret_sha256: str | None = None
    """Of the secret that came with the run's start, if one did."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """How the volumes of a run are registered to the decoder's reference volume."""

    initial: wire.Affine | None = None
    """Where registration begins: the decoder's mm to the scanner's mm. None: where the scanner says."""
    max_fd_mm: float | None = None
    """A volume with more framewise displacement is censored; None: none is."""
    fits_motion: bool = False
    """Whether the six parameters are fitted together with the drifts, and what they explain is taken away."""


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """``run.json``."""

    format_version: int = FORMAT_VERSION
    state: Literal["open", "closed"] = "open"
    start: wire.RunStart
    bundle_name: str
    bundle_sha256: str
    bundle_signed_by: str | None = None
    """The trusted signer of the bundle; None: nobody whom the user trusts, or a record from before."""
    bundle_folder: str = ""
    """Where the bundle was; empty in earlier records."""
    decoding_quality: str = ""
    """How well the bundle's decoder decodes by its own evaluation, in words; empty in earlier records."""
    window_delay_volumes: int
    """Of the first decoder."""
    decoders: tuple[DecoderUsed, ...] = ()
    """In the bundle's order, the general one first; empty in folders of format 1."""
    owner: Owner | None = None
    """None in records of earlier releases."""
    seed: int
    """Of the initial noise."""
    engine: EngineUsed = EngineUsed()
    faces: Faces = "shown"
    """Whether faces were blurred in the frames, here as on the page and in published messages."""
    spikes: SpikeRule | None = None
    """Which volumes are censored as spikes; None, as in records of the first release: none are."""
    registration: Registration | None = None
    """None: the volumes lie on the decoder's grid and are taken as they are."""
    resampled_to_s: float | None = None
    """The decoder's TR, to which windows are resampled in time; None: the scanner's is the decoder's."""
    prior_from: str | None = None
    """The run whose statistics it began with (a copy is in ``prior.npz``); None: the bundle's prior."""
    versions: dict[str, str]
    opened_utc: str
    closed_utc: str | None = None
    notes: tuple[str, ...] = ()
    """What happened to the run, for people: restarts, an abort."""
    changed_midway: tuple[str, ...] = ()
    """Which of ``engine`` and ``faces`` a restart changed: a replay, which changes none, differs."""
    replay_of: str | None = None
    """In a replay: the folder of the recorded run that was decoded again."""

    @property
    def first_decoder(self) -> str:
        """Name of the general decoder, which decodes every volume."""
        return self.decoders[0].name


def new_run_file(
    start: wire.RunStart,
    *,
    bundle_name: str,
    bundle_sha256: str,
    bundle_signed_by: str | None = None,
    bundle_folder: str = "",
    decoding_quality: str = "",
    decoders: Sequence[DecoderUsed],
    seed: int,
    engine: EngineUsed = EngineUsed(),  # noqa: B008  # frozen
    faces: Faces = "shown",
    spikes: SpikeRule | None = None,
    registration: Registration | None = None,
    resampled_to_s: float | None = None,
    prior_from: str | None = None,
    owner: Owner | None = None,
) -> RunFile:
    """``run.json`` of a run that begins now.

    :param decoders: the bundle's, in its order
    """
    return RunFile(
        start=start,
        bundle_name=bundle_name,
        bundle_sha256=bundle_sha256,
        bundle_signed_by=bundle_signed_by,
        bundle_folder=bundle_folder,
        decoding_quality=decoding_quality,
        window_delay_volumes=decoders[0].window_delay_volumes,
        decoders=tuple(decoders),
        seed=seed,
        engine=engine,
        faces=faces,
        spikes=spikes,
        registration=registration,
        resampled_to_s=resampled_to_s,
        prior_from=prior_from,
        owner=owner,
        versions=versions(),
        opened_utc=utc_now(),
    )


def read_run_file(path: Path) -> RunFile:
    """Read ``run.json`` of a run folder.

    :raises RecordError: when it is missing, damaged, sealed or of a newer format
    """
    file = path / "run.json"
    if sealed := _sealed(path):
        raise RecordError(
            f"expected a run folder, found a sealed run, {sealed}, which is encrypted; bring its folder back "
            f"with `realtime unseal {sealed} --identity FILE`"
        )
    try:
        content = read_file(file, MAX_RUN_FILE_BYTES)
    except RecordError as error:
        raise RecordError(f"expected a run folder in {path}: {error}") from error
    try:
        info = msgspec.json.decode(content, type=RunFile)
    # msgspec lets these errors of Python's through: of text that is not UTF-8, and of deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{file} does not describe a run: {error}") from error
    if info.format_version > FORMAT_VERSION:
        raise RecordError(
            f"expected format {FORMAT_VERSION} or earlier in {file}, got {info.format_version}; "
            "read it with a newer release"
        )
    if info.format_version == FORMAT_VERSION and not info.decoders:
        raise RecordError(f"expected at least one decoder in {file}, got none")
    return info


def sealed_path(folder: Path) -> Path:
    """Where a run of this folder is once it is sealed."""
    return folder.with_name(folder.name + SEALED)


def is_sealed(folder: Path) -> bool:
    """Whether the run of a folder is sealed, so that the folder is gone."""
    return not exists(folder) and exists(sealed_path(folder))


def _sealed(path: Path) -> Path | None:
    """The sealed run that somebody means who gives this as a run folder."""
    if path.name.endswith(SEALED) and path.is_file():
        return path
    return sealed_path(path) if is_sealed(path) else None


def decoders_of(spec: Spec, start: wire.RunStart | None = None) -> tuple[DecoderUsed, ...]:
    """A bundle's decoders as ``run.json`` and the page name them.

    :param start: of a run that is resampled in time where its TR is another; None: of one at the decoder's TR
    """
    found = []
    scanner_tr_s = start.tr_s if start and resampled_to_s(spec, start) else spec.tr_s
    for each in spec.decoders:
        delay_volumes, added_s = delay_at(each.window, spec.tr_s, scanner_tr_s)
        found.append(
            DecoderUsed(name=each.name, window_delay_volumes=delay_volumes, added_delay_s=round(added_s, 6))
        )
    return tuple(found)


def resampling_in_words(info: RunFile) -> str:
    """From which TR a run is resampled, and what delay that adds, for people; empty if it is not."""
    if info.resampled_to_s is None:
        return ""
    added = [decoder.added_delay_s for decoder in info.decoders]
    delay = f"{min(added):.2f}" if min(added) == max(added) else f"{min(added):.2f} to {max(added):.2f}"
    return (
        f"resampled in time from the scanner's TR of {info.start.tr_s:.3f} s to the decoder's "
        f"{info.resampled_to_s:.3f} s, which adds a delay of {delay} s"
    )


def begins_with(info: RunFile) -> str:
    """The statistics that a run began with, for people."""
    return "the bundle's prior" if info.prior_from is None else f"those at the end of {info.prior_from}"


def take_path(root: Path, run_id: str, take: int) -> Path:
    """The folder of one take of a run; takes count from 1."""
    return root / (run_id if take == 1 else f"{run_id}_take-{take}")


def takes_of(root: Path, run_id: str) -> Iterator[Path]:
    """The folders of a run, in order of their takes, also those of takes that were sealed.

    :raises RecordError: when the folder of runs cannot be read
    """
    take = 1
    while exists(path := take_path(root, run_id, take)) or is_sealed(path):
        yield path
        take += 1


def table_path(folder: Path, start: wire.RunStart) -> Path:
    """The table of decodes in a run folder (see :mod:`realtime.record.tables`)."""
    return folder / f"{bids_name(start)}_desc-dynadiff_decoding.tsv"


def events_path(folder: Path, start: wire.RunStart) -> Path:
    """The table of the pictures that were shown, in a run folder."""
    return folder / f"{bids_name(start)}_desc-shown_events.tsv"


def confounds_path(folder: Path, start: wire.RunStart) -> Path:
    """The table of what each volume was like, in a run folder."""
    return folder / f"{bids_name(start)}_desc-confounds_timeseries.tsv"


def bids_name(start: wire.RunStart) -> str:
    """The run's name in BIDS entities: its id if it is made of entities, else made from subject and id."""
    if _BIDS_NAME.fullmatch(start.run_id):
        return start.run_id
    return f"sub-{start.subject:02d}_task-{re.sub('[^a-zA-Z0-9]', '', start.run_id)}"


def utc_now() -> str:
    """Now, as ISO 8601 in UTC to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def versions() -> dict[str, str]:
    """Of Python, the system and the libraries on which results depend."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    libraries = ("numpy", "scipy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "dlib-bin")
    for package in (PACKAGE, *libraries):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {PACKAGE: "not installed"} | found
