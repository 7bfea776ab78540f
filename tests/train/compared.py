"""What an evaluation says of decoded pictures beside the shown ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train.evaluation.results_table import Row, Seen, per_trial, summarise


def compare(shown: Seen, decoded: Seen, pictures: NDArray[np.int64] | None = None, *, seed: int = 0) -> Row:
    """Every metric's score over the trials.

    :param pictures: a number for the picture that each trial showed, ``[n]``; by default all differ
    """
    values = per_trial(shown, decoded)
    if pictures is None:
        pictures = np.arange(len(shown.features["pictures"]))
    return summarise(values, pictures, seed=seed)
