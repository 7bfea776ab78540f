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
from realtime.sources.files.file_names import FileNames
from realtime.sources.files.formats import parse
from realtime.sources.files.run_file import RunFile
from realtime.sources.files.volume_file import NotWholeError, VolumeFile
from realtime.sources.files.watch import HOLLOW_S

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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["run1_0001.nii", "run1_0002.nii"], [("run1_", 1), ("run1_", 2)]),
        (["vol_0000.nii"], [("vol_", 0)]),
        (["img-00001-00012.nii.gz"], [("img-00001-", 12)]),
        (["001_000007_000012.nii"], [("001_000007_", 12)]),
        (["sub-01_ses-02_run-3_bold_00012.nii"], [("sub-01_ses-02_run-3_bold_", 12)]),
        (["bold_00012_run-3.nii", "bold_00012_run3.nii"], [("bold__run-3", 12), ("bold__run3", 12)]),
        (["vol_0001_b12.nii", "vol_0002_b12.nii"], [("vol__b12", 2)]),
        (["scan0001_12.nii", "scan0001_13.nii"], [("scan0001_", 13)]),
        (["vol_0001 (1).nii", "vol_0001(2).nii", "vol_0001 - Copy.nii"], [("vol_", 1)] * 3),
        (["run1.nii", "f0012.NII"], [("run", 1), ("f", 12)]),
        (["run1.0001.nii"], [("run1.", 1)]),
        (["bold_123456.nii"], [("bold_", 123456)]),
        (["s1/vol_01.nii", "s2/vol_01.nii"], [("s1/vol_", 1), ("s2/vol_", 1)]),
    ],
)
def test_the_volumes_number_is_found_in_a_name(names: list[str], expected: list[tuple[str, int]]) -> None:
    known = FileNames()
    found = [known.place(name) for name in names]
    assert [(each.series_name, each.number) for each in found if each] == expected


@pytest.mark.parametrize(
    ("name", "echo", "echo_time_ms", "part"),
    [
        ("vol_0003_e2.nii", 2, None, "magnitude"),
        ("vol_0003_echo-1.nii.gz", 1, None, "magnitude"),
        ("vol0003e2.nii", 2, None, "magnitude"),
        ("e2_vol_0003.nii", 2, None, "magnitude"),
        ("vol_0003_TE37.8ms.nii", None, 37.8, "magnitude"),
        ("vol_te35_0003.nii", None, 35, "magnitude"),
        ("vol_TE2_0003.nii", 2, None, "magnitude"),
        ("vol_0003_e3_20240131101112.nii", 3, None, "magnitude"),
        ("vol_0003_ph.nii", None, None, "phase"),
        ("sub-01_echo-2_part-phase_bold_0003.nii", 2, None, "phase"),
        ("E1234_task_0003.nii", None, None, "magnitude"),
    ],
)
def test_echo_and_part_are_found_in_a_name(
    name: str, echo: int | None, echo_time_ms: float | None, part: str
) -> None:
    found = FileNames().place(name)
    assert found is not None
    said = found.acquired
    assert (found.number, said.echo, said.echo_time_ms, said.part) == (3, echo, echo_time_ms, part)


@pytest.mark.parametrize(
    "form", ["vol_{0:04d}_e{1}.nii", "e{1}_vol_{0:04d}.nii", "vol_{0:04d}_e{1}_10111{0}.nii"]
)
def test_the_echoes_of_a_volume_are_of_one_series(form: str) -> None:
    names = FileNames()
    found = [names.place(form.format(number, echo)) for number in (1, 2, 3) for echo in (1, 2)]
    assert len({each.series for each in found if each}) == 1
    assert len({(each.number, each.acquired.echo) for each in found if each}) == len(found)


STAMPS = ("2024013110111{}", "20240131T10111{}.5", "10111{}", "170000000{}", "2024-01-31_10-11-1{}")


@pytest.mark.parametrize(
    ("stamp", "form"),
    [
        *((stamp, form) for stamp in STAMPS for form in ("vol_{:04d}_{}", "{1}_vol_{0:04d}")),
        ("12.{}", "vol_{:04d}_{}"),
    ],
)
def test_time_stamps_that_differ_from_volume_to_volume_are_no_series(stamp: str, form: str) -> None:
    known = FileNames()
    first = [known.place(form.format(number, stamp.format(number)) + ".nii") for number in range(4)]
    second = [known.place(form.format(number, stamp.format(number + 5)) + ".nii") for number in range(4)]
    assert [each.number for each in first if each] == [each.number for each in second if each] == [0, 1, 2, 3]
    assert len({each.series for each in first if each}) == len({each.series for each in second if each}) == 1
    assert {each.series for each in first if each}.isdisjoint(each.series for each in second if each)


def test_a_last_digit_is_an_echo_if_the_number_before_it_runs_on(watched: Watched) -> None:
    for number in (1, 2, 3):
        for echo in (1, 2):
            data = nibabel.Nifti1Image(voxels(number), AFFINE).to_bytes()
            watched.write(f"vol_{number:04d}_{echo}.nii", data)
            if (number, echo) < (2, 1):
                assert watched.after(0.3) == []  # the volume's number may be either
    came = [
        (found.holds.series_name, found.holds.acquired.echo, found.holds.number)
        for found in watched.after(1.0)
    ]
    assert sorted(came) == [("vol__", echo, number) for echo in (1, 2) for number in (1, 2, 3)]


@pytest.mark.parametrize("n_volumes", [2, 7])
def test_a_last_digit_is_the_volumes_if_it_runs_on(watched: Watched, n_volumes: int) -> None:
    came = []
    for number in range(1, n_volumes + 1):
        watched.write(f"run_0001_{number}.nii", nibabel.Nifti1Image(voxels(number), AFFINE).to_bytes())
        came += watched.after(0.5)
    came += watched.after(12.0)
    assert sorted(numbers(came)) == list(range(1, n_volumes + 1))


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


@settings(deadline=None, max_examples=300)
@given(names=st.lists(st.text("0123456789_-. eE(ph", max_size=24), max_size=6))
def test_any_name_is_a_number_or_refused_and_always_says_the_same(names: list[str]) -> None:
    known = FileNames()
    for name in names:
        with contextlib.suppress(WireError):
            first = known.place(name, is_last_chance=True)
            assert first is not None
            assert first.number >= 0
            assert known.place(name) == first


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
