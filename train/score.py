"""Identification of a recorded run in EfficientNet-Lite0 features, for the runtime's report.

The runtime itself holds no torch; it starts ``python -m train score --run DIR --json`` where there is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from realtime.identify import identification
from train.errors import TrainError
from train.features import efficientnet_lite0


def score_run(folder: Path) -> dict[str, Any]:
    """Two-way identification with its interval: keys value, low, high, chance, n_trials.

    :raises TrainError: when ``folder`` is not a run folder.
    """
    from realtime.report import trial_pictures

    shown, decoded = trial_pictures(folder)
    if len(shown) < 2:
        raise TrainError(f"expected at least two decoded trials in {folder}, found {len(shown)}")
    scores = identification(efficientnet_lite0(np.stack(shown)), efficientnet_lite0(np.stack(decoded)))
    result: dict[str, Any] = msgspec.to_builtins(scores)
    return result
