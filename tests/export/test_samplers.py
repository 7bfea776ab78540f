from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.errors import ExportError
from export.graphs.graphs import DenoiseGraph
from export.graphs.samplers import (
    bundle_samplers,
    ddim,
    diffusers_error,
    diffusers_scheduler,
    guided_at_first,
    multistep,
)
from export.parity.limits import Limits, gate
from realtime.bundle.spec import Sampler
from train.model.diffusion import make_scheduler
from train.recipe import PAPER, read_recipe


@pytest.mark.parametrize(
    ("n_steps", "guidance"), [(1, 1.0), (4, 3.0), (10, 3.5), (20, 3.0), (50, 7.5), (333, 1.0)]
)
def test_whole_trajectories_equal_diffusers(n_steps: int, guidance: float) -> None:
    assert diffusers_error(ddim(n_steps, guidance)) <= Limits().sampler


@pytest.mark.parametrize("n_steps", [2, 3, 6, 8, 10, 12, 14, 15, 25, 50])
@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
def test_whole_multistep_trajectories_equal_diffusers(n_steps: int, guidance: float) -> None:
    """Below 15 steps and above: diffusers lowers the order of the last steps differently."""
    for sampler in (multistep(n_steps, guidance), guided_at_first(multistep(n_steps, guidance))):
        assert diffusers_error(sampler) <= Limits().sampler
    assert isinstance(diffusers_scheduler(sampler), DPMSolverMultistepScheduler)


def test_a_bundles_tables_are_the_papers_first_and_then_ever_cheaper_ones() -> None:
    recipe = read_recipe(PAPER)
    samplers = bundle_samplers(recipe.diffusion)
    assert [sampler.name for sampler in samplers] == [
        *("ddim-20", "ddim-20-g12", "dpm++-12", "dpm++-12-g7", "dpm++-10", "dpm++-10-g6"),
        *("dpm++-8", "dpm++-8-g5", "dpm++-6", "dpm++-6-g4"),
    ]
    assert all(diffusers_error(sampler) <= Limits().sampler for sampler in samplers)
    for whole, part in zip(samplers[::2], samplers[1::2], strict=True):
        assert (whole.timesteps, whole.coefficients) == (part.timesteps, part.coefficients)
        n_guided = part.guidance.index(1.0)
        assert part.guidance[:n_guided] == whole.guidance[:n_guided] == (3.0,) * n_guided
        assert set(part.guidance[n_guided:]) == {1.0}
        assert part.name == f"{whole.name}-g{n_guided}"
    unguided = bundle_samplers(msgspec.structs.replace(recipe.diffusion, guidance=1.0))
    assert [sampler.name for sampler in unguided] == [sampler.name for sampler in samplers[::2]]


def test_the_baselines_tables_start_from_the_brain() -> None:
    samplers = bundle_samplers(read_recipe(PAPER).diffusion, 0.75)
    assert [sampler.name for sampler in samplers] == ["ddim-15-of-20", "ddim-7-of-10"]
    assert all(sampler.starts_from_brain for sampler in samplers)


@pytest.mark.parametrize("n_steps", [0, 1, 1000])
def test_multistep_needs_steps_to_choose(n_steps: int) -> None:
    with pytest.raises(ExportError, match="expected 2 to 999 steps"):
        multistep(n_steps, 3.0)


def test_a_table_without_a_known_name_is_refused() -> None:
    with pytest.raises(ExportError, match="expected a sampler's name such as ddim-20"):
        diffusers_error(msgspec.structs.replace(ddim(4, 3.0), name="euler-4"))


@pytest.mark.parametrize("column", [0, 1, 2])
def test_the_least_change_of_a_multistep_coefficient_is_seen(column: int) -> None:
    sampler = multistep(10, 3.0)
    row = list(sampler.coefficients[4])
    row[column] += 1e-3
    rows = (*sampler.coefficients[:4], tuple(row), *sampler.coefficients[5:])
    changed = msgspec.structs.replace(sampler, coefficients=rows)
    assert diffusers_error(changed) > 5 * Limits().sampler


@pytest.mark.parametrize(
    ("n_steps", "strength"), [(20, 0.75), (10, 0.75), (4, 0.75), (3, 1.0), (2, 0.1), (1, 0.75)]
)
def test_the_end_of_a_schedule_equals_diffusers_img2img(n_steps: int, strength: float) -> None:
    sampler = ddim(n_steps, 3.0, strength)
    assert diffusers_error(sampler) <= Limits().sampler
    scheduler = make_scheduler()
    scheduler.set_timesteps(n_steps)
    pipeline = SimpleNamespace(scheduler=scheduler)
    timesteps, n_run = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, n_steps, strength, "cpu")
    if n_run:  # img2img may run none at all; a bundle's sampler has one step at least
        assert sampler.timesteps == tuple(timesteps.tolist())
    assert sampler.name == f"ddim-{max(n_run, 1)}-of-{n_steps}"
    assert sum(share**2 for share in sampler.start) == pytest.approx(1), "the variance is that of noise alone"


def test_the_least_change_of_where_it_starts_is_seen() -> None:
    sampler = ddim(20, 3.0, 0.75)
    kept, share = sampler.start
    moved = msgspec.structs.replace(sampler, start=(kept + 1e-3, share))
    assert diffusers_error(moved) > 5 * Limits().sampler
    with pytest.raises(ExportError, match=r"expected diffusers' timesteps \[397, 331, .* got \[601, 501,"):
        diffusers_error(msgspec.structs.replace(ddim(10, 3.0, 0.75), name="ddim-7-of-15"))


class _KnowsTheAnswer(nn.Module):
    """Predicts exactly the noise that separates the latents from one clean picture."""

    def __init__(self, clean: Tensor, alphas: Tensor) -> None:
        super().__init__()
        self.clean, self.alphas = clean, alphas

    def forward(
        self, latents: Tensor, timestep: Tensor, conditions: Tensor, return_dict: bool
    ) -> tuple[Tensor]:
        alpha = self.alphas[timestep]
        return ((latents - alpha.sqrt() * self.clean) / (1 - alpha).sqrt(),)


@settings(max_examples=20, deadline=None)
@given(n_steps=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_perfect_model_leads_to_its_picture_at_the_last_noise_level(n_steps: int, seed: int) -> None:
    """The oracle is the forward process: DDIM keeps x = sqrt(a) x0 + sqrt(1 - a) eps, with one eps."""
    draw = torch.Generator().manual_seed(seed)
    clean, eps = torch.randn(2, 1, 2, 3, 3, generator=draw, dtype=torch.float64)
    alphas = make_scheduler().alphas_cumprod.double()
    step = DenoiseGraph(_KnowsTheAnswer(clean, alphas), alphas).double()
    sampler = ddim(n_steps, 1.0)
    first = alphas[sampler.timesteps[0]]
    latents, previous = first.sqrt() * clean + (1 - first).sqrt() * eps, torch.zeros_like(clean)
    for timestep, row in zip(sampler.timesteps, sampler.coefficients, strict=True):
        table = torch.tensor(row, dtype=torch.float64)
        latents, previous = step(
            latents, previous, torch.tensor([timestep]), torch.zeros(1, 1, 1), torch.ones(1).double(), table
        )
        np.testing.assert_allclose(previous, clean, atol=1e-5)
    np.testing.assert_allclose(latents, alphas[0].sqrt() * clean + (1 - alphas[0]).sqrt() * eps, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(n_steps=st.integers(2, 60), seed=st.integers(0, 99))
def test_multistep_with_a_perfect_model_ends_at_its_picture(n_steps: int, seed: int) -> None:
    """The oracle is the forward process: every step lies on x = sqrt(a) x0 + sqrt(1 - a) eps."""
    draw = torch.Generator().manual_seed(seed)
    clean, eps = torch.randn(2, 1, 2, 3, 3, generator=draw, dtype=torch.float64)
    alphas = make_scheduler().alphas_cumprod.double()
    step = DenoiseGraph(_KnowsTheAnswer(clean, alphas), alphas).double()
    sampler = multistep(n_steps, 1.0)
    levels = [float(alphas[timestep]) for timestep in sampler.timesteps] + [1.0]
    latents, previous = math.sqrt(levels[0]) * clean + math.sqrt(1 - levels[0]) * eps, torch.zeros_like(clean)
    for timestep, row, level in zip(sampler.timesteps, sampler.coefficients, levels[1:], strict=True):
        table = torch.tensor(row, dtype=torch.float64)
        latents, previous = step(
            latents, previous, torch.tensor([timestep]), torch.zeros(1, 1, 1), torch.ones(1).double(), table
        )
        on_the_way = math.sqrt(level) * clean + math.sqrt(1 - level) * eps
        np.testing.assert_allclose(latents, on_the_way, atol=2e-5)
    np.testing.assert_allclose(latents, clean, atol=1e-5)


def test_the_least_change_of_a_coefficient_is_seen() -> None:
    sampler = ddim(20, 3.0)
    kept, moved, _ = sampler.coefficients[7]
    rows = (*sampler.coefficients[:7], (kept, moved + 1e-3, 0.0), *sampler.coefficients[8:])
    error = diffusers_error(msgspec.structs.replace(sampler, coefficients=rows))
    assert error > 5 * Limits().sampler
    with pytest.raises(ExportError, match="sampler ddim-20: expected latents to stay within 1e-05"):
        gate("sampler ddim-20", {"latents": error}, Limits().sampler)


def test_other_timesteps_are_refused() -> None:
    sampler = ddim(4, 3.0)
    shifted = msgspec.structs.replace(sampler, timesteps=tuple(t - 1 for t in sampler.timesteps))
    with pytest.raises(ExportError, match=r"expected diffusers' timesteps \[751, 501, 251, 1\]"):
        diffusers_error(shifted)


@pytest.mark.parametrize("n_steps", [0, -3, 501])
def test_more_steps_than_the_schedule_has(n_steps: int) -> None:
    with pytest.raises(ExportError, match="expected 1 to 500 steps"):
        ddim(n_steps, 3.0)


def test_a_table_is_plain_numbers_and_reads_back() -> None:
    sampler = ddim(20, 3)
    assert msgspec.json.decode(msgspec.json.encode(sampler), type=Sampler) == sampler
    assert sampler.guidance == (3.0,) * 20
    assert all(isinstance(value, float) for row in sampler.coefficients for value in row)


def test_limits_are_those_of_the_design() -> None:
    assert dataclasses.astuple(Limits()) == (1e-4, 1e-4, 1e-2, 1e-5, 30.0, 0.01)
    assert isinstance(make_scheduler(), DDIMScheduler)
