"""Files in a folder: real files with any content, in virtual time."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.errors import ServeError, WireError
from realtime.sources.files import dicom, formats
from realtime.sources.files.formats import parse
from realtime.sources.files.volume_file import NotWholeError, VolumeFile
from realtime.sources.files.watch import Files, Found

from .test_dicom import mosaic, written

PATIENCE_S = 5.0
AFFINE = np.array([[-2.0, 0, 0, 9], [0, 0, 2, -9], [0, -3, 0, 20], [0, 0, 0, 1]])
"""Axes to the left, down and to the front, unlike the runtime's RAS+."""
VOXELS = np.random.default_rng(0).integers(0, 999, (4, 5, 6)).astype(np.int16)


def nifti_bytes(
    voxels: np.ndarray = VOXELS, kind: type[nibabel.Nifti1Image] = nibabel.Nifti1Image, **header: object
) -> bytes:
    image = kind(voxels, AFFINE, dtype=voxels.dtype)
    data = bytearray(image.to_bytes())
    fields = np.frombuffer(data, dtype=image.header.template_dtype, count=1)
    for name, value in header.items():
        fields[name][0] = value
    return bytes(data)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, PATIENCE_S)


def look(files: Files, *times_s: float) -> list[Found]:
    return [found for now_s in times_s for found in files.look(now_s)]


def names(found: list[Found]) -> list[str]:
    return [each.name for each in found]


def test_a_file_is_reported_once_after_two_equal_polls(files: Files, tmp_path: Path) -> None:
    whole = nifti_bytes()
    (tmp_path / "run_0001.nii").write_bytes(whole)
    assert look(files, 0.0) == []
    assert names(look(files, 1.0, 2.0)) == ["run_0001.nii"]
    (tmp_path / "run_0002.nii").write_bytes(whole[:-9])
    assert look(files, 3.0, 4.0) == []
    (tmp_path / "run_0002.nii").write_bytes(whole)
    assert look(files, 5.0) == []  # it has changed since
    (found,) = look(files, 6.0, 7.0)
    assert (found.name, found.holds.number, found.whole_s) == ("run_0002.nii", 2, 5.0)


def test_a_file_that_stays_truncated_is_given_up_with_a_warning(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run_0001.nii").write_bytes(nifti_bytes()[:-9])
    (tmp_path / "run_0002.nii.gz").write_bytes(gzip.compress(nifti_bytes())[:-9])
    (tmp_path / "0003.dcm").write_bytes(b"")
    assert look(files, 0.0, 1.0, PATIENCE_S - 0.1) == []
    assert caplog.messages == []
    assert look(files, PATIENCE_S + 1, PATIENCE_S + 2) == []
    assert len(caplog.messages) == 3
    assert all("its volume is missing" in message for message in caplog.messages)


def test_only_regular_files_are_opened(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path.parent / "outside_0001.nii"
    outside.write_bytes(nifti_bytes())
    (tmp_path / "link_0001.nii").symlink_to(outside)
    (tmp_path / "folder_0001.nii").mkdir()
    (tmp_path / ".hidden_0001.nii").write_bytes(nifti_bytes())
    os.mkfifo(tmp_path / "pipe_0001.nii")
    with caplog.at_level(logging.INFO):
        assert look(files, 0.0, 1.0, 2.0) == []
    (said,) = caplog.messages
    assert said.startswith("'link_0001.nii' and others like it are ignored: it is a link")


def test_foreign_files_are_logged_once_per_suffix(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("notes.txt", "more.txt", "table.tsv"):
        (tmp_path / name).write_text("nothing")
    (tmp_path / "unnumbered.nii").write_bytes(nifti_bytes())
    with caplog.at_level(logging.INFO):
        assert look(files, 0.0, 1.0, 2.0, 9.0) == []
    assert len(caplog.messages) == 3
    assert sum("none of the formats" in message for message in caplog.messages) == 2


def test_files_that_differ_in_numbers_and_names_only_are_told_once(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 30):
        affine = AFFINE * [[1000 + number], [1], [1], [1]]
        image = nibabel.Nifti1Image(VOXELS, affine)
        (tmp_path / f"run_{number:04d}.nii").write_bytes(image.to_bytes())
        (tmp_path / f"IM{number:06d}").write_bytes(b"nothing" * 1_000)
    with caplog.at_level(logging.INFO):
        assert look(files, 0.0, 1.0, 2.0) == []
    assert sorted("expected voxels with sides" in message for message in caplog.messages) == [False, True]


def test_the_log_of_a_folder_of_many_kinds_of_files_is_bounded(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.sources.files.said_once.MOST_SAID", 5)
    for kind in "abcdefghij":
        (tmp_path / f"notes.{kind}").write_bytes(b"nothing" * 1_000)
    with caplog.at_level(logging.INFO):
        assert look(files, 0.0, 1.0, 2.0) == []
    assert len(caplog.messages) == 6
    assert "not told until the next start" in caplog.messages[-1]


def test_an_unavailable_folder_is_polled_again(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = tmp_path.parent / "away"
    tmp_path.rename(away)
    assert look(files, 0.0, 0.5) == []
    assert len(caplog.messages) == 1
    away.rename(tmp_path)
    (tmp_path / "run_0001.nii").write_bytes(nifti_bytes())
    assert len(look(files, 1.0, 2.0)) == 1


def test_an_empty_file_without_a_suffix_is_not_given_up(files: Files, tmp_path: Path) -> None:
    """As on a network share, where a file that another machine writes is empty at first."""
    image = written(mosaic())
    path = tmp_path / "MR.1.3.12.2.1107"
    for n_bytes, now_s in ((0, 0.0), (131, 2.0), (len(image) - 1, 4.0)):
        path.write_bytes(image[:n_bytes])
        os.utime(path, (now_s, now_s))
        assert look(files, now_s, now_s + 1) == []
    path.write_bytes(image)
    assert names(look(files, 6.0, 7.0, 8.0)) == [path.name]


def test_an_overwritten_file_is_reported_again(tmp_path: Path) -> None:
    path = tmp_path / "run_0001.nii"
    path.write_bytes(nifti_bytes())
    os.utime(path, (0, 0))
    files = Files(tmp_path, PATIENCE_S)
    files.pass_over_those_before()
    assert look(files, 0.0, 1.0) == []
    for now_s in (2.0, 4.0):
        path.write_bytes(nifti_bytes())
        os.utime(path, (now_s, now_s))
        (found,) = look(files, now_s, now_s + 1, now_s + 1.5)
        assert (found.name, found.was_there_before) == (path.name, False)


def test_a_share_of_many_finished_files_is_checked_in_each_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.sources.files.watch.LOOKED_AT_AGAIN", 4)
    files = Files(tmp_path, PATIENCE_S)
    paths = [tmp_path / f"run_{number:04d}.nii" for number in range(20)]
    for path in paths:
        path.write_bytes(nifti_bytes())
    assert len(look(files, 0.0, 1.0)) == len(paths)
    for path in paths:
        os.utime(path, (9, 9))
    seen = [names(look(files, 2.0 + nth / 10)) for nth in range(14)]
    assert all(len(each) < len(paths) for each in seen)
    assert sorted(name for each in seen for name in each) == [path.name for path in paths]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="expected a folder to watch"):
        Files(tmp_path / "none", PATIENCE_S)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_volume_becomes_ras(kind: type[nibabel.Nifti1Image], dtype: str, suffix: str) -> None:
    data = nifti_bytes((VOXELS % 200).astype(dtype), kind)
    (volume,) = parse(f"run-2_bold_0007{suffix}", gzip.compress(data) if suffix == ".nii.gz" else data)
    assert isinstance(volume, VolumeFile)
    assert (volume.number, volume.series, volume.series_name) == (7, "run2bold", "run-2_bold_")
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(VOXELS % 200, AFFINE))
    assert np.allclose(volume.affine, expected.affine)
    assert volume.voxels.dtype == np.dtype("<f4")
    assert np.array_equal(volume.voxels, np.asarray(expected.dataobj))


def test_a_scale_is_applied_and_a_fourth_axis_of_size_1_is_dropped() -> None:
    data = nifti_bytes(VOXELS[..., None], scl_slope=0.5, scl_inter=3)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(VOXELS * 0.5 + 3, AFFINE)).get_fdata()
    (volume,) = parse("1.nii", data)
    assert np.array_equal(volume.voxels, expected.astype(np.float32))


@pytest.mark.parametrize(
    "data",
    [
        nifti_bytes(VOXELS.astype(np.complex64)),
        nifti_bytes(np.stack([VOXELS[:1, :1]] * 2, axis=-1)[..., None] * np.ones(2, np.int16)),
        nifti_bytes(sform_code=0, qform_code=0, pixdim=[0] * 8),
        nifti_bytes(dim=[3, 1000, 1000, 1000, 1, 1, 1, 1]),
        nifti_bytes(vox_offset=8),
    ],
)
def test_a_nifti_file_that_is_not_a_volume_is_refused(data: bytes) -> None:
    with pytest.raises(WireError) as raised:
        parse("run_1.nii", data)
    assert not isinstance(raised.value, NotWholeError)


@pytest.mark.parametrize(("unit", "in_mm"), [(0, 1.0), (1, 1e3), (2, 1.0), (3, 1e-3), (7, 1.0)])
def test_an_affine_is_read_in_the_headers_unit_of_space(unit: int, in_mm: float) -> None:
    affine = np.vstack([AFFINE[:3] / in_mm, AFFINE[3:]])
    data = bytearray(nibabel.Nifti1Image(VOXELS, affine).to_bytes())
    data[123] = unit + 8  # seconds
    (volume,) = parse("run_0001.nii", bytes(data))
    (expected,) = parse("run_0001.nii", nifti_bytes())
    assert isinstance(volume, VolumeFile)
    assert isinstance(expected, VolumeFile)
    assert np.allclose(volume.affine, expected.affine, rtol=1e-5)


@pytest.mark.parametrize("times", [0.01, 1e3])
def test_voxels_of_a_size_that_no_scanner_has_are_refused_in_words(times: float) -> None:
    affine = np.vstack([AFFINE[:3] * times, AFFINE[3:]])
    with pytest.raises(WireError, match=r"sides of 0.1 to 30 mm, got .* unit in the header is"):
        parse("run_0001.nii", nibabel.Nifti1Image(VOXELS, affine).to_bytes())


def test_a_gzip_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(WireError, match="expected at most 1048576 bytes"):
        parse("run_1.nii.gz", gzip.compress(bytes(2**23)))


changes = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=12)


def damaged(data: bytes, spots: list[tuple[int, int]], n_cut: int, near: int) -> bytes:
    """Change some bytes among the first ``near`` and truncate the data."""
    changed = bytearray(data)
    for place, value in spots:
        changed[place % min(near, len(data))] = value
    return bytes(changed[: len(changed) - n_cut])


@settings(deadline=None, max_examples=300)
@given(spots=changes, n_cut=st.sampled_from([0, 0, 0, 1, 100, 400]))
def test_a_damaged_nifti_file_is_a_volume_or_refused_and_nothing_else(
    spots: list[tuple[int, int]], n_cut: int
) -> None:
    with contextlib.suppress(WireError):
        for volume in parse("run_1.nii", damaged(nifti_bytes(), spots, n_cut, 352)):
            assert volume.voxels.ndim == 3


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=1_000), name=st.text(max_size=30))
def test_any_bytes_under_any_name_are_refused(data: bytes, name: str) -> None:
    for each in (name, f"{name}.dcm", f"{name}1.nii", f"{name}1.nii.gz"):
        for text in (data, bytes(128) + b"DICM" + data, bytes(128) + b"DICM\2\0\0\0UL\4\0" + data):
            with contextlib.suppress(WireError):
                assert not parse(each, text)


def test_a_dicom_header_alone_is_incomplete() -> None:
    with pytest.raises(NotWholeError):
        dicom.read(bytes(128) + b"DICM")
