"""The recipe's losses are what they were, and the golden file would notice a change in any of its parts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from train.loop import deepspeed_engine
from train.model import dynadiff
from train.model.diffusion import uniform_timesteps
from train.recipe import Recipe

from .golden import GOLDEN, golden_recipe, losses_of

pytestmark = pytest.mark.usefixtures("compiler")
TOLERANCE = 1e-4


def golden() -> list[float]:
    return [float(line.split("\t")[1]) for line in GOLDEN.read_text().splitlines()]


def furthest(losses: list[float]) -> float:
    """The largest relative distance from the golden losses."""
    return float(np.max(np.abs(np.array(losses) / golden() - 1)))


def test_the_recipe_gives_its_golden_losses(tmp_path: Path) -> None:
    losses = losses_of(golden_recipe(), tmp_path)
    distance = furthest(losses)
    assert distance < TOLERANCE, (
        f"the recipe's losses changed, by up to {distance:.1e} of their size ({TOLERANCE:.0e} allowed).\n"
        f"now:    {losses}\nbefore: {golden()}\n"
        "Something that training depends on is different: the objective, its noise, the data order, the "
        "optimizer, the schedule, or the version of a library. If that is meant, write the golden file anew "
        "with `python tests/train/golden.py`, and say in the commit why; if not, find what it was."
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interruption_changes_no_digit(tmp_path: Path, precision: str) -> None:
    recipe = changed("fit", precision=precision)(golden_recipe())
    batches = iter(range(9))

    def stop_in_the_fifth_step() -> None:
        if next(batches, None) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        losses_of(recipe, tmp_path / "stopped", stop_in_the_fifth_step)
    assert (tmp_path / "stopped/latest").read_text() == "checkpoint-000005"
    assert losses_of(recipe, tmp_path / "stopped") == losses_of(recipe, tmp_path / "whole")


def changed(part: str, **values: object) -> Callable[[Recipe], Recipe]:
    return lambda recipe: msgspec.structs.replace(
        recipe, **{part: msgspec.structs.replace(getattr(recipe, part), **values)}
    )


@pytest.mark.parametrize(
    "change",
    [
        changed("diffusion", offset_noise=0.0),
        changed("diffusion", condition_dropout=0.0),
        changed("diffusion", null_condition="zeros"),
        changed("diffusion", loss_weight="1/snr"),
        changed("diffusion", draws_per_window=2),
        changed("brain", dropout=0.4),
        changed("finetune", layers="none"),
        changed("finetune", alpha=8),
        changed("finetune", initialisation="kaiming"),
        changed("finetune", peak_learning_rate=1e-2),
        changed("fit", warmup_steps=4),
        changed("fit", micro_batch=8),
        changed("fit", peak_learning_rate=0.0205),
    ],
)
def test_it_notices_a_change_in_the_recipe(tmp_path: Path, change: Callable[[Recipe], Recipe]) -> None:
    assert furthest(losses_of(change(golden_recipe()), tmp_path)) > 3 * TOLERANCE


def test_it_notices_other_timesteps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynadiff, "cubic_timesteps", uniform_timesteps)
    assert furthest(losses_of(golden_recipe(), tmp_path)) > 3 * TOLERANCE


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("optimizer", {"weight_decay": 0.1}),
        ("optimizer", {"betas": [0.9, 0.99]}),
        ("scheduler", {"cos_min_ratio": 0.1}),
        ("gradient_clipping", 0.2),
    ],
)
def test_it_notices_a_change_in_deepspeed_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, values: object
) -> None:
    config = json.loads(deepspeed_engine.DEEPSPEED_JSON.read_text())
    if isinstance(values, dict):
        config[section]["params"] |= values
    else:
        config[section] = values
    (tmp_path / "other.json").write_text(json.dumps(config))
    monkeypatch.setattr(deepspeed_engine, "DEEPSPEED_JSON", tmp_path / "other.json")
    assert furthest(losses_of(golden_recipe(), tmp_path)) > 3 * TOLERANCE
