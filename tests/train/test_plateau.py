"""Trainings that end at a plateau: where that is, that measuring changes nothing, and that they can go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nsd import Layout, run_trials, runs, shared_images
from train.checkpoints.checkpoint import read_info
from train.data.cache import Cache, prepare
from train.data.validation import validation_trials
from train.errors import TrainError
from train.evaluation.held_out import held_out_groups, images_of
from train.fitting.fit import fit_subjects
from train.fitting.job import Order, training_set, validation_set
from train.loop.loop import fit
from train.loop.plateau import HeldOut, reached
from train.recipe import RECIPES, Plateau, Recipe, Training, read_recipe

from .line import Line, X, batch_of, training

HELD_OUT = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
PLATEAU = Plateau(every_steps=5, measurements=2, fall=0.1)


def measured(steps: int = 200, plateau: Plateau = PLATEAU) -> Training:
    return msgspec.structs.replace(training(steps), ema_decay=0.8, plateau=plateau)


def loss_of(model: Line) -> float:
    """Without dropout."""
    assert not model.training
    errors = model.layer(HELD_OUT) - HELD_OUT.sum(1, keepdim=True)
    return float(errors.detach().square().mean())


def train(
    folder: Path, settings: Training, held_out: bool = True, take: Callable[..., object] = batch_of
) -> tuple[Line, HeldOut, list[float]]:
    model = Line()
    measure = HeldOut(settings.plateau or PLATEAU, partial(loss_of, model))
    losses = fit(
        model,
        take,  # type: ignore[arg-type]
        len(X),
        settings,
        folder=folder,
        seed=3,
        name="line",
        held_out=measure if held_out else None,
    )
    return model, measure, losses


def weights_of(model: Line) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.layer.parameters()]).tolist()


@pytest.mark.parametrize(
    ("losses", "is_reached"),
    [
        ([10, 6, 4], False),  # too few
        ([10, 6, 4, 3, 2.5], False),
        ([10, 6, 4, 3.6, 3.5], True),  # by 0.5 of 6.5, which is less than a tenth
        ([10, 6, 4, 3.5, 3.3], False),
        ([10, 6, 4, 5, 6], True),  # it rises
        ([10, 10, 10], True),  # there is nothing to learn
        ([10, 13, 12, 11], False),  # it falls after a rise at the start
        ([10, 13, 12.5, 11.5, 10.1], False),
        ([10, 4, 8, 7, 6], False),  # or later
        ([10, 4, 8, 4.5, 4.4, 4.4], True),
        ([10, 13, 13, 13], True),  # it has risen, and stays there
        ([110, 106, 104, 103.6, 103.5], True),  # what cannot be learned has no part
    ],
)
def test_a_plateau_is_where_little_of_the_whole_fall_is_left(losses: list[float], is_reached: bool) -> None:
    settings = Plateau(every_steps=5, measurements=2, fall=0.1)
    assert reached([(5 * n, loss) for n, loss in enumerate(losses)], settings) == is_reached


@given(
    losses=st.lists(st.floats(0.1, 10), min_size=3, max_size=20),
    scale=st.sampled_from([0.25, 1.0, 4.0]),
)
def test_a_plateau_does_not_depend_on_the_unit_of_the_loss(losses: list[float], scale: float) -> None:
    curve = list(enumerate(losses))
    assert reached(curve, PLATEAU) == reached([(n, scale * loss) for n, loss in curve], PLATEAU)


def test_a_rise_at_the_start_is_no_plateau() -> None:
    settings = Plateau(every_steps=50, measurements=6, fall=0.03)
    curve = list(enumerate([1, 1.33, 1.25, 1.18, 1.12, 1.06, 1.01]))
    assert not reached(curve, settings)
    assert not reached([*curve, (7, 0.97), (8, 0.94)], settings)
    assert reached([*curve, *((step, 0.9) for step in range(7, 14))], settings)


def test_training_ends_at_the_plateau_with_the_weights_of_the_lowest_loss(tmp_path: Path) -> None:
    model, held_out, losses = train(tmp_path, measured())
    assert held_out.reached
    assert len(losses) == held_out.curve[-1][0] < 200
    assert [step for step, _ in held_out.curve] == list(range(0, len(losses) + 1, 5))
    assert not reached(held_out.curve[:-1], PLATEAU), "it ends as soon as it is reached"
    lowest = min(loss for _, loss in held_out.curve)
    assert loss_of(model.eval()) == pytest.approx(lowest, rel=1e-6)
    rows = [line.split("\t") for line in (tmp_path / "held_out.tsv").read_text().splitlines()]
    assert [int(step) for step, _ in rows] == [step for step, _ in held_out.curve]
    assert [float(loss) for _, loss in rows] == pytest.approx([loss for _, loss in held_out.curve])
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(board.Scalars("held_out_loss")) == len(held_out.curve)
    again = train(tmp_path, measured())
    assert (weights_of(again[0]), again[1].curve, again[2]) == (weights_of(model), held_out.curve, losses)


def test_measuring_changes_no_step_and_the_rate_does_not_fall(tmp_path: Path) -> None:
    _, held_out, losses = train(tmp_path / "measured", measured())
    alone = msgspec.structs.replace(measured(len(losses)), plateau=PLATEAU)
    assert train(tmp_path / "alone", alone, held_out=False)[2] == losses
    board = EventAccumulator(str(tmp_path / "measured" / "tensorboard")).Reload()
    rates = [event.value for event in board.Scalars("learning_rate")]
    assert rates[6:] == pytest.approx([0.1] * (len(losses) - 6))


@pytest.mark.parametrize("at", [7, 10, 12])
def test_an_interrupted_training_has_the_curve_of_an_uninterrupted_one(at: int, tmp_path: Path) -> None:
    whole, held_out, losses = train(tmp_path / "whole", measured())
    calls = iter(range(2 * at))

    def interrupted(indices: np.ndarray) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return batch_of(indices)

    saves = partial(fit, save_every_s=0)
    model = Line()
    measure = HeldOut(PLATEAU, partial(loss_of, model))
    with pytest.raises(KeyboardInterrupt):
        saves(
            model,
            interrupted,  # type: ignore[arg-type]
            len(X),
            measured(),
            folder=tmp_path / "parts",
            seed=3,
            name="line",
            held_out=measure,
        )
    resumed, measure, again = train(tmp_path / "parts", measured())
    assert again == losses
    assert measure.curve == held_out.curve
    assert weights_of(resumed) == weights_of(whole)


def test_a_plateau_needs_averaged_weights() -> None:
    with pytest.raises(ValueError, match="expected ema_decay"):
        msgspec.structs.replace(training(), plateau=PLATEAU)


@pytest.mark.parametrize("training_of", ["vae_training", "encoder_training", "unet_training"])
def test_a_base_model_has_no_plateau(training_of: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    section = f"[base.{training_of}]"
    written = (RECIPES / "experiments.toml").read_text()
    plateau = "{every_steps = 5, measurements = 2, fall = 0.1}"
    path.write_text(written.replace(section, f"{section}\nema_decay = 0.9\nplateau = {plateau}"))
    with pytest.raises(TrainError, match=f"expected no plateau in {training_of}: only decoders"):
        read_recipe(path)


def test_more_steps_at_a_constant_rate_are_as_if_asked_for_at_once(tmp_path: Path) -> None:
    never = Plateau(every_steps=5, measurements=50, fall=0.1)
    whole, held_out, losses = train(tmp_path / "whole", measured(40, never))
    train(tmp_path / "parts", measured(17, never))
    longer, measure, again = train(tmp_path / "parts", measured(40, never))
    assert (again, measure.curve) == (losses, held_out.curve)
    assert weights_of(longer) == weights_of(whole)
    with pytest.raises(TrainError, match="holds a run with steps = 40, this one has 30"):
        train(tmp_path / "parts", measured(30, never))


def test_more_steps_after_a_falling_rate_have_the_rates_of_the_longer_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rates(folder: Path) -> list[float]:
        board = EventAccumulator(str(folder / "tensorboard")).Reload()
        return [event.value for event in board.Scalars("learning_rate")]

    train(tmp_path / "parts", training(20), held_out=False)
    train(tmp_path / "twice", training(20), held_out=False)
    short = rates(tmp_path / "parts")
    with caplog.at_level(logging.INFO):
        _, _, first = train(tmp_path / "parts", training(50), held_out=False)
    assert "the training is extended: its learning rate had fallen to 0.0001" in caplog.text
    assert "not that of 50 steps from the start" in caplog.text
    _, _, whole = train(tmp_path / "whole", training(50), held_out=False)
    assert rates(tmp_path / "parts") == short + rates(tmp_path / "whole")[20:]
    assert first[:5] == whole[:5], "until the end of the warm-up"
    assert first != whole
    assert train(tmp_path / "twice", training(50), held_out=False)[2] == first, "always the same"


def with_plateau(recipe: Recipe, steps: int, **changes: int) -> Recipe:
    plateau = Plateau(every_steps=2, measurements=2, fall=0.05, presentations=20)
    own = msgspec.structs.replace(recipe.fit, steps=steps, ema_decay=0.9, plateau=plateau, **changes)
    return msgspec.structs.replace(recipe, fit=own)


def test_no_picture_is_trained_on_measured_on_and_tested_on(
    tiny_cache: Cache, tiny_nsd: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = with_plateau(tiny_recipe, 4)
    assert not len(validation_trials(tiny_cache, tiny_recipe)), "a training of fixed steps keeps its tests"
    drawn = validation_trials(tiny_cache, recipe)
    assert 10 <= len(drawn) <= 40
    order = Order(root=tiny_nsd, subjects=[1], recipe=recipe, base="", out=tmp_path, caches=tmp_path)
    trained_on = training_set(order)
    validation = validation_set(order, trained_on)
    assert validation is not None
    measured_on, trained = set(validation.images.tolist()), set(trained_on.data.images.tolist())
    groups = held_out_groups(tiny_cache, recipe, [recipe.window], average=False, seed=1, n_groups=1000)
    tested = set(images_of(tiny_cache, groups).tolist())
    assert all((measured_on, tested, trained))
    assert not measured_on & tested
    assert not measured_on & trained
    assert not tested & trained
    items = run_trials(Layout(tiny_nsd), runs(Layout(tiny_nsd), 1))
    assert measured_on <= {item.trial.image for item in items}


@pytest.fixture(scope="module")
def two_caches(
    tiny_nsd_of_two: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> list[Cache]:
    folder = tmp_path_factory.mktemp("two")
    return [prepare(tiny_nsd_of_two, n, tiny_recipe, folder / str(n)) for n in (1, 2)]


@pytest.mark.parametrize("split", ["time-resolved", "runs-and-shared", "standard"])
def test_no_subject_is_tested_on_what_another_is_measured_on(
    split: str, two_caches: list[Cache], tiny_nsd_of_two: Path, tiny_recipe: Recipe
) -> None:
    recipe = with_plateau(msgspec.structs.replace(tiny_recipe, split=split), 4)
    plateau = Plateau(every_steps=2, measurements=2, fall=0.05, presentations=900)  # more than there are
    recipe = msgspec.structs.replace(recipe, fit=msgspec.structs.replace(recipe.fit, plateau=plateau))
    measured_on, tested = set[int](), set[int]()
    shared = shared_images(Layout(tiny_nsd_of_two))
    for every, cache in zip((1, 2), two_caches, strict=True):  # subject 2 has half as many presentations
        there = np.arange(len(cache.trials)) % every == 0
        is_test = np.isin(cache.images, shared) if split == "standard" else cache.is_test
        cache = replace(cache, is_test=is_test & there)
        drawn = validation_trials(cache, recipe)
        assert 0 < len(drawn) < cache.is_test.sum()
        measured_on |= set(cache.images[drawn].tolist())
        tested |= set(cache.images[np.setdiff1d(np.flatnonzero(cache.is_test), drawn)].tolist())
    assert not measured_on & tested
    assert np.isin(list(measured_on), shared).any() == (split == "standard")
    assert np.isin(list(tested), shared).any()


def test_a_decoder_says_whether_it_reached_its_plateau_and_can_be_extended(
    tiny_nsd: Path,
    tiny_base: Path,
    tiny_recipe: Recipe,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def order(recipe: Recipe, folder: str = "one") -> Order:
        out, caches = tmp_path / folder, tmp_path / "cache"
        return Order(root=tiny_nsd, subjects=[1], recipe=recipe, base=tiny_base, out=out, caches=caches)

    with caplog.at_level(logging.INFO):
        fit_subjects(order(with_plateau(tiny_recipe, 4)))
    info = read_info(tmp_path / "one")
    assert [step for step, _ in info.held_out_losses] == [0, 2, 4]
    assert info.reached_plateau is not None
    assert "on held-out presentations the loss" in caplog.text
    fit_subjects(order(with_plateau(tiny_recipe, 8)))
    info = read_info(tmp_path / "one")
    assert info.extended == [], "as if 8 had been asked for at once"
    assert info.recipe.fit.steps == 8
    for other in (with_plateau(tiny_recipe, 6), with_plateau(tiny_recipe, 10, warmup_steps=2)):
        with pytest.raises(TrainError, match="holds a training with other fit; .* more steps, and nothing"):
            fit_subjects(order(other))

    fit_subjects(order(tiny_recipe, "falls"))
    assert read_info(tmp_path / "falls").reached_plateau is None
    longer = msgspec.structs.replace(tiny_recipe, fit=msgspec.structs.replace(tiny_recipe.fit, steps=6))
    fit_subjects(order(longer, "falls"))
    info = read_info(tmp_path / "falls")
    assert (info.recipe.fit.steps, info.extended) == (6, [(4, 4)])
    assert info.terms.differences(msgspec.structs.replace(info.terms, extended=[])) == ["extended"]


def test_repetitions_differ_in_all_but_what_is_held_out(
    tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    orders = [
        Order(
            root=tiny_nsd,
            subjects=[1],
            recipe=tiny_recipe,
            base=tiny_base,
            out=tmp_path / str(n),
            repetition=n,
            caches=tmp_path / "cache",
        )
        for n in range(3)
    ]
    assert len({order.training_seed for order in orders}) == 3
    assert orders[0].training_seed == orders[0].seed
    for order in orders[:2]:
        fit_subjects(order)
    one, other = (read_info(order.out) for order in orders[:2])
    assert one.subjects[0].held_out_runs == other.subjects[0].held_out_runs
    assert one.last_loss != other.last_loss
    assert other.terms.differences(one.terms) == ["repetition"]
