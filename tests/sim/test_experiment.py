from __future__ import annotations

import csv
import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from nsd import ExpDesign, Layout, read_expdesign
from sim.experiment import design_rows, expdesign_variables, plan_experiment, stim_info_csv


@cache
def plan() -> ExpDesign:
    return plan_experiment(5)


def test_every_subject_sees_10_000_images_three_times_and_shares_1_000() -> None:
    for subject in range(1, 9):
        images, counts = np.unique(plan().trial_images(subject), return_counts=True)
        assert len(images) == 10_000
        assert set(counts.tolist()) == {3}
        assert np.isin(plan().shared, images).all()
    in_common = set(plan().subject_images[0].tolist())
    for images in plan().subject_images[1:]:
        in_common &= set(images.tolist())
    assert in_common == set(plan().shared.tolist())


def test_no_image_follows_itself_and_repetitions_come_soon_or_late() -> None:
    ordering = plan().ordering
    assert not (ordering[1:] == ordering[:-1]).any()
    trials = np.argsort(ordering, kind="stable").reshape(-1, 3)
    gaps = np.diff(np.sort(trials, axis=1), axis=1)
    assert (gaps < 750).mean() > 0.2
    assert (gaps > 7500).mean() > 0.2


def test_every_session_has_images_of_the_test_set() -> None:
    shared = np.isin(plan().trial_images(1), plan().shared).reshape(40, 750)
    assert shared.sum(axis=1).min() > 40


@pytest.mark.parametrize(("session", "run"), [(1, 0), (1, 1), (17, 6), (40, 11)])
def test_runs_keep_to_the_timing(session: int, run: int) -> None:
    onsets = np.flatnonzero(design_rows(plan(), 1, session, run))
    assert len(onsets) == (63 if run % 2 == 0 else 62)
    assert onsets[0] == 9  # after three blank slots of three volumes
    assert onsets[-1] <= 3 * 70  # four blank slots at the end
    steps = np.diff(onsets)
    assert set(steps.tolist()) == {3, 6}
    stretches = np.diff(np.concatenate([[-1], np.flatnonzero(steps == 6), [len(onsets) - 1]]))
    assert len(stretches) == 6
    assert stretches.min() >= 9 - (run % 2)
    assert stretches.max() <= 14


def test_a_session_shows_750_images_in_the_order_of_the_plan() -> None:
    designs = [design_rows(plan(), 2, 9, run) for run in range(12)]
    shown = np.concatenate([design[design > 0] for design in designs])
    assert np.array_equal(shown - 1, plan().trial_images(2)[8 * 750 : 9 * 750])


def test_the_design_file_reads_back_as_the_plan(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.expdesign().parent.mkdir(parents=True)
    scipy.io.savemat(layout.expdesign(), expdesign_variables(plan()))
    found = read_expdesign(layout)
    for name in ("ordering", "subject_images", "shared", "stimulus_slots"):
        assert np.array_equal(getattr(found, name), getattr(plan(), name)), name


def test_basiccnt_counts_images_by_presentations_within_a_session() -> None:
    counts = expdesign_variables(plan())["basiccnt"]
    assert counts.shape == (3, 40)
    assert (np.array([1, 2, 3]) @ counts).tolist() == [750] * 40


def test_image_table_agrees_with_the_plan() -> None:
    rows = list(csv.DictReader(io.StringIO(stim_info_csv(plan()))))
    assert [int(row["nsdId"]) for row in rows] == list(range(73_000))
    assert [i for i, row in enumerate(rows) if row["shared1000"] == "True"] == plan().shared.tolist()
    shown = plan().trial_images(7)
    for image in np.random.default_rng(0).choice(73_000, 200, replace=False).tolist():
        trials = [int(rows[image][f"subject7_rep{k}"]) for k in range(3)]
        seen = (np.flatnonzero(shown == image) + 1).tolist()
        assert trials == (seen or [0, 0, 0])
        assert rows[image]["subject7"] == ("1" if seen else "0")


def test_the_plan_depends_on_the_seed_alone() -> None:
    assert np.array_equal(plan_experiment(5).ordering, plan().ordering)
    assert not np.array_equal(plan_experiment(6).ordering, plan().ordering)
