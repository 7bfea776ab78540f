"""Enhanced DICOM: a file with many frames, which are the slices of one or several volumes. Pure.

Where a frame lies is taken from its PlanePositionSequence. The index of a frame in its stack is not used,
because scanners leave it out, repeat it, or count something else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from realtime.errors import WireError
from realtime.sources.files.dicom_geometry import plane_affine, slice_distance_mm
from realtime.sources.files.dicom_identity import acquired, counted, part_of, series, time_s
from realtime.sources.files.dicom_pixels import frame_rescaled
from realtime.sources.files.volume_file import Acquired, VolumeFile, check_shape, placed
from realtime.sources.orient import LPS_TO_RAS

_ROUNDING_MM = 1e-3
"""A distance of slices in the header that differs from that of their positions by less is taken."""
_SAME_PLACE_DIGITS = 2
"""Heights in mm that agree to this number of digits are one."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    index: int
    affine: NDArray[np.float64]
    """[4, 4], of its plane, to LPS+ mm."""
    moment: int
    """Number of its volume; 0 if the file does not tell."""
    part: str
    echo_time_ms: float | None
    time_s: float | None
    """When it was acquired, since midnight."""

    @property
    def height_mm(self) -> float:
        return round(float(self.affine[:3, 3] @ self.affine[:3, 2]), _SAME_PLACE_DIGITS)


def volumes(dataset: pydicom.Dataset) -> Sequence[VolumeFile]:
    """Read all volumes of a file, in order of time.

    :raises WireError: codes ``file`` and ``grid``, when the frames form no volumes
    """
    pixels = dataset.pixel_array
    pixels = pixels[np.newaxis] if pixels.ndim == 2 else pixels
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != len(pixels):
        raise WireError(
            "file",
            f"expected PerFrameFunctionalGroupsSequence with {len(pixels)} frames, got {len(groups)}",
        )
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    frames = [_frame(dataset, index, group, shared) for index, group in enumerate(groups)]
    kinds: dict[tuple[str, float | None], list[_Frame]] = defaultdict(list)
    for frame in frames:
        kinds[frame.part, frame.echo_time_ms].append(frame)
    split = {kind: _moments(of_kind) for kind, of_kind in kinds.items()}
    header, of_file = series(dataset), acquired(dataset)
    n_moments = max(len(moments) for moments in split.values())
    found = []
    for k in range(n_moments):
        for (part, echo_time_ms), moments in split.items():
            if k >= len(moments):
                continue
            times_s = [frame.time_s for frame in moments[k] if frame.time_s is not None]
            about = replace(
                of_file, part=part, echo_time_ms=echo_time_ms, time_s=min(times_s, default=of_file.time_s)
            )
            if n_moments > 1:  # the file's own counters count files
                about = replace(about, acquisition=None, moment=(header["number"] - 1) * n_moments + k + 1)
            found.append(_volume(dataset, pixels, moments[k], header, about))
    return found


def _frame(dataset: pydicom.Dataset, index: int, group: Any, shared: Any) -> _Frame:
    orientation = _item(group, shared, "PlaneOrientationSequence")
    position = _item(group, shared, "PlanePositionSequence")
    measures = _item(group, shared, "PixelMeasuresSequence")
    affine = plane_affine(
        _value(orientation, "PlaneOrientationSequence", "ImageOrientationPatient"),
        _value(measures, "PixelMeasuresSequence", "PixelSpacing"),
        _value(position, "PlanePositionSequence", "ImagePositionPatient"),
    )
    if not np.isfinite(affine).all():
        raise WireError("grid", f"expected a finite position of frame {index + 1}, got {affine.tolist()}")
    echo = _item(group, shared, "MREchoSequence")
    echo_time_ms = (echo.get("EffectiveEchoTime") if echo else None) or dataset.get("EchoTime")
    kind = _item(group, shared, "MRImageFrameTypeSequence") or pydicom.Dataset()
    content = _item(group, shared, "FrameContentSequence") or pydicom.Dataset()
    return _Frame(
        index=index,
        affine=affine,
        moment=counted(content.get("TemporalPositionIndex")) or 0,
        part=part_of(
            kind.get("ComplexImageComponent") or dataset.get("ComplexImageComponent"),
            kind.get("FrameType") or dataset.get("ImageType"),
        ),
        echo_time_ms=float(echo_time_ms) if echo_time_ms else None,
        time_s=time_s(content.get("FrameAcquisitionDateTime")),
    )


def _item(group: Any, shared: Any, name: str) -> Any:
    """Return the functional group of a frame, or that of all frames."""
    found = group.get(name) or shared.get(name)
    return found[0] if found else None


def _value(item: Any, sequence: str, name: str) -> Any:
    value = item.get(name) if item else None
    if value is None:
        tag = pydicom.datadict.tag_for_keyword(name) or 0
        raise WireError(
            "file",
            f"expected {name} ({tag >> 16:04x},{tag & 0xFFFF:04x}) in {sequence} of each frame, found none",
        )
    return value


def _moments(frames: list[_Frame]) -> list[list[_Frame]]:
    """Split frames of one echo and part into volumes: the n-th frame of each place makes the n-th volume."""
    places: dict[float, list[_Frame]] = defaultdict(list)
    for frame in frames:
        places[frame.height_mm].append(frame)
    counts = {len(at_place) for at_place in places.values()}
    if len(counts) != 1:
        raise WireError(
            "grid",
            "expected every place in PlanePositionSequence (0020,9113) equally often in a file, got "
            f"{len(frames)} frames at {len(places)} places, {min(counts)} to {max(counts)} at each",
        )
    for at_place in places.values():
        twice, n_frames = Counter(frame.moment for frame in at_place).most_common(1)[0]
        if twice and n_frames > 1:
            raise WireError(
                "file",
                f"expected one frame at each place with TemporalPositionIndex (0020,9128) {twice}, got "
                f"{n_frames}, which nothing tells apart. If they are echoes, export EffectiveEchoTime "
                "(0018,9082) with them; otherwise export each in a series of its own",
            )
    in_time = [sorted(at_place, key=lambda frame: frame.moment) for at_place in places.values()]
    return [sorted(moment, key=lambda frame: frame.height_mm) for moment in zip(*in_time, strict=True)]


def _volume(
    dataset: pydicom.Dataset,
    pixels: NDArray[Any],
    frames: list[_Frame],
    header: dict[str, Any],
    about: Acquired,
) -> VolumeFile:
    lowest = frames[0]
    if any(not np.allclose(frame.affine[:3, :3], lowest.affine[:3, :3], atol=1e-4) for frame in frames):
        raise WireError(
            "grid",
            "expected one orientation in PlaneOrientationSequence (0020,9116) of all frames, got several",
        )
    check_shape((*pixels.shape[1:], len(frames)))
    in_patient = lowest.affine.copy()
    in_patient[:3, 2] *= _distance_mm(dataset, frames)
    stacked = np.stack(
        [frame_rescaled(dataset, pixels[frame.index], frame.index) for frame in frames], axis=-1
    )
    voxels, affine = placed(stacked, LPS_TO_RAS @ in_patient)
    return VolumeFile(voxels=voxels, affine=affine, acquired=about, **header)


def _distance_mm(dataset: pydicom.Dataset, frames: list[_Frame]) -> float:
    """Return the distance of slices that the header says, as dcm2niix does, if their positions agree."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    group = dataset.PerFrameFunctionalGroupsSequence[frames[0].index]
    measures = _item(group, shared, "PixelMeasuresSequence")
    said_mm = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1)
    if len(frames) == 1:
        return said_mm
    found_mm = slice_distance_mm(np.array([frame.affine[:3, 3] @ frame.affine[:3, 2] for frame in frames]))
    return said_mm if abs(said_mm - found_mm) < _ROUNDING_MM else found_mm
