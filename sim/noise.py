"""The noise of a series: drift, shared and independent noise, head motion spikes.

Legend: V voxels of the ROI, T = 226 written volumes. All series are in SDs of a voxel's total series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nsd import TR_S
from sim.anatomy import smooth_patterns
from sim.forward import N_WRITTEN_VOLUMES
from sim.settings import CortexSettings, NaturalSettings

F32 = npt.NDArray[np.float32]

_N_DRIFT_WAVES = 5
_SLOW_S = 20.0  # time constant of slow physiological fluctuations
_SPIKE_TAIL = np.array([1.0, 0.5], dtype=np.float32)  # the volume of the spike and the next one
_FIRST_SPIKE_VOLUME = 5


@dataclass(frozen=True, kw_only=True)
class VoxelNoise:
    """Noise parameters of each voxel, constant over runs; all float32 ``[V]``.

    ``evoked_sd``: SD of the evoked series; its square is the voxel's signal share.
    ``noise_sd``: SD of everything else except spikes.
    ``rho``: AR(1) coefficient of the independent noise.
    """

    evoked_sd: F32
    noise_sd: F32
    rho: F32


def draw_voxel_noise(
    settings: CortexSettings, rng: np.random.Generator, signal_factor: F32 | float = 1.0
) -> VoxelNoise:
    """Draw each voxel's signal share (lognormal around ``signal_share``) and noise parameters.

    :param signal_factor: what the share is multiplied by, ``[V]``
    """
    n_voxels = settings.n_roi_voxels
    # Centred so that the sample's median, not only the distribution's, equals the setting.
    exponents = rng.normal(0, settings.signal_share_sigma, n_voxels)
    share = settings.signal_share * np.exp(exponents - np.median(exponents)) * signal_factor
    spikes = settings.spikes_per_run * settings.spike_size_sd**2 * float((_SPIKE_TAIL**2).sum())
    spike_variance = spikes / N_WRITTEN_VOLUMES
    share = np.clip(share, 0.01, 0.8 * (1 - spike_variance))
    return VoxelNoise(
        evoked_sd=np.sqrt(share).astype(np.float32),
        noise_sd=np.sqrt(1 - spike_variance - share).astype(np.float32),
        rho=rng.uniform(*settings.noise_rho, n_voxels).astype(np.float32),
    )


@dataclass(frozen=True, kw_only=True)
class RunNoise:
    """``series`` float32 ``[T, V]``; ``motion`` float64 ``[T, 6]``: 3 shifts (mm), 3 rotations (rad)."""

    series: F32
    motion: npt.NDArray[np.float64]


def draw_run_noise(
    settings: CortexSettings, voxels: VoxelNoise, positions: F32, rng: np.random.Generator
) -> RunNoise:
    """Draw the noise of a run and the motion that matches its spikes."""
    drift, shared = settings.drift_share, settings.shared_noise_share
    independent = 1 - drift - shared
    if isinstance(settings, NaturalSettings):
        independent -= settings.physiological_share
    series = np.sqrt(drift) * _drift(settings, positions, rng)
    series += np.sqrt(shared) * _shared_noise(settings, positions, rng)
    series += np.sqrt(independent) * autoregressive(voxels.rho, N_WRITTEN_VOLUMES, rng)
    if isinstance(settings, NaturalSettings):
        series += np.sqrt(settings.physiological_share) * _physiological(settings, positions, rng)
    series *= voxels.noise_sd
    spike_volumes = _draw_spikes(settings, rng)
    for volume in spike_volumes:
        pattern = settings.spike_size_sd * smooth_patterns(positions, 1, rng)
        tail = _SPIKE_TAIL[: N_WRITTEN_VOLUMES - volume]
        series[volume : volume + tail.size] += tail[:, None] * pattern
    return RunNoise(series=series, motion=_motion(settings, spike_volumes, rng))


def autoregressive(rho: F32, n_volumes: int, rng: np.random.Generator) -> F32:
    """Draw stationary AR(1) noise ``[n_volumes, V]`` of variance 1 with coefficient ``rho`` ``[V]``."""
    series = rng.standard_normal((n_volumes, rho.size), dtype=np.float32)
    series[1:] *= np.sqrt(1 - rho**2)
    for volume in range(1, n_volumes):
        series[volume] += rho * series[volume - 1]
    return series


def _drift(settings: CortexSettings, positions: F32, rng: np.random.Generator) -> F32:
    """Draw drift: a line and slow sinusoids, each with a smooth pattern over voxels; ``[T, V]``, SD 1."""
    time_s = np.arange(N_WRITTEN_VOLUMES) * TR_S
    periods_s = rng.uniform(*settings.drift_period_s, _N_DRIFT_WAVES)
    phases = rng.uniform(0, 2 * np.pi, _N_DRIFT_WAVES)
    waves = np.sin(2 * np.pi * time_s[:, None] / periods_s + phases)
    courses = np.column_stack([time_s, waves])
    courses -= courses.mean(axis=0)
    courses /= courses.std(axis=0)
    weights = smooth_patterns(positions, courses.shape[1], rng)
    weights += rng.standard_normal(weights.shape, dtype=np.float32)
    drift = courses.astype(np.float32) @ weights
    return np.asarray(drift / drift.std(axis=0), dtype=np.float32)


def _shared_noise(settings: CortexSettings, positions: F32, rng: np.random.Generator) -> F32:
    """Draw noise that voxels share in smooth patterns: ``[T, V]``, SD 1."""
    patterns = smooth_patterns(positions, settings.shared_noise_modes, rng)
    rho = np.full(settings.shared_noise_modes, np.mean(settings.noise_rho), dtype=np.float32)
    shared = autoregressive(rho, N_WRITTEN_VOLUMES, rng) @ patterns
    return np.asarray(shared / np.sqrt((patterns**2).sum(axis=0)), dtype=np.float32)


def _physiological(settings: NaturalSettings, positions: F32, rng: np.random.Generator) -> F32:
    """Draw what breathing and heart rate do to all voxels at once: ``[T, V]``, SD 1 in the root mean square.

    One half is slow, as the depth of breathing is; the other half is breathing itself, whose rate wanders and
    which this TR hardly samples.
    """
    slow = autoregressive(np.array([np.exp(-TR_S / _SLOW_S)], dtype=np.float32), N_WRITTEN_VOLUMES, rng)[:, 0]
    turns = TR_S / rng.uniform(*settings.breathing_s) + 0.02 * rng.standard_normal(N_WRITTEN_VOLUMES)
    breath = np.sqrt(2) * np.sin(2 * np.pi * (rng.random() + np.cumsum(turns)))
    course = (slow + breath) / np.sqrt(2)
    loading = 1 + 0.5 * smooth_patterns(positions, 1, rng)
    return np.asarray(course[:, None] * loading / np.sqrt((loading**2).mean()), dtype=np.float32)


def _draw_spikes(settings: CortexSettings, rng: np.random.Generator) -> list[int]:
    n_spikes = int(rng.poisson(settings.spikes_per_run))
    volumes = rng.choice(np.arange(_FIRST_SPIKE_VOLUME, N_WRITTEN_VOLUMES), n_spikes, replace=False)
    return sorted(volumes.tolist())


def _motion(
    settings: CortexSettings, spike_volumes: list[int], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw a slow random walk, with a jump for one volume at each spike."""
    scale = np.array([0.01] * 3 + [0.0002] * 3)
    motion = np.cumsum(rng.normal(0, scale, (N_WRITTEN_VOLUMES, 6)), axis=0)
    for volume in spike_volumes:
        direction = rng.normal(size=3)
        motion[volume, :3] += settings.spike_mm * direction / np.linalg.norm(direction)
        motion[volume, 3:] += rng.normal(0, settings.spike_mm / 100, 3)
    return motion
