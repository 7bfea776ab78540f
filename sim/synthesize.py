"""Writes a synthetic subject in NSD's layout.

The data depend on settings, seed, subject, session and run only, bit for bit on the same machine. Files are
written atomically and existing files are kept, so an interrupted synthesis continues where it stopped.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import scipy.io
from tqdm import tqdm

from nsd import TR_S, ExpDesign, Layout, task_runs
from nsd.expdesign import TRIALS_PER_SESSION
from realtime.atomic import whole, write_whole
from sim.anatomy import build_anatomy
from sim.experiment import design_rows, expdesign_variables, plan_experiment, stim_info_csv
from sim.forward import N_WRITTEN_VOLUMES, Trials
from sim.head import build_head
from sim.noise import VoxelNoise, draw_run_noise, draw_voxel_noise
from sim.raw import write_raw
from sim.raw_settings import RawSettings
from sim.settings import CortexSettings
from sim.stimulus_file import write_stimuli
from sim.synthetic_json import Provenance
from sim.world import open_cortex, open_scenes

Ints = npt.NDArray[np.int64]

_GZIP_LEVEL = 1
_NON_BRAIN_INTENSITY = 20.0


def write_image(path: Path, image: Any) -> None:
    """Write a NIfTI image atomically, without the time in its gzip header."""
    write_whole(path, gzip.compress(image.to_bytes(), compresslevel=_GZIP_LEVEL, mtime=0))


def write_experiment(layout: Layout, seed: int) -> ExpDesign:
    """Write ``nsd_expdesign.mat`` and the image table unless they exist; return the design."""
    plan = plan_experiment(seed)
    if not layout.expdesign().exists():
        with whole(layout.expdesign()) as partial:
            scipy.io.savemat(partial, expdesign_variables(plan), do_compression=True, appendmat=False)
    if not layout.stim_info().exists():
        write_whole(layout.stim_info(), stim_info_csv(plan))
    return plan


def session_trials(plan: ExpDesign, subject: int, session: int, designs: Sequence[Ints]) -> Trials:
    """Return the trials of a session from the designs of its runs, each ``int64[225]``."""
    onsets = [np.flatnonzero(design) for design in designs]
    images = np.concatenate([design[shown] - 1 for design, shown in zip(designs, onsets, strict=True)])
    seen = plan.trial_images(subject)[: (session - 1) * TRIALS_PER_SESSION]
    counts = Counter(seen.tolist())
    times_seen = []
    for image in images.tolist():
        times_seen.append(counts[image])
        counts[image] += 1
    return Trials(
        images=images,
        run=np.repeat(np.arange(len(designs)), [len(shown) for shown in onsets]),
        onsets=np.concatenate(onsets),
        times_seen=np.array(times_seen, dtype=np.int64),
    )


class SubjectWriter:
    """Writes the ROI and the sessions of a subject."""

    def __init__(
        self, layout: Layout, plan: ExpDesign, settings: CortexSettings, seed: int, subject: int
    ) -> None:
        self.layout = layout
        self.plan = plan
        self.settings = settings
        self.seed = seed
        self.subject = subject
        self.cortex = open_cortex(settings, seed, subject)
        rng = np.random.default_rng([seed, subject, 2])
        self.voxels: VoxelNoise = draw_voxel_noise(settings, rng, self.cortex.signal_factor)
        brain = self.cortex.anatomy.brain
        self.baseline = np.full(settings.grid, _NON_BRAIN_INTENSITY, dtype=np.float32)
        self.baseline[brain] = rng.uniform(*settings.baseline, np.count_nonzero(brain))

    def write_roi(self) -> None:
        """Write the nsdgeneral ROI in NSD's code."""
        anatomy = self.cortex.anatomy
        self._write_image(self.layout.roi(self.subject), anatomy.labels)

    def write_session(self, session: int) -> npt.NDArray[np.float64]:
        """Write the 12 task runs of a session; return each voxel's signal share as measured, ``[V]``."""
        designs = [design_rows(self.plan, self.subject, session, index) for index in range(12)]
        trials = session_trials(self.plan, self.subject, session, designs)
        responses = self.cortex.trial_responses(session, trials)
        evoked_variance = np.zeros(self.settings.n_roi_voxels)
        total_variance = np.zeros(self.settings.n_roi_voxels)
        for index, run in enumerate(task_runs(self.subject, session)):
            shown = trials.run == index
            evoked = self.cortex.evoked(trials.onsets[shown].tolist(), responses[shown])
            evoked_units, series = self._write_run(session, run, designs[index], evoked)
            evoked_variance += evoked_units.var(axis=0, dtype=np.float64)
            total_variance += series.var(axis=0, dtype=np.float64)
        return np.asarray(evoked_variance / total_variance)

    def _write_run(
        self, session: int, run: int, design: npt.NDArray[np.int64], evoked: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16]]:
        """Write a run's files; return evoked and written series of the ROI, ``[226, V]``, scanner units."""
        rng = np.random.default_rng([self.seed, self.subject, 3, session, run])
        noise = draw_run_noise(self.settings, self.voxels, self.cortex.anatomy.positions, rng)
        scale = 1 + rng.normal(0, self.settings.run_scale_sd)
        baseline = self.baseline * np.float32(scale)
        unit = self.settings.fluctuation * baseline  # one SD of a series in scanner units
        roi = self.cortex.anatomy.roi
        evoked_units = evoked * self.voxels.evoked_sd * unit[roi]
        white = rng.standard_normal((N_WRITTEN_VOLUMES, *baseline.shape), dtype=np.float32)
        volumes = baseline + unit * white
        volumes[:, roi] = baseline[roi] + evoked_units + noise.series * unit[roi]
        stored = np.clip(np.rint(volumes), 0, np.iinfo(np.int16).max).astype(np.int16)
        key = (self.subject, session, run)
        self._write_text(self.layout.design(*key), design[:, None], "%d")
        self._write_text(self.layout.motion(*key), noise.motion, "%.6f")
        # The series is last, because a run counts as present if its series exists.
        self._write_image(self.layout.timeseries(*key), np.moveaxis(stored, 0, -1))
        return evoked_units, stored[:, roi]

    def _write_image(self, path: Path, values: npt.NDArray[np.int16]) -> None:
        make: Any = nib.Nifti1Image  # untyped in nibabel
        image = make(values, self.cortex.anatomy.affine)
        image.header.set_xyzt_units("mm", "sec")
        if values.ndim == 4:
            image.header.set_zooms((*(self.settings.voxel_mm,) * 3, TR_S))
        write_image(path, image)

    def _write_text(self, path: Path, values: npt.NDArray[Any], form: str) -> None:
        with whole(path) as partial:
            np.savetxt(partial, values, fmt=form, delimiter="\t")


def synthesize(
    root: Path,
    *,
    settings: CortexSettings,
    seed: int,
    subject: int,
    n_sessions: int,
    n_stimuli: int | None = None,
    raw: RawSettings | None = None,
) -> Provenance:
    """Write or complete a synthetic data set: the design, then stimuli, then ``n_sessions`` sessions.

    :param n_stimuli: write this many first pictures; None writes those that the sessions show
    :param raw: settings of the sessions' raw side; None writes none
    :raises SimError: when the folder contains data of other settings or seed, or not synthetic data
    :raises NsdError: when NSD has no such subject or session
    """
    layout = Layout(root)
    task_runs(subject, n_sessions)  # raises if NSD has no such session, before anything is written
    provenance = Provenance.open(root, settings=settings, seed=seed)
    plan = write_experiment(layout, seed)
    shown = plan.trial_images(subject)[: n_sessions * TRIALS_PER_SESSION]
    write_stimuli(layout, open_scenes(settings, seed), shown if n_stimuli is None else np.arange(n_stimuli))
    missing = [s for s in range(1, n_sessions + 1) if not _is_complete(layout, provenance, subject, s)]
    if missing:
        writer = SubjectWriter(layout, plan, settings, seed, subject)
        writer.write_roi()
        for session in tqdm(missing, desc=f"sessions of subject {subject}", unit="session"):
            share = writer.write_session(session)
            provenance = provenance.with_session(subject, session, share)
            provenance.write(root)
    if not layout.mean(subject).exists():
        write_mean(layout, settings, seed, subject)
    if raw:
        write_raw(root, subject=subject, n_sessions=n_sessions, settings=raw)
    return provenance


def write_mean(layout: Layout, settings: CortexSettings, seed: int, subject: int) -> None:
    """Write the mean functional volume, int16: the brain of session 1's first run, and the head around it.

    Its grid is that of the series, extended on all sides so that it holds the whole head.
    """
    anatomy = build_anatomy(settings)
    head = build_head(settings, anatomy, seed, subject)
    image: Any = nib.load(layout.timeseries(subject, 1, task_runs(subject, 1).start))
    brain = np.asanyarray(image.dataobj)[anatomy.brain].mean(axis=1, dtype=np.float32)
    values = np.clip(np.rint(head.with_brain(brain)), 0, np.iinfo(np.int16).max).astype(np.int16)
    make: Any = nib.Nifti1Image  # untyped in nibabel
    mean = make(values, head.affine)
    mean.header.set_xyzt_units("mm", "sec")
    write_image(layout.mean(subject), mean)


def _is_complete(layout: Layout, provenance: Provenance, subject: int, session: int) -> bool:
    runs = task_runs(subject, session)
    there = all(layout.timeseries(subject, session, run).is_file() for run in runs)
    return there and provenance.has_session(subject, session)
