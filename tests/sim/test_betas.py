from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix

import sim.singletrial
from nsd import Layout, RunKey, read_betas, read_roi, run_trials, task_runs
from nsd import Run as RecordedRun
from realtime.preprocessing.drift import cosine_basis
from realtime.preprocessing.stream import z_scored
from sim.__main__ import main
from sim.cortex import Cortex
from sim.errors import SimError
from sim.experiment import design_rows, plan_experiment
from sim.noise import draw_voxel_noise
from sim.singletrial import (
    HIGH_PASS_HZ,
    TrialModel,
    choose_responses,
    drift_basis,
    percent_signal_change,
    response_library,
    single_trial_betas,
    trial_design,
)

from .conftest import SEED, Tiny

F64 = npt.NDArray[np.float64]
N_ROWS = 225
TR_S = 4 / 3
SESSION_1 = [RunKey(1, 1, run) for run in task_runs(1, 1)]


@dataclasses.dataclass(frozen=True)
class Estimated:
    """A copy of the tiny subject with its betas, the true amplitudes, and a simple estimate to compare."""

    root: Path
    layout: Layout
    images: npt.NDArray[np.int64]  # [750]
    runs: npt.NDArray[np.int64]  # [750]
    betas: F64  # [750, V]
    true_percent: F64  # [750, V]
    window_means: F64  # [750, V], of z-scored volumes 3 to 6 after onset


@pytest.fixture(scope="module")
def estimated(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Estimated:
    root = tmp_path_factory.mktemp("betas") / "nsd"
    shutil.copytree(tiny.root, root)
    assert main(["betas", "--nsd", str(root)]) == 0
    layout = Layout(root)
    roi = read_roi(layout, 1)
    trials = run_trials(layout, SESSION_1)
    images = np.array([item.trial.image for item in trials])
    rows = {key: RecordedRun(layout, *key).roi_series(roi) for key in SESSION_1}
    series = {key: z_scored(run, cosine_basis(len(run), TR_S, HIGH_PASS_HZ)) for key, run in rows.items()}
    windows = [series[key][trial.onset_volume + 3 : trial.onset_volume + 7] for key, trial in trials]
    settings = tiny.settings
    voxels = draw_voxel_noise(settings, np.random.default_rng([SEED, 1, 2]))
    evoked_percent = 100 * settings.fluctuation * voxels.evoked_sd
    return Estimated(
        root=root,
        layout=layout,
        images=images,
        runs=np.array([item.run.run for item in trials]),
        betas=read_betas(layout, 1, 1, roi).astype(np.float64),
        true_percent=Cortex(settings, SEED, 1).responses(images.tolist()) * evoked_percent,
        window_means=np.stack([window.mean(axis=0) for window in windows]),
    )


def correlation(a: F64, b: F64) -> F64:
    """Correlation of the columns of ``a`` and ``b``: ``[V]``."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    found: F64 = (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return found


def session_designs() -> list[npt.NDArray[np.int64]]:
    plan = plan_experiment(SEED)
    return [design_rows(plan, 1, 1, run) for run in range(12)]


def explicit_regressors(design: npt.NDArray[np.int64], response: F64) -> F64:
    """One column per trial, by convolution of an impulse: ``[225, N]``."""
    impulses = np.zeros((N_ROWS, np.count_nonzero(design)))
    impulses[np.flatnonzero(design), np.arange(impulses.shape[1])] = 1
    return np.stack([np.convolve(impulse, response)[:N_ROWS] for impulse in impulses.T], axis=1)


def test_without_noise_the_true_amplitudes_come_back() -> None:
    rng = np.random.default_rng(0)
    library = response_library()
    designs = session_designs()
    pictures, place = np.unique(np.concatenate([d[d > 0] for d in designs]), return_inverse=True)
    # One voxel for each response. Were trials to differ much more, ON-OFF fits could mistake a response for
    # the next one in the library even without noise.
    truth = rng.normal(1.0, 0.2, (len(pictures), library.shape[1]))[place]
    series, start = [], 0
    for design in designs:
        stop = start + int(np.count_nonzero(design))
        by_voxel = [
            explicit_regressors(design, response) @ amplitudes
            for response, amplitudes in zip(library.T, truth[start:stop].T, strict=True)
        ]
        drift = cosine_basis(N_ROWS, TR_S, HIGH_PASS_HZ)
        series.append(np.stack(by_voxel, axis=1) + drift @ rng.normal(0, 30, (drift.shape[1], len(by_voxel))))
        start = stop
    np.testing.assert_allclose(single_trial_betas(series, designs, library), truth, atol=1e-9)


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_estimates_are_those_of_an_explicit_least_squares(penalty: float) -> None:
    """Oracle: trials and drift in one design; the penalty as rows that pull trials to the mean."""
    rng = np.random.default_rng(1)
    design = session_designs()[3]
    response = response_library()[:, 4]
    rows = rng.normal(0, 2, (N_ROWS, 7)).cumsum(axis=0)
    mean = rng.normal(1, 1, 7)

    drift = drift_basis(N_ROWS)
    model = TrialModel.of(trial_design(design, response, drift))
    found = mean + model.deviations(model.coordinates(rows, mean), penalty)

    trials = explicit_regressors(design, response)
    n_trials = trials.shape[1]
    nuisance = cosine_basis(N_ROWS, TR_S, HIGH_PASS_HZ)
    anchors = np.hstack([np.sqrt(penalty) * np.eye(n_trials), np.zeros((n_trials, nuisance.shape[1]))])
    full = np.vstack([np.hstack([trials, nuisance]), anchors])
    target = np.vstack([rows, np.sqrt(penalty) * np.tile(mean, (n_trials, 1))])
    expected = np.linalg.lstsq(full, target)[0][:n_trials]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_a_picture_in_the_last_volume_gets_the_mean_response(penalty: float) -> None:
    """The run has no sample of its response; the other trials are the same without it."""
    rng = np.random.default_rng(2)
    design = session_designs()[3]
    with_last = design.copy()
    with_last[-1] = 7
    response, drift = response_library()[:, 4], drift_basis(N_ROWS)
    rows, mean = rng.normal(0, 2, (N_ROWS, 7)), rng.normal(1, 1, 7)
    found, without = (
        model.deviations(model.coordinates(rows, mean), penalty)
        for model in (TrialModel.of(trial_design(each, response, drift)) for each in (with_last, design))
    )
    assert not found[-1].any()
    np.testing.assert_allclose(found[:-1], without, atol=1e-9)


def test_a_session_with_a_picture_in_a_runs_last_volume_has_estimates() -> None:
    rng = np.random.default_rng(3)
    designs = session_designs()
    series = [rng.normal(0, 1, (N_ROWS, 20)) for _ in designs]
    without = single_trial_betas(series, designs, response_library())
    designs[0][-1] = designs[5][np.flatnonzero(designs[5])[4]]
    betas = single_trial_betas(series, designs, response_library())
    place = np.count_nonzero(designs[0]) - 1
    np.testing.assert_allclose(np.delete(betas, place, axis=0), without, atol=1e-9)
    assert np.abs(betas[place]).max() < np.abs(without).max()


def test_the_library_is_the_fields_response() -> None:
    """Oracle: nilearn's canonical SPM response to 3 s, whose gamma peaks after 5 s, is one of the library."""
    import pandas as pd

    events = pd.DataFrame({"onset": [0.0], "duration": [3.0], "trial_type": ["picture"]})
    matrix = make_first_level_design_matrix(
        np.arange(25) * TR_S, events, hrf_model="spm", drift_model=None, min_onset=0
    )
    canonical = matrix["picture"].to_numpy()
    library = response_library()
    similar = correlation(np.repeat(canonical[:, None], library.shape[1], axis=1), library)
    assert np.argmax(similar) == 2  # 4 s, 4.5 s, 5 s
    assert similar[2] > 0.999
    assert np.allclose(library.max(axis=0), 1, atol=0.05)  # the peak of 1 may fall between two volumes


def test_betas_recover_the_true_amplitudes_better_than_window_means(estimated: Estimated) -> None:
    by_betas = correlation(estimated.betas, estimated.true_percent)
    by_means = correlation(estimated.window_means, estimated.true_percent)
    assert np.median(by_betas) > np.median(by_means) + 0.05
    assert np.mean(by_betas > by_means) > 0.8


def test_betas_are_in_percent_signal_change(estimated: Estimated) -> None:
    ratio = estimated.betas.mean(axis=0) / estimated.true_percent.mean(axis=0)
    assert np.median(ratio) == pytest.approx(1, abs=0.1)
    error = estimated.betas - estimated.true_percent
    no_difference = estimated.true_percent.mean(axis=0) - estimated.true_percent
    assert np.median((error**2).mean(axis=0) / (no_difference**2).mean(axis=0)) < 0.9


def test_repetitions_of_a_picture_have_similar_betas(estimated: Estimated) -> None:
    images, runs = estimated.images, estimated.runs
    first, second = np.nonzero((images[:, None] == images) & (runs[:, None] < runs))
    assert len(first) > 30
    by_betas = correlation(estimated.betas[first], estimated.betas[second])
    by_means = correlation(estimated.window_means[first], estimated.window_means[second])
    assert np.median(by_betas) > np.median(by_means) + 0.05
    shuffled = np.random.default_rng(0).permutation(second)
    assert abs(np.median(correlation(estimated.betas[first], estimated.betas[shuffled]))) < 0.1


def test_the_penalty_brings_trials_closer_to_the_truth(
    estimated: Estimated, monkeypatch: pytest.MonkeyPatch
) -> None:
    roi = read_roi(estimated.layout, 1)
    recorded = [RecordedRun(estimated.layout, *key) for key in SESSION_1]
    series = [percent_signal_change(run.roi_series(roi)) for run in recorded]
    monkeypatch.setattr(sim.singletrial, "PENALTIES", (0.0,))
    unpenalised = single_trial_betas(series, [run.design for run in recorded], response_library())
    error, error_without = (
        ((betas - estimated.true_percent) ** 2).mean(axis=0) for betas in (estimated.betas, unpenalised)
    )
    assert np.mean(error < error_without) > 0.95
    assert np.median(error / error_without) < 0.3


def test_fitted_responses_follow_the_true_time_to_peak(estimated: Estimated, tiny: Tiny) -> None:
    recorded = [RecordedRun(estimated.layout, *key) for key in SESSION_1]
    roi = read_roi(estimated.layout, 1)
    drift = drift_basis(N_ROWS)
    clean = [percent_signal_change(run.roi_series(roi)) for run in recorded]
    clean = [rows - drift @ (drift.T @ rows) for rows in clean]
    chosen, _ = choose_responses(clean, [run.design for run in recorded], drift, response_library())
    true_peak_s = Cortex(tiny.settings, SEED, 1).peak_s
    assert np.median(np.abs(4 + 0.5 * chosen - true_peak_s)) < 0.6
    assert np.corrcoef(chosen, true_peak_s)[0, 1] > 0.6


def test_files_have_nsds_format(estimated: Estimated, tiny: Tiny) -> None:
    image = nib.Nifti1Image.from_filename(estimated.layout.betas(1, 1))
    roi = read_roi(estimated.layout, 1)
    assert image.shape == (*tiny.settings.grid, 750)
    assert image.get_data_dtype() == np.int16
    assert np.allclose(image.affine, roi.affine)
    values = np.asanyarray(image.dataobj)
    assert not values[~roi.mask].any()
    assert values[roi.mask].any(axis=1).all()
    recorded = [RecordedRun(estimated.layout, *key) for key in SESSION_1]
    series = [percent_signal_change(run.roi_series(roi)) for run in recorded]
    direct = single_trial_betas(series, [run.design for run in recorded], response_library())
    np.testing.assert_allclose(estimated.betas, direct, atol=0.5 / 300 + 1e-6)


def test_voxels_without_signal_stay_0() -> None:
    rows = np.random.default_rng(0).normal(100, 1, (N_ROWS, 3)).astype(np.float32)
    rows[:, 1] = 0
    percent = percent_signal_change(rows)
    assert not percent[:, 1].any()
    np.testing.assert_allclose(percent[:, 0], 100 * (rows[:, 0] / rows[:, 0].mean() - 1), atol=1e-3)
    designs = session_designs()
    betas = single_trial_betas([percent] * 12, designs, response_library())
    assert np.isfinite(betas).all()
    assert not betas[:, 1].any()


def test_the_command_keeps_existing_files(estimated: Estimated, capsys: pytest.CaptureFixture[str]) -> None:
    path = estimated.layout.betas(1, 1)
    before = path.stat().st_mtime_ns
    assert main(["betas", "--nsd", str(estimated.root), "--sessions", "1"]) == 0
    assert path.stat().st_mtime_ns == before
    assert capsys.readouterr().out == "single-trial responses: 0 sessions written, 1 existed already\n"


def test_an_interrupted_command_leaves_no_partial_file_and_continues(
    estimated: Estimated, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = estimated.layout.betas(1, 1)
    complete = path.read_bytes()
    path.unlink()

    def interrupt(self: Path, target: Path) -> Path:
        os.truncate(self, self.stat().st_size // 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupt)
        assert main(["betas", "--nsd", str(estimated.root)]) == 130
    assert not list(path.parent.iterdir())
    assert main(["betas", "--nsd", str(estimated.root)]) == 0
    assert path.read_bytes() == complete  # also: the same bytes each time
    assert list(path.parent.iterdir()) == [path]


def test_errors_of_the_command_are_explained(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "nsd"
    shutil.copytree(tiny.root, root)
    layout = Layout(root)

    def fails_with(text: str, *options: str) -> None:
        assert main(["betas", "--nsd", str(root), *options]) == 2
        assert text in capsys.readouterr().err

    fails_with("session 41: expected 1 to 40", "--sessions", "41")
    fails_with("session 0: expected 1 to 40", "--sessions", "0")
    fails_with("expected at least one task run of subject 2", "--subject", "2")
    damaged = layout.timeseries(1, 1, 5)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    fails_with("timeseries_session01_run05.nii.gz: expected volumes")
    damaged.unlink()
    fails_with("expected a session of subject 1 with all 12 task runs, found none")
    fails_with("timeseries_session01_run05.nii.gz: expected the volumes of subject 1", "--sessions", "1")
    damaged.write_bytes(content)
    rows = layout.design(1, 1, 2).read_text().split("\n")
    rows[next(row for row, text in enumerate(rows) if text != "0")] = "0"
    layout.design(1, 1, 2).write_text("\n".join(rows))
    fails_with("session 1: expected 750 trials in its designs, found 749")
    (root / "synthetic.json").unlink()
    fails_with("expected a synthetic data set, found no synthetic.json")
    assert not (root / "nsddata_betas").exists()


def test_a_session_without_repetitions_is_refused() -> None:
    design = np.zeros(N_ROWS, dtype=np.int64)
    design[9:200:3] = np.arange(1, 65)
    rows = [np.ones((N_ROWS, 2))] * 2
    with pytest.raises(SimError, match="expected pictures that are shown in two runs"):
        single_trial_betas(rows, [design, design + 100 * (design > 0)], response_library())
