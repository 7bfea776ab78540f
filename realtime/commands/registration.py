"""The options of ``realtime serve`` for volumes that do not lie where the decoder's do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from realtime.errors import RegistrationError

if TYPE_CHECKING:
    from realtime.record.run_json import Registration

_HELP = """\
Volumes on another grid than the decoder's, or of a head that lies elsewhere, are registered if the
bundle has a reference volume: the run's first volume to the decoder's reference, every other volume
to that first one. Each is then interpolated once, at the region's voxels. Volumes on the decoder's
own grid, such as NSD's, are taken as they are.
"""
_MAX_BYTES = 10_000


def add_registration_options(parser: argparse.ArgumentParser) -> None:
    """Add how volumes are registered."""
    group = parser.add_argument_group("registration", _HELP)
    group.add_argument(
        "--register-all",
        action="store_true",
        help="register volumes on the decoder's own grid too: a scanner's that are not motion-corrected yet",
    )
    group.add_argument(
        "--initial",
        type=Path,
        metavar="FILE",
        help="where registration of the first volume begins: 4 rows of 4 numbers, which turn the decoder's "
        "coordinates (RAS, mm) into the scanner's (default: several starts)",
    )
    group.add_argument(
        "--max-fd",
        type=float,
        metavar="MM",
        help="censor volumes with more framewise displacement than this, such as 0.9 (default: none)",
    )
    group.add_argument(
        "--fit-motion",
        action="store_true",
        help="take away what the six motion parameters explain of each voxel, together with the drifts",
    )


def registration(arguments: argparse.Namespace) -> Registration:
    """How volumes are registered.

    :raises RegistrationError: when an option is wrong, or the file of ``--initial`` has no such matrix
    """
    from realtime.record.run_json import Registration
    from realtime.registration.rigid import as_rigid
    from realtime.sources.orient import rows

    if arguments.max_fd is not None and not arguments.max_fd > 0:
        raise RegistrationError(f"expected --max-fd of more than 0 mm, got {arguments.max_fd}")
    initial = None if arguments.initial is None else rows(as_rigid(_read_matrix(arguments.initial)))
    return Registration(initial=initial, max_fd_mm=arguments.max_fd, fits_motion=arguments.fit_motion)


def _read_matrix(path: Path) -> NDArray[np.float64]:
    try:
        with path.open() as file:
            lines = file.read(_MAX_BYTES).splitlines()
        return np.array([line.split() for line in lines if line.strip()], dtype=np.float64)
    except (OSError, ValueError) as error:
        raise RegistrationError(f"--initial {path}: expected 4 rows of 4 numbers: {error}") from error
