"""What a recipe may do otherwise than the paper to learn faster: each lever against its formula."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.model.base_model import make_unet
from train.model.batch import Batch
from train.model.brain import BrainModule
from train.model.diffusion import (
    DiffusionLoss,
    cubic_shares,
    cubic_timesteps,
    inverse_snr_weights,
    make_scheduler,
)
from train.model.dynadiff import Dynadiff, brain_config, loss_weights
from train.model.finetune import set_trainable
from train.recipe import Finetune, Recipe, read_recipe

CAPS = [1e-6, 0.2, 20.0, 1e9]


def alphas() -> NDArray[np.float64]:
    """Of the scheduler, whose own test computes them apart."""
    return np.asarray(make_scheduler().alphas_cumprod.numpy(), dtype=np.float64)


@pytest.mark.parametrize("cap", CAPS)
def test_weights_are_the_capped_inverse_snr_over_its_mean(cap: float) -> None:
    alpha = alphas()
    capped = np.minimum((1 - alpha) / alpha, cap)
    shares = np.diff(1 - (1 - np.arange(1001) / 1000) ** (1 / 3))
    weights = inverse_snr_weights(cubic_shares(), cap).numpy()
    np.testing.assert_allclose(weights, capped / (shares * capped).sum(), rtol=1e-6)
    assert (cubic_shares().numpy() * weights).sum() == pytest.approx(1, abs=1e-6)
    assert np.all(np.diff(weights) >= 0)


def test_min_snr_is_a_cap_of_one_over_gamma() -> None:
    gamma, alpha = 5.0, alphas()
    snr = alpha / (1 - alpha)
    min_snr = np.minimum(snr, gamma) / snr
    weights = inverse_snr_weights(cubic_shares(), 1 / gamma).numpy()
    np.testing.assert_allclose(weights / weights[-1], min_snr / min_snr[-1], rtol=1e-6)


def test_a_low_cap_weighs_all_alike() -> None:
    np.testing.assert_allclose(inverse_snr_weights(cubic_shares(), 1e-6).numpy(), 1, rtol=1e-6)


class Guess(nn.Module):
    """Predicts noise that has nothing to do with the true one; keeps what it saw."""

    def forward(self, noisy: Tensor, timesteps: Tensor, conditions: Tensor) -> object:
        self.noisy, self.timesteps, self.conditions = noisy, timesteps, conditions
        self.sample = torch.sin(3 * noisy)
        return self


def test_without_a_cap_the_loss_is_the_error_of_the_clean_latents() -> None:
    latents, unet = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(1)), Guess()
    weights = inverse_snr_weights(cubic_shares(), 1e9)
    torch.manual_seed(7)
    loss = DiffusionLoss(0.1, cubic_timesteps, weights)(unet, latents, torch.zeros(64, 1, 1))
    scheduler = make_scheduler()
    scheduler.set_timesteps(1000)
    clean = [  # diffusers' own estimate of the clean latents
        scheduler.step(predicted, int(t), noisy).pred_original_sample
        for predicted, t, noisy in zip(unet.sample, unet.timesteps, unet.noisy, strict=True)
    ]
    of_clean = (torch.stack(clean) - latents).square().mean()
    alpha = scheduler.alphas_cumprod.double()
    mean_inverse_snr = (cubic_shares() * (1 - alpha) / alpha).sum()
    assert loss.item() == pytest.approx(of_clean.item() / mean_inverse_snr.item(), rel=1e-3)


def test_weights_of_one_are_the_uniform_loss() -> None:
    latents = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for weights in (None, torch.ones(1000)):
        torch.manual_seed(7)
        losses.append(DiffusionLoss(0.1, cubic_timesteps, weights)(Guess(), latents, torch.zeros(8, 1, 1)))
    torch.testing.assert_close(*losses)


def test_the_shipped_recipes_say_their_weight() -> None:
    for name in ("paper", "authors", "demo"):
        recipe = read_recipe(Path(name))
        assert loss_weights(recipe.diffusion) is None
        assert recipe.brain.dropout == 0.5
    weighted, demo = read_recipe(Path("demo-weighted")), read_recipe(Path("demo"))
    found = loss_weights(weighted.diffusion)
    assert found is not None
    torch.testing.assert_close(found, inverse_snr_weights(cubic_shares(), 20.0))
    assert weighted.brain == msgspec.structs.replace(demo.brain, dropout=0.1)
    again = msgspec.structs.replace(weighted, brain=demo.brain, diffusion=demo.diffusion)
    assert again == demo, "a comparison of the two is one of the levers alone"


def test_the_authors_recipe_differs_from_the_papers_where_their_code_does() -> None:
    paper, authors = (msgspec.to_builtins(read_recipe(Path(name))) for name in ("paper", "authors"))
    different = {
        f"{part} {name}": value
        for part, section in authors.items()
        if isinstance(section, dict)
        for name, value in section.items()
        if value != paper[part][name]
    }
    assert different == {
        "brain residual_place": "before aggregation",
        "brain residual_dropout": 0.15,
        "preprocessing drift": "linear",
        "preprocessing repaired_volumes": "use",
        "finetune initialisation": "kaiming",
        "diffusion null_condition": "zeros",
        "diffusion guidance": 3.5,
        "diffusion sampler": "ddpm",
        "latents posterior": "sample",
        "latents resampling": "bilinear",
    }
    assert authors["split"] == paper["split"]


def test_a_recipe_of_an_earlier_version_is_what_it_was() -> None:
    demo = read_recipe(Path("demo"))
    written = msgspec.to_builtins(demo)
    for part, name in (
        ("diffusion", "loss_weight"),
        ("diffusion", "loss_weight_cap"),
        ("diffusion", "draws_per_window"),
        ("finetune", "initialisation"),
        ("finetune", "peak_learning_rate"),
        ("fit", "ema_decay"),
    ):
        del written[part][name]
    del written["latents"]
    assert msgspec.convert(written, Recipe) == demo


@dataclass(frozen=True, kw_only=True)
class Seen:
    conditions: Tensor
    noisy: Tensor
    timesteps: Tensor
    loss: Tensor


def one_step(recipe: Recipe, draws_per_window: int) -> tuple[Seen, Batch, BrainModule]:
    """What the UNet sees in the first step of a model of 3 windows."""
    diffusion = msgspec.structs.replace(
        recipe.diffusion, draws_per_window=draws_per_window, condition_dropout=0.0
    )
    recipe = msgspec.structs.replace(recipe, diffusion=diffusion)
    torch.manual_seed(2)
    brain = BrainModule(brain_config(recipe, 10)).eval()
    unet = Guess()
    null = torch.zeros(recipe.base.n_tokens, recipe.base.token_width)
    batch = {
        "windows": torch.randn(3, 10, recipe.window.length_volumes),
        "subjects": torch.zeros(3, dtype=torch.int64),
        "latents": torch.randn(3, 4, 8, 8),
    }
    loss = Dynadiff(brain, unet, null, recipe)(batch)
    seen = Seen(conditions=unet.conditions, noisy=unet.noisy, timesteps=unet.timesteps, loss=loss)
    return seen, batch, brain


def test_draws_of_a_window_share_its_condition_and_differ_in_noise_and_timestep(tiny_recipe: Recipe) -> None:
    seen, batch, brain = one_step(tiny_recipe, 4)
    tokens = brain(batch["windows"], batch["subjects"])
    assert len(seen.noisy) == 12
    torch.testing.assert_close(seen.conditions, tokens.repeat_interleave(4, dim=0))
    alpha = make_scheduler().alphas_cumprod[seen.timesteps].view(-1, 1, 1, 1)
    noise = (seen.noisy - alpha.sqrt() * batch["latents"].repeat_interleave(4, dim=0)) / (1 - alpha).sqrt()
    errors = (torch.sin(3 * seen.noisy) - noise).square().mean()
    torch.testing.assert_close(seen.loss, errors, rtol=1e-4, atol=1e-5)
    assert len(np.unique(noise.round(decimals=3).numpy(), axis=0)) == 12
    assert len(set(seen.timesteps.tolist())) > 6


@pytest.mark.parametrize(("initialisation", "is_kaiming"), [("gaussian", False), ("kaiming", True)])
def test_adapters_begin_as_the_recipe_says(
    tiny_recipe: Recipe, initialisation: str, is_kaiming: bool
) -> None:
    torch.manual_seed(4)
    unet = make_unet(tiny_recipe.base)
    set_trainable(unet, Finetune(initialisation=initialisation))  # type: ignore[arg-type]
    parts = {name: p for name, p in unet.named_parameters() if ".lora_" in name}
    assert all(not p.any() for name, p in parts.items() if ".lora_B." in name)
    firsts = [p.detach() for name, p in parts.items() if ".lora_A." in name]
    in_sd = torch.cat([p.flatten() * ((3 * p.shape[1]) ** 0.5 if is_kaiming else 4) for p in firsts])
    assert in_sd.std().item() == pytest.approx(1, rel=0.05)
    assert (in_sd.abs().max().item() <= 3**0.5 + 1e-5) == is_kaiming
