"""Which volume a file is, as names say it that come one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.errors import WireError
from realtime.sources.files.file_names import FileNames, Numbered
from realtime.sources.files.watch import Found

from .test_copied_files import AFFINE, Watched, numbers, voxels


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def placed(names: Sequence[str], known: FileNames | None = None) -> list[Numbered]:
    """What names say once all of them have been seen, and no others come."""
    known = known or FileNames()
    for name in names:
        known.see(name, 0.0)
    found = [known.place(name, is_last_chance=True) for name in names]
    assert all(found)
    return [each for each in found if each]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["run1_0001.nii", "run1_0002.nii"], [("run1_", 1), ("run1_", 2)]),
        (["vol_0000.nii"], [("vol_", 0)]),
        (["img-00001-00012.nii.gz"], [("img-00001-", 12)]),
        (["001_000007_000012.nii"], [("001_000007_", 12)]),
        (["sub-01_ses-02_run-3_bold_00012.nii"], [("sub-01_ses-02_run-3_bold_", 12)]),
        (["bold_00012_run-3.nii", "bold_00012_run3.nii"], [("bold__run-3", 12), ("bold__run3", 12)]),
        (["vol_0001_b12.nii", "vol_0002_b12.nii"], [("vol__b12", 1), ("vol__b12", 2)]),
        (["scan0001_12.nii", "scan0001_13.nii"], [("scan0001_", 12), ("scan0001_", 13)]),
        (["vol_0001 (1).nii", "vol_0001(2).nii", "vol_0001 - Copy.nii"], [("vol_", 1)] * 3),
        (["run1.nii", "f0012.NII"], [("run", 1), ("f", 12)]),
        (["run1.0001.nii"], [("run1.", 1)]),
        (["bold_123456.nii"], [("bold_123456", 1)]),
        (["s1/vol_01.nii", "s2/vol_01.nii"], [("s1/vol_", 1), ("s2/vol_", 1)]),
    ],
)
def test_the_volumes_number_is_found_in_a_name(names: list[str], expected: list[tuple[str, int]]) -> None:
    assert [(each.series_name, each.number) for each in placed(names)] == expected


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
    (found,) = placed([name])
    said = found.acquired
    assert (found.number, said.echo, said.echo_time_ms, said.part) == (3, echo, echo_time_ms, part)


@pytest.mark.parametrize(
    "form", ["vol_{0:04d}_e{1}.nii", "e{1}_vol_{0:04d}.nii", "vol_{0:04d}_e{1}_10111{0}.nii"]
)
def test_the_echoes_of_a_volume_are_of_one_series(form: str) -> None:
    found = placed([form.format(number, echo) for number in (1, 2, 3) for echo in (1, 2)])
    assert len({each.series for each in found}) == 1
    assert len({(each.number, each.acquired.echo) for each in found}) == len(found)


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
    first = placed([form.format(number, stamp.format(number)) + ".nii" for number in range(4)], known)
    second = placed([form.format(number, stamp.format(number + 5)) + ".nii" for number in range(4)], known)
    assert [each.number for each in first] == [each.number for each in second] == [0, 1, 2, 3]
    assert len({each.series for each in first}) == len({each.series for each in second}) == 1
    assert {each.series for each in first}.isdisjoint(each.series for each in second)


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


N_FILES = 12
NAMES: dict[str, Callable[[int], str]] = {
    "TR behind": lambda nth: f"vol_{nth:04d}_TR1333.nii",
    "field behind": lambda nth: f"f{nth:04d}_3T.nii",
    "field behind a run": lambda nth: f"run{nth:04d}_3T.nii",
    "field behind a short run": lambda nth: f"run{nth}_3T.nii",
    "label behind": lambda nth: f"sub-01_{nth:04d}_run-02.nii",
    "one behind": lambda nth: f"bold_{nth:04d}_0001_x.nii",
    "many": lambda nth: f"s12_p3_{nth:03d}_mb4_2000_30.nii",
    "many, the last": lambda nth: f"3T_mb4_2000_{nth:03d}.nii",
    "not padded": lambda nth: f"vol{nth}_20_x.nii",
    "date and time": lambda nth: f"20240131_1011{10 + nth}_{nth:04d}_7T.nii",
    "time behind": lambda nth: f"vol_{nth:04d}_20240131T1011{10 + nth}_3T.nii",
    "ms behind": lambda nth: f"vol_{nth:04d}_{1333 * nth:07d}.nii",
    "ms before": lambda nth: f"{2000 * nth + 57}_{nth:03d}.nii",
    "s behind": lambda nth: f"vol_{nth:04d}_t{2 * nth:05d}s.nii",
    "copier": lambda nth: f"step{nth + 4:02d}__vol_{nth:04d}.nii",
    "suffix of a converter": lambda nth: f"001_000007_{nth:06d}_000001_x.nii",
}


def files(form: Callable[[int], str], *, first: int) -> list[str]:
    return [form(nth) for nth in range(first, first + N_FILES)]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("gap_s", [0.0, 1.3])
def test_the_number_that_runs_on_is_the_volumes(
    watched: Watched, kind: str, first: int, gap_s: float
) -> None:
    """However many numbers stand before and behind it, whether files come one by one or at once."""
    for begin in (1_000, 2_000):  # two runs, told apart by their folders
        came: list[Found] = []
        for name in files(NAMES[kind], first=first):
            watched.write(f"{begin}/{name}", nibabel.Nifti1Image(voxels(), AFFINE).to_bytes())
            came += watched.after(gap_s) if gap_s else []
        came += watched.after(0.5)
        assert [each.name.rpartition("/")[2] for each in came] == files(NAMES[kind], first=first)
        assert numbers(came) == list(range(numbers(came)[0], numbers(came)[0] + N_FILES))
        assert numbers(came)[0] in (0, 1)
        assert len({each.holds.series for each in came}) == 1


@pytest.mark.parametrize(
    "form",
    [
        "20240131_101112_{:04d}.nii",
        "20240131101112_{:05d}.nii",
        "epi_20240131_101112_{:03d}.nii",
        "20240131-101112-{:06d}_bold.nii",
        "20240131_101112_{}.nii",
        "20240131_{:06d}.nii",
        "2024-01-31_{:06d}.nii",
    ],
)
@pytest.mark.parametrize("numbers", [(1, 2, 4, 5), (2, 1, 4, 3), (98, 99, 100, 101)], ids=str)
def test_a_number_behind_a_date_or_a_time_may_be_the_volumes(form: str, numbers: tuple[int, ...]) -> None:
    found = placed([form.format(number) for number in numbers])
    assert [each.number for each in found] == list(numbers)
    assert len({each.series for each in found}) == 1


@pytest.mark.parametrize("form", ["20240131_1011{:02d}_{:03d}.nii", "vol_20240131-1011{:02d}-{:03d}.nii"])
def test_milliseconds_behind_a_time_are_not_the_volumes_number(form: str) -> None:
    times_ms = [0, 1_333, 2_667, 4_000, 5_333]
    found = placed([form.format(*divmod(time_ms, 1_000)) for time_ms in times_ms])
    assert [each.number for each in found] == [1, 2, 3, 4, 5]
    assert len({each.series for each in found}) == 1


def test_a_copiers_prefix_is_not_the_volumes_number() -> None:
    order = (0, 2, 1, 4, 3, 5, 7, 6, 9, 8, 11, 10)
    found = placed([f"step{nth:02d}__run1_{number + 1:04d}.nii" for nth, number in enumerate(order)])
    assert [each.number for each in found] == [number + 1 for number in order]
    assert len({each.series for each in found}) == 1


@pytest.mark.parametrize("form", ["bold_{0:02d}_{1:04d}.nii", "b{0}_{1:03d}_3T.nii", "{0:02d}_{1}_x.nii"])
def test_a_run_whose_volumes_begin_again_is_another_series(form: str) -> None:
    found = placed([form.format(run, number) for run in (7, 8) for number in range(5)])
    assert [each.number for each in found] == [*range(5), *range(5)]
    first, second = ({each.series for each in found[begin : begin + 5]} for begin in (0, 5))
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize(
    "form", ["{1}_{0:04d}.nii", "MoCo{1}_{0:04d}_3T.nii", "s{1}_{0:04d}_run-1.nii", "{1}0{1}_{0:03d}_x.nii"]
)
def test_series_whose_files_alternate_stay_apart(form: str) -> None:
    found = placed([form.format(number, series) for number in range(1, 5) for series in (7, 8)])
    assert [each.number for each in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len({each.series for each in found}) == 2


def test_a_corrected_copy_beside_the_run_is_another_series() -> None:
    found = placed([f"{kind}_{number:04d}_3T.nii" for number in range(1, 5) for kind in ("raw", "MoCo")])
    assert [each.number for each in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [each.series for each in found[:2]] == ["raw3T", "MoCo3T"]


@pytest.mark.parametrize("form", ["bold_{}.nii", "bold_0007_{}.nii", "sub-01_run-2_{}.nii", "{}_3T.nii"])
@pytest.mark.parametrize("stamp", STAMPS)
def test_names_that_differ_in_a_time_only_are_counted_as_they_come(
    watched: Watched, form: str, stamp: str, caplog: pytest.LogCaptureFixture
) -> None:
    series = []
    for pause_s, begin in ((0.0, 0), (60.0, 4)):
        watched.now_s += pause_s
        came: list[Found] = []
        for nth in range(4):
            data = nibabel.Nifti1Image(voxels(nth), AFFINE).to_bytes()
            watched.write(form.format(stamp.format(begin + nth)), data)
            came += watched.after(1.5)
        assert numbers(came) == [1, 2, 3, 4]
        assert all(np.array_equal(each.holds.voxels, voxels(nth)) for nth, each in enumerate(came))
        series.append({each.holds.series for each in came})
    assert len(series[0]) == len(series[1]) == 1
    assert series[0] != series[1]
    (said,) = caplog.messages
    assert "one that never comes is not noticed" in said


@pytest.mark.parametrize(
    "name", ["vol_0003_TR1333.nii", "bold_0007_20240131.nii", "run-2_20240131T101112.nii"]
)
def test_a_file_that_stays_alone_is_taken_with_its_last_number(watched: Watched, name: str) -> None:
    watched.write(name, nibabel.Nifti1Image(voxels(), AFFINE).to_bytes())
    assert watched.after(3.0) == []
    assert len(watched.after(12.0)) == 1


def test_what_names_have_taught_holds_for_the_next_run(watched: Watched) -> None:
    for run in (1, 2):
        for number in range(1, 4):
            name = f"r{run}_{number:04d}_TR1333.nii"
            watched.write(name, nibabel.Nifti1Image(voxels(), AFFINE).to_bytes())
            came = watched.after(0.3)
            assert run == 1 or numbers(came) == [number]


def test_a_file_that_waits_for_names_holds_back_what_came_after_it(watched: Watched) -> None:
    """Volume 1 must not be taken before volume 0: the first that is taken says where a series begins."""
    signal = voxels()
    signal[:, :, 8:] = 0  # it is looked at for longer, once its name is known
    watched.write("vol_0000_TR1333.nii", nibabel.Nifti1Image(signal, AFFINE).to_bytes())
    came = watched.after(1.3)
    for number in (1, 2, 3):
        watched.write(f"vol_{number:04d}_TR1333.nii", nibabel.Nifti1Image(voxels(), AFFINE).to_bytes())
        came += watched.after(1.3)
    came += watched.after(4.0)
    assert numbers(came) == [0, 1, 2, 3]


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
