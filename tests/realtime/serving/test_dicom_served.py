"""DICOM series of several kinds become runs of a served runtime, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset

from realtime.record.reader import read_recorded

from . import test_dicom
from .conftest import AFFINE, Scan, Served, wait_until
from .test_dicom import mosaic, single, written

N_VOLUMES = 6


def echoes_and_phase(scan: Scan, index: int) -> list[FileDataset]:
    """Two echoes of which the first is taken, each with its phase, in one series."""
    images = []
    for count, (part, time_ms) in enumerate((part, time_ms) for time_ms in (20, 38) for part in "MP"):
        data = mosaic(scan.voxels(index).astype("<u2") + 7 * count, 4 * index + count + 1, series=8)
        data.ImageType, data.EchoTime = ["ORIGINAL", "PRIMARY", part, "ND", "MOSAIC"], time_ms
        images.append(data)
    return images


def split_slices(scan: Scan, index: int) -> list[FileDataset]:
    """Each volume in a series of its own."""
    voxels = scan.voxels(index).astype("<u2")
    images = [single(voxels, slice_, slice_ + 1, None, 9_001 + index) for slice_ in range(voxels.shape[2])]
    for data in images:
        data.ImageType, data.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "M", "MFSPLIT"], index + 1
        data.SeriesDescription = "ep2d_bold"
    return images


def late_numbers(scan: Scan, index: int) -> list[FileDataset]:
    """Numbers begin at 6, and the UID of the series changes."""
    data = mosaic(scan.voxels(index).astype("<u2"), index + 6, series=10)
    data.SeriesInstanceUID = f"1.2.3.{index // 3}"
    return [data]


def moving_slices(scan: Scan, index: int) -> list[FileDataset]:
    """The scanner follows the head, by more than the distance of two slices in all."""
    voxels = scan.voxels(index).astype("<u2")
    n_slices = voxels.shape[2]
    images = [single(voxels, z, index * n_slices + z + 1, None, 11) for z in reversed(range(n_slices))]
    for data in images:
        left, back, up = data.ImagePositionPatient
        data.ImagePositionPatient = [left, back, float(up) + 0.4 * index]
    return images


def echoes_in_series(scan: Scan, index: int) -> list[FileDataset]:
    """Two echoes in series of their own, of which the first is taken."""
    images = []
    for echo, time_ms in enumerate((20, 38)):
        data = mosaic(scan.voxels(index).astype("<u2") + 7 * echo, index + 1, series=12 + echo)
        data.SeriesDescription, data.EchoTime = f"bold_e{echo + 1}", time_ms
        data.AcquisitionTime = f"1600{2 * index + 2:02d}.{10 * echo:03d}"
        images.append(data)
    return images


def is_recorded(out: Path, series: int) -> bool:
    runs = [path.parent for path in out.glob(f"sub-*_series-{series}x*/run.json")]
    return bool(runs) and len(read_recorded(runs[0]).received) == N_VOLUMES


KINDS: dict[int, Callable[[Scan, int], list[FileDataset]]] = {
    8: echoes_and_phase,
    9: split_slices,
    10: late_numbers,
    11: moving_slices,
    12: echoes_in_series,
}
"""By number of the series."""


def test_every_kind_of_series_is_recorded_as_it_came(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(test_dicom.GRID, "sizes_mm", tuple(AFFINE[axis][axis] for axis in range(3)))
    monkeypatch.setitem(test_dicom.GRID, "origin_mm", tuple(AFFINE[axis][3] for axis in range(3)))
    export = tmp_path / "export"
    export.mkdir()
    served = serve("--volumes", str(N_VOLUMES), source=f"folder:{export}")
    reference = mosaic(Scan().voxels(0).astype("<u2"), 1, series=4)
    reference.SeriesDescription = "bold_SBRef"
    (export / "reference.dcm").write_bytes(written(reference))
    for number, make in KINDS.items():
        scan = Scan(seed=number)
        if make is echoes_in_series:  # after a reference that is not called so
            reference = mosaic(scan.voxels(0).astype("<u2"), 1, series=5)
            reference.AcquisitionTime = "160000.000"
            (export / "another_reference.dcm").write_bytes(written(reference))
            wait_until(lambda: any(served.out.glob("sub-*_series-5x*/run.json")), "the run of a reference")
        for index in range(N_VOLUMES):
            for count, data in enumerate(make(scan, index)):
                (export / f"{number:03d}_{index:03d}_{count:03d}.dcm").write_bytes(written(data))
        wait_until(partial(is_recorded, served.out, number), f"a run of series {number}")
        (folder,) = served.out.glob(f"sub-*_series-{number}x*")
        for index, voxels in read_recorded(folder).volumes():
            assert np.array_equal(voxels, scan.voxels(index))
    assert len(list(served.out.glob("*/run.json"))) == len(KINDS) + 1
    said = served.log()
    assert "has one volume and is over, because series 12x" in said
    assert "other phase images of series 8x" in said
    assert "TE 38 ms is passed over, TE 20 ms is followed" in said
    assert "has the number 6, and becomes the first of the run" in said
    assert "Traceback" not in said
