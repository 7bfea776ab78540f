from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from nsd import BadFile, BadRequest, Layout, MissingFile, read_expdesign, shared_images


def variables() -> dict[str, Any]:
    """MATLAB doubles that count from 1, like the file."""
    rng = np.random.default_rng(0)
    slots = np.zeros((40, 12, 75))
    slots[:, 0::2, 3:66] = 1
    slots[:, 1::2, 3:65] = 1
    return {
        "masterordering": rng.permutation(np.repeat(np.arange(1.0, 10_001), 3))[None],
        "basiccnt": np.zeros((3, 40)),
        "sharedix": np.arange(73_000.0, 72_000, -1)[None],
        "subjectim": np.stack([rng.permutation(73_000)[:10_000] + 1.0 for _ in range(8)]),
        "stimpattern": slots,
    }


def write(tmp_path: Path, content: dict[str, Any]) -> Layout:
    layout = Layout(tmp_path)
    layout.expdesign().parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(layout.expdesign(), content)
    return layout


def test_indices_count_from_0(tmp_path: Path) -> None:
    content = variables()
    layout = write(tmp_path, content)
    plan = read_expdesign(layout)
    assert shared_images(layout).tolist() == list(range(72_999, 71_999, -1))
    trial, subject = 12_345, 3
    which = int(content["masterordering"][0, trial])
    assert plan.trial_images(subject)[trial] == content["subjectim"][subject - 1, which - 1] - 1


def test_runs_take_their_trials_in_turn(tmp_path: Path) -> None:
    plan = read_expdesign(write(tmp_path, variables()))
    session = [plan.run_trials(2, 3, run) for run in range(12)]
    assert [len(run) for run in session] == [63, 62] * 6
    assert np.array_equal(np.concatenate(session), plan.trial_images(2)[1500:2250])
    with pytest.raises(BadRequest, match="expected 0 to 11"):
        plan.run_trials(2, 3, 12)


def test_every_image_of_a_subject_is_shown_three_times(tmp_path: Path) -> None:
    plan = read_expdesign(write(tmp_path, variables()))
    images, counts = np.unique(plan.trial_images(1), return_counts=True)
    assert len(images) == 10_000
    assert set(counts.tolist()) == {3}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sharedix", None, "expected 'sharedix' of shape (1, 1000), found none"),
        ("sharedix", np.ones((1, 999)), "found (1, 999)"),
        ("sharedix", np.zeros((1, 1000)), "expected 'sharedix' in 1..73000, found 0"),
        ("masterordering", np.full((1, 30_000), 10_001.0), "expected 'masterordering' in 1..10000"),
        ("subjectim", np.full((8, 10_000), 73_001.0), "expected 'subjectim' in 1..73000"),
        ("stimpattern", np.full((40, 12, 75), 2.0), "expected 'stimpattern' in 0..1"),
    ],
)
def test_says_which_variable_is_wrong(tmp_path: Path, name: str, value: Any, message: str) -> None:
    content = variables()
    del content[name]
    if value is not None:
        content[name] = value
    layout = write(tmp_path, content)
    with pytest.raises(BadFile) as caught:
        read_expdesign(layout)
    assert str(layout.expdesign()) in str(caught.value)
    assert message in str(caught.value)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with pytest.raises(MissingFile, match=r"nsd_expdesign.mat: expected the experiment's design"):
        read_expdesign(layout)
    layout.expdesign().parent.mkdir(parents=True)
    layout.expdesign().write_bytes(b"no matlab file" * 100)
    with pytest.raises(BadFile, match="expected a MATLAB 5 file"):
        read_expdesign(layout)
