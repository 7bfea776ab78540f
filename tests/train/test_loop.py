"""The loop: same losses twice, same losses after an interruption or a kill, errors that explain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from train.errors import TrainError
from train.loop.deepspeed_engine import choose_precision, deepspeed_config
from train.loop.logbook import Logbook, StepFigures
from train.loop.loop import batch_indices, fit, noise_seed
from train.model.batch import Batch
from train.recipe import Training, read_recipe

from .line import Line, batch_of, training


def train(
    folder: Path,
    settings: Training,
    model: Line | None = None,
    *,
    take: Callable[[NDArray[np.int64]], Batch] = batch_of,
    save_every_s: float = 1e9,
    sample: Callable[[], NDArray[np.uint8]] | None = None,
) -> list[float]:
    return fit(
        model or Line(),
        take,
        40,
        settings,
        folder=folder,
        seed=3,
        name="line",
        save_every_s=save_every_s,
        sample=sample,
        sample_every_steps=10,
    )


def after(n_calls: int, happens: Callable[[], object]) -> Callable[[NDArray[np.int64]], Batch]:
    """A source of batches with which something happens at its n-th."""
    calls = iter(range(n_calls))

    def take(indices: NDArray[np.int64]) -> Batch:
        if next(calls, None) == n_calls - 1:
            happens()
        return batch_of(indices)

    return take


def poisoned(n_calls: int) -> Callable[[NDArray[np.int64]], Batch]:
    """A source of batches whose n-th, and those behind it, hold what is not a number."""
    calls = iter(range(n_calls - 1))
    return lambda chosen: batch_of(chosen) if next(calls, None) is not None else {"x": X_NAN[chosen]}


X_NAN = torch.full((40, 6), torch.nan)


def table(folder: Path) -> list[tuple[int, float]]:
    rows = [line.split("\t") for line in (folder / "losses.tsv").read_text().splitlines()]
    return [(int(step), float(loss)) for step, loss in rows]


def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> list[float]:
    """The losses of a run that nothing happened to."""
    return train(tmp_path_factory.mktemp("whole"), training())


def test_one_seed_gives_one_curve(tmp_path: Path, whole: list[float]) -> None:
    assert train(tmp_path, training()) == whole
    assert np.mean(whole[-5:]) < np.mean(whole[:5])
    assert [step for step, _ in table(tmp_path)] == list(range(len(whole)))
    assert [loss for _, loss in table(tmp_path)] == pytest.approx(whole, rel=1e-8)


def test_ctrl_c_finishes_the_step_and_the_rest_is_as_if_nothing_had_been(
    tmp_path: Path, whole: list[float]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, step in ((signal.SIGINT, 10), (signal.SIGTERM, 21)):
        # In the midst of a step's second micro-batch.
        done = len(table(tmp_path)) if (tmp_path / "losses.tsv").exists() else 0
        stop = after(2 * (step - done), partial(os.kill, os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, training(), take=stop)
        assert [at for at, _ in table(tmp_path)] == list(range(step))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert train(tmp_path, training()) == whole
    assert len(table(tmp_path)) == 30
    assert train(tmp_path, training()) == whole, "a finished run tells its losses again"


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path: Path, whole: list[float]) -> None:
    script = [sys.executable, str(Path(__file__).parent / "line.py"), str(tmp_path)]
    with subprocess.Popen([*script, "--save-every-s", "0.4", "--step-s", "0.05"]) as process:
        deadline = time.monotonic() + 120
        while not (_n_lines(tmp_path) > 12 and (tmp_path / "latest").exists()):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    saved = int((tmp_path / "latest").read_text().removeprefix("checkpoint-"))
    logged = len(table(tmp_path))
    assert 0 < saved < logged < 30, "killed at a checkpoint, not between two"
    assert train(tmp_path, training()) == whole
    assert [step for step, _ in table(tmp_path)] == list(range(30)), "no step stands twice"
    assert [event.step for event in board(tmp_path).Scalars("loss")] == list(range(30))


def _n_lines(folder: Path) -> int:
    path = folder / "losses.tsv"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.usefixtures("compiler")
def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path, training(4))
    with pytest.raises(TrainError, match="steps = 4, this one has 3; .* choose another --out"):
        train(tmp_path, training(3))
    with pytest.raises(TrainError, match="batch = 16, this one has 8; .* choose another --out"):
        train(tmp_path, training(4, batch=8))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_no_number_stops_the_run_and_overwrites_nothing(
    tmp_path: Path, whole: list[float], precision: str
) -> None:
    settings = training(precision=precision)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings, take=after(20, lambda: os.kill(os.getpid(), signal.SIGINT)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("checkpoint-*/*")}
    assert len(before) == 2
    with pytest.raises(TrainError, match="expected a finite loss, got nan at step 14; the last checkpoint"):
        train(tmp_path, settings, take=poisoned(2 * 4 + 2), save_every_s=1e9)
    assert {path: path.read_bytes() for path in tmp_path.rglob("checkpoint-*/*")} == before
    assert (tmp_path / "latest").read_text() == "checkpoint-000010"
    losses = train(tmp_path, settings)
    assert len(losses) == 30
    if precision == "fp32":
        assert losses == whole


class Cliff(Line):
    """Its loss stays finite while the gradient does not, in the steps that are named."""

    def __init__(self, steps: range) -> None:
        super().__init__()
        self.steps, self.calls = steps, 0

    def forward(self, batch: Batch) -> Tensor:
        loss = super().forward(batch)
        if self.calls // 2 in self.steps:
            zero = (self.layer.weight.float() - self.layer.weight.float().detach()).sum().abs()
            loss = loss + zero.sqrt()  # 0, with an infinite slope
        self.calls += 1
        return loss


@pytest.mark.usefixtures("compiler")
def test_gradients_that_are_not_finite_stop_the_run_too(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="expected a finite gradient, got inf at step 6"):
        train(tmp_path, training(), Cliff(range(6, 30)), save_every_s=0)
    assert (tmp_path / "latest").read_text() == "checkpoint-000006"


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's CPU computes in fp16 too, slowly; DeepSpeed only offers it where it is fast."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)


@pytest.mark.usefixtures("compiler", "fp16")
def test_fp16_skips_steps_that_overflow_while_its_scale_falls(tmp_path: Path) -> None:
    assert choose_precision("auto") == "fp16"
    losses = train(tmp_path / "a", training(60, precision="fp16"), Cliff(range(6, 10)))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    norms = [event.value for event in board(tmp_path / "a").Scalars("gradient_norm")]
    skipped = [step for step, norm in enumerate(norms) if not np.isfinite(norm)]
    n_searching = len(skipped) - 4  # how long the scale falls at first hangs on the noise
    assert 1 <= n_searching < 6
    assert skipped == [*range(n_searching), *range(6, 10)]
    with pytest.raises(TrainError, match="expected a finite gradient at the smallest loss scale, got inf"):
        train(tmp_path / "b", training(60, precision="fp16"), Cliff(range(6, 60)), save_every_s=0)


@pytest.mark.usefixtures("compiler")
def test_bf16_trains_too(tmp_path: Path) -> None:
    losses = train(tmp_path, training(precision="bf16"))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_tensorboard_holds_losses_rates_throughput_and_samples(tmp_path: Path, whole: list[float]) -> None:
    model, modes = Line(), []

    def sample() -> NDArray[np.uint8]:
        modes.append((model.training, torch.is_grad_enabled()))
        level = int(torch.randint(256, ()))  # draws from the stream that noise and dropout come from
        return np.full((2, 8, 8, 3), level, dtype=np.uint8)

    stop = after(2 * 25, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, training(), model, take=stop, sample=sample)
    assert modes == [(False, False)] * 2
    assert train(tmp_path, training(), sample=sample) == whole, "drawing samples changed the training"
    events = board(tmp_path)
    assert {"loss", "learning_rate", "examples_per_s", "gradient_norm"} == set(events.Tags()["scalars"])
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == list(range(30))
    assert [event.value for event in losses] == pytest.approx(whole, rel=1e-6)
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    assert rates.index(max(rates)) == pytest.approx(5, abs=1)
    assert rates[-1] < 0.01
    assert all(event.value > 0 for event in events.Scalars("examples_per_s"))
    assert all(event.value > 0 for event in events.Scalars("gradient_norm"))
    samples = [image for tag in events.Tags()["images"] for image in events.Images(tag)]
    assert sorted({image.step for image in samples}) == [9, 19, 29]
    assert all((image.width, image.height) == (16, 8) for image in samples)


def test_steps_behind_the_checkpoint_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(loss: float) -> StepFigures:
        return StepFigures(loss=loss, learning_rate=1.0, gradient_norm=1.0, examples_per_s=1.0)

    with Logbook(tmp_path, [], 5, "first") as logbook:
        for loss in (5.0, 4.0, 3.0):
            logbook.add(figures(loss))
    # TensorBoard names its files by the second, and reads them in that order.
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2)
    with Logbook(tmp_path, [5.0], 5, "second") as logbook:
        logbook.add(figures(3.5))
    assert table(tmp_path) == [(0, 5.0), (1, 3.5)]
    assert [(event.step, event.value) for event in board(tmp_path).Scalars("loss")] == [(0, 5.0), (1, 3.5)]


def test_noise_hangs_on_the_seed_and_on_the_micro_batch() -> None:
    def noise(seed: int, number: int) -> list[float]:
        torch.manual_seed(noise_seed(seed, number))
        values: list[float] = torch.rand(3).tolist()
        return values

    assert noise(1, 5) == noise(1, 5)
    draws = {tuple(noise(seed, number)) for seed in range(4) for number in range(4)}
    assert len(draws) == 16


def test_every_example_is_seen_once_an_epoch() -> None:
    seen = np.concatenate([batch_indices(7, number, 8, 40) for number in range(10)])
    assert sorted(seen[:40]) == list(range(40))
    assert sorted(seen[40:]) == list(range(40))
    assert list(seen[:40]) != list(seen[40:])
    halves = np.concatenate([batch_indices(7, number, 4, 40) for number in range(20)])
    assert np.array_equal(halves, seen), "the order does not hang on the micro-batch"


def test_deepspeed_json_is_read_and_the_recipe_fills_its_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = read_recipe(Path("paper")).fit
    config = deepspeed_config(paper, "fp16", n_devices=8)
    assert "auto" not in str(config)
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert (config["fp16"]["enabled"], config["bf16"]["enabled"]) == (True, False)
    assert config["optimizer"]["params"]["lr"] == paper.peak_learning_rate
    assert config["scheduler"]["params"]["total_num_steps"] == paper.steps
    assert config["train_batch_size"] == 320
    assert config["train_micro_batch_size_per_gpu"] == 40
    assert config["gradient_accumulation_steps"] == 1
    assert deepspeed_config(paper, "fp16", n_devices=2)["gradient_accumulation_steps"] == 4


@pytest.mark.parametrize(
    ("batch", "micro_batch", "n_devices", "advice"),
    [
        (48, 48, 2, "micro_batch = 24 does"),
        (320, 48, 8, "micro_batch = 40 does"),
        (10, 3, 4, "batch = 12 does"),
    ],
)
def test_a_batch_that_does_not_divide_says_what_does(
    batch: int, micro_batch: int, n_devices: int, advice: str
) -> None:
    wanted = training(batch=batch, micro_batch=micro_batch)
    with pytest.raises(TrainError, match=advice):
        wanted.accumulation(n_devices)
    name, value = advice.split()[0], int(advice.split()[2])
    fits = msgspec.structs.replace(wanted, **{name: value})
    assert fits.accumulation(n_devices) * fits.micro_batch * n_devices == fits.batch


@pytest.mark.usefixtures("compiler")
def test_auto_precision_follows_the_device(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    if choose_precision("auto") == "fp16":
        pytest.skip("this machine's device has fp16")
    with caplog.at_level("INFO"):
        train(tmp_path, training(1, precision="auto"))
    assert "in bf16, as this device has no fp16 on cpu; batch 16 = 8 x 2 accumulated" in caplog.text
    with pytest.raises(TrainError, match="this device has no fp16"):
        choose_precision("fp16")


def averaged(folder: Path, precision: str = "fp32", stop_at: int | None = None) -> tuple[list[Tensor], Line]:
    """Train with an average; the weights before each step, and what came out."""
    model, before = Line(), []

    def take(indices: NDArray[np.int64]) -> Batch:
        before.append(torch.cat([p.detach().double().flatten() for p in model.layer.parameters()]))
        if len(before) == 2 * (stop_at or 0):
            os.kill(os.getpid(), signal.SIGINT)
        return batch_of(indices)

    settings = msgspec.structs.replace(training(precision=precision), ema_decay=0.8)
    losses = train(folder, settings, model, take=take)
    assert np.isfinite(losses).all()
    return before[::2], model


def flat(model: Line) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.layer.parameters()])


def test_the_result_is_the_average_of_the_weights_after_each_step(tmp_path: Path, whole: list[float]) -> None:
    before, model = averaged(tmp_path / "averaged")
    assert [loss for _, loss in table(tmp_path / "averaged")] == pytest.approx(whole, rel=1e-8)
    plain = Line()
    train(tmp_path / "plain", training(), plain)
    after = [*before[1:], flat(plain).double()]
    expected = before[0]
    for step, weights in enumerate(after):
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
    torch.testing.assert_close(flat(model).double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(flat(model), flat(plain), atol=1e-3)
    assert torch.equal(model.frozen.weight, plain.frozen.weight)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interruption_changes_no_digit_of_the_average(tmp_path: Path, precision: str) -> None:
    _, model = averaged(tmp_path / "whole", precision)
    assert flat(model).dtype == torch.float32
    assert not torch.equal(flat(model), flat(model).bfloat16().float()), "of fp32 weights, not rounded"
    with pytest.raises(KeyboardInterrupt):
        averaged(tmp_path / "stopped", precision, stop_at=12)
    assert (tmp_path / "stopped" / "latest").read_text() == "checkpoint-000012"
    _, again = averaged(tmp_path / "stopped", precision)
    assert torch.equal(flat(again), flat(model))
    _, told = averaged(tmp_path / "stopped", precision)
    assert torch.equal(flat(told), flat(model)), "a finished run gives its average again"


@pytest.mark.usefixtures("compiler")
def test_a_run_of_an_earlier_version_goes_on_and_takes_no_average(tmp_path: Path) -> None:
    train(tmp_path, training(3))
    settings = json.loads((tmp_path / "run.json").read_text())
    del settings["ema_decay"]
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert len(train(tmp_path, training(3))) == 3
    with pytest.raises(TrainError, match="a run with ema_decay = None, this one has 0.8"):
        train(tmp_path, msgspec.structs.replace(training(3), ema_decay=0.8))
