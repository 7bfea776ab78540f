"""Which source an address names, and what an operator has to say for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from realtime import wire
from realtime.bundle.spec import Spec
from realtime.errors import ServeError
from realtime.network.curve import ServerKeys
from realtime.sources import Source
from realtime.sources.markers import Marked
from realtime.sources.run_boundaries import Announced, Plan, Scanner
from realtime.sources.zeromq import ZeroMqSource

FORMS = "tcp://127.0.0.1:5555, pyneal+tcp://127.0.0.1:5555, afni+tcp://127.0.0.1:7961 or folder:/path"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What an operator says where the scanner does not: the options of ``realtime serve``."""

    n_volumes: int | None = None
    run_id: str | None = None
    series: str | None = None
    """In a folder, only series whose description or name contains this."""
    first_number: int | None = None
    """In a folder, the number in the name of a run's first file; None: 1."""
    markers: str | None = None
    """Where presentation software says what is on screen."""


def open_source(
    address: str,
    told: Told,
    spec: Spec,
    *,
    keys: ServerKeys | None = None,
    unfinished: wire.RunStart | None = None,
) -> Source:
    """The source at an address; nothing listens before its ``start``.

    :param spec: the bundle's, which says whose volumes are wanted, on which grid and at which TR.
    :param keys: with which those who send this project's own messages must prove who they are; the other
        protocols have none and are taken from this machine only.
    :param unfinished: the run that an earlier runtime left open, if any.
    :raises ServeError: for an address of another form or that others can reach, and for options that are
        missing or that the source has no use for.
    """
    kind, _, rest = address.partition(":")
    if kind == "tcp":
        if told != Told():
            raise ServeError(
                f"expected no --volumes, --run-id, --series, --first-number or --markers with {address}: all "
                "that comes the same way as the volumes"
            )
        return ZeroMqSource(address, keys)
    if kind not in ("pyneal+tcp", "afni+tcp", "folder"):
        raise ServeError(f"expected a source like {FORMS}, got {address!r}")
    if kind != "folder" and (told.series is not None or told.first_number is not None):
        raise ServeError(f"--series and --first-number are for folder:/path, and mean nothing with {address}")
    plan = _plan(address, told, spec)
    if kind == "folder":
        scanner = _folder(Path(rest), told, spec, plan, unfinished)
    else:
        scanner = _scanner(kind, f"tcp:{rest}")
    source = Announced(scanner, plan)
    return Marked(source, ZeroMqSource(told.markers, keys), spec.tr_s) if told.markers else source


def _scanner(kind: str, address: str) -> Scanner:
    if kind == "pyneal+tcp":
        from realtime.sources.pyneal import PynealScanner

        return PynealScanner(address)
    from realtime.sources.afni import AfniScanner

    return AfniScanner(address)


def _folder(folder: Path, told: Told, spec: Spec, plan: Plan, unfinished: wire.RunStart | None) -> Scanner:
    from realtime.sources.files.folder import FolderScanner

    return FolderScanner(
        folder,
        plan,
        grid_shape=spec.roi.shape,
        series=told.series or "",
        first_number=1 if told.first_number is None else told.first_number,
        unfinished=unfinished.run_id if unfinished else None,
    )


def _plan(address: str, told: Told, spec: Spec) -> Plan:
    if told.n_volumes is None:
        raise ServeError(
            f"expected --volumes N with {address}: its scanner does not say how many volumes a run has"
        )
    try:
        n_volumes = msgspec.convert(told.n_volumes, wire.RunLength)
        run_id = msgspec.convert(told.run_id or f"sub-{spec.subject:02d}_task-realtime", wire.RunId)
    except msgspec.ValidationError as error:
        raise ServeError(f"expected --volumes and --run-id of a run that can be recorded: {error}") from error
    return Plan(subject=spec.subject, run_id=run_id, n_volumes=n_volumes, tr_s=spec.tr_s)
