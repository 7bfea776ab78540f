"""The options of ``realtime serve`` for the source of volumes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realtime.sources.open import SourceOptions

DEFAULT = "tcp://127.0.0.1:5555"
_HELP = f"""\
Where volumes come from. All addresses are on this machine, except tcp:// with --keys and those that
take --allow:

  tcp://127.0.0.1:5555         this project's own messages, as `python -m sim replay` sends them;
                               they describe runs in full, and a crash on either side loses nothing
                               (default {DEFAULT})
  ipc:///path/to/socket        the same, for programs of this user on this machine; they need no keys,
                               so nobody else may enter the folder
  pyneal+tcp://127.0.0.1:5555  Pyneal's scanner side connects here; each volume is acknowledged
                               once it is recorded
  afni+tcp://127.0.0.1:7961    AFNI's senders (Dimon, rtfeedme) connect here; their protocol has no
                               acknowledgements, so a crash loses volumes that are in transit; with
                               --allow also from other machines
  dicom://127.0.0.1:11112?aet=NAME
                               DICOM objects that a scanner or a PACS node stores here (C-STORE) by
                               the name NAME; each is answered once it is recorded; with --allow and
                               --source-tls-cert also from other machines
  folder:/path                 files that a scanner writes into a folder and its subfolders: DICOM
                               (mosaics, enhanced, a slice each), NIfTI (a volume or a run each, also
                               .hdr and .img), PAR/REC; files that are already there are ignored

All but the first need --volumes. They carry no pictures: presentation software sends those to
--markers. For a scanner on another machine, forward the port through an SSH tunnel.
"""


def add_source_options(parser: argparse.ArgumentParser, default: str | None = DEFAULT) -> None:
    """``--source`` and what goes with it."""
    group = parser.add_argument_group("volumes", _HELP)
    group.add_argument(
        "--source",
        default=default,
        metavar="ADDRESS",
        help=f"one of the above (default: {default or 'none'})",
    )
    group.add_argument(
        "--volumes", type=int, metavar="N", help="volumes of a run, for sources that do not say"
    )
    group.add_argument(
        "--run-id",
        metavar="ID",
        help="name of the runs; one of the same name is recorded as ID_take-2 (default sub-NN_task-realtime)",
    )
    group.add_argument(
        "--series",
        metavar="TEXT",
        help="in a folder and with dicom://, only series whose description (DICOM) or file name (NIfTI) "
        "contains TEXT",
    )
    group.add_argument(
        "--first-number",
        type=int,
        metavar="N",
        help="in a folder and with dicom://, the number of a run's first volume (default: that of the first "
        "that comes)",
    )
    group.add_argument(
        "--tr",
        type=float,
        metavar="S",
        help="seconds from volume to volume, where the scanner's headers say another time, such as that of a "
        "shot (default: what they say)",
    )
    group.add_argument(
        "--resample",
        action="store_true",
        help="take a scanner whose TR is another than the decoder's, from half of it to twice it: windows "
        "are resampled in time, which adds a delay of up to the scanner's TR (default: refuse such a run)",
    )
    group.add_argument(
        "--echo",
        metavar="N|combine",
        help="the echo to follow, from 1 in order of echo time; or combine: all echoes, weighted by T2* "
        "(default: the first that comes)",
    )
    group.add_argument(
        "--allow",
        action="append",
        metavar="ADDRESS",
        help="with afni+tcp://, dicom:// and lsl:, a machine or network that may send, such as 10.0.0.5 or "
        "10.0.0.0/24; may be repeated (default: this machine only). Nothing else authenticates it, and "
        "AFNI's protocol is not encrypted",
    )
    _add_tls_options(group)
    _add_marker_options(group)


def _add_tls_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--source-tls-cert",
        type=Path,
        metavar="PEM",
        help="with dicom://, the certificate of this machine: objects then come over TLS",
    )
    group.add_argument("--source-tls-key", type=Path, metavar="PEM", help="the certificate's key")
    group.add_argument(
        "--source-tls-peers",
        type=Path,
        metavar="PEM",
        help="with --source-tls-cert, the certificates of those who may send, or of who issued theirs "
        "(default: a sender needs none)",
    )


def _add_marker_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--markers",
        metavar="ADDRESS",
        help="listen here, such as tcp://127.0.0.1:5557, for what presentation software shows (see "
        "docs/examples/presentation.py); or lsl:NAME, an LSL stream of this name (see "
        "docs/examples/psychopy_lsl.py; default: nowhere)",
    )
    group.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="with --markers lsl:NAME, the folder with the PNG files that markers name (default: only the "
        "names are recorded)",
    )


def source_options(arguments: argparse.Namespace) -> SourceOptions:
    """What the operator says about the runs."""
    from realtime.sources.open import SourceOptions

    return SourceOptions(
        n_volumes=arguments.volumes,
        run_id=arguments.run_id,
        series=arguments.series,
        tr_s=arguments.tr,
        first_number=arguments.first_number,
        echo=arguments.echo,
        allow=tuple(arguments.allow or ()),
        tls_cert=arguments.source_tls_cert,
        tls_key=arguments.source_tls_key,
        tls_peers=arguments.source_tls_peers,
        markers=arguments.markers,
        pictures=arguments.pictures,
    )
