"""The demo base model's picture encoder: what CLIP is to Versatile Diffusion, at demo size.

It turns a picture into the condition tokens the base UNet is pretrained with. The brain module later learns
to write the same tokens from brain activity; this encoder then only serves as the ceiling in evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PictureEncoder(nn.Module):
    """Convolutions to a 4 x 4 grid of tokens and one global token, each of unit variance.

    Noise of a random strength is added to the tokens in training: the brain's tokens will be imprecise, and a
    base model that has only seen exact ones has no picture to offer for them.
    """

    def __init__(
        self, token_width: int, widths: tuple[int, ...] = (16, 48, 96, 192), noise: float = 0.7
    ) -> None:
        super().__init__()
        self.noise = noise
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

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1], ``[B, 3, 64, 64]``, to tokens ``[B, 17, W]``."""
        features = self.body(picture_BCHW)
        grid = self.grid(features).flatten(2).transpose(1, 2)
        tokens: Tensor = self.norm(torch.cat([self.whole(features.mean((2, 3)))[:, None], grid], dim=1))
        if self.training:
            strength = self.noise * torch.rand(len(tokens), 1, 1, device=tokens.device)
            tokens = tokens + (strength * torch.randn_like(tokens, dtype=torch.float32)).to(tokens.dtype)
        return tokens
