"""Held-out presentations that a training is measured on while it goes on. None of them tests a decoder."""

from __future__ import annotations

import numpy as np

from train.data.cache import Cache
from train.data.trials import Trials
from train.recipe import Recipe


def validation_trials(cache: Cache, recipe: Recipe) -> Trials:
    """Presentations to measure on, sorted; none where a training has a fixed number of steps.

    Whole pictures are drawn, each with all its held-out presentations, so that no test shows a picture that
    was measured on; at most half of them. The draw is the same for every training on these recordings.
    """
    if recipe.fit.plateau is None:
        return np.zeros(0, dtype=np.int64)
    held_out = np.flatnonzero(cache.is_test)
    images, times = np.unique(cache.images[held_out], return_counts=True)
    order = np.random.default_rng(0).permutation(len(images))
    enough = np.searchsorted(np.cumsum(times[order]), recipe.fit.plateau.presentations) + 1
    drawn = images[order[: min(enough, len(images) // 2)]]
    return held_out[np.isin(cache.images[held_out], drawn)]
