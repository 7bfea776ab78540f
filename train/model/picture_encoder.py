"""The demo base model's picture encoder, which takes the place of Versatile Diffusion's CLIP.

It turns a picture into the condition tokens that the base UNet is pretrained with, and is frozen before that.
It is trained as one half of an autoencoder, with noise added to the tokens, so that the most important
content of a picture survives imprecise tokens: the brain module will later predict these tokens from brain
activity. In evaluation, tokens of the true picture are the ceiling.

Legend: B batch, N tokens, W token width, C channels, H and W of a picture 64 px.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from train.model.vae import to_tensor
from train.recipe import DemoBase

_ENCODE_BATCH = 64


@torch.no_grad()
def encode_tokens(encoder: PictureEncoder, pictures: NDArray[np.uint8]) -> Tensor:
    """Condition tokens of pictures, without noise: float32 ``[N, tokens, W]``."""
    starts = range(0, len(pictures), _ENCODE_BATCH)
    device = encoder.place_NW.device
    parts = [encoder(to_tensor(pictures[start : start + _ENCODE_BATCH]).to(device)) for start in starts]
    return torch.cat(parts).cpu()


def load_picture_encoder(folder: Path, base: DemoBase) -> tuple[PictureEncoder, Tensor]:
    """Load the picture encoder, and the null condition ``[N, W]`` that the base model was trained with."""
    weights = load_file(folder / "picture_encoder.safetensors")
    null = weights.pop("null_condition")
    encoder = PictureEncoder(base.token_width)
    encoder.load_state_dict(weights)
    return encoder.eval(), null


GRID = 4
N_TOKENS = GRID * GRID + 1


def disturb(tokens_BNW: Tensor, strongest: float) -> Tensor:
    """Add Gaussian noise with an SD drawn per sample, uniform in [0, ``strongest``)."""
    strength = strongest * torch.rand(len(tokens_BNW), 1, 1, device=tokens_BNW.device)
    noise = torch.randn_like(tokens_BNW, dtype=torch.float32)
    return tokens_BNW + (strength * noise).to(tokens_BNW.dtype)


class PictureEncoder(nn.Module):
    """Convolutions to one global token and a 4 x 4 grid of tokens, each with unit variance.

    Half of a token's variance is a fixed code of its place, because cross-attention treats tokens as a set
    and could not tell left from right without it.
    """

    place_NW: Tensor

    def __init__(self, token_width: int, widths: tuple[int, ...] = (16, 48, 96, 192)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for width in widths:
            layers += [
                nn.Conv2d(previous, width, 3, stride=2, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
            ]
            previous = width
        self.body = nn.Sequential(*layers)
        self.grid = nn.Conv2d(previous, token_width, 1)
        self.whole = nn.Linear(previous, token_width)
        self.norm = nn.LayerNorm(token_width, elementwise_affine=False)
        self.register_buffer("place_NW", torch.randn(N_TOKENS, token_width))

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1], ``[B, 3, 64, 64]``, to tokens ``[B, 17, W]``, the global one first."""
        features = self.body(picture_BCHW)
        grid = self.grid(features).flatten(2).transpose(1, 2)
        content = self.norm(torch.cat([self.whole(features.mean((2, 3)))[:, None], grid], dim=1))
        tokens: Tensor = (content + self.place_NW) / 2**0.5
        return tokens


class PictureAutoencoder(nn.Module):
    """The encoder's objective: reconstruct the picture from its tokens with noise."""

    def __init__(self, encoder: PictureEncoder, token_width: int, noise: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.noise = noise
        widths = (2 * token_width, 192, 96, 64)
        layers: list[nn.Module] = []
        for previous, width in zip(widths, widths[1:], strict=False):
            layers += [*_convolution(previous, width), nn.Upsample(scale_factor=2)]
        self.decoder = nn.Sequential(
            *layers, *_convolution(widths[-1], 32), nn.Conv2d(32, 12, 3, padding=1), nn.PixelShuffle(2)
        )

    def rebuild(self, tokens_BNW: Tensor) -> Tensor:
        """Tokens to pictures ``[B, 3, 64, 64]``; every place gets its own token and the global one."""
        grid = tokens_BNW[:, 1:].transpose(1, 2).reshape(len(tokens_BNW), -1, GRID, GRID)
        whole = tokens_BNW[:, 0, :, None, None].expand_as(grid)
        pictures: Tensor = self.decoder(torch.cat([grid, whole], dim=1))
        return pictures

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The absolute plus the squared error of pictures ``[B, 3, 64, 64]``."""
        pictures = batch["pictures"].to(self.encoder.place_NW.dtype)
        rebuilt = self.rebuild(disturb(self.encoder(pictures), self.noise)).float()
        difference = rebuilt - pictures.float()
        loss: Tensor = difference.abs().mean() + difference.square().mean()
        return loss


def _convolution(previous: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(previous, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
