"""How many pictures go through a network at once follows from their size; the demo's batches are as ever."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from nsd import Layout, Stimuli
from train.data.latents import encode_stimuli
from train.model.sample import decode
from train.recipe import read_recipe


def batches_of(network: nn.Module) -> list[int]:
    """Filled, as ``network`` runs, with how many examples it is given each time."""
    seen: list[int] = []
    network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    return seen


def one_block_vae(n_halvings: int) -> AutoencoderKL:
    torch.manual_seed(0)
    depth = n_halvings + 1
    return AutoencoderKL(
        block_out_channels=(4,) * depth,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        latent_channels=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )


@pytest.mark.parametrize(("latent_px", "expected"), [(8, [64, 6]), (32, [16, 16, 6]), (64, [4, 4, 2])])
def test_the_unet_takes_as_many_as_their_size_allows(latent_px: int, expected: list[int]) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=latent_px,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        cross_attention_dim=8,
        norm_num_groups=2,
    ).eval()
    seen = batches_of(unet)
    n_pictures = sum(expected)
    conditions, null = torch.randn(n_pictures, 2, 8), torch.zeros(2, 8)
    settings = read_recipe().diffusion
    one_step = type(settings)(offset_noise=0, condition_dropout=0, guidance=3, inference_steps=1)
    pictures = decode(
        lambda part: conditions[part], n_pictures, unet, one_block_vae(0), null, one_step, 1, None
    )
    assert seen == [2 * n for n in expected], "each with and without its condition"
    assert pictures.shape == (n_pictures, latent_px, latent_px, 3)


@pytest.mark.parametrize(("latent_px", "expected"), [(8, [32, 3]), (64, [4, 4, 3])])
def test_the_vae_encodes_as_many_as_their_size_allows(
    latent_px: int, expected: list[int], tmp_path: Path
) -> None:
    layout = Layout(tmp_path)
    layout.stimuli().parent.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, size=(35, 64, 64, 3), dtype=np.uint8)
    with h5py.File(layout.stimuli(), "w") as file:
        file["imgBrick"] = pictures
    vae = one_block_vae(3)
    seen = batches_of(vae.encoder)
    with Stimuli(layout) as stimuli:
        latents = encode_stimuli(stimuli, range(sum(expected)), vae, latent_px)
    assert seen == expected
    assert latents.shape == (sum(expected), 4, latent_px, latent_px)
