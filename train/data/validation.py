"""Held-out presentations that a training is measured on while it goes on. None of them tests a decoder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nsd.expdesign import N_REPETITIONS
from train.data.cache import Cache
from train.data.trials import Trials
from train.recipe import Recipe

_SEED = 0


def validation_trials(cache: Cache, recipe: Recipe) -> Trials:
    """Presentations to measure on, sorted; none where a training has a fixed number of steps.

    Whole pictures are drawn, each with all its held-out presentations, so that no test, of this subject or of
    another, shows a picture that was measured on. Where runs are held out, they are pictures that only this
    subject is shown, at most half of them; where the shared images are held out, the same for all subjects.
    The draw is the same for every training on these recordings.
    """
    if recipe.fit.plateau is None:
        return np.zeros(0, dtype=np.int64)
    held_out, n = np.flatnonzero(cache.is_test), recipe.fit.plateau.presentations
    if recipe.split == "standard":
        drawn = _of_all_subjects(cache.shared, n)
    else:
        drawn = _of_one_subject(cache.images[held_out], cache.shared, n)
    return held_out[np.isin(cache.images[held_out], drawn)]


def _of_one_subject(shown: NDArray[np.int64], shared: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Images, none of them shared, that ``n`` of the presentations ``shown`` show, if there are enough."""
    images, times = np.unique(shown[~np.isin(shown, shared)], return_counts=True)
    order = np.random.default_rng(_SEED).permutation(len(images))
    enough = int(np.searchsorted(np.cumsum(times[order]), n)) + 1
    drawn: NDArray[np.int64] = images[order[: min(enough, len(images) // 2)]]
    return drawn


def _of_all_subjects(shared: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Shared images that a subject with all sessions is shown ``n`` times, at most half of all.

    They do not depend on the sessions that a subject has: another subject's test could show the others.
    """
    enough = -(-n // N_REPETITIONS)
    order = np.random.default_rng(_SEED).permutation(len(shared))
    drawn: NDArray[np.int64] = shared[order[: min(enough, len(shared) // 2)]]
    return drawn
