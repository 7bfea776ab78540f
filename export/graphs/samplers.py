"""Samplers as tables, and a comparison of each table with diffusers' scheduler.

DDIM (Song et al. 2021, eta 0) takes latents x at timestep t to timestep t' by

    next = sqrt(a') x0 + sqrt(1 - a') eps,    eps = (x - sqrt(a) x0) / sqrt(1 - a)

with a the noise schedule's ``alphas_cumprod`` and x0 the prediction of the clean latents. In terms of x and
x0 this is ``next = c0 x + c1 x0`` with ``c0 = sqrt((1 - a') / (1 - a))`` and ``c1 = sqrt(a') - c0 sqrt(a)``.

With a strength s < 1, only the last steps of such a schedule are run, from predicted latents z with noise
added (SDEdit, Meng et al. 2022; diffusers' img2img): the first x is ``sqrt(a) z + sqrt(1 - a) eps`` at the
first of these timesteps.

DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) also uses the x0 of the step before, p. With the log signal-to-
noise ratio ``l = log(sqrt(a) / sqrt(1 - a))``, the step ``h = l' - l`` and that of the step before, h0,

    next = sqrt((1 - a') / (1 - a)) x + sqrt(a') (1 - exp(-h)) ((1 + r) x0 - r p),    r = h / (2 h0)

The first step has no p and uses r = 0; the last step ends without noise (a' = 1), where next = x0.

Guidance matters most at high noise, and leaving it out in the last 30 to 50 % of the steps costs little
(Castillo et al. 2023; Kynkäänniemi et al. 2024). Each table therefore exists with guidance in all steps, and
in the first 60 % only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn

from export.errors import ExportError
from export.graphs.graphs import DenoiseGraph
from realtime.bundle.spec import Sampler
from train.model.diffusion import make_scheduler
from train.model.sample import steps_to_run
from train.recipe import Diffusion

MULTISTEP_LENGTHS = (12, 10, 8, 6)
GUIDED_SHARE = 0.6
_FIRST_TIMESTEP = 1
_NAME = re.compile(r"(?P<kind>ddim|dpm\+\+)-(?P<steps>\d+)(-of-(?P<schedule>\d+))?(-g\d+)?")
_TRAJECTORIES = 3
_SHAPE = (4, 4, 4)

Row = tuple[float, float, float]
NoiseModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Predicts the noise of latents ``[n, c, h, w]`` at a timestep, given conditions ``[n, N, W]``."""


def bundle_samplers(settings: Diffusion, strength: float | None = None) -> tuple[Sampler, ...]:
    """A bundle's samplers, best first: the recipe's DDIM, then samplers with fewer steps for slower machines.

    :param strength: for the baseline, which starts from predicted latents; it has only DDIM's tables
    """
    n_steps, guidance = settings.inference_steps, settings.guidance
    if strength is not None:
        return tuple(ddim(n, guidance, strength) for n in (n_steps, n_steps // 2) if n)
    whole = (ddim(n_steps, guidance), *(multistep(n, guidance) for n in MULTISTEP_LENGTHS))
    if guidance == 1:
        return whole
    return tuple(table for sampler in whole for table in (sampler, guided_at_first(sampler)))


def guided_at_first(sampler: Sampler) -> Sampler:
    """The same sampler without guidance in its last steps, which halves their cost."""
    n_steps = len(sampler.timesteps)
    n_guided = max(1, round(GUIDED_SHARE * n_steps))
    guidance = sampler.guidance[:n_guided] + (1.0,) * (n_steps - n_guided)
    return msgspec.structs.replace(sampler, name=f"{sampler.name}-g{n_guided}", guidance=guidance)


def ddim(n_steps: int, guidance: float, strength: float | None = None) -> Sampler:
    """DDIM over ``n_steps`` evenly spaced timesteps, the last of which is 1, with one guidance for all steps.

    :param strength: share of the steps that are run, from latents that the brain module predicts; by default
        all steps are run, from noise
    :raises ExportError: the noise schedule has too few timesteps
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


def _ddim_row(alpha: float, alpha_after: float) -> Row:
    kept = math.sqrt((1 - alpha_after) / (1 - alpha))
    return kept, math.sqrt(alpha_after) - kept * math.sqrt(alpha), 0.0


def multistep(n_steps: int, guidance: float) -> Sampler:
    """DPM-Solver++(2M) as commonly used with Stable Diffusion: timesteps evenly spaced from 999 down.

    :raises ExportError: fewer than two steps were asked for, or more than there are timesteps
    """
    alphas = make_scheduler().alphas_cumprod.double().tolist()
    last = len(alphas) - 1
    if not 2 <= n_steps <= last:
        raise ExportError(f"expected 2 to {last} steps of DPM-Solver++, got {n_steps}")
    timesteps = [round(last * i / n_steps) for i in range(n_steps, 0, -1)]
    levels = [alphas[timestep] for timestep in timesteps]
    rows = [
        _multistep_row(levels[i], levels[i + 1], levels[i - 1] if i else None) for i in range(n_steps - 1)
    ]
    return Sampler(
        name=f"dpm++-{n_steps}",
        timesteps=tuple(timesteps),
        coefficients=(*rows, (0.0, 1.0, 0.0)),
        guidance=(float(guidance),) * n_steps,
    )


def _multistep_row(
    alpha: float, alpha_after: float, alpha_before: float | None
) -> tuple[float, float, float]:
    step = _log_snr(alpha_after) - _log_snr(alpha)
    towards = math.sqrt(alpha_after) * -math.expm1(-step)
    share = 0.0 if alpha_before is None else step / (2 * (_log_snr(alpha) - _log_snr(alpha_before)))
    return math.sqrt((1 - alpha_after) / (1 - alpha)), towards * (1 + share), -towards * share


def _log_snr(alpha: float) -> float:
    return 0.5 * math.log(alpha / (1 - alpha))


def diffusers_scheduler(sampler: Sampler) -> Any:
    """The scheduler of diffusers for a table, found by the table's name, with its timesteps set.

    :raises ExportError: the table's name is unknown, or its timesteps differ from the scheduler's
    """
    named = _NAME.fullmatch(sampler.name)
    if named is None:
        raise ExportError(f"expected a sampler's name such as ddim-20 or dpm++-10-g6, got {sampler.name!r}")
    scheduler = make_scheduler()
    if named["kind"] == "dpm++":
        scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(int(named["schedule"] or named["steps"]))
    timesteps = tuple(scheduler.timesteps.tolist())[-len(sampler.timesteps) :]
    if timesteps != sampler.timesteps:
        raise ExportError(
            f"sampler {sampler.name}: expected diffusers' timesteps {list(timesteps)}, "
            f"got {list(sampler.timesteps)}"
        )
    return scheduler


def diffusers_steps(
    sampler: Sampler,
    noise_of: NoiseModel,
    conditions: Tensor,
    null: Tensor,
    noise: Tensor,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """Latents ``[B, c, h, w]`` before the first step and after each step of diffusers' scheduler.

    Only the guidance is taken from the table.

    :param conditions: ``[B, N, W]``; ``null``: ``[N, W]``; ``noise``: ``[B, c, h, w]``
    :param start: predicted latents, for a table that starts from them
    """
    scheduler = diffusers_scheduler(sampler)
    timesteps = scheduler.timesteps[-len(sampler.timesteps) :]
    latents = noise if start is None else scheduler.add_noise(start, noise, timesteps[:1])
    yield latents
    both = torch.cat([null.expand_as(conditions), conditions])
    for timestep, guidance in zip(timesteps, sampler.guidance, strict=True):
        if guidance == 1:
            predicted = noise_of(latents, timestep, conditions)
        else:
            unguided, guided = noise_of(torch.cat([latents, latents]), timestep, both).chunk(2)
            predicted = unguided + guidance * (guided - unguided)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        yield latents


class _SmoothNoise(nn.Module):
    """Replaces a UNet: a smooth function of latents, timestep and condition, with seeded weights."""

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
def diffusers_error(sampler: Sampler) -> float:
    """Largest difference from diffusers' scheduler over whole trajectories, relative to the largest latent.

    The table is run by :class:`export.graphs.graphs.DenoiseGraph`, as in the bundle, but in float64.

    :raises ExportError: as :func:`diffusers_scheduler`
    """
    worst = 0.0
    for seed in range(_TRAJECTORIES):
        unet = _SmoothNoise(seed).double()
        draw = torch.Generator().manual_seed(seed)
        noise, predicted = torch.randn(2, 1, *_SHAPE, generator=draw, dtype=torch.float64)
        null, condition = torch.randn(2, 1, math.prod(_SHAPE), generator=draw, dtype=torch.float64)
        start = predicted if sampler.starts_from_brain else None

        def noise_of(latents: Tensor, timestep: Tensor, conditions: Tensor, unet: nn.Module = unet) -> Tensor:
            noises: Tensor = unet(latents, timestep, conditions)[0]
            return noises

        theirs = diffusers_steps(sampler, noise_of, condition[None], null, noise, start)
        ours = _table_steps(sampler, unet, torch.stack([null, condition]), noise, predicted)
        for found, expected in zip(ours, theirs, strict=True):
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def _table_steps(
    sampler: Sampler, unet: nn.Module, conditions: Tensor, noise: Tensor, predicted: Tensor
) -> Iterator[Tensor]:
    """Latents before the first step and after each step of a table; the first condition is the null one."""
    step = DenoiseGraph(unet, make_scheduler().alphas_cumprod).double()
    latents = sampler.start[0] * predicted + sampler.start[1] * noise
    previous = torch.zeros_like(latents)
    yield latents
    rows = zip(sampler.timesteps, sampler.coefficients, sampler.guidance, strict=True)
    for timestep, row, guidance in rows:
        weights = torch.tensor([1 - guidance, guidance] if guidance != 1 else [1.0], dtype=torch.float64)
        coefficients = torch.tensor(row, dtype=torch.float64)
        given = conditions[-len(weights) :]
        latents, previous = step(latents, previous, torch.tensor([timestep]), given, weights, coefficients)
        yield latents
