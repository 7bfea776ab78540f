"""How far trainings are and how long they may take, from their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.experiments.headway import Progress, is_made, state_of, steps_of


def put(folder: Path, steps: int, made: bool = False) -> None:
    (folder / "training").mkdir(parents=True, exist_ok=True)
    (folder / "training" / "losses.tsv").write_text("".join(f"{n}\t0.5\n" for n in range(steps)))
    if made:
        (folder / "checkpoint.json").write_text("{}")


def test_the_rest_is_estimated_from_the_pace_of_this_sitting(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("made", "begun", "new")]
    put(folders[0], 800, made=True)
    put(folders[1], 100)
    progress = Progress(folders=folders, most_steps=3000, begun_s=50.0)
    assert progress.hours_left(60.0) is None, "no step yet in this sitting"
    put(folders[1], 200)
    # 100 steps in 20 s; 600 steps are left of the one that has begun, and 800 of the new one
    assert progress.hours_left(70.0) == pytest.approx(1400 / 100 * 20 / 3600)
    put(folders[1], 1000, made=True)
    assert progress.hours_left(230.0) == pytest.approx(900 / 900 * 180 / 3600), "the median of 800 and 1000"


def test_trainings_of_which_none_has_ended_may_take_the_most_steps(tmp_path: Path) -> None:
    progress = Progress(folders=[tmp_path / "one"], most_steps=3000, begun_s=0.0)
    put(tmp_path / "one", 1000)
    assert progress.hours_left(3600.0) == pytest.approx(2)


def test_a_training_is_told_by_its_steps_and_its_newest_loss(tmp_path: Path) -> None:
    assert (is_made(tmp_path / "x", 3000), steps_of(tmp_path / "x")) == (False, 0)
    assert state_of(tmp_path / "x") == "x step 0"
    put(tmp_path / "x", 7)
    (tmp_path / "x" / "training" / "held_out.tsv").write_text("0\t0.9\n5\t0.54321\n")
    assert state_of(tmp_path / "x") == "x step 7, held out 0.5432"
