"""The natural world: what its scenes show, and how its cortex differs from trial to trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nsd import N_IMAGES, Layout, read_expdesign, run_trials, runs
from sim.experiment import plan_experiment
from sim.forward import Trials
from sim.hierarchy import Hierarchy
from sim.natural_cortex import NaturalCortex
from sim.natural_objects import Seen
from sim.natural_scenes import FAMILIES, OBJECTS, NaturalScenes, object_name
from sim.natural_state import draw_trial_state, session_state, steady_state
from sim.recording import _open_pictures
from sim.settings import NaturalSettings
from sim.synthesize import synthesize
from sim.synthetic_json import read_provenance

from .conftest import tiny_natural_settings

SEED = 3
NEW = {member for family in FAMILIES if family.is_new for member in family.members}


@pytest.fixture(scope="module")
def settings() -> NaturalSettings:
    return tiny_natural_settings()


@pytest.fixture(scope="module")
def scenes(settings: NaturalSettings) -> NaturalScenes:
    return NaturalScenes(settings, SEED)


@pytest.fixture(scope="module")
def cortex(settings: NaturalSettings) -> NaturalCortex:
    return NaturalCortex(settings, SEED, subject=1)


def trials_of(images: list[int], times_seen: int = 0) -> Trials:
    count = len(images)
    return Trials(
        images=np.array(images),
        run=np.zeros(count, dtype=np.int64),
        onsets=9 + 3 * np.arange(count),
        times_seen=np.full(count, times_seen),
    )


def test_families_share_no_object_and_all_have_names() -> None:
    members = [member for family in FAMILIES for member in family.members]
    assert sorted(members) == list(range(len(OBJECTS)))
    assert len(set(OBJECTS)) == len(OBJECTS) > 800
    assert 0.1 < len(NEW) / len(OBJECTS) < 0.2
    assert object_name(OBJECTS.index("1F98A")) == "fox face"


def test_only_the_shared_pictures_show_objects_of_new_families(scenes: NaturalScenes) -> None:
    shared = plan_experiment(SEED).shared
    others = np.setdiff1d(np.random.default_rng(0).choice(N_IMAGES, 300, replace=False), shared)
    for images, is_new in ((shared[::5], True), (others, False)):
        shown = {placed.object_index for image in images.tolist() for placed in scenes.objects(image)}
        assert (shown <= NEW) if is_new else not (shown & NEW)
        assert all(scenes.is_new(image) == is_new for image in images.tolist())


def test_what_the_subjects_do_not_share_and_the_base_model_see_is_known(scenes: NaturalScenes) -> None:
    """The base model trains on what its subject is not shown; every subject is shown the shared pictures."""
    for images in plan_experiment(SEED).subject_images[:, -200:]:
        assert not any(scenes.is_new(image) for image in images.tolist())
    reference = [scenes.is_new(image) for image in range(1_000_000, 1_000_050)]
    assert not any(reference)


def test_a_scene_has_some_objects_of_which_each_can_be_seen(scenes: NaturalScenes) -> None:
    counts, covered = set(), []
    for image in range(60):
        scene = scenes.layers(image)
        counts.add(len(scene.objects))
        assert scene.picture.shape == (64, 64, 3)
        assert scene.visible.sum(axis=0).max() <= 1 + 1e-4
        alone = np.array([placed.size_px for placed in scenes.objects(image)])
        covered.extend(scene.visible.sum(axis=(1, 2)) / alone**2)
    assert counts == {2, 3, 4, 5}
    assert np.quantile(covered, 0.05) > 0.05
    assert np.array_equal(scenes.render(7), NaturalScenes(scenes.settings, SEED).render(7))
    assert not np.array_equal(scenes.render(7), NaturalScenes(scenes.settings, SEED + 1).render(7))


def test_backgrounds_are_textured(scenes: NaturalScenes) -> None:
    for image in range(20):
        scene = scenes.layers(image)
        background = scene.picture[scene.visible.sum(axis=0) == 0].astype(float)
        assert background.std(axis=0).max() > 3


def test_the_hierarchy_is_nonlinear_and_normalised(settings: NaturalSettings, scenes: NaturalScenes) -> None:
    pictures = np.stack([scenes.render(image) for image in range(40)])
    hierarchy = Hierarchy(settings.stage_channels, settings.saturation, np.random.default_rng(0))
    stages = hierarchy.calibrate(pictures)
    assert [maps.shape[0] for maps in stages] == list(hierarchy.n_channels)
    assert [maps.shape[-1] for maps in stages] == [32, 16, 8]
    for maps, again in zip(stages, hierarchy.stages(pictures), strict=True):
        assert np.array_equal(maps, again)
        assert maps.min() >= 0
    half = hierarchy.stages((pictures // 2).astype(np.uint8))  # half the contrast is not half the response
    assert stages[-1].mean() * 0.6 < half[-1].mean()


def test_a_picture_seen_before_evokes_less(cortex: NaturalCortex) -> None:
    images = list(range(20))
    first, second, third = (cortex.expected_responses(1, trials_of(images, times)) for times in range(3))
    losses = cortex.settings.repetition_loss
    for voxels, loss in zip((cortex.retinotopic, cortex.selective), losses, strict=True):
        np.testing.assert_allclose(second[:, voxels], (1 - loss) * first[:, voxels], rtol=1e-4, atol=1e-6)
        assert np.abs(third[:, voxels]).sum() < np.abs(second[:, voxels]).sum()


def test_gaze_moves_what_retinotopic_voxels_see(cortex: NaturalCortex) -> None:
    trials = trials_of([4, 5, 6])
    steady = steady_state(trials)
    looks_aside = dataclasses.replace(steady, gaze_px=np.full((3, 2), 3, dtype=np.float32))
    still, moved = (cortex.responses(1, trials, state) for state in (steady, looks_aside))
    assert not np.allclose(still[:, cortex.retinotopic], moved[:, cortex.retinotopic], atol=0.05)


def test_attention_drifts_within_a_run_and_multiplies(cortex: NaturalCortex) -> None:
    trials = trials_of(list(range(62)))
    rngs = [np.random.default_rng(seed) for seed in range(200)]
    drawn = np.stack([draw_trial_state(cortex.settings, trials, rng).attention for rng in rngs])
    lagged = (drawn[:, 1:] * drawn[:, :-1]).mean()
    assert lagged == pytest.approx(np.exp(-4 / cortex.settings.attention_time_s), abs=0.08)
    few = trials_of([4, 5, 6])
    steady = steady_state(few)
    attends = dataclasses.replace(steady, attention=np.ones(3, dtype=np.float32))
    ratio = cortex.responses(1, few, attends) / cortex.responses(1, few, steady)
    low, high = np.exp(cortex.settings.attention_sd)
    np.testing.assert_allclose(ratio[:, cortex.retinotopic], low, rtol=1e-4)
    np.testing.assert_allclose(ratio[:, cortex.selective], high, rtol=1e-4)


def test_tuning_drifts_further_apart_the_more_sessions_lie_between(cortex: NaturalCortex) -> None:
    trials = trials_of(list(range(60)))
    first, second, last = (cortex.expected_responses(session, trials) for session in (1, 2, 40))
    near, far = (
        np.mean([np.corrcoef(first[:, v], other[:, v])[0, 1] for v in range(cortex.n_voxels)])
        for other in (second, last)
    )
    assert near > far + 0.01
    state = session_state(cortex.settings, (SEED, 1), 40, 5000)
    assert np.rad2deg(state.tuning_rad.std()) == pytest.approx(
        cortex.settings.session_tuning_deg * np.sqrt(40), rel=0.1
    )


def test_objects_compete(cortex: NaturalCortex) -> None:
    """Two objects evoke less than the sum of both alone, and the nearer one counts for more."""
    one, other = seen([5], [2.0]), seen([300], [2.0])
    both, far = seen([5, 300], [2.0, 2.0]), seen([5, 300], [2.0, 25.0])
    still = np.zeros(len(cortex.selective), dtype=np.float32)
    a, b, together, with_far = cortex._objects.responses([one, other, both, far], still)
    assert np.all(together <= a + b + 1e-6)
    assert together.sum() < 0.8 * (a + b).sum()
    assert np.abs(with_far - a).sum() < np.abs(together - a).sum()


def seen(objects: list[int], offset_px: list[float]) -> Seen:
    area = np.full(len(objects), 0.12, dtype=np.float32)
    return Seen(objects=np.array(objects), area=area, offset_px=np.array(offset_px, dtype=np.float32))


def test_responses_begin_and_peak_at_different_times(cortex: NaturalCortex) -> None:
    peaks = cortex.hrf.argmax(axis=0)
    assert peaks.min() <= 4
    assert peaks.max() >= 5
    assert cortex.hrf[0].max() < 0.05


def test_a_natural_subject_is_written_continued_and_shown(tmp_path: Path, settings: NaturalSettings) -> None:
    root = tmp_path / "nsd"
    provenance = synthesize(root, settings=settings, seed=SEED, subject=1, n_sessions=1, n_stimuli=12)
    layout = Layout(root)
    path = layout.timeseries(1, 1, 5)
    before = path.read_bytes()
    path.unlink()
    assert synthesize(root, settings=settings, seed=SEED, subject=1, n_sessions=1, n_stimuli=12).signal_share
    assert path.read_bytes() == before
    assert read_provenance(root).cortex == settings == provenance.cortex
    image = run_trials(layout, runs(layout, 1))[0].trial.image
    pictures = _open_pictures(layout)
    assert pictures is not None
    scenes = NaturalScenes(settings, SEED)
    assert np.array_equal(pictures.picture(image), scenes.render(image))
    assert pictures.name(image) == scenes.name(image)
    assert set(read_expdesign(layout).shared.tolist()) == {i for i in range(N_IMAGES) if scenes.is_new(i)}
