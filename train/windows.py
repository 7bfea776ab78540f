"""Windows of single runs, read and preprocessed as needed: what evaluation decodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nsd import Layout, Run, RunKey, read_roi
from realtime.preprocess import causal_windows, z_scored
from train.cache import Prior, drift_basis, streaming_settings
from train.recipe import Preprocessing, Window


def run_windows(
    layout: Layout, key: RunKey, window: Window, preprocessing: Preprocessing, prior: Prior
) -> dict[str, NDArray[np.float16]]:
    """Windows of one run's presentations in each form, float16 ``[trials, V, T]``."""
    run = Run(layout, *key)
    rows = run.roi_series(read_roi(layout, key.subject))
    starts = np.array([trial.onset_volume for trial in run.trials]) + window.offset_volumes
    z_rows = z_scored(rows, drift_basis(len(rows), preprocessing))
    offline = np.stack([z_rows[start : start + window.length_volumes].T for start in starts])
    streamed = causal_windows(
        rows,
        run.tr_s,
        streaming_settings(preprocessing),
        prior.mean,
        prior.sd,
        window.length_volumes,
        (starts + window.length_volumes - 1).tolist(),
    )
    return {"whole_run": offline.astype(np.float16), "causal": streamed.astype(np.float16)}
