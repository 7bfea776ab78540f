"""What differs between the trials and sessions of the natural world: gaze, attention, tuning and gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nsd import TR_S
from sim.forward import Trials
from sim.settings import NaturalSettings

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """``gaze_px`` float32 ``[N, 2]``: (x, y) off the middle; ``attention`` float32 ``[N]``: mean 0, SD 1."""

    gaze_px: F32
    attention: F32


@dataclass(frozen=True, kw_only=True)
class SessionState:
    """``tuning_rad``: how far each voxel's tuning has turned; ``gain``: what multiplies its responses."""

    tuning_rad: F32
    gain: F32


def draw_trial_state(settings: NaturalSettings, trials: Trials, rng: np.random.Generator) -> TrialState:
    """Draw where the eyes look in each trial, and attention, which drifts within a run."""
    n_trials = len(trials.images)
    gaze_px = rng.normal(0, settings.fixation_px, (n_trials, 2))
    attention = rng.standard_normal(n_trials)
    for trial in range(1, n_trials):
        if trials.run[trial] == trials.run[trial - 1]:
            elapsed_s = (trials.onsets[trial] - trials.onsets[trial - 1]) * TR_S
            kept = np.exp(-elapsed_s / settings.attention_time_s)
            attention[trial] = kept * attention[trial - 1] + np.sqrt(1 - kept**2) * attention[trial]
    return TrialState(gaze_px=gaze_px.astype(np.float32), attention=attention.astype(np.float32))


def steady_state(trials: Trials) -> TrialState:
    """Return the state of a subject who looks at the middle and attends as always."""
    n_trials = len(trials.images)
    return TrialState(gaze_px=np.zeros((n_trials, 2), np.float32), attention=np.zeros(n_trials, np.float32))


def session_state(
    settings: NaturalSettings, key: tuple[int, int], session: int, n_voxels: int
) -> SessionState:
    """Return the voxels' state in a session: the sum of as many steps of a random walk.

    :param key: seed and subject
    """
    tuning_rad, log_gain = np.zeros(n_voxels), np.zeros(n_voxels)
    for step in range(1, session + 1):
        rng = np.random.default_rng([*key, 10, step])
        tuning_rad += np.deg2rad(rng.normal(0, settings.session_tuning_deg, n_voxels))
        log_gain += rng.normal(0, settings.session_gain_sd, n_voxels)
    return SessionState(tuning_rad=tuning_rad.astype(np.float32), gain=np.exp(log_gain).astype(np.float32))
