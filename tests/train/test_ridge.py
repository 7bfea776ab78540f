"""The blocked ridge regression equals scikit-learn's, in both of its forms, and chooses as it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from train.errors import TrainError
from train.systems.brain_diffuser import pca, ridge
from train.systems.brain_diffuser.pca import leading_components
from train.systems.brain_diffuser.ridge import Windows, fit_ridge

Array = NDArray[Any]


def problem(n: int, p: int, k: int, noise: float, seed: int = 0) -> tuple[Array, Array]:
    """Windows with a mean and unequal directions, targets that depend on them, and noise."""
    draw = np.random.default_rng(seed)
    mixing = draw.standard_normal((p, p)) / np.sqrt(p)
    windows = draw.standard_normal((n, p)) @ mixing + draw.standard_normal(p)
    truth = draw.standard_normal((p, k)) / np.sqrt(p)
    targets = windows @ truth + noise * draw.standard_normal((n, k)) + 3
    return windows.astype(np.float32), targets.astype(np.float32)


def as_windows(array: Array) -> Windows:
    return Windows(n=len(array), width=array.shape[1], read=lambda rows: array[rows])


def oracle(windows: Array, targets: Array, strength: float) -> Ridge:
    scale = np.square(windows - windows.mean(axis=0)).sum() / len(windows)
    return Ridge(alpha=strength * scale).fit(windows.astype(np.float64), targets)


@pytest.mark.parametrize(("n", "p"), [(90, 40), (90, 200)], ids=["primal", "dual"])
def test_it_is_scikit_learns_ridge(n: int, p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "_BLOCK", 32)  # several blocks, the last of them short
    windows, targets = problem(n, p, 5, noise=0.5)
    held_out = np.arange(n) % 4 == 1
    fit = fit_ridge(as_windows(windows), targets, held_out, [0.1], [slice(0, 2), slice(2, 5)])
    expected = oracle(windows, targets, 0.1)
    np.testing.assert_allclose(fit.weights, expected.coef_.T, atol=5e-4)
    np.testing.assert_allclose(fit.intercept, expected.intercept_, atol=2e-3)
    others = oracle(windows[~held_out], targets[~held_out], 0.1)
    np.testing.assert_allclose(fit.held_out, others.predict(windows[held_out]), atol=2e-3)
    for group, explained in zip((slice(0, 2), slice(2, 5)), fit.explained, strict=True):
        truth = targets[held_out, group]
        total = np.square(truth - targets[~held_out, group].mean(axis=0)).sum()
        assert explained == pytest.approx(
            1 - np.square(truth - fit.held_out[:, group]).sum() / total, abs=1e-5
        )


@pytest.mark.parametrize(("n", "p"), [(300, 60), (120, 150)], ids=["primal", "dual"])
def test_each_group_gets_the_strength_that_predicts_it_best(n: int, p: int) -> None:
    windows, clear = problem(n, p, 3, noise=0.01)
    vague = clear + 20 * np.random.default_rng(5).standard_normal(clear.shape).astype(np.float32)
    targets = np.concatenate([clear, vague], axis=1)
    held_out = np.random.default_rng(6).random(n) < 0.3
    strengths = [0.03, 0.3, 3.0, 30.0, 300.0]
    groups = [slice(0, 3), slice(3, 6)]
    fit = fit_ridge(as_windows(windows), targets, held_out, strengths, groups)
    for group, chosen in zip(groups, fit.strengths, strict=True):
        errors = [
            np.square(
                oracle(windows[~held_out], targets[~held_out, group], strength).predict(windows[held_out])
                - targets[held_out, group]
            ).sum()
            for strength in strengths
        ]
        assert chosen == strengths[int(np.argmin(errors))]
        expected = oracle(windows, targets[:, group], chosen)
        np.testing.assert_allclose(fit.weights[:, group], expected.coef_.T, atol=1e-3)
    assert fit.strengths[0] < fit.strengths[1], "noise asks for more shrinkage"


def test_windows_that_are_not_finite_are_refused() -> None:
    windows, targets = problem(30, 10, 2, noise=0.1)
    windows[3, 4] = np.nan
    with pytest.raises(TrainError, match="expected finite windows"):
        fit_ridge(as_windows(windows), targets, np.arange(30) < 6, [1.0], [slice(0, 2)])


@pytest.mark.parametrize(("m", "q"), [(50, 20), (30, 70)], ids=["few numbers", "few pictures"])
def test_components_are_scikit_learns_pca_of_repeated_rows(
    m: int, q: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pca, "_BLOCK", 16)
    draw = np.random.default_rng(2)
    outputs = (draw.standard_normal((m, q)) * np.linspace(4, 0.5, q) + 7).astype(np.float32)
    times = draw.integers(1, 4, m)
    found = leading_components(outputs, times.astype(np.float64), 6)
    repeated = outputs.repeat(times, axis=0)
    expected = PCA(6, svd_solver="full").fit(repeated)
    signs = np.sign((found.axes * expected.components_).sum(axis=1))
    np.testing.assert_allclose(found.axes * signs[:, None], expected.components_, atol=1e-3)
    np.testing.assert_allclose(found.scores * signs, expected.transform(outputs), atol=1e-2)
    np.testing.assert_allclose(found.mean, repeated.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.sd, repeated.std(axis=0), rtol=1e-4)


def test_all_components_rebuild_the_outputs() -> None:
    outputs = np.random.default_rng(3).standard_normal((12, 40)).astype(np.float16)
    found = leading_components(outputs, np.ones(12), 1000)
    assert len(found.axes) == 11, "the mean takes one"
    np.testing.assert_allclose(found.mean + found.scores @ found.axes, outputs, atol=1e-4)
