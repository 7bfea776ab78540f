from __future__ import annotations

from pathlib import Path

import pytest

from nsd import SUBJECTS_SESSIONS, BadRequest, Layout, MissingFile, RunKey, runs, task_runs


def test_paths_are_those_of_the_data_set() -> None:
    layout = Layout(Path("/nsd"))
    series = "/nsd/nsddata_timeseries/ppdata/subj05/func1pt8mm"
    assert str(layout.timeseries(5, 3, 11)) == f"{series}/timeseries/timeseries_session03_run11.nii.gz"
    assert str(layout.design(5, 3, 11)) == f"{series}/design/design_session03_run11.tsv"
    assert str(layout.motion(5, 3, 11)) == f"{series}/motion/motion_session03_run11.tsv"
    assert str(layout.roi(5)) == "/nsd/nsddata/ppdata/subj05/func1pt8mm/roi/nsdgeneral.nii.gz"
    assert str(layout.expdesign()) == "/nsd/nsddata/experiments/nsd/nsd_expdesign.mat"
    assert str(layout.stim_info()) == "/nsd/nsddata/experiments/nsd/nsd_stim_info_merged.csv"
    assert str(layout.stimuli()) == "/nsd/nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    assert str(layout.betas(5, 3)) == (
        "/nsd/nsddata_betas/ppdata/subj05/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session03.nii.gz"
    )


@pytest.mark.parametrize(
    ("subject", "session", "first", "last"),
    [
        (1, 20, 1, 12),
        (1, 21, 2, 13),
        (1, 38, 2, 13),
        (1, 39, 1, 12),
        (5, 38, 2, 13),
        (2, 30, 2, 13),
        (2, 31, 1, 12),
    ],
)
def test_task_runs_leave_the_rest_runs_of_14_run_sessions_out(
    subject: int, session: int, first: int, last: int
) -> None:
    assert list(task_runs(subject, session)) == list(range(first, last + 1))


def test_complete_subjects_have_480_task_runs() -> None:
    counts = {s: sum(len(task_runs(s, b)) for b in range(1, n + 1)) for s, n in SUBJECTS_SESSIONS.items()}
    assert [s for s, n in counts.items() if n == 480] == [1, 2, 5, 7]


@pytest.mark.parametrize(("subject", "session"), [(0, 1), (9, 1), (1, 41), (4, 31), (1, 0)])
def test_sessions_that_were_not_scanned_are_refused(subject: int, session: int) -> None:
    with pytest.raises(BadRequest, match=r"expected 1 to"):
        task_runs(subject, session)


def test_runs_lists_task_runs_on_disk_in_order(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for session, run in [(21, 13), (2, 1), (21, 1), (21, 14), (1, 12), (1, 13)]:  # rest and unknown runs too
        path = layout.timeseries(1, session, run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert runs(layout, 1) == [RunKey(1, 1, 12), RunKey(1, 2, 1), RunKey(1, 21, 13)]


def test_missing_runs_are_an_error_that_names_the_expected_path(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"session01_run01\.nii\.gz: expected at least one task run"):
        runs(Layout(tmp_path), 1)
