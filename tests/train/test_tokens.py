"""Condition tokens of pictures, against diffusers' own use of CLIP."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import VersatileDiffusionImageVariationPipeline
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from nsd import Layout, Stimuli
from train.errors import TrainError
from train.model.picture_encoder import encode_tokens, load_picture_encoder
from train.recipe import Recipe, VersatileDiffusion
from train.systems.brain_diffuser.tokens import (
    ENCODER_FOLDER,
    PROCESSOR_FOLDER,
    load_token_encoder,
    stimulus_tokens,
)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, in the folders that Versatile Diffusion has."""
    folder = tmp_path_factory.mktemp("versatile-diffusion")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        projection_dim=24,
    )
    model = CLIPVisionModelWithProjection(config)
    model.vision_model.post_layernorm.weight.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder / ENCODER_FOLDER)
    CLIPImageProcessor().save_pretrained(folder / PROCESSOR_FOLDER)
    return folder


def test_clips_tokens_are_those_that_diffusers_feeds_versatile_diffusion(clip_folder: Path) -> None:
    tokens_of, null_NW = load_token_encoder(clip_folder, VersatileDiffusion())
    pictures = np.random.default_rng(1).integers(0, 256, (3, 85, 85, 3), dtype=np.uint8)
    pipeline = SimpleNamespace(
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(clip_folder / ENCODER_FOLDER).eval(),
        image_feature_extractor=CLIPImageProcessor.from_pretrained(clip_folder / PROCESSOR_FOLDER),
    )

    def expected(arrays: np.ndarray) -> torch.Tensor:
        images = [Image.fromarray(array) for array in arrays]
        with torch.no_grad():
            tokens: torch.Tensor = VersatileDiffusionImageVariationPipeline._encode_prompt(
                pipeline, images, "cpu", 1, False, None
            )
        return tokens

    found = tokens_of(pictures)
    assert found.shape == (3, 17, 24)
    torch.testing.assert_close(found, expected(pictures), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 0].norm(dim=1), torch.ones(3))
    grey = np.full((1, 85, 85, 3), 127, dtype=np.uint8)
    torch.testing.assert_close(null_NW[None], expected(grey), rtol=1e-4, atol=1e-5)


def test_a_base_model_without_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"image_encoder/config\.json, found no file; download"):
        load_token_encoder(tmp_path, VersatileDiffusion())


def test_the_demos_tokens_are_those_its_unet_was_pretrained_with(
    tiny_base: Path, tiny_nsd: Path, tiny_recipe: Recipe
) -> None:
    tokens_of, null_NW = load_token_encoder(tiny_base, tiny_recipe.base)
    encoder, null = load_picture_encoder(tiny_base, tiny_recipe.base)
    assert torch.equal(null_NW, null)
    with Stimuli(Layout(tiny_nsd)) as stimuli:
        images = list(range(40))
        found = stimulus_tokens(stimuli, images, tokens_of)
        expected = encode_tokens(encoder, stimuli.images(images))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected.flatten(1), atol=4e-3)
