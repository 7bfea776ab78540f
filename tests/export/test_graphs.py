from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from export.graphs.graphs import BrainGraph, DenoiseGraph, VaeGraph, brain_graph, denoise_graph, vae_graph
from export.graphs.onnx_model import onnx_runner, save, trace
from export.graphs.samplers import ddim
from train.model.base_model import make_unet, make_vae
from train.model.brain import BrainConfig, BrainModule
from train.model.diffusion import make_scheduler
from train.model.vae import decode_latents

from .conftest import tiny_recipe

LATENTS = (4, 16, 16)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(3)
    return make_unet(tiny_recipe().base).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def denoise(unet: UNet2DConditionModel) -> DenoiseGraph:
    return DenoiseGraph(unet, make_scheduler().alphas_cumprod).eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_weights_are_classifier_free_guidance(unet: UNet2DConditionModel, denoise: DenoiseGraph) -> None:
    latents, conditions, g, t = draw(1, *LATENTS), draw(2, 3, 8, seed=1), 3.5, 401
    _, prediction = denoise(
        latents, latents, torch.tensor([t]), conditions, torch.tensor([1 - g, g]), torch.ones(3)
    )
    null, condition = (unet(latents, t, c[None]).sample for c in conditions)
    guided = null + g * (condition - null)
    alpha = make_scheduler().alphas_cumprod[t]
    expected = (latents - (1 - alpha).sqrt() * guided) / alpha.sqrt()
    np.testing.assert_allclose(prediction, expected, rtol=1e-4, atol=1e-5)
    assert float((guided - condition).abs().max()) > 1e-3, "the condition must matter, else nothing is tested"


def test_without_guidance_one_condition_is_as_good_as_two(denoise: DenoiseGraph) -> None:
    latents, conditions = draw(1, *LATENTS), draw(2, 3, 8, seed=1)
    rest = torch.tensor([0.9, 0.2, 0.1])
    alone = denoise(latents, latents, torch.tensor([101]), conditions[1:], torch.ones(1), rest)
    both = denoise(latents, latents, torch.tensor([101]), conditions, torch.tensor([0.0, 1.0]), rest)
    for one, two in zip(alone, both, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_next_is_the_sum_the_bundle_format_says(denoise: DenoiseGraph) -> None:
    latents, previous = draw(1, *LATENTS), draw(1, *LATENTS, seed=2)
    arguments = (torch.tensor([501]), draw(1, 3, 8, seed=1), torch.ones(1))
    following, prediction = denoise(latents, previous, *arguments, torch.tensor([0.5, -0.25, 2.0]))
    np.testing.assert_allclose(
        following, 0.5 * latents - 0.25 * prediction + 2.0 * previous, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shift", [None, 0.3])
def test_pictures_are_rounded_as_in_training(shift: float | None) -> None:
    torch.manual_seed(4)
    vae = make_vae(tiny_recipe().base).eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=0.4, shift_factor=shift)
    graph = vae_graph(vae, LATENTS, seed=0)
    for case in graph.cases:
        picture = VaeGraph(vae)(**case)
        assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (64, 64, 3))
        np.testing.assert_array_equal(picture, decode_latents(vae, case["latents"])[0])
        assert len(np.unique(picture)) > 10


def test_a_brain_graph_is_of_one_subject_among_several() -> None:
    torch.manual_seed(5)
    config = BrainConfig(n_voxels=7, n_subjects=3, hidden_width=8, n_tokens=2, token_width=4)
    brain = BrainModule(config).eval().requires_grad_(False)
    window = draw(1, 7, 6)
    for subject in range(3):
        expected = brain(window, torch.tensor([subject]))
        torch.testing.assert_close(BrainGraph(brain, subject)(window), expected)
    assert not torch.allclose(brain(window, torch.tensor([0])), brain(window, torch.tensor([2])))


def test_parity_is_measured_with_and_without_guidance_along_the_whole_table(
    unet: UNet2DConditionModel,
) -> None:
    sampler = ddim(20, 3.0)
    alphas = make_scheduler().alphas_cumprod
    cases = denoise_graph(unet, alphas, sampler, draw(2, 3, 8), LATENTS, seed=0).cases
    assert [int(case["timestep"]) for case in cases] == [951, 951, 501, 501, 1, 1]
    assert [case["weights"].tolist() for case in cases] == [[-2.0, 3.0], [1.0]] * 3
    assert [len(case["conditions"]) for case in cases] == [2, 1] * 3


@pytest.mark.parametrize("place", ["after aggregation", "before aggregation"])
def test_residual_blocks_are_traced_where_they_are(
    place: Literal["after aggregation", "before aggregation"], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    config = BrainConfig(
        n_voxels=7, hidden_width=8, n_tokens=2, token_width=4, residual_blocks=2, residual_place=place
    )
    brain = BrainModule(config).eval().requires_grad_(False)
    graph = brain_graph(brain, seed=0)
    save(trace(graph), tmp_path / "brain.onnx")
    for case in graph.cases:
        found = onnx_runner(tmp_path / "brain.onnx")(case)["condition"]
        expected = brain(case["window"], torch.tensor([0]))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
