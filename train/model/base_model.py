"""The base model: the pretrained latent diffusion model whose UNet the brain conditions.

It has diffusers' layout, with the folders ``image_unet`` and ``vae``: Versatile Diffusion as its authors
published it, in a folder or on the hub, or one that was trained here (:mod:`train.fitting.pretrain`), in a
folder or among those that come with this package (``train/bases``). Which recipes it belongs to:
:mod:`train.model.base_of_recipe`. The UNet is a plain ``UNet2DConditionModel`` conditioned on image tokens.
Versatile Diffusion's text branch is left out, because its share is 0 in the paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from train.errors import TrainError
from train.recipe import DemoBase, VersatileDiffusion

UNET_FOLDER = "image_unet"
VAE_FOLDER = "vae"
BASES = Path(__file__).parent.parent / "bases"


def shipped_bases() -> dict[str, Path]:
    """The base models that come with this package, by name."""
    return {folder.name: folder for folder in sorted(BASES.iterdir()) if folder.is_dir()}


def make_unet(base: DemoBase | VersatileDiffusion) -> UNet2DConditionModel:
    """An untrained UNet with the recipe's architecture."""
    if isinstance(base, VersatileDiffusion):
        # Stable Diffusion 1's size, the class's default; 8 is the number of heads.
        return UNet2DConditionModel(
            sample_size=64, cross_attention_dim=base.token_width, attention_head_dim=8
        )
    depth = len(base.unet_widths)
    return UNet2DConditionModel(
        sample_size=64 >> (len(base.vae_widths) - 1),
        in_channels=base.latent_channels,
        out_channels=base.latent_channels,
        block_out_channels=base.unet_widths,
        down_block_types=("CrossAttnDownBlock2D",) * depth,
        up_block_types=("CrossAttnUpBlock2D",) * depth,
        layers_per_block=1,
        cross_attention_dim=base.token_width,
        # In this class, despite its name, the argument is the *number* of heads.
        attention_head_dim=tuple(width // base.attention_head_width for width in base.unet_widths),
        norm_num_groups=16,
    )


def make_vae(base: DemoBase | VersatileDiffusion) -> AutoencoderKL:
    """An untrained VAE with the recipe's architecture."""
    if isinstance(base, VersatileDiffusion):
        return _make_vae((128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512)
    return _make_vae(
        base.vae_widths,
        layers_per_block=1,
        latent_channels=base.latent_channels,
        sample_size=64,
        norm_num_groups=8,
    )


def _make_vae(widths: tuple[int, ...], **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        **settings,
    )


def find_base(source: str | Path, more: Sequence[str] = ()) -> Path:
    """The folder of a base model: ``source`` itself, the shipped one of this name, or its folder in the hub's
    cache, downloaded if missing.

    :param more: folders to download from the hub in addition to UNet and VAE
    :raises TrainError: there is no such folder, or the hub cannot be reached and its cache has no copy
    """
    if not is_on_hub(source):
        return base_in_folder(source)
    patterns = [f"{part}/*" for part in (UNET_FOLDER, VAE_FOLDER, *more)]
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise TrainError(
            f"expected a base model in {source}, found no such folder{_seen_from(Path(source))}; and cannot "
            f"get it from the hub or its cache: {error}; give its folder, or download it on a machine with "
            f"network by `hf download {source} --include {' '.join(map(repr, patterns))}`, and give that"
        ) from error


def base_in_folder(source: str | Path) -> Path:
    """The folder that ``source`` names, or the shipped base model of this name.

    :raises TrainError: there is neither, or the folder holds no base model
    """
    folder = Path(source)
    if not folder.is_dir():
        shipped = shipped_bases()
        if str(source) in shipped:
            return shipped[str(source)]
        raise TrainError(
            f"expected a base model in {folder}, found no such folder{_seen_from(folder)}; give the path of "
            f"one with --base, or the name of a shipped one: {', '.join(shipped)}"
        )
    for part in (UNET_FOLDER, VAE_FOLDER):
        if not (folder / part / "config.json").exists():
            raise TrainError(
                f"expected {folder / part / 'config.json'}, found no file; a base model is a folder in "
                "diffusers' layout: train one with `python -m train base`, or give another with --base"
            )
    return folder


def _seen_from(folder: Path) -> str:
    """Where a relative path was looked for."""
    return "" if folder.is_absolute() else f" in {Path.cwd()}"


def is_on_hub(source: str | Path) -> bool:
    """Whether ``source`` is the name of a model on the hub (``owner/name``) and not a local folder.

    A folder with the owner's name alone, such as one of other models of this owner, does not make it local.
    """
    return (
        isinstance(source, str)
        and bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source))
        and not Path(source).exists()
    )


def latent_size_px(folder: Path) -> int:
    """Height and width of the latents, from the configuration of the UNet in ``folder``."""
    return int(UNet2DConditionModel.load_config(folder / UNET_FOLDER)["sample_size"])


def load_unet(folder: Path) -> UNet2DConditionModel:
    """Load the UNet in ``folder``, in fp32 and evaluation mode.

    :raises TrainError: its configuration is missing, or its weights do not fit the configuration
    """
    return _load(UNet2DConditionModel, folder / UNET_FOLDER)


def load_vae(folder: Path) -> AutoencoderKL:
    """Load the VAE in ``folder``; raises as :func:`load_unet`."""
    return _load(AutoencoderKL, folder / VAE_FOLDER)


def _load(kind: Any, part: Path) -> Any:
    if not (part / "config.json").exists():  # else diffusers would look for it on the hub
        raise TrainError(
            f"expected {part / 'config.json'}, found no file; give the folder of a complete base model"
        )
    try:
        return kind.from_pretrained(part).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainError(f"cannot load weights that fit their configuration from {part}: {error}") from error
