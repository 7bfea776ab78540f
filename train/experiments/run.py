"""``python -m train experiment NAME``: trains the models, decodes, writes the page."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from nsd import Layout
from train.data.cache import subject_cache
from train.data.found import found
from train.data.trials import n_warming
from train.errors import TrainError
from train.experiments.catalogue import SUBJECTS, every_window
from train.experiments.entries import N_DRAWS
from train.experiments.findings import Report
from train.experiments.over_time import time_resolved, window_length
from train.experiments.page import write_page
from train.experiments.parts import brain_module, comparison, finetuning
from train.experiments.recordings import betas, preprocessing
from train.experiments.subjects import fine_tuning, multi_subject
from train.experiments.verdicts import MARGIN
from train.experiments.workbench import N_TRIALS, Workbench
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
_log = logging.getLogger(__name__)


def run_experiment(
    name: str, root: Path, base: str | Path, work: Path, out: Path, recipe: Recipe, seed: int = 1
) -> Path:
    """Make an experiment's missing models and decodes, and write its page, whose path is returned.

    :raises TrainError: there is no such experiment, or ``work`` holds models of another recipe
    """
    if name not in EXPERIMENTS:
        raise TrainError(f"expected one of the experiments {', '.join(EXPERIMENTS)}, got {name!r}")
    bench = Workbench(
        root=root, base=base, work=work, recipe=recipe, windows=every_window(recipe.window), seed=seed
    )
    report = EXPERIMENTS[name](bench)
    page = write_page(report, _facts(name, bench), out)
    for finding in report.findings:
        _log.info("%s: %s. %s", finding.verdict, finding.claim, finding.here)
    _log.info("%s", page)
    return page


def _facts(name: str, bench: Workbench) -> dict[str, str]:
    """How the results were made, for the end of the page."""
    recipe, seed = bench.recipe, bench.seed
    fit, processor = recipe.fit, platform.processor() or platform.machine()
    return {
        "command": shlex.join(["python", "-m", "train", "experiment", name]) + " --nsd … --base … --work …",
        "data": f"synthetic subjects of `python -m sim synthesize`; held out by the {recipe.split} split",
        "recordings": _recordings(bench),
        "training": f"{fit.steps} steps of {fit.batch} windows, seed {seed}: few, so differences may be of "
        "how fast models learn",
        "verdicts": "by the paired difference of two models on the same trials with its 95 % bootstrap "
        f"interval ({N_DRAWS} draws of pictures, each with all its trials). A difference appears where the "
        f"interval excludes 0; equal is what lies within {100 * MARGIN:.0f} points (0.05 of PixCorr) "
        "whole; all else cannot be said here. They are of one training of each model, by one seed",
        "linear reference": "Brain-Diffuser's ridge regressions on the windows that the model learns from; a "
        "model at chance where it is not has not learned what its windows hold",
        "base model": "has seen no picture of subject 1, but some of other subjects",
        "decoding": f"{N_TRIALS} presentations drawn by seed, {recipe.diffusion.inference_steps} DDIM steps, "
        f"guidance {recipe.diffusion.guidance:g}",
        "warm-up": _early(bench),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor}, {platform.system()}, Python {sys.version.split()[0]}",
    }


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
