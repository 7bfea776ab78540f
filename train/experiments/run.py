"""``python -m train experiment NAME``: trains the models, decodes, writes the pages."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from nsd import Layout
from train.checkpoints.checkpoint import read_info
from train.data.cache import subject_cache
from train.data.found import found
from train.data.trials import n_warming
from train.errors import TrainError
from train.experiments.catalogue import SUBJECTS, every_window, models_of
from train.experiments.entries import N_DRAWS
from train.experiments.figures import Learned
from train.experiments.findings import Report
from train.experiments.over_time import time_resolved, window_length
from train.experiments.page import write_page
from train.experiments.parts import brain_module, comparison, finetuning
from train.experiments.recordings import betas, preprocessing
from train.experiments.schedule import jobs_of, make_all
from train.experiments.subjects import fine_tuning, multi_subject
from train.experiments.verdicts import MARGIN
from train.experiments.workbench import N_SEEDS, N_TRIALS, Workbench
from train.model.base_of_recipe import base_of_recipe, unseen_subject
from train.recipe import Recipe

EXPERIMENTS: dict[str, Callable[[Workbench], Report]] = {
    "time-resolved": time_resolved,
    "window-length": window_length,
    "baseline": comparison,
    "brain-module": brain_module,
    "finetuning": finetuning,
    "preprocessing": preprocessing,
    "multi-subject": multi_subject,
    "new-subject": fine_tuning,
    "betas": betas,
}


def run_experiments(
    names: Sequence[str], root: Path, base: str | Path, work: Path, out: Path, recipe: Recipe, seed: int = 1
) -> None:
    """Make the missing models and decodes of experiments, and write the page of each once it is complete.

    :raises TrainError: there is no such experiment, ``work`` holds models of another recipe, or
        something that some experiments need could not be made, after the others have been
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise TrainError(f"expected one of the experiments {', '.join(EXPERIMENTS)}, got {name!r}")
    bench = Workbench(
        root=root, base=base, work=work, recipe=recipe, windows=every_window(recipe.window), seed=seed
    )
    jobs = jobs_of({name: models_of(name, bench) for name in names})
    make_all(bench, jobs, partial(_write, bench, out))


def _write(bench: Workbench, out: Path, name: str) -> list[str]:
    """In a worker: decode, judge, write an experiment's page; what it says, in lines."""
    report = EXPERIMENTS[name](bench)
    page = write_page(report, _curves(name, bench), _facts(name, bench), out)
    findings = [f"{each.verdict}: {each.claim}. {each.here}" for each in report.findings]
    return [*findings, str(page)]


def _curves(name: str, bench: Workbench) -> dict[str, Learned]:
    """How the loss on held-out presentations fell, by the name of the model's folder."""
    curves = {}
    for variant in models_of(name, bench):
        for repetition in () if variant.is_baseline else variant.repetitions:
            folder = bench.folder(variant, repetition)
            info = read_info(folder)
            curves[folder.name] = Learned(losses=info.held_out_losses, reached=info.reached_plateau)
    return curves


def _facts(name: str, bench: Workbench) -> dict[str, str]:
    """How the results were made, for the end of the page."""
    recipe = bench.recipe
    processor = platform.processor() or platform.machine()
    return {
        "command": shlex.join(["python", "-m", "train", "experiment", name]) + " --nsd … --base … --work …",
        "data": f"synthetic subjects of `python -m sim synthesize`; held out by the {recipe.split} split",
        "recordings": _recordings(bench),
        "base model": _base_saw(bench),
        "training": _training(bench),
        "verdicts": "by the difference of two models, paired by trial and seed, with its 95 % interval over "
        f"pictures and seeds ({N_DRAWS} draws of pictures, each with all its trials, each shifted by a draw "
        "of the seeds' error). A difference appears where the interval excludes 0; equal is what lies whole "
        f"within {100 * MARGIN:.0f} points (0.05 of PixCorr); all else cannot be said here, and nothing is "
        "said of a model whose loss still fell",
        "linear reference": "Brain-Diffuser's ridge regressions on the windows that the model learns from",
        "decoding": f"{N_TRIALS} presentations drawn by seed, {recipe.diffusion.inference_steps} DDIM steps, "
        f"guidance {recipe.diffusion.guidance:g}",
        "warm-up": _early(bench),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor}, {platform.system()}, Python {sys.version.split()[0]}",
    }


def _base_saw(bench: Workbench) -> str:
    """Whose pictures the base model, which every model starts from, has seen."""
    unseen = unseen_subject(base_of_recipe(bench.recipe, bench.base))
    if unseen is None:
        return "does not say whose pictures it has seen"
    return f"has seen no picture of subject {unseen}, but some of other subjects"


def _training(bench: Workbench) -> str:
    """How long models are trained, and how often."""
    fit = bench.recipe.fit
    times = f"each model {N_SEEDS} times, by seed {bench.seed} and others that follow from it"
    if fit.plateau is None:
        return f"{fit.steps} steps of {fit.batch} windows, {times}"
    plateau = fit.plateau
    return (
        f"until the loss of the averaged weights on {plateau.presentations} held-out presentations, which "
        f"test nothing, falls no more: in {plateau.measurements * plateau.every_steps} steps by less than "
        f"{100 * plateau.fall:g} % of its whole fall, or until step {fit.steps}; the weights of the lowest "
        f"loss are used; {fit.batch} windows a step; {times}"
    )


def _recordings(bench: Workbench) -> str:
    """How much of each subject was found whose recordings are prepared."""
    subjects = [each for each in SUBJECTS if subject_cache(bench.work / "cache", each).exists()]
    return " ".join(
        found(Layout(bench.root), bench.cache(each, bench.recipe), bench.recipe).in_words(each)
        for each in subjects
    )


def _early(bench: Workbench) -> str:
    """How many of subject 1's presentations a runtime would decode while it is warming."""
    cache, warmup = bench.cache(1, bench.recipe), bench.recipe.preprocessing.warmup_volumes
    trials = np.concatenate(bench.groups(1, bench.recipe))
    n_early = n_warming(cache, trials, bench.recipe.window, warmup)
    return (
        f"of {n_early} of subject 1's {len(trials)} presentations the window ends within the run's first "
        f"{warmup} volumes, in which a runtime is warming; none is left out for that"
    )
