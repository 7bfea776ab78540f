"""What a decoder is fitted to, by whichever method: subjects, their trials, and what is noted of them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nsd import TR_S, Layout, run_trials, runs, shared_images
from train.checkpoints.checkpoint import CheckpointInfo, Parent, TrainedSubject, read_info, subject_folder
from train.data.cache import Cache, prepare, subject_cache
from train.data.dataset import Examples, WindowData, examples
from train.data.trials import Trials, held_out_images, inside_run, training_trials
from train.errors import TrainError
from train.loop.distributed import main_process_first
from train.model.base_model import is_on_hub
from train.recipe import Recipe
from train.store.fingerprints import (
    SYNTHETIC_FILE,
    Method,
    Terms,
    base_identity,
    checkpoint_identity,
    subject_identity,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be fitted, from what, to where."""

    root: Path
    """Of the data set."""
    subjects: Sequence[int]
    """Several share one model but for the layers that read their voxels (paper, appendix E)."""
    recipe: Recipe
    base: str | Path
    """Folder of the base model, or its name on the hub."""
    out: Path
    seed: int = 1
    caches: Path | None = None
    """Folder of the prepared recordings, made where they are not there; by default in ``out``."""
    pretrained: Path | None = None
    """Checkpoint of other subjects to begin with; the layers that read voxels begin anew."""
    n_sessions: int | None = None
    """Train on the first so many sessions only."""

    @property
    def cache_folder(self) -> Path:
        """Where the prepared recordings are."""
        return self.caches or self.out / "cache"


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Prepared recordings of each subject, and what of them trains."""

    caches: list[Cache]
    trials: list[Trials]
    data: WindowData


def training_set(order: Order) -> TrainingSet:
    """Prepare the recordings as far as they are not, and choose what trains.

    Held out are whole runs or the shared images, as the recipe says, and so is every other presentation of
    an image that is held out for any of the subjects. A model of several subjects trains on no shared image.

    :raises TrainError: when nothing is left, or the prepared recordings are others
    """
    recipe = order.recipe
    with main_process_first():
        caches = [
            prepare(
                order.root,
                number,
                recipe,
                subject_cache(order.cache_folder, number),
                seed=order.seed,
                n_sessions=order.n_sessions,
            )
            for number in order.subjects
        ]
    trials = _training_trials(caches, order)
    data = WindowData(_forms(caches, trials, recipe), recipe.window.length_volumes)
    return TrainingSet(caches=caches, trials=trials, data=data)


def write_subjects(order: Order, trained_on: TrainingSet) -> list[TrainedSubject]:
    """Write to the checkpoint what the runtime needs of each subject, and describe them."""
    layout, subjects = Layout(order.root), []
    for number, cache, trials in zip(order.subjects, trained_on.caches, trained_on.trials, strict=True):
        _copy_subject(layout, number, cache, subject_folder(order.out, number))
        trained = TrainedSubject(
            number=number,
            n_voxels=cache.form(order.recipe.preprocessing.train_on[0]).shape[2],
            held_out_runs=[(key.subject, key.session, key.run) for key in cache.test_runs],
            n_train_trials=len(trials),
            data=cache.data,
        )
        subjects.append(trained)
    if (order.root / SYNTHETIC_FILE).exists():
        shutil.copy(order.root / SYNTHETIC_FILE, order.out)
    return subjects


def terms_of(order: Order, base_folder: Path, method: Method = "dynadiff") -> Terms:
    """What is ordered, with the identities of what it is made from as they are now.

    :raises NsdError: when the data set is not what it should be
    """
    layout = Layout(order.root)
    return Terms(
        method=method,
        recipe=order.recipe,
        subjects=list(order.subjects),
        data=[
            subject_identity(layout, run_trials(layout, runs(layout, number))) for number in order.subjects
        ],
        sessions=order.n_sessions,
        seed=order.seed,
        base=base_identity(base_folder),
        parent=checkpoint_identity(order.pretrained) if order.pretrained else None,
    )


def describe_checkpoint(
    order: Order,
    trained_on: TrainingSet,
    base_folder: Path,
    recipe: Recipe,
    method: Method,
    last_loss: float | None = None,
) -> CheckpointInfo:
    """``checkpoint.json``; the files of the subjects are written beside it."""
    return CheckpointInfo(
        method=method,
        subjects=write_subjects(order, trained_on),
        seed=order.seed,
        tr_s=TR_S,
        recipe=recipe,
        base=_reference(order.base, base_folder, order.out),
        base_identity=base_identity(base_folder),
        n_sessions=order.n_sessions,
        parent=_parent(order),
        last_loss=last_loss,
    )


def _training_trials(caches: Sequence[Cache], order: Order) -> list[Trials]:
    held_out = held_out_images(caches)
    if len(caches) > 1:
        # Only these are shown to more than one subject: a model of several may be tested on any of them,
        # also by a subject that joins later.
        held_out = np.union1d(held_out, shared_images(Layout(order.root)))
    window = order.recipe.window
    chosen = []
    for cache, number in zip(caches, order.subjects, strict=True):
        trials = training_trials(cache, held_out, order.n_sessions)
        if "betas" not in order.recipe.preprocessing.train_on:
            trials = inside_run(cache, trials, window)
        if not len(trials):
            raise TrainError(f"expected presentations of subject {number} to train on, found none")
        _log.info(
            "subject %d: %d presentations train, %d are held out", number, len(trials), cache.is_test.sum()
        )
        chosen.append(trials)
    return chosen


def _forms(caches: Sequence[Cache], chosen: Sequence[Trials], recipe: Recipe) -> list[Examples]:
    """Every subject's windows in every form, subject by subject."""
    return [
        examples(cache, trials, recipe.window, form, subject)
        for subject, (cache, trials) in enumerate(zip(caches, chosen, strict=True))
        for form in recipe.preprocessing.train_on
    ]


def _copy_subject(layout: Layout, number: int, cache: Cache, folder: Path) -> None:
    """What the runtime needs of a subject: region and, where there are runs to stream, their prior."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(layout.roi(number), folder / "roi.nii.gz")
    if cache.has_prior:
        (folder / "prior.npz").write_bytes(cache.prior.as_npz())


def _parent(order: Order) -> Parent | None:
    if order.pretrained is None:
        return None
    return Parent(
        folder=os.path.relpath(order.pretrained.resolve(), order.out.resolve()),
        subjects=[trained.number for trained in read_info(order.pretrained).subjects],
        identity=checkpoint_identity(order.pretrained),
    )


def _reference(base: str | Path, base_folder: Path, out: Path) -> str:
    """How a checkpoint names its base model."""
    return str(base) if is_on_hub(base) else os.path.relpath(base_folder.resolve(), out.resolve())
