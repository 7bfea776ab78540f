"""Models and decodes of experiments. Each is made once, and shared by experiments.

WORK/models/<variant>/           a checkpoint, as `train fit` writes it; <variant>.2, … of further seeds
WORK/cache/sub-01/, …            prepared recordings
WORK/decodes/<variant>--<test>.npz   pictures uint8 [trials, H, W, 3], and the fingerprint of their inputs

Experiments that run at the same time wait for one another where they need the same model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nsd import Layout, Stimuli
from realtime.bundle.spec import Window
from train.checkpoints.checkpoint import load_checkpoint, read_info
from train.data.cache import Cache, prepare, subject_cache
from train.data.dataset import averaged_windows
from train.data.trials import Trials
from train.errors import TrainError
from train.evaluation.decode_cache import kept
from train.evaluation.held_out import decode_windows, held_out_groups, images_of
from train.experiments.headway import is_made
from train.fitting.fit import fit_subjects
from train.fitting.job import Order, terms_of
from train.model.base_model import find_base
from train.model.sample import Pictures
from train.recipe import Form, Recipe
from train.store.fingerprints import Method, checkpoint_identity, digest
from train.store.lock import alone_in
from train.systems.brain_diffuser.fit import fit_baseline

N_TRIALS = 192
N_SEEDS = 3
"""Trainings of each model, alike but for weights, data order and noise."""
ROWS_PER_TRIAL = 3
"""Volumes between two pictures, which are 4 s apart."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model of an experiment."""

    name: str
    recipe: Recipe
    subjects: tuple[int, ...] = (1,)
    n_sessions: int | None = None
    pretrained: Variant | None = None
    is_baseline: bool = False
    """Whether the model is Brain-Diffuser instead of Dynadiff."""

    @property
    def repetitions(self) -> range:
        """Those of the seeds; one where nothing is drawn but the pictures that choose a ridge's strength."""
        return range(1 if self.is_baseline else N_SEEDS)

    def folder(self, repetition: int) -> str:
        """The name of a model's folder."""
        return f"{self.name}.{repetition + 1}" if repetition else self.name


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A test: windows of a subject's held-out presentations."""

    window: Window
    form: Form = "whole_run"
    subject: int = 1

    @property
    def name(self) -> str:
        """The test's name in file names."""
        window = self.window
        return f"sub-{self.subject:02d}_{self.form}_{window.offset_volumes:+d}_{window.length_volumes}"


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """An experiment's inputs, and the folder in which it keeps models and decodes."""

    root: Path
    """Root of the data set."""
    base: str | Path
    work: Path
    recipe: Recipe
    """The recipe that variants change."""
    windows: tuple[Window, ...]
    """All windows that experiments test, so that all experiments decode the same presentations."""
    seed: int = 1

    def variant(self, name: str, **changes: Any) -> Variant:
        """A model whose recipe has some changes.

        :param changes: sections of the recipe with their changed fields, or fields of the variant
        """
        own = {field.name for field in dataclasses.fields(Variant)} & changes.keys()
        sections = {}
        for section in changes.keys() - own:
            value = changes[section]
            if isinstance(value, dict):
                value = msgspec.structs.replace(getattr(self.recipe, section), **value)
            sections[section] = value
        recipe = msgspec.structs.replace(self.recipe, **sections)
        return Variant(name=name, recipe=recipe, **{key: changes[key] for key in own})

    def cache(self, subject: int, recipe: Recipe, n_sessions: int | None = None) -> Cache:
        """A subject's prepared recordings."""
        folder = subject_cache(self.work / "cache", subject)
        return prepare(self.root, subject, recipe, folder, seed=self.seed, n_sessions=n_sessions)

    def folder(self, variant: Variant, repetition: int = 0) -> Path:
        """The folder of a model."""
        return self.work / "models" / variant.folder(repetition)

    def model(self, variant: Variant, repetition: int = 0) -> Path:
        """The checkpoint of a variant, trained if it does not exist yet, and trained on if it was given fewer
        steps and did not reach its plateau in them.

        :raises TrainError: the folder holds a model with other terms
        """
        folder = self.folder(variant, repetition)
        order = Order(
            root=self.root,
            subjects=variant.subjects,
            recipe=variant.recipe,
            base=self.base,
            out=folder,
            seed=self.seed,
            repetition=repetition,
            caches=self.work / "cache",
            pretrained=self.model(variant.pretrained, repetition) if variant.pretrained else None,
            n_sessions=variant.n_sessions,
        )
        with alone_in(folder, wait=True):
            if (folder / "checkpoint.json").exists():
                self._check(order, variant)
            if not is_made(folder, variant.recipe.fit.steps):
                make = fit_baseline if variant.is_baseline else fit_subjects
                make(order)
        return folder

    def unfinished(self, variant: Variant) -> str | None:
        """Why a model has not learned what it can; empty when it has, None where that was not measured.

        The linear reference is computed, so it has.
        """
        if variant.is_baseline:
            return ""
        infos = [read_info(self.model(variant, repetition)) for repetition in variant.repetitions]
        still = [info for info in infos if info.reached_plateau is False]
        if not still:
            return None if any(info.reached_plateau is None for info in infos) else ""
        return (
            f"the loss on held-out presentations still fell when training ended, after "
            f"{variant.recipe.fit.steps} steps, with {len(still)} of {len(infos)} seeds; a longer training "
            "could decide"
        )

    def _check(self, order: Order, variant: Variant) -> None:
        method: Method = "brain-diffuser" if variant.is_baseline else "dynadiff"
        terms = terms_of(order, find_base(self.base), method)
        theirs, steps = read_info(order.out).terms, order.recipe.fit.steps
        # A ridge regression takes no steps, and a training to a plateau is the same with more of them.
        if (variant.is_baseline or theirs.recipe.fit.plateau) and theirs.recipe.fit.steps < steps:
            fit = msgspec.structs.replace(theirs.recipe.fit, steps=steps)
            theirs = msgspec.structs.replace(theirs, recipe=msgspec.structs.replace(theirs.recipe, fit=fit))
        different = terms.differences(theirs)
        if different:
            raise TrainError(
                f"{order.out} holds a model with other {', '.join(different)} than this experiment's; remove "
                "it, or choose another --work"
            )

    def groups(self, subject: int, recipe: Recipe) -> list[Trials]:
        """The held-out presentations of a subject to decode, the same for every model."""
        cache = self.cache(subject, recipe)
        return held_out_groups(
            cache, self.recipe, self.windows, average=False, seed=self.seed, n_groups=N_TRIALS
        )

    def shown(self, subject: int = 1) -> tuple[NDArray[np.int64], Pictures]:
        """The 0-based images shown in the decoded presentations, and their pictures."""
        images = images_of(self.cache(subject, self.recipe), self.groups(subject, self.recipe))
        return images, self._pictures(images)

    def neighbours(self, step: int) -> tuple[NDArray[np.bool_], NDArray[np.int64], Pictures]:
        """Pictures shown directly before (``step`` -1) or after (1) the decoded ones, for subject 1.

        :returns: whether each trial has such a neighbour, bool ``[trials]``; for those that have one, the
            0-based images, and their pictures
        """
        cache = self.cache(1, self.recipe)
        has_one, images = [], []
        for (trial,) in (group.tolist() for group in self.groups(1, self.recipe)):
            here = cache.trials[trial]
            near = cache.trials[trial + step] if 0 <= trial + step < len(cache.trials) else None
            distance = near.trial.onset_volume - here.trial.onset_volume if near else 0
            direct = near is not None and near.run == here.run and distance == step * ROWS_PER_TRIAL
            has_one.append(direct)
            if direct and near is not None:
                images.append(near.trial.image)
        return np.array(has_one), np.array(images), self._pictures(np.array(images))

    def _pictures(self, images: NDArray[np.int64]) -> Pictures:
        with Stimuli(Layout(self.root)) as stimuli:
            return stimuli.images(images.tolist())

    def decodes(self, variant: Variant, test: Probe) -> list[Pictures]:
        """The decodes of a test by a model of every seed, decoded if they do not exist yet."""
        return [self._decodes(variant, test, repetition) for repetition in variant.repetitions]

    def pictures(self, variant: Variant, test: Probe) -> Pictures:
        """The decodes of a test by the model of the first seed."""
        return self._decodes(variant, test, 0)

    def _decodes(self, variant: Variant, test: Probe, repetition: int) -> Pictures:
        folder = self.model(variant, repetition)
        cache = self.cache(test.subject, variant.recipe, variant.n_sessions)
        groups = self.groups(test.subject, variant.recipe)
        trials = [group.tolist() for group in groups]
        made_from = digest([checkpoint_identity(folder), cache.data, trials, self.seed])
        path = self.work / "decodes" / f"{folder.name}--{test.name}.npz"

        def decode() -> Pictures:
            checkpoint = load_checkpoint(folder, subject=test.subject).on_device()
            windows = averaged_windows(cache, groups, test.window, test.form, variant.recipe)
            return decode_windows(checkpoint, windows, self.seed, f"{folder.name}, {test.name}")

        with alone_in(folder, wait=True):
            return kept(path, made_from, decode)
