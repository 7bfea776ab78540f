"""Decode the held-out runs and compare with what was shown.

OUT/table.json, table.md   identification and PixCorr, a row for each way of decoding
OUT/grid.png               held-out trials drawn by seed: shown, offline, streaming, ceiling

*offline* and *streaming* differ in preprocessing; the *ceiling* is the base model conditioned on the true
picture; the *floor* is the offline decodes of windows shuffled over trials.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsd import Layout, RunKey, Stimuli, run_trials
from realtime.identify import correlations, hog, identification, pixels, stack
from train.base import load_unet
from train.cache import Prior
from train.dynadiff import Checkpoint, load_checkpoint
from train.errors import TrainError
from train.features import efficientnet_lite0
from train.pretrain import load_picture_encoder, to_tensor
from train.recipe import DemoBase, demo_base
from train.sample import decode
from train.windows import run_windows

_log = logging.getLogger(__name__)
Pictures = NDArray[np.uint8]
GRID_TRIALS = 32


def evaluate(
    root: Path, folder: Path, out: Path, *, max_trials: int, seed: int = 1
) -> dict[str, dict[str, object]]:
    """Write the table and the grid to ``out`` and return the table."""
    checkpoint = load_checkpoint(folder)
    layout = Layout(root)
    keys = [RunKey(*key) for key in checkpoint.info.held_out_runs]
    if not keys:
        raise TrainError(
            f"expected a checkpoint that holds out runs, but that in {folder} names none: it was imported, "
            "and its authors' test set is the shared images"
        )
    windows, images = _held_out_windows(layout, keys, checkpoint)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:max_trials])
    with Stimuli(layout) as stimuli:
        shown = stimuli.images(images[chosen].tolist())
    decoded = {
        "offline": decode_windows(checkpoint, windows["whole_run"][chosen], seed, "offline"),
        "streaming": decode_windows(checkpoint, windows["causal"][chosen], seed, "streaming"),
    }
    if isinstance(checkpoint.recipe.base, DemoBase):
        decoded["ceiling"] = decode_pictures(checkpoint, shown, seed)
    order = np.random.default_rng(seed).permutation(len(chosen))
    truth = Seen.of(shown)
    seen = {name: Seen.of(pictures) for name, pictures in decoded.items()}
    seen["floor"] = seen["offline"].reordered(order)
    rows = {name: compare(truth, those) for name, those in seen.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(
        json.dumps({"trials": len(chosen), "runs": len(keys), "rows": rows}, indent=2)
    )
    (out / "table.md").write_text(as_markdown(rows))
    _log.info("%s", as_markdown(rows))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:GRID_TRIALS])
    _write_grid(out / "grid.png", [shown[drawn], *(pictures[drawn] for pictures in decoded.values())])
    return rows


def decode_windows(checkpoint: Checkpoint, windows: NDArray[np.float16], seed: int, name: str) -> Pictures:
    """Decode windows ``[n, V, T]`` in torch."""

    def condition_of(part: slice) -> Tensor:
        window = torch.from_numpy(windows[part].astype(np.float32))
        tokens: Tensor = checkpoint.brain(window, torch.zeros(len(window), dtype=torch.long))
        return tokens

    return decode(
        condition_of,
        len(windows),
        checkpoint.unet,
        checkpoint.vae,
        checkpoint.null_NW,
        checkpoint.recipe.diffusion,
        seed,
        name,
    )


def decode_pictures(checkpoint: Checkpoint, pictures: Pictures, seed: int) -> Pictures:
    """What the base model, without adapter, makes of the true pictures' own tokens: the ceiling."""
    encoder, null_NW = load_picture_encoder(checkpoint.base_folder, demo_base(checkpoint.recipe))
    base = load_unet(checkpoint.base_folder)

    def condition_of(part: slice) -> Tensor:
        tokens: Tensor = encoder(to_tensor(pictures[part]))
        return tokens

    settings = checkpoint.recipe.diffusion
    return decode(condition_of, len(pictures), base, checkpoint.vae, null_NW, settings, seed, "ceiling")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Pictures of trials in each kind of features, ``[trials, d]``."""

    features: dict[str, NDArray[np.float64]]

    @staticmethod
    def of(pictures: Pictures) -> Seen:
        """Compute the features of ``pictures`` ``[trials, H, W, 3]``."""
        return Seen(
            features={
                "pixels": stack([pixels(picture) for picture in pictures]),
                "hog": stack([hog(picture) for picture in pictures]),
                "efficientnet_lite0": efficientnet_lite0(pictures),
            }
        )

    def reordered(self, order: NDArray[np.int64]) -> Seen:
        """The same pictures in another order."""
        return Seen(features={kind: rows[order] for kind, rows in self.features.items()})


def compare(shown: Seen, decoded: Seen) -> dict[str, object]:
    """Two-way identification in each kind of features, and mean PixCorr with its standard error."""
    row: dict[str, object] = {
        kind: msgspec.to_builtins(identification(true, decoded.features[kind]))
        for kind, true in shown.features.items()
    }
    pixcorr = np.diagonal(correlations(shown.features["pixels"], decoded.features["pixels"]))
    spread = float(np.std(pixcorr, ddof=1) / np.sqrt(len(pixcorr)))
    return row | {"pixcorr": {"value": float(np.mean(pixcorr)), "standard_error": spread}}


def as_markdown(rows: dict[str, dict[str, object]]) -> str:
    """The table for people: identification in percent with its 95 % interval over trials."""
    lines = [
        "| decoded from | pixels | HOG | EfficientNet-Lite0 | PixCorr |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [_percent(row[key]) for key in ("pixels", "hog", "efficientnet_lite0")]
        lines.append(f"| {name} | {' | '.join(cells)} | {_value(row['pixcorr']):.2f} |")
    return "\n".join(lines) + "\n"


def _percent(cell: object) -> str:
    assert isinstance(cell, dict)
    return f"{100 * cell['value']:.1f} % [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _value(cell: object) -> float:
    assert isinstance(cell, dict)
    return float(cell["value"])


def _held_out_windows(
    layout: Layout, keys: list[RunKey], checkpoint: Checkpoint
) -> tuple[dict[str, NDArray[np.float16]], NDArray[np.int64]]:
    prior = Prior.load(checkpoint.folder / "prior.npz")
    recipe = checkpoint.recipe
    parts = [run_windows(layout, key, recipe.window, recipe.preprocessing, prior) for key in keys]
    trials = run_trials(layout, keys)
    end = recipe.window.offset_volumes + recipe.window.length_volumes
    trusted = np.array(
        [item.trial.onset_volume + end >= recipe.preprocessing.warmup_volumes for item in trials]
    )
    images = np.array([item.trial.image for item in trials])
    forms = {form: np.concatenate([part[form] for part in parts])[trusted] for form in parts[0]}
    return forms, images[trusted]


def _write_grid(path: Path, rows: list[Pictures]) -> None:
    """Two bands of sixteen trials, each band one row per kind."""
    half = GRID_TRIALS // 2
    bands = [
        np.concatenate([np.concatenate(list(row[at : at + half]), axis=1) for row in rows])
        for at in (0, half)
    ]
    gap = np.full((8, bands[0].shape[1], 3), 255, dtype=np.uint8)
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate([bands[0], gap, bands[1]]), cv2.COLOR_RGB2BGR))
