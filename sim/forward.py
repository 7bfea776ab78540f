"""What the cortices of all worlds share: how responses to pictures become a BOLD series of the ROI.

Legend: N trials or pictures, V voxels of the ROI, T = 226 written volumes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nsd import N_DESIGN_ROWS
from sim.anatomy import Anatomy, build_anatomy
from sim.settings import CortexSettings

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

N_WRITTEN_VOLUMES = N_DESIGN_ROWS + 1
BATCH = 200
"""Pictures whose features are computed at once."""
_FIRST_REFERENCE_IMAGE = 1_000_000  # scenes that no subject sees; they calibrate the responses
_N_REFERENCE_IMAGES = 400
_N_REFERENCE_RUNS = 16

REFERENCE_IMAGES = range(_FIRST_REFERENCE_IMAGE, _FIRST_REFERENCE_IMAGE + _N_REFERENCE_IMAGES)


class Scenes(Protocol):
    """The pictures of a world, numbered as NSD's, from 0; they depend on seed and number alone."""

    seed: int

    def render(self, image: int) -> npt.NDArray[np.uint8]:
        """Render a picture, RGB uint8 ``[64, 64, 3]``."""

    def name(self, image: int) -> str:
        """Name what a picture shows."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The trials of a session in order; all int64 ``[N]``.

    ``images``: 0-based; ``run``: index of the task run, from 0; ``onsets``: volumes in the run;
    ``times_seen``: how often the subject has seen the picture before, in any session.
    """

    images: Ints
    run: Ints
    onsets: Ints
    times_seen: Ints


class ForwardModel(ABC):
    """The ROI of one subject; depends on settings, seed and subject only."""

    hrf: F32
    """Each voxel's haemodynamic response, ``[25, V]``."""
    signal_factor: F32 | float = 1.0
    """What a voxel's signal share is multiplied by, beyond its random spread; ``[V]``."""

    def __init__(self, settings: CortexSettings) -> None:
        self.anatomy: Anatomy = build_anatomy(settings)
        # The rearmost voxels of the ROI are retinotopic, the others object-selective.
        order = np.argsort(self.anatomy.positions[:, 1], kind="stable")
        self.retinotopic = order[: settings.n_retinotopic]
        self.selective = order[settings.n_retinotopic :]
        self.n_voxels = settings.n_roi_voxels

    @abstractmethod
    def trial_responses(self, session: int, trials: Trials) -> F32:
        """Return the neural responses in a session, ``[N, V]``.

        They are scaled so that a run's evoked series has mean variance 1.
        """

    def expected_responses(self, session: int, trials: Trials) -> F32:
        """Return the responses as expected by who does not know gaze and attention, ``[N, V]``."""
        return self.trial_responses(session, trials)

    def evoked(self, onsets: Sequence[int], responses: F32) -> F32:
        """Convolve ``responses`` ``[N, V]`` at volumes ``onsets`` to the BOLD series ``[226, V]``."""
        events = np.zeros((N_WRITTEN_VOLUMES, responses.shape[1]), dtype=np.float32)
        events[np.asarray(onsets, dtype=np.int64)] = responses
        series = np.zeros_like(events)
        for lag, weight in enumerate(self.hrf):
            series[lag:] += events[: N_WRITTEN_VOLUMES - lag] * weight
        return series

    def gain_of(self, responses: F32, rng: np.random.Generator) -> F32:
        """Return factors ``[V]`` that give a run of these responses ``[N, V]`` an evoked variance of 1."""
        variances = []
        for _ in range(_N_REFERENCE_RUNS):
            onsets = 9 + 3 * np.sort(rng.choice(68, 62, replace=False))
            shown = rng.choice(len(responses), len(onsets), replace=False)
            variances.append(self.evoked(onsets.tolist(), responses[shown]).var(axis=0))
        return np.asarray(1 / np.sqrt(np.mean(variances, axis=0)), dtype=np.float32)


def batches(images: Sequence[int]) -> list[Sequence[int]]:
    """Cut a sequence into parts of at most :data:`BATCH`."""
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
