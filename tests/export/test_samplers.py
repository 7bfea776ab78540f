from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.errors import ExportError
from export.graphs import DenoiseGraph
from export.parity import Limits, gate
from export.samplers import ddim, diffusers_ddim_error
from realtime.bundle import Sampler
from train.diffusion import make_scheduler


@pytest.mark.parametrize(
    ("n_steps", "guidance"), [(1, 1.0), (4, 3.0), (10, 3.5), (20, 3.0), (50, 7.5), (333, 1.0)]
)
def test_whole_trajectories_equal_diffusers(n_steps: int, guidance: float) -> None:
    assert diffusers_ddim_error(ddim(n_steps, guidance)) <= Limits().sampler


@pytest.mark.parametrize(
    ("n_steps", "strength"), [(20, 0.75), (10, 0.75), (4, 0.75), (3, 1.0), (2, 0.1), (1, 0.75)]
)
def test_the_end_of_a_schedule_equals_diffusers_img2img(n_steps: int, strength: float) -> None:
    sampler = ddim(n_steps, 3.0, strength)
    assert diffusers_ddim_error(sampler, n_steps) <= Limits().sampler
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
    assert diffusers_ddim_error(moved, 20) > 5 * Limits().sampler
    with pytest.raises(ExportError, match=r"expected diffusers' timesteps \[397, 331, .* got \[601, 501,"):
        diffusers_ddim_error(ddim(10, 3.0, 0.75), 15)


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


def test_the_least_change_of_a_coefficient_is_seen() -> None:
    sampler = ddim(20, 3.0)
    kept, moved, _ = sampler.coefficients[7]
    rows = (*sampler.coefficients[:7], (kept, moved + 1e-3, 0.0), *sampler.coefficients[8:])
    error = diffusers_ddim_error(msgspec.structs.replace(sampler, coefficients=rows))
    assert error > 5 * Limits().sampler
    with pytest.raises(ExportError, match="sampler ddim-20: expected latents to stay within 1e-05"):
        gate("sampler ddim-20", {"latents": error}, Limits().sampler)


def test_other_timesteps_are_refused() -> None:
    sampler = ddim(4, 3.0)
    shifted = msgspec.structs.replace(sampler, timesteps=tuple(t - 1 for t in sampler.timesteps))
    with pytest.raises(ExportError, match=r"expected diffusers' timesteps \[751, 501, 251, 1\]"):
        diffusers_ddim_error(shifted)


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
