"""Samplers as tables, and the proof that a table is what diffusers' scheduler does.

DDIM (Song et al. 2021, eta 0) takes latents x at timestep t to timestep t' by

    next = sqrt(a') x0 + sqrt(1 - a') eps,    eps = (x - sqrt(a) x0) / sqrt(1 - a)

with a the noise schedule's ``alphas_cumprod`` and x0 the prediction of the clean latents. Collected by x and
x0 this is ``next = c0 x + c1 x0`` with ``c0 = sqrt((1 - a') / (1 - a))`` and ``c1 = sqrt(a') - c0 sqrt(a)``.

Of strength s < 1 it is the last steps of such a schedule, from predicted latents z with noise on them
(SDEdit, Meng et al. 2022; diffusers' img2img): the first x is ``sqrt(a) z + sqrt(1 - a) eps`` at the first
timestep left.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.graphs import DenoiseGraph
from realtime.bundle import Sampler
from train.diffusion import make_scheduler
from train.recipe import Diffusion
from train.sample import steps_to_run

_FIRST_TIMESTEP = 1
_TRAJECTORIES = 3
_SHAPE = (4, 4, 4)


def schedule_lengths(settings: Diffusion) -> tuple[int, ...]:
    """Steps of a bundle's samplers: the recipe's and, for slower machines, half as many."""
    return tuple(n for n in (settings.inference_steps, settings.inference_steps // 2) if n > 0)


def ddim(n_steps: int, guidance: float, strength: float | None = None) -> Sampler:
    """DDIM over ``n_steps`` evenly spaced timesteps, the last of which is 1, with one guidance throughout.

    :param strength: share of the steps that are run, from latents that the brain predicts; by default all of
        them, from noise
    :raises ExportError: when the noise schedule has not so many timesteps to choose from
    """
    alphas = make_scheduler().alphas_cumprod.double().tolist()
    stride = len(alphas) // n_steps if n_steps > 0 else 0
    if stride < 2:
        raise ExportError(
            f"expected 1 to {len(alphas) // 2} steps, got {n_steps}; change the recipe's inference_steps"
        )
    timesteps = [_FIRST_TIMESTEP + stride * i for i in reversed(range(n_steps))]
    name, start = f"ddim-{n_steps}", (0.0, 1.0)
    if strength is not None:
        n_run = steps_to_run(n_steps, strength)
        timesteps = timesteps[-n_run:]
        name = f"ddim-{n_run}-of-{n_steps}"
        start = (math.sqrt(alphas[timesteps[0]]), math.sqrt(1 - alphas[timesteps[0]]))
    rows = [_ddim_row(alphas[t], alphas[max(t - stride, 0)]) for t in timesteps]
    return Sampler(
        name=name,
        timesteps=tuple(timesteps),
        coefficients=tuple(rows),
        guidance=(float(guidance),) * len(rows),
        start=start,
    )


def _ddim_row(alpha: float, alpha_after: float) -> tuple[float, float, float]:
    kept = math.sqrt((1 - alpha_after) / (1 - alpha))
    return kept, math.sqrt(alpha_after) - kept * math.sqrt(alpha), 0.0


class _SmoothNoise(nn.Module):
    """Stands in for a UNet: a smooth function of latents, timestep and condition, by seeded weights."""

    mix: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        size = math.prod(_SHAPE)
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("mix", torch.randn(size, size, generator=draw) / size**0.5)

    def forward(
        self, latents: Tensor, timestep: Tensor, conditions: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        mixed = latents.flatten(1) @ self.mix + conditions.flatten(1) + timestep / 500 - 1
        return (torch.tanh(mixed).view(latents.shape),)


@torch.no_grad()
def diffusers_ddim_error(sampler: Sampler, n_steps: int | None = None) -> float:
    """Largest difference from diffusers' ``DDIMScheduler`` over whole guided trajectories, in float64.

    The table runs through :class:`export.graphs.DenoiseGraph`, as in the bundle; relative to the largest
    latent.

    :param n_steps: of the schedule whose end the sampler is; by default it is all of one
    :raises ExportError: when the timesteps differ
    """
    scheduler = make_scheduler()
    scheduler.set_timesteps(n_steps or len(sampler.timesteps))
    timesteps = scheduler.timesteps[-len(sampler.timesteps) :]
    if tuple(timesteps.tolist()) != sampler.timesteps:
        raise ExportError(
            f"sampler {sampler.name}: expected diffusers' timesteps {timesteps.tolist()}, "
            f"got {list(sampler.timesteps)}"
        )
    worst = 0.0
    for seed in range(_TRAJECTORIES):
        unet = _SmoothNoise(seed).double()
        step = DenoiseGraph(unet, scheduler.alphas_cumprod).double()
        draw = torch.Generator().manual_seed(seed)
        noise, predicted = torch.randn(2, 1, *_SHAPE, generator=draw, dtype=torch.float64)
        ours = sampler.start[0] * predicted + sampler.start[1] * noise
        theirs = scheduler.add_noise(predicted, noise, timesteps[:1]) if sampler.starts_from_brain else noise
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
        previous = torch.zeros_like(ours)
        conditions = torch.randn(2, math.prod(_SHAPE), generator=draw, dtype=torch.float64)
        for timestep, row, guidance in zip(timesteps, sampler.coefficients, sampler.guidance, strict=True):
            weights = torch.tensor([1 - guidance, guidance], dtype=torch.float64)
            table = torch.tensor(row, dtype=torch.float64)
            ours, previous = step(ours, previous, timestep.view(1), conditions, weights, table)
            without, with_condition = unet(theirs.repeat(2, 1, 1, 1), timestep, conditions)[0].chunk(2)
            guided = without + guidance * (with_condition - without)
            theirs = scheduler.step(guided, timestep, theirs).prev_sample
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst
