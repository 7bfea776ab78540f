"""Echoes of a volume: combined as the literature and tedana do it, with weights that know only the past."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from realtime.sources.files.echoes import MAX_T2STAR_MS, t2star_ms, weights
from realtime.sources.files.series import Series
from realtime.sources.files.volume_file import Acquired, VolumeFile

TE_MS = np.array([12.0, 28.0, 44.0])
SHAPE = (4, 5, 6)


def decaying(t2star: NDArray[np.float64], noise: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    """Signal of each echo, [echo, x, y, z]."""
    generator = np.random.default_rng(seed)
    signal = 8_000 * np.exp(-TE_MS[:, np.newaxis, np.newaxis, np.newaxis] / t2star)
    return signal + noise * generator.standard_normal(signal.shape)


def tissue() -> NDArray[np.float64]:
    return np.random.default_rng(1).uniform(15, 80, SHAPE)


def volume(voxels: NDArray[np.float64], index: int, echo: int, time_ms: float | None) -> VolumeFile:
    return VolumeFile(
        number=len(TE_MS) * index + echo + 1,
        series="7x0",
        series_name="bold",
        voxels=voxels.astype("<f4"),
        affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        tr_s=1.0,
        acquired=Acquired(acquisition=index + 1, echo_time_ms=time_ms),
    )


def sent(
    run: list[NDArray[np.float64]], order: tuple[int, ...] = (0, 1, 2)
) -> dict[int, NDArray[np.float32]]:
    """Combine a run of volumes, each [echo, x, y, z]."""
    series = Series(1.0, echo="combine")
    found: dict[int, NDArray[np.float32]] = {}
    for index, signal in enumerate(run):
        for echo in order:
            ready = series.add(volume(signal[echo], index, echo, TE_MS[echo]), "file", 0, 0)
            found |= {each.index: each.volume.voxels for each in ready}
    return found


def tedanas(run: list[NDArray[np.float64]], t2star: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The formula of tedana.combine: the mean with weights TE exp(-TE / T2*)."""
    alpha = np.stack([time_ms * np.exp(-time_ms / t2star) for time_ms in TE_MS])
    return [np.average(signal, axis=0, weights=alpha) for signal in run]


def fitted(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The formula of tedana.decay.fit_loglinear: least squares of log(signal + 1) on 1 and -TE."""
    design = np.stack([np.ones_like(TE_MS), -TE_MS], axis=1)
    betas = np.linalg.lstsq(design, np.log(np.abs(signal) + 1).reshape(len(TE_MS), -1), rcond=None)[0]
    decay: NDArray[np.float64] = betas[1].reshape(signal.shape[1:])
    return 1 / decay


def test_the_decay_of_a_voxel_is_found() -> None:
    assert np.allclose(t2star_ms(decaying(tissue()), TE_MS), tissue(), rtol=2e-2)
    noisy = decaying(tissue(), noise=40)
    expected = fitted(noisy)
    inside = (expected > 0) & (expected < MAX_T2STAR_MS)
    assert np.allclose(t2star_ms(noisy, TE_MS)[inside], expected[inside])


def test_voxels_that_do_not_decay_are_weighted_by_echo_time() -> None:
    signal = decaying(tissue())
    signal[:, 0, 0, 0] = (100, 100, 100)
    signal[:, 1, 0, 0] = (100, 200, 300)
    signal[:, 2, 0, 0] = 0
    signal[:, 3, 0, 0] = np.nan
    found = weights(TE_MS, t2star_ms(signal, TE_MS))
    assert np.allclose(found.sum(axis=0), 1)
    assert np.allclose(found[:, :, 0, 0], (TE_MS / TE_MS.sum())[:, np.newaxis], atol=0.03)


def test_a_fast_decay_is_weighted_by_the_first_echo() -> None:
    found = weights(np.array([12.0, 28.0]), np.full((1, 1, 1), 0.01))
    assert np.allclose(found[:, 0, 0, 0], (1, 0))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_run_is_combined_as_tedana_does_with_the_first_volumes_decay(order: tuple[int, ...]) -> None:
    run = [decaying(tissue(), noise=40, seed=seed) for seed in range(5)]
    found = sent(run, order)
    assert sorted(found) == list(range(5))
    for index, expected in enumerate(tedanas(run, t2star_ms(run[0], TE_MS))):
        assert np.allclose(found[index], expected, rtol=1e-5)


def test_what_comes_later_changes_nothing() -> None:
    run = [decaying(tissue(), noise=40, seed=seed) for seed in range(5)]
    shorter = sent(run[:3])
    for index, voxels in sent([*run[:3], 3 * run[3]]).items():
        if index < 3:
            assert np.array_equal(voxels, shorter[index])


def test_combining_raises_the_contrast_to_noise_of_every_echo() -> None:
    """A change of T2*, as blood oxygen makes it, against independent noise of the echoes."""
    rest = [decaying(tissue(), noise=60, seed=seed) for seed in range(40)]
    task = [decaying(tissue() * 1.02, noise=60, seed=100 + seed) for seed in range(40)]

    def contrast(volumes: list[NDArray[np.float32]]) -> float:
        first, second = np.stack(volumes[:40]), np.stack(volumes[40:])
        return float(np.median((second.mean(axis=0) - first.mean(axis=0)) / first.std(axis=0)))

    combined = sent([*rest, *task])
    alone = [contrast([signal[echo].astype("<f4") for signal in (*rest, *task)]) for echo in range(3)]
    assert contrast([combined[index] for index in range(80)]) > max(alone)


def test_a_volume_that_lacks_an_echo_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    series, found = Series(1.0, echo="combine"), set()
    for index in range(12):
        for echo in range(3):
            if (index, echo) != (4, 1):
                one = volume(decaying(tissue())[echo], index, echo, TE_MS[echo])
                found |= {each.index for each in series.add(one, "file", 0, 0)}
    assert found == set(range(12)) - {4}


def test_echoes_without_times_are_not_combined(caplog: pytest.LogCaptureFixture) -> None:
    series = Series(1.0, echo="combine")
    for index in range(2):
        for echo in range(2):
            one = volume(decaying(tissue())[echo], index, echo, None)
            one = replace(one, acquired=replace(one.acquired, echo=echo + 1))
            assert series.add(one, f"{index}-{echo}", 0, 0) == []
    assert [message for message in caplog.messages if "with echo times" in message]


def test_a_series_of_one_echo_is_passed_on() -> None:
    series = Series(1.0, echo="combine")
    found = [series.add(volume(tissue(), index, 0, 30.0), "file", 0, 0) for index in range(3)]
    assert [[each.index for each in ready] for ready in found] == [[], [0, 1], [2]]
