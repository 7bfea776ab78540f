"""The brain module's counts and meaning, the noise, the adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from train.brain import BrainConfig, BrainModule
from train.diffusion import DiffusionLoss, cubic_timesteps, drop_conditions, make_scheduler, offset_noise
from train.dynadiff import LORA_TARGETS, add_lora
from train.pretrain import make_unet
from train.recipe import Recipe


def test_brain_module_has_the_papers_size() -> None:
    with torch.device("meta"):
        brain = BrainModule(BrainConfig(n_voxels=15_724))
    count = sum(p.numel() for p in brain.parameters())
    by_hand = 15_724 * 1552 + 6 * (1552 * 1552 + 1552) + 2 * 1552 + 7 + 1552 * 257 * 768 + 257 * 768
    # "about 400 M": the facts' layers give 345 M, most of it in the output layer
    assert count == by_hand


def test_brain_module_equals_its_layers_written_out() -> None:
    torch.manual_seed(0)
    brain = BrainModule(
        BrainConfig(n_voxels=10, n_volumes=3, n_subjects=2, hidden_width=8, n_tokens=2, token_width=4)
    )
    brain.eval()
    window, subject = torch.randn(5, 10, 3), torch.tensor([0, 1, 1, 0, 1])
    expected = []
    for one, who in zip(window, subject, strict=True):
        rows = []
        for t in range(3):
            hidden = one[:, t] @ brain.subject.weights[who]
            hidden = hidden @ brain.timestep.weight[t] + brain.timestep.bias[t]
            rows.append(torch.nn.functional.gelu(brain.norm(hidden)))
        mixed = (
            sum(w * row for w, row in zip(brain.aggregate.weight[0], rows, strict=True))
            + brain.aggregate.bias
        )
        expected.append(brain.output(mixed).view(2, 4))
    torch.testing.assert_close(brain(window, subject), torch.stack(expected))


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


def test_lora_is_on_every_cross_attention_projection_and_nothing_else_learns(tiny_recipe: Recipe) -> None:
    unet: UNet2DConditionModel = make_unet(tiny_recipe.base)
    add_lora(unet, tiny_recipe.lora)
    learning = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert learning
    assert all(any(f".{target}.lora_" in name for target in LORA_TARGETS) for name in learning)
    carriers = {name.split(".lora_")[0] for name in learning}
    projections = {
        name
        for name, _ in unet.named_modules()
        if any(name.endswith(f".{target}") for target in LORA_TARGETS)
    }
    assert carriers == projections


def test_attention_heads_have_the_width_the_recipe_names(tiny_recipe: Recipe) -> None:
    unet = make_unet(tiny_recipe.base)
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    assert attentions
    for attention in attentions:
        assert attention.to_q.out_features == attention.heads * tiny_recipe.base.attention_head_width


def test_scheduler_is_stable_diffusions() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    expected = np.cumprod(1 - betas)
    np.testing.assert_allclose(make_scheduler().alphas_cumprod.numpy(), expected, rtol=1e-5)
