"""The brain module equals its layers written out, for every switch of the paper's ablations."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from train.errors import TrainError
from train.model.brain import BrainConfig, BrainModule

SMALL = BrainConfig(n_voxels=10, n_volumes=3, n_subjects=2, hidden_width=8, n_tokens=2, token_width=4)
LAYERS: tuple[Literal["own", "shared"], ...] = ("own", "shared")
MERGED: tuple[Literal["out", "in", "mean"], ...] = ("out", "in", "mean")
RESIDUAL = (
    SMALL,
    replace(SMALL, residual_blocks=2),
    replace(SMALL, residual_blocks=2, residual_place="before aggregation", residual_dropout=0.15),
)
SWITCHES = [
    replace(small, timestep_layers=layers, aggregation=merged, per_subject_timesteps=own)
    for small, layers, merged, own in itertools.product(RESIDUAL, LAYERS, MERGED, (False, True))
]


def written_out(brain: BrainModule, window_VT: Tensor, subject: int) -> Tensor:
    """One window through the layers, volume by volume, as the paper describes them."""
    config = brain.config
    merge = brain.aggregate
    volumes = [window_VT[:, t] for t in range(config.n_volumes)]
    if config.aggregation == "in":
        assert merge is not None
        volumes = [sum(w * v for w, v in zip(merge.weight[0], volumes, strict=True)) + merge.bias]
    rows = []
    for t, volume in enumerate(volumes):
        hidden = volume @ brain.subject.weights[subject]
        if brain.timestep is not None:
            owner = subject if config.per_subject_timesteps else 0
            layer = t if config.timestep_layers == "own" else 0
            hidden = hidden @ brain.timestep.weight[owner, layer] + brain.timestep.bias[owner, layer]
        hidden = torch.nn.functional.gelu(brain.norm(hidden))
        rows.append(residual(brain, hidden) if config.residual_place == "before aggregation" else hidden)
    if config.aggregation == "out" and config.n_volumes > 1:
        assert merge is not None
        hidden = sum(w * row for w, row in zip(merge.weight[0], rows, strict=True)) + merge.bias
    else:
        hidden = torch.stack(rows).mean(dim=0)
    if config.residual_place == "after aggregation":
        hidden = residual(brain, hidden)
    tokens: Tensor = brain.output(hidden).view(config.n_tokens, config.token_width)
    return tokens


def residual(brain: BrainModule, hidden: Tensor) -> Tensor:
    for block in brain.residual:
        assert isinstance(block.body, nn.Sequential)
        linear, norm, *_ = block.body
        hidden = hidden + torch.nn.functional.gelu(norm(linear(hidden)))
    return hidden


@pytest.mark.parametrize("config", SWITCHES, ids=str)
def test_every_switch_equals_its_layers_written_out(config: BrainConfig) -> None:
    torch.manual_seed(0)
    brain = BrainModule(config).eval()
    windows, subjects = torch.randn(5, 10, 3), torch.tensor([0, 1, 1, 0, 1])
    expected = [written_out(brain, one, int(who)) for one, who in zip(windows, subjects, strict=True)]
    torch.testing.assert_close(brain(windows, subjects), torch.stack(expected))


def test_betas_have_neither_timestep_nor_aggregation_layers() -> None:
    torch.manual_seed(0)
    brain = BrainModule(replace(SMALL, n_volumes=1)).eval()
    assert brain.timestep is None
    assert brain.aggregate is None
    betas = torch.randn(10, 1)
    expected = written_out(brain, betas, 1)
    torch.testing.assert_close(brain(betas[None], torch.tensor([1]))[0], expected)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, per_subject_timesteps=True)], ids=str)
def test_a_subjects_own_module_decodes_as_the_shared_one_does(config: BrainConfig) -> None:
    torch.manual_seed(0)
    brain = BrainModule(config).eval()
    window = torch.randn(1, 10, 3)
    window[:, 7:] = 0  # the padding behind a smaller region
    single = brain.of_subject(1, n_voxels=7)
    torch.testing.assert_close(single(window[:, :7], torch.tensor([0])), brain(window, torch.tensor([1])))
    with pytest.raises(TrainError, match="expected a subject index below 2"):
        brain.of_subject(2, n_voxels=7)
    with pytest.raises(TrainError, match="at most 10 voxels"):
        brain.of_subject(0, n_voxels=11)


def test_only_the_subjects_that_were_seen_learn() -> None:
    torch.manual_seed(0)
    brain = BrainModule(replace(SMALL, per_subject_timesteps=True))
    brain(torch.randn(4, 10, 3), torch.tensor([1, 1, 1, 1])).square().sum().backward()
    assert brain.timestep is not None
    for weight in (brain.subject.weights, brain.timestep.weight):
        assert weight.grad is not None
        assert not weight.grad[0].any()
        assert weight.grad[1].any()


def test_the_place_of_residual_blocks_matters_and_their_weights_fit_both() -> None:
    torch.manual_seed(0)
    after = BrainModule(replace(SMALL, residual_blocks=1)).eval()
    before = BrainModule(replace(after.config, residual_place="before aggregation")).eval()
    before.load_state_dict(after.state_dict())
    windows, subjects = torch.randn(2, 10, 3), torch.tensor([0, 1])
    assert not torch.allclose(before(windows, subjects), after(windows, subjects), atol=1e-3)


@pytest.mark.parametrize(("given", "expected"), [(None, 0.3), (0.15, 0.15), (0.0, 0.0)])
def test_residual_blocks_may_have_a_dropout_of_their_own(given: float | None, expected: float) -> None:
    brain = BrainModule(replace(SMALL, dropout=0.3, residual_blocks=1, residual_dropout=given))
    rates = {name: part.p for name, part in brain.named_modules() if isinstance(part, nn.Dropout)}
    assert rates == {"dropout": 0.3, "residual.0.body.3": expected}


def test_switches_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(TrainError, match="per_subject_timesteps"):
        BrainModule(replace(SMALL, n_volumes=1, per_subject_timesteps=True))
