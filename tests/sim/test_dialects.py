"""DICOM as different scanners write it: each dialect does what it says, and the voxels stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

from sim.dialects import DIALECTS, ECHO_TIMES_MS
from sim.errors import SimError
from sim.folder_play import read_series

from .small_scan import N_VOLUMES, SHAPE, SmallScan, deliver


def written(
    folder: Path, name: str, dialect: str, scan: SmallScan | None = None
) -> list[pydicom.FileDataset]:
    deliver(f"folder:{folder}?format={name}&dialect={dialect}", scan)
    images = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    assert all(image.SOPInstanceUID == image.file_meta.MediaStorageSOPInstanceUID for image in images)
    return images


def echo_ms(image: pydicom.FileDataset) -> float:
    groups = image.get("SharedFunctionalGroupsSequence")
    return float(groups[0].MREchoSequence[0].EffectiveEchoTime if groups else image.EchoTime)


@pytest.mark.parametrize("name", ["mosaic", "enhanced", "classic"])
def test_echoes_are_numbered_in_turn(tmp_path: Path, name: str) -> None:
    images = sorted(written(tmp_path, name, "echoes"), key=lambda image: int(image.InstanceNumber))
    assert len({image.SeriesInstanceUID for image in images}) == 1
    assert [image.InstanceNumber for image in images] == list(range(1, len(images) + 1))
    assert [echo_ms(image) for image in images] == [*ECHO_TIMES_MS] * (len(images) // 2)
    for first, second in zip(images[::2], images[1::2], strict=True):
        assert np.array_equal(second.pixel_array, np.rint(first.pixel_array * 0.6))


@pytest.mark.parametrize("name", ["mosaic", "enhanced", "classic"])
def test_phase_images_follow_magnitude_images(tmp_path: Path, name: str) -> None:
    plain = sorted(written(tmp_path / "plain", name, ""), key=lambda image: int(image.InstanceNumber))
    images = sorted(written(tmp_path / "both", name, "phase"), key=lambda image: int(image.InstanceNumber))
    assert [image.ImageType[2] for image in images[1::2]] == ["P"] * len(plain)
    assert [image.ComplexImageComponent for image in images] == ["MAGNITUDE", "PHASE"] * len(plain)
    assert [image.PixelData for image in images[::2]] == [image.PixelData for image in plain]


def test_series_uids_change_within_a_run(tmp_path: Path) -> None:
    images = written(tmp_path, "enhanced", "uids")
    assert sorted(Counter(image.SeriesInstanceUID for image in images).values()) == [2, 2, 2]
    assert len({(image.SeriesNumber, image.StudyInstanceUID) for image in images}) == 1


def test_a_mosaic_can_lack_its_private_header(tmp_path: Path) -> None:
    images = written(tmp_path, "mosaic", "no-csa")
    assert all("MOSAIC" in image.ImageType for image in images)
    assert not [element for image in images for element in image if element.tag.is_private]


def test_slices_are_numbered_through_time_first(tmp_path: Path) -> None:
    images = sorted(written(tmp_path, "classic", "slice-major"), key=lambda image: int(image.InstanceNumber))
    heights = [float(image.ImagePositionPatient[2]) for image in images]
    assert len(set(heights[:N_VOLUMES])) == 1
    assert len(set(heights)) == SHAPE[2]
    with pytest.raises(SimError, match="slice-major: expected format=classic"):
        deliver(f"folder:{tmp_path}?format=mosaic&dialect=slice-major")


def test_numbers_begin_at_6(tmp_path: Path) -> None:
    images = written(tmp_path, "mosaic", "from-6")
    assert [image.InstanceNumber for image in images] == list(range(6, 6 + N_VOLUMES))


@pytest.mark.parametrize("name", ["mosaic", "enhanced", "classic"])
def test_the_tr_is_that_of_a_shot(tmp_path: Path, name: str) -> None:
    written(tmp_path, name, "shot-tr")
    (series,), _ = read_series(tmp_path)
    assert series.tr_s == pytest.approx(1.5 / SHAPE[2])


def test_files_lie_in_folders_of_exam_and_series(tmp_path: Path) -> None:
    written(tmp_path, "classic", "subfolder")
    assert {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.dcm")} == {
        "p001/e0001/s0003"
    }


def test_a_reference_series_of_one_volume_comes_first(tmp_path: Path) -> None:
    images = written(tmp_path, "mosaic", "sbref")
    assert Counter(image.SeriesDescription for image in images) == {
        "ep2d_bold": N_VOLUMES,
        "ep2d_bold_SBRef": 1,
    }


@pytest.mark.parametrize("name", ["mosaic", "enhanced", "classic"])
def test_slices_follow_the_head(tmp_path: Path, name: str) -> None:
    def height(image: pydicom.FileDataset) -> float:
        frames = image.get("PerFrameFunctionalGroupsSequence")
        place = frames[0].PlanePositionSequence[0] if frames else image
        return float(place.ImagePositionPatient[2])

    images = written(tmp_path, name, "follow")
    firsts = images if name != "classic" else images[:: SHAPE[2]]
    assert np.diff([height(image) for image in firsts]) == pytest.approx([0.4] * (N_VOLUMES - 1), abs=1e-5)


def test_pixels_are_compressed_without_loss(tmp_path: Path) -> None:
    plain, packed = written(tmp_path / "plain", "mosaic", ""), written(tmp_path / "rle", "mosaic", "rle")
    assert all(image.file_meta.TransferSyntaxUID.is_compressed for image in packed)
    assert all(np.array_equal(a.pixel_array, b.pixel_array) for a, b in zip(plain, packed, strict=True))


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        *(("mosaic", dialect) for dialect in DIALECTS if dialect != "slice-major"),
        *(("classic", dialect) for dialect in ("echoes", "phase", "slice-major", "from-6", "follow")),
        *(("enhanced", dialect) for dialect in ("echoes", "phase", "follow")),
    ],
)
def test_a_folder_in_any_dialect_is_played_a_volume_a_tr(tmp_path: Path, name: str, dialect: str) -> None:
    written(tmp_path, name, dialect)
    series, _ = read_series(tmp_path)
    volumes = [files for one in series for files in one.volumes]
    assert len(volumes) == N_VOLUMES + (dialect == "sbref")
    assert len({len(files) for files in volumes}) == 1


def test_dialects_can_be_joined(tmp_path: Path) -> None:
    images = written(tmp_path, "mosaic", "echoes,subfolder,rle")
    assert len(images) == 2 * N_VOLUMES
    assert images[0].file_meta.TransferSyntaxUID.is_compressed
    assert {echo_ms(image) for image in images} == set(ECHO_TIMES_MS)
