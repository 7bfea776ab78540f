"""The worked examples of a decoder and a metric in CONTRIBUTING.md do what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error

from train.checkpoints.checkpoint import load_checkpoint
from train.evaluation import metrics, results_table
from train.evaluation.evaluate import Evaluation, evaluate
from train.fitting.job import Order
from train.recipe import Recipe

from .compared import compare

Example = Callable[[str], str]


def test_the_example_of_a_decoder_is_evaluated_as_a_floor(
    contributing_example: Example, tiny_nsd: Path, tiny_base: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    code = contributing_example("train/systems/mean_picture/fit.py")
    # Instead of the line that the example adds to ``Method``: a method whose checkpoints are linear, too.
    code = code.replace('"mean-picture"', '"brain-diffuser"')
    names: dict[str, Callable[[Order], None]] = {}
    exec(compile(code, "mean_picture", "exec"), names)
    out = tmp_path / "mean"
    order = Order(root=tiny_nsd, subjects=[1], recipe=tiny_recipe, base=tiny_base, out=out)
    names["fit_mean_picture"](order)
    brain = load_checkpoint(out).brain
    windows = torch.randn(2, brain.config.n_voxels, brain.config.n_volumes)
    predicted = brain(windows, torch.zeros(2, dtype=torch.long))
    assert torch.equal(predicted[0], predicted[1])
    assert predicted.std() > 0
    trials = Evaluation(root=tiny_nsd, checkpoint=out, out=tmp_path, n_trials=8, caches=order.cache_folder)
    rows = evaluate(trials)
    found = rows["offline"]["Pixels"]
    assert isinstance(found, results_table.Score)
    assert found.low <= 0.5 <= found.high


def test_the_example_of_a_metric_stands_in_the_table(
    contributing_example: Example, pictures: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = dict(vars(metrics))
    exec(contributing_example("train/evaluation/metrics.py"), names)
    formula = names["absolute_error"]
    row = eval(
        contributing_example("train/evaluation/results_table.py"),
        {**vars(results_table), "absolute_error": formula},
    )
    decoded = np.roll(pictures, 1, axis=0)
    expected = [
        mean_absolute_error(one.ravel(), other.ravel()) for one, other in zip(pictures, decoded, strict=True)
    ]
    np.testing.assert_allclose(formula(pictures, decoded), expected)
    with pytest.raises(ValueError, match="equal shape"):
        formula(pictures, decoded[:1])
    monkeypatch.setattr(results_table, "METRICS", (*results_table.METRICS, row))
    seen = results_table.see({"shown": pictures, "decoded": decoded}, None)
    scores = compare(seen["shown"], seen["decoded"])
    score = scores["MAE"]
    assert isinstance(score, results_table.Score)
    assert score.value > 0
    assert "| MAE | lower |" in results_table.as_markdown({"offline": scores})
