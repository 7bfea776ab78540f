"""The noise, the loss, the base model's heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.model.base_model import make_unet
from train.model.diffusion import (
    DiffusionLoss,
    cubic_timesteps,
    drop_conditions,
    make_scheduler,
    offset_noise,
)
from train.recipe import Recipe, demo_base


@given(u=st.floats(0, 1, exclude_max=True))
def test_cubic_timesteps_follow_the_paper(u: float) -> None:
    (timestep,) = cubic_timesteps(torch.tensor([u], dtype=torch.float64)).tolist()
    assert timestep == min(999, int((1 - u**3) * 1000))


def test_offset_noise_shares_a_tenth_over_each_channel() -> None:
    torch.manual_seed(1)
    noise = offset_noise(torch.empty(4000, 4, 8, 8), 0.1)
    # the mean over 64 pixels has variance 1/64 of the pixels' plus 0.1 squared of the offset's
    assert noise.mean((2, 3)).var().item() == pytest.approx(1 / 64 + 0.01, rel=0.05)
    assert noise.var().item() == pytest.approx(1.01, rel=0.02)


def test_dropped_conditions_become_the_null_condition_whole() -> None:
    torch.manual_seed(2)
    conditions, null = torch.randn(3000, 2, 4), torch.full((2, 4), 7.0)
    mixed = drop_conditions(conditions, null, 0.1)
    dropped = (mixed == null).all(dim=(1, 2))
    assert torch.equal(mixed[~dropped], conditions[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_loss_is_the_error_of_the_predicted_noise() -> None:
    class Perfect(torch.nn.Module):
        """Knows the clean latents are 0, so what it sees is sqrt(1 - alpha) times the noise."""

        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> object:
            sigma = (1 - make_scheduler().alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
            return type("Output", (), {"sample": noisy / sigma})

    loss = DiffusionLoss(0.1, cubic_timesteps)(Perfect(), torch.zeros(8, 4, 4, 4), torch.zeros(8, 1, 1))
    assert loss.item() == pytest.approx(0, abs=1e-8)


def test_attention_heads_have_the_width_the_recipe_names(tiny_recipe: Recipe) -> None:
    unet = make_unet(tiny_recipe.base)
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    assert attentions
    for attention in attentions:
        assert attention.to_q.out_features == attention.heads * demo_base(tiny_recipe).attention_head_width


def test_scheduler_is_stable_diffusions() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    expected = np.cumprod(1 - betas)
    np.testing.assert_allclose(make_scheduler().alphas_cumprod.numpy(), expected, rtol=1e-5)
