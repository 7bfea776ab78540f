"""DreamSim's ensemble, read from its authors' files, against transformers' CLIP and torch's own layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from train.errors import TrainError
from train.evaluation.networks.backbones import IMAGENET, OPENAI
from train.evaluation.networks.dreamsim import (
    ADAPTER,
    CLIP,
    DINO,
    OPEN_CLIP,
    DreamSim,
    Extractor,
    VisionTransformer,
    load_dreamsim,
)
from train.evaluation.networks.registry import NETWORKS, features
from train.evaluation.networks.weight_files import DreamSimFolder

WIDTH, DEPTH, PATCH_PX, N_TOKENS = 128, 2, 56, 17
"""The real ones are 768 wide and 12 deep, with patches of 16 px and 197 tokens."""
EMBEDDING_WIDTH = 48
RANK, ALPHA = 3, 6


def shake(module: nn.Module, seed: int) -> None:
    """Move every weight from where it starts: a scale of 1 or a bias of 0 would hide a wrong place."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)


def small_clip(activation: str, seed: int) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=WIDTH // 64,
        image_size=224,
        patch_size=PATCH_PX,
        projection_dim=EMBEDDING_WIDTH,
        hidden_act=activation,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    shake(model, seed)
    return model


def under_dinos_names(model: CLIPVisionModelWithProjection) -> dict[str, Tensor]:
    """CLIP's weights as DreamSim's authors publish them."""
    state = {name.removeprefix("vision_model."): weight for name, weight in model.state_dict().items()}
    found = {
        "cls_token": state["embeddings.class_embedding"].view(1, 1, WIDTH),
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": torch.zeros(WIDTH),
        "proj": state["visual_projection.weight"].T.clone(),
    }
    for end in ("weight", "bias"):
        found[f"pos_drop.{end}"] = state[f"pre_layrnorm.{end}"]
        found[f"norm.{end}"] = state[f"post_layernorm.{end}"]
        for place in range(DEPTH):
            theirs, ours = f"encoder.layers.{place}.", f"blocks.{place}."
            parts = [state[f"{theirs}self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{ours}attn.qkv.{end}"] = torch.cat(parts)
            found[f"{ours}attn.proj.{end}"] = state[f"{theirs}self_attn.out_proj.{end}"]
            for layer in ("fc1", "fc2"):
                found[f"{ours}mlp.{layer}.{end}"] = state[f"{theirs}mlp.{layer}.{end}"]
            for norm in (1, 2):
                found[f"{ours}norm{norm}.{end}"] = state[f"{theirs}layer_norm{norm}.{end}"]
    return found


def torchs_layers(dino: dict[str, Tensor], picture: Tensor) -> Tensor:
    """DINO's class token by torch's own pre-norm transformer layer."""
    patches = nn.functional.conv2d(
        picture, dino["patch_embed.proj.weight"], dino["patch_embed.proj.bias"], stride=PATCH_PX
    )
    tokens = patches.flatten(2).transpose(1, 2)
    x = torch.cat([dino["cls_token"].expand(len(tokens), 1, -1), tokens], dim=1) + dino["pos_embed"]
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1."}
    names |= {"linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2."}
    for place in range(DEPTH):
        layer = nn.TransformerEncoderLayer(
            WIDTH, WIDTH // 64, 4 * WIDTH, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
        )
        state = {
            f"{theirs}{end}": dino[f"blocks.{place}.{ours}{end}"]
            for theirs, ours in names.items()
            for end in ("weight", "bias")
        }
        layer.load_state_dict(state)
        x = layer(x)  # in training mode: the layer's fast path for inference is another computation
    return x[:, 0]


@pytest.fixture(scope="module")
def clips() -> dict[str, CLIPVisionModelWithProjection]:
    return {CLIP: small_clip("quick_gelu", 1), OPEN_CLIP: small_clip("gelu", 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clips: dict[str, CLIPVisionModelWithProjection]) -> Path:
    """What the authors' package leaves on the disk, the adapter written by peft."""
    folder = tmp_path_factory.mktemp("networks") / "dreamsim"
    (folder / DINO).parent.mkdir(parents=True)
    dino = VisionTransformer(WIDTH, DEPTH, N_TOKENS, PATCH_PX, kind="dino", eps=1e-6)
    shake(dino, 3)
    torch.save(dino.state_dict(), folder / DINO)
    for name, clip in clips.items():
        torch.save({"state_dict": under_dinos_names(clip)}, folder / name)
    plain = DreamSim([Extractor(one, None) for one in _three(dino)])
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.3, target_modules=["qkv"])
    adapted = get_peft_model(plain, settings)
    shake(adapted, 4)
    adapted.save_pretrained(folder / ADAPTER)
    return folder


def _three(dino: VisionTransformer) -> list[VisionTransformer]:
    return [
        dino,
        *(VisionTransformer(WIDTH, DEPTH, N_TOKENS, PATCH_PX, kind=kind, eps=1e-5) for kind in "ab"),
    ]


@pytest.fixture(scope="module")
def adapter(folder: Path) -> dict[str, Tensor]:
    """What the adapter adds to each matrix of queries, keys and values, by its name in the ensemble."""
    from safetensors.torch import load_file

    weights = load_file(folder / ADAPTER / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            ALPHA / RANK * weights[name.replace("lora_A", "lora_B")] @ weights[name]
        )
        for name in weights
        if "lora_A" in name
    }


@torch.no_grad()
def test_the_ensemble_is_its_three_networks_each_with_its_adapter(
    folder: Path, adapter: dict[str, Tensor], clips: dict[str, CLIPVisionModelWithProjection]
) -> None:
    assert len(adapter) == 3 * DEPTH
    pictures = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    dino = torch.load(folder / DINO)
    for place in range(DEPTH):
        dino[f"blocks.{place}.attn.qkv.weight"] += adapter[f"extractor_list.0.model.blocks.{place}.attn.qkv"]
    parts = [torchs_layers(dino, (pictures - mean) / sd)]
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in OPENAI)
    for network, name in enumerate((CLIP, OPEN_CLIP), start=1):
        clip = small_clip(clips[name].config.hidden_act, 0)
        clip.load_state_dict(clips[name].state_dict())
        for place in range(DEPTH):
            added = adapter[f"extractor_list.{network}.model.blocks.{place}.attn.qkv"]
            attention = clip.get_submodule(f"vision_model.encoder.layers.{place}.self_attn")
            for part, share in zip("qkv", added.split(WIDTH), strict=True):
                attention.get_submodule(f"{part}_proj").weight += share
        parts.append(clip((pictures - mean) / sd).image_embeds)
    joined = torch.cat(parts, dim=1).double()
    centred = joined - joined.mean(dim=1, keepdim=True)
    expected = centred / centred.norm(dim=1, keepdim=True)

    found = load_dreamsim(folder)(pictures)
    assert found.shape == (3, WIDTH + 2 * EMBEDDING_WIDTH)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_it_is_found_in_the_networks_folder_and_sees_pictures(folder: Path) -> None:
    (network,) = [one for one in NETWORKS if one.name == "DreamSim"]
    assert network.weights.find(folder.parent) == folder
    pictures = np.random.default_rng(0).integers(0, 256, size=(3, 224, 224, 3), dtype=np.uint8)
    ((name, kind, rows),) = features(network, folder, {"shown": pictures}, "cpu")
    assert (name, kind) == ("shown", "dreamsim")
    expected = load_dreamsim(folder)(torch.tensor(pictures).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(rows, expected.detach(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", [DINO, CLIP, f"{ADAPTER}/adapter_model.safetensors"])
def test_a_folder_that_lacks_a_file_counts_as_missing(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "dreamsim"
    shutil.copytree(folder, copy)
    (copy / name).unlink()
    assert DreamSimFolder().find(tmp_path) is None


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dreamsim"
    shutil.copytree(folder, copy)
    state = torch.load(copy / DINO)
    torch.save({name: weight for name, weight in state.items() if name != "norm.weight"}, copy / DINO)
    with pytest.raises(TrainError, match=r"norm\.weight"):
        load_dreamsim(copy)


def test_an_adapter_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "dreamsim"
    shutil.copytree(folder, copy)
    path = copy / ADAPTER / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(sorted(weights)[0])
    save_file(weights, path)
    with pytest.raises(TrainError, match="adapter lacks"):
        load_dreamsim(copy)
