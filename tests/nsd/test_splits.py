from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsd import (
    BadRequest,
    RunKey,
    RunTrial,
    Trial,
    standard_split,
    task_runs,
    time_resolved_split,
)

from . import test_expdesign

ALL_RUNS = [RunKey(1, session, run) for session in range(1, 41) for run in task_runs(1, session)]


def test_45_of_480_runs_are_for_testing() -> None:
    train, test = time_resolved_split(ALL_RUNS, seed=0)
    assert (len(train), len(test)) == (435, 45)


@given(
    runs=st.lists(st.sampled_from(ALL_RUNS), unique=True, min_size=2, max_size=60),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_whole_runs_fall_on_one_side_whatever_their_order(
    runs: list[RunKey], seed: int, data: st.DataObject
) -> None:
    train, test = time_resolved_split(runs, seed)
    assert sorted(train + test) == sorted(runs)
    assert train == sorted(train)
    assert test == sorted(test)
    assert len(test) == max(1, round(len(runs) * 45 / 480))
    assert time_resolved_split(data.draw(st.permutations(runs)), seed) == (train, test)


def test_another_seed_draws_other_runs() -> None:
    assert time_resolved_split(ALL_RUNS, seed=1) != time_resolved_split(ALL_RUNS, seed=2)


@pytest.mark.parametrize("runs", [[], ALL_RUNS[:1], [*ALL_RUNS[:3], ALL_RUNS[0]]])
def test_runs_that_cannot_be_split_are_refused(runs: list[RunKey]) -> None:
    with pytest.raises(BadRequest, match="time-resolved split: expected"):
        time_resolved_split(runs, seed=0)


def test_standard_split_tests_on_the_shared_images(tmp_path: Path) -> None:
    layout = test_expdesign.write(tmp_path, test_expdesign.variables())  # shared: ids 72001 to 73000
    key = RunKey(1, 1, 1)
    design = np.zeros(225, dtype=np.int64)
    design[[9, 12, 15, 18]] = 72_000, 72_001, 73_000, 1
    layout.design(*key).parent.mkdir(parents=True)
    np.savetxt(layout.design(*key), design, fmt="%d")
    train, test = standard_split(layout, [key])
    assert train == [RunTrial(key, Trial(9, 71_999)), RunTrial(key, Trial(18, 0))]
    assert test == [RunTrial(key, Trial(12, 72_000)), RunTrial(key, Trial(15, 72_999))]
