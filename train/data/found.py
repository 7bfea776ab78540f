"""How much of a subject was found on disk. Does not import torch."""

from __future__ import annotations

import msgspec
import numpy as np

from nsd import SUBJECTS_SESSIONS, TASK_RUNS_PER_SESSION, Layout, shared_images
from train.data.cache import Cache
from train.data.trials import inside_run, read_volumes, recorded
from train.recipe import Recipe


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a result rests on: a part of a subject gives other figures than the whole."""

    sessions: int
    runs: int
    presentations: int
    shared_images: int | None
    """Of the 1 000 images that every subject saw; None without ``nsd_expdesign.mat``, which lists them."""
    repaired: int
    """Presentations that are left out, because their windows hold volumes that NSD's authors repaired."""

    def in_words(self, subject: int) -> str:
        """One sentence."""
        n_sessions = SUBJECTS_SESSIONS[subject]
        shared = "an unknown number" if self.shared_images is None else str(self.shared_images)
        said = (
            f"Found on disk: {self.sessions} of the {n_sessions} sessions of subject {subject} "
            f"({self.runs} of {n_sessions * TASK_RUNS_PER_SESSION} runs, {self.presentations} "
            f"presentations), {shared} of the 1000 shared images"
        )
        if not self.repaired:
            return f"{said}."
        return f"{said}; {self.repaired} presentations are left out, whose volumes NSD's authors repaired."


def found(layout: Layout, cache: Cache, recipe: Recipe) -> Found:
    """Count a subject's recordings in a cache. :raises NsdError: the experiment's design cannot be read"""
    shared = None
    if layout.expdesign().is_file():
        shared = len(np.intersect1d(cache.images, shared_images(layout)))
    inside = np.arange(len(cache.trials))
    if "betas" not in recipe.preprocessing.train_on:
        inside = inside_run(cache, inside, recipe.window)
    return Found(
        sessions=len({key.session for key in cache.runs}),
        runs=len(cache.runs),
        presentations=len(cache.trials),
        shared_images=shared,
        repaired=len(inside) - len(recorded(cache, inside, read_volumes(recipe))),
    )
