"""Splits presentations into training and test sets.

The *standard* split tests on the 1 000 images that all subjects saw. The *time-resolved* split (Dynadiff,
section 2.3) holds out whole runs, 45 of 480, so that neighbouring trials are always on the same side. Of
the split *runs-and-shared*, the test set is that of the time-resolved one, and the training set has no
presentation of the 1 000 images: of kinds of objects that only these show, the test set tells how well they
are decoded by who never saw them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nsd.design import Trial, read_design, trials
from nsd.errors import BadRequest
from nsd.expdesign import shared_images
from nsd.layout import Layout
from nsd.sessions import RunKey

TEST_RUN_SHARE = 45 / 480


class RunTrial(NamedTuple):
    """One presentation and its run."""

    run: RunKey
    trial: Trial


def run_trials(layout: Layout, runs: Iterable[RunKey]) -> list[RunTrial]:
    """List all presentations of ``runs`` in order."""
    return [RunTrial(key, trial) for key in runs for trial in trials(read_design(layout.design(*key)))]


def standard_split(layout: Layout, runs: Iterable[RunKey]) -> tuple[list[RunTrial], list[RunTrial]]:
    """Split the presentations of ``runs`` into (train, test); test presentations show shared images."""
    shared = set(shared_images(layout).tolist())
    train: list[RunTrial] = []
    test: list[RunTrial] = []
    for item in run_trials(layout, runs):
        (test if item.trial.image in shared else train).append(item)
    return train, test


def time_resolved_split(runs: Sequence[RunKey], seed: int) -> tuple[list[RunKey], list[RunKey]]:
    """Split whole runs into (train, test), both sorted; 45 of 480 are for testing, at least 1.

    The split depends on ``seed`` and the set of ``runs``, not on their order.

    :raises BadRequest: when there are fewer than two runs, or one of them twice
    """
    keys = sorted(runs)
    if len(set(keys)) < len(keys):
        raise BadRequest("time-resolved split: expected distinct runs, found one of them twice")
    if len(keys) < 2:
        raise BadRequest(f"time-resolved split: expected at least 2 runs, found {len(keys)}")
    n_test = max(1, round(len(keys) * TEST_RUN_SHARE))
    drawn = np.random.default_rng(seed).choice(len(keys), size=n_test, replace=False)
    is_test = set(drawn.tolist())
    train = [key for index, key in enumerate(keys) if index not in is_test]
    return train, [keys[index] for index in sorted(is_test)]
