"""The raw side of a synthetic subject: what the scanner delivers, before motion is corrected.

A session has a grid of the scanner and a place of the head, a run has its motion. These are written, where
NSD has its raw series in BIDS. The volumes are drawn when they are sent, because they follow from these files
and the corrected series. A raw volume holds the head of `sim.head` with the brain of the corrected series, as
a cubic spline through its voxels, sampled where the scanner's voxels lie. So the raw series, registered and
resampled correctly, is the corrected one.

Legend: T volumes, B voxels of the brain, S slices; slices lie along z.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nsd import N_DESIGN_ROWS, TR_S, Layout, task_runs
from nsd.errors import require_file
from realtime.atomic import write_whole
from sim.anatomy import build_anatomy
from sim.errors import SimError
from sim.head import Head, build_head
from sim.head_motion import PARAMETERS, draw_direction, draw_motion, draw_place, rigid
from sim.raw_settings import RawSettings
from sim.settings import CortexSettings
from sim.synthetic_json import read_provenance

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

GEOMETRY, TRUTH, TRUTH_PLACE = "bold.json", "desc-truth_timeseries.tsv", "desc-truth_timeseries.json"
ENDINGS = (GEOMETRY, TRUTH_PLACE, TRUTH)
"""Endings of the files of a run."""
_ONE_TIME_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a run is acquired, and where the head lies.

    ``affine``: voxel indices to scanner mm, ``[4, 4]``; ``slice_times_s``: when each slice is acquired, from
    the volume's begin, ``[S]``; ``head_to_scanner``: from the corrected series' coordinates to the scanner's
    while the motion is zero, ``[4, 4]``; ``motion``: six parameters about the grid's centre, ``[T, 6]``.
    """

    shape: tuple[int, int, int]
    affine: F64
    tr_s: float
    slice_times_s: F64
    thermal_sd: float
    head_to_scanner: F64
    motion: F64

    @property
    def n_volumes(self) -> int:
        """Number of volumes, T."""
        return len(self.motion)

    @property
    def centre_mm(self) -> F64:
        """The grid's centre, ``[3]``."""
        return np.asarray(self.affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) + self.affine[:3, 3])

    def tissue_to_scanner(self, index: int) -> F64:
        """Return where the head lies in a volume, ``[4, 4]``: corrected coordinates to the scanner's."""
        return np.asarray(rigid(self.motion[index], self.centre_mm) @ self.head_to_scanner)


def draw_session(
    settings: RawSettings, cortex: CortexSettings, key: tuple[int, int, int]
) -> dict[int, Geometry]:
    """Draw the geometry of a session's task runs.

    :param key: seed, subject and session
    """
    seed, subject, session = key
    rng = np.random.default_rng([seed, subject, 6, session])
    place = draw_place(settings.session_shift_mm, settings.session_turn_deg, rng)
    shape, affine = _aim(settings, cortex, place, rng)
    n_volumes = int(N_DESIGN_ROWS * TR_S / settings.tr_s + _ONE_TIME_S)
    runs = task_runs(subject, session)
    found = {}
    for run in runs:
        run_rng = np.random.default_rng([seed, subject, 7, session, run])
        moved = np.concatenate([draw_direction(run_rng), np.zeros(3)]) * settings.between_runs_mm
        motion = draw_motion(settings, n_volumes, run_rng) + moved * (run != runs.start)
        found[run] = Geometry(
            shape=shape,
            affine=affine,
            tr_s=settings.tr_s,
            slice_times_s=slice_times_s(settings, shape[2]),
            thermal_sd=settings.thermal_sd,
            head_to_scanner=place,
            motion=motion.round(6),
        )
    return found


def _aim(
    settings: RawSettings, cortex: CortexSettings, place: F64, rng: np.random.Generator
) -> tuple[tuple[int, int, int], F64]:
    """Return shape and affine of a grid around the head at ``place``."""
    extent_mm = np.array(cortex.grid) * cortex.voxel_mm + 2 * np.array(settings.margin_mm)
    nx, ny, nz = (int(n) for n in np.ceil(extent_mm / settings.voxel_mm - 1e-9))
    affine = draw_place(0, settings.oblique_deg, rng)
    affine[:3, :3] *= settings.voxel_mm
    centre_mm = place[:3, 3] + settings.aim_mm * draw_direction(rng)
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array([nx, ny, nz]) - 1) / 2)
    return (nx, ny, nz), affine.round(6)


def slice_times_s(settings: RawSettings, n_slices: int) -> F64:
    """Return when each slice is acquired, ``[S]`` in seconds from the volume's begin."""
    if settings.slice_order == "none":
        return np.zeros(n_slices)
    n_shots = int(np.ceil(n_slices / settings.multiband))
    order = np.arange(n_shots)
    if settings.slice_order == "interleaved":
        order = np.concatenate([order[::2], order[1::2]])
    shot_of_slice = np.argsort(order)[np.arange(n_slices) % n_shots]
    return np.asarray((shot_of_slice * settings.tr_s / n_shots).round(6))


def write_raw(root: Path, *, subject: int, n_sessions: int, settings: RawSettings) -> list[Path]:
    """Write the raw side of the first sessions of a synthetic subject; files that are there already stay.

    :raises SimError: when a file has other content, for example of other settings
    """
    layout, provenance = Layout(root), read_provenance(root)
    cortex = provenance.cortex
    written = []
    for session in range(1, n_sessions + 1):
        for run, geometry in draw_session(settings, cortex, (provenance.seed, subject, session)).items():
            for ending, text in _texts(geometry).items():
                path = layout.raw(subject, session, run, ending)
                if path.exists() and path.read_text(encoding="utf-8") != text:
                    raise SimError(
                        f"{path}: expected the raw side of these settings, found another; remove "
                        f"{path.parent} or choose another folder"
                    )
                write_whole(path, text)
                written.append(path)
    return written


def _texts(geometry: Geometry) -> dict[str, str]:
    """Return the files of a run by their endings."""
    acquisition = {
        "TaskName": "nsdcore",
        "Manufacturer": "simulated",
        "RepetitionTime": geometry.tr_s,
        "SliceTiming": geometry.slice_times_s.tolist(),
        "Shape": geometry.shape,
        "Affine": geometry.affine.tolist(),
        "ThermalNoiseSD": geometry.thermal_sd,
    }
    rotation = "rad, R = Rz(rot_z) Ry(rot_y) Rx(rot_x), in scanner coordinates (RAS+), about RotationCentre"
    place = {
        "HeadToScanner": geometry.head_to_scanner.tolist(),
        "RotationCentre": geometry.centre_mm.tolist(),
        **{name: {"Units": "mm"} for name in PARAMETERS[:3]},
        **{name: {"Units": "rad", "Description": rotation} for name in PARAMETERS[3:]},
    }
    rows = ["\t".join(PARAMETERS), *("\t".join(f"{x:.6f}" for x in row) for row in geometry.motion)]
    return {
        GEOMETRY: json.dumps(acquisition, indent=1) + "\n",
        TRUTH_PLACE: json.dumps(place, indent=1) + "\n",
        TRUTH: "\n".join(rows) + "\n",
    }


def read_geometry(layout: Layout, subject: int, session: int, run: int) -> Geometry:
    """Read the geometry of a run.

    :raises NsdError: when the raw side of the run was not written
    :raises SimError: when a file is damaged
    """

    def path(ending: str) -> Path:
        what = "the raw side of the run, which `python -m sim synthesize --raw` writes"
        return require_file(layout.raw(subject, session, run, ending), what)

    try:
        acquisition = json.loads(path(GEOMETRY).read_text(encoding="utf-8"))
        place = json.loads(path(TRUTH_PLACE).read_text(encoding="utf-8"))
        motion = np.loadtxt(path(TRUTH), skiprows=1, ndmin=2)
        x, y, z = (int(n) for n in acquisition["Shape"])
        geometry = Geometry(
            shape=(x, y, z),
            affine=np.array(acquisition["Affine"], dtype=np.float64).reshape(4, 4),
            tr_s=float(acquisition["RepetitionTime"]),
            slice_times_s=np.array(acquisition["SliceTiming"], dtype=np.float64).reshape(z),
            thermal_sd=float(acquisition["ThermalNoiseSD"]),
            head_to_scanner=np.array(place["HeadToScanner"], dtype=np.float64).reshape(4, 4),
            motion=motion.reshape(-1, len(PARAMETERS)),
        )
    except (ValueError, KeyError, TypeError) as error:
        where = layout.raw(subject, session, run, "*")
        raise SimError(f"{where}: expected the raw side of a run: {error!r}") from error
    return geometry


class RawRun:
    """The volumes of a run as the scanner sees them; drawn one at a time.

    :raises NsdError: when the run or its raw side is missing
    :raises SimError: when the data set is not synthetic
    """

    def __init__(self, layout: Layout, *, subject: int, session: int, run: int) -> None:
        provenance = read_provenance(layout.root)
        cortex = provenance.cortex
        self.geometry = read_geometry(layout, subject, session, run)
        self._series = require_file(
            layout.timeseries(subject, session, run), "the corrected series of the run"
        )
        self._anatomy = build_anatomy(cortex)
        self.head: Head = build_head(cortex, self._anatomy, provenance.seed, subject)
        self._seed = [provenance.seed, subject, 8, session, run]
        self._spline = lru_cache(8)(self._moment_spline)

    def volume(self, index: int) -> npt.NDArray[np.int16]:
        """Return volume ``index``, ``[x, y, z]``."""
        seen = np.zeros(self.geometry.shape, dtype=np.float32)
        places = self._lattice_places(index)
        is_near = self._is_near(places)
        times_s = self.geometry.slice_times_s
        for time_s in np.unique(times_s):
            slices = np.flatnonzero(np.abs(times_s - time_s) < _ONE_TIME_S)
            spline = self._spline_at(index * self.geometry.tr_s + float(time_s))
            of_slices = np.zeros_like(is_near)
            of_slices[:, :, slices] = is_near[:, :, slices]
            seen[of_slices] = ndimage.map_coordinates(
                spline, places[:, of_slices], np.float32, order=3, mode="constant", prefilter=False
            )
        # The magnitude of a complex signal: in air it is noise alone, and never negative.
        rng = np.random.default_rng([*self._seed, index])
        noise = self.geometry.thermal_sd * rng.standard_normal((2, *seen.shape), dtype=np.float32)
        magnitude = np.hypot(np.maximum(seen, 0) + noise[0], noise[1])
        return np.asarray(np.clip(np.rint(magnitude), 0, np.iinfo(np.int16).max), dtype=np.int16)

    @cached_property
    def _brain(self) -> F32:
        """The corrected series of the brain, ``[T, B]``."""
        image: Any = nib.load(self._series)
        return np.asarray(np.asanyarray(image.dataobj)[self._anatomy.brain].T, dtype=np.float32)

    def _lattice_places(self, index: int) -> F64:
        """Return where the scanner's voxels lie on the head's lattice, ``[3, x, y, z]`` in voxels."""
        to_lattice = np.linalg.inv(self.geometry.tissue_to_scanner(index) @ self.head.affine)
        matrix = to_lattice @ self.geometry.affine
        x, y, z = (np.arange(n)[None] * matrix[:3, [k]] for k, n in enumerate(self.geometry.shape))
        origin = matrix[:3, 3, None, None, None]
        return np.asarray(x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :] + origin)

    def _is_near(self, places: F64) -> npt.NDArray[np.bool_]:
        """Return which of the scanner's voxels are not air, ``[x, y, z]``."""
        nearest = np.rint(places).astype(np.intp)
        last = np.reshape(self.head.is_near.shape, (3, 1, 1, 1)) - 1
        inside = ((nearest >= 0) & (nearest <= last)).all(axis=0)
        i, j, k = np.clip(nearest, 0, last)
        return np.asarray(self.head.is_near[i, j, k] & inside)

    def _spline_at(self, time_s: float) -> F32:
        """Return the spline of the head at a time of the run, interpolated between corrected volumes.

        Keys 1981, "Cubic convolution interpolation for digital image processing"; at a corrected volume's own
        time it is exactly that volume.
        """
        first, share = divmod(time_s / TR_S + _ONE_TIME_S, 1)
        if share < 2 * _ONE_TIME_S:
            return self._spline(int(first))
        apart = np.abs(share - np.arange(-1, 3))
        near = 1.5 * apart**3 - 2.5 * apart**2 + 1
        far = -0.5 * apart**3 + 2.5 * apart**2 - 4 * apart + 2
        weights = np.where(apart <= 1, near, far).astype(np.float32)
        splines = [self._spline(int(first) + step) for step in range(-1, 3)]
        blended = sum(w * spline for w, spline in zip(weights, splines, strict=True))
        return np.asarray(blended, dtype=np.float32)

    def _moment_spline(self, moment: int) -> F32:
        """Return the spline of the head at corrected volume ``moment``; beyond the ends, at the last one."""
        values = self._brain[min(max(moment, 0), len(self._brain) - 1)]
        return np.asarray(ndimage.spline_filter(self.head.with_brain(values), 3, np.float32))
