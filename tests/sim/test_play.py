"""Anyone's recordings are played as if they were acquired now."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from realtime import wire
from sim.__main__ import main
from sim.dicom_images import DESCRIPTION, classic, encode, enhanced, mosaics
from sim.errors import SimError
from sim.folder_play import Folder, FolderPlay, Series, read_series
from sim.played import PlayedSeries

from .runtime import ContractRuntime
from .small_scan import DICOM, N_VOLUMES, OBLIQUE, SHAPE, SmallScan, VirtualTime, deliver, dicom_node
from .test_scanner import RouterRuntime

VOXELS = np.moveaxis(SmallScan().voxels, 0, -1)
"""[x, y, z, time]"""


def write_4d(
    path: Path, *, tr: float = 1.5, unit: str = "sec", voxels: np.ndarray = VOXELS, **kind: Any
) -> Path:
    image = kind.get("image", nib.Nifti1Image)(voxels, kind.get("affine", OBLIQUE))
    image.header.set_xyzt_units("mm", unit)
    image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    nib.save(image, path)
    return path


def volumes_of(series: PlayedSeries) -> np.ndarray:
    n_volumes = series.start.n_volumes
    return np.stack([wire.volume_array(series.start, series.volume(k)) for k in range(n_volumes)], axis=-1)


# 4D files


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz", "run.img"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", ">i2"])
def test_volumes_of_a_4d_file_are_sent_as_they_are(tmp_path: Path, name: str, dtype: str) -> None:
    kind = nib.Nifti1Pair if name.endswith("img") else nib.Nifti1Image
    path = write_4d(tmp_path / name, voxels=(VOXELS % 200).astype(dtype), image=kind)
    series = PlayedSeries(path, subject=3)
    start = series.start
    assert (start.run_id, start.subject, start.n_volumes, start.tr_s) == ("run", 3, N_VOLUMES, 1.5)
    assert np.array_equal(volumes_of(series), VOXELS % 200)
    assert np.allclose(start.affine, OBLIQUE, atol=1e-5)


def test_axes_that_run_otherwise_are_turned_and_the_place_stays(tmp_path: Path) -> None:
    """Oracle: nibabel's own reorientation."""
    swapped = OBLIQUE @ np.array([[0, 0, 1, 0], [-1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 0, 1]])
    path = write_4d(tmp_path / "run.nii", affine=swapped)
    series = PlayedSeries(path, subject=1)
    expected: Any = nib.as_closest_canonical(nib.load(path))
    assert np.array_equal(volumes_of(series), np.asanyarray(expected.dataobj))
    assert np.allclose(series.start.affine, expected.affine)


@pytest.mark.parametrize(
    ("tr", "unit", "given", "expected"),
    [
        (1.5, "sec", None, 1.5),
        (1500, "msec", None, 1.5),
        (1500, "unknown", None, 1.5),
        (2, "unknown", None, 2.0),
        (0, "sec", 0.8, 0.8),
        (2, "sec", 0.8, 0.8),
    ],
)
def test_the_tr_is_the_headers_or_what_is_given(
    tmp_path: Path, tr: float, unit: str, given: float | None, expected: float
) -> None:
    path = write_4d(tmp_path / "run.nii", tr=tr, unit=unit)
    assert PlayedSeries(path, subject=1, tr_s=given).start.tr_s == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write_4d(path, tr=0), "expected a TR in the header, got 0.0 sec; give --tr"),
        (lambda path: path.write_bytes(b"not a volume"), "expected a series that nibabel reads"),
        (lambda path: nib.save(nib.Nifti1Image(VOXELS[..., 0], OBLIQUE), path), "expected four dimensions"),
        (
            lambda path: write_4d(path, voxels=VOXELS.astype(np.complex64)),
            "integers or floats, got complex64",
        ),
        (lambda path: None, "expected a series that nibabel reads"),
    ],
)
def test_what_cannot_be_played_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "run.nii")
    assert main(["play", str(tmp_path / "run.nii")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_4d_file_is_played_to_a_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_4d(tmp_path / "my run.nii.gz")
    runtime = ContractRuntime()
    router = RouterRuntime(runtime)
    with router.serving():
        address = f"tcp://127.0.0.1:{router.port}"
        assert main(["play", str(path), "--connect", address, "--speed", "100"]) == 0
    (start,) = runtime.starts
    assert start.run_id == "my-run"
    assert runtime.ends == ["complete"]
    for index in range(N_VOLUMES):
        assert np.array_equal(wire.volume_array(start, runtime.journal[index]), VOXELS[..., index])
    assert "6 volumes (6, 7, 5) of int16, TR 1.5 s" in capsys.readouterr().err


def test_a_4d_file_is_played_into_a_watched_folder(tmp_path: Path) -> None:
    path = write_4d(tmp_path / "run.nii")
    address = f"folder:{tmp_path / 'watched'}?format=mosaic"
    assert main(["play", str(path), "--connect", address, "--speed", "1000"]) == 0
    assert len(list((tmp_path / "watched").iterdir())) == N_VOLUMES


# Folders


def numbers(series: Series) -> list[list[str]]:
    return [[path.name for path in files] for files in series.volumes]


@pytest.mark.parametrize("name", DICOM)
def test_files_of_a_volume_come_together_by_any_dialect(tmp_path: Path, name: str) -> None:
    scan = SmallScan()
    deliver(f"folder:{tmp_path}?format={name}", scan)
    series, others = read_series(tmp_path)
    assert others == []
    assert {one.tr_s for one in series} == {1.5}
    volumes = [files for one in series for files in one.volumes]
    assert len(volumes) == N_VOLUMES
    for index, files in enumerate(volumes):
        headers = [pydicom.dcmread(tmp_path / path) for path in files]
        assert {header.AcquisitionNumber for header in headers} == {index + 1}
        assert len(files) == (SHAPE[2] if name in ("classic", "split") else 1)


def changed(folder: Path, change: Callable[[pydicom.Dataset, int, int], None]) -> None:
    """Classic slices in ``folder``, each changed by volume and slice."""
    scan = SmallScan()
    for index in range(N_VOLUMES):
        for number, (name, image) in enumerate(classic(scan.start, index, scan.voxels[index])):
            change(image, index, number)
            (folder / name).write_bytes(encode(image))


def slice_major(image: pydicom.Dataset, index: int, number: int) -> None:
    """Philips: all moments of a slice, then the next slice; no other count."""
    image.InstanceNumber = number * N_VOLUMES + index + 1
    image.AcquisitionNumber = 1
    del image.TemporalPositionIdentifier


def prospective(image: pydicom.Dataset, index: int, number: int) -> None:
    """The slices follow the head, so no position comes twice."""
    x, y, z = image.ImagePositionPatient
    image.ImagePositionPatient = [x, y, float(z) + 0.31 * index]


def new_uids(image: pydicom.Dataset, index: int, number: int) -> None:
    """Siemens XA: the series' UID changes within a run."""
    image.SeriesInstanceUID = f"1.2.3.{index // 3}"


@pytest.mark.parametrize("change", [slice_major, prospective, new_uids])
def test_slices_of_a_volume_come_together_however_they_are_numbered(
    tmp_path: Path, change: Callable[[pydicom.Dataset, int, int], None]
) -> None:
    changed(tmp_path, change)
    (series,), _ = read_series(tmp_path)
    found = [[int(name.split("_")[2][:6]) for name in names] for names in numbers(series)]
    expected = [[k * SHAPE[2] + n + 1 for n in range(SHAPE[2])] for k in range(N_VOLUMES)]
    assert [sorted(volume) for volume in found] == expected


@pytest.mark.parametrize("kind", ["echoes", "phase"])
def test_echoes_and_phase_images_come_with_their_volume(tmp_path: Path, kind: str) -> None:
    scan = SmallScan()
    for index in range(N_VOLUMES):
        for second in range(2):
            ((_, image),) = mosaics(scan.start, index, scan.voxels[index])
            image.InstanceNumber = 2 * index + second + 1
            if kind == "echoes":
                image.EchoTime = 20.0 + 17.8 * second
            elif second:
                image.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND", "MOSAIC"]
            (tmp_path / f"{image.InstanceNumber:04d}.IMA").write_bytes(encode(image))
    (series,), _ = read_series(tmp_path)
    assert numbers(series) == [[f"{2 * k + 1:04d}.IMA", f"{2 * k + 2:04d}.IMA"] for k in range(N_VOLUMES)]


def test_mosaics_that_follow_the_head_are_volumes_of_their_own(tmp_path: Path) -> None:
    scan = SmallScan()
    for index in range(N_VOLUMES):
        ((name, image),) = mosaics(scan.start, index, scan.voxels[index])
        prospective(image, index, 0)
        (tmp_path / name).write_bytes(encode(image))
    (series,), _ = read_series(tmp_path)
    assert len(series.volumes) == N_VOLUMES


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["vol_9.nii", "vol_10.nii"], [["vol_9.nii"], ["vol_10.nii"]]),
        (["a_1.hdr", "a_1.img", "a_2.hdr", "a_2.img"], [["a_1.hdr", "a_1.img"], ["a_2.hdr", "a_2.img"]]),
        (["D-1.par", "D-1.rec", "D-2.par", "D-2.rec"], [["D-1.par", "D-1.rec"], ["D-2.par", "D-2.rec"]]),
        (
            ["v_1_e1.nii.gz", "v_1_e2.nii.gz", "v_2_e1.nii.gz", "v_2_e2.nii.gz"],
            [["v_1_e1.nii.gz", "v_1_e2.nii.gz"], ["v_2_e1.nii.gz", "v_2_e2.nii.gz"]],
        ),
    ],
)
def test_other_files_follow_by_their_names(
    tmp_path: Path, names: list[str], expected: list[list[str]]
) -> None:
    for name in [*names, "notes.txt"]:
        (tmp_path / name).write_bytes(b"x")
    (series,), others = read_series(tmp_path, tr_s=2.0)
    assert numbers(series) == expected
    assert [path.name for path in others] == ["notes.txt"]


def session(folder: Path) -> None:
    """A small session: a reference of one volume in a folder of its own, then two runs."""
    for run_id, name, make in (("ses-1_run-01", "sbref", mosaics), ("ses-1_run-02", "bold", enhanced)):
        scan = SmallScan(run_id=run_id)
        (folder / name).mkdir(parents=True)
        for index in range(1 if name == "sbref" else N_VOLUMES):
            for file, image in make(scan.start, index, scan.voxels[index]):
                image.SeriesDescription = f"{DESCRIPTION}_{name}"
                (folder / name / file).write_bytes(encode(image))


def test_a_session_is_played_series_by_series_at_its_tr(tmp_path: Path) -> None:
    source, target = tmp_path / "export", tmp_path / "watched"
    session(source)
    series, _ = read_series(source)
    assert [one.name for one in series] == ["ep2d_bold_sbref", "ep2d_bold_bold"]
    time = VirtualTime()
    seen: list[tuple[float, int]] = []

    def sleep(seconds: float) -> None:
        seen.append((time.now_s, sum(path.is_file() for path in target.rglob("*"))))
        time.sleep(seconds)

    play = FolderPlay(series, Folder(source, series, target), speed=2.0, clock=time.clock, sleep=sleep)
    assert play.run()
    assert play.n_volumes == N_VOLUMES + 1
    assert all(n_files == int(now_s / 0.75 + 1e-9) for now_s, n_files in seen)
    copied = {path.relative_to(target): path.read_bytes() for path in target.rglob("*.dcm")}
    assert copied == {path.relative_to(source): path.read_bytes() for path in source.rglob("*.dcm")}


def test_only_the_chosen_series_is_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session(tmp_path / "export")
    (tmp_path / "export" / "readme.txt").write_text("")
    options = ["--connect", f"folder:{tmp_path / 'watched'}", "--speed", "1000", "--series", "SBREF"]
    assert main(["play", str(tmp_path / "export"), *options]) == 0
    assert len(list((tmp_path / "watched").rglob("*.dcm"))) == 1
    err = capsys.readouterr().err
    assert "ep2d_bold_sbref: 1 volumes in 1 files, TR 1.5 s" in err
    assert "passed over 1 files that are no images, such as readme.txt" in err
    assert main(["play", str(tmp_path / "export"), *options]) == 2
    assert "expected no file that is to be played; choose another folder" in capsys.readouterr().err


def test_a_session_is_stored_in_a_dicom_node(tmp_path: Path) -> None:
    session(tmp_path)
    (tmp_path / "readme.txt").write_text("")
    with dicom_node() as (port, stored):
        address = f"dicom://127.0.0.1:{port}?aet=NODE"
        assert main(["play", str(tmp_path), "--connect", address, "--speed", "1000"]) == 0
    assert [image.SeriesDescription for image in stored] == [
        "ep2d_bold_sbref",
        *["ep2d_bold_bold"] * N_VOLUMES,
    ]
    assert [image.InstanceNumber for image in stored[1:]] == list(range(1, N_VOLUMES + 1))


def test_only_dicom_files_go_to_a_dicom_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vol_1.nii").write_bytes(b"x" * 400)
    assert main(["play", str(tmp_path), "--connect", "dicom://127.0.0.1:1", "--tr", "1"]) == 2
    assert "vol_1.nii: expected a DICOM file for a DICOM node" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("connect", "options", "message"),
    [
        (
            "tcp://127.0.0.1:5555",
            [],
            "expected --connect folder:/path or dicom://HOST:PORT for a folder of files",
        ),
        (
            "folder:{}/out?format=mosaic",
            [],
            "expected --connect folder:/path or dicom://HOST:PORT for a folder of files",
        ),
        ("folder:{}/export/out", [], "expected a folder outside of"),
        ("folder:{}/out", ["--series", "rest"], "expected a series with 'rest' in its name, found ep2d"),
        ("folder:{}/out", ["--speed", "0"], "speed: expected a number above 0"),
        ("folder:{}/out", ["--tr", "-1"], "expected the TR in the headers of ep2d_bold"),
    ],
)
def test_folders_that_cannot_be_played_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], connect: str, options: list[str], message: str
) -> None:
    deliver(f"folder:{tmp_path / 'export'}?format=mosaic")
    command = ["play", str(tmp_path / "export"), "--connect", connect.format(tmp_path), *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_files_without_a_tr_need_one(tmp_path: Path) -> None:
    (tmp_path / "vol_1.nii").write_bytes(b"x")
    with pytest.raises(SimError, match="expected the TR in the headers of vol_#; give --tr SECONDS"):
        read_series(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(SimError, match="expected DICOM, NIfTI or PAR/REC files, found none"):
        read_series(tmp_path)
