"""What is read of NIfTI, pairs, PAR/REC and runs in one file. The oracle is nibabel."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.errors import WireError
from realtime.sources.files.formats import parse
from realtime.sources.files.run_file import RunFile
from realtime.sources.files.volume_file import NotWholeError, VolumeFile
from realtime.sources.files.whole import HOLLOW_S

from .test_copied_files import AFFINE, N_VOLUMES, SHAPE, Watched, numbers, pair, voxels
from .test_dicom import enhanced, written

PAR_REC = Path(nibabel.__file__).parent / "tests" / "data"


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def run_bytes(n_volumes: int = N_VOLUMES, dtype: str = "int16") -> bytes:
    """A run in one file."""
    series = np.stack([voxels(number + 1) for number in range(n_volumes)], axis=-1).astype(dtype)
    image = nibabel.Nifti1Image(series, AFFINE)
    image.header.set_zooms((2.0, 2.0, 2.0, 1.5))
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()


def volumes(name: str, data: bytes, **options: Any) -> list[VolumeFile]:
    held = parse(name, data, **options)
    assert all(isinstance(each, VolumeFile) for each in held)
    return [each for each in held if isinstance(each, VolumeFile)]


@pytest.mark.parametrize("order", [(".hdr", ".img"), (".img", ".hdr")])
@pytest.mark.parametrize("gap_s", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_pair_is_read_whichever_comes_first(
    watched: Watched, order: tuple[str, str], gap_s: float, is_packed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pack, packed = (gzip.compress, ".gz") if is_packed else (bytes, "")
    watched.write(f"Dump-0001{order[0]}{packed}", pack(pair()[order[0]]))
    assert watched.after(gap_s) == []
    watched.write(f"Dump-0001{order[1]}{packed}", pack(pair()[order[1]]))
    (found,) = watched.after(1.0)
    assert isinstance(found.holds, VolumeFile)
    assert (found.holds.series_name, found.holds.number) == ("Dump-", 1)
    assert np.array_equal(found.holds.voxels, voxels())
    assert np.allclose(found.holds.affine, AFFINE)
    assert len(caplog.messages) == (gap_s > 10)  # the first file had been given up


def test_a_header_of_analyze_is_refused_in_words() -> None:
    header = nibabel.AnalyzeHeader()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    with pytest.raises(WireError, match="does not say where left and right are"):
        parse("a_1.img", bytes(2 * voxels().size), beside=lambda suffix, n_most: header.binaryblock)


@pytest.mark.parametrize("name", ["phantom_EPI_asc_CLEAR_2_1", "phantom_varscale"])
def test_par_rec_is_what_nibabel_reads(name: str) -> None:
    par, rec = (PAR_REC / f"{name}{suffix}" for suffix in (".PAR", ".REC"))
    found = volumes(f"{name}.REC", rec.read_bytes(), beside=lambda suffix, n_most: par.read_bytes())
    image = nibabel.as_closest_canonical(nibabel.load(par, strict_sort=True))
    expected = np.asarray(image.dataobj).astype(np.float32)
    assert [each.number for each in found] == [1, 2, 3]
    for nth, each in enumerate(found):
        assert np.array_equal(each.voxels, expected[..., nth])
        assert np.allclose(each.affine, image.affine)
        assert each.tr_s == 2.0


def test_of_par_rec_the_magnitude_of_the_first_echo_is_read() -> None:
    par = PAR_REC / "T1_3echo_mag_real_imag_phase.PAR"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = nibabel.parrec.PARRECHeader.from_fileobj(par.open(), permit_truncated=True, strict_sort=True)
    n_slices = len(header.image_defs)
    signal = np.repeat(np.arange(n_slices, dtype="<u2"), 80 * 80)  # each slice has the number of its line
    (found,) = volumes("T1_1.rec", signal.tobytes(), beside=lambda suffix, n_most: par.read_bytes())
    lines = header.image_defs
    chosen = (lines["image_type_mr"] == 0) & (lines["echo number"] == 1)
    expected = np.flatnonzero(chosen) * lines["rescale slope"][chosen] + lines["rescale intercept"][chosen]
    assert sorted(np.unique(found.voxels)) == pytest.approx(sorted(expected))
    assert "11 volumes" in found.remark


@pytest.mark.parametrize("cut", ["par", "rec"])
def test_cut_par_rec_is_incomplete(cut: str) -> None:
    par, rec = ((PAR_REC / f"phantom_varscale{suffix}").read_bytes() for suffix in (".PAR", ".REC"))
    cut_par, cut_rec = (par[: len(par) // 2], rec) if cut == "par" else (par, rec[:-1])
    with pytest.raises(NotWholeError):
        parse("a_1.rec", cut_rec, beside=lambda suffix, n_most: cut_par)


spots = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(spots=spots, kind=st.sampled_from([".par", ".hdr"]))
def test_voxels_with_a_damaged_description_are_volumes_or_refused_and_nothing_else(
    spots: list[tuple[int, int]], kind: str
) -> None:
    name, whole, signal = "a_1.img", pair()[".hdr"], pair()[".img"]
    if kind == ".par":
        par = PAR_REC / "phantom_varscale.PAR"
        name, whole, signal = "a_1.rec", par.read_bytes(), par.with_suffix(".REC").read_bytes()
    described = bytearray(whole)
    for place, value in spots:
        described[place % len(described)] = value
    with contextlib.suppress(WireError):
        found = volumes(name, signal, beside=lambda suffix, n_most: bytes(described))
        assert all(each.voxels.ndim == 3 for each in found)


@pytest.mark.parametrize("name", ["run1_bold.nii", "run1_bold.nii.gz", "run1_0001.nii", "rest"])
def test_a_run_in_one_file_is_played_in_order(watched: Watched, name: str) -> None:
    data = run_bytes()
    watched.write(name, gzip.compress(data) if name.endswith(".gz") else data)
    found = watched.after(0.5)
    assert numbers(found) == list(range(1, N_VOLUMES + 1))
    for each in found:
        assert isinstance(each.holds, VolumeFile)
        assert np.array_equal(each.holds.voxels, voxels(each.holds.number))
        assert (each.holds.series, each.holds.tr_s) == (name.split(".")[0].replace("_", ""), 1.5)


@pytest.mark.parametrize("name", ["run1_bold.nii", "run1_bold.nii.gz", "phantom_varscale.REC"])
def test_a_reader_that_stops_within_a_file_goes_on_with_the_next_volume(watched: Watched, name: str) -> None:
    """As when a run in one file is larger than what is read at once."""
    if name.endswith(".REC"):
        watched.write(name.replace(".REC", ".PAR"), (PAR_REC / name).with_suffix(".PAR").read_bytes())
        watched.write(name, (PAR_REC / name).read_bytes())
    else:
        watched.write(name, gzip.compress(run_bytes()) if name.endswith(".gz") else run_bytes())
    came = []
    for look in range(40):
        came += [found.holds.number for found in itertools.islice(watched.files.look(look / 10), 1)]
    assert came == list(range(1, (3 if name.endswith(".REC") else N_VOLUMES) + 1))


@pytest.mark.parametrize("is_allocated", [False, True])
def test_a_run_that_grows_in_one_file_is_read_volume_by_volume(watched: Watched, is_allocated: bool) -> None:
    data = run_bytes()
    volume_bytes = (len(data) - 352) // N_VOLUMES
    came: list[int] = []
    for n_bytes in range(352, len(data) + 1, volume_bytes // 4):
        rest = bytes(len(data) - n_bytes) if is_allocated else b""
        watched.write("bold.nii", data[:n_bytes] + rest)
        came += numbers(watched.after(0.5))
        n_whole = (n_bytes - 352) // volume_bytes
        assert n_whole - is_allocated <= len(came) <= n_whole
    watched.write("bold.nii", data)
    came += numbers(watched.after(0.5))
    assert came == list(range(1, N_VOLUMES + 1))


def test_a_run_that_is_written_without_a_pause_is_read_as_it_grows(watched: Watched) -> None:
    """Slice by slice, so that the file never stays as it is for long."""
    data = run_bytes()
    volume_bytes = (len(data) - 352) // N_VOLUMES
    came: list[int] = []
    for n_bytes in range(352, len(data) + 1, volume_bytes // 16):
        watched.write("bold.nii", data[:n_bytes])
        came += numbers(watched.after(0.05))
        n_whole = (n_bytes - 352) // volume_bytes
        assert n_whole - 1 <= len(came) <= n_whole
    came += numbers(watched.after(0.5))
    assert came == list(range(1, N_VOLUMES + 1))


def test_a_run_whose_header_counts_the_volumes_so_far_is_read_as_it_grows(watched: Watched) -> None:
    came: list[int] = []
    for n_volumes in range(2, N_VOLUMES + 1):
        watched.write("bold.nii", run_bytes(n_volumes))
        came += numbers(watched.after(0.5))
        assert came == list(range(1, n_volumes + 1))


@settings(deadline=None, max_examples=30)
@given(n_bytes=st.integers(352, len(run_bytes())), is_packed=st.booleans())
def test_of_a_run_that_was_cut_off_each_whole_volume_is_read(n_bytes: int, is_packed: bool) -> None:
    data = run_bytes()
    stream = io.BytesIO(gzip.compress(data, 1)[:-9] if is_packed else data[:n_bytes])
    came = []
    with contextlib.suppress(NotWholeError):
        for each in RunFile().volumes(stream, "bold.nii", is_quiet=False):
            came.append(each)  # noqa: PERF402  # those before the error too
    volume_bytes = (len(data) - 352) // N_VOLUMES
    assert is_packed or len(came) == (n_bytes - 352) // volume_bytes
    assert all(np.array_equal(each.voxels, voxels(each.number)) for each in came)


def test_a_run_that_stops_growing_is_told_and_another_in_its_place_is_played(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    data = run_bytes()
    watched.write("bold.nii", data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert numbers(watched.after(HOLLOW_S - 0.5)) == [1, 2]
    watched.after(12.0)
    (said,) = caplog.messages
    assert "expected 5 volumes" in said
    other = nibabel.Nifti1Image(np.stack([voxels(9), voxels(8)], axis=-1), AFFINE).to_bytes()
    watched.write("bold.nii", other)
    assert numbers(watched.after(0.5)) == [1, 2]


def test_a_run_larger_than_a_volume_may_be_is_read(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realtime.sources.files.opening.MAX_FILE_BYTES", 2**14)
    watched.write("bold.nii", run_bytes())
    assert len(watched.after(0.5)) == N_VOLUMES


@pytest.mark.parametrize("name", ["run_0007.nii", "run_0007.nii.gz", "run_0007.img.nii", "run_0007"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_gzip_and_nifti_are_told_by_content(name: str, is_packed: bool) -> None:
    data = nibabel.Nifti1Image(voxels(), AFFINE).to_bytes()
    (found,) = volumes(name, gzip.compress(data) if is_packed else data)
    assert found.number == 7
    assert np.array_equal(found.voxels, voxels())


def test_a_packed_dicom_file_is_read() -> None:
    (found,) = volumes("0001.dcm.gz", gzip.compress(written(enhanced(voxels(), 5))))
    assert found.number == 5


def turned(degrees: float) -> np.ndarray:
    """An affine turned about the x axis."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0, 0], [0, cosine, -sine, 5], [0, sine, cosine, 7], [0, 0, 0, 1]])
    return turn @ AFFINE


@pytest.mark.parametrize(
    ("sform", "sform_code", "qform_code", "is_told"),
    [
        (turned(10), 1, 1, False),
        (turned(30), 1, 1, True),
        (turned(30), 1, 0, False),
        (turned(30), 0, 1, False),
        (turned(30), 4, 2, True),
        (np.zeros((4, 4)), 1, 1, True),
        (np.full((4, 4), np.nan), 1, 1, True),
        (np.full((4, 4), np.nan), 0, 1, False),
    ],
)
def test_the_affine_is_that_whose_code_says_so_and_a_difference_is_told_once(
    watched: Watched,
    sform: np.ndarray,
    sform_code: int,
    qform_code: int,
    is_told: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    qform = turned(10)
    image = nibabel.Nifti1Image(voxels(), qform)
    image.set_qform(qform, qform_code)
    data = bytearray(image.to_bytes())
    header = np.frombuffer(data, image.header.template_dtype, count=1)
    header["sform_code"] = sform_code
    for row, field in enumerate(("srow_x", "srow_y", "srow_z")):
        header[field] = sform[row]
    for number in (1, 2):
        watched.write(f"run_{number:04d}.nii", bytes(data))
    found = watched.after(0.5)
    is_sform_used = sform_code > 0 and np.isfinite(sform).all() and sform.any()
    for each in found:
        assert isinstance(each.holds, VolumeFile)
        assert np.allclose(each.holds.affine, sform if is_sform_used else qform, atol=1e-4)
    assert len(found) == 2
    assert len(caplog.messages) == is_told
    assert all("sform" in message and "qform" in message for message in caplog.messages)


def test_what_is_wrong_with_all_files_is_told_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    image = nibabel.Nifti1Image(voxels(), AFFINE)
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    for number in range(1, 6):
        watched.write(f"run_{number:04d}.nii", image.to_bytes())
    assert watched.after(0.5) == []
    (said,) = caplog.messages
    assert "neither sform nor qform" in said
