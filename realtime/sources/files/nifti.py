"""Reads NIfTI: a volume a file, or a run a file; header and voxels in one file or in two. Pure."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError
from realtime.sources.files.file_names import Numbered, of_all_volumes
from realtime.sources.files.volume_file import Acquired, NotWholeError, VolumeFile, check_shape, placed

SUFFIXES = (".nii", ".nii.gz")
MOST_VOLUMES = 10_000
"""As many as a run has at most."""
SAME_MM = 0.5
"""Two affines that put no corner of the volume farther apart say the same."""
_HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
SMALLEST_MM, LARGEST_MM = 0.1, 30.0
"""Sides of voxels, with which a wrong unit shows."""
_MM = {1: ("meter", 1e3), 2: ("mm", 1.0), 3: ("micron", 1e-3)}
"""Names and sizes of the units of space, by the lowest three bits of ``xyzt_units``."""
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a NIfTI header says."""

    shape: tuple[int, int, int]
    n_volumes: int
    is_run: bool
    """Whether the file has an axis of time; its volumes are numbered by their order in it."""
    dtype: np.dtype[Any]
    offset: int
    """Where the voxels begin, in bytes."""
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    tr_s: float | None
    remark: str

    @property
    def volume_bytes(self) -> int:
        """Size of a volume."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.offset + self.n_volumes * self.volume_bytes

    def volume(
        self, stored: bytes | memoryview, nth: int, name: str, numbered: Numbered | None
    ) -> VolumeFile:
        """Make the ``nth`` volume of its bytes.

        :param numbered: what the file's name says, unless the file is a run
        :raises WireError: code ``grid``, when the affine cannot be used
        """
        voxels: NDArray[Any] = np.frombuffer(stored, self.dtype).reshape(self.shape, order="F")
        if (self.slope, self.intercept) != (1, 0):
            voxels = voxels * np.float64(self.slope) + np.float64(self.intercept)
        turned, rows = placed(voxels, self.affine)
        series, series_name = (numbered.series, numbered.series_name) if numbered else of_all_volumes(name)
        return VolumeFile(
            number=numbered.number if numbered else nth + 1,
            series=series,
            series_name=series_name,
            voxels=turned,
            affine=rows,
            tr_s=self.tr_s if self.is_run else None,  # files of a single volume seldom contain it
            acquired=numbered.acquired if numbered else Acquired(moment=nth + 1),
            remark=self.remark,
            n_of_file=None if numbered else self.n_volumes,
        )


def is_header(data: bytes) -> bool:
    """Whether a file begins like NIfTI with header and voxels in one file."""
    return data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0"


def layout(data: bytes, *, is_pair: bool = False) -> Layout:
    """Read the header from the beginning of a file.

    :param is_pair: whether the voxels are in another file
    :raises NotWholeError: when the header is truncated
    :raises WireError: codes ``file`` and ``grid``, when it is damaged or not supported
    """
    try:
        return _layout(data, is_pair=is_pair)
    except WireError:
        raise
    except Exception as error:  # nibabel raises any exception for a damaged header
        raise WireError("file", f"expected a readable NIfTI header: {error}") from error


def _layout(data: bytes, *, is_pair: bool) -> Layout:
    kind = {int.from_bytes(data[:4], order): order for order in ("little", "big")}
    size = next((size for size in _HEADERS if size in kind), None)
    if size is None or len(data) < size:
        raise NotWholeError(f"expected a NIfTI header of 348 or 540 bytes, got {len(data)} bytes")
    without_extensions = io.BytesIO(data[:size] + bytes(4))
    header = _HEADERS[size].from_fileobj(without_extensions, check=False)
    _check_magic(header["magic"].item(), is_pair=is_pair)
    header.check_fix()
    full, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
    while len(full) > 4 and full[-1] == 1:
        full = full[:-1]
    shape, n_volumes = full[:3], math.prod(full[3:])
    if len(full) > 4 or not 1 <= n_volumes <= MOST_VOLUMES:
        raise WireError("grid", f"expected a volume or a run [x, y, z, time], got {full}")
    check_shape(shape)
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or not (0 if is_pair else size) <= offset:
        raise WireError("file", f"expected voxels of an integer or float dtype, got {dtype} at byte {offset}")
    slope, intercept = header.get_slope_inter()
    affine, remark = _affine(header, shape)
    _check_sides(affine, header)
    return Layout(
        shape=shape,
        n_volumes=n_volumes,
        is_run=n_volumes > 1,
        dtype=dtype,
        offset=offset,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if slope is None else float(intercept),
        affine=affine,
        tr_s=_tr_s(header) if len(full) == 4 else None,
        remark=remark,
    )


def _check_magic(magic: bytes, *, is_pair: bool) -> None:
    if not magic.startswith((b"n+1", b"n+2", b"ni1", b"ni2")):
        raise WireError(
            "grid",
            "expected a NIfTI header, got one of Analyze 7.5, which does not say where left and right are; "
            "export NIfTI (.nii, or .hdr and .img with the mark ni1)",
        )
    if magic.startswith(b"ni") and not is_pair:
        raise WireError("file", "expected header and voxels in one file, got a header only; name it .hdr")


def _affine(header: Any, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], str]:
    """Return the affine in mm that the codes choose, and a remark if there are two that differ."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        raise WireError(
            "grid", "expected an affine in the header, got neither sform nor qform; export with one"
        )
    to_mm = np.array([[_unit(header)[1]]] * 3 + [[1.0]])
    sform = to_mm * header.get_sform()
    if codes[1] <= 0:
        return sform, ""
    try:
        qform = to_mm * header.get_qform()
    except Exception as error:  # a quaternion that is none
        if codes[0] <= 0:
            raise
        return sform, f"its qform cannot be read ({error}); its sform is used"
    if codes[0] <= 0:
        return qform, ""
    if not np.isfinite(sform).all() or np.linalg.matrix_rank(sform[:3, :3]) < 3:
        return qform, f"its sform {_said(sform)} is no affine; its qform {_said(qform)} is used"
    corners = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])])
    apart_mm = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
    if apart_mm <= SAME_MM:
        return sform, ""
    return sform, (
        f"its sform (code {codes[0]}) and qform (code {codes[1]}) differ by up to {apart_mm:.1f} mm; the "
        f"sform {_said(sform)} is used, not the qform {_said(qform)}. If the qform is right, export with "
        "sform code 0"
    )


def _unit(header: Any) -> tuple[str, float]:
    """Return name and size in mm of the unit of space; most files that name none mean mm."""
    return _MM.get(int(header["xyzt_units"]) & 7, ("none, so mm", 1.0))


def _check_sides(affine: NDArray[np.float64], header: Any) -> None:
    sides_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((sides_mm >= SMALLEST_MM) & (sides_mm <= LARGEST_MM)).all():
        raise WireError(
            "grid",
            f"expected voxels with sides of {SMALLEST_MM} to {LARGEST_MM:.0f} mm, got "
            f"{' x '.join(f'{side:.4g}' for side in sides_mm)} mm; the unit in the header is "
            f"{_unit(header)[0]}: export with the unit in which its affine is (xyzt_units)",
        )


def _said(affine: NDArray[np.float64]) -> str:
    return str(np.round(affine[:3], 3).tolist())


def _tr_s(header: Any) -> float | None:
    """Return the TR of a run; without a unit, the header says nothing."""
    unit = _SECONDS.get(header.get_xyzt_units()[1])
    tr_s = float(header["pixdim"][4]) * unit if unit else 0.0
    return tr_s if math.isfinite(tr_s) and tr_s > 0 else None
