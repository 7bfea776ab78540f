"""The loop: same losses twice, same losses after an interruption, errors that explain."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.errors import TrainError
from train.loop import Batch, batch_indices, choose_precision, deepspeed_config, fit
from train.recipe import Training, read_recipe


def short(steps: int, precision: str = "fp32") -> Training:
    training = read_recipe().fit
    return msgspec.structs.replace(
        training, steps=steps, micro_batch=20, peak_learning_rate=0.2, warmup_steps=1, precision=precision
    )


X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


class Line(nn.Module):
    """Least squares through dropout, so that a step's randomness shows in its loss."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(6, 1)
        self.calls_left = stop_after

    def forward(self, batch: Batch) -> Tensor:
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise KeyboardInterrupt
            self.calls_left -= 1
        x = nn.functional.dropout(batch["x"].to(self.layer.weight.dtype), 0.5)
        return (self.layer(x) - batch["x"].sum(1, keepdim=True)).square().mean()


def batch_of(indices: NDArray[np.int64]) -> Batch:
    return {"x": X[indices]}


def train(
    folder: Path, training: Training, model: Line | None = None, save_every_s: float = 1e9
) -> list[float]:
    return fit(
        model or Line(), batch_of, 40, training, folder=folder, seed=3, name="line", save_every_s=save_every_s
    )


def test_one_seed_gives_one_curve_and_an_interruption_does_not_change_it(tmp_path: Path) -> None:
    whole = train(tmp_path / "a", short(30))
    again = train(tmp_path / "b", short(30))
    assert whole == again
    assert np.mean(whole[-5:]) < np.mean(whole[:5])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "c", short(30), Line(stop_after=17), save_every_s=0)
    rest = train(tmp_path / "c", short(30))
    assert rest == whole[17:]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path, short(3))
    with pytest.raises(TrainError, match="choose another --out"):
        train(tmp_path, short(4))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = Line()
    with torch.no_grad():
        model.layer.bias.fill_(torch.inf)
    with pytest.raises(TrainError, match="expected a finite loss"):
        train(tmp_path, short(3), model)


def test_bf16_trains_too(tmp_path: Path) -> None:
    losses = train(tmp_path, short(30, "bf16"))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_every_example_is_seen_once_an_epoch() -> None:
    seen = np.concatenate([batch_indices(7, step, 8, 40) for step in range(10)])
    assert sorted(seen[:40]) == list(range(40))
    assert sorted(seen[40:]) == list(range(40))
    assert list(seen[:40]) != list(seen[40:])


def test_the_recipe_fills_the_deepspeed_json() -> None:
    training = read_recipe().fit
    config = deepspeed_config(training, "bf16")
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["bf16"] == {"enabled": True}
    assert config["optimizer"]["params"]["lr"] == training.peak_learning_rate
    assert config["scheduler"]["params"]["total_num_steps"] == training.steps


def test_auto_precision_follows_the_device() -> None:
    assert choose_precision("auto") == ("fp16" if torch.cuda.is_available() else "bf16")
