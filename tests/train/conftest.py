"""A base model and a recipe small enough to train in a test, with the full model's classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import msgspec
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from nsd import N_IMAGES, Layout, read_expdesign, run_trials, runs
from sim.betas import write_betas
from sim.scenes import SceneSet
from sim.settings import read_settings
from sim.synthesize import synthesize
from train.data.cache import Cache, prepare
from train.fitting.fit import fit_subjects
from train.fitting.job import Order
from train.fitting.pretrain import BasePictures, train_base
from train.recipe import Recipe, Training, read_recipe


def short(steps: int, precision: str = "fp32") -> Training:
    return Training(
        steps=steps,
        batch=4,
        micro_batch=4,
        peak_learning_rate=1e-3,
        warmup_steps=1,
        precision=precision,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    demo = read_recipe()
    base = msgspec.structs.replace(
        demo.base,
        latent_channels=4,
        vae_widths=(8, 8, 8, 16),
        unet_widths=(32, 32),
        attention_head_width=16,
        token_width=16,
        n_pictures=24,
        vae_training=short(3),
        encoder_training=short(3),
        unet_training=short(3),
    )
    brain = msgspec.structs.replace(demo.brain, hidden_width=24)
    diffusion = msgspec.structs.replace(demo.diffusion, inference_steps=4)
    return msgspec.structs.replace(demo, base=base, brain=brain, diffusion=diffusion, fit=short(4))


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    return scenes_of(range(24))


def scenes_of(images: range) -> NDArray[np.uint8]:
    scenes = SceneSet(3)
    return np.stack([scenes.render(image) for image in images])


@pytest.fixture(scope="session")
def tiny_base(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_recipe: Recipe,
    pictures: NDArray[np.uint8],
    compiler: str,
) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base_pictures = BasePictures(train=pictures, held_out=scenes_of(range(24, 28)), subject=1)
    train_base(base_pictures, tiny_recipe, folder, seed=1)
    return folder


def write_small_subjects(root: Path, *subjects: int) -> Path:
    """One session of small synthetic subjects, with the pictures they are shown and 30 others."""
    settings = replace(read_settings(), grid=(8, 8, 8), n_roi_voxels=100, shell_voxels=2.0)
    layout = Layout(root)
    shown: set[int] = set()
    for subject in subjects:
        synthesize(root, settings=settings, seed=3, subject=subject, n_sessions=1, n_stimuli=1)
        shown |= {item.trial.image for item in run_trials(layout, runs(layout, subject))}
    others = np.setdiff1d(np.arange(200), read_expdesign(layout).subject_images[0])[:30]
    scenes = SceneSet(3)
    layout.stimuli().unlink()
    with h5py.File(layout.stimuli(), "w") as file:
        brick = file.create_dataset("imgBrick", (N_IMAGES, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))
        for image in sorted(shown | set(others.tolist())):
            brick[image] = scenes.render(image)
    return root


def link_runs(tiny_nsd: Path, root: Path, *runs: tuple[int, int]) -> Layout:
    """Subject 1's first runs in the places of other (session, run), and nothing that says what they are."""
    theirs, ours = Layout(tiny_nsd), Layout(root)
    links = {ours.roi(1): theirs.roi(1), ours.stimuli(): theirs.stimuli()}
    for number, place in enumerate(runs, start=1):
        links[ours.timeseries(1, *place)] = theirs.timeseries(1, 1, number)
        links[ours.design(1, *place)] = theirs.design(1, 1, number)
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    return ours


@pytest.fixture(scope="session")
def tiny_nsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subject 1."""
    return write_small_subjects(tmp_path_factory.mktemp("nsd"), 1)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory, tiny_nsd: Path, tiny_recipe: Recipe) -> Cache:
    """Subject 1, prepared; not to be changed."""
    return prepare(tiny_nsd, 1, tiny_recipe, tmp_path_factory.mktemp("prepared") / "cache")


@pytest.fixture(scope="session")
def tiny_nsd_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subjects 1 and 2, whose region is ten voxels smaller."""
    root = write_small_subjects(tmp_path_factory.mktemp("nsd-of-two"), 1, 2)
    path = Layout(root).roi(2)
    image = nibabel.Nifti1Image.from_filename(path)
    labels = np.asarray(image.dataobj).copy()
    labels.flat[np.flatnonzero(labels > 0)[:10]] = 0
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)
    return root


@pytest.fixture(scope="session")
def tiny_nsd_with_betas(tiny_nsd: Path) -> Path:
    write_betas(tiny_nsd, subject=1, n_sessions=1)
    return tiny_nsd


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "sub-01"
    fit_subjects(Order(root=tiny_nsd, subjects=[1], recipe=tiny_recipe, base=tiny_base, out=folder))
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretrained networks come neither from this machine's caches nor over the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def connect(*_: object) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
