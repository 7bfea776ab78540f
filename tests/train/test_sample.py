"""DDPM beside DDIM: diffusers' schedulers, and their formulas written out, from the same noise."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from train.model.diffusion import make_sampler, make_scheduler
from train.model.sample import decode, sample
from train.recipe import Diffusion, SamplerName, read_recipe

N_STEPS = [1, 3, 4, 20, 50]
SHAPE = (4, 8, 8)
GUIDANCE = 3.5


class Smooth(nn.Module):
    """Stands for a UNet: its noise depends on latents, timestep and condition; linear weights by seed."""

    config = type("Config", (), {"sample_size": 8, "in_channels": 4})

    def forward(self, latents: Tensor, timestep: Tensor, conditions: Tensor) -> object:
        pulled = conditions.mean(dim=(1, 2)).view(-1, 1, 1, 1) + timestep / 500 - 1
        noise = torch.tanh(latents.roll(1, dims=-1) + pulled)
        return type("Output", (), {"sample": noise})


def settings(n_steps: int, sampler: SamplerName = "ddpm") -> Diffusion:
    return Diffusion(
        offset_noise=0, condition_dropout=0, guidance=GUIDANCE, inference_steps=n_steps, sampler=sampler
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guided(latents: Tensor, timestep: int, conditions: Tensor, null: Tensor) -> Tensor:
    unet, at = Smooth(), torch.tensor(timestep)
    one, two = (unet(latents, at, given).sample for given in (null.expand_as(conditions), conditions))
    noise: Tensor = one + GUIDANCE * (two - one)
    return noise


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
        norm_num_groups=2,
    )


def written_out(
    n_steps: int, noise: Tensor, conditions: Tensor, null: Tensor, draw: torch.Generator
) -> Tensor:
    """Ho et al. 2020, equations 6, 7 and 11, over every 1000 // n-th timestep, in double precision."""
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    stride = 1000 // n_steps
    timesteps = [1 + stride * step for step in reversed(range(n_steps))]
    latents = noise.double()
    for step, t in enumerate(timesteps):
        before = alphas[timesteps[step + 1]] if step + 1 < n_steps else 1.0
        alpha = alphas[t] / before
        predicted = guided(latents, t, conditions, null)
        clean = (latents - math.sqrt(1 - alphas[t]) * predicted) / math.sqrt(alphas[t])
        mean = (math.sqrt(before) * (1 - alpha) * clean + math.sqrt(alpha) * (1 - before) * latents) / (
            1 - alphas[t]
        )
        variance = (1 - before) / (1 - alphas[t]) * (1 - alpha)
        latents = mean + math.sqrt(variance) * torch.randn(noise.shape, generator=draw).double()
    return latents


@pytest.mark.parametrize("n_steps", N_STEPS)
def test_ddpm_is_its_equations_and_diffusers_scheduler(n_steps: int) -> None:
    noise, conditions, null = drawn(1, *SHAPE), drawn(1, 2, 3, seed=1), torch.zeros(2, 3)
    draws = [torch.Generator().manual_seed(9)]
    found = sample(Smooth(), conditions, null, noise, settings(n_steps), draws=draws)
    expected = written_out(n_steps, noise, conditions, null, torch.Generator().manual_seed(9))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    theirs = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(n_steps)
    latents, draw = noise, torch.Generator().manual_seed(9)
    for t in theirs.timesteps.tolist():
        latents = theirs.step(guided(latents, t, conditions, null), t, latents, generator=draw).prev_sample
    torch.testing.assert_close(found, latents, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_steps", N_STEPS)
def test_ddpm_is_ddim_with_eta_1_but_for_the_last_step(n_steps: int) -> None:
    ddpm, ddim = make_sampler("ddpm"), make_scheduler()
    assert isinstance(ddpm, DDPMScheduler)
    assert isinstance(ddim, DDIMScheduler)
    for scheduler in (ddpm, ddim):
        scheduler.set_timesteps(n_steps)
    assert ddpm.timesteps.tolist() == ddim.timesteps.tolist()
    latents, predicted = drawn(1, *SHAPE, seed=2), drawn(1, *SHAPE, seed=3)
    for t in ddpm.timesteps.tolist():
        one, other = torch.Generator().manual_seed(t), torch.Generator().manual_seed(t)
        noisy = ddpm.step(predicted, t, latents, generator=one).prev_sample
        eta_1 = ddim.step(predicted, t, latents, eta=1.0, generator=other).prev_sample
        clean = ddpm.step(predicted, t, latents, generator=one).pred_original_sample
        if t == 1:
            torch.testing.assert_close(noisy, clean, rtol=0, atol=1e-6)
            assert (noisy - eta_1).abs().max() > 1e-3
        else:
            assert (noisy - eta_1).abs().max() <= 1e-6 * noisy.abs().max()


def decoded(vae: AutoencoderKL, sampler: SamplerName, trials: list[int], seed: int = 1) -> list[bytes]:
    """The pictures of trials, of which each has a condition of its own."""
    conditions = torch.stack([drawn(2, 3, seed=trial) for trial in trials])
    return [
        picture.tobytes()
        for picture in decode(
            lambda part: conditions[part],
            len(trials),
            Smooth(),
            vae,
            torch.zeros(2, 3),
            settings(4, sampler),
            seed,
            None,
            trials=trials,
        )
    ]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_trial_decodes_alike_whatever_else_is_decoded(vae: AutoencoderKL, sampler: SamplerName) -> None:
    many = list(range(100, 170))  # more than one batch
    every = dict(zip(many, decoded(vae, sampler, many), strict=True))
    torch.manual_seed(5)  # the global generator has no part in it
    some = [169, 101, 165]
    assert decoded(vae, sampler, some) == [every[trial] for trial in some]


def test_trials_have_noise_of_their_own_and_begin_alike(vae: AutoencoderKL) -> None:
    conditions = torch.zeros(3, 2, 3)

    def pictures(sampler: SamplerName, seed: int = 1) -> list[bytes]:
        null, made_with = torch.zeros(2, 3), settings(4, sampler)
        parts = (Smooth(), vae, null, made_with, seed, None)
        return [one.tobytes() for one in decode(lambda part: conditions[part], 3, *parts)]

    assert len(set(pictures("ddim"))) == 1
    assert len(set(pictures("ddpm"))) == 3
    assert pictures("ddpm") == pictures("ddpm")
    assert not set(pictures("ddpm")) & set(pictures("ddpm", seed=2))


def test_recipes_of_earlier_versions_sample_with_ddim() -> None:
    written = msgspec.to_builtins(read_recipe())
    del written["diffusion"]["sampler"]
    assert msgspec.convert(written, type(read_recipe())).diffusion.sampler == "ddim"
    assert isinstance(make_sampler("ddim"), DDIMScheduler)
