from __future__ import annotations

import numpy as np
import pytest

from nsd import TR_S
from sim.anatomy import build_anatomy
from sim.cortex import Cortex
from sim.errors import SimError
from sim.image_features import N_CHANNELS, feature_maps
from sim.noise import autoregressive, draw_run_noise, draw_voxel_noise
from sim.settings import read_settings

from .conftest import tiny_settings

COLOURS = 6
ENERGY_5_PX = slice(7, 11)  # four orientations, after six colour halves and contrast
ENERGY_10_PX = slice(11, 15)


@pytest.fixture(scope="module")
def cortex() -> Cortex:
    return Cortex(tiny_settings(), seed=3, subject=1)


def grating(wavelength_px: float, orientation: int) -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    angle = np.pi * orientation / 4
    wave = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength_px)
    return np.repeat((127 + 100 * wave)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(4))
@pytest.mark.parametrize(("wavelength_px", "channels"), [(5.0, ENERGY_5_PX), (10.0, ENERGY_10_PX)])
def test_a_grating_drives_the_filters_of_its_orientation_and_scale(
    orientation: int, wavelength_px: float, channels: slice
) -> None:
    energy = feature_maps(grating(wavelength_px, orientation)[None])[7:15].mean(axis=(1, 2, 3))
    assert np.argmax(energy) == channels.start - 7 + orientation


def test_colours_drive_their_own_halves_and_no_edges() -> None:
    # Order of the halves: white, black, red, green, blue, yellow.
    pictures = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    pictures[0] = 255
    pictures[1, ..., 0] = 255
    pictures[2, ..., 2] = 255
    maps = feature_maps(pictures)
    assert maps.shape == (N_CHANNELS, 3, 32, 32)
    means = maps.mean(axis=(2, 3))
    assert np.argmax(means[:COLOURS, 0]) == 0
    assert np.argmax(means[:COLOURS, 1]) == 2
    assert np.argmax(means[:COLOURS, 2]) == 4
    assert np.abs(maps[COLOURS:]).max() < 1e-4


def test_the_region_is_connected_and_of_the_size_asked_for() -> None:
    import scipy.ndimage

    settings = read_settings()
    anatomy = build_anatomy(settings)
    assert np.count_nonzero(anatomy.roi) == settings.n_roi_voxels
    assert set(np.unique(anatomy.labels).tolist()) == {-1, 0, 1}
    assert scipy.ndimage.label(anatomy.roi)[1] == 1


def test_a_region_that_does_not_fit_is_refused() -> None:
    import dataclasses

    with pytest.raises(SimError, match="expected a shell with at least 400 voxels, found"):
        build_anatomy(dataclasses.replace(tiny_settings(), n_roi_voxels=400))


def test_responses_depend_on_seed_and_subject_alone(cortex: Cortex) -> None:
    images = [5, 0, 5]
    responses = cortex.responses(images)
    assert np.array_equal(responses[0], responses[2])
    assert not np.allclose(Cortex(tiny_settings(), seed=3, subject=2).responses(images), responses)


def test_selective_voxels_know_the_object_and_retinotopic_ones_the_picture(cortex: Cortex) -> None:
    objects = np.array([cortex.scenes.scene(image).object_index for image in range(400)])
    same = np.flatnonzero(objects == objects[0])[:5]
    other = np.flatnonzero(objects != objects[0])[:20]
    responses = cortex.responses([*same.tolist(), *other.tolist()])
    order = np.argsort(cortex.anatomy.positions[:, 1], kind="stable")
    n_retinotopic = cortex.settings.n_retinotopic
    selective, retinotopic = responses[:, order[n_retinotopic:]], responses[:, order[:n_retinotopic]]

    def likeness(patterns: np.ndarray) -> tuple[float, float]:
        found = np.corrcoef(patterns)[0]
        return float(found[1:5].mean()), float(found[5:].mean())

    same_object, other_object = likeness(selective)
    assert same_object > 0.9 > other_object + 0.3
    same_object, _ = likeness(retinotopic)  # the same object on another background is another picture
    assert same_object < 0.9


def test_evoked_series_is_the_convolution_of_every_voxel(cortex: Cortex) -> None:
    onsets = [9, 12, 30, 210]
    responses = cortex.responses(range(4))
    series = cortex.evoked(onsets, responses)
    events = np.zeros((226, cortex.n_voxels))
    events[onsets] = responses
    for voxel in (0, 7, cortex.n_voxels - 1):
        expected = np.convolve(events[:, voxel], cortex.hrf[:, voxel])[:226]
        assert np.allclose(series[:, voxel], expected, atol=1e-5)


def test_responses_peak_when_the_settings_say(cortex: Cortex) -> None:
    # The response to a boxcar peaks half the boxcar's length after the impulse response, to one volume.
    low, high = cortex.settings.peak_s
    assert low <= cortex.peak_s.min() < cortex.peak_s.max() <= high
    peaks_s = np.argmax(cortex.hrf, axis=0) * TR_S
    assert np.abs(peaks_s - cortex.peak_s - cortex.settings.image_on_s / 2).max() < TR_S
    assert cortex.hrf.min() < 0  # undershoot


def test_independent_noise_is_ar1_of_variance_1() -> None:
    rho = np.array([0.3, 0.5], dtype=np.float32)
    noise = autoregressive(rho, 20_000, np.random.default_rng(0)).astype(np.float64)
    assert np.allclose(noise.var(axis=0), 1, atol=0.05)
    for voxel in range(2):
        assert np.corrcoef(noise[1:, voxel], noise[:-1, voxel])[0, 1] == pytest.approx(rho[voxel], abs=0.03)


def test_median_share_of_the_voxels_drawn_is_the_setting() -> None:
    settings = read_settings()
    voxels = draw_voxel_noise(settings, np.random.default_rng(1))
    assert np.median(voxels.evoked_sd**2) == pytest.approx(settings.signal_share, rel=1e-3)
    low, high = np.percentile(voxels.evoked_sd**2, [10, 90])
    assert high > 2 * low  # voxels differ, as in a real cortex


def test_spikes_are_in_the_motion_and_in_the_series() -> None:
    import dataclasses

    settings = dataclasses.replace(tiny_settings(), spikes_per_run=3.0)
    anatomy = build_anatomy(settings)
    voxels = draw_voxel_noise(settings, np.random.default_rng(1))
    n_found = 0
    for seed in range(6):
        noise = draw_run_noise(settings, voxels, anatomy.positions, np.random.default_rng(seed))
        jumps = np.linalg.norm(np.diff(noise.motion[:, :3], axis=0), axis=1)
        volumes = np.flatnonzero((jumps[:-1] > 0.3) & (jumps[1:] > 0.3)) + 1
        energy = (np.diff(noise.series, axis=0) ** 2).mean(axis=1)
        assert np.all(energy[volumes - 1] > 3 * np.median(energy))
        n_found += len(volumes)
    assert n_found > 6
