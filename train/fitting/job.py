"""What all methods of training share: the order, the training set, and the checkpoint's description."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nsd import Layout, run_trials, runs, shared_images
from train.checkpoints.checkpoint import CheckpointInfo, Parent, TrainedSubject, read_info, subject_folder
from train.data.cache import Cache, prepare, subject_cache
from train.data.dataset import Examples, WindowData, examples
from train.data.found import found
from train.data.replays import held_out_in_words
from train.data.trials import Trials, held_out_images, inside_run, read_volumes, recorded, training_trials
from train.data.validation import validation_trials
from train.errors import TrainError
from train.loop.distributed import main_process_first
from train.loop.plateau import HeldOut
from train.model.base_model import is_on_hub, shipped_bases
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
    """One training: the recordings, the recipe, the base model, and the folder of the checkpoint."""

    root: Path
    """Root of the data set."""
    subjects: Sequence[int]
    """Several subjects share one model, except the layers that read voxels (paper, appendix E)."""
    recipe: Recipe
    base: str | Path
    """Folder of the base model, the name of a shipped one, or its name on the hub."""
    out: Path
    seed: int = 1
    """Seed of weights, data order and noise, and of the split."""
    repetition: int = 0
    """Which of several trainings on the same split: above 0, weights, data order and noise have a seed of
    their own."""
    caches: Path | None = None
    """Folder of the prepared recordings, prepared if missing; by default in ``out``."""
    pretrained: Path | None = None
    """Checkpoint of other subjects to start from; the layers that read voxels start from scratch."""
    n_sessions: int | None = None
    """Train on this many first sessions only."""

    @property
    def training_seed(self) -> int:
        """Seed of weights, data order and noise."""
        if not self.repetition:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.repetition]).generate_state(1)[0])

    @property
    def cache_folder(self) -> Path:
        """Folder of the prepared recordings."""
        return self.caches or self.out / "cache"


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Prepared recordings of each subject, and the presentations of them to train on."""

    caches: list[Cache]
    trials: list[Trials]
    data: WindowData


def training_set(order: Order) -> TrainingSet:
    """Prepare the recordings, where that is not done yet, and choose the training presentations.

    The recipe holds out whole runs or the shared images. All other presentations of an image that is held out
    for any of the subjects are left out too. A model of several subjects is not trained on any shared image.

    :raises TrainError: no presentation is left, or the prepared recordings do not match
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


def validation_set(order: Order, trained_on: TrainingSet) -> WindowData | None:
    """The windows to measure a training on while it goes on; None where its number of steps is fixed.

    :raises TrainError: no presentation is left
    """
    recipe = order.recipe
    if recipe.fit.plateau is None:
        return None
    share = -(-recipe.fit.plateau.presentations // len(order.subjects))
    chosen = [_usable(cache, validation_trials(cache, recipe), recipe)[:share] for cache in trained_on.caches]
    if not all(map(len, chosen)):
        raise TrainError(
            "expected held-out presentations of each subject to measure the training on, found none; use "
            "more sessions, or a recipe without a plateau"
        )
    return WindowData(_forms(trained_on.caches, chosen, recipe), recipe.window.length_volumes)


def write_subjects(order: Order, trained_on: TrainingSet) -> list[TrainedSubject]:
    """Write each subject's ROI and prior into the checkpoint, and describe the subjects."""
    layout, subjects = Layout(order.root), []
    for number, cache, trials in zip(order.subjects, trained_on.caches, trained_on.trials, strict=True):
        _copy_subject(layout, number, cache, subject_folder(order.out, number))
        trained = TrainedSubject(
            number=number,
            n_voxels=cache.form(order.recipe.preprocessing.train_on[0]).shape[2],
            held_out_runs=[(key.subject, key.session, key.run) for key in cache.test_runs],
            n_train_trials=len(trials),
            trained_sessions=sorted({cache.trials[trial].run.session for trial in trials.tolist()}),
            data=cache.data,
            found=found(layout, cache, order.recipe),
            drift_prior=cache.priors.drift if cache.has_priors else None,
        )
        subjects.append(trained)
    if (order.root / SYNTHETIC_FILE).exists():
        shutil.copy(order.root / SYNTHETIC_FILE, order.out)
    return subjects


def terms_of(order: Order, base_folder: Path, method: Method = "dynadiff") -> Terms:
    """The terms of a training, with the current fingerprints of its inputs.

    :raises NsdError: a file of the data set is missing or damaged
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
        repetition=order.repetition,
    )


def describe_checkpoint(
    order: Order,
    trained_on: TrainingSet,
    base_folder: Path,
    recipe: Recipe,
    method: Method,
    last_loss: float | None = None,
    extended: Sequence[tuple[int, int]] = (),
    held_out: HeldOut | None = None,
) -> CheckpointInfo:
    """The content of ``checkpoint.json``; also writes the subjects' files into the checkpoint's folder."""
    return CheckpointInfo(
        method=method,
        subjects=write_subjects(order, trained_on),
        seed=order.seed,
        tr_s=recipe.preprocessing.tr_s,
        recipe=recipe,
        base=_reference(order.base, base_folder, order.out),
        base_identity=base_identity(base_folder),
        n_sessions=order.n_sessions,
        parent=_parent(order),
        last_loss=last_loss,
        repetition=order.repetition,
        extended=list(extended),
        held_out_losses=held_out.curve if held_out else [],
        reached_plateau=held_out.reached if held_out else None,
    )


def _training_trials(caches: Sequence[Cache], order: Order) -> list[Trials]:
    held_out = held_out_images(caches)
    if len(caches) > 1:
        # Only these images are shown to several subjects. The model may be tested on any of them, also with
        # a subject that is added later.
        held_out = np.union1d(held_out, shared_images(Layout(order.root)))
    chosen = []
    for cache, number in zip(caches, order.subjects, strict=True):
        trials = training_trials(cache, held_out, order.n_sessions)
        trials = _usable(cache, trials, order.recipe)
        if not len(trials):
            raise TrainError(
                f"expected presentations of subject {number} to train on, found none; use more sessions, or "
                "another split in the recipe"
            )
        _log.info(
            "subject %d: %d presentations to train on, %d held out (%s). %s",
            number,
            len(trials),
            cache.is_test.sum(),
            held_out_in_words(cache.test_runs),
            found(Layout(order.root), cache, order.recipe).in_words(number),
        )
        chosen.append(trials)
    return chosen


def _usable(cache: Cache, trials: Trials, recipe: Recipe) -> Trials:
    """The ``trials`` of which a recipe can make examples."""
    if "betas" not in recipe.preprocessing.train_on:
        trials = inside_run(cache, trials, recipe.window)
    return recorded(cache, trials, read_volumes(recipe))


def _forms(caches: Sequence[Cache], chosen: Sequence[Trials], recipe: Recipe) -> list[Examples]:
    """The windows of every subject in every form, subject by subject."""
    return [
        examples(cache, trials, recipe.window, form, subject)
        for subject, (cache, trials) in enumerate(zip(caches, chosen, strict=True))
        for form in recipe.preprocessing.train_on
    ]


def _copy_subject(layout: Layout, number: int, cache: Cache, folder: Path) -> None:
    """Write what the runtime needs of a subject: the ROI and, except for betas, the prior."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(layout.roi(number), folder / "roi.nii.gz")
    if cache.has_priors:
        (folder / "prior.npz").write_bytes(cache.priors.voxels.as_npz())


def _parent(order: Order) -> Parent | None:
    if order.pretrained is None:
        return None
    return Parent(
        folder=os.path.relpath(order.pretrained.resolve(), order.out.resolve()),
        subjects=[trained.number for trained in read_info(order.pretrained).subjects],
        identity=checkpoint_identity(order.pretrained),
    )


def _reference(base: str | Path, base_folder: Path, out: Path) -> str:
    """The base model in ``checkpoint.json``: its name, or its path relative to ``out``."""
    if is_on_hub(base):
        return str(base)
    names = [name for name, folder in shipped_bases().items() if folder.resolve() == base_folder.resolve()]
    return names[0] if names else os.path.relpath(base_folder.resolve(), out.resolve())
