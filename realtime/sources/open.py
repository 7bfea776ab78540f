"""Opens the source at an address and checks the operator's options for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from realtime import wire
from realtime.bundle.spec import Spec
from realtime.errors import ServeError
from realtime.network.key_files import ServerKeys
from realtime.sources import Source
from realtime.sources.markers import MarkedSource
from realtime.sources.run_boundaries import Plan, RunBoundarySource, Scanner
from realtime.sources.zeromq import ZeroMqSource

FORMS = (
    "tcp://127.0.0.1:5555, pyneal+tcp://127.0.0.1:5555, afni+tcp://127.0.0.1:7961, ipc:///path or "
    "folder:/path"
)

_LEAST_VOLUME_BYTES = 16 * 2**20
_LEAST_OTHER_GRID_BYTES = 64 * 2**20
"""For a bundle that takes any grid: 200 slices of 200 x 200 voxels in float64."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the operator specifies because the scanner does not send it: options of ``realtime serve``."""

    n_volumes: int | None = None
    run_id: str | None = None
    series: str | None = None
    """For a folder: follow only series whose description or name contains this text."""
    tr_s: float | None = None
    """The TR, where the scanner's headers lie; None: as they say, or else as the bundle does."""
    first_number: int | None = None
    """For a folder: the number in the name of a run's first file; None means 1."""
    markers: str | None = None
    """Address where presentation software sends markers."""


def open_source(
    address: str,
    options: SourceOptions,
    spec: Spec,
    *,
    keys: ServerKeys | None = None,
    unfinished: wire.RunStart | None = None,
) -> Source:
    """Create the source at an address, joined with that of markers; call its ``start`` to listen.

    Takes and raises what :func:`open_volumes` does.
    """
    source = open_volumes(address, options, spec, keys=keys, unfinished=unfinished)
    if not options.markers:
        return source
    return MarkedSource(source, open_markers(options.markers, keys), spec.tr_s)


def open_markers(address: str, keys: ServerKeys | None) -> Source:
    """Create the source of presentation software's markers.

    :raises ServeError: when the address is malformed, or reachable from other machines without keys
    """
    return ZeroMqSource(address, keys, "markers", max_volume_bytes=wire.MAX_PICTURE_BYTES)


def open_volumes(
    address: str,
    options: SourceOptions,
    spec: Spec,
    *,
    keys: ServerKeys | None = None,
    unfinished: wire.RunStart | None = None,
) -> Source:
    """Create the source of volumes alone.

    :param spec: the bundle's spec, which sets subject, grid and TR
    :param keys: keys that authenticate senders of this project's own messages at ``tcp://``; the other
        protocols have no authentication and are accepted from this machine only
    :param unfinished: the run that an earlier runtime left open, if any
    :raises ServeError: when the address is malformed or reachable from other machines, and when an option is
        missing or does not apply to the source
    """
    kind, _, rest = address.partition(":")
    if kind in ("tcp", "ipc"):
        if options != SourceOptions():
            raise ServeError(
                "expected no --volumes, --run-id, --series, --tr, --first-number or --markers with "
                f"{address}: its messages contain all of this"
            )
        return ZeroMqSource(address, keys, max_volume_bytes=_max_volume_bytes(spec))
    if kind not in ("pyneal+tcp", "afni+tcp", "folder"):
        raise ServeError(f"expected a source like {FORMS}, got {address!r}")
    if kind != "folder" and (options.series is not None or options.first_number is not None):
        raise ServeError(f"--series and --first-number are for folder:/path; remove them for {address}")
    plan = _plan(address, options, spec)
    if kind == "folder":
        scanner = _folder(Path(rest), options, spec, plan, unfinished)
    else:
        scanner = _scanner(kind, f"tcp:{rest}")
    return RunBoundarySource(scanner, plan)


def _max_volume_bytes(spec: Spec) -> int:
    """Four times the bundle's grid in the widest dtype, so that a run on another grid is refused, not cut."""
    least = _LEAST_VOLUME_BYTES if spec.reference is None else _LEAST_OTHER_GRID_BYTES
    return min(max(4 * 8 * math.prod(spec.roi.shape), least), wire.MAX_VOLUME_BYTES)


def _scanner(kind: str, address: str) -> Scanner:
    if kind == "pyneal+tcp":
        from realtime.sources.pyneal import PynealScanner

        return PynealScanner(address)
    from realtime.sources.afni import AfniScanner

    return AfniScanner(address)


def _folder(
    folder: Path, options: SourceOptions, spec: Spec, plan: Plan, unfinished: wire.RunStart | None
) -> Scanner:
    from realtime.sources.files.folder import FolderScanner

    return FolderScanner(
        folder,
        plan,
        grid_shape=spec.roi.shape,
        series=options.series or "",
        first_number=1 if options.first_number is None else options.first_number,
        unfinished=unfinished.run_id if unfinished else None,
    )


def _plan(address: str, options: SourceOptions, spec: Spec) -> Plan:
    if options.n_volumes is None:
        raise ServeError(
            f"expected --volumes N with {address}: its scanner does not send the number of volumes of a run"
        )
    try:
        n_volumes = msgspec.convert(options.n_volumes, wire.RunLength)
        run_id = msgspec.convert(options.run_id or f"sub-{spec.subject:02d}_task-realtime", wire.RunId)
    except msgspec.ValidationError as error:
        raise ServeError(f"expected --volumes and --run-id of a valid run: {error}") from error
    tr_s = options.tr_s
    if tr_s is not None and not 0 < tr_s <= 60:
        raise ServeError(f"expected --tr of more than 0 and at most 60 s, got {tr_s}")
    return Plan(
        subject=spec.subject,
        run_id=run_id,
        n_volumes=n_volumes,
        tr_s=tr_s or spec.tr_s,
        is_tr_certain=tr_s is not None,
    )
