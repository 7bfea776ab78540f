"""Tuning of the UNet with the brain module, and how the tuned part is saved (paper, table 3).

lora               adapter/      as diffusers and peft save it
none               nothing
all others         image_unet/   the whole UNet in diffusers' layout
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from realtime.atomic import whole
from train.model.base_model import UNET_FOLDER, load_unet
from train.recipe import Finetune

ADAPTER_FOLDER = "adapter"
ADAPTER = "default"
"""The adapter's name in the UNet; in parameter names it stands between ``lora_A`` and ``weight``."""
CROSS_ATTENTION = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]


def set_trainable(unet: UNet2DConditionModel, finetune: Finetune) -> None:
    """Freeze the UNet except the part to tune; for LoRA, add adapters that have no effect at first."""
    unet.requires_grad_(False)
    if finetune.layers == "lora":
        unet.add_adapter(
            LoraConfig(
                r=finetune.rank,
                lora_alpha=finetune.alpha,
                target_modules=CROSS_ATTENTION,
                # True is peft's default, LoRA's own.
                init_lora_weights=True if finetune.initialisation == "kaiming" else "gaussian",
            )
        )
    elif finetune.layers == "all":
        unet.requires_grad_(True)
    elif finetune.layers != "none":
        for name, module in unet.named_modules():
            wanted = finetune.layers == "linear" or any(name.endswith(f".{at}") for at in CROSS_ATTENTION)
            if isinstance(module, nn.Linear) and wanted:
                module.requires_grad_(True)


def save_tuned(unet: UNet2DConditionModel, finetune: Finetune, folder: Path) -> None:
    """Write the tuned part of the UNet to a checkpoint's folder, for :func:`load_tuned`."""
    if finetune.layers == "lora":
        with whole(folder / ADAPTER_FOLDER) as partial:
            unet.save_lora_adapter(partial, adapter_name=ADAPTER)
    elif finetune.layers != "none":
        with whole(folder / UNET_FOLDER) as partial:
            unet.save_pretrained(partial)


def load_tuned(finetune: Finetune, folder: Path, base: Path) -> UNet2DConditionModel:
    """The tuned UNet of a checkpoint; an adapter is not merged.

    :raises TrainError: the base model or the tuned UNet is missing
    """
    if finetune.layers == "lora":
        unet = load_unet(base)
        unet.load_lora_adapter(
            folder / ADAPTER_FOLDER, prefix=None, adapter_name=ADAPTER, use_safetensors=True
        )
        return unet.eval()
    return load_unet(base if finetune.layers == "none" else folder)


def trainable_again(finetune: Finetune, folder: Path, base: Path) -> UNet2DConditionModel:
    """As :func:`load_tuned`, with the tuned part ready to be trained further."""
    unet = load_tuned(finetune, folder, base)
    if finetune.layers != "lora":
        set_trainable(unet, finetune)
        return unet
    unet.requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)
    return unet


@torch.no_grad()
def merge_adapter(unet: UNet2DConditionModel) -> None:
    """Merge a UNet's LoRA adapter into its weights, in place."""
    unet.fuse_lora()
    unet.unload_lora()
