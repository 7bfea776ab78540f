"""Volumes that NSD's authors filled in, against their interpolation written out with scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from nsd import N_DESIGN_ROWS, SYNTHETIC_FILE, Layout, RunKey, repaired_volumes, task_runs
from nsd.repairs import COPIES, JOINED, Copies, reading

RAW_TR_S = 1.6
N_RAW = 188


def resampled(raw: np.ndarray) -> np.ndarray:
    """Raw volumes [188, V] at every slice's time as the 1.8 mm series, [226, slices, V].

    As ``tseriesinterp.m`` does it: the first and last volume are repeated three times on either side.
    """
    padded = np.concatenate([raw[:1].repeat(3, 0), raw, raw[-1:].repeat(3, 0)])
    times_s = RAW_TR_S * (np.arange(len(padded)) - 3)
    wanted_s = np.arange(226) * 4 / 3 * 0.999878
    slices_s = RAW_TR_S * np.arange(28) / 28
    return np.stack([PchipInterpolator(times_s, padded)(wanted_s - late_s) for late_s in slices_s], axis=1)


@pytest.mark.parametrize("copies", [*sorted(set(COPIES.values())), Copies(4, 4), Copies(50, 61)])
def test_a_volume_is_repaired_when_the_interpolation_reads_a_copy(copies: Copies) -> None:
    raw = np.random.default_rng(1).standard_normal((N_RAW, 300))
    other = raw.copy()
    copied = slice(copies.first - 1, copies.last)
    other[copied] = np.random.default_rng(2).standard_normal(other[copied].shape)
    changed = (resampled(raw) != resampled(other)).any(axis=(1, 2))[:N_DESIGN_ROWS]
    np.testing.assert_array_equal(np.flatnonzero(changed), reading(copies))


def test_the_repaired_volumes_are_those_that_the_authors_name() -> None:
    layout = Layout(Path("nowhere"))
    found = {
        (subject, session, run): repaired_volumes(layout, RunKey(subject, session, run))
        for subject, session in ((1, 1), (1, 2), (6, 31), (8, 2))
        for run in task_runs(subject, session)
    }
    assert {key: volumes for key, volumes in found.items() if volumes} == {
        (1, 2, 2): range(152, 185),
        (6, 31, 1): range(215, 225),
        (6, 31, 2): range(215, 225),
        (8, 2, 4): range(225),
    }
    assert {(1, 2, 2), (6, 31, 1), (6, 31, 2)} == COPIES.keys()
    assert JOINED == ((8, 2, 4),)


def test_a_synthetic_data_set_was_not_repaired(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert repaired_volumes(layout, RunKey(1, 2, 2))
    (tmp_path / SYNTHETIC_FILE).write_text("{}")
    assert not repaired_volumes(layout, RunKey(1, 2, 2))
