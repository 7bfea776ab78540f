"""Opens the source at an address and checks the operator's options for it."""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from realtime import wire
from realtime.bundle.spec import Spec
from realtime.errors import ServeError
from realtime.network.certificate import server_context
from realtime.network.hosts import Hosts
from realtime.network.key_files import ServerKeys
from realtime.sources import Source
from realtime.sources.markers import MarkedSource
from realtime.sources.run_boundaries import Plan, RunBoundarySource, Scanner
from realtime.sources.zeromq import ZeroMqSource

FORMS = (
    "tcp://127.0.0.1:5555, pyneal+tcp://127.0.0.1:5555, afni+tcp://127.0.0.1:7961, "
    "dicom://127.0.0.1:11112?aet=NAME, ipc:///path or folder:/path"
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
    """For a folder and DICOM: follow only series whose description or name contains this text."""
    tr_s: float | None = None
    """The TR, where the scanner's headers lie; None: as they say, or else as the bundle does."""
    first_number: int | None = None
    """For a folder and DICOM: the number of a run's first volume; None means to learn it."""
    echo: str | None = None
    """The number of the echo to follow, or ``combine``; None means the first that comes."""
    allow: tuple[str, ...] = ()
    """For AFNI's protocol and DICOM: other machines that may send."""
    tls_cert: Path | None = None
    """For DICOM: the certificate of this machine."""
    tls_key: Path | None = None
    tls_peers: Path | None = None
    """For DICOM: certificates of those who may send, or of who issued theirs; None lets anybody."""
    markers: str | None = None
    """Address where presentation software sends markers, or ``lsl:NAME``."""
    pictures: Path | None = None
    """For ``lsl:NAME``: the folder with the pictures that markers name."""


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
    return MarkedSource(source, open_markers(options.markers, options, keys), spec.tr_s)


def open_markers(address: str, options: SourceOptions, keys: ServerKeys | None) -> Source:
    """Create the source of presentation software's markers.

    :raises ServeError: when the address is malformed, or reachable from other machines without keys
    """
    if address.startswith("lsl:"):
        from realtime.sources.lsl import LslMarkers

        return LslMarkers(address.removeprefix("lsl:"), options.pictures, options.allow)
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
        protocols have no keys and are accepted from this machine, and those that ``options`` name
    :param unfinished: the run that an earlier runtime left open, if any
    :raises ServeError: when the address is malformed or reachable from other machines, and when an option is
        missing or does not apply to the source
    """
    kind, _, rest = address.partition(":")
    if kind in ("tcp", "ipc"):
        if options != SourceOptions():
            raise ServeError(
                "expected no --volumes, --run-id, --series, --first-number, --tr, --echo, --allow, --markers "
                f"or --source-tls-cert with {address}: its messages say all of this, and its peers have keys"
            )
        return ZeroMqSource(address, keys, max_volume_bytes=_max_volume_bytes(spec))
    if kind not in ("pyneal+tcp", "afni+tcp", "dicom", "folder"):
        raise ServeError(f"expected a source like {FORMS}, got {address!r}")
    _check_options(kind, address, options)
    plan = _plan(address, options, spec)
    scanners = {"pyneal+tcp": _pyneal, "afni+tcp": _afni, "dicom": _dicom, "folder": _folder}
    scanner = scanners[kind](rest, options, plan, unfinished.run_id if unfinished else None)
    return RunBoundarySource(scanner, plan)


def _max_volume_bytes(spec: Spec) -> int:
    """Four times the bundle's grid in the widest dtype, so that a run on another grid is refused, not cut."""
    least = _LEAST_VOLUME_BYTES if spec.reference is None else _LEAST_OTHER_GRID_BYTES
    return min(max(4 * 8 * math.prod(spec.roi.shape), least), wire.MAX_VOLUME_BYTES)


def _check_options(kind: str, address: str, options: SourceOptions) -> None:
    """:raises ServeError: when an option does not apply to this kind of source"""
    has_lsl = bool(options.markers and options.markers.startswith("lsl:"))
    if options.pictures is not None and not has_lsl:
        raise ServeError("--pictures is for --markers lsl:NAME; over ZeroMQ a marker brings its picture")
    for names, given, kinds in (
        ("--series and --first-number are", (options.series, options.first_number), ("folder", "dicom")),
        ("--echo is", (options.echo,), ("folder", "dicom", "afni+tcp")),
        ("--allow is", (options.allow or None,), (kind,) if has_lsl else ("afni+tcp", "dicom")),
        ("--source-tls-cert and --source-tls-key are", (options.tls_cert, options.tls_key), ("dicom",)),
        ("--source-tls-peers is", (options.tls_peers,), ("dicom",)),
    ):
        if kind not in kinds and any(each is not None for each in given):
            raise ServeError(f"{names} for {' and '.join(kinds)} sources; remove them for {address}")


def _pyneal(rest: str, options: SourceOptions, plan: Plan, unfinished: str | None) -> Scanner:
    from realtime.sources.pyneal import PynealScanner

    return PynealScanner(f"tcp:{rest}")


def _afni(rest: str, options: SourceOptions, plan: Plan, unfinished: str | None) -> Scanner:
    from realtime.sources.afni import AfniScanner

    return AfniScanner(f"tcp:{rest}", Hosts(options.allow), _echo(options.echo))


def _dicom(rest: str, options: SourceOptions, plan: Plan, unfinished: str | None) -> Scanner:
    from realtime.sources.dicom_node import DicomNode

    return DicomNode(
        f"dicom:{rest}",
        plan,
        hosts=Hosts(options.allow),
        tls=_tls(options),
        **_series_options(options, unfinished),
    )


def _folder(rest: str, options: SourceOptions, plan: Plan, unfinished: str | None) -> Scanner:
    from realtime.sources.files.folder import FolderScanner

    return FolderScanner(Path(rest), plan, **_series_options(options, unfinished))


def _series_options(options: SourceOptions, unfinished: str | None) -> dict[str, Any]:
    """What says which series are followed, and how."""
    return {
        "series": options.series or "",
        "first_number": options.first_number,
        "echo": _echo(options.echo),
        "unfinished": unfinished,
    }


def _echo(choice: str | None) -> int | str | None:
    if choice is None or choice == "combine":
        return choice
    if not choice.isdecimal() or int(choice) < 1:
        raise ServeError(f"expected --echo N, from 1, or --echo combine, got {choice!r}")
    return int(choice)


def _tls(options: SourceOptions) -> ssl.SSLContext | None:
    given = options.tls_cert, options.tls_key, options.tls_peers
    if given == (None, None, None):
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise ServeError(
            "expected --source-tls-cert and --source-tls-key together, and with them --source-tls-peers, got "
            "one without the others"
        )
    return server_context(options.tls_cert, options.tls_key, options.tls_peers)


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
