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


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the operator specifies because the scanner does not send it: options of ``realtime serve``."""

    n_volumes: int | None = None
    run_id: str | None = None
    series: str | None = None
    """For a folder and DICOM: follow only series whose description or name contains this text."""
    first_number: int | None = None
    """For a folder: the number in the name of a run's first file; None means 1."""
    echo: int | None = None
    """Of several echoes, the one to take, from 1; None means the first."""
    allow: tuple[str, ...] = ()
    """For AFNI's protocol and DICOM: other machines that may send."""
    tls_cert: Path | None = None
    """For DICOM: the certificate of this machine."""
    tls_key: Path | None = None
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
                "expected no --volumes, --run-id, --series, --first-number, --echo, --allow, --markers or "
                f"--source-tls-cert with {address}: its messages say what these do, and its peers have keys"
            )
        return ZeroMqSource(address, keys, max_volume_bytes=_max_volume_bytes(spec))
    if kind not in ("pyneal+tcp", "afni+tcp", "dicom", "folder"):
        raise ServeError(f"expected a source like {FORMS}, got {address!r}")
    has_series = kind in ("folder", "dicom")
    if not has_series and (options.series is not None or options.first_number is not None):
        raise ServeError(
            f"--series and --first-number are for folder:/path and dicom://; remove them for {address}"
        )
    if kind not in ("afni+tcp", "dicom") and options.allow:
        raise ServeError(f"--allow is for afni+tcp:// and dicom://; remove it for {address}")
    if kind != "dicom" and (options.tls_cert or options.tls_key):
        raise ServeError(
            f"--source-tls-cert and --source-tls-key are for dicom://; remove them for {address}"
        )
    plan = _plan(address, options, spec)
    if kind == "folder":
        from realtime.sources.files.folder import FolderScanner

        scanner: Scanner = FolderScanner(Path(rest), plan, **_series_options(options, spec, unfinished))
    elif kind == "dicom":
        from realtime.sources.dicom_node import DicomNode

        scanner = DicomNode(
            address,
            plan,
            hosts=Hosts(options.allow),
            tls=_tls(options),
            **_series_options(options, spec, unfinished),
        )
    else:
        scanner = _scanner(kind, f"tcp:{rest}", options)
    source = RunBoundarySource(scanner, plan)
    if not options.markers:
        return source
    markers = ZeroMqSource(options.markers, keys, "markers", max_volume_bytes=wire.MAX_PICTURE_BYTES)
    return MarkedSource(source, markers, spec.tr_s)


def _max_volume_bytes(spec: Spec) -> int:
    """Four times the bundle's grid in the widest dtype, so that a run on another grid is refused, not cut."""
    return min(max(4 * 8 * math.prod(spec.roi.shape), _LEAST_VOLUME_BYTES), wire.MAX_VOLUME_BYTES)


def _scanner(kind: str, address: str, options: SourceOptions) -> Scanner:
    if kind == "pyneal+tcp":
        if options.echo is not None:
            raise ServeError(f"expected no --echo with {address}: Pyneal's volumes are of one echo")
        from realtime.sources.pyneal import PynealScanner

        return PynealScanner(address)
    from realtime.sources.afni import AfniScanner

    return AfniScanner(address, Hosts(options.allow), options.echo)


def _series_options(options: SourceOptions, spec: Spec, unfinished: wire.RunStart | None) -> dict[str, Any]:
    """What says which series are followed, and how."""
    return {
        "grid_shape": spec.roi.shape,
        "series": options.series or "",
        "first_number": 1 if options.first_number is None else options.first_number,
        "unfinished": unfinished.run_id if unfinished else None,
    }


def _tls(options: SourceOptions) -> ssl.SSLContext | None:
    if options.tls_cert is None and options.tls_key is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise ServeError("expected --source-tls-cert and --source-tls-key together, got one of them")
    return server_context(options.tls_cert, options.tls_key)


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
