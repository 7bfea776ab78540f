"""DreamSim (Fu et al. 2023): an embedding whose cosine distance follows human judgements of similarity.

This is the published ensemble: the ViT-B/16 of DINO, CLIP and OpenCLIP, fine-tuned with LoRA on human
judgements; their three embeddings are concatenated. The folder has the layout of its authors' package:

    checkpoints/dino_vitbase16_pretrain.pth    DINO's weights, as published by DINO's authors
    clip_vitb16_pretrain.pth.tar               CLIP's weights under DINO's names, with CLIP's projection
    open_clip_vitb16_pretrain.pth.tar          OpenCLIP's, likewise
    ensemble_lora/                             the adapter, in peft's layout

The authors' package is not used: it downloads DINO's code when it runs, and needs torchvision (see
:mod:`train.evaluation.networks.backbones`), timm and open-clip for three plain vision transformers.

Legend: B batch, N tokens, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn

from train.errors import UNREADABLE_WEIGHTS, TrainError
from train.evaluation.networks.backbones import IMAGENET, OPENAI

DINO = "checkpoints/dino_vitbase16_pretrain.pth"
CLIP = "clip_vitb16_pretrain.pth.tar"
OPEN_CLIP = "open_clip_vitb16_pretrain.pth.tar"
ADAPTER = "ensemble_lora"
FILES = (DINO, CLIP, OPEN_CLIP, f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/adapter_model.safetensors")
HEAD_WIDTH = 64


class QuickGELU(nn.Module):
    """The approximation of GELU that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A transformer layer that normalises before attention and before the MLP."""

    def __init__(self, width: int, activation: nn.Module, eps: float) -> None:
        super().__init__()
        self.n_heads = width // HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.activation = activation

    def forward(self, x_BNW: Tensor) -> Tensor:
        """``[B, N, W]`` to the same shape."""
        heads = self.attn["qkv"](self.norm1(x_BNW)).unflatten(2, (3, self.n_heads, HEAD_WIDTH))
        attended = nn.functional.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4))
        x_BNW = x_BNW + self.attn["proj"](attended.transpose(1, 2).flatten(2))
        inner = self.activation(self.mlp["fc1"](self.norm2(x_BNW)))
        wider: Tensor = self.mlp["fc2"](inner)
        return x_BNW + wider


class VisionTransformer(nn.Module):
    """A ViT with DINO's parameter names; CLIP's has a norm before the first block (here ``pos_drop``)."""

    def __init__(
        self, width: int, depth: int, n_tokens: int, patch_px: int, *, kind: str, eps: float
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_px, stride=patch_px)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, n_tokens, width))
        self.pos_drop = nn.Identity() if kind == "dino" else nn.LayerNorm(width, eps)
        activation: nn.Module = QuickGELU() if kind == "clip" else nn.GELU()
        self.blocks = nn.ModuleList([Block(width, activation, eps) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """The class token after the last block, before the final norm, ``[B, W]``."""
        patches = self.patch_embed["proj"](picture_BCHW).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        x: Tensor = self.pos_drop(tokens + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


class Extractor(nn.Module):
    """One network of the ensemble, with the normalisation of pictures that it was trained with."""

    mean: Tensor
    sd: Tensor
    proj: Tensor | None

    def __init__(self, model: VisionTransformer, proj: Tensor | None) -> None:
        super().__init__()
        self.model = model
        mean, sd = IMAGENET if proj is None else OPENAI
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("sd", torch.tensor(sd).view(3, 1, 1))
        self.register_buffer("proj", proj)

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """DINO's class token as it is; CLIP's normalised and projected."""
        token: Tensor = self.model((picture_BCHW - self.mean) / self.sd)
        if self.proj is None:
            return token
        projected: Tensor = self.model.norm(token) @ self.proj
        return projected


class DreamSim(nn.Module):
    """The ensemble; modules have the names of its authors' package, to which the adapter refers."""

    def __init__(self, extractors: list[Extractor]) -> None:
        super().__init__()
        self.extractor_list = nn.ModuleList(extractors)

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """Pictures in [0, 1] to embeddings ``[B, D]``, centred and of unit length."""
        joined = torch.cat([extractor(picture_BCHW) for extractor in self.extractor_list], dim=1)
        return nn.functional.normalize(joined - joined.mean(dim=1, keepdim=True), dim=1)


def load_dreamsim(folder: Path) -> nn.Module:
    """Read the ensemble and its adapter from ``folder``; returns a module like :class:`DreamSim`.

    :raises TrainError: a file is missing or damaged
    """
    try:
        dino = torch.load(folder / DINO, map_location="cpu", weights_only=True)
        clip, open_clip = (
            dict(torch.load(folder / name, map_location="cpu", weights_only=True)["state_dict"])
            for name in (CLIP, OPEN_CLIP)
        )
        extractors = [
            Extractor(_transformer(dino, kind="dino", eps=1e-6), None),
            Extractor(*_with_projection(clip, kind="clip")),
            Extractor(*_with_projection(open_clip, kind="open_clip")),
        ]
        return _with_adapter(DreamSim(extractors), folder / ADAPTER).eval()
    except UNREADABLE_WEIGHTS as error:
        raise TrainError(
            f"cannot read DreamSim's ensemble from {folder}: {error}; download it again"
        ) from error


def _with_projection(state: dict[str, Tensor], *, kind: str) -> tuple[VisionTransformer, Tensor]:
    proj = state.pop("proj")
    return _transformer(state, kind=kind, eps=1e-5), proj


def _transformer(state: Mapping[str, Tensor], *, kind: str, eps: float) -> VisionTransformer:
    """A transformer whose width and depth are read from the weights."""
    _, n_tokens, width = state["pos_embed"].shape
    depth = sum(name.endswith(".attn.qkv.weight") for name in state)
    patch_px = state["patch_embed.proj.weight"].shape[-1]
    model = VisionTransformer(width, depth, n_tokens, patch_px, kind=kind, eps=eps)
    model.load_state_dict(state)
    return model


def _with_adapter(model: DreamSim, folder: Path) -> nn.Module:
    settings: dict[str, Any] = LoraConfig.from_json_file(str(folder / "adapter_config.json"))
    # The other settings concern training, or the version of peft that wrote them.
    kept = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules")
    adapted: nn.Module = get_peft_model(model, LoraConfig(**{name: settings[name] for name in kept}))
    weights = load_peft_weights(str(folder), device="cpu")
    loaded = set_peft_model_state_dict(adapted, weights)
    missing = [name for name in loaded.missing_keys if ".lora_" in name]
    if missing or loaded.unexpected_keys:
        raise ValueError(f"the adapter lacks {missing[:1]} or also has {loaded.unexpected_keys[:1]}")
    return adapted
