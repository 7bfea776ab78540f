"""A learning rate of its own for the tuned part of the UNet: DeepSpeed takes the steps of plain torch."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.loop.deepspeed_engine import parameter_groups
from train.loop.loop import batch_indices, fit, noise_seed
from train.recipe import Finetune, Recipe

from .golden import SEED, golden_recipe, losses_of, made_up

pytestmark = pytest.mark.usefixtures("compiler")
OWN_RATE = 3e-3


def with_rate(rate: float | None, layers: str = "lora") -> Recipe:
    recipe = golden_recipe()
    finetune = Finetune(peak_learning_rate=rate, layers=layers)  # type: ignore[arg-type]
    return msgspec.structs.replace(recipe, finetune=finetune)


def share_of_peak(step: int, n_steps: int, n_warmup: int) -> float:
    """Linear warm-up from 0, then a cosine to a thousandth, one step late as in DeepSpeed."""
    step -= 1
    if step < n_warmup:
        return max(0, step) / n_warmup
    cosine = (1 + math.cos(math.pi * (step - n_warmup + 1) / (n_steps - n_warmup))) / 2
    return 0.001 + 0.999 * cosine


def trained_by_torch(recipe: Recipe) -> dict[str, Tensor]:
    """The trained weights after the same steps with torch's AdamW, whose groups are made by name."""
    model, batch_of, n_examples = made_up(recipe)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adapters = [p for name, p in trained.items() if ".lora_" in name]
    others = [p for name, p in trained.items() if ".lora_" not in name]
    training = recipe.fit
    optimizer = torch.optim.AdamW([{"params": others}, {"params": adapters}], weight_decay=0.01, eps=1e-8)
    peaks = (training.peak_learning_rate, OWN_RATE)
    accumulation = training.batch // training.micro_batch
    model.train()
    for step in range(training.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share_of_peak(step, training.steps, training.warmup_steps)
        for part in range(accumulation):
            number = step * accumulation + part
            batch = batch_of(batch_indices(SEED, number, training.micro_batch, n_examples))
            torch.manual_seed(noise_seed(SEED, number))
            (model(batch) / accumulation).backward()
        nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in trained.items()}


def test_its_steps_are_torchs(tmp_path: Path) -> None:
    recipe = with_rate(OWN_RATE)
    model, batch_of, n_examples = made_up(recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    fit(model, batch_of, n_examples, recipe.fit, folder=tmp_path, seed=SEED, name="own rate")
    weights = dict(model.named_parameters())
    expected = trained_by_torch(recipe)
    assert expected.keys() == before.keys()
    for name, weight in expected.items():
        moved = (weight - before[name]).abs().max()
        assert moved > 0
        assert (weights[name] - weight).abs().max() < 1e-3 * moved, name


@pytest.mark.parametrize("layers", ["lora", "all", "none"])
def test_groups_hold_every_trained_parameter_once(layers: str) -> None:
    model, _, _ = made_up(with_rate(OWN_RATE, layers))
    groups = parameter_groups(model, 2e-2)
    assert [group["lr"] for group in groups] == ([2e-2] if layers == "none" else [2e-2, OWN_RATE])
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters() if p.requires_grad}
    if layers != "none":
        of_unet = {id(p) for p in model.unet.parameters()}
        assert {id(p) for p in groups[1]["params"]} <= of_unet


def test_the_rate_of_all_is_no_group_of_its_own() -> None:
    for rate in (None, 2e-2):
        (group,) = parameter_groups(made_up(with_rate(rate))[0], 2e-2)
        assert group["lr"] == 2e-2


def test_an_interruption_changes_no_digit(tmp_path: Path) -> None:
    batches = iter(range(9))

    def stop_in_the_fifth_step() -> None:
        if next(batches, None) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    recipe = with_rate(OWN_RATE)
    with pytest.raises(KeyboardInterrupt):
        losses_of(recipe, tmp_path / "stopped", stop_in_the_fifth_step)
    resumed = losses_of(recipe, tmp_path / "stopped")
    assert resumed == losses_of(recipe, tmp_path / "whole")
    assert not np.allclose(resumed, losses_of(with_rate(None), tmp_path / "one rate"), rtol=1e-3)
