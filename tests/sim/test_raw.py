"""The raw side of a synthetic subject: a scanner's grid, a head that moves, the corrected series within."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nsd import TR_S, Layout, NsdError, Run, RunKey, read_roi, task_runs
from realtime import demo_data, wire
from sim.__main__ import main
from sim.errors import SimError
from sim.excerpt import excerpt
from sim.head_motion import LEVER_MM, draw_motion, rigid
from sim.raw import RawRun, draw_session, read_geometry, slice_times_s, write_raw
from sim.raw_settings import RawSettings, read_raw_settings
from sim.recording import RawRecording, Recording

from .conftest import SEED, Tiny
from .runtime import ContractRuntime
from .test_scanner import RouterRuntime
from .test_settings import shipped_text

RUN: dict[str, Any] = {"subject": 1, "session": 1, "run": 2}
KEY = RunKey(1, 1, 2)
QUIET = replace(read_raw_settings(), thermal_sd=0.0)


def copy_with_raw(tiny: Tiny, root: Path, raw: RawSettings = QUIET) -> Layout:
    """A small data set with one run and its raw side."""
    excerpt(tiny.root, root, **RUN)
    write_raw(root, subject=1, n_sessions=1, settings=raw)
    return Layout(root)


def at_the_region(
    volume: np.ndarray, affine: np.ndarray, to_scanner: np.ndarray, layout: Layout
) -> np.ndarray:
    """A raw volume at the region's voxels, by the true position of the head: [V]."""
    run = Run(layout, *KEY)
    voxels = np.argwhere(read_roi(layout, 1).mask)
    places = nib.affines.apply_affine(np.linalg.inv(affine) @ to_scanner @ run.affine, voxels)
    return np.asarray(ndimage.map_coordinates(volume.astype(float), places.T, order=3, mode="mirror"))


@pytest.fixture(scope="module")
def raw(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return copy_with_raw(tiny, tmp_path_factory.mktemp("raw") / "nsd")


def test_the_true_motion_restores_the_corrected_series(raw: Layout) -> None:
    run, scan, roi = Run(raw, *KEY), RawRun(raw, **RUN), read_roi(raw, 1)
    geometry = scan.geometry
    corrected, restored, unmoved = [], [], []
    for index in range(0, 225, 15):
        volume, found = scan.volume(index), run.volume(index)[roi.mask]
        corrected.append(found)
        restored.append(at_the_region(volume, geometry.affine, geometry.tissue_to_scanner(index), raw))
        unmoved.append(at_the_region(volume, geometry.affine, geometry.head_to_scanner, raw))
    fluctuation = np.std(corrected, axis=0)
    error = np.std(np.subtract(restored, corrected), axis=0)
    assert np.median(error / fluctuation) < 0.45
    assert np.median(np.std(np.subtract(unmoved, corrected), axis=0) / fluctuation) > 2
    assert np.corrcoef(corrected[0], restored[0])[0, 1] > 0.998


def test_a_head_that_lies_still_on_a_fine_grid_is_the_corrected_series(tiny: Tiny, tmp_path: Path) -> None:
    still = replace(QUIET, motion_mm=0.0, voxel_mm=(0.6, 0.6, 0.6))
    layout = copy_with_raw(tiny, tmp_path, still)
    run, scan = Run(layout, *KEY), RawRun(layout, **RUN)
    geometry, roi = scan.geometry, read_roi(layout, 1)
    for index in (0, 224):
        restored = at_the_region(
            scan.volume(index), geometry.affine, geometry.tissue_to_scanner(index), layout
        )
        assert np.abs(restored - run.volume(index)[roi.mask]).max() < 25  # of 600 to 2000; fluctuation is 2 %


def test_a_session_lies_as_far_from_the_decoder_as_its_settings_say(tiny: Tiny) -> None:
    places = []
    for session in (1, 2):
        drawn = draw_session(QUIET, tiny.settings, (SEED, 1, session))
        assert drawn.keys() == set(task_runs(1, session))
        for geometry in drawn.values():
            place = geometry.head_to_scanner
            assert np.linalg.norm(place[:3, 3]) == pytest.approx(8.0)
            turn = np.degrees(np.arccos((np.trace(place[:3, :3]) - 1) / 2))
            assert turn == pytest.approx(5.0)
            assert nib.affines.voxel_sizes(geometry.affine) == pytest.approx(QUIET.voxel_mm, abs=1e-5)
            assert nib.aff2axcodes(geometry.affine) == ("R", "A", "S")
            assert np.abs(nib.affines.obliquity(geometry.affine)).max() > 0.05  # rad
            assert np.linalg.norm(geometry.centre_mm - place[:3, 3]) == pytest.approx(1.5, abs=1e-3)
        places.append(place)
    assert not np.allclose(places[0], places[1])


@given(seed=st.integers(0, 2**32 - 1), motion_mm=st.floats(0, 10))
@settings(max_examples=25, deadline=None)
def test_a_run_moves_as_far_as_its_settings_say_and_begins_at_rest(seed: int, motion_mm: float) -> None:
    motion = draw_motion(replace(QUIET, motion_mm=motion_mm), 225, np.random.default_rng(seed))
    arcs = motion * [1, 1, 1, LEVER_MM, LEVER_MM, LEVER_MM]
    assert np.linalg.norm(arcs, axis=1).max() == pytest.approx(motion_mm, abs=1e-6)
    assert not motion[0].any()


def test_jerks_stay_and_swallows_pass() -> None:
    only_jerks = replace(QUIET, swallows_per_min=0.0, jerks_per_run=5.0, jerk_share=50.0)
    only_swallows = replace(QUIET, swallows_per_min=2.0, swallow_share=50.0, jerks_per_run=0.0)
    jerks = draw_motion(only_jerks, 225, np.random.default_rng(1))
    steps = np.abs(np.diff(jerks, axis=0)).max(axis=1)
    assert 1 <= np.count_nonzero(steps > 20 * np.median(steps)) <= 12
    nods = draw_motion(only_swallows, 225, np.random.default_rng(1))
    assert np.median(np.abs(nods[:, 2])) < 0.1 * np.abs(nods[:, 2]).max()


@given(
    parameters=st.tuples(*[st.floats(-20, 20)] * 3, *[st.floats(-1, 1)] * 3),
    centre=st.tuples(*[st.floats(-100, 100)] * 3),
)
@settings(max_examples=50, deadline=None)
def test_six_parameters_mean_what_the_files_say(
    parameters: tuple[float, ...], centre: tuple[float, ...]
) -> None:
    """Oracle: three rotations about the axes, written out, the one about x first."""
    (x, y, z), rows = parameters[3:], np.eye(3)
    about_x = np.array([rows[0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], rows[1], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], rows[2]])
    point = np.array([3.0, -40.0, 12.0])
    moved = about_z @ about_y @ about_x @ (point - centre) + centre + parameters[:3]
    assert np.allclose((rigid(parameters, centre) @ [*point, 1])[:3], moved)


def test_the_truth_is_written_with_bids_names(raw: Layout) -> None:
    lines = raw.raw(*KEY, "desc-truth_timeseries.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    assert len(lines) == 226
    place = json.loads(raw.raw(*KEY, "desc-truth_timeseries.json").read_text())
    assert place["rot_x"]["Units"] == "rad"
    assert place["trans_x"]["Units"] == "mm"
    bold = json.loads(raw.raw(*KEY, "bold.json").read_text())
    assert bold["RepetitionTime"] == pytest.approx(TR_S)
    assert len(bold["SliceTiming"]) == bold["Shape"][2]
    truth = read_geometry(raw, **RUN)
    assert place["RotationCentre"] == pytest.approx(truth.centre_mm.tolist())


@pytest.mark.parametrize(
    ("order", "multiband", "expected"),
    [
        ("none", 1, [0, 0, 0, 0, 0, 0]),
        ("ascending", 1, [0, 1, 2, 3, 4, 5]),
        ("interleaved", 1, [0, 3, 1, 4, 2, 5]),
        ("ascending", 2, [0, 2, 4, 0, 2, 4]),
    ],
)
def test_slices_have_the_order_of_the_settings(order: str, multiband: int, expected: list[int]) -> None:
    times_s = slice_times_s(replace(QUIET, slice_order=order, multiband=multiband, tr_s=6.0), 6)
    assert times_s.tolist() == expected


def test_a_scanner_with_another_tr_sees_the_same_brain_at_its_own_times(tiny: Tiny, tmp_path: Path) -> None:
    own = replace(QUIET, motion_mm=0.0, tr_s=1.6, slice_order="ascending", multiband=2)
    layout = copy_with_raw(tiny, tmp_path, own)
    with RawRecording(layout, **RUN) as recording, Recording(layout, **RUN) as corrected:
        assert recording.start.tr_s == 1.6
        assert recording.start.n_volumes == 187  # of 1.6 s, in the 300 s of the design
        shown = [(marker.onset_volume, marker.name) for marker in recording.markers]
        assert shown == [(int(m.onset_volume * TR_S / 1.6), m.name) for m in corrected.markers]
        assert recording.picture_png(shown[3][0]) == corrected.picture_png(corrected.markers[3].onset_volume)
        # 5 volumes of 1.6 s are 6 of 4/3 s, so at slice 0 the scanner sees corrected volume 6 itself.
        volume = wire.volume_array(recording.start, recording.volume(5))
    still = RawRun(
        copy_with_raw(tiny, tmp_path / "still", replace(own, tr_s=TR_S, slice_order="none")), **RUN
    )
    assert np.array_equal(volume[:, :, 0], still.volume(6)[:, :, 0])
    assert not np.array_equal(volume, still.volume(6))


def test_a_raw_run_is_replayed_with_its_pictures(tiny: Tiny, tmp_path: Path) -> None:
    layout = copy_with_raw(tiny, tmp_path, replace(QUIET, voxel_mm=(2.5, 2.5, 2.5)))
    router = RouterRuntime(ContractRuntime())
    with router.serving():
        command = ["replay", "--raw", "--nsd", str(tmp_path), "--run", "2", "--speed", "1000"]
        assert main([*command, "--connect", f"tcp://127.0.0.1:{router.port}"]) == 0
    runtime, scan = router.runtime, RawRun(layout, **RUN)
    (start,) = runtime.starts
    assert start.shape == scan.geometry.shape
    assert np.allclose(start.affine, scan.geometry.affine)
    assert runtime.journal.keys() == set(range(225))
    assert np.array_equal(wire.volume_array(start, runtime.journal[200]), scan.volume(200))
    assert sorted(runtime.markers) == [trial.onset_volume for trial in Run(layout, *KEY).trials]
    assert runtime.ends == ["complete"]


def test_raw_volumes_are_the_same_each_time(tiny: Tiny, tmp_path: Path) -> None:
    layout = copy_with_raw(tiny, tmp_path, read_raw_settings())
    first, again = RawRun(layout, **RUN), RawRun(layout, **RUN)
    assert np.array_equal(first.volume(7), again.volume(7))
    air = first.volume(7)[0, 0]
    assert 0 < air.std() < 5


def test_the_mean_volume_holds_the_whole_head_in_the_coordinates_of_the_series(tiny: Tiny) -> None:
    layout = Layout(tiny.root)
    mean = nib.Nifti1Image.from_filename(layout.mean(1))
    run = Run(layout, 1, 1, 1)
    offset = np.rint(np.linalg.solve(mean.affine, run.affine[:, 3])[:3]).astype(int)
    assert np.allclose(nib.affines.apply_affine(mean.affine, offset), run.affine[:3, 3])
    x, y, z = (slice(first, first + n) for first, n in zip(offset, run.shape, strict=True))
    series = np.mean([run.volume(k) for k in range(0, 225, 5)], axis=0)
    mask = read_roi(layout, 1).mask
    values = np.asanyarray(mean.dataobj)
    assert np.corrcoef(values[x, y, z][mask], series[mask])[0, 1] > 0.999
    for axis in range(3):  # air on all sides
        assert not values.take([0, -1], axis).any()


def test_the_raw_side_of_other_settings_is_not_overwritten(tiny: Tiny, tmp_path: Path) -> None:
    layout = copy_with_raw(tiny, tmp_path)
    write_raw(tmp_path, subject=1, n_sessions=1, settings=QUIET)
    with pytest.raises(SimError, match="expected the raw side of these settings, found another; remove"):
        write_raw(tmp_path, subject=1, n_sessions=1, settings=replace(QUIET, motion_mm=1.0))
    layout.raw(*KEY, "bold.json").write_text("{}")
    with pytest.raises(SimError, match="expected the raw side of a run: KeyError"):
        RawRun(layout, **RUN)


def test_a_run_without_a_raw_side_says_how_to_make_it(tiny: Tiny) -> None:
    with pytest.raises(NsdError, match="which `python -m sim synthesize --raw` writes"):
        RawRecording(Layout(tiny.root), **RUN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tr_s = 1.3333333333333333", "tr_s = 0.0"), "raw setting tr_s: expected seconds, above 0"),
        (('slice_order = "none"', 'slice_order = "random"'), "slice_order: expected one of none, ascending"),
        (("multiband = 1", "multiband = 0"), "raw setting multiband: expected at least 1"),
        (("aim_mm = 1.5", "aim_mm = -1.5"), "raw setting aim_mm: expected 0 or more"),
        (("[1.0, 1.0, 1.0]", "[1.0, 1.0, 0.0]"), "voxel_mm and margin_mm: expected lengths above 0"),
        (("multiband = 1", 'multiband = "1"'), "raw setting multiband: expected int"),
    ],
)
def test_bad_settings_of_the_raw_side_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    text = shipped_text("raw.toml")
    assert change[0] in text
    path = tmp_path / "raw.toml"
    path.write_text(text.replace(*change))
    assert main(["synthesize", "--out", str(tmp_path), "--sessions", "1", "--raw", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_every_line_of_the_raw_settings_is_explained() -> None:
    text = shipped_text("raw.toml")
    assert all("#" in line for line in text.splitlines() if line.strip())


def test_the_demo_has_a_raw_side_in_which_its_region_is_found() -> None:
    layout = Layout(demo_data("nsd"))
    scan = RawRun(layout, subject=1, session=1, run=10)
    geometry, roi = scan.geometry, read_roi(layout, 1)
    run = Run(layout, 1, 1, 10)
    for index in (0, 224):
        truth = np.linalg.inv(geometry.affine) @ geometry.tissue_to_scanner(index) @ run.affine
        places = nib.affines.apply_affine(truth, np.argwhere(roi.mask))
        found = ndimage.map_coordinates(scan.volume(index).astype(float), places.T, order=3)
        assert np.corrcoef(found, run.volume(index)[roi.mask])[0, 1] > 0.998
