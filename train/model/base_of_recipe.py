"""Which base model belongs to which recipe: its weights must have the sizes that the recipe says."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from diffusers import AutoencoderKL, UNet2DConditionModel

from train.errors import TrainError
from train.model.base_model import UNET_FOLDER, VAE_FOLDER, base_in_folder, find_base, shipped_bases
from train.recipe import DemoBase, Recipe, VersatileDiffusion, read_recipe, shipped_recipes

BASE_FILE = "base.json"
"""Beside a base model that was trained here: its recipe, its subject and figures."""
_log = logging.getLogger(__name__)


def default_base(recipe: Recipe) -> str:
    """The base model for when none is given: its name on the hub, or that of the shipped one that belongs.

    Of several whose sizes fit, it is the one that was trained as the recipe's ``[base]`` says.

    :raises TrainError: no shipped base model belongs to the recipe, or several
    """
    if isinstance(recipe.base, VersatileDiffusion):
        return recipe.base.source
    shipped = shipped_bases()
    fitting = [name for name, folder in shipped.items() if not _differences(recipe.base, folder)]
    made = [name for name in fitting if _trained_as(shipped[name]) == recipe.base]
    chosen = made or fitting
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise TrainError(f"expected --base, because several belong to this recipe: {', '.join(chosen)}")
    theirs = ", ".join(f"{name} ({_recipes_of(folder)})" for name, folder in shipped.items())
    raise TrainError(
        "expected --base, the folder that `python -m train base` wrote with this recipe, since no shipped "
        f"base model has its sizes; shipped, with the recipes that belong to them: {theirs}"
    )


def base_of_recipe(recipe: Recipe, source: str | Path, more: Sequence[str] = ()) -> Path:
    """The folder of the base model ``source``, which must belong to the recipe.

    :param more: as of :func:`train.model.base_model.find_base`
    :raises TrainError: there is no such base model, or it does not belong to the recipe
    """
    # The hub has no base model that was trained here, so a name like one on the hub is a path.
    folder = base_in_folder(source) if isinstance(recipe.base, DemoBase) else find_base(source, more)
    different = _differences(recipe.base, folder)
    if different:
        needs = ", ".join(f"{name} = {ours}" for name, (ours, _) in different.items())
        has = ", ".join(f"{name} = {theirs}" for name, (_, theirs) in different.items())
        raise TrainError(
            f"expected a base model with the recipe's {needs}; the one in {folder} has {has}. Recipes that "
            f"belong to it: {_recipes_of(folder)}. Choose one with --recipe, or another base with --base"
        )
    return folder


def unseen_subject(folder: Path) -> int | None:
    """The subject of whose pictures a base model that was trained here has seen none; None if it is unknown.

    Base models of earlier versions do not say it, and those that were not trained here saw other pictures.
    """
    try:
        subject = json.loads((folder / BASE_FILE).read_bytes())["subject"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return subject if isinstance(subject, int) else None


def warn_of_seen_pictures(folder: Path, subjects: Iterable[int]) -> None:
    """Warn where a base model may have seen pictures that some of ``subjects`` are tested on."""
    unseen = unseen_subject(folder)
    others = [subject for subject in subjects if subject != unseen]
    if unseen is not None and others:
        _log.warning(
            "the base model in %s has seen no picture of subject %d, but may have seen pictures that "
            "subject(s) %s are tested on, so that their decodes look better than those of new pictures; "
            "`python -m train base --subject N` trains one that has not",
            folder,
            unseen,
            ", ".join(map(str, others)),
        )


def _differences(base: DemoBase | VersatileDiffusion, folder: Path) -> dict[str, tuple[Any, Any]]:
    """The sizes that a recipe says and a base model has, where they differ; absent ones are None."""
    found = _sizes(folder)
    names = [name for name in found if hasattr(base, name)]
    expected = {name: getattr(base, name) for name in names}
    return {name: (expected[name], found[name]) for name in names if expected[name] != found[name]}


def _sizes(folder: Path) -> dict[str, Any]:
    """The sizes in a base model's configuration, under their names in recipes."""
    unet = UNet2DConditionModel.load_config(folder / UNET_FOLDER)
    vae = AutoencoderKL.load_config(folder / VAE_FOLDER)
    widths, n_heads = unet.get("block_out_channels"), unet.get("attention_head_dim")
    if isinstance(n_heads, list) and widths:  # in diffusers' class, despite its name, the number of heads
        head_width = widths[0] // n_heads[0]
    else:
        head_width = None
    return {
        "unet_widths": tuple(widths or ()),
        "vae_widths": tuple(vae.get("block_out_channels") or ()),
        "latent_channels": vae.get("latent_channels"),
        "attention_head_width": head_width,
        "token_width": unet.get("cross_attention_dim"),
    }


def _trained_as(folder: Path) -> DemoBase | None:
    """The ``[base]`` of the recipe that a base model was trained with, as it says itself."""
    try:
        return msgspec.convert(json.loads((folder / BASE_FILE).read_bytes())["recipe"]["base"], DemoBase)
    except (OSError, ValueError, KeyError, TypeError, msgspec.ValidationError):
        return None


def _recipes_of(folder: Path) -> str:
    """The shipped recipes that belong to a base model, as text."""
    recipes = {name: read_recipe(path) for name, path in shipped_recipes().items()}
    belong = [name for name, recipe in recipes.items() if not _differences(recipe.base, folder)]
    return ", ".join(belong) or "none of the shipped ones"
