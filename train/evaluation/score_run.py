"""Two-way identification of a recorded run from EfficientNet-Lite0 features, for the runtime's report.

The runtime does not import torch; where torch is installed, it starts ``python -m train score --run DIR
--json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from realtime.record.reader import read_recorded
from realtime.report.identification import identification
from realtime.report.summary import trusted
from train.errors import TrainError
from train.evaluation.networks.efficientnet_lite import efficientnet_lite0


def score_run(folder: Path) -> dict[str, Any]:
    """Two-way identification with its interval: keys value, low, high, chance, n_trials, by_picture.

    :raises RecordError: ``folder`` is not a complete run folder
    :raises TrainError: fewer than two of its trials were decoded
    """
    trials = trusted(read_recorded(folder))
    if len(trials) < 2:
        raise TrainError(
            f"expected at least two decoded trials in {folder}, found {len(trials)}; a trial needs the "
            "marker of its picture, and a frame"
        )
    shown = np.stack([trial.shown_image() for trial in trials])
    decoded = np.stack([trial.decoded_image() for trial in trials])
    scores = identification(efficientnet_lite0(shown), efficientnet_lite0(decoded))
    result: dict[str, Any] = msgspec.to_builtins(scores)
    return result
