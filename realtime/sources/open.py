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


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the operator specifies because the scanner does not send it: options of ``realtime serve``."""

    n_volumes: int | None = None
    run_id: str | None = None
    series: str | None = None
    """For a folder: follow only series whose description or name contains this text."""
    first_number: int | None = None
    """For a folder: the number of a run's first volume; None means to learn it."""
    echo: str | None = None
    """For a folder: the number of the echo to follow, or ``combine``; None means the first that comes."""
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
    """Create the source at an address; call its ``start`` to listen.

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
                f"expected no --volumes, --run-id, --series, --first-number, --echo or --markers with "
                f"{address}: its messages contain all of this"
            )
        return ZeroMqSource(address, keys, max_volume_bytes=_max_volume_bytes(spec))
    if kind not in ("pyneal+tcp", "afni+tcp", "folder"):
        raise ServeError(f"expected a source like {FORMS}, got {address!r}")
    if kind != "folder" and {options.series, options.first_number, options.echo} != {None}:
        raise ServeError(
            f"--series, --first-number and --echo are for folder:/path; remove them for {address}"
        )
    plan = _plan(address, options, spec)
    if kind == "folder":
        scanner = _folder(Path(rest), options, spec, plan, unfinished)
    else:
        scanner = _scanner(kind, f"tcp:{rest}")
    source = RunBoundarySource(scanner, plan)
    if not options.markers:
        return source
    markers = ZeroMqSource(options.markers, keys, "markers", max_volume_bytes=wire.MAX_PICTURE_BYTES)
    return MarkedSource(source, markers, spec.tr_s)


def _max_volume_bytes(spec: Spec) -> int:
    """Four times the bundle's grid in the widest dtype, so that a run on another grid is refused, not cut."""
    return min(max(4 * 8 * math.prod(spec.roi.shape), _LEAST_VOLUME_BYTES), wire.MAX_VOLUME_BYTES)


def _scanner(kind: str, address: str) -> Scanner:
    if kind == "pyneal+tcp":
        from realtime.sources.pyneal import PynealScanner

        return PynealScanner(address)
    from realtime.sources.afni import AfniScanner

    return AfniScanner(address)


def _echo(choice: str | None) -> int | str | None:
    if choice is None or choice == "combine":
        return choice
    if not choice.isdecimal() or int(choice) < 1:
        raise ServeError(f"expected --echo N, from 1, or --echo combine, got {choice!r}")
    return int(choice)


def _folder(
    folder: Path, options: SourceOptions, spec: Spec, plan: Plan, unfinished: wire.RunStart | None
) -> Scanner:
    from realtime.sources.files.folder import FolderScanner

    return FolderScanner(
        folder,
        plan,
        series=options.series or "",
        first_number=options.first_number,
        echo=_echo(options.echo),
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
    return Plan(subject=spec.subject, run_id=run_id, n_volumes=n_volumes, tr_s=spec.tr_s)
