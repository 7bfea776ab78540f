"""Chooses the presentations that train a decoder and those that test it (paper 2.3)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nsd import N_DESIGN_ROWS
from realtime.bundle.spec import Window
from train.data.cache import Cache
from train.recipe import Recipe

Trials = NDArray[np.int64]
"""Indices of a cache's presentations."""
BETA_VOLUMES = Window(offset_volumes=0, length_volumes=9)


def held_out_images(caches: Iterable[Cache]) -> NDArray[np.int64]:
    """Images that are held out for any of the subjects, sorted; with those that the split withholds."""
    kept_out = [(cache.images[cache.is_test], cache.withheld) for cache in caches]
    return np.unique(np.concatenate([images for both in kept_out for images in both]))


def training_trials(cache: Cache, held_out: NDArray[np.int64], n_sessions: int | None = None) -> Trials:
    """Presentations to train on: not held out, and not of an image in ``held_out``.

    :param n_sessions: only presentations of this many first sessions
    """
    trains = ~cache.is_test & ~np.isin(cache.images, held_out)
    if n_sessions is not None:
        trains &= np.array([item.run.session <= n_sessions for item in cache.trials])
    return np.flatnonzero(trains)


def inside_run(cache: Cache, trials: Trials, window: Window) -> Trials:
    """The ``trials`` whose whole window lies inside their run."""
    onsets = np.array([cache.trials[trial].trial.onset_volume for trial in trials.tolist()], dtype=np.int64)
    first = onsets + window.offset_volumes
    return trials[(first >= 0) & (first + window.length_volumes <= N_DESIGN_ROWS)]


def recorded(cache: Cache, trials: Trials, window: Window) -> Trials:
    """The ``trials`` whose window holds no volume that NSD's authors repaired."""
    return trials[[_is_recorded(cache, trial, window) for trial in trials.tolist()]]


def _is_recorded(cache: Cache, trial: int, window: Window) -> bool:
    item = cache.trials[trial]
    repaired = cache.repaired.get(item.run, range(0))
    first = item.trial.onset_volume + window.offset_volumes
    return not repaired or first >= repaired.stop or first + window.length_volumes <= repaired.start


def read_volumes(recipe: Recipe) -> Window:
    """The volumes after its onset that a presentation's example rests on: those of its window.

    Of a beta, the first 12 s: the response's rise and most of its fall.
    """
    return BETA_VOLUMES if "betas" in recipe.preprocessing.train_on else recipe.window


def n_warming(cache: Cache, trials: Trials, window: Window, warmup_volumes: int) -> int:
    """How many ``trials`` have a window that ends within the runtime's warm-up, at the start of a run."""
    ends = [cache.trials[trial].trial.onset_volume + window.delay_volumes for trial in trials.tolist()]
    return int(np.count_nonzero(np.array(ends) + 1 < warmup_volumes))


def grouped(cache: Cache, trials: Trials) -> list[Trials]:
    """``trials`` grouped by image, in order of images: the repetitions to average over."""
    images = cache.images[trials]
    return [trials[images == image] for image in np.unique(images)]


def one_of_each(cache: Cache, trials: Trials, seed: int) -> list[Trials]:
    """One presentation of each image, drawn by ``seed`` (paper 2.3)."""
    rng = np.random.default_rng(seed)
    return [rng.choice(group, 1) for group in grouped(cache, trials)]
