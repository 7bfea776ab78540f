"""What of the UNet learns in each row of the paper's table 3, and that a checkpoint brings it back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from train.errors import TrainError
from train.model.base_model import UNET_FOLDER, make_unet
from train.model.finetune import (
    ADAPTER_FOLDER,
    CROSS_ATTENTION,
    load_tuned,
    merge_adapter,
    save_tuned,
    set_trainable,
)
from train.recipe import Finetune, Recipe

LAYERS = ("lora", "none", "cross-attention", "linear", "all")


def is_cross_attention(name: str) -> bool:
    return any(f".{target}." in name for target in CROSS_ATTENTION)


def test_lora_is_on_every_cross_attention_projection_and_nothing_else_learns(tiny_recipe: Recipe) -> None:
    unet = make_unet(tiny_recipe.base)
    set_trainable(unet, tiny_recipe.finetune)
    learning = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert learning
    assert all(is_cross_attention(name) and ".lora_" in name for name in learning)
    carriers = {name.split(".lora_")[0] for name in learning}
    projections = {
        name
        for name, _ in unet.named_modules()
        if any(name.endswith(f".{target}") for target in CROSS_ATTENTION)
    }
    assert carriers == projections


def test_each_wider_choice_holds_the_narrower(tiny_recipe: Recipe) -> None:
    learning = {}
    for layers in LAYERS[1:]:
        unet = make_unet(tiny_recipe.base)
        set_trainable(unet, Finetune(layers=layers))  # type: ignore[arg-type]
        learning[layers] = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert learning["none"] == set()
    assert learning["cross-attention"] == {
        name for name, _ in make_unet(tiny_recipe.base).named_parameters() if is_cross_attention(name)
    }
    linear = {
        name for name, module in make_unet(tiny_recipe.base).named_modules() if isinstance(module, nn.Linear)
    }
    assert {name.rsplit(".", 1)[0] for name in learning["linear"]} == linear
    assert learning["cross-attention"] < learning["linear"] < learning["all"]


@pytest.mark.parametrize("layers", LAYERS)
def test_what_learned_comes_back_from_a_checkpoint(
    layers: str, tiny_base: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    finetune = msgspec.structs.replace(tiny_recipe.finetune, layers=layers)
    torch.manual_seed(0)
    unet = load_tuned(Finetune(layers="none"), tmp_path, tiny_base)
    set_trainable(unet, finetune)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_tuned(unet, finetune, tmp_path)
    assert (tmp_path / ADAPTER_FOLDER).exists() == (layers == "lora")
    assert (tmp_path / UNET_FOLDER).exists() == (layers in ("cross-attention", "linear", "all"))
    size, channels = unet.config.sample_size, unet.config.in_channels
    inputs = (torch.randn(2, channels, size, size), torch.tensor([10, 900]))
    tokens = torch.randn(2, 17, tiny_recipe.base.token_width)
    with torch.no_grad():
        expected = unet.eval()(*inputs, tokens).sample
        again = load_tuned(finetune, tmp_path, tiny_base)
        torch.testing.assert_close(again(*inputs, tokens).sample, expected, rtol=1e-4, atol=1e-5)
        if layers == "lora":
            merge_adapter(again)
            torch.testing.assert_close(again(*inputs, tokens).sample, expected, rtol=1e-4, atol=1e-5)


def test_a_base_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"image_unet.config\.json"):
        load_tuned(Finetune(layers="none"), tmp_path, tmp_path)
