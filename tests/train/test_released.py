"""A checkpoint with the released names, written by DeepSpeed, becomes one of ours: the same function."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from nsd import TR_S, Run, read_roi
from realtime.bundle.statistics import VoxelStatistics
from train.__main__ import main
from train.checkpoints.checkpoint import load_checkpoint
from train.checkpoints.released import (
    BRAIN,
    TAG,
    UNET,
    adapter_from_released,
    brain_from_released,
    check_base,
    import_released,
    read_released,
)
from train.data.prior import measure_priors
from train.errors import TrainError
from train.evaluation.evaluate import Evaluation, evaluate
from train.loop.deepspeed_engine import start_engine
from train.model.base_model import load_unet, make_unet
from train.model.brain import BrainModule
from train.model.finetune import set_trainable
from train.recipe import PAPER, RECIPES, Recipe, Training, read_recipe

from .conftest import link_runs

PAPER_RECIPE = read_recipe(PAPER)
N_SUBJECTS, N_VOXELS, N_VOLUMES = 2, 120, 6
"""More voxels than the synthetic subject's 100: padding."""


def released_state(recipe: Recipe, base: UNet2DConditionModel, n_voxels: int = N_VOXELS) -> dict[str, Tensor]:
    """Weights under their released names, with the text attention that the released UNet carries along."""
    width, tokens = recipe.brain.hidden_width, recipe.base.n_tokens * recipe.base.token_width
    shapes = {
        "subject_layers.weights": (N_SUBJECTS, n_voxels, width),
        "lin0.weight": (N_VOLUMES * width, 1, width),
        "lin0.bias": (N_VOLUMES * width,),
        "post_lin0.0.weight": (width,),
        "post_lin0.0.bias": (width,),
        "out_time_agg.weight": (1, N_VOLUMES),
        "out_time_agg.bias": (1,),
        "lin1.weight": (tokens, width),
        "lin1.bias": (tokens,),
    }
    for block in range(recipe.brain.residual_blocks):
        shapes[f"mlp.{block}.0.weight"] = (width, width)
        shapes |= {f"mlp.{block}.{name}": (width,) for name in ("0.bias", "1.weight", "1.bias")}
    state = {f"{BRAIN}{name}": torch.randn(shape) / 5 for name, shape in shapes.items()}
    set_trainable(base, recipe.finetune)
    for name, weight in base.state_dict().items():
        image = re.sub(r"(\.attentions\.\d+)\.", r"\1.transformers.0.", name)
        state[f"{UNET}{image}"] = torch.randn_like(weight) / 5 if ".lora_" in name else weight.clone()
        if ".attentions." in name:
            text = image.replace(".transformers.0.", ".transformers.1.")
            state[f"{UNET}{text}"] = torch.randn_like(weight)
    return state


def module_of(state: Mapping[str, Tensor]) -> nn.Module:
    """A module whose parameters have these names; adapters and brain module learn, as in the paper."""
    root = nn.Module()
    for name, weight in state.items():
        *path, leaf = name.split(".")
        at = root
        for step in path:
            if step not in at._modules:
                at.add_module(step, nn.Module())
            at = at._modules[step]  # type: ignore[assignment]
        learns = name.startswith(BRAIN) or ".lora_" in name
        at.register_parameter(leaf, nn.Parameter(weight.clone(), requires_grad=learns))
    return root


@pytest.fixture(scope="module")
def state(tiny_recipe: Recipe, tiny_base: Path) -> dict[str, Tensor]:
    torch.manual_seed(4)
    return released_state(tiny_recipe, load_unet(tiny_base))


@pytest.fixture(scope="module")
def released(state: dict[str, Tensor], tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    training = Training(
        steps=1, batch=1, micro_batch=1, peak_learning_rate=1e-3, warmup_steps=1, precision="fp32"
    )
    start_engine(module_of(state), training).save_checkpoint(str(folder), tag=TAG)
    return folder


def reference_condition(state: Mapping[str, Tensor], window_VT: Tensor, layer: int, recipe: Recipe) -> Tensor:
    """The released forward pass, from the raw weights: a grouped convolution over the window's volumes."""
    raw = {name.removeprefix(BRAIN): weight for name, weight in state.items()}
    width = recipe.brain.hidden_width
    padded = torch.zeros(N_VOXELS, N_VOLUMES)
    padded[: len(window_VT)] = window_VT
    hidden_TH = padded.T @ raw["subject_layers.weights"][layer]
    convolved = nn.functional.conv1d(hidden_TH[None], raw["lin0.weight"], raw["lin0.bias"], groups=N_VOLUMES)
    hidden_TH = convolved.view(N_VOLUMES, width)
    normed = nn.functional.layer_norm(hidden_TH, (width,), raw["post_lin0.0.weight"], raw["post_lin0.0.bias"])
    hidden_TH = nn.functional.gelu(normed)
    for block in range(recipe.brain.residual_blocks):
        linear = nn.functional.linear(hidden_TH, raw[f"mlp.{block}.0.weight"], raw[f"mlp.{block}.0.bias"])
        scale, shift = raw[f"mlp.{block}.1.weight"], raw[f"mlp.{block}.1.bias"]
        hidden_TH = hidden_TH + nn.functional.gelu(nn.functional.layer_norm(linear, (width,), scale, shift))
    merged = nn.functional.linear(hidden_TH.T, raw["out_time_agg.weight"], raw["out_time_agg.bias"])[:, 0]
    tokens = nn.functional.linear(merged, raw["lin1.weight"], raw["lin1.bias"])
    return tokens.view(recipe.base.n_tokens, recipe.base.token_width)


def reference_unet(state: Mapping[str, Tensor], recipe: Recipe) -> UNet2DConditionModel:
    """A plain UNet with each adapter multiplied out by hand, from the raw weights."""
    scale = recipe.finetune.alpha / recipe.finetune.rank
    weights = {}
    for key, weight in state.items():
        if not key.startswith(UNET) or ".transformers.1." in key or ".lora_" in key:
            continue
        added: Tensor | float = 0.0
        if key.endswith(".base_layer.weight"):
            stem = key.removesuffix("base_layer.weight")
            added = scale * state[f"{stem}lora_B.default.weight"] @ state[f"{stem}lora_A.default.weight"]
        name = key.removeprefix(UNET).replace(".transformers.0.", ".").replace(".base_layer.", ".")
        weights[name] = weight + added
    unet = make_unet(recipe.base)
    unet.load_state_dict(weights)
    return unet.eval()


@pytest.mark.parametrize("layer", [0, 1])
def test_the_imported_model_is_the_same_function(
    layer: int,
    state: dict[str, Tensor],
    released: Path,
    tiny_recipe: Recipe,
    tiny_base: Path,
    tiny_nsd: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "imported"
    import_released(released, 1, tiny_recipe, tiny_base, out, layer=layer, nsd=tiny_nsd)
    checkpoint = load_checkpoint(out)
    assert checkpoint.subject.n_voxels == 100
    assert not checkpoint.null_NW.any()
    assert checkpoint.info.imported_from == f"{released.name}, layer {layer}"
    assert (out / "sub-01" / "roi.nii.gz").exists()
    assert (out / "sub-01" / "prior.npz").exists()
    results = tmp_path / "results"
    evaluate(Evaluation(root=tiny_nsd, checkpoint=out, out=results, n_trials=3))
    assert json.loads((results / "table.json").read_text())["split"] == "standard"

    torch.manual_seed(5)
    window = torch.randn(100, N_VOLUMES)
    expected = reference_condition(state, window, layer, tiny_recipe)
    condition = checkpoint.brain(window[None], torch.tensor([0]))
    torch.testing.assert_close(condition[0], expected, rtol=1e-4, atol=1e-5)

    size, channels = checkpoint.unet.config.sample_size, checkpoint.unet.config.in_channels
    latents, timestep = torch.randn(1, channels, size, size), torch.tensor([500])
    with torch.no_grad():
        theirs = reference_unet(state, tiny_recipe)(latents, timestep, expected[None]).sample
        ours = checkpoint.unet(latents, timestep, condition).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_priors_are_of_all_runs_at_nsds_tr(
    released: Path, tiny_recipe: Recipe, tiny_base: Path, tiny_nsd: Path, tmp_path: Path
) -> None:
    ours = link_runs(tiny_nsd, tmp_path / "as-nsd", (2, 1), (2, 2), (2, 3))  # NSD's repaired run 2
    replace, out = msgspec.structs.replace, tmp_path / "imported"
    recipe = replace(tiny_recipe, preprocessing=replace(tiny_recipe.preprocessing, tr_s=2.0))
    info = import_released(released, 1, recipe, tiny_base, out, nsd=ours.root)
    roi = read_roi(ours, 1)
    series = [Run(ours, 1, 2, run).roi_series(roi) for run in (1, 2, 3)]
    expected = measure_priors(series, recipe.preprocessing.high_pass_hz)
    np.testing.assert_array_equal(
        VoxelStatistics.read(out / "sub-01" / "prior.npz", roi.n_voxels).mean, expected.voxels.mean
    )
    assert info.subjects[0].drift_prior == expected.drift
    assert info.tr_s == info.recipe.preprocessing.tr_s == TR_S


def test_residual_blocks_come_before_the_aggregation(tiny_recipe: Recipe, tiny_base: Path) -> None:
    replace = msgspec.structs.replace
    brain = replace(tiny_recipe.brain, residual_blocks=2, residual_place="before aggregation")
    recipe = replace(tiny_recipe, brain=brain)
    torch.manual_seed(6)
    state = released_state(recipe, load_unet(tiny_base))
    window = torch.randn(N_VOXELS, N_VOLUMES)
    found = brain_from_released(state, recipe)(window[None], torch.tensor([1]))
    expected = reference_condition(state, window, 1, recipe)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TrainError, match="give a recipe with residual_blocks = 2"):
        brain_from_released(state, tiny_recipe)
    one = replace(recipe, brain=replace(brain, residual_blocks=3))
    with pytest.raises(TrainError, match=r"expected a weight .*mlp\.2\.0\.weight"):
        brain_from_released(state, one)


def test_a_released_model_with_residual_blocks_is_imported_whatever_the_recipe_says_of_their_place(
    tiny_recipe: Recipe, tiny_base: Path, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(
        tiny_recipe, brain=msgspec.structs.replace(tiny_recipe.brain, residual_blocks=1)
    )
    torch.manual_seed(7)
    state = released_state(recipe, load_unet(tiny_base), n_voxels=15_724)
    training = Training(
        steps=1, batch=1, micro_batch=1, peak_learning_rate=1e-3, warmup_steps=1, precision="fp32"
    )
    start_engine(module_of(state), training).save_checkpoint(str(tmp_path / "released"), tag=TAG)
    info = import_released(tmp_path / "released", 1, recipe, tiny_base, tmp_path / "out")
    ours, theirs = info.recipe, read_recipe(RECIPES / "authors.toml")
    assert (ours.brain.residual_place, ours.brain.residual_dropout) == ("before aggregation", 0.15)
    assert (ours.diffusion.sampler, ours.diffusion.guidance) == ("ddpm", 3.5)
    for part in ("preprocessing", "brain", "finetune", "diffusion", "latents"):
        changed = {
            name
            for name in getattr(tiny_recipe, part).__struct_fields__
            if getattr(getattr(ours, part), name) != getattr(getattr(recipe, part), name)
        }
        differ = {
            name
            for name in getattr(PAPER_RECIPE, part).__struct_fields__
            if getattr(getattr(theirs, part), name) != getattr(getattr(PAPER_RECIPE, part), name)
        }
        assert changed == differ, f"what the authors do otherwise than the paper, in [{part}]"
    brain = load_checkpoint(tmp_path / "out").brain
    assert isinstance(brain, BrainModule)
    assert brain.config.residual_place == "before aggregation"


def test_full_size_names_and_shapes_fit() -> None:
    recipe = read_recipe(PAPER)
    with torch.device("meta"):
        state = released_state(recipe, make_unet(recipe.base), n_voxels=15_724)
    brain = brain_from_released(state, recipe)
    assert brain.config.n_voxels == 15_724
    unet = adapter_from_released(state, recipe)
    assert sum(p.numel() for name, p in unet.named_parameters() if ".lora_" in name) == 397_824


def test_what_is_not_a_released_checkpoint_is_refused(
    state: dict[str, Tensor], tiny_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="expected a DeepSpeed checkpoint"):
        read_released(tmp_path)
    (tmp_path / TAG).mkdir()
    with pytest.raises(TrainError, match="cannot read a DeepSpeed checkpoint from"):
        read_released(tmp_path)
    without = {name: weight for name, weight in state.items() if "lin1" not in name}
    with pytest.raises(TrainError, match=r"expected a weight model\.brain_modules\.clip_image\.lin1\.weight"):
        brain_from_released(without, tiny_recipe)
    wrong = state | {f"{BRAIN}lin1.bias": torch.zeros(3)}
    with pytest.raises(TrainError, match=r"expected output\.bias with .* \(272,\), found \(3,\)"):
        brain_from_released(wrong, tiny_recipe)
    frozen = {name: weight for name, weight in state.items() if "lora_A" not in name}
    with pytest.raises(TrainError, match="expected LoRA weights for"):
        adapter_from_released(frozen, tiny_recipe)


def test_another_base_model_is_noticed(state: dict[str, Tensor], tiny_base: Path) -> None:
    base = load_unet(tiny_base)
    assert check_base(state, base) == len(dict(base.named_parameters()))
    with torch.no_grad():
        base.conv_in.bias[0] += 0.5
    with pytest.raises(TrainError, match=r"expected the base model .* but conv_in\.bias differs"):
        check_base(state, base)


def test_a_smaller_subjects_weights_are_refused(
    released: Path, tiny_recipe: Recipe, tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="expected a subject layer with at least the 15724 voxels"):
        import_released(released, 1, tiny_recipe, tiny_base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", str(tmp_path), "--subject", "1", "--base", str(tmp_path)]
    assert main(["import-released", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "a base model is a folder in diffusers' layout" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["import-released", "--help"])
    assert "(default: authors)" in " ".join(capsys.readouterr().out.split())
