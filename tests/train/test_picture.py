"""The picture encoder: tokens that know their place and survive imprecision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from train.model.picture_encoder import (
    N_TOKENS,
    PictureAutoencoder,
    PictureEncoder,
    disturb,
    encode_tokens,
    load_picture_encoder,
)
from train.model.vae import to_tensor
from train.recipe import Recipe, demo_base


def test_tokens_of_a_uniform_picture_tell_their_places_apart() -> None:
    torch.manual_seed(0)
    tokens = PictureEncoder(32)(torch.full((1, 3, 64, 64), 0.3))[0]
    assert tokens.shape == (N_TOKENS, 32)
    distances = torch.cdist(tokens, tokens) + 100 * torch.eye(N_TOKENS)
    assert distances.min() > 1, "two places have nearly the same token"


def test_tokens_have_about_unit_variance(pictures: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        tokens = PictureEncoder(128)(to_tensor(pictures))
    assert 0.8 < float(tokens.square().mean()) < 1.2


def test_disturbing_adds_noise_of_a_strength_drawn_per_sample() -> None:
    torch.manual_seed(0)
    tokens = torch.zeros(2000, 3, 50)
    strengths = disturb(tokens, 0.7).std(dim=(1, 2))
    assert float(strengths.max()) < 0.9  # 0.7 and the scatter of an SD of 150 numbers
    assert abs(float(strengths.mean()) - 0.35) < 0.02
    assert float(strengths.min()) < 0.02
    torch.testing.assert_close(disturb(tokens, 0.0), tokens)


def test_a_tokens_picture_lies_at_its_place() -> None:
    torch.manual_seed(0)
    autoencoder = PictureAutoencoder(PictureEncoder(32), 32, noise=0.7).eval()
    tokens = torch.randn(1, N_TOKENS, 32)
    changed = tokens.clone()
    changed[0, 1 + 15] += 1  # the lower right place
    with torch.no_grad():
        change = (autoencoder.rebuild(changed) - autoencoder.rebuild(tokens))[0].square().sum(dim=0)
    quarters = change.unflatten(0, (2, 32)).unflatten(2, (2, 32)).sum(dim=(1, 3))
    assert quarters[1, 1] > 2 * (quarters.sum() - quarters[1, 1])


def test_the_encoder_reads_back_as_it_was_trained(
    tiny_base: Path, tiny_recipe: Recipe, pictures: NDArray[np.uint8]
) -> None:
    first, null_NW = load_picture_encoder(tiny_base, demo_base(tiny_recipe))
    torch.manual_seed(99)  # places are drawn at construction: the file's must win
    second, _ = load_picture_encoder(tiny_base, demo_base(tiny_recipe))
    assert null_NW.shape == (N_TOKENS, tiny_recipe.base.token_width)
    torch.testing.assert_close(encode_tokens(first, pictures), encode_tokens(second, pictures))
