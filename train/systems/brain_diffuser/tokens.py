"""Condition tokens of a picture, from the picture encoder that a base model's UNet was pretrained with.

The demo's base model has its own encoder (:mod:`train.model.picture_encoder`). Versatile Diffusion uses all
257 tokens of CLIP ViT-L/14: each is normalised and projected, as CLIP does with the first one, and divided by
the length of the first one.

Legend: B batch, N tokens, W token width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from nsd import Stimuli
from train.errors import TrainError
from train.model.picture_encoder import encode_tokens, load_picture_encoder
from train.recipe import DemoBase, VersatileDiffusion

ENCODER_FOLDER = "image_encoder"
PROCESSOR_FOLDER = "image_feature_extractor"
"""Versatile Diffusion's folders with CLIP and with its preprocessing of pictures."""
_DEMO_PX = 64
_BATCH = 32

TokensOf = Callable[[NDArray[np.uint8]], Tensor]
"""Pictures ``[B, H, W, 3]`` to tokens, float32 ``[B, N, W]``."""


def load_token_encoder(folder: Path, base: DemoBase | VersatileDiffusion) -> tuple[TokensOf, Tensor]:
    """A base model's picture encoder, and the null condition of the untuned base model, ``[N, W]``.

    The demo's UNet has learned its null condition. For Versatile Diffusion it is the tokens of a grey
    picture, as in Brain-Diffuser's code, where zeros in a range from -1 to 1 become 127.

    :raises TrainError: the base model's folder has no encoder
    """
    if isinstance(base, VersatileDiffusion):
        clip = ClipTokens(folder)
        return clip, clip(np.full((1, 224, 224, 3), 127, dtype=np.uint8))[0]
    encoder, null_NW = load_picture_encoder(folder, base)

    def tokens_of(pictures: NDArray[np.uint8]) -> Tensor:
        return encode_tokens(encoder, _resized(pictures, _DEMO_PX))

    return tokens_of, null_NW


class ClipTokens:
    """CLIP's vision model from a base model's folder, as Versatile Diffusion uses it (Xu et al. 2023)."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        for part, file in ((ENCODER_FOLDER, "config.json"), (PROCESSOR_FOLDER, "preprocessor_config.json")):
            if not (folder / part / file).exists():  # else transformers would look for it on the hub
                raise TrainError(
                    f"expected {folder / part / file}, found no file; download the base model's folders "
                    f"{ENCODER_FOLDER} and {PROCESSOR_FOLDER} too"
                )
        try:
            model = CLIPVisionModelWithProjection.from_pretrained(folder / ENCODER_FOLDER)
            self._processor: Any = CLIPImageProcessor.from_pretrained(folder / PROCESSOR_FOLDER)
        except (OSError, ValueError, RuntimeError) as error:
            raise TrainError(
                f"cannot load CLIP's vision model and its settings from {folder}: {error}; download "
                f"{ENCODER_FOLDER} and {PROCESSOR_FOLDER} again"
            ) from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.float().eval().requires_grad_(False).to(self._device)

    @torch.no_grad()
    def __call__(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Pictures of any size to tokens ``[B, 257, 768]``."""
        pixels = self._processor(images=list(pictures), return_tensors="pt").pixel_values
        hidden = self._model(pixel_values=pixels.to(self._device)).last_hidden_state
        normed = self._model.vision_model.post_layernorm(hidden)
        projected: Tensor = self._model.visual_projection(normed)
        tokens: Tensor = projected / projected[:, :1].norm(dim=-1, keepdim=True)
        return tokens.cpu()


def stimulus_tokens(stimuli: Stimuli, images: Sequence[int], tokens_of: TokensOf) -> NDArray[np.float16]:
    """Tokens of stimuli, float16 ``[images, N W]``; for all pictures of an NSD subject they take 4 GB."""
    parts = []
    for start in tqdm(range(0, len(images), _BATCH), desc="tokens", unit="batch"):
        tokens = tokens_of(stimuli.images(images[start : start + _BATCH]))
        parts.append(tokens.flatten(1).numpy().astype(np.float16))
    return np.concatenate(parts)


def _resized(pictures: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    if pictures.shape[1:3] == (size_px, size_px):
        return pictures
    resized = [cv2.resize(picture, (size_px, size_px), interpolation=cv2.INTER_CUBIC) for picture in pictures]
    return np.stack(resized).astype(np.uint8)
