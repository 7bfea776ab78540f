"""Imports checkpoints that the paper's authors released (``facebook/dynadiff``).

They are DeepSpeed ZeRO checkpoints with the tag ``checkpoint``. Their names and shapes, and the parts of this
project's model they become (S subjects, V voxels, T volumes, H hidden width, N tokens, W token width):

    model.brain_modules.clip_image.
        subject_layers.weights   [S, V, H]       subject layer
        lin0.weight, .bias       [T H, 1, H]     timestep layers: a grouped convolution as long as its input
        post_lin0.0.*            [H]             norm
        mlp.K.0.*, mlp.K.1.*     [H, H], [H]     residual block K: its linear layer and norm
        out_time_agg.*           [1, T]          aggregation
        lin1.*                   [N W, H]        output
    model.unet.
        …attentions.K.transformers.0.…           image attention: …attentions.K.…
        …attentions.K.transformers.1.…           text attention, with a share of 0: left out
        ….base_layer.*, ….lora_A.default.*, ….lora_B.default.*    peft's

The authors' code replaces dropped conditions by zeros, so zeros are the null condition. Its residual blocks,
of which the released models have none, come before the aggregation.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm

from nsd import NSDGENERAL_VOXELS, Layout, Run, read_roi, runs
from nsd.sessions import TR_S
from realtime.bundle.spec import DriftPrior
from train.checkpoints.checkpoint import CheckpointInfo, TrainedSubject, save_checkpoint, subject_folder
from train.data.prior import measure_priors
from train.errors import TrainError
from train.model.base_model import is_on_hub, load_unet, make_unet
from train.model.base_of_recipe import base_of_recipe
from train.model.brain import BrainModule
from train.model.dynadiff import Dynadiff, brain_config
from train.model.finetune import set_trainable
from train.recipe import RECIPES, Recipe, read_recipe
from train.store.fingerprints import base_identity
from train.store.lock import alone_in

TAG = "checkpoint"
BRAIN = "model.brain_modules.clip_image."
UNET = "model.unet."
LARGEST_DIFFERENCE = 1e-3
"""Largest difference of a frozen weight from the base model's, relative to the largest weight of its tensor:
the released ones were stored in fp16."""

State = Mapping[str, Tensor]
_log = logging.getLogger(__name__)


def read_released(folder: Path) -> dict[str, Tensor]:
    """All weights of a released checkpoint in fp32, by their released names.

    DeepSpeed stores them as pickles, which can run code: read only files from a source you trust.

    :raises TrainError: ``folder`` is not such a checkpoint
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if not (folder / TAG).is_dir():
        raise TrainError(
            f"expected a DeepSpeed checkpoint in {folder / TAG}, found no folder; give the subject's folder "
            "of facebook/dynadiff"
        )
    try:
        state: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise TrainError(
            f"cannot read a DeepSpeed checkpoint from {folder / TAG}: {error}; download the folder again, "
            "with the files of all ranks"
        ) from error
    return state


def brain_from_released(state: State, recipe: Recipe) -> BrainModule:
    """The brain module, with as many subjects and voxels as the weights have.

    :raises TrainError: a weight is missing or does not have the recipe's shape, or there are more residual
        blocks than in the recipe
    """
    subjects = _take(state, f"{BRAIN}subject_layers.weights")
    n_subjects, n_voxels, width = subjects.shape
    convolution = _take(state, f"{BRAIN}lin0.weight")
    n_volumes = len(convolution) // width
    weights = {
        "subject.weights": subjects,
        "timestep.weight": convolution.view(1, n_volumes, width, width).transpose(2, 3),
        "timestep.bias": _take(state, f"{BRAIN}lin0.bias").view(1, n_volumes, width),
        "norm.weight": _take(state, f"{BRAIN}post_lin0.0.weight"),
        "norm.bias": _take(state, f"{BRAIN}post_lin0.0.bias"),
        "aggregate.weight": _take(state, f"{BRAIN}out_time_agg.weight").view(1, n_volumes),
        "aggregate.bias": _take(state, f"{BRAIN}out_time_agg.bias").view(1),
        "output.weight": _take(state, f"{BRAIN}lin1.weight"),
        "output.bias": _take(state, f"{BRAIN}lin1.bias"),
    }
    for ours, theirs in _residual_names(state, recipe).items():
        weights[ours] = _take(state, theirs)
    with torch.device("meta"):
        brain = BrainModule(brain_config(recipe, n_voxels, n_subjects))
    _check_shapes(brain, weights, "the brain module")
    brain.load_state_dict({name: weight.contiguous() for name, weight in weights.items()}, assign=True)
    return brain.eval()


def adapter_from_released(state: State, recipe: Recipe) -> UNet2DConditionModel:
    """A UNet on the meta device in which only the LoRA adapters have weights; it can be saved, not run.

    :raises TrainError: an adapter is missing, or its rank is not the recipe's
    """
    with torch.device("meta"):
        unet = make_unet(recipe.base)
        set_trainable(unet, recipe.finetune)
    names = unet_names(state)
    wanted = {name for name, _ in unet.named_parameters() if ".lora_" in name}
    missing = sorted(wanted - names.keys())
    if missing:
        raise TrainError(
            f"expected LoRA weights for {missing[0]} in the released checkpoint, found none ({len(missing)} "
            "are missing in all); download it again, or give a recipe whose [base] has its UNet"
        )
    weights = {name: state[names[name]].contiguous() for name in wanted}
    _check_shapes(unet, weights, "the adapter")
    unet.load_state_dict(weights, strict=False, assign=True)
    return unet


def unet_names(state: State) -> dict[str, str]:
    """The released name of each weight, by its name in a plain UNet with adapters; without text attention."""
    return {
        re.sub(r"(\.attentions\.\d+)\.transformers\.0\.", r"\1.", key.removeprefix(UNET)): key
        for key in state
        if key.startswith(UNET) and ".transformers.1." not in key
    }


def check_base(state: State, base: UNet2DConditionModel) -> int:
    """Compare the frozen weights of a released checkpoint with the base model's, and return their number.

    :raises TrainError: a weight differs, so the adapter was trained on another base model
    """
    frozen = {
        name.replace(".base_layer.", "."): state[key]
        for name, key in unet_names(state).items()
        if ".lora_" not in name
    }
    ours = dict(base.named_parameters())
    shared = frozen.keys() & ours.keys()
    for name in sorted(shared):
        if not _equal_in_fp16(frozen[name], ours[name]):
            raise TrainError(
                f"expected the base model that the checkpoint was trained on, but {name} differs; give the "
                "right one with --base"
            )
    return len(shared)


def import_released(
    folder: Path,
    subject: int,
    recipe: Recipe,
    base: str | Path,
    out: Path,
    *,
    layer: int = 0,
    nsd: Path | None = None,
) -> CheckpointInfo:
    """Write a released checkpoint as a checkpoint of this project.

    :param layer: index of the subject's layer, in a checkpoint of several subjects
    :param nsd: root of the data set, for the subject's ROI and prior; without these the checkpoint cannot be
        exported
    :raises TrainError: the released checkpoint does not fit, or ``out`` already holds a checkpoint
    """
    _check_new(out)
    base_folder = base_of_recipe(recipe, base)
    state = read_released(folder)
    recipe = _as_released(recipe)
    n_compared = check_base(state, load_unet(base_folder))
    _log.info("%d frozen weights are equal to the base model's", n_compared)
    brain = brain_from_released(state, recipe)
    layout = Layout(nsd) if nsd else None
    n_voxels = _region_size(layout, subject, brain.config.n_voxels)
    brain = brain.of_subject(layer, n_voxels)
    null_NW = torch.zeros(recipe.base.n_tokens, recipe.base.token_width)
    model = Dynadiff(brain, adapter_from_released(state, recipe), null_NW, recipe)
    info = CheckpointInfo(
        subjects=[TrainedSubject(number=subject, n_voxels=n_voxels, held_out_runs=[], n_train_trials=0)],
        seed=0,
        tr_s=TR_S,
        recipe=recipe,
        base=str(base) if is_on_hub(base) else str(base_folder.resolve()),
        base_identity=base_identity(base_folder),
        imported_from=f"{folder.resolve().name}, layer {layer}",
        last_loss=None,
    )
    with alone_in(out, wait=False):
        _check_new(out)
        if layout:
            drift_prior = _write_subject(layout, subject, recipe, subject_folder(out, subject))
            trained = msgspec.structs.replace(info.subjects[0], drift_prior=drift_prior)
            info = msgspec.structs.replace(info, subjects=[trained])
        else:
            _log.warning("without --nsd the checkpoint has no ROI and no prior, and cannot be exported")
        save_checkpoint(out, model, info)
    return info


def _as_released(recipe: Recipe) -> Recipe:
    """The recipe with what the authors' code does, as the recipe ``authors`` says, whatever it says itself.

    Sizes remain the recipe's: those of the weights are checked against them.
    """
    replace, theirs = msgspec.structs.replace, read_recipe(RECIPES / "authors.toml")
    return replace(
        recipe,
        split=theirs.split,
        preprocessing=replace(
            recipe.preprocessing,
            drift=theirs.preprocessing.drift,
            repaired_volumes=theirs.preprocessing.repaired_volumes,
            tr_s=TR_S,
        ),
        brain=replace(
            recipe.brain,
            residual_place=theirs.brain.residual_place,
            residual_dropout=theirs.brain.residual_dropout,
        ),
        finetune=replace(recipe.finetune, initialisation=theirs.finetune.initialisation),
        diffusion=replace(
            recipe.diffusion,
            null_condition=theirs.diffusion.null_condition,
            guidance=theirs.diffusion.guidance,
            sampler=theirs.diffusion.sampler,
        ),
        latents=theirs.latents,
    )


def _residual_names(state: State, recipe: Recipe) -> dict[str, str]:
    """The released name of each weight of the residual blocks, by ours."""
    n_expected = recipe.brain.residual_blocks
    found = {int(name.split(".")[1]) for key in state if (name := key.removeprefix(BRAIN)).startswith("mlp.")}
    if len(found) > n_expected:
        raise TrainError(
            f"expected {n_expected} residual blocks, as in the recipe, found {len(found)} in the released "
            f"checkpoint; give a recipe with residual_blocks = {len(found)}"
        )
    return {
        f"residual.{block}.body.{layer}.{kind}": f"{BRAIN}mlp.{block}.{layer}.{kind}"
        for block in range(n_expected)
        for layer in (0, 1)
        for kind in ("weight", "bias")
    }


def _check_new(out: Path) -> None:
    if (out / "checkpoint.json").exists():
        raise TrainError(f"{out} already holds a checkpoint; choose another --out")


def _write_subject(layout: Layout, subject: int, recipe: Recipe, folder: Path) -> DriftPrior | None:
    """Write the subject's ROI, and the priors of all runs, because the training runs are not known.

    Volumes that NSD's authors repaired are used like others, as in the authors' code.

    :returns: the prior of the drifts, if the recipe asks for one
    """
    folder.mkdir(exist_ok=True)
    shutil.copy(layout.roi(subject), folder / "roi.nii.gz")
    roi = read_roi(layout, subject)
    series = (Run(layout, *key).roi_series(roi) for key in tqdm(runs(layout, subject), "prior"))
    priors = measure_priors(series, recipe.preprocessing.high_pass_hz)
    (folder / "prior.npz").write_bytes(priors.voxels.as_npz())
    return priors.drift if recipe.preprocessing.drift_prior else None


def _region_size(layout: Layout | None, subject: int, n_voxels: int) -> int:
    """Number of voxels in the subject's ROI; the released weights after them are padding."""
    expected = read_roi(layout, subject).n_voxels if layout else NSDGENERAL_VOXELS.get(subject, n_voxels)
    if expected > n_voxels:
        raise TrainError(
            f"expected a subject layer with at least the {expected} voxels of subject {subject}, found "
            f"{n_voxels}; choose this subject's checkpoint"
        )
    return expected


def _take(state: State, name: str) -> Tensor:
    try:
        return state[name]
    except KeyError:
        raise TrainError(
            f"expected a weight {name} in the released checkpoint, found names such as {sorted(state)[:3]}; "
            "give a folder of facebook/dynadiff, and a recipe with the layers of its model"
        ) from None


def _check_shapes(module: nn.Module, weights: State, what: str) -> None:
    for name, expected in module.state_dict().items():
        if name in weights and weights[name].shape != expected.shape:
            raise TrainError(
                f"{what}: expected {name} with the recipe's shape {tuple(expected.shape)}, found "
                f"{tuple(weights[name].shape)}; give the recipe with the released model's sizes (`paper` or "
                "`authors`), or change them in yours"
            )


def _equal_in_fp16(theirs: Tensor, ours: Tensor) -> bool:
    if theirs.shape != ours.shape:
        return False
    largest = float((theirs.float() - ours.detach()).abs().max())
    return largest <= LARGEST_DIFFERENCE * float(ours.detach().abs().max())
